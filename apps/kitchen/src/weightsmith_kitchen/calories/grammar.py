"""Read generated ingredient lists: "1 cup of rice, 3 tablespoons of butter". A grammar; nothing is evaluated.

The lists are those of CaLoRAify (Yao et al., 2024, arXiv:2412.09936).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.quantity import Quantity, find_quantity
from weightsmith_kitchen.units import find_unit

__all__ = ["ListItem", "parse_list", "unit_name"]

LONGEST = 100_000
"""Characters of a list; more is no list of ingredients."""
LARGEST = 100_000
"""Of any unit; 100 kg in grams. Larger amounts are digits that a model repeats."""
# Units of drinks and of the market; `units` has no factor for them.
_OTHER = {
    "glass": "glass",
    "glasses": "glass",
    "shot": "shot",
    "shots": "shot",
    "bushel": "bushel",
    "bushels": "bushel",
}
_PREAMBLE = re.compile(
    r"^.*\bthey are\b\s*:?|^\s*(?:the )?ingredients?\s*(?:are)?\s*:|^\s*the dish is\b.*?\bin total\b\.?", re.I | re.S
)
# A comma inside a number ("1,000 g", "1,5 cups") separates nothing.
_SEPARATOR = re.compile(r"(?<!\d),|,(?!\d)|[;\n]|\.\s+(?=\d)")
_NEXT = re.compile(r"(?<=[^\W\d_)])\s+(?:and\s+)?(?=[\d¼½¾⅓⅔⅛⅜⅝⅞])")
_AMOUNT = re.compile(r"\s*(?:[\d¼½¾⅓⅔⅛⅜⅝⅞.]|(?:an?|half|quarter|one|two|three|four|five|six)\b)", re.I)
# "2 x 100 g": an amount of amounts.
_TIMES = re.compile(r"\s*[x×]\s*(?=[\d¼½¾⅓⅔⅛⅜⅝⅞.])", re.I)
# Before an amount that belongs to the words before it.
_JOINING = re.compile(r"(?:\b(?:to|or|and|of)|[\d¼½¾⅓⅔⅛⅜⅝⅞]\s*x)$", re.I)
# Behind an amount that is only the beginning of what is written: "1/2/3", "1,2,3".
_BROKEN = re.compile(r"/|[.,]\d")
# "2 eggs of 50 g": the weight of each.
_EACH = re.compile(r"\s*(?P<name>[^\W\d_].*?)\s+of\s+(?P<each>\d.*)$", re.I | re.S)
_WORDS = re.compile(r"\s*(?P<one>[^\W\d_]+\.?)(?:[\s-]+(?P<two>[^\W\d_]+\.?))?")


@dataclass(frozen=True, slots=True)
class ListItem:
    """One item of a list.

    Attributes
    ----------
    text : str
        As written.
    amount : Quantity or None
        Exact, or a range. None where it cannot be read.
    unit : str
        Its name in the singular (``"teaspoon"``), or ``""`` where none is named.
    ingredient : str
        In lower case, without "of".
    error : str or None
        Why the item cannot be used.
    """

    text: str
    amount: Quantity | None
    unit: str
    ingredient: str
    error: str | None = None

    @property
    def key(self) -> str:
        """Unit and ingredient, as the table's keys are written."""
        return f"{self.unit} {self.ingredient}".strip()


def unit_name(name: str) -> str | None:
    """The singular name of a unit, or None where the word is no unit.

    Examples
    --------
    >>> unit_name("tbsp."), unit_name("fl. oz"), unit_name("glasses"), unit_name("rice")
    ('tablespoon', 'fluid ounce', 'glass', None)
    """
    unit = find_unit(name)
    return unit.name if unit is not None else _OTHER.get(name.lower())


def split_unit(text: str) -> tuple[str, str]:
    """Divide a text into the unit that it begins with, ``""`` where there is none, and the rest."""
    match = _WORDS.match(text)
    if match:
        for end, words in ((match.end("two"), f"{match['one']} {match['two']}"), (match.end("one"), match["one"])):
            unit = unit_name(words) if end > 0 else None
            # A word that is part of a hyphenated word is no unit.
            if unit is not None and text[end : end + 1] in ("", " ", "\t", ",", "."):
                return unit, text[end:]
    return "", text


