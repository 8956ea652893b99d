r"""Wanda: remove the weights with the smallest product of magnitude and input norm.

Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2023, arXiv 2306.11695. The
score of a weight is :math:`|W_{oi}| \, \lVert X_i \rVert_2`; the lowest of each row are removed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from weightsmith.core.data import Batches
from weightsmith.core.models import Layer
from weightsmith.core.results import Result, record
from weightsmith.core.statistics import InputStatistics
from weightsmith.sparsify._shared.pruning import Pattern, Sparsity, prune_layers, remove, wanda_score

__all__ = ["wanda"]


def wanda(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: Sparsity = 0.5,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Set the weights with the smallest product of magnitude and input norm to zero (Wanda).

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    calibration : sequence of batches
        A few thousand tokens of typical text (the paper: 128 sequences of 2048 tokens).
    sparsity : float or str, default: 0.5
        A fraction in (0, 1), or ``"N:M"``.
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks never change.

    Returns
    -------
    Result
        Per layer: ``sparsity``, and ``output_error``, the relative root mean square change of the layer's outputs
        computed as if its inputs were uncorrelated.

    Raises
    ------
    CalibrationError
        If there are no usable calibration batches.
    HyperparameterError
        If ``sparsity`` is out of range.
    NonFiniteError
        If weights or activations hold NaN or infinity.
    ShapeError
        If a layer does not fit ``"N:M"``.

    References
    ----------
    Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    >>> wanda(model, [torch.randn(32, 8)], sparsity="2:4").totals["sparsity"]
    0.5
    """
    pattern = Pattern.parse(sparsity)

    def prune(layer: Layer, statistics: InputStatistics) -> dict[str, float]:
        return remove(layer, pattern.mask(wanda_score(layer.weight_OI, statistics)), statistics)

    with record("wanda", sparsity=sparsity, include=include, exclude=exclude) as result:
        prune_layers(result, model, calibration, include, exclude, pattern, InputStatistics, prune)
    return result
