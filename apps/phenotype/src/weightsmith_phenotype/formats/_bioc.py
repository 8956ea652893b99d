"""BioC XML: collections of documents, their passages with offsets, and annotations.

Offsets are of the document. A document's text is put together from its passages, each at its offset. What lies between
two passages and is in no passage is a line break followed by blanks. A passage without a type is text like any other.

The file may come from anybody: a DOCTYPE is accepted and not loaded, entities of one's own are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO
from xml.parsers import expat
from xml.sax.saxutils import escape

from weightsmith_phenotype.document import Document, Mention, Passage
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats._common import (
    Annotation,
    OffsetMap,
    ReadOptions,
    WriteOptions,
    assemble,
    check_document,
    notice,
)

__all__ = ["HEAD", "TAIL", "read", "render"]

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE collection SYSTEM "BioC.dtd">\n'
    "<collection><source></source><date></date><key></key>\n"
)
TAIL = "</collection>\n"

CHUNK = 1 << 18
LONGEST_TOKEN = 1 << 24
"""Bytes of one tag or comment: the parser goes over an unfinished one again with every chunk."""
DEEPEST = 50
"""Elements within elements; BioC needs seven."""
WIDEST_GAP = 1 << 20
"""Characters of a document that may be in no passage: a wrong offset must not ask for a gigabyte of blanks."""

_TEXTS = frozenset(("id", "offset", "text", "infon"))
_IDS = ("identifier", "concept_id", "HPO", "hpo_id", "MESH", "NCBI Gene", "database_id")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_FLAGS = ("negated", "family", "uncertain")


class _Part:
    """A passage or a sentence."""

    def __init__(self, passage: _Part | None = None) -> None:
        self.passage = passage or self
        self.infons: dict[str, str] = {}
        self.offset: str | None = None
        self.text: str | None = None


class _Handler:
    """Collects documents from the events of the parser."""

    def __init__(self, name: str, options: ReadOptions) -> None:
        self.name, self.options = name, options
        self.done: list[Document] = []
        self.stack: list[str] = []
        self.characters: list[str] | None = None
        self.key = ""
        self.document: dict[str, Any] | None = None
        self.part: _Part | None = None
        self.annotation: dict[str, Any] | None = None
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.data
        self.parser.EntityDeclHandler = self.entity
        self.parser.SkippedEntityHandler = self.skipped
        self.parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)

    @property
    def where(self) -> str:
        return f"{self.name}, line {self.parser.CurrentLineNumber}"

    def entity(self, name: str, *_: object) -> None:
        raise CorpusError(
            f"{self.where}: the XML declares an entity",
            found=repr(name[:80]),
            expected="no entities but &amp; &lt; &gt; &quot; &apos;",
            do="Remove the declaration: entities can be used for attacks.",
        )

    def skipped(self, name: str, *_: object) -> None:
        raise CorpusError(f"{self.where}: an entity that is not declared", found=repr(name[:80]))

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self.stack and tag != "collection":
            raise CorpusError(f"{self.where}", found=f"<{tag[:80]}>", expected="<collection>", do="Is this BioC XML?")
        self.stack.append(tag)
        if len(self.stack) > DEEPEST:
            raise CorpusError(f"{self.where}: more than {DEEPEST} elements within each other")
        if tag == "document":
            self.document = {"id": "", "parts": [], "annotations": [], "relations": 0}
            self.part = None
        elif self.document is None:
            return
        elif tag in ("passage", "sentence"):
            self.part = _Part(self.part if tag == "sentence" else None)
            self.document["parts"].append(self.part)
        elif tag in ("annotation", "relation"):
            self.annotation = {"id": attributes.get("id", ""), "infons": {}, "locations": [], "text": None}
            self.annotation["line"] = self.parser.CurrentLineNumber
        elif tag == "location" and self.annotation is not None:
            self.annotation["locations"].append((attributes.get("offset", ""), attributes.get("length", "")))
        if tag in _TEXTS:
            self.characters = []
            self.key = attributes.get("key", "")

    def data(self, text: str) -> None:
        if self.characters is not None:
            self.characters.append(text)

    def end(self, tag: str) -> None:
        self.stack.pop()
        if self.document is None:
            return
        if tag in _TEXTS and self.characters is not None:
            self.text(tag, "".join(self.characters))
            self.characters = None
        elif tag == "annotation":
            self.document["annotations"].append(self.annotation)
            self.annotation = None
        elif tag == "relation":
            self.document["relations"] += 1
            self.annotation = None
        elif tag in ("passage", "sentence") and self.part is not None:
            self.part = self.part.passage if tag == "sentence" else None
        elif tag == "document":
            try:
                self.done.append(self.built(self.document))
            except CorpusError as error:
                self.options.refuse(error)
            self.document = None

    def text(self, tag: str, value: str) -> None:
        holder: Any = self.annotation if self.annotation is not None else self.part
        if tag == "infon":
            infons = holder["infons"] if isinstance(holder, dict) else getattr(holder, "infons", {})
            infons[self.key] = value
        elif isinstance(holder, dict):
            if tag == "text":
                holder["text"] = value
        elif isinstance(holder, _Part):
            if tag in ("offset", "text"):
                setattr(holder, tag, value)
        elif tag == "id" and self.stack[-1] == "document" and self.document is not None:
            self.document["id"] = value.strip() if "\n" in value else value

    def built(self, found: dict[str, Any]) -> Document:
        what = f"{self.where}: document {found['id']!r}"
        text, passages = _joined(found["parts"], self.options, what)
        annotations = []
        for item in found["annotations"] if self.options.mentions else ():
            annotations.append(_annotation(item, what))
        if found["relations"] and self.options.mentions:
            notice(f"{what}: {found['relations']} relations are left out")
        return assemble(self.name, found["id"], text, annotations, self.options, passages=passages)


def read(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Document]:
    """Yield the documents of a BioC XML file, one at a time.

    An annotation's concept is its infon ``identifier`` (or ``HPO``, ``MESH``). An annotation of several locations
    covers them all, with a notice. Relations are left out, with a notice.

    Raises
    ------
    CorpusError
        If the file is not well-formed, is cut off, declares entities, has offsets that overlap, or an annotation does
        not fit the text.
    """
    handler = _Handler(name, options)
    final, consumed = False, 0
    while not final:
        chunk = stream.read(CHUNK)
        final = not chunk
        try:
            handler.parser.Parse(chunk, final)
        except (expat.ExpatError, LookupError, ValueError) as error:
            yield from handler.done
            raise CorpusError(f"{name} is not well-formed XML", found=error, expected="BioC XML") from error
        except CorpusError:
            yield from handler.done
            raise
        yield from handler.done
        handler.done.clear()
        consumed += len(chunk)
        if consumed - handler.parser.CurrentByteIndex > LONGEST_TOKEN:
            raise CorpusError(f"{handler.where}: a tag or comment of more than {LONGEST_TOKEN:,} bytes")


def _number(value: str | None, what: str) -> int:
    if value is None or not re.fullmatch(r"\s*[0-9]{1,12}\s*", value):
        raise CorpusError(what, found=repr(value)[:80], expected="a whole number >= 0")
    return int(value)


def _joined(parts: list[_Part], options: ReadOptions, what: str) -> tuple[str, list[Passage]]:
    """The text of all passages, each at its offset, and those passages that say their type."""
    pieces: list[str] = []
    passages: list[Passage] = []
    last: _Part | None = None
    points, units, gaps = 0, 0, 0
    for number, part in enumerate(parts, 1):
        whole = part.passage
        if part.text is None or (part is not whole and whole.text is not None):
            continue  # a passage whose text is in its sentences, or a sentence whose text is in its passage
        offset = _number(part.offset, f"{what}: offset of passage {number}")
        gap = offset - units
        if gap < 0:
            raise CorpusError(
                f"{what}: passage {number} overlaps the one before it",
                found=f"offset {offset}",
                expected=f">= {units}",
                do="Offsets are of the document. If they count bytes or UTF-16 units, read with that offset_unit.",
            )
        gaps += gap
        if gaps > WIDEST_GAP:
            raise CorpusError(f"{what}: offset of passage {number}", found=offset, expected=f"about {units}")
        if gap:
            pieces.append("\n" + " " * (gap - 1))
        start = points + gap
        pieces.append(part.text)
        points = start + len(part.text)
        units = offset + OffsetMap(part.text, options.unit).from_code_points(len(part.text))
        if "type" in whole.infons:
            if last is whole:
                start = passages.pop().start
            passages.append(Passage(whole.infons["type"], start, points))
        last = whole
    return "".join(pieces), passages


def _annotation(item: dict[str, Any], what: str) -> Annotation:
    infons = dict(item["infons"])
    where = f"line {item['line']}, annotation {item['id']!r}"
    spans = sorted(
        (_number(offset, f"{what}: offset of {where}"), _number(length, f"{what}: length of {where}"))
        for offset, length in item["locations"]
    )
    if not spans:
        raise CorpusError(f"{what}: {where} has no location")
    start, end = spans[0][0], max(offset + length for offset, length in spans)
    fields: dict[str, Any] = {"kind": infons.get("type", ""), "source": infons.get("source", "gold")}
    fields["name"] = infons.get("name", "")
    for flag in _FLAGS:
        fields[flag] = infons.get(flag, "false").strip().lower() in ("true", "1")
    if "score" in infons:
        try:
            fields["score"] = float(infons["score"])
        except ValueError:
            raise CorpusError(f"{what}: score of {where}", found=repr(infons["score"]), expected="a number") from None
    concept = next((infons[key] for key in _IDS if key in infons), "")
    text = item["text"]
    if len(spans) > 1:
        text = None
        notice(f"{what}: {where} has {len(spans)} locations; the mention covers [{start}, {end}]")
    return Annotation(start, end, text, concept, fields, where)


def render(document: Document, options: WriteOptions) -> str:
    """A document as a ``<document>`` element.

    XML has no place for control characters other than tab and line ends: each is written as U+FFFD, so that offsets
    stay. Passages that overlap are left out, with a notice.
    """
    check_document(document)
    out = [f"<document><id>{_text(document.id)}</id>"]
    mentions = list(enumerate(document.mentions))
    for kind, start, end in _tiling(document):
        inside = [pair for pair in mentions if start <= pair[1].start and (pair[1].end <= end)]
        mentions = [pair for pair in mentions if pair not in inside] if inside else mentions
        out.append("<passage>" + (f'<infon key="type">{_text(kind)}</infon>' if kind is not None else ""))
        out.append(f"<offset>{start}</offset><text>{_text(document.text[start:end])}</text>")
        out.extend(_element(number, mention) for number, mention in inside)
        out.append("</passage>")
    out.extend(_element(number, mention) for number, mention in mentions)
    return "".join(out) + "</document>\n"


def _tiling(document: Document) -> Iterator[tuple[str | None, int, int]]:
    """Passages and what lies between them, in order, without what the reader puts there by itself."""
    text, at = document.text, 0
    passages = sorted(document.passages, key=lambda passage: (passage.start, passage.end))
    if any(first.end > second.start for first, second in pairwise(passages)):
        notice(f"document {document.id!r}: its passages overlap, which BioC cannot say; they are left out")
        passages = []
    for passage in passages:
        gap = text[at : passage.start]
        if gap and (len(gap) > 80 or gap != "\n" + " " * (len(gap) - 1)):
            yield None, at, passage.start
        yield passage.kind, passage.start, passage.end
        at = passage.end
    if at < len(text) or not passages:
        yield None, at, len(text)


def _element(number: int, mention: Mention) -> str:
    infons = {"type": mention.kind, "identifier": mention.concept_id, "name": mention.name, "source": mention.source}
    infons["score"] = repr(float(mention.score))
    infons.update({flag: "true" for flag in _FLAGS if getattr(mention, flag)})
    inner = "".join(f'<infon key="{key}">{_text(value)}</infon>' for key, value in infons.items())
    place = f'<location offset="{mention.start}" length="{mention.end - mention.start}"/>'
    return f'<annotation id="{number}">{inner}{place}<text>{_text(mention.text)}</text></annotation>'


def _text(value: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", value), {"\r": "&#13;"})
