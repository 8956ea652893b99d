r"""DSnoT: refine a pruning mask by swapping removed and kept weights until the expected error of each output is small.

"Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs" (ICLR 2024), arXiv 2310.08915. No weight
changes its value, and each row keeps its number of weights.

Removing the weights :math:`P_o` of row :math:`o` shifts its expected output by

.. math:: \varepsilon_o = \sum_{i \in P_o} W_{oi} \, \bar a_i

with :math:`\bar a` the inputs' sum over the tokens of a sequence, averaged over sequences. A swap grows the removed
weight whose contribution has the sign of :math:`\varepsilon_o` and whose :math:`|W_{oi} \bar a_i| / v_i^p` is largest,
where :math:`v_i` is the variance of the input. It removes the kept weight of the opposite sign with the lowest Wanda
score.

Legend: ``O`` outputs (rows), ``I`` inputs (columns), ``R`` the rows still being swapped, ``M`` columns of an N:M group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, ShapeError, UnsupportedModelError
from weightsmith.core.models import Layer, block_layers
from weightsmith.core.results import Result, record
from weightsmith.core.selection import lowest_k_mask
from weightsmith.core.statistics import Gram, InputStatistics
from weightsmith.sparsify._shared.pruning import Pattern, Sparsity, prune_layers, remove, wanda_score

__all__ = ["Refinement", "dsnot", "refine_mask"]

Start: TypeAlias = Literal["wanda", "magnitude", "sparsegpt"]

MIN_ROWS = 256
"""Layers with fewer calibration rows keep their starting mask: their means and variances are too noisy."""

CPU_CHUNK, GPU_CHUNK = 1 << 21, 1 << 24
"""Weights whose scores are in memory at the same time."""


@dataclass
class Refinement:
    """What :func:`refine_mask` did.

    Attributes
    ----------
    pruned_OI : Tensor of shape (out, in)
        The new mask: True where the weight is removed.
    error_before_O, error_after_O : Tensor of shape (out,)
        Signed expected output error of each row, summed over the tokens of a sequence.
    swaps_O : Tensor of shape (out,)
        Number of swaps in each row.
    """

    pruned_OI: Bool[Tensor, "out in"]
    error_before_O: Float[Tensor, "out"]
    error_after_O: Float[Tensor, "out"]
    swaps_O: Int[Tensor, "out"]


def dsnot(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: Sparsity = 0.5,
    start: Start = "wanda",
    masks: Mapping[str, Tensor] | None = None,
    max_swaps: int = 50,
    tolerance: float = 0.1,
    variance_power: float = 1.0,
    correct_bias: bool = False,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Prune a model and refine the mask of every layer by training-free swaps (DSnoT).

    Parameters
    ----------
    model : nn.Module
        The dense model; changed in place.
    calibration : sequence of batches
        A few thousand tokens of typical text (the paper: 128 sequences of 2048 tokens).
    sparsity : float or str, default: 0.5
        A fraction in (0, 1), or ``"N:M"``.
    start : {"wanda", "magnitude", "sparsegpt"}, default: "wanda"
        The score of the starting mask, which removes the lowest scores of each row.
    masks : mapping of str to Tensor, optional
        Starting masks by layer name, shaped like the module's weight, nonzero where the weight is kept. They replace
        ``start`` and ``sparsity``, except that an ``"N:M"`` pattern still constrains the swaps.
    max_swaps : int, default: 50
        Maximum number of swaps per row.
    tolerance : float, default: 0.1
        A row is finished when its expected error, summed over the tokens of a sequence, is at most this.
    variance_power : float, default: 1.0
        Power of the input variance in the growing score; 0 ignores the variance.
    correct_bias : bool, default: False
        Add the remaining expected error to the layer's bias, where it has one.
    include, exclude : str or sequence of str
        Shell patterns on layer names. Layers outside the model's repeated blocks never change. The paper's commands
        refine attention only: ``exclude="*mlp*"``.

    Returns
    -------
    Result
        Per layer: ``sparsity``, ``output_error``, mean ``swaps`` per row, and the mean absolute expected error per
        token before and after (``row_error_before``, ``row_error_after``).

    Raises
    ------
    CalibrationError
        If there are no usable calibration batches.
    HyperparameterError
        If a hyper-parameter is out of range.
    LayerNotFoundError
        If ``masks`` lacks a layer.
    NonFiniteError
        If weights or activations hold NaN or infinity.
    ShapeError
        If a layer does not fit ``"N:M"``, or a mask its layer.
    UnsupportedModelError
        If the weights are sparse already: growing needs the dense ones.

    Notes
    -----
    A row is also finished when the next swap would not lower its absolute expected error. The authors' code has no such
    test for unstructured masks; the error then changes sign at almost every swap, and good weights are replaced by
    worse ones.

    For an expert of a mixture, the tokens that a batch routes to it count as one sequence.

    References
    ----------
    Zhang, Zhao, Lin, et al., arXiv 2310.08915.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> result = dsnot(model, [torch.rand(512, 64)], sparsity=0.5, start="magnitude")
    >>> result.totals["row_error_after"] < result.totals["row_error_before"]
    True
    """
    pattern = Pattern.parse(sparsity)
    check_choice("start", start, Start)
    _check_hyper(max_swaps, tolerance, variance_power)
    if masks is not None:
        _check_masks(masks, block_layers(model, include, exclude))

    def starting_score(layer: Layer, statistics: InputStatistics) -> Tensor:
        weight_OI = layer.weight_OI.float()
        if isinstance(statistics, Gram):
            return (weight_OI / statistics.inverse_factor().diagonal()).square()
        return weight_OI.abs() if start == "magnitude" else wanda_score(weight_OI, statistics)

    def prune(layer: Layer, statistics: InputStatistics) -> dict[str, float]:
        weight_OI = layer.weight_OI
        _check_dense(layer, pattern, masks)
        score_OI = starting_score(layer, statistics)
        if masks is None:
            pruned_OI = pattern.mask(score_OI)
        else:
            pruned_OI = (layer.matrix(masks[layer.name]) == 0).to(weight_OI.device)
        refined = refine_mask(
            weight_OI,
            pruned_OI,
            statistics,
            start_score_OI=score_OI,
            pattern=pattern,
            max_swaps=max_swaps if statistics.rows >= MIN_ROWS else 0,
            tolerance=tolerance,
            variance_power=variance_power,
        )
        tokens = statistics.rows / statistics.sequences
        if correct_bias and layer.bias is not None:
            layer.bias.data += (refined.error_after_O / tokens).to(layer.bias.dtype)
        measures = {
            "swaps": refined.swaps_O.float().mean().item(),
            "row_error_before": refined.error_before_O.abs().mean().item() / tokens,
            "row_error_after": refined.error_after_O.abs().mean().item() / tokens,
        }
        return remove(layer, refined.pruned_OI, statistics) | measures

    hyper: dict[str, Any] = {
        "sparsity": sparsity,
        "start": start if masks is None else "masks",
        "max_swaps": max_swaps,
        "tolerance": tolerance,
        "variance_power": variance_power,
        "correct_bias": correct_bias,
        "include": include,
        "exclude": exclude,
    }
    with record("dsnot", **hyper) as result:
        make = Gram if start == "sparsegpt" and masks is None else InputStatistics
        prune_layers(result, model, calibration, include, exclude, pattern, make, prune)
        for key in ("swaps", "row_error_before", "row_error_after"):
            result.totals[key] = sum(row[key] for row in result.layers) / max(len(result.layers), 1)
    return result


