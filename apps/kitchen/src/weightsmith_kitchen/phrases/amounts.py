"""The amounts of a tagged line: which number counts what, what one package holds, the same amount in other units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from weightsmith_kitchen.quantity import WORDS, Quantity, find_quantity
from weightsmith_kitchen.units import convert, find_unit

from .tagger import TaggedLine

__all__ = ["Amounts", "is_measure", "read_amounts"]

THOUSANDS = (
    (("gram", "milliliter"), re.compile(r"[1-9]\d{0,2}\.\d{3}"), Fraction(1000)),
    (("kilogram", "liter"), re.compile(r"[1-9]\d{0,2},\d{3}"), Fraction(1, 1000)),
)
"""Units, numbers whose point or comma is not what it is elsewhere, and what they are to be multiplied by."""
LENGTHS = frozenset(
    {"inch", "inches", "in", "cm", "mm", "centimeter", "centimeters", "centimetre", "centimetres", "foot", "feet", "ft"}
)
DIRECTIONS = frozenset({"thick", "long", "wide", "square", "deep", "round", "diameter", "across", "high"})
CONTAINERS = frozenset(
    {
        "can",
        "tin",
        "jar",
        "bottle",
        "package",
        "pkg",
        "packet",
        "pack",
        "bag",
        "box",
        "carton",
        "container",
        "tub",
        "pouch",
        "block",
    }
)
SIZED = re.compile(r"\d[^a-z]*[-\s]?(?:inch(?:es)?|in|cm|mm|foot|feet|ft)\b.*", re.IGNORECASE)
METRIC = frozenset({"milligram", "gram", "kilogram", "milliliter", "centiliter", "deciliter", "liter"})
TAKEN = frozenset({"juice", "zest", "rind", "peel"})
INEXACT = frozenset({"bit", "few", "generous", "good", "little", "lot", "some", "splash", "touch"})
"""Words that make an article no number: a little salt."""
NUMERIC = re.compile(r"[\d./,'\u2019\u2009\u202f\u00a0-]*\d[\d./,'\u2019\u2009\u202f\u00a0-]*")
THREE = re.compile(r"\d+\s?[/\u2044\u2215]\s?\d+\s?[/\u2044\u2215]\s?\d")
"""What begins with a fraction and is none: 3/4/5."""
THIRD = re.compile(r"\d\s?[/\u2044\u2215]\s?\d+\s?[/\u2044\u2215]\s?$")
"""Before the last number of it."""
NAMED = re.compile(r"[-\u2010-\u2015][^\W\d_]+")
"""After a number, in its token: it belongs to a name, such as 7-up."""
TOO_LARGE = re.compile(r"e[+-]?\d", re.IGNORECASE)
"""After a number: the rest of one that is no amount of food, such as 1e400."""

Before = Literal["start", "space", "slash", "bracket", "times", "plus", "minus", "or", "apart"]


@dataclass(frozen=True, slots=True)
class Amounts:
    """What the numbers of a line say.

    Attributes
    ----------
    quantity : Quantity or None
        How many units.
    unit : str or None
        Name of the unit, or the line's word.
    package : tuple of Quantity and str, or None
        What one unit holds.
    alternatives : tuple of (Quantity, str)
        The same amount in other units.
    sizes : tuple of str
        Lengths, as the line has them.
    names : frozenset of int
        Numbers of tokens that look like amounts and belong to the name: ``85/15``.
    used : frozenset of int
        Numbers of tokens that are units or amounts.
    notes : tuple of str
        What is assumed or left out.
    """

    quantity: Quantity | None = None
    unit: str | None = None
    package: tuple[Quantity, str] | None = None
    alternatives: tuple[tuple[Quantity, str], ...] = ()
    sizes: tuple[str, ...] = ()
    names: frozenset[int] = frozenset()
    used: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Amount:
    """A number with the units after it."""

    quantity: Quantity | None
    units: tuple[str, ...]
    first: int
    stop: int
    before: Before
    depth: int


@dataclass(slots=True)
class _Reading:
    """Where reading has got to, and what it has found."""

    line: TaggedLine
    words: list[str]
    found: list[_Amount] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    forced: frozenset[int] = frozenset()
    names: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)

    def text(self, first: int, stop: int) -> str:
        """The line's characters of these tokens."""
        return self.line.text[self.line.tokens[first].start : self.line.tokens[stop - 1].end]

    def quantity_at(self, place: int) -> tuple[Quantity, int] | None:
        """The amount that starts at a token, and the token after it."""
        if place >= len(self.words):
            return None
        tag, word = self.line.tags[place], self.words[place]
        numeric = NUMERIC.fullmatch(word) is not None
        begins = place == 0 or (self.words[place - 1] == "of" and self.words[max(place - 2, 0)] in TAKEN)
        spoken = begins and (word in WORDS or word.split("-")[0] in WORDS)
        if not (tag == "QUANTITY" or place in self.forced or (place == 0 and numeric) or spoken):
            return None
        start = self.line.tokens[place].start
        if THIRD.search(self.line.text, 0, start):
            return None
        try:
            found = find_quantity(self.line.text, start)
        except ValueError:  # 1/0, and numbers of thousands of digits
            self.notes.append(f"{self.text(place, place + 1)[:40]}: no number")
            return None
        if found is None or found[1] != start:
            return None
        quantity, _, end = found
        stop = place + 1
        if numeric and (lean := re.fullmatch(r"(\d+)/(\d+)", word)) and int(lean[1]) + int(lean[2]) == 100:
            self.names.add(place)  # lean and fat of minced meat
            return None
        while stop < len(self.words) and self.line.tokens[stop].end <= end:
            stop += 1
        rest = self.line.text[end : self.line.tokens[place].end]
        if NAMED.fullmatch(rest):
            self.names.add(place)  # 7-up
            return None
        if TOO_LARGE.match(self.line.text, end) or THREE.match(self.line.text, start):
            self.notes.append(f"{self.line.text[start:].split()[0][:40]}: no number")
            return None
        if numeric and stop == place + 1 and end < self.line.tokens[place].end:
            # The text's number is shorter than the token: a range across blanks whose parts the token has joined.
            quantity = _of_form(word) or quantity
        quantity, stop = self.with_part(quantity, stop)
        article = word in ("a", "an") and stop == place + 1
        if article and (stop == len(self.words) or self.words[stop] in INEXACT):
            return None
        if stop < len(self.words) and self.words[stop] == "%":
            self.names.update((place, stop))
            return None
        return quantity, stop

    def with_part(self, quantity: Quantity, place: int) -> tuple[Quantity, int]:
        """The amount with "and a half" or "and a quarter" that follows it, and the token after them."""
        if self.words[place : place + 2] == ["and", "a"] and self.words[place + 2 : place + 3] in (
            ["half"],
            ["quarter"],
        ):
            return quantity + Quantity.parse("1/2" if self.words[place + 2] == "half" else "1/4"), place + 3
        return quantity, place

    def units_at(self, place: int, known_only: bool = False) -> tuple[list[str], int]:
        """The units that follow a number, and the token after them."""
        units: list[str] = []
        while place < len(self.words):
            word, tag = self.words[place], self.line.tags[place]
            if word == "-" and place + 1 < len(self.words) and self.line.tags[place + 1] == "UNIT":
                place += 1
                continue
            pair = " ".join(self.words[place : place + 2])
            if place + 1 < len(self.words) and find_unit(pair) and tag in ("UNIT", "O", "QUANTITY"):
                units.append(pair)
                place += 2
            elif (
                tag == "UNIT"
                or (not units and word == "dozen")
                or (not units and is_measure(self._cased(place)) and tag != "STATE")
            ):
                units.append(self._cased(place))
                place += 1
            else:
                break
        while len(units) > 1 and find_unit(units[0]) is None and find_unit(units[1]) is not None:
            units.pop(0)  # "thumb-sized pieces"
        return units, place

    def _cased(self, place: int) -> str:
        """The word as written where case tells units apart (T, t), else in lower case."""
        written = self.line.tokens[place].form
        return written if written.rstrip(".") in ("T", "t") else self.words[place]


