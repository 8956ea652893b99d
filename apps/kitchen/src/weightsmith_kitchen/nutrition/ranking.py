"""Which row of a table a cook means by the name of an ingredient.

Tables write "Onions, raw" and "Flour, wheat, white, all-purpose"; cooks write "onion" and "plain flour". Candidates
share words with the cook's name, or have an embedding near its own. Each gets a score from what the two names share, in
which part of the row's name, and from how close their embeddings are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import log
from typing import NamedTuple

from weightsmith_kitchen.nouns import stem
from weightsmith_kitchen.nutrition.vocabulary import (
    BARE,
    DIET,
    DROPPED,
    GROUPS,
    KINDS,
    NAMED,
    PHRASES,
    PLAIN,
    PREPARED,
    RAW,
    ROWS,
    SAME,
    VARIETIES,
)

__all__ = [
    "Name",
    "Rarity",
    "Weights",
    "default_row",
    "known",
    "lost",
    "plain",
    "rewritten",
    "score",
    "stems",
    "without_liquid",
    "words",
]

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?%?")

_PHRASE = re.compile(rf"\b({'|'.join(sorted(map(re.escape, PHRASES), key=len, reverse=True))})(?:s|es)?\b")

_IN = re.compile(r"\bin\s+(?:[a-z]+\s+){0,3}?(?:water|oil|brine|juice|syrup|sauce|vinegar|puree|broth|milk)\b")
"""What a food lies in: the word before it names the food, "tuna in water"."""


class Name(NamedTuple):
    """A name as it is compared.

    ``first`` are the stems before the first comma, or before the second where a group of foods stands first; ``last``
    is the last of them, which in English names the kind of food.
    """

    stems: frozenset[str]
    first: frozenset[str]
    last: str


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part of the score counts.

    They were set on half of the names of a table that is not part of the package; the other half is a test.
    """

    covered: float = 1.5
    first: float = 0.5
    last: float = 0.45
    similarity: float = 1.0
    extra: float = 0.1
    prepared: float = 0.3
    raw: float = 0.12


def words(text: str) -> list[str]:
    """Stems of a text in order, other names replaced.

    Examples
    --------
    >>> words("Aubergines, baked")
    ['eggplant', 'baked']
    """
    found = (stem(word) for word in _WORD.findall(text.lower()))
    return [SAME.get(word, word) for word in found]


def without_liquid(text: str) -> str | None:
    """The name of a food without what it lies in; None of any other name.

    Examples
    --------
    >>> without_liquid("canned tuna in olive oil"), without_liquid("bone in chicken thigh")
    ('canned tuna', None)
    """
    lies = _IN.search(text) if " in " in text else None
    return text[: lies.start()].strip() or None if lies else None


@lru_cache(maxsize=32_768)
def stems(text: str) -> Name:
    """A name as it is compared.

    Examples
    --------
    >>> sorted(stems("Spices, cumin seed").first), stems("Red onions, chopped").last, stems("tuna in water").last
    (['cumin', 'seed'], 'onion', 'tuna')
    """
    parts = [part for part in map(words, re.sub(r"\(.*?\)", " ", text).split(",")) if part] or [words(text)]
    if len(parts) > 1 and GROUPS.issuperset(parts[0]):
        parts = parts[1:]
    food = without_liquid(text)
    kind = words(food)[-1:] if food is not None and "," not in food else []
    last = kind or parts[0][-1:]
    return Name(frozenset(words(text)), frozenset(parts[0]), last[0] if last else "")


def plain(query: str) -> str:
    """A cook's name in lower case: of alternatives the first, without remarks, accents, and how it is cut.

    Examples
    --------
    >>> plain("Crème fraîche (cold)"), plain("butter or margarine"), plain("freshly grated ginger")
    ('creme fraiche', 'butter', 'ginger')
    >>> plain("hot milk"), plain("hot sauce")
    ('milk', 'hot sauce')
    """
    told = _told(query)
    kept = (word for word, after in pairwise([*told, ""]) if word not in DROPPED or after in NAMED.get(word, ()))
    return " ".join(kept) or " ".join(told)


