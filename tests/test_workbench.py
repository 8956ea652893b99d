"""The workbench: calibration from files, measures before and after, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightsmith.core.errors import CalibrationError
from weightsmith.core.results import Result
from weightsmith.embedded import OpenedModel
from weightsmith.signature import read
from weightsmith.workbench import Data, Workbench


def bench(**data) -> Workbench:
    return Workbench(OpenedModel(nn.Linear(3, 2), None, None), Data(**data))


def test_one_tensor_is_the_only_argument(tmp_path):
    x = torch.arange(60.0).reshape(20, 3)
    save_file({"x": x}, tmp_path / "x.safetensors")
    batches = bench(calibration=tmp_path / "x.safetensors", samples=18).batches()
    assert [len(batch) for batch in batches] == [8, 8, 2]
    assert torch.equal(torch.cat(list(batches)), x[:18])


def test_several_tensors_are_keyword_arguments(tmp_path):
    save_file({"a": torch.zeros(9, 1), "b": torch.ones(9, 2)}, tmp_path / "x.safetensors")
    batches = bench(calibration=tmp_path / "x.safetensors", samples=99).batches()
    assert [{name: tuple(part.shape) for name, part in batch.items()} for batch in batches] == [
        {"a": (8, 1), "b": (8, 2)},
        {"a": (1, 1), "b": (1, 2)},
    ]


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.zeros(0, 3)}])
def test_rows_that_do_not_pair_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CalibrationError, match="expected one row a sample in each"):
        bench(calibration=tmp_path / "x.safetensors").batches()


def test_a_damaged_file_and_a_model_without_tokenizer_are_told(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(CalibrationError, match="cannot read calibration file"):
        bench(calibration=tmp_path / "x.safetensors").batches()
    with pytest.raises(CalibrationError, match="no tokenizer"):
        bench().batches()


def test_each_state_is_measured_once(monkeypatch):
    def zero(model: nn.Module) -> Result:
        """Set all weights to zero."""
        for parameter in model.parameters():
            parameter.data.zero_()
        return Result("zero")

    ours = bench()
    looks = []
    measure = Workbench.measure
    monkeypatch.setattr(Workbench, "measure", lambda self: looks.append(1) or measure(self))
    first, second = ours.apply(read(zero), {}), ours.apply(read(zero), {})
    assert (first.before["nonzero"], first.after["nonzero"], second.before["nonzero"]) == (8, 0, 0)
    assert len(looks) == 3


def test_a_language_model_is_calibrated_and_measured_on_text(tmp_path):
    """With a tokenizer of single bytes and a model that predicts all of them alike."""

    class Bytes:
        chat_template = None
        pad_token_id = eos_token_id = 0

        def __call__(self, text, **_):
            return {"input_ids": list(text.encode())}

    class Uniform(nn.Embedding):
        def can_generate(self):
            return True

    (tmp_path / "calibrate.txt").write_text("abcd" * 100)
    (tmp_path / "evaluate.txt").write_text("wxyz" * 100)
    model = Uniform.from_pretrained(torch.zeros(256, 256))
    data = Data(tmp_path / "calibrate.txt", 3, 8, tmp_path / "evaluate.txt", 64)
    ours = Workbench(OpenedModel(model, Bytes(), None), data, seed=1)
    (batch,) = ours.batches()
    assert batch["input_ids"].shape == (3, 8)
    assert set(batch["input_ids"].flatten().tolist()) == set(b"abcd")
    assert torch.equal(batch["input_ids"], ours.batches()[0]["input_ids"])
    assert ours.measure()["perplexity"] == pytest.approx(256, rel=1e-4)


def test_save_writes_the_files_beside_the_model(tmp_path):
    bench().save(tmp_path / "out", {"note.txt": "hello"})
    assert sorted(path.name for path in Path(tmp_path / "out").iterdir()) == ["model.safetensors", "note.txt"]
