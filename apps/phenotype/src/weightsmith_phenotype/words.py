"""One sentence as words and signs, with its mentions and the cues in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from weightsmith_phenotype.cues import (
    AFTER_BACKWARD,
    CUES,
    LINKS,
    NOT_A_SUBJECT,
    OF_A_RELATIVE,
    PATIENT,
    PREPOSITIONS,
    PRONOUNS,
    Cue,
    Kind,
)

__all__ = ["JOINTS", "Joint", "Words"]

JOINTS = {",": ",", "and": "and", "&": "and", "or": "or", "nor": "or", "/": "or"}
"""What joins the items of a list, by kind."""

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
        self.ending = {index for cue, at in self.cues if cue.kind is Kind.END for index in at}
        self.beginning = {at.start for cue, at in self.cues if cue.kind in (Kind.NEGATED, Kind.UNCERTAIN)}

    def __len__(self) -> int:
        return len(self.forms)

    def _covered(self, start: int, end: int) -> range:
        inside = [index for index, (first, last) in enumerate(self.places) if first < end and last > start]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def _find_cues(self) -> Iterator[tuple[Cue, range]]:
        index = 0
        while index < len(self):
            following = index + 1
            for rest, cue in CUES.get(self.forms[index], ()) if not self.taken[index] else ():
                stop = self._match(rest, index + 1)
                if stop:
                    yield cue, range(index, stop)
                    following = stop
                    break
            index = following

    def _match(self, rest: Sequence[str], index: int) -> int:
        """The word after a phrase whose further words stand from `index` on, or 0."""
        for word in rest:
            while index < len(self) and self.forms[index] != word and self.forms[index] in LINKS:
                index += 1
            if index == len(self) or self.forms[index] != word or self.taken[index]:
                return 0
            index += 1
        return index

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
        depth = 0
        if "(" in self.forms[:index]:
            for place in range(index, len(self)):
                depth += (self.forms[place] == "(") - (self.forms[place] == ")")
                if depth < 0:
                    return place
        return len(self)
