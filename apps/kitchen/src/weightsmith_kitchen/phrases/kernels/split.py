"""Split lines of code points into tokens and their normalized forms, a whole batch at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["fold", "split_lines"]

SPACE, DIGIT, LETTER, FRACTION, DASH, OTHER = range(6)
NO_BREAK_SPACE = 0xA0
LARGEST_DENOMINATOR = 64
FAR = 4.0
"""``2 - 14 oz cans`` is no range: across blanks, a range's end is less than this many times its start."""


@njit(cache=True, nogil=True)
def fold(chars: Any, start: int, end: int) -> Any:
    """64-bit code (FNV-1a) of lower-cased code points, ASCII only."""
    code = np.uint64(0xCBF29CE484222325)
    for place in range(start, end):
        char = chars[place]
        if 65 <= char <= 90:
            char += 32
        code = (code ^ np.uint64(char)) * np.uint64(0x100000001B3)
    return code


@njit(cache=True, nogil=True)
def _kind(char: Any) -> int:
    if 48 <= char <= 57:
        return DIGIT
    if (65 <= char <= 90) or (97 <= char <= 122):
        return LETTER
    if char <= 32 or char == 0xA0 or 0x2000 <= char <= 0x200B or char == 0x202F or char == 0x3000 or char == 0xFEFF:
        return SPACE
    if char == 45 or 0x2010 <= char <= 0x2015 or char == 0x2212:
        return DASH
    if char == 0xBC or char == 0xBD or char == 0xBE or 0x2150 <= char <= 0x215E:
        return FRACTION
    if char < 128 or 0xA1 <= char <= 0xBF or char == 0xD7 or char == 0xF7 or 0x2000 <= char <= 0x2BFF:
        return OTHER
    return LETTER


@njit(cache=True, nogil=True)
def _vulgar(char: Any) -> tuple[int, int]:
    """Numerator and denominator of a vulgar fraction's code point."""
    if char == 0xBC:
        return 1, 4
    if char == 0xBD:
        return 1, 2
    if char == 0xBE:
        return 3, 4
    if char == 0x2150:
        return 1, 7
    if char == 0x2151:
        return 1, 9
    if char == 0x2152:
        return 1, 10
    if char <= 0x2154:
        return char - 0x2152, 3
    if char <= 0x2158:
        return char - 0x2154, 5
    if char <= 0x215A:
        return 1 + 4 * (char - 0x2159), 6
    return 1 + 2 * (char - 0x215B), 8


@njit(cache=True, nogil=True)
def _digits(chars: Any, place: int, end: int) -> tuple[int, float]:
    value = 0.0
    while place < end and 48 <= chars[place] <= 57:
        value = 10 * value + (chars[place] - 48)
        place += 1
    return place, value


@njit(cache=True, nogil=True)
def _blank(chars: Any, place: int, end: int) -> int:
    while place < end and _kind(chars[place]) == SPACE:
        place += 1
    return place


@njit(cache=True, nogil=True)
def _write(form: Any, size: int, value: int) -> int:
    """Append a number's decimal digits."""
    first, rest = 1, value
    while rest >= 10:
        rest //= 10
        first *= 10
    while first > 0:
        form[size] = 48 + value // first % 10
        size += 1
        first //= 10
    return size


@njit(cache=True, nogil=True)
def _ordinal(chars: Any, place: int, end: int) -> int:
    """After ``st``, ``nd``, ``rd`` or ``th`` that ends a word; else the same place."""
    if place + 2 > end or (place + 2 < end and _kind(chars[place + 2]) in (LETTER, DIGIT)):
        return place
    one, two = chars[place] | 32, chars[place + 1] | 32
    pairs = (one == 115 and two == 116) or (one == 110 and two == 100) or (one == 114 and two == 100)
    return place + 2 if pairs or (one == 116 and two == 104) else place


@njit(cache=True, nogil=True)
def _simple_fraction(chars: Any, place: int, end: int) -> tuple[int, int, int]:
    """End, numerator and denominator of ``½`` or ``1/2`` that starts at the place; end 0 when there is none."""
    if place >= end:
        return 0, 0, 0
    if _kind(chars[place]) == FRACTION:
        over, under = _vulgar(chars[place])
        return place + 1, over, under
    after, over = _digits(chars, place, end)
    if after == place or after + 1 >= end or after - place > 3 or (chars[after] != 47 and chars[after] != 0x2044):
        return 0, 0, 0
    stop, under = _digits(chars, after + 1, end)
    if stop == after + 1 or stop - after > 4:
        return 0, 0, 0
    return stop, int(over), int(under)


