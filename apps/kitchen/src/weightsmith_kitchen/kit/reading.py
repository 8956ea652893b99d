r"""A recipe as it is pasted, to a record: plain lines, a Markdown table, a web page, or JSON.

Web pages carry their recipe as JSON, an object of the type ``Recipe`` of schema.org. It is read where it is there.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.kit import prose
from weightsmith_kitchen.kit.prose import Made, begins_with_amount
from weightsmith_kitchen.kit.tables import without_tables
from weightsmith_kitchen.nutrition.ranking import rewritten, stems
from weightsmith_kitchen.phrases.lines import split_lines
from weightsmith_kitchen.phrases.markup import unbulleted, unmarked
from weightsmith_kitchen.phrases.read import read_ingredients
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Recipe

if TYPE_CHECKING:
    from weightsmith_kitchen.phrases.tagger import IngredientTagger

__all__ = ["MOST_LINES", "read_recipe"]

MOST_LINES = 10_000
"""Lines of a recipe that are read."""
MOST_CHARACTERS = 2_000
"""Characters of a line."""
_HEAD = re.compile(
    r"^\W*(?:(?P<ingredients>ingredients?|you(?:'ll| will)? need|shopping list)"
    r"|(?P<steps>instructions?|directions?|method|preparation|steps|how to make(?: it)?)"
    r"|nutrition(?:al)?(?: facts| information| values)?|(?:recipe )?notes?|tips?|equipment|tools|storage|reviews?"
    r"|comments?|video)\W*$",
    re.IGNORECASE,
)
_INLINE = re.compile(
    r"^([^\w\n]*(?:ingredients?|you(?:'ll| will)? need|shopping list|instructions?|directions?|method)\s*)"
    r":[ \t]+(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)
"""A heading that its text follows on the same line."""
# "For the sauce:", "FOR THE TOPPING", "Dough:"; an ingredient line has an amount, or is no title.
_SECTION = re.compile(
    r"^\W*(?:for (?:the|serving)\b[^\d]{1,40}|to serve|to garnish|[^\d:,]{1,40}:)\s*:?\W*$", re.IGNORECASE
)
# "Sauce" on a line of its own: a part of the dish that amounts follow.
_DISHES = """assembly base batter brine coating crumble crust custard decoration dough dressing filling frosting ganache
garnish glaze icing marinade pastry rub sauce streusel topping toppings vinaigrette (?:dry|wet)\\s+ingredients"""
_PART = re.compile(rf"^\W*(?:[^\W\d]+\s+){{0,3}}(?:{'|'.join(_DISHES.split())})\W*$", re.IGNORECASE)
TO_TASTE = frozenset({"salt", "pepper", "oil", "water"})
"""Last words of foods that stand in lists without an amount: no title."""
_STEP = re.compile(r"^\s*(?:step\s*)?\d{1,2}\s*[.):]\s+", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
"""Characters that a terminal would obey."""
_LETTER = re.compile(r"\w")
_COLUMNS = re.compile(r"\t+|\s{3,}")
_JSON = re.compile(r"\s*(?:\{|\[\s*(?:[\[{\"\]\d-]|$))")
"""How JSON begins. A title may begin so: [Vegan] Pancakes."""
_MARKUP = re.compile(r"<(?:html|head|body|script|div|ul|ol|li|p|h[1-6]|table)\b", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{1,200}>")


def read_recipe(text: str, *, tagger: IngredientTagger | None = None) -> Recipe:
    r"""Read a recipe as it is pasted: a title, ingredient lines, steps, and how many it serves.

    Lines after a heading such as "Ingredients" are ingredients, those after "Instructions" or "Method" are steps.
    Without headings, lines that begin with an amount or are short are ingredients; numbered or long ones, and those
    that begin with what a cook does, are steps. A line that gives several foods an amount each becomes several.

    Parameters
    ----------
    text : str
        At most 10,000 lines; or HTML or JSON with a recipe of schema.org, or JSON of `Recipe.to_dict`.
    tagger : IngredientTagger, optional
        Reads the ingredient lines; the one that ships by default.

    Raises
    ------
    RecipeError
        If the text has no ingredient line, or too many lines, or is JSON without a recipe.

    Examples
    --------
    >>> recipe = read_recipe("Pancakes\nServes 4\n2 cups flour\n3 eggs\n1. Mix all and fry in a hot pan.")
    >>> recipe.title, str(recipe.servings), len(recipe.ingredients), len(recipe.instructions)
    ('Pancakes', '4', 2, 1)
    >>> read_recipe('{"@type": "Recipe", "recipeIngredient": ["2 eggs"], "recipeYield": "4 servings"}').servings
    Quantity('4')
    """
    if not isinstance(text, str):
        raise RecipeError("recipe", found=type(text).__name__, expected="a text")
    text = text.removeprefix("\ufeff")
    if _JSON.match(text):
        return _of_json(text, tagger)
    if _MARKUP.search(text):
        page = _Page()
        end = text.rfind(">") + 1  # no tag ends behind it, and the parser looks for an end from each "<"
        page.feed(text[:end])
        page.close()
        page.handle_data(html.unescape(text[end:]))
        recipes = [recipe for recipe in (_of_script(text, tagger) for text in page.scripts) if recipe is not None]
        if recipes:
            return max(recipes, key=lambda recipe: len(recipe.ingredients))  # others are teasers
        text = "".join(page.texts)
    text = _INLINE.sub(r"\1:\n", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _of_lines([_CONTROL.sub("", line).strip() for line in text.split("\n")], tagger)


def _of_lines(lines: Sequence[str], tagger: IngredientTagger | None) -> Recipe:
    if len(lines) > MOST_LINES:
        raise RecipeError("recipe", found=f"{len(lines)} lines", expected=f"at most {MOST_LINES}")
    made = Made(None, None)
    title = ""
    found: list[str] = []
    steps: list[str] = []
    others: list[str] = []
    part, signed = "", False
    heads = [head for head in map(_HEAD.match, lines) if head]
    headings = any(head["ingredients"] or head["steps"] for head in heads)
    listed = any(head["ingredients"] for head in heads)
    lines, notes = without_tables([unmarked(line) for line in lines])
    for number, line in enumerate(lines):
        if not _LETTER.search(line):
            continue
        _check_length(line, f"line {number + 1} of the recipe")
        head = _HEAD.match(line)
        if head:
            part = "ingredients" if head["ingredients"] else "steps" if head["steps"] else "other"
            continue
        first = not title and not found
        if part == "other" or signed or prose.is_about(line):
            others.append(line)
            signed = False
            continue
        closes, signed = prose.is_closing(line) if not first else (False, False)
        if closes:
            others.append(line)
            continue
        if part != "steps" and _SECTION.match(line) and not begins_with_amount(line):
            continue
        told = prose.read_made(line)
        if told is not None:
            others += [] if made.lacks(told) else [line]
            made = made.or_else(told)
            continue
        numbered = _STEP.match(line)
        if numbered and part != "steps" and begins_with_amount(line[numbered.end() :]):
            line, numbered = line[numbered.end() :], None
        if not part and not numbered and prose.is_step(line) and prose.is_story(line, step=True):
            others.append(line)
            continue
        if part == "steps" or (not part and (numbered or prose.is_step(line))):
            steps.append(_STEP.sub("", line))
            continue
        if not first and _is_part(lines, number):
            continue
        if not first and ((listed and not part) or prose.is_story(line)):
            others.append(line)  # what stands between the title and the heading of the ingredients, or tells something
        elif part == "ingredients" or not first or (not headings and prose.has_measure(line)):
            found.append(unbulleted(line))
        elif (
            not headings
            and lines[number + 1 : number + 2] != [""]
            and prose.is_food(line)
            and not _is_title(lines, number)
        ):
            found.append(line)
        else:
            title = line.strip("#*= ")
    notes = [*notes, *prose.left_out(others)]
    return _recipe([cell for line in found for cell in _cells(line)], steps, title, made, tagger, notes)


def _recipe(
    lines: Sequence[str],
    steps: Sequence[str],
    title: str,
    made: Made,
    tagger: IngredientTagger | None,
    notes: Sequence[str] = (),
) -> Recipe:
    if len(lines) > MOST_LINES:
        raise RecipeError("recipe", found=f"{len(lines)} ingredients", expected=f"at most {MOST_LINES}")
    for number, line in enumerate(lines, 1):
        _check_length(line, f"ingredient {number} of the recipe")
    ingredients = read_ingredients(split_lines(lines, tagger=tagger), tagger=tagger)
    if not ingredients:
        raise RecipeError("recipe", found="no ingredient line", do="Write one ingredient per line: 2 cups flour.")
    return Recipe(tuple(ingredients), tuple(steps), title, made.servings, makes=made.makes, notes=tuple(notes))


def _check_length(line: str, what: str) -> None:
    if len(line) > MOST_CHARACTERS:
        raise RecipeError(what, found=f"{len(line)} characters", do="Break it up.")


# --- JSON and web pages -----------------------------------------------------------------------------------------------


_TAGS = "p div li br tr h1 h2 h3 h4 h5 h6 ul ol table section article header title"
BLOCKS = frozenset(_TAGS.split())
"""Elements of a page that begin a new line."""


class _Page(HTMLParser):
    """The texts of a page, a line per block, and its scripts of linked data."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._inside = tag
            if (dict(attrs).get("type") or "").lower() == "application/ld+json":
                self._inside = "data"
                self.scripts.append("")
        elif tag in BLOCKS:
            self.texts.append("\n")
        elif tag in ("td", "th", "sup"):  # 1<sup>1</sup>/<sub>2</sub> is no 11/2
            self.texts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""
        elif tag in BLOCKS:
            self.texts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.scripts[-1] += data
        elif not self._inside:
            self.texts.append(re.sub(r"[^\S\n]+", " ", data))


