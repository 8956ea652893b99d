"""One fit over the rows of several processes, under ``torchrun`` for instance."""

from __future__ import annotations

import math

from weightsmith.core.processes import gather_objects

__all__ = ["total"]


def total(value: float) -> float:
    """Return the sum of one number of every process.

    Examples
    --------
    >>> total(2.0)
    2.0
    """
    return math.fsum(gather_objects(value))
