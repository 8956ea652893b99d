"""Jobs in processes and on Ray: the same results in the same order, and errors as they were raised."""

from __future__ import annotations

import os
import sys
import time

import pytest

from weightsmith.core.errors import HyperparameterError, WeightsmithError
from weightsmith.core.jobs import run_jobs, stream_jobs


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


@pytest.mark.parametrize("start", [run_jobs, stream_jobs])
def test_a_worker_that_is_killed_is_told(start):
    with pytest.raises(WeightsmithError, match=r"a worker process was killed: found .*9.*fewer workers"):
        list(start(os._exit, [9, 9], workers=2))
    assert sorted(start(abs, [-1, -2], workers=2)) == [1, 2]


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WeightsmithError, match=r"Ray is not installed.*weightsmith\[ray\]"):
        list(run_jobs(abs, [1], backend="ray"))
    with pytest.raises(WeightsmithError, match="Ray is not installed"):
        list(stream_jobs(abs, [1], backend="ray"))
