"""An ingredient line as a record: name, exact amount, unit, size, state, temperature, with places and confidence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from weightsmith.core.progress import track
from weightsmith_kitchen.recipe import Ingredient, Span

from .amounts import Amounts, is_measure, read_amounts
from .tagger import IngredientTagger, TaggedLine, default_tagger

__all__ = ["read_ingredient", "read_ingredients", "read_tagged_line"]

OPTIONAL = re.compile(r"\boptional\b|\bif (?:desired|liked|you like|wanted|needed)\b", re.IGNORECASE)
EDGES = re.compile(r"^(?:an?|the|some|of)\s+|\s+(?:and|or|with|of|for|plus)$", re.IGNORECASE)
CITRUS = re.compile(r"\b(lemon|lime|orange|grapefruit|clementine|mandarin|tangerine)e?s?$", re.IGNORECASE)
CITRUS_IN = re.compile(r"\b(lemon|lime|orange|grapefruit|clementine|mandarin|tangerine)", re.IGNORECASE)
ZEST = re.compile(r"\b(?:zest(?:ed)?|(?:rind|peel)\b(?!\s+(?:removed|discarded|off)))", re.IGNORECASE)
JUICE = re.compile(r"\bjuiced?\b", re.IGNORECASE)
SHORT = frozenset({"lg", "lg.", "sm", "sm.", "med", "med.", "small", "medium", "large"})
"""Sizes that stand where units do."""
JOINED = frozenset({"STATE", "DF", "SIZE", "TEMP", "UNIT", "QUANTITY"})
"""Labels that may stand between two parts of a name."""
FUNCTION_WORDS = frozenset(
    {
        "a",
        "an",
        "and",
        "any",
        "as",
        "at",
        "each",
        "few",
        "for",
        "from",
        "if",
        "in",
        "into",
        "lot",
        "of",
        "off",
        "on",
        "or",
        "other",
        "plus",
        "some",
        "such",
        "taste",
        "the",
        "to",
        "with",
        "x",
    }
)


def read_ingredients(lines: Sequence[str], *, tagger: IngredientTagger | None = None) -> list[Ingredient]:
    """Read ingredient lines.

    Parameters
    ----------
    lines : sequence of str
        One ingredient each, in English.
    tagger : IngredientTagger, optional
        With the paper's labels; the one that ships by default.

    Returns
    -------
    list of Ingredient
        One per line; an empty line gives an ingredient without a name.

    Raises
    ------
    RecipeError
        If a line is no string.

    Examples
    --------
    >>> [item.name for item in read_ingredients(["2 cups sugar", "salt to taste"])]
    ['sugar', 'salt']
    """
    tagger = default_tagger() if tagger is None else tagger
    return [read_tagged_line(line) for line in track(tagger.tag_many(lines), "reading ingredients")]


def read_ingredient(line: str, *, tagger: IngredientTagger | None = None) -> Ingredient:
    """Read one ingredient line.

    Examples
    --------
    >>> item = read_ingredient("1 and 1/2 cups rye flour, sifted")
    >>> item.quantity, item.unit, item.name, item.state
    (Quantity('1 1/2'), 'cup', 'rye flour', 'sifted')
    >>> item = read_ingredient("2 (14 ounce) cans tomatoes")
    >>> item.quantity, item.unit, item.package
    (Quantity('2'), 'can', (Quantity('14'), 'ounce'))
    """
    return read_ingredients([line], tagger=tagger)[0]


def read_tagged_line(line: TaggedLine) -> Ingredient:
    """The record of a line that was tagged with the paper's labels."""
    short = [tag == "UNIT" and token.form.lower() in SHORT for tag, token in zip(line.tags, line.tokens, strict=True)]
    if any(short):
        line = replace(line, tags=["SIZE" if size else tag for size, tag in zip(short, line.tags, strict=True)])
    amounts = read_amounts(line)
    name, notes = _name(line, amounts)
    notes += _second(line, amounts)
    words = {label: _words(line, label, amounts) for label in ("STATE", "SIZE", "TEMP", "DF")}
    size = [*amounts.sizes, *words["SIZE"]]
    fruit = CITRUS_IN.search(line.text)
    if name.lower() in ("juice", "zest", "rind", "peel") and fruit is not None:
        name = fruit[1].lower()
    if amounts.quantity is not None and amounts.unit in (None, "piece") and CITRUS.search(name):
        name, taken = _part_of_fruit(name, line.text)
        notes += taken
    return Ingredient(
        name=name,
        quantity=amounts.quantity,
        unit=amounts.unit,
        text=line.text,
        size=", ".join(size) or None,
        state=", ".join(words["STATE"]) or None,
        temperature=" ".join(words["TEMP"]) or None,
        dry_fresh=" ".join(dict.fromkeys(word.lower() for word in words["DF"])) or None,
        package=amounts.package,
        alternatives=amounts.alternatives,
        optional=OPTIONAL.search(line.text) is not None,
        spans=tuple(Span(span.start, span.end, span.label) for span in line.spans),
        confidence=round(min(line.confidences), 4) if line.confidences else None,
        unread=amounts.notes + notes,
    )


