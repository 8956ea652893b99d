"""The meal kit: what to buy for how many people, with the energy of each part and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.foods import Estimate
from weightsmith_kitchen.kit.shopping import Purchase, purchases
from weightsmith_kitchen.nouns import counted
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import TAKEN_FOR, Ingredient, read_makes, texts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MealKit"]

ZERO = Estimate(0.0, 0.0, 0.0)
COLUMNS = (
    "ingredient",
    "amount",
    "grams",
    "kcal",
    "kcal_low",
    "kcal_high",
    "kcal_per_serving",
    "food",
    "source",
    "weight_by",
    "notes",
    "text",
    "buy",
    "buy_grams",
)
"""Of the rows of a kit."""
NAMED = 5
"""Ingredients that are named where the total lacks them; the rest is counted."""
UNSAID = "the recipe does not say how many it serves"
"""How the note begins that says what the totals of such a recipe are for."""


@dataclass(frozen=True, slots=True)
class MealKit:
    """Priced ingredients for a number of people.

    A kit never changes: each correction gives another one.

    Attributes
    ----------
    ingredients : tuple of Ingredient
        From `price`.
    servings : Fraction
        How many people it is for.
    dish : str
        Its name; may be empty.
    servings_known : bool
        The recipe, or the user, said how many. Otherwise ``servings`` is 1 for the whole recipe.
    notes : tuple of str
        What concerns the whole kit.
    makes : tuple of Quantity and str, or None
        How many of what it makes, where the recipe says so: 24 cookies.

    Examples
    --------
    >>> from weightsmith_kitchen.kit import make_kit
    >>> kit = make_kit(["2 cups flour", "100 g butter"], servings=2)
    >>> round(kit.kcal.value), round(kit.scale(4).kcal.value)
    (1653, 3306)
    """

    ingredients: tuple[Ingredient, ...]
    servings: Fraction = Fraction(1)
    dish: str = ""
    servings_known: bool = True
    notes: tuple[str, ...] = ()
    makes: tuple[Quantity, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "servings", _servings(self.servings))

    @property
    def kcal(self) -> Estimate:
        """Energy of all that could be priced. It is a lower bound unless the kit is `complete`.

        The interval has all parts at their lowest, or all at their highest.
        """
        return sum((item.kcal for item in self.ingredients if item.kcal is not None), ZERO)

    @property
    def kcal_per_serving(self) -> Estimate:
        """`kcal` for one person."""
        return self.kcal * (1.0 / float(self.servings))

    @property
    def kcal_per_piece(self) -> Estimate | None:
        """`kcal` of one of what it `makes`; None where the recipe does not say what that is."""
        return None if self.makes is None else self.kcal * (1.0 / float(self.makes[0]))

    @property
    def yields(self) -> str:
        """What it makes, with the energy of one, in words; empty where the recipe does not say it.

        Examples
        --------
        >>> MealKit((Ingredient("x", kcal=Estimate(480, 480, 480)),), makes=(Quantity.of(24), "cookies")).yields
        'makes 24 cookies, 20 kcal per cookie'
        """
        if self.makes is None:
            return ""
        amount, thing = self.makes
        return f"makes {amount.kitchen()} {thing}, {self.kcal_per_piece} kcal per {counted(thing, False)}"

    @property
    def shopping_list(self) -> tuple[Purchase, ...]:
        """What to buy: a line for each food, its amounts added; see `purchases`.

        Examples
        --------
        >>> from weightsmith_kitchen.kit import make_kit
        >>> [str(line) for line in make_kit(["1 cup milk", "2 eggs", "2 cups milk"]).shopping_list]
        ['3 cups milk', '2 eggs']
        """
        return purchases(self.ingredients)

    @property
    def unpriced(self) -> tuple[Ingredient, ...]:
        """Ingredients without an energy; their notes say why."""
        return tuple(item for item in self.ingredients if item.kcal is None)

    @property
    def complete(self) -> bool:
        """There is an ingredient, all have an energy by a row of their own, and no second amount was left out."""
        return bool(self.ingredients) and not self.missing

    @property
    def missing(self) -> str:
        """What the total lacks, by name; empty where nothing is missing.

        Examples
        --------
        >>> from weightsmith_kitchen.kit import make_kit
        >>> make_kit(["2 eggs", "salt and pepper", "1 can xyzzy"]).missing
        'no amount of pepper; no energy of xyzzy'
        """
        lacks: dict[str, dict[str, None]] = {}
        for item in self.ingredients:
            if item.kcal is None:
                why = "no amount of" if item.quantity is None and item.food is not None else "no energy of"
            elif any(remark.endswith("not read") for remark in item.unread):
                why = "not all is read of"
            elif any(TAKEN_FOR in note for note in item.notes):
                why = "another food is taken for"
            else:
                continue
            lacks.setdefault(why, {})[item.name or item.text] = None
        return "; ".join(f"{why} {_listed(list(names))}" for why, names in lacks.items())

    def scale(self, servings: Fraction | float | str) -> MealKit:
        """The kit for another number of people; amounts and energies are multiplied.

        A recipe that does not say how many it serves is taken for one person, and a note says so.

        Raises
        ------
        RecipeError
            If ``servings`` is not above 0.
        """
        wanted = _servings(servings)
        factor = wanted / self.servings
        notes = self.notes
        if not self.servings_known:
            taken = f"{UNSAID}: it is taken for one person, and multiplied by {Quantity.of(factor)}"
            notes = (*(note for note in notes if not note.startswith(UNSAID)), taken)
        return replace(
            self,
            notes=notes,
            ingredients=tuple(item.scale(factor) for item in self.ingredients),
            servings=wanted,
            servings_known=True,
            makes=None if self.makes is None else (self.makes[0] * factor, self.makes[1]),
        )

    def at(self, place: int) -> Ingredient:
        """One ingredient, by its place from 0.

        Raises
        ------
        RecipeError
            If there is no such place.
        """
        if not 0 <= place < len(self.ingredients):
            raise RecipeError(f"ingredient {place}", expected=f"0 to {len(self.ingredients) - 1}")
        return self.ingredients[place]

    def put(self, place: int, ingredient: Ingredient) -> MealKit:
        """The kit with one ingredient replaced; see `at` for the place."""
        self.at(place)
        return replace(self, ingredients=(*self.ingredients[:place], ingredient, *self.ingredients[place + 1 :]))

    def without(self, place: int) -> MealKit:
        """The kit without one ingredient; see `at` for the place."""
        self.at(place)
        return replace(self, ingredients=self.ingredients[:place] + self.ingredients[place + 1 :])

    def plus(self, ingredient: Ingredient) -> MealKit:
        """The kit with one more ingredient."""
        return replace(self, ingredients=(*self.ingredients, ingredient))

    def rows(self) -> list[dict[str, Any]]:
        """One row per ingredient, as the page, CSV and `to_frame` show it.

        ``buy`` is the shopping list: what to buy of a food stands in the first of its rows, and nothing in the others.
        """
        bought = {line.places[0]: line for line in self.shopping_list}
        rows = (self._row(item, bought.get(place)) for place, item in enumerate(self.ingredients))
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def _row(self, item: Ingredient, bought: Purchase | None) -> tuple[Any, ...]:
        kcal, food = item.kcal, item.food
        return (
            item.name,
            item.measured(),
            _shown(item.grams),
            _shown(kcal),
            None if kcal is None else round(kcal.low),
            None if kcal is None else round(kcal.high),
            None if kcal is None else round(kcal.value / float(self.servings)),
            "" if food is None else food.name,
            "" if food is None else f"{food.source}, {food.id}",
            item.basis,
            "; ".join(item.remarks),
            item.text,
            "" if bought is None else str(bought),
            None if bought is None else _shown(bought.grams),
        )

    def to_frame(self) -> pd.DataFrame:
        """`rows` as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; `from_dict` computes the totals and the shopping list again."""
        total, single = self.kcal, self.kcal_per_serving
        return {
            "dish": self.dish,
            "servings": str(self.servings),
            "servings_known": self.servings_known,
            "kcal": [total.value, total.low, total.high],
            "kcal_per_serving": [single.value, single.low, single.high],
            "makes": None if self.makes is None else [self.makes[0].to_json(), self.makes[1]],
            "complete": self.complete,
            "ingredients": [item.to_dict() for item in self.ingredients],
            "shopping_list": [line.to_dict() for line in self.shopping_list],
            "notes": list(self.notes),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> MealKit:
        """Read what `to_dict` wrote.

        Raises
        ------
        RecipeError
            If it is something else.
        """
        if not isinstance(stored, Mapping) or not isinstance(stored.get("ingredients"), list):
            raise RecipeError("meal kit", found=str(stored)[:60], expected="a JSON object with the list 'ingredients'")
        return cls(
            ingredients=tuple(Ingredient.from_dict(item) for item in stored["ingredients"]),
            servings=_servings(Quantity.from_json(stored.get("servings", 1))),
            dish=str(stored.get("dish", "")),
            servings_known=bool(stored.get("servings_known", True)),
            notes=texts(stored, "notes"),
            makes=read_makes(stored.get("makes")),
        )

    @classmethod
    def from_json(cls, text: str) -> MealKit:
        """Read what `to_json` wrote."""
        try:
            stored = json.loads(text)
        except ValueError as error:
            raise RecipeError("meal kit", found=error, expected="JSON") from None
        return cls.from_dict(stored)


def _servings(value: Quantity | Fraction | float | str) -> Fraction:
    amount = Quantity.of(value)
    servings = amount.middle.limit_denominator(1_000_000)  # what is written can be read again
    if not (amount.low > 0 and servings > 0) or amount.high > 10_000:
        raise RecipeError("servings", found=str(value), expected="above 0, at most 10000")
    return servings


def _shown(estimate: Estimate | None) -> float | None:
    return None if estimate is None else round(estimate.value, 1)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
