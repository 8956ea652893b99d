"""How good written lists are: the foods, and the total against a constant and against a regression on the features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from weightsmith_kitchen.calories.grammar import parse_list
from weightsmith_kitchen.calories.retrieve import CalorieIndex
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.units import find_unit, grams

__all__ = ["ListScores", "item_f1", "odd_lists", "ridge", "score_lists", "totals"]

NAMED = 5
"""Odd items that are named; the rest is counted."""
STRENGTHS = np.logspace(-1, 6, 15)
"""Penalties that are tried, for standardized features."""


@dataclass(frozen=True)
class ListScores:
    """Written lists against true ones.

    Attributes
    ----------
    photos : int
        How many.
    f1 : float
        Of the ingredients' names, over all lists together.
    unit : str
        Of the errors: ``"kcal"`` with a table of calories, ``"g"`` without.
    unreadable : int
        Lists without a total; the constant counts for them.
    error : float or None
        Mean absolute error of the lists' totals; None where no true list has a total.
    constant, regression : float or None
        The error of the median of the training lists, and of a ridge regression on the mean visual token.
    """

    photos: int
    f1: float
    unit: str
    unreadable: int
    error: float | None
    constant: float | None
    regression: float | None

    @property
    def worth_it(self) -> bool:
        """Whether the totals of the lists are better than both cheap answers."""
        return (
            self.error is not None
            and self.constant is not None
            and self.regression is not None
            and self.error < min(self.constant, self.regression)
        )

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {**asdict(self), "worth_it": self.worth_it}


def item_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of the ingredients' names over all lists together.

    Examples
    --------
    >>> item_f1(["1 cup of rice, 1 egg of 50 g"], ["2 cups of rice"])  # precision 1/2, recall 1
    0.6666666666666666
    """
    right = told = there = 0
    for one, other in zip(said, wanted, strict=True):
        a, b = (Counter(item.ingredient for item in parse_list(text) if item.ingredient) for text in (one, other))
        right, told, there = right + (a & b).total(), told + a.total(), there + b.total()
    return 2 * right / (told + there) if told + there else 0.0


def totals(lists: Sequence[str], index: CalorieIndex | None = None) -> npt.NDArray[np.float64]:
    """The total of each list: kcal with an index of calories, grams without. NaN where no item has any.

    Examples
    --------
    >>> totals(["1 apple of 200 g, 1 pound of rice", "salt"]).round(1).tolist()
    [653.6, nan]
    """
    found = []
    for text in lists:
        items = [item for item in parse_list(text) if item.error is None and item.amount is not None]
        if index is not None:
            values = [match.kcal for match in index.look_up(items) if match.known] if items else []
        else:
            values = [value for item in items if (value := _grams(item.amount, item.unit)) is not None]
        found.append(sum(values) if values else float("nan"))
    return np.array(found)


def odd_lists(lists: Sequence[str], index: CalorieIndex | None = None) -> list[str]:
    """What of true lists cannot be read or has no total, with counts and names; empty where all is well.

    Examples
    --------
    >>> for note in odd_lists(["1 apple of 200 g", "salt", "1 cup of rice, 1/0 egg"]):
    ...     print(note)
    2 items of the lists are not read: no amount: 'salt' (1); the amount cannot be read: '1/0 egg' (1)
    2 of 3 lists have no weight in grams, and no total: 'salt' (1); '1 cup of rice, 1/0 egg' (1)
    """
    notes = []
    read = [parse_list(text) for text in lists]
    wrong = Counter(
        item.error if repr(item.text[:40]) in item.error else f"{item.error}: {item.text[:40]!r}"
        for items in read
        for item in items
        if item.error is not None
    )
    if wrong:
        notes.append(f"{wrong.total()} items of the lists are not read: {_told(wrong)}")
    if index is not None:
        items = [item for found in read for item in found if item.error is None]
        unknown = Counter(repr(match.item.key) for match in index.look_up(items) if not match.known) if items else {}
        if unknown:
            notes.append(f"{sum(unknown.values())} items of the lists are not in the table: {_told(unknown)}")
    missing = Counter(
        repr(text[:40]) for text, total in zip(lists, totals(lists, index), strict=True) if np.isnan(total)
    )
    if missing:
        what = "weight in grams" if index is None else "known energy"
        notes.append(f"{missing.total()} of {len(lists)} lists have no {what}, and no total: {_told(missing)}")
    return notes


def _told(counts: Mapping[str, int]) -> str:
    """The most frequent names with their counts."""
    named = [f"{name} ({count})" for name, count in Counter(counts).most_common(NAMED)]
    return "; ".join([*named, *([f"and {len(counts) - NAMED} more"] if len(counts) > NAMED else [])])


def score_lists(
    said: Sequence[str],
    wanted: Sequence[str],
    known: Sequence[str],
    *,
    index: CalorieIndex | None = None,
    tokens: Float[Tensor, "photos N W"] | None = None,
    known_tokens: Float[Tensor, "known N W"] | None = None,
) -> ListScores:
    """Score written lists.

    Parameters
    ----------
    said, wanted : sequence of str
        What was written about each photo, and what is true.
    known : sequence of str
        The lists that were trained on.
    index : CalorieIndex, optional
        Makes kcal of lists; grams are compared without.
    tokens, known_tokens : Tensor, optional
        Visual tokens of the photos and of the training photos, for the regression.

    Raises
    ------
    ModelError
        If the numbers of lists differ, or there are none.
    """
    if len(said) != len(wanted) or not said:
        raise ModelError("lists", found=f"{len(said)} written, {len(wanted)} true", expected="as many, at least one")
    unit = "g" if index is None else "kcal"
    told, true, learned = (totals(lists, index) for lists in (said, wanted, known))
    there, usable = ~np.isnan(true), ~np.isnan(learned)
    f1, unreadable = item_f1(said, wanted), int(np.isnan(told[there]).sum())
    if not there.any() or not usable.any():
        return ListScores(len(said), f1, unit, unreadable, None, None, None)
    constant = float(np.median(learned[usable]))
    filled = np.where(np.isnan(told), constant, told)
    regression = None
    if tokens is not None and known_tokens is not None:
        fitted = ridge(known_tokens[usable].float().mean(1), learned[usable])
        regression = _error(fitted.predict(tokens[there].double().mean(1).numpy()), true[there])
    return ListScores(
        len(said),
        f1,
        unit,
        unreadable,
        _error(filled[there], true[there]),
        _error(np.full(int(there.sum()), constant), true[there]),
        regression,
    )


def ridge(features: Float[Tensor, "photos W"], targets: npt.NDArray[np.float64]) -> Any:
    """Ridge regression on standardized features, fitted; the penalty of `STRENGTHS` has the least leave-one-out error.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Its ``predict`` takes features of shape (N, W).

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(4).repeat(3, 1)
    >>> ridge(x, np.tile([1.0, 2.0, 3.0, 4.0], 3)).predict(x[:4]).round(1).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(STRENGTHS)).fit(features.double().numpy(), targets)


def _grams(amount: Quantity | None, unit: str) -> float | None:
    known = find_unit(unit) if unit else None
    return None if amount is None or known is None or known.kind != "mass" else float(grams(amount, known).middle)


def _error(said: npt.NDArray[Any], true: npt.NDArray[Any]) -> float:
    return float(np.abs(said - true).mean())
