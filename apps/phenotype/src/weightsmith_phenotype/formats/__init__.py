"""Documents read from and written to the formats of the field: text, JSON, CSV, PubTator, BioC, brat, phenopackets.

Offsets count code points of the document's text in every format. What a format cannot carry is written by the rule that
its file states, or refused; it is never lost silently.
"""

from weightsmith_phenotype.formats._common import CorpusNotice, OffsetUnit, ReadOptions, WriteOptions
from weightsmith_phenotype.formats._csv import write_csv
from weightsmith_phenotype.formats._phenopacket import (
    Feature,
    PhenopacketFeatures,
    read_phenopacket,
    write_phenopacket,
)
from weightsmith_phenotype.formats._registry import FORMATS, Format, format_of, read_documents, write_documents

__all__ = [
    "FORMATS",
    "CorpusNotice",
    "Feature",
    "Format",
    "OffsetUnit",
    "PhenopacketFeatures",
    "ReadOptions",
    "WriteOptions",
    "format_of",
    "read_documents",
    "read_phenopacket",
    "write_csv",
    "write_documents",
    "write_phenopacket",
]
