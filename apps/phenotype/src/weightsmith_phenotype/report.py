"""What the command line says of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from weightsmith_phenotype.document import Document
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.metrics import Evaluation, described_ids
from weightsmith_phenotype.ontology import Ontology

__all__ = ["as_json", "matched", "print_table"]


def matched(gold: Sequence[Document], predicted: Iterable[Document], name: str) -> list[Document]:
    """Predictions in the order of the annotated documents.

    Raises
    ------
    CorpusError
        If a document has no prediction, or the prediction is of another text, whose offsets would mean other places.
    """
    by_id = {document.id: document for document in predicted}
    found = []
    for document in gold:
        other = by_id.pop(document.id, None)
        if other is None:
            raise CorpusError(f"{name}: document {document.id!r} is missing", expected="all documents of the corpus")
        if len(other.text) != len(document.text) or other.text.split() != document.text.split():
            raise CorpusError(
                f"{name}: document {document.id!r} has another text than in the corpus",
                found=f"{len(other.text)} characters",
                expected=f"{len(document.text)}, the same but for blanks",
            )
        found.append(other)
    if by_id:
        raise CorpusError(f"{name}: document {next(iter(by_id))!r} is not in the corpus")
    return found


def as_json(values: dict[str, Any], level: str | None) -> str:
    """All values, or those of one level and the counts."""
    other = {"mention": "document_", "document": "mention_"}.get(level or "", "\0")
    return json.dumps({key: value for key, value in values.items() if not key.startswith(other)}, indent=2)


def print_table(result: Evaluation, corpus: str, level: str | None, ontology: Ontology | None = None) -> None:
    """Print precision, recall and F1, one row per way to count, and the ids that are left out."""
    console = Console()
    counts = f"{result.documents} documents, {result.annotated} annotated and {result.predicted} predicted mentions"
    console.print(f"{corpus}: {counts}", markup=False, highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("counted")
    for column in ("precision", "recall", "F1", "95 % interval of F1"):
        table.add_column(column, justify="right")
    for name, score in result.scores().items():
        if level is None or name.startswith(level):
            numbers = (f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
            table.add_row(name.replace("_", " "), *numbers, f"{score.low:.3f} to {score.high:.3f}")
    console.print(table)
    if result.left_out:
        console.print(
            f"{result.left_out} mentions whose id is not a concept of the ontology are left out.", markup=False
        )
        for line in described_ids(result.left_out_ids, ontology):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
