"""What the methods on regression networks stand on: outputs beside targets of one shape, and distances between them.

Legend: ``B`` samples; all further axes are those of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.choices import check_choice
from weightsmith.core.data import (
    Batch,
    Samples,
    batched,
    call,
    is_regression,
    pad_token_id,
    split_labels,
    take,
    to_model,
)
from weightsmith.core.errors import CalibrationError, HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import check_finite, logits_of, refuse_adapters

__all__ = [
    "Distance",
    "LossName",
    "check_regression",
    "distance_of",
    "errors",
    "predict_values",
    "sample_errors",
    "supervised_loss",
    "targets_for",
    "values_of",
]

LossName = Literal["l1", "mse", "huber", "pinball"]

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets ``[B, ...]`` to one distance per sample ``[B]``."""

BATCH_SIZE = 64


def distance_of(loss: LossName, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> Distance:
    """Return the loss of a regression as a distance per sample, averaged over its outputs.

    Parameters
    ----------
    loss : {"l1", "mse", "huber", "pinball"}
        Absolute, squared, Huber (delta 1) error; or the quantile loss ``max((q - 1) e, q e)`` of the error
        ``e = target - output``, summed over the quantiles, which are the last axis of the outputs.
    quantiles : sequence of float
        Of the pinball loss, each in (0, 1).

    Raises
    ------
    HyperparameterError
        If the loss is unknown or a quantile out of range.

    Examples
    --------
    >>> distance_of("pinball", [0.1, 0.9])(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]))
    tensor([0.2000])
    """
    if not quantiles or not all(0 < q < 1 for q in quantiles):
        raise HyperparameterError("quantiles", found=list(quantiles), expected="numbers in (0, 1), at least one")
    if loss == "pinball":
        return partial(_pinball, quantiles=tuple(quantiles))
    losses: dict[str, Callable[..., Tensor]] = {
        "l1": functional.l1_loss,
        "mse": functional.mse_loss,
        "huber": functional.huber_loss,
    }
    check_choice("loss", loss, LossName)
    return partial(_elementwise, losses[loss])


def values_of(model: nn.Module, inputs: Batch, plain: nn.Module | None = None) -> Float[Tensor, "B ..."]:
    """Run a regression network; the single output of a Hugging Face head is one number per sample.

    Parameters
    ----------
    model : nn.Module
        What is called; ``plain`` is the network inside, where it is wrapped.
    inputs : batch
        Without labels.
    """
    values = upcast(logits_of(call(model, inputs)))
    return values.squeeze(1) if _has_one_output(plain or model) and values.ndim == 2 else values


def targets_for(model: nn.Module, labels: Tensor, values: Float[Tensor, "B ..."], distance: Distance) -> Tensor:
    """Return labels as targets of a network's outputs, which must have the same shape.

    Raises
    ------
    ShapeError
        If they do not: broadcasting ``[B, 1]`` against ``[B]`` would compare all samples with each other.
    """
    targets = labels.to(values)
    if _has_one_output(model) and targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets.squeeze(1)
    expected, quantiles = tuple(values.shape), getattr(distance, "keywords", {}).get("quantiles")
    if quantiles is not None:
        if values.ndim < 2 or values.shape[-1] != len(quantiles):
            raise ShapeError("outputs", found=expected, expected=f"{len(quantiles)} quantiles in the last axis")
        expected = expected[:-1]
        if targets.shape == (*expected, 1):
            targets = targets.squeeze(-1)
    if tuple(targets.shape) != expected:
        raise ShapeError(
            "targets of the outputs",
            found=f"labels of shape {tuple(labels.shape)} for outputs of shape {tuple(values.shape)}",
            expected=f"labels of shape {expected}",
            do="Give every sample a label of the shape of its output, such as [1], or squeeze the output.",
        )
    return targets


def check_regression(model: nn.Module, sets: Mapping[str, Samples], distance: Distance) -> None:
    """Check that a network is a regression, and that every set has targets of the shape of its outputs.

    Raises
    ------
    CalibrationError
        If a set is empty.
    NonFiniteError
        If a parameter is not finite.
    ShapeError
        If outputs and labels differ in shape.
    UnsupportedModelError
        If it is a language model or classifier, is quantized, or has adapters.
    """
    refuse_adapters(model)
    config: Any = getattr(model, "config", None)
    packed = [name for name, p in model.named_parameters() if not p.is_floating_point() or p.element_size() < 2]
    if packed:
        raise UnsupportedModelError(
            "unlearning trains all weights",
            found=f"{len(packed)} quantized parameters such as {packed[0]!r}",
            do="Load the model in bf16 or fp32.",
        )
    if hasattr(config, "num_labels") and not is_regression(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no regression",
            found=f"num_labels={config.num_labels}, problem_type={config.problem_type!r}",
            expected="a head with num_labels=1, or problem_type='regression'",
        )
    check_finite(model)
    with evaluation_mode(model), torch.no_grad():
        for name, samples in sets.items():
            if not len(samples):
                raise CalibrationError(f"the {name} set is empty", expected="at least one sample")
            (batch,) = batched(take(samples, 0, 1), 1, pad_token_id=pad_token_id(model))
            inputs, labels = split_labels(to_model(batch, model))
            targets_for(model, labels, values_of(model, inputs), distance)


def supervised_loss(model: nn.Module, distance: Distance) -> Callable[[nn.Module, Any], Tensor]:
    """Return the ordinary loss of a batch, for :func:`weightsmith.core.training.fit`."""

    def loss(wrapped: nn.Module, batch: Any) -> Tensor:
        inputs, labels = split_labels(to_model(batch, model))
        values = values_of(wrapped, inputs, model)
        return distance(values, targets_for(model, labels, values, distance)).mean()

    return loss


@torch.no_grad()
def predict_values(model: nn.Module, samples: Samples) -> Float[Tensor, "B ..."]:
    """Predict the values of samples, in evaluation mode.

    Raises
    ------
    CalibrationError
        If there are no samples, or reading one twice gives two inputs: measure without augmentation.

    Examples
    --------
    >>> predict_values(nn.Identity(), [(torch.tensor([2.0]), torch.tensor([1.0]))])
    tensor([[2.]])
    """
    return torch.cat([values for values, _ in _measured(model, samples)]).cpu()


@torch.no_grad()
def sample_errors(
    model: nn.Module, samples: Samples, *, loss: LossName = "l1", quantiles: Sequence[float] = (0.1, 0.5, 0.9)
) -> Float[Tensor, "B"]:
    """Return the error of each sample, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        A regression network.
    samples : sequence of samples
        With labels of the shape of the outputs.
    loss : {"l1", "mse", "huber", "pinball"}, default: "l1"
        The error, averaged over the outputs of a sample; ``"pinball"`` is summed over the quantiles.
    quantiles : sequence of float, default: (0.1, 0.5, 0.9)
        Of the pinball loss, in the order of the outputs.

    Raises
    ------
    CalibrationError
        If there are no samples, or reading one twice gives two inputs: measure without augmentation.
    ShapeError
        If outputs and labels differ in shape.

    Examples
    --------
    >>> sample_errors(nn.Identity(), [(torch.tensor([2.0]), torch.tensor([0.5]))])
    tensor([1.5000])
    """
    return errors(model, samples, distance_of(loss, quantiles))


@torch.no_grad()
def errors(model: nn.Module, samples: Samples, distance: Distance) -> Float[Tensor, "B"]:
    """As :func:`sample_errors`, by a distance."""
    found = _measured(model, samples)
    return torch.cat([distance(each, targets_for(model, labels, each, distance)) for each, labels in found]).cpu()


def _measured(model: nn.Module, samples: Samples) -> list[tuple[Tensor, Tensor]]:
    if len(samples) and not _equal(samples[0], samples[0]):
        raise CalibrationError(
            "samples to measure on", found="another input on each reading", do="Switch the augmentation off."
        )
    found = []
    with evaluation_mode(model):
        for batch in batched(samples, BATCH_SIZE, pad_token_id=pad_token_id(model)):
            inputs, labels = split_labels(to_model(batch, model))
            found.append((values_of(model, inputs), labels))
    return found


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first.nan_to_num(), second.nan_to_num())
    if isinstance(first, Mapping):
        return all(_equal(first[name], second[name]) for name in first)
    if isinstance(first, (tuple, list)):
        return all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return True


def _has_one_output(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "num_labels", None) == 1


def _elementwise(loss: Callable[..., Tensor], values: Tensor, targets: Tensor) -> Tensor:
    return _per_sample(loss(values, targets, reduction="none"))


def _pinball(values: Tensor, targets: Tensor, *, quantiles: Sequence[float]) -> Tensor:
    """Targets are numbers, or another network's quantiles."""
    q = torch.tensor(quantiles, device=values.device, dtype=values.dtype)
    error = (targets if targets.ndim == values.ndim else targets[..., None]) - values
    return _per_sample(torch.maximum((q - 1) * error, q * error).sum(-1))


def _per_sample(losses: Tensor) -> Tensor:
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses
