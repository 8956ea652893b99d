"""How far predicted energies are from true ones, in the three ways in which papers write a percentage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from weightsmith_kitchen.errors import RecipeError

__all__ = ["TotalErrors", "total_errors"]


class TotalErrors(NamedTuple):
    """Errors of predicted energies.

    Attributes
    ----------
    absolute : float
        Mean absolute error in kcal.
    of_mean : float
        The same as a share of the mean true energy.
    mean_relative, median_relative : float
        Mean and median of the absolute error as a share of each true energy.
    """

    absolute: float
    of_mean: float
    mean_relative: float
    median_relative: float


def total_errors(predicted: Sequence[float], wanted: Sequence[float]) -> TotalErrors:
    """Compare predicted energies with true ones.

    Raises
    ------
    RecipeError
        If there are none, not as many of one as of the other, or a true energy is not above 0.

    Examples
    --------
    >>> total_errors([150, 300], [100, 400])
    TotalErrors(absolute=75.0, of_mean=0.3, mean_relative=0.375, median_relative=0.375)
    """
    guess, truth = np.asarray(predicted, dtype=float), np.asarray(wanted, dtype=float)
    if guess.shape != truth.shape or not truth.size:
        raise RecipeError("predicted energies", found=guess.size, expected=f"{truth.size}, one per true one, and any")
    if not (truth > 0).all():
        raise RecipeError("true energies", found=float(truth[~(truth > 0)][0]), expected="numbers above 0")
    error = np.abs(guess - truth)
    share = error / truth
    return TotalErrors(
        float(error.mean()), float(error.mean() / truth.mean()), float(share.mean()), float(np.median(share))
    )
