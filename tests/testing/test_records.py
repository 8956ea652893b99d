"""Every command of the catalog records what it ran with."""

from __future__ import annotations

import json

import pytest

from faults.lines import SIGNATURES, line, run, write_inputs

MEASURES = {
    "phases": ["tiny", "tuned", "--batch-size", "4", "--epochs", "1", "--learning-rate", "0.01", "--probes", "2"],
    "rich-lazy": ["tiny", "tuned"],
    "mode-connectivity": ["tiny", "--other", "tuned"],
    "condition": ["tiny"],
}
"""The networks and options of commands that write no model."""

NOT_RUN = {"sae-eval": "it needs a model that completes sentences"}
"""Commands without a small enough case, and why."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SIGNATURES if name not in NOT_RUN])
def test_a_record_says_how_to_repeat_the_run(folder, tmp_path, name):
    signature = SIGNATURES[name]
    words = line(name, folder, tmp_path / "out")
    if name in MEASURES:
        words = [words[0], name, *(str(folder / each) if each[0] == "t" else each for each in MEASURES[name])]
        words += [word for role in signature.data for word in (f"--{role.name}", str(folder / "inputs.safetensors"))]
    seeded = signature.generator is not None
    code, printed = run([*words, "--json", str(tmp_path / "r.json"), *(["--seed", "5"] if seeded else [])])
    assert code == 0, printed
    record = json.loads((tmp_path / "r.json").read_text())
    assert not seeded or record["seed"] == 5
    if (tmp_path / "out" / "weightsmith.json").is_file():
        assert json.loads((tmp_path / "out" / "weightsmith.json").read_text())["seed"] == record["seed"]
