"""Outputs that appear whole or not at all, and scratch folders that do not outlive their process for long.

Everything is written into a scratch folder beside the output and moved into place by one system call, so that a run
may be killed at any moment. A process holds a lock on its scratch folders. The system releases it when the process
dies, and the next run on the same output removes what it finds unlocked.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from weightsmith.core.errors import CheckpointError, HyperparameterError
from weightsmith.core.io._json import read_json

__all__ = [
    "TemporaryFolder",
    "atomic_output",
    "check_file",
    "check_output",
    "check_written",
    "kept_folder",
    "put_in_place",
    "scratch_folder",
    "write_file",
    "writing",
]

PART, KEPT, DENSE = "part", "steps", "dense"
"""What stands beside an output ``OUT`` while it is written: ``.OUT.part``, and so on."""

PAGES = (".html", ".htm")
"""Suffixes of reports: no file of a model or of data has them."""

LONGEST_RECORD = 2**26
"""Bytes of a JSON file that is looked into."""

TEMPORARY = "weightsmith-"
EXCHANGE = 2
"""Linux's flag of ``renameat2`` that swaps two paths."""


@contextmanager
def atomic_output(out: str | os.PathLike[str], *, overwrite: bool = False, nbytes: int = 0) -> Iterator[Path]:
    """Yield a place to write to; move it to ``out`` on success, remove it on failure.

    Parameters
    ----------
    out : path-like
        The final folder, or the final file when it has a suffix ``.safetensors``.
    overwrite : bool, default: False
        Replace what is there. It stays complete until the new output takes its place.
    nbytes : int, default: 0
        Bytes that will be written, checked against the free space first.

    Yields
    ------
    Path
        An empty folder (or the path of a file to create).

    Raises
    ------
    CheckpointError
        If ``out`` exists and ``overwrite`` is off, another run is writing it, it cannot be written, or the disk is
        full.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_output(f"{folder}/new") as target:
    ...         _ = (target / "config.json").write_text("{}")
    ...     print(os.listdir(folder))
    ['new']
    """
    check_output(out, overwrite=overwrite)
    place = _place(out)
    with writing(out), scratch_folder(out) as scratch:
        for kind in (KEPT, DENSE):
            _remove_unused(_beside(place, kind), scratch)
        check_output(out, overwrite=overwrite)  # a killed run's old output may have been restored
        free = shutil.disk_usage(scratch).free
        if nbytes > free:
            message = f"not enough disk space for {out}"
            raise CheckpointError(message, found=f"{free:,} bytes free", expected=f"{nbytes:,}")
        target = scratch / place.name
        if Path(out).suffix != ".safetensors":
            target.mkdir()
        yield target
        put_in_place(target, place)


def check_output(
    out: str | os.PathLike[str], *, overwrite: bool, inputs: Iterable[str | os.PathLike[str] | None] = ()
) -> None:
    """Refuse an output that exists or cannot be written, before any work is done.

    Parameters
    ----------
    out : path-like
        The folder or file to write.
    overwrite : bool
        Whether it may be replaced.
    inputs : iterable of path-like or None
        What is read; names that stand for nothing on this machine are left out.

    Raises
    ------
    CheckpointError
        If ``out`` exists, is not an empty folder, and ``overwrite`` is off; or if it cannot be created.
    HyperparameterError
        If an input is in ``out``, which would replace it.
    """
    with writing(out):
        place = _place(out)
        try:
            str(place).encode()
        except UnicodeEncodeError:
            message = f"cannot write {str(out)!r}"
            raise CheckpointError(
                message, found="a path that is not UTF-8", expected="one that safetensors can write", do="Rename it."
            ) from None
        taken = place.exists() and not (place.is_dir() and not any(place.iterdir()))
        if taken and not overwrite:
            _remove_left(place)
            raise CheckpointError(f"{out} exists", do="Choose another output or pass overwrite=True (--overwrite).")
        found = "a device" if _is_device(place) else ""
        if Path(out).suffix == ".safetensors" and taken and place.is_dir():
            found = "a folder where a file is written"
        elif Path(out).suffix != ".safetensors" and place.is_file():
            found = "a file where a folder is written"
        elif taken and Path.cwd().is_relative_to(place):
            found = "the current folder or one above it"
        if found:
            raise CheckpointError(f"{out} cannot be replaced", found=found, do="Choose another output.")
        _check_creatable(_beside(place, KEPT))
    _check_outside(Path(os.path.realpath(out)), _existing(inputs))


def _existing(inputs: Iterable[str | os.PathLike[str] | None]) -> dict[Path, str | os.PathLike[str]]:
    return {Path(os.path.realpath(ref)): ref for ref in inputs if ref is not None and os.path.exists(ref)}


