"""GA4GH phenopackets, version 2: the phenotypic features of one person, as JSON.

One feature per concept. A concept that the text states of the person at least once is a feature; one that it only
denies is a feature with ``excluded``. Mentions of relatives and uncertain mentions are left out: a phenotypic feature
says what was observed in the subject, and the schema has no place for "perhaps", nor for a relative outside a pedigree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weightsmith_phenotype.document import Document
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats._common import WriteOptions, check_document, decoded, file_name
from weightsmith_phenotype.ontology import Ontology

__all__ = ["Feature", "PhenopacketFeatures", "files", "read_phenopacket", "render", "write_phenopacket"]

SCHEMA = "2.0"
PURL = "http://purl.obolibrary.org/obo/"
CONTRADICTED = "The text also denies it."


@dataclass(frozen=True, slots=True)
class Feature:
    """A phenotypic feature of a phenopacket: a concept, and whether it was looked for and not found."""

    concept_id: str
    name: str
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class PhenopacketFeatures:
    """The phenotypic features of the person whom a phenopacket describes; there may be none."""

    id: str
    features: tuple[Feature, ...] = ()


def write_phenopacket(document: Document, ontology: Ontology, *, created: datetime | None = None) -> dict[str, Any]:
    """Make a phenopacket of a document's mentions.

    Parameters
    ----------
    document : Document
        With the mentions that were found in it. Its id becomes the id of the packet and of the subject.
    ontology : Ontology
        Names the concepts and the release. Merged and replaced ids become the live ones.
    created : datetime, optional
        Time stamp of the packet; the present by default.

    Returns
    -------
    dict
        JSON of a phenopacket of schema version 2. Mentions of relatives and uncertain ones are not in it. A concept
        that the text both states and denies is stated; its description says so.

    Raises
    ------
    CorpusError
        If a mention's concept is not in the ontology.

    Examples
    --------
    >>> from weightsmith_phenotype import Mention, Ontology, Term
    >>> ontology = Ontology([Term("X:1", "finding"), Term("X:2", "Tall", parents=["X:1"])], root="X:1", name="x")
    >>> document = Document("7", "not tall", (Mention(4, 8, "tall", "X:2", negated=True),))
    >>> write_phenopacket(document, ontology)["phenotypicFeatures"]
    [{'type': {'id': 'X:2', 'label': 'Tall'}, 'excluded': True}]
    """
    check_document(document)
    stated: dict[str, bool] = {}
    denied: set[str] = set()
    for mention in document.mentions:
        if mention.family or mention.uncertain:
            continue
        concept = ontology.resolve(mention.concept_id)
        if concept is None:
            raise CorpusError(
                f"document {document.id!r}: mention [{mention.start}, {mention.end}]",
                found=mention.concept_id,
                expected=f"a concept of {ontology.name or 'the ontology'} {ontology.version}".rstrip(),
                do="Use the ontology that the document was annotated with.",
            )
        stated[concept] = stated.get(concept, False) or not mention.negated
        if mention.negated:
            denied.add(concept)
    features: list[dict[str, Any]] = []
    for concept, asserted in stated.items():
        feature: dict[str, Any] = {"type": {"id": concept, "label": ontology[concept].name}}
        if not asserted:
            feature["excluded"] = True
        elif concept in denied:
            feature["description"] = CONTRADICTED
        features.append(feature)
    packet: dict[str, Any] = {"id": document.id, "subject": {"id": document.id}}
    if features:
        packet["phenotypicFeatures"] = features
    packet["metaData"] = _metadata(ontology, created or datetime.now(UTC))
    return packet


def _metadata(ontology: Ontology, created: datetime) -> dict[str, Any]:
    from weightsmith_phenotype import __version__

    prefix = ontology.root.partition(":")[0]
    name = ontology.name or prefix.lower()
    stamp = created.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "created": stamp,
        "createdBy": f"weightsmith-phenotype {__version__}",
        "resources": [
            {
                "id": name,
                "name": "human phenotype ontology" if prefix == "HP" else name,
                "url": f"{PURL}{name}.owl",
                "version": ontology.version.removeprefix(f"{name}/").removeprefix("releases/"),
                "namespacePrefix": prefix,
                "iriPrefix": f"{PURL}{prefix}_",
            }
        ],
        "phenopacketSchemaVersion": SCHEMA,
    }


def _needed(options: WriteOptions) -> Ontology:
    if options.ontology is None:
        raise CorpusError("phenopackets name the ontology's release", found="no ontology", do="Pass ontology=.")
    return options.ontology


def render(document: Document, options: WriteOptions) -> str:
    """A phenopacket as one line of JSON."""
    packet = write_phenopacket(document, _needed(options), created=options.created)
    return json.dumps(packet) + "\n"


def files(document: Document, options: WriteOptions) -> dict[str, str]:
    """A phenopacket as a file of its own, as tools of the Phenopacket Schema read it."""
    packet = write_phenopacket(document, _needed(options), created=options.created)
    return {file_name(document, ".json"): json.dumps(packet, indent=2) + "\n"}


def read_phenopacket(source: str | os.PathLike[str] | Mapping[str, Any]) -> PhenopacketFeatures:
    """The features of a phenopacket: a file, or the object in it. One without features is valid and has none.

    Raises
    ------
    CorpusError
        If it is no phenopacket, or a feature has no concept.

    Examples
    --------
    >>> read_phenopacket({"id": "7"})
    PhenopacketFeatures(id='7', features=())
    """
    if isinstance(source, Mapping):
        name, found = "phenopacket", dict(source)
    else:
        name = os.fspath(source)
        try:
            raw = Path(source).read_bytes()
        except OSError as error:
            raise CorpusError(f"cannot read {name}", found=error) from error
        try:
            found = json.loads(decoded(raw, name))
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{name} is not JSON", found=error) from error
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise CorpusError(f"{name} is no phenopacket", found=repr(found)[:80], expected="an object with a field 'id'")
    features = []
    items = found.get("phenotypicFeatures", found.get("phenotypic_features")) or []
    for number, item in enumerate(items if isinstance(items, list) else [items]):
        concept = item.get("type") if isinstance(item, dict) else None
        if not isinstance(concept, dict) or not isinstance(concept.get("id"), str):
            raise CorpusError(
                f"{name}: phenotypicFeatures[{number}]", found=repr(item)[:80], expected="type with an id"
            )
        # Version 1 of the schema called it `negated`.
        excluded = item.get("excluded", item.get("negated", False)) is True
        features.append(Feature(concept["id"], str(concept.get("label", "")), excluded))
    return PhenopacketFeatures(found["id"], tuple(features))
