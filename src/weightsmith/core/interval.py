"""A mean with its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

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
        mean = float(np.mean(values))
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.high - self.mean:.2g}"
