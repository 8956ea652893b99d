"""The formats by name, and reading and writing in any of them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from weightsmith.core.io import put_in_place, scratch_folder
from weightsmith_phenotype.document import Document
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats import _bioc, _brat, _csv, _jsonl, _phenopacket, _pubtator, _text, _tsv
from weightsmith_phenotype.formats._common import OffsetUnit, ReadOptions, Source, WriteOptions, opened, source_name
from weightsmith_phenotype.ontology import Ontology

__all__ = ["FORMATS", "Format", "format_of", "read_documents", "write_documents"]


@dataclass(frozen=True, slots=True)
class Format:
    """How documents of one format are read and written.

    Attributes
    ----------
    name : str
        What the command line and ``format=`` call it.
    suffixes : tuple of str
        Ends of its files' names, lower case. The first is given to new files.
    summary : str
        One line on what it is.
    read : callable, optional
        Documents of a stream; a format without it holds no texts or is a folder.
    read_path : callable, optional
        Documents of a folder, or of a file with others beside it.
    render : callable, optional
        One document as text. ``head``, the texts of all documents and ``tail`` make a file.
    files : callable, optional
        One document as files of its own, in a folder.
    head, tail : str
        What a file starts and ends with.
    carries_flags : bool
        The format can say that a mention is negated, of a relative or uncertain.
    """

    name: str
    suffixes: tuple[str, ...]
    summary: str
    read: Callable[[BinaryIO, str, ReadOptions], Iterator[Document]] | None = None
    read_path: Callable[[Path, ReadOptions], Iterator[Document]] | None = None
    render: Callable[[Document, WriteOptions], str] | None = None
    files: Callable[[Document, WriteOptions], dict[str, str]] | None = None
    head: str = ""
    tail: str = ""
    carries_flags: bool = True

    @property
    def readable(self) -> bool:
        """Documents can be read from it."""
        return self.read is not None or self.read_path is not None

    @property
    def writable(self) -> bool:
        """Mentions can be written in it."""
        return self.render is not None or self.files is not None


FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        Format("text", (".txt", ".text", ".md"), "Plain text, UTF-8: one document per file.", read=_text.read),
        Format(
            "json",
            (".jsonl", ".ndjson", ".json"),
            "One JSON object per document and line, with all that is known of each mention.",
            read=_jsonl.read,
            render=_jsonl.render,
        ),
        Format(
            "csv",
            (".csv",),
            "One row per mention, safe to open in a spreadsheet; written only.",
            render=_csv.render,
            head=_csv.HEAD,
        ),
        Format(
            "pubtator",
            (".pubtator", ".txt"),
            "id|t|title, id|a|abstract, one line per annotation.",
            read=_pubtator.read,
            render=_pubtator.render,
            carries_flags=False,
        ),
        Format(
            "tsv",
            (".tsv", ".txt"),
            "PhenoTagger's gold corpora: id, text, one line per annotation.",
            read=_tsv.read,
            render=_tsv.render,
            carries_flags=False,
        ),
        Format(
            "bioc",
            (".xml", ".bioc"),
            "BioC XML: passages with offsets.",
            read=_bioc.read,
            render=_bioc.render,
            head=_bioc.HEAD,
            tail=_bioc.TAIL,
        ),
        Format(
            "brat",
            (".ann",),
            "brat standoff: a folder of .txt and .ann files.",
            read_path=_brat.read_path,
            files=_brat.files,
        ),
        Format(
            "phenopacket",
            (".json",),
            "GA4GH phenopackets, version 2: what each text says of its person; written only.",
            render=_phenopacket.render,
            files=_phenopacket.files,
        ),
    )
}
"""The formats, by name."""

FIRST = 256
"""Bytes that tell PubTator from plain text."""

_BY_SUFFIX = {suffix: item for item in reversed(FORMATS.values()) for suffix in item.suffixes if item.readable}
_WRITTEN = {suffix: item for item in reversed(FORMATS.values()) for suffix in item.suffixes if item.writable}


def named_format(name: str) -> Format:
    """The format of a name.

    Raises
    ------
    CorpusError
        If there is none.
    """
    if name not in FORMATS:
        raise CorpusError("format", found=repr(name), expected=f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(path: str | os.PathLike[str]) -> Format | None:
    """The format of a file that is read, by the end of its name.

    Examples
    --------
    >>> format_of("corpus.PubTator").name
    'pubtator'
    """
    return _BY_SUFFIX.get(os.path.splitext(path)[1].lower())


def read_documents(
    source: Source,
    format: str | None = None,
    *,
    offset_unit: OffsetUnit | None = None,
    mentions: bool = True,
    default_id: str | None = None,
    failed: Callable[[CorpusError], None] | None = None,
) -> Iterator[Document]:
    r"""Yield the documents of a file, folder or stream, one at a time.

    Parameters
    ----------
    source : path or stream
        A file, a folder of brat files, or a stream of bytes or text.
    format : str, optional
        A name of `FORMATS`. By default by the end of the file's name; a ``.txt`` file whose first line is one of
        PubTator is read as such.
    offset_unit : {"codepoints", "utf16", "bytes"}, optional
        What the file's offsets count: code points, unless a JSON file says otherwise.
    mentions : bool, default: True
        Read the annotations too.
    default_id : str, optional
        Id of a document whose format has none; by default the file's name without its suffix.
    failed : callable, optional
        Gets the error of each document that cannot be read; reading goes on with the next line of JSON, the next
        block of PubTator or TSV, or the next document of well-formed XML. Without it, the first error is raised.

    Yields
    ------
    Document
        In the order of the file.

    Raises
    ------
    CorpusError
        If the format is not known, the file is not in it, an id is there twice, or an annotation does not fit its text.
        What was read before that is yielded first.

    Examples
    --------
    >>> import io
    >>> file = io.StringIO("7|t|Tall\n7|a|Very tall.\n7\t10\t14\ttall\tPhenotype\tHP:0000098\n")
    >>> [(found.id, found.mentions[0].text) for found in read_documents(file, "pubtator")]
    [('7', 'tall')]
    """
    options = ReadOptions(offset_unit, mentions, default_id, failed)
    name = source_name(source)
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    if path is not None and not path.exists():
        raise CorpusError(f"{name} does not exist")
    if format is not None:
        chosen = named_format(format)
    elif path is not None and path.is_dir():
        chosen = FORMATS["brat"]
    else:
        chosen = found_format(name)
    if not chosen.readable:
        raise CorpusError(f"{name}: {chosen.name} holds no texts and can only be written")
    return _unique(_documents(source, path, name, chosen, options, sniffed=format is None), name, options)


def found_format(name: str) -> Format:
    """The format of a file's name.

    Raises
    ------
    CorpusError
        If its end is not that of a format that can be read.
    """
    found = format_of(name)
    if found is None:
        raise CorpusError(
            f"{name}: its format is not known by its name",
            found=repr(os.path.splitext(name)[1]),
            expected=f"one of {', '.join(_BY_SUFFIX)}",
            do="Name the format.",
        )
    return found


def _documents(
    source: Source, path: Path | None, name: str, chosen: Format, options: ReadOptions, *, sniffed: bool
) -> Iterator[Document]:
    if chosen.read_path is not None:
        if path is None:
            raise CorpusError(f"{name}: {chosen.name} is read from a folder, not from a stream")
        yield from chosen.read_path(path, options)
    elif chosen.read is not None:
        if path is not None and path.is_dir():
            raise CorpusError(f"{name} is a folder", expected=f"a file in the format {chosen.name}")
        with opened(source) as stream:
            reader = chosen.read
            if sniffed and chosen is FORMATS["text"] and isinstance(stream, io.BufferedReader):
                start = stream.peek(FIRST)[:FIRST].decode("utf-8-sig", "ignore")
                reader = _pubtator.read if _pubtator.FIRST_LINE.match(start) else reader
            yield from reader(stream, name, options)


def _unique(documents: Iterator[Document], name: str, options: ReadOptions) -> Iterator[Document]:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            options.refuse(
                CorpusError(
                    f"{name}: two documents have the id {document.id!r}", do="Give each document an id of its own."
                )
            )
            continue
        seen.add(document.id)
        yield document


def write_documents(
    documents: Iterable[Document],
    target: str | os.PathLike[str] | IO[bytes] | IO[str],
    format: str | None = None,
    *,
    ontology: Ontology | None = None,
    overwrite: bool = False,
    **options: Any,
) -> None:
    r"""Write documents to a file, a folder or a stream, one at a time.

    Parameters
    ----------
    documents : iterable of Document
        Read one at a time.
    target : path or stream
        A file is written whole or not at all. brat is written to a folder. Phenopackets are written to a folder, one
        file each, unless the target has the suffix of a file; then one per line.
    format : str, optional
        A name of `FORMATS`. By default by the end of the target's name.
    ontology : Ontology, optional
        Needed by phenopackets.
    overwrite : bool, default: False
        Replace what is there.
    **options
        ``created`` (a datetime, for phenopackets), ``include_negated`` and ``offset_unit``, as in `WriteOptions`.

    Raises
    ------
    CorpusError
        If the format is not known or cannot be written, or a document cannot stand in it.
    weightsmith.core.errors.CheckpointError
        If the target exists or cannot be written.

    Examples
    --------
    >>> import io
    >>> out = io.StringIO()
    >>> write_documents([Document("7", "tall")], out, "pubtator")
    >>> out.getvalue()
    '7|t|tall\n7|a|\n\n'
    """
    name = source_name(target)
    chosen = named_format(format) if format is not None else _WRITTEN.get(Path(name).suffix.lower())
    if chosen is None:
        raise CorpusError(f"{name}: its format is not known by its name", do="Name the format.")
    if not chosen.writable:
        raise CorpusError(f"{chosen.name} has no place for mentions", do="Choose another format.")
    settings = WriteOptions(ontology=ontology, **options)
    if not isinstance(target, (str, os.PathLike)):
        _to_stream(documents, target, chosen, settings)
        return
    place = Path(os.path.abspath(target))
    as_folder = in_files(chosen, place)
    check_target(place, as_folder=as_folder, overwrite=overwrite)
    with scratch_folder(place) as scratch:
        check_target(place, as_folder=as_folder, overwrite=overwrite)  # a killed run's output may be back
        made = scratch / place.name
        if as_folder:
            made.mkdir()
            for document in documents:
                put_files(chosen, document, settings, made)
        else:
            with made.open("wb") as stream:
                _to_stream(documents, stream, chosen, settings)
        put_in_place(made, place)


def in_files(chosen: Format, target: Path) -> bool:
    """Whether a target is a folder with files of each document."""
    return chosen.files is not None and (chosen.render is None or not target.suffix)


def put_files(chosen: Format, document: Document, options: WriteOptions, folder: Path) -> None:
    """Write one document's files into a folder."""
    if chosen.files is not None:
        for name, text in chosen.files(document, options).items():
            put_file(folder / name, text)


