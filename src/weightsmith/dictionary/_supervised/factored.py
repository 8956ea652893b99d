r"""The solver for constrained factors: block coordinate descent on dictionary, codes and classifier.

Dictionaries and codes that must not be negative (topics, parts) are no single low-rank matrix, so the lifted problem of
:mod:`~weightsmith.dictionary._supervised.lift` is solved in its factors,

.. math:: A = U \beta, \qquad B = U V^\top

where the filter model has the dictionary on the left and the codes on the right, and the feature model the reverse. The
left factor takes projected gradient steps of length :math:`1/L`, the right one solves a least-squares problem, and the
classifier a logistic regression. The objective never rises.

Legend: see :mod:`weightsmith.dictionary._supervised.lift`. ``F`` inputs of a logistic regression, ``E`` all its
coefficients (or any number of rows).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.dictionary._supervised.lift import lift_and_start, lift_of
from weightsmith.dictionary._supervised.problem import Model, Problem, Solution, probabilities, probability_slopes

__all__ = ["descend", "least_squares_codes", "logistic_regression"]

INNER_STEPS = 5
"""Projected gradient steps on the left factor before the right one."""

SWEEPS = 2
"""Rounds over the atoms that continue non-negative least squares from the round before."""

NEWTON_STEPS = 50
"""Most steps of a logistic regression."""

TINY = 1e-300
"""Keeps a quotient of zeros from being NaN."""


def descend(
    problem: Problem,
    rank: int,
    *,
    model: Model = "filter",
    nonnegative: bool = False,
    max_iter: int = 1000,
    tol: float = 1e-7,
    generator: torch.Generator | None = None,
) -> Solution:
    """Solve either model by block coordinate descent.

    Parameters
    ----------
    problem, rank, model, max_iter, tol
        As for :func:`~weightsmith.dictionary._supervised.majorize.majorize`, with ``tol`` per round over the blocks.
    nonnegative : bool, default: False
        Whether dictionary and codes must not be negative.
    generator : torch.Generator, optional
        Seed of the first dictionary.

    Returns
    -------
    Solution
        With a dictionary of Frobenius norm 1.
    """
    lift, z_NZ, xi, nu = lift_of(problem, model), problem.z_NZ, problem.xi, problem.nu
    total = problem.weight_N @ problem.rows.squares()
    curvature = 2 * nu + problem.curvature * problem.largest_class_weight * lift_and_start(problem, 1, model)[2]

    def fit(target_ER: Tensor, other_ER: Tensor, start_ER: Tensor) -> Tensor:
        return least_squares_codes(target_ER, other_ER.T @ other_ER, start_NR=start_ER if nonnegative else None)

    def classify(left_MR: Tensor, coefficients_FK: Tensor) -> tuple[Tensor, float]:
        inputs_NF = torch.cat([lift.times(left_MR), z_NZ], dim=1)
        penalty_FF = torch.block_diag(left_MR.T @ left_MR, torch.eye(z_NZ.shape[1]).to(z_NZ))
        coefficients_FK = logistic_regression(problem, inputs_NF, penalty_FF, coefficients_FK)
        return coefficients_FK, _classifier_value(problem, inputs_NF, penalty_FF, coefficients_FK)

    def squared_error(left_MR: Tensor, right_CR: Tensor, pull_MR: Tensor) -> float:
        square = ((right_CR.T @ right_CR) * (left_MR.T @ left_MR)).sum()
        return (total - 2 * (pull_MR * left_MR).sum() + square).clamp(min=0).item()

    atoms_PR = torch.rand(problem.rows.shape[1], rank, dtype=torch.float64, generator=generator)
    atoms_PR = (atoms_PR / atoms_PR.norm()).to(problem.rows.device)
    to_codes = lift.transposed_target_times if model == "filter" else lift.target_times
    target_ER = to_codes(atoms_PR)
    codes_ER = fit(target_ER, atoms_PR, torch.zeros_like(target_ER))
    left_MR, right_CR = (atoms_PR, codes_ER) if model == "filter" else (codes_ER, atoms_PR)
    pull_MR = lift.target_times(right_CR)
    coefficients_FK = torch.cat([problem.start().new_zeros(rank, problem.y_NK.shape[1]), problem.start()])
    coefficients_FK, value = classify(left_MR, coefficients_FK)
    values, converged = [value + xi * squared_error(left_MR, right_CR, pull_MR)], False
    for _ in range(max_iter):
        beta_RK, offset_NK = coefficients_FK[:rank], z_NZ @ coefficients_FK[rank:]
        gram_RR = right_CR.T @ right_CR
        slope = 2 * xi * _norm(gram_RR) + curvature * _norm(beta_RK) ** 2
        for _ in range(INNER_STEPS):
            residual_NK = problem.residual(lift.times(left_MR) @ beta_RK + offset_NK)
            label_MK = lift.transposed_times(residual_NK) + 2 * nu * left_MR @ beta_RK
            gradient_MR = 2 * xi * (left_MR @ gram_RR - pull_MR) + label_MK @ beta_RK.T
            left_MR = left_MR - gradient_MR / max(slope, TINY)
            if nonnegative:
                left_MR = left_MR.clamp(min=0)
        right_CR = fit(lift.transposed_target_times(left_MR), left_MR, right_CR)
        # the dictionary gets norm 1, with the same reconstruction and the same logits
        scale = left_MR.norm().clamp(min=TINY) if model == "filter" else 1 / right_CR.norm().clamp(min=TINY)
        left_MR, right_CR = left_MR / scale, right_CR * scale
        coefficients_FK = torch.cat([coefficients_FK[:rank] * scale, coefficients_FK[rank:]])
        pull_MR = lift.target_times(right_CR)
        coefficients_FK, value = classify(left_MR, coefficients_FK)
        values.append(value + xi * squared_error(left_MR, right_CR, pull_MR))
        converged = values[-2] - values[-1] <= tol * abs(values[-1])
        if converged:
            break
    return Solution(
        atoms_PR=left_MR if model == "filter" else right_CR,
        beta_RK=coefficients_FK[:rank],
        gamma_ZK=coefficients_FK[rank:],
        squared_error=squared_error(left_MR, right_CR, pull_MR),
        values=values,
        converged=converged,
    )


def least_squares_codes(
    target_NR: Float[Tensor, "N R"],
    gram_RR: Float[Tensor, "R R"],
    *,
    start_NR: Float[Tensor, "N R"] | None = None,
    sweeps: int = SWEEPS,
) -> Float[Tensor, "N R"]:
    """Return the codes of least squared error; with a start, non-negative ones that improve on it atom by atom.

    Parameters
    ----------
    target_NR : Tensor of shape (samples, rank)
        Inner products of samples and atoms.
    gram_RR : Tensor of shape (rank, rank)
        Inner products of atoms.
    start_NR : Tensor of shape (samples, rank), optional
        Non-negative codes; without them the codes may be negative.
    sweeps : int, default: 2
        Most rounds over the atoms.

    Examples
    --------
    >>> target, gram = torch.tensor([[2.0, -1.0]]), torch.eye(2)
    >>> least_squares_codes(target, gram)
    tensor([[ 2., -1.]])
    >>> least_squares_codes(target, gram, start_NR=torch.zeros(1, 2))
    tensor([[2., 0.]])
    """
    if start_NR is None:
        return target_NR @ torch.linalg.pinv(gram_RR, hermitian=True)
    codes_NR = start_NR.clone()
    for _ in range(sweeps):
        before_NR = codes_NR.clone()
        for atom in range(len(gram_RR)):
            if gram_RR[atom, atom] > 0:
                rest_N = target_NR[:, atom] - codes_NR @ gram_RR[atom] + codes_NR[:, atom] * gram_RR[atom, atom]
                codes_NR[:, atom] = (rest_N / gram_RR[atom, atom]).clamp(min=0)
        if torch.equal(codes_NR, before_NR):
            break
    return codes_NR


def logistic_regression(
    problem: Problem,
    inputs_NF: Float[Tensor, "N F"],
    penalty_FF: Float[Tensor, "F F"],
    start_FK: Float[Tensor, "F K"],
) -> Float[Tensor, "F K"]:
    r"""Minimize the loss of the labels plus :math:`\nu \operatorname{tr}(C^\top P C)` by Newton's method, from a start.

    Parameters
    ----------
    problem : Problem
        Labels, their weights, and the weight of the penalty.
    inputs_NF : Tensor of shape (samples, inputs)
        What the logits are linear in.
    penalty_FF : Tensor of shape (inputs, inputs)
        The quadratic penalty.
    start_FK : Tensor of shape (inputs, classes - 1)
        The first coefficients; the result is never worse.
    """
    now_FK, value = start_FK, _classifier_value(problem, inputs_NF, penalty_FF, start_FK)
    size, classes = start_FK.shape
    curvature_EE = 2 * problem.nu * torch.block_diag(*[penalty_FF] * classes)
    for _ in range(NEWTON_STEPS):
        p_NK = probabilities(inputs_NF @ now_FK)
        residual_NK = problem.label_weight_N[:, None] * (p_NK - problem.y_NK)
        gradient_FK = inputs_NF.T @ residual_NK + 2 * problem.nu * penalty_FF @ now_FK
        slope_NKK = problem.label_weight_N[:, None, None] * probability_slopes(p_NK)
        hessian = torch.einsum("nf,nkl,ng->kflg", inputs_NF, slope_NKK, inputs_NF)
        hessian_EE = hessian.reshape(classes * size, classes * size) + curvature_EE
        # separable classes with nu = 0 leave directions without curvature
        hessian_EE.diagonal().add_(1e-10 * hessian_EE.diagonal().max() + TINY)
        move_FK = torch.linalg.solve(hessian_EE, gradient_FK.T.flatten()).reshape(classes, size).T
        length = 1.0
        while length > 1e-6:
            trial = _classifier_value(problem, inputs_NF, penalty_FF, now_FK - length * move_FK)
            if trial < value:
                break
            length /= 2
        else:
            break
        gain, now_FK, value = value - trial, now_FK - length * move_FK, trial
        if gain <= 1e-12 * abs(value):
            break
    return now_FK


def _classifier_value(problem: Problem, inputs_NF: Tensor, penalty_FF: Tensor, coefficients_FK: Tensor) -> float:
    penalty = (coefficients_FK * (penalty_FF @ coefficients_FK)).sum()
    return (problem.loss(inputs_NF @ coefficients_FK) + problem.nu * penalty).item()


def _norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix, 2).item()
