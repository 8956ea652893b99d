"""Arithmetic on weights that the merging rules share."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["upcast"]


def upcast(part: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the numbers in float32, or in float64 where they are.

    Examples
    --------
    >>> upcast(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return part.to(torch.promote_types(part.dtype, torch.float32) if part.element_size() > 1 else torch.float32)
