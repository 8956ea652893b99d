"""Which words stand for each other in names: learned from the ontology's synonyms, and from the lexicon.

Two names that differ in one word, such as *small kidney* and *hypoplastic kidney*, name one concept
or two. Over all such pairs,

    reliability(x, y) = agreeing / (agreeing + disagreeing + together + 1)

estimates how often exchanging ``x`` for ``y`` keeps the meaning; ``together`` counts the names that have both words, as
*long-bone fracture* has: they say different things.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from weightsmith_phenotype.words import lexicon, stem

__all__ = ["learn_substitutions"]

Names = Mapping[frozenset[str], Sequence[int]]

NOTHING = ""
"""Stands for no word."""

DROPPED = ("morphology", "structure")
"""Words that may be left out: *Abnormal kidney morphology* keeps its meaning without its last word."""


def learn_substitutions(names: Names, *, least: float = 0.5) -> dict[str, list[tuple[float, str]]]:
    """For each stem, the stems it can be exchanged for, with the reliability, best first.

    Parameters
    ----------
    names : mapping of frozenset of str to sequence of int
        For the set of stems of each name, the concepts that have it.
    least : float, default: 0.5
        Pairs below this reliability are left out, in (0, 1].

    Examples
    --------
    >>> bags = {frozenset(bag.split()): [n // 2] for n, bag in enumerate(
    ...     ["small hand", "tiny hand", "small foot", "tiny foot", "small ear", "tiny ear"])}
    >>> learn_substitutions(bags)["small"][0]
    (0.75, 'tiny')
    """
    with_word: dict[frozenset[str], dict[str, set[int]]] = defaultdict(dict)
    for bag, concepts in names.items():
        for word in bag:
            if len(bag) > 1:
                with_word[bag - {word}].setdefault(word, set()).update(concepts)
        with_word[bag].setdefault(NOTHING, set()).update(concepts)
    agreeing: Counter[tuple[str, str]] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for bag in names:
        together.update(combinations(sorted(bag), 2))
    for holders in with_word.values():
        words = sorted(holders)
        for place, one in enumerate(words):
            for other in words[place + 1 :]:
                pairs[one, other] += 1
                if not holders[one].isdisjoint(holders[other]):
                    agreeing[one, other] += 1
    best: dict[str, dict[str, float]] = defaultdict(dict)
    for (one, other), count in agreeing.items():
        reliability = count / (pairs[one, other] + together[one, other] + 1)
        if reliability >= least:
            best[one][other] = best[other][one] = reliability
    for one, other, reliability in _lexicon_pairs():
        best[one][other] = max(best[one].get(other, 0.0), reliability)
    # Other drops lose the finding: *Lower leg bone fracture* and *Broken lower leg bone* would make *lower leg* one.
    for word in best.pop(NOTHING, {}):
        if word not in map(stem, DROPPED):
            del best[word][NOTHING]
    return {
        word: sorted(((r, other) for other, r in others.items()), key=lambda pair: (-pair[0], pair[1]))
        for word, others in best.items()
    }


def _lexicon_pairs() -> Iterable[tuple[str, str, float]]:
    for reliability, group in lexicon():
        stems = list(dict.fromkeys(map(stem, group)))
        for one in stems:
            for other in stems:
                if one != other:
                    yield one, other, reliability
