"""Corpora: in order, in several processes, whatever fails, and killed at any moment without loss or doubles."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from weightsmith.core.errors import CheckpointError, HyperparameterError, WeightsmithError
from weightsmith_phenotype import CorpusError, Mention, Ontology, PhenoTagger, TaggerError
from weightsmith_phenotype.batch import stamp, tag_corpus
from weightsmith_phenotype.corpus import find_inputs
from weightsmith_phenotype.formats import read_documents, read_phenopacket
from weightsmith_phenotype.workers import PickledTagger

WHEN = datetime(2025, 1, 2, tzinfo=UTC)
FINDINGS = ["seizures", "ataxia", "ptosis", "cleft palate", "short stature", "obesity", "a cold"]


def write_notes(folder, count, *, seed=0):
    draw = random.Random(seed)
    for number in range(count):
        path = folder / f"ward{number % 3}" / f"n{number:04}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Patient {number} 😀\nhas {draw.choice(FINDINGS)} and {draw.choice(FINDINGS)}.\n", "utf-8")
    return folder


@pytest.fixture
def notes(tmp_path):
    return write_notes(tmp_path / "notes", 30)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


# What is found.


def test_folders_are_searched_by_name_with_ids_below_the_shared_folder(tmp_path):
    for name in (
        "b/x.txt",
        "a/y.TXT",
        "a/.hidden.txt",
        ".git/z.txt",
        "a/p.docx",
        "c.jsonl",
        "a/z.ann",
        "out.csv.run.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = [(item.id, item.format) for item in find_inputs([tmp_path])]
    assert found == [("c", "json"), ("a/y", "text"), ("b/x", "text")]
    assert [item.id for item in find_inputs([tmp_path / "b" / "x.txt", tmp_path / "a" / "y.TXT"])] == ["b/x", "a/y"]
    assert [item.id for item in find_inputs([tmp_path / "b" / "x.txt"])] == ["x"]
    assert [item.id for item in find_inputs([tmp_path], "tsv")] == ["a/y", "b/x"]
    with pytest.raises(CorpusError, match="no notes in .*: found 5 files skipped .*expected files that end in .xml"):
        list(find_inputs([tmp_path], "bioc"))
    with pytest.raises(CorpusError, match="format of the notes: found 'csv', expected one of text, json"):
        list(find_inputs([tmp_path], "csv"))


def test_links_to_folders_above_do_not_loop(tmp_path):
    (tmp_path / "n.txt").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(list(find_inputs([tmp_path]))) == 1


def test_texts_of_one_name_but_for_the_suffix_have_their_whole_names_for_ids(tmp_path, small_tagger):
    (tmp_path / "a").mkdir()
    for name in ("a/n.txt", "a/n.md", "a/n.text", "a/m.txt", "a/m.jsonl", "n.txt"):
        (tmp_path / name).write_text('{"id": "j", "text": "x"}')
    ids = [item.id for item in find_inputs([tmp_path])]
    assert ids == ["n", "a/m", "a/m", "a/n.md", "a/n.text", "a/n.txt"]
    assert [item.id for item in find_inputs([tmp_path / "a" / "n.txt", tmp_path / "a" / "n.md"])] == ["n.txt", "n.md"]
    result = tag_corpus([tmp_path], small_tagger, io.BytesIO())
    assert (result.documents, result.failures) == (6, [])


def test_what_is_not_read_in_folders_is_counted_by_kind(tmp_path, small_tagger):
    notes = tmp_path / "notes"
    (notes / "brat").mkdir(parents=True)
    for name in ("n.txt", "a.docx", "b.DOCX", "c.png", "README", ".hidden", "found.jsonl", "brat/x.txt"):
        (notes / name).write_text("ptosis")
    for name in ("found.jsonl.run.json", "brat.run.json"):
        (notes / name).write_text("{}")
    os.mkfifo(notes / "pipe.txt")
    (notes / "link").symlink_to(tmp_path)
    result = tag_corpus([notes], small_tagger, tmp_path / "out.jsonl")
    expected = {".docx": 2, ".png": 1, "no suffix": 1, "earlier output": 2, "pipe or device": 1, "link to a folder": 1}
    assert (result.documents, result.failures, result.skipped) == (1, [], expected)
    assert f"{notes}/brat is not read: {notes}/brat.run.json says that an earlier run wrote it" in result.notices
    assert len(result.notices) == 2
    assert tag_corpus([notes], small_tagger, tmp_path / "out.jsonl", resume=True).skipped == expected
    (notes / "n.txt").unlink()
    with pytest.raises(CorpusError, match=r"no notes in .*: found 8 files skipped \(.docx 2, earlier output 2, .png 1"):
        tag_corpus([notes], small_tagger, tmp_path / "out2.jsonl")
    assert tag_corpus([notes / "found.jsonl"], small_tagger, io.BytesIO(), input_format="text").documents == 1


# What comes out.


@pytest.mark.parametrize("format", ["json", "csv", "pubtator", "tsv", "bioc", "brat", "phenopacket"])
def test_output_does_not_depend_on_jobs_or_shards(notes, small_tagger, tmp_path, format):
    outputs = []
    for number, options in enumerate(({}, {"batch_size": 4}, {"jobs": 2, "batch_size": 7})):
        out = tmp_path / f"out{number}"
        result = tag_corpus([notes], small_tagger, out, format=format, created=WHEN, **options)
        assert (result.documents, result.failures) == (30, [])
        files = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]
        outputs.append([(path.relative_to(out).as_posix(), path.read_bytes()) for path in files])
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == {"brat": 60, "phenopacket": 30}.get(format, 1)
    assert left(tmp_path) == ["notes", *(f"out{n}{end}" for n in range(3) for end in ("", ".run.json"))]


def test_second_run_in_the_same_processes_has_its_own_tagger(notes, small_obo, small_tagger, tmp_path):
    out = tmp_path / "out.jsonl"
    for tagger in (small_tagger, PhenoTagger(Ontology.from_obo(small_obo, root="HP:0000707"))):
        tag_corpus([notes], tagger, out, jobs=2, overwrite=True, batch_size=5)
        for document in read_documents(out):
            assert list(document.mentions) == tagger.tag(document.text)


def test_pickled_tagger_that_was_changed_is_refused_before_it_is_run(small_tagger, tmp_path):
    written = PickledTagger.write(small_tagger, tmp_path / "tagger.pickle")
    assert written.load().tag("ptosis") == small_tagger.tag("ptosis")
    (tmp_path / "tagger.pickle").write_bytes(b"cos\nsystem\n(S'touch run'\ntR.")
    with pytest.raises(TaggerError, match="was changed by another program"):
        PickledTagger(written.path, "0" * 64).load()


def test_json_output_is_in_the_order_of_the_inputs_and_fits_the_texts(notes, small_tagger, tmp_path):
    tag_corpus([notes], small_tagger, tmp_path / "out.jsonl", jobs=2, batch_size=3)
    documents = list(read_documents(tmp_path / "out.jsonl"))
    assert [document.id for document in documents] == sorted(document.id for document in documents)
    for document in documents:
        assert document.text == (notes / f"{document.id}.txt").read_bytes().decode()
        assert list(document.mentions) == small_tagger.tag(document.text)


def test_stream_output_is_in_order_whichever_process_is_first(notes, small_tagger, tmp_path):
    one, two = io.BytesIO(), io.BytesIO()
    tag_corpus([notes], small_tagger, one)
    tag_corpus([notes], small_tagger, two, jobs=2, batch_size=2)
    assert one.getvalue() == two.getvalue()
    assert one.getvalue().count(b"\n") == 30


def test_standard_input_is_a_text_or_what_it_is_said_to_be(small_tagger):
    out = io.BytesIO()
    tag_corpus(["-"], small_tagger, out, stdin=io.BytesIO(b"No ptosis, but ataxia."))
    (document,) = read_documents(io.BytesIO(out.getvalue()), "json")
    assert (document.id, [mention.text for mention in document.mentions]) == ("stdin", ["ptosis", "ataxia"])
    out = io.BytesIO()
    lines = b'{"id": "a", "text": "ptosis"}\n{"id": "b", "text": "obesity"}\n'
    result = tag_corpus(["-"], small_tagger, out, format="csv", input_format="json", stdin=io.BytesIO(lines))
    assert result.mentions == 2
    assert [row.split(",")[0] for row in out.getvalue().decode().splitlines()[1:]] == ['"a"', '"b"']


def test_annotations_of_the_notes_are_not_read_so_wrong_ones_do_no_harm(small_tagger, tmp_path):
    (tmp_path / "n.pubtator").write_text("1|t|Ptosis.\n1|a|Ataxia.\n1\t900\t905\twrong\tX\tY\n\n")
    out = io.BytesIO()
    result = tag_corpus([tmp_path], small_tagger, out, format="pubtator")
    assert (result.failures, result.mentions) == ([], 2)
    assert b"1\t8\t14\tAtaxia\tPhenotype\tHP:0001251" in out.getvalue()


def test_large_documents_are_tagged(small_tagger, tmp_path):
    for number in range(2):
        (tmp_path / f"n{number}.txt").write_text("ptosis and nothing else here. " * (40_000 if number else 1))
    result = tag_corpus([tmp_path], small_tagger, tmp_path / "out.csv", format="csv")
    assert (result.documents, result.mentions) == (2, 40_001)


def test_what_a_format_cannot_mark_is_left_out_and_counted(small_tagger):
    class Denying(PhenoTagger):
        def tag(self, text):
            start = text.index("ptosis")
            return [Mention(start, start + 6, "ptosis", "HP:0000508", "Ptosis", negated=True)]

    tagger = Denying(small_tagger.ontology)
    for format, include, count, stands in (("tsv", False, 1, False), ("tsv", True, 0, True), ("json", False, 0, True)):
        out = io.BytesIO()
        result = tag_corpus(["-"], tagger, out, format=format, include_negated=include, stdin=io.BytesIO(b"no ptosis"))
        assert result.left_out == count
        assert (b"HP:0000508" in out.getvalue()) == stands


# What fails.


def test_bad_files_are_named_and_do_not_stop_the_rest(notes, small_tagger, tmp_path):
    (notes / "ward0" / "bad.txt").write_bytes(b"caf\xe9 ptosis")
    (notes / "ward1" / "cut.jsonl").write_text('{"id": "good", "text": "ptosis"}\n{"id": "cut", "te')
    (notes / "ward2" / "n0002.md").write_text("not the same id as n0002.txt")
    (notes / "ward2" / "n0005.jsonl").write_text('{"id": "good", "text": "the same id as in cut.jsonl"}')
    missing = notes / "gone.txt"
    for jobs in (1, 2):
        out = tmp_path / f"out{jobs}.jsonl"
        result = tag_corpus([notes, missing], small_tagger, out, jobs=jobs, batch_size=5)
        assert result.documents == 32
        lines = [str(failure) for failure in result.failures]
        assert [Path(failure.file).name for failure in result.failures] == [
            "bad.txt", "cut.jsonl", "n0005.jsonl", "gone.txt",
        ]  # fmt: skip
        assert "byte 0xE9" in lines[0]
        assert "line 2 is not JSON" in lines[1]
        assert lines[2].endswith("document 'good': another document has this id")
        assert "No such file" in lines[3]
        assert len(json.loads((tmp_path / f"out{jobs}.jsonl.run.json").read_text())["failures"]) == 4
    assert (tmp_path / "out1.jsonl").read_bytes() == (tmp_path / "out2.jsonl").read_bytes()


def test_document_that_the_tagger_or_the_format_refuses_is_named(small_tagger, tmp_path):
    class Fussy(PhenoTagger):
        def tag(self, text):
            if "boom" in text:
                raise RuntimeError("no such word")
            return super().tag(text)

    lines = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in
                    (("a", "ptosis"), ("b", "boom"), ("c|d", "ataxia"), ("e", "obesity")))  # fmt: skip
    out = io.BytesIO()
    result = tag_corpus(
        ["-"],
        Fussy(small_tagger.ontology),
        out,
        format="pubtator",
        input_format="json",
        stdin=io.BytesIO(lines.encode()),
    )
    assert result.documents == 2
    assert [failure.document for failure in result.failures] == ["b", "c|d"]
    assert result.failures[0].error == "RuntimeError: no such word"
    assert b"c|d" not in out.getvalue()


def test_ids_that_lead_out_of_the_folder_fail_alone(small_tagger, tmp_path):
    (tmp_path / "n.jsonl").write_text('{"id": "../../up", "text": "x"}\n{"id": "in", "text": "ptosis"}\n')
    result = tag_corpus([tmp_path / "n.jsonl"], small_tagger, tmp_path / "out", format="brat")
    assert [failure.document for failure in result.failures] == ["../../up"]
    assert left(tmp_path / "out") == ["in.ann", "in.txt"]


def test_nothing_to_read_writes_nothing(small_tagger, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no notes in"):
        tag_corpus([tmp_path / "empty"], small_tagger, tmp_path / "out.jsonl")
    assert left(tmp_path) == ["empty"]


def test_output_that_is_there_is_kept_unless_overwritten(notes, small_tagger, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(CorpusError, match=r"out.jsonl exists.*--overwrite"):
        tag_corpus([notes], small_tagger, out)
    assert out.read_text() == "mine"
    tag_corpus([notes], small_tagger, out, overwrite=True)
    assert out.read_bytes().count(b"\n") == 30


@pytest.mark.parametrize(("out", "format"), [("found.jsonl", "json"), ("brat", "brat"), ("found.txt", "pubtator")])
def test_output_in_the_folder_of_the_notes_is_not_read(notes, small_tagger, out, format):
    for _ in range(2):
        result = tag_corpus([notes], small_tagger, notes / out, format=format, overwrite=True)
        assert (result.documents, result.failures) == (30, [])
    assert tag_corpus([notes], small_tagger, notes / out, format=format, resume=True).resumed == 30


def test_notes_devices_and_folders_are_never_replaced(notes, small_tagger, tmp_path, monkeypatch):
    one = notes / "ward0" / "n0000.txt"
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.chdir(folder)
    (tmp_path / "link").symlink_to(one)
    for source, out, format, match in (
        (one, one, "json", "notes that are read"),
        (tmp_path / "link", one, "json", "notes that are read"),
        (notes, one, "json", "notes that are read"),
        (notes, notes / "ward0", "brat", "notes that are read"),
        (one, notes, "brat", "notes that are read"),
        (notes, notes, "brat", "notes that are read"),
        (notes, folder, "json", "found a folder, expected a file"),
        (notes, file, "brat", "found a file, expected a folder"),
        (notes, pipe, "json", "found a device or a pipe"),
        (notes, folder, "brat", "the current folder or one above it"),
    ):
        with pytest.raises(CorpusError, match=match):
            tag_corpus([source], small_tagger, out, format=format, overwrite=True)
    ontology = tmp_path / "file"
    with pytest.raises(CorpusError, match="what is read beside the notes"):
        tag_corpus([notes], small_tagger, ontology, overwrite=True, reads=[ontology])
    with pytest.raises(HyperparameterError, match="out: found .*mine, a file of .*folder, which is read"):
        tag_corpus([notes], small_tagger, folder / "mine", overwrite=True, reads=[folder])
    assert left(tmp_path) == ["file", "folder", "link", "notes", "pipe"]
    assert (file.read_text(), left(folder), len(list(notes.rglob("*.txt")))) == ("mine", ["mine"], 30)


def test_phenopackets_are_files_of_a_folder_or_lines_of_a_file(notes, small_tagger, tmp_path):
    (notes / "ward1" / "n0001.txt").write_text("No findings.")
    tag_corpus([notes], small_tagger, tmp_path / "packets", format="phenopacket")
    read = [read_phenopacket(path) for path in sorted((tmp_path / "packets").rglob("*.json"))]
    assert len(read) == 30
    assert any(not packet.features for packet in read)
    tag_corpus([notes], small_tagger, tmp_path / "packets.jsonl", format="phenopacket")
    lines = (tmp_path / "packets.jsonl").read_text().splitlines()
    assert [read_phenopacket(json.loads(line)) for line in lines] == read


def test_options_that_do_not_go_together_are_refused(notes, small_tagger, tmp_path):
    for options, match in (
        ({"out": io.BytesIO(), "resume": True}, "stream cannot be resumed"),
        ({"out": io.BytesIO(), "format": "brat"}, "brat is written to a folder"),
        ({"out": tmp_path / "o", "format": "text"}, "format of the output: found 'text'"),
        ({"out": tmp_path / "o", "batch_size": 0}, "batch_size: found 0"),
        ({"out": tmp_path / "o", "jobs": 0}, "workers: found 0"),
        (
            {"out": tmp_path / "o", "format": "csv", "offset_unit": "utf16"},
            "'utf16' with the format csv, expected code",
        ),
        ({"out": tmp_path / "o", "include_negated": True}, "include_negated: found the format json"),
    ):
        with pytest.raises((CorpusError, HyperparameterError), match=match):
            tag_corpus([notes], small_tagger, **options)
    assert left(tmp_path) == ["notes"]


def test_ray_that_is_not_installed_is_named(notes, small_tagger, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WeightsmithError, match="Ray is not installed"):
        tag_corpus([notes], small_tagger, tmp_path / "out.jsonl", backend="ray")
    assert left(tmp_path) == ["notes"]


def test_ray_writes_the_same_output(notes, small_tagger, tmp_path, cluster):
    for out, options in (("one.jsonl", {}), ("many.jsonl", {"backend": "ray", "batch_size": 1})):
        result = tag_corpus([notes], small_tagger, tmp_path / out, **options)
        assert not result.failures
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "many.jsonl").read_bytes()


def test_memory_does_not_grow_with_the_corpus(small_tagger, tmp_path):
    def peak(count):
        with (tmp_path / f"{count}.jsonl").open("w") as stream:
            for number in range(count):
                stream.write(json.dumps({"id": str(number), "text": "No findings. " * 100}) + "\n")
        tracemalloc.start()
        tag_corpus([tmp_path / f"{count}.jsonl"], small_tagger, tmp_path / f"{count}.out", batch_size=8)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(16)
    assert peak(200) < peak(50) + 500_000


# Killed and resumed.

SLOW = """
import os, sys, time
from weightsmith_phenotype import Ontology, PhenoTagger
from weightsmith_phenotype.batch import tag_corpus

