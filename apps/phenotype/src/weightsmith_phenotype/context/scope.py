"""Which words a cue speaks of: forward and backward from it, up to the end of its scope.

The rule for lists is in `weightsmith_phenotype.context`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from weightsmith_phenotype.context.cued_words import JOINTS, Joint, Words
from weightsmith_phenotype.context.cues import (
    AFFIRMING,
    AUXILIARIES,
    DEGREES,
    EVIDENCE,
    EXAMPLES,
    FRESH,
    LINKS,
    OPENERS,
    PREPOSITIONS,
    PRONOUNS,
    TESTS,
    Cue,
    Direction,
    Kind,
    Reach,
    table,
)

__all__ = ["LONGEST", "Scope", "backward", "forward", "of_head", "of_value"]

LONGEST = 150
"""Words of a scope at most, so that hostile text takes linear time."""

NEAR_WORDS = 4
"""Words after a bare "not" among which its finding must begin."""

_BETWEEN = (
    AUXILIARIES
    | LINKS
    | AFFIRMING
    | table(
        ": - – — = ( \" ' “ ” which that all history both to seen noted found observed reported described diagnosed"
    )
)
_HOW = table("grossly entirely completely essentially all quite very still both fully generally again")
_RELATED = table(
    "in of for with without after before during despite on from to by about through under over between within"
)
_PLURAL = table("are were have")
_EMPTY = range(0)


class Scope(NamedTuple):
    """A cue speaks of the words in `said`, except those in `hole`; in `doubtful` it may be meant otherwise."""

    kind: Kind
    cue: range
    said: range
    doubtful: range = _EMPTY
    hole: range = _EMPTY


def forward(words: Words, cue: Cue, at: range) -> Scope:
    """The scope of a cue that speaks of what follows it.

    Parameters
    ----------
    words : Words
        The sentence.
    cue : Cue
        What the cue says, and how far it reaches.
    at : range
        The cue's words.
    """
    begin = at.stop
    limit = min(words.bracket_end(at.start), begin + LONGEST)
    if cue.reach is Reach.NEXT:
        return Scope(cue.kind, at, range(begin, min(begin + 1, limit)))
    if cue.reach is Reach.SENTENCE:
        return Scope(cue.kind, at, range(begin, _sentence_end(words, begin, limit)))
    opens = _begins_clause(words, at.start)
    reach = cue.reach
    if reach is Reach.NOUN:
        reach = Reach.LIST if at.start == 0 else Reach.ITEM
    joints, end, subject = _items_after(words, begin, _next_denial(words, cue, begin, limit), reach, at.start)
    first_end = joints[0].start if joints else end
    if reach is Reach.NEAR:
        return Scope(cue.kind, at, range(begin, min(begin + NEAR_WORDS, first_end)))
    opens = opens or not EXAMPLES.isdisjoint(words.forms[begin:first_end])
    stop, doubtful = (end, _EMPTY) if subject else _list_end(joints, end, reach, opens)
    hole = _hole(words, begin, first_end) if reach is not Reach.CLAUSE and cue.kind is not Kind.FAMILY else _EMPTY
    return Scope(cue.kind, at, range(begin, stop), doubtful, hole)


def backward(words: Words, cue: Cue, at: range, said_until: int = 0) -> Scope:
    """The scope of a cue that speaks of what stands before it, back to the word `said_until` at most.

    Parameters
    ----------
    words : Words
        The sentence.
    cue : Cue
        What the cue says.
    at : range
        The cue's words.
    said_until : int
        What stands before this word has a cue of its own.
    """
    end, label = _end_before(words, at.start)
    joints, begin, governed = _items_before(words, end, max(said_until, end - LONGEST))
    last_item = joints[0].end if joints else begin
    if cue.direction is Direction.CLOSING and not TESTS.isdisjoint(words.forms[last_item:end]):
        return Scope(cue.kind, at, _EMPTY)
    hole = _EMPTY if cue.kind is Kind.FAMILY else _hole(words, _after_colon(words, last_item, end), end)
    if not joints or _joined(joints, label, governed):
        return Scope(cue.kind, at, range(begin, end), hole=hole)
    return Scope(
        cue.kind, at, range(last_item, end), _EMPTY if joints[0].kind == "," else range(begin, last_item), hole
    )


def of_value(words: Words, cue: Cue, at: range) -> Scope:
    """The scope of a value such as "normal": the finding right after it, else the one whose value it is."""
    after = at.stop
    end = after
    label = at.start > 0 and words.forms[at.start - 1] in ":="
    if after < len(words) and words.taken[after]:
        while end < len(words) and words.taken[end]:
            end += 1
        # "good seizure control" is about control.
        next_label = label and end < len(words) and words.forms[end] == ":"
        alone = words.closes(end) or words.forms[end] in JOINTS or words.forms[end] in AUXILIARIES
        if not next_label:
            return Scope(cue.kind, at, range(after, end if alone or end in words.ending else after))
        after = end
    begin = at.start
    while begin and not words.taken[begin - 1] and words.forms[begin - 1] in _HOW:
        begin -= 1
    end, _ = _end_before(words, begin)
    first = end
    while first and words.taken[first - 1]:
        first -= 1
    verb = not AUXILIARIES.isdisjoint(words.forms[end:begin])
    whole = verb or words.closes(after) or words.forms[after] in JOINTS or after in words.ending
    if first == end or not whole or (words.forms[end] == "," and words.forms[end + 1] != "which"):
        return Scope(cue.kind, at, _EMPTY)
    # "EEG after seizures was normal" is about the EEG.
    before = first - 1
    while before >= 0 and words.forms[before] in FRESH:
        before -= 1
    if before >= 0 and words.forms[before] in _RELATED and (verb or before):
        return Scope(cue.kind, at, _EMPTY)
    if not _PLURAL.isdisjoint(words.forms[end:begin]):
        joints, first_of_list, governed = _items_before(words, end, max(0, end - LONGEST))
        if joints and not governed and _joined(joints, False, governed):
            first = first_of_list
    return Scope(cue.kind, at, range(first, end))


def of_head(words: Words, cue: Cue, at: range) -> Scope:
    """The scope of a noun that makes the finding right before it a part of its own name: "fall risk"."""
    begin = at.start
    if begin and words.forms[begin - 1] == "-":
        begin -= 1
    first = begin
    while first and words.taken[first - 1]:
        first -= 1
    return Scope(cue.kind, at, range(first, begin))


def _sentence_end(words: Words, begin: int, limit: int) -> int:
    for index in range(begin, limit):
        if words.taken[index]:
            continue
        verb = words.forms[index] in AUXILIARIES and index > begin and words.forms[index - 1] in JOINTS
        if verb or words.is_subject(index):
            return index
    return limit


def _next_denial(words: Words, cue: Cue, begin: int, limit: int) -> int:
    """Where the next cue that denies takes over: "no fever or no cough"; "nor" goes on."""
    if cue.kind is not Kind.NEGATED:
        return limit
    denials = (index for index in range(begin, limit) if index in words.denying and words.forms[index] not in JOINTS)
    return next(denials, limit)


def _items_after(words: Words, begin: int, limit: int, reach: Reach, cue: int) -> tuple[list[Joint], int, bool]:
    """The joints of the list that begins at `begin`, where it must be over, and whether a verb makes it the subject."""
    joints: list[Joint] = []
    depth = 0
    index = begin
    clause = reach is Reach.CLAUSE
    while index < limit:
        form = words.forms[index]
        if words.taken[index]:
            pass
        elif form in "()" and index not in words.ending:
            depth += 1 if form == "(" else -1
        elif depth:
            pass
        elif index in words.ending or (not clause and words.is_subject(index)):
            break
        elif form in JOINTS:
            joint = words.joint(index)
            if joint.end < limit and words.forms[joint.end] in EXAMPLES:
                index = joint.end
                continue
            if joint.end >= limit or (joint.kind != "or" and _told_for_itself(words, joint.end, clause)):
                break
            joints.append(joint)
            index = joint.end
            continue
        elif not clause and index > begin and (form in AUXILIARIES or form in AFFIRMING):
            # "No seizures and ataxia were noted" is one subject; "no seizures, and ataxia was noted" is two.
            one = not joints or joints[-1].kind == "or" or (joints[-1].kind == "and" and not joints[-1].comma)
            several = len(joints) > 1 and joints[-1].kind == "and" and all(joint.kind == "," for joint in joints[:-1])
            if (one or several) and _is_subject_position(words, cue):
                return joints, index, True
            if joints and joints[-1].kind != "or" and not (one and form in _PLURAL):
                return joints[:-1], joints[-1].start, False
            break
        index += 1
    return _without_degrees(words, joints, index, reach)


def _is_subject_position(words: Words, cue: int) -> bool:
    """Whether a clause begins with the cue, so that what it denies is the subject of the clause's verb."""
    if words.first_verb > cue:
        return True
    before = words.forms[cue - 1]
    return not words.taken[cue - 1] and (before in JOINTS or cue - 1 in words.ending or not before[0].isalnum())


