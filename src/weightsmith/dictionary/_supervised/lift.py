r"""The lifted problem: what the filter model and the feature model have in common, and all solvers work on.

A point is a matrix :math:`[A, B]` of rank :math:`r`, the classifier's block beside the reconstruction, in which the
objective is convex but for the rank:

.. math::

    F = \ell\left(\mathcal L A + Z \Gamma\right) + \xi \lVert T - B \rVert_F^2
        + \nu \left( \lVert A \rVert_F^2 + \lVert \Gamma \rVert_F^2 \right)

With the samples as rows of :math:`X` and their weights :math:`D_w`, the filter model has :math:`\mathcal L = X`,
:math:`T = X^\top D_w^{1/2}`, one row per feature; the feature model :math:`\mathcal L = D_w^{-1/2}`,
:math:`T = D_w^{1/2} X`, one row per sample. The roots of the weights make a sample of weight two act as two samples,
and keep the weights out of the length of a step.

Legend: see :mod:`weightsmith.dictionary._supervised.problem`. ``M`` rows of the lifted matrix (features or samples),
``C`` columns of :math:`T` (samples or features), ``D`` coordinates of the features' span, ``E`` any number of columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.processes import all_reduce_sum
from weightsmith.dictionary._supervised.problem import Model, Problem, Rows

__all__ = ["FeatureLift", "FilterLift", "Lift", "lift_and_start", "lift_of"]

LARGEST_GRAM = 5000
"""Up to this size of its shorter side the Gram matrix of the data is formed and diagonalized."""

SUBSPACE_ITERATIONS = 30
"""Power iterations that find the leading singular vectors of data too large for a Gram matrix."""

TINY = torch.finfo(torch.float64).tiny


class Lift(ABC):
    """The linear maps of a lifted problem.

    Parameters
    ----------
    rows : Rows
        The features.
    weight_N : Tensor of shape (samples,)
        Weights of the samples in the reconstruction, >= 0.

    Attributes
    ----------
    size : int
        Rows of the lifted matrix.
    """

    size: int

    def __init__(self, rows: Rows, weight_N: Float[Tensor, "N"]) -> None:
        self.rows, self.root_N1 = rows, weight_N.sqrt()[:, None]

    @abstractmethod
    def times(self, a_ME: Float[Tensor, "M E"]) -> Float[Tensor, "N E"]:
        r"""Return :math:`\mathcal L A`, the logits without the covariates."""

    @abstractmethod
    def transposed_times(self, right_NE: Float[Tensor, "N E"]) -> Float[Tensor, "M E"]:
        r"""Return :math:`\mathcal L^\top R`, summed over processes."""

    @abstractmethod
    def target_times(self, right_CE: Float[Tensor, "C E"]) -> Float[Tensor, "M E"]:
        """Return :math:`T R`."""

    @abstractmethod
    def transposed_target_times(self, left_ME: Float[Tensor, "M E"]) -> Float[Tensor, "C E"]:
        r"""Return :math:`T^\top R`."""

    @abstractmethod
    def factors(
        self, basis_MR: Float[Tensor, "M R"], a_MK: Float[Tensor, "M K"]
    ) -> tuple[Float[Tensor, "P R"], Float[Tensor, "R K"]]:
        """Return orthonormal atoms and the classifier on their codes, from a basis of the lifted matrix's columns."""

    def gram_times(self, columns_ME: Float[Tensor, "M E"]) -> Float[Tensor, "M E"]:
        r"""Return :math:`T T^\top R`."""
        return self.target_times(self.transposed_target_times(columns_ME))

    def energy(self, basis_MR: Float[Tensor, "M R"]) -> Float[Tensor, ""]:
        r"""Return :math:`\lVert T^\top U \rVert_F^2`, what an orthonormal basis keeps of the data."""
        return (basis_MR * self.gram_times(basis_MR)).sum()