def put_file(path: Path, text: str) -> None:
    """Write one file as it is given, line ends included.

    Raises
    ------
    CorpusError
        If it is there already: two documents have one id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as stream:
            stream.write(text.encode("utf-8"))
    except FileExistsError:
        raise CorpusError(f"two documents would be written to {path.name}", do="Give each an id of its own.") from None


def check_target(place: Path, *, as_folder: bool, overwrite: bool) -> None:
    """Refuse an output that is there and cannot or may not be replaced, before any work is done.

    Raises
    ------
    CorpusError
        If it is a device, a folder where a file is written or the other way round, the current folder or one above it,
        or if it exists and is not to be replaced.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not (place.is_dir() if as_folder else place.is_file()):
        found = "a folder" if place.is_dir() else "a file" if place.is_file() else "a device or a pipe"
        expected = "a folder" if as_folder else "a file"
        raise CorpusError(f"{place} cannot be written", found=found, expected=expected, do="Choose another output.")
    if Path.cwd().is_relative_to(place):
        raise CorpusError(f"{place} cannot be replaced", found="the current folder or one above it")
    if not overwrite:
        raise CorpusError(f"{place} exists", do="Choose another output or overwrite it (--overwrite).")


def _to_stream(
    documents: Iterable[Document], stream: IO[bytes] | IO[str], chosen: Format, options: WriteOptions
) -> None:
    if chosen.render is None:
        raise CorpusError(f"{chosen.name} is written to a folder, not to a stream", do="Name an output folder.")
    as_text = isinstance(stream, io.TextIOBase)

    def put(text: str) -> None:
        if as_text:
            cast("IO[str]", stream).write(text)
        else:
            cast("IO[bytes]", stream).write(text.encode("utf-8"))

    put(chosen.head)
    for document in documents:
        put(chosen.render(document, options))
    put(chosen.tail)
