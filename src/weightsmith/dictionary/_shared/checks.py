"""Checks of hyper-parameters and data, as ``fit`` makes them."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import scipy.sparse
from torch import Tensor

from weightsmith.core.errors import HyperparameterError, NonFiniteError

__all__ = ["integer", "moderate", "number"]


def integer(name: str, value: Any, low: int = 1, high: int | None = None, do: str | None = None) -> int:
    """Return a checked whole number."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        expected = f"an integer >= {low}" if high is None else f"an integer, {low} to {high}"
        raise HyperparameterError(name, found=repr(value), expected=expected, do=do)
    return int(value)


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Check a finite number between two bounds, both included."""
    if not isinstance(value, numbers.Real) or not low <= float(value) <= high or math.isinf(value):
        expected = f"a number >= {low:g}" if high == math.inf else f"a number, {low:g} to {high:g}"
        raise HyperparameterError(name, found=repr(value), expected=expected)


def moderate(X: Any, power: float = 2) -> Any:
    """Return the data, an array, CSR matrix or tensor, if the sums of their squares and powers do not overflow."""
    values = X.data if scipy.sparse.issparse(X) else X.detach().cpu().numpy() if isinstance(X, Tensor) else X
    largest = float(max(values.max(), -values.min())) if values.size else 0.0
    limit = math.sqrt(float(np.finfo(values.dtype).max)) / max(values.size, 1)
    if power > 2:  # of the rows' norms
        limit = min(limit, (float(np.finfo(values.dtype).max) / max(values.size, 1)) ** (1 / power) / X.shape[1] ** 0.5)
    if largest > limit:
        raise NonFiniteError(
            "squares of X overflow" if power == 2 else f"powers {power:g} of X overflow",
            found=f"values up to {largest:.3g} in {values.dtype}",
            expected=f"up to {limit:.3g}",
            do="Divide X by a constant.",
        )
    return X
