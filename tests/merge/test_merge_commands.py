"""The merging rules as commands: arguments, options and defaults come from their signatures."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForSequenceClassification
from typer.testing import CliRunner

from models import tiny
from weightsmith import signature
from weightsmith.cli import main
from weightsmith.cli.adaptor import make_command
from weightsmith.merge import (
    bang,
    diagonal_fisher,
    fisher,
    fisher_average,
    scale_adapter,
    slerp,
    soup,
    task_arithmetic,
    wise_ft,
)

W = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 3.0]), "c": torch.tensor([4.0, 4.0])}


@pytest.mark.parametrize(
    ("function", "inputs", "options", "expected"),
    [
        (wise_ft, "ab", ["--alpha", "0.25"], 0.75 * W["a"] + 0.25 * W["b"]),
        (soup, "abc", [], (W["a"] + W["b"] + W["c"]) / 3),
        (
            soup,
            "abc",
            ["--weights", "0.5", "--weights", "0.25", "--weights", "0.25"],
            W["a"] / 2 + (W["b"] + W["c"]) / 4,
        ),
        (task_arithmetic, "abc", ["--scale", "0.5"], W["a"] + (W["b"] + W["c"] - 2 * W["a"]) / 2),
        (slerp, "ab", [], (W["a"] + W["b"]) / 2**0.5),
        (fisher, "ab", ["--fishers", "b", "--fishers", "c"], torch.tensor([1e-8 / 4, 3 * 4 / 7])),
    ],
)
def test_a_rule_as_a_command(tmp_path, monkeypatch, function, inputs, options, expected):
    monkeypatch.chdir(tmp_path)
    for name, value in W.items():
        save_file({"w": value}, name + ".safetensors")
    words = [f"{name}.safetensors" for name in inputs]
    options = [word + ".safetensors" if word in W else word for word in options]
    app = make_command(function.__name__, signature.read(function))
    done = CliRunner().invoke(app, [*words, "out.safetensors", *options])
    assert done.exit_code == 0, done.output
    torch.testing.assert_close(load_file("out.safetensors")["w"], expected)


def test_roles_of_the_commands():
    assert list(signature.read(scale_adapter).roles) == ["checkpoints", "out"]
    assert list(signature.read(bang).roles) == ["model", "training", "generator"]
    assert signature.read(wise_ft).fields["head"].choices == ("average", "finetuned")


def test_merged_networks_are_measured_where_data_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, batch = tiny("bert")
    model.save_pretrained("first")
    model.classifier.weight.data.neg_()
    model.classifier.bias.data.neg_()  # always the other class
    model.save_pretrained("second")
    labels = model(**batch).logits.argmax(-1)
    save_file({**batch, "labels": labels}, "labeled.safetensors")
    words = ["merge", "soup", "first", "second", "out", "--weights", "0.1", "--weights", "0.9"]
    done = CliRunner().invoke(main.app, [*words, "--evaluation", "labeled.safetensors"])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "out" / "weightsmith.json").read_text())
    assert (stored["before"]["accuracy"], stored["after"]["accuracy"]) == (1, 1)
    assert "accuracy: first 0 %, second 100 %; merged 100 %." in stored["notes"]
    assert "accuracy: first 0 %" in (tmp_path / "out" / "README.md").read_text()


def test_fisher_estimates_its_informations_from_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, batch = tiny("bert")
    states, generator = [], torch.Generator().manual_seed(0)
    for name in ("first", "second"):
        model.save_pretrained(name)
        fishers = diagonal_fisher(model, [batch], generator=generator)
        states.append(({key: value.clone() for key, value in model.state_dict().items()}, fishers))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    save_file(batch, "inputs.safetensors")
    done = CliRunner().invoke(
        main.app, ["merge", "fisher", "first", "second", "out", "--batches", "inputs.safetensors"]
    )
    assert done.exit_code == 0, done.output
    expected = fisher_average(states[0][0], states[1][0], states[0][1], states[1][1])
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)
    done = CliRunner().invoke(main.app, ["merge", "fisher", "first", "second", "other"])
    assert "two files, one per checkpoint, or batches" in str(done.exception)


def test_a_merge_says_what_went_in_and_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    start = {"large": torch.randn(300, 700), "small": torch.randn(9), "number": torch.tensor(3)}
    states = {"a": start, "b": {k: v + 0.01 * torch.randn(v.shape) if k != "number" else v for k, v in start.items()}}
    states["c"] = {k: v + 0.02 * torch.randn(v.shape) if k != "number" else v for k, v in start.items()}
    for name, state in states.items():
        save_file(state, f"{name}.safetensors")
    files = [f"{name}.safetensors" for name in states]
    done = CliRunner().invoke(
        main.app, ["merge", "soup", *files, "out.safetensors", "--json", "record.json", "--report", "report.html"]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "record.json").read_text())["inputs"]
    assert [row["network"] for row in rows] == files
    flat = {
        name: torch.cat([state["large"].flatten(), state["small"]])
        for name, state in {**states, "out": load_file("out.safetensors")}.items()
    }
    for row, name in zip(rows, states, strict=True):
        norm = flat[name].norm()
        assert row["to_result"] == pytest.approx(((flat["out"] - flat[name]).norm() / norm).item(), rel=0.05)
        expected = [((flat[other] - flat[name]).norm() / norm).item() for other in states]
        assert row["to_others"] == pytest.approx(expected, rel=0.05)
    for text in (done.output, (tmp_path / "report.html").read_text()):
        assert "1. a.safetensors" in text
        assert "to the result" in text


def test_distances_are_exact_at_the_ends_and_of_small_networks(tmp_path):
    for name, value in (("a", [3.0, 4.0]), ("b", [3.0, 1.0])):
        save_file({"w": torch.tensor(value, dtype=torch.bfloat16)}, tmp_path / f"{name}.safetensors")
    result = wise_ft([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "out.safetensors", alpha=1.0)
    first, second = result.inputs
    assert first["to_result"] == pytest.approx(0.6)
    assert first["to_others"] == [0, pytest.approx(0.6)]
    assert (second["to_result"], second["to_others"][1]) == (0, 0)


@pytest.mark.parametrize("evaluation", [[], ["--evaluation", "labeled.safetensors"]])
def test_nothing_of_a_merge_is_missing_once_it_is_there(tmp_path, monkeypatch, evaluation):
    monkeypatch.chdir(tmp_path)
    model, batch = tiny("bert")
    model.save_pretrained("first")
    model.save_pretrained("second")
    save_file({**batch, "labels": model(**batch).logits.argmax(-1)}, "labeled.safetensors")
    complete = []

    def moved(event, arguments):
        if event == "os.rename" and str(arguments[1]) == str(tmp_path / "out"):
            files = ("report.html", "record.json", f"{arguments[0]}/weightsmith.json", f"{arguments[0]}/README.md")
            complete.append([file for file in files if not (tmp_path / file).is_file()])

    sys.addaudithook(moved)
    words = ["merge", "soup", "first", "second", "out", "--report", "report.html", "--json", "record.json"]
    done = CliRunner().invoke(main.app, [*words, *evaluation])
    assert done.exit_code == 0, done.output
    assert complete == [[]]
    record = json.loads((tmp_path / "record.json").read_text())
    stored = json.loads((tmp_path / "out" / "weightsmith.json").read_text())
    assert record | {"seconds": 0, "peak_memory": 0} == stored | {"seconds": 0, "peak_memory": 0}
    assert bool(record["after"]) == bool(evaluation)


def test_a_merge_that_cannot_be_measured_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = tiny("bert")
    model.save_pretrained("first")
    model.save_pretrained("second")
    before = sorted(path.name for path in tmp_path.iterdir())
    words = ["merge", "soup", "first", "second", "out", "--evaluation", "none.jsonl"]
    assert CliRunner().invoke(main.app, words).exit_code
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_fisher_informations_of_experts_reach_their_tensors_on_disk(tmp_path):
    parts = [tmp_path / name for name in "ab"]
    for seed, part in enumerate(parts):
        torch.manual_seed(seed)
        config = MixtralConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
            num_labels=3,
            pad_token_id=0,
        )
        MixtralForSequenceClassification(config).save_pretrained(part)
    ids = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    result = fisher(parts, tmp_path / "out", batches=[{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    a, b, merged = (load_file(path / "model.safetensors") for path in (*parts, tmp_path / "out"))
    experts = [name for name in merged if ".experts." in name]
    assert len(experts) == 6
    assert not result.notes
    assert not any(torch.allclose(merged[name], (a[name] + b[name]) / 2) for name in (*experts, "score.weight"))


def test_fisher_says_which_tensors_have_no_information(tmp_path):
    for name, tensors in {"a": ("w", "v"), "b": ("w", "v"), "fa": ("w",), "fb": ("w", "v")}.items():
        save_file({key: torch.ones(2) for key in tensors}, tmp_path / f"{name}.safetensors")
    files = {name: tmp_path / f"{name}.safetensors" for name in ("a", "b", "fa", "fb")}
    result = fisher([files["a"], files["b"]], tmp_path / "o.safetensors", fishers=[files["fa"], files["fb"]])
    (note,) = result.notes
    assert note.startswith("No Fisher information, counted as ones: 1 tensors, such as 'v' of ")
