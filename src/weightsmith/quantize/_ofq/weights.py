r"""Fake-quantized weights as parametrizations of PyTorch: StatsQ, and LSQ as its baseline.

StatsQ takes the step of each row from the row itself in every forward pass, :math:`s = 2\,\overline{|w|}\,/\,n`, and
has no level at zero. LSQ learns it. Both pass the gradient straight through the rounding.

Legend: ``O`` outputs, ``I`` inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from weightsmith.core.levels import Grid, check_bits
from weightsmith.core.linalg import upcast

__all__ = ["LSQWeight", "QuantizedWeight", "StatsQ", "lsq"]

SMALLEST_STEP = 1e-5
"""A learned step does not fall below this; its gradient passes nevertheless."""


class QuantizedWeight(nn.Module):
    """What both parametrizations share.

    Parameters
    ----------
    bits : int
        Of each weight, 2 to 8.
    half : bool
        Whether zero is half-way between two levels.
    transposed : bool, default: False
        The weight is inputs by outputs.

    Attributes
    ----------
    grid : Grid
        The levels.
    dtype : torch.dtype
        What the weights are stored in; they are rounded to it in training, too.
    """

    def __init__(self, bits: int, half: bool, transposed: bool) -> None:
        super().__init__()
        self.grid, self.transposed = Grid(check_bits("bits", bits), half), transposed
        self.dtype = torch.float32

    def rows(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "out in"]:
        """Return the weight as a matrix of at least float32."""
        return upcast(weight.T if self.transposed else weight.flatten(1))

    def like(self, rows: Float[Tensor, "out in"], weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return a matrix in a weight's own shape and data type."""
        return (rows.T if self.transposed else rows.view(weight.shape)).to(weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedWeight:
        self.dtype = fn(torch.zeros((), dtype=self.dtype)).dtype  # as `.to(dtype)` changes the weights
        return super()._apply(fn, recurse)

    def right_inverse(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Keep the weight as the latent one; its data type is that of the levels."""
        self.dtype = weight.dtype
        return weight

    def step_of(self, rows: Float[Tensor, "out in"]) -> Float[Tensor, "out 1"]:
        """The step of each row."""
        raise NotImplementedError

    @torch.no_grad()
    def codes(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "out in"]:
        """Return the code of each weight.

        Examples
        --------
        >>> StatsQ(2).codes(torch.tensor([[1.0, -1.0, 0.02, 3.0]])).int()
        tensor([[ 0, -1,  0,  1]], dtype=torch.int32)
        """
        rows = self.rows(weight)
        return self.grid.codes(rows, self.step_of(rows))

    @torch.no_grad()
    def unit(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "out"]:
        """Return the number of each row that its levels are whole multiples of, as the weights' data type has it."""
        return self.grid.unit(self.step_of(self.rows(weight))).squeeze(1).to(self.dtype)

    def extra_repr(self) -> str:
        """Show the number of bits."""
        return f"bits={self.grid.bits}"


class StatsQ(QuantizedWeight):
    r"""Weights with the levels :math:`\pm\tfrac12 s, \pm\tfrac32 s, \ldots` of a step from each row's mean.

    .. math::
        s = 2\,\overline{|w|}\,/\,n, \qquad
        k = \operatorname{clamp}(\operatorname{round}(w/s - \tfrac12), -n, n-1)

    with :math:`n = 2^{b-1}`. The step is a constant for the gradient, which passes all weights, clipped ones too.

    Parameters
    ----------
    bits : int
        Of each weight, 2 to 8.
    transposed : bool, default: False
        The weight is inputs by outputs, as in Hugging Face's ``Conv1D``.

    Raises
    ------
    HyperparameterError
        If ``bits`` is out of range.

    References
    ----------
    Liu, Liu, Cheng 2023, arXiv 2302.02210.

    Examples
    --------
    >>> StatsQ(2)(torch.tensor([[0.1, -0.4, 0.3, -0.2]]))
    tensor([[ 0.1250, -0.3750,  0.3750, -0.1250]])
    """

    def __init__(self, bits: int, *, transposed: bool = False) -> None:
        super().__init__(bits, True, transposed)

    def step_of(self, rows: Float[Tensor, "out in"]) -> Float[Tensor, "out 1"]:
        """Twice the mean magnitude of each row, divided by n."""
        mean = torch.linalg.vector_norm(rows, 1, dim=1, keepdim=True) / rows.shape[1]
        return (mean * (2 / self.grid.half_levels)).clamp_min(torch.finfo(torch.float32).tiny)

    def forward(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the weights on their levels."""
        with torch.no_grad():
            rows = self.rows(weight)
            step = self.step_of(rows)
            # in float32 and clamped after rounding: the reference clamps u to 1 - 1e-6, which is 1 in half precision
            # and gives a level more
            values = self.grid.values(self.grid.codes(rows, step), step, self.dtype)
            values = self.like(values, weight)
        return _StraightThrough.apply(weight, values)


class LSQWeight(QuantizedWeight):
    """Weights with a learned step per row, and zero among the levels (LSQ).

    Parameters
    ----------
    weight : Tensor
        For the first steps, twice the mean magnitude of each row over the root of the largest code.
    bits : int
        Of each weight, 2 to 8.
    transposed : bool, default: False
        The weight is inputs by outputs.

    Raises
    ------
    HyperparameterError
        If ``bits`` is out of range.

    References
    ----------
    Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153.

    Examples
    --------
    >>> weight = torch.tensor([[0.1, -0.4, 0.3, -0.2]])
    >>> LSQWeight(weight, 2)(weight).detach()
    tensor([[ 0.0000, -0.5000,  0.5000, -0.0000]])
    """

    def __init__(self, weight: Float[Tensor, "..."], bits: int, *, transposed: bool = False) -> None:
        super().__init__(bits, False, transposed)
        mean = self.rows(weight.detach()).abs().mean(1, keepdim=True)
        largest = self.grid.half_levels - 1
        self.step = nn.Parameter((2 * mean / largest**0.5).clamp_min(SMALLEST_STEP).float())

    def step_of(self, rows: Float[Tensor, "out in"]) -> Float[Tensor, "out 1"]:
        """The learned step of each row."""
        return self.step.detach().clamp_min(SMALLEST_STEP)

    def forward(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the weights on their levels."""
        n = self.grid.half_levels
        return self.like(lsq(self.rows(weight), self.step, -n, n - 1, self.dtype), weight)


def lsq(
    x: Float[Tensor, "..."],
    step: Float[Tensor, "..."],
    lowest: int,
    highest: int,
    dtype: torch.dtype | None = None,
    processes: int = 1,
) -> Float[Tensor, "..."]:
    r"""Round to whole multiples of a learned step.

    .. math:: \hat x = s \operatorname{round}(\operatorname{clamp}(x/s, l, h))

    Parameters
    ----------
    x : Tensor
        Any values.
    step : Tensor
        Of a shape that broadcasts to that of ``x``; at least 1e-5 is used. Its gradient is scaled by
        :math:`1/\sqrt{h N}` with N the number of elements per step.
    lowest, highest : int
        The codes at the ends.
    dtype : torch.dtype, optional
        Round the step to it first.
    processes : int, default: 1
        How many processes have as many elements of the same step, which N counts, too.

    Returns
    -------
    Tensor
        Of the shape and data type of ``x``.

    Examples
    --------
    >>> x, step = torch.tensor([0.2, 0.9, -5.0]), torch.tensor([0.5], requires_grad=True)
    >>> lsq(x, step, -2, 1).sum().backward()
    >>> step.grad * 3**0.5
    tensor([-1.4000])
    """
    return _LSQ.apply(x, step, lowest, highest, dtype, processes)


class _StraightThrough(torch.autograd.Function):
    """The values, with the gradient of the weight."""

    @staticmethod
    def forward(weight: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _LSQ(torch.autograd.Function):
    """Keeps the input and the step only; the codes are computed again in the backward pass."""

    @staticmethod
    def forward(
        x: Tensor, step: Tensor, lowest: int, highest: int, dtype: torch.dtype | None, processes: int
    ) -> Tensor:
        used = step.clamp_min(SMALLEST_STEP)
        codes = (upcast(x) / used).round_().clamp_(lowest, highest)
        if dtype is not None:
            used = used.to(dtype).to(used.dtype)
        return codes.mul_(used).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, step, ctx.lowest, ctx.highest, _, ctx.processes = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        x, step = ctx.saved_tensors
        position = upcast(x) / step.clamp_min(SMALLEST_STEP)
        codes = position.round().clamp_(ctx.lowest, ctx.highest)
        inside = (position >= ctx.lowest) & (position <= ctx.highest)
        # inside: the rounding error; beyond the ends: the last code
        slope = torch.where(inside, codes - position, codes).mul_(gradient)
        scale = (ctx.highest * ctx.processes * x.numel() / step.numel()) ** -0.5
        return gradient * inside, slope.sum_to_size(step.shape).mul_(scale).to(step.dtype), None, None, None, None
