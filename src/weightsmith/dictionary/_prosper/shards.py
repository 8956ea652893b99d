"""One fit over the rows of several processes: seeds, and which points the data cut keeps."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsmith.core.processes import all_reduce_sum, gather_objects, process_rank
from weightsmith.dictionary._shared.processes import total

__all__ = ["keep_largest", "shared_seed", "worst_row"]

BISECTIONS = 200
"""Halvings after which an interval of float64 numbers holds none in between, from any start."""


def shared_seed(seed: int) -> tuple[int, int]:
    """The first process's seed, for what all processes must draw alike, and this process's rank.

    Examples
    --------
    >>> shared_seed(7)
    (7, 0)
    """
    return gather_objects(seed)[0], process_rank()


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
    low = min(gather_objects(float(values_N.min()) if len(values_N) else math.inf))
    high = math.nextafter(max(gather_objects(float(values_N.max()) if len(values_N) else -math.inf)), math.inf)
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
    before = sum(gather_objects(float(tied_N.sum()))[: process_rank()])
    room = count - total(float(above_N.sum())) - before
    return above_N | (tied_N & (tied_N.cumsum(0) <= room))


def worst_row(value: float, row_D: Float[Tensor, "features"]) -> Float[Tensor, "features"]:
    """The row of the process with the lowest value.

    Examples
    --------
    >>> worst_row(-3.0, torch.ones(2))
    tensor([1., 1.])
    """
    values = gather_objects(value)
    row = row_D.clone() if values.index(min(values)) == process_rank() else torch.zeros_like(row_D)
    all_reduce_sum(row)
    return row
