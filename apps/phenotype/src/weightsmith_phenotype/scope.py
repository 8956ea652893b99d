"""The scope of the cues in one sentence: which findings each of them speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from weightsmith_phenotype.cues import (
    AFFIRMING,
    AFTER_BACKWARD,
    AUXILIARIES,
    CUES,
    DESCENDANTS,
    EVIDENCE,
    FEMININE,
    FRESH,
    LINKS,
    MASCULINE,
    NOT_A_SUBJECT,
    OF_A_RELATIVE,
    OPENERS,
    PATIENT,
    PREPOSITIONS,
    QUESTIONS,
    RELATIVES,
    TELLING,
    TESTS,
    WELL,
    Cue,
    Direction,
    Kind,
    Reach,
    words as word_set,
)

__all__ = ["Context", "ScopedSentence", "leading_negation"]

NEAR_WORDS = 4
"""Words after a bare "not" among which its finding must begin."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]|_")
_NOT = re.compile(r"can(?:no|')t|\w+n't")
_JOINTS = {",": ",", "and": "and", "&": "and", "or": "or", "nor": "or", "/": "or"}
_PRONOUNS = word_set("he she they we it i")
_BE = word_set("is was are were be been being")
_PLURAL = word_set("are were have")
_BETWEEN = AUXILIARIES | LINKS | word_set(": - – — = ( \" ' “ ” which that all history both to")
_QUESTION = Cue(Kind.UNCERTAIN, reach=Reach.ITEM)
_UNCERTAIN_IF = {"should": word_set("occur recur develop appear arise return worsen")}


@dataclass(slots=True)
class Context:
    """What the text says of one mention, and by which words.

    Attributes
    ----------
    negated, family, uncertain : bool
        As in `Mention`.
    doubtful : bool
        The text can be read in two ways, and a reader should look: see the rule of scope in
        `weightsmith_phenotype.context`.
    cues : list of (int, int)
        Offsets of the words that decided, in code points.
    """

    negated: bool = False
    family: bool = False
    uncertain: bool = False
    doubtful: bool = False
    cues: list[tuple[int, int]] = field(default_factory=list)

    def add(self, kind: Kind, cue: tuple[int, int]) -> None:
        """Take in what a cue says."""
        self.negated |= kind is Kind.NEGATED
        self.family |= kind is Kind.FAMILY
        self.uncertain |= kind is Kind.UNCERTAIN
        self.cues.append(cue)


class _Scope(NamedTuple):
    """A cue at some words speaks of the words in `said`, and perhaps of those in `doubtful`."""

    kind: Kind
    cue: range
    said: range
    doubtful: range = range(0)
    hole: range = range(0)


class _Joint(NamedTuple):
    """What joins two items of a list: the words ``start <= index < end``."""

    start: int
    end: int
    kind: str
    comma: bool


