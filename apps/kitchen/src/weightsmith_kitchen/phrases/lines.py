"""Lines that name several ingredients, one line each: "1 cup each flour and sugar", "1 egg plus 1 yolk"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.nutrition import measures
from weightsmith_kitchen.phrases.markup import unbulleted, unmarked
from weightsmith_kitchen.phrases.read import read_ingredients
from weightsmith_kitchen.phrases.tagger import IngredientTagger
from weightsmith_kitchen.quantity import find_quantity
from weightsmith_kitchen.recipe import Ingredient
from weightsmith_kitchen.units import find_unit

__all__ = ["split_line", "split_lines"]

_EACH = re.compile(r"^(?P<amount>\S[^,;()]{0,30}?)\s+each(?:\s+of)?[:,]?\s+(?P<names>[^()\d]+)$", re.IGNORECASE)
_EACH_LAST = re.compile(r"^(?P<names>[^()\d]+?),?\s+(?P<amount>\d[^,;()]{0,30}?)\s+(?:of\s+)?each$", re.IGNORECASE)
_CHOICE = re.compile(
    r"\b(?:or|such as|containing|including|preferably|substitute|portioned|half and half|made up of|to give|separated"
    r"|studded|marinated|reserved|bouquet)\b|:",
    re.IGNORECASE,
)
"""Then the amounts are of one food, or of others that may be taken instead."""
_TAKEN = re.compile(
    r"^(?:[\w\s]*?\s)?(?:zest|juice|rind|peel)\s+of\s+(?=\d|an?\b|half\b|one\b|two\b|three\b)", re.IGNORECASE
)
_HOW = re.compile(r"\w+ed|left|whole|cut|percent|per|only|thick|shape|square", re.IGNORECASE)
"""Words of what is done with a part: "2 oranges, 1 segmented"."""
_PART_OF_FRUIT = re.compile(r"\b(?:zest|juice|rind|peel)\b", re.IGNORECASE)
_NAME_FIRST = re.compile(r"^(?P<name>[^\d,()]+),\s*(?P<amount>[\d½¼¾⅓⅔][\d\s/.½¼¾⅓⅔-]*(?P<unit>[^\W\d_]+)\.?)$")
_AND = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*", re.IGNORECASE)
COLORS = frozenset({"red", "green", "yellow", "white", "black", "brown", "purple"})
"""Words that need the food of another part: red and green pepper."""
_JOINT = re.compile(r"\s*[;+]\s*|\s*,?\s+(?:plus|and|&)\s+|\s*,\s+", re.IGNORECASE)
_REMARK = re.compile(r"(?P<names>.*(?:\band\b|&)[^,]*)(?P<remark>,.*)$", re.IGNORECASE)
"""Of the names after "each": what follows the last of them says how all are cut."""
_DIGIT = re.compile(r"[\d½¼¾⅓⅔⅛]")
_ABOUT = re.compile(r"\s*\((?:about|approx\.?|approximately|around)\s+[\d\s/½¼¾⅓⅔.-]+\)", re.IGNORECASE)
_WISH = re.compile(
    r"(?:,?\s*\b(?:to (?:your\s+)?taste|as (?:needed|desired|you like)|if (?:desired|needed|you like)|optional"
    r"|for (?:serving|garnish|seasoning|sprinkling|the pan|topping)|to (?:serve|garnish|season))\b|\s*\([^()]*\))*\W*$",
    re.IGNORECASE,
)
"""What follows foods that have no amount."""
_FOODS = re.compile(r"\s*,\s*(?:(?:and|&)\s+)?|\s+(?:and|&|\+)\s+|\s*[/&+]\s*", re.IGNORECASE)
_BOTH = re.compile(r"\band\b|[&+/]", re.IGNORECASE)
MOST_WORDS = 5
"""Of a food without an amount that stands beside another."""
_TIMES = re.compile(r"(?<=\d)\s?[x×]\s?(?=\d+(?:\.\d+)?\s?(?:g|kg|ml|l|oz|lb)\b)", re.IGNORECASE)


def split_line(line: str, *, tagger: IngredientTagger | None = None) -> list[str]:
    """The lines that a line stands for: itself, unless it gives several foods an amount each, or names several by none.

    A part that has an amount but no food of its own stays with the part before it, so that "1 onion, 1/4 inch dice" and
    "1 cup plus 2 tablespoons flour" are one line.

    Parameters
    ----------
    line : str
        An ingredient line.
    tagger : IngredientTagger, optional
        Decides what is a food; the one that ships by default.

    Examples
    --------
    >>> split_line("1 cup each flour and sugar"), split_line("2 eggs, 1 cup flour")
    (['1 cup flour', '1 cup sugar'], ['2 eggs', '1 cup flour'])
    >>> split_line("salt and pepper, to taste"), split_line("macaroni and cheese")
    (['salt, to taste', 'pepper, to taste'], ['macaroni and cheese'])
    >>> split_line("1 egg plus 1 yolk"), split_line("2 carrots, 1 diced, 1 sliced")
    (['1 egg', '1 yolk'], ['2 carrots, 1 diced, 1 sliced'])
    """
    if len(line.splitlines()) > 1:
        return [part for piece in line.splitlines() for part in split_line(piece, tagger=tagger)]
    line = text = _TIMES.sub(" x ", _ABOUT.sub("", unbulleted(unmarked(line)))).strip()
    if foods := _without_amount(text):
        return foods
    behind = _NAME_FIRST.match(text)
    if behind and (unit := find_unit(behind["unit"])) is not None and unit.kind != "count":
        return [f"{behind['amount']} {behind['name']}"]  # "butter, 2 tbsp"
    shared = next(filter(None, (form.match(re.sub(r"\s*\([^()]*\)", "", text)) for form in (_EACH, _EACH_LAST))), None)
    if shared and _amount(shared["amount"]):
        told = _REMARK.match(shared["names"].strip())
        names = [name for name in _AND.split(told["names"] if told else shared["names"].strip()) if name]
        if len(names) > 1:
            food, remark = names[-1].rpartition(" ")[2], told["remark"] if told else ""
            whole = [f"{name} {food}" if name.lower() in COLORS else name for name in names]
            return [f"{shared['amount']} {name}{remark}" for name in whole]
    cuts = [] if _CHOICE.search(text) else [joint for joint in _JOINT.finditer(text) if _is_cut(text, joint)]
    if not cuts:
        return [line]
    bounds = [(0, 0), *((joint.start(), joint.end()) for joint in cuts), (len(text), len(text))]
    parts = [text[first[1] : stop[0]] for first, stop in pairwise(bounds)]
    read = read_ingredients(parts, tagger=tagger)
    if len(read) == 2 and cuts[0][0].strip().lower() in ("plus", "+") and _is_more(read[0], read[1]):
        return [parts[0], f"{parts[1]} {read[0].name}"]
    colored = read[-1].name.split()
    if len(colored) > 1 and colored[0].lower() in COLORS and all(item.name.lower() in COLORS for item in read[:-1]):
        return [*(f"{part} {' '.join(colored[1:])}" for part in parts[:-1]), parts[-1]]
    made: list[tuple[int, int]] = []  # first and last part of each line
    for place, item in enumerate(read):
        if made and not (_names_food(item) and all(map(_names_food, read[made[-1][0] : place]))):
            made[-1] = (made[-1][0], place)
        else:
            made.append((place, place))
    counts = [float(item.quantity) for first, _ in made if (item := read[first]).quantity and not item.unit]
    of_one = len(made) == len(counts) > 2 and counts[0] == sum(counts[1:])
    if len(made) == 1 or of_one:  # "4 eggs, 2 whole, 2 yolks" are four
        return [line]
    lines = [text[bounds[first][1] : bounds[last + 1][0]] for first, last in made]
    taken = _TAKEN.match(text)
    if taken is None:
        return lines
    return [line if _PART_OF_FRUIT.search(line) else taken[0] + line for line in lines]


def _without_amount(text: str) -> list[str]:
    """Foods that a line names and gives no amount, as lines: "salt and pepper"; none of any other line."""
    if _DIGIT.search(text) or not _FOODS.search(text) or _amount(text):
        return []
    wish = _WISH.search(text)
    told = text[: wish.start()] if wish else text
    names = [name for name in _FOODS.split(told.strip()) if name]
    joined = len(names) > 2 or _BOTH.search(told) is not None  # "flour, bread" is one
    if len(names) < 2 or not joined or not all(map(_is_known, names)):
        return []
    return [f"{name}{text[len(told) :]}" for name in names]


def _is_known(name: str) -> bool:
    """Household measures are known of the food, and the name is no more than a name."""
    return len(name.split()) <= MOST_WORDS and not _CHOICE.search(name) and bool(measures.find(name))


def _is_more(first: Ingredient, second: Ingredient) -> bool:
    """The second amount is of the first's food, in a unit that cannot be added: 2 sticks butter plus 1 tablespoon."""
    counted, measured = (find_unit(item.unit) if item.unit else None for item in (first, second))
    adds = counted is not None and measured is not None and counted.kind != measured.kind
    return adds and _names_food(first) and not any(span.label == "NAME" for span in second.spans)


