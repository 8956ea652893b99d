"""Exact matches: every name and synonym of the ontology, compared word by word in a normal form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import snowballstemmer

from weightsmith_phenotype.ontology import Ontology
from weightsmith_phenotype.tokens import Token, segments, tokenize

__all__ = ["Dictionary", "Match"]

Match = tuple[int, int, str]
"""First token, token after the last, concept id."""

SHORTEST_CAPITALS = 10
"""Synonyms in capitals below this length are abbreviations and would match other words."""

_stemmer = snowballstemmer.stemmer("english")


@lru_cache(maxsize=1 << 17)
def stem(form: str) -> str:
    """The word without its inflection."""
    return _stemmer.stemWord(form)


class Dictionary:
    """Names and synonyms as paths of a trie over word stems.

    A name wins over a synonym of another concept; a string that several concepts have as synonym keeps all, in the
    order of the file.
    """

    def __init__(self, ontology: Ontology) -> None:
        self.concepts: dict[tuple[str, ...], list[str]] = {}
        named: set[tuple[str, ...]] = set()
        for identifier in ontology.concepts:
            term = ontology[identifier]
            for name in term.names:
                if name != term.name and name.isupper() and len(name) < SHORTEST_CAPITALS:
                    continue
                key = tuple(stem(token.form) for run in segments(tokenize(name)) for token in run)
                if not key:
                    continue
                holders = self.concepts.setdefault(key, [])
                if identifier not in holders:
                    position = len(named & {key}) if name == term.name else len(holders)
                    holders.insert(position, identifier)
                if name == term.name:
                    named.add(key)
        self.longest = max(map(len, self.concepts), default=0)

    def find(self, run: Sequence[Token]) -> Iterator[Match]:
        """Yield all matches in a run of words, nested ones too."""
        stems = [stem(token.form) for token in run]
        for start in range(len(stems)):
            for end in range(start + 1, min(start + self.longest, len(stems)) + 1):
                holders = self.concepts.get(tuple(stems[start:end]))
                if holders:
                    yield start, end, holders[0]
