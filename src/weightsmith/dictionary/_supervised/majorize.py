r"""The solver: majorize the label's loss by a quadratic, minimize it exactly under the rank, extrapolate, repeat.

In the lifted problem (:mod:`~weightsmith.dictionary._supervised.lift`) each block has a curvature of its own,
:math:`L_A` for :math:`A` and :math:`2\xi` for :math:`B`. The unconstrained step ends at :math:`B = T` and at
:math:`A^+ = A - \nabla_A / L_A`, and the column space of the best matrix of rank :math:`r` is spanned by the :math:`r`
leading eigenvectors :math:`U` of

.. math:: 2\xi T T^\top + L_A A^+ A^{+\top}

so :math:`A = U U^\top A^+` and :math:`B = U U^\top T`, which is never formed. No step raises the objective. The paper's
gradient steps, of one length for both blocks, move :math:`B` by :math:`2\xi/L_A` of this way only.

Legend: see :mod:`weightsmith.dictionary._supervised.problem`; ``M`` rows of the lifted matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.processes import all_reduce_sum
from weightsmith.dictionary._supervised.lift import Lift, lift_and_start
from weightsmith.dictionary._supervised.problem import Model, Problem, Solution

__all__ = ["leading_subspace", "majorize"]

PATIENCE = 10
"""Steps over which the mean relative decrease is taken: a single extrapolated step may gain little by chance."""

SMALL = 32
"""Up to this size all eigenvectors are found as fast as a few are improved."""

ROUNDING = 1e-9
"""A direction of which less than this share is new adds only rounding errors."""

DEPENDENT = 1e-5
"""Singular value of directions of length one below which they count as linearly dependent."""


class _State(NamedTuple):
    """A point: the classifier's block, the covariates' coefficients, the subspace, the logits, the objective."""

    a_MK: Tensor
    gamma_ZK: Tensor
    basis_MR: Tensor
    logit_NK: Tensor
    value: float


def majorize(
    problem: Problem, rank: int, *, model: Model = "filter", max_iter: int = 1000, tol: float = 1e-7
) -> Solution:
    """Solve either model by accelerated majorize-minimize steps.

    Parameters
    ----------
    problem : Problem
        Data and hyper-parameters.
    rank : int
        Atoms, >= 1; as many as the data have directions if those are fewer.
    model : {"filter", "feature"}, default: "filter"
        What the label is a function of.
    max_iter : int, default: 1000
        Steps at most.
    tol : float, default: 1e-7
        Relative decrease per step, taken over ten steps, below which to stop.

    Returns
    -------
    Solution
        With orthonormal atoms; in the feature model ``beta`` is for least-squares codes.
    """
    lift, leading_MR, norm = lift_and_start(problem, rank, model)
    total = problem.weight_N @ problem.rows.squares()
    all_reduce_sum(total)
    slope_A, slope_gamma = _curvatures(problem, lift, norm)

    def state(a_MK: Tensor, gamma_ZK: Tensor, basis_MR: Tensor) -> _State:
        logit_NK = lift.times(a_MK) + problem.z_NZ @ gamma_ZK
        loss = problem.loss(logit_NK)
        all_reduce_sum(loss)
        penalty = a_MK.square().sum() + gamma_ZK.square().sum()
        value = loss + problem.xi * (total - lift.energy(basis_MR)) + problem.nu * penalty
        return _State(a_MK, gamma_ZK, basis_MR, logit_NK, value.item())

    def step(now: _State, before: _State, momentum: float) -> _State:
        a_MK = now.a_MK + momentum * (now.a_MK - before.a_MK)
        gamma_ZK = now.gamma_ZK + momentum * (now.gamma_ZK - before.gamma_ZK)
        residual_NK = problem.residual(now.logit_NK + momentum * (now.logit_NK - before.logit_NK))
        slope_ZK = problem.z_NZ.T @ residual_NK
        all_reduce_sum(slope_ZK)
        a_MK = a_MK - (lift.transposed_times(residual_NK) + 2 * problem.nu * a_MK) / slope_A
        gamma_ZK = gamma_ZK - (slope_ZK + 2 * problem.nu * gamma_ZK) / slope_gamma

        def majorizer(columns: Tensor) -> Tensor:
            return 2 * problem.xi * lift.gram_times(columns) + slope_A * (a_MK @ (a_MK.T @ columns))

        basis_MR = leading_subspace(majorizer, now.basis_MR, a_MK, before.basis_MR)
        return state(basis_MR @ (basis_MR.T @ a_MK), gamma_ZK, basis_MR)

    gamma_ZK = problem.start()
    first = state(gamma_ZK.new_zeros(lift.size, gamma_ZK.shape[1]), gamma_ZK, leading_MR)
    last, values, converged = _accelerate(first, step, max_iter, tol)
    atoms_PR, beta_RK = lift.factors(last.basis_MR, last.a_MK)
    squared_error = (total - lift.energy(last.basis_MR)).clamp(min=0).item()
    return Solution(atoms_PR, beta_RK, last.gamma_ZK, squared_error, values, converged)


def _accelerate(
    first: _State, step: Callable[[_State, _State, float], _State], max_iter: int, tol: float
) -> tuple[_State, list[float], bool]:
    """Nesterov's extrapolation, restarted by a plain step whenever the objective would rise."""
    before = now = first
    values, age = [first.value], 1.0
    for _ in range(max_iter):
        older = (1 + math.sqrt(1 + 4 * age * age)) / 2
        new = step(now, before, (age - 1) / older)
        if new.value > now.value and age > 1:
            older = 1.0
            new = step(now, now, 0.0)
        if new.value > now.value:  # rounding: the plain step cannot rise
            return now, values, True
        before, now, age = now, new, older
        values.append(now.value)
        if len(values) > PATIENCE and values[-1 - PATIENCE] - now.value <= PATIENCE * tol * abs(now.value):
            return now, values, True
    return now, values, False


