"""What a model says of a labeled batch: its logits, the labels they belong to, and the loss of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.data import call, split_labels, without_labels
from weightsmith.core.errors import CalibrationError, UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.core.processes import plain_model
from weightsmith.core.training._labels import IGNORED, check_labels, check_model_labels, check_probabilities

__all__ = [
    "Loss",
    "default_loss",
    "has_label",
    "labeled",
    "logits_of",
    "mean_loss",
    "predict",
    "sample_losses",
    "shift_for_causal_lm",
]

BatchT = TypeVar("BatchT")

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""From the model and a batch to the mean loss over the batch."""


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the loss of a batch: the model's own for mappings, cross-entropy for pairs (inputs, classes).

    The classes of a pair may also be class probabilities.

    Raises
    ------
    CalibrationError
        If the batch is neither a mapping with ``labels`` or ``input_ids`` nor a pair, or the second of a pair are real
        numbers that are no probabilities, or the labels are words.
    HyperparameterError
        If a label is not a class of the model.

    Examples
    --------
    >>> round(default_loss(nn.Identity(), (torch.zeros(2, 4), torch.tensor([0, 1]))).item(), 4)
    1.3863
    """
    if isinstance(batch, Mapping):
        batch = labeled(batch)
        if "labels" in batch:
            check_model_labels(model, split_labels(batch)[1])
            loss: Tensor = call(model, batch).loss
            return loss
    elif _is_pair(batch):
        inputs, classes = split_labels(batch)
        logits = call(model, inputs)
        if classes.is_floating_point():
            check_probabilities(classes, logits)
        else:
            check_labels(classes[classes != IGNORED], logits.shape[1] if logits.ndim > 1 else len(logits))
        return functional.cross_entropy(logits, classes)
    raise CalibrationError(
        "training batch",
        found=type(batch).__name__,
        expected="a mapping with labels, or (inputs, classes)",
        do="Pass a loss.",
    )


def labeled(batch: BatchT) -> BatchT | dict[str, Any]:
    """Return a batch with labels: tokens without any are their own; padding, and the token after it, have none.

    A batch that is no mapping, or has labels or no tokens, is returned as it is.

    Examples
    --------
    >>> ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
    >>> labeled({"input_ids": ids, "attention_mask": mask})["labels"].tolist()
    [[5, 6, -100]]
    """
    if not isinstance(batch, Mapping) or "labels" in batch or "input_ids" not in batch:
        return batch
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])) != 0
    counted = real.clone()
    counted[..., 1:] &= real[..., :-1]  # what comes first in a text is predicted by nothing
    return {**batch, "labels": batch["input_ids"].masked_fill(~counted, -100)}


def sample_losses(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each sample of a batch, and which of its labels count.

    Parameters
    ----------
    model : nn.Module
        A classifier or a language model.
    batch : mapping or pair
        As for :func:`default_loss`.

    Returns
    -------
    losses : Tensor of shape (samples, labels)
        Negative log-probability of each label in nats, at least float32; 0 where it does not count. A classifier has
        one label per sample.
    counted : Tensor of shape (samples, labels)
        Labels other than -100.

    Raises
    ------
    CalibrationError
        If the labels are real numbers: those of a regression have no cross-entropy.

    Examples
    --------
    >>> losses, counted = sample_losses(nn.Identity(), (torch.zeros(2, 4), torch.tensor([0, -100])))
    >>> losses.squeeze(1), counted.squeeze(1)
    (tensor([1.3863, 0.0000]), tensor([ True, False]))
    """
    logits, labels = predict(model, batch)
    if labels.is_floating_point():
        raise CalibrationError("labels", found="real numbers", expected="classes", do="Use a method for regressions.")
    labels = labels.to(logits.device).long()
    check_labels(labels[labels != IGNORED], logits.shape[-1])
    losses = functional.cross_entropy(
        upcast(logits).flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="none"
    )
    rows = len(labels)
    return losses.view(rows, -1), (labels != -100).view(rows, -1)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Any]) -> float:
    """Average :func:`default_loss` over the labels of all batches; NaN if none counts.

    Each batch counts by its labels other than -100; by its rows where labels are real numbers, and as one where they
    are no tensor of rows.

    Examples
    --------
    >>> right, wrong = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 8.0]])
    >>> batches = [(right.repeat(3, 1), torch.zeros(3).long()), (wrong, torch.zeros(1).long())]
    >>> round(mean_loss(nn.Identity(), batches), 4)
    2.0003
    """
    weighed = [(default_loss(model, batch).item(), _label_count(model, batch)) for batch in batches]
    total = sum(count for _, count in weighed)
    return sum(loss * count for loss, count in weighed if count) / total if total else math.nan