class FilterLift(Lift):
    """The lifted problem of the filter model: a row per feature."""

    def __init__(self, rows: Rows, weight_N: Float[Tensor, "N"]) -> None:
        super().__init__(rows, weight_N)
        self.size = rows.shape[1]

    def times(self, a_ME: Tensor) -> Tensor:
        return self.rows.times(a_ME)

    def transposed_times(self, right_NE: Tensor) -> Tensor:
        product_ME = self.rows.transposed_times(right_NE)
        all_reduce_sum(product_ME)
        return product_ME

    def target_times(self, right_CE: Tensor) -> Tensor:
        return self.transposed_times(self.root_N1 * right_CE)

    def transposed_target_times(self, left_ME: Tensor) -> Tensor:
        return self.root_N1 * self.times(left_ME)

    def factors(self, basis_MR: Tensor, a_MK: Tensor) -> tuple[Tensor, Tensor]:
        return basis_MR, basis_MR.T @ a_MK


class DiagonalLift(FilterLift):
    r"""The filter model's lifted problem in an orthonormal basis in which :math:`T T^\top` is diagonal.

    Parameters
    ----------
    rows : Rows
        What is multiplied, with ``basis_PD``.
    weight_N : Tensor of shape (samples,)
        Weights of the samples.
    basis_PD : Tensor of shape (features of ``rows``, coordinates) or None
        None: ``rows`` already are in these coordinates.
    square_D : Tensor of shape (coordinates,)
        The diagonal, descending.
    to_features : callable
        Maps columns in these coordinates to the features.
    """

    def __init__(
        self,
        rows: Rows,
        weight_N: Float[Tensor, "N"],
        basis_PD: Float[Tensor, "P D"] | None,
        square_D: Float[Tensor, "D"],
        to_features: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(rows, weight_N)
        self.basis_PD, self.square_D, self.to_features = basis_PD, square_D, to_features
        self.size = len(square_D)

    def times(self, a_ME: Tensor) -> Tensor:
        return self.rows.times(a_ME if self.basis_PD is None else self.basis_PD @ a_ME)

    def transposed_times(self, right_NE: Tensor) -> Tensor:
        product = super().transposed_times(right_NE)
        return product if self.basis_PD is None else self.basis_PD.T @ product

    def gram_times(self, columns_ME: Tensor) -> Tensor:
        return self.square_D[:, None] * columns_ME

    def factors(self, basis_MR: Tensor, a_MK: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_features(basis_MR), basis_MR.T @ a_MK


class FeatureLift(Lift):
    """The lifted problem of the feature model: a row per sample."""

    def __init__(self, rows: Rows, weight_N: Float[Tensor, "N"]) -> None:
        super().__init__(rows, weight_N)
        self.size = rows.shape[0]
        self.inverse_root_N1 = 1 / self.root_N1.where(self.root_N1 > 0, 1)  # a sample of weight 0 counts for nothing

    def times(self, a_ME: Tensor) -> Tensor:
        return self.inverse_root_N1 * a_ME

    def transposed_times(self, right_NE: Tensor) -> Tensor:
        return self.inverse_root_N1 * right_NE

    def target_times(self, right_CE: Tensor) -> Tensor:
        return self.root_N1 * self.rows.times(right_CE)

    def transposed_target_times(self, left_ME: Tensor) -> Tensor:
        return self.rows.transposed_times(self.root_N1 * left_ME)

    def energy(self, basis_MR: Tensor) -> Tensor:
        return self.transposed_target_times(basis_MR).square().sum()

    def factors(self, basis_MR: Tensor, a_MK: Tensor) -> tuple[Tensor, Tensor]:
        atoms_PR, size_R, turn_RR = torch.linalg.svd(self.transposed_target_times(basis_MR), full_matrices=False)
        inverse_R = (size_R > 1e-10 * size_R[0]) / size_R.clamp(min=TINY)
        return atoms_PR, inverse_R[:, None] * (turn_RR @ (basis_MR.T @ a_MK))


def lift_of(problem: Problem, model: Model) -> Lift:
    """Return the lifted problem of a model in the coordinates of the data."""
    return (FilterLift if model == "filter" else FeatureLift)(problem.rows, problem.weight_N)


def lift_and_start(problem: Problem, rank: int, model: Model) -> tuple[Lift, Float[Tensor, "M R"], float]:
    r"""Return the lifted problem of a model in the coordinates in which it is solved fastest, and where to start.

    The filter model is diagonalized by the smaller Gram matrix of the data if that is small enough.

    Parameters
    ----------
    problem : Problem
        Data and hyper-parameters.
    rank : int
        Leading directions wanted; fewer where the data have fewer.
    model : {"filter", "feature"}
        What the label is a function of.

    Returns
    -------
    lift : Lift
        The lifted problem.
    leading_MR : Tensor
        The leading left singular vectors of :math:`T`.
    norm : float
        Largest eigenvalue of :math:`\mathcal L^\top D_w \mathcal L`.
    """
    rows, weight_N = problem.rows, problem.weight_N
    n, p = rows.shape
    lift: FilterLift
    if min(n, p) > LARGEST_GRAM or (problem.shared and p > LARGEST_GRAM):
        lift = FilterLift(rows, weight_N)
        leading_MR, norm = _leading_by_iteration(lift, rank)
    else:
        # other processes hold more samples: only the side of the features can be used
        lift = _by_samples(rows, weight_N) if n < p and not problem.shared else _by_features(rows, weight_N)
        leading_MR = torch.eye(lift.size, min(rank, lift.size), dtype=torch.float64, device=rows.device)
        norm = lift.square_D[0].item()
    if model == "filter":
        return lift, leading_MR, norm
    return FeatureLift(rows, weight_N), torch.linalg.qr(lift.transposed_target_times(leading_MR)).Q, 1.0


def _by_samples(rows: Rows, weight_N: Tensor) -> DiagonalLift:
    gram_NN, root_N = rows.row_gram(), weight_N.sqrt()
    square_D, vector_ND = _spectrum(gram_NN * root_N * root_N[:, None])
    back_ND = vector_ND * root_N[:, None] / square_D.sqrt()
    rotated = Rows(gram_NN @ back_ND)
    return DiagonalLift(rotated, weight_N, None, square_D, lambda columns: rows.transposed_times(back_ND @ columns))


def _by_features(rows: Rows, weight_N: Tensor) -> DiagonalLift:
    gram_PP = rows.gram(weight_N)
    all_reduce_sum(gram_PP)
    square_D, basis_PD = _spectrum(gram_PP)
    return DiagonalLift(rows, weight_N, basis_PD, square_D, lambda columns: basis_PD @ columns)


def _spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors of what is not rounding; at least one, even if it is zero."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    count = max(1, int((values > len(values) * torch.finfo(torch.float64).eps * values[0]).sum()))
    return values[:count].clamp(min=TINY), vectors[:, :count]


def _leading_by_iteration(lift: Lift, rank: int) -> tuple[Float[Tensor, "M R"], float]:
    device = lift.rows.device
    generator = torch.Generator(device).manual_seed(0)
    basis = torch.randn(lift.size, rank + 10, generator=generator, dtype=torch.float64, device=device)
    for _ in range(SUBSPACE_ITERATIONS):
        basis = torch.linalg.qr(lift.gram_times(basis)).Q
    product = lift.gram_times(basis)
    values, rotation = torch.linalg.eigh(basis.T @ product)
    # a Ritz value may lie below the eigenvalue it approximates, by its residual at most
    residual = product @ rotation[:, -1] - values[-1] * (basis @ rotation[:, -1])
    return (basis @ rotation).flip(1)[:, :rank], (values[-1] + residual.norm()).item()
