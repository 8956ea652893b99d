r"""Equally spaced levels: weights as whole-number codes and one step per row.

With :math:`b` bits, :math:`n = 2^{b-1}` and a step :math:`s` per row, a weight has the code

.. math:: k = \operatorname{clamp}(\operatorname{round}(w / s - o), -n, n - 1), \qquad \hat w = (k + o)\, s

with the offset :math:`o = 0`, or :math:`o = 1/2` for levels on both sides of zero.

Legend: ``O`` outputs, ``I`` inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.choices import check_whole

__all__ = ["Grid", "check_bits", "symmetric_step"]


@dataclass(frozen=True)
class Grid:
    """The levels of a weight's rows.

    Attributes
    ----------
    bits : int
        Of each code.
    half : bool
        Whether zero is half-way between two levels; otherwise zero is a level.

    Examples
    --------
    >>> grid = Grid(2, half=True)
    >>> codes = grid.codes(torch.tensor([[0.1, -0.4, 0.3, -0.2]]), torch.tensor([[0.25]]))
    >>> codes.int(), grid.values(codes, torch.tensor([[0.25]]))
    (tensor([[ 0, -2,  1, -1]], dtype=torch.int32), tensor([[ 0.1250, -0.3750,  0.3750, -0.1250]]))
    """

    bits: int
    half: bool = False

    @property
    def half_levels(self) -> int:
        """The number of levels on one side, 2^(bits - 1)."""
        return int(2 ** (self.bits - 1))

    def unit(self, step: Tensor) -> Tensor:
        """The number of which every level is a whole multiple, in :meth:`integers`."""
        return step / 2 if self.half else step

    def positions(self, rows: Float[Tensor, "..."], step: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Codes before rounding."""
        return (rows / step).sub_(0.5) if self.half else rows / step

    def codes(self, rows: Float[Tensor, "..."], step: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The nearest code of each value; in float32, so that no code beyond the last can arise from rounding."""
        return self.positions(rows, step).round_().clamp_(-self.half_levels, self.half_levels - 1)

    def integers(self, codes: Tensor) -> Tensor:
        """The multiples of the unit that the codes stand for."""
        return 2 * codes + 1 if self.half else codes

    def values(
        self, codes: Float[Tensor, "..."], step: Float[Tensor, "..."], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "..."]:
        """The levels of the codes, as weights of a data type have them: the unit is rounded to it first.

        So whoever stores the codes and the unit in this type computes the same bits.
        """
        unit = self.unit(step).to(dtype).to(torch.promote_types(step.dtype, dtype))
        integers = codes.mul(2).add_(1) if self.half else codes
        return (integers * unit).to(dtype)


def symmetric_step(
    rows: Float[Tensor, "out in"], bits: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "out 1"]:
    """The step with which the largest magnitude of each row is half a step beyond the last positive code.

    It is a number of ``dtype``, in which it will be stored, and never zero.

    Examples
    --------
    >>> symmetric_step(torch.tensor([[7.5, -1.0], [0.0, 0.0]]), 4)
    tensor([[1.0000e+00],
            [1.1755e-38]])
    """
    largest = rows.abs().amax(1, keepdim=True)
    step = (2 * largest / (2**bits - 1)).to(dtype).float()
    of_type = torch.finfo(dtype)  # float16 reaches below its normal numbers, where the weights of small rows lie
    return step.clamp_min(max(torch.finfo(torch.float32).tiny, of_type.tiny * of_type.eps))


def check_bits(name: str, bits: Any, lowest: int = 2) -> int:
    """Return a number of bits, also one of NumPy, as Python's; refuse one that no method here can use.

    Raises
    ------
    HyperparameterError
        If it is not from ``lowest`` to 8.
    """
    return check_whole(name, bits, lowest, 8)
