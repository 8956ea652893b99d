"""Where recipes come from: files, lines of a file of JSON lines, and standard input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from weightsmith_kitchen.errors import RecipeError

__all__ = ["JSON_LINES", "STDIN", "Piece", "Source", "read_text", "texts_of"]

STDIN = Path("/dev/stdin")
JSON_LINES = (".jsonl", ".ndjson")
MOST_BYTES = 8 << 20
"""Size of a recipe that is read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that is no file of its own: a line of a file, or standard input.

    Attributes
    ----------
    name : str
        Where it stands: ``"parsed.jsonl, line 3"``.
    raw : bytes
        Its bytes.
    """

    name: str
    raw: bytes

    def __str__(self) -> str:
        return self.name


Source = Path | Piece


def texts_of(paths: Iterable[Path]) -> list[Source]:
    """Files to read, with each line of JSON lines, and standard input, as a piece of its own.

    JSON lines are what ``.jsonl`` and ``.ndjson`` hold, and a ``.json`` file or standard input whose first line is an
    object that other lines follow. Of these, empty lines are passed over. A file that cannot be opened is left as it
    is: reading it says why.
    """
    found: list[Source] = []
    for path in paths:
        if path != STDIN and path.suffix.lower() not in (*JSON_LINES, ".json"):
            found.append(path)
            continue
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError:
            found.append(path)
            continue
        told = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if path.suffix.lower() in JSON_LINES or (len(told) > 1 and _is_object(told[0][1])):
            found += [Piece(f"{path}, line {number}", line) for number, line in told]
        else:
            found.append(Piece(str(path), b"".join(lines)) if path == STDIN else path)
    return found


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_text(source: Source) -> str:
    """The text of a file or a piece.

    Raises
    ------
    RecipeError
        If it is not UTF-8, or too large for a recipe.
    """
    if isinstance(source, Piece):
        raw = source.raw
    else:
        with source.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise RecipeError(f"{source}", found=f"more than {MOST_BYTES:,} bytes", expected="a recipe")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError(f"{source}", found="UTF-16", expected="UTF-8", do="Save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{source}", found=f"byte {error.start} is not UTF-8", do="Save it as UTF-8.") from None