def _check_outside(out: Path, read: Mapping[Path, str | os.PathLike[str]]) -> None:
    for source, ref in read.items():
        if out in source.parents:
            found = f"{out}, which holds {ref}, which is read"
            raise HyperparameterError("out", found=found, expected="another folder: an output is replaced whole")


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file that :func:`write_file` could not write, before any work is done.

    Raises
    ------
    CheckpointError
        If it cannot be created or replaced.
    """
    with writing(path):
        place = _place(path)
        if place.is_dir():
            raise CheckpointError(f"cannot write {path}", found="a folder", expected="the path of a file")
        if _is_device(place):
            return
        _check_creatable(_beside(place, PART))


def check_written(
    written: Mapping[str, str | os.PathLike[str] | None],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] | None = None,
) -> None:
    """Refuse files that a command may not write, before any work is done. Links stand for what they point to.

    Parameters
    ----------
    written : mapping of str to path-like or None
        The files, by what each is called in errors; None is not written.
    inputs : iterable of path-like
        Files and folders that the command reads, and names that stand for nothing on this machine. In a folder that is
        read, new files may be written, and HTML pages and records of measures replaced.
    out : path-like, optional
        The output, which appears as a whole.

    Raises
    ------
    CheckpointError
        If a file cannot be created or replaced.
    HyperparameterError
        If a file is an input, the output or in it, or another of the files; or if an input is in the output, which
        would replace it.

    Examples
    --------
    >>> check_written({"report": "r.html", "json": "r.json"}, out="out")
    >>> check_written({"report": "out/r.html"}, out="out")
    Traceback (most recent call last):
    ...
    weightsmith.core.errors.HyperparameterError: report: found out/r.html, inside the output out, expected another file
    """
    read = _existing(inputs)
    output = None if out is None else Path(os.path.realpath(out))
    if output is not None:
        _check_outside(output, read)
    named: dict[Path, str] = {}
    for name, path in written.items():
        if path is None:
            continue
        check_file(path)
        place = Path(os.path.realpath(path))
        if _is_device(place):
            continue
        taken = ""
        if output is not None and place.is_relative_to(output):
            taken = "the output" if place == output else f"inside the output {out}"
        elif output is not None and output.is_relative_to(place):
            taken = f"where the folder of the output {out} is made"
        elif place in named:
            taken = f"written as {named[place]}"
        for source, ref in read.items():
            if place == source:
                taken = taken or "which is read"
            elif place.is_relative_to(source) and place.exists() and not _is_ours(place):
                taken = taken or f"a file of {ref}, which is read"
        if taken:
            raise HyperparameterError(name, found=f"{path}, {taken}", expected="another file")
        named[place] = name


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file of bytes, or of text as UTF-8, whole or not at all; its folder is made, an older file is replaced.

    Raises
    ------
    CheckpointError
        If it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(f"{folder}/new/record.json", "{}")
    ...     print(os.listdir(f"{folder}/new"))
    ['record.json']
    """
    check_file(path)
    place = _place(path)
    raw = content.encode() if isinstance(content, str) else content
    with writing(path), _parents(place):
        if _is_device(place):
            place.write_bytes(raw)
            return
        part = _beside(place, PART)
        try:
            part.write_bytes(raw)
            os.replace(part, place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def scratch_folder(out: str | os.PathLike[str], kind: str = PART) -> Iterator[Path]:
    """Yield an empty folder ``.OUT.kind`` beside an output, on the same disk, and remove it at the end.

    What a killed run left in it is removed.

    Raises
    ------
    CheckpointError
        If another run is using it.
    """
    place = _place(out)
    folder = _beside(place, kind)
    with _parents(place):
        with writing(out):
            lock = _lock(folder, out)
        try:
            old = folder / f"{place.name}.old"
            if old.exists() and not place.exists():  # killed between the two renames of `put_in_place`
                os.replace(old, place)
            for left in folder.iterdir():
                _remove(left)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


@contextmanager
def kept_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder beside an output that keeps its content until the work is done.

    It is removed on success. After a failure or a kill, the next run on the same output finds it as it was.

    Raises
    ------
    CheckpointError
        If another run is using it, or it cannot be made.
    """
    place = _place(out)
    folder = _beside(place, KEPT)
    with _parents(place):
        with writing(out):
            lock = _lock(folder, out)
        try:
            yield folder
            with scratch_folder(out) as scratch:
                os.replace(folder, scratch / KEPT)  # at once: half of it must not pass for the whole
        finally:
            with suppress(OSError):
                folder.rmdir()  # where nothing was kept
            os.close(lock)


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder for weights. One that a killed process left behind is removed when the next is made.

    Examples
    --------
    >>> with TemporaryFolder() as folder:
    ...     print(Path(folder).is_dir())
    True
    """

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
            _remove_unused(left)
        lock = None
        while lock is None:  # another process may take the new folder for a dead one's, and remove it
            super().__init__(prefix=TEMPORARY)
            lock = _try_lock(Path(self.name))
        weakref.finalize(self, os.close, lock)


@contextmanager
def writing(out: str | os.PathLike[str]) -> Iterator[None]:
    """Say which file or folder it is that cannot be written.

    Raises
    ------
    CheckpointError
        In place of what the system or the safetensors library raises.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {out}", found=error, do="Nothing was changed.") from error


def _place(out: str | os.PathLike[str]) -> Path:
    """The absolute path of an output; a link stands for what it points to, which may lie on another disk."""
    place = Path(os.path.abspath(out))
    if not place.name or "\0" in str(place):
        raise CheckpointError(f"cannot write {str(out)!r}", expected="a path with a name")
    return Path(os.path.realpath(place)) if place.is_symlink() and not _is_device(place) else place


def _beside(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{kind}")


def _is_device(place: Path) -> bool:
    """Whether a path is a device or a pipe, such as ``/dev/stdout``, which is written to and never replaced."""
    return place.exists() and not place.is_file() and not place.is_dir()


def _is_ours(place: Path) -> bool:
    """Whether a file in a folder that is read is none of a model: a report, or a record of what was measured."""
    if place.suffix.lower() in PAGES:
        return True
    if place.suffix != ".json" or place.stat().st_size > LONGEST_RECORD:
        return False
    with suppress(CheckpointError):
        return read_json(place).get("reading") is True
    return False


def _check_creatable(path: Path) -> None:
    """Refuse a path that cannot be created, its folders included."""
    missing = [path]
    while not os.path.lexists(missing[-1].parent):
        missing.append(missing[-1].parent)
    folder = missing[-1].parent
    if not folder.is_dir():
        raise CheckpointError(f"cannot create {path.parent}", found=f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot create {missing[-1]}", found=f"no permission to write to {folder}")
    for name in (part.name for part in missing):
        with suppress(FileNotFoundError):
            os.lstat(folder / name)  # says whether the name is too long


@contextmanager
def _parents(place: Path) -> Iterator[None]:
    """Make the folders above an output; on failure remove those that were not there."""
    made = []
    try:
        for parent in reversed(place.parents):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()
        raise


def _lock(folder: Path, out: str | os.PathLike[str]) -> int:
    """Make a folder and lock it; return the open folder, which holds the lock until it is closed."""
    while True:
        folder.mkdir(exist_ok=True)
        lock = _try_lock(folder)
        if lock is not None:
            return lock
        if folder.exists():
            raise CheckpointError(f"another run is writing {out}", do="Wait for it, or choose another output.")


def _try_lock(folder: Path) -> int | None:
    """Lock a folder; None if another process holds it, or it is removed meanwhile."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        return handle  # a file system without locks
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.stat(folder)):
            return handle
    os.close(handle)
    return None


