"""Sentences of a clinical text with their offsets, and the headings that govern them.

A line end is a sentence's end, as notes list one finding per line, unless the line was only wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from weightsmith_phenotype.context.cues import HEADINGS, OF_A_RELATIVE, RELATIVES, SECTIONS, TITLES, Kind, table

__all__ = ["Governor", "Sentence", "sentences"]

LONGEST_BLOCK = 1500
"""Characters below a heading that it governs at most: some texts have no blank lines."""

NARROWEST = 40
"""Characters of a paragraph's longest line below which its lines were not wrapped."""

_LINE = re.compile(r"[^\r\n\v\f\x85\u2028\u2029]+")
_FIRST_WORD = re.compile(r"[^\W\d_]\w*")
_END = re.compile(r"(?<![.!?])[.!?]++[)\]\"'”’]*+(?=\s)|;|(?<=[a-z]{2})\.(?=[A-Z][a-z])")
_WORD_BEFORE = re.compile(r"[\w.]*\Z")
_GOES_ON = table("and or nor of the a an with no not without any for to in such as by from")
_ABBREVIATED = table(
    "dr mr mrs ms prof st vs fig e.g i.e eg ie cf approx resp incl ca etc a.k.a neg pos hx pt pts dx hosp bilat abd "
    "temp yrs yr wk wks mos"
)
_LABEL = re.compile(r"[\s\-–*#•·>(]*(?:\d{1,2}[.)]\s*)?(?P<label>[^\W\d_][^:;,\r\n]{0,50}):(?!//)")
_TITLE = re.compile(r"(?P<bullet>[\s\-–*#•·>]*)(?P<label>[^\W\d_]+(?:[ \-][^\W\d_]+)*)\s*")
_EXAMINED = re.compile(r"[\s\-–*#•·>(]*(?P<label>o/e)\b:?", re.IGNORECASE)
_WHO = RELATIVES | {"family"}
_SAYS_WHO = _WHO | OF_A_RELATIVE
_SPLIT = re.compile(r"[^\w'’]+")


class Sentence(NamedTuple):
    """``text[start:end]``, and whether a line or a paragraph begins with it, or a line ends with it."""

    start: int
    end: int
    opens_line: bool
    opens_paragraph: bool
    closes_line: bool


def sentences(text: str) -> Iterator[Sentence]:
    r"""Yield the sentences of a text, in order.

    Examples
    --------
    >>> text = "Seen by Dr. Lee. Ptosis; no ataxia.\nNot Scoliosis"
    >>> [text[s.start : s.end].strip() for s in sentences(text)]
    ['Seen by Dr. Lee.', 'Ptosis;', 'no ataxia.', 'Not Scoliosis']
    """
    for paragraph in _paragraphs(text):
        width = max(end - start for start, end in paragraph)
        opens_paragraph = True
        first = 0
        for last, (start, end) in enumerate(paragraph):
            if last + 1 < len(paragraph) and _wrapped(text, start, end, paragraph[last + 1], width):
                continue
            yield from _split(text, paragraph[first][0], end, opens_paragraph)
            opens_paragraph = False
            first = last + 1


def _paragraphs(text: str) -> Iterator[list[tuple[int, int]]]:
    lines: list[tuple[int, int]] = []
    previous = 0
    for match in _LINE.finditer(text):
        start, end = match.span()
        gap = text[previous:start]
        if lines and (len(gap) - gap.count("\r\n") > 1 or match.group().isspace()):
            yield lines
            lines = []
        if not match.group().isspace():
            lines.append((start, end))
        previous = end
    if lines:
        yield lines


def _wrapped(text: str, start: int, end: int, following: tuple[int, int], width: int) -> bool:
    """Whether the next line carries on this one: its first word would not have fitted, or this line is not over."""
    word = _FIRST_WORD.match(text, following[0] + len(text[slice(*following)]) - len(text[slice(*following)].lstrip()))
    if word is None or not word.group()[0].islower():
        return False
    line = text[start:end].rstrip()
    if line[-1] in ".;:!?":
        return False
    if line[-1] == "-" or line.rsplit(None, 1)[-1].lower() in _GOES_ON:
        return True
    return width >= NARROWEST and len(line) + 1 + len(word.group()) > width