def _names_food(item: Ingredient) -> bool:
    """The part has an amount of its own, no mere length, and names a food: the tagger or the measures know it."""
    told = [word for word in item.name.lower().split() if word not in COLORS and not _HOW.fullmatch(word)]
    tagged = not item.spans or any(span.label == "NAME" for span in item.spans) or bool(measures.find(item.name))
    named = tagged and not re.search(r"\beach\b", item.text)
    return named and bool(told) and item.quantity is not None


def _is_cut(text: str, joint: re.Match[str]) -> bool:
    """An amount follows, outside of brackets; after a comma one in digits that is no part of a word: "2-pound"."""
    rest = text[joint.end() :]
    if text[: joint.end()].count("(") > text[: joint.end()].count(")"):
        return False
    word = joint[0].strip(" ,").lower()
    if word and (_TAKEN.match(rest) or re.match(r"an?\s+\w", rest, re.IGNORECASE)):
        return True
    return _amount(rest) and (bool(word) or not (rest[0].isalpha() or re.match(r"\d+-[a-z]", rest)))


def _amount(text: str) -> bool:
    try:
        return find_quantity(text) is not None and not re.match(r"\s*an?\b", text, re.IGNORECASE)
    except RecipeError:
        return False


def split_lines(lines: Iterable[str], *, tagger: IngredientTagger | None = None) -> list[str]:
    """The lines that several lines stand for, in order; see `split_line`."""
    return [part for line in lines for part in split_line(line, tagger=tagger)]
