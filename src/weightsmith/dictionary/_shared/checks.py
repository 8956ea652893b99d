"""Checks of hyper-parameters, as ``fit`` makes them."""

from __future__ import annotations

import math
import numbers
from typing import Any

from weightsmith.core.errors import HyperparameterError

__all__ = ["choice", "integer", "number"]


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


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Check one of several words."""
    if value not in allowed:
        raise HyperparameterError(name, found=value, expected=f"one of {allowed}")