def _of_form(form: str) -> Quantity | None:
    found = find_quantity(form.replace("\u00a0", " "))
    return found[0] if found else None


def is_measure(word: str) -> bool:
    """The word names a unit of mass or volume."""
    unit = find_unit(word)
    return unit is not None and unit.kind != "count"


def _named(word: str) -> str:
    """The name of a unit; a word that is none in the singular."""
    unit = find_unit(word)
    return unit.name if unit else word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


def _holds(reading: _Reading, main: _Amount, amount: _Amount) -> bool:
    """An amount in brackets is what one unit holds: the unit is a container, or the line says "each"."""
    container = bool(main.units) and main.units[0].rstrip("s") in CONTAINERS
    return container or reading.words[amount.stop : amount.stop + 1] == ["each"]


def _is_container(word: str) -> bool:
    unit = find_unit(word)
    return unit is None or unit.kind == "count" or unit.name in ("tablespoon", "teaspoon")


def read_amounts(line: TaggedLine) -> Amounts:
    """Join the numbers and units of a tagged line.

    Parameters
    ----------
    line : TaggedLine
        What an `IngredientTagger` found.

    Returns
    -------
    Amounts
        Empty where the line has no number and no unit.
    """
    reading = _Reading(line, [token.form.lower() for token in line.tokens])
    _collect(reading)
    if not any(amount.quantity for amount in reading.found) and not reading.sizes and not reading.notes:
        # "zest from 2 lemons": a number that the tagger counts to something else, right before the name.
        for place in range(len(reading.words) - 1):
            if NUMERIC.fullmatch(reading.words[place]) and line.tags[place + 1] in ("NAME", "DF", "SIZE", "UNIT"):
                reading = _Reading(line, reading.words, forced=frozenset({place}))
                _collect(reading)
                break
    return _joined(reading)


