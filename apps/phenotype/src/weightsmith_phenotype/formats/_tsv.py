"""The layout of PhenoTagger's gold corpora: id, text, ``start end text id`` lines, a blank line.

The format cannot carry line breaks: each carriage return and line feed is written as one blank, so that offsets stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from weightsmith_phenotype.document import Document
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
    one_cell,
    one_line,
    stated,
)

__all__ = ["read", "render"]

_ANNOTATION = re.compile(r"([0-9]{1,12})\t([0-9]{1,12})\t([^\t]*)\t([^\t]*)(?:\t([0-9]*\.?[0-9]+)[^\t]*)?(?:\t.*)?")


def read(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Document]:
    """Yield the documents of a file, one at a time. A fifth column is the score.

    After a document that cannot be read, reading goes on behind the next blank line, if the options take reports.

    Raises
    ------
    CorpusError
        If the file ends after an id, a line is no annotation, or an annotation does not fit the text.
    """
    numbered = lines(stream, name)
    following: list[Line] = []
    while block := following or list(islice(numbered, 1)):
        following = []
        if block[0].blank:
            continue
        if "\t" not in block[0].text:
            block += islice(numbered, 1)  # the text, which may be blank
        for line in numbered:
            if len(block) == 2 and block[1].blank and not line.blank and not _ANNOTATION.fullmatch(line.text):
                following = [line]  # the blank line ended a document that has no text
                del block[1:]
                break
            if line.blank:
                break
            block.append(line)
        try:
            document = _document(block, name, options)
        except CorpusError as error:
            options.refuse(error)
            continue
        yield document


def _document(block: list[Line], name: str, options: ReadOptions) -> Document:
    number, identifier = block[0].number, block[0].checked()
    if "\t" in identifier:
        raise CorpusError(
            f"{name}, line {number}", found=repr(identifier[:80]), expected="a document's id", do="See the layout."
        )
    if len(block) == 1:
        raise CorpusError(
            f"{name}: a document ends at line {number}", found=f"the id {identifier[:80]!r} without a text"
        )
    annotations = []
    for line in block[2:]:
        match = _ANNOTATION.fullmatch(line.checked())
        if match is None:
            raise CorpusError(
                f"{name}, line {line.number}, in document {identifier!r}",
                found=repr(line.text[:80]),
                expected="start, end, text and concept id between tabs, or a blank line",
            )
        fields: dict[str, object] = {"source": "gold"}
        if match[5]:
            fields["score"] = float(match[5])
        annotations.append(Annotation(int(match[1]), int(match[2]), match[3], match[4], fields, f"line {line.number}"))
    return assemble(name, identifier, block[1].checked(), annotations, options)


def render(document: Document, options: WriteOptions) -> str:
    """Text of a document in the format, with the blank line after it; a score that is not 1 stands in a fifth column.

    Mentions that are negated, of a relative or uncertain are left out unless ``include_negated`` is on.

    Raises
    ------
    CorpusError
        If the id holds a tab or a line break, or is blank.
    """
    check_document(document)
    check_id(document, "\t\r\n", "TSV")
    out = [document.id, one_line(document.text)]
    for mention in stated(document, options):
        cells = [str(mention.start), str(mention.end), one_cell(mention.text), one_cell(mention.concept_id)]
        if mention.score != 1:
            cells.append(f"{mention.score:.4f}")
        out.append("\t".join(cells))
    return "\n".join(out) + "\n\n"
