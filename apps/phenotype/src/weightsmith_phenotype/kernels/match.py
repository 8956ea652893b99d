"""Find names in a row of words: contiguous, in another order, with exchanged words, and across lists.

Words are rows of a table of codes and flags (`Words`). A name is the code of its words in order (`phrase`), or the code
of its set of stems (a sum, so that order does not count). Codes are looked up in open-addressing tables. Two different
names share a 64-bit code with probability 1e-8 in a table of a million.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["BARRIER", "COMMA", "CONJUNCTION", "COPULA", "ENDS", "FUNCTION", "HEADS", "JOINT", "KNOWN", "LINK", "MATCH"]
__all__ += ["build_table", "find", "look_up", "phrase", "resolve"]

BARRIER, JOINT, LINK, FUNCTION, COMMA, CONJUNCTION, KNOWN, ENDS, HEADS, COPULA = (1 << bit for bit in range(10))
"""What a word is: ends a segment; is dropped; carries no meaning; is not crossed; ``,``; ``and``/``or``; occurs in the
ontology; can end a name; is what a name is about (as *anomaly* in *renal anomaly*); ``was`` and the like."""

MATCH = np.dtype([("start", "i4"), ("end", "i4"), ("concept", "i4"), ("score", "f4"), ("kind", "i4"), ("kept", "i4")])
"""One match: first word, word after the last, concept, score, kind (0 exact, 1 set of words, 2 list or gap)."""

LONGEST, CONTENT, ELEMENT, GAP = 14, 6, 4, 6
"""Words of a match; its content words; words of a list's element; words between two signs of one list."""
MOST_ELEMENTS, MOST_WORDS = 12, 400
"""Elements of a list that share a word; words after which a comma ends a segment, so that no text takes long."""

LISTED, SKIPPED = np.float32(0.98), np.float32(0.95)
"""What a match across a list, and one that skips a word, is worth."""

LEAST_SKIPPING = np.float32(0.9)
"""Least score of a name before a word is skipped."""

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


@njit(cache=True, nogil=True)
def _append(state: np.uint64, code: np.uint64) -> np.uint64:
    mixed = (state ^ code) * _PRIME
    return mixed ^ (mixed >> _SHIFT)


@njit(cache=True, nogil=True)
def phrase(codes: NDArray[np.uint64]) -> np.uint64:
    """The code of words in order."""
    state = np.uint64(1)
    for code in codes:
        state = _append(state, code)
    return state