def _collect(reading: _Reading) -> None:
    """Find the amounts, lengths and lone units of the line, in order."""
    words, tags = reading.words, reading.line.tags
    place, depth, last = 0, 0, -1
    while place < len(words):
        word = words[place]
        depth += (word == "-lrb-") - (word == "-rrb-")
        if SIZED.fullmatch(word) and tags[place] != "STATE":
            stop = place + 1
            while stop < len(words) and words[stop] in DIRECTIONS:
                stop += 1
            size = reading.text(place, stop)
            counted = re.fullmatch(r"(\d+)\s+((?:\d+\s*[/⁄]\s*\d+|[¼-¾⅐-⅞])\D.*)", size)
            if not reading.found and counted and int(counted[1]) > 1 and _is_plural(words[stop : stop + 1]):
                # "6 1/4-inch slices": six, not one of 6 1/4 inches.
                quantity = Quantity.of(int(counted[1]))
                reading.found.append(_Amount(quantity, (), place, stop, "start", depth))
                reading.notes.append(f"{size}: read as {quantity} of {counted[2]}")
                size = counted[2]
            reading.sizes.append(size)
            reading.used.update(range(place, stop))
            place = last = stop
            continue
        number = reading.quantity_at(place)
        if number is None and tags[place] == "UNIT":
            units, stop = reading.units_at(place)
            if units and not all(unit in LENGTHS for unit in units):
                reading.found.append(_Amount(None, tuple(units), place, stop, _before(reading, place, last), depth))
                reading.used.update(range(place, stop))
            place = max(stop, place + 1)
            continue
        if number is None:
            place += 1
            continue
        quantity, after = number
        start, sized = after, after
        while sized < len(words) and (tags[sized] == "SIZE" or words[sized] in ("heaped", "heaping", "level", "scant")):
            sized += 1
        if sized < len(words) and (tags[sized] == "UNIT" or words[sized] == "dozen"):
            start = sized
        units, stop = reading.units_at(start)
        if (units and units[0].rstrip(".") in LENGTHS) or (start < len(words) and words[start].rstrip(".") in LENGTHS):
            stop = start + 1
            while stop < len(words) and words[stop] in DIRECTIONS:
                stop += 1
            reading.sizes.append(reading.text(place, stop))
            reading.used.update(range(place, stop))
            place = last = stop
            continue
        if units:
            quantity = _by_unit(quantity, reading.text(place, after), units[0], reading.notes)
            quantity, stop = reading.with_part(quantity, stop)  # "a cup and a half"
        reading.found.append(_Amount(quantity, tuple(units), place, stop, _before(reading, place, last), depth))
        reading.used.update({*range(place, after), *range(start, stop)})
        place = last = stop


