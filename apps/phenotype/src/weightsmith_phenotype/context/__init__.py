"""What a text says of a finding: that it is absent, that a relative has it, or that it may be so.

Rules after the idea of NegEx (Chapman et al., 2001) and ConText (Harkema et al., 2009): a cue ("no", "was ruled out",
"possible", "his mother had") speaks of the findings before or after it, up to the end of its scope. The cues and the
rules of scope are our own (`weightsmith_phenotype.context.cues`).

**Scope in a list.** A cue before a list reaches

- every item up to a closing "or" or "nor": *no seizures, ataxia or dystonia*;
- every item up to a closing "and", if the cue opens its clause or is a verb (*denies fever, cough, and headache*), or
  if the list has two items (*asthma with no cough and fever*);
- the first item only, if the cue stands inside a list that has begun without it, and no "or" closes the rest:
  *high forehead, but no cleft palate, low-set ears, long philtrum*;
- every item of a list without any conjunction, if the cue opens its clause (*No fever, cough, headache.*).

The last two can be meant otherwise, so `explain` marks what follows the first item as doubtful. A list of examples
("such as", "including") and a list that is a verb's subject (*no fever and cough were noted*) are taken whole. A scope
also ends at "but", "except", a new subject or verb, a semicolon, the end of a sentence, and the end of a line, unless
the line was only wrapped. An item that begins with an article or a pronoun is told for itself (*no cleft palate, a long
philtrum*), and so is one that begins with a degree, unless "or" closes the list (*no seizures, severe ataxia*).

**Headings.** Below "Negative findings:" or "Family history:" the heading governs each line until a blank line or the
next heading, and 1,500 characters at most; a blank line right below it does not count. With text on its own line it
governs that line. "Ptosis: yes" or "the patient has ..." below it says otherwise and counts.

**Relatives.** A relative is told of from the word for it to where the patient is the subject again. Whoever only
reports or brings the patient, is healthy, or is compared with the patient is not told of. "She" after "His mother is 34
years old." is the mother; after "Her mother ..." she may be either, which is doubtful. "Maternal diabetes" is a
finding of the patient where the mention covers both words, else the mother's.

**Signs.** "(-)", "[ ]", "N" and a bare minus deny a finding. "(+)", "[x]", "Y" and a plus end what another sign says.
If the first sign of a sentence stands before its first finding or after a comma, each sign speaks of what follows it,
else of what stands before it. A bare minus counts beside other signs or after a colon, as it may be a dash or a bullet.

**Values.** "Normal", "good", "intact", "unremarkable" and "within normal limits" deny the finding they are said of.

A finding that ended ("no longer", "no further seizures", "resolved") is a finding. "Unlikely" is uncertain. What an
"if", a risk, a screening or advice speaks of is uncertain, and so is a finding that only names a thing: "seizure
medication".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from weightsmith_phenotype.context.cued_words import JOINTS, Words
from weightsmith_phenotype.context.cues import (
    AFFIRMING,
    AUXILIARIES,
    DOUBTING,
    EVIDENCE,
    LINKS,
    NAMED,
    QUESTIONS,
    Cue,
    Direction,
    Kind,
    Reach,
    table,
)
from weightsmith_phenotype.context.relatives import Topic, pronoun_scope, relative_scopes, sentence_topic
from weightsmith_phenotype.context.scope import LONGEST, Scope, backward, forward, of_head, of_value
from weightsmith_phenotype.context.sentences import Governor, Sentence, sentences
from weightsmith_phenotype.document import Mention

__all__ = ["Context", "annotate", "explain", "without_cue"]

FARTHEST_TOPIC = 3
"""Sentences before one that begins with "she" or "he" in which that person is looked for."""

_SHE_OR_HE = (["she"], ["he"])
_BE = table("is was are were be been being")
_LEADING = table("with had has was is : showed")
_MINUS = Cue(Kind.NEGATED)
_MINUS_OF_ALL = Cue(Kind.NEGATED, reach=Reach.ALL)
_QUESTION = Cue(Kind.UNCERTAIN, reach=Reach.ITEM)
_ONLY_BEFORE = {"should": table("occur recur develop appear arise return worsen")}


@dataclass(slots=True)
class Context:
    """What the text says of one mention, and by which words.

    Attributes
    ----------
    negated, family, uncertain : bool
        As in `Mention`.
    doubtful : bool
        The text can be read in two ways, and a reader should look: see the rule of scope above.
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


