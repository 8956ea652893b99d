"""Merge two networks that were trained apart, as one command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.analyze import barrier_curve, distance
from weightsmith.analyze._mode_connectivity import POINTS
from weightsmith.core.data import Batch, Batches, as_batches
from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.models import has_batchnorm, lerp, recalibrate_batchnorm
from weightsmith.core.results import Result, record
from weightsmith.core.symmetry import Symmetry, find_symmetry
from weightsmith.core.training import mean_loss, restored_on_error, seed_of
from weightsmith.merge._weight_matching.matching import Normalize, match_weights
from weightsmith.merge._weight_matching.weight_pair import check_same_architecture

__all__ = ["weight_matching"]


def weight_matching(
    model: nn.Module,
    calibration: Batches,
    *,
    other: nn.Module,
    alpha: float = 0.5,
    restarts: int = 1,
    normalize: Normalize = "none",
    generator: torch.Generator | None = None,
) -> Result:
    """Match another network's units to this one's and average the two (Git Re-Basin).

    Which axes may be permuted is found by running the model on the first batch. The permuted network's function is
    unchanged.

    Parameters
    ----------
    model : nn.Module
        One network; becomes the average, in place.
    calibration : sequence of batches
        Inputs, to trace the model and to re-estimate the statistics of batch normalization; where they hold labels or
        tokens, also to measure the loss between the two networks, before and after matching.
    other : nn.Module
        Another network of the same architecture, trained separately; only read.
    alpha : float, default: 0.5
        Share of ``other`` in the average, in [0, 1]; at 0 and 1 the network keeps its own statistics of batch
        normalization.
    restarts : int, default: 1
        Starts of the search, of which the best is kept.
    normalize : {"none", "layer"}, default: "none"
        Whether each tensor counts by the product of its norms, or all tensors equally.
    generator : torch.Generator, optional
        Draws the order of the search; seed 0 by default.

    Returns
    -------
    Result
        Per permuted tensor its relative distance before and after; the permutations as a file; the losses between the
        networks as curves.

    Raises
    ------
    CalibrationError
        If there are no batches.
    HyperparameterError
        If a number is out of range.
    NonFiniteError
        If a weight holds NaN or infinity, or products of weights overflow.
    ShapeError
        If the networks are not of one architecture, or nothing can be permuted.
    UnsupportedModelError
        If weights are quantized.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836; Ito, Yamada, Kumagai, arXiv 2402.04051.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> one, two = (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    >>> result = weight_matching(one, [torch.rand(4, 3)], other=two)
    >>> result.totals["distance_after"] < result.totals["distance_before"]
    True
    """
    if len(calibration) == 0:
        raise CalibrationError("no batches to trace the model with", expected="at least one")
    if not 0 <= alpha <= 1:
        raise HyperparameterError("alpha", found=alpha, expected="0 <= alpha <= 1")
    if restarts < 1:
        raise HyperparameterError("restarts", found=restarts, expected=">= 1")
    hyper: dict[str, Any] = {"alpha": alpha, "restarts": restarts, "normalize": normalize}
    batches = as_batches(calibration)
    with record("weight-matching", seed=seed_of(generator), **hyper) as result, restored_on_error(model):
        end = other.state_dict()
        check_same_architecture(model.state_dict(), end)
        symmetry = find_symmetry(model, batches[0])
        start = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        found = match_weights(start, end, symmetry, restarts=restarts, normalize=normalize, generator=generator)
        moved = symmetry.permute(end, found.perms)
        statistics = has_batchnorm(model)
        if _has_loss(model, batches[0]):
            for name, state in (("before matching", end), ("after matching", moved)):
                curve = barrier_curve(
                    model,
                    start,
                    state,
                    lambda m: mean_loss(m, batches),
                    alphas=POINTS[::2],
                    calibration=batches if statistics else None,
                )
                result.curves[f"loss along the line, {name}"] = list(curve.losses)
                result.totals[f"barrier {name}"] = curve.barrier
        model.load_state_dict({key: lerp(tensor, moved[key], alpha) for key, tensor in start.items()})
        if statistics and 0 < alpha < 1:
            recalibrate_batchnorm(model, batches)
        _rows(result, symmetry, start, end, moved)
        found.add_to_result(symmetry, result)
    return result


def _rows(
    result: Result,
    symmetry: Symmetry,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
) -> None:
    for key in symmetry.axes:
        if key not in symmetry.buffers and len(symmetry.shapes[key]) > 1:
            norm = max(float(start[key].double().norm()), torch.finfo(torch.float32).tiny)
            before, after = (distance(start, state, [key]) / norm for state in (end, moved))
            result.layer(key, distance_before=before, distance_after=after)


def _has_loss(model: nn.Module, batch: Batch) -> bool:
    """Whether a batch holds what the model's own loss needs: labels, or the tokens of a language model."""
    if not isinstance(batch, Mapping):
        return False
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return "labels" in batch or ("input_ids" in batch and "decoder_input_ids" not in batch and head is not None)
