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

from weightsmith_kitchen.batch import RECIPES, find_files, run_batch
from weightsmith_kitchen.errors import KitchenError
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "recipes"]


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
