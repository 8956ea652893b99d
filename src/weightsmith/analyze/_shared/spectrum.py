r"""Singular values of many matrices at once, and what is read off them.

Legend: ``B`` matrices of one shape, ``M`` rows, ``N`` columns, ``R`` singular values, :math:`R = \min(M, N)`.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["entropy_deficit", "random_kappa", "rounding_floor", "signal_to_noise", "singular_values", "stable_rank"]

TRUSTED_KAPPA = 1e5
"""Squaring a matrix squares its condition number: in float64 the smallest of its singular values keeps six digits up
to here."""


def singular_values(w_BMN: Float[Tensor, "B M N"]) -> Float[Tensor, "B R"]:
    r"""Singular values of a batch of matrices, in float64, descending.

    They are the square roots of the eigenvalues of :math:`W^\top W`, half the work of a singular value decomposition.
    Matrices that turn out worse conditioned than 1e5 are decomposed anew, without squaring.

    Parameters
    ----------
    w_BMN : Tensor of shape (B, M, N)
        Finite, of any floating-point type.

    Returns
    -------
    Tensor of shape (B, min(M, N))
        In float64, on the matrices' device.

    Examples
    --------
    >>> singular_values(torch.diag(torch.tensor([1.0, 4.0, 2.0])).unsqueeze(0))
    tensor([[4., 2., 1.]], dtype=torch.float64)
    """
    w_BMN = w_BMN.double()
    tall = w_BMN if w_BMN.shape[1] >= w_BMN.shape[2] else w_BMN.mT
    try:
        s_BR = _gram_eigenvalues(tall).flip(1).clamp(min=0).sqrt()
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError):
        return torch.stack([_decompose(w_MN) for w_MN in w_BMN])
    for doubtful in (s_BR[:, 0] > TRUSTED_KAPPA * s_BR[:, -1]).nonzero().flatten().tolist():
        s_BR[doubtful] = _decompose(w_BMN[doubtful])
    return s_BR


def random_kappa(rows: int, columns: int) -> float:
    r"""Condition number that a matrix of independent Gaussian entries has by its shape alone.

    .. math:: \frac{\sqrt M + \sqrt R}{\sqrt M - \sqrt{R - 1}}, \qquad M \ge R

    The Marchenko-Pastur edges :math:`\sqrt M \pm \sqrt R` would make it infinite for square matrices; with
    :math:`R - 1` in the lower edge, as Rudelson and Vershynin have it, a square matrix gets :math:`4 R`, near the
    median :math:`3.67 R` that Edelman found.

    References
    ----------
    Marchenko and Pastur, "Distribution of eigenvalues for some sets of random matrices", 1967.
    Edelman, "Eigenvalues and condition numbers of random matrices", 1988.
    Rudelson and Vershynin, "Smallest singular value of a random rectangular matrix", arXiv 0802.3956.

    Examples
    --------
    >>> round(random_kappa(3072, 1024), 2), round(random_kappa(576, 576))
    (3.73, 2303)
    """
    rank, long = sorted((rows, columns))
    return (math.sqrt(long) + math.sqrt(rank)) / (math.sqrt(long) - math.sqrt(rank - 1))


def entropy_deficit(s_BR: Float[Tensor, "B R"]) -> Float[Tensor, "B"]:
    r"""How much less entropy ``W x`` has than the most a matrix of its norm could give, in nats.

    For :math:`x \sim \mathcal N(0, I)` the entropy of :math:`W x` is a constant plus :math:`\sum_i \ln \sigma_i`, and
    at a given norm it is largest when all singular values are equal:

    .. math:: D = \frac R2 \ln \frac{\lVert W \rVert_F^2}{R} - \sum_i \ln \sigma_i \ge 0

    Examples
    --------
    >>> entropy_deficit(torch.tensor([[2.0, 0.5], [1.0, 1.0]]))
    tensor([0.7538, 0.0000])
    """
    isotropic_B = s_BR.square().mean(1).log() * s_BR.shape[1] / 2
    return (isotropic_B - s_BR.log().sum(1)).clamp(min=0)


def stable_rank(s_BR: Float[Tensor, "B R"]) -> Float[Tensor, "B"]:
    r""":math:`\lVert W \rVert_F^2 / \sigma_{\max}^2`, between 1 and the number of singular values.

    Examples
    --------
    >>> stable_rank(torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
    tensor([1.2500, 2.0000])
    """
    return s_BR.square().sum(1) / s_BR[:, 0].square()


def rounding_floor(s_BR: Float[Tensor, "B R"], rows: int, columns: int, dtype: torch.dtype) -> Float[Tensor, "B"]:
    r"""By how much rounding the entries to ``dtype`` may have moved any singular value.

    Rounding adds a matrix of independent errors of about :math:`\epsilon / 2\sqrt 3` of an entry; by Weyl's inequality
    no singular value moves by more than its largest one,

    .. math:: \frac{\epsilon}{2 \sqrt 3} \frac{\lVert W \rVert_F}{\sqrt{M N}} (\sqrt M + \sqrt N) .

    A smaller :math:`\sigma_{\min}` is noise, and so is the condition number made of it.

    Examples
    --------
    >>> s = torch.full((1, 64), 8.0)
    >>> rounding_floor(s, 64, 64, torch.bfloat16)
    tensor([0.0361])
    """
    norm_B = s_BR.square().sum(1).sqrt()
    spread = (math.sqrt(rows) + math.sqrt(columns)) / math.sqrt(rows * columns)
    return norm_B * spread * torch.finfo(dtype).eps / math.sqrt(12)


def signal_to_noise(s_BR: Float[Tensor, "B R"], rows: int, columns: int) -> Float[Tensor, "B"]:
    r"""Sum of the singular values above the edge of the noise over the sum of those below.

    The scale of the noise is taken from the interquartile range of the singular values, as if they were Gaussian, and
    its edge from the law of Marchenko and Pastur:

    .. math:: \epsilon = \frac{\mathrm{IQR}(\sigma)}{1.349} \Bigl(1 + \sqrt{\min(M, N) / \max(M, N)}\Bigr)

    It ranks matrices of one shape. It is no test for signal: singular values are not Gaussian, and a matrix of nothing
    but noise has some above the edge, or all of them where it is long. Infinite where none is below.

    References
    ----------
    Hartford, Atkins, Fernandes Neto, Golchinfar, "Spectrum: Targeted Training on Signal to Noise Ratio",
    arXiv 2406.06623.

    Examples
    --------
    >>> signal_to_noise(torch.tensor([[9.0, 3.0, 2.0, 1.0, 0.0]]), 5, 5)
    tensor([4.])
    """
    quartiles = torch.tensor([0.25, 0.75], dtype=s_BR.dtype, device=s_BR.device)
    low_B, high_B = torch.quantile(s_BR, quartiles, dim=1)
    edge_B = (high_B - low_B) / 1.349 * (1 + math.sqrt(min(rows, columns) / max(rows, columns)))
    signal_BR = s_BR > edge_B[:, None]
    return (s_BR * signal_BR).sum(1) / (s_BR * ~signal_BR).sum(1)


def _gram_eigenvalues(tall_BMR: Float[Tensor, "B M R"]) -> Float[Tensor, "B R"]:
    """Eigenvalues of each matrix's Gram matrix, ascending."""
    if tall_BMR.device.type != "cpu":
        return torch.linalg.eigvalsh(tall_BMR.mT @ tall_BMR)
    # numpy knows that a matrix times its own transpose is symmetric, and its LAPACK is twice as fast here as torch's
    tall = tall_BMR.numpy()
    return torch.from_numpy(np.linalg.eigvalsh(np.matmul(tall.transpose(0, 2, 1), tall)))


def _decompose(w_MN: Float[Tensor, "M N"]) -> Float[Tensor, "R"]:
    """Singular values of one matrix; where the fast algorithm does not converge, by the slow one that does."""
    try:
        return torch.linalg.svdvals(w_MN)
    except torch.linalg.LinAlgError:
        s = scipy.linalg.svd(w_MN.cpu().numpy(), compute_uv=False, lapack_driver="gesvd")
        return torch.from_numpy(s).to(w_MN.device)