@njit(cache=True, nogil=True)
def _proper(chars: Any, place: int, end: int) -> tuple[int, int, int]:
    """A simple fraction below one with a usual denominator."""
    stop, over, under = _simple_fraction(chars, place, end)
    if stop and over < under <= LARGEST_DENOMINATOR:
        return stop, over, under
    return 0, 0, 0


@njit(cache=True, nogil=True)
def _and(chars: Any, place: int, end: int) -> int:
    """After ``and`` or ``&`` between blanks; else the same place."""
    start = _blank(chars, place, end)
    if start < end and chars[start] == 38:
        return _blank(chars, start + 1, end)
    if start == place or start + 4 > end or _kind(chars[start + 3]) != SPACE:
        return place
    word = (chars[start] | 32) == 97 and (chars[start + 1] | 32) == 110 and (chars[start + 2] | 32) == 100
    return _blank(chars, start + 3, end) if word else place


@njit(cache=True, nogil=True)
def _number(chars: Any, place: int, end: int, form: Any, size: int) -> tuple[int, int, float]:
    """End, size of the form and value of the number that starts at the place; its form is appended."""
    stop, over, under = _simple_fraction(chars, place, end)
    if stop:
        size = _write(form, size, over)
        form[size] = 47
        size = _write(form, size + 1, under)
        return _ordinal(chars, stop, end), size, over / max(under, 1)
    stop, value = _digits(chars, place, end)
    for at in range(place, stop):
        form[size] = chars[at]
        size += 1
    if stop + 1 < end and (chars[stop] == 46 or chars[stop] == 44) and 48 <= chars[stop + 1] <= 57:
        after, decimals = _digits(chars, stop + 1, end)
        count = after - stop - 1
        if chars[stop] == 44 and count == 3 and stop > place:
            value = 1000 * value + decimals
        else:
            value += decimals / 10.0**count
        for at in range(stop, after):
            form[size] = chars[at]
            size += 1
        return after, size, value
    # A mixed number: "2½", "2 1/2", "2-1/2", "2 and 1/2".
    next_start = _blank(chars, stop, end)
    if next_start == stop and stop < end and _kind(chars[stop]) == DASH:
        next_start = stop + 1
    after, over, under = _proper(chars, next_start, end)
    if not after or (next_start == stop and _kind(chars[stop]) == DIGIT):
        next_start = _and(chars, stop, end)
        after, over, under = _proper(chars, next_start, end) if next_start > stop else (0, 0, 0)
    if after:
        form[size] = NO_BREAK_SPACE
        size = _write(form, size + 1, over)
        form[size] = 47
        size = _write(form, size + 1, under)
        return _ordinal(chars, after, end), size, value + over / under
    return _ordinal(chars, stop, end), size, value


@njit(cache=True, nogil=True)
def _starts_number(chars: Any, place: int, end: int) -> bool:
    if place >= end:
        return False
    kind = _kind(chars[place])
    return kind in (DIGIT, FRACTION) or (chars[place] == 46 and place + 1 < end and 48 <= chars[place + 1] <= 57)


@njit(cache=True, nogil=True)
def _amount(chars: Any, place: int, end: int, form: Any, size: int) -> tuple[int, int]:
    """End and size of the form of the number or range that starts at the place."""
    start = size
    stop, size, low = _number(chars, place, end, form, size)
    dash = _blank(chars, stop, end)
    if dash < end and _kind(chars[dash]) == DASH:
        second = _blank(chars, dash + 1, end)
        if _starts_number(chars, second, end):
            form[size] = 45
            after, longer, high = _number(chars, second, end, form, size + 1)
            spaced = dash > stop and second > dash + 1
            if low < high and not (spaced and high >= FAR * low):
                return after, longer
    return stop, size if size > start else start


@njit(cache=True, nogil=True)
def _letters(chars: Any, place: int, end: int) -> int:
    while place < end and _kind(chars[place]) == LETTER:
        place += 1
    return place


@njit(cache=True, nogil=True)
def _listed(code: Any, codes: Any) -> bool:
    low = np.searchsorted(codes, code)
    return low < len(codes) and codes[low] == code