def annotate(text: str, mentions: Sequence[Mention]) -> list[Mention]:
    """Decide for each mention whether it is negated, of a relative, or uncertain.

    Parameters
    ----------
    text : str
        The whole document.
    mentions : sequence of Mention
        In any order. Their own flags are not looked at.

    Returns
    -------
    list of Mention
        The same mentions in the same order, with `negated`, `family` and `uncertain` set.

    Examples
    --------
    >>> text = "High forehead, but no cleft palate, low-set ears. Her mother had migraine."
    >>> names = ["High forehead", "cleft palate", "low-set ears", "migraine"]
    >>> found = [Mention(text.index(name), text.index(name) + len(name), name, "") for name in names]
    >>> [(m.text, m.negated, m.family) for m in annotate(text, found) if not m.asserted]
    [('cleft palate', True, False), ('migraine', False, True)]
    """
    return [
        replace(mention, negated=context.negated, family=context.family, uncertain=context.uncertain)
        for mention, context in zip(mentions, explain(text, mentions), strict=True)
    ]


def explain(text: str, mentions: Sequence[Mention]) -> list[Context]:
    """What `annotate` decides, with the words that decided and whether it is doubtful, for each mention in order."""
    contexts = [Context() for _ in mentions]
    order = sorted(range(len(mentions)), key=lambda index: (mentions[index].start, mentions[index].end))
    governor = Governor()
    paragraph: list[Sentence] = []
    first = 0
    signed = False
    for sentence in sentences(text):
        if first == len(order):
            break
        last = first
        while last < len(order) and mentions[order[last]].start < sentence.end:
            last += 1
        spans = [(mentions[index].start, mentions[index].end) for index in order[first:last]]
        signed = signed and not sentence.opens_line
        heading = governor.read(text, sentence, spans)
        if sentence.opens_paragraph:
            paragraph.clear()
        if spans:
            words = Words(text, sentence.start, sentence.end, spans, signed)
            signed = words.signed
            topic = _topic_before(text, paragraph) if words.forms[:1] in _SHE_OR_HE else None
            found = _contexts(words, heading, topic)
            for index, context in zip(order[first:last], found, strict=True):
                contexts[index] = context
        paragraph.append(sentence)
        first = last
    return contexts


def without_cue(text: str, mention: Mention, names: Iterable[str] = ()) -> Mention:
    """Leave a negation out of a mention's span that belongs to the sentence: "no cough" becomes "cough".

    Parameters
    ----------
    text : str
        The whole document.
    mention : Mention
        What a classifier found. Exact matches of the dictionary are returned as they are: there the words are the
        concept's name.
    names : iterable of str
        The concept's name and synonyms. If one of them begins with a negation ("No speech"), the span stays.

    Examples
    --------
    >>> found = Mention(12, 20, "no cough", "HP:0012735", "Cough", 0.97, "classifier")
    >>> without_cue("Asthma with no cough.", found).text
    'cough'
    """
    if mention.source == "dictionary" or any(_after_negation(name, 0, len(name)) for name in (mention.name, *names)):
        return mention
    start = _after_negation(text, mention.start, mention.end)
    return replace(mention, start=start, text=text[start : mention.end]) if start else mention


def _after_negation(text: str, start: int, end: int) -> int:
    """Offset of the first word after a negation that ``text[start:end]`` begins with, or 0."""
    words = Words(text, start, end, ())
    for cue, at in words.cues[:1]:
        if cue.kind is Kind.NEGATED and at.start == 0 and at.stop < len(words):
            return words.places[at.stop][0]
    return 0


def _topic_before(text: str, paragraph: Sequence[Sentence]) -> Topic | None:
    """Who "she" or "he" at the beginning of the next sentence is, if it is a relative."""
    for sentence in reversed(paragraph[-FARTHEST_TOPIC:]):
        words = Words(text, sentence.start, sentence.end, ())
        topic = sentence_topic(words)
        if topic is not None or words.forms[:1] not in _SHE_OR_HE:
            return topic
    return None


def _contexts(words: Words, heading: tuple[Kind, int, int] | None, topic: Topic | None) -> list[Context]:
    """What is said of each mention of a sentence below a heading. The mentions are sorted by place."""
    found = [Context() for _ in words.mentions]
    starts = [mention.start for mention in words.mentions]
    certain: list[set[Kind]] = [set() for _ in starts]
    doubted: list[set[Kind]] = [set() for _ in starts]
    scopes = [*_cue_scopes(words), *_sign_scopes(words), *relative_scopes(words), *_question_scopes(words)]
    if topic is not None and (of_topic := pronoun_scope(words, topic)) is not None:
        scopes.append(of_topic)
    for scope in scopes:
        for index in _within(starts, scope.doubtful):
            doubted[index].add(scope.kind)
        for index in _within(starts, scope.said):
            if starts[index] not in scope.hole:
                found[index].add(scope.kind, words.offsets(scope.cue))
                certain[index].update(() if starts[index] in scope.doubtful else (scope.kind,))
    patient = next((i for i, form in enumerate(words.forms) if form in NAMED and words.is_subject(i)), len(words))
    for context, mention, sure, unsure in zip(found, words.mentions, certain, doubted, strict=True):
        context.doubtful = not unsure <= sure
        if heading is not None and (
            mention.start < patient if heading[0] is Kind.FAMILY else not _is_affirmed(words, mention)
        ):
            context.add(heading[0], heading[1:])
    return found


