"""A disk that is full: one clear line, the old output or none, and nothing left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile

import pytest

from faults.changes import CREATES, digest, names, restore, spread, watched
from faults.lines import WRITING, line, run, write_inputs, write_recipe
from processes import apart

FAST, FEW = ("slerp", "wanda"), 4
"""The commands that every run of the tests tries, and about how many of their changes fail there."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "root" / "temporary").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "root" / "temporary"))
    return tmp_path / "root"


def check_full(words, root, store, *, most=None):
    """Run a command that replaces ``root/out``; let each change that needs room fail, or about ``most`` of them."""
    before = shutil.copytree(root, store / "before")
    whole = names(root)
    kinds = []
    with watched(root, lambda number, kind: kinds.append(kind)):
        code, printed = run(words)
    assert code == 0, printed
    after = digest(root / "out")
    restore(before, root)
    kept = digest(root / "out")
    assert kept != after
    for failing in spread([number for number, kind in enumerate(kinds) if kind in CREATES], most):

        def fail(number, kind, failing=failing):
            if number == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with watched(root, fail):
            code, printed = run(words)
        if code:
            assert printed.splitlines()[-1].startswith("error: "), printed
            assert "No space left on device" in printed
            assert "a bug" not in printed
            assert digest(root / "out") == kept, f"change {failing}, {kinds[failing]}"
            left = [name for name in names(root) if name not in ("r", "r.html")]  # the record may precede the report
            assert left == whole, f"change {failing}, {kinds[failing]}"
        restore(before, root)


COMMANDS = [(n, FEW) for n in FAST] + [pytest.param(n, None, marks=pytest.mark.slow) for n in WRITING]


@pytest.mark.parametrize(("name", "most"), COMMANDS)
def test_every_change_of_a_command(inputs, root, tmp_path, name, most):
    assert run(line("magnitude", inputs, root / "out"))[0] == 0
    check_full([*line(name, inputs, root / "out"), "--overwrite"], root, tmp_path, most=most)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [["--stream"], ["--compressed"], ["--report", "{root}/r.html", "--json", "{root}/r"]])
def test_every_change_of_a_command_with_options(inputs, root, tmp_path, extra):
    assert run(line("wise-ft", inputs, root / "out"))[0] == 0
    extra = [word.format(root=root) for word in extra]
    check_full([*line("magnitude", inputs, root / "out"), "--overwrite", *extra], root, tmp_path)


LIMITED = """
    import resource, sys
    from faults.lines import run

    code, printed = run(sys.argv[2:])
    assert code == 0, printed
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
    code, printed = run([*sys.argv[2:], "--overwrite"])
    print(code, printed.splitlines()[-1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--stream"], ["--compressed"]])
def test_a_file_that_grows_too_large(inputs, tmp_path, extra):
    """As on a disk of which the last bytes are taken meanwhile: the free space said there was room."""
    words = [*line("magnitude", inputs, tmp_path / "out"), *extra]
    printed = apart(LIMITED, tmp_path, 9000, *words)
    assert printed.startswith("1 error: cannot write"), printed
    assert "File too large" in printed
    assert sorted(os.listdir(tmp_path)) == ["out", "printed-0.txt"]
    assert os.listdir(tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "disk")]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip() if done else 'no mount'}")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("command", ["magnitude", "wise-ft", "recipe"])
def test_a_small_disk(inputs, small_disk, tmp_path, command):
    with open(small_disk / "filler", "wb", buffering=0) as filler:
        filler.write(bytes(2**20 - 2**13))
    recipe = write_recipe(inputs, small_disk / "out", tmp_path / "recipe.yaml", arms=1)
    words = ["run", str(recipe)] if command == "recipe" else line(command, inputs, small_disk / "out")
    code, printed = run(words)
    assert code == 1
    assert "a bug" not in printed
    assert "space" in printed
    assert {*os.listdir(small_disk)} - {".out.steps"} == {"filler"}  # a recipe keeps the steps that are done
    (small_disk / "filler").unlink()
    assert run(words)[0] == 0