def _by_unit(quantity: Quantity, text: str, name: str, notes: list[str]) -> Quantity:
    """An amount of which a point or comma with three digits behind it means what the unit says, with a note.

    Where a comma is the decimal mark, "1.000 g" is a kilogram and "1,500 kg" a kilogram and a half. Nobody weighs
    thousandths of a gram, or 1,500 kilograms.
    """
    unit, numbers = find_unit(name), re.findall(r"[\d.,]+", text)
    for names, number, factor in THOUSANDS:
        if unit is not None and unit.name in names and numbers and all(map(number.fullmatch, numbers)):
            quantity = quantity * factor
            notes.append(f"{text} {name}: read as {quantity} {unit.spelled(quantity)}")
            return quantity
    return quantity


def _is_plural(words: Sequence[str]) -> bool:
    unit = find_unit(words[0]) if words else None
    return unit is not None and words[0] == unit.plural


def _before(reading: _Reading, place: int, last: int) -> Before:
    """What stands between an amount and the one before it, which ends at token ``last``."""
    if last < 0:
        return "start"
    between = [word for word in reading.words[last:place] if word not in ("about", "approx.", "approximately")]
    if not between:
        return "space"
    for kind, words in (("slash", "/"), ("bracket", "-lrb-"), ("times", "x"), ("times", "×"), ("plus", "plus")):
        if between == [words]:
            return kind  # type: ignore[return-value]
    kinds = {"or": "or", "+": "plus", "plus": "plus", "minus": "minus", "less": "minus"}
    return kinds.get(between[-1], "apart")  # type: ignore[return-value]


