"""From a text to matches: words become rows of a table once, then the kernel works on numbers."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith_phenotype.classifier import Classifier, word_features
from weightsmith_phenotype.dictionary import Dictionary
from weightsmith_phenotype.kernels import match as kernel
from weightsmith_phenotype.kernels.embed import candidates
from weightsmith_phenotype.tokens import BARRIERS, JOINTS, split
from weightsmith_phenotype.words import CONJUNCTIONS, COPULAS, FUNCTION_WORDS, LINKS, code, lemma, plain, stem

__all__ = ["Matcher"]

LONGEST_WORD = 100
"""Characters of a word that are looked at: a megabyte without a space is one word."""

Found = tuple[int, int, int, float, int]
"""Start, end, index of the concept, score, kind (0 exact, 1 set of words, 2 across a list or gap)."""

MOST_WORDS = 1 << 20
"""Rows of the word table; beyond it the table starts anew, so that memory stays bounded."""


class Matcher:
    """Looks a text's words up in a dictionary.

    The table of words is a cache: it grows with the words seen and never changes what is found.
    """

    def __init__(self, dictionary: Dictionary, classifier: Classifier | None = None) -> None:
        self.dictionary = d = dictionary
        self.classifier = classifier
        self._phrases = (d.slots, d.rows, d.concepts)
        self._bags = (d.bag_slots, d.bag_rows, d.bag_concepts, d.bag_scores)
        self._above = (d.above_starts, d.above)
        self._found = np.empty(1024, kernel.MATCH)
        if classifier is not None:
            self._windows = _windows(1024, classifier.table.shape[1])
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        codes = (np.zeros(1 << 12, np.uint64) for _ in range(3))
        self._columns: tuple[NDArray[Any], ...] = (np.zeros(1 << 12, np.int32), *codes)
        if self.classifier is not None:
            self._features: tuple[NDArray[np.float32], ...] = (
                np.zeros((1 << 12, self.classifier.table.shape[1]), np.float32),
                np.zeros(1 << 12, np.float32),
            )

    def is_word(self, form: str) -> bool:
        """Whether a name contains this word."""
        return lemma(form) in self.dictionary.vocabulary

    def words(self, text: str) -> tuple[list[str], list[int], list[int], NDArray[np.int32]]:
        """The words of a text, their starts and ends, and their rows in the table of words."""
        words, starts, ends = split(text, self.is_word)
        numbers = self._numbers
        ids = [numbers.get(word, -1) for word in words]
        if -1 in ids:
            if len(numbers) + len(words) > MOST_WORDS:
                self._forget()
                numbers = self._numbers
            ids = [numbers[word] if word in numbers else self._learn(word) for word in words]
        return words, starts, ends, np.array(ids, np.int32)

    def find(self, text: str, *, threshold: float, lists: bool = True, nested: bool = True) -> list[Found]:
        """The matches in a text."""
        _, starts, ends, ids = self.words(text)
        level = np.float32(threshold)
        while True:
            count, place = kernel.find(
                ids, self._columns, self._phrases, self._bags, self._above, level, lists, nested, self._found
            )
            if count <= len(self._found):
                break
            self._found = np.empty(2 * count, kernel.MATCH)
        return [
            (starts[place[start]], ends[place[end - 1]], concept, score, kind)
            for start, end, concept, score, kind, _ in self._found[:count].tolist()
        ]

    def classify(
        self, text: str, taken: list[tuple[int, int]], *, threshold: float, shortest: int, longest: int
    ) -> list[tuple[int, int, int, float, str]]:
        """What the classifier finds outside the spans ``taken``: start, end, concept, probability, "classifier".

        Of windows that overlap the most probable one is kept.
        """
        assert self.classifier is not None
        _, starts, ends, ids = self.words(text)
        used = np.zeros(len(ids), np.bool_)
        for start, end in taken:
            used[bisect_left(ends, start + 1) : bisect_left(starts, end)] = True
        gate = self.classifier.gate
        while True:
            count = candidates(ids, self._columns[0], self._features, used, gate, (shortest, longest), *self._windows)
            if count <= len(self._windows[0]):
                break
            self._windows = _windows(2 * count, len(gate) - 1)
        if not count:
            return []
        spans, vectors = self._windows[0][:count], self._windows[1][:count]
        probability, concept = self.classifier.best(vectors)
        none = len(self.classifier.concepts) - 1
        good = np.flatnonzero((probability > threshold) & (concept != none))
        accepted: list[tuple[int, int, int, float, str]] = []
        free = ~used
        for n in good[np.argsort(-probability[good], kind="stable")].tolist():
            start, end = spans[n].tolist()
            if free[start:end].all():
                free[start:end] = False
                accepted.append((starts[start], ends[end - 1], int(concept[n]), float(probability[n]), "classifier"))
        return accepted

    def _learn(self, word: str) -> int:
        number = len(self._numbers)
        if number == len(self._columns[0]):
            self._columns = tuple(np.concatenate([column, np.zeros_like(column)]) for column in self._columns)
            if self.classifier is not None:
                self._features = tuple(np.concatenate([part, np.zeros_like(part)]) for part in self._features)
        form = plain(word[:LONGEST_WORD])
        self._numbers[word] = number
        flags, surface, singular, stems = self._columns
        flags[number] = self._flags(form)
        surface[number], singular[number], stems[number] = code(form), code(lemma(form)), code(stem(form))
        if self.classifier is not None:
            rows = word_features(form)
            self._features[0][number], self._features[1][number] = self.classifier.table[rows].sum(0), len(rows)
        return number

    def _flags(self, form: str) -> int:
        if not form:
            return kernel.JOINT
        if form in BARRIERS or form.isspace():
            return kernel.BARRIER
        if form in JOINTS:
            return kernel.JOINT
        if form == ",":
            return kernel.COMMA
        known = kernel.KNOWN if stem(form) in self.dictionary.stems else 0
        flags = self.dictionary.vocabulary.get(lemma(form), known | kernel.ENDS)
        flags |= kernel.LINK if form in LINKS else 0
        flags |= kernel.FUNCTION if form in FUNCTION_WORDS else 0
        flags |= kernel.COPULA if form in COPULAS else 0
        return flags | (kernel.CONJUNCTION if form in CONJUNCTIONS else 0)


def _windows(count: int, size: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Room for the spans and vectors of the classifier's candidates."""
    return np.empty((count, 2), np.int32), np.empty((count, size), np.float32)
