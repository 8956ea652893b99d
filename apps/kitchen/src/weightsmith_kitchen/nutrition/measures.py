"""What a cup, a spoon and a piece of common foods weigh, with a source per row.

The source is that of the weight. Where it gives no spread, the bounds are about 30 % to either side.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from weightsmith_kitchen.foods import Estimate, Portion
from weightsmith_kitchen.nutrition.ranking import Name, rewritten, stems
from weightsmith_kitchen.units import UNITS

__all__ = ["find", "rows"]


@cache
def rows() -> tuple[tuple[str, Name, Portion], ...]:
    """All rows: a name, as it is compared, and one measure. Without a size the bounds span sizes and cuts."""
    made = []
    with (Path(__file__).with_name("measures.csv")).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            unit = UNITS[row["unit"]]
            per = 1.0 if unit.factor is None else float(unit.factor)
            weight = Estimate(*(float(row[name]) / per for name in ("grams", "low", "high")))
            named = unit.name if unit.factor is None else "milliliter"
            portion = Portion(named, weight, row["source"], row["size"])
            made.append((row["food"], stems(rewritten(row["food"])), portion))
    return tuple(made)


def find(name: str, size: str | None = None) -> tuple[Portion, ...]:
    """The measures of the food that shares most words with a name, none that is only a part of another food's.

    Parameters
    ----------
    name : str
        As a cook writes it.
    size : str, optional
        Such as ``"large"``, or ``"1 inch"`` for the weight of a piece per inch; a usual one where no row has it.

    Examples
    --------
    >>> [(portion.unit, round(portion.grams.value * 236.588)) for portion in find("all-purpose flour")]
    [('milliliter', 125)]
    >>> [(portion.unit, portion.grams.value) for portion in find("eggs", "small")], find("onion soup")
    ([('piece', 38.0)], ())
    """
    query = stems(rewritten(name))
    wanted = (size or "").lower()
    best: tuple[int, int] | None = None
    found: dict[str, Portion] = {}
    for _, row, portion in rows():
        if query.last not in row.stems or not row.stems <= query.stems:
            continue
        rank = (len(row.stems), -len(query.stems - row.stems))
        if best is None or rank > best:
            best, found = rank, {}
        if rank == best and (portion.size == wanted or (not portion.size and portion.unit not in found)):
            found[portion.unit] = portion
    return tuple(found.values())
