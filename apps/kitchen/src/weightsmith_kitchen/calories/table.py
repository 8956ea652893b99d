"""The table: kcal in one unit of an ingredient, by keys such as "cup rice"."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith_kitchen.calories.grammar import split_unit
from weightsmith_kitchen.errors import NutritionError

__all__ = ["CalorieTable", "Inconsistency"]

RATIOS = (("cup", "tablespoon", 16.0), ("tablespoon", "teaspoon", 3.0))


@dataclass(frozen=True, slots=True)
class Inconsistency:
    """Two rows of one ingredient that contradict the definition of their units.

    Attributes
    ----------
    ingredient : str
    larger, smaller : str
        The units.
    found, expected : float
        Ratio of the kcal of the two rows, and of the units.
    """

    ingredient: str
    larger: str
    smaller: str
    found: float
    expected: float

    def __str__(self) -> str:
        return f"{self.ingredient}: {self.larger}/{self.smaller} is {self.found:.4g}, expected {self.expected:g}"


@dataclass(frozen=True)
class CalorieTable:
    """Energy of ingredients per unit.

    Attributes
    ----------
    rows : dict
        From (unit, ingredient) to kcal per one unit. Units by their singular names, ingredients in lower case.
    keys : dict
        From (unit, ingredient) to the key as written.

    Examples
    --------
    >>> table = CalorieTable.from_rows([("cup rice", 205), ("tbsp butter", 102)])
    >>> table.rows
    {('cup', 'rice'): 205.0, ('tablespoon', 'butter'): 102.0}
    >>> CalorieTable.from_rows([("cup oil", 1920), ("tablespoon oil", 200)]).inconsistencies()[0].found
    9.6
    """

    rows: Mapping[tuple[str, str], float]
    keys: Mapping[tuple[str, str], str]

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, float]]) -> CalorieTable:
        """Make a table of pairs of key and kcal.

        Raises
        ------
        NutritionError
            If there is no row, a key has no unit or no ingredient, two keys mean the same, or an energy is no finite
            number >= 0. Every such row is named.
        """
        found: dict[tuple[str, str], float] = {}
        keys: dict[tuple[str, str], str] = {}
        problems: list[str] = []
        for key, kcal in rows:
            unit, rest = split_unit(key) if isinstance(key, str) else ("", "")
            place = unit, " ".join(rest.lower().split())
            if not unit or not place[1]:
                problems.append(f"{key!r} has no {'ingredient' if unit else 'unit'}")
            elif place in found:
                problems.append(f"{key!r} is a duplicate of {keys[place]!r}")
            elif isinstance(kcal, bool) or not isinstance(kcal, (int, float)) or not 0 <= kcal < math.inf:
                problems.append(f"{key!r} has {kcal!r} kcal")
            else:
                found[place], keys[place] = float(kcal), key
        if problems:
            shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
            raise NutritionError(
                "table of calories",
                found=shown,
                expected="keys '<unit> <ingredient>', each once, with a finite number of kcal >= 0",
                do="Correct or remove these rows.",
            )
        if not found:
            raise NutritionError("table of calories", found="no row", expected="at least one")
        return cls(found, keys)

    @classmethod
    def from_json(cls, path: str | Path, *, column: str = "nrg") -> CalorieTable:
        """Read a JSON object from key to kcal, or to an object that has the kcal in a column.

        Parameters
        ----------
        path : str or Path
            The file.
        column : str, default: "nrg"
            Where the kcal are. The other columns of the released table contradict themselves.

        Raises
        ------
        NutritionError
            If the file cannot be read, is no such object, a column is missing, or a row is wrong (`from_rows`).
        """
        path = Path(path)
        try:
            pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
        except (OSError, ValueError, RecursionError) as error:
            raise NutritionError(f"table {path}", found=error, expected="a JSON file") from None
        if not isinstance(pairs, _Pairs):
            raise NutritionError(f"table {path}", found=type(pairs).__name__, expected="an object from key to kcal")
        rows: list[tuple[str, float]] = []
        for key, value in pairs:
            if isinstance(value, _Pairs):
                fields = dict(value)
                if column not in fields:
                    raise NutritionError(
                        f"table {path}, row {key!r}", found=", ".join(fields), expected=f"a column {column!r}"
                    )
                value = fields[column]
            rows.append((key, value))
        return cls.from_rows(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ingredients(self) -> tuple[str, ...]:
        """The ingredients, each once, in the order of the table."""
        return tuple(dict.fromkeys(name for _, name in self.rows))

    def inconsistencies(self, *, tolerance: float = 1 / 32) -> list[Inconsistency]:
        """Rows whose ratio of cup to tablespoon is not 16, or of tablespoon to teaspoon not 3.

        Parameters
        ----------
        tolerance : float, default: 1/32
            Relative; 16 +- 0.5.

        Returns
        -------
        list of Inconsistency
            Two rows of 0 kcal agree; if only the smaller one is 0 the ratio is infinite.
        """
        found = []
        for larger, smaller, expected in RATIOS:
            for (unit, name), kcal in self.rows.items():
                other = self.rows.get((smaller, name))
                if unit != larger or other is None or kcal == other == 0:
                    continue
                ratio = kcal / other if other else math.inf
                if abs(ratio - expected) > tolerance * expected:
                    found.append(Inconsistency(name, larger, smaller, ratio, expected))
        return found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its duplicates."""
