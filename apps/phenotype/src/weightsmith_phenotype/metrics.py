"""Precision, recall and F1 against annotated documents, per mention and per document, with intervals over documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith_phenotype.document import Document
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.ontology import Ontology

__all__ = ["Evaluation", "Score", "described_ids", "evaluate"]

Place = tuple[int, int, str]
CONFIDENCE = (2.5, 97.5)
LISTED = 10


@dataclass(frozen=True)
class Score:
    """Precision, recall and F1 with the 95 % interval of F1."""

    precision: float
    recall: float
    f1: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """How well predicted mentions agree with annotated ones.

    Attributes
    ----------
    mention_strict, mention_relaxed : Score
        Counted over all mentions. A prediction is right if the id is and the span is the same (strict) or shares a
        character (relaxed).
    mention_strict_macro, mention_relaxed_macro : Score
        The same per document, averaged over documents.
    document_micro, document_macro : Score
        Ids per document, counted over all documents or averaged. A document without annotated and predicted ids counts
        1. F1 of an average is that of averaged precision and recall.
    documents, annotated, predicted, left_out : int
        Documents; mentions on both sides; mentions whose id is not a concept of the ontology, on both sides.
    left_out_ids : dict of str to int
        The ids of the last, with the number of mentions of each, most frequent first.
    """

    mention_strict: Score
    mention_relaxed: Score
    mention_strict_macro: Score
    mention_relaxed_macro: Score
    document_micro: Score
    document_macro: Score
    documents: int
    annotated: int
    predicted: int
    left_out: int
    left_out_ids: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def scores(self) -> dict[str, Score]:
        """The scores by name, in the order of a table."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Score)}


def evaluate(
    gold: Iterable[Document],
    predicted: Iterable[Document],
    ontology: Ontology | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Compare predicted with annotated documents.

    Parameters
    ----------
    gold, predicted : iterable of Document
        The same documents in the same order.
    ontology : Ontology, optional
        Alternative and replaced ids become the live id on both sides; ids that are no concept below the root are left
        out on both sides and counted. Without it ids are compared as they are.
    resamples : int, default: 1000
        Bootstrap samples of documents for the 95 % intervals.
    seed : int, default: 0
        Of the bootstrap.

    Raises
    ------
    CorpusError
        If the two sides are not the same documents, there is none, or none has an annotated mention of a concept:
        precision and recall would be of nothing.

    Examples
    --------
    >>> from weightsmith_phenotype import Mention
    >>> text = "seizures and ataxia"
    >>> gold = [Document("1", text, [Mention(0, 8, "seizures", "HP:1"), Mention(13, 19, "ataxia", "HP:2")])]
    >>> found = [Document("1", text, [Mention(0, 8, "seizures", "HP:1")])]
    >>> result = evaluate(gold, found)
    >>> result.mention_strict.precision, result.mention_strict.recall
    (1.0, 0.5)
    """
    left_out: Counter[str] = Counter()
    unknown: Counter[str] = Counter()  # the annotated ones of these
    rows = []
    gold, predicted = list(gold), list(predicted)
    if [d.id for d in gold] != [d.id for d in predicted] or not gold:
        raise CorpusError(
            "documents to compare",
            found=f"{len(gold)} annotated and {len(predicted)} predicted",
            expected="the same ids in the same order, at least one",
        )
    totals = [0, 0]
    for annotated, tagged in zip(gold, predicted, strict=True):
        sides: list[set[Place]] = []
        for side, document in enumerate((annotated, tagged)):
            places = {
                (m.start, m.end, identifier)
                for m in document.mentions
                if (identifier := m.concept_id if ontology is None else ontology.resolve(m.concept_id)) is not None
            }
            if ontology is not None:
                ids = [m.concept_id for m in document.mentions if ontology.resolve(m.concept_id) is None]
                left_out.update(ids)
                unknown.update(ids if side == 0 else ())
            totals[side] += len(places)
            sides.append(places)
        rows.append(_counts(*sides))
    if not totals[0]:
        found = f"{len(gold)} documents and no annotated mention"
        if unknown:
            some = "; ".join(described_ids(unknown, ontology))
            found = (
                f"{len(gold)} documents, and {unknown.total()} annotated mentions of no concept of the ontology: {some}"
            )
        raise CorpusError(
            "nothing to compare with",
            found=found,
            expected="annotated mentions with ids of the ontology's concepts",
            do="Name the annotated corpus, its format and its ontology.",
        )
    counts = np.array(
        rows, float
    )  # [documents, kind, (right predictions, predictions, found annotations, annotations)]
    samples = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    scores = {}
    for kind, name in enumerate(("mention_strict", "mention_relaxed", "document")):
        of_kind = counts[:, kind]
        micro, macro = ("_micro", "_macro") if name == "document" else ("", "_macro")
        scores[name + micro] = _score(_micro, of_kind, samples)
        scores[name + macro] = _score(_macro, of_kind, samples)
    return Evaluation(
        **scores,
        documents=len(rows),
        annotated=totals[0],
        predicted=totals[1],
        left_out=left_out.total(),
        left_out_ids=dict(left_out.most_common()),
    )


def described_ids(ids: Mapping[str, int], ontology: Ontology | None = None) -> list[str]:
    """The first ten ids with how often each is there, and the terms that the ontology tells to consider in its place.

    Examples
    --------
    >>> described_ids({"X:9": 2})
    ['X:9 (2 mentions)']
    """
    lines = []
    for identifier, count in list(ids.items())[:LISTED]:
        suggested = ", ".join(ontology.suggestions(identifier)) if ontology is not None else ""
        more = f"; obsolete, consider {suggested}" if suggested else ""
        lines.append(f"{identifier or 'no id'} ({count} mention{'s' if count > 1 else ''}{more})")
    if len(ids) > LISTED:
        lines.append(f"and {len(ids) - LISTED} more ids")
    return lines


def _counts(gold: set[Place], found: set[Place]) -> list[list[int]]:
    strict = len(gold & found)
    ids, found_ids = {p[2] for p in gold}, {p[2] for p in found}
    return [
        [strict, len(found), strict, len(gold)],
        [_overlapping(found, gold), len(found), _overlapping(gold, found), len(gold)],
        [len(ids & found_ids), len(found_ids), len(ids & found_ids), len(ids)],
    ]


def _overlapping(places: set[Place], others: set[Place]) -> int:
    """How many places share a character with one of the others that has the same id."""
    by_id: dict[str, list[Place]] = {}
    for other in others:
        by_id.setdefault(other[2], []).append(other)
    return sum(any(a < d and c < b for c, d, _ in by_id.get(identifier, ())) for a, b, identifier in places)


def _micro(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Precision and recall from summed counts; 0 of 0 is 1 if the other side is empty too, else 0."""
    right, predicted, found, annotated = np.moveaxis(counts.sum(-2), -1, 0)
    return np.stack([_ratio(right, predicted, annotated), _ratio(found, annotated, predicted)])


def _macro(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    right, predicted, found, annotated = np.moveaxis(counts, -1, 0)
    return np.stack([_ratio(right, predicted, annotated), _ratio(found, annotated, predicted)]).mean(-1)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), (other == 0).astype(float))


def _score(average: Any, counts: NDArray[np.float64], samples: NDArray[np.int64]) -> Score:
    precision, recall = map(float, average(counts))
    low, high = np.percentile(_f1(*average(counts[samples])), CONFIDENCE) if len(samples) else (np.nan, np.nan)
    return Score(precision, recall, float(_f1(precision, recall)), float(low), float(high))


def _f1(precision: Any, recall: Any) -> Any:
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)
