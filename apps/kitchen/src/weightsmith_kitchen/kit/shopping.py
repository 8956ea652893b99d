"""The shopping list: one line for each food, whatever number of lines of the recipe it stands in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from weightsmith_kitchen.foods import Estimate
from weightsmith_kitchen.nouns import counted
from weightsmith_kitchen.nutrition.ranking import rewritten, stems
from weightsmith_kitchen.nutrition.vocabulary import DROPPED, PLAIN
from weightsmith_kitchen.phrases.amounts import METRIC
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Ingredient
from weightsmith_kitchen.units import UNITS, Unit, convert, find_unit

__all__ = ["Purchase", "purchases"]

NEEDED = "as needed"
"""The amount of what the recipe gives no amount of."""
MOST = 10
"""Units that are counted where a larger one does not show the sum."""
KEPT = ("dried", "dry", "frozen")
"""Words beside a name that make it something else to buy."""
SAME = PLAIN | DROPPED

Package = tuple[Quantity, str] | None


@dataclass(frozen=True, slots=True)
class Purchase:
    """One line of a shopping list.

    Attributes
    ----------
    name : str
        The food, as the first of its lines calls it.
    amount : str
        The sum of its amounts; those that cannot be added are joined by "+".
    grams : Estimate or None
        Weight of all of it; None where the weight of a line is not known.
    food : str or None
        Id of its row in the nutrition table.
    places : tuple of int
        Its ingredients in the kit, from 0.
    """

    name: str
    amount: str
    grams: Estimate | None
    food: str | None
    places: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}, {self.amount}" if NEEDED in self.amount else f"{self.amount} {self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        weight = self.grams
        return {
            "name": self.name,
            "amount": self.amount,
            "grams": None if weight is None else [weight.value, weight.low, weight.high],
            "food": self.food,
            "ingredients": list(self.places),
        }


def purchases(items: Sequence[Ingredient]) -> tuple[Purchase, ...]:
    """The shopping list of priced ingredients, in the order of the recipe.

    Lines with the same row of the table are one food if their names differ by nothing that the row does not say:
    "butter" and "unsalted butter" are, "rice" and "basmati rice" are two things to buy. Amounts in units that measure
    the same are added. Of others the weights are added, if each has one.

    Examples
    --------
    >>> flour = [Ingredient("flour", Quantity.parse(amount), unit) for amount, unit in (("1", "cup"), ("2", "tbsp"))]
    >>> salt = [Ingredient("salt", Quantity.of(1), "teaspoon"), Ingredient("salt")]
    >>> [str(line) for line in purchases([*flour, *salt])]
    ['1 1/8 cups flour', 'salt, 1 teaspoon + as needed']
    """
    places: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(_key(item), []).append(place)
    return tuple(_purchase([items[place] for place in found], found) for found in places.values())


def _key(item: Ingredient) -> tuple[str, frozenset[str]]:
    told = _told(_named(item))
    if item.food is None:
        return "", told - DROPPED or told
    return item.food.id, told - SAME - stems(item.food.name).stems


@lru_cache(maxsize=4096)
def _told(name: str) -> frozenset[str]:
    """The words of a name, other names replaced."""
    return stems(rewritten(name)).stems


def _named(item: Ingredient) -> str:
    """The name with what makes it something else to buy, such as frozen peas."""
    told = f"{item.dry_fresh or ''} {item.temperature or ''} {item.state or ''}".lower().replace(",", " ").split()
    kept = [word for word in KEPT if word in told and word not in item.name.lower()]
    return " ".join([*kept, item.name or item.text])


def _purchase(items: Sequence[Ingredient], places: Sequence[int]) -> Purchase:
    measured = [item for item in items if item.quantity is not None]
    weights = [item.grams for item in measured]
    weight = None
    if weights and None not in weights:
        weight = sum((grams for grams in weights if grams is not None), Estimate(0.0, 0.0, 0.0))
    amounts = _added(measured)
    bare = len(amounts) == 1 and not amounts[0][2] and _is_piece(amounts[0][1])
    if len({_kind(unit) for _, unit, _ in amounts}) > 1 and weight is not None:  # cans of two sizes are bought as cans
        amounts, bare = [(Quantity.of(round(weight.value)), UNITS["gram"], None)], False
    shown = [_shown(amount, unit, held, bare=bare) for amount, unit, held in amounts]
    name = _named(items[0])
    if bare:
        name = counted(name, amounts[0][0].high > 1)
    food = items[0].food
    amount = " + ".join([*shown, *([NEEDED] if len(measured) < len(items) else [])])
    return Purchase(name, amount, weight, None if food is None else food.id, tuple(places))


def _added(items: Iterable[Ingredient]) -> list[tuple[Quantity, Unit | str, Package]]:
    """The amounts, those added that can be: in the same unit, or in units of the same kind."""
    found: dict[tuple[Unit | str, Package], Quantity] = {}
    for item in items:
        assert item.quantity is not None
        unit: Unit | str = find_unit(item.unit or "piece") or item.unit or ""
        amount = item.quantity
        if unit == UNITS["dozen"]:
            unit, amount = UNITS["piece"], amount * 12
        key = unit, item.package
        found[key] = found[key] + amount if key in found else amount
    made: list[tuple[Quantity, Unit | str, Package]] = []
    for kind in ("mass", "volume"):
        alike = {
            key: amount
            for key, amount in found.items()
            if isinstance(key[0], Unit) and key[0].kind == kind and key[1] is None
        }
        one = len(alike) < 2
        total = None if one else _sum([(amount, key[0]) for key, amount in alike.items() if isinstance(key[0], Unit)])
        if total is not None:
            first = next(iter(alike))
            found = {key: amount for key, amount in found.items() if key not in alike or key == first}
            found = {(total[1], None) if key == first else key: found[key] for key in found}
            found[total[1], None] = total[0]
    made += [(amount, unit, held) for (unit, held), amount in found.items()]
    return made


def _sum(amounts: Sequence[tuple[Quantity, Unit]]) -> tuple[Quantity, Unit] | None:
    """The sum in the largest unit that shows it exactly, else in grams or milliliters where a unit is metric."""
    units = sorted({unit for _, unit in amounts}, key=lambda unit: -(unit.factor or 0))
    for unit in units:
        total = _in(amounts, unit)
        if Quantity.parse(total.kitchen()) == total and (unit == units[0] or total.high < MOST):
            return total, unit
    if any(unit.name in METRIC for _, unit in amounts):
        base = UNITS["gram" if amounts[0][1].kind == "mass" else "milliliter"]
        total = _in(amounts, base)
        return Quantity(Fraction(round(total.low)), Fraction(round(total.high))), base
    return None


def _in(amounts: Sequence[tuple[Quantity, Unit]], unit: Unit) -> Quantity:
    first, *others = (convert(amount, one, unit) for amount, one in amounts)
    return sum(others, first)


def _kind(unit: Unit | str) -> Unit | str:
    """What a unit measures: a weight, a volume, or pieces of its own kind."""
    return unit.kind if isinstance(unit, Unit) and unit.factor is not None else unit


def _is_piece(unit: Unit | str) -> bool:
    return isinstance(unit, Unit) and unit.name == "piece"


def _shown(amount: Quantity, unit: Unit | str, held: Package, *, bare: bool) -> str:
    name = unit.name if isinstance(unit, Unit) else unit
    if held is None:
        return Ingredient("", amount, None if bare else name).measured()
    spelled = unit.spelled(amount) if isinstance(unit, Unit) else unit
    return f"{amount.kitchen()} ({held[0]} {held[1]}) {spelled}"
