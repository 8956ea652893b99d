r"""Distillation: the losses that a student can learn from a teacher's logits with, and how to train with any of them.

* KD (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): cross-entropy, and the divergence from softened probabilities
* DIST (Huang, You, Wang, Qian, Xu 2022, arXiv 2205.10536): correlation of the probabilities, over the classes of a
  sample and over the samples of a class
* DKD (Zhao, Cui, Song, Qiu, Liang 2022, arXiv 2203.08679): the label's probability and the other classes apart
* ListMLE (Xia, Liu, Wang, Zhang, Li 2008): the teacher's order of the classes, all ranks alike

:mod:`weightsmith.train._pld` has the loss this library is about. Legend: ``N`` rows, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.data import to_model
from weightsmith.core.errors import ShapeError
from weightsmith.core.training import Loss, kd_loss, predict

__all__ = ["dist_loss", "distillation", "dkd_loss", "kd_loss", "list_mle_loss"]


def dist_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 2.0,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Compute cross-entropy and one minus the correlation of softened probabilities along rows and columns.

    Parameters
    ----------
    student, teacher, labels
        As for :func:`kd_loss`.
    temperature : float, default: 4.0
        Temperature.
    alpha, beta, gamma : float
        Weights of the labels, of the correlation over classes, and over samples.

    Examples
    --------
    >>> logits = torch.eye(3)
    >>> round(dist_loss(logits, logits, torch.arange(3), alpha=0.0).item(), 4)
    0.0
    """
    q, p = (student / temperature).softmax(1), (teacher.detach() / temperature).softmax(1)
    rows, columns = 1 - _correlation(q, p, 1).mean(), 1 - _correlation(q, p, 0).mean()
    return alpha * functional.cross_entropy(student, labels) + temperature**2 * (beta * rows + gamma * columns)


def dkd_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    *,
    temperature: float = 4.0,
    beta: float = 8.0,
    share: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute cross-entropy and the divergences of the label's probability and of the other classes among themselves.

    Parameters
    ----------
    student, teacher, labels
        As for :func:`kd_loss`.
    temperature : float, default: 4.0
        Temperature.
    beta : float, default: 8.0
        Weight of the other classes.
    share : float, default: 1.0
        Weight of both divergences: its authors let it rise to 1 over the first 20 epochs.

    Examples
    --------
    >>> logits = torch.eye(3)
    >>> loss = dkd_loss(logits, logits, torch.arange(3))
    >>> torch.allclose(loss, functional.cross_entropy(logits, torch.arange(3)))
    True
    """
    is_label = functional.one_hot(labels, student.shape[1]).bool()
    both = student / temperature, teacher.detach() / temperature
    log_q, log_p = (_label_or_not(logits, is_label) for logits in both)
    log_q_rest, log_p_rest = (logits[~is_label].view(len(labels), -1).log_softmax(1) for logits in both)
    label = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    rest = functional.kl_div(log_q_rest, log_p_rest, reduction="batchmean", log_target=True)
    return functional.cross_entropy(student, labels) + share * temperature**2 * (label + beta * rest)


def list_mle_loss(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "N C"], labels: Int[Tensor, "N"]
) -> Float[Tensor, ""]:
    """Compute the negative log-likelihood of the teacher's order of the classes, the label first.

    Parameters
    ----------
    student, teacher, labels
        As for :func:`kd_loss`.

    Examples
    --------
    >>> round(list_mle_loss(torch.zeros(1, 10), torch.zeros(1, 10), torch.tensor([0])).item(), 4)
    15.1044
    """
    key = teacher.detach().scatter(1, labels[:, None], torch.inf)
    s = student.gather(1, key.argsort(dim=1, descending=True, stable=True))
    return (s.flip(1).logcumsumexp(1).flip(1) - s).sum(1).mean()


def distillation(teacher: nn.Module, criterion: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """Make a loss for :func:`weightsmith.core.training.fit` of a teacher and a criterion.

    Parameters
    ----------
    teacher : nn.Module
        Put in evaluation mode and run without gradients on every batch.
    criterion : callable
        One of this module's, or :class:`weightsmith.train.PLDLoss`: of student logits ``[N, C]``, teacher logits
        ``[N, C]`` and class indices ``[N]``.

    Returns
    -------
    callable
        ``loss(model, batch)``; a batch is (inputs, classes) or a mapping with ``labels``. Causal language models are
        compared on the next token.

    Examples
    --------
    >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> loss = distillation(teacher, kd_loss)
    >>> loss(student, (torch.ones(2, 4), torch.tensor([0, 2]))).requires_grad
    True
    """
    teacher.eval()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            theirs, _ = predict(teacher, to_model(batch, teacher))
        ours, labels = predict(model, batch)
        if theirs.shape[-1] != ours.shape[-1]:
            found = f"{theirs.shape[-1]} and {ours.shape[-1]}"
            raise ShapeError("teacher and student must have the same classes", found=found)
        return criterion(ours.flatten(0, -2), theirs.flatten(0, -2), labels.flatten())

    return loss


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return functional.cosine_similarity(a, b, dim=dim)


def _label_or_not(logits: Tensor, is_label: Tensor) -> Tensor:
    """Log-probabilities of the label and of all other classes together."""
    rest = logits.masked_fill(is_label, -torch.inf).logsumexp(1)
    return torch.stack([logits[is_label], rest], 1).log_softmax(1)
