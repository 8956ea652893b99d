"""Words of a text with their offsets.

A text is never rewritten: each token knows where it stands, so that what is found can be shown in place, whatever
quotes, accents, tabs or line ends the text has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from weightsmith_phenotype.words import plain

__all__ = ["BARRIERS", "HYPHENS", "JOINERS", "JOINTS", "Token", "segments", "split", "tokenize"]

_TOKEN = re.compile(r"([^\W_]+|(?:\r?\n[ \t]*)+|\t|[^\s])")
_ITEM = re.compile(r"[-*•·▪◦–][ \t]|\(?\d{1,2}[.)][ \t]|[^\W\d_][^\n:.]{0,40}:")
"""What begins a line of a list or of a form: a bullet, a number, or some words and a colon."""

SHORT_LINE = 40
"""Characters below which a line is not one of wrapped prose."""

BARRIERS = frozenset(".!;:?()[]{}")
"""Signs that no name stretches over."""
HYPHENS = frozenset("-‐‑\u00ad")
JOINTS = frozenset("/‒–'\"’‘“”`´") | HYPHENS
"""Signs without meaning between the words of a name: "short-stature" is "short stature"."""
JOINERS = HYPHENS | {"\u200d", *map(chr, range(0x300, 0x370))}


class Token(NamedTuple):
    """A word or sign and where it stands: ``text[start:end]``."""

    start: int
    end: int
    form: str


def split(text: str, is_word: Callable[[str], bool]) -> tuple[list[str], list[int], list[int]]:
    """Words and signs, their starts and their ends; what is not space is in one of them.

    A line break is a sign where a name cannot stretch over it: at a blank line, before a bullet or a heading, and after
    a short line. A word that an accent, a hyphen or a hyphen at a line's end cuts in two is one word,
    in the place of its first part, if ``is_word`` knows it. The rest of its parts become empty words at its end.
    """
    parts = _TOKEN.split(text)
    offsets = list(accumulate(map(len, parts)))
    words, starts, ends = parts[1::2], offsets[0:-1:2], offsets[1::2]
    if "\n" in text:
        for place in [n for n, word in enumerate(words) if word[0] in "\r\n"][::-1]:
            if not _ends_a_run(text, words[place], starts[place], ends[place]):
                del words[place], starts[place], ends[place]
    if "-" in text or not text.isascii():
        for place in [n for n, word in enumerate(words) if word in JOINERS]:
            if place > 0:
                _join(text, words, starts, ends, place, is_word)
    return words, starts, ends


def _ends_a_run(text: str, breaks: str, start: int, end: int) -> bool:
    """Whether a line break stands between two lines of a list, and not inside wrapped prose."""
    if breaks.count("\n") > 1 or _ITEM.match(text, end):
        return True
    line = text.rfind("\n", 0, start) + 1
    return start - line < SHORT_LINE and text[start - 1 : start] not in HYPHENS


def _join(
    text: str, words: list[str], starts: list[int], ends: list[int], place: int, is_word: Callable[[str], bool]
) -> None:
    """Make one word of what stands before and after a sign, if both touch it and are one word together."""
    before = place - 1
    while before > 0 and not words[before]:
        before -= 1
    if ends[before] != starts[place] or not words[before][:1].isalpha():
        return
    hyphen = words[place] in HYPHENS
    following = place + 1 < len(words) and words[place + 1][:1].isalpha()
    gap = text[ends[place] : starts[place + 1]] if following else ""
    adjacent = following and (not gap or (hyphen and "\n" in gap))
    if not adjacent:
        if not hyphen:  # an accent at the end of a word
            words[before] += words[place]
            words[place], ends[before] = "", ends[place]
            starts[place] = ends[place]
        return
    whole = words[before] + ("" if hyphen else words[place]) + words[place + 1]
    if not hyphen or is_word(whole):
        words[before], ends[before] = whole, ends[place + 1]
        words[place] = words[place + 1] = ""
        starts[place] = ends[place] = starts[place + 1] = ends[before]


def tokenize(text: str) -> list[Token]:
    r"""Split a text into words and signs.

    Examples
    --------
    >>> [token.form for token in tokenize("He has short-stature/obesity.")]
    ['he', 'has', 'short', '-', 'stature', '/', 'obesity', '.']
    """
    words, starts, ends = split(text, lambda word: False)
    return [Token(a, b, plain(word)) for word, a, b in zip(words, starts, ends, strict=True) if word]


def segments(tokens: list[Token]) -> list[list[Token]]:
    """Runs of words that a name can stretch over: a sentence's end, a bracket, a colon or a blank line ends a run.

    Hyphens, slashes and quotes are dropped, so the words around them stand beside each other.
    """
    runs: list[list[Token]] = [[]]
    for token in tokens:
        if token.form in BARRIERS or not token.form.strip():
            if runs[-1]:
                runs.append([])
        elif token.form not in JOINTS:
            runs[-1].append(token)
    return runs if runs[-1] else runs[:-1]
