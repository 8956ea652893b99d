r"""The objective of supervised dictionary learning, and its data.

.. math::

    F = \sum_i w_i \left( \ell(y_i, a_i) + \xi \lVert x_i - W h_i \rVert^2 \right)
        + \nu \left( \lVert A \rVert_F^2 + \lVert \Gamma \rVert_F^2 \right), \qquad
    \ell(y, a) = \log\Big(1 + \sum_c e^{a_c}\Big) - a_y

with the logits of a sample :math:`a_i = A^\top x_i + \Gamma^\top z_i`, :math:`A = W\beta` (filter model) or
:math:`a_i = A_i + \Gamma^\top z_i`, :math:`A_i = \beta^\top h_i` (feature model). Class 0 has the logit 0.

Legend: ``N`` samples, ``P`` features, ``K`` classes less one, ``Z`` covariates with the constant first, ``R`` atoms,
``M`` any number of columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.processes import all_reduce_sum

__all__ = ["Model", "Problem", "Rows", "Solution", "label_loss", "probabilities", "probability_slopes"]

Model = Literal["filter", "feature"]
"""What the label is a function of: the inner products of atoms and features, or the codes."""

CHUNK = 1 << 24
"""Numbers that are held in double precision beside single-precision data at the same time."""


class Rows:
    """A matrix of data, dense or sparse (CSR), in its own precision; its products are in double precision.

    Dense data are read in chunks of rows, and sparse data are never made dense.

    Parameters
    ----------
    matrix_NP : Tensor of shape (samples, features)
        Floating point.

    Examples
    --------
    >>> rows = Rows(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    >>> rows.times(torch.ones(2, 1, dtype=torch.float64)).T
    tensor([[3., 1.]], dtype=torch.float64)
    """

    def __init__(self, matrix_NP: Tensor) -> None:
        small = matrix_NP.layout == torch.sparse_csr or matrix_NP.numel() <= CHUNK
        self.matrix_NP = matrix_NP.double() if small else matrix_NP
        self._transposed = self.matrix_NP.t().to_sparse_csr() if self.is_sparse else None

    @property
    def is_sparse(self) -> bool:
        """Whether the data are sparse."""
        return self.matrix_NP.layout == torch.sparse_csr

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and features."""
        return self.matrix_NP.shape[0], self.matrix_NP.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.matrix_NP.device

    def times(self, right_PM: Float[Tensor, "P M"]) -> Float[Tensor, "N M"]:
        """Return the product with a matrix on the right."""
        if self.is_sparse or self.matrix_NP.dtype == torch.float64:
            return self.matrix_NP @ right_PM
        return torch.cat([chunk @ right_PM for _, chunk in self._chunks()])

    def transposed_times(self, right_NM: Float[Tensor, "N M"]) -> Float[Tensor, "P M"]:
        """Return the product of the transposed data with a matrix on the right."""
        if self._transposed is not None:
            return self._transposed @ right_NM
        if self.matrix_NP.dtype == torch.float64:
            return self.matrix_NP.T @ right_NM
        total = right_NM.new_zeros(self.shape[1], right_NM.shape[1])
        for part, chunk in self._chunks():
            total.addmm_(chunk.T, right_NM[part])
        return total

    def gram(self, weight_N: Float[Tensor, "N"]) -> Float[Tensor, "P P"]:
        r"""Return :math:`X^\top \operatorname{diag}(w) X`."""
        if self.is_sparse:
            columns = [self.transposed_times(weight_N[:, None] * self.times(unit)) for unit in self._units(1)]
            return torch.cat(columns, dim=1)
        total = weight_N.new_zeros(self.shape[1], self.shape[1])
        for part, chunk in self._chunks():
            total.addmm_(chunk.T * weight_N[part], chunk)
        return total

    def row_gram(self) -> Float[Tensor, "N N"]:
        r"""Return :math:`X X^\top`."""
        if self.is_sparse:
            return torch.cat([self.times(self.transposed_times(unit)) for unit in self._units(0)], dim=1)
        return torch.cat([self.times(chunk.T.contiguous()) for _, chunk in self._chunks()], dim=1)

    def squares(self) -> Float[Tensor, "N"]:
        """Return the squared length of every row."""
        if self.is_sparse:
            crow, values = self.matrix_NP.crow_indices(), self.matrix_NP.values()
            rows = torch.repeat_interleave(torch.arange(self.shape[0], device=self.device), crow.diff())
            return values.new_zeros(self.shape[0]).index_add_(0, rows, values.square())
        return torch.cat([chunk.square().sum(1) for _, chunk in self._chunks()])

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        step = max(1, CHUNK // self.shape[1])
        for start in range(0, self.shape[0], step):
            part = slice(start, start + step)
            yield part, self.matrix_NP[part].double()

    def _units(self, side: int) -> Iterator[Tensor]:
        """Blocks of columns of the identity."""
        size = self.shape[side]
        step = max(1, CHUNK // max(self.shape))
        for start in range(0, size, step):
            width = min(step, size - start)
            block = torch.zeros(size, width, dtype=torch.float64, device=self.device)
            block[start : start + width] = torch.eye(width, dtype=torch.float64, device=self.device)
            yield block


@dataclass
class Problem:
    """Data and hyper-parameters of one fit.

    Attributes
    ----------
    rows : Rows
        The features.
    z_NZ : Tensor of shape (samples, 1 + covariates)
        A column of ones, then the covariates.
    y_NK : Tensor of shape (samples, classes - 1)
        One-hot labels without class 0.
    weight_N, label_weight_N : Tensor of shape (samples,)
        Weights of the samples in the reconstruction and in the label's loss.
    xi : float
        Weight of the reconstruction, > 0.
    nu : float
        L2 penalty, >= 0.
    shared : bool
        Whether other processes hold more samples.
    """

    rows: Rows
    z_NZ: Float[Tensor, "N Z"]
    y_NK: Float[Tensor, "N K"]
    weight_N: Float[Tensor, "N"]
    label_weight_N: Float[Tensor, "N"]
    xi: float
    nu: float
    shared: bool = False

    @property
    def curvature(self) -> float:
        """Largest second derivative of the loss in the logits: 1/4 of the binary, 1/2 of the multinomial."""
        return 0.25 if self.y_NK.shape[1] == 1 else 0.5

    @property
    def largest_class_weight(self) -> float:
        """The most that a sample's label weighs against its reconstruction, in this or any other process."""
        ratio_N = self.label_weight_N / self.weight_N.where(self.weight_N > 0, 1)
        largest = ratio_N.max()
        if self.shared:
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return largest.item()

    def residual(self, logit_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return the derivative of the weighted loss in the logits."""
        return self.label_weight_N[:, None] * (probabilities(logit_NK) - self.y_NK)

    def loss(self, logit_NK: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
        """Return the weighted loss of this process's samples."""
        return self.label_weight_N @ label_loss(logit_NK, self.y_NK)

    def start(self) -> Float[Tensor, "Z K"]:
        """Return coefficients that give every class its share and use no covariate."""
        counts = torch.cat([self.label_weight_N.sum()[None], self.label_weight_N @ self.y_NK])
        all_reduce_sum(counts)
        weight_C = torch.cat([(counts[0] - counts[1:].sum())[None], counts[1:]])
        weight_C = weight_C.clamp(min=1e-6 * counts[0].item())  # a class can have the weight 0
        gamma_ZK = self.z_NZ.new_zeros(self.z_NZ.shape[1], self.y_NK.shape[1])
        gamma_ZK[0] = (weight_C[1:] / weight_C[0]).log()
        return gamma_ZK


@dataclass
class Solution:
    """What a solver found.

    Attributes
    ----------
    atoms_PR : Tensor of shape (features, rank)
        The dictionary.
    beta_RK : Tensor of shape (rank, classes - 1)
        The classifier on the codes.
    gamma_ZK : Tensor of shape (1 + covariates, classes - 1)
        The intercept and the covariates' coefficients.
    squared_error : float
        Weighted squared reconstruction error.
    values : list of float
        The objective before the first step and after each.
    converged : bool
        Whether the tolerance was met.
    """

    atoms_PR: Float[Tensor, "P R"]
    beta_RK: Float[Tensor, "R K"]
    gamma_ZK: Float[Tensor, "Z K"]
    squared_error: float
    values: list[float] = field(default_factory=list)
    converged: bool = False


def probabilities(logit_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Return the probabilities of classes 1 to K, class 0 having the logit 0.

    Examples
    --------
    >>> probabilities(torch.zeros(1, 3))
    tensor([[0.2500, 0.2500, 0.2500]])
    """
    if logit_NK.shape[1] == 1:
        return logit_NK.sigmoid()
    return torch.cat([torch.zeros_like(logit_NK[:, :1]), logit_NK], dim=1).softmax(1)[:, 1:]


def probability_slopes(p_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K K"]:
    """Return the derivatives of the probabilities in the logits.

    Examples
    --------
    >>> probability_slopes(torch.tensor([[0.5]]))
    tensor([[[0.2500]]])
    """
    return torch.diag_embed(p_NK) - p_NK[:, :, None] * p_NK[:, None, :]


def label_loss(logit_NK: Float[Tensor, "N K"], y_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N"]:
    """Return every sample's cross-entropy.

    Examples
    --------
    >>> label_loss(torch.tensor([[800.0]]), torch.tensor([[0.0]]))
    tensor([800.])
    """
    padded = torch.cat([torch.zeros_like(logit_NK[:, :1]), logit_NK], dim=1)
    return padded.logsumexp(1) - (logit_NK * y_NK).sum(1)
