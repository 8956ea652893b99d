"""The demonstration: what it prints and writes, of a small ontology."""

from __future__ import annotations

import csv
import json

import pytest
from typer.testing import CliRunner

from weightsmith.core import progress
from weightsmith.core.errors import CheckpointError
from weightsmith_phenotype.cli import app
from weightsmith_phenotype.demo import NOTE
from weightsmith_phenotype.formats import read_documents, read_phenopacket


@pytest.fixture
def demo(small_obo, tmp_path):
    def call(out=tmp_path / "made"):
        arguments = ["demo", "--out", str(out), "--ontology", str(small_obo)]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})

    return call


def test_it_prints_the_note_the_terms_and_what_to_run_next(demo):
    done = demo()
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert " ".join(NOTE.split()) in words
    assert "Seizures Seizure HP:0001250 present dictionary" in words
    assert "cleft palate Cleft palate HP:0000175 negated dictionary" in words
    assert "migraine Migraine HP:0002076 family dictionary" in words
    assert "2 observed and 1 excluded features" in words
    assert "weightsmith phenotype serve" in words


def test_lines_of_the_note_fit_a_terminal():
    assert max(map(len, NOTE.splitlines())) < 80


def test_it_writes_three_formats_and_again_in_their_place(demo, tmp_path):
    for _ in range(2):
        assert demo().exit_code == 0
        folder = tmp_path / "made"
        assert sorted(path.name for path in folder.iterdir()) == [
            "note.csv", "note.json", "note.phenopacket.json", "note.txt",
        ]  # fmt: skip
    assert (folder / "note.txt").read_text("utf-8") == NOTE
    (document,) = read_documents(folder / "note.json")
    with (folder / "note.csv").open(encoding="utf-8", newline="") as rows:
        ids = [row["concept_id"] for row in csv.DictReader(rows)]
    assert [mention.concept_id for mention in document.mentions] == ids
    assert ids == ["HP:0001250", "HP:0002076", "HP:0004322", "HP:0000175"]
    packet = read_phenopacket(json.loads((folder / "note.phenopacket.json").read_text("utf-8")))
    features = {feature.concept_id: feature.excluded for feature in packet.features}
    assert features == {"HP:0001250": False, "HP:0004322": False, "HP:0000175": True}


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(demo, tmp_path, monkeypatch):
    (tmp_path / "made").write_text("a file")
    monkeypatch.setattr("weightsmith_phenotype.cli._tagger", lambda *arguments: pytest.fail("a tagger was loaded"))
    done = demo()
    assert done.exit_code == 1
    assert isinstance(done.exception, CheckpointError)
    assert (tmp_path / "made").read_text() == "a file"


def test_quiet_writes_and_prints_nothing(demo, tmp_path):
    progress.silence()
    try:
        done = demo()
    finally:
        progress.silence(False)
    assert (done.exit_code, done.output) == (0, "")
    assert (tmp_path / "made" / "note.csv").is_file()


@pytest.mark.slow
def test_the_default_tagger_tells_the_context_of_every_finding(hpo_tagger):
    said = {" ".join(m.text.split()): (m.concept_id, m.negated, m.family, m.uncertain) for m in hpo_tagger.tag(NOTE)}
    assert said["hypoplastic nails"] == ("HP:0001792", False, False, False)
    assert said["gait is ataxic"][0] == "HP:0002066"
    assert said["heart murmur"] == ("HP:0030148", True, False, False)
    assert said["Hepatomegaly"] == ("HP:0002240", True, False, False)
    assert said["Sensorineural hearing loss"] == ("HP:0000407", False, False, True)
    assert said["migraine"] == ("HP:0002076", False, True, False)
