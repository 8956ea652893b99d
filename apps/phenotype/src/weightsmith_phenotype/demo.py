"""The demonstration: one note, written for it, with the terms that are found in it and the files made of them."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from weightsmith.core.io import write_file
from weightsmith.core.progress import stage
from weightsmith_phenotype.document import Document, Mention
from weightsmith_phenotype.formats import write_documents, write_phenopacket
from weightsmith_phenotype.tagger import PhenoTagger

__all__ = ["NOTE", "run"]

NOTE = """\
Genetics clinic, first visit. The patient is invented.

Boy, 6 years old, born at 38 weeks with a low birth weight. He walked at 22
months and spoke his first words at 30 months. Seizures began at the age of
3 years, the last one was in May.

Family history: his mother has migraine, a maternal uncle has intellectual
disability.

Examination: short stature, a broad forehead, low-set and posteriorly
rotated ears, a long philtrum and hypoplastic nails. There is a single
palmar crease on the left hand. No cleft palate, no heart murmur. Muscle
tone is low, his gait is ataxic.

Assessment: developmental delay with microcephaly and epilepsy.
Sensorineural hearing loss is suspected. Hepatomegaly was ruled out by
ultrasound.
"""

STYLES = {"present": "green", "negated": "red", "uncertain": "yellow", "family": "magenta"}


def run(tagger: PhenoTagger, out: Path, console: Console) -> Document:
    """Tag the note, print what is found, and write it in three formats.

    Parameters
    ----------
    tagger : PhenoTagger
        Finds the terms.
    out : Path
        Folder for ``note.txt``, ``note.json``, ``note.csv`` and ``note.phenopacket.json``; files of these names are
        replaced.
    console : Console
        What is printed to.

    Returns
    -------
    Document
        The note with its mentions.

    Raises
    ------
    weightsmith.core.errors.CheckpointError
        If the files cannot be written.
    """
    with stage("tagging the note; the first run compiles the matcher"):
        document = Document("note", NOTE, tagger.tag(NOTE))
    console.print(_marked(document))
    console.print(_table(document, (tagger.ontology.version or tagger.ontology.name)))
    write_file(out / "note.txt", NOTE)
    for name in ("note.json", "note.csv"):
        write_documents([document], out / name, overwrite=True)
    packet = write_phenopacket(document, tagger.ontology)
    write_file(out / "note.phenopacket.json", json.dumps(packet, indent=2) + "\n")
    excluded = sum(feature.get("excluded", False) for feature in packet.get("phenotypicFeatures", ()))
    observed = len(packet.get("phenotypicFeatures", ())) - excluded
    console.print(
        f"{escape(str(out))}: note.txt, note.json, note.csv and note.phenopacket.json\n"
        f"The phenopacket has {observed} observed and {excluded} excluded features; what is uncertain or of a relative "
        "is not in it.\n\n"
        "[bold]weightsmith phenotype serve[/]                        the same in the browser, to correct and export\n"
        "[bold]weightsmith phenotype tag NOTES --out found.jsonl[/]  your own notes: files, folders, standard input",
        highlight=False,
        soft_wrap=True,
    )
    return document


def said(mention: Mention) -> str:
    """What the text says of a mention, in words.

    Examples
    --------
    >>> said(Mention(0, 6, "Ptosis", "HP:0000508", negated=True)), said(Mention(0, 6, "Ptosis", "HP:0000508"))
    ('negated', 'present')
    """
    words = [name for name in ("negated", "uncertain", "family") if getattr(mention, name)]
    return ", ".join(words) or "present"


def _style(mention: Mention) -> str:
    return STYLES[said(mention).partition(",")[0]]


def _marked(document: Document) -> Text:
    """The note with its mentions in the colors of the table."""
    text = Text(document.text)
    for mention in document.mentions:
        text.stylize(f"underline {_style(mention)}", mention.start, mention.end)
    return text


def _table(document: Document, ontology: str) -> Table:
    table = Table(title=f"Found, in terms of {escape(ontology)}", title_justify="left", box=None, pad_edge=False)
    table.add_column("in the note")
    table.add_column("term")
    for column in ("id", "the note says", "found by"):
        table.add_column(column, no_wrap=True)
    for mention in document.mentions:
        words, style = said(mention), _style(mention)
        score = "" if mention.score == 1 else f" {mention.score:.2f}"
        table.add_row(
            f"[{style}]{escape(' '.join(mention.text.split()))}[/]",
            escape(mention.name),
            mention.concept_id,
            f"[{style}]{words}[/]",
            mention.source + score,
        )
    return table
