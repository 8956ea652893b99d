"""The words seen so far as rows of a table: what each is, its codes, and where in a text such words stand."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith_phenotype.classifier import Classifier, word_features
from weightsmith_phenotype.dictionary import Dictionary
from weightsmith_phenotype.kernels import match as kernel, scan as scanner
from weightsmith_phenotype.kernels.tables import build_table, insert
from weightsmith_phenotype.tokens import BARRIERS, HYPHENS, JOINERS, JOINTS, split
from weightsmith_phenotype.words import CONJUNCTIONS, COPULAS, FUNCTION_WORDS, LINKS, code, lemma, plain, stem

__all__ = ["WordTable"]

LONGEST_WORD = 100
"""Characters of a word that are looked at: a megabyte without a space is one word."""

MOST_WORDS = 1 << 20
"""Rows of the table; beyond it the table starts anew, so that memory stays bounded."""

FEWEST_ROWS = 1 << 12

NO_LETTERS_FROM = 0x40000
"""First code point of the planes of Unicode that have no letters, digits or spaces."""


class WordTable:
    """A cache of words: it grows with the words seen and never changes what is found.

    Attributes
    ----------
    columns : tuple of arrays
        Per word its flags, and the codes of its form, its singular and its stem.
    features : tuple of arrays
        Per word the sum of the classifier's vectors of its pieces, and how many these are.
    postings : array
        Per word the place of its stem among the classifier's, or -1.
    numbers : dict of str to int
        The row of each word.
    """

    def __init__(self, dictionary: Dictionary, classifier: Classifier | None = None) -> None:
        self.dictionary = dictionary
        self.classifier = classifier
        self._abbreviations = frozenset(dictionary.abbreviations)
        self._forget()

    def read(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Starts, ends and rows of the words of a text, as `weightsmith_phenotype.tokens.split` splits it."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        size = len(points)
        starts, ends, sizes, ids = (np.empty(size, np.int32) for _ in range(4))
        words = starts, ends, np.empty(size, np.uint64), sizes, ids
        unknown = np.empty((64 + size // 8, 4), np.int32)
        fresh = False
        while True:
            table = (self._slots, self._rows, self.columns[0])
            count, missing = scanner.scan(points, character_classes(), table, kernel.NAMED, words, unknown)
            if not missing:
                return starts[:count], ends[:count], ids[:count]
            if not fresh and len(self.numbers) + missing > MOST_WORDS:
                self._forget()
                fresh = True
                continue
            for start, end, again, stop in unknown[:missing].tolist():
                if start < 0:
                    return self._read_slowly(text)
                self._is_name(text[start:end] + text[again:stop])

    def _read_slowly(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """`read`, for texts with a new word in three pieces."""
        words, starts, ends = split(text, self._is_name)
        for word in words:
            self._is_name(word)
        rows = [self.numbers["\n" if "\n" in word else word] for word in words]
        return np.array(starts, np.int32), np.array(ends, np.int32), np.array(rows, np.int32)

    def _is_name(self, word: str) -> bool:
        """Whether a name contains this word; it gets a row."""
        if word not in self.numbers:
            self._learn(word)
        return bool(self.columns[0][self.numbers[word]] & kernel.NAMED)

    def _forget(self) -> None:
        self.numbers: dict[str, int] = {}
        codes = (np.zeros(FEWEST_ROWS, np.uint64) for _ in range(3))
        self.columns: tuple[NDArray[Any], ...] = (np.zeros(FEWEST_ROWS, np.int32), *codes)
        self._slots, self._rows = build_table(np.zeros(0, np.uint64), 2 * FEWEST_ROWS)
        self._keys = np.zeros(FEWEST_ROWS, np.uint64)
        if self.classifier is not None:
            size = self.classifier.table.shape[1]
            self.features = np.zeros((FEWEST_ROWS, size), np.float32), np.zeros(FEWEST_ROWS, np.float32)
            self.postings = np.zeros(FEWEST_ROWS, np.int32)
        self._learn("")  # what is left of a word that was joined to another
        self._learn("\n")  # stands for all line breaks

    def _learn(self, word: str) -> None:
        number = len(self.numbers)
        if number == len(self._keys):
            self._keys = _doubled(self._keys)
            self.columns = tuple(map(_doubled, self.columns))
            if self.classifier is not None:
                self.features = _doubled(self.features[0]), _doubled(self.features[1])
                self.postings = _doubled(self.postings)
        points = np.frombuffer(word.encode("utf-32-le", "surrogatepass"), np.uint32)
        self._keys[number] = scanner.word_code(points, 0, len(points), scanner.NO_LETTERS)
        self.numbers[word] = number
        if 2 * number >= len(self._slots):
            self._slots, self._rows = build_table(self._keys[:number], 4 * number)
        insert(self._keys[number], number, self._slots, self._rows)
        form = plain(word[:LONGEST_WORD])
        flags, surface, singular, stems = self.columns
        flags[number] = self._flags(form)
        surface[number], singular[number], stems[number] = code(form), code(lemma(form)), code(stem(form))
        if word in self._abbreviations:
            surface[number] = code(word)
            flags[number] |= kernel.KNOWN | kernel.ENDS
        if self.classifier is not None:
            rows = word_features(form)
            self.features[0][number], self.features[1][number] = self.classifier.table[rows].sum(0), len(rows)
            self.postings[number] = self.classifier.posting(int(stems[number]))

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
        flags |= kernel.NAMED if lemma(form) in self.dictionary.vocabulary else 0
        flags |= kernel.LINK if form in LINKS else 0
        flags |= kernel.FUNCTION if form in FUNCTION_WORDS else 0
        flags |= kernel.COPULA if form in COPULAS else 0
        return flags | (kernel.CONJUNCTION if form in CONJUNCTIONS else 0)


def _doubled(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array, np.zeros_like(array)])


@lru_cache(maxsize=1)
def character_classes() -> NDArray[np.uint8]:
    """What each code point is to `weightsmith_phenotype.kernels.scan`, [0x110000]."""
    classes = np.zeros(0x110000, np.uint8)
    every = "".join(map(chr, range(NO_LETTERS_FROM)))
    for pattern, kind in ((r"[^\W_]+", scanner.WORD), (r"\s+", scanner.SPACE), (r"\d+", scanner.DIGIT)):
        for found in re.finditer(pattern, every):
            classes[found.start() : found.end()] |= kind
    words = np.flatnonzero(classes & scanner.WORD)
    classes[words[[every[point].isalpha() for point in words.tolist()]]] |= scanner.LETTER
    classes[list(map(ord, HYPHENS))] |= scanner.HYPHEN
    classes[list(map(ord, JOINERS))] |= scanner.JOINER
    return classes
