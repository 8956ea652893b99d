"""Which findings a sentence tells of a relative: "his mother had migraine", "ptosis in two cousins"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from weightsmith_phenotype.context.cued_words import JOINTS, Words
from weightsmith_phenotype.context.cues import (
    AUXILIARIES,
    CUES,
    DESCENDANTS,
    FEMININE,
    MASCULINE,
    NOT_A_SUBJECT,
    OF_A_RELATIVE,
    PATIENT,
    RELATIVES,
    SOME,
    TELLING,
    WELL,
    Cue,
    Direction,
    Kind,
    table,
)
from weightsmith_phenotype.context.scope import LONGEST, Scope, backward

__all__ = ["Topic", "pronoun_scope", "relative_scopes", "sentence_topic"]

ADJECTIVES = 4
"""Words that may stand between a preposition and a relative: "of Iraqi Kurdish parents"."""

_BACKWARD = Cue(Kind.FAMILY, Direction.BACKWARD)
_TELLING_WITHIN = 6
_BE = table("is was are were be been")
_WITH = table("with who whose")
_IN = table("in among")
_HIS = table("his boy's man's")
_HERS = table("her girl's woman's")


class Topic(NamedTuple):
    """The pronoun of the relative whom a sentence is about, and the patient's, if the sentence tells it."""

    relative: str
    patient: str


def sentence_topic(words: Words) -> Topic | None:
    """The relative that a sentence begins with: "His mother is 34 years old."."""
    for index, form in enumerate(words.forms[:_TELLING_WITHIN]):
        noun = form.removesuffix("'s")
        if (noun in FEMININE or noun in MASCULINE) and _before(words, index) < 0:
            owner = words.forms[:index]
            patient = "he" if not _HIS.isdisjoint(owner) else "she" if not _HERS.isdisjoint(owner) else ""
            return Topic("she" if noun in FEMININE else "he", patient)
    return None


def pronoun_scope(words: Words, topic: Topic) -> Scope | None:
    """What a sentence tells of the relative of the sentence before: "She has migraine."; doubtful if not certain."""
    if words.forms[0] != topic.relative or words.taken[0] or _only_tells(words, 0):
        return None
    subjects = (index for index in range(1, min(len(words), LONGEST)) if words.is_subject(index))
    other = (index for index in subjects if words.forms[index] not in (topic.relative, "it", "we", "i"))
    said = range(1, next(other, min(len(words), LONGEST)))
    if topic.patient not in ("", topic.relative):
        return Scope(Kind.FAMILY, range(1), said)
    return Scope(Kind.FAMILY, range(1), range(0), said)


def relative_scopes(words: Words) -> Iterator[Scope]:
    """Yield a scope for each relative who is said to have something.

    A relative is not meant who only reports or brings the patient, who is healthy, or to whom the patient is compared.
    The scope ends where the patient is the subject again.
    """
    told: dict[int, bool] = {}
    for index, form in enumerate(words.forms):
        noun = form.removesuffix("'s")
        member = noun in ("member", "members") and index > 0 and words.forms[index - 1] == "family"
        if words.taken[index] or not (noun in RELATIVES or member):
            continue
        if noun == "relative" and index + 1 < len(words) and words.taken[index + 1]:
            continue  # an adjective: "relative macrocephaly"
        before = _before(words, index)
        owner = _owner_of_what_stands_before(words, index, before)
        if owner is not None:
            if owner:
                yield backward(words, _BACKWARD, owner)
            told[index] = False
            continue
        told[index] = _is_told_of(words, index, before, told)
        if told[index]:
            end, doubtful = _told_until(words, index, before)
            yield Scope(Kind.FAMILY, range(index, index + 1), range(index + 1, end), doubtful)


