"""How far long work has come: a bar on a terminal, log lines elsewhere, nothing for the first two seconds."""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["is_silent", "notice", "silence", "stage", "track"]

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before anything is shown."""

INTERVAL = 10.0
"""Seconds between two log lines where there is no terminal."""

_log = logging.getLogger("weightsmith")
_console = Console(stderr=True)
_bars: Progress | None = None


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items of ``iterable`` and show progress once it has taken longer than two seconds.

    Loops may be nested: each has its own bar. Off a terminal the lines go to the logger ``"weightsmith"``
    at level INFO, which the command line shows and a library user may.

    Parameters
    ----------
    iterable : iterable
        What to loop over.
    description : str
        What is being done, in a few words.
    total : int, optional
        Number of items; asked of ``iterable`` when left out.

    Yields
    ------
    object
        The items, unchanged.

    Examples
    --------
    >>> [n * n for n in track(range(3), "squares")]
    [0, 1, 4]
    """
    total = total if total is not None else operator.length_hint(iterable) or None
    show = _bar if _console.is_terminal else _lines
    return show(iterable, description, total)


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Show a line while something runs that has no steps to count, such as loading a model.

    Off a terminal, one line when it is done, if it took longer than ten seconds.

    Examples
    --------
    >>> with stage("adding"):
    ...     1 + 1
    2
    """
    task = _open(description, None) if _console.is_terminal else None
    start = time.monotonic()
    try:
        yield
    finally:
        if task is not None:
            _close(task)
        elif (seconds := time.monotonic() - start) >= INTERVAL:
            _log.info("%s: %.0f s", description, seconds)


def silence(silent: bool = True) -> None:
    """Show nothing from now on, or show again."""
    _console.quiet = silent
    _log.setLevel(logging.ERROR if silent else logging.INFO)


def is_silent() -> bool:
    """Return whether nothing is shown."""
    return _console.quiet


def notice(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    r"""A warning as the command line shows it: its text, without the place in the source.

    Takes the place of `warnings.formatwarning`.

    Examples
    --------
    >>> notice(UserWarning("photo lunch.gif: 3 frames, the first is read"), UserWarning, "images.py", 330)
    'note: photo lunch.gif: 3 frames, the first is read\n'
    """
    return f"note: {message}\n"


class _Count(MofNCompleteColumn):
    """How many of how many; nothing for a stage."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total or task.completed else Text()


def _bar(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    start, task = time.monotonic(), None
    try:
        for done, item in enumerate(iterable):
            if task is None and time.monotonic() - start > PATIENCE:
                task = _open(description, total)
            if task is not None and _bars is not None:
                _bars.update(task, completed=done)
            yield item
    finally:
        if task is not None:
            _close(task)


def _open(description: str, total: int | None) -> TaskID:
    """Add a line to the one display that all loops share, and start the display with the first."""
    global _bars
    if _bars is None:
        _bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Count(),
            TimeRemainingColumn(),
            console=_console,
            transient=True,
        )
        _bars.start()
    return _bars.add_task(description, total=total)


def _close(task: TaskID) -> None:
    global _bars
    if _bars is None:
        return
    _bars.remove_task(task)
    if not _bars.tasks:
        _bars.stop()
        _bars = None


def _lines(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    start = time.monotonic()
    due = start + PATIENCE
    done, said = 0, False
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now >= due and done:
            _log.info("%s: %s", description, _so_far(done, total, now - start))
            due, said = now + INTERVAL, True
        yield item
    if said:
        _log.info("%s: done, %d in %.0f s", description, done + 1, time.monotonic() - start)


def _so_far(done: int, total: int | None, seconds: float) -> str:
    """Say how much is done and how long the rest takes at this pace.

    >>> _so_far(5, 20, 10.0)
    '5/20 in 10 s, about 30 s left'
    """
    if total is None or total < done:
        return f"{done} in {seconds:.0f} s"
    return f"{done}/{total} in {seconds:.0f} s, about {seconds / done * (total - done):.0f} s left"
