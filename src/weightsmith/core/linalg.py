"""The numerics several methods share: top-k masks with stable ties, N:M masks, inverse Cholesky factors."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsmith.core.errors import NonFiniteError, ShapeError

__all__ = ["inverse_cholesky", "lowest_k_mask", "lowest_n_of_m_mask"]


def lowest_k_mask(score_OI: Float[Tensor, "out in"], k: int) -> Bool[Tensor, "out in"]:
    """Mark the ``k`` lowest scores of every row; of equal scores the first ones, as a stable sort would.

    Examples
    --------
    >>> lowest_k_mask(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    if k <= 0 or score_OI.numel() == 0:
        return torch.zeros_like(score_OI, dtype=torch.bool)
    bound_O1 = score_OI.kthvalue(k, dim=1, keepdim=True).values
    mask_OI = score_OI <= bound_O1
    surplus_O = mask_OI.sum(1) - k
    if bool((surplus_O > 0).any()):
        tied = surplus_O > 0
        score, bound = score_OI[tied], bound_O1[tied]
        below, equal = score < bound, score == bound
        room = k - below.sum(1, keepdim=True)
        mask_OI[tied] = below | (equal & (equal.cumsum(1) <= room))
    return mask_OI


def lowest_n_of_m_mask(score_OI: Float[Tensor, "out in"], n: int, m: int) -> Bool[Tensor, "out in"]:
    """Mark the ``n`` lowest scores in each run of ``m`` consecutive columns; of equal scores the first ones.

    Raises
    ------
    ShapeError
        If the number of columns is not a multiple of ``m``.

    Examples
    --------
    >>> lowest_n_of_m_mask(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), 2, 4)
    tensor([[False,  True,  True, False]])
    """
    rows, columns = score_OI.shape
    if columns % m:
        raise ShapeError(f"columns for a {n}:{m} pattern", found=columns, expected=f"a multiple of {m}")
    return lowest_k_mask(score_OI.reshape(-1, m), n).reshape(rows, columns)


def inverse_cholesky(gram_II: Float[Tensor, "in in"], damping: float = 0.01) -> Float[Tensor, "in in"]:
    r"""Upper Cholesky factor of a damped inverse.

    .. math:: U^\top U = (G + \lambda\, \overline{\operatorname{diag} G}\; I)^{-1}

    Parameters
    ----------
    gram_II : Tensor of shape (in, in)
        Symmetric, positive semi-definite.
    damping : float, default: 0.01
        Added to the diagonal, as a fraction of its mean; grows tenfold until the factorisation succeeds.

    Returns
    -------
    Tensor of shape (in, in)
        In float32, computed in float64.

    Raises
    ------
    NonFiniteError
        If the Gram matrix holds NaN or infinity.

    Examples
    --------
    >>> inverse_cholesky(torch.diag(torch.tensor([4.0, 16.0])), damping=0.0).diagonal()
    tensor([0.5000, 0.2500])
    """
    if not bool(gram_II.isfinite().all()):
        raise NonFiniteError("the Gram matrix holds NaN or infinity", do="Check the calibration data.")
    gram = gram_II.double()
    scale = gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    while True:
        damped = gram + damping * scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
        damping = max(10 * damping, 1e-6)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
