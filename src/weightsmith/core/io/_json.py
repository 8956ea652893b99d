"""JSON that others wrote: an object, or an error that names it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from weightsmith.core.errors import CheckpointError

__all__ = ["parse_json", "read_json"]


def parse_json(text: str, what: str) -> dict[str, Any]:
    """Return the object that a text spells.

    Parameters
    ----------
    text : str
        JSON.
    what : str
        What the text is called in errors.

    Raises
    ------
    CheckpointError
        If it is no JSON, or no object.

    Examples
    --------
    >>> parse_json('{"layers": 2}', "plan")
    {'layers': 2}
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is damaged", found=error, do="Copy it again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{what} is damaged", found=text, expected="an object", do="Copy it again.")
    return found


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the object in a file.

    Raises
    ------
    CheckpointError
        If it is missing, cannot be read, is no JSON, or no object.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}", found=error) from error
    return parse_json(text, str(path))