def _second(line: TaggedLine, amounts: Amounts) -> tuple[str, ...]:
    """A note on a second food with an amount, which the tagger passed over: `split_line` would part the two."""
    for place in range(1, len(line.tags)):
        joined = line.tokens[place - 1].form.lower() in ("plus", "and", "+", "&")
        if joined and line.tags[place] == "O" and place not in amounts.used and line.tokens[place].form[0].isdigit():
            return (f"{line.text[line.tokens[place].start :]}: not read",)
    return ()


def _part_of_fruit(name: str, text: str) -> tuple[str, tuple[str, ...]]:
    """What is taken of a citrus fruit that is counted: the juice or the zest of so many."""
    zest, juice = ZEST.search(text) is not None, JUICE.search(text) is not None
    if zest and juice:
        return name, ("zest and juice: counted as the whole fruit",)
    part = " zest" if zest else " juice" if juice else ""
    return CITRUS.sub(rf"\1{part}", name) if part else name, ()


def _words(line: TaggedLine, label: str, amounts: Amounts) -> list[str]:
    """The line's characters of each run of a label, without tokens that are amounts."""
    found, start = [], -1
    for place in range(len(line.tags) + 1):
        inside = place < len(line.tags) and line.tags[place] == label and place not in amounts.used
        if inside and start < 0:
            start = place
        elif not inside and start >= 0:
            found.append(line.text[line.tokens[start].start : line.tokens[place - 1].end].removesuffix(" of"))
            start = -1
    return found


def _name(line: TaggedLine, amounts: Amounts) -> tuple[str, tuple[str, ...]]:
    """The food's name, and a note on what else the line offers."""
    runs: list[tuple[int, int]] = []
    for place, tag in enumerate(line.tags):
        if (tag == "NAME" or place in amounts.names) and place not in amounts.used:
            if runs and runs[-1][1] == place:
                runs[-1] = (runs[-1][0], place + 1)
            else:
                runs.append((place, place + 1))
    text = lambda first, stop: line.text[line.tokens[first].start : line.tokens[stop - 1].end]  # noqa: E731
    if not runs:
        return _unnamed(line, amounts), ()
    kept, notes = [runs[0]], []
    for before, run in pairwise(runs):
        between = range(before[1], run[0])
        forms = [line.tokens[place].form for place in between]
        counted = any(form[0].isdigit() for form in forms)
        if (line.tokens[run[0]].form.lower() == "or" and "," in forms) or ("or" in forms and counted):
            notes.append(f"{text(*run)}: another choice, not read")
        elif kept[-1] == before and (
            all(line.tags[place] in JOINED or line.tokens[place].form in (",", "-", "of") for place in between)
            or (forms[0], forms[-1]) == ("-LRB-", "-RRB-")  # "whipping (35%) cream"
            or forms[0] == "or"
        ):
            kept.append(run)
    name = " ".join(text(*run) for run in kept)
    return EDGES.sub("", name) or name, tuple(notes)


def _unnamed(line: TaggedLine, amounts: Amounts) -> str:
    """A name where the tagger found none: the longest run of other words, else the unit ("4 cloves")."""
    best = _longest_run(line, amounts, ("STATE", "DF", "SIZE", "TEMP")) or _longest_run(line, amounts, ("DF", "TEMP"))
    if not best:
        units = (p for p in sorted(amounts.used) if line.tags[p] == "UNIT" and not is_measure(line.tokens[p].form))
        best = range(*next(((p, p + 1) for p in units), (0, 0)))
    return line.text[line.tokens[best[0]].start : line.tokens[best[-1]].end] if best else ""


def _longest_run(line: TaggedLine, amounts: Amounts, without: Sequence[str]) -> range:
    best, start = range(0), -1
    for place in range(len(line.tags) + 1):
        word = line.tokens[place].form if place < len(line.tags) else ""
        free = word.isalpha() and word.lower() not in FUNCTION_WORDS and not is_measure(word)
        if free and place not in amounts.used and line.tags[place] not in without:
            start = place if start < 0 else start
        elif start >= 0:
            best = max(best, range(start, place), key=len)
            start = -1
    return best
