"""Batches: order, failures, runs that are stopped and resumed, other options and files."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from weightsmith.core.errors import HyperparameterError, WeightsmithError
from weightsmith_kitchen.batch import RECIPES, find_files, run_batch
from weightsmith_kitchen.errors import KitchenError
from weightsmith_kitchen.sources import texts_of
from weightsmith_kitchen.work import parse_file

MADE = {"command": "parse"}


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    for number in range(12):
        (folder / f"r{number:02}.txt").write_text(f"Dish {number}\nServes 2\n{number + 1} eggs\n1 cup milk\n", "utf-8")
    (folder / "r05.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "picture.png").write_bytes(b"x")
    (folder / ".hidden.txt").write_text("1 egg")
    return folder


def files(folder):
    return find_files([folder], RECIPES)


def test_files_are_found_once_in_order_and_the_rest_is_counted(recipes):
    skipped = {}
    found = find_files([recipes / "r03.txt", recipes], RECIPES, skipped)
    assert [path.name for path in found[:3]] == ["r03.txt", "r00.txt", "r01.txt"]
    assert len(found) == 12
    assert skipped == {".png": 1}
    with pytest.raises(KitchenError, match="nothing to read"):
        find_files([recipes], (".xyz",))


def test_one_bad_file_does_not_stop_the_rest_and_the_order_is_kept(recipes, tmp_path):
    result = run_batch(files(recipes), parse_file, tmp_path / "out.jsonl", made_with=MADE)
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [item["title"] for item in made] == [f"Dish {number}" for number in range(12) if number != 5]
    assert (result.files, len(result.failures)) == (11, 1)
    assert "r05.txt" in str(result.failures[0])
    assert "UTF-16" in str(result.failures[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.run.json", "recipes"]


def test_the_output_depends_neither_on_processes_nor_on_the_kind_of_output(recipes, tmp_path):
    run_batch(files(recipes), parse_file, tmp_path / "one.jsonl", made_with=MADE)
    run_batch(files(recipes), parse_file, tmp_path / "two.jsonl", made_with=MADE, jobs=2)
    stream = io.StringIO()
    run_batch(files(recipes), parse_file, stream, made_with=MADE, jobs=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert stream.getvalue() == (tmp_path / "one.jsonl").read_text("utf-8")


def stopping(path, *, at):
    if path.name == at:
        raise KeyboardInterrupt
    return parse_file(path)


def test_a_stopped_run_goes_on_where_it_was(recipes, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_batch(files(recipes), partial(stopping, at="r08.txt"), out, made_with=MADE)
    assert not out.exists()
    with pytest.raises(KitchenError, match="--resume"):
        run_batch(files(recipes), parse_file, out, made_with=MADE)
    with pytest.raises(KitchenError, match="other options"):
        run_batch(files(recipes), parse_file, out, made_with={"command": "kit"}, resume=True)
    with pytest.raises(KitchenError, match="other files"):
        run_batch(files(recipes)[1:], parse_file, out, made_with=MADE, resume=True)
    result = run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True)
    assert result.resumed == 8
    run_batch(files(recipes), parse_file, tmp_path / "whole.jsonl", made_with=MADE)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_file_that_changed_meanwhile_is_read_again(recipes, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_batch(files(recipes), partial(stopping, at="r08.txt"), out, made_with=MADE)
    (recipes / "r02.txt").write_text("Another\n5 onions\n", "utf-8")
    result = run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True)
    assert result.resumed == 7
    assert '"title": "Another"' in out.read_text("utf-8")


def test_what_exists_is_kept_unless_it_is_to_be_replaced(recipes, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(KitchenError, match="exists"):
        run_batch(files(recipes), parse_file, out, made_with=MADE)
    assert out.read_text() == "mine"
    run_batch(files(recipes), parse_file, out, made_with=MADE, overwrite=True)
    assert len(out.read_text("utf-8").splitlines()) == 11


def test_a_finished_run_is_left_as_it_is(recipes, tmp_path):
    out = tmp_path / "out.jsonl"
    first = run_batch(files(recipes), parse_file, out, made_with=MADE)
    written = out.stat()
    again = run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True)
    assert (again.complete, again.resumed, again.files, again.failures) == (True, 11, 11, first.failures)
    assert (out.stat().st_mtime_ns, out.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    with pytest.raises(KitchenError, match="is complete, with other options"):
        run_batch(files(recipes), parse_file, out, made_with={"command": "kit"}, resume=True)
    with pytest.raises(KitchenError, match="is complete, of other files"):
        run_batch(files(recipes)[1:], parse_file, out, made_with=MADE, resume=True)
    (recipes / "r02.txt").write_text("Another\n5 onions\n", "utf-8")
    with pytest.raises(KitchenError, match="or of these before a change.*--overwrite"):
        run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True)
    made = run_batch(files(recipes), parse_file, out, made_with=MADE, overwrite=True)
    assert not made.complete
    assert '"title": "Another"' in out.read_text("utf-8")
    out.unlink()  # then the record says nothing
    assert run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True).resumed == 0


@pytest.mark.parametrize(
    "text", ["{}", "x", "[]", '{"options": {"command": "parse"}}', '{"inputs": 3, "options": null}']
)
def test_a_damaged_record_of_a_finished_run_is_named(recipes, tmp_path, text):
    out = tmp_path / "out.jsonl"
    run_batch(files(recipes), parse_file, out, made_with=MADE)
    (tmp_path / "out.jsonl.run.json").write_text(text)
    with pytest.raises(WeightsmithError, match="damaged|is complete, with other options"):
        run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True)


def test_an_output_that_was_replaced_is_not_taken_for_the_run_s(recipes, tmp_path):
    out = tmp_path / "out.jsonl"
    run_batch(files(recipes), parse_file, out, made_with=MADE)
    out.write_text("garbage")
    with pytest.raises(KitchenError, match="is not what its run wrote.*--overwrite"):
        run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True)


def test_what_is_read_is_not_written_over(recipes, tmp_path):
    table, link = tmp_path / "own.csv", tmp_path / "link.txt"
    table.write_text("mine")
    link.symlink_to(recipes / "r02.txt")
    before = (recipes / "r02.txt").read_text()
    for out in (recipes / "r02.txt", link, table):
        with pytest.raises(HyperparameterError, match="which is read"):
            run_batch(files(recipes), parse_file, out, made_with=MADE, overwrite=True, reads=[table])
    assert (table.read_text(), (recipes / "r02.txt").read_text()) == ("mine", before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.txt", "own.csv", "recipes"]


def test_what_runs_wrote_into_a_folder_is_no_input(recipes):
    run_batch(files(recipes), parse_file, recipes / "parsed.json", made_with=MADE)
    skipped = {}
    assert len(find_files([recipes], RECIPES, skipped)) == 12
    assert skipped == {".png": 1, "outputs of earlier runs": 1}
    assert find_files([recipes / "parsed.json"], RECIPES) == [recipes / "parsed.json"]
    assert run_batch(files(recipes), parse_file, recipes / "parsed.json", made_with=MADE, resume=True).complete


def test_lines_of_json_are_pieces_of_their_own(recipes, tmp_path):
    out = tmp_path / "parsed.jsonl"
    run_batch(files(recipes), parse_file, out, made_with=MADE)
    parsed = out.read_bytes()
    out.write_bytes(parsed[: parsed.index(b"\n") + 1] + b"\n" + b'{"title": "broken\n\xff\n' + parsed)
    pieces = texts_of([out, recipes / "r00.txt"])
    assert [str(piece) for piece in pieces[:3]] == [f"{out}, line {number}" for number in (1, 3, 4)]
    assert pieces[-1] == recipes / "r00.txt"
    for jobs in (1, 2):
        again = tmp_path / f"again{jobs}.jsonl"
        result = run_batch(pieces, parse_file, again, made_with=MADE, jobs=jobs)
        assert result.files == 13
        assert [failure.file for failure in result.failures] == [f"{out}, line 3", f"{out}, line 4"]
        assert "JSON that cannot be read" in result.failures[0].message
        assert "is not UTF-8" in result.failures[1].message
        made = [json.loads(line) for line in again.read_text("utf-8").splitlines()]
        assert [item["title"] for item in made[:2]] == ["Dish 0", "Dish 0"]
        assert made[1]["file"] == f"{out}, line 5"


def test_json_lines_are_known_by_name_or_by_their_first_line(tmp_path):
    for name, text, count in (
        ("one.json", '{"title": "Soup",\n "ingredients": ["1 egg"]}', None),
        ("many.json", '{"ingredients": ["1 egg"]}\n{"ingredients": ["1 egg"]}\n', 2),
        ("single.jsonl", '{"ingredients": ["1 egg"]}', 1),
        ("empty.ndjson", "\n", 0),
        ("text.txt", '{"ingredients": ["1 egg"]}\n' * 2, None),
    ):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        found = texts_of([path])
        assert found == [path] if count is None else len(found) == count
    assert texts_of([tmp_path / "none.jsonl"]) == [tmp_path / "none.jsonl"]  # reading it says why


SLOW = """
import sys, time
from pathlib import Path
from weightsmith_kitchen.batch import RECIPES, find_files, run_batch
from weightsmith_kitchen.work import parse_file

def slow(path):
    time.sleep(0.2)
    return parse_file(path)

run_batch(find_files([sys.argv[1]], RECIPES), slow, Path(sys.argv[2]), made_with={"command": "parse"})
"""


def test_a_killed_run_loses_nothing_that_was_done_and_doubles_nothing(recipes, tmp_path):
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(recipes), str(out)])
    kept = None
    for _ in range(600):
        kept = next((path for path in tmp_path.rglob("done.jsonl") if path.stat().st_size > 0), None)
        if kept is not None:
            break
        time.sleep(0.05)
    assert kept is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with kept.open("ab") as stream:
        stream.write(b'[[11, "half a li')  # as if it had been killed in the middle of a line
    result = run_batch(files(recipes), parse_file, out, made_with=MADE, resume=True)
    assert result.resumed >= 1
    run_batch(files(recipes), parse_file, tmp_path / "whole.jsonl", made_with=MADE)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_file_nested_too_deep_stops_nothing(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    (tmp_path / "b.txt").write_text("1 egg")
    result = run_batch(find_files([tmp_path], RECIPES), parse_file, tmp_path / "out.jsonl", made_with=MADE)
    assert result.files == 1
    assert "a.json: recipe: found JSON that cannot be read" in str(result.failures[0])
