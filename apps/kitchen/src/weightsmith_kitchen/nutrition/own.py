"""A user's own table of foods, from CSV."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from weightsmith_kitchen.errors import NutritionError
from weightsmith_kitchen.foods import Estimate, Food, Portion
from weightsmith_kitchen.nutrition import usda
from weightsmith_kitchen.nutrition.checks import KILOJOULE, energy_notes
from weightsmith_kitchen.units import find_unit

__all__ = ["read_csv"]


def read_csv(path: Path) -> Iterator[Food]:
    """Rows of a user's table; see `NutritionTable.with_csv`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)  # a quote that is not closed is an error
            columns = reader.fieldnames or []
            if "name" not in columns or not {"kcal", "kj"} & set(columns):
                raise NutritionError(
                    f"{path}", found=f"the columns {', '.join(columns) or 'none'}", expected="name, and kcal or kj"
                )
            if doubled := [column for column, count in Counter(columns).items() if count > 1]:
                raise NutritionError(f"{path}", found=f"two columns {doubled[0]!r}", do="Leave one.")
            lines: dict[str, int] = {}
            for line, row in enumerate(reader, 2):
                if any(row.pop(None, ())):
                    raise NutritionError(f"{path}, line {line}", found="more fields than columns", do="Quote commas.")
                food = _own_food(path, line, row)
                if lines.setdefault(food.name.casefold(), line) != line:
                    found = f"{food.name!r} again, after line {lines[food.name.casefold()]}"
                    raise NutritionError(f"{path}, line {line}", found=found, do="Leave one, or name them apart.")
                yield food
    except UnicodeDecodeError as error:
        raise NutritionError(f"{path}", found=f"byte {error.start} is not UTF-8", do="Save it as UTF-8.") from None
    except (OSError, csv.Error) as error:
        raise NutritionError(f"{path} cannot be read", found=error) from None


def _own_food(path: Path, line: int, row: dict[str, str | None]) -> Food:
    def number(column: str) -> float | None:
        text = (row.get(column) or "").strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise NutritionError(
                f"{path}, line {line}, {column}", found=repr(text), expected="a number >= 0, or nothing"
            )
        return value

    name = (row.get("name") or "").strip()
    if not name:
        raise NutritionError(f"{path}, line {line}, name", found="nothing", expected="the name of a food")
    kcal, kilojoules = number("kcal"), number("kj")
    nutrients = {column: value for column in usda.NUTRIENTS if (value := number(column)) is not None}
    computed = usda.from_macronutrients(*(nutrients.get(part) for part in ("protein_g", "fat_g", "carbohydrate_g")))
    notes = energy_notes(kcal, computed, kilojoules)
    if kcal is None and kilojoules is not None:
        kcal = kilojoules / KILOJOULE
    portions = []
    for column in row:
        if column and column.startswith("grams_per_"):
            unit = find_unit(column.removeprefix("grams_per_").replace("_", " "))
            if unit is None or unit.kind == "mass":
                found = None if unit is None else "a unit of weight, which weighs the same of any food"
                expected = "grams_per_ and a unit, such as grams_per_cup"
                raise NutritionError(f"{path}, column {column}", found=found, expected=expected)
            weight = number(column)
            if weight:
                per = 1.0 if unit.factor is None else float(unit.factor)
                named = "milliliter" if unit.factor is not None else unit.name
                source = f"{path.name}, line {line}"
                portions.append(Portion(named, Estimate(weight / per, weight / per, weight / per), source))
    return Food(
        f"own:{path.name}:{line}",
        name,
        kcal,
        f"{path.name}, line {line}",
        (row.get("category") or "").strip(),
        nutrients,
        tuple(portions),
        notes,
    )
