"""Amounts as exact fractions: read from text, computed with, and written as a cook writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor

from weightsmith_kitchen.errors import RecipeError

__all__ = ["Quantity", "as_fraction", "find_quantity", "read_minutes", "read_yield"]

VULGAR = {
    "¼": Fraction(1, 4),
    "½": Fraction(1, 2),
    "¾": Fraction(3, 4),
    "⅐": Fraction(1, 7),
    "⅑": Fraction(1, 9),
    "⅒": Fraction(1, 10),
    "⅓": Fraction(1, 3),
    "⅔": Fraction(2, 3),
    "⅕": Fraction(1, 5),
    "⅖": Fraction(2, 5),
    "⅗": Fraction(3, 5),
    "⅘": Fraction(4, 5),
    "⅙": Fraction(1, 6),
    "⅚": Fraction(5, 6),
    "⅛": Fraction(1, 8),
    "⅜": Fraction(3, 8),
    "⅝": Fraction(5, 8),
    "⅞": Fraction(7, 8),
}
_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = {
    "a": Fraction(1),
    "an": Fraction(1),
    **{word: Fraction(number) for number, word in enumerate(_ONES + _TEENS, 1)},
    **{word: Fraction(10 * number) for number, word in enumerate(_TENS, 2)},
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "couple": Fraction(2),
    "half": Fraction(1, 2),
    "quarter": Fraction(1, 4),
}
PARTS = {
    "third": Fraction(1, 3),
    "thirds": Fraction(1, 3),
    "halves": Fraction(1, 2),
    "quarters": Fraction(1, 4),
    "fourth": Fraction(1, 4),
    "fourths": Fraction(1, 4),
}
"""Words that are amounts only after a number: two thirds."""
LONGEST = 40
"""Characters of a number; more is no amount of food."""
# What measuring cups and spoons can show; eighths of the smallest amounts only.
KITCHEN = tuple(sorted({Fraction(n, d) for d in (1, 2, 3, 4) for n in range(d + 1)}))
FARTHEST = Fraction(1, 12)
"""Share of an amount that its display may be off by."""
EIGHTHS = tuple(sorted({*KITCHEN, *(Fraction(n, 8) for n in range(9))}))

_V = "[" + "".join(VULGAR) + "]"
_SLASH = r"\s?[/\u2044\u2215]\s?"
# Digits in groups of three. A blank may part two numbers ("2 200 g cans") but not before a group that begins with 0.
_GROUPS = (
    r"\d{1,3}(?:(?:['\u2019\u2009\u202f]\d{3})+|[ \u00a0]0\d\d(?:[ \u00a0]\d{3})*)(?:[.,]\d+)?(?!\d)"
    r"|\d{1,3}(?:\.\d{3})+,\d+(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?!\d)"
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)"
)
_SCIENTIFIC = r"\d+(?:\.\d+)?e[+-]?\d(?![\d.])"
# One number. A mixed number has its fraction after a blank, a hyphen or "and"; "1 3 lb" is two numbers.
NUMBER = (
    rf"(?:{_GROUPS}|{_SCIENTIFIC}"
    rf"|\d+(?:\s*|\s+and\s+|\s*-\s*){_V}"
    rf"|\d+(?:\s+and\s+|\s+|-)\d+{_SLASH}\d+(?:st|rd|ths?)?\b"
    rf"|\d+{_SLASH}\d+(?:st|rd|ths?)?\b"
    rf"|{_V}|\d+[.,]\d+|\.\d+|\d+)"
)
_DIGITS = dict.fromkeys(map(ord, "0123456789"))
_DASH = r"\s*(?:[-\u2010-\u2015~]|\bto\b|\bor\b)\s*"
_RANGE = re.compile(rf"({NUMBER}){_DASH}({NUMBER})", re.IGNORECASE)
_NUMBER = re.compile(NUMBER, re.IGNORECASE)
_WORD = re.compile(
    r"(half\s+(?:an?\s+)?dozen|(?:an?|one|two|three|four|five|six)\s+dozen"
    rf"|(?:an?|{'|'.join(_ONES)})\s+hundred(?:\s+(?:and\s+)?(?:{'|'.join(_TENS + _TEENS)}))?"
    rf"|(?:{'|'.join(_TENS)})[-\s](?:{'|'.join(_ONES)})"
    rf"|(?:(?:{'|'.join(_ONES)})\s+and\s+)?(?:an?|one|two|three)[-\s](?:halves|half|thirds?|fourths?|quarters?)"
    r"(?:\s+(?:of\s+)?an?\b)?"
    r"|(?:an?\s+)?couple(?:\s+of)?|half[-\s]dozen"
    r"|(?:an?\s+)?half(?:\s+(?:of\s+)?an?)?|(?:an?\s+)?quarter(?:\s+of\s+an?)?|" + "|".join(WORDS) + r")\b(?![-'])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact amount, or a range of amounts.

    Parameters
    ----------
    low, high : Fraction
        The least and the most. Equal for an exact amount. A number of another kind is made a fraction.

    Raises
    ------
    RecipeError
        If an amount is negative or not finite, or ``low`` is above ``high``.

    Examples
    --------
    >>> Quantity.parse("1 1/2") * 3
    Quantity('4 1/2')
    >>> Quantity.parse("2-4").middle
    Fraction(3, 1)
    """

    low: Fraction
    high: Fraction

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            try:
                value = Fraction(getattr(self, name))
            except (TypeError, ValueError, OverflowError):
                raise RecipeError("amount", found=repr(getattr(self, name)), expected="a finite number") from None
            if value < 0:
                raise RecipeError("amount", found=str(value), expected=">= 0")
            object.__setattr__(self, name, value)
        if self.low > self.high:
            raise RecipeError("amount", found=f"{self.low} to {self.high}", expected="the smaller number first")

    @classmethod
    def of(cls, value: Quantity | Fraction | float | str) -> Quantity:
        """Make a quantity of a number or a text. A float is taken as the decimal number that it prints as."""
        if isinstance(value, Quantity):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        value = as_fraction(value, "amount")
        return cls(value, value)

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """Read a text that is nothing but an amount.

        Raises
        ------
        RecipeError
            If it is something else.
        """
        stripped = text.strip()
        found = find_quantity(stripped)
        if found is None or found[1:] != (0, len(stripped)):
            raise RecipeError("amount", found=repr(text), expected="a number, such as 2, 1 1/2, 0.75 or 2-4")
        return found[0]

    @property
    def exact(self) -> bool:
        """It is one amount, not a range."""
        return self.low == self.high

    @property
    def middle(self) -> Fraction:
        """The middle of the range; the amount itself if it is exact."""
        return (self.low + self.high) / 2

    def __mul__(self, factor: Fraction | float) -> Quantity:
        factor = as_fraction(factor, "factor")
        return Quantity(self.low * factor, self.high * factor)

    __rmul__ = __mul__

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.low + other.low, self.high + other.high)

    def __float__(self) -> float:
        return float(self.middle)

    def __str__(self) -> str:
        low, high = _mixed(self.low), _mixed(self.high)
        return low if self.exact else f"{low}-{high}"

    def __repr__(self) -> str:
        return f"Quantity({str(self)!r})"

    def kitchen(self) -> str:
        """Write it with the nearest eighth, quarter, third or half, for display only.

        Examples
        --------
        >>> Quantity.of(1.34).kitchen(), Quantity.of(12.4).kitchen(), Quantity.of(0.01).kitchen()
        ('1 1/3', '12 1/3', '0.01')
        """
        low, high = _kitchen(self.low), _kitchen(self.high)
        return low if low == high else f"{low}-{high}"

    def to_json(self) -> str | list[str]:
        """Text of the fraction, or a pair of texts: nothing is lost when it is read back by `from_json`."""
        return str(self.low) if self.exact else [str(self.low), str(self.high)]

    @classmethod
    def from_json(cls, stored: str | float | list[str]) -> Quantity:
        """Read what `to_json` wrote, or any number."""
        if isinstance(stored, list):
            if len(stored) != 2:
                raise RecipeError("amount", found=f"{len(stored)} numbers", expected="one, or a pair")
            return cls(cls.from_json(stored[0]).low, cls.from_json(stored[1]).high)
        if not isinstance(stored, (str, int, float)) or isinstance(stored, bool):
            raise RecipeError("amount", found=repr(stored)[:80], expected="a number")
        if not isinstance(stored, str) and abs(stored) > 10**LONGEST:
            raise RecipeError("amount", found=f"{stored:g}", expected=f"at most 10^{LONGEST}")
        if isinstance(stored, str) and re.fullmatch(r"\d{1,400}(?:/0*[1-9]\d{0,400})?", stored):
            return cls(Fraction(stored), Fraction(stored))
        return cls.of(stored)


