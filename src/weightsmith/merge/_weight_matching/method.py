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
from weightsmith.core.training import mean_loss, restored_on_error
from weightsmith.merge._weight_matching.holding import check_alike
from weightsmith.merge._weight_matching.matching import Normalize, match_weights
from weightsmith.merge._weight_matching.spec import PermutationSpec

__all__ = ["weight_matching"]


def weight_matching(
    model: nn.Module,
    calibration: Batches,
    *,
    other: nn.Module,
    fraction: float = 0.5,
    restarts: int = 1,
    normalize: Normalize = "none",
    generator: torch.Generator | None = None,
) -> Result:
    """Put another network's units in this one's order and average the two (Git Re-Basin).

    Which axes may be permuted is found by running the model on the first batch. The permuted network computes what it
    computed before; only the average is new.

    Parameters
    ----------
    model : nn.Module
        One network; becomes the average, in place.
    calibration : sequence of batches
        Inputs, to trace the model, to estimate the statistics of batch normalisation anew, and, where they hold labels
        or tokens, to measure the loss on the way from one network to the other, before and after matching.
    other : nn.Module
        Another network of the same architecture, trained separately; only read.
    fraction : float, default: 0.5
        How far the average lies from ``model`` towards ``other``, in [0, 1]; the ends keep their own statistics of
        batch normalisation.
    restarts : int, default: 1
        Starts of the search, of which the best is kept.
    normalize : {"none", "layer"}, default: "none"
        Whether every tensor counts by its size, or all alike.
    generator : torch.Generator, optional
        Draws the order of the search; seed 0 by default.

    Returns
    -------
    Result
        Per permuted tensor its relative distance before and after; the permutations as a file; the loss along the line
        as curves.

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
        If weights are quantised.

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
    if not 0 <= fraction <= 1:
        raise HyperparameterError("fraction", found=fraction, expected="0 <= fraction <= 1")
    hyper: dict[str, Any] = {"fraction": fraction, "restarts": restarts, "normalize": normalize}
    batches = as_batches(calibration)
    with record("weight-matching", **hyper) as result, restored_on_error(model):
        end = other.state_dict()
        check_alike(model.state_dict(), end)
        spec = PermutationSpec.from_model(model, batches[0])
        start = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        found = match_weights(start, end, spec, restarts=restarts, normalize=normalize, generator=generator)
        moved = spec.apply(end, found.perms)
        statistics = has_batchnorm(model)
        if _has_loss(model, batches[0]):
            for name, state in (("before matching", end), ("after matching", moved)):
                curve = barrier_curve(
                    model,
                    start,
                    state,
                    lambda m: mean_loss(m, batches),
                    fractions=POINTS[::2],
                    calibration=batches if statistics else None,
                )
                result.curves[f"loss along the line, {name}"] = list(curve.losses)
                result.totals[f"barrier {name}"] = curve.barrier
        model.load_state_dict({key: lerp(tensor, moved[key], fraction) for key, tensor in start.items()})
        if statistics and 0 < fraction < 1:
            recalibrate_batchnorm(model, batches)
        _rows(result, spec, start, end, moved)
        found.tell(spec, result)
    return result


def _rows(
    result: Result,
    spec: PermutationSpec,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
) -> None:
    for key in spec.axes:
        if key not in spec.buffers and len(spec.shapes[key]) > 1:
            norm = max(float(start[key].double().norm()), torch.finfo(torch.float32).tiny)
            before, after = (distance(start, state, [key]) / norm for state in (end, moved))
            result.layer(key, distance_before=before, distance_after=after)


def _has_loss(model: nn.Module, batch: Batch) -> bool:
    """Whether a batch comes with what the model's own loss is about."""
    return isinstance(batch, Mapping) and (
        "labels" in batch or ("input_ids" in batch and callable(getattr(model, "get_output_embeddings", None)))
    )
