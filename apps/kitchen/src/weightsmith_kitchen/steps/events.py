"""Event tuples of instructions: who does what, to what or with what, from dependency parses.

Section III of N. Diwan, D. Batra, G. Bagler, *A Named Entity Based Approach to Model Recipes*, ICDE Workshops 2020,
arXiv:2004.12184, with the rules of the authors' notebook. Where these are wrong or never apply the difference stands
beside the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from weightsmith_kitchen.language import load_parser
from weightsmith_kitchen.recipe import Event

from .labels import BASE, BOTH, InstructionTagger, default_instruction_tagger, dictionary_classes

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

__all__ = ["events_of_doc", "parse_steps", "split_steps"]

SUBJECTS = frozenset({"nsubj", "nsubjpass", "csubj", "csubjpass", "agent", "expl"})
OBJECTS = frozenset({"dobj", "dative", "attr", "oprd", "pobj"})
# "compound" is ours: the authors list "nn", which it was called before, and so lose "olive" of "olive oil".
MODIFIERS = frozenset(
    {"acomp", "advcl", "advmod", "amod", "appos", "nn", "nmod", "ccomp", "complm", "hmod", "infmod", "xcomp", "rcmod"}
    | {"poss", "possessive", "nummod", "compound"}
)
NEGATIONS = frozenset({"no", "not", "n't", "never", "none"})
NOUNS = frozenset({"NOUN", "PROPN"})
BOUNDARIES = frozenset({".", ";", "!", ":", ",", "and", "then", "-", "--", "("})
"""What a clause starts after."""
INSERTED = "inserted"
"""Name, in ``doc.user_data``, of the set of tokens that `parse_steps` has put in."""

_NUMBER = re.compile(r"^\s*(?:step\s*)?\d+\s*[.):]\s+", re.IGNORECASE)
_RULE = re.compile(r"[-_=*]{4,}")


def split_steps(instructions: Iterable[str]) -> list[str]:
    """Instructions without numbers, rules and empty steps; ``|`` and line ends separate steps.

    Examples
    --------
    >>> split_steps(["1. Boil the rice. | 2. Drain it.", "-----", ""])
    ['Boil the rice.', 'Drain it.']
    """
    found = []
    for text in instructions:
        for part in re.split(r"[|\r\n]+", text):
            step = _RULE.sub(" ", _NUMBER.sub("", part)).strip()
            if step:
                found.append(step)
    return found


def parse_steps(
    steps: Sequence[str], *, nlp: Language | None = None, tagger: InstructionTagger | None = None
) -> Iterator[Doc]:
    """Dependency parses of lower-cased steps, in order.

    Parsers that learned from newspapers take the verb of "place chicken in a dish" for a noun. A clause that starts
    with a known technique therefore gets the subject "you", which `events_of_doc` leaves out again. This is ours.

    Parameters
    ----------
    steps : sequence of str
        One instruction each.
    nlp : Language, optional
        A spaCy pipeline with a parser; `load_parser` by default.
    """
    nlp = load_parser() if nlp is None else nlp
    tagger = default_instruction_tagger() if tagger is None else tagger
    docs = [nlp.make_doc(step) for step in steps]
    tags = tagger.predict([[token.text for token in doc] for doc in docs])
    made = (_with_subjects(doc, labels) for doc, labels in zip(docs, tags, strict=True))
    yield from nlp.pipe(made, batch_size=256)


def _with_subjects(doc: Doc, labels: Sequence[str]) -> Doc:
    from spacy.tokens import Doc as Made

    words: list[str] = []
    inserted: set[int] = set()
    classes = dictionary_classes([token.text for token in doc])
    before = "."
    for token, label, kind in zip(doc, labels, classes, strict=True):
        if label == "TECHNIQUE" and kind in (BASE, BOTH) and before in BOUNDARIES:
            inserted.add(len(words))
            words.append("you")
        before = token.lower_
        words.append(before)
    made = Made(doc.vocab, words=words)
    made.user_data[INSERTED] = inserted
    return made


def events_of_doc(doc: Doc, *, step: int = 0) -> list[Event]:
    """The events of one parsed instruction.

    Parameters
    ----------
    doc : spacy.tokens.Doc
        With heads, dependency labels and parts of speech.
    step : int, default: 0
        Number of the instruction.

    Returns
    -------
    list of Event
        In the order of their verbs; techniques, utensils and ingredients are not filled in.

    Examples
    --------
    >>> import spacy
    >>> from spacy.tokens import Doc
    >>> words, pos = ["add", "cold", "milk"], ["VERB", "ADJ", "NOUN"]
    >>> doc = Doc(spacy.blank("en").vocab, words, heads=[0, 2, 0], deps=["ROOT", "amod", "dobj"], pos=pos)
    >>> [event.as_tuple() for event in events_of_doc(doc)]
    [('add', 'cold milk')]
    """
    inserted = doc.user_data.get(INSERTED, ())
    found: list[Event] = []
    seen: set[tuple[str | None, str, str]] = set()
    for token in doc:
        if token.pos_ != "VERB" or token.dep_ == "aux":
            continue
        subjects = _subjects(token)
        verb, objects = _objects(token)
        for subject in [item for item in subjects if item.i not in inserted] or [None]:
            for item in objects:
                negated = _is_negated(token) or _is_negated(verb) or _is_negated(item)
                process = "!" + verb.text if negated else verb.text
                event = (None if subject is None else _compound_text(subject), process, _text(item))
                if event not in seen:  # a verb that its head's rule 3 has already stood for
                    seen.add(event)
                    found.append(Event(step=step, subject=event[0], process=process, object=event[2]))
    return found


def _is_negated(token: Token) -> bool:
    return any(child.lower_ in NEGATIONS for child in token.children)


def _subjects(verb: Token) -> list[Token]:
    found = [child for child in verb.lefts if child.dep_ in SUBJECTS and child.pos_ != "DET"]
    if found:
        return _with_conjuncts(found, SUBJECTS)
    if verb.head == verb:
        return []
    head = verb.head
    while head.head != head and head.pos_ not in ("VERB", *NOUNS):
        head = head.head
    if head.pos_ not in ("VERB", *NOUNS):
        return []
    if head.pos_ in NOUNS:
        return [head]
    # The authors look for the label "SUB", which no parser gives, so that their verbs never have their head's subject.
    found = [child for child in head.lefts if child.dep_ in SUBJECTS and child.pos_ != "DET"]
    return _with_conjuncts(found, SUBJECTS) if found else _subjects(head)


def _objects(verb: Token) -> tuple[Token, list[Token]]:
    """The verb, or the one that stands for it ("continue to stir"), and its objects."""
    rights = list(verb.rights)
    found = [child for child in rights if child.dep_ in OBJECTS]
    found = found or [child for child in rights if child.dep_ in MODIFIERS and child.pos_ != "VERB"]
    for child in rights:
        if child.pos_ == "ADP" and child.dep_ == "prep":
            found += [item for item in child.rights if item.dep_ in OBJECTS or item.lower_ == "me"]
    for child in rights:
        if child.pos_ == "VERB" and child.dep_ == "xcomp":
            inner, more = _objects(child)
            if more:
                return inner, _with_conjuncts(found, OBJECTS) + more
    return verb, _with_conjuncts(found, OBJECTS)


def _with_conjuncts(tokens: list[Token], labels: frozenset[str]) -> list[Token]:
    """Tokens and what is joined to them by "and"; of "a, b and c" too, where the authors find only a."""
    found: list[Token] = []
    for token in tokens:
        if token in found:
            continue
        found.append(token)
        rights = list(token.rights)
        joined = [child for child in rights if child.dep_ == "conj" and child.pos_ in (*NOUNS, "PRON")]
        if any(child.lower_ == "and" for child in rights):
            joined += [c for c in rights if c not in joined and (c.dep_ in labels or c.pos_ == "NOUN")]
        found += [item for item in _with_conjuncts(joined, labels) if item not in found]
    return found


def _text(token: Token) -> str:
    """A token with its modifiers, and theirs, in the order of the text."""
    return " ".join(item.text for item in sorted(_modified(token, MODIFIERS), key=lambda item: item.i))


def _compound_text(token: Token) -> str:
    return " ".join(item.text for item in sorted(_modified(token, frozenset({"compound"})), key=lambda item: item.i))


def _modified(token: Token, labels: frozenset[str]) -> list[Any]:
    found = [token]
    for child in token.children:
        # Verbs have events of their own.
        if child.dep_ in labels and child.pos_ != "VERB":
            found += _modified(child, labels)
    return found
