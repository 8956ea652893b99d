"""A method with two data sets and two networks gets its command, recipe step and page from its signature alone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from models import write_tiny_llama
from weightsmith import catalog, workbench
from weightsmith.catalog import Command, Method
from weightsmith.cli import main, tables
from weightsmith.cli.adaptor import make_command
from weightsmith.core.data import Samples
from weightsmith.core.errors import CheckpointError, RecipeError
from weightsmith.core.results import Result, record
from weightsmith.embedded import open_model
from weightsmith.recipe import load_recipe, run_recipe
from weightsmith.rehearsal import check_recipe
from weightsmith.signature import read


def erase(
    network: nn.Module,
    to_forget: Samples,
    to_keep: Samples,
    *,
    judge: nn.Module,
    amount: float = 0.5,
    randomness: torch.Generator | None = None,
) -> Result:
    """Scale a network by how many samples it is told to forget.

    Parameters
    ----------
    network : nn.Module
        What is changed.
    to_forget : Samples
        What it must not know.
    to_keep : Samples
        What it must still know.
    judge : nn.Module
        Another network.
    amount : float, default: 0.5
        How much.
    randomness : torch.Generator, optional
        Source of randomness.
    """
    with record("erase", amount=amount) as result, torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(amount)
        assert isinstance(randomness, torch.Generator)
        result.layer("all", forget=len(to_forget), keep=len(to_keep), judge=sum(p.numel() for p in judge.parameters()))
        result.totals["seed"] = randomness.initial_seed()
    return result


@pytest.fixture
def method(monkeypatch):
    command = Command("tests.nowhere:erase")
    row = Method("erase", "forget", "Erase", "Paper", 2026, "arXiv:2601.00001", "Claim", {"erase": command})
    monkeypatch.setattr(catalog, "METHODS", (*catalog.METHODS, row))
    load = catalog.load
    monkeypatch.setattr(catalog, "load", lambda entry: erase if entry == command.entry else load(entry))
    return row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models"), 12, 8)


def test_its_command(folder, tmp_path):
    data = str(folder / "inputs.safetensors")
    app = make_command("erase", read(erase))
    line = [str(folder / "tiny"), str(tmp_path / "out"), "--judge", str(folder / "tiny"), "--seed", "3"]
    line += ["--to-forget", data, "--to-forget-samples", "2", "--json", str(tmp_path / "r.json")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2
    assert "Missing option '--to-keep'" in done.output
    done = CliRunner().invoke(app, [*line, "--to-keep", data])
    assert done.exit_code == 0, done.output + str(done.exception)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["layers"] == [{"layer": "all", "forget": 2, "keep": 12, "judge": found["layers"][0]["judge"]}]
    assert found["totals"]["seed"] == 3
    assert "What it must not know." in " ".join(CliRunner().invoke(app, ["--help"]).output.replace("│", " ").split())


def test_its_recipe_step(method, folder, tmp_path):
    text = f"""
    model: {folder}/tiny
    out: {tmp_path}/out
    data:
      to_keep: {folder}/inputs.safetensors
    steps:
      - erase: {{judge: {folder}/tiny, to_forget: {{file: {folder}/inputs.safetensors, samples: 3}}, amount: 0.25}}
    """
    (tmp_path / "recipe.yaml").write_text(text)
    (result,) = run_recipe(load_recipe(tmp_path / "recipe.yaml"))
    assert (result.layers[0]["forget"], result.layers[0]["keep"]) == (3, 12)
    (tmp_path / "recipe.yaml").write_text(text.replace("to_keep:", "to_kep:"))
    with pytest.raises(RecipeError, match=r"step 1 \(erase\): 'to_keep' is missing"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text.replace("judge:", "jugde:"))
    with pytest.raises(RecipeError, match="unknown field 'jugde'. Did you mean 'judge'"):
        load_recipe(tmp_path / "recipe.yaml")


def test_its_page(method, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    tables.print_method(catalog.find("erase"), "erase")
    text = " ".join(capsys.readouterr().out.split())
    assert "MODEL OUT" in text
    assert "--to-forget samples What it must not know." in text
    assert "--judge network Another network." in text
    assert main.app is not None


def test_data_that_no_step_reads_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: m\nout: o\ndata: {calibraton: a.txt}\nsteps: [wanda]\n")
    with pytest.raises(RecipeError, match="no step reads 'calibraton'. Did you mean 'calibration'"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_merge_is_a_step(folder, tmp_path):
    text = f"""
    out: {tmp_path}/out
    steps:
      - soup: {{checkpoints: [{folder}/tiny, {folder}/tiny]}}
      - magnitude: {{sparsity: 0.5, exclude: lm_head}}
      - wise-ft: {{checkpoints: [{folder}/tiny, $model], alpha: 0.5}}
    """
    (tmp_path / "recipe.yaml").write_text(text)
    soup, pruned, merged = run_recipe(load_recipe(tmp_path / "recipe.yaml"))
    assert soup.before == {}
    assert soup.after == pruned.before
    assert pruned.after["nonzero"] < pruned.before["nonzero"] == merged.after["nonzero"]
    assert (tmp_path / "out" / "config.json").is_file()
    (tmp_path / "recipe.yaml").write_text(f"out: {tmp_path}/o\nsteps: [wanda]\n")
    with pytest.raises(RecipeError, match="model is missing"):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_second_network_of_a_measure_is_opened_by_its_caller(folder, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        workbench, "open_model", lambda ref, **options: opened.append((ref, options)) or open_model(ref, **options)
    )
    text = f"""
    model: {folder}/tiny
    out: {tmp_path}/out
    dtype: bfloat16
    steps:
      - mode-connectivity: {{other: {folder}/tiny}}
      - magnitude
      - mode-connectivity: {{other: $model}}
    """
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.sources(recipe.steps) == ["$model", str(folder / "tiny")]
    check_recipe(recipe)
    results = run_recipe(recipe)
    assert [results[place].totals["distance"] for place in (0, 2)] == [0, 0]
    assert opened == [(str(folder / "tiny"), {"dtype": torch.bfloat16})]
    (tmp_path / "recipe.yaml").write_text(text.replace("other: $model", "other: nowhere").replace("/out", "/new"))
    with pytest.raises(CheckpointError, match="nowhere"):
        check_recipe(load_recipe(tmp_path / "recipe.yaml"))


def test_a_measure_of_several_networks_is_a_step(folder, tmp_path):
    text = f"""
    model: {folder}/tiny
    out: {tmp_path}/out
    data: {{training: {{file: {folder}/inputs.safetensors, samples: 8}}}}
    steps:
      - phases: {{models: [{folder}/tiny, $model], batch_size: 4, epochs: 1, learning_rate: 0.01, hessian_samples: 0}}
    """
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert str(folder / "tiny") in recipe.sources(recipe.steps)
    check_recipe(recipe)
    (result,) = run_recipe(recipe)
    assert [row["layer"] for row in result.layers[:3]] == ["network 1", "network 2", "network 3"]
    (tmp_path / "recipe.yaml").write_text(text.replace("tiny, $model", "tiny, nowhere").replace("/out", "/other"))
    with pytest.raises(CheckpointError, match="nowhere"):
        check_recipe(load_recipe(tmp_path / "recipe.yaml"))
