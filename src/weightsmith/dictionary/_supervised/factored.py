r"""The solver for constrained factors: block coordinate descent on dictionary, codes and classifier.

For dictionaries and codes that must not be negative (topics, parts) the lift to one low-rank matrix is no longer
possible. Each block is minimised, or moved by projected gradient steps of length 1/L, with the others held: the
objective never rises. Both models penalise :math:`\nu(\lVert A \rVert^2 + \lVert \Gamma \rVert^2)` as the other solvers
do, with :math:`A = W\beta` (filter) or :math:`A = H\beta` (feature; codes as rows, each weighted as its sample).

Legend: see :mod:`weightsmith.dictionary._supervised.problem`. ``F`` inputs of a logistic regression, ``E`` its
coefficients in a row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.dictionary._supervised.problem import Problem, Solution, coordinates, probabilities

__all__ = ["descend_feature", "descend_filter", "least_squares_codes", "logistic_regression"]

INNER_STEPS = 5
"""Projected gradient steps on a block before the next block."""

SWEEPS = 2
"""Rounds over the atoms with which non-negative least squares goes on from the round before."""

NEWTON_STEPS = 50
"""Steps at most of a logistic regression."""

TINY = 1e-300
"""Keeps a quotient of zeros from being NaN."""


def descend_filter(
    problem: Problem,
    rank: int,
    *,
    nonnegative: bool = False,
    max_iter: int = 1000,
    tol: float = 1e-7,
    generator: torch.Generator | None = None,
) -> Solution:
    """Solve the filter model, in which the label is a function of the atoms' inner products with the features.

    Parameters
    ----------
    problem : Problem
        Data and hyper-parameters.
    rank : int
        Atoms, >= 1.
    nonnegative : bool, default: False
        Whether dictionary and codes must not be negative.
    max_iter : int, default: 1000
        Rounds over the blocks at most.
    tol : float, default: 1e-7
        Relative decrease of a round below which to stop.
    generator : torch.Generator, optional
        Of the first dictionary.

    Returns
    -------
    Solution
        With a dictionary of Frobenius norm 1.
    """
    rows, z_NZ, weight_N1 = problem.rows, problem.z_NZ, problem.weight_N[:, None]
    atoms_PR, codes_NR = _start(problem, rank, nonnegative, generator)
    total = problem.weight_N @ rows.squares()
    curvature = 2 * problem.nu + (
        problem.curvature * problem.largest_class_weight * coordinates(rows, problem.weight_N, 1).norm
    )

    def classify(atoms_PR: Tensor, coefficients_FK: Tensor) -> tuple[Tensor, float]:
        inputs_NF = torch.cat([rows.times(atoms_PR), z_NZ], dim=1)
        penalty_FF = torch.block_diag(atoms_PR.T @ atoms_PR, torch.eye(z_NZ.shape[1]).to(z_NZ))
        coefficients_FK = logistic_regression(problem, inputs_NF, penalty_FF, coefficients_FK)
        error = _squared_error(problem, atoms_PR, codes_NR, total)
        return coefficients_FK, _classifier_value(problem, inputs_NF, penalty_FF, coefficients_FK) + problem.xi * error

    coefficients_FK = torch.cat([problem.start().new_zeros(rank, problem.y_NK.shape[1]), problem.start()])
    coefficients_FK, value = classify(atoms_PR, coefficients_FK)
    values, converged = [value], False
    for _ in range(max_iter):
        beta_RK, offset_NK = coefficients_FK[:rank], z_NZ @ coefficients_FK[rank:]
        gram_RR, target_PR = codes_NR.T @ (weight_N1 * codes_NR), rows.transposed_times(weight_N1 * codes_NR)
        slope = 2 * problem.xi * _norm(gram_RR) + curvature * _norm(beta_RK) ** 2
        for _ in range(INNER_STEPS):
            residual_NK = problem.residual(rows.times(atoms_PR) @ beta_RK + offset_NK)
            label_PK = rows.transposed_times(residual_NK) + 2 * problem.nu * atoms_PR @ beta_RK
            gradient_PR = 2 * problem.xi * (atoms_PR @ gram_RR - target_PR) + label_PK @ beta_RK.T
            atoms_PR = _allowed(atoms_PR - gradient_PR / max(slope, TINY), nonnegative)
        scale = max(atoms_PR.norm().item(), TINY)
        atoms_PR, codes_NR = atoms_PR / scale, codes_NR * scale
        coefficients_FK = torch.cat([coefficients_FK[:rank] * scale, coefficients_FK[rank:]])
        codes_NR = least_squares_codes(
            rows.times(atoms_PR), atoms_PR.T @ atoms_PR, start_NR=codes_NR if nonnegative else None
        )
        coefficients_FK, value = classify(atoms_PR, coefficients_FK)
        values.append(value)
        converged = values[-2] - value <= tol * abs(value)
        if converged:
            break
    error = _squared_error(problem, atoms_PR, codes_NR, total)
    return Solution(atoms_PR, coefficients_FK[:rank], coefficients_FK[rank:], error, values, converged)


def descend_feature(
    problem: Problem,
    rank: int,
    *,
    nonnegative: bool = False,
    max_iter: int = 1000,
    tol: float = 1e-7,
    generator: torch.Generator | None = None,
) -> Solution:
    """Solve the feature model, in which the label is a function of the codes.

    Parameters
    ----------
    problem : Problem
        Data and hyper-parameters.
    rank : int
        Atoms, >= 1.
    nonnegative : bool, default: False
        Whether dictionary and codes must not be negative.
    max_iter : int, default: 1000
        Rounds over the blocks at most.
    tol : float, default: 1e-7
        Relative decrease of a round below which to stop.
    generator : torch.Generator, optional
        Of the first dictionary.

    Returns
    -------
    Solution
        With a dictionary of Frobenius norm 1.
    """
    rows, z_NZ, weight_N1 = problem.rows, problem.z_NZ, problem.weight_N[:, None]
    atoms_PR, codes_NR = _start(problem, rank, nonnegative, generator)
    total = problem.weight_N @ rows.squares()
    curvature = 2 * problem.nu + problem.curvature * problem.largest_class_weight

    def classify(codes_NR: Tensor, coefficients_FK: Tensor) -> tuple[Tensor, float]:
        inputs_NF = torch.cat([codes_NR, z_NZ], dim=1)
        penalty_FF = torch.block_diag(codes_NR.T @ (weight_N1 * codes_NR), torch.eye(z_NZ.shape[1]).to(z_NZ))
        coefficients_FK = logistic_regression(problem, inputs_NF, penalty_FF, coefficients_FK)
        error = _squared_error(problem, atoms_PR, codes_NR, total)
        return coefficients_FK, _classifier_value(problem, inputs_NF, penalty_FF, coefficients_FK) + problem.xi * error

    coefficients_FK = torch.cat([problem.start().new_zeros(rank, problem.y_NK.shape[1]), problem.start()])
    coefficients_FK, value = classify(codes_NR, coefficients_FK)
    values, converged = [value], False
    for _ in range(max_iter):
        beta_RK, offset_NK = coefficients_FK[:rank], z_NZ @ coefficients_FK[rank:]
        gram_RR, target_NR = atoms_PR.T @ atoms_PR, rows.times(atoms_PR)
        slope = 2 * problem.xi * _norm(gram_RR) + curvature * _norm(beta_RK) ** 2
        for _ in range(INNER_STEPS):
            logit_NK = codes_NR @ beta_RK
            label_NK = problem.residual(logit_NK + offset_NK) / weight_N1.where(weight_N1 > 0, 1)
            label_NK += 2 * problem.nu * logit_NK
            gradient_NR = 2 * problem.xi * (codes_NR @ gram_RR - target_NR) + label_NK @ beta_RK.T
            codes_NR = _allowed(codes_NR - gradient_NR / max(slope, TINY), nonnegative)
        # with codes and samples in each other's place, the dictionary too is a least-squares problem
        gram_RR, target_PR = codes_NR.T @ (weight_N1 * codes_NR), rows.transposed_times(weight_N1 * codes_NR)
        atoms_PR = least_squares_codes(target_PR, gram_RR, start_NR=atoms_PR if nonnegative else None)
        scale = max(atoms_PR.norm().item(), TINY)
        atoms_PR, codes_NR = atoms_PR / scale, codes_NR * scale
        coefficients_FK = torch.cat([coefficients_FK[:rank] / scale, coefficients_FK[rank:]])
        coefficients_FK, value = classify(codes_NR, coefficients_FK)
        values.append(value)
        converged = values[-2] - value <= tol * abs(value)
        if converged:
            break
    error = _squared_error(problem, atoms_PR, codes_NR, total)
    return Solution(atoms_PR, coefficients_FK[:rank], coefficients_FK[rank:], error, values, converged)


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
        Rounds over the atoms.

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
        for atom in range(len(gram_RR)):
            if gram_RR[atom, atom] > 0:
                rest_N = target_NR[:, atom] - codes_NR @ gram_RR[atom] + codes_NR[:, atom] * gram_RR[atom, atom]
                codes_NR[:, atom] = (rest_N / gram_RR[atom, atom]).clamp(min=0)
    return codes_NR


def logistic_regression(
    problem: Problem,
    inputs_NF: Float[Tensor, "N F"],
    penalty_FF: Float[Tensor, "F F"],
    start_FK: Float[Tensor, "F K"],
) -> Float[Tensor, "F K"]:
    r"""Minimise the labels' loss plus :math:`\nu \operatorname{tr}(C^\top P C)` by Newton's method, from a start.

    Parameters
    ----------
    problem : Problem
        Labels, their weights, and the penalty's weight.
    inputs_NF : Tensor of shape (samples, inputs)
        What the logits are linear in.
    penalty_FF : Tensor of shape (inputs, inputs)
        The quadratic penalty.
    start_FK : Tensor of shape (inputs, classes - 1)
        The first coefficients; the result is never worse.
    """
    now_FK, value = start_FK, _classifier_value(problem, inputs_NF, penalty_FF, start_FK)
    size, classes = start_FK.shape
    for _ in range(NEWTON_STEPS):
        p_NK = probabilities(inputs_NF @ now_FK)
        residual_NK = problem.label_weight_N[:, None] * (p_NK - problem.y_NK)
        gradient_FK = inputs_NF.T @ residual_NK + 2 * problem.nu * penalty_FF @ now_FK
        hessian = inputs_NF.new_zeros(classes, size, classes, size)
        for one in range(classes):
            for other in range(classes):
                slope_N = problem.label_weight_N * p_NK[:, one] * (float(one == other) - p_NK[:, other])
                hessian[one, :, other] = inputs_NF.T @ (slope_N[:, None] * inputs_NF)
            hessian[one, :, one] += 2 * problem.nu * penalty_FF
        hessian_EE = hessian.reshape(classes * size, classes * size)
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


def _squared_error(problem: Problem, atoms_PR: Tensor, codes_NR: Tensor, total: Tensor) -> float:
    weighted_NR = problem.weight_N[:, None] * codes_NR
    cross = (problem.rows.transposed_times(weighted_NR) * atoms_PR).sum()
    square = ((codes_NR.T @ weighted_NR) * (atoms_PR.T @ atoms_PR)).sum()
    return (total - 2 * cross + square).clamp(min=0).item()


def _start(
    problem: Problem, rank: int, nonnegative: bool, generator: torch.Generator | None
) -> tuple[Float[Tensor, "P R"], Float[Tensor, "N R"]]:
    """A random dictionary and the codes that fit it."""
    atoms_PR = torch.rand(problem.rows.shape[1], rank, dtype=torch.float64, generator=generator)
    atoms_PR = (atoms_PR / atoms_PR.norm()).to(problem.rows.device)
    target_NR = problem.rows.times(atoms_PR)
    start_NR = torch.zeros_like(target_NR) if nonnegative else None
    return atoms_PR, least_squares_codes(target_NR, atoms_PR.T @ atoms_PR, start_NR=start_NR)


def _allowed(values: Tensor, nonnegative: bool) -> Tensor:
    return values.clamp(min=0) if nonnegative else values


def _norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix, 2).item()
