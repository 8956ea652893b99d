r"""The paper's solver: gradient steps of one length on the lifted problem, each projected onto the matrices of rank r.

.. math:: \Theta \leftarrow \Pi_r(\Theta - \tau \nabla_\Theta F), \qquad \Gamma \leftarrow \Gamma - \tau \nabla_\Gamma F

with :math:`\Theta = [A, B]`. With :math:`\tau \le 1/L` no step raises the objective. The same problem is solved in far
fewer and cheaper steps by :mod:`~weightsmith.dictionary._supervised.majorize`.

Legend: see :mod:`weightsmith.dictionary._supervised.lift`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.dictionary._supervised.lift import Lift, lift_of
from weightsmith.dictionary._supervised.problem import Model, Problem, Solution

__all__ = ["Point", "balanced_factors", "gradient", "objective", "project_rank", "projected_gradient", "smoothness"]


class Point(NamedTuple):
    """A point of the lifted problem, or its gradient: the classifier's block, the reconstruction, the covariates'."""

    a_MK: Float[Tensor, "M K"]
    b_MC: Float[Tensor, "M C"]
    gamma_ZK: Float[Tensor, "Z K"]


def projected_gradient(
    problem: Problem, rank: int, *, model: Model = "filter", max_iter: int = 1000, tol: float = 1e-7
) -> Solution:
    """Solve either model by low-rank projected gradient descent with the step 1/L.

    Parameters
    ----------
    problem, rank, model, max_iter, tol
        As for :func:`~weightsmith.dictionary._supervised.majorize.majorize`; the data are dense.

    Returns
    -------
    Solution
        With balanced factors, see :func:`balanced_factors`.
    """
    lift, target_MC, gamma_ZK = lift_of(problem, model), target(problem, model), problem.start()
    point = project_rank(Point(gamma_ZK.new_zeros(lift.size, gamma_ZK.shape[1]), target_MC, gamma_ZK), rank)
    length = 1 / smoothness(problem, model)
    values = [objective(problem, lift, target_MC, point)]
    converged = False
    for _ in range(max_iter):
        slope = gradient(problem, lift, target_MC, point)
        moved = Point(*(value - length * change for value, change in zip(point, slope, strict=True)))
        point = project_rank(moved, rank)
        values.append(objective(problem, lift, target_MC, point))
        converged = values[-2] - values[-1] <= tol * abs(values[-1])
        if converged:
            break
    atoms_PR, beta_RK, _ = balanced_factors(point, rank, model)
    squared_error = (target_MC - point.b_MC).square().sum().item()
    return Solution(atoms_PR, beta_RK, point.gamma_ZK, squared_error, values, converged)


def target(problem: Problem, model: Model) -> Float[Tensor, "M C"]:
    """Return :math:`T` of dense data."""
    weighted_NP = problem.weight_N.sqrt()[:, None] * problem.rows.matrix_NP.double()
    return weighted_NP.T if model == "filter" else weighted_NP


def objective(problem: Problem, lift: Lift, target_MC: Float[Tensor, "M C"], point: Point) -> float:
    """Return the objective at a point."""
    error = (target_MC - point.b_MC).square().sum()
    penalty = point.a_MK.square().sum() + point.gamma_ZK.square().sum()
    loss = problem.loss(lift.times(point.a_MK) + problem.z_NZ @ point.gamma_ZK)
    return (loss + problem.xi * error + problem.nu * penalty).item()


def gradient(problem: Problem, lift: Lift, target_MC: Float[Tensor, "M C"], point: Point) -> Point:
    """Return the gradient of the objective at a point, before any projection."""
    residual_NK = problem.residual(lift.times(point.a_MK) + problem.z_NZ @ point.gamma_ZK)
    return Point(
        lift.transposed_times(residual_NK) + 2 * problem.nu * point.a_MK,
        2 * problem.xi * (point.b_MC - target_MC),
        problem.z_NZ.T @ residual_NK + 2 * problem.nu * point.gamma_ZK,
    )


def smoothness(problem: Problem, model: Model) -> float:
    """Return the Lipschitz constant L of the gradient."""
    root_N1 = problem.label_weight_N.sqrt()[:, None]
    if model == "filter":
        stacked = torch.cat([problem.rows.matrix_NP.double(), problem.z_NZ], dim=1)
        slope = torch.linalg.matrix_norm(root_N1 * stacked, 2).square().item()
    else:
        largest = torch.linalg.matrix_norm(root_N1 * problem.z_NZ, 2).square()
        slope = problem.largest_class_weight + largest.item()
    return max(2 * problem.xi, 2 * problem.nu + problem.curvature * slope)


def project_rank(point: Point, rank: int) -> Point:
    """Return the nearest point of rank r."""
    left_MR, right_RC = _factors(point, rank)
    best_MC = left_MR @ right_RC
    classes = point.a_MK.shape[1]
    return Point(best_MC[:, :classes], best_MC[:, classes:], point.gamma_ZK)


def balanced_factors(point: Point, rank: int, model: Model) -> tuple[Tensor, Tensor, Tensor]:
    """Split a point of rank r into dictionary, classifier and codes, the dictionary with Frobenius norm 1.

    Returns
    -------
    atoms_PR, beta_RK, codes_RN : tuple of Tensor
        ``atoms @ codes`` is the reconstruction; ``atoms @ beta`` (filter) or ``codes.T @ beta`` (feature) is the
        classifier's block.

    Examples
    --------
    >>> point = Point(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(1, 1))
    >>> atoms, beta, codes = balanced_factors(point, 1, "filter")
    >>> atoms @ beta
    tensor([[2.0000],
            [0.0000]])
    """
    left_MR, right_RC = _factors(point, rank)
    classes = point.a_MK.shape[1]
    beta_RK, right_RC = right_RC[:, :classes], right_RC[:, classes:]
    own = left_MR if model == "filter" else right_RC
    norm = own.norm() if bool(own.any()) else own.new_ones(())  # data of zeros leave nothing to scale by
    if model == "filter":
        return left_MR / norm, norm * beta_RK, norm * right_RC
    return right_RC.T / norm, beta_RK / norm, norm * left_MR.T


def _factors(point: Point, rank: int) -> tuple[Float[Tensor, "M R"], Float[Tensor, "R _"]]:
    """Balanced factors of the best matrix of rank r."""
    left_MS, size_S, right_SC = torch.linalg.svd(torch.cat([point.a_MK, point.b_MC], dim=1), full_matrices=False)
    root_R = size_S[:rank].sqrt()
    return left_MS[:, :rank] * root_R, root_R[:, None] * right_SC[:rank]
