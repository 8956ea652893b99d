"""Jobs in processes and on Ray: the same results in the same order, and errors as they were raised."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial

import pytest
import torch
from torch import nn

from weightsmith.core.errors import HyperparameterError, WeightsmithError
from weightsmith.core.jobs import run_jobs, stream_jobs
from weightsmith.core.training import Task, train_many

linear = partial(nn.Linear, 3, 2)
"""Other processes can import it, which they cannot a function of this file."""


def test_processes_keep_the_order_and_the_error():
    assert list(run_jobs(abs, [-3, 1, -2], workers=2)) == [3, 1, 2]
    assert list(run_jobs(abs, [])) == []
    with pytest.raises(TypeError, match="bad operand"):
        list(run_jobs(abs, [1, "two"], workers=2))
    with pytest.raises(HyperparameterError, match="workers: found 0"):
        run_jobs(abs, [1], workers=0)


def test_stream_takes_few_jobs_ahead_and_yields_every_result():
    taken = 0

    def jobs():
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield 0.03

    slow = stream_jobs(time.sleep, jobs(), workers=2)
    next(slow)
    assert taken <= 25
    assert len(list(slow)) == 39
    assert sorted(stream_jobs(abs, iter(range(-200, 0)), workers=2)) == list(range(1, 201))
    one = stream_jobs(abs, iter([-1, -2]))
    assert [next(one), next(one)] == [1, 2]
    with pytest.raises(TypeError, match="bad operand"):
        list(stream_jobs(abs, [1, "two"], workers=2))
    with pytest.raises(HyperparameterError, match="workers: found 0"):
        stream_jobs(abs, [1], workers=0)


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WeightsmithError, match=r"Ray is not installed.*weightsmith\[ray\]"):
        list(run_jobs(abs, [1], backend="ray"))
    with pytest.raises(WeightsmithError, match="Ray is not installed"):
        list(stream_jobs(abs, [1], backend="ray"))


@pytest.fixture
def ray():
    module = pytest.importorskip("ray", reason="Ray is an extra that is not installed: pip install 'weightsmith[ray]'")
    yield module
    module.shutdown()


def test_ray_keeps_the_order_the_error_and_trains_the_same_members(ray):
    assert list(run_jobs(abs, [-3, 1, -2], backend="ray")) == [3, 1, 2]
    assert not ray.is_initialized()
    ray.init(num_cpus=2, include_dashboard=False)
    assert list(run_jobs(partial(pow, 2), [3, 1], backend="ray")) == [8, 2]
    assert list(run_jobs(abs, [], backend="ray")) == []
    assert sorted(stream_jobs(abs, iter(range(60)), backend="ray")) == list(range(60))
    with pytest.raises(TypeError, match="bad operand"):
        list(run_jobs(abs, [1, "two"], backend="ray"))
    with pytest.raises(HyperparameterError, match="no such job"):
        list(run_jobs(_refuse, [1], backend="ray"))
    draws = torch.Generator().manual_seed(0)
    tasks = Task(torch.randn(4, 20, 3, generator=draws), torch.randint(2, (4, 20), generator=draws))
    here = train_many(linear, tasks, steps=3, same_start=False)
    there = train_many(linear, tasks, steps=3, same_start=False, workers=2, backend="ray")
    for mine, theirs in zip(here, there, strict=True):
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value)
    assert ray.is_initialized()


def test_a_killed_worker_costs_its_job_a_retry(ray, tmp_path):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    killed = tmp_path / "killed"

    def square(job):
        if job == 3 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job * job

    assert list(run_jobs(square, range(6), backend="ray")) == [0, 1, 4, 9, 16, 25]
    assert killed.exists()
    killed.unlink()
    assert sorted(stream_jobs(square, iter(range(6)), backend="ray")) == [0, 1, 4, 9, 16, 25]


def _refuse(job):
    raise HyperparameterError("no such job", found=job)
