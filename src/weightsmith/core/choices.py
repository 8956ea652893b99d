"""Checks of single options: words, as their ``Literal`` lists them, and numbers, of Python's or NumPy's types."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, get_args

from weightsmith.core.errors import HyperparameterError

__all__ = ["check_choice", "check_number", "check_whole", "is_number", "is_whole"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Check that an option has one of the values that its type lists.

    Parameters
    ----------
    name : str
        Of the option.
    value : object
        What was given.
    choices : Literal
        What it may be.

    Raises
    ------
    HyperparameterError
        If it is none of these.

    Examples
    --------
    >>> from typing import Literal
    >>> check_choice("group", "row", Literal["row", "layer"])
    >>> check_choice("group", "rows", Literal["row", "layer"])
    Traceback (most recent call last):
    weightsmith.core.errors.HyperparameterError: group: found 'rows', expected 'row' or 'layer'
    """
    allowed = get_args(choices)
    if value not in allowed:
        *others, last = map(repr, allowed)
        raise HyperparameterError(
            name, found=repr(value), expected=f"{', '.join(others)} or {last}" if others else last
        )


def is_whole(value: object) -> bool:
    """Whether an option is a whole number, of Python's or NumPy's types; true and false are none.

    Examples
    --------
    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether an option is a finite real number, of Python's or NumPy's types; true and false are none.

    Examples
    --------
    >>> is_number(3), is_number(float("nan")), is_number(True)
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(name: str, value: Any, low: int = 1, high: int | None = None, do: str | None = None) -> int:
    """Return an option that is a whole number between two bounds, both included, as Python's ``int``.

    Parameters
    ----------
    name : str
        Of the option.
    value : Any
        What was given. True and false are no numbers.
    low : int, default: 1
        The least that it may be.
    high : int, optional
        The most.
    do : str, optional
        What the user can do about another number.

    Raises
    ------
    HyperparameterError
        If it is no whole number, or out of bounds.

    Examples
    --------
    >>> import numpy as np
    >>> check_whole("rank", np.int64(8))
    8
    >>> check_whole("rank", 1.5)
    Traceback (most recent call last):
    weightsmith.core.errors.HyperparameterError: rank: found 1.5, expected a whole number >= 1
    """
    if not is_whole(value) or value < low or (high is not None and value > high):
        expected = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
        raise HyperparameterError(name, found=repr(value), expected=expected, do=do)
    return int(value)


def check_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Check an option that is a finite number between two bounds, both included.

    Parameters
    ----------
    name : str
        Of the option.
    value : Any
        What was given. True and false are no numbers.
    low, high : float, default: 0, inf
        The least and the most that it may be.

    Raises
    ------
    HyperparameterError
        If it is no number, not finite, or out of bounds.

    Examples
    --------
    >>> check_number("penalty", -1)
    Traceback (most recent call last):
    weightsmith.core.errors.HyperparameterError: penalty: found -1, expected a number >= 0
    """
    if not is_number(value) or not low <= value <= high:
        expected = f"a number >= {low:g}" if high == math.inf else f"a number, {low:g} to {high:g}"
        raise HyperparameterError(name, found=repr(value), expected=expected)
