"""What the REST interface takes and gives, as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from weightsmith_phenotype.document import Mention
from weightsmith_phenotype.ontology import Ontology

__all__ = [
    "CorrectedMention",
    "ExportRequest",
    "Finding",
    "HitKind",
    "InsightRequest",
    "InsightResponse",
    "InsightState",
    "OntologyStamp",
    "Ranked",
    "ServerStatus",
    "TagRequest",
    "TagResponse",
    "TermDetail",
    "TermHit",
    "TermReference",
    "TermSearch",
    "TermSynonym",
    "UploadResponse",
]

HitKind = Literal["id", "name", "synonym", "replaced", "consider"]
InsightState = Literal["loading", "ready", "failed", "unavailable"]
Identifier = Annotated[str, Field(min_length=1, max_length=64, examples=["HP:0000175"])]
Label = Annotated[str, Field(min_length=1, max_length=200)]


class Given(BaseModel):
    """A request: fields that are not known are refused, so that a misspelled one is not ignored."""

    model_config = ConfigDict(extra="forbid")


class OntologyStamp(BaseModel):
    """The ontology that results refer to."""

    name: str = Field(examples=["hp"])
    version: str = Field(examples=["hp/releases/2025-01-16"])
    concepts: int = Field(description="How many terms can be found in a text.")

    @classmethod
    def of(cls, ontology: Ontology) -> Self:
        """Name, version and size of an ontology."""
        return cls(name=ontology.name, version=ontology.version, concepts=len(ontology))


class ServerStatus(BaseModel):
    """What the server works with."""

    version: str = Field(description="Version of weightsmith-phenotype.")
    ontology: OntologyStamp
    insight: InsightState = Field(description="Whether genes and diseases can be ranked yet.")
    max_bytes: int = Field(description="Largest text, in bytes of UTF-8.")


class TagRequest(Given):
    """A text to tag."""

    text: str = Field(description="Any text; nothing of it is stored.", examples=["He has ataxia but no seizures."])


class Finding(BaseModel):
    """One place in a text that names a concept; offsets count code points, ``end`` exclusive."""

    start: int
    end: int
    text: str
    concept_id: str
    name: str
    score: float = Field(description="1 for a match of a name or synonym, else the classifier's probability.")
    source: str = Field(description="What found it: dictionary, variant, classifier, abbreviation, or reader.")
    negated: bool
    family: bool
    uncertain: bool
    kind: str = Field(description="Kind of entity, such as Phenotype.")

    @classmethod
    def of(cls, mention: Mention) -> Self:
        """The mention as JSON has it."""
        return cls(**asdict(mention))


class TagResponse(BaseModel):
    """The mentions of a text in the order of the text."""

    ontology: OntologyStamp
    mentions: list[Finding]


class UploadResponse(TagResponse):
    """The text of an uploaded file and its mentions."""

    filename: str
    text: str


class TermReference(BaseModel):
    """A term by id and name."""

    id: str
    name: str


class TermHit(TermReference):
    """A term that a search found, and by what."""

    match: str = Field(description="The name, synonym or id that fits the query.")
    kind: HitKind = Field(
        description="`replaced`: the query is the id of a term that became this one. `consider`: the query is the id "
        "of an obsolete term, and the ontology tells to consider this one; whether it is meant, the reader says."
    )


class TermSearch(BaseModel):
    """The terms that fit a query, best first."""

    terms: list[TermHit]
    total: int = Field(description="How many terms fit; only the first are listed.")


class TermSynonym(BaseModel):
    """Another name of a term."""

    text: str
    scope: str = Field(examples=["EXACT"])
    kind: str = Field(examples=["layperson"])


class TermDetail(TermReference):
    """A term with its place in the ontology."""

    definition: str
    synonyms: list[TermSynonym]
    parents: list[TermReference]
    children: list[TermReference]
    alternative_ids: list[str]
    concept: bool = Field(description="Whether a mention can have this term: it lies below the ontology's root.")


class CorrectedMention(Given):
    """A mention as the reader left it. Its name is the ontology's."""

    start: int = Field(ge=0, description="Code points before it.")
    end: int = Field(ge=1, description="Code points before its end.")
    text: str = Field(description="What the text has there.")
    concept_id: Identifier
    score: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    source: Label = "reader"
    negated: bool = False
    family: bool = False
    uncertain: bool = False
    kind: Label = "Phenotype"


class ExportRequest(Given):
    """A text with its mentions, for export."""

    text: str
    mentions: list[CorrectedMention]
    document_id: Label = Field(default="note", description="Id of the note.")
    subject_id: Label = Field(default="subject", description="Id of the person; not a name.")


class InsightRequest(Given):
    """The terms of one person."""

    terms: list[Identifier] = Field(max_length=1000, description="Terms that the person has.")
    excluded: list[Identifier] = Field(
        default=[], max_length=1000, description="Terms that the person does not have; they do not change the ranks."
    )


class Ranked(BaseModel):
    """A gene or disease, and how far a person's terms point to it."""

    id: str = Field(examples=["OMIM:154700"])
    name: str
    p_value: float = Field(
        description="Hypergeometric probability of as many of the person's terms among its annotations by chance; "
        "not corrected for the number of genes or diseases."
    )
    matched: list[str] = Field(description="Ids of the person's terms that it is annotated with.")
    denied: list[str] = Field(description="Ids it is annotated with that the person does not have.")
    absent: list[str] = Field(description="Ids of the person's terms that are recorded as absent in this disease.")


class InsightResponse(BaseModel):
    """Genes and diseases, most enriched first."""

    genes: list[Ranked]
    diseases: list[Ranked]
    used: list[TermReference] = Field(description="The terms that were counted: the most specific ones.")
    implied: list[TermReference] = Field(description="Terms left out, because a more specific one implies them.")
    unknown: list[str] = Field(description="Ids that the annotations do not know.")
    source: str = Field(description="Where the annotations come from, and their version.")
