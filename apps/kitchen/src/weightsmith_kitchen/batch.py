"""Work on many files: streaming, in several processes, and resumed where a run was killed.

Each file that is done is one line in a folder beside the output. The output appears when all are done, whole, in the
order of the files. A killed run loses the files that were being worked on, and nothing else. A record beside the output
says what it was made of, so that a finished run is known as finished.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import check_written, kept_folder, read_json, write_file
from weightsmith.core.jobs import Backend, stream_jobs
from weightsmith.core.progress import track
from weightsmith_kitchen.errors import KitchenError
from weightsmith_kitchen.sources import JSON_LINES, Piece, Source

__all__ = ["PHOTOS", "RECIPES", "BatchResult", "Failure", "find_files", "run_batch"]

PHOTOS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
RECIPES = (".txt", ".md", ".json", *JSON_LINES, ".html", ".htm")
DONE, MADE_WITH = "done.jsonl", "run.json"
RECORD = ".run.json"
"""What follows the name of an output in that of its record."""
EARLIER = "outputs of earlier runs"
CHANGED = "Put it back, or start again with --overwrite."


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be worked on, and why."""

    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(slots=True)
class BatchResult:
    """What became of the files.

    Attributes
    ----------
    files : int
        How many were done, those of an earlier run included.
    resumed : int
        How many an earlier run had done.
    failures : list of Failure
        In the order of the files.
    skipped : dict of str to int
        Files in folders that were not read, by suffix.
    complete : bool
        An earlier run had written the output: nothing was left to do.
    seconds : float
        Wall time of this run.
    """

    files: int = 0
    resumed: int = 0
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Item:
    number: int
    source: Source

    def key(self) -> list[Any]:
        """What the result of a file follows from; another size or time makes it another file, other bytes a piece."""
        name = str(self.source)
        if isinstance(self.source, Piece):
            return [self.number, name, len(self.source.raw), hashlib.sha256(self.source.raw).hexdigest()]
        try:
            found = os.stat(self.source)
        except OSError:
            return [self.number, name, -1, -1]
        return [self.number, name, found.st_size, found.st_mtime_ns]


def find_files(
    paths: Sequence[str | os.PathLike[str]], suffixes: Sequence[str], skipped: dict[str, int] | None = None
) -> list[Path]:
    """Files to work on: those that are named, and in folders those with one of the suffixes, each once, in order.

    Parameters
    ----------
    paths : sequence of path
        Files and folders. Folders are read with all that is in them, but hidden files and folders, and what earlier
        runs wrote there.
    suffixes : sequence of str
        In lower case, with the dot.
    skipped : dict, optional
        Gets the count of files in folders that are not read, by suffix.

    Raises
    ------
    KitchenError
        If there is no file.
    """
    found: dict[Path, None] = {}
    for given in map(Path, paths):
        if not given.is_dir():
            found[given] = None
            continue
        for path in sorted(given.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(given).parts) or not path.is_file():
                continue
            suffix = path.suffix.lower()
            if path.name.endswith(RECORD):
                continue
            if path.with_name(path.name + RECORD).is_file():
                suffix = EARLIER
            if suffix in suffixes:
                found[path] = None
            elif skipped is not None:
                skipped[suffix or "no suffix"] = skipped.get(suffix or "no suffix", 0) + 1
    if not found:
        raise KitchenError("nothing to read", found=", ".join(map(str, paths)), expected=", ".join(suffixes))
    return list(found)


def run_batch(
    files: Sequence[Source],
    work: Callable[[Any], dict[str, Any]],
    out: Path | TextIO,
    *,
    made_with: dict[str, Any],
    render: Callable[[Iterator[dict[str, Any]]], Iterator[str]] | None = None,
    jobs: int = 1,
    backend: Backend = "processes",
    resume: bool = False,
    overwrite: bool = False,
    reads: Sequence[Path] = (),
) -> BatchResult:
    """Work on files and write one JSON object per line, or what ``render`` makes of the objects.

    Parameters
    ----------
    files : sequence of Path or Piece
        From `find_files`, or from `texts_of`.
    work : callable
        From one of them to plain values. Sent to other processes. What it raises is the failure of that file only.
    out : Path or text stream
        A file appears whole or not at all; a stream gets its lines in the order of the files.
    made_with : dict
        Options that the results follow from. A run is resumed with the same ones only.
    render : callable, optional
        From all objects, in order, to pieces of text.
    jobs : int, default: 1
        Processes.
    backend : {"processes", "ray"}
        Where they run.
    resume : bool, default: False
        Go on where a run was killed, if one was. A run that was finished is left as it is.
    overwrite : bool, default: False
        Replace ``out``, and start again where a run was killed.
    reads : sequence of Path
        Other files and folders that the work follows from, such as a user's table: they are not written over.

    Raises
    ------
    KitchenError
        If ``out`` exists, or a killed run is there, and neither ``resume`` nor ``overwrite`` says what to do; or if a
        run, killed or finished, is resumed with other files or options; or if what it left is damaged or replaced.
    weightsmith.core.errors.HyperparameterError
        If ``out`` or its record is a file that is read.
    """
    start = time.monotonic()
    items = [_Item(number, source) for number, source in enumerate(files)]
    result = BatchResult()
    do = partial(_one, work)
    write = render or _lines
    if not isinstance(out, Path):
        if resume:
            raise KitchenError("a run whose output is a stream cannot be resumed", do="Name an output with --out.")
        waiting: dict[int, dict[str, Any]] = {}

        def ordered() -> Iterator[dict[str, Any]]:
            due = 0
            for number, made in stream_jobs(do, items, workers=jobs, backend=backend):
                waiting[number] = made
                while due in waiting:
                    yield from _counted(waiting.pop(due), result)
                    due += 1

        for piece in write(ordered()):
            out.write(piece)
            out.flush()
        result.seconds = time.monotonic() - start
        return result

    record = out.with_name(out.name + RECORD)
    recorded = not out.exists() or out.is_file()  # a device has no place beside it
    read = [*(source for source in files if isinstance(source, Path)), *reads]
    check_written({"out": out, "record": record if recorded else None}, inputs=read)
    with kept_folder(out) as folder:
        if resume and not overwrite and not (folder / MADE_WITH).is_file() and out.is_file() and record.is_file():
            _already(record, out, items, made_with, result)
            result.seconds = time.monotonic() - start
            return result
        done = _begin(folder, out, items, made_with, result, resume=resume, overwrite=overwrite)
        left = [item for item in items if item.number not in done]
        with (folder / DONE).open("a", encoding="utf-8") as stream:
            for number, made in track(stream_jobs(do, left, workers=jobs, backend=backend), "working", total=len(left)):
                stream.write(json.dumps([items[number].key(), made], ensure_ascii=False) + "\n")
                stream.flush()
                done[number] = made
        objects = (one for item in items for one in _counted(done[item.number], result))
        text = "".join(write(objects))
        if recorded:
            # The record comes first: a run that is killed between the two is resumed and writes both again.
            made_of = _record(items, made_with, result) | {"output": _digest(text.encode())}
            write_file(record, json.dumps(made_of) + "\n")
        write_file(out, text)
        for kept in (DONE, MADE_WITH):
            (folder / kept).unlink(missing_ok=True)
    result.seconds = time.monotonic() - start
    return result


