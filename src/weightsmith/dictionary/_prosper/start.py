"""What a fit starts from: moments of the data, and checked start values.

Legend: ``N`` points, ``D`` features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.processes import all_reduce_sum
from weightsmith.dictionary._shared.processes import total

__all__ = ["CHUNK_BYTES", "Moments", "Start", "given"]

CHUNK_BYTES = 8 << 20
"""Size of the states' probabilities of the points that are worked on together."""

Start = np.ndarray | Sequence[Any] | float
"""A start value as a user gives it."""

SIGMA_FLOOR = (1e-3, 1e-6)
"""The least noise: as a share of the data's standard deviation, and, of data that do not vary, of their size."""

CONSTANT = 1e-12
"""Standard deviation, as a share of the mean, that is rounding."""


@dataclass(frozen=True)
class Moments:
    """Means of the features over all processes, and their spread."""

    mean_D: Float[Tensor, "features"]
    variance_D: Float[Tensor, "features"]

    @classmethod
    def of(cls, data_ND: Tensor) -> Moments:
        """Compute them, over all processes."""
        count = total(float(len(data_ND)))
        rows = max(1, CHUNK_BYTES // (8 * data_ND.shape[1]))
        sum_D = torch.stack([chunk.double().sum(0) for chunk in data_ND.split(rows)]).sum(0)
        all_reduce_sum(sum_D)
        mean_D = sum_D / count
        square_D = torch.stack([(chunk.double() - mean_D).square().sum(0) for chunk in data_ND.split(rows)]).sum(0)
        all_reduce_sum(square_D)
        return cls(mean_D, square_D / count)

    @property
    def scale(self) -> float:
        """Mean of the features' standard deviations."""
        return float(self.variance_D.sqrt().mean())

    @property
    def sigma_floor(self) -> float:
        """The least noise, in the unit of the data."""
        share, share_of_constant = SIGMA_FLOOR
        size = float(self.mean_D.abs().max())
        return share * self.scale if self.scale > CONSTANT * size else share_of_constant * (size or 1.0)


def given(name: str, value: Start, shape: tuple[int, ...], low: float = -math.inf, high: float = math.inf) -> Tensor:
    """A checked start value, with all numbers above ``low`` and below ``high``."""
    tensor = torch.tensor(np.asarray(value), dtype=torch.float64)
    if tuple(tensor.shape) != shape:
        raise ShapeError(name, found=tuple(tensor.shape), expected=shape)
    if not bool(tensor.isfinite().all()):
        raise HyperparameterError(name, found="NaN or infinity", expected="finite numbers")
    if not bool(((tensor > low) & (tensor < high)).all()):
        expected = f"> {low:g}" if high == math.inf else f"between {low:g} and {high:g}, both excluded"
        raise HyperparameterError(name, found=tensor.tolist(), expected=expected)
    return tensor
