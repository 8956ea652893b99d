"""The commands: what they print, write and exit with."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from weightsmith.cli.main import main
from weightsmith_phenotype.cli import _end, app
from weightsmith_phenotype.formats import read_documents

NOTE = "She has ptosis and ataxia, but no seizures."


@pytest.fixture
def run(small_obo):
    def call(*arguments, stdin=None):
        command = list(map(str, arguments))
        if command[0] in ("tag", "train", "evaluate") and "--tagger" not in command:
            command += ["--ontology", str(small_obo)]
        return CliRunner().invoke(app, command, input=stdin)

    return call


def test_tag_writes_json_to_standard_output(run, tmp_path):
    (tmp_path / "n1.txt").write_text(NOTE)
    result = run("tag", tmp_path / "n1.txt")
    assert result.exit_code == 0, result.output
    (document,) = read_documents(io.StringIO(result.stdout), "json")
    assert [mention.text for mention in document.mentions][:2] == ["ptosis", "ataxia"]
    assert "1 documents, 3 mentions, 0 failed" in result.stderr


@pytest.mark.parametrize("format", ["json", "csv", "pubtator", "tsv", "bioc", "phenopacket"])
def test_tag_reads_standard_input_and_writes_each_format(run, format):
    result = run("tag", "-", "--format", format, stdin=NOTE)
    assert result.exit_code == 0, result.output
    assert "HP:0000508" in result.stdout
    if format == "csv":
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert [row["text"] for row in rows][:2] == ["ptosis", "ataxia"]


def test_tag_writes_to_a_file_or_folder_and_not_twice(run, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n1.txt").write_text(NOTE)
    for format, out in (("json", "out.jsonl"), ("brat", "brat"), ("phenopacket", "packets")):
        arguments = ("tag", tmp_path / "notes", "--format", format, "--out", tmp_path / out)
        result = run(*arguments, "--jobs", "2")
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
        again = run(*arguments)
        assert again.exit_code == 1
        assert f"{out} exists" in str(again.exception)
        assert run(*arguments, "--overwrite").exit_code == 0
        assert run(*arguments, "--resume").exit_code == 0
    assert (tmp_path / "packets" / "n1.json").is_file()
    assert (tmp_path / "brat" / "n1.ann").is_file()


def test_tag_names_bad_files_counts_them_and_exits_with_1(run, tmp_path):
    (tmp_path / "a.txt").write_text(NOTE)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    for number in range(60):
        (tmp_path / f"c{number:02}.txt").write_bytes(b"\xff\xfe\x00")
    result = run("tag", tmp_path, tmp_path / "gone.txt", "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"error: {tmp_path}/b.txt is not UTF-8: found byte 0xE9")
    assert lines[-2].endswith(f"and 12 more; {tmp_path}/out.jsonl.run.json has them all")
    assert "1 documents, 3 mentions, 62 failed" in lines[-1]
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert len(record["failures"]) == 62
    assert record["tagger"]["ontology"] == "hp hp/releases/2030-01-02"


def test_the_closing_line_counts_what_is_not_read(run, tmp_path):
    for name in ("a.txt", "b.docx", "c.docx", "d.png"):
        (tmp_path / name).write_text(NOTE)
    result = run("tag", tmp_path)
    assert "1 documents, 3 mentions, 0 failed; 3 files skipped (.docx 2, .png 1); " in result.stderr


def test_notices_are_one_line_without_a_path_of_the_source(run, tmp_path):
    path = tmp_path / "gold.tsv"
    path.write_text("1\nTNF-\u03b1\n0\t5\tTNF-a\tHP:0001250\n", "utf-8")
    result = run("evaluate", path)
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"notice: {path}, line 3: document '1': mention [0, 5] of HP:0001250: the document's own")


def test_closed_and_full_streams_are_said_in_one_line(small_obo, tmp_path):
    command = f"{sys.executable} -m weightsmith phenotype tag - --ontology {small_obo}"
    for ends, says in (
        ("<&-", "error: standard input is closed. Pipe a note into it, or name a file."),
        (">/dev/full <<< ptosis", "error: cannot write standard output: found No space left on device"),
    ):
        result = subprocess.run(["bash", "-c", f"{command} {ends}"], capture_output=True, check=False, text=True)
        assert (result.returncode, result.stderr.splitlines()) == (1, [says])


@pytest.mark.parametrize(
    "arguments",
    [
        ("tag", "-", "--format", "csv", "--offset-unit", "bytes"),
        ("tag",),
        ("tag", "-", "--format", "word"),
        ("tag", "-", "--jobs", "0"),
        ("tag", "-", "--backend", "x"),
    ],
)
def test_wrong_usage_exits_with_2(run, arguments):
    assert run(*arguments, stdin=NOTE).exit_code == 2


LONG = "x" * 60
GOLD = (
    f"1|t|{LONG}\n1|a|\n1\t0\t10\t{LONG[:10]}\tPhenotype\tHP:0001250\n"
    f"1\t22\t30\t{LONG[:8]}\tPhenotype\tHP:0001251\n1\t50\t55\t{LONG[:5]}\tPhenotype\tHP:0000508\n\n"
    "2|t|Nothing\n2|a|\n\n"
)
PREDICTED = (
    f"1|t|{LONG}\n1|a|\n1\t0\t10\t{LONG[:10]}\tPhenotype\tHP:0001250\n"
    f"1\t20\t30\t{LONG[:10]}\tPhenotype\tHP:0007050\n1\t40\t45\t{LONG[:5]}\tPhenotype\tHP:0001513\n\n"
    "2|t|Nothing\n2|a|\n2\t0\t7\tNothing\tX\tHP:0000005\n\n"
)


def test_evaluate_compares_what_another_tool_found(run, tmp_path):
    (tmp_path / "gold.pubtator").write_text(GOLD)
    (tmp_path / "found.pubtator").write_text(PREDICTED)
    arguments = ("evaluate", tmp_path / "gold.pubtator", "--predicted", tmp_path / "found.pubtator")
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    # HP:0007050 was merged into ataxia; a mode of inheritance is no phenotype.
    for name, value in (("mention_strict", 1 / 3), ("mention_relaxed", 2 / 3), ("document_micro", 2 / 3)):
        assert found[name]["precision"] == pytest.approx(value)
        assert found[name]["recall"] == pytest.approx(value)
    assert found["document_macro"]["f1"] == pytest.approx(5 / 6)
    assert (found["documents"], found["annotated"], found["predicted"], found["left_out"]) == (2, 3, 3, 1)
    only = json.loads(run(*arguments, "--json", "--level", "document").stdout)
    assert "document_macro" in only
    assert "mention_strict" not in only
    table = run(*arguments, "--level", "mention").stdout
    assert "2 documents, 3 annotated and 3 predicted mentions" in table
    assert "mention relaxed" in table
    assert "document micro" not in table
    assert "1 mentions whose id is not a concept of the ontology are left out." in table
    assert "  HP:0000005 (1 mention)\n" in table


def test_evaluate_of_predictions_needs_no_tagger(run, tmp_path, monkeypatch):
    (tmp_path / "gold.pubtator").write_text(GOLD)
    (tmp_path / "found.pubtator").write_text(PREDICTED)

    def refuse():
        raise AssertionError("the default tagger is loaded")

    monkeypatch.setattr("weightsmith_phenotype.tagger.PhenoTagger.default", refuse)
    command = ["evaluate", str(tmp_path / "gold.pubtator"), "--predicted", str(tmp_path / "found.pubtator"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["mention_strict"]["recall"] == pytest.approx(1 / 3)


def test_evaluate_without_annotations_is_an_error(run, tmp_path):
    (tmp_path / "gold.jsonl").write_text('{"id": "1", "text": "ptosis"}\n')
    result = run("evaluate", tmp_path / "gold.jsonl")
    assert result.exit_code == 1
    assert "nothing to compare with: found 1 documents and no annotated mention" in str(result.exception)


@pytest.mark.parametrize(
    "arguments", [("demo", "--root", "HP:1"), ("evaluate", "x.tsv", "--tagger", "x", "--root", "HP:0000118")]
)
def test_a_root_without_an_ontology_file_is_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tsv").write_text("1\nptosis\n0\t6\tptosis\tHP:0000508\n")
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2
    assert "--root" in result.stderr


def test_an_ontology_without_the_usual_root_names_the_roots_that_it_has(tmp_path):
    (tmp_path / "x.obo").write_text("[Term]\nid: X:1\nname: finding\n\n[Term]\nid: X:2\nname: tall\nis_a: X:1\n")
    result = CliRunner().invoke(app, ["tag", "-", "--ontology", str(tmp_path / "x.obo")], input="a")
    assert "Set --root (root= in Python); candidates: X:1 (finding)" in str(result.exception)
    result = CliRunner().invoke(app, ["tag", "-", "--ontology", str(tmp_path / "x.obo"), "--root", "X:1"], input="a")
    assert result.exit_code == 0


def test_evaluate_refuses_predictions_of_other_documents(run, tmp_path):
    (tmp_path / "gold.pubtator").write_text(GOLD)
    for change, match in (
        (("2|", "3|"), "document '2' is missing"),
        (("Nothing", "Something"), "'2' has another text"),
        (("\n\n2|t", "\n\n4|t|x\n\n2|t"), "'4' is not in the corpus"),
    ):
        lines = PREDICTED.replace("2\t0\t7\tNothing\tX\tHP:0000005\n", "").replace(*change)
        (tmp_path / "found.pubtator").write_text(lines)
        result = run("evaluate", tmp_path / "gold.pubtator", "--predicted", tmp_path / "found.pubtator")
        assert result.exit_code == 1
        assert match in str(result.exception)


def test_train_writes_a_tagger_that_tag_and_evaluate_load(run, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(f"The boy{n} was seen{n} in clinic{n}." for n in range(200)))
    options = ("--negatives", "50", "--epochs", "1", "--negative-text", tmp_path / "text.txt")
    result = run("train", tmp_path / "tagger", *options)
    assert result.exit_code == 0, result.output
    assert "concepts of hp hp/releases/2030-01-02" in result.stderr
    again = run("train", tmp_path / "tagger", *options)
    assert again.exit_code == 1
    assert "tagger exists" in str(again.exception)
    tagged = run("tag", "-", "--format", "pubtator", "--tagger", tmp_path / "tagger", stdin="Ptosis\nand ataxia.")
    assert tagged.exit_code == 0, tagged.output
    (tmp_path / "gold.pubtator").write_text(tagged.stdout)
    result = run("evaluate", tmp_path / "gold.pubtator", "--tagger", tmp_path / "tagger", "--json")
    found = json.loads(result.stdout)
    assert found["mention_strict"]["f1"] == 1
    assert found["annotated"] >= 2
    assert found["tagger"]["ontology"] == "hp hp/releases/2030-01-02"
    both = run("tag", "-", "--tagger", tmp_path / "tagger", "--ontology", "x.obo", stdin="x")
    assert both.exit_code == 2
    assert run("evaluate", tmp_path / "no.tsv", "--tagger", tmp_path / "tagger").exit_code == 1


def weightsmith(*arguments, stdin=b""):
    return subprocess.run(
        [sys.executable, "-m", "weightsmith", "phenotype", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, "COLUMNS": "100"},
        check=False,
    )


def test_weightsmith_has_the_commands_and_errors_are_one_line(small_obo, tmp_path):
    result = weightsmith("tag", "-", "--ontology", small_obo, "--quiet", stdin="Ptosis 😀, née.".encode())
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["text"] == "Ptosis 😀, née."
    result = weightsmith("tag", tmp_path, "--ontology", small_obo)
    assert result.returncode == 1
    assert result.stderr.decode().startswith(f"error: no notes in {tmp_path}: expected files that end in .txt")
    assert result.stderr.count(b"\n") == 1


def test_reader_that_stops_early_ends_the_run_without_a_traceback(small_obo, tmp_path):
    (tmp_path / "many.jsonl").write_text("".join(f'{{"id": "{n}", "text": "ptosis"}}\n' for n in range(20_000)))
    command = f"{sys.executable} -m weightsmith phenotype tag {tmp_path}/many.jsonl --ontology {small_obo} | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert json.loads(result.stdout)["id"] == "0"
    assert result.stderr == b""


@pytest.mark.parametrize(("out", "said"), [(True, "go on with --resume"), (False, "start it again")])
def test_an_interrupted_run_says_how_to_go_on(small_obo, tmp_path, monkeypatch, capsys, out, said):
    def interrupted(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("weightsmith_phenotype.batch.tag_corpus", interrupted)
    (tmp_path / "n.txt").write_text("Ptosis.")
    where = ["--out", str(tmp_path / "o.jsonl")] if out else []
    with pytest.raises(SystemExit) as stop:
        main(["phenotype", "tag", str(tmp_path / "n.txt"), "--ontology", str(small_obo), *where])
    assert stop.value.code == 130
    assert capsys.readouterr().err == f"stopped; {said}\n"


def test_a_run_that_is_told_to_end_ends_in_order(small_obo, tmp_path, monkeypatch):
    cleared = []

    def told(*given, **options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleared.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("weightsmith_phenotype.batch.tag_corpus", told)
    (tmp_path / "n.txt").write_text("Ptosis.")
    result = CliRunner().invoke(app, ["tag", str(tmp_path / "n.txt"), "--ontology", str(small_obo)])
    assert (result.exit_code, cleared) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) is not _end
    signal.signal(signal.SIGTERM, before)