def _of_script(text: str, tagger: IngredientTagger | None) -> Recipe | None:
    """The recipe in a page's linked data; None if it is of something else."""
    try:
        return _of_json(re.sub(r"^(?://)?\s*<!\[CDATA\[|(?:// {0,9})?\]\]>$", "", text.strip()), tagger)
    except RecipeError:
        return None


def _of_json(text: str, tagger: IngredientTagger | None) -> Recipe:
    try:
        stored = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        do = (
            "Give one recipe at a time, or a line each in a .jsonl file."
            if "Extra data" in str(error)
            else "Copy all of it."
        )
        raise RecipeError("recipe", found=f"JSON that cannot be read: {error}", do=do) from None
    every = [item for item in _objects(stored) if "recipeIngredient" in item or _listed(item)]
    if not every:
        expected = "a list 'ingredients' or 'recipeIngredient' in it"
        raise RecipeError("recipe", found="JSON without one", expected=expected)
    if len(every) > 1:
        raise RecipeError("recipe", found=f"{len(every)} lists of ingredients in JSON", do="Give one recipe at a time.")
    found, listed = every[0], _listed(every[0])
    if listed is None:
        return _of_schema(found, tagger)
    if all(isinstance(item, dict) for item in listed):
        recipe = Recipe.from_dict(found)
        told = _made(found.get("yields"))
        return replace(recipe, servings=recipe.servings or told.servings, makes=recipe.makes or told.makes)
    steps = found.get("instructions_list") or found.get("instructions")
    return _of_fields(found, listed, found.get("title"), steps, found.get("servings", found.get("yields")), tagger)


