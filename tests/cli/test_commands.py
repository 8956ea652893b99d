"""Every command of the catalog, as a user runs it: defaults, a model folder in, a folder out that loads again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from models import write_tiny_llama
from weightsmith import catalog
from weightsmith.cli.main import app
from weightsmith.core.checkpoint import load_model
from weightsmith.signature import read

TRANSFORMS = {
    name: method.verb
    for name, method in catalog.commands().items()
    if "model" in read(catalog.load(method.commands[name].entry)).roles
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models"), 16, 12)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_writes_a_model_that_loads_again(folder, tmp_path, name):
    line = [TRANSFORMS[name], name, str(folder / "tiny"), str(tmp_path / "out"), "--json", str(tmp_path / "r.json")]
    if "--calibration" in CliRunner().invoke(app, [TRANSFORMS[name], name, "--help"]).output:
        line += ["--calibration", str(folder / "inputs.safetensors")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output + str(done.exception)
    before, after = load_model(folder / "tiny").state_dict(), load_model(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].shape == after[key].shape for key in before)
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["method"] == name
    assert record["layers"]
    assert {"parameters", "nonzero", "bytes"} <= set(record["after"])
    assert json.loads((tmp_path / "out" / "weightsmith.json").read_text()) == record


def test_know_predicts_from_five_checkpoints(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight, step = torch.randn(2, 4, 3, 3, 3, generator=generator)
    paths = []
    for stage in range(5):
        paths.append(str(tmp_path / f"{stage}.safetensors"))
        save_file({"conv.weight": weight + 0.1 * stage * step}, paths[-1])
    out = tmp_path / "predicted.safetensors"
    done = CliRunner().invoke(app, ["predict", "know", *paths, str(out), "--predictor", "paper", "--steps", "1"])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert out.is_file()
    assert "conv.weight" in done.output


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "dsnot"])
def test_streaming_writes_what_loading_does(folder, tmp_path, name):
    line = ["sparsify", name, str(folder / "tiny")]
    data = [] if name == "magnitude" else ["--calibration", str(folder / "inputs.safetensors")]
    for out, extra in (("whole", []), ("streamed", ["--stream"])):
        done = CliRunner().invoke(app, [*line, str(tmp_path / out), *data, *extra])
        assert done.exit_code == 0, done.output + str(done.exception)
    whole, streamed = (load_model(tmp_path / out).state_dict() for out in ("whole", "streamed"))
    assert all(torch.equal(whole[key], value) for key, value in streamed.items())
    assert json.loads((tmp_path / "streamed" / "weightsmith.json").read_text())["method"] == name
    done = CliRunner().invoke(app, [*line, str(tmp_path / "both"), *data, "--stream", "--compressed"])
    assert done.exit_code == 2
    assert not (tmp_path / "both").exists()
