"""One sentence as words and signs, with its mentions and the cues in it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from weightsmith_phenotype.cues import (
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
    Kind,
    Node,
)

__all__ = ["JOINTS", "Joint", "Words"]

JOINTS = {",": ",", "and": "and", "&": "and", "or": "or", "nor": "or", "/": "or"}
"""What joins the items of a list, by kind."""

MOST_LINKS = 3
"""Words of `LINKS` that may stand at one place of a phrase."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]|_")
_NOT = re.compile(r"can(?:no|')t|\w+n't")


class Joint(NamedTuple):
    """What joins two items of a list: the words ``start <= index < end``, of kind ``","``, ``"and"`` or ``"or"``."""

    start: int
    end: int
    kind: str
    comma: bool


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
        The phrases of `weightsmith_phenotype.cues`, in order.
    ending : set of int
        Words of phrases at which a scope ends.
    denying, beginning : set of int
        First words of the phrases that deny, and of those that deny or doubt.
    first_taken, first_comma, first_verb : int
        The first word inside a mention, comma and verb; the number of words if there is none.
    """

    def __init__(self, text: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> None:
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
        self.denying = {at.start for cue, at in self.cues if cue.kind is Kind.NEGATED}
        self.beginning = self.denying | {at.start for cue, at in self.cues if cue.kind is Kind.UNCERTAIN}

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
