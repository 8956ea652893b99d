"""What a text says of a finding: that it is absent, that a relative has it, or that it may be so.

Rules after the idea of NegEx (Chapman et al., 2001) and ConText (Harkema et al., 2009): a cue ("no", "was ruled out",
"possible", "his mother had") speaks of the findings before or after it, up to the end of its scope. The cues and the
rules of scope are our own (`weightsmith_phenotype.cues`).

**Scope in a list.** A cue before a list reaches

- every item up to a closing "or" or "nor": *no seizures, ataxia or dystonia*;
- every item up to a closing "and", if the cue opens its clause or is a verb (*denies fever, cough, and headache*), or
  if the list has two items (*asthma with no cough and fever*);
- the first item only, if the cue stands inside a list that has begun without it, and no "or" closes the rest:
  *high forehead, but no cleft palate, low-set ears, long philtrum*;
- every item of a list without any conjunction, if the cue opens its clause (*No fever, cough, headache.*).

The last two can be meant otherwise, so `explain` marks what follows the first item as doubtful. A scope also ends at
"but", "except", a new subject or verb, a semicolon, the end of a sentence, and the end of a line, unless the line
was only wrapped. An item that begins with an article, a pronoun or a word of severity is told for itself: *no cleft
palate, a long philtrum*.

**Headings.** Below "Negative findings:" or "Family history:" the heading governs each line until a blank line or the
next heading; with text on its own line it governs that line.

A finding that ended ("no longer", "no further seizures") is a finding. "Unlikely" is uncertain. What an "if", a risk or
a screening speaks of is uncertain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from weightsmith_phenotype.document import Mention
from weightsmith_phenotype.scope import Context, ScopedSentence, leading_negation
from weightsmith_phenotype.sentences import Governor, sentences

__all__ = ["Context", "annotate", "explain", "without_cue"]


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
    first = 0
    for sentence in sentences(text):
        if first == len(order):
            break
        last = first
        while last < len(order) and mentions[order[last]].start < sentence.end:
            last += 1
        spans = [(mentions[index].start, mentions[index].end) for index in order[first:last]]
        heading = governor.read(text, sentence, spans)
        if spans:
            scoped = ScopedSentence(text, sentence.start, sentence.end, spans)
            for index, context in zip(order[first:last], scoped.contexts(heading), strict=True):
                contexts[index] = context
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
    if mention.source == "dictionary" or any(leading_negation(name, 0, len(name)) for name in (mention.name, *names)):
        return mention
    start = leading_negation(text, mention.start, mention.end)
    return replace(mention, start=start, text=text[start : mention.end]) if start else mention
