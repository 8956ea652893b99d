"""What a method on files writes, where it is not a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["writes"]

F = TypeVar("F", bound=Callable[..., Any])


def writes(what: str) -> Callable[[F], F]:
    """Mark a method on files whose output is no model, so that no recipe goes on from it.

    Parameters
    ----------
    what : str
        The output, with its article.

    Examples
    --------
    >>> @writes("an adapter")
    ... def scale() -> None: ...
    >>> scale.writes
    'an adapter'
    """

    def mark(method: F) -> F:
        method.writes = what  # type: ignore[attr-defined]
        return method

    return mark
