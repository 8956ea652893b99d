"""What all formats share: bytes to text, offsets in other units, and annotations to mentions that fit their text."""

from __future__ import annotations

import codecs
import io
import os
import re
import unicodedata
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from weightsmith_phenotype.document import Document, Mention, Passage
from weightsmith_phenotype.errors import CorpusError

if TYPE_CHECKING:
    from datetime import datetime

    from weightsmith_phenotype.ontology import Ontology

__all__ = ["CorpusNotice", "OffsetMap", "OffsetUnit", "ReadOptions", "Source", "WriteOptions"]

OffsetUnit = Literal["codepoints", "utf16", "bytes"]
Source = str | os.PathLike[str] | IO[bytes] | IO[str]

_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BREAK = re.compile(r"[\r\n]")
_NOT_A_NAME = re.compile(r"[\x00-\x1f\x7f\\]")
LONGEST_NAME, LONGEST_PATH = 200, 1000
"""Bytes of a file's name and of its path below the output folder."""
_DASHES = "-‐‑‒–—−"
_QUOTES = "'`´‘’‚\"“”„′″"
CONVERT = "Convert the file to UTF-8."


class CorpusNotice(UserWarning):
    """Something in a corpus that was kept in another way than the file has it."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How documents are read.

    Attributes
    ----------
    offset_unit : {"codepoints", "utf16", "bytes"}, optional
        What the file's offsets count. Code points, unless the file itself says otherwise.
    mentions : bool
        Read the annotations too. Without them, a document whose annotations are wrong can still be tagged.
    default_id : str, optional
        Id of a document whose format has none.
    failed : callable, optional
        Gets the error of each document that cannot be read, where the format allows to go on with the next one.
        Without it, the first of them is raised.
    """

    offset_unit: OffsetUnit | None = None
    mentions: bool = True
    default_id: str | None = None
    failed: Callable[[CorpusError], None] | None = None

    def __post_init__(self) -> None:
        if self.offset_unit is not None:
            check_unit(self.offset_unit, "offset_unit")

    @property
    def unit(self) -> OffsetUnit:
        """The unit of a file that does not say."""
        return self.offset_unit or "codepoints"

    def refuse(self, error: CorpusError) -> None:
        """Report a document that cannot be read; raise the error if nobody asked for reports."""
        if self.failed is None:
            raise error
        self.failed(error)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How documents are written.

    Attributes
    ----------
    ontology : Ontology, optional
        Needed by phenopackets, which name each concept and the release that it is from.
    created : datetime, optional
        Time stamp of phenopackets; the present by default.
    include_negated : bool
        PubTator and TSV cannot say that a mention is negated, of a relative or uncertain. They leave such mentions out,
        unless this is on.
    offset_unit : {"codepoints", "utf16", "bytes"}
        What offsets count, in JSON, which says so beside them. All other formats count code points.
    """

    ontology: Ontology | None = None
    created: datetime | None = None
    include_negated: bool = False
    offset_unit: OffsetUnit = "codepoints"

    def __post_init__(self) -> None:
        check_unit(self.offset_unit, "offset_unit")


@dataclass(slots=True)
class Annotation:
    """An annotation as the file has it: offsets in the file's unit, and the text that is said to stand there."""

    start: int
    end: int
    text: str | None
    concept_id: str
    fields: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    """Place in the file, for errors: ``"line 7"``."""


