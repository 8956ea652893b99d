"""A mean and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % t-interval.

    Examples
    --------
    >>> interval = Interval.of([1.0, 2.0, 3.0])
    >>> f"{interval.mean:.2f} in [{interval.low:.2f}, {interval.high:.2f}]"
    '2.00 in [-0.48, 4.48]'
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Compute the interval of at least two values."""
        count, mean = len(values), float(np.mean(values))
        half = float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.high - self.mean:.2g}"
