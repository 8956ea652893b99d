"""Independent jobs: in local processes through joblib, or as tasks of Ray where it is installed and asked for."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, TypeVar

from weightsmith.core import progress
from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError, WeightsmithError, WorkerError

__all__ = ["Backend", "run_jobs", "stream_jobs"]

Job = TypeVar("Job")
Backend = Literal["processes", "ray"]

AHEAD = 2
"""Jobs that are sent to Ray per processor."""
RETRIES = 3
"""How often Ray runs a job again whose worker process died."""


def run_jobs(
    function: Callable[[Job], Any], jobs: Sequence[Job], *, workers: int = 1, backend: Backend = "processes"
) -> Iterator[Any]:
    """Yield ``function(job)`` for every job, in order; with one worker, each is run when it is asked for.

    Parameters
    ----------
    function : callable
        Sent to the other processes by cloudpickle, so that any function works.
    jobs : sequence
        Its arguments.
    workers : int, default: 1
        Processes of the local pool; 1 runs here. Ray has its own idea of how many.
    backend : {"processes", "ray"}, default: "processes"
        Where to run. Ray that runs already is used and stays; otherwise it is started, on the cluster that
        ``RAY_ADDRESS`` names or on this machine, and stopped at the end. A job whose worker dies is run again, up to
        `RETRIES` times. Jobs that have begun when the results are no longer read run to their end.

    Raises
    ------
    HyperparameterError
        If there is no worker, or no such backend.
    WeightsmithError
        If Ray is asked for and not installed.
    WorkerError
        While the results are read, if a worker process is killed.

    Examples
    --------
    >>> list(run_jobs(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    _check(workers, backend)
    if backend == "ray":
        return _on_ray(function, jobs, ordered=True)
    if workers == 1 or len(jobs) < 2:
        return map(function, jobs)
    return _in_pool(function, jobs, min(workers, len(jobs)), return_as="generator")


def stream_jobs(
    function: Callable[[Job], Any], jobs: Iterable[Job], *, workers: int = 1, backend: Backend = "processes"
) -> Iterator[Any]:
    """Yield ``function(job)`` for jobs that are too many to hold, in the order in which they finish.

    Parameters
    ----------
    function : callable
        Sent to the other processes by cloudpickle, so that any function works.
    jobs : iterable
        Its arguments. Few more than are being worked on are taken from it. With several workers, another thread may
        take them.
    workers : int, default: 1
        Processes of the local pool; 1 runs here. Ray has its own idea of how many.
    backend : {"processes", "ray"}, default: "processes"
        Where to run, as in `run_jobs`.

    Raises
    ------
    HyperparameterError
        If there is no worker, or no such backend.
    WeightsmithError
        If Ray is asked for and not installed.
    WorkerError
        While the results are read, if a worker process is killed.

    Examples
    --------
    >>> sorted(stream_jobs(abs, iter([-1, 2, -3])))
    [1, 2, 3]
    """
    _check(workers, backend)
    if backend == "ray":
        return _on_ray(function, jobs, ordered=False)
    if workers == 1:
        return map(function, jobs)
    options = {"return_as": "generator_unordered", "pre_dispatch": 2 * workers, "batch_size": 1}
    return _in_pool(function, jobs, workers, **options)


def _in_pool(function: Callable[[Job], Any], jobs: Iterable[Job], workers: int, **options: Any) -> Iterator[Any]:
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed  # half a second, which the command line has no need of

    begin = {"initializer": _begin, "initargs": (os.getpid(), warnings.formatwarning)}
    pool = Parallel(n_jobs=workers, backend="loky", **begin, **options)
    results = iter(pool(delayed(function)(job) for job in jobs))

    def read() -> Iterator[Any]:
        try:
            yield from results
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process was killed",
                found=" ".join(str(error).split("{")[-1].split("}")[0].split()),
                do="Take fewer workers if memory is short.",
            ) from error

    return read()


def _begin(parent: int, formatwarning: Callable[..., str]) -> None:
    """Show warnings as the parent does, no progress, and end soon after it was killed: loky would wait five minutes."""
    warnings.formatwarning = formatwarning
    progress.silence()  # the bars of several processes would overwrite each other

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check(workers: int, backend: str) -> None:
    if workers < 1:
        raise HyperparameterError("workers", found=workers, expected=">= 1")
    check_choice("backend", backend, Backend)


def _on_ray(function: Callable[[Job], Any], jobs: Iterable[Job], *, ordered: bool) -> Iterator[Any]:
    """Tasks of Ray, a few more at a time than there are processors; the job of a worker that dies is run again."""
    with _ray() as ray:
        task = ray.remote(max_retries=RETRIES)(_call)
        shared = ray.put(function)  # once, however large what it holds
        many = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        left = iter(jobs)
        running = [task.remote(shared, job) for job in islice(left, many)]
        try:
            while running:
                done = running[0] if ordered else ray.wait(running, num_returns=1)[0][0]
                result = ray.get(done)
                running.remove(done)
                running += [task.remote(shared, job) for job in islice(left, 1)]
                yield result
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.WorkerCrashedError as error:
            raise WeightsmithError(
                "a worker process of Ray was killed", found=f"{RETRIES + 1} times at the same job", do="See its log."
            ) from error
        # Nothing is cancelled when the caller stops reading: cancelling a task that ends just then aborts the caller's
        # process (Ray 2.60, "Tried to complete task that was not pending"). A cluster of our own ends with its tasks.


def _call(function: Callable[[Job], Any], job: Job) -> Any:
    return function(job)


@contextmanager
def _ray() -> Iterator[Any]:
    """Ray: the one that runs already, or one of our own."""
    try:
        import ray
    except ImportError as error:
        raise WeightsmithError("Ray is not installed", do="pip install 'weightsmith[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()