def _told(query: str) -> list[str]:
    """All words of a cook's name, of alternatives the first."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", query.lower()) if not unicodedata.combining(c))
    alternatives = re.split(r"(?<!\d)/|/(?!\d)|\bor\b", re.sub(r"\(.*?\)|\(.*$|\bfor\b.*$", " ", folded))
    first = next((part for part in alternatives if part.strip()), folded)
    return re.sub(r"[^a-z0-9%'&]+", " ", first).split()


def default_row(query: str) -> str | None:
    """The name of the row that a short name means by default, or None.

    Words that say how the food is prepared count where the short name has them.

    Examples
    --------
    >>> default_row("Basmati rice"), default_row("plain yogurt")
    ('Rice, white, long grain, unenriched, raw', None)
    >>> default_row("boneless skinless chicken thighs"), default_row("diced shrimp")
    ('Chicken, thigh, boneless, skinless, raw', 'Crustaceans, shrimp, raw')
    """
    texts = (" ".join(_told(query)), plain(query))
    names = (" ".join(word for word in words(text) if word != "and") for text in texts)
    return next((ROWS[name] for name in names if name in ROWS), None)


def lost(query: str, row: str) -> list[str]:
    """Words of a cook's name that a row's name has not, in their singular: what the row may leave out of the food.

    Not those that change no food, and none that the other name writes as one word or as two.

    Examples
    --------
    >>> lost("rabbit legs", "Frog legs, raw"), lost("2 large red onions, diced", "Onions, raw")
    (['rabbit'], [])
    >>> lost("corn flakes", "Cornflakes"), lost("breadcrumbs", "Bread crumbs, dry")
    ([], [])
    """
    asked, has = words(rewritten(query)), words(row)
    joined = {one + other for one, other in pairwise(has)}
    split = {part for pair in pairwise(asked) if "".join(pair) in has for part in pair}
    liquid = {"water"} if without_liquid(plain(query)) else set()  # it has no energy
    same = joined.union(has, split, liquid, PLAIN, DROPPED, VARIETIES)
    written = set(words(" ".join(_told(query))))  # not what `rewritten` puts in
    return [word for word in dict.fromkeys(asked) if word in written and word not in same and not word[0].isdigit()]


def rewritten(query: str) -> str:
    """A cook's name with phrases replaced that no row has.

    Examples
    --------
    >>> rewritten("Plain flour"), rewritten("2 spring onions")
    ('all-purpose flour', '2 onions spring or scallions')
    """
    text = plain(query)
    bare = " ".join(word for word in words(text) if word != "and")
    return _PHRASE.sub(lambda match: PHRASES[match[1]], BARE.get(bare, text))


class Rarity(dict[str, float]):
    """Weight of each stem of a table: the rarer, the more it tells. A stem that no row has weighs most."""

    def __init__(self, names: Collection[Name]) -> None:
        counts = Counter(stem for name in names for stem in name.stems)
        self.most = log(max(len(counts), 2))
        rows = max(len(names), 1)
        super().__init__({stem: log(rows / found) for stem, found in counts.items()})

    def __missing__(self, stem: str) -> float:
        return self.most

    def total(self, stems: Iterable[str]) -> float:
        """Weight of several stems together."""
        return sum(self[stem] for stem in stems)


def score(query: Name, row: Name, similarity: float, rarity: Rarity, weights: Weights = Weights()) -> float:
    """How well a row fits a name: above 2 for the same words.

    Parameters
    ----------
    query, row : Name
        From `stems`.
    similarity : float
        Cosine of the embeddings, 0 where there are none.
    rarity : Rarity
        Weights of the stems.
    """
    shared = query.stems & row.stems
    covered = rarity.total(shared) / max(rarity.total(query.stems), 1e-9)
    extra = row.stems - query.stems
    told = [word for word in extra if word not in PLAIN]
    prepared = sum(word in PREPARED for word in told)
    raw = not RAW.isdisjoint(extra)
    return (
        weights.covered * covered
        + weights.first * len(query.stems & row.first) / max(len(row.first), 1)
        + weights.last * (query.last in row.first)
        + weights.similarity * similarity
        - weights.extra * (len(told) - prepared)
        - weights.prepared * prepared
        + weights.raw * raw
    )


def known(query: Name, row: Name, similarity: float, rarity: Rarity) -> bool:
    """The row is the food that a cook means, or a kind of it.

    Most of what the name tells is in the row, or the two mean nearly the same and share the kind of food, and more
    than that where the kind says nothing about the food.
    """
    if (query.stems ^ row.stems) & DIET:
        return False
    shared = query.stems & row.stems
    covered = rarity.total(shared) / max(rarity.total(query.stems), 1e-9)
    kind = shared <= KINDS < query.stems | KINDS  # of a name with other words only "paste" is shared
    return covered >= 0.7 or (similarity >= 0.55 and query.last in row.stems and not kind)
