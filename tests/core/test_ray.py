"""Jobs on Ray: the results of processes, a retry for the job of a worker that was killed, nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from faults.lines import run
from models import write_tiny_llama
from weightsmith import catalog
from weightsmith.analyze import train_phase_zoo
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.jobs import run_jobs, stream_jobs
from weightsmith.core.training import Task, train_many

linear = partial(nn.Linear, 3, 2)
"""Other processes can import it, which they cannot a function of this file."""


def tasks_running():
    """Process ids of the workers that run one of our jobs now."""
    titles = ((path.parent.name, path.read_bytes()) for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path))
    return [int(pid) for pid, title in titles if title.startswith(b"ray::_call")]


def _readable(path):
    try:
        return bool(path.read_bytes())
    except OSError:  # the process has ended
        return False


@contextlib.contextmanager
def one_killed():
    """Kill the first worker that is seen to run a job, in the middle of it."""
    killed, over = [], threading.Event()

    def watch():
        while not killed and not over.wait(0.02):
            for pid in tasks_running()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
    assert killed, "no worker was seen"


def test_ray_that_does_not_run_is_started_and_stopped(cluster, monkeypatch):
    calls = []

    class Asleep:
        """Ray as it is, but for these three."""

        is_initialized = staticmethod(lambda: False)
        init = staticmethod(lambda **options: calls.append(options))
        shutdown = staticmethod(lambda: calls.append("stopped"))

        def __getattr__(self, name):
            return getattr(cluster, name)

    monkeypatch.setitem(sys.modules, "ray", Asleep())
    assert list(run_jobs(abs, [-3, 1, -2], backend="ray")) == [3, 1, 2]
    assert calls == [{"include_dashboard": False}, "stopped"]


def test_the_order_and_the_error_are_those_of_processes(cluster):
    assert list(run_jobs(partial(pow, 2), [3, 1], backend="ray")) == [8, 2]
    assert list(run_jobs(abs, [], backend="ray")) == []
    assert sorted(stream_jobs(abs, iter(range(60)), backend="ray")) == list(range(60))
    with pytest.raises(TypeError, match="bad operand"):
        list(run_jobs(abs, [1, "two"], backend="ray"))

    def refuse(job):
        raise HyperparameterError("no such job", found=job)

    with pytest.raises(HyperparameterError, match="no such job: found 1"):
        list(run_jobs(refuse, [1], backend="ray"))
    assert cluster.is_initialized()


def test_members_of_a_population_are_the_same(cluster):
    draws = torch.Generator().manual_seed(0)
    tasks = Task(torch.randn(4, 20, 3, generator=draws), torch.randint(2, (4, 20), generator=draws))
    here = train_many(linear, tasks, steps=3, same_start=False)
    there = train_many(linear, tasks, steps=3, same_start=False, workers=2, backend="ray")
    for mine, theirs in zip(here, there, strict=True):
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value)


def test_a_killed_worker_costs_its_job_a_retry(cluster, tmp_path):
    def square(job):
        (tmp_path / f"{job}-{time.monotonic_ns()}").touch()
        time.sleep(0.3)
        return job * job

    with one_killed():
        assert list(run_jobs(square, range(5), backend="ray")) == [0, 1, 4, 9, 16]
    begun = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert len(begun) <= 6  # the one that was killed, twice
    assert set(begun) == set("01234")
    with one_killed():
        assert sorted(stream_jobs(square, iter(range(5)), backend="ray")) == [0, 1, 4, 9, 16]


def test_no_job_begins_when_nobody_reads_on(cluster, tmp_path):
    def slow(job):
        (tmp_path / str(job)).touch()
        time.sleep(0.2 if job else 0)
        return job

    results = run_jobs(slow, range(50), backend="ray")
    assert next(results) == 0
    results.close()
    while tasks_running():
        time.sleep(0.02)
    assert len(list(tmp_path.iterdir())) < 20  # those that had begun, and those that wait for a processor
    assert list(run_jobs(abs, [-1], backend="ray")) == [1]


def test_a_large_function_is_sent_once(cluster):
    held = np.zeros(30_000_000, np.float32)  # 120 MB: more than a task of Ray may hold
    assert list(run_jobs(lambda job: job + len(held), [1, 2], backend="ray")) == [30_000_001, 30_000_002]


def test_cells_of_a_zoo_are_the_same(cluster, tmp_path):
    def build(width):
        return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))

    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    data = [(row, int(row[0] > 0)) for row in x]
    grid = {"load": {"width": [2, 8]}, "temperature": {"batch_size": [8, 32]}}
    small = {"train_epochs": 20, "epochs": 2, "batch_size": 32, "probes": 2}
    train = partial(train_phase_zoo, build, data, data, **grid, **small)
    here = train(tmp_path / "here")
    with one_killed():
        there = train(tmp_path / "ray", backend="ray")
    assert there.phases() == here.phases()
    for width, size in ((2, 8), (8, 32)):
        mine, theirs = (zoo.states(width=width, batch_size=size) for zoo in (here, there))
        for one, other in zip(mine, theirs, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "ray").glob(".*"))  # nothing of the cell that was interrupted


def test_alternatives_of_a_recipe_are_the_same(cluster, tmp_path):
    folder = write_tiny_llama(tmp_path, rows=4, tokens=8)
    recipe = {
        "model": str(folder / "tiny"),
        "data": {"calibration": str(folder / "inputs.safetensors")},
        "steps": [{"magnitude": {"sparsity": 0.25}}],
        "compare": {
            "gentle": [{"wanda": {"sparsity": 0.5}}],
            "harsh": [{"wanda": {"sparsity": 0.75}}],
            "skipping": [{"wina": {"sparsity": 0.25}}],
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    line = ["run", str(tmp_path / "recipe.yaml"), "--set"]
    assert run([*line, f"out={tmp_path / 'here'}"])[0] == 0
    with one_killed():
        code, printed = run([*line, f"out={tmp_path / 'ray'}", "--backend", "ray"])
    assert code == 0, printed
    here, there = (json.loads((tmp_path / where / "weightsmith.json").read_text()) for where in ("here", "ray"))
    for mine, theirs in zip(here, there, strict=True):
        for part in ("title", "before", "after", "layers"):
            assert mine[part] == theirs[part]
    for name in recipe["compare"]:
        mine, theirs = (load_file(tmp_path / where / name / "model.safetensors") for where in ("here", "ray"))
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == sorted(
        path.name for path in (tmp_path / "here").iterdir()
    )


def test_claims_are_the_same(cluster, tmp_path, monkeypatch):
    def judge(slug, *, scale, seeds):
        """Stands in for a claim file: two experiments of a moment."""
        time.sleep(0.3)
        values = [float(torch.randn((), generator=torch.Generator().manual_seed(seed))) for seed in seeds]
        arms = [Arm("method", "method", values), Arm("control", "control", [each - 1 for each in values])]
        claims = [
            Claim(slug, "toy", "it wins", "points", better, [Ordering("method", "control")], experiment=name)
            for name, better in (("high", True), ("low", False))
        ]
        return [ClaimResult.judge(each, arms, scale=scale, seeds=[*seeds], seconds=0.3) for each in claims]

    monkeypatch.setattr(catalog, "load", lambda entry: partial(judge, entry.split(".")[-1].removesuffix(":run")))
    line = ["claims", "wina", "dsnot", "--seeds", "3", "--store"]
    code, here = run([*line, str(tmp_path / "processes"), "--workers", "2"])
    assert (code, "\nerror:" in here) == (1, False), here  # the half of the claims does not hold
    with one_killed():
        code, there = run([*line, str(tmp_path / "ray"), "--backend", "ray"])
    assert (code, "\nerror:" in there) == (1, False), there  # Ray tells of the killed worker
    stored = [
        {file.name: json.loads(file.read_text()) for file in (tmp_path / where).iterdir()}
        for where in ("processes", "ray")
    ]
    assert stored[0] == stored[1]
    assert sorted(stored[0]) == ["dsnot-high.json", "dsnot-low.json", "wina-high.json", "wina-low.json"]
