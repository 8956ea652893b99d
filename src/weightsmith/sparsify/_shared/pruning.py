r"""One-shot pruning: magnitude, Wanda and SparseGPT, unstructured or N:M, block by block.

Each scores the weights :math:`W_{oi}` of a layer by the harm their removal does, and removes the lowest of every row
(of every ``M`` consecutive columns for N:M):

* magnitude: :math:`|W_{oi}|`
* Wanda (Sun, Liu, Bair, Kolter 2023, arXiv 2306.11695): :math:`|W_{oi}| \, \lVert X_i \rVert_2`
* SparseGPT (Frantar, Alistarh 2023, arXiv 2301.00774): :math:`W_{oi}^2 / U_{ii}^2` with
  :math:`U^\top U = (X^\top X + \lambda I)^{-1}`; the weights that stay move to make up for those that go.

Legend: ``O`` outputs, ``I`` inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import inverse_cholesky, lowest_k_mask, lowest_n_of_m_mask
from weightsmith.core.models import Layer, rewriting
from weightsmith.core.results import Result, record
from weightsmith.core.statistics import Gram, InputStatistics

__all__ = ["Pattern", "Sparsity", "magnitude", "prune_layers", "sparsegpt", "wanda", "wanda_score"]

Sparsity: TypeAlias = float | str
"""A share of each row in (0, 1), or ``"N:M"``: the N lowest of every M consecutive columns go (``"2:4"``)."""

COLUMNS_AT_ONCE = 128
"""SparseGPT updates the weights in runs of this many columns, and picks its mask within each run."""


@dataclass(frozen=True)
class Pattern:
    """Which share of the weights goes, in which arrangement.

    Examples
    --------
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
        """Read a share or ``"N:M"``.

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
        """Refuse layers whose width the pattern does not fit, before anything is changed.

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
        """Weights that go in a row of this many columns; the small term undoes errors like 0.29 * 100 = 28.99..."""
        return int(columns * self.share + 1e-6)

    def mask(self, score_OI: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Mark the lowest scores, the weights to remove, row by row (of equal scores the first)."""
        if self.m:
            return lowest_n_of_m_mask(score_OI, self.n, self.m)
        return lowest_k_mask(score_OI, self.count(score_OI.shape[1]))


def magnitude(
    model: nn.Module,
    *,
    sparsity: Sparsity = 0.5,
    group: Literal["row", "layer"] = "row",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Set the smallest weights to zero, without data.

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    sparsity : float or str, default: 0.5
        A share in (0, 1), or ``"N:M"``.
    group : {"row", "layer"}, default: "row"
        Compare weights within each row, or over the whole layer (unstructured only).
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks are never touched.

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
    if group == "layer" and pattern.m:
        raise HyperparameterError("group='layer' needs an unstructured sparsity", found=repr(sparsity))

    def prune(layer: Layer) -> dict[str, float]:
        score_OI = layer.weight_OI.float().abs()
        if group == "layer":
            return remove(layer, pattern.mask(score_OI.reshape(1, -1)).reshape(score_OI.shape))
        return remove(layer, pattern.mask(score_OI))

    with (
        record("magnitude", sparsity=sparsity, group=group, include=include, exclude=exclude) as result,
        rewriting(model, None, include, exclude) as blocks,
    ):
        for block in blocks:
            pattern.check(block.layers)
            for layer in block.layers:
                _check_weight(layer)
                result.layer(layer.name, **prune(layer))
        summarise(result)
    return result


def wanda(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: Sparsity = 0.5,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Set the weights with the smallest product of size and input norm to zero (Wanda).

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    calibration : sequence of batches
        A few thousand tokens of typical text (the paper: 128 sequences of 2048 tokens).
    sparsity : float or str, default: 0.5
        A share in (0, 1), or ``"N:M"``.
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks are never touched.

    Returns
    -------
    Result
        Per layer: ``sparsity``, and ``output_error``, the relative root mean square change of the layer's outputs
        if its inputs were uncorrelated.

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


def sparsegpt(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: Sparsity = 0.5,
    damping: float = 0.01,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Prune with second-order scores and let the remaining weights make up for the removed ones (SparseGPT).

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place.
    calibration : sequence of batches
        A few thousand tokens of typical text (the paper: 128 sequences of 2048 tokens).
    sparsity : float or str, default: 0.5
        A share in (0, 1), or ``"N:M"``. An unstructured share holds within each run of 128 columns, over all rows.
    damping : float, default: 0.01
        Added to the Gram matrix's diagonal, as a fraction of its mean.
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks are never touched.

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
    if damping < 0:
        raise HyperparameterError("damping", found=damping, expected=">= 0")
    factors: dict[int, Tensor] = {}

    def prune(layer: Layer, gram: Gram) -> dict[str, float]:
        if id(gram) not in factors:  # query, key and value share one Gram matrix
            factors.clear()
            factors[id(gram)] = inverse_cholesky(gram.gram_II, damping)
        old_OI = layer.weight_OI.to(torch.float32, copy=True)
        new_OI = _optimal_brain_surgeon(old_OI, factors[id(gram)], gram.gram_II.diagonal() == 0, pattern)
        layer.weight_OI.copy_(new_OI)
        return _zeros(layer) | _output_error(old_OI, new_OI - old_OI, gram)

    with record("sparsegpt", sparsity=sparsity, damping=damping, include=include, exclude=exclude) as result:
        prune_layers(result, model, calibration, include, exclude, pattern, Gram, prune)
    return result


def wanda_score(weight_OI: Float[Tensor, "out in"], statistics: InputStatistics) -> Float[Tensor, "out in"]:
    """Return Wanda's score, in float32: weight size times input norm."""
    return weight_OI.float().abs() * statistics.square_sum_I.sqrt()


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
    """Prune block by block: statistics of the dense block on the pruned model's activations, then its weights.

    Parameters
    ----------
    result : Result
        Gets a row for every layer, and the totals.
    model, calibration, include, exclude
        As for :func:`wanda`.
    pattern : Pattern
        Checked against every layer's width.
    make : callable
        Makes a layer's statistics accumulator.
    prune : callable
        Prunes one layer, given its statistics, and returns its measures.
    """
    with rewriting(model, calibration, include, exclude) as blocks:
        for block in blocks:
            pattern.check(block.layers)
            statistics = block.observe(block.layers, make)
            for layer in block.layers:
                if layer.name in statistics:
                    _check_weight(layer)
                    result.layer(layer.name, **prune(layer, statistics[layer.name]))
                else:
                    result.notes.append(f"No calibration token reached layer {layer.name!r}: it stays dense.")
                if layer.aliases:
                    result.notes.append(f"Layer {layer.name!r} shares its weight with {list(layer.aliases)}.")
        summarise(result)


def remove(
    layer: Layer, pruned_OI: Bool[Tensor, "out in"], statistics: InputStatistics | None = None
) -> dict[str, float]:
    """Set the marked weights of a layer to zero and return what that did; the others keep every bit."""
    measures = {}
    if statistics is not None:
        old_OI = layer.weight_OI.float()
        measures = _output_error(old_OI, old_OI.masked_fill(~pruned_OI, 0), statistics)
    layer.weight_OI.masked_fill_(pruned_OI, 0)
    return _zeros(layer) | measures


def summarise(result: Result) -> None:
    """Add up the layers' rows: weights, share of zeros, mean output error."""
    weights = sum(row["weights"] for row in result.layers)
    result.totals["layers"] = len(result.layers)
    result.totals["weights"] = weights
    result.totals["sparsity"] = sum(row["weights"] * row["sparsity"] for row in result.layers) / max(weights, 1)
    errors = [row["output_error"] for row in result.layers if "output_error" in row]
    if errors:
        result.totals["output_error"] = sum(errors) / len(errors)


def _zeros(layer: Layer) -> dict[str, float]:
    weight_OI = layer.weight_OI
    return {"weights": weight_OI.numel(), "sparsity": 1 - int(weight_OI.count_nonzero()) / weight_OI.numel()}


def _output_error(old_OI: Tensor, change_OI: Tensor, statistics: InputStatistics) -> dict[str, float]:
    power_I = statistics.square_sum_I
    power = (old_OI.square() @ power_I).sum().clamp(min=torch.finfo(torch.float32).tiny)
    return {"output_error": float(((change_OI.square() @ power_I).sum() / power).sqrt())}


def _check_weight(layer: Layer) -> None:
    if not bool(layer.weight_OI.isfinite().all()):
        raise NonFiniteError(f"the weight of layer {layer.name!r} holds NaN or infinity", do="Repair the checkpoint.")


def _optimal_brain_surgeon(
    weight_OI: Float[Tensor, "out in"], factor_II: Float[Tensor, "in in"], dead_I: Bool[Tensor, "in"], pattern: Pattern
) -> Float[Tensor, "out in"]:
    """Remove weights column by column; each removal's error moves to the columns not yet visited."""
    w_OI = weight_OI.clone()
    w_OI[:, dead_I] = 0
    diagonal_I = factor_II.diagonal()
    columns = w_OI.shape[1]
    for start in range(0, columns, COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, columns)
        run_OC, factor_CC = w_OI[:, start:stop], factor_II[start:stop, start:stop]
        errors_OC = torch.zeros_like(run_OC)
        if not pattern.m:
            score_OC = (run_OC / diagonal_I[start:stop]).square()
            pruned_OC = lowest_k_mask(score_OC.reshape(1, -1), int(score_OC.numel() * pattern.share + 1e-6))
            pruned_OC = pruned_OC.reshape(score_OC.shape)
        for c in range(stop - start):
            if pattern.m and (start + c) % pattern.m == 0:
                ahead = slice(start + c, start + c + pattern.m)
                pruned_OM = lowest_k_mask((w_OI[:, ahead] / diagonal_I[ahead]).square(), pattern.n)
            gone_O = pruned_OM[:, (start + c) % pattern.m] if pattern.m else pruned_OC[:, c]
            errors_OC[:, c] = torch.where(gone_O, run_OC[:, c], 0) / factor_CC[c, c]
            run_OC[:, c:] -= errors_OC[:, c : c + 1] * factor_CC[c, c:]
            run_OC[:, c].masked_fill_(gone_O, 0)
        w_OI[:, stop:] -= errors_OC @ factor_II[start:stop, stop:]
    return w_OI
