r"""Posterior of the Gaussian slab in every kept state, for all points at once.

For a state with active units :math:`a`, whitened components and data :math:`W, y`, :math:`G = W W^\top`:

.. math:: v = W_a y - G_{aa} \mu_a, \quad P = G_{aa} + \Psi_{aa}^{-1}, \quad \Lambda = P^{-1}, \quad
          \kappa = \mu_a + \Lambda v

.. math:: -2 \log p(y \mid s) = \log|\Psi_{aa}| + \log|P| + \lVert y - W_a^\top \mu_a \rVert^2 - v^\top \Lambda v + c

There is one matrix per point and state, none larger than ``max_active``. They are factorized entry by entry, with every
operation over all of them at once, which is far faster than a batched library call.

Legend: ``N`` points, ``D`` features, ``H`` components, ``C`` candidates, ``J`` sets of one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.dictionary._prosper.states import States

__all__ = ["Lower", "SlabStates", "gram", "product", "slab_states"]

Lower = list[list[Tensor]]
"""The lower triangle of a matrix of every set and point: entry ``[i][j]`` of all of them, ``j <= i``."""


@dataclass(frozen=True)
class SlabStates:
    r"""All states with the same number of active units.

    Attributes
    ----------
    active : list of Tensor of shape (sets, points) or (sets, 1)
        The components of every set, a tensor a member.
    quadratic_JN : Tensor of shape (sets, points)
        :math:`-2 \log p(y \mid s)`, without :math:`c`.
    mean : list of Tensor
        :math:`\mu_a`.
    shift : list of Tensor of shape (sets, points)
        :math:`\kappa - \mu_a`.
    covariance : Lower
        :math:`\Lambda`.
    prior_precision : Lower
        :math:`\Psi_{aa}^{-1}`.
    """

    active: list[Tensor]
    quadratic_JN: Float[Tensor, "sets points"]
    mean: list[Tensor]
    shift: list[Tensor]
    covariance: Lower
    prior_precision: Lower


def slab_states(
    white_ND: Float[Tensor, "points features"],
    white_HD: Float[Tensor, "components features"],
    mean_H: Float[Tensor, "components"],
    covariance_HH: Float[Tensor, "components components"],
    candidates_NC: Int[Tensor, "points candidates"],
    states: States,
) -> Iterator[SlabStates]:
    """Yield the states of one active unit, then those of two candidates, and so on.

    Parameters
    ----------
    white_ND, white_HD : Tensor
        Points and components, whitened by the noise.
    mean_H, covariance_HH : Tensor
        Of the slab; the covariance positive definite.
    candidates_NC : Tensor of shape (points, candidates)
        Every point's candidates; not looked at for the states of one unit.
    states : States
        The truncation.
    """
    match_HN = white_HD @ white_ND.T
    gram_HH = white_HD @ white_HD.T
    square_N = white_ND.square().sum(1)
    points_N = torch.arange(len(white_ND), device=white_ND.device)
    every_H1 = torch.arange(len(white_HD), device=white_ND.device)[:, None]
    for places_CN, members in [(every_H1, every_H1), *((candidates_NC.T, members) for members in states.members)]:
        active = [places_CN[member_J] for member_J in members.T]
        size = range(len(active))
        mean = [mean_H[component] for component in active]
        match = [match_HN[component, points_N] for component in active]
        blocks = [[gram_HH[active[i], active[j]] for j in size] for i in size]
        residual = [match[i] - sum(blocks[i][j] * mean[j] for j in size) for i in size]
        prior_factor, prior_log = _inverse_factor(
            [[covariance_HH[active[i], active[j]] for j in range(i + 1)] for i in size]
        )
        prior_precision = gram(prior_factor)
        factor, log_determinant = _inverse_factor(
            [[blocks[i][j] + prior_precision[i][j] for j in range(i + 1)] for i in size]
        )
        explained = sum(sum(factor[i][j] * residual[j] for j in range(i + 1)) ** 2 for i in size)
        length = square_N - sum(mean[i] * (match[i] + residual[i]) for i in size)
        covariance = gram(factor)
        yield SlabStates(
            active,
            length - explained + log_determinant + prior_log,
            mean,
            product(covariance, residual),
            covariance,
            prior_precision,
        )


def gram(factor: Lower) -> Lower:
    """The lower triangle of the transpose of a lower triangular matrix times itself."""
    size = len(factor)
    return [
        [torch.stack([factor[k][i] * factor[k][j] for k in range(i, size)]).sum(0) for j in range(i + 1)]
        for i in range(size)
    ]


def product(symmetric: Lower, vector: list[Tensor]) -> list[Tensor]:
    """A symmetric matrix, given by its lower triangle, times a vector."""
    size = range(len(vector))
    return [torch.stack([symmetric[max(i, j)][min(i, j)] * vector[j] for j in size]).sum(0) for i in size]


def _inverse_factor(lower: Lower) -> tuple[Lower, Tensor]:
    """The inverse of the Cholesky factor of positive definite matrices, and the log of their determinants."""
    size = len(lower)
    factor: Lower = [[] for _ in range(size)]
    inverse: Lower = [[] for _ in range(size)]
    for i in range(size):
        for j in range(i):
            factor[i].append((lower[i][j] - sum(factor[i][k] * factor[j][k] for k in range(j))) / factor[j][j])
        factor[i].append((lower[i][i] - sum(factor[i][k] ** 2 for k in range(i))).clamp(min=1e-300).sqrt())
        for j in range(i):
            inverse[i].append(-sum(factor[i][k] * inverse[k][j] for k in range(j, i)) / factor[i][i])
        inverse[i].append(1 / factor[i][i])
    return inverse, 2 * torch.stack([factor[i][i].log() for i in range(size)]).sum(0)
