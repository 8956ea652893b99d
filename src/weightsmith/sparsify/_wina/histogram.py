"""The distribution of a layer's scores over calibration tokens, in constant memory, and its quantiles."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsmith.core.errors import CalibrationError, NonFiniteError
from weightsmith.core.processes import all_reduce_sum

__all__ = ["ScoreHistogram", "quantile"]

LOWEST, HIGHEST, BINS = -24, 15, 4096


def quantile(values: Float[Tensor, " bins"], counts: Tensor, share: float) -> float:
    """Return the value below which a fraction of all counts lies, interpolated linearly between the values.

    Parameters
    ----------
    values : Tensor of shape (bins,)
        In ascending order.
    counts : Tensor of shape (bins,)
        How often each occurs.
    share : float
        In [0, 1].

    Returns
    -------
    float
        The smallest value when the fraction is within its own count.

    Examples
    --------
    >>> quantile(torch.arange(1.0, 101.0), torch.ones(100), 0.5)
    50.0
    """
    total = counts.double().cumsum(0)
    target = share * total[-1]
    index = min(int(torch.searchsorted(total, target)), len(values) - 1)
    if index == 0:
        return float(values[0])
    below, above = float(total[index - 1]), float(total[index])
    part = (float(target) - below) / (above - below) if above > below else 0.0
    return float(values[index - 1]) + part * (float(values[index]) - float(values[index - 1]))


class ScoreHistogram:
    """Histogram of ``|x_i| * c_i`` for a layer.

    Bins are equal on a logarithmic scale: 4096 from 2^-24 to 2^15, so that a threshold is off by at most 0.7 %, and one
    for zero. Being counts, they add up over processes.

    Parameters
    ----------
    norm : Tensor of shape (in,)
        The column norms of the layer, or ones.
    """

    def __init__(self, norm: Float[Tensor, " in"]) -> None:
        self.norm = norm
        self.counts = torch.zeros(BINS + 1, dtype=torch.int64, device=norm.device)

    def update(self, x_SNI: Float[Tensor, "S N I"], mask_SN: Bool[Tensor, "S N"] | None = None) -> None:
        """Take in one batch; ``mask_SN`` is False on padding."""
        magnitude_NI = (x_SNI.flatten(0, 1) if mask_SN is None else x_SNI[mask_SN]).abs().float()
        if not bool(magnitude_NI.isfinite().all()):
            raise NonFiniteError(
                "a layer's input holds NaN or infinity", do="Check the calibration data; half precision may overflow."
            )
        scale = BINS / (HIGHEST - LOWEST)
        bins = ((magnitude_NI * self.norm).log2_().sub_(LOWEST).mul_(scale).floor_() + 1).clamp_(0, BINS)
        self.counts += torch.bincount(bins.flatten().int(), minlength=BINS + 1)

    def all_reduce(self) -> None:
        """Add up over processes.

        Raises
        ------
        CalibrationError
            If no input was seen at all.
        """
        all_reduce_sum(self.counts)
        if int(self.counts.sum()) == 0:
            raise CalibrationError("the calibration data hold no real tokens", expected="at least one")

    def threshold(self, sparsity: float) -> float:
        """Return the score below which a fraction of the scores lies; infinite for all of them."""
        if sparsity >= 1:
            return math.inf
        edges = torch.arange(BINS + 1, dtype=torch.float32) * ((HIGHEST - LOWEST) / BINS) + LOWEST
        values = torch.exp2(edges)
        values[0] = 0.0
        return quantile(values, self.counts.cpu(), sparsity)
