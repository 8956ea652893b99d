"""Units of the kitchen: their names, and exact factors between those that measure the same thing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.quantity import Quantity

__all__ = ["SIZES", "UNITS", "Kind", "Unit", "convert", "find_unit", "grams", "milliliters"]

Kind = Literal["mass", "volume", "count"]

SIZES = {
    "small": "small",
    "medium": "medium",
    "med": "medium",
    "large": "large",
    "lg": "large",
    "extra large": "extra large",
    "jumbo": "jumbo",
}
"""Words for the size of a piece, which stand where units do, and those of the table of measures for them."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit in which a food is measured.

    Attributes
    ----------
    name : str
        In the singular: ``"cup"``.
    plural : str
        ``"cups"``.
    kind : {"mass", "volume", "count"}
        What it measures. Counts, such as ``"clove"``, have no factor to anything without the food.
    factor : Fraction or None
        Grams, or milliliters, in one unit.
    """

    name: str
    plural: str
    kind: Kind
    factor: Fraction | None = None

    def __str__(self) -> str:
        return self.name

    def spelled(self, amount: Quantity | Fraction | float) -> str:
        """The name that follows an amount: singular up to one.

        Examples
        --------
        >>> find_unit("cups").spelled(0.5), find_unit("cup").spelled(2)
        ('cup', 'cups')
        """
        return self.name if Quantity.of(amount).high <= 1 else self.plural


# name: other spellings. What pint knows by the same name takes its factor from there; "T" and "t" are told apart.
_MASS = {
    "gram": "g gr gm gms grams gramme grammes",
    "kilogram": "kg kgs kilo kilos kilograms",
    "milligram": "mg milligrams",
    "ounce": "oz ozs ounces",
    "pound": "lb lbs pounds",
}
_VOLUME = {
    "milliliter": "ml mls milliliters millilitre millilitres cc",
    "centiliter": "cl centiliters centilitre centilitres",
    "deciliter": "dl deciliters decilitre decilitres",
    "liter": "l liters litre litres ltr",
    "teaspoon": "t tsp tsps teaspoons",
    "tablespoon": "T Tb tb tbsp tbsps tbs tbl tablespoons",
    "fluid_ounce": "fl-oz floz fluid-ounces fluid-oz",
    "cup": "c cups",
    "pint": "pt pts pints",
    "quart": "qt qts quarts",
    "gallon": "gal gals gallons",
}
# Shares of a teaspoon as spoon makers sell them; pint knows no such unit.
_SHARES = {"dash": (Fraction(1, 8), "dashes"), "pinch": (Fraction(1, 16), "pinches"), "smidgen": (Fraction(1, 32), "")}
_COUNT = {
    "piece": "pieces pc pcs each ea whole count",
    "clove": "cloves",
    "slice": "slices",
    "stick": "sticks",
    "sprig": "sprigs",
    "bunch": "bunches bn",
    "head": "heads bulb bulbs",
    "stalk": "stalks rib ribs",
    "leaf": "leaves",
    "ear": "ears",
    "fillet": "fillets filet filets",
    "strip": "strips rasher rashers",
    "cube": "cubes",
    "can": "cans tin tins",
    "jar": "jars",
    "bottle": "bottles",
    "package": "packages pkg pkgs pack packs packet packets sachet sachets",
    "box": "boxes",
    "bag": "bags",
    "container": "containers carton cartons tub tubs",
    "envelope": "envelopes",
    "loaf": "loaves",
    "handful": "handfuls",
    "drop": "drops",
    "knob": "knobs",
    "sheet": "sheets",
    "block": "blocks",
    "scoop": "scoops",
    "serving": "servings portion portions",
    "dozen": "dozens",
}
_IRREGULAR = {"leaf": "leaves", "loaf": "loaves", "dozen": "dozen", "bunch": "bunches", "box": "boxes"}


@cache
def _pint() -> Any:
    import pint

    return pint.UnitRegistry(non_int_type=Fraction)


def _factor(name: str, base: str) -> Fraction:
    return Fraction(_pint().Quantity(Fraction(1), name).to(base).magnitude)


@cache
def _units() -> dict[str, Unit]:
    made: dict[str, Unit] = {}
    for group, kind, base in ((_MASS, "mass", "gram"), (_VOLUME, "volume", "milliliter")):
        for name in group:
            shown = name.replace("_", " ")
            made[shown] = Unit(shown, shown + "s", kind, _factor(name, base))  # type: ignore[arg-type]
    for name, (share, plural) in _SHARES.items():
        made[name] = Unit(name, plural or name + "s", "volume", share * _factor("teaspoon", "milliliter"))
    for name in _COUNT:
        made[name] = Unit(name, _IRREGULAR.get(name, name + "s"), "count")
    return made


@cache
def _names() -> dict[str, Unit]:
    units = _units()
    names = units | {unit.plural: unit for unit in units.values()}
    for group in (_MASS, _VOLUME, _COUNT):
        for name, others in group.items():
            unit = units[name.replace("_", " ")]
            names |= {other.replace("-", " "): unit for other in others.split()}
    return names


class _Units:
    """The units by name, made on first use."""

    def __getitem__(self, name: str) -> Unit:
        unit = find_unit(name)
        if unit is None:
            near = difflib.get_close_matches(name.lower(), _names(), n=3)
            raise RecipeError("unit", found=repr(name), do=f"Consider {', '.join(near)}." if near else None)
        return unit

    def __iter__(self) -> Any:
        return iter(_units().values())

    def __contains__(self, name: str) -> bool:
        return find_unit(name) is not None


UNITS = _Units()
"""All units: ``UNITS["tbsp"]``. A name that is none raises `RecipeError` with the nearest ones."""


def find_unit(name: str) -> Unit | None:
    """The unit that a word names, or None.

    Parameters
    ----------
    name : str
        Singular, plural or abbreviated, with or without a full stop. ``"T"`` is a tablespoon and ``"t"`` a teaspoon;
        case does not matter elsewhere.

    Examples
    --------
    >>> find_unit("Tbsp.").name, find_unit("T").name, find_unit("t").name, find_unit("fl. oz").name
    ('tablespoon', 'tablespoon', 'teaspoon', 'fluid ounce')
    >>> find_unit("unsalted") is None
    True
    """
    word = " ".join(name.replace(".", " ").replace("-", " ").split())
    names = _names()
    return names.get(word) or names.get(word.lower())


def convert(amount: Quantity, unit: Unit, to: Unit) -> Quantity:
    """Express an amount in another unit that measures the same thing.

    Raises
    ------
    RecipeError
        If the two measure different things: a density or the weight of a piece belongs to a food.

    Examples
    --------
    >>> convert(Quantity.of(1), UNITS["cup"], UNITS["tbsp"])
    Quantity('16')
    >>> convert(Quantity.of(1), UNITS["pound"], UNITS["oz"])
    Quantity('16')
    """
    if unit == to:
        return amount
    if unit.kind != to.kind or unit.factor is None or to.factor is None:
        raise RecipeError(
            f"{unit.plural} to {to.plural}",
            found=f"a {unit.kind} and a {to.kind}",
            expected="two units of mass, or two of volume",
            do="Look the food up: its density or the weight of a piece joins them.",
        )
    return amount * (unit.factor / to.factor)


def grams(amount: Quantity, unit: Unit) -> Quantity:
    """Grams in an amount of mass."""
    return convert(amount, unit, UNITS["gram"])


def milliliters(amount: Quantity, unit: Unit) -> Quantity:
    """Milliliters in an amount of volume."""
    return convert(amount, unit, UNITS["milliliter"])
