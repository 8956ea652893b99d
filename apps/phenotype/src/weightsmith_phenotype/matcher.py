"""From a text to matches: words become rows of a table once, then the kernel works on numbers."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith_phenotype.classifier import LONGEST_NGRAM, Classifier, word_features
from weightsmith_phenotype.dictionary import Dictionary
from weightsmith_phenotype.kernels import match as kernel
from weightsmith_phenotype.kernels.embed import candidates
from weightsmith_phenotype.tokens import BARRIERS, JOINTS, split
from weightsmith_phenotype.words import CONJUNCTIONS, COPULAS, FUNCTION_WORDS, LINKS, code, lemma, plain, stem

__all__ = ["Matcher"]

LONGEST_WORD = 100
"""Characters of a word that are looked at: a megabyte without a space is one word."""

Found = tuple[int, int, int, float, int]
"""Start, end, index of the concept, score, kind: 0 a name, 1 a set of words, 2 across a list or gap, 3 classified."""

CLASSIFIED = 3

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
        self._lock = Lock()
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

    def find(
        self,
        text: str,
        *,
        variants: float | None,
        classifier: float | None = None,
        lists: bool = True,
        nested: bool = True,
    ) -> list[Found]:
        """What a text mentions.

        Parameters
        ----------
        text : str
            Any text.
        variants : float or None
            Least reliability of a variant, in (0, 1]; above 1 only names are found, with None not even these.
        classifier : float, optional
            Least probability of the classifier, exclusive. It is asked about words in which nothing was found; about
            single ones only where no names are looked for.
        lists : bool, default: True
            Also find names across lists and gaps.
        nested : bool, default: True
            Also report a concept inside a match of one below it.

        Returns
        -------
        list of Found
            The names and variants, then what the classifier adds.
        """
        with self._lock:  # the tables of words and the buffers are shared
            starts, ends, ids = self._words(text)
            used = np.zeros(len(ids), np.bool_)
            found = []
            if variants is not None:
                found = self._named(ids, np.float32(variants), lists, nested)
                for start, end, *_ in found:
                    used[start:end] = True
            if classifier is not None and self.classifier is not None:
                found += self._classified(self.classifier, ids, used, classifier, 1 if variants is None else 2)
            return [(starts[a], ends[b - 1], concept, score, kind) for a, b, concept, score, kind in found]

    def _words(self, text: str) -> tuple[list[int], list[int], NDArray[np.int32]]:
        """Starts and ends of the words of a text, and their rows in the table of words."""
        words, starts, ends = split(text, self.is_word)
        numbers = self._numbers
        ids = [numbers.get(word, -1) for word in words]
        if -1 in ids:
            if len(numbers) + len(words) > MOST_WORDS:
                self._forget()
                numbers = self._numbers
            ids = [numbers[word] if word in numbers else self._learn(word) for word in words]
        return starts, ends, np.array(ids, np.int32)

    def _named(self, ids: NDArray[np.int32], threshold: np.float32, lists: bool, nested: bool) -> list[Found]:
        """Names and variants, by the places of their words."""
        while True:
            count, place = kernel.find(
                ids, self._columns, self._phrases, self._bags, self._above, threshold, lists, nested, self._found
            )
            if count <= len(self._found):
                break
            self._found = np.empty(2 * count, kernel.MATCH)
        return [
            (int(place[start]), int(place[end - 1]) + 1, concept, score, kind)
            for start, end, concept, score, kind, _ in self._found[:count].tolist()
        ]

    def _classified(
        self, classifier: Classifier, ids: NDArray[np.int32], used: NDArray[np.bool_], threshold: float, shortest: int
    ) -> list[Found]:
        """What the classifier finds in words that are not ``used``; of windows that overlap the most probable one."""
        gate, lengths = classifier.gate, (shortest, LONGEST_NGRAM)
        while True:
            count = candidates(ids, self._columns[0], self._features, used, gate, lengths, *self._windows)
            if count <= len(self._windows[0]):
                break
            self._windows = _windows(2 * count, len(gate) - 1)
        if not count:
            return []
        spans, vectors = self._windows[0][:count], self._windows[1][:count]
        probability, concept = classifier.best(vectors)
        good = np.flatnonzero((probability > threshold) & (concept != len(classifier.concepts) - 1))
        accepted: list[Found] = []
        free = ~used
        for n in good[np.argsort(-probability[good], kind="stable")].tolist():
            start, end = spans[n].tolist()
            if free[start:end].all():
                free[start:end] = False
                accepted.append((start, end, int(concept[n]), float(probability[n]), CLASSIFIED))
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
