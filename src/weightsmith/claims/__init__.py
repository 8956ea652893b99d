"""One file per paper: the experiment that shows its headline claim against its baselines and controls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["stored", "verdict"]

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


def verdict(measured: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdict of a method's experiments in words.

    Examples
    --------
    >>> verdict([]), verdict([{"holds": True}]), verdict([{"holds": True}, {"holds": False}])
    ('not measured', 'holds', '1 of 2 hold')
    """
    if not measured:
        return "not measured"
    holding = sum(bool(claim["holds"]) for claim in measured)
    if 0 < holding < len(measured):
        return f"{holding} of {len(measured)} hold"
    return "holds" if holding else "does not hold"
