"""What there is to tag: files, folders and standard input, as a stream of documents and of what could not be read."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weightsmith.core.errors import WeightsmithError
from weightsmith_phenotype.document import Document
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats import FORMATS, Format, OffsetUnit, format_of, read_documents

__all__ = ["STDIN", "Failure", "Input", "find_inputs", "read_inputs"]

STDIN = "-"
"""Stands for standard input among the names of files."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file to read.

    Attributes
    ----------
    path : Path or None
        None is standard input.
    id : str
        Id of its document, if its format has none: the path below the folder that all inputs share, without suffix.
    format : str
        Name of the format.
    size : int
        Bytes; 0 for standard input.
    """

    path: Path | None
    id: str
    format: str
    size: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return "standard input" if self.path is None else shown(self.path)


@dataclass(frozen=True, slots=True)
class Failure:
    """A file or document that could not be tagged, and why."""

    file: str
    error: str
    document: str = ""

    def __str__(self) -> str:
        """One line."""
        where = f"{self.file}, document {self.document!r}" if self.document else self.file
        return f"{where}: {self.error}"


def shown(path: str | os.PathLike[str]) -> str:
    """A path that can be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_inputs(
    notes: Sequence[str | os.PathLike[str]],
    format: str | None = None,
    *,
    failed: Callable[[Failure], None] | None = None,
) -> Iterator[Input]:
    """Yield the files that are named, and all files of a known format in the folders that are named.

    Parameters
    ----------
    notes : sequence of path
        Files and folders; ``"-"`` is standard input. Folders are searched with all folders in them, by name; hidden
        files are left out.
    format : str, optional
        A name of `FORMATS`. By default by the ends of the files' names; standard input is plain text.
    failed : callable, optional
        Gets each file that is not there or of no known format, and each folder that cannot be read. Without it, the
        first of them is an error.

    Raises
    ------
    CorpusError
        If nothing is found.
    """
    if not notes:
        raise CorpusError("no notes are named", expected="files, folders, or - for standard input")
    chosen = None
    if format is not None:
        if format not in FORMATS or not FORMATS[format].readable:
            readable = ", ".join(name for name, item in FORMATS.items() if item.readable)
            raise CorpusError("format of the notes", found=repr(format), expected=f"one of {readable}")
        chosen = FORMATS[format]
    base = _shared_folder([Path(note) for note in notes if note != STDIN])
    count = 0

    def refuse(failure: Failure) -> None:
        nonlocal count
        count += 1
        if failed is None:
            raise CorpusError(str(failure))
        failed(failure)

    for note in notes:
        if note == STDIN:
            found: Iterator[Input] = iter([Input(None, "stdin", format or "text")])
        elif Path(note).is_dir():
            found = _in_folder(Path(note), base, chosen, refuse)
        else:
            found = _file(Path(note), base, chosen, refuse)
        for item in found:
            count += 1
            yield item
    if not count:
        suffixes = chosen.suffixes if chosen else [suffix for item in FORMATS.values() for suffix in _searched(item)]
        raise CorpusError(
            f"no notes in {', '.join(map(shown, notes))}", expected=f"files that end in {', '.join(suffixes)}"
        )


def _shared_folder(paths: list[Path]) -> Path:
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]
    return Path(os.path.commonpath(folders)) if folders else Path()


def _file(path: Path, base: Path, chosen: Format | None, failed: Callable[[Failure], None]) -> Iterator[Input]:
    try:
        found = chosen or format_of(path)
        if found is None and path.exists():
            failed(Failure(shown(path), f"its format is not known by its name, {path.suffix!r}; name the input format"))
        else:
            yield _input(path, base, found or FORMATS["text"])
    except OSError as error:
        failed(Failure(shown(path), error.strerror or str(error)))
    except CorpusError as error:
        failed(Failure(shown(path), str(error)))


def _input(path: Path, base: Path, found: Format) -> Input:
    relative = Path(os.path.abspath(path)).relative_to(base)
    return Input(path, shown(relative.with_suffix("").as_posix()), found.name, path.stat().st_size)


def _searched(item: Format) -> tuple[str, ...]:
    """What a folder is searched for: the texts of brat are plain texts, beside which its annotations are of no use."""
    return item.suffixes if item.read is not None else ()


def _in_folder(folder: Path, base: Path, chosen: Format | None, failed: Callable[[Failure], None]) -> Iterator[Input]:
    def refuse(error: OSError) -> None:
        failed(Failure(shown(error.filename or folder), error.strerror or str(error)))

    known = {suffix for item in FORMATS.values() for suffix in _searched(item)}
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if name.startswith(".") or not path.is_file():
                continue
            suffix = path.suffix.lower()
            if suffix in chosen.suffixes if chosen is not None else suffix in known:
                yield from _file(path, base, chosen, failed)


def read_inputs(
    inputs: Iterator[Input],
    *,
    offset_unit: OffsetUnit | None = None,
    stdin: BinaryIO | None = None,
    noticed: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, Document] | Failure]:
    """Yield the documents of all inputs with the name of their file, and what could not be read, in order.

    The annotations of the files are not read. A file that cannot be read ends where the fault is; the next file
    follows. Of two documents with one id, in one file or in two, the second is a failure.

    Parameters
    ----------
    inputs : iterator of Input
        Read one at a time.
    offset_unit : {"codepoints", "utf16", "bytes"}, optional
        What the files' offsets count.
    stdin : binary stream, optional
        Standard input.
    noticed : callable, optional
        Gets each notice.
    """
    seen: set[str] = set()
    for item in inputs:
        source = item.path if item.path is not None else stdin or sys.stdin.buffer
        documents = None
        while True:
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    if documents is None:
                        documents = read_documents(source, item.format, offset_unit=offset_unit, mentions=False)
                    document = next(documents, None)
            except (WeightsmithError, OSError, MemoryError) as error:
                yield Failure(item.name, str(error) or type(error).__name__)
                break
            if noticed is not None:
                for warning in caught:
                    noticed(str(warning.message))
            if document is None:
                break
            if item.format in ("text", "brat"):
                document.id = item.id
            if document.id in seen:
                yield Failure(item.name, "another document has this id", document.id)
                continue
            seen.add(document.id)
            yield item.name, document
