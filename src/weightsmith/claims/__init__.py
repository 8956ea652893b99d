"""One file per paper: the experiment that shows its headline claim against its baselines and controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["stored"]

FOLDERS = (Path(__file__).parent / "stored", Path(__file__).parents[3] / "docs" / "claims")
"""Where measured claims lie: in an installed package, and in a source tree."""


def stored(slug: str) -> list[dict[str, Any]]:
    """Return the measured claims of a method as they were stored, one an experiment; empty when there are none.

    Examples
    --------
    >>> stored("no such method")
    []
    """
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    if folder is None:
        return []
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{slug}*.json"))]
    return [claim for claim in found if claim["slug"] == slug]
