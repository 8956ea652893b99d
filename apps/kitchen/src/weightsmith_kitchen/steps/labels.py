"""InstructionTagger: which words of an instruction are techniques and which are utensils.

Two dictionaries, ``techniques.txt`` (verbs, whose inflected forms are made) and ``utensils.txt`` (nouns of one or more
words, whose plurals are made), give each token a class. A linear-chain CRF decides in context, with the classes of a
token and its neighbors as features beside those of `weightsmith_kitchen.phrases`: *whisk* is a technique in "whisk the
eggs" and a utensil in "with a whisk". What counts as which is in `GUIDELINE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.phrases.features import token_features
from weightsmith_kitchen.phrases.tagger import TokenTagger
from weightsmith_kitchen.phrases.tokens import TokenBatch, tokenize

__all__ = ["GUIDELINE", "InstructionTagger", "default_instruction_tagger", "dictionary_classes", "read_marked"]

GUIDELINE = """
TECHNIQUE: a word that names what the cook does to food or equipment in this step, in any form of the verb: "bake",
"stirring", "to the boil", "leave to cool". Not: what has been done before ("chopped onions"), what is reached ("until
softened"), and verbs of no action of their own (let, make, use, keep, bring, allow, leave, start, continue).
UTENSIL: a tool, vessel, appliance, or what is used with them, with the words that name its kind ("baking sheet",
"wooden spoon", "cast-iron skillet", "oven"), without size or quality ("large", "nonstick", "damp"). Not: work surfaces,
and cups and spoons as measures.
"""
"""How the sentences that the tagger learns from, and those that it is tested on, were labeled."""

LABELS = ("O", "TECHNIQUE", "UTENSIL")
NONE, BASE, GERUND, PAST, THIRD, UTENSIL, BOTH = range(7)
"""Class of a token in the dictionaries: four forms of a technique, a utensil, or either."""

HERE = Path(__file__).parent
VOWELS = "aeiouáéíóú"
LONGEST = 4
"""Words of a utensil."""


def _lines(name: str) -> list[str]:
    text = (HERE / name).read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def inflected(verb: str) -> dict[str, int]:
    """The regular forms of a verb and their classes.

    Examples
    --------
    >>> sorted(inflected("chop"))
    ['chop', 'chopped', 'chopping', 'chops']
    >>> sorted(inflected("fry")), sorted(inflected("bake"))
    (['fried', 'fries', 'fry', 'frying'], ['bake', 'baked', 'bakes', 'baking'])
    """
    stem = verb
    if len(re.findall(rf"[{VOWELS}y]+", verb.split("-")[-1])) == 1 and re.search(
        rf"[^{VOWELS}][{VOWELS}][^{VOWELS}wxy]$", "x" + verb
    ):
        stem = verb + verb[-1]
    if verb.endswith("e"):
        past, gerund = verb + "d", (verb if verb.endswith("ee") else verb[:-1]) + "ing"
    elif re.search(rf"[^{VOWELS}]y$", verb):
        past, gerund = verb[:-1] + "ied", verb + "ing"
    else:
        past, gerund = stem + "ed", stem + "ing"
    return {third_person(verb): THIRD, past: PAST, gerund: GERUND, verb: BASE}


def third_person(word: str) -> str:
    """A word with its regular -s: third person of a verb, plural of a noun."""
    if re.search(r"(?:s|x|z|ch|sh|o)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(rf"[^{VOWELS}]y$", word) else word + "s"


@cache
def techniques() -> dict[str, tuple[str, int]]:
    """Every form of every technique: its base form, and its class."""
    found: dict[str, tuple[str, int]] = {}
    for line in _lines("techniques.txt"):
        base, *others = line.split()
        forms = inflected(base)
        for other in others:
            forms[other] = GERUND if other.endswith("ing") else PAST
        for form, kind in (forms | {base: BASE}).items():
            if found.get(form, ("", 9))[1] > kind:
                found[form] = (base, kind)
    return found


@cache
def utensils() -> dict[tuple[str, ...], str]:
    """Every utensil, as its words in lower case, in the singular and the plural; the value is the singular."""
    found = {}
    for line in _lines("utensils.txt"):
        words = tuple(token.form for token in tokenize(line))
        plural = "knives" if words[-1] == "knife" else third_person(words[-1])
        found[words] = found[*words[:-1], plural] = line
    return found


@cache
def _first_words() -> dict[str, int]:
    """How many words the longest utensil has that starts with a word."""
    longest: dict[str, int] = {}
    for words in utensils():
        longest[words[0]] = max(len(words), longest.get(words[0], 0))
    return longest


def dictionary_classes(forms: Sequence[str]) -> list[int]:
    """Class of each token in the dictionaries: 0 none, 1 to 4 a technique's form, 5 a utensil, 6 either.

    Examples
    --------
    >>> dictionary_classes(["whisk", "in", "a", "mixing", "bowl"])
    [6, 0, 0, 5, 5]
    """
    words = [normalize("NFC", form.lower()) for form in forms]
    verbs, tools, longest = techniques(), utensils(), _first_words()
    found = [verbs[word][1] if word in verbs else NONE for word in words]
    place = 0
    while place < len(words):
        for size in range(min(longest.get(words[place], 0), len(words) - place), 0, -1):
            if tuple(words[place : place + size]) in tools:
                for inside in range(place, place + size):
                    found[inside] = BOTH if size == 1 and found[inside] else UTENSIL
                place += size - 1
                break
        place += 1
    return found


class InstructionTagger(TokenTagger):
    """Finds techniques and utensils in instructions.

    Parameters
    ----------
    tags : sequence of str, default: ("O", "TECHNIQUE", "UTENSIL")
        Labels it may learn.
    l2 : float, default: 0.02
        Weight of the sum of squared weights.
    **options
        Those of `IngredientTagger`.

    Examples
    --------
    >>> tagger = InstructionTagger.default()
    >>> [(span.label, span.text) for span in tagger.tag("Whisk the eggs in a mixing bowl with a whisk.").spans]
    [('TECHNIQUE', 'Whisk'), ('UTENSIL', 'mixing bowl'), ('UTENSIL', 'whisk')]
    """

    shipped = HERE / "model"

    def __init__(
        self, tags: str | Sequence[str] = LABELS, *, l2: float = 0.02, buckets: int = 2**15, **options: Any
    ) -> None:
        super().__init__(tags, l2=l2, buckets=buckets, **options)

    def _features(self, batch: TokenBatch) -> NDArray[np.int32]:
        classes = [kind for line in range(len(batch)) for kind in dictionary_classes(batch.forms(line))]
        return token_features(batch, buckets=self.buckets, classes=np.array(classes, np.uint8))


@lru_cache(maxsize=1)
def default_instruction_tagger() -> InstructionTagger:
    """`InstructionTagger.default`, loaded once per process."""
    return InstructionTagger.default()


def read_marked(lines: Iterable[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Tokens and labels of sentences in which ``{...}`` marks techniques and ``<...>`` utensils.

    Raises
    ------
    RecipeError
        If a mark is not closed, or cuts a token.

    Examples
    --------
    >>> read_marked(["{Bake} in the <oven>."])
    ([['Bake', 'in', 'the', 'oven', '.']], [['TECHNIQUE', 'O', 'O', 'UTENSIL', 'O']])
    """
    tokens, tags = [], []
    for number, line in enumerate(lines, 1):
        text, spans, start = "", [], -1
        for part in re.split(r"([{}<>])", line.strip()):
            if part in ("{", "<"):
                start = len(text)
            elif part in ("}", ">"):
                spans.append((start, len(text), "TECHNIQUE" if part == "}" else "UTENSIL"))
                start = -1
            else:
                text += part
        found = tokenize(text)
        labels = ["O"] * len(found)
        for begin, end, label in spans:
            inside = [place for place, token in enumerate(found) if begin <= token.start and token.end <= end]
            if begin < 0 or not inside or (found[inside[0]].start, found[inside[-1]].end) != (begin, end):
                raise RecipeError(f"line {number}", found=line, expected="marks {...} or <...> around whole words")
            for place in inside:
                labels[place] = label
        if start >= 0:
            raise RecipeError(f"line {number}", found=line, expected="a mark that is closed")
        tokens.append([token.form for token in found])
        tags.append(labels)
    return tokens, tags