def _listed(found: Mapping[str, Any]) -> list[Any] | None:
    """The ingredients of an object that is no recipe of schema.org."""
    listed = found.get("ingredients")
    return listed if "recipeIngredient" not in found and isinstance(listed, list) and listed else None


def _objects(stored: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects of a document, outermost first."""
    if isinstance(stored, dict):
        yield stored
        stored = list(stored.values())
    if isinstance(stored, list) and depth < 6:
        for value in stored:
            yield from _objects(value, depth + 1)


def _of_schema(found: Mapping[str, Any], tagger: IngredientTagger | None) -> Recipe:
    listed, made = found["recipeIngredient"], found.get("recipeYield")
    return _of_fields(
        found,
        listed.splitlines() if isinstance(listed, str) else listed,
        found.get("name"),
        list(_texts(found.get("recipeInstructions"))),
        made,
        tagger,
    )


def _of_fields(
    found: Mapping[str, Any], listed: Any, title: Any, steps: Any, made: Any, tagger: IngredientTagger | None
) -> Recipe:
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise RecipeError("ingredients of the recipe", found="other things than texts", expected="lines")
    told = [line for line in map(_clean, listed) if line]
    lines = [line for number, line in enumerate(told) if not _is_part(told, number)]
    others = [line for line in lines if prose.is_about(line) or prose.read_made(line) is not None]
    lines = [line for line in lines if line not in others]
    steps = steps.splitlines() if isinstance(steps, str) else list(_texts(steps))
    steps = [step for step in map(_clean, steps) if step]
    notes = (*_nutrients(found), *prose.left_out(others))
    return _recipe(lines, steps, _clean(str(title or "")), _made(made), tagger, notes)


def _nutrients(found: Mapping[str, Any]) -> list[str]:
    """What a page says of its recipe's nutrients, for the notes: the kit has its own."""
    told = found.get("nutrition")
    if not isinstance(told, Mapping):
        return []
    values = ", ".join(
        f"{name.removesuffix('Content')} {_clean(str(value))[:40]}"
        for name, value in told.items()
        if isinstance(value, (str, int, float)) and not name.startswith("@") and name != "servingSize"
    )
    basis = _clean(str(told.get("servingSize") or ""))[:40] or "an unknown amount"
    return [f"nutrients that the page prints, for {basis}: {values}: not used"] if values else []


def _texts(stored: Any) -> Iterator[str]:
    """The texts of steps: of a text, a list, or objects with ``text`` or, of a section, ``itemListElement``."""
    if isinstance(stored, str):
        yield from stored.splitlines()
    elif isinstance(stored, list):
        for item in stored:
            yield from _texts(item)
    elif isinstance(stored, dict):
        yield from _texts(stored.get("itemListElement") or stored.get("text") or stored.get("name"))


def _made(told: Any) -> Made:
    """What a field says that the recipe makes: a number of people, a text such as "24 cookies", or a list of them."""
    if isinstance(told, list):
        made = Made(None, None)
        for item in told:
            made = made.or_else(_made(item))
        return made
    if isinstance(told, (int, float)) and not isinstance(told, bool) and 0 < told < 1e6:
        return Made(Quantity.of(told), None)
    if not isinstance(told, str):
        return Made(None, None)
    servings = prose.read_people(told)
    return Made(servings, None) if servings is not None else prose.read_made(f"Makes {told}") or Made(None, None)


def _clean(text: str) -> str:
    return re.sub(
        r"\s+([.,;:!?])", r"\1", " ".join(_TAG.sub(" ", unmarked(_CONTROL.sub("", html.unescape(text)))).split())
    )


# --- lines ------------------------------------------------------------------------------------------------------------


def _is_part(lines: Sequence[str], number: int) -> bool:
    """The line names a part of the dish, and amounts follow it: "Sauce", and "Tomato sauce" after an empty line."""
    line = lines[number]
    if not _PART.match(line) or begins_with_amount(line) or not begins_with_amount(_next(lines, number)):
        return False
    return len(line.split()) == 1 or line.lower().endswith("ingredients") or lines[number - 1 : number] == [""]


def _is_title(lines: Sequence[str], number: int) -> bool:
    """The line is a food, and the name of the dish: it is written as one, and an amount follows at once."""
    word = stems(rewritten(lines[number])).last
    return lines[number][:1].isupper() and word not in TO_TASTE and begins_with_amount(_next(lines, number))


def _next(lines: Sequence[str], number: int) -> str:
    return next((line for line in lines[number + 1 :] if line), "")


def _cells(line: str) -> list[str]:
    """The ingredients of a line: of two columns, each that begins with an amount."""
    cells = [cell.strip() for cell in _COLUMNS.split(line) if cell.strip()]
    return cells if len(cells) > 1 and all(map(begins_with_amount, cells)) else [line]
