"""brat standoff: a text in ``id.txt``, its annotations in ``id.ann``.

Offsets count the code points of the text as stored, line ends and byte order mark included. A span with a line break or
tab within it is written as fragments (``0 3;6 9``), since the annotation's line must not hold one. The concept stands
in an ``N`` line, what the text says of it in ``A`` lines (``Negated``, ``Family``, ``Uncertain``), score and source in
a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from weightsmith_phenotype.document import Document, Mention
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats._common import (
    Annotation,
    Line,
    OffsetMap,
    ReadOptions,
    WriteOptions,
    assemble,
    check_document,
    decoded,
    file_name,
    lines,
    notice,
    opened,
)

__all__ = ["files", "read_path"]

_BREAK = re.compile(r"\s*[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]\s*")
_SPANS = re.compile(r"(\S+) ([0-9]{1,12} [0-9]{1,12}(?:;[0-9]{1,12} [0-9]{1,12})*)")
_NOTE = re.compile(r"score=(\S+) source=(\S*)")
_FLAGS = {"Negated": "negated", "Family": "family", "Uncertain": "uncertain"}


@dataclass(slots=True)
class _Fragments(Annotation):
    """An annotation and the spans that it is made of."""

    spans: list[tuple[int, int]] = field(default_factory=list)


def read_path(path: Path, options: ReadOptions) -> Iterator[Document]:
    """Yield the documents of a folder, or the one of a pair of files of which either is named.

    Raises
    ------
    CorpusError
        If a text is missing or not UTF-8, a line is not brat's, or an annotation does not fit the text as stored.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*.ann") if not file.name.startswith("."))
        if not found:
            raise CorpusError(f"{path} has no .ann files", expected="pairs of .txt and .ann files")
        for file in found:
            yield _document(file, file.relative_to(path).with_suffix("").as_posix(), options)
    else:
        yield _document(path.with_suffix(".ann"), options.default_id or path.stem, options)


def _document(path: Path, identifier: str, options: ReadOptions) -> Document:
    name = str(path)
    source = path.with_suffix(".txt")
    with opened(source) as stream:
        text = decoded(stream.read(), str(source), bom=True)
    if not options.mentions:
        return assemble(name, identifier, text, (), options)
    with opened(path) as stream:
        annotations = _annotations(lines(stream, name), name)
    try:
        return _built(name, identifier, text, annotations, options)
    except CorpusError as error:
        changed = text.replace("\r\n", "\n") if "\r\n" in text else text.replace("\n", "\r\n")
        try:
            _built(name, identifier, changed, annotations, options)
        except CorpusError:
            raise error from None
        was = "LF" if "\r\n" in text else "CRLF"
        raise CorpusError(
            f"{name}: the line ends of {source.name} have changed since it was annotated: {error}",
            do=f"Give {source.name} its {was} line ends back.",
        ) from error


def _built(name: str, identifier: str, text: str, found: list[_Fragments], options: ReadOptions) -> Document:
    """The document, once the text of mentions in several fragments has been compared fragment by fragment."""
    offsets = OffsetMap(text, options.unit)
    annotations: list[Annotation] = []
    for item in found:
        points = [(offsets.to_code_points(start), offsets.to_code_points(end)) for start, end in item.spans]
        there = " ".join(text[start:end] for start, end in points if start is not None and end is not None)
        if len(points) > 1 and there.split() == (item.text or "").split():
            item = replace(item, text=None)
            between = "".join(text[last:first] for (_, last), (first, _) in pairwise(points))
            if between.strip():
                notice(f"{name}, {item.where}: {len(points)} fragments; the mention covers what is between them too")
        annotations.append(item)
    return assemble(name, identifier, text, annotations, options)


