"""A teacher's stored logits train as the live teacher does."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models import tiny
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.grow import distil, teacher_logits

SETTINGS = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "seed": 4}


def data(count=50):
    draws = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 5, generator=draws), torch.randint(3, (count,), generator=draws))


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("on_disk", [False, True])
def test_stored_logits_train_the_same_student(alpha, on_disk, tmp_path):
    teacher, samples = network(0).train(), data()
    path = tmp_path / "logits.safetensors" if on_disk else None
    logits = teacher_logits(teacher, samples, path, batch_size=7)
    assert teacher.training
    torch.testing.assert_close(logits, teacher.eval()(samples.tensors[0]), rtol=0, atol=1e-6)
    live, stored = network(1), network(1)
    runs = [distil(student, source, samples, alpha=alpha, **SETTINGS) for student, source in
            ((live, teacher), (stored, logits))]  # fmt: skip
    assert runs[1].losses == pytest.approx(runs[0].losses, abs=1e-6)
    for mine, theirs in zip(live.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    if on_disk:
        assert torch.equal(load_file(path)["logits"], logits)


def test_padding_of_tokens_does_not_count_either():
    teacher, batch = tiny("gpt2")
    samples = [{name: tensor[row] for name, tensor in batch.items()} for row in range(8)]
    logits = teacher_logits(teacher, samples, batch_size=3)
    assert logits.shape == (*batch["input_ids"].shape, teacher.config.vocab_size)
    losses = []
    for source in (teacher, logits):
        student = tiny("gpt2")[0]
        with torch.no_grad():
            student.transformer.wte.weight.mul_(0.5)
        losses.append(distil(student, source, samples, epochs=2, batch_size=4, seed=1).losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_bad_calls_leave_no_file(tmp_path):
    teacher, samples = network(0), data()
    logits = teacher_logits(teacher, samples)
    with pytest.raises(ShapeError, match="one row for each of 49 samples"):
        distil(network(1), logits, data(49))
    with pytest.raises(HyperparameterError, match="DataLoader"):
        distil(network(1), logits, DataLoader(samples))
    with pytest.raises(ShapeError, match="the same classes"):
        distil(network(1), logits[:, :2], samples)
    with pytest.raises(HyperparameterError, match="samples, batch_size"):
        teacher_logits(teacher, samples, batch_size=0)
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        teacher_logits(teacher, samples, tmp_path / "logits.bin")
    model, batch = tiny("gpt2")
    lengths = [{"input_ids": batch["input_ids"][0, :length]} for length in (5, 5, 7)]
    with pytest.raises(CalibrationError, match=r"logits of the samples: found \[\(5, .*, expected one shape"):
        teacher_logits(model, lengths, tmp_path / "logits.safetensors", batch_size=2)
    bert, batch = tiny("bert")
    with pytest.raises(UnsupportedModelError, match="no logits"):
        teacher_logits(bert.bert, [{n: t[0] for n, t in batch.items()}], tmp_path / "logits.safetensors")
    assert list(tmp_path.iterdir()) == []
    teacher_logits(teacher, samples, tmp_path / "logits.safetensors")
    with pytest.raises(CheckpointError, match="exists"):
        teacher_logits(teacher, samples, tmp_path / "logits.safetensors")
