"""From an ingredient's name and amount to its weight and energy, each with where it comes from."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.foods import Estimate, Food
from weightsmith_kitchen.nutrition import measures
from weightsmith_kitchen.nutrition.ranking import default_row, lost, words
from weightsmith_kitchen.nutrition.table import NutritionTable
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import TAKEN_FOR, Ingredient
from weightsmith_kitchen.units import SIZES, Unit, find_unit

__all__ = ["price"]

MOST = 100_000
"""Units of an ingredient that are priced."""
DRAINED = 0.6
"""Share of a can of legumes that is left when its water is poured off (USDA: 253 of 425 g)."""
WHOLES = ("piece", "head", "ear")
"""Units that are the whole of a plant: 1 cauliflower is 1 head of it."""
IN_WATER = (["bean"], ["chickpea"], ["corn"], ["pea"], ["lentil"])
_SIZE = re.compile(r"\b(extra large|small|medium|med|large|lg|jumbo)\b")
_LENGTH = re.compile(r"(?P<number>\d.*?|[¼-¾⅐-⅞])\s*(?P<unit>inch(?:es)?|in|cm|centimet(?:er|re)s?|mm|foot|feet|ft)\b")
INCHES = {"i": Fraction(1), "c": Fraction(50, 127), "m": Fraction(5, 127), "f": Fraction(12)}
"""Inches in a unit of length, by its first letter."""


def price(ingredient: Ingredient, table: NutritionTable, *, food: Food | None = None) -> Ingredient:
    """Find the food, its weight and its energy.

    Nothing is made up: without an amount, a food, or a measure that joins the unit with grams, the weight or the energy
    stays None, and a note says which of them is missing and what would help.

    Parameters
    ----------
    ingredient : Ingredient
        As it was read. Anything that an earlier call found is replaced.
    table : NutritionTable
        Where foods are looked up.
    food : Food, optional
        The row to take, where the user chose one.

    Returns
    -------
    Ingredient
        With ``food``, ``grams``, ``kcal``, ``basis`` and ``notes``.

    Examples
    --------
    >>> table = NutritionTable.default()
    >>> flour = price(Ingredient("flour", Quantity.of(2), "cup"), table)
    >>> round(flour.grams.value), flour.basis
    (250, 'density: USDA SR Legacy, household weight')
    >>> price(Ingredient("butter", Quantity.of(100), "gram"), table).kcal.value
    743.0
    """
    if ingredient.unit is not None and ingredient.unit.lower() in SIZES:  # "medium" in a column of units
        size = ingredient.size or SIZES[ingredient.unit.lower()]
        ingredient = replace(ingredient, unit=None, size=size)
    notes: list[str] = []
    name = _called(ingredient)
    found = food or table.lookup(name)
    if found is None:
        near = "; ".join(table.nearest(ingredient.name))
        notes.append(f"{ingredient.name!r} is in no table" + (f"; nearest: {near}" if near else ""))
    elif food is None:
        notes.extend(_lost(name, found, table))
    weight, basis = _weight(ingredient, found, table, notes)
    kcal = None
    if found is not None:
        notes.extend(found.notes)
        if found.kcal is not None and weight is not None:
            kcal = weight * (found.kcal / 100.0)
        elif found.kcal == 0:
            kcal = Estimate(0.0, 0.0, 0.0)
    return replace(ingredient, food=found, grams=weight, kcal=kcal, basis=basis, notes=tuple(notes))


def _lost(name: str, food: Food, table: NutritionTable) -> list[str]:
    """What the name says and the row found does not."""
    if default_row(name) is not None or food.id.startswith(("own:", "labels:")):
        return []
    left = lost(name, food.name)
    nowhere = [word for word in table.unknown_words(name) if word in left]
    elsewhere = [word for word in left if word not in nowhere]
    notes = [f"{', '.join(nowhere)} is in no row of the table{TAKEN_FOR}{food.name!r}"] if nowhere else []
    return notes + ([f"{', '.join(elsewhere)} is not in the row{TAKEN_FOR}{food.name!r}"] if elsewhere else [])


def _called(ingredient: Ingredient) -> str:
    """The name to look up: with what makes it another food, as dried or minced; a pepper to count is a vegetable."""
    told = f"{ingredient.dry_fresh or ''} {ingredient.temperature or ''} {ingredient.state or ''}".lower()
    kept = [word for word in ("dried", "dry", "cooked", "canned", "minced") if re.search(rf"\b{word}\b", told)]
    if ingredient.unit in ("can", "jar") and not kept:
        kept = ["canned"]
    name = ingredient.name
    counted = ingredient.quantity is not None and ingredient.unit in (None, "piece")
    if name.lower() == "peppers" or (counted and name.lower() == "pepper"):
        name = "bell pepper"
    return " ".join([*(word for word in kept if word not in name.lower()), name])


def _weight(
    ingredient: Ingredient, food: Food | None, table: NutritionTable, notes: list[str]
) -> tuple[Estimate | None, str]:
    """Grams of the whole amount and how they were found."""
    amount = ingredient.quantity
    if amount is None:
        if food is None or food.kcal != 0:  # however much salt it is
            notes.append("no amount: it counts for nothing")
        return None, ""
    ways = [(amount, ingredient.unit), *ingredient.alternatives]
    if ingredient.unit == "dozen":
        ways[0] = (amount * 12, None)
    if amount.high > MOST:
        notes.append(f"{amount} is no amount of a kitchen")
        return None, ""
    # A weight needs no density: of two ways to say the same amount it is the better one.
    ways.sort(key=lambda way: _order(way[1]))
    if ingredient.package is not None:  # 2 cans of 14 ounces each
        inner, held = ingredient.package
        ways.insert(0, (Quantity(amount.low * inner.low, amount.high * inner.high), held))
    units = [find_unit(name or "piece") for _, name in ways]
    drained = ingredient.unit in ("can", "jar") and _is_drained(ingredient)
    for (quantity, _), unit in zip(ways, units, strict=True):
        if unit is not None and unit.kind == "mass" and unit.factor is not None:
            weight = _estimate(quantity, unit.factor)
            return (weight * DRAINED, "amount, drained: 60 % of it") if drained else (weight, "amount")
    told, size, length = _size(ingredient)
    portions = (
        *(food.portions if food is not None else ()),
        *measures.find(_called(ingredient), size),
        *measures.find(ingredient.name, size),
        *table.portions(ingredient.name),
    )
    for (quantity, _), unit in zip(ways, units, strict=True):
        if unit is None:
            continue
        for portion in portions:
            if unit.factor is not None and portion.unit == "milliliter":
                return _times(_estimate(quantity, unit.factor), portion.grams), f"density: {portion.source}"
            if portion.unit == unit.name:
                used = bool(portion.size)
                if told and not used:
                    notes.append(f"{told}: a usual {unit.name} is taken")
                basis = f"weight of one{f', {told}' if used else ''}: {portion.source}"
                return _times(_estimate(quantity, length if used else Fraction(1)), portion.grams), basis
    for (quantity, _), unit in zip(ways, units, strict=True):
        whole = next((portion for portion in portions if portion.unit in WHOLES), None)
        if unit is not None and unit.name in WHOLES and whole is not None:
            return _times(_estimate(quantity, Fraction(1)), whole.grams), f"weight of one {whole.unit}: {whole.source}"
    notes.append(_missing(ingredient, units[0]))
    return None, ""


def _size(ingredient: Ingredient) -> tuple[str, str | None, Fraction]:
    """What the line says of the size of one, the table's word for it, and how many times that: inches of a piece."""
    told = ingredient.size or ""
    text = told.lower().replace("-", " ")
    if length := _LENGTH.search(text):
        try:
            number = Quantity.parse(length["number"]).middle
        except RecipeError:
            return told, None, Fraction(1)
        return told, "1 inch", number * INCHES[length["unit"][0]]
    sizes = {SIZES[word] for word in _SIZE.findall(text)}
    return told, sizes.pop() if len(sizes) == 1 else None, Fraction(1)


def _is_drained(ingredient: Ingredient) -> bool:
    """The line says so, and it is a food that is sold in water."""
    told = f"{ingredient.state or ''} {ingredient.text}".lower()
    return "drained" in told and "undrained" not in told and words(ingredient.name)[-1:] in IN_WATER


def _order(name: str | None) -> int:
    unit = find_unit(name) if name else None
    return {"mass": 0, "volume": 1, "count": 2}[unit.kind] if unit is not None else 3


def _missing(ingredient: Ingredient, unit: Unit | None) -> str:
    if unit is None:
        return f"the unit {ingredient.unit!r} is not known"
    if unit.kind == "volume":
        return f"no table has the density of {ingredient.name!r}: give grams"
    of = f"{'an' if unit.name[0] in 'aeiou' else 'a'} {unit.name}"
    return f"no table has the weight of {of} of {ingredient.name!r}: give grams"


def _estimate(amount: Quantity, factor: Fraction) -> Estimate:
    return Estimate(float(amount.middle * factor), float(amount.low * factor), float(amount.high * factor))


def _times(amount: Estimate, weight: Estimate) -> Estimate:
    return Estimate(amount.value * weight.value, amount.low * weight.low, amount.high * weight.high)