def _without_degrees(words: Words, joints: list[Joint], end: int, reach: Reach) -> tuple[list[Joint], int, bool]:
    if reach is Reach.LIST and not any(joint.kind == "or" for joint in joints):
        for number, joint in enumerate(joints):
            if words.forms[joint.end] in DEGREES:
                return joints[:number], joint.start, False
    return joints, end, False


def _told_for_itself(words: Words, index: int, clause: bool) -> bool:
    """Whether the item at `index` leaves the list: it has a cue of its own, or begins as a new statement does."""
    return index in words.beginning or (not clause and not words.taken[index] and words.forms[index] in FRESH)


def _list_end(joints: Sequence[Joint], end: int, reach: Reach, opens: bool) -> tuple[int, range]:
    """Where a forward scope ends, and for which words that is doubtful."""
    if not joints:
        return end, _EMPTY
    first = joints[0].start
    whole = reach is Reach.ALL or (reach is Reach.LIST and opens)
    closing = next((number for number, joint in enumerate(joints) if joint.kind != ","), None)
    if closing is None:
        return (end if whole else first), (range(first, end) if reach is Reach.LIST else _EMPTY)
    after = closing + 1
    while after < len(joints) and not joints[after].comma and (joints[after].kind == "or" or reach is Reach.ALL):
        after += 1
    stop = joints[after].start if after < len(joints) else end
    if joints[closing].kind == "or" or whole:
        return stop, _EMPTY
    if closing == 0 and reach is Reach.LIST and not joints[0].comma:
        return stop, _EMPTY
    return first, (range(first, stop) if reach is Reach.LIST or closing == 0 else _EMPTY)


