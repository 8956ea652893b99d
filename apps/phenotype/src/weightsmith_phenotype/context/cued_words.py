"""One sentence as words and signs, with its mentions and the cues in it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from weightsmith_phenotype.context.cues import (
    AFTER_BACKWARD,
    AUXILIARIES,
    CUES,
    LINKS,
    NOT_A_SUBJECT,
    OF_A_RELATIVE,
    PATIENT,
    PREPOSITIONS,
    PRONOUNS,
    Cue,
    Direction,
    Kind,
    Node,
)

__all__ = ["JOINTS", "Joint", "Sign", "Words"]

JOINTS = {",": ",", "and": "and", "&": "and", "or": "or", "nor": "or", "/": "or"}
"""What joins the items of a list, by kind."""

MOST_LINKS = 3
"""Words of `LINKS` that may stand at one place of a phrase."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]|_")
_MARKS = {"+": True, "-": False, "–": False, "−": False}
_LETTERS = {"y": True, "n": False}
_BOXES = {"☐": False, "☑": True, "☒": True, "✓": True, "✔": True, "✗": False, "✘": False}
_ANSWERS = {"yes": True, "no": False, "y": True, "n": False}
_IN_BRACKETS = {
    **_MARKS,
    **_ANSWERS,
    **dict.fromkeys(("pos", "positive", "present"), True),
    **dict.fromkeys(("neg", "negative", "absent"), False),
}
_OPENED = {"(": ")", "[": "]"}
_NOT = re.compile(r"can(?:no|')t|\w+n't")


class Joint(NamedTuple):
    """What joins two items of a list: the words ``start <= index < end``, of kind ``","``, ``"and"`` or ``"or"``."""

    start: int
    end: int
    kind: str
    comma: bool


class Sign(NamedTuple):
    """A plus, a minus, a box, or a letter that says whether a finding is there: "(-)", "[x]", "N"."""

    at: range
    positive: bool


