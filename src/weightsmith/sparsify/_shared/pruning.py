"""What the pruning methods share: the sparsity pattern, the block-by-block walk, the measures per layer.

Legend: ``O`` outputs, ``I`` inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.models import Layer, block_layers, check_weight, missed, rewriting, unreached
from weightsmith.core.results import Result
from weightsmith.core.selection import keep_, lowest_k_mask, lowest_n_of_m_mask
from weightsmith.core.statistics import InputStatistics, output_error

__all__ = [
    "Pattern",
    "Sparsity",
    "prune_layers",
    "remove",
    "summarize",
    "wanda_score",
    "zeros",
]

Sparsity: TypeAlias = float | str
"""A fraction of each row in (0, 1), or ``"N:M"``: of every M consecutive columns the N lowest are removed."""


@dataclass(frozen=True)
class Pattern:
    """Which fraction of the weights is removed, and in which structure.

    Examples
    --------
    >>> import torch
    >>> Pattern.parse(0.5).mask(torch.tensor([[3.0, 1.0, 2.0, 4.0]]))
    tensor([[False,  True,  True, False]])
    >>> Pattern.parse("2:4").share
    0.5
    """

    share: float
    n: int = 0
    m: int = 0

    @classmethod
    def parse(cls, sparsity: Sparsity) -> Pattern:
        """Read a fraction or ``"N:M"``.

        Raises
        ------
        HyperparameterError
            If it is neither a number in (0, 1) nor ``"N:M"`` with 0 < N < M.
        """
        match = re.fullmatch(r"(\d+):(\d+)", str(sparsity))
        if match:
            n, m = int(match[1]), int(match[2])
            if 0 < n < m:
                return cls(n / m, n, m)
        else:
            try:
                share = float(sparsity)
            except ValueError:
                share = -1.0
            if 0 < share < 1:
                return cls(share)
        raise HyperparameterError(
            "sparsity", found=repr(sparsity), expected="a number in (0, 1), or 'N:M' with 0 < N < M"
        )

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse layers whose width the pattern does not fit, before anything changes.

        Raises
        ------
        ShapeError
            If a layer's number of columns is not a multiple of M.
        """
        for layer in layers:
            columns = layer.weight_OI.shape[1]
            if self.m and columns % self.m:
                raise ShapeError(
                    f"layer {layer.name!r} for sparsity {self.n}:{self.m}",
                    found=f"{columns} columns",
                    expected=f"a multiple of {self.m}",
                    do="Leave it out with exclude.",
                )

    def count(self, columns: int) -> int:
        """Weights to remove in a row of this many columns; the small term corrects 0.29 * 100 = 28.99..."""
        return int(columns * self.share + 1e-6)

    def mask(self, score_OI: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Mark the weights to remove: the lowest scores of each row, of equal scores the first."""
        if self.m:
            return lowest_n_of_m_mask(score_OI, self.n, self.m)
        return lowest_k_mask(score_OI, self.count(score_OI.shape[1]))


def wanda_score(weight_OI: Float[Tensor, "out in"], statistics: InputStatistics) -> Float[Tensor, "out in"]:
    """Return Wanda's score in float32: weight magnitude times input norm."""
    return weight_OI.abs().float().mul_(statistics.square_sum_I.sqrt())


def prune_layers(
    result: Result,
    model: nn.Module,
    calibration: Batches,
    include: str | Sequence[str],
    exclude: str | Sequence[str],
    pattern: Pattern,
    make: Callable[[Layer], Any],
    prune: Callable[[Layer, Any], dict[str, float]],
) -> None:
    """Prune block by block: the statistics of each dense block come from the blocks pruned before it.

    Parameters
    ----------
    result : Result
        Receives a row per layer, and the totals.
    model, calibration, include, exclude
        As for :func:`wanda`.
    pattern : Pattern
        Checked against the width of every layer.
    make : callable
        Makes the accumulator of a layer's input statistics.
    prune : callable
        Prunes one layer given its statistics, and returns its measures.
    """
    result.notes += unreached(model, block_layers(model))
    with rewriting(model, calibration, include, exclude) as blocks:
        for block in blocks:
            pattern.check(block.layers)
            statistics = block.observe(block.layers, make)
            for layer in block.layers:
                check_weight(layer)
                if layer.name in statistics:
                    result.layer(layer.name, **prune(layer, statistics[layer.name]))
                if layer.aliases:
                    result.notes.append(f"Layer {layer.name!r} shares its weight with {list(layer.aliases)}.")
        reached = [row["layer"] for row in result.layers]
        result.notes += missed(block_layers(model, include, exclude), reached, "they stay dense")
        summarize(result)


def remove(
    layer: Layer, pruned_OI: Bool[Tensor, "out in"], statistics: InputStatistics | None = None
) -> dict[str, float]:
    """Set the marked weights of a layer to zero and return its measures; the other weights do not change."""
    measures = {}
    if statistics is not None:
        removed_OI = keep_(layer.weight_OI.to(torch.float32, copy=True), pruned_OI)
        measures = output_error(layer.weight_OI.float(), removed_OI, statistics)
    keep_(layer.weight.detach(), layer.like_weight(~pruned_OI))
    return zeros(layer) | measures


def summarize(result: Result) -> None:
    """Compute the totals from the rows: weights, fraction of zeros, mean output error."""
    weights = sum(row["weights"] for row in result.layers)
    result.totals["layers"] = len(result.layers)
    result.totals["weights"] = weights
    result.totals["sparsity"] = sum(row["weights"] * row["sparsity"] for row in result.layers) / max(weights, 1)
    errors = [row["output_error"] for row in result.layers if "output_error" in row]
    if errors:
        result.totals["output_error"] = sum(errors) / len(errors)


def zeros(layer: Layer) -> dict[str, float]:
    """Return the number of weights of a layer and the fraction of them that is zero."""
    weight_OI = layer.weight_OI
    return {"weights": weight_OI.numel(), "sparsity": 1 - int(weight_OI.bool().count_nonzero()) / weight_OI.numel()}
