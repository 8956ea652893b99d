"""Changes of the file system, met one by one as a kill or a full disk meets them."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

CREATES = {"open", "os.mkdir", "os.link", "os.rename"}
CHANGES = CREATES | {"os.remove", "os.rmdir", "os.truncate", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

T = TypeVar("T")
Act = Callable[[int, str], None]
"""Called before every change with its number, from 0, and its kind."""

_watched: list[tuple[Path, Act]] = []
_count = 0


@contextmanager
def watched(root: Path, act: Act) -> Iterator[None]:
    """Call ``act`` before every change below a folder that this process makes."""
    global _count
    if not _installed:
        sys.addaudithook(_hook)  # it can never be removed
        _installed.append(True)
    _count = 0
    _watched.append((root, act))
    try:
        yield
    finally:
        _watched.pop()


def snapshots(root: Path, run: Callable[[], object], store: Path) -> list[Path]:
    """Run something and return copies of a folder as ``kill -9`` before each change would leave it, each state once."""
    states: dict[str, Path] = {}

    def copy(number: int, kind: str) -> None:
        state = digest(root)
        if state not in states:
            states[state] = Path(shutil.copytree(root, store / str(number), symlinks=True))

    with watched(root, copy):
        run()
    return list(states.values())


def spread(items: Sequence[T], most: int | None) -> Sequence[T]:
    """All of them, or about ``most``, evenly spread and with the last one."""
    return items[:: -(max(len(items) // most, 1) if most else 1)]


def restore(state: Path, root: Path) -> None:
    """Make a folder what it was in a snapshot."""
    shutil.rmtree(root)
    shutil.copytree(state, root, symlinks=True)


def digest(path: Path) -> str:
    """A digest of all names and contents; of nothing where there is nothing."""
    total = hashlib.sha256()
    for file in sorted([path, *path.rglob("*")] if path.exists() else []):
        total.update(f"{file.relative_to(path)}\n".encode())
        if file.is_file():
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    global _count
    if not _watched or event not in CHANGES:
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return
    root, act = _watched[-1]
    if not _path(event, arguments).is_relative_to(root):
        return
    _watched.append((Path("/nowhere"), act))  # what `act` does is not watched
    try:
        act(_count, event)
    finally:
        _watched.pop()
        _count += 1


def _path(event: str, arguments: tuple[object, ...]) -> Path:
    """What is changed; names may be relative to an open folder."""
    name = arguments[0]
    if not isinstance(name, (str, bytes, os.PathLike)):
        return Path("/nowhere")
    folder = arguments[{"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}.get(event, 0)]
    base = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else os.getcwd()
    return Path(base, os.fsdecode(name))


_installed: list[bool] = []
