r"""Losses that several methods train with: soft targets and distillation.

Legend: ``N`` rows (samples, tokens), ``C`` classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import upcast
from weightsmith.core.training._batch_loss import logits_of, predict
from weightsmith.core.training._labels import IGNORED, check_labels

__all__ = [
    "LOWEST",
    "check_temperature",
    "counted_logits",
    "counted_rows",
    "kd_loss",
    "soft_cross_entropy",
    "soft_target_loss",
]

Reduction = Literal["batchmean", "mean"]

LOWEST = -1e30
"""Stands for a logit of minus infinity: its probability is zero, and no difference with it is NaN."""


def soft_cross_entropy(
    output: Any, labels: Float[Tensor, "N C ..."], num_items_in_batch: Tensor | int | None = None
) -> Float[Tensor, ""]:
    """Compute the cross-entropy with class probabilities as targets; rows of zeros are ignored.

    Also the ``compute_loss_func`` of Hugging Face's ``Trainer`` for batches that
    :class:`weightsmith.merge.MixupCollator` made.

    Parameters
    ----------
    output : Tensor or object with logits
        Logits of the shape of ``labels``.
    labels : Tensor of shape (N, C, ...)
        Class probabilities.
    num_items_in_batch : int, optional
        Probabilities of the whole optimizer step, classes times rows, where gradients are accumulated: what the
        ``Trainer`` counts. The rows of this batch that are not ignored, by default.

    Returns
    -------
    Tensor
        The mean over rows.

    Examples
    --------
    >>> round(soft_cross_entropy(torch.zeros(1, 10), torch.full((1, 10), 0.1)).item(), 6)
    2.302585
    """
    losses = -(labels * logits_of(output).float().log_softmax(1)).sum(1)
    if num_items_in_batch is not None:
        return losses.sum() / (num_items_in_batch / labels.shape[1] or 1)
    return losses.sum() / labels.sum(1).count_nonzero().clamp_min(1)


def soft_target_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "..."],
    *,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
) -> Float[Tensor, ""]:
    r"""Compute :math:`T^2\,\mathrm{KL}(p_T \Vert q_T)` of a teacher's and a student's probabilities at temperature T.

    Parameters
    ----------
    student, teacher : Tensor of shape (N, C)
        Logits, compared in float32 or better; the teacher's are constants.
    temperature : float, default: 1.0
        Divides the logits; positive.
    reduction : {"batchmean", "mean"}, default: "batchmean"
        As in :func:`torch.nn.functional.kl_div`: the mean over rows, or over rows and classes.

    Raises
    ------
    HyperparameterError
        If ``temperature`` is not positive.
    NonFiniteError
        If the teacher's logits hold NaN.
    ShapeError
        If the two have different classes.

    Notes
    -----
    A class whose logit is minus infinity in either is left out.

    References
    ----------
    Hinton, Vinyals, Dean 2015, arXiv 1503.02531.

    Examples
    --------
    >>> student, teacher = torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
    >>> round(soft_target_loss(student, teacher).item(), 6)
    0.255111
    """
    check_temperature(temperature)
    check_choice("reduction", reduction, Reduction)
    rows = len(student) if reduction == "batchmean" else student.numel()
    return _divergence(*_comparable(student, teacher), temperature) / rows


def kd_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "..."],
    labels: Integer[Tensor, "N"],
    *,
    temperature: float = 2.0,
    alpha: float = 0.1,
) -> Float[Tensor, ""]:
    r"""Compute :math:`\alpha\,\mathrm{CE} + (1-\alpha)\,T^2\,\mathrm{KL}(p_T \Vert q_T)`.

    Parameters
    ----------
    student, teacher : Tensor of shape (N, C)
        Logits; the teacher's are constants.
    labels : Tensor of shape (N,)
        Class indices. Rows with -100 do not count.
    temperature : float, default: 2.0
        As for :func:`soft_target_loss`.
    alpha : float, default: 0.1
        Weight of the labels.

    Raises
    ------
    HyperparameterError
        If ``temperature`` is not positive, or a label is not a class.
    NonFiniteError, ShapeError
        As :func:`counted_rows`.

    References
    ----------
    Hinton, Vinyals, Dean 2015, arXiv 1503.02531.

    Examples
    --------
    >>> round(kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])).item(), 4)
    0.0693
    """
    check_temperature(temperature)
    student, teacher, labels = counted_rows(student, teacher, labels)
    if not len(labels):
        return student.sum()
    divergence = _divergence(student, teacher, temperature) / len(labels)
    return alpha * functional.cross_entropy(student, labels) + (1 - alpha) * divergence


def counted_logits(model: nn.Module, batch: Any) -> tuple[Float[Tensor, "labels classes"], Int[Tensor, "labels"]]:
    """Run a model and return the logits of a batch whose labels count, in float32 at least, and these labels.

    Parameters
    ----------
    model : nn.Module
        A classifier or a language model.
    batch : mapping or pair
        As for :func:`weightsmith.core.training.default_loss`.

    Raises
    ------
    CalibrationError
        If the labels are real numbers.
    HyperparameterError
        If a label is not a class of the model.

    Examples
    --------
    >>> logits, labels = counted_logits(torch.nn.Identity(), (torch.eye(3), torch.tensor([0, -100, 2])))
    >>> logits.shape, labels
    (torch.Size([2, 3]), tensor([0, 2]))
    """
    logits, labels = predict(model, batch)
    if labels.is_floating_point():
        raise CalibrationError("labels", found="real numbers", expected="classes", do="Give a classification's data.")
    logits, labels = upcast(logits).flatten(0, -2), labels.flatten().to(logits.device).long()
    kept = labels != IGNORED
    check_labels(labels[kept], logits.shape[-1])
    return logits[kept], labels[kept]


def counted_rows(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "..."], labels: Integer[Tensor, "..."]
) -> tuple[Float[Tensor, "M C"], Float[Tensor, "M C"], Int[Tensor, "M"]]:
    """Return the rows whose label counts, in float32 or better, for a loss of student, teacher and label.

    Parameters
    ----------
    student, teacher : Tensor of shape (N, C)
        Logits. A class at minus infinity in either is at ``LOWEST`` in both of the returned ones: it is left out.
    labels : Tensor of shape (N,)
        Class indices. Rows with -100 are dropped.

    Raises
    ------
    HyperparameterError
        If a label is not a class.
    NonFiniteError
        If the teacher's logits hold NaN, or a label's logit is minus infinity.
    ShapeError
        If the shapes do not fit, or labels are not whole numbers.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, -torch.inf], [1.0, 2.0]], dtype=torch.bfloat16)
    >>> counted_rows(logits, logits, torch.tensor([0, -100]))[0]
    tensor([[ 0.0000e+00, -1.0000e+30]])
    """
    if labels.is_floating_point() or labels.shape != student.shape[:1]:
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ShapeError("labels", found=found, expected=f"class indices of shape {tuple(student.shape[:1])}")
    student, teacher = _comparable(student, teacher)
    labels = labels.long()
    kept = labels != IGNORED
    if not bool(kept.all()):
        student, teacher, labels = student[kept], teacher[kept], labels[kept]
    check_labels(labels, student.shape[1])
    if bool((student.detach().gather(1, labels[:, None]) == LOWEST).any()):
        raise NonFiniteError("the logit of a label is minus infinity: its class does not take part")
    return student, teacher, labels


def check_temperature(temperature: float) -> None:
    """Check that a temperature is positive and finite.

    Raises
    ------
    HyperparameterError
        If it is not.

    Examples
    --------
    >>> check_temperature(2.0)
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise HyperparameterError("temperature", found=temperature, expected="a positive number")


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = (functional.log_softmax(x / temperature, 1) for x in (student, teacher))
    return temperature**2 * functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or better, with the same classes at ``LOWEST``."""
    if student.shape != teacher.shape:
        found = f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        raise ShapeError("logits of teacher and student", found=found, expected="the same classes")
    student, teacher = upcast(student), upcast(teacher.detach())
    if not student.numel():
        return student, teacher
    least = torch.stack([student.detach().amin(), teacher.amin()])  # NaN if there is one
    if bool(least[1].isnan()):
        raise NonFiniteError("the teacher's logits hold NaN")
    if bool((least <= LOWEST).any()) or bool(least[0].isnan()):
        gone = (student.detach() <= LOWEST) | (teacher <= LOWEST)
        student, teacher = student.masked_fill(gone, LOWEST), teacher.masked_fill(gone, LOWEST)
    return student, teacher