def _label_count(model: nn.Module, batch: Any) -> int:
    labels = split_labels(labeled(batch))[1]
    if not isinstance(labels, Tensor) or labels.ndim == 0:
        return 1
    if labels.is_floating_point():
        return len(labels)
    return int((shift_for_causal_lm(model, labels[..., None], labels)[1] != IGNORED).sum())


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output.

    Parameters
    ----------
    output : Tensor, mapping, tuple or object
        The logits, a mapping or an object with ``logits``, or a tuple that starts with them.

    Raises
    ------
    UnsupportedModelError
        If there are no logits.

    Examples
    --------
    >>> logits_of((torch.zeros(5, 3), torch.zeros(5))).shape
    torch.Size([5, 3])
    """
    logits: Any = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        logits = output[0]
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise UnsupportedModelError(
            "the output of the model has no logits", found=type(output).__name__, do="Use a model with a head."
        )
    return logits


def predict(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Run a model on a labeled batch and return logits ``[..., classes]`` and the labels ``[...]`` they predict.

    The batch is a mapping with ``labels`` or tokens, see :func:`labeled`, or a pair (inputs, labels). Logits of causal
    language models are shifted, see :func:`shift_for_causal_lm`; an encoder-decoder makes its decoder inputs of the
    labels.

    Raises
    ------
    CalibrationError
        If there are no labels, and tokens are none because the model has one row of logits per text.

    Examples
    --------
    >>> logits, labels = predict(nn.Identity(), (torch.zeros(2, 5), torch.tensor([0, 1])))
    >>> logits.shape, labels.shape
    (torch.Size([2, 5]), torch.Size([2]))
    """
    given, batch = batch, labeled(batch)
    _, labels = split_labels(batch)
    logits = logits_of(call(model, without_labels(model, batch)))
    if batch is not given and logits.shape[:-1] != labels.shape:
        split_labels(given)  # raises: tokens are the labels of a model of tokens only
    return shift_for_causal_lm(model, logits, labels)


def shift_for_causal_lm(model: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``[..., classes]`` and labels ``[...]`` that belong together, position by position.

    The logits of a causal language model predict the next token: for one, the last logits and the first label are
    dropped. For other models, and one label per sample, both are returned unchanged.

    Examples
    --------
    >>> logits, labels = shift_for_causal_lm(nn.Identity(), torch.zeros(2, 5), torch.zeros(2))
    >>> logits.shape, labels.shape
    (torch.Size([2, 5]), torch.Size([2]))
    """
    plain = plain_model(model)
    causal = getattr(plain, "can_generate", None)
    if labels.ndim > 1 and causal is not None and causal() and not getattr(plain.config, "is_encoder_decoder", False):
        return logits[..., :-1, :], labels[..., 1:]
    return logits, labels


def has_label(batch: Any) -> bool | Tensor:
    """Whether a label of a sample or a batch counts; True where it cannot be told.

    Examples
    --------
    >>> has_label({"labels": torch.tensor([-100, 3])}), has_label((torch.zeros(2), -100)), has_label(torch.zeros(2))
    (tensor(True), tensor(False), True)
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if _is_pair(batch) else None
    labels = torch.as_tensor(labels) if isinstance(labels, int) else labels
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return True
    return (labels != IGNORED).any()


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, Sequence) and len(batch) == 2