def as_fraction(value: Fraction | float, name: str) -> Fraction:
    """A number as a fraction; a float, NumPy's too, is the decimal number that it prints as.

    Raises
    ------
    RecipeError
        If it is not finite. ``name`` is what it is called.
    """
    try:
        return Fraction(repr(float(value)) if isinstance(value, float) else value)
    except (ValueError, OverflowError):
        raise RecipeError(name, found=repr(value), expected="a finite number") from None


def find_quantity(text: str, start: int = 0) -> tuple[Quantity, int, int] | None:
    """Read the amount that begins at ``start``, or None.

    Parameters
    ----------
    text : str
        Any text.
    start : int, default: 0
        Where the amount begins; blanks before it are passed.

    Returns
    -------
    tuple of Quantity, int, int
        The amount, and the offsets at which its text begins and ends.

    Raises
    ------
    RecipeError
        If a fraction has a denominator of 0.

    Examples
    --------
    >>> find_quantity("1 and 1/2 cups")
    (Quantity('1 1/2'), 0, 9)
    >>> find_quantity("1 000 g")[0], find_quantity("1.000,5 g")[0], find_quantity("2 200 g cans")[0]
    (Quantity('1000'), Quantity('1000 1/2'), Quantity('2'))
    >>> find_quantity("½–1 tsp")[0], find_quantity("two thirds of a cup")[0], find_quantity("twenty-five")[0]
    (Quantity('1/2-1'), Quantity('2/3'), Quantity('25'))
    """
    while start < len(text) and text[start].isspace():
        start += 1
    match = _RANGE.match(text, start)
    if match:
        low, high = _value(match[1]), _value(match[2])
        if low <= high:
            return Quantity(low, high), match.start(), match.end()
    match = _NUMBER.match(text, start)
    if match:
        value = _value(match[0])
        return Quantity(value, value), match.start(), match.end()
    match = _WORD.match(text, start)
    if match:
        value = _spoken(re.split(r"[-\s]+", match[0].lower()))
        to = re.match(r"\s+(?:to|or)\s+", text[match.end() :], re.IGNORECASE)
        other = _WORD.match(text, match.end() + to.end()) if to else None
        if other is not None and (high := _spoken(re.split(r"[-\s]+", other[0].lower()))) > value >= 1:
            return Quantity(value, high), match.start(), other.end()
        return Quantity(value, value), match.start(), match.end()
    return None