first = int(os.environ.setdefault("FIRST_PROCESS", str(os.getpid())))

class Slow(PhenoTagger):
    def tag(self, text):
        time.sleep(0.004)
        if "lethal" in text and __name__ == "slow" and os.getpid() != first:
            os.kill(os.getpid(), 9)
        return super().tag(text)

if __name__ == "__main__":
    obo, notes, out, format, jobs = sys.argv[1:]
    import slow
    tagger = slow.Slow(Ontology.from_obo(obo))
    result = tag_corpus([notes], tagger, out, format=format, jobs=int(jobs), batch_size=3, resume=True)
    print(result.documents, result.mentions, result.resumed, len(result.failures))
"""


def run_slow(tmp_path, *arguments, stderr=None):
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(tmp_path / "slow.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True, start_new_session=True
    )


def count_shards(folder):
    return len(list(folder.glob(".out.steps/shard-????????")))


def content(out):
    files = sorted(out.rglob("*")) if out.is_dir() else [out]
    return [(path.relative_to(out).as_posix(), path.read_bytes()) for path in files if path.is_file()]


@pytest.mark.parametrize(("format", "jobs", "times"), [("json", 1, 4), ("bioc", 2, 2), ("brat", 1, 2)])
def test_run_that_is_killed_at_random_moments_and_resumed_writes_the_same(
    small_obo, small_tagger, tmp_path, format, jobs, times
):
    notes = write_notes(tmp_path / "notes", 150)
    (notes / "ward1" / "bad.txt").write_bytes(b"\xff\xfe")
    tag_corpus([notes], small_tagger, tmp_path / "whole", format=format)
    out = tmp_path / "out"
    draw = random.Random(format)
    shards, kills = 0, 0
    while True:
        process = run_slow(tmp_path, small_obo, notes, out, format, jobs)
        if kills < times:  # once at any moment, then while shards are written
            deadline = time.monotonic() + (draw.uniform(0, 1) if kills < 1 else 60)
            while process.poll() is None and time.monotonic() < deadline:
                if kills >= 1 and count_shards(tmp_path) > shards:
                    break
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.1))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                shards, kills = count_shards(tmp_path), kills + 1
                assert not out.exists()
                continue
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        break
    documents, _, resumed, failures = map(int, printed.split())
    assert (documents, failures) == (150, 1)
    assert kills == times
    assert resumed > 0
    assert content(out) == content(tmp_path / "whole")
    assert [name for name in left(tmp_path) if name.startswith((".", "out"))] == ["out", "out.run.json"]


def interrupted(notes, tagger, out, *, after=2, **options):
    """Run until some shards are done, then fail as a full disk does."""
    from weightsmith_phenotype import shards

    save, count = shards.ShardFolder.save, 0

    def failing(self, done):
        nonlocal count
        count += 1
        if count > after:
            raise OSError("no space left on device")
        save(self, done)

    shards.ShardFolder.save = failing
    try:
        with pytest.raises(CorpusError, match=f"cannot write {out}: found no space left on device. Make room"):
            tag_corpus([notes], tagger, out, batch_size=5, created=WHEN, **options)
    finally:
        shards.ShardFolder.save = save


def test_resumed_run_tags_only_the_rest(notes, small_tagger, tmp_path):
    out = tmp_path / "out.jsonl"
    interrupted(notes, small_tagger, out)
    assert left(tmp_path) == [".out.jsonl.steps", "notes"]
    with pytest.raises(CorpusError, match=r"a run that writes .*out.jsonl was stopped.*--resume"):
        tag_corpus([notes], small_tagger, out)
    result = tag_corpus([notes], small_tagger, out, resume=True, batch_size=99)
    assert (result.documents, result.resumed) == (30, 10)
    tag_corpus([notes], small_tagger, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_resumed_phenopackets_keep_the_time_at_which_the_run_began(notes, small_tagger, tmp_path):
    interrupted(notes, small_tagger, tmp_path / "out", format="phenopacket")
    tag_corpus([notes], small_tagger, tmp_path / "out", format="phenopacket", resume=True)
    stamps = {json.loads(path.read_text())["metaData"]["created"] for path in (tmp_path / "out").rglob("*.json")}
    assert stamps == {"2025-01-02T00:00:00Z"}


def test_resuming_with_anything_else_is_refused_by_name(notes, small_tagger, small_obo, tmp_path):
    out = tmp_path / "out"
    interrupted(notes, small_tagger, out)
    other = PhenoTagger(Ontology.from_obo(small_obo, root="HP:0000707"))
    with pytest.raises(CorpusError, match="was begun with another tagger"):
        tag_corpus([notes], other, out, resume=True)
    with pytest.raises(CorpusError, match="was begun with another tagger"):
        tag_corpus([notes], small_tagger.with_settings(variants=0.5), out, resume=True)
    with pytest.raises(CorpusError, match="was begun with another format: found csv, expected json"):
        tag_corpus([notes], small_tagger, out, format="csv", resume=True)
    (notes / "ward0" / "n0000a.txt").write_text("new")
    with pytest.raises(CorpusError, match=r'begun with other inputs: found ".*n0000a.txt" 3 bytes'):
        tag_corpus([notes], small_tagger, out, resume=True)
    (notes / "ward0" / "n0000a.txt").unlink()
    old = (notes / "ward2" / "n0029.txt").read_bytes()
    (notes / "ward2" / "n0029.txt").unlink()
    with pytest.raises(CorpusError, match="found no further file, expected .*n0029"):
        tag_corpus([notes], small_tagger, out, resume=True)
    (notes / "ward2" / "n0029.txt").write_bytes(old)
    first = notes / "ward0" / "n0000.txt"
    was = first.read_bytes()
    first.write_bytes(was.replace(b"and", b"und"))
    with pytest.raises(CorpusError, match="found others between 'ward0/n0000' and 'ward0/n0012'"):
        tag_corpus([notes], small_tagger, out, resume=True)
    first.write_bytes(was)
    assert tag_corpus([notes], small_tagger, out, resume=True).resumed == 10


def test_resume_without_anything_to_resume_starts_and_of_a_complete_output_is_done(notes, small_tagger, tmp_path):
    (notes / "bad.txt").write_bytes(b"\xff")
    out = tmp_path / "out.jsonl"
    first = tag_corpus([notes], small_tagger, out, resume=True)
    written = out.stat().st_mtime_ns
    again = tag_corpus([notes], small_tagger, out, resume=True)
    assert (again.documents, again.mentions, again.resumed) == (30, first.mentions, 30)
    assert again.failures == first.failures
    assert out.stat().st_mtime_ns == written
    path = notes / "ward0" / "n0000.txt"
    path.write_bytes(path.read_bytes().replace(b"and", b"und"))
    with pytest.raises(CorpusError, match="is complete, of other documents"):
        tag_corpus([notes], small_tagger, out, resume=True)


@pytest.mark.parametrize(("name", "value"), [("digest", None), ("created", 3), ("documents", "x"), ("failures", 1)])
def test_a_damaged_record_of_a_finished_run_is_named(notes, small_tagger, tmp_path, name, value):
    out, record = tmp_path / "out.jsonl", tmp_path / "out.jsonl.run.json"
    tag_corpus([notes], small_tagger, out)
    kept = json.loads(record.read_text()) | {name: value}
    record.write_text(json.dumps({key: item for key, item in kept.items() if item is not None}))
    with pytest.raises(CorpusError, match="record of the run .* is damaged.*--overwrite"):
        tag_corpus([notes], small_tagger, out, resume=True)


@pytest.mark.parametrize(("out", "format"), [("out.jsonl", "json"), ("out", "brat")])
def test_an_output_that_was_replaced_is_not_taken_for_the_run_s(notes, small_tagger, tmp_path, out, format):
    tag_corpus([notes], small_tagger, tmp_path / out, format=format)
    file = tmp_path / out if format == "json" else next((tmp_path / out).rglob("*.ann"))
    file.write_text("garbage")
    with pytest.raises(CorpusError, match="is not what its run wrote.*--overwrite"):
        tag_corpus([notes], small_tagger, tmp_path / out, format=format, resume=True)


def test_damaged_shard_is_tagged_again(notes, small_tagger, tmp_path):
    out = tmp_path / "out.jsonl"
    interrupted(notes, small_tagger, out)
    shard = tmp_path / ".out.jsonl.steps" / "shard-00000001"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert tag_corpus([notes], small_tagger, out, resume=True).resumed == 5
    assert len(list(read_documents(out))) == 30


def test_overwrite_starts_again_where_a_run_was_stopped(notes, small_tagger, tmp_path):
    out = tmp_path / "out.jsonl"
    interrupted(notes, small_tagger, out)
    result = tag_corpus([notes], small_tagger, out, overwrite=True)
    assert (result.documents, result.resumed) == (30, 0)
    assert left(tmp_path) == ["notes", "out.jsonl", "out.jsonl.run.json"]


def test_two_runs_do_not_write_one_output(notes, small_tagger, tmp_path):
    out = tmp_path / "out.jsonl"
    entered, leave = threading.Event(), threading.Event()

    class Waiting(PhenoTagger):
        def tag(self, text):
            entered.set()
            leave.wait(20)
            return super().tag(text)

    first = threading.Thread(target=tag_corpus, args=([notes], Waiting(small_tagger.ontology), out))
    first.start()
    try:
        assert entered.wait(20)
        with pytest.raises(CheckpointError, match="another run is writing"):
            tag_corpus([notes], small_tagger, out, overwrite=True)
    finally:
        leave.set()
        first.join()
    assert len(list(read_documents(out))) == 30


def test_stamp_names_the_ontology_and_its_release(small_tagger):
    assert stamp(small_tagger)["ontology"] == "hp hp/releases/2030-01-02"
    assert stamp(small_tagger)["concepts"] == small_tagger.ontology.fingerprint
    again = PhenoTagger(small_tagger.ontology)
    assert stamp(again) == stamp(small_tagger)
    assert stamp(again.with_settings(nested=False)) != stamp(small_tagger)


def test_workers_end_with_a_run_that_is_killed(small_obo, tmp_path):
    notes = write_notes(tmp_path / "notes", 400)
    process = run_slow(tmp_path, small_obo, notes, tmp_path / "out", "json", 2)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.steps/shard-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(process.pid)
    process.kill()  # the parent alone: its group lives on
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in workers):
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("workers outlive the run")
        time.sleep(0.05)
    assert len(workers) >= 2


def test_worker_that_is_killed_ends_the_run_and_one_process_resumes_it(small_obo, tmp_path):
    notes = write_notes(tmp_path / "notes", 60)
    last = notes / "ward2" / "n0059.txt"
    last.write_text(last.read_text() + "lethal")
    out = tmp_path / "out"
    process = run_slow(tmp_path, small_obo, notes, out, "json", 2, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "TaggerError: a worker process was killed" in said
    assert not out.exists()
    process = run_slow(tmp_path, small_obo, notes, out, "json", 1)
    printed, _ = process.communicate(timeout=300)
    documents, _, resumed, _ = map(int, printed.split())
    assert documents == 60
    assert resumed > 0


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return found
