"""Amounts that a recipe does not say, by an estimator that learned portions from recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weightsmith_kitchen.nutrition.ranking import words
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Ingredient
from weightsmith_kitchen.units import find_unit

if TYPE_CHECKING:
    from weightsmith_kitchen.portions import PortionEstimate, PortionEstimator

__all__ = ["with_amounts"]

LEAST = 0.01
"""Portions below are none."""


def with_amounts(items: Sequence[Ingredient], portions: PortionEstimator) -> tuple[Ingredient, ...]:
    """The ingredients, with an estimated amount where the line has none, and a note that says so.

    The estimator sees all ingredients that it knows, since a portion depends on the others. Where it does not know the
    name, or its unit is none of the kitchen, the amount stays away and the note says why.
    """
    names = {frozenset(words(name)): name for name in portions.table.ingredients}
    known = [(place, name) for place, item in enumerate(items) if (name := names.get(frozenset(words(item.name))))]
    found = portions.estimate([name for _, name in known])[0] if known else []
    by_place = {place: estimate for (place, _), estimate in zip(known, found, strict=True)}
    return tuple(
        item if item.quantity is not None else _filled(item, by_place.get(place)) for place, item in enumerate(items)
    )


def _filled(item: Ingredient, estimate: PortionEstimate | None) -> Ingredient:
    if estimate is None:
        return replace(item, unread=(*item.unread, "no portion of it was learned"))
    unit = find_unit(estimate.unit)
    told = f"{estimate.portion:.2g} {estimate.unit} ({estimate.probability:.0%}), {estimate.kcal:.0f} kcal"
    if unit is None or estimate.portion < LEAST:
        why = "no unit of the kitchen" if unit is None else "nothing"
        return replace(item, unread=(*item.unread, f"learned portion: {told}: {why}"))
    amount = Quantity.of(round(estimate.portion, 2))
    name = None if unit.name == "piece" else unit.name
    return replace(item, quantity=amount, unit=name, unread=(*item.unread, f"amount by learned portions: {told}"))
