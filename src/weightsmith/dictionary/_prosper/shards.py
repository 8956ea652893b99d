"""One fit over the rows of several processes: sums, seeds, and which points the data cut keeps."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from weightsmith.core.statistics import all_reduce_sum

__all__ = ["gather", "is_shared", "keep_largest", "shared_seed", "total", "worst_row"]

BISECTIONS = 200
"""Halvings after which an interval of float64 numbers holds none in between, from any start."""


def is_shared() -> bool:
    """Whether several processes fit together, under ``torchrun`` for instance."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def total(value: float) -> float:
    """The sum of one number of every process.

    Examples
    --------
    >>> total(2.0)
    2.0
    """
    return math.fsum(gather(value))


def gather(value: float) -> list[float]:
    """One number of every process, by rank.

    Examples
    --------
    >>> gather(2.0)
    [2.0]
    """
    if not is_shared():
        return [value]
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    rows = torch.zeros(distributed.get_world_size(), dtype=torch.float64, device=device)
    rows[distributed.get_rank()] = value
    all_reduce_sum(rows)
    return rows.tolist()


def shared_seed(seed: int) -> tuple[int, int]:
    """The first process's seed, for what all processes must draw alike, and this process's rank.

    Examples
    --------
    >>> shared_seed(7)
    (7, 0)
    """
    return int(gather(float(seed))[0]), distributed.get_rank() if is_shared() else 0


def keep_largest(values_N: Float[Tensor, "points"], count: int) -> Bool[Tensor, "points"]:
    """Mark the ``count`` largest values of all processes together; of equal values the first ones.

    The threshold is found by bisection, so that only counts travel between processes.

    Parameters
    ----------
    values_N : Tensor of shape (points,)
        This process's values, finite.
    count : int
        How many to keep of those of all processes.

    Returns
    -------
    Tensor of shape (points,)
        Bool.

    Examples
    --------
    >>> keep_largest(torch.tensor([3.0, 1.0, 2.0, 2.0]), 2)
    tensor([ True, False,  True, False])
    """
    low = min(gather(float(values_N.min()) if len(values_N) else math.inf))
    high = math.nextafter(max(gather(float(values_N.max()) if len(values_N) else -math.inf)), math.inf)
    for _ in range(BISECTIONS):  # at least ``count`` values are >= low, fewer than that are >= high
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if total(float((values_N >= middle).sum())) >= count:
            low = middle
        else:
            high = middle
    above_N = values_N >= high
    tied_N = (values_N >= low) & ~above_N
    rank = distributed.get_rank() if is_shared() else 0
    before = sum(gather(float(tied_N.sum()))[:rank])
    room = count - total(float(above_N.sum())) - before
    return above_N | (tied_N & (tied_N.cumsum(0) <= room))


def worst_row(value: float, row_D: Float[Tensor, "features"]) -> Float[Tensor, "features"]:
    """The row of the process with the lowest value.

    Examples
    --------
    >>> worst_row(-3.0, torch.ones(2))
    tensor([1., 1.])
    """
    values = gather(value)
    worst = values.index(min(values))
    row = row_D.clone() if not is_shared() or distributed.get_rank() == worst else torch.zeros_like(row_D)
    all_reduce_sum(row)
    return row