class OffsetMap:
    """Offsets of a text in another unit, to and from code points.

    Parameters
    ----------
    text : str
        The text that the offsets are of.
    unit : {"codepoints", "utf16", "bytes"}
        The other unit. Bytes are those of UTF-8.

    Examples
    --------
    >>> offsets = OffsetMap("😀 tall", "utf16")
    >>> offsets.to_code_points(3), offsets.from_code_points(2)
    (2, 3)
    """

    def __init__(self, text: str, unit: OffsetUnit) -> None:
        self.unit = unit
        self._starts: list[int] | None = None
        if unit == "utf16" and any(character > "\uffff" for character in text):
            self._starts = list(accumulate((1 + (character > "\uffff") for character in text), initial=0))
        elif unit == "bytes" and not text.isascii():
            self._starts = list(accumulate((len(character.encode()) for character in text), initial=0))

    def to_code_points(self, offset: int) -> int | None:
        """The offset in code points; None if it lies within a character or outside the text."""
        if self._starts is None:
            return offset
        index = bisect_left(self._starts, offset)
        return index if index < len(self._starts) and self._starts[index] == offset else None

    def from_code_points(self, offset: int) -> int:
        """The offset in the other unit."""
        return offset if self._starts is None else self._starts[offset]


def check_unit(unit: str, name: str) -> None:
    """Refuse a unit of offsets that does not exist."""
    if unit not in get_args(OffsetUnit):
        raise CorpusError(name, found=repr(unit), expected=f"one of {', '.join(get_args(OffsetUnit))}")


def notice(message: str) -> None:
    """Tell what was kept in another way than the file has it."""
    warnings.warn(CorpusNotice(message), stacklevel=3)


def source_name(source: Source) -> str:
    """What a source is called in messages and, without its suffix, in the ids of its documents."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "")
    return os.fspath(name) if isinstance(name, (str, os.PathLike)) and os.fspath(name) else "stream"


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """Yield the bytes of a file or stream; text that is in memory is encoded."""
    if isinstance(source, (str, os.PathLike)):
        try:
            stream: Any = Path(source).open("rb")  # noqa: SIM115 (closed below; an error of its user is not one of opening)
        except OSError as error:
            raise CorpusError(f"cannot read {os.fspath(source)}", found=error) from error
        with stream:
            yield stream
    elif hasattr(source, "buffer"):
        yield source.buffer
    elif isinstance(source, io.TextIOBase):
        yield io.BytesIO(source.read().encode("utf-8", "surrogatepass"))
    else:
        yield source  # type: ignore[misc]


def decoded(raw: bytes, name: str, *, where: str = "", first: bool = True, bom: bool = False) -> str:
    """Text of bytes in UTF-8; without its byte order mark unless ``bom`` keeps it.

    Raises
    ------
    CorpusError
        If the bytes are of another encoding, which is named where its byte order mark says it.
    """
    if first:
        for mark, encoding in _BOMS:
            if raw.startswith(mark):
                raise CorpusError(name, found=f"{encoding} (by its byte order mark)", expected="UTF-8", do=CONVERT)
        if not bom:
            raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{raw[error.start]:02X} at byte {error.start}" + (f" of {where}" if where else "")
        raise CorpusError(f"{name} is not UTF-8", found=place, do=CONVERT) from error


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, without its end."""

    number: int
    text: str
    fault: CorpusError | None = None
    """The line is not UTF-8; its text has U+FFFD where it is not."""

    @property
    def blank(self) -> bool:
        """There is nothing but blanks in it."""
        return not self.text.strip()

    def checked(self) -> str:
        """The text; raises the line's fault."""
        if self.fault is not None:
            raise self.fault
        return self.text


def lines(stream: BinaryIO, name: str) -> Iterator[Line]:
    """Yield the lines; only line feeds end a line.

    Raises
    ------
    CorpusError
        If a byte order mark says that the file is in another encoding.
    """
    for number, raw in enumerate(stream, 1):
        fault = None
        try:
            text = decoded(raw, name, where=f"line {number}", first=number == 1)
        except CorpusError as error:
            if number == 1 and raw.startswith(tuple(mark for mark, _ in _BOMS)):
                raise
            text, fault = raw.decode("utf-8", "replace"), error
        yield Line(number, text.removesuffix("\n").removesuffix("\r"), fault)