def _annotations(numbered: Iterator[Line], name: str) -> list[_Fragments]:
    found: dict[str, _Fragments] = {}
    later: list[tuple[int, str, list[str]]] = []
    others = 0
    for number, line in ((item.number, item.checked()) for item in numbered):
        cells = line.split("\t")
        if not line.strip():
            continue
        if line[0] == "T":
            found[cells[0]] = _span(cells, f"{name}, line {number}")
            found[cells[0]].where = f"line {number}"
        elif line[0] in "NAM#" and len(cells) > 1:
            later.append((number, cells[0], cells))
        else:
            others += 1
    if others:
        notice(f"{name}: {others} lines of events and relations are left out")
    for number, key, cells in later:
        words = cells[1].split(" ")
        target = found.get(words[1]) if len(words) > 1 else None
        if target is not None:
            _add(target, key[0], words, cells, f"{name}, line {number}")
        elif key[0] == "N":
            raise CorpusError(f"{name}, line {number}", found=repr(cells[1][:80]), expected="'Reference T1 ID:NUMBER'")
    return list(found.values())


def _span(cells: list[str], where: str) -> _Fragments:
    match = _SPANS.fullmatch(cells[1]) if len(cells) == 3 else None
    if match is None:
        line = "\t".join(cells)
        raise CorpusError(where, found=repr(line[:80]), expected="'T1<tab>Type start end[;start end ...]<tab>text'")
    spans = sorted((int(start), int(end)) for start, end in (span.split(" ") for span in match[2].split(";")))
    start, end = spans[0][0], max(last for _, last in spans)
    return _Fragments(start, end, cells[2], "", {"source": "gold", "kind": match[1]}, spans=spans)


def _add(target: Annotation, kind: str, words: list[str], cells: list[str], where: str) -> None:
    if kind == "N":
        if target.concept_id:
            notice(f"{where}: a second concept, {words[-1]!r}, is left out; {target.concept_id!r} is kept")
            return
        target.concept_id = words[2] if len(words) > 2 else ""
        target.fields["name"] = cells[2] if len(cells) > 2 else ""
    elif kind in "AM":
        if words[0] in _FLAGS and words[2:] in ([], ["true"]):
            target.fields[_FLAGS[words[0]]] = True
    else:
        match = _NOTE.fullmatch(cells[2]) if len(cells) > 2 else None
        if match:
            try:
                target.fields["score"] = float(match[1])
            except ValueError:
                return
            target.fields["source"] = match[2]


def files(document: Document, options: WriteOptions) -> dict[str, str]:
    """The two files of a document, by their names relative to the folder. Blanks in a kind or source are underscores.

    Raises
    ------
    CorpusError
        If the id cannot be a file's name, or a mention starts or ends with a line break or tab.
    """
    check_document(document)
    out: list[str] = []
    extras = 0
    for number, mention in enumerate(document.mentions, 1):
        spans, text = _fragments(document, mention)
        kind = re.sub(r"\s", "_", mention.kind) or "Phenotype"
        out.append(f"T{number}\t{kind} {';'.join(f'{start} {end}' for start, end in spans)}\t{text}")
        if mention.concept_id:
            if re.search(r"\s", mention.concept_id):
                raise CorpusError(
                    f"document {document.id!r}: concept {mention.concept_id!r} cannot stand in brat", found="a blank"
                )
            name = re.sub(r"\s", " ", mention.name)
            out.append(f"N{number}\tReference T{number} {mention.concept_id}\t{name}")
        for attribute, flag in _FLAGS.items():
            if getattr(mention, flag):
                extras += 1
                out.append(f"A{extras}\t{attribute} T{number}")
        if mention.source != "gold" or mention.score != 1:
            source = re.sub(r"\s", "_", mention.source)
            out.append(f"#{number}\tAnnotatorNotes T{number}\tscore={float(mention.score)!r} source={source}")
    return {
        file_name(document, ".txt"): document.text,
        file_name(document, ".ann"): "".join(f"{line}\n" for line in out),
    }


def _fragments(document: Document, mention: Mention) -> tuple[list[tuple[int, int]], str]:
    spans, at = [], 0
    for gap in [*_BREAK.finditer(mention.text), None]:
        end = len(mention.text) if gap is None else gap.start()
        if end <= at:
            raise CorpusError(
                f"document {document.id!r}: mention [{mention.start}, {mention.end}] cannot stand in brat",
                found=repr(mention.text[:80]),
                expected="a text that does not start or end with a line break or tab",
            )
        spans.append((mention.start + at, mention.start + end))
        at = len(mention.text) if gap is None else gap.end()
    return spans, " ".join(document.text[start:end] for start, end in spans)