def leading_subspace(
    operator: Callable[[Tensor], Tensor],
    basis_DR: Float[Tensor, "D R"],
    *more: Float[Tensor, "D _"],
) -> Float[Tensor, "D R"]:
    """Return leading eigenvectors of a symmetric operator: exactly if it is small, else better ones than a basis.

    The best in the span of the basis, its image and ``more`` (Rayleigh-Ritz): never worse than the basis, and with the
    basis before as one of ``more`` repeated calls converge as LOBPCG does.

    Parameters
    ----------
    operator : callable
        Multiplies columns by a positive semi-definite matrix.
    basis_DR : Tensor of shape (size, rank)
        Orthonormal columns.
    *more : Tensor of shape (size, any)
        Further directions.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    >>> leading_subspace(lambda columns: matrix @ columns, torch.eye(3, 1)).abs().T
    tensor([[0., 1., 0.]])
    """
    size, rank = basis_DR.shape
    width = 2 * rank + sum(columns.shape[1] for columns in more)
    if size <= max(width, SMALL):
        trial = torch.eye(size, dtype=basis_DR.dtype, device=basis_DR.device)
    else:
        trial = torch.cat([basis_DR, _new_directions(basis_DR, torch.cat([operator(basis_DR), *more], dim=1))], dim=1)
    small = trial.T @ operator(trial)
    vectors = torch.linalg.eigh((small + small.T) / 2).eigenvectors
    return trial @ vectors[:, -rank:].flip(1)


def _new_directions(basis_DR: Float[Tensor, "D R"], columns_DM: Float[Tensor, "D M"]) -> Float[Tensor, "D _"]:
    """An orthonormal basis of what columns add to a basis, without what is only rounding."""
    length_M = columns_DM.norm(dim=0)
    for _ in range(2):
        columns_DM = columns_DM - basis_DR @ (basis_DR.T @ columns_DM)
    rest_M = columns_DM.norm(dim=0)
    # the basis before is the basis itself at the start, and the image can lie in the span of the others
    new = rest_M > ROUNDING * length_M
    left_DM, size_M, _ = torch.linalg.svd(columns_DM[:, new] / rest_M[new], full_matrices=False)
    return left_DM[:, size_M > DEPENDENT]


def _curvatures(problem: Problem, lift: Lift, norm: float) -> tuple[float, float]:
    r"""Curvatures of the classifier's block and of the covariates' that together majorize the loss.

    From the norms of the blocks of :math:`[\mathcal L; Z]`: one curvature for both, as in the paper's bound, would make
    the classifier's block wait for covariates of another scale. The weights of the classes enter by their maximum.
    """
    weighted_NZ = problem.weight_N[:, None] * problem.z_NZ
    gram_ZZ, cross_MZ = problem.z_NZ.T @ weighted_NZ, lift.transposed_times(weighted_NZ)
    all_reduce_sum(gram_ZZ)
    own = torch.linalg.matrix_norm(gram_ZZ, 2).item()
    coupling = torch.linalg.matrix_norm(cross_MZ, 2).item() / math.sqrt(max(norm * own, 1e-300))
    scale = problem.curvature * problem.largest_class_weight * (1 + min(coupling, 1.0))
    smallest = torch.finfo(torch.float64).tiny ** 0.5
    return max(2 * problem.nu + scale * norm, smallest), 2 * problem.nu + scale * own
