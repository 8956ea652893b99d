r"""SparseGPT: remove weights by a second-order score and update the remaining ones to compensate.

Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023, arXiv 2301.00774.
The score of a weight is :math:`W_{oi}^2 / U_{ii}^2` with :math:`U^\top U = (X^\top X + \lambda I)^{-1}`. Columns are
pruned in order; the columns that follow compensate the output error of each.

Legend: ``O`` outputs, ``I`` inputs, ``B`` columns of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.linalg import COLUMN_BLOCK, replace_columns
from weightsmith.core.models import Layer
from weightsmith.core.results import Result, record
from weightsmith.core.statistics import Gram, output_error
from weightsmith.sparsify._shared.pruning import Pattern, Sparsity, prune_layers, zeros

__all__ = ["sparsegpt"]


def sparsegpt(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: Sparsity = 0.5,
    damping: float = 0.01,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Prune by a second-order score and update the remaining weights to compensate the removed ones (SparseGPT).

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    calibration : sequence of batches
        A few thousand tokens of typical text (the paper: 128 sequences of 2048 tokens).
    sparsity : float or str, default: 0.5
        A fraction in (0, 1), which holds within each block of 128 columns over all rows, or ``"N:M"``.
    damping : float, default: 0.01
        Added to the Gram matrix's diagonal, as a fraction of its mean.
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks never change.

    Returns
    -------
    Result
        Per layer: ``sparsity`` and ``output_error`` as for :func:`wanda`.

    Raises
    ------
    CalibrationError, HyperparameterError, NonFiniteError, ShapeError
        As :func:`wanda`.

    References
    ----------
    Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv 2301.00774.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    >>> sparsegpt(model, [torch.randn(32, 8)], sparsity=0.5).totals["sparsity"]
    0.5
    """
    pattern = Pattern.parse(sparsity)
    if not 0 <= damping < math.inf:
        raise HyperparameterError("damping", found=damping, expected="a number >= 0")

    def prune(layer: Layer, gram: Gram) -> dict[str, float]:
        factor_II = gram.inverse_factor(damping)
        old_OI = layer.weight_OI.float().masked_fill(gram.square_sum_I == 0, 0)  # which no output shows
        new_OI = replace_columns(old_OI, factor_II, _pruned_column(pattern, factor_II.diagonal()))
        error = output_error(old_OI, new_OI - old_OI, gram)
        layer.write(new_OI)
        return zeros(layer) | error

    with record("sparsegpt", sparsity=sparsity, damping=damping, include=include, exclude=exclude) as result:
        prune_layers(result, model, calibration, include, exclude, pattern, Gram, prune)
    return result


def _pruned_column(pattern: Pattern, diagonal_I: Tensor) -> Callable[[Tensor, int], Tensor]:
    """Return what replaces a column; the mask is chosen at the first column of each block (of each M for N:M)."""
    width = pattern.m or COLUMN_BLOCK
    pruned_OB = torch.empty(0)

    def replacement(weight_OI: Tensor, column: int) -> Tensor:
        nonlocal pruned_OB
        if column % width == 0:
            block = slice(column, column + width)
            score_OB = (weight_OI[:, block] / diagonal_I[block]).square()
            rows_OB = score_OB if pattern.m else score_OB.reshape(1, -1)
            pruned_OB = pattern.mask(rows_OB).reshape(score_OB.shape)
        return weight_OI[:, column].masked_fill(pruned_OB[:, column % width], 0)

    return replacement
