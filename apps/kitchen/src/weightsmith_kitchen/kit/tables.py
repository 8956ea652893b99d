"""Rows of Markdown tables as lines of a recipe: the amount, its unit, the food; without energies and nutrients."""

from __future__ import annotations

import re
from collections.abc import Sequence

from weightsmith_kitchen.kit.prose import begins_with_amount
from weightsmith_kitchen.units import SIZES, find_unit

__all__ = ["without_tables"]

_NUTRIENT = re.compile(
    r"^(?:kcal|cal(?:orie)?s?|energy|kj|joules|protein|(?:total |saturated |trans )?fat|carb(?:ohydrate)?s?|sugars?"
    r"|fib(?:er|re)|sodium|salt|cholesterol|macros)\s*(?:[(\[/,].*|in \w+|kcal|kj|m?g)?$",
    re.IGNORECASE,
)
"""Heads of columns that hold what the food has, not how much of it there is."""
_AMOUNT = re.compile(
    r"^(?:amounts?|quantit(?:y|ies)|qty\.?|how (?:much|many)|numbers?|no\.?|measure(?:ment)?s?|weights?|counts?|#)\W*$",
    re.IGNORECASE,
)
_UNIT = re.compile(r"^(?:units?|uom|unit of measure(?:ment)?|sizes?)\W*$", re.IGNORECASE)
_NOTE = re.compile(r"^(?:notes?|prep(?:aration|\.)?|comments?|remarks?|how|details?)\W*$", re.IGNORECASE)
_NOTHING = re.compile(r"^(?:\W*|n/?a|none)$", re.IGNORECASE)
"""What a cell without a value holds."""
_ENERGY = re.compile(r"^\W*[\d.,]+\s*(?:kcal|kj|cal(?:orie)?s?)\b\W*$", re.IGNORECASE)
_TOTAL = re.compile(r"^\W*(?:total|sum|all)\W*$", re.IGNORECASE)
_RULE = re.compile(r"\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?|\|\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
"""The line of a table between its head and its rows."""


def without_tables(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines with rows of Markdown tables as lines; heads of tables are empty lines.

    Columns of energies and nutrients are left out, and named in the notes that are returned beside the lines.

    Examples
    --------
    >>> table = ["| food | amount | unit |", "|---|---|---|", "| onions | 2 | medium |", "| salt | | pinch |"]
    >>> without_tables(table)
    (['', '', '2 medium onions', 'pinch salt'], [])
    """
    made: list[str] = []
    left_out: dict[str, None] = {}
    heads: list[str] = []
    for number, line in enumerate(lines):
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if "|" not in line:
            heads = []
            made.append("" if _RULE.fullmatch(line) else line)
            continue
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        if _RULE.fullmatch(after):
            heads = cells
            left_out |= dict.fromkeys(
                f"column {cell!r} of a table: left out" for cell in cells if _NUTRIENT.match(cell)
            )
        if _RULE.fullmatch(line) or _RULE.fullmatch(after):
            made.append("")
            continue
        made.append(_row(cells, heads, left_out))
    return made, list(left_out)


def _row(cells: Sequence[str], heads: Sequence[str], left_out: dict[str, None]) -> str:
    """The line that a row stands for; what is not in it is added to ``left_out``."""
    named = [(cell, heads[place] if place < len(heads) else "") for place, cell in enumerate(cells)]
    kept = [(cell, head) for cell, head in named if not _NOTHING.match(cell) and not _NUTRIENT.match(head)]
    energies = [cell for cell, _ in kept if _ENERGY.match(cell)] if len(kept) > 1 else []
    left_out |= dict.fromkeys(f"{cell} in a table: left out" for cell in energies)
    kept = [(cell, head) for cell, head in kept if cell not in energies]
    fewer = energies or any(_NUTRIENT.match(head) for head in heads)
    if fewer and len(kept) == 1 and _TOTAL.match(kept[0][0]):
        left_out[f"row {kept[0][0]!r} of a table: left out"] = None
        return ""
    ranks = _ranks(kept, any(map(_AMOUNT.match, heads)))
    ordered = [kept[place][0] for place in sorted(range(len(kept)), key=lambda place: (ranks[place], place))]
    notes = sum(rank == NOTE for rank in ranks)
    line = " ".join(ordered[: len(ordered) - notes])
    return ", ".join([line, *ordered[len(ordered) - notes :]] if notes else [line])


AMOUNT, UNIT, FOOD, AFTER, NOTE = range(5)
"""What a cell holds, in the order of a line; "to taste" in a column of amounts comes after the food."""


def _ranks(cells: Sequence[tuple[str, str]], headed: bool) -> list[int]:
    """What each cell holds, by the heads where they tell the amounts, else by the cells themselves."""
    ranks = []
    for cell, head in cells:
        if headed and _AMOUNT.match(head):
            ranks.append(AMOUNT if begins_with_amount(cell) else AFTER)
        elif not headed and begins_with_amount(cell):
            ranks.append(AMOUNT)
        elif _UNIT.match(head) or (not head and (find_unit(cell) is not None or cell.lower() in SIZES)):
            ranks.append(UNIT)
        else:
            ranks.append(NOTE if _NOTE.match(head) else FOOD)
    return ranks if FOOD in ranks else [rank if rank == AMOUNT else FOOD for rank in ranks]
