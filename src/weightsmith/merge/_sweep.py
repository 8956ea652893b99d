"""Measure averages of a pretrained and a fine-tuned network, in distribution and out of distribution."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from weightsmith.core.data import IGNORED, Batch, Samples, batched, pad_token_id, split_labels, to_model
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import StateDict
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import along_line, evaluation_mode, interpolate_
from weightsmith.core.progress import track
from weightsmith.core.results import Result, record
from weightsmith.core.sharding import refuse_sharded
from weightsmith.core.training import check_finite, mean_loss, predict
from weightsmith.merge._shared.arithmetic import check_alpha
from weightsmith.merge._shared.diagnosis import UNBALANCED, calibration_error, diagnose
from weightsmith.merge._wise_ft import interpolate

__all__ = ["logits_along_line", "sweep"]

ALPHAS = tuple(step / 10 for step in range(11))


def sweep(
    model: nn.Module,
    id_data: Samples,
    ood_data: Samples,
    *,
    tuned: nn.Module,
    alphas: Sequence[float] = ALPHAS,
    alpha: float = 0.5,
    batch_size: int = 32,
) -> Result:
    """Measure the averages of a pretrained and a fine-tuned network, in distribution and out of distribution.

    Each average is one pass over the weights, in place. Classifiers (one label per sample) are measured by accuracy
    and diagnosed: which errors the average repairs, confidence and calibration of both networks. Other models are
    measured by their loss per token, and where labels are real numbers by their own loss.

    Parameters
    ----------
    model : nn.Module
        The pretrained network; left as the average at ``alpha``.
    id_data, ood_data : sequence of samples
        Held-out samples with labels: from the distribution of the fine-tuning data (in distribution), and from another
        one (out of distribution).
    tuned : nn.Module
        The network fine-tuned from ``model``, of the same architecture.
    alphas : sequence of float, default: 0, 0.1, ..., 1
        Shares of the fine-tuned network to measure.
    alpha : float, default: 0.5
        The share at which ``model`` is left. It is not chosen on ``ood_data``, which would be leakage.
    batch_size : int, default: 32
        Samples per forward pass.

    Returns
    -------
    Result
        A row for each alpha and for the means of the two networks' outputs; the rows' curves over alpha; for each data
        set the shares of samples that only the average classifies correctly or wrongly, and the ratio of the two
        networks' logit scales.

    Raises
    ------
    CalibrationError
        If there are no samples, they have no labels, or these are real numbers and the model has no loss of its own.
    ShapeError
        If the two networks differ; nothing is changed.
    HyperparameterError
        If there is no alpha, one is not finite, or ``batch_size`` is below one.
    NonFiniteError
        If a weight or an output holds NaN or infinity.

    Examples
    --------
    >>> base, tuned = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> samples = [(torch.rand(2), torch.tensor(0)) for _ in range(8)]
    >>> result = sweep(base, samples, samples, tuned=tuned, alphas=(0.0, 1.0))
    >>> [row["layer"] for row in result.layers]
    ['alpha 0 %', 'alpha 100 %', 'mean of probabilities', 'mean of logits']
    """
    alphas = list(dict.fromkeys(alphas))
    if not alphas:
        raise HyperparameterError("alphas", found="none", expected="at least one")
    for value in (*alphas, alpha):
        check_alpha(value)
    if batch_size < 1:
        raise HyperparameterError("batch_size", found=batch_size, expected=">= 1")
    for network in (model, tuned):
        refuse_sharded(network)
        check_finite(network)
    pad = pad_token_id(model)
    batches = {
        "id": batched(id_data, batch_size, pad_token_id=pad),
        "ood": batched(ood_data, batch_size, pad_token_id=pad),
    }
    end = tuned.state_dict()
    walk = along_line(model, model.state_dict(), end, list(dict.fromkeys([0.0, 1.0, alpha, *alphas])))
    seen: dict[float, dict[str, Tensor]] = {}
    hyper: dict[str, Any] = {"alphas": alphas, "alpha": alpha, "batch_size": batch_size}
    with record("sweep", **hyper) as result, evaluation_mode(model), torch.no_grad():
        with closing(walk):
            for value in track(walk, "averages", total=len(alphas) + 2):
                seen[value] = {name: _outputs(model, parts) for name, parts in batches.items()}
        rows: dict[str, dict[str, float]] = {f"alpha {100 * value:g} %": {} for value in alphas}
        for name, parts in batches.items():
            if seen[alpha][name].ndim == 0:
                for row, value in zip(rows.values(), alphas, strict=True):
                    row[f"{name} loss"] = seen[value][name].item()
                continue
            labels = torch.cat([split_labels(batch)[1] for batch in parts])
            kept = labels != IGNORED
            diagnosis = diagnose(seen[0.0][name], seen[1.0][name], seen[alpha][name], labels)
            for row, value in zip(rows.values(), alphas, strict=False):
                logits = seen[value][name]
                row[f"{name} accuracy"] = (logits.argmax(1) == labels)[kept].double().mean().item()
                row[f"{name} calibration error"] = calibration_error(logits, labels)
            for kind in ("probabilities", "logits"):
                row = rows.setdefault(f"mean of {kind}", {})
                for measure in ("accuracy", "calibration error"):
                    row[f"{name} {measure}"] = diagnosis[f"{measure.replace(' ', '_')}_ensemble_of_{kind}"]
            result.totals |= {
                f"{name}_repaired": diagnosis["repaired_FFT"],
                f"{name}_broken": diagnosis["broken_TTF"],
                f"{name}_confidence_ratio": diagnosis["confidence_ratio"],
            }
        for who, row in rows.items():
            result.layer(who, **row)
        for measure in [name for name in result.layers[0] if name != "layer"]:
            result.curves[measure] = [row[measure] for row in result.layers[: len(alphas)]]
        interpolate_(model, model.state_dict(), end, alpha)
        ratio = result.totals.get("ood_confidence_ratio", 1.0)
        if ratio > UNBALANCED:
            result.notes.append(
                f"Out of distribution the fine-tuned network's logits are {ratio:.1f} times the pretrained "
                "network's, so its errors dominate the average. Fine-tune with bang (mixup, label smoothing) instead."
            )
    return result


@torch.no_grad()
def logits_along_line(
    model: nn.Module,
    start: StateDict,
    end: StateDict,
    alphas: Sequence[float],
    x: Shaped[Tensor, "N ..."],
) -> Float[Tensor, "alphas N K"]:
    """Evaluate all averages of two small networks in one pass over the data.

    Takes the memory of as many networks as there are alphas; :func:`sweep` takes that of two.

    Parameters
    ----------
    model : nn.Module
        Any of the architecture; not changed. Its only argument is a tensor, and its output.
    start, end : state dict
        The ends of the line.
    alphas : sequence of float
        Shares of ``end``.
    x : Tensor of shape (N, ...)
        Inputs.

    Returns
    -------
    Tensor of shape (alphas, N, K)
        The output of each average.

    Raises
    ------
    HyperparameterError
        If an alpha is not finite.
    ShapeError
        If the ends do not fit each other.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> ends = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[3.0]])}
    >>> logits_along_line(model, *ends, (0.0, 0.5, 1.0), torch.ones(1, 1)).flatten()
    tensor([1., 2., 3.])
    """
    averages = [interpolate(start, end, alpha) for alpha in alphas]
    stacked = {name: torch.stack([average[name] for average in averages]) for name in averages[0]}
    x = to_model(x, model)
    with evaluation_mode(model):
        outputs: Tensor = vmap(lambda weights: functional_call(model, weights, (x,)))(stacked)
    return outputs


def _outputs(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """All logits of a classifier; the mean loss a label of any other model."""
    if split_labels(batches[0])[1].is_floating_point():
        value = torch.tensor(mean_loss(model, [to_model(batch, model) for batch in batches]))
        if not is_finite(value):
            raise NonFiniteError("an average's loss", found=float(value), do="Look for such values in the data.")
        return value
    rows, loss, count = [], 0.0, 0
    for batch in batches:
        logits, labels = (tensor.cpu() for tensor in predict(model, to_model(batch, model)))
        logits = logits.float()
        if not is_finite(logits):
            raise NonFiniteError("an average's outputs hold NaN or infinity", do="Look for such values in the data.")
        if labels.ndim == 1:
            rows.append(logits)
            continue
        if labels.shape != logits.shape[:-1]:
            raise ShapeError("labels", found=tuple(labels.shape), expected=tuple(logits.shape[:-1]))
        loss += functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum").item()
        count += int((labels != IGNORED).sum())
    return torch.cat(rows) if rows else torch.tensor(loss / max(count, 1))
