"""The files that the reader takes away: a GA4GH phenopacket, a table, or JSON."""

from __future__ import annotations

import io
import json

from weightsmith_phenotype.document import Document
from weightsmith_phenotype.formats import FORMATS, WriteOptions, write_csv, write_phenopacket
from weightsmith_phenotype.ontology import Ontology

__all__ = ["MEDIA_TYPES", "export"]

MEDIA_TYPES = {"phenopacket": "application/json", "csv": "text/csv", "json": "application/json"}


def export(document: Document, ontology: Ontology, *, format: str, subject_id: str) -> tuple[str, str]:
    """Make the file of a document's mentions.

    Parameters
    ----------
    document : Document
        With its mentions.
    ontology : Ontology
        The one that the mentions' ids belong to.
    format : {"phenopacket", "csv", "json"}
        What to make.
    subject_id : str
        Id of the person in a phenopacket.

    Returns
    -------
    name, content
        A file name and the file's text.
    """
    if format == "csv":
        table = io.StringIO(newline="")
        write_csv([document], table)
        return "mentions.csv", table.getvalue()
    if format == "json":
        render = FORMATS["json"].render
        assert render is not None
        return "mentions.json", render(document, WriteOptions())
    packet = write_phenopacket(document, ontology) | {"subject": {"id": subject_id}}
    return "phenopacket.json", json.dumps(packet, indent=2) + "\n"
