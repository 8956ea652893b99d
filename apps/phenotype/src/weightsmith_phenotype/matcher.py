"""From a text to matches: words become rows of a table once, then the kernel works on numbers."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith_phenotype.classifier import LONGEST_NGRAM, SCALE, Classifier
from weightsmith_phenotype.dictionary import Dictionary
from weightsmith_phenotype.kernels import match as kernel
from weightsmith_phenotype.kernels.embed import candidates, shortlist
from weightsmith_phenotype.kernels.tables import build_filter
from weightsmith_phenotype.word_table import WordTable

__all__ = ["Matcher"]

Found = tuple[int, int, int, float, int]
"""Start, end, index of the concept, score, kind: 0 a name, 1 a set of words, 2 across a list or gap, 3 classified."""

CLASSIFIED = 3

FIELDS = ["start", "end", "concept", "score", "kind"]

MOST_FILTERS = 16
"""Thresholds whose bitmaps are kept: a search over many of them needs no more."""


class Matcher:
    """Looks a text's words up in a dictionary."""

    def __init__(self, dictionary: Dictionary, classifier: Classifier | None = None) -> None:
        self.dictionary = d = dictionary
        self.classifier = classifier
        self.words = WordTable(dictionary, classifier)
        every = np.empty(0, np.float32)
        self._phrases = (d.slots, d.rows, d.concepts, build_filter(d.slots, d.rows, every, np.float32(0)))
        self._bags = (d.bag_slots, d.bag_rows, d.bag_concepts, d.bag_scores)
        self._filters: dict[float, NDArray[np.uint64]] = {}
        self._above = (d.above_starts, d.above)
        self._found = np.empty(1024, kernel.MATCH)
        self._room = kernel.room(1024)
        if classifier is not None:
            self._windows = _windows(1024, classifier.table.shape[1])
            size = len(classifier.concepts)
            self._shortlist = np.zeros(size, np.int8), np.empty(size, np.float32)
        self._lock = Lock()

    def tables(self, threshold: np.float32) -> tuple[tuple[NDArray[Any], ...], ...]:
        """Words, names, sets of words with at least a score, and ancestors, as the kernel reads them."""
        bits = self._filters.get(float(threshold))
        if bits is None:
            d = self.dictionary
            if len(self._filters) == MOST_FILTERS:
                self._filters.clear()
            bits = self._filters[float(threshold)] = build_filter(d.bag_slots, d.bag_rows, d.bag_scores, threshold)
        return self.words.columns, self._phrases, (*self._bags, bits), self._above

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
            words = self.words.read(text)
            size = len(words[0])
            if size > len(self._room[0]):
                self._room = kernel.room(2 * size)
            found: list[Found] = []
            if variants is not None:
                found = self._named(words, np.float32(variants), lists, nested)
            else:
                self._room[0][:size] = False
            if classifier is not None and self.classifier is not None:
                found += self._classified(self.classifier, words, classifier, 1 if variants is None else 2)
            return found

    def _named(
        self, words: tuple[NDArray[np.int32], ...], threshold: np.float32, lists: bool, nested: bool
    ) -> list[Found]:
        """Names and variants."""
        tables = self.tables(threshold)
        while True:
            count = kernel.find(words, *tables, threshold, lists, nested, self._room, self._found)
            if count <= len(self._found):
                return self._found[FIELDS][:count].tolist()
            self._found = np.empty(2 * count, kernel.MATCH)

    def _classified(
        self, classifier: Classifier, words: tuple[NDArray[np.int32], ...], threshold: float, shortest: int
    ) -> list[Found]:
        """What the classifier finds in words that no match has; of windows that overlap the most probable one."""
        starts, ends, ids = words
        used = self._room[0][: len(ids)]
        gate, lengths = classifier.gate, (shortest, LONGEST_NGRAM)
        while True:
            count = candidates(ids, self.words.columns[0], self.words.features, used, gate, lengths, *self._windows)
            if count <= len(self._windows[0]):
                break
            self._windows = _windows(2 * count, len(gate) - 1)
        if not count:
            return []
        kept = np.empty(count, np.bool_)
        spans, vectors = self._windows[0][:count], self._windows[1][:count]
        columns = ids, self.words.columns[0], self.words.postings, (classifier.starts, classifier.members)
        shortlist(spans, vectors, *columns, classifier.concepts, SCALE, threshold, self._shortlist, kept)
        spans = spans[kept]
        if not len(spans):
            return []
        probability, concept = classifier.best(vectors[kept])
        good = np.flatnonzero((probability > threshold) & (concept != len(classifier.concepts) - 1))
        accepted: list[Found] = []
        free = ~used
        for n in good[np.argsort(-probability[good], kind="stable")].tolist():
            start, end = spans[n].tolist()
            if free[start:end].all():
                free[start:end] = False
                place = int(starts[start]), int(ends[end - 1])
                accepted.append((*place, int(concept[n]), float(probability[n]), CLASSIFIED))
        return accepted


def _windows(count: int, size: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Room for the spans and vectors of the classifier's candidates, and for one more vector."""
    return np.empty((count, 2), np.int32), np.empty((count, size), np.float32), np.empty(size, np.float32)
