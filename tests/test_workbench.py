"""The workbench: calibration from files, measures before and after, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForCausalLM

from models import tiny, write_tiny_llama
from weightsmith.continual import classp
from weightsmith.core.errors import CalibrationError
from weightsmith.core.results import Result
from weightsmith.embedded import OpenedModel, folder, load_tokenizer, open_model, text
from weightsmith.quantize import ofq, round_to_nearest
from weightsmith.signature import Role, read
from weightsmith.sparsify import magnitude, teal
from weightsmith.workbench import Data, Evaluation, Workbench, measure_model


def bench(file=None, samples=16) -> Workbench:
    source = {"file": None if file is None else str(file), "samples": samples}
    return Workbench(OpenedModel(nn.Linear(3, 2)), Data(sources={"calibration": source, "training": source}))


CALIBRATION = Role("calibration", "batches", True, "")
TRAINING = Role("training", "samples", True, "")


def test_one_tensor_is_the_only_argument(tmp_path):
    x = torch.arange(60.0).reshape(20, 3)
    save_file({"x": x}, tmp_path / "x.safetensors")
    batches = bench(tmp_path / "x.safetensors", samples=18).read(CALIBRATION)
    assert [len(batch) for batch in batches] == [8, 8, 2]
    rows = torch.cat(list(batches))
    assert len({*rows[:, 0].tolist()}) == 18
    assert torch.equal(rows, x[(rows[:, 0] / 3).long()])


def test_several_tensors_are_keyword_arguments(tmp_path):
    save_file({"a": torch.zeros(9, 1), "b": torch.ones(9, 2)}, tmp_path / "x.safetensors")
    batches = bench(tmp_path / "x.safetensors", samples=99).read(CALIBRATION)
    assert [{name: tuple(part.shape) for name, part in batch.items()} for batch in batches] == [
        {"a": (8, 1), "b": (8, 2)},
        {"a": (1, 1), "b": (1, 2)},
    ]


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.zeros(0, 3)}])
def test_rows_that_do_not_pair_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CalibrationError, match="expected one row per sample in each"):
        bench(tmp_path / "x.safetensors").read(CALIBRATION)


def test_a_damaged_file_and_a_model_without_tokenizer_are_told(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(CalibrationError, match="cannot read the samples in"):
        bench(tmp_path / "x.safetensors").read(CALIBRATION)
    with pytest.raises(CalibrationError, match="no tokenizer"):
        bench().read(CALIBRATION)


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
    data = Data(
        sources={
            "calibration": {"file": f"{tmp_path}/calibrate.txt", "samples": 3, "length": 8},
            "training": {"file": "embedded:source", "samples": 5, "length": 9},
        },
        evaluation={"file": f"{tmp_path}/evaluate.txt", "control": "embedded:evaluation", "tokens": 64},
    )
    ours = Workbench(OpenedModel(model, Bytes(), None), data, seed=1)
    (batch,) = ours.read(CALIBRATION)
    assert batch["input_ids"].shape == (3, 8)
    assert set(batch["input_ids"].flatten().tolist()) == set(b"abcd")
    assert torch.equal(batch["input_ids"], ours.read(CALIBRATION)[0]["input_ids"])
    assert ours.measure()["perplexity"] == pytest.approx(256, rel=1e-4)
    assert ours.measure()["control_perplexity"] == pytest.approx(256, rel=1e-4)
    samples = ours.read(TRAINING)
    assert len(samples) == 5
    assert all(torch.equal(sample["input_ids"], sample["labels"]) for sample in samples)
    assert bytes(samples[0]["labels"].tolist()) in text("source").encode()


def test_models_of_short_context_and_encoder_decoders_are_measured():
    """GPT-2 cannot read more positions than it has; T5 does not write on from a text."""
    tokenizer = load_tokenizer(folder("smollm2"))
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    for positions, writes in ((16, False), (64, True)):
        ours = Workbench(OpenedModel(GPT2LMHeadModel(GPT2Config(**sizes, n_positions=positions)).eval(), tokenizer))
        assert ours.measure()["perplexity"] > 1
        assert bool(ours.sample()) <= writes
    ours = Workbench(OpenedModel(tiny("t5")[0], tokenizer))
    assert set(ours.measure()) == {"parameters", "nonzero", "bytes"}
    assert ours.sample() == ""


@pytest.mark.parametrize("option", [{"speed": True}, {"control": "embedded:evaluation"}, {"tasks": ("arc_easy",)}])
def test_what_only_a_model_that_writes_can_be_asked_for_is_refused_by_name(option, tmp_path):
    save_file({"x": torch.rand(4, 3), "labels": torch.tensor([0, 1, 1, 0])}, tmp_path / "x.safetensors")
    asked = {"file": str(tmp_path / "x.safetensors"), **option}
    with pytest.raises(CalibrationError, match=f"{next(iter(option))}: only of a model that writes: found Linear"):
        Workbench(OpenedModel(nn.Linear(3, 2)), Data(evaluation=asked)).measure()


def test_text_is_measured_in_windows_that_the_tokenizer_allows():
    """RoBERTa numbers its tokens from 2 on, so it reads fewer than it has position embeddings."""
    tokenizer = load_tokenizer(folder("smollm2"))
    tokenizer.model_max_length = 30
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=32, is_decoder=True, **sizes)
    assert Workbench(OpenedModel(RobertaForCausalLM(config).eval(), tokenizer)).measure()["perplexity"] > 1


def test_labelled_text_trains_a_classifier(tmp_path):
    (tmp_path / "mail.csv").write_text('text,label\n"win, now",1\nsee you at noon,0\n', "utf-8")
    opened = OpenedModel(nn.Linear(1, 1), load_tokenizer(folder("minilm")), None)
    source = {"file": str(tmp_path / "mail.csv"), "length": 12}
    samples = Workbench(opened, Data(sources={"training": source})).read(TRAINING)
    assert [int(sample["labels"]) for sample in samples] == [1, 0]
    assert {name: tuple(part.shape) for name, part in samples[0].items() if name != "labels"} == {
        "input_ids": (6,), "token_type_ids": (6,), "attention_mask": (6,)
    }  # fmt: skip
    (tmp_path / "mail.csv").write_text("text,label\nhello,spam\n", "utf-8")
    with pytest.raises(CalibrationError, match=r"labels of .*mail.csv: found \['spam'\], expected class indices"):
        Workbench(opened, Data(sources={"training": source})).read(TRAINING)
    (tmp_path / "mail.csv").write_text("words\nhello\n", "utf-8")
    with pytest.raises(CalibrationError, match="columns of .*mail.csv.*words.*expected messages; prompt"):
        Workbench(opened, Data(sources={"training": source})).read(TRAINING)
    with pytest.raises(CalibrationError, match=r"no embedded text 'poems': expected one of"):
        Workbench(opened, Data(sources={"training": {"file": "embedded:poems"}})).read(TRAINING)


def test_training_rows_of_tensors(tmp_path):
    save_file({"x": torch.arange(6.0).reshape(3, 2), "labels": torch.tensor([0, 1, 1])}, tmp_path / "x.safetensors")
    samples = bench(tmp_path / "x.safetensors", samples=2).read(TRAINING)
    rows = [([0.0, 1.0], 0), ([2.0, 3.0], 1), ([4.0, 5.0], 1)]
    found = [(x.tolist(), int(label)) for x, label in samples]
    assert found in [rows[:2], rows[1:], rows[::2]], "two of three, in order"


def test_a_teacher_is_opened_by_name():
    def distil(model: nn.Module, *, teacher: nn.Module) -> Result:
        """Copy nothing.

        Parameters
        ----------
        model : nn.Module
            Student.
        teacher : nn.Module
            Teacher.
        """
        return Result("distil", totals={"teacher": sum(p.numel() for p in teacher.parameters())})

    result = bench().call(read(distil), {"teacher": "embedded:efficientnet-lite0"})
    assert result.totals["teacher"] == 4652008
    assert bench().call(read(distil), {"teacher": "$model"}).totals["teacher"] == 8


def test_save_writes_the_files_beside_the_model(tmp_path):
    bench().save(tmp_path / "out", {"note.txt": "hello"})
    assert sorted(path.name for path in Path(tmp_path / "out").iterdir()) == ["model.safetensors", "note.txt"]


def test_a_plan_of_the_model_goes_along_until_the_weights_change(tmp_path):
    write_tiny_llama(tmp_path, 4, 8)
    (tmp_path / "tiny" / "quantization.json").write_text("{}")
    (tmp_path / "tiny" / "wina.json").write_text("{}")
    ours = Workbench(open_model(tmp_path / "tiny"))
    ours.save(tmp_path / "same", {})
    assert (tmp_path / "same" / "quantization.json").read_text() == "{}"
    copied = ours.copy()
    result = ours.call(read(magnitude), {"sparsity": 0.5})
    assert result.notes[-1].endswith("have changed: quantization.json, wina.json.")
    ours.save(tmp_path / "changed", {"quantization.json": "{}"})
    assert not (tmp_path / "changed" / "quantization.json").exists()
    assert copied.plans == {"quantization.json": "{}", "wina.json": "{}"}


@pytest.mark.parametrize("first", [teal, ofq])
def test_what_is_measured_after_a_plan_is_left_out_is_what_is_written(first, tmp_path):
    write_tiny_llama(tmp_path, 4, 8)
    inputs = {"file": str(tmp_path / "inputs.safetensors")}
    ours = Workbench(open_model(tmp_path / "tiny"), Data(sources={"calibration": inputs, "training": inputs}))
    ours.call(read(first), {})
    result = ours.call(read(classp), {"learning_rate": 0.01})
    assert "Left out, as the weights that it describes have changed" in result.notes[-1]
    ours.save(tmp_path / "out", {})
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = open_model(tmp_path / "out").model(input_ids=ids).logits
        assert torch.equal(ours.model(input_ids=ids).logits, expected)


def test_a_model_with_a_plan_is_said_to_be_measured_dense(tmp_path):
    write_tiny_llama(tmp_path, 4, 8)
    assert measure_model(str(tmp_path / "tiny"), Evaluation()).notes == []
    (tmp_path / "tiny" / "wina.json").write_text("{}")
    (note,) = measure_model(str(tmp_path / "tiny"), Evaluation()).notes
    assert note == "Measured dense: the plan in wina.json was not applied (apply_plan)."


def test_a_model_with_levels_of_activations_is_said_to_be_measured_without(tmp_path):
    write_tiny_llama(tmp_path, 4, 8)
    inputs = {"file": str(tmp_path / "inputs.safetensors")}
    for method, notes in ((round_to_nearest, 0), (ofq, 1)):
        ours = Workbench(open_model(tmp_path / "tiny"), Data(sources={"training": inputs}))
        ours.call(read(method), {})
        ours.save(tmp_path / method.__name__, {})
        found = measure_model(str(tmp_path / method.__name__), Evaluation()).notes
        assert ["Measured without the activations' levels" in note for note in found] == [True] * notes