def one_line(text: str) -> str:
    """A text whose line breaks are blanks, one for one, so that offsets stay."""
    return _BREAK.sub(" ", text)


def one_cell(text: str) -> str:
    """A text whose line breaks and tabs are blanks, one for one."""
    return _BREAK.sub(" ", text).replace("\t", " ")


def check_document(document: Document) -> None:
    """Refuse what no format can write: half a character, and scores that are no numbers.

    Raises
    ------
    CorpusError
        If the id, the text or a mention's field has a lone surrogate, the id is empty, or a score is not finite.
    """
    if not document.id.strip():
        raise CorpusError("a document without an id cannot be written")
    for what, value in (("id", document.id), ("text", document.text)):
        lone = _SURROGATE.search(value)
        if lone:
            found = f"U+{ord(lone[0]):04X} at {lone.start()}"
            raise CorpusError(
                f"document {document.id!r}: {what} has a lone surrogate",
                found=found,
                expected="Unicode characters",
                do="Read the text with the encoding that it was written in.",
            )
    for mention in document.mentions:
        if not 0 <= mention.score < float("inf"):
            raise CorpusError(
                f"document {document.id!r}: score of mention [{mention.start}, {mention.end}]",
                found=mention.score,
                expected="a finite number >= 0",
            )
        for value in (mention.concept_id, mention.name, mention.source, mention.kind):
            if _SURROGATE.search(value):
                raise CorpusError(
                    f"document {document.id!r}: mention [{mention.start}, {mention.end}] has a lone surrogate",
                    found=repr(value),
                )


def check_id(document: Document, forbidden: str, format: str) -> None:
    """Refuse an id with characters that would end it in a format."""
    found = [character for character in forbidden if character in document.id]
    if found:
        raise CorpusError(
            f"document {document.id!r}: its id cannot stand in {format}",
            found=", ".join(map(repr, found)),
            do="Give the document an id without them.",
        )


def file_name(document: Document, suffix: str) -> str:
    """The relative path of a document's file: its id and a suffix.

    Raises
    ------
    CorpusError
        If the id would lead out of the folder or cannot be a path.
    """
    parts = document.id.split("/")
    bad = any(
        not part or part[0] == "." or len(part.encode()) > LONGEST_NAME or _NOT_A_NAME.search(part) for part in parts
    ) or any(part.endswith(suffix) for part in parts[:-1])
    if bad or len(document.id.encode()) > LONGEST_PATH:
        raise CorpusError(
            f"document {document.id[:80]!r}: its id cannot name a file",
            expected="names between slashes, without control characters, backslashes or a dot at the start",
            do="Give the document another id, or write a format of one file for all documents.",
        )
    return document.id + suffix


def stated(document: Document, options: WriteOptions) -> list[Mention]:
    """The mentions that a format without flags may write."""
    return [mention for mention in document.mentions if mention.asserted or options.include_negated]


def assemble(
    name: str,
    identifier: str,
    text: str,
    annotations: Sequence[Annotation],
    options: ReadOptions,
    *,
    passages: Sequence[Passage] = (),
    unit: OffsetUnit | None = None,
) -> Document:
    """A document of what was read; annotations become mentions with the document's own characters.

    Raises
    ------
    CorpusError
        If the id is empty, or offsets do not lead to the annotated text.
    """
    if not identifier.strip():
        raise CorpusError(f"{name}: a document without an id", do="Give each document an id.")
    lone = _SURROGATE.search(text)
    if lone:
        raise CorpusError(
            f"{name}: document {identifier!r} has a lone surrogate",
            found=f"U+{ord(lone[0]):04X} at {lone.start()}",
            expected="Unicode characters",
        )
    if not options.mentions:
        return Document(identifier, text, passages=tuple(passages))
    offsets = OffsetMap(text, unit or options.unit)
    mentions = [_mention(name, identifier, text, annotation, offsets) for annotation in annotations]
    return Document(identifier, text, tuple(mentions), tuple(passages))


