r"""Tokens of ingredient lines: words as the Penn treebank splits them, amounts as one token, with character offsets.

A mixed number is one token whose parts are joined by a no-break space (``1½``, ``1 1/2`` and ``1 and 1/2`` all have
the form ``1\u00a01/2``), as in the data of the paper. A range of numbers is one token (``2 - 4``, ``2–4``: ``2-4``). A
unit is split from its number (``400g``, ``14-ounce``); a length with a hyphen is not (``1-inch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from weightsmith_kitchen.errors import RecipeError

__all__ = ["Token", "TokenBatch", "tokenize", "tokenize_lines"]

ABBREVIATIONS = """
approx c cl dl doz dr env ex fl g gal gm gr in jr kg lb lbs med mg ml mr mrs no oz ozs pc pcs pk pkg pkgs pkt pt pts
qt qts sm st t tb tbl tblsp tbs tbsp tbsps tsp tsps vs
"""
"""Words that keep the point after them."""

MEASURES = """
oz ozs ounce ounces lb lbs pound pounds g gm gr gram grams gramme grammes kg kgs kilogram kilograms kilo kilos mg ml
mls milliliter milliliters millilitre millilitres cl dl l liter liters litre litres qt qts quart quarts pt pts pint
pints gal gallon gallons cup cups tbsp tbsps tablespoon tablespoons tsp tsps teaspoon teaspoons fl fluid
"""
"""Units that are split from a number and its hyphen: ``14-ounce``."""

LARGEST = 2**30
"""Code points of one batch."""


@dataclass(frozen=True, slots=True)
class Token:
    r"""One token of a line.

    Attributes
    ----------
    start, end : int
        Characters of the line that it covers.
    form : str
        Its normalized form, which the tagger reads.

    Examples
    --------
    >>> tokenize("2½ cups")
    [Token(start=0, end=2, form='2\xa01/2'), Token(start=3, end=7, form='cups')]
    """

    start: int
    end: int
    form: str


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tokens of many lines, in arrays.

    Attributes
    ----------
    starts, ends : ndarray, shape (tokens,)
        Characters of the token in its own line; empty where the tokens were given, not read.
    offsets : ndarray, shape (tokens + 1,)
        Where the form of each token starts in ``chars``.
    chars : ndarray of uint32
        Code points of all forms.
    first : ndarray, shape (lines + 1,)
        The first token of each line, and the number of tokens.
    """

    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    offsets: NDArray[np.int32]
    chars: NDArray[np.uint32]
    first: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.first) - 1

    def forms(self, line: int) -> list[str]:
        """The forms of one line's tokens."""
        begin, stop = self.first[line], self.first[line + 1]
        start = self.offsets[begin]
        text = self.chars[start : self.offsets[stop]].tobytes().decode("utf-32-le", "surrogatepass")
        cuts = (self.offsets[begin : stop + 1] - start).tolist()
        return [text[a:b] for a, b in pairwise(cuts)]

    def tokens(self, line: int) -> list[Token]:
        """One line's tokens."""
        part = slice(self.first[line], self.first[line + 1])
        rows = zip(self.starts[part].tolist(), self.ends[part].tolist(), self.forms(line), strict=True)
        return [Token(*row) for row in rows]

    @classmethod
    def from_forms(cls, phrases: Sequence[Sequence[str]]) -> TokenBatch:
        """A batch of phrases that are split already."""
        for place, phrase in enumerate(phrases):
            if isinstance(phrase, str):
                raise RecipeError(
                    f"tokens of phrase {place}", found=repr(phrase), expected="a list of tokens", do="Split it first."
                )
        flat = [token for phrase in phrases for token in phrase]
        lengths = np.fromiter(map(len, flat), np.int64, len(flat))
        counts = np.fromiter(map(len, phrases), np.int64, len(phrases))
        none = np.empty(0, np.int32)
        return cls(none, none, _cumulated(lengths), _code_points("".join(flat)), _cumulated(counts))


def _cumulated(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    total = int(lengths.sum())
    if total > LARGEST:
        raise RecipeError("batch of lines", found=f"{total:,} characters", expected=f"{LARGEST:,}", do="Split it.")
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@cache
def _codes(words: str) -> NDArray[np.uint64]:
    from .kernels.split import fold

    return np.unique(np.array([fold(_code_points(word), 0, len(word)) for word in words.split()], np.uint64))


def tokenize_lines(lines: Sequence[str]) -> TokenBatch:
    """The tokens of many lines at once.

    Parameters
    ----------
    lines : sequence of str
        One ingredient each. Empty ones have no tokens.

    Returns
    -------
    TokenBatch
        Arrays; offsets count characters within each line.

    Raises
    ------
    RecipeError
        If an item is no string.

    Examples
    --------
    >>> tokenize_lines(["400g flour", "", "1 (14-ounce) can"]).forms(2)
    ['1', '-LRB-', '14', '-', 'ounce', '-RRB-', 'can']
    """
    from .kernels.split import split_lines

    if isinstance(lines, str):
        raise RecipeError("lines", found="one string", expected="a list of strings", do="Pass [line].")
    for place, line in enumerate(lines):
        if not isinstance(line, str):
            raise RecipeError(f"line {place}", found=type(line).__name__, expected="a string")
    bounds = _cumulated(np.fromiter(map(len, lines), np.int64, len(lines)))
    chars = _code_points("".join(lines))
    starts, ends, offsets, forms, first = split_lines(chars, bounds, _codes(ABBREVIATIONS), _codes(MEASURES))
    shift = np.repeat(bounds[:-1], np.diff(first))
    return TokenBatch(starts - shift, ends - shift, offsets, forms, first)


def tokenize(line: str) -> list[Token]:
    """The tokens of one line.

    Examples
    --------
    >>> [token.form for token in tokenize("250g/9oz plain flour, sifted")]
    ['250', 'g', '/', '9', 'oz', 'plain', 'flour', ',', 'sifted']
    """
    return tokenize_lines([line]).tokens(0)
