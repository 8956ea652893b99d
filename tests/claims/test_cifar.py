"""The claims on data of the user's own: left out without it, and the same images on every run with it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from weightsmith.claims import _cifar, dkvb, modhifi, weight_aligning
from weightsmith.claims.harness import user_data


@pytest.mark.parametrize("experiment", [dkvb.cifar, weight_aligning.cifar, modhifi.classwise_cifar])
def test_without_the_data_the_experiment_is_left_out_and_the_reason_printed(experiment, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("WEIGHTSMITH_DATA", raising=False)
    assert experiment() == []
    assert "WEIGHTSMITH_DATA is not set; it names the folder of cifar10-jpeg" in capsys.readouterr().err
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path))
    assert experiment() == []
    assert f"{tmp_path / 'cifar10-jpeg'} does not exist" in capsys.readouterr().err
    (tmp_path / "cifar10-jpeg").mkdir()
    assert user_data("cifar10-jpeg", "it") == tmp_path / "cifar10-jpeg"


def test_as_many_images_of_each_class_in_the_same_order(tmp_path):
    labels = np.arange(60, dtype=np.uint8) % 10
    files = []
    for number, label in enumerate(labels):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (25 * int(label), 4 * number, 0)).save(file, "JPEG")
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "train.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=labels)
    pixels, found = _cifar.images(tmp_path, "train", 3)
    assert pixels.shape == (30, 3, 32, 32)
    assert found.bincount().tolist() == [3] * 10
    assert (pixels[:, 0].float().mean((1, 2)) - 25 * found).abs().max() < 4
    again, _ = _cifar.images(tmp_path, "train", 3)
    assert torch.equal(pixels, again)


def test_the_residual_network():
    network = _cifar.resnet(blocks=5, width=16)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum(module.kernel_size == (3, 3) for module in convolutions) == 31  # and a head: ResNet-32
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 64)
