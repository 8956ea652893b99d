"""The command of a search, with the model named in the space's file."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file
from torch import randint, tensor
from typer.testing import CliRunner

from weightsmith.cli.main import app
from weightsmith.core.errors import HyperparameterError
from weightsmith.search._tanglenas.space import read_choices
from weightsmith.testing import tiny


def test_a_space_that_names_its_model_stands_in_its_place(tmp_path):
    model, _ = tiny("bert")
    model.save_pretrained(tmp_path / "largest")
    (tmp_path / "space.yaml").write_text(f"model: {tmp_path / 'largest'}\nnum_hidden_layers: [1, 2]\n")
    data = tmp_path / "data.safetensors"
    save_file({"input_ids": randint(3, 60, (8, 6)), "labels": tensor([0, 1] * 4)}, data)
    words = ["search", "tanglenas", str(tmp_path / "space.yaml"), str(tmp_path / "out"), "--training", str(data)]
    done = CliRunner().invoke(app, [*words, "--epochs", "1", "--batch-size", "4"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] in (1, 2)
    (tmp_path / "space.yaml").write_text("num_hidden_layers: [1, 2]\n")
    done = CliRunner().invoke(app, [*words[:3], str(tmp_path / "other"), *words[4:]])
    assert done.exit_code
    assert "model: FOLDER" in str(done.exception)
    done = CliRunner().invoke(app, ["sparsify", "magnitude", "space.yaml", str(tmp_path / "other")])
    assert done.exit_code


def test_a_space_is_read_as_recipes_are(tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("on: [1:30, 0x10, 2]\n")
    assert read_choices(space) == {"on": ("1:30", "0x10", 2)}
    for text, message in (
        ("a: [1]\na: [2]\n", "'a' occurs twice"),
        ("a: &a [1, 2]\n" + "".join(f"b{n}: &b{n} [{', '.join(['*a'] * 5000)}]\n" for n in range(3)), "more than"),
        ("a: [" + "1, " * 2**19 + "]\n", "is too long"),
    ):
        space.write_text(text)
        with pytest.raises(HyperparameterError, match=message):
            read_choices(space)
        done = CliRunner().invoke(app, ["search", "tanglenas", str(space), str(tmp_path / "out")])
        assert message in str(done.exception)