def refine_mask(
    weight_OI: Float[Tensor, "out in"],
    pruned_OI: Bool[Tensor, "out in"],
    statistics: InputStatistics,
    *,
    start_score_OI: Float[Tensor, "out in"] | None = None,
    pattern: Pattern | None = None,
    max_swaps: int = 50,
    tolerance: float = 0.1,
    variance_power: float = 1.0,
) -> Refinement:
    """Refine the mask of one layer; rows are independent and the weights do not change.

    Parameters
    ----------
    weight_OI : Tensor of shape (out, in)
        The dense weights.
    pruned_OI : Tensor of shape (out, in)
        The starting mask, True where the weight is removed.
    statistics : InputStatistics
        Of the layer's inputs.
    start_score_OI : Tensor of shape (out, in), optional
        Scores of the starting mask, used only with N:M to choose the weight to remove; Wanda's by default.
    pattern : Pattern, optional
        With N:M, the weight to remove is in the same M columns as the grown one.
    max_swaps, tolerance, variance_power
        As for :func:`dsnot`.

    Returns
    -------
    Refinement
        The new mask, and for each row the errors before and after and the number of swaps.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is out of range.
    ShapeError
        If mask and weight differ in shape.

    Examples
    --------
    >>> from weightsmith.core.models import Layer
    >>> layer = Layer("fc", nn.Linear(4, 1))
    >>> statistics = InputStatistics(layer)
    >>> statistics.update(torch.tensor([[[1.0, 1.0, 1.0, 2.0], [3.0, 1.5, 2.0, 4.0]]]))
    >>> weight = torch.tensor([[1.0, -0.4, 0.5, 0.2]])
    >>> done = refine_mask(weight, torch.tensor([[False, False, True, True]]), statistics)
    >>> done.pruned_OI, done.error_before_O, done.error_after_O
    (tensor([[False,  True, False,  True]]), tensor([2.7000]), tensor([0.2000]))
    """
    _check_hyper(max_swaps, tolerance, variance_power)
    if weight_OI.shape != pruned_OI.shape:
        raise ShapeError("mask", found=tuple(pruned_OI.shape), expected=f"the weight's {tuple(weight_OI.shape)}")
    rows = max(1, (CPU_CHUNK if weight_OI.device.type == "cpu" else GPU_CHUNK) // weight_OI.shape[1])
    # an input that is always zero contributes nothing and is no candidate; a constant one brings no variance
    gain_I = statistics.sum_I.abs() * statistics.variance_I.pow(-variance_power)
    gain_I = gain_I.nan_to_num(nan=0.0, posinf=torch.inf)
    parts = []
    for first in range(0, len(weight_OI), rows):
        w_OI = weight_OI[first : first + rows].float()
        cost_OI = wanda_score(w_OI, statistics)
        start_OI = cost_OI if start_score_OI is None else start_score_OI[first : first + rows]
        scores = _Scores(w_OI * statistics.sum_I, w_OI.abs() * gain_I, cost_OI, start_OI)
        pruned = pruned_OI[first : first + rows].clone()
        parts.append(_swap(scores, pruned, pattern.m if pattern else 0, max_swaps, tolerance))
    return Refinement(
        torch.cat([part.pruned_OI for part in parts]),
        torch.cat([part.error_before_O for part in parts]),
        torch.cat([part.error_after_O for part in parts]),
        torch.cat([part.swaps_O for part in parts]),
    )


class _Scores(NamedTuple):
    """Scores of some rows: signed contributions to the error, growing scores, Wanda's scores, the starting mask's."""

    contribution_OI: Tensor
    grow_OI: Tensor
    cost_OI: Tensor
    start_OI: Tensor


class _Candidates(NamedTuple):
    """Candidates of each row, lowest cost first: for rows with positive error, then for rows with negative error.

    A swap only ever uses up a candidate, so that those of all swaps are known before the first.
    """

    cost_2OK: Tensor
    column_2OK: Tensor

    @classmethod
    def find(cls, cost_OI: Tensor, positive_OI: Tensor, negative_OI: Tensor, count: int) -> _Candidates:
        """Find up to ``count`` candidates of the lowest cost, of equal ones the first; inf marks what is none."""
        count = min(count, cost_OI.shape[1])
        found = []
        for side_OI in (positive_OI, negative_OI):
            own_OI = torch.where(side_OI, cost_OI, torch.inf)
            column_OK = lowest_k_mask(own_OI, count).nonzero()[:, 1].view(len(cost_OI), count)
            cost_OK, order_OK = own_OI.gather(1, column_OK).sort(dim=1, stable=True)
            found.append((cost_OK, column_OK.gather(1, order_OK)))
        cost_2OK, column_2OK = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cls(nn.functional.pad(cost_2OK, (0, 1), value=torch.inf), nn.functional.pad(column_2OK, (0, 1)))

    def at(self, side_R: Tensor, used_2O: Tensor) -> tuple[Tensor, Tensor]:
        """The next candidate of some rows: its cost and column."""
        return self.cost_2OK[side_R, used_2O[side_R]], self.column_2OK[side_R, used_2O[side_R]]


def _swap(scores: _Scores, pruned_OI: Tensor, m: int, max_swaps: int, tolerance: float) -> Refinement:
    """Swap in all rows at once, one swap per row and step, until every row is finished."""
    contribution_OI = scores.contribution_OI
    positive_OI, negative_OI = contribution_OI > 0, contribution_OI < 0
    grow = _Candidates.find(-scores.grow_OI, pruned_OI & positive_OI, pruned_OI & negative_OI, max_swaps)
    if m:
        keep_OI = scores.start_OI.masked_fill(pruned_OI, torch.inf)
    else:
        drop = _Candidates.find(scores.cost_OI, ~pruned_OI & negative_OI, ~pruned_OI & positive_OI, max_swaps)
    error_O = (contribution_OI * pruned_OI).sum(1)
    before_O, swaps_O = error_O.clone(), torch.zeros_like(error_O, dtype=torch.long)
    used_2O = torch.zeros(2 * len(error_O), dtype=torch.long, device=error_O.device)
    rows_R = torch.arange(len(error_O), device=error_O.device)
    for _ in range(max_swaps):
        rows_R = rows_R[error_O[rows_R].abs() > tolerance]
        if len(rows_R) == 0:
            break
        old_R = error_O[rows_R]
        side_R = rows_R + len(error_O) * (old_R <= 0)
        best_R, grow_R = grow.at(side_R, used_2O)
        if m:
            group_RM = (grow_R - grow_R % m).unsqueeze(1) + torch.arange(m, device=grow_R.device)
            lowest_R, place_R = keep_OI[rows_R.unsqueeze(1), group_RM].min(1)
            drop_R = group_RM.gather(1, place_R.unsqueeze(1)).squeeze(1)
        else:
            lowest_R, drop_R = drop.at(side_R, used_2O)
        new_R = old_R - contribution_OI[rows_R, grow_R] + contribution_OI[rows_R, drop_R]
        accept_R = (best_R < torch.inf) & (lowest_R < torch.inf) & (new_R.abs() < old_R.abs())
        rows_R, side_R, grow_R, drop_R, new_R = (t[accept_R] for t in (rows_R, side_R, grow_R, drop_R, new_R))
        pruned_OI[rows_R, grow_R] = False
        pruned_OI[rows_R, drop_R] = True
        used_2O[side_R] += 1
        if m:
            keep_OI[rows_R, drop_R] = torch.inf
        error_O[rows_R] = new_R
        swaps_O[rows_R] += 1
    return Refinement(pruned_OI, before_O, error_O, swaps_O)


def _check_hyper(max_swaps: int, tolerance: float, variance_power: float) -> None:
    if max_swaps < 0:
        raise HyperparameterError("max_swaps", found=max_swaps, expected=">= 0")
    if not tolerance >= 0:
        raise HyperparameterError("tolerance", found=tolerance, expected=">= 0")
    if not 0 <= variance_power < math.inf:
        raise HyperparameterError("variance_power", found=variance_power, expected="a number >= 0")


def _check_masks(masks: Mapping[str, Tensor], layers: Sequence[Layer]) -> None:
    for layer in layers:
        shape = layer.weight.shape
        if layer.name in masks and masks[layer.name].shape != shape:
            raise ShapeError(
                f"mask of layer {layer.name!r}", found=tuple(masks[layer.name].shape), expected=tuple(shape)
            )


def _check_dense(layer: Layer, pattern: Pattern, masks: Mapping[str, Tensor] | None) -> None:
    if masks is not None and layer.name not in masks:
        raise LayerNotFoundError(
            f"no mask for layer {layer.name!r}",
            found=f"masks of {list(masks)[:4]}",
            do="Leave the layer out with exclude.",
        )
    zeros = 1 - int(layer.weight_OI.count_nonzero()) / layer.weight_OI.numel()
    if zeros >= pattern.share:
        raise UnsupportedModelError(
            f"layer {layer.name!r} is already sparse; swaps need the dense weights",
            found=f"{zeros:.0%} zeros",
            do="Load the dense checkpoint and pass the sparse one's nonzero pattern as masks.",
        )
