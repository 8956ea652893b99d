"""What is read and what is found: documents and the mentions of concepts in them.

Offsets count code points (Python's characters) of the document's text: ``document.text[m.start:m.end] == m.text``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from weightsmith_phenotype.errors import CorpusError

__all__ = ["Document", "Mention", "Passage"]


@dataclass(frozen=True, slots=True, order=True)
class Mention:
    """One place in a text that names a concept.

    Attributes
    ----------
    start, end : int
        Offsets into the document's text, in code points, ``end`` exclusive.
    text : str
        ``document.text[start:end]``.
    concept_id : str
        Id of the concept, such as ``"HP:0004322"``.
    name : str
        The concept's name in the ontology.
    score : float
        1.0 for a name or synonym, the reliability of a variant, or the classifier's probability.
    source : str
        ``"dictionary"``, ``"variant"``, ``"classifier"``, ``"abbreviation"``, or ``"gold"`` in a corpus.
    negated : bool
        The text says that the person does not have it.
    family : bool
        The text says it of a relative.
    uncertain : bool
        The text says that it may be so.
    kind : str
        Kind of entity, as corpora name it: ``"Phenotype"`` unless a corpus says otherwise.
    """

    start: int
    end: int
    text: str
    concept_id: str
    name: str = ""
    score: float = 1.0
    source: str = "dictionary"
    negated: bool = False
    family: bool = False
    uncertain: bool = False
    kind: str = "Phenotype"

    @property
    def asserted(self) -> bool:
        """The text says that the person has it: not negated, not of a relative, not uncertain."""
        return not (self.negated or self.family or self.uncertain)


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document: its kind (``"title"``, ``"abstract"``, ...) and the offsets of its text."""

    kind: str
    start: int
    end: int


@dataclass(slots=True)
class Document:
    """A text with an id, and the mentions that it has or that were found in it.

    Raises
    ------
    CorpusError
        If a mention's offsets lie outside the text or its text is not what stands there.
    """

    id: str
    text: str
    mentions: Sequence[Mention] = ()
    passages: Sequence[Passage] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for mention in self.mentions:
            there = self.text[mention.start : mention.end]
            if not 0 <= mention.start < mention.end <= len(self.text) or there != mention.text:
                raise CorpusError(
                    f"document {self.id!r}: mention [{mention.start}, {mention.end}] of {mention.concept_id}",
                    found=repr(there),
                    expected=repr(mention.text),
                    do="Offsets count code points of the whole document, not bytes, UTF-16 units or a sentence's.",
                )
