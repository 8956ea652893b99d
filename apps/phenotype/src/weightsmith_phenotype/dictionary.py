"""The ontology's names as tables: exact, in any order of their words, and with words exchanged for others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith_phenotype.errors import OntologyError
from weightsmith_phenotype.kernels.match import ENDS, HEADS, KNOWN
from weightsmith_phenotype.kernels.tables import build_table, phrase
from weightsmith_phenotype.ontology import Ontology
from weightsmith_phenotype.substitutions import NOTHING, learn_substitutions
from weightsmith_phenotype.tokens import BARRIERS, JOINTS, tokenize
from weightsmith_phenotype.words import LINKS, OTHER_MEANINGS, code, lemma, lexicon, stem

__all__ = ["Dictionary", "name_words", "usable_names"]

SHORTEST_CAPITALS = 10
"""Synonyms in capitals below this length are abbreviations and would match other words."""

ENDING_SHARE, HEAD_SHARE = 0.08, 0.5
"""Share of a word's places in names from which on it can end a match, or counts as what a name is about."""

EXCHANGED, LEAST_RELIABILITY = 2, 0.5
"""Words of a name that may be exchanged, and the least reliability of all exchanges together."""

_ABBREVIATION = re.compile("[A-Z]{3,9}")

AMBIGUOUS = frozenset(
    ("AEA", "AOB", "AOP", "ASD", "CIU", "CVI", "DDN", "LDD", "LFT", "MEMA", "ODD", "OME", "RAD", "RBD", "SRED", "TMD")
)
"""Synonyms in capitals that mean something else in many notes, or are a word there."""

ANY_ORDER = 0.99
"""Score of the words of a name in another order."""


def name_words(name: str, *, commas: bool = False) -> list[str]:
    """The words of a name without signs, or with its commas.

    Examples
    --------
    >>> name_words("Aplasia/Hypoplasia of the thumb")
    ['aplasia', 'hypoplasia', 'of', 'the', 'thumb']
    """
    signs = JOINTS | BARRIERS if commas else JOINTS | BARRIERS | {","}
    return [token.form for token in tokenize(name) if token.form.strip() and token.form not in signs]


def usable_names(ontology: Ontology, identifier: str) -> list[str]:
    """The name and the synonyms that are not short abbreviations."""
    term = ontology[identifier]
    return [n for n in term.names if n == term.name or not n.isupper() or len(n) >= SHORTEST_CAPITALS]


