"""Labels that a model has no output for, or a loss no use for, are refused by name before they are used."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from weightsmith.core.data import IGNORED
from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.processes import plain_model

__all__ = ["IGNORED", "check_labels", "check_model_labels", "check_probabilities"]

SUM_TOLERANCE = 0.01
"""How far probabilities may sum up to something else than one: those of bfloat16 are rounded."""


def check_labels(labels: Shaped[Tensor, "..."], classes: int) -> None:
    """Check that labels are classes.

    Raises
    ------
    HyperparameterError
        If one is not.

    Examples
    --------
    >>> import torch
    >>> check_labels(torch.tensor([0, 2]), 3)
    """
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        bad = labels[(labels < 0) | (labels >= classes)]
        raise HyperparameterError(
            "labels",
            found=bad[:5].tolist(),
            expected=f"class indices from 0 to {classes - 1}",
            do="Give the head more outputs, or number the classes anew.",
        )


def check_probabilities(labels: Float[Tensor, "..."], logits: Float[Tensor, "..."]) -> None:
    """Check that labels which are real numbers are class probabilities, in the second dimension of the logits.

    Cross-entropy would also take the targets of a regression: it is zero for one output, and has no bound for several.

    Raises
    ------
    CalibrationError
        If they are not.

    Examples
    --------
    >>> import torch
    >>> check_probabilities(torch.tensor([[0.3, 0.7]]), torch.zeros(1, 2))
    """
    shaped = labels.shape == logits.shape and logits.ndim > 1 and logits.shape[1] > 1
    if shaped and bool((labels >= 0).all() & ((labels.float().sum(1) - 1).abs() <= SUM_TOLERANCE).all()):
        return
    raise CalibrationError(
        "labels",
        found=f"real numbers of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}",
        expected="classes, or for each class a probability, which sum to one",
        do="A regression needs a loss of its own: fit(model, data, loss=...), or a model that computes it.",
    )


def check_model_labels(model: nn.Module, labels: Any) -> None:
    """Check that the labels of a batch, one per sample, are classes of a Hugging Face classifier.

    Labels of regression, of several classes at once, and of tokens are left alone.

    Raises
    ------
    HyperparameterError
        If one is not.

    Examples
    --------
    >>> import torch
    >>> check_model_labels(nn.Linear(2, 2), torch.tensor([5]))  # not a Hugging Face model
    """
    config: Any = getattr(plain_model(model), "config", None)
    classes = getattr(config, "num_labels", None)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1 or not classes:
        return
    if classes > 1 and getattr(config, "problem_type", None) in (None, "single_label_classification"):
        check_labels(labels[labels != IGNORED], classes)
