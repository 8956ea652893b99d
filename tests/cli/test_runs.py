"""What every command of one model or several does around its method: checks first, says where it wrote, is quiet."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from faults.lines import SIGNATURES, WRITING, line, run, write_inputs
from weightsmith.cli import lazy
from weightsmith.core import progress
from weightsmith.core.io import load_state_dict


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def loud():
    yield
    progress.silence(False)
    logging.getLogger("weightsmith").setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", WRITING)
def test_a_dry_run_says_what_would_be_done_and_does_nothing(inputs, tmp_path, name):
    code, printed = run([*line(name, inputs, tmp_path / "out"), "--dry-run"])
    assert code == 0, printed
    assert printed.startswith(f"{name}(")
    assert printed.endswith(f"model: {tmp_path / 'out'}\nNothing was run.\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "2"], "sparsity"),
        (["--sparsity", "nan"], "sparsity"),
        (["--calibration", "nothing.jsonl"], "no data at nothing.jsonl"),
        (["--calibration", "embedded:nothing"], "no embedded text"),
        (["--evaluation", "nothing.txt"], "no data at nothing.txt"),
        (["--report", "{folder}/tiny"], "found a folder"),
        (["--dtype", "int4"], "int4"),
        (["--device", "nonsense"], "device: found nonsense"),
        (["--revision", "v1"], "has no revision v1. A revision belongs to a hub id."),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(inputs, tmp_path, words, message):
    words = [word.format(folder=inputs) for word in words]
    code, printed = run([*line("wanda", inputs, tmp_path / "out"), *words, "--dry-run"])
    assert code in (1, 2), printed
    assert message in " ".join(printed.replace("│", " ").split())


MAY_BE_NEGATIVE = {
    "alpha": ["wise-ft", "scale-adapter", "ties", "dare", "slerp", "bang"],
    "scale": ["task-arithmetic"],
}
"""Averages may be extrapolated."""


@pytest.mark.parametrize("name", WRITING)
def test_a_dry_run_knows_the_range_of_every_number(inputs, tmp_path, name):
    words = [*line(name, inputs, tmp_path / "out"), "--dry-run"]
    for field, spec in SIGNATURES[name].fields.items():
        annotation = str(spec.annotation)
        if re.search(r"\b(int|float)\b", annotation) and name not in MAY_BE_NEGATIVE.get(field, ()):
            code, printed = run([*words, f"--{field.replace('_', '-')}=-1"])
            assert code, f"{field}: {annotation}"
            assert "error: " in printed or "Error" in printed


@pytest.mark.parametrize("name", ["magnitude", "wise-ft"])
def test_a_dry_run_refuses_files_that_are_missing_or_in_the_way(inputs, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    words = [*line(name, inputs, tmp_path / "out"), "--dry-run"]
    code, printed = run(words)
    assert (code, "exists" in printed) == (1, True)
    assert run([*words, "--overwrite"])[0] == 0
    (tmp_path / "out" / "file").unlink()
    code, printed = run([str(inputs / "missing") if word == str(inputs / "tiny") else word for word in words])
    assert code in (1, 2)
    assert "missing" in "".join(printed.split())


RECIPES = [
    ({"model": "{folder}/missing"}, "missing"),
    ({"model": "embedded:nothing"}, "no embedded model 'nothing'"),
    ({"device": "nonsense"}, "device: found nonsense"),
    ({"seed": True}, "seed: value error, input should be a whole number: found True"),
    ({"data": {"calibration": {"length": True}}}, "data.calibration.length: value error"),
    ({"evaluation": {"tokens": True}}, "evaluation.tokens: value error"),
    ({"data": {"calibration": "missing.txt"}}, "no data at missing.txt"),
    ({"evaluation": {"file": "missing.txt"}}, "no data at missing.txt"),
    ({"steps": [{"magnitude": {"sparsity": 0.5}}, {"wanda": {"sparsity": 3}}]}, "sparsity"),
    ({"steps": [{"expand": {"depth": 3}}, {"wanda": {"calibration": "missing.txt"}}]}, "no data at missing.txt"),
    ({"steps": [{"wise-ft": {"checkpoints": ["missing", "$model"]}}]}, "there is no folder 'missing'"),
    ({"compare": {"a": ["magnitude"], "b": [{"magnitude": {"sparsity": -1}}]}}, "sparsity"),
]


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(("change", "message"), RECIPES)
def test_a_recipe_is_refused_before_anything_runs(inputs, tmp_path, change, message, dry):
    recipe = {"model": "{folder}/tiny", "out": str(tmp_path / "out"), "steps": ["magnitude", "wanda"]} | change
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe).replace("{folder}", str(inputs)))
    code, printed = run(["run", str(tmp_path / "recipe.yaml"), *(["--dry-run"] if dry else [])])
    assert code in (1, 2), printed
    assert message in " ".join(printed.split())
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_dry_run_of_a_recipe_shows_its_steps(inputs, tmp_path):
    text = f"model: {inputs / 'tiny'}\nout: {tmp_path / 'out'}\nsteps: [magnitude: {{sparsity: 0.3}}, wanda]\n"
    (tmp_path / "recipe.yaml").write_text(text)
    code, printed = run(["run", str(tmp_path / "recipe.yaml"), "--dry-run", "--set", "wanda.sparsity=2:4"])
    assert code == 0, printed
    assert "1. magnitude(sparsity=0.3)\n2. wanda(sparsity='2:4')" in printed
    assert "Nothing was run" in printed
    assert not (tmp_path / "out").exists()


SOME = ["magnitude", "slerp", "d2nwg"]
REST = [pytest.param(name, marks=pytest.mark.slow) for name in WRITING if name not in SOME]


@pytest.mark.parametrize("name", [*SOME, *REST])
def test_a_command_says_where_it_wrote_and_leaves_a_card_and_a_record(inputs, tmp_path, name):
    code, printed = run([*line(name, inputs, tmp_path / "out"), "--report", str(tmp_path / "r.html")])
    assert code == 0, printed
    assert printed.endswith(f"model: {tmp_path / 'out'}\nreport: {tmp_path / 'r.html'}\n")
    assert json.loads((tmp_path / "out" / "weightsmith.json").read_text())["method"]
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")
    assert (tmp_path / "r.html").stat().st_size < 2_000_000


@pytest.mark.parametrize("option", ["--report", "--json"])
@pytest.mark.parametrize("name", WRITING)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(inputs, tmp_path, name, option):
    code, printed = run([*line(name, inputs, tmp_path / "out"), option, str(inputs / "tiny")])
    assert code == 1
    assert "found a folder" in printed
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("option", ["--report", "--json"])
@pytest.mark.parametrize("name", WRITING)
def test_a_file_inside_the_output_is_refused_before_the_work(inputs, tmp_path, name, option):
    code, printed = run([*line(name, inputs, tmp_path / "out"), option, str(tmp_path / "out" / "r.html")])
    assert code in (1, 2)
    assert "inside the output" in printed
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("option", ["--report", "--json"])
def test_what_is_read_is_not_written_over(inputs, tmp_path, option):
    shutil.copytree(inputs / "tiny", tmp_path / "tiny")
    shutil.copy2(inputs / "inputs.safetensors", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "tiny")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model, data, out = str(tmp_path / "tiny"), str(tmp_path / "inputs.safetensors"), str(tmp_path / "out")
    prune = ["sparsify", "wanda", model, out, "--calibration", data]
    merge = ["merge", "slerp", str(inputs / "tuned"), model, out]
    measure = ["measure", model, "--evaluation", data]
    lines = [(prune, "tiny/config.json"), (prune, "link/config.json"), (prune, "inputs.safetensors"), (prune, "out")]
    lines += [(merge, "tiny/model.safetensors"), (measure, "tiny/config.json"), (measure, "inputs.safetensors")]
    for words, name in lines:
        code, printed = run([*words, option, str(tmp_path / name)])
        assert (code, "expected another file" in printed) == (2, True), printed
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_files_of_one_command_have_two_names(inputs, tmp_path):
    same = str(tmp_path / "same.json")
    for words in (line("magnitude", inputs, tmp_path / "out"), ["measure", str(inputs / "tiny")]):
        code, printed = run([*words, "--report", same, "--json", same])
        assert (code, "written as report" in printed) == (2, True), printed
    assert not [*tmp_path.iterdir()]


def test_a_report_in_the_folder_of_a_model_is_replaced(inputs, tmp_path):
    shutil.copytree(inputs / "tiny", tmp_path / "tiny")
    page = tmp_path / "tiny" / "r.html"
    words = ["analyze", "condition", str(tmp_path / "tiny"), "--report", str(page)]
    for _ in range(2):
        code, printed = run(words)
        assert code == 0, printed


def test_a_record_of_measures_in_the_folder_of_a_model_is_replaced_and_no_other(inputs, tmp_path):
    shutil.copytree(inputs / "tiny", tmp_path / "tiny")
    measure = ["measure", str(tmp_path / "tiny"), "--json"]
    measured = tmp_path / "tiny" / "measured.json"
    for _ in range(2):
        code, printed = run([*measure, str(measured)])
        assert code == 0, printed
    assert json.loads(measured.read_text())["reading"]
    made = json.loads(measured.read_text()) | {"reading": False}
    for name, text in (("weightsmith.json", json.dumps(made)), ("odd.json", "["), ("list.json", "[]")):
        (tmp_path / "tiny" / name).write_text(text)
        code, printed = run([*measure, str(tmp_path / "tiny" / name)])
        assert (code, "expected another file" in printed) == (2, True), printed
        assert (tmp_path / "tiny" / name).read_text() == text


@pytest.mark.parametrize(
    "front", ["# only a comment", "", "- a\n- list", "license", "date: 2024-02-30\nlicense: mit", "license: [", "12"]
)
def test_an_odd_card_of_the_model_does_not_stop_a_run(inputs, tmp_path, front):
    """The run ended in a TypeError after its work, and nothing was written."""
    shutil.copytree(inputs / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text(f"---\n{front}\n---\n# tiny\n")
    words = line("magnitude", inputs, tmp_path / "out")
    code, printed = run([str(tmp_path / "tiny") if word == str(inputs / "tiny") else word for word in words])
    assert code == 0, printed
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\ntags:\n- weightsmith\n")


def test_an_output_that_is_not_utf_8_is_refused_before_the_work(inputs, tmp_path):
    """Tokenizers and safetensors cannot write there: it was found out after the work."""
    code, printed = run(line("magnitude", inputs, Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))))
    assert code == 1
    assert "found a path that is not UTF-8" in printed
    assert not [*tmp_path.iterdir()]


def test_quiet_leaves_errors_and_results(inputs, tmp_path):
    words = line("magnitude", inputs, tmp_path / "out")
    assert run([*words, "--quiet"]) == (0, "")
    code, printed = run(["--quiet", *words])
    assert code == 1
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1
    code, printed = run(["analyze", "condition", str(inputs / "tiny"), "--quiet"])
    assert code == 0
    assert "condition numbers" in printed


@pytest.mark.parametrize("command", [["analyze", "condition"], ["measure"]])
def test_with_quiet_a_record_on_standard_output_is_alone_there(inputs, command):
    words = ["--quiet", *command, str(inputs / "tiny"), "--json", "/dev/stdout"]
    done = subprocess.run([sys.executable, "-m", "weightsmith", *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["reading"]


def test_a_model_is_loaded_as_the_type_asked_for(inputs, tmp_path):
    words = line("magnitude", inputs, tmp_path / "out")
    assert run([*words, "--dtype", "bfloat16"])[0] == 0
    assert {tensor.dtype for tensor in load_state_dict(tmp_path / "out").values()} == {torch.bfloat16}
    code, printed = run([*words, "--overwrite", "--dtype", "bfloat16", "--stream"])
    assert code == 2
    assert "--dtype" in printed


def test_warnings_of_other_packages_are_not_shown_but_ours_are(monkeypatch):
    def hush():
        warnings.warn_explicit("theirs", FutureWarning, "file.py", 1, module="transformers.modeling")
        warnings.warn_explicit("ours", UserWarning, "file.py", 1, module="weightsmith.train._pld")

    monkeypatch.setattr(lazy, "hush_transformers", hush)
    with pytest.warns(UserWarning, match="ours") as found:
        run(["merge", "slerp", "--help"])
    assert [str(each.message) for each in found] == ["ours"]