@njit(cache=True, nogil=True)
def _word(chars: Any, place: int, end: int, abbreviations: Any) -> int:
    """End of the word that starts at the place: letters, digits, and hyphens, signs and points inside."""
    start, stop = place, place
    while stop < end:
        char, kind = chars[stop], _kind(chars[stop])
        if kind in (LETTER, DIGIT):
            stop += 1
            continue
        inside = stop + 1 < end and _kind(chars[stop + 1]) == LETTER
        if kind == DASH and stop + 1 < end and _kind(chars[stop + 1]) in (LETTER, DIGIT):
            stop += 1
        elif (char == 39 or char == 0x2019) and inside:
            tail = _letters(chars, stop + 1, end)
            if tail - stop - 1 <= 2 and not (tail - stop == 2 and chars[stop + 1] | 32 == 116):
                break  # 's, 're, 'll, 'm, 'd are tokens of their own
            stop += 1
        elif (char == 47 or char == 46 or char == 38) and inside and stop > start:
            stop += 1
        elif char == 46 and stop > start and _listed(fold(chars, start, stop), abbreviations):
            return stop + 1
        else:
            break
    return stop


@njit(cache=True, nogil=True)
def _not(chars: Any, start: int, stop: int) -> int:
    """Where ``n't`` starts in a word, or its end."""
    if stop - start < 4 or chars[stop - 1] | 32 != 116 or chars[stop - 3] | 32 != 110:
        return stop
    return stop - 3 if chars[stop - 2] == 39 or chars[stop - 2] == 0x2019 else stop


@njit(cache=True, nogil=True)
def _copy(chars: Any, start: int, end: int, form: Any, size: int) -> int:
    for at in range(start, end):
        char = chars[at]
        if char == 0x2019 or char == 0x2018:
            char = np.uint32(39)
        elif _kind(char) == DASH:
            char = np.uint32(45)
        form[size] = char
        size += 1
    return size


@njit(cache=True, nogil=True)
def _bracket(opens: bool, form: Any, size: int) -> int:
    """The treebank's name of a bracket: -LRB- or -RRB-."""
    form[size] = 45
    form[size + 1] = 76 if opens else 82
    form[size + 2], form[size + 3], form[size + 4] = 82, 66, 45
    return size + 5


@njit(cache=True, nogil=True)
def split_lines(chars: Any, lines: Any, abbreviations: Any, measures: Any) -> Any:
    """Tokens of all lines.

    ``chars`` holds the code points of all lines, ``lines`` where each starts (and the end of the last),
    ``abbreviations`` the codes of words that keep their point, ``measures`` those of units that are split from a
    number and its hyphen (``14-ounce``); lengths (``1-inch``) are not. Both are sorted.

    Returns starts and ends of tokens, starts of their forms, the forms' code points, and the first token of each line.
    """
    total = len(chars)
    starts, ends = np.empty(total, np.int32), np.empty(total, np.int32)
    offsets, form = np.empty(total + 1, np.int32), np.empty(6 * total + 64, np.uint32)
    first = np.empty(len(lines), np.int32)
    count, size = np.int64(0), np.int64(0)  # one type everywhere: helpers are compiled once
    for line in range(len(lines) - 1):
        first[line] = count
        place, end = np.int64(lines[line]), np.int64(lines[line + 1])
        while place < end:
            char, kind = chars[place], _kind(chars[place])
            if kind == SPACE:
                place += 1
                continue
            starts[count], offsets[count] = place, size
            if _starts_number(chars, place, end):
                stop, size = _amount(chars, place, end, form, size)
                if stop + 1 < end and _kind(chars[stop]) == DASH and _kind(chars[stop + 1]) == LETTER:
                    unit = _letters(chars, stop + 1, end)
                    if not _listed(fold(chars, stop + 1, unit), measures):
                        after = _word(chars, stop + 1, end, abbreviations)
                        form[size] = 45
                        size = _copy(chars, stop + 1, after, form, size + 1)
                        stop = after
            elif kind == LETTER:
                stop = _word(chars, place, end, abbreviations)
                cut = _not(chars, place, stop)
                size = _copy(chars, place, cut, form, size)
                if cut < stop:
                    ends[count] = cut
                    count += 1
                    starts[count], offsets[count] = cut, size
                    size = _copy(chars, cut, stop, form, size)
            elif (char == 39 or char == 0x2019) and place + 1 < end and _kind(chars[place + 1]) == LETTER:
                stop = _letters(chars, place + 1, end)
                size = _copy(chars, place, stop, form, size)
            else:
                stop = place + 1
                while stop < end and chars[stop] == char and (char == 45 or char == 46):
                    stop += 1
                if char == 40 or char == 91 or char == 123 or char == 41 or char == 93 or char == 125:
                    size = _bracket(char == 40 or char == 91 or char == 123, form, size)
                else:
                    size = _copy(chars, place, stop, form, size)
            ends[count] = stop
            count += 1
            place = stop
    first[-1], offsets[count] = count, size
    return starts[:count].copy(), ends[:count].copy(), offsets[: count + 1].copy(), form[:size].copy(), first
