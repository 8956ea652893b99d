r"""The solver: majorise the label's loss by a quadratic, minimise it exactly under the rank, extrapolate, repeat.

Stacked, the classifier and the reconstruction are one matrix :math:`[A, B]` of rank :math:`r` in which the objective is
convex. With a curvature of its own for each block, :math:`L_A` for :math:`A` and :math:`2\xi` for :math:`B`, the
unconstrained step lands on :math:`B = X` and on :math:`A^+ = A - \nabla_A / L_A`, and the best matrix of rank
:math:`r` has for its column space the :math:`r` leading eigenvectors :math:`U` of

.. math:: M = 2\xi X X^\top + L_A A^+ A^{+\top}

(columns of :math:`X` are samples), so :math:`A = U U^\top A^+` and :math:`B = U U^\top X`, which is never formed. No
step raises the objective. Gradient steps of one length for both blocks, as the paper takes them, move :math:`B` by
:math:`2\xi/L_A` of its way only.

Legend: see :mod:`weightsmith.dictionary._supervised.problem`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.statistics import all_reduce_sum
from weightsmith.dictionary._supervised.problem import Problem, Solution, coordinates

__all__ = ["leading_subspace", "majorise_feature", "majorise_filter"]

PATIENCE = 10
"""Steps over which the mean relative decrease is taken: a single extrapolated step may gain little by chance."""

SMALL = 32
"""Up to this size all eigenvectors are found as fast as a few are improved."""

ROUNDING = 1e-9
"""A direction of which less than this share is new adds nothing but rounding errors."""

DEPENDENT = 1e-5
"""Singular value of directions of length one below which they are taken for linearly dependent."""


class _State(NamedTuple):
    """A point: the classifier's block, the covariates' coefficients, the subspace, the logits, the objective."""

    a: Tensor
    gamma_ZK: Tensor
    basis: Tensor
    logit_NK: Tensor
    value: float


def majorise_filter(problem: Problem, rank: int, *, max_iter: int = 1000, tol: float = 1e-7) -> Solution:
    """Solve the filter model, in which the label is a function of the atoms' inner products with the features.

    Parameters
    ----------
    problem : Problem
        Data and hyper-parameters.
    rank : int
        Atoms, >= 1; as many as the data have directions if those are fewer.
    max_iter : int, default: 1000
        Steps at most.
    tol : float, default: 1e-7
        Relative decrease per step, taken over ten steps, below which to stop.

    Returns
    -------
    Solution
        With orthonormal atoms.
    """
    axes = coordinates(problem.rows, problem.weight_N, rank, shared=problem.shared)
    total = problem.weight_N @ problem.rows.squares()
    all_reduce_sum(total)
    slope_A, slope_gamma = _filter_curvatures(problem, axes.norm, axes.transposed_times)

    def state(a_DK: Tensor, gamma_ZK: Tensor, basis_DR: Tensor) -> _State:
        logit_NK = axes.times(a_DK) + problem.z_NZ @ gamma_ZK
        loss = problem.loss(logit_NK)
        all_reduce_sum(loss)
        kept = (basis_DR * axes.gram_times(basis_DR)).sum()
        penalty = a_DK.square().sum() + gamma_ZK.square().sum()
        value = loss + problem.xi * (total - kept) + problem.nu * penalty
        return _State(a_DK, gamma_ZK, basis_DR, logit_NK, value.item())

    def step(now: _State, before: _State, momentum: float) -> _State:
        a_DK, gamma_ZK, logit_NK = _extrapolate(now, before, momentum)
        residual_NK = problem.residual(logit_NK)
        slope_ZK = problem.z_NZ.T @ residual_NK
        all_reduce_sum(slope_ZK)
        a_DK = a_DK - (axes.transposed_times(residual_NK) + 2 * problem.nu * a_DK) / slope_A
        gamma_ZK = gamma_ZK - (slope_ZK + 2 * problem.nu * gamma_ZK) / slope_gamma

        def majoriser(columns: Tensor) -> Tensor:
            return 2 * problem.xi * axes.gram_times(columns) + slope_A * (a_DK @ (a_DK.T @ columns))

        basis_DR = leading_subspace(majoriser, now.basis, a_DK, before.basis)
        return state(basis_DR @ (basis_DR.T @ a_DK), gamma_ZK, basis_DR)

    gamma_ZK = problem.start()
    first = state(gamma_ZK.new_zeros(axes.size, gamma_ZK.shape[1]), gamma_ZK, axes.leading_DR)
    last, values, converged = _accelerate(first, step, max_iter, tol)
    kept = (last.basis * axes.gram_times(last.basis)).sum()
    return Solution(
        atoms_PR=axes.lift(last.basis),
        beta_RK=last.basis.T @ last.a,
        gamma_ZK=last.gamma_ZK,
        squared_error=max((total - kept).item(), 0.0),
        values=values,
        converged=converged,
    )


def majorise_feature(problem: Problem, rank: int, *, max_iter: int = 1000, tol: float = 1e-7) -> Solution:
    """Solve the feature model, in which the label is a function of the codes.

    The codes are free, not a function of the features: the rank is that of :math:`[A, B]` with samples as rows, and
    its column space lies in the samples' space.

    Parameters
    ----------
    problem : Problem
        Data and hyper-parameters.
    rank : int
        Atoms, >= 1; as many as the data have directions if those are fewer.
    max_iter : int, default: 1000
        Steps at most.
    tol : float, default: 1e-7
        Relative decrease per step, taken over ten steps, below which to stop.

    Returns
    -------
    Solution
        With orthonormal atoms; ``beta`` is for least-squares codes.
    """
    rows, root_N1 = problem.rows, problem.weight_N.sqrt()[:, None]
    total = problem.weight_N @ rows.squares()
    # apart from the covariates', one sample's curvature is its label's weight: no bound over all samples is needed
    ratio = problem.largest_class_weight
    slope_A = 2 * problem.nu + 2 * problem.curvature * ratio
    gram_ZZ = problem.z_NZ.T @ (problem.weight_N[:, None] * problem.z_NZ)
    slope_gamma = 2 * problem.nu + 2 * problem.curvature * ratio * torch.linalg.matrix_norm(gram_ZZ, 2).item()

    def scaled_gram(columns: Tensor) -> Tensor:
        return root_N1 * rows.times(rows.transposed_times(root_N1 * columns))

    def state(a_NK: Tensor, gamma_ZK: Tensor, basis_NR: Tensor) -> _State:
        logit_NK = a_NK + problem.z_NZ @ gamma_ZK
        kept = rows.transposed_times(root_N1 * basis_NR).square().sum()
        penalty = problem.weight_N @ a_NK.square().sum(1) + gamma_ZK.square().sum()
        value = problem.loss(logit_NK) + problem.xi * (total - kept) + problem.nu * penalty
        return _State(a_NK, gamma_ZK, basis_NR, logit_NK, value.item())

    def step(now: _State, before: _State, momentum: float) -> _State:
        a_NK, gamma_ZK, logit_NK = _extrapolate(now, before, momentum)
        residual_NK = problem.residual(logit_NK)
        # per unit of weight, so that a sample of weight two moves as two samples do
        slope_NK = residual_NK / problem.weight_N.where(problem.weight_N > 0, 1)[:, None] + 2 * problem.nu * a_NK
        a_NK = a_NK - slope_NK / slope_A
        gamma_ZK = gamma_ZK - (problem.z_NZ.T @ residual_NK + 2 * problem.nu * gamma_ZK) / slope_gamma
        scaled_NK = root_N1 * a_NK

        def majoriser(columns: Tensor) -> Tensor:
            return 2 * problem.xi * scaled_gram(columns) + slope_A * (scaled_NK @ (scaled_NK.T @ columns))

        basis_NR = leading_subspace(majoriser, now.basis, scaled_NK, before.basis)
        projected_NK = basis_NR @ (basis_NR.T @ scaled_NK)
        return state(projected_NK / root_N1.where(root_N1 > 0, 1), gamma_ZK, basis_NR)

    axes = coordinates(rows, problem.weight_N, rank)
    codes_NR = root_N1 * axes.times(axes.leading_DR)
    gamma_ZK = problem.start()
    first = state(torch.zeros_like(problem.y_NK), gamma_ZK, torch.linalg.qr(codes_NR).Q)
    last, values, converged = _accelerate(first, step, max_iter, tol)
    dictionary_PR = rows.transposed_times(root_N1 * last.basis)
    # the same dictionary with orthonormal atoms, its codes turned and scaled to match
    atoms_PR, size_R, turn_RR = torch.linalg.svd(dictionary_PR, full_matrices=False)
    inverse_R = (size_R > 1e-10 * size_R[0]) / size_R.clamp(min=torch.finfo(torch.float64).tiny)
    beta_RK = inverse_R[:, None] * (turn_RR @ (last.basis.T @ (root_N1 * last.a)))
    squared_error = (total - dictionary_PR.square().sum()).clamp(min=0).item()
    return Solution(atoms_PR, beta_RK, last.gamma_ZK, squared_error, values, converged)


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


def _filter_curvatures(
    problem: Problem, norm: float, transposed_times: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    r"""Curvatures of the classifier's block and of the covariates' that together majorise the loss.

    From the norms of the blocks of :math:`[X; Z'] [X; Z']^\top`: one curvature for both, as in the paper's bound, would
    make the features' block wait for covariates of another scale.
    """
    weighted_NZ = problem.weight_N[:, None] * problem.z_NZ
    gram_ZZ, cross_DZ = problem.z_NZ.T @ weighted_NZ, transposed_times(weighted_NZ)
    all_reduce_sum(gram_ZZ)
    own = torch.linalg.matrix_norm(gram_ZZ, 2).item()
    coupling = torch.linalg.matrix_norm(cross_DZ, 2).item() / math.sqrt(max(norm * own, 1e-300))
    scale = problem.curvature * problem.largest_class_weight * (1 + min(coupling, 1.0))
    smallest = torch.finfo(torch.float64).tiny ** 0.5
    return max(2 * problem.nu + scale * norm, smallest), 2 * problem.nu + scale * own


def _extrapolate(now: _State, before: _State, momentum: float) -> tuple[Tensor, Tensor, Tensor]:
    return (
        now.a + momentum * (now.a - before.a),
        now.gamma_ZK + momentum * (now.gamma_ZK - before.gamma_ZK),
        now.logit_NK + momentum * (now.logit_NK - before.logit_NK),
    )


def _accelerate(
    first: _State, step: Callable[[_State, _State, float], _State], max_iter: int, tol: float
) -> tuple[_State, list[float], bool]:
    """Nesterov's extrapolation, begun anew by a plain step whenever the objective would rise."""
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
