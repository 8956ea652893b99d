"""``weightsmith phenotype``: tag notes, train on an ontology, evaluate on a corpus, serve the page."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(name="phenotype", help="Clinical text to Human Phenotype Ontology terms.", no_args_is_help=True)


@app.callback()
def phenotype() -> None:
    """Clinical text to Human Phenotype Ontology terms."""