def _spoken(words: list[str]) -> Fraction:
    """Twenty five is a sum, two dozen and half a dozen are products, two hundred fifty is both."""
    if "and" in words and (words[-1] in PARTS or WORDS.get(words[-1], 1) < 1 or words[-1] in ("a", "an")):
        cut = words.index("and")
        return _spoken(words[:cut]) + _spoken(words[cut + 1 :])
    total = Fraction(0)
    for word in words:
        value = WORDS.get(word) or PARTS.get(word)
        if value is not None:
            times = total and (value < 1 or value >= 100 or word in ("a", "an", "couple", "dozen"))
            total = total * value if times else total + value
    return total


_YIELD = re.compile(r"^\D*?(?:(?:serves|makes|yields?|servings|for|about|approximately)\b[:\s]*)*", re.IGNORECASE)


def read_yield(text: str) -> tuple[Quantity, str] | None:
    """Read what a recipe makes: an amount and what it counts.

    Parameters
    ----------
    text : str
        Such as ``"4-6 servings"``, ``"Serves 4"`` or ``"2 1/2 cups"``.

    Returns
    -------
    tuple of Quantity and str, or None
        The unit is in lower case, and ``""`` where none is named. A volume is not a number of servings: the caller
        looks at the unit.

    Examples
    --------
    >>> read_yield("Serves 4 to 6"), read_yield("0.75 cup"), read_yield("some")
    ((Quantity('4-6'), ''), (Quantity('3/4'), 'cup'), None)
    """
    match = _YIELD.match(text)
    start = match.end() if match else 0
    first = re.search(rf"{NUMBER}|\b(?:{'|'.join(WORDS)})\b", text[start:], re.IGNORECASE)
    if first is None:
        return None
    found = find_quantity(text, start + first.start())
    if found is None:
        return None
    unit = re.match(r"\s*([^\W\d_]+)?", text[found[2] :])
    return found[0], (unit[1] or "").lower() if unit else ""


