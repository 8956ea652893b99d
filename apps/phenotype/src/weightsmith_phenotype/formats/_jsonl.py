"""JSON lines: one object per document and line, with all that is known of each mention.

``{"id": ..., "text": ..., "mentions": [{"start": ..., "end": ..., "text": ..., "concept_id": ..., "name": ...,
"score": ..., "source": ..., "negated": ..., "family": ..., "uncertain": ..., "kind": ...}], "passages": [...]}``.
Offsets count code points unless a field ``offset_unit`` says ``"utf16"`` or ``"bytes"``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO, get_args

from weightsmith_phenotype.document import Document, Passage
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats._common import (
    Annotation,
    Line,
    OffsetMap,
    OffsetUnit,
    ReadOptions,
    WriteOptions,
    assemble,
    check_document,
    decoded,
    lines,
)

__all__ = ["as_object", "read", "render"]

# Python's and other readers' notions of a line differ on these; within JSON they may be escaped.
_OTHER_BREAKS = re.compile("[\x85\u2028\u2029]")
_ROWS = re.compile(rb"^\{", re.MULTILINE)
"""Another object begins at the start of a line: the file is one of lines, whatever its first line is."""
_KINDS: dict[str, tuple[type, ...]] = {
    "start": (int,),
    "end": (int,),
    "text": (str,),
    "concept_id": (str,),
    "name": (str,),
    "score": (int, float),
    "source": (str,),
    "negated": (bool,),
    "family": (bool,),
    "uncertain": (bool,),
    "kind": (str,),
}


def read(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Document]:
    """Yield the documents of a file, line by line.

    A file that is one array, or one object over several lines, is read whole. Only ``text`` must be there: a document
    without an id is called after the file and its number. Fields that are not ours are left out. A line that cannot be
    read does not stop the others, if the options take reports.

    Raises
    ------
    CorpusError
        If a line is no JSON, a field is of the wrong type, or a mention does not fit the text.
    """
    for number, (place, found) in enumerate(_objects(stream, name), 1):
        try:
            if isinstance(found, CorpusError):
                raise found
            document = _document(found, f"{name}{place}", f"{PurePath(name).stem}-{number}", options)
        except CorpusError as error:
            options.refuse(error)
            continue
        yield document


def _objects(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each object, or the error in its place."""
    first = True
    for line in lines(stream, name):
        if line.blank:
            continue
        if first and line.text.lstrip().startswith("["):
            found = _parsed(_whole(line, stream.read(), name), name)
            yield from ((f", item {place}", item) for place, item in enumerate(found, 1))
            return
        try:
            yield f", line {line.number}", _parsed(line.checked(), f"{name}, line {line.number}")
        except CorpusError as error:
            rest = stream.read() if first and line.fault is None and not line.text.rstrip().endswith("}") else b""
            if rest.strip() and not _ROWS.search(rest):
                yield "", _parsed(_whole(line, rest, name), name)
                return
            yield f", line {line.number}", error
            for other in lines(io.BytesIO(rest), name):
                if not other.blank:
                    place = f", line {line.number + other.number}"
                    try:
                        yield place, _parsed(other.checked(), f"{name}{place}")
                    except CorpusError as fault:
                        yield place, fault
        first = False


def _whole(line: Line, rest: bytes, name: str) -> str:
    return f"{line.checked()}\n{decoded(rest, name, first=False)}"


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{what} is not JSON", found=error, expected="an object with a field 'text'") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two fields {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _document(found: Any, what: str, default_id: str, options: ReadOptions) -> Document:
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        held = repr(sorted(found))[:80] if isinstance(found, dict) else repr(found)[:80]
        raise CorpusError(what, found=held, expected="an object with a field 'text' that is a string")
    identifier = found.get("id", default_id)
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
        raise CorpusError(f"{what}: id", found=repr(identifier)[:80], expected="a string")
    what = f"{what}: document {str(identifier)!r}"
    unit = found.get("offset_unit", options.offset_unit or "codepoints")
    if unit not in get_args(OffsetUnit):
        raise CorpusError(
            f"{what}: offset_unit", found=repr(unit)[:80], expected=f"one of {', '.join(get_args(OffsetUnit))}"
        )
    if options.offset_unit is not None and unit != options.offset_unit:
        raise CorpusError(f"{what}: offset_unit", found=repr(unit), expected=repr(options.offset_unit))
    text, annotations = found["text"], []
    offsets = OffsetMap(text, unit)
    passages = [_passage(item, offsets, len(text), what) for item in _list(found, "passages", what)]
    if options.mentions:
        for number, item in enumerate(_list(found, "mentions", what)):
            annotations.append(_annotation(item, f"{what}: mention {number}"))
    return assemble(what, str(identifier), text, annotations, options, passages=passages, unit=unit)


