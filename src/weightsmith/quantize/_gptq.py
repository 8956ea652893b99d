r"""GPTQ: round the columns of a weight in order; the columns that follow compensate the error of each.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022, arXiv 2210.17323. With :math:`U^\top U = (X^\top X + \lambda I)^{-1}` and a rounded column
:math:`\hat w_i`, the columns :math:`j > i` change by :math:`-(w_i - \hat w_i)\,U_{ij} / U_{ii}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.levels import check_bits, puts_on_levels
from weightsmith.core.linalg import replace_columns
from weightsmith.core.results import Result, record
from weightsmith.core.statistics import Gram
from weightsmith.quantize._shared.rounding import round_layers

__all__ = ["gptq"]


@puts_on_levels
def gptq(
    model: nn.Module,
    calibration: Batches,
    *,
    weight_bits: int = 4,
    damping: float = 0.01,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Round the weights of the blocks so that errors compensate each other on calibration data (GPTQ).

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    calibration : sequence of batches
        A few thousand tokens of typical text (the paper: 128 sequences of 2048 tokens).
    weight_bits : int, default: 4
        Bits of each weight, 2 to 8. The levels of a row are those of :func:`round_to_nearest`.
    damping : float, default: 0.01
        Added to the Gram matrix's diagonal, as a fraction of its mean.
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks never change.

    Returns
    -------
    Result
        Per layer ``weight_error`` and ``output_error``, the relative change of its weight and of its outputs;
        ``files["quantization.json"]`` with the levels.

    Raises
    ------
    CalibrationError
        If there are no batches, or the model rejects one.
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If a weight or an input holds NaN or infinity.

    References
    ----------
    Frantar et al. 2022, arXiv 2210.17323.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    >>> result = gptq(model, [torch.randn(32, 8)], weight_bits=3)
    >>> result.totals["layers"], max(len(row.unique()) for row in model[0].weight) <= 8
    (2, True)
    """
    weight_bits = check_bits("weight_bits", weight_bits)
    if not 0 <= damping < math.inf:
        raise HyperparameterError("damping", found=damping, expected="a number >= 0")

    def rounded(weight_OI: Tensor, nearest: Callable[[Tensor], Tensor], gram: Gram) -> Tensor:
        return replace_columns(
            weight_OI,
            gram.inverse_factor(damping),
            lambda now_OI, column: nearest(now_OI[:, column : column + 1]).squeeze(1),
        )

    with record("gptq", weight_bits=weight_bits, damping=damping, include=include, exclude=exclude) as result:
        round_layers(result, model, calibration, weight_bits, include, exclude, Gram, rounded)
    return result