def _joined(reading: _Reading) -> Amounts:
    notes = list(reading.notes)
    main: _Amount | None = None
    package: tuple[Quantity, str] | None = None
    others: list[tuple[Quantity, str]] = []
    for amount in reading.found:
        if main is None:
            main = amount
        elif amount.quantity is None:
            if not main.units:
                main = replace(main, units=amount.units[:1])
        elif amount.before == "minus":
            left = _difference(_pair(main), amount)
            if left is None or others:
                notes.append(f"minus {reading.text(amount.first, amount.stop)}: not read")
            else:
                main = replace(main, quantity=left)
        elif not amount.quantity.high:
            notes.append(f"{reading.text(amount.first, amount.stop)}: no amount, not read")
        elif amount.before == "or":
            notes.append(f"or {reading.text(amount.first, amount.stop)}: another choice, not read")
        elif not amount.units:
            notes.append(f"{reading.text(amount.first, amount.stop)}: a second number without a unit, not read")
        elif not main.units and package is None and amount.before in ("space", "times", "bracket"):
            grouped = reading.text(main.first, amount.stop)
            if amount.before == "space" and not amount.units[1:] and re.match(r"\d{1,3}\s\d{3}(?!\d)", grouped):
                notes.append(f"{grouped}: read as {main.quantity} of {amount.quantity} {_named(amount.units[0])}")
            package = (amount.quantity, _named(amount.units[0]))
            main = replace(main, units=amount.units[1:2])
        elif package is not None and amount.before == "slash":
            if len(amount.units) > 1 and not main.units:
                main = replace(main, units=amount.units[1:2])
            notes.append(f"{reading.text(amount.first, amount.stop)}: what one holds, in another unit")
        elif amount.depth and package is None and is_measure(amount.units[0]) and _holds(reading, main, amount):
            package = (amount.quantity, _named(amount.units[0]))
        elif amount.before in ("space", "plus") and (total := _sum(others or _pair(main), amount)):
            if others:
                others[-1] = total
            else:
                main = replace(main, quantity=total[0])
        elif amount.before == "plus":
            notes.append(f"plus {reading.text(amount.first, amount.stop)}: a second amount, not read")
        elif is_measure(amount.units[0]) or amount.before in ("slash", "bracket"):
            others.append((amount.quantity, _named(amount.units[0])))
            if len(amount.units) > 1 and len(main.units) == 1 and main.quantity:
                main = replace(main, units=(*main.units, *amount.units[1:]))
    if main is None:
        piece = _is_piece(reading)
        notes += ["one piece is assumed"] if piece else []
        found = (tuple(reading.sizes), frozenset(reading.names), frozenset(reading.used), tuple(notes))
        return Amounts(Quantity.of(1) if piece else None, "piece" if piece else None, None, (), *found)
    quantity, units = main.quantity, main.units
    if package is None and quantity is not None and len(units) > 1 and is_measure(units[0]) and _is_container(units[1]):
        # "14 oz can": one can.
        package, quantity, units = (quantity, _named(units[0])), Quantity.of(1), units[1:]
        notes += [
            f"one {_named(units[0])} is assumed",
            *(f"{number} {unit}: what one holds" for number, unit in others),
        ]
        others = []
    if quantity is None and units and not reading.notes:
        known = find_unit(units[0])
        if not (units[0].rstrip(".") == known.plural if known else units[0].endswith("s")):
            quantity = Quantity.of(1)
            notes.append(f"one {_named(units[0])} is assumed")
    return Amounts(
        quantity,
        _named(units[0]) if units else None,
        package,
        tuple(others),
        tuple(reading.sizes),
        frozenset(reading.names),
        frozenset(reading.used),
        tuple(notes),
    )


def _is_piece(reading: _Reading) -> bool:
    """The line begins with a length that tells how much, as "2 inches ginger" does, and not how it is cut."""
    if not reading.sizes or 0 not in reading.used or not reading.line.text.lstrip().startswith(reading.sizes[0]):
        return False
    stop = next(place for place in range(len(reading.words) + 1) if place not in reading.used)
    rest = reading.line.tags[stop:]
    return reading.words[stop - 1] not in DIRECTIONS and (
        reading.words[stop : stop + 1] == ["of"] or rest[:1] in (["NAME"], ["DF"])
    )


def _pair(amount: _Amount) -> Sequence[tuple[Quantity, str]]:
    return [(amount.quantity, _named(amount.units[0]))] if amount.quantity and amount.units else []


def _difference(pairs: Sequence[tuple[Quantity, str]], amount: _Amount) -> Quantity | None:
    """Two cups minus two tablespoons, in the first's unit; None if they do not measure the same, or nothing is left."""
    if not pairs or not amount.units or amount.quantity is None or not amount.quantity.exact:
        return None
    quantity, name = pairs[0]
    one, other = find_unit(name), find_unit(amount.units[0])
    if one is None or other is None or one.kind != other.kind or one.factor is None or other.factor is None:
        return None
    taken = convert(amount.quantity, other, one).low
    return Quantity(quantity.low - taken, quantity.high - taken) if taken < quantity.low else None


def _sum(pairs: Sequence[tuple[Quantity, str]], amount: _Amount) -> tuple[Quantity, str] | None:
    """A pound and two ounces, or two tablespoons plus a teaspoon, in the first's unit; None if they do not add."""
    if not pairs or amount.quantity is None:
        return None
    quantity, name = pairs[-1]
    one, other = find_unit(name), find_unit(amount.units[0])
    if one is None or other is None or one.kind != other.kind or one.factor is None or other.factor is None:
        return None
    if amount.before != "plus" and (one.name in METRIC) != (other.name in METRIC):
        return None  # "1 cup 250 mL": the same amount twice
    return (quantity + convert(amount.quantity, other, one), name) if one.factor > other.factor else None