@njit(cache=True, nogil=True)
def build_table(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Slots (half of them empty) with the keys, and the row of each; key 0 means empty."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    slots, rows = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
    mask = np.uint64(size - 1)
    for row in range(len(keys)):
        place = keys[row] & mask
        while slots[place] != 0:
            place = (place + np.uint64(1)) & mask
        slots[place], rows[place] = keys[row], row
    return slots, rows


@njit(cache=True, nogil=True)
def look_up(key: np.uint64, slots: NDArray[np.uint64], rows: NDArray[np.int32]) -> int:
    """The row of a key, or -1."""
    mask = np.uint64(len(slots) - 1)
    place = key & mask
    while slots[place] != 0:
        if slots[place] == key:
            return rows[place]
        place = (place + np.uint64(1)) & mask
    return -1


@njit(cache=True, nogil=True)
def _exact(picked: Any, count: Any, words: Any, phrases: Any) -> Any:
    """The concept that has these words in this order as a name, or -1."""
    surface, lemmas = words[1], words[2]
    state, singular = np.uint64(1), np.uint64(1)
    for n in range(count):
        state = _append(state, surface[picked[n]])
        singular = _append(singular, lemmas[picked[n]])
    return _named(state, singular, phrases)


@njit(cache=True, nogil=True)
def _named(state: Any, singular: Any, phrases: Any) -> Any:
    """The concept with a name of this code: as written first, then in the singular."""
    slots, rows, concepts = phrases
    row = look_up(state, slots, rows)
    if row < 0:
        row = look_up(singular, slots, rows)
    return concepts[row] if row >= 0 else -1


@njit(cache=True, nogil=True)
def _as_set(picked: Any, count: Any, words: Any, bags: Any, threshold: Any) -> Any:
    """The concept that has these content words as a name in any order, or exchanged for others, and the score."""
    flags, stems = words[0], words[3]
    slots, rows, concepts, scores = bags
    if not flags[picked[count - 1]] & ENDS:
        return -1, np.float32(0)
    total, content = np.uint64(0), 0
    for n in range(count):
        word = picked[n]
        if flags[word] & LINK:
            continue
        if not flags[word] & KNOWN:
            return -1, np.float32(0)
        content += 1
        if content > CONTENT:
            return -1, np.float32(0)
        for m in range(n):
            if stems[picked[m]] == stems[word] and not flags[picked[m]] & LINK:
                return -1, np.float32(0)
        total += stems[word]
    if content < 2:
        return -1, np.float32(0)
    row = look_up(total, slots, rows)
    if row < 0 or scores[row] < threshold:
        return -1, np.float32(0)
    return concepts[row], scores[row]


@njit(cache=True, nogil=True)
def _either(picked: Any, count: Any, words: Any, phrases: Any, bags: Any, threshold: Any) -> Any:
    concept = _exact(picked, count, words, phrases)
    if concept >= 0:
        return concept, np.float32(1)
    return _as_set(picked, count, words, bags, threshold)


@njit(cache=True, nogil=True)
def _add(found: Any, count: Any, start: Any, end: Any, concept: Any, score: Any, kind: Any) -> Any:
    if count < len(found):
        match = found[count]
        match.start, match.end, match.concept, match.score, match.kind = start, end, concept, score, kind
    return count + 1


@njit(cache=True, nogil=True)
def _contiguous(row: Any, first: Any, last: Any, search: Any, count: Any) -> Any:
    """Names that stand in one piece, in any order of words."""
    words, phrases, bags, threshold, picked, found = search
    flags = words[0]
    for start in range(first, last):
        if flags[row[start]] & (LINK | COMMA) or not flags[row[start]] & KNOWN:
            continue
        crossed = False
        state, singular = np.uint64(1), np.uint64(1)
        for end in range(start + 1, min(last, start + LONGEST) + 1):
            kind = flags[row[end - 1]]
            picked[end - 1 - start] = row[end - 1]
            state = _append(state, words[1][row[end - 1]])
            singular = _append(singular, words[2][row[end - 1]])
            if not kind & (KNOWN | LINK | FUNCTION | COMMA):
                break
            crossed |= kind & (FUNCTION | COMMA) != 0
            if kind & (COMMA | LINK):
                continue
            concept = _named(state, singular, phrases)
            if concept >= 0:
                count = _add(found, count, start, end, concept, np.float32(1), 0)
            elif not crossed:
                concept, score = _as_set(picked, end - start, words, bags, threshold)
                if concept >= 0:
                    count = _add(found, count, start, end, concept, score, 1)
    return count


@njit(cache=True, nogil=True)
def _across(row: Any, a: Any, b: Any, c: Any, d: Any, worth: Any, search: Any, count: Any) -> Any:
    """The name of ``row[a:b]`` and then ``row[c:d]`` read together; the match stretches over both."""
    words, phrases, bags, threshold, picked, found = search
    length = b - a + d - c
    # Names with words that the ontology does not know are found in one piece only.
    if length > LONGEST or not words[0][row[a]] & words[0][row[d - 1]] & KNOWN:
        return count
    for n in range(b - a):
        picked[n] = row[a + n]
    for n in range(d - c):
        picked[b - a + n] = row[c + n]
    concept, score = _either(picked, length, words, phrases, bags, threshold)
    if concept >= 0:
        count = _add(found, count, min(a, c), max(b, d), concept, score * worth, 2)
    return count


@njit(cache=True, nogil=True)
def _list(row: Any, first: Any, last: Any, signs: Any, many: Any, search: Any, count: Any) -> Any:
    """Names that share their head or their end across a list: "branchial, otic and renal anomalies".

    ``signs[:many]`` are the places of the list's commas and conjunctions.
    """
    flags = search[0][0]
    begins, stops = np.empty(many + 1, np.int32), np.empty(many + 1, np.int32)
    start = signs[0]
    while start > first and signs[0] - start < ELEMENT and not flags[row[start - 1]] & (FUNCTION | COMMA):
        start -= 1
    elements = 0
    if start < signs[0]:
        begins[0], stops[0], elements = start, signs[0], 1
    for n in range(many - 1):
        if signs[n + 1] > signs[n] + 1:
            begins[elements], stops[elements] = signs[n] + 1, signs[n + 1]
            elements += 1
    end = signs[many - 1] + 1
    while end < last and end - signs[many - 1] <= ELEMENT + 1 and not flags[row[end]] & (FUNCTION | COMMA):
        end += 1
    if end > signs[many - 1] + 1:
        begins[elements], stops[elements] = signs[many - 1] + 1, end
        elements += 1
    for closing in range(1, elements):
        a, b = begins[closing], stops[closing]
        if not flags[row[a - 1]] & CONJUNCTION and not (a - 2 >= first and flags[row[a - 2]] & CONJUNCTION):
            continue
        for opening in range(closing - 1, max(-1, closing - MOST_ELEMENTS), -1):
            start, stop = begins[opening], stops[opening]
            # The list's last element has the head: "palmar | and | plantar pits".
            if not flags[row[stop - 1]] & HEADS:
                for head in range(a + 1, b):
                    if flags[row[head]] & LINK:
                        continue
                    for end in range(head + 1, min(b, head + 3) + 1):
                        if flags[row[end - 1]] & LINK:
                            continue
                        for left in range(max(start, stop - 2), stop):
                            if not flags[row[left]] & LINK:
                                count = _across(row, left, stop, head, end, LISTED, search, count)
            # The list's first element has the head: "hypopigmentation of skin | or | hair".
            for cut in range(start + 1, stop):
                for left in range(max(start, cut - 3), cut):
                    if flags[row[left]] & LINK:
                        continue
                    for end in range(a + 1, min(b, a + 3) + 1):
                        if not flags[row[end - 1]] & LINK and not flags[row[a]] & FUNCTION:
                            count = _across(row, left, cut, a, end, LISTED, search, count)
    return count


@njit(cache=True, nogil=True)
def _lists(row: Any, first: Any, last: Any, search: Any, count: Any) -> Any:
    flags = search[0][0]
    signs = np.empty(last - first, np.int32)
    place = first
    while place < last:
        if not flags[row[place]] & (COMMA | CONJUNCTION):
            place += 1
            continue
        signs[0], many = place, 1
        conjunctions = flags[row[place]] & CONJUNCTION != 0
        searching = True
        while searching:
            searching = False
            for after in range(signs[many - 1] + 1, min(last, signs[many - 1] + GAP)):
                kind = flags[row[after]]
                if kind & (COMMA | CONJUNCTION):
                    signs[many], many, searching = after, many + 1, True
                    conjunctions |= kind & CONJUNCTION != 0
                    break
                if kind & FUNCTION:
                    break
        if conjunctions:
            count = _list(row, first, last, signs, many, search, count)
        place = signs[many - 1] + 1
    return count


@njit(cache=True, nogil=True)
def _adjectives(row: Any, first: Any, last: Any, search: Any, count: Any) -> Any:
    """Adjectives in a row before their noun: "a broad, flat nose"."""
    flags = search[0][0]
    for comma in range(first + 1, last - 1):
        if not flags[row[comma]] & COMMA:
            continue
        for start in range(comma - 1, max(first, comma - 2) - 1, -1):
            if flags[row[start]] & (LINK | FUNCTION | COMMA) or flags[row[comma - 1]] & HEADS:
                break
            for head in range(comma + 2, min(last, comma + 5)):
                if flags[row[head]] & (FUNCTION | COMMA) or flags[row[head - 1]] & (FUNCTION | COMMA):
                    break
                for end in range(head + 1, min(last, head + 2) + 1):
                    if flags[row[end - 1]] & (FUNCTION | COMMA | LINK):
                        break
                    count = _across(row, start, comma, head, end, LISTED, search, count)
    return count


@njit(cache=True, nogil=True)
def _skipping(row: Any, first: Any, last: Any, search: Any, count: Any) -> Any:
    """Names with one word too much inside: "long curly eyelashes"."""
    words, phrases, bags, threshold, picked, found = search
    search = words, phrases, bags, max(threshold, LEAST_SKIPPING), picked, found
    flags = words[0]
    for start in range(first, last - 2):
        if flags[row[start]] & (LINK | FUNCTION | COMMA) or not flags[row[start]] & KNOWN:
            continue
        strange = -1  # the one word that no name has, if there is one: it must be the skipped one
        for end in range(start + 2, min(last, start + 7) + 1):
            kind = flags[row[end - 1]]
            if kind & (FUNCTION | COMMA | CONJUNCTION):
                break
            if not kind & (KNOWN | LINK):
                if strange >= 0:
                    break
                strange = end - 1
                continue
            if kind & LINK or end - start < 3 or not kind & ENDS:
                continue
            for skipped in range(start + 1, end - 1):
                if not flags[row[skipped]] & (LINK | HEADS) and (strange < 0 or strange == skipped):
                    count = _across(row, start, skipped, skipped + 1, end, SKIPPED, search, count)
    return count


@njit(cache=True, nogil=True)
def _predicates(row: Any, first: Any, last: Any, search: Any, count: Any) -> Any:
    """What is said of a noun: "the nails were severely hypoplastic"."""
    flags = search[0][0]
    for copula in range(first + 1, last - 1):
        if not flags[row[copula]] & COPULA:
            continue
        for again in range(copula + 1, min(last, copula + 3)):
            if flags[row[again]] & (LINK | FUNCTION | COMMA):
                break
            for end in range(again + 1, min(last, again + 2) + 1):
                if flags[row[end - 1]] & (LINK | FUNCTION | COMMA):
                    break
                for start in range(copula - 1, max(first, copula - 3) - 1, -1):
                    if flags[row[start]] & (FUNCTION | COMMA):
                        break
                    if not flags[row[start]] & LINK:
                        count = _across(row, again, end, start, copula, SKIPPED, search, count)
    return count


@njit(cache=True, nogil=True)
def _is_above(ancestor: Any, concept: Any, above: Any) -> Any:
    """Whether the first concept is an ancestor of the second; ``above`` holds sorted ancestors per concept."""
    starts, members = above
    low, high = starts[concept], starts[concept + 1]
    while low < high:
        middle = (low + high) // 2
        if members[middle] < ancestor:
            low = middle + 1
        else:
            high = middle
    return low < starts[concept + 1] and members[low] == ancestor


@njit(cache=True, nogil=True)
def resolve(found: Any, above: Any, nested: Any) -> Any:
    """Move the matches to report to the front and return how many they are.

    Per identical span the best; per concept the best of those that overlap; a match inside a longer one only if its
    concept is an ancestor of the longer one's (`nested`), never if it is an unrelated reading of the same words.
    """
    count = len(found)
    for a in range(count):
        x = found[a]
        x.kept = 1
        for b in range(count):
            y = found[b]
            if a == b or y.end <= x.start or x.end <= y.start:
                continue
            same = x.start == y.start and x.end == y.end
            inside = y.start <= x.start and x.end <= y.end and not same
            listed = x.kind == 2
            if listed and y.kind == 0 and y.start <= x.start and x.end <= y.end:
                x.kept = 0  # a name of the ontology explains these words better
                break
            if x.concept == y.concept:
                better = y.score > x.score or (y.score == x.score and (inside or (same and b < a)))
                if listed and y.kind != 2:
                    better = True
                elif y.kind == 2 and not listed:
                    better = False
                elif listed and y.start >= x.start and y.end <= x.end and not same:
                    better = True
                elif listed and inside:
                    better = False
                if better:
                    x.kept = 0
                    break
            elif same and not listed and y.kind != 2:
                if y.score > x.score or (y.score == x.score and b < a):
                    x.kept = 0
                    break
            elif inside and not listed and y.kind != 2 and not (nested and _is_above(x.concept, y.concept, above)):
                x.kept = 0
                break
    kept = 0
    for a in range(count):
        if found[a].kept:
            found[kept] = found[a]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def find(
    ids: Any, words: Any, phrases: Any, bags: Any, above: Any, threshold: Any, lists: Any, nested: Any, found: Any
) -> Any:
    """All matches in a text's words: how many are in ``found``, and the place in ``ids`` of each word it speaks of.

    ``ids`` are rows of ``words`` (flags, codes as written, of the singular, of the stem); joints are skipped.
    """
    flags = words[0]
    row, place = np.empty(len(ids), np.int32), np.empty(len(ids), np.int32)
    search = words, phrases, bags, threshold, np.empty(LONGEST, np.int32), found
    count, length, begin = 0, 0, 0
    for n in range(len(ids) + 1):
        long = length - begin >= MOST_WORDS and (
            flags[ids[min(n, len(ids) - 1)]] & COMMA or length - begin >= 2 * MOST_WORDS
        )
        if n < len(ids) and not flags[ids[n]] & BARRIER and not long:
            if not flags[ids[n]] & JOINT:
                row[length], place[length] = ids[n], n
                length += 1
            continue
        if length > begin:
            before = count
            count = _contiguous(row, begin, length, search, count)
            if lists:
                count = _lists(row, begin, length, search, count)
                count = _adjectives(row, begin, length, search, count)
                count = _skipping(row, begin, length, search, count)
                count = _predicates(row, begin, length, search, count)
            if count <= len(found):
                count = before + resolve(found[before:count], above, nested)
        begin = length
    return count, place
