"""Spans of labels, and how well predicted ones match: exact span and label, micro-averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith_kitchen.errors import RecipeError

__all__ = ["SpanScore", "span_score", "spans_of_tags"]

OUTSIDE = "O"


def spans_of_tags(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Maximal runs of one label other than ``O``: first token, token after the last, label.

    Two spans of one label that touch are one span, by definition: the labels have no mark of a beginning.

    Examples
    --------
    >>> spans_of_tags(["QUANTITY", "SIZE", "NAME", "NAME", "O", "STATE"])
    [(0, 1, 'QUANTITY'), (1, 2, 'SIZE'), (2, 4, 'NAME'), (5, 6, 'STATE')]
    """
    found, start = [], 0
    for place in range(1, len(tags) + 1):
        if place == len(tags) or tags[place] != tags[start]:
            if tags[start] != OUTSIDE:
                found.append((start, place, tags[start]))
            start = place
    return found


@dataclass(frozen=True, slots=True)
class SpanScore:
    """Right, spurious and missed spans.

    Attributes
    ----------
    true_positives, false_positives, false_negatives : int
        Spans with exact limits and label, spans that are not in the reference, spans that were not found.
    by_label : dict of SpanScore
        The same per label.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    by_label: dict[str, SpanScore]

    @property
    def precision(self) -> float:
        """Share of the spans found that are right; 0 when none is found."""
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the reference's spans that are found; 0 when there is none."""
        return self.true_positives / max(1, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        wrong = self.false_positives + self.false_negatives
        return 2 * self.true_positives / max(1, 2 * self.true_positives + wrong)


def span_score(reference: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> SpanScore:
    """Compare tags of the same tokens, span by span.

    Parameters
    ----------
    reference, predicted : sequence of sequences of str
        Tags of each phrase.

    Returns
    -------
    SpanScore
        Counts over all phrases.

    Raises
    ------
    RecipeError
        If a phrase has another number of tags in the two.

    Examples
    --------
    >>> score = span_score([["NAME", "NAME", "O"]], [["NAME", "O", "O"]])
    >>> score.true_positives, score.false_positives, score.false_negatives
    (0, 1, 1)
    """
    if len(reference) != len(predicted):
        raise RecipeError("predicted phrases", found=len(predicted), expected=len(reference))
    right: Counter[str] = Counter()
    spurious: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for place, (gold, tags) in enumerate(zip(reference, predicted, strict=True)):
        if len(gold) != len(tags):
            raise RecipeError(f"predicted tags of phrase {place}", found=len(tags), expected=len(gold))
        one, other = set(spans_of_tags(gold)), set(spans_of_tags(tags))
        right.update(label for *_, label in one & other)
        spurious.update(label for *_, label in other - one)
        missed.update(label for *_, label in one - other)
    labels = sorted({*right, *spurious, *missed})
    parts = {label: SpanScore(right[label], spurious[label], missed[label], {}) for label in labels}
    return SpanScore(right.total(), spurious.total(), missed.total(), parts)
