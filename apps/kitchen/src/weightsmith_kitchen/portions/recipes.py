"""Recipes with known units, portions and energies, as tensors."""

from __future__ import annotations

import csv
import difflib
import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith_kitchen.errors import RecipeError

__all__ = ["LabeledIngredient", "LabeledRecipe", "RecipeTable", "read_labeled"]

COLUMNS = ("recipe", "ingredient", "unit", "portion", "kcal")

OTHER = "other"
NOT_LEARNED = -100
"""Target of a unit that the table does not have, which cross-entropy leaves out."""


@dataclass(frozen=True, slots=True)
class LabeledIngredient:
    """An ingredient of a recipe to learn from.

    Attributes
    ----------
    name : str
        Its name, the same in all recipes.
    unit : str
        Its unit.
    portion : float or None
        How many units, above 0; None where the recipe does not say: the loss of portions leaves it out.
    kcal : float
        Energy of the portion.
    """

    name: str
    unit: str
    portion: float | None
    kcal: float


@dataclass(frozen=True, slots=True)
class LabeledRecipe:
    """A recipe to learn from."""

    ingredients: tuple[LabeledIngredient, ...]
    title: str = ""

    @property
    def kcal(self) -> float:
        """Energy of all ingredients."""
        return sum(item.kcal for item in self.ingredients)


@dataclass(slots=True)
class RecipeTable:
    """The vocabulary of recipes, and the scales of their portions and energies.

    Attributes
    ----------
    ingredients, units : list of str
        Vocabulary. A unit seen fewer than ten times becomes "other".
    slots : int
        Most ingredients of a recipe that are read; of more, those with the highest energy are kept.
    portion_scale : dict of str to float
        Standard deviation of the portions of each unit: what portions are divided by.
    kcal_scale : float
        Standard deviation of the ingredients' energies.
    """

    ingredients: list[str]
    units: list[str]
    slots: int
    portion_scale: dict[str, float]
    kcal_scale: float
    unit_counts: list[int] = field(default_factory=list)

    @classmethod
    def learn(cls, recipes: Sequence[LabeledRecipe], *, slots: int = 10, fewest: int = 10) -> RecipeTable:
        """Make the table from the recipes to train on.

        Raises
        ------
        RecipeError
            If a recipe has no ingredient, a portion that is not above 0, an energy below 0, or a number that is not
            finite; it names the recipe. If there is no slot.
        """
        if not recipes:
            raise RecipeError("recipes", found="none", expected="at least one")
        if slots < 1:
            raise RecipeError("slots", found=slots, expected=">= 1")
        _check_targets(recipes)
        items = [item for recipe in recipes for item in recipe.ingredients]
        counts = Counter(item.unit for item in items)
        units = [unit for unit, count in counts.most_common() if count >= fewest]
        if len(units) < len(counts):
            units.append(OTHER)
        portions: dict[str, list[float]] = {unit: [] for unit in units}
        for item in items:
            if item.portion is not None:
                portions[item.unit if item.unit in portions else OTHER].append(item.portion)
        per_unit = Counter(item.unit if item.unit in portions else OTHER for item in items)
        return cls(
            ingredients=sorted({item.name for item in items}),
            units=units,
            slots=slots,
            portion_scale={unit: _spread(found) for unit, found in portions.items()},
            kcal_scale=_spread([item.kcal for item in items]),
            unit_counts=[per_unit[unit] for unit in units],
        )

    def check(self, recipes: Sequence[LabeledRecipe]) -> None:
        """Refuse recipes that the table cannot make targets of.

        Raises
        ------
        RecipeError
            As in `learn`, or if the unit of an ingredient is not in the table.
        """
        _check_targets(recipes)
        unknown = Counter(item.unit for recipe in recipes for item in recipe.ingredients if self._unit(item.unit) < 0)
        if unknown:
            raise RecipeError(
                "units that the table was not learned from",
                found=", ".join(f"{unit} ({count})" for unit, count in unknown.most_common()),
                expected=", ".join(self.units),
                do="Convert the portions, or learn the table from these recipes too.",
            )

    def number(self, name: str) -> int:
        """Number of an ingredient, from 1.

        Raises
        ------
        RecipeError
            If it is not in the vocabulary; it names the nearest.
        """
        try:
            return self.ingredients.index(name) + 1
        except ValueError:
            near = difflib.get_close_matches(name, self.ingredients, n=3)
            raise RecipeError(
                f"ingredient {name!r} was in no recipe that was learned from",
                do=f"Consider {', '.join(near)}." if near else None,
            ) from None

    def encode(self, names: Sequence[str]) -> Tensor:
        """Numbers of the ingredients, as a batch of one."""
        if not names:
            raise RecipeError("recipe", found="no ingredient", expected="at least one")
        return torch.tensor([[self.number(name) for name in names]])

    def samples(
        self, recipes: Sequence[LabeledRecipe], photos: Sequence[Tensor] | None = None
    ) -> list[dict[str, Tensor]]:
        """One sample per recipe, padded to ``slots``, in the network's scale. Unknown ingredients are left out.

        With photos, one per recipe, each sample has its own as ``image``. A unit that the table does not have is -100,
        which the loss leaves out, and its portion NaN. A warning counts the ingredients that no slot is left for.

        Raises
        ------
        RecipeError
            If there are not as many photos as recipes.
        """
        if photos is not None and len(photos) != len(recipes):
            raise RecipeError("photos", found=len(photos), expected=f"{len(recipes)}, one per recipe")
        known = {name: number for number, name in enumerate(self.ingredients, 1)}
        made = []
        longest = dropped = 0
        for number, recipe in enumerate(recipes):
            items = [item for item in recipe.ingredients if item.name in known]
            longest, dropped = max(longest, len(items)), dropped + max(len(items) - self.slots, 0)
            items = sorted(items, key=lambda item: -item.kcal)[: self.slots]
            if not items:
                continue
            pad = self.slots - len(items)
            units = [self._unit(item.unit) for item in items]
            portions = [
                item.portion / self.portion_scale[self.units[unit]]
                if item.portion is not None and unit != NOT_LEARNED
                else math.nan
                for item, unit in zip(items, units, strict=True)
            ]
            made.append(
                {
                    "ingredients": torch.tensor([known[item.name] for item in items] + [0] * pad),
                    "mask": torch.tensor([True] * len(items) + [False] * pad),
                    "unit": torch.tensor(units + [0] * pad),
                    "portion": torch.tensor(portions + [math.nan] * pad),
                    "kcal": torch.tensor([item.kcal / self.kcal_scale for item in items] + [0.0] * pad),
                    "total": torch.tensor(recipe.kcal / self.kcal_scale),
                    **({} if photos is None else {"image": photos[number]}),
                }
            )
        if dropped:
            warnings.warn(
                f"{dropped} ingredients are left out, those with the least energy of recipes with more than "
                f"{self.slots}: learn the table with slots={longest} to keep all",
                stacklevel=2,
            )
        return made

    def _unit(self, unit: str) -> int:
        named = unit if unit in self.units else OTHER
        return self.units.index(named) if named in self.units else NOT_LEARNED

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RecipeTable:
        """Read what `to_dict` wrote."""
        return cls(**stored)


