"""Search among the names, synonyms and ids of an ontology."""

from __future__ import annotations

import re

from weightsmith_phenotype.errors import OntologyError
from weightsmith_phenotype.ontology import Ontology
from weightsmith_phenotype.serve.schemas import HitKind, TermDetail, TermHit, TermReference, TermSearch, TermSynonym
from weightsmith_phenotype.tokens import segments, tokenize

__all__ = ["TermIndex"]

_ID = re.compile(r"(?:(?P<prefix>[A-Za-z]+)[:_])?(?P<digits>\d+)$")


class TermIndex:
    """The terms of an ontology by what they are called.

    Parameters
    ----------
    ontology : Ontology
        Its concepts are searched; details are given of its other live terms too.

    Examples
    --------
    >>> from weightsmith_phenotype import Synonym, Term
    >>> terms = [Term("X:1", "Finding"), Term("X:2", "Seizure", synonyms=[Synonym("Epileptic fit")], parents=["X:1"])]
    >>> index = TermIndex(Ontology(terms, root="X:1"))
    >>> [(hit.name, hit.match, hit.kind) for hit in index.search("epil").terms]
    [('Seizure', 'Epileptic fit', 'synonym')]
    """

    def __init__(self, ontology: Ontology) -> None:
        self.ontology = ontology
        self._prefix = ontology.root.partition(":")[0]
        self._names: list[tuple[str, str, str, bool]] = []  # normal form, as written, id, is a synonym
        for identifier in ontology.concepts:
            for number, name in enumerate(ontology[identifier].names):
                self._names.append((normal(name), name, identifier, number > 0))

    def search(self, query: str, *, limit: int = 20) -> TermSearch:
        """Find terms by id, or by words that a name or synonym has, the last of them perhaps not complete.

        Parameters
        ----------
        query : str
            An id (of a merged or obsolete term too), the start of one, or words.
        limit : int, default: 20
            At most so many are listed.
        """
        match = _ID.match(query.strip().rsplit("/", 1)[-1])
        if match is not None:
            found = self._by_id(f"{(match['prefix'] or self._prefix).upper()}:{match['digits']}", match["digits"])
            if found or match["prefix"]:
                return TermSearch(terms=found[:limit], total=len(found))
        words = normal(query).split()
        if not words:
            return TermSearch(terms=[], total=0)
        whole = " ".join(words)
        best: dict[str, tuple[tuple[int, int, str], TermHit]] = {}
        starts = [f" {word}" for word in words]
        for form, name, identifier, synonym in self._names:
            padded = f" {form}"
            if all(start in padded for start in starts):
                rank = (0 if form == whole else 2 if form.startswith(whole) else 4) + synonym
                key = rank, len(name), name
                if identifier not in best or key < best[identifier][0]:
                    kind: HitKind = "synonym" if synonym else "name"
                    hit = TermHit(id=identifier, name=self.ontology[identifier].name, match=name, kind=kind)
                    best[identifier] = key, hit
        ranked = [hit for _, hit in sorted(best.values(), key=lambda pair: pair[0])]
        return TermSearch(terms=ranked[:limit], total=len(ranked))

    def detail(self, identifier: str) -> TermDetail:
        """A term's definition, synonyms, parents and children; of a merged or replaced id, those of the live term.

        Raises
        ------
        OntologyError
            If no live term has the id.
        """
        live = self.ontology.resolve(identifier) or identifier
        if live not in self.ontology.terms or self.ontology[live].obsolete:
            consider = ", ".join(self.ontology.suggestions(identifier))
            raise OntologyError(
                f"id {identifier[:64]!r} of {self.ontology.name or 'this ontology'}",
                found="an obsolete term" if live in self.ontology.terms else "no such term",
                expected="the id of a term in use",
                do=f"Consider {consider}." if consider else "Search the terms by name.",
            )
        term = self.ontology[live]
        return TermDetail(
            id=live,
            name=term.name,
            definition=term.definition,
            synonyms=[TermSynonym(text=other.text, scope=other.scope, kind=other.kind) for other in term.synonyms],
            parents=self._references(term.parents),
            children=self._references(self.ontology.children.get(live, [])),
            alternative_ids=term.alternative_ids,
            concept=live in self.ontology,
        )

    def reference(self, identifier: str) -> TermReference:
        """The term's id and name."""
        return TermReference(id=identifier, name=self.ontology[identifier].name)

    def _references(self, identifiers: list[str]) -> list[TermReference]:
        found = [self.reference(identifier) for identifier in identifiers if identifier in self.ontology.terms]
        return sorted(found, key=lambda reference: (reference.name.casefold(), reference.id))

    def _by_id(self, identifier: str, digits: str) -> list[TermHit]:
        live = self.ontology.resolve(identifier)
        if live is not None:
            kind: HitKind = "id" if live == identifier else "replaced"
            return [TermHit(id=live, name=self.ontology[live].name, match=identifier, kind=kind)]
        suggested = self.ontology.suggestions(identifier)
        if suggested:
            return [TermHit(id=i, name=self.ontology[i].name, match=identifier, kind="consider") for i in suggested]
        prefix = identifier.partition(":")[0]
        return [
            TermHit(id=concept, name=self.ontology[concept].name, match=concept, kind="id")
            for concept in self.ontology.concepts
            if concept.startswith(identifier)
            or (concept.startswith(f"{prefix}:") and concept.partition(":")[2].lstrip("0") == digits.lstrip("0"))
        ]


def normal(text: str) -> str:
    """Words in the form in which they are compared.

    Examples
    --------
    >>> normal("Café-au-lait  spot")
    'cafe au lait spot'
    """
    return " ".join(token.form for run in segments(tokenize(text)) for token in run)