def _list(found: dict[str, Any], field: str, what: str) -> list[Any]:
    items = found.get(field, [])
    if not isinstance(items, list):
        raise CorpusError(f"{what}: {field}", found=repr(items)[:80], expected="a list")
    return items


def _checked(item: Any, name: str, kinds: tuple[type, ...], what: str) -> Any:
    value = item.get(name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise CorpusError(f"{what}: {name}", found=repr(value)[:80], expected=f"of type {kinds[-1].__name__}")
    return value


def _annotation(item: Any, what: str) -> Annotation:
    if not isinstance(item, dict):
        raise CorpusError(what, found=repr(item)[:80], expected="an object")
    values = {name: _checked(item, name, kinds, what) for name, kinds in _KINDS.items() if name in item}
    for name in ("start", "end", "concept_id"):
        _checked(item, name, _KINDS[name], what)
    if abs(values["start"]) > 10**12 or abs(values["end"]) > 10**12:
        raise CorpusError(what, found="an offset above 10^12")
    start, end, text, concept = (values.pop(name, None) for name in ("start", "end", "text", "concept_id"))
    values.setdefault("source", "gold")
    if "score" in values:
        values["score"] = float(values["score"])
    return Annotation(start, end, text, concept, values, what.rpartition(": ")[2])


def _passage(item: Any, offsets: OffsetMap, length: int, what: str) -> Passage:
    if not isinstance(item, dict):
        raise CorpusError(f"{what}: passage", found=repr(item)[:80], expected="an object with kind, start and end")
    kind, start, end = (
        _checked(item, name, kinds, f"{what}: passage")
        for name, kinds in (("kind", (str,)), ("start", (int,)), ("end", (int,)))
    )
    first, last = offsets.to_code_points(start), offsets.to_code_points(end)
    if first is None or last is None or not 0 <= first <= last <= length:
        raise CorpusError(f"{what}: passage {kind!r}", found=[start, end], expected="offsets of the text")
    return Passage(kind, first, last)


def as_object(document: Document, options: WriteOptions | None = None) -> dict[str, Any]:
    """The object that stands for a document.

    Examples
    --------
    >>> from weightsmith_phenotype import Mention
    >>> as_object(Document("7", "tall", (Mention(0, 4, "tall", "HP:0000098", "Tall stature"),)))["mentions"][0]["end"]
    4
    """
    unit = options.offset_unit if options else "codepoints"
    offsets = OffsetMap(document.text, unit)
    found: dict[str, Any] = {"id": document.id, "text": document.text}
    if unit != "codepoints":
        found["offset_unit"] = unit
    found["mentions"] = []
    for mention in document.mentions:
        item = {name: getattr(mention, name) for name in _KINDS}
        item["start"], item["end"] = (offsets.from_code_points(item[name]) for name in ("start", "end"))
        found["mentions"].append(item)
    if document.passages:
        found["passages"] = [
            {
                "kind": item.kind,
                "start": offsets.from_code_points(item.start),
                "end": offsets.from_code_points(item.end),
            }
            for item in document.passages
        ]
    return found


def render(document: Document, options: WriteOptions) -> str:
    """A document as one line of JSON.

    Raises
    ------
    CorpusError
        If a text has a lone surrogate or a score is not finite.
    """
    check_document(document)
    line = json.dumps(as_object(document, options), ensure_ascii=False, allow_nan=False)
    return _OTHER_BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"
