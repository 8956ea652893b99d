r"""Predicting with the feature model: which label, with its best code, explains a sample at the smallest cost.

.. math:: E(x, c) = \min_h \; \xi \lVert x - W h \rVert^2 + \ell(c, \beta^\top h + \Gamma^\top z)

Legend: see :mod:`weightsmith.dictionary._supervised.problem`. ``C`` all classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from weightsmith.dictionary._supervised.problem import label_loss, probabilities, probability_slopes

__all__ = ["label_energies"]

NEWTON_STEPS = 50
"""Most steps for a code."""

HALVINGS = 30
"""Most halvings of a step."""

ROUNDING = 1e-12
"""Relative change of a cost below which it is rounding."""


def label_energies(
    target_NR: Float[Tensor, "N R"],
    gram_RR: Float[Tensor, "R R"],
    beta_RK: Float[Tensor, "R K"],
    offset_NK: Float[Tensor, "N K"],
    *,
    xi: float,
) -> Float[Tensor, "N C"]:
    r"""Return the cost of every label for every sample, less :math:`\xi \lVert x \rVert^2`, by Newton's method.

    Parameters
    ----------
    target_NR : Tensor of shape (samples, rank)
        Inner products of samples and atoms.
    gram_RR : Tensor of shape (rank, rank)
        Inner products of atoms; not singular.
    beta_RK : Tensor of shape (rank, classes - 1)
        The classifier on the codes.
    offset_NK : Tensor of shape (samples, classes - 1)
        What intercept and covariates add to the logits.
    xi : float
        Weight of the reconstruction, > 0.

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> label_energies(0 * one, one, 0 * one, 0 * one, xi=1.0)
    tensor([[0.6931, 0.6931]])
    """
    classes = beta_RK.shape[1] + 1
    codes_NR = torch.linalg.solve(gram_RR, target_NR.T).T
    costs = []
    for label in range(classes):
        y_NK = functional.one_hot(torch.full((len(target_NR),), label), classes)[:, 1:].to(target_NR)
        costs.append(_best_cost(codes_NR, target_NR, gram_RR, beta_RK, offset_NK, y_NK, xi))
    return torch.stack(costs, dim=1)


def _best_cost(
    codes_NR: Tensor,
    target_NR: Tensor,
    gram_RR: Tensor,
    beta_RK: Tensor,
    offset_NK: Tensor,
    y_NK: Tensor,
    xi: float,
) -> Tensor:
    def cost(codes_NR: Tensor) -> Tensor:
        fit_N = (codes_NR * (codes_NR @ gram_RR - 2 * target_NR)).sum(1)
        return xi * fit_N + label_loss(codes_NR @ beta_RK + offset_NK, y_NK)

    value_N = cost(codes_NR)
    for _ in range(NEWTON_STEPS):
        p_NK = probabilities(codes_NR @ beta_RK + offset_NK)
        gradient_NR = 2 * xi * (codes_NR @ gram_RR - target_NR) + (p_NK - y_NK) @ beta_RK.T
        hessian_NRR = 2 * xi * gram_RR + beta_RK @ probability_slopes(p_NK) @ beta_RK.T
        move_NR = torch.linalg.solve(hessian_NRR, gradient_NR)
        length_N = torch.ones_like(value_N)
        for _ in range(HALVINGS):
            trial_N = cost(codes_NR - length_N[:, None] * move_NR)
            worse_N = trial_N > value_N + ROUNDING * (1 + value_N.abs())
            if not bool(worse_N.any()):
                break
            length_N = length_N.where(~worse_N, length_N / 2)
        length_N = length_N.where(~worse_N, 0.0)
        codes_NR = codes_NR - length_N[:, None] * move_NR
        before_N, value_N = value_N, torch.minimum(value_N, trial_N)
        if bool((before_N - value_N <= ROUNDING * (1 + value_N.abs())).all()):
            break
    return value_N
