"""Split a text into words and look them up: `weightsmith_phenotype.tokens.split`, for a text whose words are known.

A text is an array of code points. A word is its code, which `word_code` continues from character to character, so that
the code of a word in two pieces is known without writing it down. Codes are looked up in a hash table of the words seen
so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weightsmith_phenotype.kernels.compiled import compiled
from weightsmith_phenotype.kernels.tables import append, look_up

__all__ = ["DIGIT", "HYPHEN", "JOINER", "LETTER", "SPACE", "WORD", "scan", "word_code"]

WORD, SPACE, LETTER, DIGIT, HYPHEN, JOINER = (1 << bit for bit in range(6))
"""What a character is: part of a word, space, letter, decimal digit, hyphen, sign inside words (hyphens are)."""

NEWLINE, RETURN, TAB, BLANK, COLON, STOP, OPENING, CLOSING = map(ord, "\n\r\t :.()")
BULLETS = tuple(map(ord, "-*•·▪◦–"))
LABEL = 40
"""Characters of a label before a colon at the start of a line, beside its first; also of a line too short for prose."""

NO_LETTERS = np.uint64(0x51ED270B7F3A9D15)


@compiled
def word_code(points: Any, start: Any, end: Any, code: Any) -> Any:
    """The code of a word and ``points[start:end]`` behind it; that of no word is `NO_LETTERS`."""
    for place in range(start, end):
        code = append(code, np.uint64(points[place]))
    return code


@compiled
def _begins_an_item(points: Any, place: Any, classes: Any) -> Any:
    """Whether a bullet, a number, or some words and a colon stand at the beginning of a line."""
    length = len(points)
    if place >= length:
        return False
    first = points[place]
    for bullet in BULLETS:
        if first == bullet:
            return place + 1 < length and (points[place + 1] == BLANK or points[place + 1] == TAB)
    if classes[first] & WORD and not classes[first] & DIGIT:
        for after in range(place + 1, min(length, place + LABEL + 2)):
            if points[after] == COLON:
                return True
            if points[after] == NEWLINE or points[after] == STOP:
                return False
        return False
    after = place + 1 if first == OPENING else place
    digits = after
    while after < length and after - digits < 2 and classes[points[after]] & DIGIT:
        after += 1
    if after == digits or after + 1 >= length or not (points[after] == STOP or points[after] == CLOSING):
        return False
    return points[after + 1] == BLANK or points[after + 1] == TAB


@compiled
def _join(points: Any, classes: Any, table: Any, named: Any, words: Any, place: Any, count: Any) -> Any:
    """Make one word of what stands before and after a sign, if both touch it and are one word together.

    Returns 1 if the table must know their word for that and does not have it.
    """
    starts, ends, codes, sizes, _ = words
    slots, rows, flags = table
    before = place - 1
    while before > 0 and starts[before] == ends[before]:
        before -= 1
    if ends[before] != starts[place] or not classes[points[starts[before]]] & LETTER:
        return 0
    hyphen = classes[points[starts[place]]] & HYPHEN != 0
    after = place + 1
    adjacent = after < count and classes[points[starts[after]]] & LETTER != 0
    if adjacent and starts[after] != ends[place]:
        broken = False
        for gap in range(ends[place], starts[after]):
            broken |= points[gap] == NEWLINE
        adjacent = hyphen and broken
    if not adjacent:
        if not hyphen:  # an accent at the end of a word
            codes[before] = word_code(points, starts[place], ends[place], codes[before])
            sizes[before] += 1
            ends[before] = starts[place] = ends[place]
            sizes[place], codes[place] = 0, NO_LETTERS
        return 0
    whole = codes[before]
    if not hyphen:
        whole = word_code(points, starts[place], ends[place], whole)
    whole = word_code(points, starts[after], ends[after], whole)
    if hyphen:
        row = look_up(whole, slots, rows)
        if row < 0:
            return 1
        if not flags[row] & named:
            return 0
    codes[before] = whole
    sizes[before] += sizes[after] + (0 if hyphen else 1)
    ends[before] = ends[after]
    for emptied in (place, after):
        starts[emptied] = ends[emptied] = ends[before]
        sizes[emptied], codes[emptied] = 0, NO_LETTERS
    return 0


@compiled
def scan(points: Any, classes: Any, table: Any, named: Any, words: Any, unknown: Any) -> Any:
    """Split a text into words.

    ``table`` has the slots and rows of the words' codes, and the flags of each row, of which ``named`` says that a name
    has the word. ``words`` is room for starts, ends, codes, lengths and rows, one per code point.

    Returns how many words there are, and how many are not in the table. Of the latter ``unknown`` holds the first ones:
    start and end of the word and of its second piece behind a hyphen; the start is -1 if it has more pieces than that.
    """
    starts, ends, codes, sizes, ids = words
    slots, rows, _ = table
    length, count, joiners, line, n = len(points), 0, 0, 0, 0
    while n < length:
        start, kind = n, classes[points[n]]
        code = NO_LETTERS
        if kind & WORD:
            while n < length and classes[points[n]] & WORD:
                code = append(code, np.uint64(points[n]))
                n += 1
        elif points[n] == NEWLINE or (points[n] == RETURN and n + 1 < length and points[n + 1] == NEWLINE):
            breaks, before = 0, line
            while n < length and (
                points[n] == NEWLINE or (points[n] == RETURN and n + 1 < length and points[n + 1] == NEWLINE)
            ):
                n += 1 if points[n] == NEWLINE else 2
                breaks, line = breaks + 1, n
                while n < length and (points[n] == BLANK or points[n] == TAB):
                    n += 1
            short = start - before < LABEL and not (start > 0 and classes[points[start - 1]] & HYPHEN)
            if breaks < 2 and not short and not _begins_an_item(points, n, classes):
                continue
            code = append(code, np.uint64(NEWLINE))
        elif kind & SPACE and points[n] != TAB:
            n += 1
            continue
        else:
            code = append(code, np.uint64(points[n]))
            n += 1
            joiners += 1 if kind & JOINER else 0
        starts[count], ends[count], codes[count], sizes[count] = start, n, code, n - start
        count += 1
    missing = 0
    for place in range(1, count if joiners else 1):
        joiner = sizes[place] == 1 and classes[points[starts[place]]] & JOINER
        if joiner and _join(points, classes, table, named, words, place, count):
            before = place - 1
            while starts[before] == ends[before]:
                before -= 1
            if missing < len(unknown):
                whole = sizes[before] == ends[before] - starts[before]
                unknown[missing, 0], unknown[missing, 1] = starts[before] if whole else -1, ends[before]
                unknown[missing, 2], unknown[missing, 3] = starts[place + 1], ends[place + 1]
            missing += 1
    for place in range(count):
        row = look_up(codes[place], slots, rows)
        ids[place] = row
        if row < 0:
            if missing < len(unknown):
                whole = sizes[place] == ends[place] - starts[place]
                unknown[missing, 0], unknown[missing, 1] = starts[place] if whole else -1, ends[place]
                unknown[missing, 2] = unknown[missing, 3] = ends[place]
            missing += 1
    return count, missing