def _owner_of_what_stands_before(words: Words, index: int, before: int) -> range | None:
    """The words that give the finding before them to the relative at `index`; empty if the patient has it too.

    "Ptosis in his father", "ptosis of his father", "ptosis in two of the brothers", "ptosis (father)".
    """
    if before <= 0 or words.first_taken >= before:
        return None
    leading = words.forms[before]
    if leading == "of" and words.forms[before - 1] in SOME and before > 1 and words.forms[before - 2] in _IN:
        before -= 2
    elif leading == "(":
        if not (words.taken[before - 1] and _is_alone(words, index)):
            return None
    elif not (leading in _IN or (leading == "of" and words.taken[before - 1])):
        return None
    shared = words.forms[max(0, before - 3) : before]
    too = "also" in shared or (not words.taken[before - 1] and shared[-1] in ("and", "as", "but"))
    return range(0) if too else range(before, index + 1)


def _is_alone(words: Words, index: int) -> bool:
    """Whether the bracket around a relative names nothing else: "hypertension (mother)"."""
    inside = words.forms[index + 1 : words.bracket_end(index)]
    return all(form in RELATIVES or form in OF_A_RELATIVE or form in JOINTS for form in inside)


def _before(words: Words, index: int) -> int:
    """The preposition, verb, sign or conjunction that leads to the relative at `index`, or -1."""
    before = index - 1
    others = 0
    while before >= 0 and not words.taken[before]:
        form = words.forms[before]
        if form in JOINTS and before and OF_A_RELATIVE.issuperset(words.forms[before - 1 : before + 2 : 2]):
            pass  # "young and healthy parents"
        elif form not in OF_A_RELATIVE and not form.isdigit():
            if form in JOINTS or form in NOT_A_SUBJECT or form in _IN or form in AUXILIARIES or form in PATIENT:
                break
            if before in words.ending or not form[0].isalnum() or others == ADJECTIVES:
                break
            others += 1
        before -= 1
    return before


def _is_told_of(words: Words, index: int, before: int, told: Mapping[int, bool]) -> bool:
    """Whether the relative at `index` is the one who has what follows; `before` is the word that leads there."""
    following = words.forms[index + 1] if index + 1 < len(words) else ""
    leading = words.forms[before] if before >= 0 else ""
    if words.forms[index] in DESCENDANTS and following == "of":
        return False
    if leading == "of" and before and words.forms[before - 1] in SOME:
        return not _only_tells(words, index)
    if leading in NOT_A_SUBJECT:
        return leading in ("to", "of") and following in _WITH
    if leading in JOINTS and before:
        if words.forms[before - 1] in PATIENT:
            return False
        if before - 1 in told:
            return told[before - 1]
    adjectives = words.forms[before + 1 : index]
    return "healthy" not in adjectives and "unaffected" not in adjectives and not _only_tells(words, index)


def _only_tells(words: Words, index: int) -> bool:
    """Whether the relative reports, brings the patient, is healthy, or stands in a list of other things."""
    for place in range(index + 1, min(index + _TELLING_WITHIN, len(words))):
        form = words.forms[place]
        if words.taken[place]:
            return False
        if form == ",":
            rest = words.forms[place : next((m.start for m in words.mentions if m.start > place), len(words))]
            return len(rest) > 1 and AUXILIARIES.isdisjoint(rest) and _WITH.isdisjoint(rest)
        if form in TELLING and not (form in CUES and words.forms[place - 1] in ("had", "has", "with")):
            return True
        if form in WELL and words.forms[place - 1] in _BE:
            return True
    return False


def _told_until(words: Words, index: int, before: int) -> tuple[int, range]:
    """Where the patient is the subject again, and what is doubtful: "her mother had migraine and she has ptosis"."""
    noun = words.forms[index].removesuffix("'s")
    possessives = words.forms[before + 1 : index]
    limit = min(words.bracket_end(index), index + LONGEST)
    for place in range(index + 1, limit):
        form = words.forms[place]
        if form == "own":
            return place, range(0)
        if words.taken[place] or not words.is_subject(place):
            continue
        same = (form == "she" and noun in FEMININE) or (form == "he" and noun in MASCULINE)
        if same and ("his" if form == "she" else "her") in possessives:
            continue
        if form in ("it", "we", "i") or (form == "they" and noun.endswith("s")):
            continue
        return place, range(place, limit) if same else range(0)
    return limit, range(0)