def _remove_unused(folder: Path, scratch: Path | None = None) -> None:
    """Remove a folder of ours that no process uses any more, at once by way of a scratch folder where one is given."""
    try:
        found = folder.lstat()
    except (FileNotFoundError, NotADirectoryError):  # or removed by another process just now
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return
    lock = _try_lock(folder)
    if lock is not None:
        if scratch is not None:
            folder = folder.replace(scratch / folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left(place: Path) -> None:
    """Remove what a run left that was killed after its output was complete."""
    part, kept, dense = (_beside(place, kind) for kind in (PART, KEPT, DENSE))
    left = [dense] if dense.is_dir() else []
    if kept.is_dir() and kept.stat().st_mtime <= place.stat().st_mtime:  # what is newer waits for --overwrite
        left.append(kept)
    if left or part.is_dir():
        with suppress(CheckpointError), scratch_folder(place) as scratch:
            for folder in left:
                _remove_unused(folder, scratch)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def put_in_place(target: Path, place: Path) -> None:
    """Move a finished file or folder ``target`` in a scratch folder to ``place``; what was there ends up in the folder.

    ``target`` has the name of ``place``. Where a system cannot swap the two at once, the next `scratch_folder` of
    ``place`` puts back what a run that was killed in between has moved away.
    """
    free = not os.path.lexists(place)
    empty = place.is_dir() and not place.is_symlink() and not any(place.iterdir())
    if free or (empty if target.is_dir() else not place.is_dir()):
        os.replace(target, place)
    elif not _exchange(target, place):
        old = target.with_name(f"{place.name}.old")
        os.replace(place, old)
        try:
            os.replace(target, place)
        except OSError:
            os.replace(old, place)
            raise
        os.replace(old, old.with_name(KEPT))


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths by one system call, where the system and the file system have it."""
    if not sys.platform.startswith("linux"):
        return False
    sys.audit("os.rename", str(one), str(other), -1, -1)
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(-100, os.fsencode(one), -100, os.fsencode(other), EXCHANGE) == 0
