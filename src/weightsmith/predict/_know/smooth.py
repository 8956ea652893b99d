r"""Our rule for convolution kernels: five numbers, meta-trained on the accuracy of the transfer.

The published predictors mostly shrink weights, and plain shrinkage gives the same gain. Plain shrinkage cannot change
the *direction* of a kernel. Networks trained on more data, or longer, have spatially smoother kernels, and smoother
kernels transfer better; this rule extrapolates the smoothing. With :math:`u_s = h_s / \mathrm{rms}(h_s)` over a whole
tensor, fan-in :math:`n`, and :math:`\mathcal N` the sum over a kernel position's direct neighbors

.. math::
    d &= u_4 + a\,(u_4 - u_0) + b\,\mathcal N(u_4) \\
    \hat\theta &= \frac{d}{\mathrm{rms}(d)}\,\mathrm{rms}(h_4)\,
        \exp\!\big(c_0 + c_1 \log\tfrac{n}{100} + c_2 \log(\mathrm{rms}(h_4)\sqrt n)\big)

It is equivariant to the sign of the weights and to permutations of channels, and its direction to their scale.
Matrices and biases keep their trained values: a layer without normalization behind it must not shrink.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SmoothRule", "neighbors"]

FAN_RANGE = (9, 576)
"""Fan-ins seen in meta-training; beyond the range the norm is predicted as at its end."""

CHUNK = 1 << 18


@dataclass(frozen=True)
class SmoothRule:
    """Predict kernels as smoother and resized versions of the trained ones.

    Parameters
    ----------
    drift : float
        :math:`a`, coefficient of the direction lost by forgetting.
    smooth : float
        :math:`b`, coefficient of the neighbors.
    size, size_fan, size_rms : float
        :math:`c_0, c_1, c_2`, coefficients of the logarithm of the change of norm per step.

    Examples
    --------
    >>> rule = SmoothRule(drift=0.0, smooth=0.0, size=math.log(0.5), size_fan=0.0, size_rms=0.0)
    >>> rule([torch.ones(2, 1, 3, 3)] * 5, steps=2).unique()
    tensor([0.2500])
    """

    drift: float
    smooth: float
    size: float
    size_fan: float
    size_rms: float

    bounded = False

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SmoothRule:
        """Build the rule from named scalars.

        Examples
        --------
        >>> rule = SmoothRule(0.1, 0.2, 0.3, 0.4, 0.5)
        >>> SmoothRule.from_tensors(rule.to_tensors()) == rule
        True
        """
        return cls(**{name: float(tensor) for name, tensor in tensors.items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the five numbers as float64 scalars."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in asdict(self).items()}

    def __call__(self, history: Sequence[Float[Tensor, "*shape"]], steps: int) -> Tensor:
        r"""Return the prediction after ``steps`` >= 1 steps; all snapshots but the last may be overwritten.

        Parameters
        ----------
        history : five Tensors of shape (out, in, \*kernel)
            Smallest training set first.
        steps : int >= 1
            Steps of the recursion.

        Returns
        -------
        Tensor of shape (out, in, \*kernel)
        """
        # Half-precision steps would round the direction each time; kernels are small enough to copy.
        rows = [snapshot.float() for snapshot in history]
        for step in range(steps):
            into = rows[0] if step != len(rows) - 1 else torch.empty_like(rows[0])
            rows = [*rows[1:], self._advance(rows, into)]
        return rows[-1].to(history[0].dtype)

    def _advance(self, rows: list[Tensor], into: Tensor) -> Tensor:
        """Write one step to ``into``, which may be the oldest row, a block of output channels at a time."""
        oldest, latest = rows[0], rows[-1]
        rms_oldest, rms_latest = _rms(oldest), _rms(latest)
        if rms_latest == 0 or rms_oldest == 0:
            return into.copy_(latest)
        block = max(1, CHUNK // max(1, latest[0].numel()))
        for old, new, result in zip(oldest.split(block), latest.split(block), into.split(block), strict=True):
            direction = new * (1 + self.drift) / rms_latest - old * (self.drift / rms_oldest)
            if self.smooth:
                direction += neighbors(new) * (self.smooth / rms_latest)
            result.copy_(direction)
        return into.mul_(rms_latest * self._factor(latest[0].numel(), rms_latest) / _rms(into))

    def _factor(self, fan_in: int, rms: float) -> float:
        """Change of the norm in one step."""
        fan_in = min(max(fan_in, FAN_RANGE[0]), FAN_RANGE[1])
        return math.exp(
            self.size + self.size_fan * math.log(fan_in / 100) + self.size_rms * math.log(rms * math.sqrt(fan_in))
        )


def neighbors(w: Float[Tensor, "out in *kernel"]) -> Float[Tensor, "out in *kernel"]:
    """Sum over the direct neighbors of every position of every kernel; outside a kernel is zero.

    Examples
    --------
    >>> neighbors(torch.ones(1, 1, 3, 3))[0, 0]
    tensor([[2., 3., 2.],
            [3., 4., 3.],
            [2., 3., 2.]])
    """
    total = torch.zeros_like(w)
    for axis in range(2, w.ndim):
        if (length := w.shape[axis]) > 1:
            total.narrow(axis, 0, length - 1).add_(w.narrow(axis, 1, length - 1))
            total.narrow(axis, 1, length - 1).add_(w.narrow(axis, 0, length - 1))
    return total


def _rms(w: Tensor) -> float:
    return float(torch.linalg.vector_norm(w)) / math.sqrt(w.numel())
