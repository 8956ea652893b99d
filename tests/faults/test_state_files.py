"""Files of our own, damaged: a checkpoint error or another of ours names them, never an error from inside."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from faults.lines import run, write_inputs
from models import tiny, write_tiny_llama
from weightsmith.adapt import SparseDelta, load_delta, save_delta
from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import load_model
from weightsmith.grow import Learngene, share_stages
from weightsmith.merge import scale_adapter
from weightsmith.predict import WeightZoo
from weightsmith.sparsify import ActivationPlan, save_compressed
from weightsmith.sparsify._compressed import load_compressed

TEXTS = ["", "{", "[]", "3", "null", '"x"', "{}", "[" * 5000, '{"version": 1}', "\0"]


def learngene(folder):
    model, _ = tiny("llama", layers=2)
    Learngene(model, share_stages(model, [2])).save(folder / "gene.safetensors")
    return folder / "gene.safetensors", lambda path: Learngene.load(path, tiny("llama", layers=2)[0])


def delta(folder):
    save_delta(SparseDelta.between({"w": torch.zeros(2, 2)}, {"w": torch.eye(2)}), folder / "delta.safetensors")
    return folder / "delta.safetensors", load_delta


def zoo(folder):
    WeightZoo.from_state_dicts([torch.nn.Linear(2, 2).state_dict() for _ in range(3)]).save(folder / "zoo")
    return folder / "zoo" / "manifest.json", lambda path: WeightZoo.from_folder(path.parent)


def plan(folder):
    (folder / "plan").mkdir()
    return folder / "plan" / "activation_plan.json", ActivationPlan.load


def adapter(folder):
    write_inputs(folder)
    file = folder / "adapter" / "adapter_config.json"
    return file, lambda path: scale_adapter([path.parent], folder / "out")


def compressed(folder):
    model = load_model(write_tiny_llama(folder, 2, 2) / "tiny")
    save_compressed(model, folder / "small")
    return folder / "small" / "config.json", lambda path: load_compressed(path.parent)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [learngene, delta, zoo, plan, adapter, compressed])
def test_a_damaged_file_is_named(tmp_path, make, text):
    path, load = make(tmp_path)
    if path.suffix == ".json":
        path.write_text(text)
    else:
        with safe_open(path, framework="pt") as file:
            metadata = {key: value if key == "format" else text for key, value in file.metadata().items()}
        save_file(load_file(path), path, metadata=metadata)
    nothing = make is delta and text == "{}"  # a delta of no tensors
    with pytest.raises(WeightsmithError) if not nothing else nullcontext():
        load(path)


@pytest.mark.parametrize("size", [0, 7, 100, -5])
@pytest.mark.parametrize("make", [learngene, delta])
def test_a_truncated_file_is_named(tmp_path, make, size):
    path, load = make(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsmithError):
        load(path)


def test_ids_beyond_the_vocabulary_and_scalars_are_refused(tmp_path):
    write_tiny_llama(tmp_path, 4, 8)
    words = ["sparsify", "wanda", str(tmp_path / "tiny"), str(tmp_path / "out"), "--calibration"]
    for tensor, message in (
        (torch.full((2, 4), 64), "found 64 to 64, expected whole numbers from 0 to 63"),
        (torch.full((2, 4), -1), "found -1 to -1"),
        (torch.ones(2, 4), "found 1.0 to 1.0"),
        (torch.tensor(3), "expected one row per sample"),
    ):
        save_file({"input_ids": tensor}, tmp_path / "ids.safetensors")
        code, printed = run([*words, str(tmp_path / "ids.safetensors")])
        assert code == 1
        assert message in " ".join(printed.split()), printed
    assert not Path(tmp_path / "out").exists()
