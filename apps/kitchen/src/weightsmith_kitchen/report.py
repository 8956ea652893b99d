"""Meal kits for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from weightsmith_kitchen.kit import MealKit
from weightsmith_kitchen.quantity import Quantity

__all__ = ["kit_text"]


def kit_text(kit: MealKit) -> Group:
    """The kit as a table, its total, and what is missing."""
    table = Table(
        "ingredient",
        "amount",
        "grams",
        "kcal",
        "taken for",
        title=escape(kit.dish) or None,
        box=None,
        title_justify="left",
    )
    for column in (2, 3):
        table.columns[column].justify = "right"
    for item in kit.ingredients:
        row = "" if item.food is None else item.food.name
        table.add_row(
            escape(item.called()),
            escape(item.measured()),
            "" if item.grams is None else str(item.grams),
            "" if item.kcal is None else str(item.kcal),
            escape(row),
        )
    people = Quantity.of(kit.servings)
    total = f"total: {kit.kcal} kcal"
    if kit.servings_known:
        total += f" for {people} {'person' if people.high <= 1 else 'people'}, {kit.kcal_per_serving} each"
    lines = [f"{total}: a lower bound, {kit.missing}" if kit.missing else total]
    lines += [kit.yields] if kit.yields else []
    bought = kit.shopping_list
    if len(bought) < len(kit.ingredients):
        lines += ["to buy:", *(f"  {line}" for line in bought)]
    lines += [f"note: {item.name or item.text}: {note}" for item in kit.ingredients for note in item.remarks]
    lines += [f"note: {note}" for note in kit.notes]
    return Group(table, *map(escape, lines))
