r"""Losses that several methods train with: soft targets and distillation.

Legend: ``N`` rows (samples, tokens), ``C`` classes.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import upcast
from weightsmith.core.training._fit import logits_of

__all__ = ["kd_loss", "soft_cross_entropy", "soft_target_loss"]


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
        Rows of the whole optimizer step, where gradients are accumulated; those of this batch by default.

    Returns
    -------
    Tensor
        The mean over rows.

    Examples
    --------
    >>> import torch
    >>> round(soft_cross_entropy(torch.zeros(1, 10), torch.full((1, 10), 0.1)).item(), 6)
    2.302585
    """
    losses = -(labels * logits_of(output).float().log_softmax(1)).sum(1)
    rows = labels.sum(1).count_nonzero() if num_items_in_batch is None else num_items_in_batch
    return losses.sum() / (rows.clamp_min(1) if isinstance(rows, Tensor) else max(rows, 1))


def soft_target_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "..."],
    *,
    temperature: float = 1.0,
    reduction: Literal["batchmean", "mean"] = "batchmean",
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

    References
    ----------
    Hinton, Vinyals, Dean 2015, arXiv 1503.02531.

    Examples
    --------
    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
    >>> round(soft_target_loss(student, teacher).item(), 6)
    0.255111
    """
    if not temperature > 0:
        raise HyperparameterError("temperature", found=temperature, expected="a positive number")
    if student.shape != teacher.shape:
        found = f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        raise ShapeError("logits of teacher and student", found=found, expected="the same classes")
    if bool(teacher.isnan().any()):
        raise NonFiniteError("the teacher's logits hold NaN")
    log_q, log_p = (functional.log_softmax(upcast(x) / temperature, 1) for x in (student, teacher.detach()))
    divergence = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * divergence / (len(student) if reduction == "batchmean" else student.numel())


def kd_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
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
        Class indices.
    temperature : float, default: 2.0
        As for :func:`soft_target_loss`.
    alpha : float, default: 0.1
        Weight of the labels.

    References
    ----------
    Hinton, Vinyals, Dean 2015, arXiv 1503.02531.

    Examples
    --------
    >>> import torch
    >>> round(kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])).item(), 4)
    0.0693
    """
    divergence = soft_target_loss(student, teacher, temperature=temperature)
    return alpha * functional.cross_entropy(student, labels) + (1 - alpha) * divergence
