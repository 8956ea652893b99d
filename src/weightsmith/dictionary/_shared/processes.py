"""One fit over the rows of several processes, under ``torchrun`` for instance."""

from __future__ import annotations

import math

import torch
from torch import distributed

from weightsmith.core.processes import all_reduce_sum

__all__ = ["gather", "is_shared", "rank", "total"]


def is_shared() -> bool:
    """Whether several processes fit together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Return the number of this process, 0 if it is alone."""
    return distributed.get_rank() if is_shared() else 0


def gather(value: float) -> list[float]:
    """Return one number of every process, by rank.

    Examples
    --------
    >>> gather(2.0)
    [2.0]
    """
    if not is_shared():
        return [value]
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    values = torch.zeros(distributed.get_world_size(), dtype=torch.float64, device=device)
    values[rank()] = value
    all_reduce_sum(values)
    return values.tolist()


def total(value: float) -> float:
    """Return the sum of one number of every process.

    Examples
    --------
    >>> total(2.0)
    2.0
    """
    return math.fsum(gather(value))
