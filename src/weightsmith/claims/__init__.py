"""One file per paper: the experiment that shows its headline claim against its baselines and controls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["paper_verdict", "stored", "verdict"]

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
    """Say of how many of a method's experiments what we declared held.

    Examples
    --------
    >>> verdict([]), verdict([{"holds": True}]), verdict([{"holds": True}, {"holds": False}])
    ('not measured', 'held', '1 of 2 held')
    """
    if not measured:
        return "not measured"
    holding = sum(bool(claim["holds"]) for claim in measured)
    if 0 < holding < len(measured):
        return f"{holding} of {len(measured)} held"
    return "held" if holding else "not held"


def paper_verdict(measured: Sequence[Mapping[str, Any]]) -> str:
    """Say what a method's experiments found of its paper's claim, at this scale.

    Examples
    --------
    >>> paper_verdict([{"paper_verdict": "confirmed"}, {"paper_verdict": None}])
    'confirmed'
    >>> paper_verdict([{"paper_verdict": "confirmed"}, {"paper_verdict": "tie"}, {"paper_verdict": "confirmed"}])
    '2 confirmed, 1 tie'
    >>> paper_verdict([{"paper_verdict": None}])
    'not tested'
    """
    found = [claim["paper_verdict"] for claim in measured if claim.get("paper_verdict")]
    counts = {kind: found.count(kind) for kind in ("confirmed", "tie", "not confirmed") if kind in found}
    if len(counts) == 1:
        return found[0]
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "not tested"
