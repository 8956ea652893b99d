"""What the methods share that round weights without training: the walk over the blocks, the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.data import Batches
from weightsmith.core.errors import NonFiniteError
from weightsmith.core.levels import FILE, Grid, Quantization, WeightLevels, symmetric_step
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.models import Layer, block_layers, check_weight, missed, rewriting, unreached
from weightsmith.core.results import Result
from weightsmith.core.statistics import output_error

__all__ = ["round_layers"]


def round_layers(
    result: Result,
    model: nn.Module,
    calibration: Batches | None,
    bits: int,
    include: str | Sequence[str],
    exclude: str | Sequence[str],
    make: Callable[[Layer], Any] | None,
    rounded: Callable[[Tensor, Callable[[Tensor], Tensor], Any], Tensor],
) -> None:
    """Round the weights of every block, each block after the inputs that the rounded ones before it give.

    Parameters
    ----------
    result : Result
        Receives a row per layer, the totals and ``quantization.json``.
    model, calibration, bits, include, exclude
        As for :func:`gptq`.
    make : callable or None
        Makes the accumulator of a layer's input statistics.
    rounded : callable
        ``rounded(weight_OI, nearest, statistics)`` returns the new weight; ``nearest`` puts columns on their levels.
    """
    grid = Grid(bits)
    levels: dict[str, WeightLevels] = {}
    result.notes += unreached(model, block_layers(model))
    with rewriting(model, calibration, include, exclude) as blocks:
        for block in blocks:
            statistics = {} if make is None else block.observe(block.layers, make)
            for layer in block.layers:
                check_weight(layer)
                if make is not None and layer.name not in statistics:
                    continue
                old_OI = upcast(layer.weight_OI)
                dtype = layer.weight.dtype
                step_O1 = symmetric_step(old_OI, bits, dtype)

                def nearest(
                    columns_OK: Float[Tensor, "out columns"], step_O1: Tensor = step_O1, dtype: torch.dtype = dtype
                ) -> Float[Tensor, "out columns"]:
                    return upcast(grid.values(grid.codes(columns_OK, step_O1), step_O1, dtype))

                gram = statistics.get(layer.name)
                new_OI = rounded(old_OI, nearest, gram)
                if not is_finite(new_OI):
                    raise NonFiniteError(
                        f"the rounded weight of {layer.name!r} holds NaN or infinity",
                        found=f"values up to {float(layer.weight_OI.abs().max()):.3g}",
                        expected="weights within float32, in which they are rounded",
                    )
                row = {"bits": bits, "weight_error": float((new_OI - old_OI).norm() / old_OI.norm().clamp_min(1e-30))}
                if gram is not None:
                    row |= output_error(old_OI, new_OI - old_OI, gram)
                layer.write(new_OI)
                result.layer(layer.name, **row)
                levels[layer.name] = WeightLevels(bits, False, step_O1.squeeze(1).tolist())
                if layer.aliases:
                    result.notes.append(f"Layer {layer.name!r} shares its weight with {list(layer.aliases)}.")
        result.notes += missed(block_layers(model, include, exclude), levels, "they stay unrounded")
    result.totals["layers"] = len(result.layers)
    for name in ("weight_error", "output_error"):
        if found := [row[name] for row in result.layers if name in row]:
            result.totals[name] = sum(found) / len(found)
    result.files = {FILE: Quantization(levels).to_json()}