def _within(starts: Sequence[int], words: range) -> range:
    return range(bisect_left(starts, words.start), bisect_left(starts, words.stop))


def _cue_scopes(words: Words) -> Iterator[Scope]:
    denied = range(0)
    last = Scope(Kind.NOTHING, range(0), range(0))
    for cue, at in words.cues:
        if at.start in words.answering:
            continue
        needed = _ONLY_BEFORE.get(words.forms[at.start])
        if cue.kind in (Kind.NOTHING, Kind.END) or (
            needed and needed.isdisjoint(words.forms[at.stop : at.stop + LONGEST])
        ):
            continue
        if cue.direction is Direction.VALUE:
            yield of_value(words, cue, at)
        elif cue.direction is Direction.LABELED:
            if at.start and words.forms[at.start - 1] == ":":
                yield backward(words, cue, at, last.cue.stop)
        elif cue.direction is Direction.HEAD:
            yield of_head(words, cue, at)
        elif cue.direction is Direction.AROUND:
            yield backward(words, cue, at, last.cue.stop)
            yield forward(words, cue, at)
        elif _looks_back(words, cue, at):
            if last.cue and last.cue.stop == at.start - 1 and words.forms[at.start - 1] in ("but", "and", "then"):
                last = last._replace(kind=cue.kind, cue=at)  # "was suspected but not confirmed"
            else:
                last = backward(words, cue, at, last.cue.stop)
            yield last
        elif cue.direction is not Direction.CLOSING or _stands_before_its_finding(words, at):
            scope = forward(words, cue, at)
            if cue.kind is Kind.UNCERTAIN and at.start in denied and words.forms[at.start] in DOUBTING:
                continue
            if cue.kind is Kind.NEGATED:
                denied = scope.said
            yield scope


def _sign_scopes(words: Words) -> Iterator[Scope]:
    """Yield what signs deny: "seizures (-)", "(-) seizures", "[ ] seizures", "seizures: N"."""
    until = 0
    for sign in words.signs:
        if not sign.positive:
            if words.signs_precede:
                heads_list = words.forms[sign.at.stop : sign.at.stop + 1] == [":"]
                yield forward(words, _MINUS_OF_ALL if heads_list else _MINUS, sign.at)
            else:
                yield backward(words, _MINUS, sign.at, until)
        until = sign.at.stop


def _stands_before_its_finding(words: Words, at: range) -> bool:
    """Whether it is "negative proteinuria", not "RF-negative arthritis" or "a negative test"."""
    before = words.forms[at.start - 1] if at.start else ""
    return at.stop < len(words) and words.taken[at.stop] and (not before or before in JOINTS or before in _LEADING)


def _looks_back(words: Words, cue: Cue, at: range) -> bool:
    """Whether a cue speaks of what stands before it."""
    if cue.direction is Direction.BACKWARD:
        return True
    if cue.direction is Direction.FORWARD or words.first_taken >= at.start:
        return False
    if words.closes(at.stop):
        return True
    if cue.direction is Direction.PASSIVE:
        return not _BE.isdisjoint(words.forms[max(0, at.start - 2) : at.stop])
    # "Seizures: no history"
    value = words.forms[at.stop : at.stop + LONGEST]
    return words.forms[at.start - 1] == ":" and all(w in EVIDENCE or w in LINKS or w in AUXILIARIES for w in value)


def _question_scopes(words: Words) -> Iterator[Scope]:
    """Yield what question marks say: "?ptosis", "ptosis?", "Does he have ptosis?"."""
    last = len(words) - 1
    for index, form in enumerate(words.forms):
        if form != "?" or words.taken[index] or (index and words.forms[index - 1] == "?"):
            continue
        at = range(index, index + 1)
        glued = index < last and words.places[index][1] == words.places[index + 1][0]
        if index < last and words.forms[index + 1][0].isalnum() and (glued or not words.closes(index + 1)):
            yield forward(words, _QUESTION, at)
        elif index == last and words.forms[0] in QUESTIONS and not words.taken[0]:
            yield Scope(Kind.UNCERTAIN, at, range(index))
        else:
            yield backward(words, _QUESTION, at)


def _is_affirmed(words: Words, mention: range) -> bool:
    """Whether the text itself says that a finding is there, whatever the heading says: "ptosis: yes"."""
    for index in range(mention.stop, min(mention.stop + 4, len(words))):
        if words.forms[index] in AFFIRMING:
            return True
        if words.forms[index] in JOINTS:
            break
    return False
