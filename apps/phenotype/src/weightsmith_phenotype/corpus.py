"""What there is to tag: files, folders and standard input, as a stream of documents and of what could not be read."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from weightsmith.core.errors import WeightsmithError
from weightsmith_phenotype.document import Document
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats import FORMATS, Format, OffsetUnit, format_of, read_documents

__all__ = ["EARLIER", "RECORD", "STDIN", "Failure", "Input", "counted", "find_inputs", "read_inputs"]

STDIN = "-"
"""Stands for standard input among the names of files."""

RECORD = ".run.json"
"""End of the name of what stands beside an output and says what it was made with; never a note."""

EARLIER = "earlier output"
"""Kind of what is skipped because an earlier run wrote it."""

KINDS = 8
"""Kinds of skipped files that are named."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file to read.

    Attributes
    ----------
    path : str or None
        None is standard input.
    id : str
        Id of its document, if its format has none: the path below the folder that all inputs share, without suffix
        unless another text beside it has the same name but for the suffix.
    format : str
        Name of the format.
    size : int
        Bytes; 0 for standard input.
    sniffed : bool
        The format is by the name, and what the file starts with may say otherwise.
    """

    path: str | None
    id: str
    format: str
    size: int = 0
    sniffed: bool = False

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
        if self.error.startswith(where):  # most errors of reading name the file
            return self.error
        return f"{where}: {self.error}"


def shown(path: str | os.PathLike[str]) -> str:
    """A path that can be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_inputs(
    notes: Sequence[str | os.PathLike[str]],
    format: str | None = None,
    *,
    failed: Callable[[Failure], None] | None = None,
    skipped: Callable[[str, str], None] | None = None,
    without: Collection[str] = (),
) -> Iterator[Input]:
    """Yield the files that are named, and all files of a known format in the folders that are named.

    Parameters
    ----------
    notes : sequence of path
        Files and folders; ``"-"`` is standard input. Folders are searched with all folders in them, by name; hidden
        files are left out, and so is what has a file ``NAME.run.json`` beside it, which an earlier run wrote.
    format : str, optional
        A name of `FORMATS`. By default by the ends of the files' names; standard input is plain text.
    failed : callable, optional
        Gets each file that is not there or of no known format, and each folder that cannot be read. Without it, the
        first of them is an error.
    skipped : callable, optional
        Gets the path and the kind of each file or folder within a folder that is not read: its suffix, ``"link to a
        folder"``, ``"pipe or device"`` or ``"earlier output"``.
    without : collection of str, optional
        Absolute paths of files and folders to leave out of the folders: what this program writes.

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
    paths = [os.fspath(note) for note in notes]
    base = _shared_folder([path for path in paths if path != STDIN])
    doubled = _doubled({os.path.abspath(path) for path in paths if path != STDIN and not os.path.isdir(path)}, chosen)
    count = 0
    kinds: Counter[str] = Counter()

    def skip(path: str, kind: str) -> None:
        kinds[kind] += 1
        if skipped is not None:
            skipped(path, kind)

    def refuse(failure: Failure) -> None:
        nonlocal count
        count += 1
        if failed is None:
            raise CorpusError(str(failure))
        failed(failure)

    for path in paths:
        if path == STDIN:
            found: Iterator[Input] = iter([Input(None, "stdin", format or "text")])
        elif os.path.isdir(path):
            found = _in_folder(path, base, chosen, refuse, skip, without)
        else:
            folder = os.path.relpath(os.path.dirname(os.path.abspath(path)), base)
            found = _file(path, folder, chosen, refuse, whole=os.path.abspath(path) in doubled)
        for item in found:
            count += 1
            yield item
    if not count:
        suffixes = chosen.suffixes if chosen else [suffix for item in FORMATS.values() for suffix in _searched(item)]
        raise CorpusError(
            f"no notes in {', '.join(map(shown, notes))}",
            found=counted(kinds) or None,
            expected=f"files that end in {', '.join(suffixes)}",
        )


def counted(kinds: Mapping[str, int]) -> str:
    """How many files of which kinds, in words; empty if there is none.

    Examples
    --------
    >>> counted({".png": 1, ".docx": 2})
    '3 files skipped (.docx 2, .png 1)'
    """
    total = sum(kinds.values())
    if not total:
        return ""
    listed = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    some = ", ".join(f"{kind} {count}" for kind, count in listed[:KINDS])
    more = ", ..." if len(listed) > KINDS else ""
    return f"{total} file{'s' if total > 1 else ''} skipped ({some}{more})"


def _doubled(paths: Iterable[str], chosen: Format | None) -> set[str]:
    """Those texts of the same name but for the suffix: their ids would be the same."""
    texts: dict[str, list[str]] = {}
    for path in paths:
        found = chosen or format_of(path)
        if found is not None and found.name == "text":
            texts.setdefault(os.path.splitext(path)[0], []).append(path)
    return {path for group in texts.values() if len(group) > 1 for path in group}


def _shared_folder(names: list[str]) -> str:
    folders = [os.path.abspath(name if os.path.isdir(name) else os.path.dirname(name)) for name in names]
    return os.path.commonpath(folders) if folders else ""


def _file(
    path: str, folder: str, chosen: Format | None, failed: Callable[[Failure], None], *, whole: bool
) -> Iterator[Input]:
    """The file, if it can be one; ``folder`` is where it is, below the folder that all inputs share."""
    try:
        found = chosen or format_of(path)
        status = os.stat(path)
        if found is None:
            known = f"its format is not known by its name, {os.path.splitext(path)[1]!r}; name the input format"
            failed(Failure(shown(path), known))
            return
        name = os.path.basename(path)
        identifier = name if whole else os.path.splitext(name)[0]
        if folder != os.curdir:
            identifier = f"{folder.replace(os.sep, '/')}/{identifier}"
        yield Input(path, shown(identifier), found.name, status.st_size, sniffed=chosen is None)
    except (OSError, ValueError) as error:
        failed(Failure(shown(path), getattr(error, "strerror", None) or str(error)))


def _searched(item: Format) -> tuple[str, ...]:
    """What a folder is searched for: the texts of brat are plain texts, beside which its annotations are of no use."""
    return item.suffixes if item.read is not None else ()


def _in_folder(
    top: str,
    base: str,
    chosen: Format | None,
    failed: Callable[[Failure], None],
    skip: Callable[[str, str], None],
    without: Collection[str],
) -> Iterator[Input]:
    def refuse(error: OSError) -> None:
        failed(Failure(shown(error.filename or top), error.strerror or str(error)))

    suffixes = chosen.suffixes if chosen else {suffix for item in FORMATS.values() for suffix in _searched(item)}
    for root, folders, names in os.walk(top, onerror=refuse):
        here = os.path.abspath(root)
        outputs = {name.removesuffix(RECORD) for name in names if name.endswith(RECORD)}
        kept = []
        for name in sorted(folders):
            path = os.path.join(root, name)
            if name.startswith(".") or os.path.join(here, name) in without:
                continue
            if name in outputs:
                skip(path, EARLIER)
            elif os.path.islink(path):
                skip(path, "link to a folder")
            else:
                kept.append(name)
        folders[:] = kept
        folder = os.path.relpath(root, base)
        read = []
        for name in sorted(names):
            path = os.path.join(root, name)
            if name.startswith(".") or name.endswith(RECORD) or os.path.join(here, name) in without:
                continue
            suffix = os.path.splitext(name)[1].lower()
            if name in outputs:
                skip(path, EARLIER)
            elif os.path.exists(path) and not os.path.isfile(path):
                skip(path, "pipe or device")
            elif suffix not in suffixes:
                skip(path, shown(suffix) or "no suffix")
            else:
                read.append(path)  # a link that leads nowhere, too: it is named as a failure
        doubled = _doubled(read, chosen)
        for path in read:
            yield from _file(path, folder, chosen, failed, whole=path in doubled)


def read_inputs(
    inputs: Iterator[Input],
    *,
    offset_unit: OffsetUnit | None = None,
    stdin: BinaryIO | None = None,
    noticed: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, Document] | Failure]:
    """Yield the documents of all inputs with the name of their file, and what could not be read, in order.

    The annotations of the files are not read. After a document that cannot be read the next one follows, where the
    format tells where it begins; elsewhere the file ends there, which its failure says. Of two documents with one id,
    in one file or in two, the second is a failure.

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
        format = None if item.sniffed else item.format
        documents = None
        count = 0
        faults: list[CorpusError] = []
        while True:
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    if documents is None:
                        documents = read_documents(
                            source,
                            format,
                            offset_unit=offset_unit,
                            mentions=False,
                            default_id=item.id,
                            failed=faults.append,
                        )
                    document = next(documents, None)
            except (WeightsmithError, OSError, MemoryError) as error:
                yield from (Failure(item.name, str(fault)) for fault in faults)
                said = str(error) or type(error).__name__
                if count or item.format == "bioc":
                    said = f"{said.rstrip('.')}. The file was not read further; {count} documents before this were"
                yield Failure(item.name, said)
                break
            yield from (Failure(item.name, str(fault)) for fault in faults)
            faults.clear()
            if noticed is not None:
                for warning in caught:
                    noticed(str(warning.message))
            if document is None:
                break
            count += 1
            if document.id in seen:
                yield Failure(item.name, "another document has this id", document.id)
                continue
            seen.add(document.id)
            yield item.name, document
