r"""Train a classifier on new classes beside a small memory of old ones, as weight aligning asks for.

Zhao, Xiao, Gan, Zhang, Xia, "Maintaining Discrimination and Fairness in Class Incremental Learning", CVPR 2020, arXiv
1911.07053: distillation from the model before, and weights of the head that are never negative.

Legend: ``C`` classes, ``O`` old classes, ``N`` rows of a batch.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from weightsmith.continual._weight_aligning import head_weights
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import upcast
from weightsmith.core.training import check_labels, check_temperature, soft_cross_entropy

__all__ = ["class_incremental_loss", "clip_weights_hook"]


def class_incremental_loss(
    logits: Float[Tensor, "N C"],
    old_logits: Float[Tensor, "..."] | None,
    labels: Integer[Tensor, "N"],
    *,
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Compute :math:`(1-\lambda)\,\mathrm{CE} + \lambda\,\mathrm{KD}`, old and new classes under one head.

    :math:`\lambda = O / C` is the share of old classes. KD is the cross-entropy of the first ``O`` logits with the old
    model's probabilities, both at ``temperature``.

    Parameters
    ----------
    logits : Tensor of shape (N, C)
        Of the model, for all classes.
    old_logits : Tensor of shape (N, O) or None
        Of the aligned model after the last stage, for its classes, which are the first ``O``. None in the first stage.
    labels : Tensor of shape (N,)
        Class indices. Rows with -100 do not count.
    temperature : float, default: 2.0
        Divides both logits; positive.

    Raises
    ------
    HyperparameterError
        If ``temperature`` is not positive, or a label is not a class.
    NonFiniteError
        If the old logits hold NaN.
    ShapeError
        If the old model has as many classes as the new one or more, or the shapes do not fit.

    Notes
    -----
    A criterion for :func:`weightsmith.train.distillation` and :class:`weightsmith.train.DistillationLoss`.

    References
    ----------
    Zhao et al., arXiv 1911.07053: no factor :math:`T^2`.

    Examples
    --------
    >>> logits, old = torch.tensor([[1.0, 1.0, 0.5]]), torch.tensor([[2.0, 0.0]])
    >>> round(class_incremental_loss(logits, old, torch.tensor([2])).item(), 4)
    0.9481
    """
    check_temperature(temperature)
    if labels.is_floating_point() or labels.shape != logits.shape[:1]:
        raise ShapeError(
            "labels",
            found=f"{labels.dtype} of shape {tuple(labels.shape)}",
            expected=f"class indices of shape ({len(logits)},)",
        )
    labels, logits = labels.long(), upcast(logits)
    counts = labels != -100
    check_labels(labels[counts], logits.shape[1])
    if not bool(counts.any()):
        return logits.sum() * 0.0
    loss = functional.cross_entropy(logits, labels)
    if old_logits is None:
        return loss
    if len(old_logits) != len(logits) or not 0 < old_logits.shape[1] < logits.shape[1]:
        raise ShapeError(
            "logits of the old model",
            found=tuple(old_logits.shape),
            expected=f"{len(logits)} rows of fewer than {logits.shape[1]} classes",
        )
    if bool(old_logits.isnan().any()):
        raise NonFiniteError("the old model's logits hold NaN")
    known = old_logits.shape[1]
    share = known / logits.shape[1]
    probabilities = (upcast(old_logits.detach()) / temperature).softmax(1)
    distilled = soft_cross_entropy(logits[counts, :known] / temperature, probabilities[counts].to(logits))
    return (1 - share) * loss + share * distilled


def clip_weights_hook(
    optimizer: torch.optim.Optimizer, head: nn.Module | Tensor, *, min: float = 0.0
) -> RemovableHandle:
    """Clip the weights of a head from below after every step of an optimizer.

    With features and weights that are not negative, a larger norm means larger logits, which is what aligning needs.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        The one that trains the head.
    head : nn.Module or Tensor
        The classifier's last layer, or its weight. The layer's weight is looked up at every step, so that it may be
        replaced by one with more rows.
    min : float, default: 0.0
        Smallest value of a weight.

    Returns
    -------
    RemovableHandle
        ``remove()`` ends it.

    Raises
    ------
    HyperparameterError
        If ``min`` is not a number, or the optimizer does not train the weight.

    Warns
    -----
    UserWarning
        If a layer's first input has negative values (a tanh pooler, a transformer's last layer norm): clipping is of no
        use there.

    Examples
    --------
    >>> head = nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    >>> handle = clip_weights_hook(optimizer, head)
    >>> head(torch.rand(3, 4)).sum().backward()
    >>> optimizer.step()
    >>> head.weight.min().item() >= 0
    True
    """
    if not math.isfinite(min):
        raise HyperparameterError("min", found=min, expected="a number")
    head_weights(head)

    @torch.no_grad()
    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weight = head_weights(head)[0]
        if not any(parameter is weight for group in optimizer.param_groups for parameter in group["params"]):
            raise HyperparameterError(
                "optimizer",
                found="the weight to clip is not among its parameters",
                do="Give the layer of the head, and grow it with grow_head(..., optimizer=optimizer).",
            )
        weight.clamp_(min=min)

    clip(optimizer)  # refuses another optimizer, and a head begins where its steps end
    if isinstance(head, nn.Module):
        _warn_of_negative_inputs(head)
    return optimizer.register_step_post_hook(clip)


def _warn_of_negative_inputs(head: nn.Module) -> None:
    def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        handle.remove()
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].numel() and bool(inputs[0].min() < 0):
            warnings.warn(
                "the features of the head have negative values: clipping its weights keeps no order of the norms, and "
                "may cost accuracy",
                stacklevel=2,
            )

    handle = head.register_forward_pre_hook(look)