class ScopedSentence:
    """One sentence with its mentions.

    Parameters
    ----------
    text : str
        The document.
    start, end : int
        Offsets of the sentence.
    spans : sequence of (int, int)
        Offsets of the mentions that begin in it. Words inside a mention are no cues: "absent thumb" is a finding.
    """

    def __init__(self, text: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> None:
        self._places: list[tuple[int, int]] = []
        self._forms: list[str] = []
        for match in _WORD.finditer(text, start, end):
            self._places.append(match.span())
            form = match.group().lower().replace("’", "'")
            self._forms.append("not" if _NOT.fullmatch(form) else form)
        self._count = len(self._forms)
        self._taken = [False] * self._count
        self._mentions = [self._words_of(*span) for span in spans]
        for mention in self._mentions:
            for index in mention:
                self._taken[index] = True
        self._cues = list(self._find_cues())
        self._begins = {words.start for cue, words in self._cues if cue.kind in (Kind.NEGATED, Kind.UNCERTAIN)}
        self._ends = {index for cue, words in self._cues if cue.kind is Kind.END for index in words}

    def contexts(self, heading: tuple[Kind, int, int] | None = None) -> list[Context]:
        """What is said of each mention, in the order given.

        Parameters
        ----------
        heading : (Kind, int, int), optional
            What a heading above says, and where it stands.
        """
        scopes = [*self._of_cues(), *self._of_relatives(), *self._of_question_marks()]
        found = []
        for mention in self._mentions:
            context = Context()
            first = mention.start
            for scope in scopes:
                if first in scope.said and first not in scope.hole:
                    context.add(scope.kind, (self._places[scope.cue[0]][0], self._places[scope.cue[-1]][1]))
                elif first in scope.doubtful:
                    context.doubtful = True
            if heading is not None and self._governed(mention, heading[0]):
                context.add(heading[0], heading[1:])
            found.append(context)
        return found

    def after_first_cue(self, kind: Kind) -> int:
        """Offset of the word after a cue of this kind at the very beginning, or 0."""
        for cue, words in self._cues[:1]:
            if cue.kind is kind and words.start == 0 and words.stop < self._count:
                return self._places[words.stop][0]
        return 0

    def _words_of(self, start: int, end: int) -> range:
        inside = [index for index, (first, last) in enumerate(self._places) if first < end and last > start]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def _find_cues(self) -> Iterator[tuple[Cue, range]]:
        index = 0
        while index < self._count:
            end = index + 1
            for rest, cue in CUES.get(self._forms[index], ()) if not self._taken[index] else ():
                stop = self._match(rest, index + 1)
                if stop:
                    yield cue, range(index, stop)
                    end = stop
                    break
            index = end

    def _match(self, rest: Sequence[str], index: int) -> int:
        """The word after a phrase whose further words stand from `index` on, or 0."""
        for word in rest:
            while index < self._count and self._forms[index] != word and self._forms[index] in LINKS:
                index += 1
            if index == self._count or self._forms[index] != word or self._taken[index]:
                return 0
            index += 1
        return index

    # ---------------------------------------------------------------- cues

    def _of_cues(self) -> Iterator[_Scope]:
        said_until = 0
        for cue, words in self._cues:
            if cue.kind in (Kind.NOTHING, Kind.END):
                continue
            needed = _UNCERTAIN_IF.get(self._forms[words[0]])
            if needed is not None and needed.isdisjoint(self._forms[words.stop :]):
                continue
            if cue.direction is Direction.AROUND:
                yield self._backward(cue, words, said_until)
                yield self._forward(cue, words)
            elif self._looks_back(cue, words):
                yield self._backward(cue, words, said_until)
                said_until = words.stop
            elif cue.direction is not Direction.CLOSING:
                yield self._forward(cue, words)

    def _looks_back(self, cue: Cue, words: range) -> bool:
        if cue.direction is Direction.BACKWARD:
            return True
        if cue.direction is Direction.FORWARD or not any(self._taken[: words.start]):
            return False
        if self._closes(words.stop):
            return True
        if cue.direction is Direction.PASSIVE:
            return not _BE.isdisjoint(self._forms[max(0, words.start - 2) : words.stop])
        return (
            cue.kind is Kind.NEGATED
            and self._forms[words.start - 1] == ":"
            and all(form in EVIDENCE or form in LINKS or form in AUXILIARIES for form in self._forms[words.stop :])
        )

    def _closes(self, index: int) -> bool:
        """Whether the word at `index` cannot begin a finding that the cue before it speaks of."""
        if index >= self._count:
            return True
        form = self._forms[index]
        return not self._taken[index] and (form in AFTER_BACKWARD or not form[0].isalnum())

    def _forward(self, cue: Cue, words: range) -> _Scope:
        begin = words.stop
        limit = self._bracket_end(words.start)
        if cue.reach is Reach.NEXT:
            return _Scope(cue.kind, words, range(begin, min(begin + 1, limit)))
        joints, end = self._items_after(begin, limit, cue.reach, self._begins_clause(words.start))
        if cue.reach is Reach.NEAR:
            near = begin
            while near < end and (near - begin < NEAR_WORDS):
                near += 1
            return _Scope(cue.kind, words, range(begin, min(near, joints[0].start if joints else end)))
        stop = self._list_end(joints, end, cue.reach, words.start)
        # A list without a conjunction may go on as another one, and "and" may join the clause before.
        clear = bool(joints) and (
            any(joint.kind == "or" for joint in joints) or (cue.reach is not Reach.LIST and stop == end)
        )
        first_end = joints[0].start if joints else end
        certain_and = bool(joints) and stop == end and any(joint.kind == "and" for joint in joints)
        doubtful = range(0) if clear or certain_and or not joints else range(first_end, end)
        return _Scope(cue.kind, words, range(begin, stop), doubtful, self._hole(cue, begin, first_end))

    def _items_after(self, begin: int, limit: int, reach: Reach, opens: bool) -> tuple[list[_Joint], int]:
        """The joints of the list that begins at `begin`, and where the list must be over."""
        joints: list[_Joint] = []
        depth = 0
        index = begin
        subject_done = False
        clause = reach is Reach.CLAUSE
        while index < limit:
            form = self._forms[index]
            if self._taken[index] or (index == begin and form in AUXILIARIES):
                pass
            elif form in "()":
                depth += 1 if form == "(" else -1
            elif depth:
                pass
            elif index in self._ends or (not clause and self._is_subject(index)):
                break
            elif form in _JOINTS:
                joint = self._joint(index)
                if joint.end >= limit or (joint.kind != "or" and self._told_for_itself(joint.end, clause)):
                    break
                if subject_done and joint.kind != "or":
                    break
                joints.append(joint)
                index = joint.end
                continue
            elif not clause and (form in AUXILIARIES or form in AFFIRMING):
                if joints and joints[-1].kind != "or" and not subject_done:
                    # "No seizures and ataxia were noted" is one subject; "no seizures, and ataxia was noted" is two.
                    several = len(joints) > 1 or (not joints[0].comma and form in _PLURAL)
                    if not (opens and joints[-1].kind == "and" and several):
                        index = joints.pop().start
                        break
                subject_done = True
            index += 1
        return joints, index

    def _told_for_itself(self, index: int, clause: bool) -> bool:
        """Whether the item at `index` leaves the list: it has a cue of its own, or begins as a new statement does."""
        return index in self._begins or (not clause and not self._taken[index] and self._forms[index] in FRESH)

    def _list_end(self, joints: Sequence[_Joint], end: int, reach: Reach, cue: int) -> int:
        """Where the scope of a forward cue ends: the rule of `weightsmith_phenotype.context`."""
        if not joints:
            return end
        closing = next((number for number, joint in enumerate(joints) if joint.kind != ","), None)
        first = joints[0].start
        whole = reach is Reach.ALL or (reach is Reach.LIST and self._begins_clause(cue))
        if closing is None:
            return end if whole else first
        after = closing + 1
        while after < len(joints) and joints[after].kind == "or" and not joints[after].comma:
            after += 1
        stop = joints[after].start if after < len(joints) else end
        if joints[closing].kind == "or" or whole:
            return stop
        return stop if closing == 0 and reach is Reach.LIST and not joints[0].comma else first

    def _begins_clause(self, index: int) -> bool:
        """Whether no list has begun before the cue at `index` that goes on after it."""
        before = index - 1
        while before >= 0 and self._forms[before] in ("but", "also", "still"):
            before -= 1
        if before < 0:
            return True
        if not self._taken[0] and self._forms[0] in OPENERS and self._forms[:before].count(",") == 0:
            return True
        if self._forms[index] == "without":
            return False
        return self._taken[before] is False and self._forms[before] not in _JOINTS

    def _hole(self, cue: Cue, begin: int, first_end: int) -> range:
        """What of the first item is not denied: "no relief of the pain" is about relief."""
        if cue.kind is not Kind.NEGATED or cue.reach is not Reach.LIST:
            return range(0)
        for index in range(begin, first_end):
            if self._forms[index] in PREPOSITIONS and not self._taken[index]:
                if index == begin or self._taken[index - 1] or self._forms[index - 1] in EVIDENCE:
                    break
                return range(index, first_end)
        return range(0)

    def _backward(self, cue: Cue, words: range, said_until: int) -> _Scope:
        index = words.start - 1
        label = False
        while index >= 0 and not self._taken[index]:
            form = self._forms[index]
            if form not in _BETWEEN and not (
                form == "," and (index == words.start - 1 or self._forms[index + 1] == "which")
            ):
                break
            label = label or form in (":", "=")
            index -= 1
        end = index + 1
        joints: list[_Joint] = []
        depth = 0
        governed = False
        while index >= said_until:
            form = self._forms[index]
            if self._taken[index]:
                pass
            elif form in "()":
                if form == "(" and not depth:
                    break
                depth += 1 if form == ")" else -1
            elif depth:
                pass
            elif index in self._ends or form in _PRONOUNS:
                break
            elif form in AUXILIARIES or form in AFFIRMING or form == "with":
                governed = form not in AFFIRMING
                break
            elif form in _JOINTS:
                start = index
                while start > said_until and self._forms[start - 1] in _JOINTS and not self._taken[start - 1]:
                    start -= 1
                joints.append(self._joint(start))
                index = start - 1
                continue
            index -= 1
        begin = index + 1
        last_item = joints[0].end if joints else begin
        if cue.direction is Direction.CLOSING and not TESTS.isdisjoint(self._forms[last_item:end]):
            return _Scope(cue.kind, words, range(0))
        if joints and not self._joined(joints, label, governed):
            return _Scope(
                cue.kind, words, range(last_item, end), range(begin, last_item) if joints[0].kind != "," else range(0)
            )
        return _Scope(cue.kind, words, range(begin, end))

    @staticmethod
    def _joined(joints: Sequence[_Joint], label: bool, governed: bool) -> bool:
        """Whether a cue after a list speaks of all of it; the nearest joint comes first."""
        nearest = joints[0]
        if nearest.kind == ",":
            return label and not governed
        return nearest.kind == "or" or not (governed or (nearest.comma and len(joints) == 1))

    # ---------------------------------------------------------------- relatives, questions, headings

    def _of_relatives(self) -> Iterator[_Scope]:
        earlier: dict[int, bool] = {}
        for index, form in enumerate(self._forms):
            noun = form.removesuffix("'s")
            if self._taken[index] or not (
                noun in RELATIVES or (noun in ("member", "members") and index and self._forms[index - 1] == "family")
            ):
                continue
            before = index - 1
            while before >= 0 and (self._forms[before] in OF_A_RELATIVE or self._forms[before] == "family"):
                before -= 1
            words = range(index, index + 1)
            if before > 0 and self._forms[before] in ("in", "among") and any(self._taken[:before]):
                shared = self._forms[max(0, before - 3) : before]
                if not ("also" in shared or shared[-1] in ("and", "as", "but")):
                    yield self._backward(Cue(Kind.FAMILY, Direction.BACKWARD), range(before, index + 1), 0)
                earlier[index] = False
                continue
            earlier[index] = self._is_told_of(index, before, earlier)
            if earlier[index]:
                end, doubtful = self._told_of_until(index, before)
                yield _Scope(Kind.FAMILY, words, range(index + 1, end), doubtful)

    def _is_told_of(self, index: int, before: int, earlier: dict[int, bool]) -> bool:
        """Whether the relative at `index` is the one who has what follows; `before` is the word that leads to it."""
        after = self._forms[index + 1] if index + 1 < self._count else ""
        leading = self._forms[before] if before >= 0 else ""
        if self._forms[index] in DESCENDANTS and after == "of":
            return False
        if leading in NOT_A_SUBJECT:
            return leading in ("to", "of") and after in ("with", "who", "whose")
        if leading in _JOINTS and before:
            if self._forms[before - 1] in PATIENT:
                return False
            if before - 1 in earlier:
                return earlier[before - 1]
        adjectives = self._forms[before + 1 : index]
        if "healthy" in adjectives or "unaffected" in adjectives:
            return False
        for place in range(index + 1, min(index + 6, self._count)):
            form = self._forms[place]
            if self._taken[place] or form == ",":
                break
            if form in TELLING and not (form in CUES and self._forms[place - 1] in ("had", "has", "with")):
                return False
            if form in WELL and self._forms[place - 1] in _BE:
                return False
        return True

    def _told_of_until(self, index: int, before: int) -> tuple[int, range]:
        noun = self._forms[index].removesuffix("'s")
        possessives = self._forms[before + 1 : index]
        for place in range(index + 1, self._count):
            if self._taken[place] or not self._is_subject(place):
                continue
            form = self._forms[place]
            same = (form == "she" and noun in FEMININE) or (form == "he" and noun in MASCULINE)
            if same and ("his" if form == "she" else "her") in possessives:
                continue
            if form in ("it", "we", "i") or (form == "they" and noun.endswith("s")):
                continue
            return place, range(place, self._count) if same else range(0)
        return self._count, range(0)

    def _of_question_marks(self) -> Iterator[_Scope]:
        for index, form in enumerate(self._forms):
            if form != "?" or self._taken[index]:
                continue
            words = range(index, index + 1)
            glued = index + 1 < self._count and self._places[index][1] == self._places[index + 1][0]
            if (
                index + 1 < self._count
                and self._forms[index + 1][0].isalnum()
                and (glued or not self._closes(index + 1))
            ):
                yield self._forward(_QUESTION, words)
            elif index + 1 == self._count and self._forms[0] in QUESTIONS and not self._taken[0]:
                yield _Scope(Kind.UNCERTAIN, words, range(0, index))
            else:
                yield self._backward(_QUESTION, words, 0)

    def _governed(self, mention: range, kind: Kind) -> bool:
        """Whether a heading's word holds for a mention: "ptosis: yes" or "the patient has ..." says otherwise."""
        if kind is Kind.FAMILY:
            subjects = (
                index for index in range(mention.start) if self._forms[index] in PATIENT and self._is_subject(index)
            )
            return all(self._forms[index] in _PRONOUNS for index in subjects)
        for index in range(mention.stop, min(mention.stop + 4, self._count)):
            if self._forms[index] in AFFIRMING:
                return False
            if self._forms[index] in _JOINTS:
                break
        return True

    # ---------------------------------------------------------------- words

    def _joint(self, index: int) -> _Joint:
        end = index
        kinds = set()
        while end < self._count and self._forms[end] in _JOINTS and not self._taken[end]:
            kinds.add(_JOINTS[self._forms[end]])
            end += 1
        return _Joint(index, end, "or" if "or" in kinds else "and" if "and" in kinds else ",", "," in kinds)

    def _is_subject(self, index: int) -> bool:
        form = self._forms[index]
        if form in _PRONOUNS:
            return True
        if form not in PATIENT:
            return False
        before = index - 1
        while before >= 0 and self._forms[before] in OF_A_RELATIVE:
            before -= 1
        return before < 0 or self._forms[before] not in PREPOSITIONS | NOT_A_SUBJECT

    def _bracket_end(self, index: int) -> int:
        """The bracket that closes the one around the word at `index`, or the end."""
        depth = 0
        if "(" in self._forms[:index]:
            for place in range(index, self._count):
                depth += (self._forms[place] == "(") - (self._forms[place] == ")")
                if depth < 0:
                    return place
        return self._count


def leading_negation(text: str, start: int, end: int) -> int:
    """Offset of the first word after a negation that ``text[start:end]`` begins with, or 0."""
    sentence = ScopedSentence(text, start, end, ())
    return sentence.after_first_cue(Kind.NEGATED)
