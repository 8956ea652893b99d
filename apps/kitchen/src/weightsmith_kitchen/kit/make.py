"""A recipe to a priced kit."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from weightsmith.core.progress import track
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.kit.amounts import with_amounts
from weightsmith_kitchen.kit.kit import UNSAID, MealKit
from weightsmith_kitchen.nutrition import NutritionTable, price
from weightsmith_kitchen.phrases.lines import split_line
from weightsmith_kitchen.phrases.read import read_ingredients
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Ingredient, Recipe

if TYPE_CHECKING:
    from weightsmith_kitchen.phrases.tagger import IngredientTagger
    from weightsmith_kitchen.portions import PortionEstimator

__all__ = ["make_kit"]


def make_kit(
    recipe: Recipe | Sequence[str | Ingredient],
    table: NutritionTable | None = None,
    *,
    servings: Fraction | float | str | None = None,
    dish: str = "",
    tagger: IngredientTagger | None = None,
    portions: PortionEstimator | None = None,
) -> MealKit:
    """Price the ingredients of a recipe.

    Parameters
    ----------
    recipe : Recipe, or sequence of str or Ingredient
        Lines are read first.
    table : NutritionTable, optional
        By default USDA FoodData Central.
    servings : number, optional
        How many people the recipe is for, where it does not say so itself, or says something else.
    dish : str
        A name for it; by default the recipe's title.
    tagger : IngredientTagger, optional
        Reads lines; the one that ships by default.
    portions : PortionEstimator, optional
        Gives ingredients without an amount the portion that it learned; otherwise they count for nothing.

    Raises
    ------
    RecipeError
        If there is no ingredient, or ``servings`` is not above 0.

    Examples
    --------
    >>> make_kit(["3 eggs", "1 tbsp butter"]).kcal.value > 300
    True
    """
    if isinstance(recipe, str):
        raise RecipeError("recipe", found="one text", expected="lines, or a Recipe", do="Read it with read_recipe.")
    table = NutritionTable.default() if table is None else table
    if isinstance(recipe, Recipe):
        items, said, dish = recipe.ingredients, recipe.servings, dish or recipe.title
        notes, makes = recipe.notes, recipe.makes
    else:
        parts = [
            part for item in recipe for part in (split_line(item, tagger=tagger) if isinstance(item, str) else [item])
        ]
        read = iter(read_ingredients([part for part in parts if isinstance(part, str)], tagger=tagger))
        items = tuple(next(read) if isinstance(part, str) else part for part in parts)
        said, notes, makes = None, (), None
    items = tuple(item for item in items if item.name or item.text.strip())
    if not items:
        raise RecipeError("recipe", found="no ingredient", do="Give at least one.")
    if servings is not None:
        said = Quantity.of(servings)
    if portions is not None:
        items = with_amounts(items, portions)
    priced = tuple(price(item, table) for item in track(items, "pricing ingredients"))
    if said is None:
        all_of_it = "all of it" if makes is None else f"all of it, {makes[0]} {makes[1]}"
        notes += (f"{UNSAID}: totals are for {all_of_it}",)
    elif not said.exact:
        notes += (f"it serves {said}: {Quantity.of(said.middle)} is taken",)
    people = Fraction(1) if said is None else said.middle
    return MealKit(priced, people, dish, said is not None, notes, makes)
