"""Find names in a row of words: contiguous, in another order, with exchanged words, and across lists.

Words are rows of flags and codes. A name is the code of its words in order, or the code of its set of stems (a sum, so
that order does not count). Codes are looked up in open-addressing tables, after a bitmap that most of them do not pass
(`weightsmith_phenotype.kernels.tables`). Two different names share a 64-bit code with probability 1e-8 in a table of a
million.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith_phenotype.kernels.compiled import compiled
from weightsmith_phenotype.kernels.tables import append, look_up, passes

__all__ = ["BARRIER", "COMMA", "CONJUNCTION", "COPULA", "ENDS", "FUNCTION", "HEADS", "JOINT", "KNOWN", "LINK", "MATCH"]
__all__ += ["NAMED", "find", "resolve", "room"]

BARRIER, JOINT, LINK, FUNCTION, COMMA, CONJUNCTION, KNOWN, ENDS, HEADS, COPULA, NAMED = (1 << bit for bit in range(11))
"""What a word is: ends a segment; is dropped; carries no meaning; is not crossed; ``,``; ``and``/``or``; occurs in the
ontology; can end a name; is what a name is about (as *anomaly* in *renal anomaly*); ``was`` and the like; occurs in the
names, not just its stem."""

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

NO_WORDS = (np.uint64(1), np.uint64(1), np.uint64(0))
"""Codes of no words: in order as written, in order in the singular, as a set of stems."""


@compiled
def _named(code: Any, phrases: Any) -> Any:
    """The concept with a name of this code: as written first, then in the singular; or -1."""
    written, singular, _ = code
    slots, rows, concepts, bits = phrases
    row = look_up(written, slots, rows) if passes(written, bits) else -1
    if row < 0 and passes(singular, bits):
        row = look_up(singular, slots, rows)
    return concepts[row] if row >= 0 else -1


@compiled
def _as_set(a: Any, b: Any, c: Any, d: Any, total: Any, words: Any, bags: Any, threshold: Any) -> Any:
    """The concept with a name of the content words of ``[a, b)`` and ``[c, d)``, in any order or exchanged; its score.

    ``total`` is the sum of their stems' codes.
    """
    flags, _, _, stems = words
    slots, rows, concepts, scores, bits = bags
    if not passes(total, bits) or not flags[d - 1] & ENDS:
        return -1, np.float32(0)
    content = 0
    for n in range(b - a + d - c):
        word = a + n if n < b - a else c - b + a + n
        if flags[word] & LINK:
            continue
        if not flags[word] & KNOWN:
            return -1, np.float32(0)
        content += 1
        if content > CONTENT:
            return -1, np.float32(0)
        for m in range(n):
            other = a + m if m < b - a else c - b + a + m
            if stems[other] == stems[word] and not flags[other] & LINK:
                return -1, np.float32(0)
    if content < 2:
        return -1, np.float32(0)
    row = look_up(total, slots, rows)
    if row < 0 or scores[row] < threshold:
        return -1, np.float32(0)
    return concepts[row], scores[row]


@compiled
def _add(found: Any, count: Any, start: Any, end: Any, concept: Any, score: Any, kind: Any) -> Any:
    if count < len(found):
        match = found[count]
        match.start, match.end, match.concept, match.score, match.kind = start, end, concept, score, kind
    return count + 1


@compiled
def _read(code: Any, place: Any, words: Any) -> Any:
    """Codes of words in order, of their singulars in order, and of the set of stems, with one more word."""
    flags, surface, lemmas, stems = words
    written, singular, total = code
    if not flags[place] & LINK:
        total += stems[place]
    return append(written, surface[place]), append(singular, lemmas[place]), total


@compiled
def _contiguous(first: Any, last: Any, search: Any, count: Any) -> Any:
    """Names that stand in one piece, in any order of words."""
    words, phrases, bags, threshold, found, _ = search
    flags = words[0]
    for start in range(first, last):
        if flags[start] & (LINK | COMMA) or not flags[start] & KNOWN:
            continue
        crossed = False
        code = NO_WORDS
        for end in range(start + 1, min(last, start + LONGEST) + 1):
            kind = flags[end - 1]
            if not kind & (KNOWN | LINK | FUNCTION | COMMA):
                break
            code = _read(code, end - 1, words)
            crossed |= kind & (FUNCTION | COMMA) != 0
            if kind & (COMMA | LINK):
                continue
            concept = _named(code, phrases)
            if concept >= 0:
                count = _add(found, count, start, end, concept, np.float32(1), 0)
            elif not crossed:
                concept, score = _as_set(start, end, end, end, code[2], words, bags, threshold)
                if concept >= 0:
                    count = _add(found, count, start, end, concept, score, 1)
    return count


@compiled
def _across(a: Any, b: Any, c: Any, d: Any, worth: Any, search: Any, count: Any) -> Any:
    """The name of the words ``[a, b)`` and then ``[c, d)`` read together; the match stretches over both."""
    words = search[0]
    # Names with words that the ontology does not know are found in one piece only.
    if b - a + d - c > LONGEST or not words[0][a] & words[0][d - 1] & KNOWN:
        return count
    code = NO_WORDS
    for place in range(a, b):
        code = _read(code, place, words)
    for place in range(c, d):
        code = _read(code, place, words)
    return _together(a, b, c, d, code, worth, search, count)


@compiled
def _together(a: Any, b: Any, c: Any, d: Any, code: Any, worth: Any, search: Any, count: Any) -> Any:
    words, phrases, bags, threshold, found, _ = search
    concept, score = _named(code, phrases), np.float32(1)
    if concept < 0:
        concept, score = _as_set(a, b, c, d, code[2], words, bags, threshold)
    if concept >= 0:
        count = _add(found, count, min(a, c), max(b, d), concept, score * worth, 2)
    return count


@compiled
def _list(first: Any, last: Any, signs: Any, many: Any, search: Any, count: Any) -> Any:
    """Names that share their head or their end across a list: "branchial, otic and renal anomalies".

    ``signs[:many]`` are the places of the list's commas and conjunctions.
    """
    flags = search[0][0]
    _, begins, stops = search[5]
    start = signs[0]
    while start > first and signs[0] - start < ELEMENT and not flags[start - 1] & (FUNCTION | COMMA):
        start -= 1
    elements = 0
    if start < signs[0]:
        begins[0], stops[0], elements = start, signs[0], 1
    for n in range(many - 1):
        if signs[n + 1] > signs[n] + 1:
            begins[elements], stops[elements] = signs[n] + 1, signs[n + 1]
            elements += 1
    end = signs[many - 1] + 1
    while end < last and end - signs[many - 1] <= ELEMENT + 1 and not flags[end] & (FUNCTION | COMMA):
        end += 1
    if end > signs[many - 1] + 1:
        begins[elements], stops[elements] = signs[many - 1] + 1, end
        elements += 1
    for closing in range(1, elements):
        a, b = begins[closing], stops[closing]
        if not flags[a - 1] & CONJUNCTION and not (a - 2 >= first and flags[a - 2] & CONJUNCTION):
            continue
        for opening in range(closing - 1, max(-1, closing - MOST_ELEMENTS), -1):
            start, stop = begins[opening], stops[opening]
            # The list's last element has the head: "palmar | and | plantar pits".
            if not flags[stop - 1] & HEADS:
                for head in range(a + 1, b):
                    if flags[head] & LINK:
                        continue
                    for end in range(head + 1, min(b, head + 3) + 1):
                        if flags[end - 1] & LINK:
                            continue
                        for left in range(max(start, stop - 2), stop):
                            if not flags[left] & LINK:
                                count = _across(left, stop, head, end, LISTED, search, count)
            # The list's first element has the head: "hypopigmentation of skin | or | hair".
            for cut in range(start + 1, stop):
                for left in range(max(start, cut - 3), cut):
                    if flags[left] & LINK:
                        continue
                    for end in range(a + 1, min(b, a + 3) + 1):
                        if not flags[end - 1] & LINK and not flags[a] & FUNCTION:
                            count = _across(left, cut, a, end, LISTED, search, count)
    return count


@compiled
def _lists(first: Any, last: Any, search: Any, count: Any) -> Any:
    flags = search[0][0]
    signs = search[5][0]
    place = first
    while place < last:
        if not flags[place] & (COMMA | CONJUNCTION):
            place += 1
            continue
        signs[0], many = place, 1
        conjunctions = flags[place] & CONJUNCTION != 0
        searching = True
        while searching:
            searching = False
            for after in range(signs[many - 1] + 1, min(last, signs[many - 1] + GAP)):
                kind = flags[after]
                if kind & (COMMA | CONJUNCTION):
                    signs[many], many, searching = after, many + 1, True
                    conjunctions |= kind & CONJUNCTION != 0
                    break
                if kind & FUNCTION:
                    break
        if conjunctions:
            count = _list(first, last, signs, many, search, count)
        place = signs[many - 1] + 1
    return count


@compiled
def _adjectives(first: Any, last: Any, search: Any, count: Any) -> Any:
    """Adjectives in a row before their noun: "a broad, flat nose"."""
    flags = search[0][0]
    for comma in range(first + 1, last - 1):
        if not flags[comma] & COMMA:
            continue
        for start in range(comma - 1, max(first, comma - 2) - 1, -1):
            if flags[start] & (LINK | FUNCTION | COMMA) or flags[comma - 1] & HEADS:
                break
            for head in range(comma + 2, min(last, comma + 5)):
                if flags[head] & (FUNCTION | COMMA) or flags[head - 1] & (FUNCTION | COMMA):
                    break
                for end in range(head + 1, min(last, head + 2) + 1):
                    if flags[end - 1] & (FUNCTION | COMMA | LINK):
                        break
                    count = _across(start, comma, head, end, LISTED, search, count)
    return count


@compiled
def _skipping(first: Any, last: Any, search: Any, count: Any) -> Any:
    """Names with one word too much inside: "long curly eyelashes"."""
    words, phrases, bags, threshold, found, places = search
    search = words, phrases, bags, max(threshold, LEAST_SKIPPING), found, places
    flags = words[0]
    for start in range(first, last - 2):
        if flags[start] & (LINK | FUNCTION | COMMA) or not flags[start] & KNOWN:
            continue
        before = _read(NO_WORDS, start, words)
        stop = min(last, start + 7)
        for skipped in range(start + 1, stop - 1):
            kind = flags[skipped]
            if kind & (FUNCTION | COMMA | CONJUNCTION):
                break
            if not kind & (LINK | HEADS):
                code = before
                for end in range(skipped + 2, stop + 1):
                    ending = flags[end - 1]
                    # A word that no name has can only be the skipped one.
                    if ending & (FUNCTION | COMMA | CONJUNCTION) or not ending & (KNOWN | LINK):
                        break
                    code = _read(code, end - 1, words)
                    if ending & ENDS and not ending & LINK:
                        count = _together(start, skipped, skipped + 1, end, code, SKIPPED, search, count)
            if not kind & (KNOWN | LINK):
                break
            before = _read(before, skipped, words)
    return count


@compiled
def _predicates(first: Any, last: Any, search: Any, count: Any) -> Any:
    """What is said of a noun: "the nails were severely hypoplastic"."""
    flags = search[0][0]
    for copula in range(first + 1, last - 1):
        if not flags[copula] & COPULA:
            continue
        for again in range(copula + 1, min(last, copula + 3)):
            if flags[again] & (LINK | FUNCTION | COMMA):
                break
            for end in range(again + 1, min(last, again + 2) + 1):
                if flags[end - 1] & (LINK | FUNCTION | COMMA):
                    break
                for start in range(copula - 1, max(first, copula - 3) - 1, -1):
                    if flags[start] & (FUNCTION | COMMA):
                        break
                    if not flags[start] & LINK:
                        count = _across(again, end, start, copula, SKIPPED, search, count)
    return count


@compiled
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


@compiled
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


def room(words: int) -> tuple[NDArray[Any], ...]:
    """What `find` needs for a text of so many words.

    Per word whether a match has it, its place, flags and three codes; per sign of a list three places.
    """
    codes = (np.empty(words, np.uint64) for _ in range(3))
    signs = (np.empty(2 * MOST_WORDS + 2, np.int32) for _ in range(3))
    return np.empty(words, np.bool_), np.empty(words, np.int32), np.empty(words, np.int32), *codes, *signs


@compiled
def find(
    text: Any,
    words: Any,
    phrases: Any,
    bags: Any,
    above: Any,
    threshold: Any,
    lists: Any,
    nested: Any,
    room: Any,
    found: Any,
) -> Any:
    """All matches in a text's words: how many are in ``found``, with offsets into the text.

    ``text`` holds the words' starts, ends, and rows in ``words`` (flags, codes as written, of the singular, of the
    stem); joints are skipped. ``room[0]`` is set where a match has the word.
    """
    starts, ends, ids = text
    flags, surface, lemmas, stems = words
    # The words of this text side by side: each is read many times.
    used, place, kinds, written, singulars, parts, signs, begins, stops = room
    search = (kinds, written, singulars, parts), phrases, bags, threshold, found, (signs, begins, stops)
    count, length, begin = 0, 0, 0
    for n in range(len(ids) + 1):
        kind = flags[ids[n]] if n < len(ids) else BARRIER
        long = length - begin >= MOST_WORDS and (kind & COMMA or length - begin >= 2 * MOST_WORDS)
        if not kind & BARRIER and not long:
            if not kind & JOINT:
                place[length], kinds[length] = n, kind
                written[length], singulars[length], parts[length] = surface[ids[n]], lemmas[ids[n]], stems[ids[n]]
                length += 1
            continue
        if length > begin:
            before = count
            count = _contiguous(begin, length, search, count)
            if lists:
                count = _lists(begin, length, search, count)
                count = _adjectives(begin, length, search, count)
                count = _skipping(begin, length, search, count)
                count = _predicates(begin, length, search, count)
            if count <= len(found):
                count = before + resolve(found[before:count], above, nested)
        begin = length
    used[: len(ids)] = False
    if count <= len(found):
        for n in range(count):
            first, last = place[found[n].start], place[found[n].end - 1]
            used[first : last + 1] = True
            found[n].start, found[n].end = starts[first], ends[last]
    return count
