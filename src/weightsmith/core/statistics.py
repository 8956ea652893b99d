"""Running statistics of a layer's inputs, over any number of batches, reduced over processes.

Legend: ``S`` sequences, ``N`` rows (tokens) of a sequence, ``I`` inputs.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsmith.core.errors import CalibrationError, NonFiniteError
from weightsmith.core.linalg import inverse_cholesky
from weightsmith.core.models import Layer
from weightsmith.core.processes import all_reduce_sum

__all__ = ["Gram", "InputStatistics", "output_error"]


class InputStatistics:
    r"""Sums over a layer's input rows :math:`x`: first and second moments and the variance within sequences.

    With :math:`S` sequences of :math:`n_s` rows each, padding left out:

    .. math::
        \bar a = \tfrac1S \sum_{s,t} x_{st}, \qquad
        q = \tfrac1S \sum_{s,t} x_{st}^2, \qquad
        v = \frac{\sum_s n_s \operatorname{Var}_t(x_{st})}{\sum_s n_s}

    Parameters
    ----------
    layer : Layer
        The layer to watch.

    Attributes
    ----------
    sequences, rows : int
        How many were seen.

    Examples
    --------
    >>> from torch import nn
    >>> statistics = InputStatistics(Layer("fc", nn.Linear(2, 1)))
    >>> statistics.update(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]), None)
    >>> statistics.sum_I, statistics.square_sum_I, statistics.variance_I
    (tensor([4., 0.]), tensor([10.,  0.]), tensor([1., 0.]))
    """

    def __init__(self, layer: Layer) -> None:
        weight = layer.weight_OI
        self.name = layer.name
        self.counts = torch.zeros(2, dtype=torch.float64, device=weight.device)
        self.sums_3I = torch.zeros(3, weight.shape[1], dtype=torch.float32, device=weight.device)

    @property
    def sequences(self) -> int:
        """Number of sequences seen."""
        return int(self.counts[0])

    @property
    def rows(self) -> int:
        """Number of real rows seen."""
        return int(self.counts[1])

    def update(self, x_SNI: Float[Tensor, "S N I"], mask_SN: Bool[Tensor, "S N"] | None = None) -> None:
        """Take in the input rows of one batch; ``mask_SN`` is False on padding."""
        x_SNI = x_SNI.float()
        if mask_SN is None:
            variance_SI, mean_SI = torch.var_mean(x_SNI, dim=1, correction=0)
            count_S1 = torch.full_like(mean_SI[:, :1], x_SNI.shape[1])
        else:
            keep_SN1 = mask_SN.unsqueeze(-1)
            count_S1 = keep_SN1.sum(1).float()
            mean_SI = x_SNI.where(keep_SN1, 0).sum(1) / count_S1.clamp(min=1)
            variance_SI = (x_SNI - mean_SI.unsqueeze(1)).where(keep_SN1, 0).square().sum(1) / count_S1.clamp(min=1)
        self.sums_3I[0] += (count_S1 * mean_SI).sum(0)
        self.sums_3I[1] += (count_S1 * (variance_SI + mean_SI.square())).sum(0)
        self.sums_3I[2] += (count_S1 * variance_SI).sum(0)
        self.counts[0] += int((count_S1 > 0).sum())
        self.counts[1] += count_S1.sum().double()

    def all_reduce(self) -> None:
        """Add up over processes, then check that there are finite statistics.

        Raises
        ------
        CalibrationError
            If no real row was seen.
        NonFiniteError
            If the layer's inputs hold NaN or infinity.
        """
        all_reduce_sum(self.sums_3I, self.counts)
        if self.rows == 0:
            raise CalibrationError(
                f"layer {self.name!r} saw no calibration tokens", do="Give batches with real tokens."
            )
        if not bool(self.sums_3I.isfinite().all()):
            raise NonFiniteError(
                f"inputs of layer {self.name!r} hold NaN or infinity",
                do="Check the calibration data and the model; half precision may overflow: try float32 or bfloat16.",
            )

    @property
    def sum_I(self) -> Float[Tensor, "I"]:
        """Mean over sequences of the sum over rows, the paper's unit of Wanda and DSnoT code."""
        return self.sums_3I[0] / self.sequences

    @property
    def square_sum_I(self) -> Float[Tensor, "I"]:
        """Mean over sequences of the sum of squares over rows."""
        return self.sums_3I[1] / self.sequences

    @property
    def variance_I(self) -> Float[Tensor, "I"]:
        """Variance over the rows of a sequence (population form), pooled over sequences."""
        return self.sums_3I[2] / self.rows

    @property
    def mean_I(self) -> Float[Tensor, "I"]:
        """Mean over all rows."""
        return self.sums_3I[0] / self.rows


