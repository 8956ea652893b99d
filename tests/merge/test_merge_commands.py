"""The merging rules as commands: arguments, options and defaults come from their signatures."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from models import tiny
from weightsmith import signature
from weightsmith.cli import main
from weightsmith.cli.adaptor import make_command
from weightsmith.merge import bang, fisher, scale_adapter, slerp, soup, task_arithmetic, wise_ft

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
