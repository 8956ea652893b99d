"""The command of a search, with the model named in the space's file."""

from __future__ import annotations

import json

from safetensors.torch import save_file
from torch import randint, tensor
from typer.testing import CliRunner

from weightsmith.cli.main import app
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
