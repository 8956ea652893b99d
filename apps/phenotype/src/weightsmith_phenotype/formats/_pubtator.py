"""PubTator: ``id|t|title``, ``id|a|abstract``, one line per annotation, and a blank line after each document.

The abstract starts at ``len(title) + 1``. A text of a document without a title and an abstract is split at its first
line break. The format cannot carry other line breaks: each carriage return and line feed is written as one blank, so
that offsets stay. Tabs within an annotated text are blanks in the annotation's line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from weightsmith_phenotype.document import Document, Passage
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats._common import (
    Annotation,
    Line,
    ReadOptions,
    WriteOptions,
    assemble,
    check_document,
    check_id,
    lines,
    notice,
    one_cell,
    one_line,
    stated,
)

__all__ = ["FIRST_LINE", "read", "render"]

FIRST_LINE = re.compile(r"([^|\t\s][^|\t]*)\|t\|")
_TEXT = re.compile(r"([^|\t]*)\|([ta])\|(.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,12}")
_SCORE = re.compile(r"[01]?\.?[0-9]+(?:e-[0-9]+)?")


class _Open:
    """The document that is being read."""

    def __init__(self, identifier: str) -> None:
        self.id = identifier
        self.parts: dict[str, str] = {}
        self.annotations: list[Annotation] = []
        self.others = 0

    def close(self, name: str, options: ReadOptions) -> Document:
        title, abstract = self.parts.get("t", ""), self.parts.get("a", "")
        if self.others:
            notice(f"{name}: document {self.id!r}: {self.others} lines of relations are left out")
        if not abstract and "t" in self.parts:
            passages = [Passage("title", 0, len(title))]
            return assemble(name, self.id, title, self.annotations, options, passages=passages)
        start = len(title) + 1
        passages = [Passage("title", 0, len(title)), Passage("abstract", start, start + len(abstract))]
        return assemble(name, self.id, f"{title}\n{abstract}", self.annotations, options, passages=passages)


def read(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Document]:
    """Yield the documents of a PubTator file, one at a time.

    Title and abstract are joined by a line break. A seventh column that is a number is the annotation's score. Lines of
    relations are left out, with a notice. After a document that cannot be read, reading goes on behind the next blank
    line or with the next title, if the options take reports.

    Raises
    ------
    CorpusError
        If a line is none of the format's, belongs to another document, or an annotation does not fit the text.
    """
    current: _Open | None = None
    bad: str | None = None  # id of the document that is skipped
    for line in lines(stream, name):
        text = _TEXT.match(line.text)
        if current is not None and (line.blank or (text and text[1] != current.id)):
            yield from _closed(current, name, options)
            current = None
        if line.blank:
            bad = None
        if line.blank or (bad is not None and not (text and text[2] == "t" and text[1] != bad)):
            continue
        bad = None
        try:
            current = _line(current, line, name, options)
        except CorpusError as error:
            options.refuse(error)
            bad, current = current.id if current is not None else text[1] if text else "", None
    if current is not None:
        yield from _closed(current, name, options)


def _closed(current: _Open, name: str, options: ReadOptions) -> Iterator[Document]:
    try:
        document = current.close(name, options)
    except CorpusError as error:
        options.refuse(error)
        return
    yield document


def _line(current: _Open | None, line: Line, name: str, options: ReadOptions) -> _Open:
    """The document that a line belongs to, with what the line says of it."""
    text = _TEXT.match(line.checked())
    if text:
        identifier, part = text[1], text[2]
        current = current or _Open(identifier)
        if part in current.parts or current.id != identifier:
            found = f"has two lines |{part}|" if current.id == identifier else f"begins within {current.id!r}"
            raise CorpusError(f"{name}, line {line.number}: document {identifier!r} {found}")
        current.parts[part] = text[3]
        return current
    if current is None:
        raise CorpusError(
            f"{name}, line {line.number}", found=repr(line.text[:80]), expected="the title of a document, 'id|t|title'"
        )
    _annotation(current, line.text, name, line.number, options)
    return current


def _annotation(current: _Open, line: str, name: str, number: int, options: ReadOptions) -> None:
    cells = line.split("\t")
    if cells[0] != current.id or len(cells) < 3:
        raise CorpusError(
            f"{name}, line {number}, in document {current.id!r}",
            found=repr(line[:80]),
            expected=f"an annotation of this document, '{current.id}<tab>start<tab>end<tab>text<tab>type<tab>id'",
            do="Separate documents by a blank line.",
        )
    if len(cells) < 5 or not (_NUMBER.fullmatch(cells[1]) and _NUMBER.fullmatch(cells[2])):
        if _NUMBER.fullmatch(cells[1]) or cells[1].startswith("-"):
            raise CorpusError(
                f"{name}, line {number}: an annotation of document {current.id!r}",
                found=repr(line[:80]),
                expected="start and end, both >= 0, then text, type and id, between tabs",
            )
        current.others += 1
        return
    fields: dict[str, object] = {"source": "gold", "kind": cells[4]}
    if len(cells) > 6:
        if _SCORE.fullmatch(cells[6]):
            fields["score"] = float(cells[6])
        elif options.mentions:
            notice(f"{name}, line {number}: column 7 is left out: {cells[6]!r}")
    concept = cells[5] if len(cells) > 5 else ""
    current.annotations.append(Annotation(int(cells[1]), int(cells[2]), cells[3], concept, fields, f"line {number}"))


def render(document: Document, options: WriteOptions) -> str:
    """Text of a document in the format, with the blank line after it.

    Mentions that are negated, of a relative or uncertain are left out unless ``include_negated`` is on. A score that
    is not 1 stands in a seventh column.

    Raises
    ------
    CorpusError
        If the id holds ``|``, a tab or a line break, or a mention ends in the line break that ends the document.
    """
    check_document(document)
    check_id(document, "|\t\r\n", "PubTator")
    title, abstract = _parts(document)
    out = [f"{document.id}|t|{one_line(title)}", f"{document.id}|a|{one_line(abstract)}"]
    longest = len(title) + 1 + len(abstract) if abstract else len(title)
    for mention in stated(document, options):
        if mention.end > longest:
            raise CorpusError(
                f"document {document.id!r}: mention [{mention.start}, {mention.end}] cannot stand in PubTator",
                found="a mention that ends with the line break that ends the text",
            )
        cells = [document.id, str(mention.start), str(mention.end), one_cell(mention.text), one_cell(mention.kind)]
        if mention.concept_id or mention.score != 1:
            cells.append(one_cell(mention.concept_id))
        if mention.score != 1:
            cells.append(f"{mention.score:.4f}")
        out.append("\t".join(cells))
    return "\n".join(out) + "\n\n"


def _parts(document: Document) -> tuple[str, str]:
    text, passages = document.text, document.passages
    if len(passages) == 1 and (passages[0].start, passages[0].end) == (0, len(text)):
        return text, ""
    if len(passages) == 2:
        first, second = passages
        if first.start == 0 and second.start == first.end + 1 and second.end == len(text):
            return text[: first.end], text[second.start :]
    title, _, abstract = text.partition("\n")
    return title, abstract
