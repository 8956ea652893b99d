"""Abbreviations that a text defines itself: "short stature (SS)", after which SS is short stature.

The method of Schwartz and Hearst (2003), "A simple algorithm for identifying abbreviation definitions in biomedical
text": the letters of the short form are looked for from the right in the words before it, and its first letter must
begin a word. Words whose initials are the short form are preferred.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from weightsmith_phenotype.document import Mention

__all__ = ["Definition", "definitions", "expand"]

SHORTEST, LONGEST = 2, 10
"""Characters of a short form."""

LONGEST_LONG_FORM = 250
"""Characters before a bracket among which the long form must stand."""

# Bounded and free of brackets, so that a text of nothing but brackets takes linear time.
_BRACKETED = re.compile(r"[(\[]([^()\[\]]{2,250})[)\]]")
_SHORT = re.compile(r"[^\W_]+(?:[-/&.][^\W_]+)*")
_STOPS = (". ", ".\n", "? ", "! ", "; ", ": ", "(", ")", "[", "]", "\n\n", "\n\r\n")
_WORD = re.compile(r"\S+")
_INITIAL = re.compile(r"[^\W_]+")
_SMALL = frozenset(["a", "an", "and", "by", "for", "in", "of", "on", "or", "the", "to", "with"])
_QUOTES = "\"'“”‘’ \t"


@dataclass(frozen=True, slots=True)
class Definition:
    """A short form that a text defines.

    Attributes
    ----------
    short : str
        The short form, without a plural "s".
    position : int
        Offset of the short form, in code points: the definition counts from here.
    start, end : int
        Offsets of the long form.
    """

    short: str
    position: int
    start: int
    end: int


def definitions(text: str) -> list[Definition]:
    """Find the abbreviations that a text defines, in order.

    Both orders are read: "short stature (SS)" and "SS (short stature)". A short form has 2 to 10 characters, no
    blank, and two capitals or a capital and a digit.

    Examples
    --------
    >>> text = "Short stature (SS) and ID (intellectual disability); see (Fig. 1)."
    >>> [(d.short, text[d.start : d.end]) for d in definitions(text)]
    [('SS', 'Short stature'), ('ID', 'intellectual disability')]
    """
    return sorted(_definitions(text), key=lambda definition: definition.position)


def expand(text: str, mentions: Sequence[Mention]) -> list[Mention]:
    """Tag the short forms whose long form was tagged.

    Each stand-alone occurrence gets the id, name and score of the long form's mention and the source
    ``"abbreviation"``. Where a short form is defined more than once, the nearest definition before an occurrence
    counts; before the first definition, the first one does. A definition whose long form is no mention hides the ones
    before it. Within a longer mention a short form is left alone; a mention of the same span gives way, as the text
    itself says what the short form means.

    Parameters
    ----------
    text : str
        The whole document.
    mentions : sequence of Mention
        What was found, in any order.

    Returns
    -------
    list of Mention
        The mentions and the new ones, by place. Negation and the like are for `weightsmith_phenotype.context` to
        decide afterwards.

    Examples
    --------
    >>> text = "Short stature (SS) was noted. SS persisted."
    >>> found = expand(text, [Mention(0, 13, "Short stature", "HP:0004322")])
    >>> [(m.start, m.text, m.source) for m in found]
    [(0, 'Short stature', 'dictionary'), (15, 'SS', 'abbreviation'), (30, 'SS', 'abbreviation')]
    """
    tagged: dict[tuple[int, int], list[Mention]] = {}
    for mention in mentions:
        tagged.setdefault((mention.start, mention.end), []).append(mention)
    known: dict[str, tuple[list[int], list[list[Mention]]]] = {}
    for definition in definitions(text) if mentions else ():
        positions, meanings = known.setdefault(definition.short, ([], []))
        positions.append(definition.position)
        meanings.append(tagged.get((definition.start, definition.end), []))
    if not any(any(meanings) for _, meanings in known.values()):
        return sorted(mentions)
    covered = _Covered(mentions)
    kept = dict(tagged)
    for start, end, short in _occurrences(text, known):
        positions, meanings = known[short]
        meaning = meanings[max(0, bisect_right(positions, start) - 1)]
        if meaning and not covered.by_longer(start, end):
            kept[start, end] = [
                Mention(start, end, text[start:end], long.concept_id, long.name, long.score, "abbreviation")
                for long in meaning
            ]
    return sorted(mention for group in kept.values() for mention in group)


class _Covered:
    """Answers whether a longer mention covers a span, in the logarithm of the number of mentions."""

    def __init__(self, mentions: Sequence[Mention]) -> None:
        self._spans = sorted({(mention.start, -mention.end) for mention in mentions})
        self._furthest = list(accumulate((-negative_end for _, negative_end in self._spans), max))

    def by_longer(self, start: int, end: int) -> bool:
        """Whether a mention covers ``[start, end)`` and more."""
        before = bisect_left(self._spans, (start, -end))
        return before > 0 and self._furthest[before - 1] >= end


def _definitions(text: str) -> Iterator[Definition]:
    for match in _BRACKETED.finditer(text):
        before = _words_before(text, match.start())
        if before is None:
            continue
        start, end = before
        inside = re.split(r"[;,]", match.group(1), maxsplit=1)[0]
        short = inside.strip(_QUOTES)
        at = match.start(1) + inside.index(short) if short else 0
        if _is_short_form(short):
            base = _singular(short)
            first = _long_form(base, text[_last_words(text, start, end, len(base)) : end])
            if first is not None:
                yield Definition(base, at, end - first, end)
            continue
        words = _WORD.findall(text[max(start, end - LONGEST - 4) : end])
        candidate = words[-1].strip(_QUOTES) if words else ""
        if short and _is_short_form(candidate) and text.endswith(candidate, 0, end):
            base = _singular(candidate)
            if _long_form(base, short) == len(short):
                yield Definition(base, end - len(candidate), at, at + len(short))


def _words_before(text: str, bracket: int) -> tuple[int, int] | None:
    """The part of a sentence that ends before a bracket."""
    begin = max(0, bracket - LONGEST_LONG_FORM)
    end = begin + len(text[begin:bracket].rstrip())
    begin = max(begin, *(text.rfind(stop, begin, end) + len(stop) for stop in _STOPS if stop in text[begin:end]), begin)
    return (begin, end) if end > begin else None


def _last_words(text: str, start: int, end: int, letters: int) -> int:
    """Offset of the first word that a long form of so many letters may have."""
    words = [match.start() for match in _WORD.finditer(text, start, end)]
    return words[-min(letters + 5, 2 * letters) :][0] if words else end


def _is_short_form(candidate: str) -> bool:
    if not SHORTEST <= len(candidate) <= LONGEST or not _SHORT.fullmatch(candidate):
        return False
    capitals = sum(map(str.isupper, candidate))
    return capitals >= 2 or (capitals == 1 and any(map(str.isdigit, candidate)))


def _singular(short: str) -> str:
    return short[:-1] if len(short) > SHORTEST and short[-1] == "s" and short[:-1].isupper() else short


def _long_form(short: str, window: str) -> int | None:
    """Characters of the long form at the end of `window`, or None."""
    at = _by_initials(short, window)
    if at is None:
        at = _by_letters(short, window)
    if at is None:
        return None
    long = window[at:]
    return None if len(long) <= len(short) or short in _SHORT.findall(long) else len(long)


def _by_initials(short: str, window: str) -> int | None:
    """Where the words begin whose initials are the short form.

    Tried first: by letters alone, SS would be the "sclerosis" of systemic sclerosis, which has the letter twice.
    """
    letters = list(short.lower())
    for match in reversed(list(_INITIAL.finditer(window))):
        if match.group().lower() in _SMALL and match.group()[0].lower() != letters[-1]:
            continue
        if match.group()[0].lower() != letters.pop():
            return None
        if not letters:
            return match.start()
    return None


def _by_letters(short: str, window: str) -> int | None:
    """Where the long form begins by the method of Schwartz and Hearst."""
    at = len(window)
    for index in range(len(short) - 1, -1, -1):
        letter = short[index].lower()
        if not letter.isalnum():
            continue
        at -= 1
        while at >= 0 and (window[at].lower() != letter or (index == 0 and at > 0 and window[at - 1].isalnum())):
            at -= 1
        if at < 0:
            return None
    while at > 0 and not window[at - 1].isspace():
        at -= 1
    return at


def _occurrences(text: str, known: dict[str, tuple[list[int], list[list[Mention]]]]) -> Iterator[tuple[int, int, str]]:
    """Yield the stand-alone short forms of a text, plural ones too."""
    for match in _SHORT.finditer(text):
        word, start = match.group(), match.start()
        parts = [word] if word in known or _singular(word) in known else word.split("/")
        for part in parts:
            short = part if part in known else _singular(part)
            if short in known:
                yield start, start + len(part), short
            start += len(part) + 1