class Words:
    """The words of ``text[start:end]``; all positions are indices of words.

    Parameters
    ----------
    text : str
        The document.
    start, end : int
        Offsets of the sentence.
    spans : sequence of (int, int)
        Offsets of the mentions that begin in it. Words inside a mention are no cues: "absent thumb" is a finding.
    signed : bool
        Whether a plus stands before a finding earlier in the line, so that a minus before a finding is a sign.

    Attributes
    ----------
    forms : list of str
        The words in lower case; every form of "not" is ``"not"``.
    places : list of (int, int)
        Their offsets in the document.
    taken : list of bool
        Whether a word is inside a mention.
    mentions : list of range
        The words of each mention, in the order given.
    cues : list of (Cue, range)
        The phrases of `weightsmith_phenotype.context.cues`, in order.
    signs : list of Sign
        The signs that speak of findings, in order.
    signed : bool
        Whether a plus stands before a finding here or earlier in the line.
    signs_precede : bool
        Whether each sign stands before its finding: the first one stands before the first finding, or after a comma.
    answering : set of int
        Words of signs, which are no cues of their own.
    ending : set of int
        Words of phrases at which a scope ends.
    denying, beginning : set of int
        First words of the phrases that deny, and of those that deny or doubt.
    first_taken, first_comma, first_verb : int
        The first word inside a mention, comma and verb; the number of words if there is none.
    """

    def __init__(self, text: str, start: int, end: int, spans: Sequence[tuple[int, int]], signed: bool = False) -> None:
        self._text = text
        self.signed = signed
        self.places: list[tuple[int, int]] = []
        self.forms: list[str] = []
        for match in _WORD.finditer(text, start, end):
            self.places.append(match.span())
            form = match.group().lower().replace("’", "'")
            self.forms.append("not" if _NOT.fullmatch(form) else form)
        self.taken = [False] * len(self.forms)
        self.mentions = [self._covered(*span) for span in spans]
        for mention in self.mentions:
            for index in mention:
                self.taken[index] = True
        self.cues = list(self._find_cues())
        self._bracket_ends = self._find_bracket_ends()
        self.first_taken = next((index for index, taken in enumerate(self.taken) if taken), len(self))
        self.first_comma = next((index for index, form in enumerate(self.forms) if form == ","), len(self))
        self.first_verb = next((index for index, form in enumerate(self.forms) if form in AUXILIARIES), len(self))
        self.ending = {index for cue, at in self.cues if cue.kind is Kind.END for index in at}
        self.answering: set[int] = set()
        self.signs, self.signs_precede = self._find_signs()
        if self.signs_precede:
            self.ending.update(sign.at.start for sign in self.signs)
        self.denying = {
            at.start for cue, at in self.cues if cue.kind is Kind.NEGATED and cue.direction is not Direction.VALUE
        }
        self.beginning = self.denying | {
            at.start for cue, at in self.cues if cue.kind is Kind.UNCERTAIN and cue.direction is not Direction.HEAD
        }

    def __len__(self) -> int:
        return len(self.forms)

    def _covered(self, start: int, end: int) -> range:
        first = bisect_right(self.places, start, key=itemgetter(1))
        return range(first, max(first, bisect_left(self.places, end, key=itemgetter(0))))

    def _find_cues(self) -> Iterator[tuple[Cue, range]]:
        index = 0
        while index < len(self):
            node = CUES.get(self.forms[index]) if not self.taken[index] else None
            cue, stop = (None, index + 1) if node is None else self._longest(node, index + 1)
            if cue is not None:
                yield cue, range(index, stop)
            index = stop

    def _longest(self, node: Node, index: int) -> tuple[Cue | None, int]:
        """The longest phrase that goes on at `index` after the word of `node`, and the word after it."""
        found, stop = node.cue, index
        links = 0
        while index < len(self) and not self.taken[index]:
            following = node.following.get(self.forms[index])
            if following is not None:
                node, links = following, 0
            elif links < MOST_LINKS and self.forms[index] in LINKS:
                links += 1
            else:
                break
            index += 1
            if following is not None and node.cue is not None:
                found, stop = node.cue, index
        return found, stop

    def _find_signs(self) -> tuple[list[Sign], bool]:
        """The signs of the sentence, and whether they stand before their findings."""
        boxes, answered = self._answers(list(self._find_boxes()))
        self.answering.update(index for box in boxes for index in box.at)
        inside = {index for box in boxes for index in box.at}
        bare = [
            Sign(range(index, index + 1), _MARKS[form])
            for index, form in enumerate(self.forms)
            if form in _MARKS and not self.taken[index] and index not in inside
        ]
        before = self._before_findings(bare)
        after = self._after_findings(bare, bool(boxes))
        signs = sorted({*boxes, *before, *after}, key=lambda sign: sign.at.start)
        if not signs:
            return [], False
        first = signs[0].at.start
        precede = (
            not answered
            and (first < self.first_taken or self.forms[first - 1] in JOINTS)
            and any(form[0].isalnum() for form in self.forms[signs[-1].at.stop :])
            and (not first or not self.forms[first - 1][0].isalnum() or len(signs) > 1)
        )
        chosen = {*boxes, *(before if precede else after)}
        return [sign for sign in signs if sign in chosen], precede

    def _answers(self, boxes: list[Sign]) -> tuple[list[Sign], bool]:
        """The boxes, each with the "yes" or "no" that it ticks, if any does: "[ ] yes [x] no" is one sign."""
        if not boxes:
            return [], False
        before = boxes[0].at.start > 0 and self._is_answer(boxes[0].at.start - 1)
        found: list[Sign] = []
        start = stop = -1
        answered = False
        for box in boxes:
            answer = box.at.start - 1 if before else box.at.stop
            if not self._is_answer(answer):
                found.append(box)
                continue
            answered = True
            self.answering.add(answer)
            begin = min(answer, box.at.start)
            start = start if begin == stop else begin
            stop = max(answer + 1, box.at.stop)
            if box.positive:
                found.append(Sign(range(start, stop), _ANSWERS[self.forms[answer]]))
        return found, answered

    def _is_answer(self, index: int) -> bool:
        return 0 <= index < len(self) and self.forms[index] in _ANSWERS and not self.taken[index]

    def _find_boxes(self) -> Iterator[Sign]:
        """Yield signs in brackets and boxes to tick: "(+)", "[x]", "[ ]"."""
        for index, form in enumerate(self.forms):
            if self.taken[index]:
                continue
            if form in _BOXES:
                yield Sign(range(index, index + 1), _BOXES[form])
            closing = _OPENED.get(form)
            inside = self.forms[index + 1 : index + 3]
            if closing is None or closing not in inside or self.taken[index + 1]:
                continue
            stop = index + 1 + inside.index(closing)
            mark = "".join(self.forms[index + 1 : stop])
            if mark in _IN_BRACKETS:
                yield Sign(range(index, stop + 1), _IN_BRACKETS[mark])
            elif closing == "]" and mark in ("", "_", "x"):
                yield Sign(range(index, stop + 1), mark == "x")

    def _before_findings(self, bare: Sequence[Sign]) -> list[Sign]:
        """The plus and minus signs that stand before a finding: a minus alone is a hyphen, a dash or a bullet."""
        found, glued = [], 0
        for sign in bare:
            index = sign.at.start
            after = sign.at.stop
            if after == len(self) or not self.forms[after][0].isalpha():
                continue
            apart = not index or self.places[index - 1][1] < self.places[index][0]
            item = not index or self.forms[index - 1] in ":,&"
            close = self.places[index][1] == self.places[after][0]
            if item or (apart and self.taken[after] and (close or (index and self.taken[index - 1]))):
                found.append(sign)
                glued += apart and close and self.taken[after]
        self.signed = self.signed or any(sign.positive for sign in found)
        return found if glued > 1 or self.signed else []

    def _after_findings(self, bare: Sequence[Sign], boxes: bool) -> list[Sign]:
        """The plus and minus signs, and the letters Y and N, that stand after a finding."""
        letters = [
            Sign(range(index, index + 1), _LETTERS[form])
            for index, form in enumerate(self.forms)
            if form in _LETTERS and not self.taken[index]
        ]
        found = []
        plus = any(sign.positive and sign.at.stop == len(self) for sign in bare)
        several = sum(sign.at.start > 0 and self.taken[sign.at.start - 1] for sign in bare) > 1
        for sign in (*bare, *letters):
            index = sign.at.start
            after = sign.at.stop
            letter = self.forms[index] in _LETTERS
            label = index > 1 and self.forms[index - 1] in (":=|-–" if letter else ":=|") and self.taken[index - 2]
            label = label or (index > 0 and self.taken[index - 1] and self._in_next_cell(index))
            if not label and not (index and self.taken[index - 1] and (not letter or self._is_capital(index))):
                continue
            if after == len(self):
                known = label or letter or sign.positive or boxes or several
            elif self.taken[after]:
                known = label or letter or plus
            else:
                known = self.forms[after] in ",;.|" or (self.forms[after] in "()" and letter)
            if known:
                found.append(sign)
        return found

    def _in_next_cell(self, index: int) -> bool:
        """Whether a tab stands before the word at `index`, as in a table."""
        return "\t" in self._text[self.places[index - 1][1] : self.places[index][0]]

    def _is_capital(self, index: int) -> bool:
        return self._text[self.places[index][0]].isupper()

    def offsets(self, at: range) -> tuple[int, int]:
        """Where some words stand in the document."""
        return self.places[at[0]][0], self.places[at[-1]][1]

    def closes(self, index: int) -> bool:
        """Whether the word at `index` cannot begin a finding that a cue before it speaks of."""
        if index >= len(self):
            return True
        form = self.forms[index]
        return not self.taken[index] and (form in AFTER_BACKWARD or not form[0].isalnum())

    def joint(self, index: int) -> Joint:
        """The comma, conjunction, or both, at `index`."""
        end = index
        kinds = set()
        while end < len(self) and self.forms[end] in JOINTS and not self.taken[end]:
            kinds.add(JOINTS[self.forms[end]])
            end += 1
        return Joint(index, end, "or" if "or" in kinds else "and" if "and" in kinds else ",", "," in kinds)

    def is_subject(self, index: int) -> bool:
        """Whether the word at `index` is the patient, or a pronoun, as a subject."""
        form = self.forms[index]
        if form in PRONOUNS:
            return True
        if form not in PATIENT:
            return False
        before = index - 1
        while before >= 0 and self.forms[before] in OF_A_RELATIVE:
            before -= 1
        return before < 0 or (self.forms[before] not in PREPOSITIONS and self.forms[before] not in NOT_A_SUBJECT)

    def bracket_end(self, index: int) -> int:
        """The bracket that closes the one around the word at `index`, or the end."""
        return self._bracket_ends[index]

    def _find_bracket_ends(self) -> list[int]:
        ends = [len(self)] * len(self)
        closing: list[int] = []
        for index in range(len(self) - 1, -1, -1):
            if self.forms[index] == "(" and closing:
                closing.pop()
            ends[index] = closing[-1] if closing else len(self)
            if self.forms[index] == ")":
                closing.append(index)
        return ends
