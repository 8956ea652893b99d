"""Foods and what a household measure of them weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightsmith_kitchen.errors import RecipeError

__all__ = ["Estimate", "Food", "Portion"]

LARGEST = 1e60
"""Of a number in JSON: sums and multiples of it are finite."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the interval that it comes from.

    Attributes
    ----------
    value : float
        The number that is shown.
    low, high : float
        Bounds: of a range in the recipe, of the spread of densities or piece weights, or of both.
    """

    value: float
    low: float
    high: float

    @classmethod
    def from_list(cls, stored: Any) -> Estimate:
        """Read the value and its bounds.

        Raises
        ------
        RecipeError
            If they are not three finite numbers.
        """
        if not isinstance(stored, (list, tuple)) or len(stored) != 3 or not all(map(_is_finite, stored)):
            raise RecipeError("estimate", found=str(stored)[:80], expected="a value and its bounds: three numbers")
        return cls(*map(float, stored))

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    __rmul__ = __mul__

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        shown = [f"{number:.0f}" for number in (self.value, self.low, self.high)]
        return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]}-{shown[2]})"


@dataclass(frozen=True, slots=True)
class Portion:
    """What one household measure of a food weighs.

    Attributes
    ----------
    unit : str
        Name of a unit, or ``"milliliter"`` for a density.
    grams : Estimate
        Weight of one unit, in grams.
    source : str
        The table and rows that the weight comes from.
    size : str
        Of the unit: ``"large"``, or its length; empty for a usual one.
    """

    unit: str
    grams: Estimate
    source: str
    size: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        weight = self.grams
        return {
            "unit": self.unit,
            "grams": [weight.value, weight.low, weight.high],
            "source": self.source,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Food:
    """A row of a nutrition table.

    Attributes
    ----------
    id : str
        The table and the row in it: ``"usda:22043"``.
    name : str
        As the table has it.
    kcal : float or None
        Energy per 100 g. None where the table has none: it is never taken for 0.
    source : str
        Name of the table and kind of the row, such as ``"USDA FoodData Central, SR Legacy"``.
    category : str
        The table's own group of foods.
    nutrients : mapping of str to float
        Per 100 g, by name with unit: ``"protein_g"``. What the table does not have is not in it.
    portions : tuple of Portion
        Household measures.
    notes : tuple of str
        What is odd about the row, such as an energy that does not fit its protein, fat and carbohydrate.
    """

    id: str
    name: str
    kcal: float | None
    source: str
    category: str = ""
    nutrients: Mapping[str, float] = field(default_factory=dict)
    portions: tuple[Portion, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "id": self.id,
            "name": self.name,
            "kcal_per_100g": self.kcal,
            "source": self.source,
            "category": self.category,
            "nutrients": dict(self.nutrients),
            "portions": [portion.to_dict() for portion in self.portions],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Food:
        """Read what `to_dict` wrote.

        Raises
        ------
        RecipeError
            If it is something else.
        """
        kcal, nutrients = (
            _field(stored, "kcal_per_100g", (int, float, type(None))),
            _field(stored, "nutrients", dict, {}),
        )
        for name, value in {"kcal_per_100g": kcal or 0, **nutrients}.items():
            if not _is_finite(value):
                raise RecipeError(f"food, {name}", found=str(value)[:80], expected="a number")
        portions = tuple(
            Portion(
                _field(item, "unit", str),
                Estimate.from_list(_field(item, "grams", list)),
                _field(item, "source", str),
                _field(item, "size", str, ""),
            )
            for item in _field(stored, "portions", list, [])
        )
        notes = _field(stored, "notes", list, [])
        return cls(
            _field(stored, "id", str),
            _field(stored, "name", str),
            kcal,
            _field(stored, "source", str),
            _field(stored, "category", str, ""),
            dict(nutrients),
            portions,
            tuple(map(str, notes)),
        )


def _is_finite(value: Any) -> bool:
    """Whether it is a number that energies can be computed with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _field(stored: Any, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """A field of a stored food."""
    if not isinstance(stored, Mapping):
        raise RecipeError("food", found=str(stored)[:80], expected="a JSON object")
    value = stored.get(name, default)
    if not isinstance(value, kind):
        raise RecipeError(f"food, {name}", found=str(value)[:80], expected="what to_dict wrote")
    return value
