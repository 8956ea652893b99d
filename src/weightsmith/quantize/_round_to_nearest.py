r"""Round to nearest: each weight goes to the nearest of equally spaced levels, without data.

.. math::
    s = \frac{2 \max_i |w_i|}{2^b - 1}, \qquad
    \hat w = s \operatorname{clamp}(\operatorname{round}(w / s), -n, n - 1)

per row, with :math:`n = 2^{b-1}`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from weightsmith.core.levels import check_bits, puts_on_levels
from weightsmith.core.results import Result, record
from weightsmith.quantize._shared.rounding import round_layers

__all__ = ["round_to_nearest"]


@puts_on_levels
def round_to_nearest(
    model: nn.Module,
    *,
    weight_bits: int = 4,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Round every weight of the blocks to the nearest of a row's equally spaced levels.

    The levels follow from the largest weight of a row, which moves in rounding: done twice, weights change again.

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    weight_bits : int, default: 4
        Bits of each weight, 2 to 8.
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks never change.

    Returns
    -------
    Result
        Per layer ``weight_error``, the relative change of its weight; ``files["quantization.json"]`` with the levels.

    Raises
    ------
    HyperparameterError
        If ``weight_bits`` is out of range.
    NonFiniteError
        If a weight holds NaN or infinity.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 1, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[7.5, 1.2, -3.6]]))
    >>> round_to_nearest(model).totals["layers"], model[0].weight.tolist()
    (1, [[7.0, 1.0, -4.0]])
    """
    weight_bits = check_bits("weight_bits", weight_bits)
    with record("round-to-nearest", weight_bits=weight_bits, include=include, exclude=exclude) as result:
        round_layers(
            result, model, None, weight_bits, include, exclude, None, lambda weight_OI, nearest, _: nearest(weight_OI)
        )
    return result