def _record(items: Sequence[_Item], made_with: dict[str, Any], result: BatchResult) -> dict[str, Any]:
    """What an output was made of, and what became of it."""
    keys = hashlib.sha256()
    for item in items:
        keys.update(json.dumps(item.key()).encode())
    failures = [asdict(failure) for failure in result.failures]
    return {"options": made_with, "inputs": keys.hexdigest(), "files": result.files, "failures": failures}


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@contextmanager
def _sound(out: Path) -> Iterator[None]:
    """Say that what an earlier run left is damaged."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as error:
        message = f"the record of the run that writes {out} is damaged"
        raise KitchenError(
            message, found=f"{type(error).__name__}: {error}", do="Start again with --overwrite."
        ) from None


def _already(record: Path, out: Path, items: Sequence[_Item], made_with: dict[str, Any], result: BatchResult) -> None:
    """Take over the result of a run that was finished, if it was of the same files and its output is there."""
    do = "Choose another output, or replace it with --overwrite."
    was = read_json(record)
    wanted = json.loads(json.dumps(_record(items, made_with, result)))
    with _sound(out):
        for part, what in (
            ("options", "with other options"),
            ("inputs", "of other files, or of these before a change"),
        ):
            if was[part] != wanted[part]:
                raise KitchenError(f"{out} is complete, {what}", do=do)
        if was.get("output") not in (None, _digest(out.read_bytes())):
            raise KitchenError(f"{out} is not what its run wrote", do=do)
        result.files = result.resumed = operator.index(was["files"])
        result.failures = [Failure(**failure) for failure in was["failures"]]
    result.complete = True


def _begin(
    folder: Path,
    out: Path,
    items: Sequence[_Item],
    made_with: dict[str, Any],
    result: BatchResult,
    *,
    resume: bool,
    overwrite: bool,
) -> dict[int, dict[str, Any]]:
    """What an earlier run has done; the folder is ready to go on."""
    begun = (folder / MADE_WITH).is_file()
    if begun and not (resume or overwrite):
        raise KitchenError(
            f"a run that writes {out} was stopped", do="Go on with --resume, or start again with --overwrite."
        )
    if out.exists() and not overwrite and not begun:
        raise KitchenError(f"{out} exists", do="Choose another output, or replace it with --overwrite.")
    wanted = json.loads(json.dumps({"options": made_with, "files": [str(item.source) for item in items]}))
    done: dict[int, dict[str, Any]] = {}
    if begun and resume and not overwrite:
        was = read_json(folder / MADE_WITH)
        whole = 0
        raw = (folder / DONE).read_bytes() if (folder / DONE).is_file() else b""
        with _sound(out):
            for part, what in (("options", "other options"), ("files", "other files")):
                if was[part] != wanted[part]:
                    raise KitchenError(f"the run that writes {out} was begun with {what}", do=CHANGED)
            for line in raw.splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # the run was killed in the middle of this line
                key, made = json.loads(line)
                whole += len(line)
                if key == items[key[0]].key():
                    done[key[0]] = made
        with (folder / DONE).open("ab") as stream:
            stream.truncate(whole)
        result.resumed = len(done)
    else:
        for kept in folder.iterdir():
            kept.unlink()
        write_file(folder / MADE_WITH, json.dumps(wanted))
    return done


def _one(work: Callable[[Any], dict[str, Any]], item: _Item) -> tuple[int, dict[str, Any]]:
    name = str(item.source)
    try:
        return item.number, {"file": name, **work(item.source)}
    except WeightsmithError as error:
        message = " ".join(str(error).split()).removeprefix(name).lstrip(":, ")
    except Exception as error:  # whatever one file does, the others are read
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return item.number, {"failure": asdict(Failure(name, " ".join(message.split())))}


def _counted(made: dict[str, Any], result: BatchResult) -> Iterator[dict[str, Any]]:
    if "failure" in made:
        result.failures.append(Failure(**made["failure"]))
    else:
        result.files += 1
        yield made


def _lines(objects: Iterator[dict[str, Any]]) -> Iterator[str]:
    for made in objects:
        yield json.dumps(made, ensure_ascii=False) + "\n"
