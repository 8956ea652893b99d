"""A command killed before any of its changes leaves a whole output or none, and runs again without a trace of that."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
import torch

from faults.changes import digest, names, restore, snapshots, spread, watched
from faults.lines import WRITING, line, run, write_inputs, write_recipe
from processes import _server
from weightsmith.core.io import load_state_dict

FAST, FEW = "wise-ft", 4
"""The command that every run of the tests kills, and after how many kills it runs again there."""


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


def check_kills(words, root, store, old=None, *, most=None):
    """Run a command that writes ``root/out``, kill it before each change, and run it again each time.

    With ``most`` it runs again about that often, from states spread over the run; all states are looked at.
    """
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
        assert digest(state / "out") in (before, after), f"{state.name}: {names(state / 'out')}"
    for state in spread(states, most):
        restore(state, root)
        if digest(out) == after and "--overwrite" not in words:
            code, printed = run(words)
            assert code == 1
            assert "exists" in printed
        else:
            once()
        assert names(root) == whole, f"killed before change {state.name}"
        assert all(torch.equal(value, expected[key]) for key, value in weights(out).items())


commands = [(FAST, FEW), *(pytest.param(name, None, marks=pytest.mark.slow) for name in WRITING)]


@pytest.mark.parametrize(("name", "most"), commands)
def test_a_command(inputs, root, tmp_path, name, most):
    check_kills(line(name, inputs, root / "out"), root, tmp_path, most=most)


@pytest.mark.parametrize(("name", "most"), commands)
def test_a_command_that_replaces(inputs, root, tmp_path, name, most):
    words = line(name, inputs, root / "out")
    old = line("magnitude", inputs, root / "out")
    check_kills([*words, "--overwrite"], root, tmp_path, old, most=most)


REPORTS = ["--report", "{root}/r.html", "--json", "{root}/r.json"]
OPTIONS = [
    (["--stream"], FEW),
    pytest.param(["--stream"], None, marks=pytest.mark.slow),
    pytest.param(["--compressed"], None, marks=pytest.mark.slow),
    pytest.param(REPORTS, None, id="reports", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("extra", "most"), OPTIONS)
def test_a_command_with_options(inputs, root, tmp_path, extra, most):
    extra = [word.format(root=root) for word in extra]
    check_kills([*line("magnitude", inputs, root / "out"), *extra], root, tmp_path, most=most)


RECIPES = [(0, True, FEW), *(pytest.param(a, o, None, marks=pytest.mark.slow) for a in (0, 2) for o in (False, True))]


@pytest.mark.parametrize(("arms", "overwrite", "most"), RECIPES)
def test_a_recipe(inputs, root, tmp_path, arms, overwrite, most):
    recipe = write_recipe(inputs, root / "out", tmp_path / "recipe.yaml", arms=arms)
    words = ["run", str(recipe), *(["--overwrite"] if overwrite else [])]
    check_kills(words, root, tmp_path, line("wise-ft", inputs, root / "out") if overwrite else None, most=most)


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
