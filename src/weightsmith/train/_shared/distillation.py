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
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.data import call, to_model
from weightsmith.core.errors import CalibrationError, ShapeError
from weightsmith.core.training import (
    LOWEST,
    Loss,
    check_temperature,
    counted_rows,
    kd_loss,
    labels_and_logits,
    logits_of,
    predict,
    share_of_step,
)
from weightsmith.train._shared.trainer import NotedInputs

__all__ = ["DistillationLoss", "dist_loss", "distillation", "dkd_loss", "kd_loss", "list_mle_loss"]

Criterion: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From student logits ``[N, C]``, teacher logits ``[N, C]`` and class indices ``[N]`` to the mean loss of the rows."""

STORED = "teacher_logits"
"""Name of a teacher's logits among the columns of the data."""


def dist_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "..."],
    labels: Integer[Tensor, "N"],
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

    Raises
    ------
    HyperparameterError, NonFiniteError, ShapeError
        As :func:`kd_loss`.

    Examples
    --------
    >>> logits = torch.eye(3)
    >>> round(dist_loss(logits, logits, torch.arange(3), alpha=0.0).item(), 4)
    0.0
    """
    check_temperature(temperature)
    student, teacher, labels = counted_rows(student, teacher, labels)
    if not len(labels):
        return student.sum()
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    rows, columns = 1 - _correlation(q, p, 1).mean(), 1 - _correlation(q, p, 0).mean()
    return alpha * functional.cross_entropy(student, labels) + temperature**2 * (beta * rows + gamma * columns)


def dkd_loss(
    student: Float[Tensor, "N C"],
    teacher: Float[Tensor, "..."],
    labels: Integer[Tensor, "N"],
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

    Raises
    ------
    HyperparameterError, NonFiniteError, ShapeError
        As :func:`kd_loss`; or if there are fewer than two classes.

    Examples
    --------
    >>> logits = torch.eye(3)
    >>> loss = dkd_loss(logits, logits, torch.arange(3))
    >>> torch.allclose(loss, functional.cross_entropy(logits, torch.arange(3)))
    True
    """
    check_temperature(temperature)
    if student.shape[1] < 2:
        raise ShapeError("classes", found=student.shape[1], expected="at least 2")
    student, teacher, labels = counted_rows(student, teacher, labels)
    if not len(labels):
        return student.sum()
    is_label = functional.one_hot(labels, student.shape[1]).bool()
    both = student / temperature, teacher / temperature
    log_q, log_p = (_label_or_not(logits, is_label) for logits in both)
    log_q_rest, log_p_rest = (logits[~is_label].view(len(labels), -1).log_softmax(1) for logits in both)
    label = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    rest = functional.kl_div(log_q_rest, log_p_rest, reduction="batchmean", log_target=True)
    return functional.cross_entropy(student, labels) + share * temperature**2 * (label + beta * rest)


def list_mle_loss(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "..."], labels: Integer[Tensor, "N"]
) -> Float[Tensor, ""]:
    """Compute the negative log-likelihood of the teacher's order of the classes, the label first.

    Parameters
    ----------
    student, teacher, labels
        As for :func:`kd_loss`.

    Raises
    ------
    HyperparameterError, NonFiniteError, ShapeError
        As :func:`kd_loss`.

    Examples
    --------
    >>> round(list_mle_loss(torch.zeros(1, 10), torch.zeros(1, 10), torch.tensor([0])).item(), 4)
    15.1044
    """
    student, teacher, labels = counted_rows(student, teacher, labels)
    key = teacher.scatter(1, labels[:, None], torch.inf)
    s = student.gather(1, key.argsort(dim=1, descending=True, stable=True))
    terms = (s.flip(1).logcumsumexp(1).flip(1) - s).masked_fill(s <= LOWEST, 0.0)
    return terms.sum() / max(len(labels), 1)


def distillation(teacher: nn.Module, criterion: Criterion) -> Loss:
    """Make a loss for :func:`weightsmith.core.training.fit` of a teacher and a criterion.

    Parameters
    ----------
    teacher : nn.Module
        Put in evaluation mode and run without gradients on every batch.
    criterion : callable
        :func:`kd_loss`, :func:`dist_loss`, :func:`dkd_loss`, :func:`list_mle_loss` or
        :class:`weightsmith.train.PLDLoss`: of student logits ``[N, C]``, teacher logits ``[N, C]`` and class indices
        ``[N]``.

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
        return _of_rows(criterion, ours, theirs, labels)

    return loss


class DistillationLoss:
    """The ``compute_loss_func`` of ``transformers.Trainer`` that compares a student with a teacher.

    Parameters
    ----------
    student : nn.Module
        The model that the Trainer trains. A hook on it notes each batch; :meth:`remove` takes it off.
    criterion : callable
        As for :func:`distillation`.
    teacher : nn.Module, optional
        Put in evaluation mode and run without gradients on every batch. Without one, its logits are the column
        ``teacher_logits`` of the data, of the shape of the student's; set ``remove_unused_columns=False``.

    Examples
    --------
    >>> from transformers import Trainer
    >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> loss = DistillationLoss(student, kd_loss, teacher)
    >>> outputs = student(input=torch.ones(2, 4))  # Trainer(student, ..., compute_loss_func=loss) does this, and
    >>> loss(outputs, torch.tensor([0, 2])).requires_grad
    True
    """

    def __init__(self, student: nn.Module, criterion: Criterion, teacher: nn.Module | None = None) -> None:
        self.criterion, self.teacher = criterion, teacher if teacher is None else teacher.eval()
        self._noted = NotedInputs(student, STORED)

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        """Compute the loss of a micro-batch: its mean over labels, times its share of the labels of the step.

        Raises
        ------
        CalibrationError
            If there are no labels, or neither a teacher nor its logits.
        ShapeError
            If the two models do not have the same classes.
        """
        labels, ours, theirs = labels_and_logits(outputs, labels, self._teacher_logits().to(logits_of(outputs).device))
        count = (labels != -100).sum()
        return _of_rows(self.criterion, ours, theirs, labels) * share_of_step(count, num_items_in_batch)

    def remove(self) -> None:
        """Take the hook off the student."""
        self._noted.remove()

    @torch.no_grad()
    def _teacher_logits(self) -> Tensor:
        inputs = self._noted.take()
        if self.teacher is None:
            if STORED not in inputs:
                raise CalibrationError(
                    f"a batch without {STORED!r}",
                    found=sorted(inputs),
                    do="Put the column into the data and set remove_unused_columns=False, or give a teacher.",
                )
            stored: Tensor = inputs[STORED]
            return stored
        given = {name: value for name, value in inputs.items() if name not in (STORED, "labels", "num_items_in_batch")}
        return logits_of(call(self.teacher, to_model(given, self.teacher)))


def _of_rows(criterion: Criterion, ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    try:
        return criterion(ours.flatten(0, -2), theirs.to(ours.device).flatten(0, -2), labels.flatten())
    except ShapeError as error:  # a criterion may compare with a teacher of fewer classes
        if theirs.shape[-1] == ours.shape[-1]:
            raise
        found = f"{theirs.shape[-1]} and {ours.shape[-1]}"
        raise ShapeError("teacher and student must have the same classes", found=found) from error


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return functional.cosine_similarity(a, b, dim=dim)


def _label_or_not(logits: Tensor, is_label: Tensor) -> Tensor:
    """Log-probabilities of the label and of all other classes together."""
    rest = logits.masked_fill(is_label, -torch.inf).logsumexp(1).clamp(min=LOWEST)
    return torch.stack([logits[is_label], rest], 1).log_softmax(1)
