"""A command killed before any of its changes leaves a whole output or none, and runs again without a trace of that."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
import torch

from faults.changes import digest, names, restore, snapshots, watched
from faults.lines import WRITING, line, run, write_inputs, write_recipe
from processes import _server
from weightsmith.core.io import load_state_dict

FAST = "wise-ft"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """What is watched: the output beside its temporary files."""
    (tmp_path / "root" / "temporary").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "root" / "temporary"))
    return tmp_path / "root"


def weights(out):
    if out.suffix != ".safetensors" and (out / "a").is_dir():
        return {f"{name}.{key}": value for name in "ab" for key, value in load_state_dict(out / name).items()}
    return load_state_dict(out)


def check_kills(words, root, store, old=None):
    """Run a command that writes ``root/out``, kill it before each change, and run it again each time."""
    out = root / "out"
    if old is not None:
        assert run([*old])[0] == 0
    before = digest(out)

    def once():
        code, printed = run(words)
        assert code == 0, printed

    states = snapshots(root, once, store)
    after, whole, expected = digest(out), names(root), weights(out)
    assert len(states) > 3
    for state in states:
        restore(state, root)
        found = digest(out)
        assert found in (before, after), f"{state.name}: {names(out)}"
        if found == after and "--overwrite" not in words:
            code, printed = run(words)
            assert code == 1
            assert "exists" in printed
        else:
            once()
        assert names(root) == whole, f"killed before change {state.name}"
        assert all(torch.equal(value, expected[key]) for key, value in weights(out).items())


commands = [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in WRITING]


@pytest.mark.parametrize("name", commands)
def test_a_command(inputs, root, tmp_path, name):
    check_kills(line(name, inputs, root / "out"), root, tmp_path)


@pytest.mark.parametrize("name", commands)
def test_a_command_that_replaces(inputs, root, tmp_path, name):
    words = line(name, inputs, root / "out")
    old = line("magnitude", inputs, root / "out")
    check_kills([*words, "--overwrite"], root, tmp_path, old)


REPORTS = ["--report", "{root}/r.html", "--json", "{root}/r.json"]
OPTIONS = [
    ["--stream"],
    pytest.param(["--compressed"], marks=pytest.mark.slow),
    pytest.param(REPORTS, id="reports", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("extra", OPTIONS)
def test_a_command_with_options(inputs, root, tmp_path, extra):
    extra = [word.format(root=root) for word in extra]
    check_kills([*line("magnitude", inputs, root / "out"), *extra], root, tmp_path)


@pytest.mark.parametrize("overwrite", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("arms", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_recipe(inputs, root, tmp_path, arms, overwrite):
    recipe = write_recipe(inputs, root / "out", tmp_path / "recipe.yaml", arms=arms)
    words = ["run", str(recipe), *(["--overwrite"] if overwrite else [])]
    check_kills(words, root, tmp_path, line("wise-ft", inputs, root / "out") if overwrite else None)


def killed(words, root, number):
    """Run in a process of its own and die before a change."""

    def act(count, kind):
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(root, act):
        run(words)


@pytest.mark.slow
def test_real_kills(inputs, root):
    words = line("magnitude", inputs, root / "out")
    for number in (2, 5):
        process = _server.Process(target=killed, args=(words, root, number))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert any(".out.part" in name for name in names(root))
    code, printed = run(words)
    assert code == 0, printed
    assert {name.split("/")[0] for name in names(root)} == {"out", "temporary"}
