r"""Magnitude pruning: remove the weights of smallest magnitude :math:`|W_{oi}|`, without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import Layer, block_layers, check_weight, rewriting, unreached
from weightsmith.core.results import Result, record
from weightsmith.sparsify._shared.pruning import Pattern, Sparsity, remove, summarize

__all__ = ["magnitude"]

Group = Literal["row", "layer"]


def magnitude(
    model: nn.Module,
    *,
    sparsity: Sparsity = 0.5,
    group: Group = "row",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Set the smallest weights to zero, without data.

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    sparsity : float or str, default: 0.5
        A fraction in (0, 1), or ``"N:M"``.
    group : {"row", "layer"}, default: "row"
        Compare weights within each row, or over the whole layer (unstructured only).
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks never change.

    Returns
    -------
    Result
        Per layer: ``sparsity``.

    Raises
    ------
    HyperparameterError
        If ``sparsity`` is out of range, or ``group="layer"`` comes with ``"N:M"``.
    ShapeError
        If a layer does not fit ``"N:M"``.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> magnitude(model, sparsity=0.25).totals["sparsity"]
    0.25
    """
    pattern = Pattern.parse(sparsity)
    check_choice("group", group, Group)
    if group == "layer" and pattern.m:
        raise HyperparameterError("group='layer' needs an unstructured sparsity", found=repr(sparsity))

    def prune(layer: Layer) -> dict[str, float]:
        score_OI = upcast(layer.weight_OI).abs()
        if group == "layer":
            return remove(layer, pattern.mask(score_OI.reshape(1, -1)).reshape(score_OI.shape))
        return remove(layer, pattern.mask(score_OI))

    with (
        record("magnitude", sparsity=sparsity, group=group, include=include, exclude=exclude) as result,
        rewriting(model, None, include, exclude) as blocks,
    ):
        result.notes += unreached(model, block_layers(model))
        for block in blocks:
            pattern.check(block.layers)
            for layer in block.layers:
                check_weight(layer)
                result.layer(layer.name, **prune(layer))
        summarize(result)
    return result