def _begins_clause(words: Words, index: int) -> bool:
    """Whether no list has begun before the cue at `index` that goes on after it."""
    before = index - 1
    while before >= 0 and words.forms[before] in ("but", "also", "still"):
        before -= 1
    if before < 0:
        return True
    if not words.taken[0] and words.forms[0] in OPENERS and words.first_comma >= before:
        return True
    if words.forms[index] == "without":
        return False
    return not words.taken[before] and words.forms[before] not in JOINTS


def _hole(words: Words, begin: int, end: int) -> range:
    """What of an item the cue does not speak of: "no relief of the pain" is about relief."""
    for index in range(begin, end):
        if words.forms[index] in PREPOSITIONS and not words.taken[index]:
            if index == begin or words.taken[index - 1] or words.forms[index - 1] in EVIDENCE:
                break
            return range(index, end)
    return _EMPTY


def _end_before(words: Words, index: int) -> tuple[int, bool]:
    """The word after the last item before a cue at `index`, and whether a colon stands between them."""
    cue = index
    label = False
    while index > 0 and not words.taken[index - 1]:
        form = words.forms[index - 1]
        if form == "," and (index == cue or words.forms[index] == "which"):
            pass
        elif form not in _BETWEEN:
            break
        label = label or form in ":="
        index -= 1
    return index, label


def _items_before(words: Words, end: int, said_until: int) -> tuple[list[Joint], int, bool]:
    """The joints of the list that ends at `end`, nearest first, its first word, and whether a verb governs it."""
    joints: list[Joint] = []
    depth = 0
    index = end - 1
    while index >= said_until:
        form = words.forms[index]
        if words.taken[index]:
            pass
        elif form in "()":
            if form == "(" and not depth:
                break
            depth += 1 if form == ")" else -1
        elif depth:
            pass
        elif index in words.ending or form in PRONOUNS or form in AFFIRMING:
            break
        elif form in AUXILIARIES or form == "with":
            return joints, index + 1, True
        elif form in JOINTS:
            start = index
            while start > said_until and words.forms[start - 1] in JOINTS and not words.taken[start - 1]:
                start -= 1
            joints.append(words.joint(start))
            index = start
        index -= 1
    return joints, index + 1, False


def _joined(joints: Sequence[Joint], label: bool, governed: bool) -> bool:
    """Whether a cue after a list speaks of all of it; the nearest joint comes first."""
    nearest = joints[0]
    if nearest.kind == ",":
        return label and not governed
    return nearest.kind == "or" or not (governed or (nearest.comma and len(joints) == 1))


def _after_colon(words: Words, begin: int, end: int) -> int:
    for index in range(end - 1, begin - 1, -1):
        if words.forms[index] == ":" and not words.taken[index]:
            return index + 1
    return begin
