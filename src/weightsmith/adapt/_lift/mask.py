"""The principal weights of one matrix: the largest of its best low-rank approximation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsmith.core.linalg import project, randomized_singular_basis, singular_basis
from weightsmith.core.selection import largest_k

__all__ = ["principal_mask"]


def principal_mask(
    weight_OI: Float[Tensor, "out in"],
    rank: int,
    k: int,
    *,
    niter: int | None = None,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "out in"]:
    """Mark the principal weights: the ``k`` largest magnitudes of the best approximation of a rank.

    Parameters
    ----------
    weight_OI : Tensor of shape (out, in)
        A weight matrix, finite.
    rank : int
        Rank of the approximation, 1 to the shorter side; the whole shorter side gives the largest weights.
    k : int
        Weights to mark, exactly; of equal magnitudes the first ones.
    niter : int, optional
        Power iterations of a randomized approximation; exact by default.
    generator : torch.Generator, optional
        Of the randomized approximation.

    Returns
    -------
    Tensor of shape (out, in)
        True at ``k`` places.

    Raises
    ------
    HyperparameterError
        If ``rank``, ``k`` or ``niter`` is out of range.
    NonFiniteError
        If the weight holds NaN or infinity.

    Examples
    --------
    A block of ones is principal, a larger lone weight is not:

    >>> weight = torch.zeros(8, 8)
    >>> weight[:6, :6] = 1
    >>> weight[7, 7] = 5
    >>> mask = principal_mask(weight, rank=1, k=36)
    >>> bool(mask[:6, :6].all()), bool(mask[7, 7])
    (True, False)
    """
    if rank == min(weight_OI.shape):
        approximation_OI = weight_OI
    elif niter is None:
        approximation_OI = project(weight_OI, singular_basis(weight_OI, rank))
    else:
        basis_SR = randomized_singular_basis(weight_OI, rank, niter=niter, generator=generator)
        approximation_OI = project(weight_OI, basis_SR)
    mask = torch.zeros(weight_OI.numel(), dtype=torch.bool, device=weight_OI.device)
    mask[largest_k(approximation_OI, k)] = True
    return mask.view(weight_OI.shape)
