"""Recipe text to a recipe, and a recipe to a priced kit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.kit.kit import MealKit
from weightsmith_kitchen.nutrition import NutritionTable, price
from weightsmith_kitchen.phrases.read import read_ingredients
from weightsmith_kitchen.quantity import Quantity, find_quantity, read_yield
from weightsmith_kitchen.recipe import Ingredient, Recipe

__all__ = ["MOST_LINES", "make_kit", "read_recipe"]

MOST_LINES = 10_000
"""Lines of a recipe that are read."""
MOST_CHARACTERS = 2_000
"""Characters of a line."""
PEOPLE = frozenset(["serving", "servings", "portion", "portions", "person", "persons", "people", "serves"])
_STEP = re.compile(r"^\s*(?:step\s*)?\d{1,2}\s*[.):]\s+", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*\u2022\u00b7\u2023\u25e6\u2013]|\[[ x]?\])\s+")
_HEAD = re.compile(
    r"^\W*(?:(?P<ingredients>ingredients?|you(?:'ll| will)? need|shopping list)"
    r"|(?P<steps>instructions?|directions?|method|preparation|steps|how to make(?: it)?))\W*$",
    re.IGNORECASE,
)
# "For the sauce:", "FOR THE TOPPING", "Dough:"; an ingredient line has an amount, or is no title.
_SECTION = re.compile(
    r"^\W*(?:for (?:the|serving)\b[^\d]{1,40}|to serve|to garnish|[^\d:,]{1,40}:)\s*:?\W*$", re.IGNORECASE
)
_ABOUT = re.compile(
    r"^\W*(?:(?:prep(?:aration)?|cook(?:ing)?|bak(?:e|ing)|total|active|ready|rest(?:ing)?|chill(?:ing)?)\b[^:]{0,20}"
    r"|time|calories|kcal|nutrition|difficulty|course|cuisine|author|source|category)\s*:.*$",
    re.IGNORECASE,
)
_COLUMNS = re.compile(r"\t+|\s{3,}")
_SERVES = re.compile(
    r"^\W*(?:serves|servings?|portions?|yields?|makes|feeds)\b\D{0,20}[\d\u00bc-\u00be]"
    r"|^\W*(?:serves|feeds)\s+(?:one|two|three|four|five|six|seven|eight|ten|twelve)\b|^\W*[\d\u00bc-\u00be][\d\s/-]*servings?\W*$",
    re.IGNORECASE,
)
_PEOPLE = re.compile(r"\bfor\s+(\d+)\s+(?:people|persons?)\b", re.IGNORECASE)


def read_recipe(text: str) -> Recipe:
    r"""Read a recipe as it is pasted: a title, ingredient lines, steps, and how many it serves.

    Lines after a heading such as "Ingredients" are ingredients, those after "Instructions" or "Method" are steps.
    Without headings, lines that begin with an amount or are short are ingredients, and numbered or long ones are steps.

    Parameters
    ----------
    text : str
        At most 10,000 lines.

    Raises
    ------
    RecipeError
        If the text has no ingredient line, or too many lines.

    Examples
    --------
    >>> recipe = read_recipe("Pancakes\nServes 4\n2 cups flour\n3 eggs\n1. Mix all and fry in a hot pan.")
    >>> recipe.title, str(recipe.servings), len(recipe.ingredients), len(recipe.instructions)
    ('Pancakes', '4', 2, 1)
    """
    if not isinstance(text, str):
        raise RecipeError("recipe", found=type(text).__name__, expected="a text")
    lines = [line.strip() for line in text.removeprefix("\ufeff").replace("\r", "\n").split("\n")]
    if len(lines) > MOST_LINES:
        raise RecipeError("recipe", found=f"{len(lines)} lines", expected=f"at most {MOST_LINES}")
    servings: Quantity | None = None
    title = ""
    found: list[str] = []
    steps: list[str] = []
    part = ""
    headings = any(_HEAD.match(line) for line in lines)
    for number, line in enumerate(lines):
        if not line:
            continue
        if len(line) > MOST_CHARACTERS:
            raise RecipeError(f"line {number + 1} of the recipe", found=f"{len(line)} characters", do="Break it up.")
        head = _HEAD.match(line)
        if head:
            part = "ingredients" if head["ingredients"] else "steps"
            continue
        if _ABOUT.match(line) or (part != "steps" and _SECTION.match(line) and not _begins_with_amount(line)):
            continue
        if servings is None and (_SERVES.match(line) or _PEOPLE.search(line)):
            made = _PEOPLE.search(line)
            read = read_yield(made[1] if made else line)
            # "Makes 2 1/2 cups" is a volume, no number of people.
            people = bool(made) or not line.lower().lstrip("*-# ").startswith(("makes", "yield"))
            if read is not None and ((not read[1] and people) or read[1] in PEOPLE) and read[0].low > 0:
                servings = read[0]
                continue
            if not made:
                continue
        if part == "steps" or (not part and (_STEP.match(line) or _is_step(line))):
            steps.append(_STEP.sub("", line))
        elif part == "ingredients" or (not headings and (found or _begins_with_amount(line) or title)):
            found.append(_BULLET.sub("", line))
        elif not title and not found:
            title = line.strip("#*= ")
        else:
            found.append(_BULLET.sub("", line))
    ingredients = read_ingredients([cell for line in found for cell in _cells(line)])
    if not ingredients:
        raise RecipeError("recipe", found="no ingredient line", do="Write one ingredient per line: 2 cups flour.")
    return Recipe(tuple(ingredients), tuple(steps), title, servings)


def make_kit(
    recipe: Recipe | Sequence[str | Ingredient],
    table: NutritionTable | None = None,
    *,
    servings: Fraction | float | str | None = None,
    dish: str = "",
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
    else:
        lines = [item for item in recipe if isinstance(item, str)]
        read = iter(read_ingredients(lines))
        items = tuple(next(read) if isinstance(item, str) else item for item in recipe)
        said = None
    items = tuple(item for item in items if item.name or item.text.strip())
    if not items:
        raise RecipeError("recipe", found="no ingredient", do="Give at least one.")
    if servings is not None:
        said = Quantity.of(servings)
    priced = tuple(price(item, table) for item in items)
    notes = () if said is not None else ("the recipe does not say how many it serves: totals are for all of it",)
    return MealKit(priced, Fraction(1) if said is None else said.middle, dish, said is not None, notes)


def _cells(line: str) -> list[str]:
    """The ingredients of a line: of two columns, each that begins with an amount."""
    cells = [cell.strip() for cell in _COLUMNS.split(line) if cell.strip()]
    return cells if len(cells) > 1 and all(map(_begins_with_amount, cells)) else [line]


def _begins_with_amount(line: str) -> bool:
    try:
        found = find_quantity(_BULLET.sub("", line))
    except RecipeError:
        return True
    return found is not None


def _is_step(line: str) -> bool:
    """A sentence: long, and it ends as one, or has several."""
    if _BULLET.match(line) or _begins_with_amount(line):
        return False
    words = line.split()
    return (len(words) >= 6 and (line.endswith((".", "!")) or ". " in line)) or len(words) > 18