@dataclass(eq=False)
class Dictionary:
    """The tables of an ontology's names, as the kernel reads them.

    Attributes
    ----------
    identifiers : list of str
        Ids of the concepts; all else refers to them by their place here.
    vocabulary : dict of str to int
        Every word of the names in the singular, with the kernel's flags of what it does in names.
    stems : set of str
        Every stem that a match can contain.
    abbreviations : list of str
        Synonyms in capitals that are found as they are written only.
    slots, rows, concepts : arrays
        Hash table from the code of a name's words in order to a concept's index, or to the number of concepts for
        phrases that name none of them.
    bag_slots, bag_rows, bag_concepts, bag_scores : arrays
        Hash table from the summed codes of a name's stems to a concept's index and the score.
    above_starts, above : arrays
        For each concept the sorted indices of its ancestors among the concepts.
    """

    identifiers: list[str]
    vocabulary: dict[str, int]
    stems: set[str]
    abbreviations: list[str]
    slots: NDArray[np.uint64]
    rows: NDArray[np.int32]
    concepts: NDArray[np.int32]
    bag_slots: NDArray[np.uint64]
    bag_rows: NDArray[np.int32]
    bag_concepts: NDArray[np.int32]
    bag_scores: NDArray[np.float32]
    above_starts: NDArray[np.int32]
    above: NDArray[np.int32]

    @classmethod
    def build(cls, ontology: Ontology, *, hidden: Iterable[tuple[str, str]] = ()) -> Dictionary:
        """Read all names of an ontology.

        Parameters
        ----------
        ontology : Ontology
            Its concepts are numbered in its order.
        hidden : iterable of (str, str), optional
            (Concept id, name) pairs to leave out, for experiments.

        Raises
        ------
        OntologyError
            If no concept has a name.
        """
        number = {identifier: n for n, identifier in enumerate(ontology.concepts)}
        ancestors = [sorted(number[a] for a in ontology.ancestors(i) if a in number) for i in ontology.concepts]
        hidden = set(hidden)
        labels = [
            (number[identifier], name, name == ontology[identifier].name)
            for identifier in ontology.concepts
            for name in usable_names(ontology, identifier)
            if (identifier, name) not in hidden and name_words(name)
        ]
        names = [(concept, name_words(name), is_name) for concept, name, is_name in labels]
        with_commas = [
            (concept, name_words(name, commas=True), is_name) for concept, name, is_name in labels if "," in name
        ]
        if not names:
            raise OntologyError("the concepts have no names", do="Give an ontology whose terms have a name line.")
        exact = _exact_names(names + with_commas, ancestors)
        vocabulary = _vocabulary(names)
        for other in OTHER_MEANINGS:
            words = name_words(other)
            for form in (tuple(words), tuple(map(lemma, words))):
                exact.setdefault(_phrase(form), len(ontology.concepts))
            for word in words:
                vocabulary.setdefault(lemma(word), KNOWN)
        abbreviations = _abbreviations(ontology)
        exact |= {_phrase((capitals,)): number[identifier] for capitals, identifier in abbreviations.items()}
        bags = _bags(names)
        keys, concepts, scores = _with_exchanges(bags, ancestors)
        slots, rows = build_table(np.fromiter(exact, np.uint64, len(exact)))
        bag_slots, bag_rows = build_table(keys)
        lengths = np.fromiter((*map(len, ancestors), 0), np.int32, len(ancestors) + 1)
        return cls(
            identifiers=list(ontology.concepts),
            vocabulary=vocabulary,
            abbreviations=sorted(abbreviations),
            stems={stem(word) for _, words, _ in names for word in words}.union(
                *(map(stem, group) for _, group in lexicon())
            ),
            slots=slots,
            rows=rows,
            concepts=np.fromiter(exact.values(), np.int32, len(exact)),
            bag_slots=bag_slots,
            bag_rows=bag_rows,
            bag_concepts=concepts,
            bag_scores=scores,
            above_starts=np.concatenate([[0], lengths.cumsum()]).astype(np.int32),
            above=np.fromiter((a for group in ancestors for a in group), np.int32, int(lengths.sum())),
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All tables by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def words(self) -> dict[str, Any]:
        """All but the tables, as plain values; with `arrays` it makes the same dictionary again."""
        return {
            "identifiers": self.identifiers,
            "vocabulary": self.vocabulary,
            "stems": sorted(self.stems),
            "abbreviations": self.abbreviations,
        }


def _abbreviations(ontology: Ontology) -> dict[str, str]:
    """Synonyms of capitals alone, with their concepts: those of one concept that have no other common meaning."""
    holders: dict[str, set[str]] = {}
    for identifier in ontology.concepts:
        for name in ontology[identifier].names:
            if _ABBREVIATION.fullmatch(name):
                holders.setdefault(name, set()).add(identifier)
    return {name: min(ids) for name, ids in holders.items() if len(ids) == 1 and name not in AMBIGUOUS}


def _general(holders: list[int], ancestors: list[list[int]]) -> int:
    """The first of the concepts that share a name, or the one among them that is above it."""
    chosen = holders[0]
    for other in holders[1:]:
        if other in ancestors[chosen]:
            chosen = other
    return chosen


def _exact_names(names: list[tuple[int, list[str], bool]], ancestors: list[list[int]]) -> dict[int, int]:
    """Code of each name, as written and in the singular, with the concept that it stands for; a name beats synonyms."""
    written: dict[tuple[str, ...], list[int]] = {}
    singular: dict[tuple[str, ...], list[int]] = {}
    named: dict[tuple[str, ...], int] = {}
    for concept, words, is_name in names:
        key, base = tuple(words), tuple(map(lemma, words))
        if is_name:
            named.setdefault(key, concept)
        for table, form in ((written, key), (singular, base)):
            holders = table.setdefault(form, [])
            if concept not in holders:
                holders.insert(0 if is_name else len(holders), concept)
    codes = {_phrase(base): _general(holders, ancestors) for base, holders in singular.items()}
    for key, holders in written.items():
        both = list(dict.fromkeys([*holders, *singular[tuple(map(lemma, key))]]))
        codes[_phrase(key)] = named[key] if key in named else _general(both, ancestors)
    return codes


def _phrase(words: tuple[str, ...]) -> int:
    return int(phrase(np.array([code(word) for word in words], np.uint64)))


def _bags(names: list[tuple[int, list[str], bool]]) -> dict[frozenset[str], list[int]]:
    bags: dict[frozenset[str], list[int]] = {}
    for concept, words, _ in names:
        bag = frozenset(stem(word) for word in words if word not in LINKS)
        holders = bags.setdefault(bag, [])
        if bag and concept not in holders:
            holders.append(concept)
    bags.pop(frozenset(), None)
    return bags


def _with_exchanges(
    bags: dict[frozenset[str], list[int]], ancestors: list[list[int]]
) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.float32]]:
    """Codes of all bags, and of those with up to two words exchanged; of equal ones the most reliable, then general."""
    exchanges = {
        code(word): [(reliability, code(other) if other != NOTHING else 0) for reliability, other in others]
        for word, others in learn_substitutions(bags, least=LEAST_RELIABILITY).items()
    }
    keys: list[int] = []
    concepts: list[int] = []
    scores: list[float] = []
    for bag, holders in bags.items():
        concept = _general(holders, ancestors)
        words = sorted(map(code, bag))
        keys.append(sum(words) & _MASK)
        concepts.append(concept)
        scores.append(ANY_ORDER + 1)  # what is written in the ontology beats every exchange
        waiting = [(1.0, tuple(words), 0)]
        for _ in range(EXCHANGED):
            further = []
            for score, present, done in waiting:
                for place in range(len(present)):
                    if done >> place & 1:
                        continue
                    for reliability, other in exchanges.get(present[place], ()):
                        product = score * reliability
                        if product < LEAST_RELIABILITY:
                            break
                        if other in present or (other == 0 and len(present) < 2):
                            continue
                        # A dropped word keeps its place as 0, so that the bits of `done` stay true.
                        changed = (*present[:place], other, *present[place + 1 :])
                        keys.append(sum(changed) & _MASK)
                        concepts.append(concept)
                        scores.append(product)
                        further.append((product, changed, done | 1 << place))
            waiting = further
    found = np.array(keys, np.uint64), np.array(concepts, np.int32), np.array(scores, np.float32)
    depth = np.fromiter(map(len, ancestors), np.int32, len(ancestors))[found[1]]
    order = np.lexsort((np.arange(len(keys)), depth, -found[2], found[0]))
    ordered = found[0][order]
    first = order[np.flatnonzero(np.diff(ordered, prepend=ordered[:1] ^ np.uint64(1)))]
    first.sort()
    return found[0][first], found[1][first], np.minimum(found[2][first], np.float32(ANY_ORDER))


_MASK = (1 << 64) - 1


def _vocabulary(names: list[tuple[int, list[str], bool]]) -> dict[str, int]:
    """Each word of the names in the singular, with what it does there: occur, end them, be their head."""
    places: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    heads: Counter[str] = Counter()
    for _, words, _ in names:
        singulars = list(map(lemma, words))
        for place, word in enumerate(singulars):
            places[word] += 1
            last = place == len(singulars) - 1
            endings[word] += last
            heads[word] += (last and "of" not in singulars) or (not last and singulars[place + 1] in ("of", "in"))
    return {
        word: KNOWN
        | (ENDS if endings[word] >= ENDING_SHARE * count else 0)
        | (HEADS if heads[word] > HEAD_SHARE * count else 0)
        for word, count in places.items()
    }