def _mention(name: str, identifier: str, text: str, annotation: Annotation, offsets: OffsetMap) -> Mention:
    start, end = offsets.to_code_points(annotation.start), offsets.to_code_points(annotation.end)
    what = (
        f"{name}{', ' + annotation.where if annotation.where else ''}: document {identifier!r}: "
        f"mention [{annotation.start}, {annotation.end}] of {annotation.concept_id or 'no concept'}"
    )
    if start is None or end is None or not 0 <= start < end <= len(text):
        length = offsets.from_code_points(len(text))
        raise CorpusError(
            what,
            found=f"a text of {length:,} {_COUNTED[offsets.unit]}",
            expected=f"0 <= start < end <= {length}, at the bounds of characters",
            do=_hint(text, annotation, offsets.unit),
        )
    if not 0 <= annotation.fields.get("score", 1) < float("inf"):
        raise CorpusError(f"{what}: score", found=annotation.fields["score"], expected="a finite number >= 0")
    there = text[start:end]
    given = there if annotation.text is None else annotation.text
    if given != there and given.split() != there.split():
        if not _same(there, given):
            raise CorpusError(what, found=repr(there), expected=repr(given), do=_hint(text, annotation, offsets.unit))
        notice(f"{what}: the document's own {there!r} is kept; the annotation says {given!r}")
    return Mention(start, end, there, annotation.concept_id, **annotation.fields)


_COUNTED = {"codepoints": "characters", "utf16": "UTF-16 units", "bytes": "bytes"}


def _hint(text: str, annotation: Annotation, unit: OffsetUnit) -> str:
    """What may be wrong with offsets: another unit, or another place."""
    given = annotation.text
    if given:
        for other in get_args(OffsetUnit):
            offsets = OffsetMap(text, other)
            start, end = offsets.to_code_points(annotation.start), offsets.to_code_points(annotation.end)
            if other != unit and start is not None and end is not None and text[start:end] == given:
                return f"The offsets count {_COUNTED[other]}: read the file with offset_unit={other!r}."
        places = [match.start() for match in re.finditer(re.escape(given), text)]
        if places:
            place = min(places, key=lambda start: abs(start - annotation.start))
            return f"The text stands at [{place}, {place + len(given)}]. Offsets are of the whole document."
    return "Offsets are of the whole document and count its code points."


def _same(there: str, given: str) -> bool:
    """Whether an annotation's text is the document's in plainer characters: ``TNF-a`` for ``TNF-α``."""
    there, given = (unicodedata.normalize("NFC", " ".join(text.split())) for text in (there, given))
    given = given.casefold()
    reached = {0}  # where the characters so far may end in `given`: all at once, as trying each in turn has no bound
    for character in there:
        ways = _plainer(character)
        reached = {start + len(way) for start in reached for way in ways if given.startswith(way, start)}
    return len(given) in reached


@lru_cache(maxsize=4096)
def _plainer(character: str) -> frozenset[str]:
    """How a character may be written by who cannot type it, itself among them, without case."""
    for likes in (_DASHES, _QUOTES):
        if character in likes:
            return frozenset(likes + "?")
    if character.isascii():
        return frozenset({character.casefold()})
    decomposed = unicodedata.normalize("NFKD", character)
    ways = {character, decomposed, "?", "\ufffd", "".join(c for c in decomposed if not unicodedata.combining(c))}
    words = unicodedata.name(unicodedata.normalize("NFKC", character)[:1], "").split()
    if words[:1] == ["GREEK"] and "LETTER" in words:
        letter = words[words.index("LETTER") + 1 :][:1] or [""]
        if letter[0] == "FINAL":
            letter = ["SIGMA"]
        ways |= {letter[0].lower(), letter[0][:1].lower()}
        if letter[0] == "MU":
            ways.add("u")
    return frozenset(way.casefold() for way in ways)
