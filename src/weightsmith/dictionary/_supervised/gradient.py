r"""The paper's solver: gradient steps of one length on the convex lift, each projected onto the matrices of rank r.

.. math:: \Theta \leftarrow \Pi_r(\Theta - \tau \nabla_\Theta F), \qquad \Gamma \leftarrow \Gamma - \tau \nabla_\Gamma F

with :math:`\Theta = [A, B]` (filter model, features as rows) or :math:`\Theta = [A; B]` (feature model, samples as
columns). With :math:`\tau \le 1/L` no step raises the objective. It is kept as the yardstick of
:mod:`weightsmith.dictionary._supervised.majorise`, which has the same objective and takes far fewer and cheaper steps.

Columns of :math:`B`, and the feature model's of :math:`A`, are held times the root of their sample's weight: then a
weight of two acts as the sample twice, and a sample's weight does not shorten the step.

Legend: see :mod:`weightsmith.dictionary._supervised.problem`. ``T`` rows of the lifted matrix, ``C`` its columns.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.dictionary._supervised.problem import Problem, Solution

__all__ = ["Lifted", "balanced_factors", "lifted_gradient", "lifted_objective", "projected_gradient", "smoothness"]

Model = Literal["filter", "feature"]


class Lifted(NamedTuple):
    """A point of the lifted problem, or its gradient.

    Attributes
    ----------
    a : Tensor of shape (features, classes - 1) or (samples, classes - 1)
        The filter model's or the feature model's block of the classifier.
    b_PN : Tensor of shape (features, samples)
        The reconstruction.
    gamma_ZK : Tensor of shape (1 + covariates, classes - 1)
        Coefficients of the covariates.
    """

    a: Tensor
    b_PN: Tensor
    gamma_ZK: Tensor


def projected_gradient(
    problem: Problem, rank: int, *, model: Model = "filter", max_iter: int = 1000, tol: float = 1e-7
) -> Solution:
    """Solve either model by low-rank projected gradient descent with the step 1/L.

    Parameters
    ----------
    problem : Problem
        Data (dense) and hyper-parameters.
    rank : int
        Atoms, 1 to the shorter side of the data.
    model : {"filter", "feature"}, default: "filter"
        What the label is a function of.
    max_iter : int, default: 1000
        Steps at most.
    tol : float, default: 1e-7
        Relative decrease of a step below which to stop.

    Returns
    -------
    Solution
        With balanced factors, see :func:`balanced_factors`.
    """
    x_PN = _samples(problem)
    gamma_ZK = problem.start()
    blocks = (len(x_PN) if model == "filter" else x_PN.shape[1], gamma_ZK.shape[1])
    point = Lifted(gamma_ZK.new_zeros(blocks), torch.zeros_like(x_PN), gamma_ZK)
    point = project_rank(Lifted(point.a, x_PN, gamma_ZK), rank, model)
    step = 1 / smoothness(problem, model)
    values = [lifted_objective(problem, point, model)]
    converged = False
    for _ in range(max_iter):
        slope = lifted_gradient(problem, point, model)
        moved = Lifted(*(value - step * change for value, change in zip(point, slope, strict=True)))
        point = project_rank(moved, rank, model)
        values.append(lifted_objective(problem, point, model))
        converged = values[-2] - values[-1] <= tol * abs(values[-1])
        if converged:
            break
    atoms_PR, beta_RK, _ = balanced_factors(point, rank, model)
    squared_error = (x_PN - point.b_PN).square().sum().item()
    return Solution(atoms_PR, beta_RK, point.gamma_ZK, squared_error, values, converged)


def lifted_objective(problem: Problem, point: Lifted, model: Model) -> float:
    """Return the objective at a point."""
    error = (_samples(problem) - point.b_PN).square().sum()
    penalty = point.a.square().sum() + point.gamma_ZK.square().sum()
    loss = problem.loss(_logits(problem, point, model))
    return (loss + problem.xi * error + problem.nu * penalty).item()


def lifted_gradient(problem: Problem, point: Lifted, model: Model) -> Lifted:
    """Return the gradient of the objective at a point, before any projection."""
    residual_NK = problem.residual(_logits(problem, point, model))
    own = problem.rows.transposed_times(residual_NK) if model == "filter" else residual_NK / _positive_roots(problem)
    return Lifted(
        own + 2 * problem.nu * point.a,
        2 * problem.xi * (point.b_PN - _samples(problem)),
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


def balanced_factors(point: Lifted, rank: int, model: Model) -> tuple[Tensor, Tensor, Tensor]:
    """Split a point of rank r into dictionary, classifier and codes, the dictionary with Frobenius norm 1.

    Returns
    -------
    atoms_PR, beta_RK, codes_RN : tuple of Tensor
        ``atoms @ codes`` is the reconstruction; ``atoms @ beta`` (filter) or ``codes.T @ beta`` (feature) is the
        classifier's block.

    Examples
    --------
    >>> point = Lifted(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(1, 1))
    >>> atoms, beta, codes = balanced_factors(point, 1, "filter")
    >>> atoms @ beta
    tensor([[2.0000],
            [0.0000]])
    """
    left_TS, size_S, right_SC = torch.linalg.svd(_stack(point, model), full_matrices=False)
    root_R = size_S[:rank].sqrt()
    left_TR, right_RC = left_TS[:, :rank] * root_R, root_R[:, None] * right_SC[:rank]
    classes = point.a.shape[1]
    if model == "filter":
        norm = left_TR.norm()
        return left_TR / norm, norm * right_RC[:, :classes], norm * right_RC[:, classes:]
    atoms_PR, beta_KR = left_TR[classes:], left_TR[:classes]
    # no reconstruction at all leaves nothing to scale by
    norm = atoms_PR.norm() if bool(atoms_PR.any()) else atoms_PR.new_ones(())
    return atoms_PR / norm, beta_KR.T / norm, norm * right_RC


def project_rank(point: Lifted, rank: int, model: Model) -> Lifted:
    """Return the nearest point of rank r."""
    left_TS, size_S, right_SC = torch.linalg.svd(_stack(point, model), full_matrices=False)
    best_TC = (left_TS[:, :rank] * size_S[:rank]) @ right_SC[:rank]
    classes = point.a.shape[1]
    if model == "filter":
        return Lifted(best_TC[:, :classes], best_TC[:, classes:], point.gamma_ZK)
    return Lifted(best_TC[:classes].T, best_TC[classes:], point.gamma_ZK)


def _stack(point: Lifted, model: Model) -> Float[Tensor, "T C"]:
    return torch.cat([point.a, point.b_PN], dim=1) if model == "filter" else torch.cat([point.a.T, point.b_PN])


def _logits(problem: Problem, point: Lifted, model: Model) -> Float[Tensor, "N K"]:
    own = problem.rows.times(point.a) if model == "filter" else point.a / _positive_roots(problem)
    return own + problem.z_NZ @ point.gamma_ZK


def _samples(problem: Problem) -> Float[Tensor, "P N"]:
    return problem.rows.matrix_NP.double().T * problem.weight_N.sqrt()


def _positive_roots(problem: Problem) -> Float[Tensor, "N 1"]:
    """Roots of the weights as a column, 1 for samples that count for nothing."""
    return problem.weight_N.where(problem.weight_N > 0, 1).sqrt()[:, None]