class Gram(InputStatistics):
    r"""Input statistics with the Gram matrix :math:`X^\top X` of all real rows.

    The matrix of 14,336 inputs takes 0.8 GB: what is made of it, :attr:`moment_II` or :meth:`inverse_factor`, takes its
    place, and ``gram_II`` is not there afterwards.

    Attributes
    ----------
    gram_II : Tensor of shape (in, in)
        In float32.

    Examples
    --------
    >>> from torch import nn
    >>> gram = Gram(Layer("fc", nn.Linear(2, 1)))
    >>> gram.update(torch.tensor([[[1.0, 2.0]]]))
    >>> gram.gram_II
    tensor([[1., 2.],
            [2., 4.]])
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self._factors: dict[float, Tensor] = {}
        width = self.sums_3I.shape[1]
        self.gram_II = torch.zeros(width, width, dtype=torch.float32, device=self.sums_3I.device)

    def update(self, x_SNI: Float[Tensor, "S N I"], mask_SN: Bool[Tensor, "S N"] | None = None) -> None:
        """Take in the input rows of one batch; ``mask_SN`` is False on padding."""
        super().update(x_SNI, mask_SN)
        rows_NI = (x_SNI if mask_SN is None else x_SNI[mask_SN]).flatten(0, -2).float()
        self.gram_II.addmm_(rows_NI.T, rows_NI)

    def all_reduce(self) -> None:
        """Add up over processes and check, see :meth:`InputStatistics.all_reduce`."""
        all_reduce_sum(self.gram_II)
        super().all_reduce()

    @cached_property
    def moment_II(self) -> Float[Tensor, "in in"]:
        """Mean product of every two inputs over all rows."""
        moment_II = self.gram_II.div_(self.rows)
        del self.gram_II
        return moment_II

    def inverse_factor(self, damping: float = 0.01) -> Float[Tensor, "in in"]:
        """Upper Cholesky factor of the damped inverse, see :func:`weightsmith.core.linalg.inverse_cholesky`.

        Layers that share their inputs share the factor, with one damping.
        """
        if damping not in self._factors:
            self._factors[damping] = inverse_cholesky(self.gram_II, damping, out=self.gram_II)
            del self.gram_II
        return self._factors[damping]


def output_error(
    old_OI: Float[Tensor, "out in"], change_OI: Float[Tensor, "out in"], statistics: InputStatistics
) -> dict[str, float]:
    """Return the relative root mean square change of a layer's outputs, as if its inputs were uncorrelated.

    Examples
    --------
    >>> from torch import nn
    >>> statistics = InputStatistics(Layer("fc", nn.Linear(2, 1)))
    >>> statistics.update(torch.tensor([[[1.0, 2.0]]]))
    >>> output_error(torch.tensor([[3.0, 2.0]]), torch.tensor([[0.0, 0.5]]), statistics)
    {'output_error': 0.2...}
    """
    power_I = statistics.square_sum_I.to(old_OI)
    power = (old_OI.square() @ power_I).sum().clamp(min=torch.finfo(torch.float32).tiny)
    return {"output_error": float(((change_OI.square() @ power_I).sum() / power).sqrt())}