def read_labeled(path: str | os.PathLike[str]) -> list[LabeledRecipe]:
    """Read recipes to learn from: CSV with a row per ingredient.

    Parameters
    ----------
    path : path-like
        Columns ``recipe`` (the same text in all rows of a recipe), ``ingredient``, ``unit``, ``portion`` (may be empty)
        and ``kcal`` of the portion.

    Raises
    ------
    RecipeError
        Naming the line and column that cannot be read.
    """
    found: dict[str, list[LabeledIngredient]] = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise RecipeError(f"{path}", found=f"no column {missing[0]}", expected=", ".join(COLUMNS))
            for line, row in enumerate(reader, 2):
                for name in ("recipe", "ingredient", "unit"):
                    if not (row[name] or "").strip():
                        raise RecipeError(f"{path}, line {line}, {name}", found="nothing", expected="a text")
                portion = _number(path, line, "portion", row["portion"]) if (row["portion"] or "").strip() else None
                if portion == 0:
                    raise RecipeError(f"{path}, line {line}, portion", found=0, expected="a number > 0, or nothing")
                kcal = _number(path, line, "kcal", row["kcal"])
                item = LabeledIngredient(row["ingredient"].strip(), row["unit"].strip(), portion, kcal)
                found.setdefault(row["recipe"].strip(), []).append(item)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}", found=f"byte {error.start} is not UTF-8", do="Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read", found=error) from None
    return [LabeledRecipe(tuple(items), title) for title, items in found.items()]


def _check_targets(recipes: Sequence[LabeledRecipe]) -> None:
    for number, recipe in enumerate(recipes):
        where = f"recipe {number}" + (f" ({recipe.title})" if recipe.title else "")
        if not recipe.ingredients:
            raise RecipeError(where, found="no ingredient", expected="at least one")
        for item in recipe.ingredients:
            if item.portion is not None and not (math.isfinite(item.portion) and item.portion > 0):
                raise RecipeError(
                    f"{where}, {item.name}, portion", found=item.portion, expected="a number > 0, or None"
                )
            if not (math.isfinite(item.kcal) and item.kcal >= 0):
                raise RecipeError(f"{where}, {item.name}, kcal", found=item.kcal, expected="a number >= 0")


def _number(path: str | os.PathLike[str], line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise RecipeError(f"{path}, line {line}, {name}", found=repr(text), expected="a number >= 0")
    return value


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 1.0
    return float(torch.tensor(values, dtype=torch.float64).std()) or 1.0
