r"""Which inputs a layer keeps.

With :math:`c_i` the norm of column i (or 1) the score of input i is :math:`q_i = |x_i| \, c_i`. A selection is written
as *limits*: input i is dropped when :math:`|x_i| \le l_i`. A threshold t gives the fixed limits
:math:`l_i = t / c_i`; keeping the k largest gives limits that depend on the token, minus infinity where it keeps and
infinity where it drops.

A NaN is never dropped, so that it reaches the output. An input whose column is zero is always dropped.

Legend: ``O`` outputs, ``I`` inputs, ``N`` tokens.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsmith.core.selection import lowest_k_mask

__all__ = ["column_norms", "dropped", "kept_count", "prefix_mask", "threshold_limits", "topk_limits"]


def column_norms(weight_OI: Float[Tensor, "out in"]) -> Float[Tensor, " in"]:
    """Return the Euclidean norm of each column, in float32.

    Examples
    --------
    >>> column_norms(torch.tensor([[3.0, 0.1], [4.0, 0.0]]))
    tensor([5.0000, 0.1000])
    """
    dtype = torch.promote_types(weight_OI.dtype, torch.float32)
    return torch.linalg.vector_norm(weight_OI, dim=0, dtype=dtype).float()


def threshold_limits(threshold: float, norm_I: Float[Tensor, " in"]) -> Float[Tensor, " in"]:
    """Return the limits on the inputs that are equivalent to a threshold on the scores; infinite for zero columns.

    Examples
    --------
    >>> threshold_limits(1.0, torch.tensor([2.0, 0.0]))
    tensor([0.5000,    inf])
    """
    return (threshold / norm_I).where(norm_I != 0, math.inf)


def topk_limits(
    x_NI: Float[Tensor, "tokens in"], norm_I: Float[Tensor, " in"], sparsity: float
) -> Float[Tensor, "tokens in"]:
    """Return limits that keep the inputs with the highest scores of each token, of equal scores the first.

    Examples
    --------
    >>> topk_limits(torch.tensor([[1.0, -3.0, 2.0, 2.0]]), torch.ones(4), 0.5)
    tensor([[inf, -inf, -inf, inf]])
    """
    score_NI = (x_NI.abs().float() * norm_I).where(norm_I != 0, 0.0)
    keep_NI = lowest_k_mask(-score_NI, kept_count(x_NI.shape[-1], sparsity)) & (norm_I != 0) | x_NI.isnan()
    return torch.full_like(score_NI, math.inf).masked_fill_(keep_NI, -math.inf)


def kept_count(inputs: int, sparsity: float) -> int:
    """Return how many inputs a token keeps. The dropped ones are rounded: ``int(1000 * (1 - 0.9))`` is 99.

    Examples
    --------
    >>> kept_count(1000, 0.9), kept_count(10, 0.9), kept_count(10, 1.0)
    (100, 1, 0)
    """
    return inputs - round(inputs * sparsity)


def dropped(x: Float[Tensor, "*tokens in"], limits: Float[Tensor, "..."]) -> Bool[Tensor, "*tokens in"]:
    """Mark the inputs within the limits.

    Examples
    --------
    >>> dropped(torch.tensor([0.5, -2.0, float("nan")]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([ True, False, False])
    """
    return x.abs() <= limits


def prefix_mask(real_SN: Bool[Tensor, "sequences tokens"], share: float) -> Bool[Tensor, "sequences tokens"]:
    """Mark the first tokens of each prompt, which stay dense: all but the last ``int(share * n)`` of n real tokens.

    Dropping inputs of the very first tokens costs most, since all later tokens attend to them. Padding is marked too.

    Examples
    --------
    >>> prefix_mask(torch.tensor([[False, True, True, True, True]]), share=0.75)
    tensor([[ True,  True, False, False, False]])
    """
    count_S1 = real_SN.sum(1, keepdim=True)
    first_S1 = count_S1 - (share * count_S1 + 1e-6).floor()
    return ~real_SN | (real_SN.cumsum(1) <= first_S1)