def parse_list(text: str) -> list[ListItem]:
    """Read a list of ingredients with amounts.

    Parameters
    ----------
    text : str
        Items between commas, semicolons or line breaks. A preamble ("The dish is ... They are:") is skipped. Pieces
        with a weight, "2 eggs of 50 g" or "2 x 50 g of egg", count by weight, here 100 g. A comma between digits
        belongs to the number: "1,5 cups" is one and a half, "1,500 g" fifteen hundred.

    Returns
    -------
    list of ListItem
        In the order of the text. What cannot be read is an item with an error.

    Raises
    ------
    RecipeError
        If the text is no string or has more than 100,000 characters.

    Examples
    --------
    >>> for item in parse_list("The dish is X. They are: 1 1/2 teaspoons of vinegar, 1-2 cups of flour, 1/0 cup"):
    ...     print(item.amount, item.key, item.error)
    1 1/2 teaspoon vinegar None
    1-2 cup flour None
    None  the amount cannot be read: '1/0 cup'
    """
    if not isinstance(text, str):
        raise RecipeError("list of ingredients", found=type(text).__name__, expected="a text")
    if len(text) > LONGEST:
        raise RecipeError("list of ingredients", found=f"{len(text)} characters", expected=f"at most {LONGEST}")
    match = _PREAMBLE.match(text)
    body = text[match.end() :] if match else text
    return [_item(part) for piece in _SEPARATOR.split(body) for part in _parts(piece) if part]


def _parts(piece: str) -> Iterator[str]:
    """Divide items between which the comma is missing: an amount and a unit begin the next one."""
    start = 0
    for match in _NEXT.finditer(piece):
        before = piece[start : match.start()]
        if not _AMOUNT.match(before) or _JOINING.search(before):
            continue
        try:
            found = find_quantity(piece, match.end())
        except RecipeError:
            found = None
        if found is not None and split_unit(piece[found[2] :])[0]:
            yield _trim(piece[start : match.start()])
            start = match.end()
    yield _trim(piece[start:])


def _trim(text: str) -> str:
    return re.sub(r"^\s*and\s+", "", text.strip(), flags=re.I).rstrip(" .!")


def _item(text: str) -> ListItem:
    try:
        found = _amount(text)
    except RecipeError:
        return ListItem(text, None, "", "", f"the amount cannot be read: {text[:40]!r}")
    if found is None:
        return ListItem(text, None, "", _name(text), "no amount")
    amount, end = found
    if _BROKEN.match(text, end):
        return ListItem(text, None, "", "", f"the amount cannot be read: {text[:40]!r}")
    unit, rest = split_unit(text[end:])
    if not unit and (each := _each(rest)) is not None:
        rest, unit, weight = each
        amount = _product(amount, weight)
    if amount.high > LARGEST:
        return ListItem(text, None, "", "", f"the amount is above {LARGEST:,}: {text[:40]!r}")
    ingredient = _name(rest)
    return ListItem(text, amount, unit, ingredient, None if ingredient else "no ingredient")


def _amount(text: str) -> tuple[Quantity, int] | None:
    """The amount that the text begins with, multiplied out ("2 x 100"), and where it ends."""
    found = find_quantity(text)
    if found is None:
        return None
    amount, _, end = found
    while (times := _TIMES.match(text, end)) and (factor := find_quantity(text, times.end())) is not None:
        amount, end = _product(amount, factor[0]), factor[2]
    return amount, end


def _product(one: Quantity, other: Quantity) -> Quantity:
    return Quantity(one.low * other.low, one.high * other.high)


def _each(text: str) -> tuple[str, str, Quantity] | None:
    """Name, unit and amount of "eggs of 50 g"; None for anything else."""
    match = _EACH.match(text)
    if match is None:
        return None
    try:
        found = find_quantity(match["each"])
    except RecipeError:
        return None
    unit, rest = split_unit(match["each"][found[2] :]) if found is not None else ("", "")
    return (match["name"], unit, found[0]) if found is not None and unit and not rest.strip(" .") else None


def _name(text: str) -> str:
    return " ".join(re.sub(r"^\s*of\b", "", text.lower()).split()).strip(" .,")