_TIME = re.compile(
    rf"({NUMBER}(?:{_DASH}{NUMBER})?)\s*(days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)\b", re.IGNORECASE
)
_MINUTES = {"d": Fraction(1440), "h": Fraction(60), "m": Fraction(1), "s": Fraction(1, 60)}


def read_minutes(text: str) -> Quantity | None:
    """Read a time in minutes; hours and minutes beside each other are added.

    Examples
    --------
    >>> read_minutes("1½ hours"), read_minutes("1 hour 20 min"), read_minutes("overnight")
    (Quantity('90'), Quantity('80'), None)
    """
    total: Quantity | None = None
    for match in _TIME.finditer(text):
        found = find_quantity(match[1])
        if found is not None:
            part = found[0] * _MINUTES[match[2][0].lower()]
            total = part if total is None else total + part
    return total


def _value(text: str) -> Fraction:
    text = text.strip()
    if len(text) > LONGEST:
        raise RecipeError("amount", found=f"{len(text)} characters", expected=f"at most {LONGEST}")
    if text.isascii() and text.isdigit():
        return Fraction(int(text))
    if re.fullmatch(_SCIENTIFIC, text, re.IGNORECASE):
        return Fraction(text)
    if re.fullmatch(_GROUPS, text):
        mark = text.translate(_DIGITS)[0]  # the first mark parts groups; another one is the decimal mark
        return Fraction("".join(text.split(mark)).replace(",", "."))
    total = Fraction(0)
    rest = re.sub(r"(?:st|rd|ths?)$", "", text, flags=re.IGNORECASE)
    for glyph, value in VULGAR.items():
        if glyph in rest:
            total += value
            rest = rest.replace(glyph, " ")
    fraction = re.search(rf"(\d+){_SLASH}(\d+)", rest)
    if fraction:
        if int(fraction[2]) == 0:
            raise RecipeError("amount", found=repr(text), expected="a denominator other than 0")
        total += Fraction(int(fraction[1]), int(fraction[2]))
        rest = rest[: fraction.start()]
    whole = re.sub(r"(?i)and|[-\s]", "", rest).replace(",", ".")
    return total + (Fraction(whole) if whole else 0)


def _mixed(value: Fraction) -> str:
    whole, rest = divmod(value, 1)
    if rest == 0:
        return str(whole)
    if rest.denominator > 64:
        return _decimal(value, 4)
    return f"{whole} {rest}" if whole else str(rest)


def _kitchen(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value)
    if value and value < Fraction(1, 16):
        return _decimal(value, 2)
    if value >= 20:
        return str(round(value))
    whole = floor(value)
    rest = value - whole
    nearest = whole + min(EIGHTHS if value < 2 else KITCHEN, key=lambda mark: (abs(mark - rest), mark.denominator))
    return _decimal(value, 2) if abs(nearest - value) > FARTHEST * value else _mixed(nearest)


def _decimal(value: Fraction, digits: int) -> str:
    """The value with so many digits that count, without an exponent.

    Examples
    --------
    >>> _decimal(Fraction(1, 9_000_000), 2)
    '0.00000011'
    """
    return f"{Decimal(f'{float(value):.{digits}g}'):f}"
