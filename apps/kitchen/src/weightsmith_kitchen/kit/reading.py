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
from weightsmith_kitchen.nutrition import measures
from weightsmith_kitchen.nutrition.ranking import rewritten, stems
from weightsmith_kitchen.phrases.amounts import is_measure
from weightsmith_kitchen.phrases.lines import split_lines
from weightsmith_kitchen.phrases.read import read_ingredients
from weightsmith_kitchen.quantity import Quantity, find_quantity, read_yield
from weightsmith_kitchen.recipe import Recipe
from weightsmith_kitchen.steps.labels import techniques

if TYPE_CHECKING:
    from weightsmith_kitchen.phrases.tagger import IngredientTagger

__all__ = ["MOST_LINES", "read_recipe"]

MOST_LINES = 10_000
"""Lines of a recipe that are read."""
MOST_CHARACTERS = 2_000
"""Characters of a line."""
PEOPLE = frozenset(["serving", "servings", "portion", "portions", "person", "persons", "people", "serves"])
_STEP = re.compile(r"^\s*(?:step\s*)?\d{1,2}\s*[.):]\s+", re.IGNORECASE)
_BULLET = re.compile(
    r"^\s*(?:(?:[-*\u2022\u00b7\u2023\u25e6\u2013]|\[[ x]?\])\s+|(?:[\u25a0-\u27bf\U0001f300-\U0001faff]\ufe0f?\s*)+)"
)
_HEAD = re.compile(
    r"^\W*(?:(?P<ingredients>ingredients?|you(?:'ll| will)? need|shopping list)"
    r"|(?P<steps>instructions?|directions?|method|preparation|steps|how to make(?: it)?)"
    r"|nutrition(?:al)?(?: facts| information| values)?|(?:recipe )?notes?|tips?|equipment|tools|storage|reviews?"
    r"|comments?|video)\W*$",
    re.IGNORECASE,
)
_INLINE = re.compile(
    r"^(\W*(?:ingredients?|you(?:'ll| will)? need|shopping list|instructions?|directions?|method)\s*):[ \t]+(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)
"""A heading that its text follows on the same line."""
# "For the sauce:", "FOR THE TOPPING", "Dough:"; an ingredient line has an amount, or is no title.
_SECTION = re.compile(
    r"^\W*(?:for (?:the|serving)\b[^\d]{1,40}|to serve|to garnish|[^\d:,]{1,40}:)\s*:?\W*$", re.IGNORECASE
)
_ABOUT = re.compile(
    r"^\W*(?:(?:prep(?:aration)?|cook(?:ing)?|bak(?:e|ing)|total|active|ready|rest(?:ing)?|chill(?:ing)?)\b[^:]{0,20}"
    r"|time|calories|kcal|nutrition|difficulty|course|cuisine|author|source|category)\s*:.*$",
    re.IGNORECASE,
)
# "Sauce" on a line of its own: a part of the dish that amounts follow.
_DISHES = """assembly base batter brine coating crumble crust custard decoration dough dressing filling frosting ganache
garnish glaze icing marinade pastry rub sauce streusel topping toppings vinaigrette (?:dry|wet)\\s+ingredients"""
_PART = re.compile(rf"^\W*(?:[^\W\d]+\s+){{0,3}}(?:{'|'.join(_DISHES.split())})\W*$", re.IGNORECASE)
_NUTRIENT = re.compile(
    r"^(?:kcal|cal(?:orie)?s?|energy|kj|joules|protein|(?:total |saturated |trans )?fat|carb(?:ohydrate)?s?|sugars?"
    r"|fib(?:er|re)|sodium|salt|cholesterol|macros)\s*(?:[(\[/,].*|in \w+|kcal|kj|m?g)?$",
    re.IGNORECASE,
)
"""Heads of columns that hold what the food has, not how much of it there is."""
_ENERGY = re.compile(r"^\W*[\d.,]+\s*(?:kcal|kj|cal(?:orie)?s?)\b\W*$", re.IGNORECASE)
_TOTAL = re.compile(r"^\W*(?:total|sum|all)\W*$", re.IGNORECASE)
TO_TASTE = frozenset({"salt", "pepper", "oil", "water"})
"""Last words of foods that stand in lists without an amount: no title."""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
"""Characters that a terminal would obey."""
_COLUMNS = re.compile(r"\t+|\s{3,}")
_SERVES = re.compile(
    r"^\W*(?:serves|servings?|portions?|yields?|makes|feeds)\b\D{0,20}[\d\u00bc-\u00be]"
    r"|^\W*(?:serves|feeds)\s+(?:one|two|three|four|five|six|seven|eight|ten|twelve)\b|^\W*[\d\u00bc-\u00be][\d\s/-]*(?:servings?|portions?|people|persons?)\W*$",
    re.IGNORECASE,
)
_PEOPLE = re.compile(
    r"\bfor\s+(\d+|one|two|three|four|five|six|eight|ten|twelve)\s+(?:people|persons?)\b", re.IGNORECASE
)


_RULE = re.compile(r"\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?|\|\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
"""The line of a Markdown table between its head and its rows."""
_MARKUP = re.compile(r"<(?:html|head|body|script|div|ul|ol|li|p|h[1-6]|table)\b", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{1,200}>")
_COMMAND = re.compile(
    r"[.!]$|\b(?:the|until|minutes?|mins?|hours?|into|together|well|over|with|heat|oven|aside|degrees)\b", re.IGNORECASE
)
_WORDS = "bread butter cream cube dash flour ice juice oil pepper pound quarter rice salt slice strip water zest"
NOUNS = frozenset(_WORDS.split())
"""Techniques that begin lines of ingredients more often than steps."""


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
    if text.lstrip()[:1] in ("{", "["):
        return _of_json(text, tagger)
    if _MARKUP.search(text):
        page = _Page()
        page.feed(text)
        page.close()
        recipes = [recipe for recipe in (_of_script(text, tagger) for text in page.scripts) if recipe is not None]
        if recipes:
            return max(recipes, key=lambda recipe: len(recipe.ingredients))  # others are teasers
        text = "".join(page.texts)
    text = _INLINE.sub(r"\1:\n", text.replace("\r", "\n"))
    return _of_lines([_CONTROL.sub("", line).strip() for line in text.split("\n")], tagger)


def _of_lines(lines: Sequence[str], tagger: IngredientTagger | None) -> Recipe:
    if len(lines) > MOST_LINES:
        raise RecipeError("recipe", found=f"{len(lines)} lines", expected=f"at most {MOST_LINES}")
    servings: Quantity | None = None
    title = ""
    found: list[str] = []
    steps: list[str] = []
    part = ""
    heads = [head for head in map(_HEAD.match, lines) if head]
    headings = any(head["ingredients"] or head["steps"] for head in heads)
    listed = any(head["ingredients"] for head in heads)
    lines, notes = _without_table(lines)
    for number, line in enumerate(lines):
        if not line:
            continue
        if len(line) > MOST_CHARACTERS:
            raise RecipeError(f"line {number + 1} of the recipe", found=f"{len(line)} characters", do="Break it up.")
        head = _HEAD.match(line)
        if head:
            part = "ingredients" if head["ingredients"] else "steps" if head["steps"] else "other"
            continue
        if part == "other":
            continue
        if _ABOUT.match(line) or (part != "steps" and _SECTION.match(line) and not _begins_with_amount(line)):
            continue
        if servings is None and (_SERVES.match(line) or _PEOPLE.search(line)):
            made = _PEOPLE.search(line)
            # "Makes 2 1/2 cups" is a volume, no number of people.
            people = bool(made) or not line.lower().lstrip("*-# ").startswith(("makes", "yield"))
            said = _people(made[1] if made else line, people)
            if said is not None:
                servings = said
                continue
            if not made:
                continue
        numbered = _STEP.match(line)
        if numbered and part != "steps" and _begins_with_amount(line[numbered.end() :]):
            line, numbered = line[numbered.end() :], None
        if part == "steps" or (not part and (numbered or _is_step(line))):
            steps.append(_STEP.sub("", line))
            continue
        first = not title and not found
        if not first and _is_part(lines, number):
            continue
        if listed and not part and not first:
            continue  # what stands between the title and the heading of the ingredients
        if part == "ingredients" or not first or (not headings and _has_measure(line)):
            found.append(_BULLET.sub("", line))
        elif (
            not headings and lines[number + 1 : number + 2] != [""] and _is_food(line) and not _is_title(lines, number)
        ):
            found.append(line)
        else:
            title = line.strip("#*= ")
    return _recipe([cell for line in found for cell in _cells(line)], steps, title, servings, tagger, notes)


def _recipe(
    lines: Sequence[str],
    steps: Sequence[str],
    title: str,
    servings: Quantity | None,
    tagger: IngredientTagger | None,
    notes: Sequence[str] = (),
) -> Recipe:
    if len(lines) > MOST_LINES:
        raise RecipeError("recipe", found=f"{len(lines)} ingredients", expected=f"at most {MOST_LINES}")
    ingredients = read_ingredients(split_lines(lines, tagger=tagger), tagger=tagger)
    if not ingredients:
        raise RecipeError("recipe", found="no ingredient line", do="Write one ingredient per line: 2 cups flour.")
    return Recipe(tuple(ingredients), tuple(steps), title, servings, notes=tuple(notes))


def _people(text: str, people: bool = True) -> Quantity | None:
    """A number of people that a text says, or a bare number where ``people`` are meant."""
    read = read_yield(text)
    if read is None or not ((not read[1] and people) or read[1] in PEOPLE) or read[0].low <= 0:
        return None
    return read[0]


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
        elif tag in ("td", "th"):
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
        return _of_json(re.sub(r"^\s*(?://)?\s*<!\[CDATA\[|(?://)?\s*\]\]>\s*$", "", text), tagger)
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
        return recipe if recipe.servings is not None else replace(recipe, servings=_servings(found.get("yields")))
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
    if isinstance(made, list):
        made = next((item for item in made if _servings(item) is not None), None)
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
    steps = steps.splitlines() if isinstance(steps, str) else list(_texts(steps))
    steps = [step for step in map(_clean, steps) if step]
    return _recipe(lines, steps, _clean(str(title or "")), _servings(made), tagger, _nutrients(found))


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


def _servings(made: Any) -> Quantity | None:
    if isinstance(made, (int, float)) and not isinstance(made, bool) and 0 < made < 1e6:
        return Quantity.of(made)
    return _people(made) if isinstance(made, str) else None


def _clean(text: str) -> str:
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(_TAG.sub(" ", _CONTROL.sub("", html.unescape(text))).split()))


# --- lines ------------------------------------------------------------------------------------------------------------


def _without_table(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines with rows of Markdown tables as lines, the amount before the food; their heads are left out.

    Columns of energies and nutrients are left out too, and named in the notes.
    """
    made: list[str] = []
    left_out: dict[str, None] = {}
    dropped: set[int] = set()
    for number, line in enumerate(lines):
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if "|" not in line:
            dropped = set()
            made.append("" if _RULE.fullmatch(line) else line)
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if _RULE.fullmatch(after):
            dropped = {place for place, cell in enumerate(cells) if _NUTRIENT.match(cell)}
            left_out |= dict.fromkeys(f"column {cells[place]!r} of a table: left out" for place in sorted(dropped))
        if _RULE.fullmatch(line) or _RULE.fullmatch(after):
            made.append("")
            continue
        kept = [cell for place, cell in enumerate(cells) if cell and place not in dropped]
        energies = [cell for cell in kept if _ENERGY.match(cell)] if len(kept) > 1 else []
        left_out |= dict.fromkeys(f"{cell} in a table: left out" for cell in energies)
        kept = [cell for cell in kept if cell not in energies]
        if (dropped or energies) and len(kept) == 1 and _TOTAL.match(kept[0]):
            left_out[f"row {kept[0]!r} of a table: left out"] = None
            continue
        amounts = [cell for cell in kept if _begins_with_amount(cell)]
        made.append(" ".join([*amounts, *(cell for cell in kept if cell not in amounts)]))
    return made, list(left_out)


def _is_part(lines: Sequence[str], number: int) -> bool:
    """The line names a part of the dish, and amounts follow it: "Sauce", and "Tomato sauce" after an empty line."""
    line = lines[number]
    if not _PART.match(line) or _begins_with_amount(line) or not _begins_with_amount(_next(lines, number)):
        return False
    return len(line.split()) == 1 or line.lower().endswith("ingredients") or lines[number - 1 : number] == [""]


def _is_title(lines: Sequence[str], number: int) -> bool:
    """The line is a food, and the name of the dish: it is written as one, and an amount follows at once."""
    word = stems(rewritten(lines[number])).last
    return lines[number][:1].isupper() and word not in TO_TASTE and _begins_with_amount(_next(lines, number))


def _next(lines: Sequence[str], number: int) -> str:
    return next((line for line in lines[number + 1 :] if line), "")


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
    """A sentence: long, and it ends as one, or has several; or it begins with what a cook does."""
    if _BULLET.match(line) or _begins_with_amount(line):
        return False
    words = line.split()
    first = words[0].lower().strip(",.:;")
    if len(words) > 1 and first in techniques() and first not in NOUNS and _COMMAND.search(line):
        return True
    return (len(words) >= 6 and (line.endswith((".", "!")) or ". " in line)) or len(words) > 18


def _has_measure(line: str) -> bool:
    """The line begins with an amount, or has one with a unit: "flour - 2 cups"."""
    if _begins_with_amount(line):
        return True
    return any(is_measure(word) for word in re.findall(r"\d\s*([^\W\d_]+)", line))


def _is_food(line: str) -> bool:
    """The whole line is a food that household measures are known of: "salt"."""
    name = stems(rewritten(line))
    return any(name.stems == row.stems for _, row, _ in measures.rows())
