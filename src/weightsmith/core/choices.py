"""Options that take one of several words, as their ``Literal`` lists them."""

from __future__ import annotations

from typing import Any, get_args

from weightsmith.core.errors import HyperparameterError

__all__ = ["check_choice"]


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
