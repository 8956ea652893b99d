"""Every command of the catalog records what it ran with."""

from __future__ import annotations

import json

import pytest

from faults.lines import SIGNATURES, line, run, write_inputs

MEASURES = {
    "phases": [
        "{folder}/tiny",
        "{folder}/tuned",
        "--batch-size",
        "4",
        "--epochs",
        "1",
        "--learning-rate",
        "0.01",
        "--probes",
        "2",
    ],
    "rich-lazy": ["{folder}/tiny", "{folder}/tuned"],
    "mode-connectivity": ["{folder}/tiny", "--other", "{folder}/tuned"],
    "condition": ["{folder}/tiny"],
    "sae-eval": [
        "embedded:smollm2",
        "--sites",
        "23.resid@end",
        "--train-prompts",
        "32",
        "--evaluation-prompts",
        "4",
        "--names",
        "8",
        "--edit-sizes",
        "2",
    ],
}
"""The networks and options of commands that write no model."""

NOT_RECORDED = {
    "overwrite": "it says nothing of the result",
    "d2nwg-layers.workers": "the result does not depend on it",
    "d2nwg-layers.backend": "the result does not depend on it",
    "synapse.curves": "a file of devices, recorded where it stands in place of pulses and their shape",
}
"""Hyper-parameters, of all commands or of one, that a record does not have, and why."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SIGNATURES)
def test_a_record_says_how_to_repeat_the_run(folder, tmp_path, name):
    signature = SIGNATURES[name]
    words = line(name, folder, tmp_path / "out")
    if name in MEASURES:
        words = [words[0], name, *(word.format(folder=folder) for word in MEASURES[name])]
        words += [word for role in signature.data for word in (f"--{role.name}", str(folder / "inputs.safetensors"))]
    seeded = signature.generator is not None
    code, printed = run([*words, "--json", str(tmp_path / "r.json"), *(["--seed", "5"] if seeded else [])])
    assert code == 0, printed
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["method"] == name
    lacking = signature.fields.keys() - record["hyper"].keys()
    assert {field for field in lacking if not {field, f"{name}.{field}"} & NOT_RECORDED.keys()} == set()
    assert not seeded or record["seed"] == 5
    if (tmp_path / "out" / "weightsmith.json").is_file():
        assert json.loads((tmp_path / "out" / "weightsmith.json").read_text())["seed"] == record["seed"]