def _split(text: str, start: int, end: int, opens_paragraph: bool) -> Iterator[Sentence]:
    begin = start
    for match in _END.finditer(text, start, end):
        if match.end() < end and _ends(text, match, begin):
            yield Sentence(begin, match.end(), begin == start, opens_paragraph and begin == start, False)
            begin = match.end()
    yield Sentence(begin, end, begin == start, opens_paragraph and begin == start, True)


def _ends(text: str, match: re.Match[str], begin: int) -> bool:
    sign = match.group()
    if sign == ";":
        return True
    after = text[match.end() : match.end() + 20].lstrip()[:1]
    before = text[max(begin, match.start() - 20) : match.start()]
    if sign[0] == "?":
        return bool(before.strip()) and (not before[-1:].isspace() or not after.islower())
    found = _WORD_BEFORE.search(before)
    word = found.group().lower() if found else ""
    return word not in _ABBREVIATED and not (after.islower() and len(word) < 2)


class Governor:
    """Follows a text's headings, sentence by sentence, and knows which one governs."""

    def __init__(self) -> None:
        self._block: tuple[Kind, int, int] | None = None
        self._line: tuple[Kind, int, int] | None = None
        self._heading_alone = False

    def read(self, text: str, sentence: Sentence, taken: list[tuple[int, int]]) -> tuple[Kind, int, int] | None:
        """Take in the next sentence.

        Parameters
        ----------
        text : str
            The document.
        sentence : Sentence
            The sentence after the last one read.
        taken : list of (int, int)
            Offsets of the mentions in it: what they cover is no heading.

        Returns
        -------
        (Kind, int, int) or None
            What the heading says that governs this sentence, and where the heading stands.
        """
        far = self._block is not None and sentence.start - self._block[2] > LONGEST_BLOCK
        if far or (sentence.opens_paragraph and not self._heading_alone):
            self._block = None
        if sentence.opens_line:
            self._line = None
        self._heading_alone = False
        match = _EXAMINED.match(text, sentence.start, sentence.end) or _LABEL.match(text, sentence.start, sentence.end)
        alone = match is not None and not text[match.end() : sentence.end].strip()
        if match is None and sentence.opens_line and sentence.closes_line:
            match = _TITLE.fullmatch(text, sentence.start, sentence.end)
            alone = match is not None and _is_title(match)
            match = match if alone else None
        if match is None or any(start < match.end("label") for start, _ in taken):
            return self._line or self._block
        words = [word for word in _SPLIT.split(match["label"].lower()) if word]
        kind = _kind(words)
        heading = None if kind is None else (kind, match.start("label"), match.end("label"))
        if alone:
            self._block, self._line, self._heading_alone = heading, None, True
        elif heading is not None or not SECTIONS.isdisjoint(words) or words == ["o", "e"]:
            if not words or not RELATIVES.issuperset(words):
                self._block = None
            self._line = heading
        return self._line or self._block


def _is_title(match: re.Match[str]) -> bool:
    """Whether a line without a colon is a heading: "Scoliosis not detected" is a finding."""
    words = match["label"].lower().split()
    return "#" in match["bullet"] or SECTIONS.issuperset(words) or " ".join(words) in TITLES


def _kind(words: list[str]) -> Kind | None:
    if words and _SAYS_WHO.issuperset(words):
        return None if _WHO.isdisjoint(words) else Kind.FAMILY
    return _of_phrase(" ".join(words))


def _of_phrase(label: str) -> Kind | None:
    for kind, phrases in HEADINGS:
        for phrase in phrases:
            if label == phrase or label.startswith(phrase + " "):
                return kind
            if kind is not Kind.FAMILY and label.endswith(" " + phrase):
                return kind
    return None
