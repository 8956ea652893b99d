r"""PLD: a distillation loss that ranks all classes as the teacher does, in one term.

Bassam, Zhu, Bian 2025, arXiv 2506.12542. The classes of a sample are put in order: the label first, then the others by
falling teacher logit. With :math:`\pi` this order, :math:`s` the student's logits and :math:`t` the teacher's,

.. math::

    L = \sum_{k=1}^{C} \alpha_k \Bigl( \log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k} \Bigr),
    \qquad \alpha_k = \mathrm{softmax}(t / \tau)_{\pi_k} :

at each rank the student chooses among the remaining classes, and the teacher's probability of the chosen class is the
weight of the term. The temperature changes only these weights, and there is no factor :math:`\tau^2`. With a teacher
that is certain of the label the loss is cross-entropy, with a uniform teacher it is ListMLE over ``C``.

Legend: ``N`` rows, ``C`` classes, ``K`` ranks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples, batched, pad_token_id, read, to_model
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import evaluation_mode
from weightsmith.core.results import Result, record
from weightsmith.core.selection import falling_order
from weightsmith.core.training import (
    IGNORED,
    FitOptions,
    check_labels,
    check_temperature,
    draw_seed,
    fit,
    predict,
    seed_of,
    training_method,
)
from weightsmith.train._shared.distillation import distillation

__all__ = ["PLDLoss", "label_weight", "pld", "pld_loss", "pld_loss_from_top", "suggest_temperature"]

Reduction = Literal["none", "mean", "sum"]

JUDGED, JUDGED_LABELS = 64, 1024
"""Samples that the temperature is found on, and how many of their labels: each has logits for a whole vocabulary."""

MOST_LABELS = 8
"""Labels a soft target may have in a row: the loss needs an order of the classes for each."""


def pld_loss(
    student: Float[Tensor, "N C ..."],
    teacher: Float[Tensor, "..."],
    labels: Shaped[Tensor, "..."],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_weight_floor: float = 0.0,
    class_dim: int = 1,
) -> Float[Tensor, "..."]:
    """Compute the loss of student logits against teacher logits and labels.

    Parameters
    ----------
    student, teacher : Tensor of shape (N, C, ...)
        Logits; the teacher's are constants. A class whose logit is minus infinity in either is left out.
    labels : Tensor of shape (N, ...)
        Class indices; or, of the logits' shape, class probabilities (a mixture of up to 8 classes, as mixup gives).
    temperature : float, default: 1.0
        Temperature of the weights, positive. Overconfident teachers need a higher one: see :func:`suggest_temperature`.
    top_k : int, optional
        Rank the label and the next ``top_k - 1`` classes only; the others stay in every denominator. For large
        vocabularies.
    reduction : {"none", "mean", "sum"}, default: "mean"
        The mean is over the rows that are not ignored.
    ignore_index : int, default: -100
        Label of rows to leave out.
    label_weight_floor : float, default: 0.0
        Least weight of the label's own term, in [0, 1): where the teacher's weight is lower, the other weights shrink.
        Guards against teachers that are confident in a wrong class.
    class_dim : int, default: 1
        The dimension of the classes; -1 for ``[batch, tokens, vocabulary]``.

    Returns
    -------
    Tensor
        Scalar, or one loss a label with ``reduction="none"``; at least float32.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    HyperparameterError
        If ``temperature`` is not positive, ``top_k`` not at least 1, ``label_weight_floor`` not in [0, 1), the
        reduction unknown, or a label not a class or a probability.
    NonFiniteError
        If the teacher's logits hold NaN or plus infinity, or a label's logit is minus infinity.

    References
    ----------
    Bassam, Zhu, Bian 2025, arXiv 2506.12542.

    Examples
    --------
    >>> student, teacher = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 3.0, 2.0]])
    >>> round(pld_loss(student, teacher, torch.tensor([0])).item(), 6)
    0.245091
    """
    _check_hyper(temperature, label_weight_floor, top_k, reduction)
    _check_shapes(student, teacher, labels, class_dim)
    s_NC, t_NC = student.movedim(class_dim, -1).flatten(0, -2), teacher.movedim(class_dim, -1).flatten(0, -2).detach()
    shape = student.movedim(class_dim, -1).shape[:-1]
    if labels.is_floating_point():
        p_NC = labels.movedim(class_dim, -1).flatten(0, -2)
        if not bool((p_NC >= 0).all() & p_NC.isfinite().all()):
            raise HyperparameterError("soft labels", found=p_NC.min().item(), expected="probabilities, >= 0")
        losses = _mixture(s_NC, t_NC, p_NC, lambda s, t, y: _per_row(s, t, y, temperature, top_k, label_weight_floor))
        return _reduce(losses, torch.ones_like(losses, dtype=torch.bool), shape, reduction)
    y = labels.flatten().long()
    kept = y != ignore_index
    check_labels(y[kept], s_NC.shape[1])
    losses = _per_row(s_NC[kept], t_NC[kept], y[kept], temperature, top_k, label_weight_floor)
    return _reduce(losses, kept, shape, reduction)


def pld_loss_from_top(
    student: Float[Tensor, "N C"],
    top_indices: Integer[Tensor, "N K"],
    top_logits: Float[Tensor, "N K"],
    rest: Float[Tensor, "N"],
    labels: Integer[Tensor, "N"],
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    """Compute the loss against a cached teacher: only its largest logits, so that it does not run again.

    Parameters
    ----------
    student : Tensor of shape (N, C)
        Logits. A class whose logit is minus infinity, here or in ``top_logits``, is left out.
    top_indices, top_logits : Tensor of shape (N, K)
        The teacher's largest logits, in any order. Where they do not hold the label, its own weight is taken to be
        zero.
    rest : Tensor of shape (N,)
        ``logsumexp`` of the teacher's other logits over ``temperature``, without classes that the student leaves out.
    labels : Tensor of shape (N,)
        Class indices.
    temperature, reduction, ignore_index
        As for :func:`pld_loss`.

    Raises
    ------
    HyperparameterError
        If ``temperature`` is not positive, the reduction unknown, or a label not a class.
    NonFiniteError
        If ``top_logits`` or ``rest`` hold NaN or plus infinity, or a label's logit is minus infinity.

    Examples
    --------
    >>> student, teacher = torch.randn(4, 9), torch.randn(4, 9)
    >>> labels, (logits, indices) = teacher.argmax(1), teacher.topk(3)
    >>> rest = teacher.scatter(1, indices, -torch.inf).logsumexp(1)
    >>> ours = pld_loss_from_top(student, indices, logits, rest, labels)
    >>> torch.allclose(ours, pld_loss(student, teacher, labels, top_k=3))
    True
    """
    _check_hyper(temperature, 0.0, None, reduction)
    labels = labels.long()
    kept = labels != ignore_index
    y = labels[kept]
    check_labels(y, student.shape[1])
    s_NC, indices, logits = student[kept], top_indices[kept].long(), upcast(top_logits[kept]) / temperature
    logits = logits.masked_fill(s_NC.detach().gather(1, indices).isneginf(), -torch.inf)
    falling = falling_order(logits)
    indices, logits = indices.gather(1, falling), logits.gather(1, falling)
    # the label first: it is put in front, and its own place among the others has weight zero
    is_label = indices == y[:, None]
    _check_label_takes_part((is_label & logits.isneginf()) | s_NC.detach().gather(1, y[:, None]).isneginf())
    total = torch.logaddexp(logits.logsumexp(1), rest[kept].to(logits))
    _check_teacher(total)
    weight = (logits - total[:, None]).exp()
    own = (weight * is_label).sum(1, keepdim=True)
    order = torch.cat([y[:, None], indices], 1)
    alpha = torch.cat([own, weight.masked_fill(is_label, 0.0)], 1)
    gone = torch.cat([torch.zeros_like(is_label[:, :1]), is_label | logits.isneginf()], 1)
    losses = _ranked(s_NC, order, alpha, gone)
    return _reduce(losses, kept, labels.shape, reduction)


class PLDLoss(nn.Module):
    """:func:`pld_loss` as a module, with diagnostics of the teacher.

    Parameters
    ----------
    temperature, top_k, reduction, ignore_index, label_weight_floor, class_dim
        As for :func:`pld_loss`.

    Examples
    --------
    >>> loss = PLDLoss(temperature=4.0)
    >>> logits = torch.randn(8, 5, requires_grad=True)
    >>> loss(logits, torch.randn(8, 5), torch.zeros(8, dtype=torch.long)).backward()
    >>> bool((logits.grad.sum(1).abs() < 1e-6).all())
    True
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        label_weight_floor: float = 0.0,
        class_dim: int = 1,
    ) -> None:
        super().__init__()
        _check_hyper(temperature, label_weight_floor, top_k, reduction)
        self.temperature, self.top_k, self.reduction = temperature, top_k, reduction
        self.ignore_index, self.label_weight_floor, self.class_dim = ignore_index, label_weight_floor, class_dim

    def forward(
        self, student: Float[Tensor, "N C ..."], teacher: Float[Tensor, "..."], labels: Shaped[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """Compute the loss."""
        return pld_loss(
            student,
            teacher,
            labels,
            temperature=self.temperature,
            top_k=self.top_k,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_weight_floor=self.label_weight_floor,
            class_dim=self.class_dim,
        )

    @torch.no_grad()
    def diagnostics(self, teacher: Float[Tensor, "N C"], labels: Integer[Tensor, "N"]) -> dict[str, float]:
        """Describe the teacher's weights at this temperature.

        Returns
        -------
        dict
            ``label_weight`` (mean weight of the label's term: near 1 the loss is cross-entropy, near 0 the label is not
            learned), ``entropy`` of the weights in nats, ``disagreement`` (share of rows whose label is not the
            teacher's first choice).
        """
        kept = labels != self.ignore_index
        q_NC = (teacher[kept].float() / self.temperature).softmax(1)
        return {
            "label_weight": label_weight(teacher[kept], labels[kept], self.temperature),
            "entropy": torch.special.entr(q_NC).sum(1).mean().item(),
            "disagreement": (q_NC.argmax(1) != labels[kept]).float().mean().item(),
        }

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return f"temperature={self.temperature}, top_k={self.top_k}, reduction={self.reduction!r}"


def label_weight(teacher: Float[Tensor, "N C"], labels: Integer[Tensor, "N"], temperature: float) -> float:
    """Return the mean weight of the labels' own terms at a temperature; labels of -100 are left out.

    Examples
    --------
    >>> round(label_weight(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), 1.0), 3)
    0.5
    """
    kept = labels != IGNORED
    check_labels(labels[kept], teacher.shape[1])
    q_NC = (teacher.float() / temperature).softmax(1)
    return q_NC.gather(1, labels.where(kept, 0).long()[:, None])[kept].mean().item()


def suggest_temperature(teacher: Float[Tensor, "N C"], labels: Integer[Tensor, "N"], *, target: float = 0.4) -> float:
    """Find the temperature at which the labels' own terms weigh ``target`` on average.

    Parameters
    ----------
    teacher : Tensor of shape (N, C)
        Its logits on training samples.
    labels : Tensor of shape (N,)
        Class indices; rows with the label -100 are left out.
    target : float, default: 0.4
        0.2 to 0.6 worked well in our runs.

    Returns
    -------
    float
        Between 0.05 and 100; an end where the target cannot be reached.

    Raises
    ------
    HyperparameterError
        If ``target`` is not in (0, 1), or a label not a class.
    CalibrationError
        If no row has a label.

    Examples
    --------
    >>> round(suggest_temperature(torch.tensor([[4.0, 0.0]]), torch.tensor([0]), target=0.6), 2)
    9.87
    """
    if not 0 < target < 1:
        raise HyperparameterError("target", found=target, expected="in (0, 1)")
    if not bool((labels != IGNORED).any()):
        raise CalibrationError("labels", found=f"{len(labels)} rows without a label", do="Give labels.")
    low, high = math.log(0.05), math.log(100.0)
    falls = label_weight(teacher, labels, 0.05) > label_weight(teacher, labels, 100.0)
    for _ in range(40):
        middle = (low + high) / 2
        if (label_weight(teacher, labels, math.exp(middle)) > target) == falls:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


@training_method(learning_rate=1e-4, weight_decay=0.01, batch_size=8, scheduler="cosine")
def pld(
    model: nn.Module,
    training: Samples,
    *,
    teacher: nn.Module,
    temperature: float | None = None,
    top_k: int | None = None,
    label_weight_floor: float = 0.0,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a student on labeled samples to rank all classes as a teacher does.

    Parameters
    ----------
    model : nn.Module
        The student, changed in place.
    training : sequence of mapping
        Samples with the models' inputs and ``labels``; a text's labels are its next tokens.
    teacher : nn.Module
        With the same classes in the same order (the same tokenizer).
    temperature : float, optional
        Temperature; when left out found on 64 samples from everywhere in the data, so that labels weigh 0.4.
    top_k : int, optional
        Rank only this many classes.
    label_weight_floor : float, default: 0.0
        Least weight of a label, in [0, 1): a guard against teachers that are confident in another class.
    generator : torch.Generator, optional
        Draws the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        The teacher's weights at the temperature, and the losses.

    References
    ----------
    Bassam, Zhu, Bian 2025, arXiv 2506.12542.
    """
    _check_hyper(1.0 if temperature is None else temperature, label_weight_floor, top_k, "mean")
    seed = draw_seed(generator)
    hyper = {"top_k": top_k, "label_weight_floor": label_weight_floor}
    with record("pld", seed=seed_of(generator), **hyper, **options) as result, evaluation_mode(teacher):
        theirs, labels = _teacher_logits(teacher, training, options["batch_size"])
        if temperature is None:
            temperature = suggest_temperature(theirs, labels)
        result.hyper["temperature"] = temperature
        criterion = PLDLoss(temperature, top_k=top_k, label_weight_floor=label_weight_floor)
        result.totals = criterion.diagnostics(theirs, labels)
        if result.totals["label_weight"] < 0.01 and not label_weight_floor:
            warnings.warn(
                f"the labels have almost no weight at temperature {temperature:.3g}: give label_weight_floor",
                stacklevel=3,
            )
        run = fit(model, training, loss=distillation(teacher, criterion), seed=seed, **options)
        result.curves["training loss"] = run.losses
        result.totals["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return result


class _PlackettLuce(torch.autograd.Function):
    r""":math:`\sum_k \alpha_k (\log \sum_{l \ge k} e^{s_l} - s_k)` of scores in order; gradient in the same pass.

    In float64: the sums span many orders of magnitude, and a subtraction-free running sum in float32 would lose them.
    """

    @staticmethod
    def forward(ctx: Any, s_NK: Tensor, alpha_NK: Tensor) -> Tensor:
        s, alpha = s_NK.double(), alpha_NK.double()
        largest = s.amax(1, keepdim=True)
        e = (s - largest).exp()
        left = e.flip(1).cumsum(1).flip(1)
        log_left = left.log()
        if bool((left < 1e-290).any()):
            # a row spans more than float64: the exact running logsumexp, which is slower
            log_left = (s - largest).flip(1).logcumsumexp(1).flip(1)
            chosen = (torch.where(alpha > 0, alpha.log(), -torch.inf) - log_left).logcumsumexp(1)
            gradient = (s - largest + chosen).exp() - alpha
        else:
            gradient = e * (alpha / left).cumsum(1) - alpha
        ctx.save_for_backward(gradient.to(s_NK.dtype))
        terms = torch.where(alpha > 0, alpha * (log_left - (s - largest)), 0.0)
        return terms.sum(1).to(s_NK.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradients[0][:, None] * gradient, None


def _per_row(s_NC: Tensor, t_NC: Tensor, y_N: Tensor, temperature: float, top_k: int | None, floor: float) -> Tensor:
    """The loss of every row; rows are not ignored and labels are in range."""
    t_NC = upcast(t_NC)
    _check_teacher(t_NC.amax(1))
    gone = s_NC.detach().isneginf() | t_NC.isneginf()
    _check_label_takes_part(gone.gather(1, y_N[:, None]))
    s_NC, t_NC = s_NC.masked_fill(gone, -torch.inf), t_NC.masked_fill(gone, -torch.inf)
    key = t_NC.scatter(1, y_N[:, None], torch.inf)
    order = _order(key, top_k)
    alpha = (t_NC / temperature).log_softmax(1).gather(1, order).exp()
    if floor:
        first = alpha[:, :1].clamp(min=floor)
        scale = (1 - first) / (1 - alpha[:, :1]).clamp(min=torch.finfo(alpha.dtype).tiny)
        alpha = torch.cat([first, alpha[:, 1:] * scale], 1)
    return _ranked(s_NC, order, alpha)


def _order(key_NC: Tensor, top_k: int | None) -> Tensor:
    """The first ``top_k`` classes (all by default) by falling key; of equal ones the first class comes first."""
    if top_k is None or top_k >= key_NC.shape[1]:
        return falling_order(key_NC)
    values, order = key_NC.topk(top_k, dim=1)
    order = order.sort(dim=1).values
    # topk takes any of the classes that are equal to the last one it takes
    last = values[:, -1:]
    equal = key_NC == last
    tied = (equal.sum(1, dtype=torch.int32) > (values == last).sum(1)) & ~last[:, 0].isneginf()
    if bool(tied.any()):
        equal, room = equal[tied], (values[tied] == last[tied]).sum(1, keepdim=True)
        taken = (key_NC[tied] > last[tied]) | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
        order[tied] = taken.nonzero()[:, 1].view(-1, top_k)
    return order.gather(1, key_NC.gather(1, order).argsort(dim=1, descending=True, stable=True))


def _ranked(s_NC: Tensor, order_NK: Tensor, alpha_NK: Tensor, gone_NK: Tensor | None = None) -> Tensor:
    """The loss of the classes in order; those not in it stay in every denominator as one more, of no weight."""
    s_NC = upcast(s_NC)
    s_NK = s_NC.gather(1, order_NK)
    if gone_NK is not None:
        s_NK = s_NK.masked_fill(gone_NK, -torch.inf)
    s_NK = s_NK.clamp(min=torch.finfo(s_NC.dtype).min)
    if order_NK.shape[1] < s_NC.shape[1]:
        rest = s_NC.scatter(1, order_NK, -torch.inf).logsumexp(1, keepdim=True)
        s_NK = torch.cat([s_NK, rest.clamp(min=torch.finfo(s_NC.dtype).min)], 1)
        alpha_NK = torch.cat([alpha_NK, torch.zeros_like(alpha_NK[:, :1])], 1)
    losses: Tensor = _PlackettLuce.apply(s_NK, alpha_NK)
    return losses


def _mixture(s_NC: Tensor, t_NC: Tensor, p_NC: Tensor, per_row: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The loss of each label of a row, weighted by its probability."""
    most = int((p_NC > 0).sum(1).max()) if len(p_NC) else 1
    if most > MOST_LABELS:
        raise HyperparameterError(
            "soft targets", found=f"{most} labels in a row", expected=f"at most {MOST_LABELS}", do="Use class indices."
        )
    shares, classes = p_NC.topk(max(most, 1), dim=1)
    total = upcast(s_NC).new_zeros(len(s_NC))
    for share, y in zip(shares.T, classes.T, strict=True):
        (rows,) = share.nonzero(as_tuple=True)
        total = total.index_add(0, rows, share[rows].to(total) * per_row(s_NC[rows], t_NC[rows], y[rows]).to(total))
    return total


def _reduce(losses: Tensor, kept: Tensor, shape: torch.Size, reduction: str) -> Tensor:
    if reduction == "none":
        return losses.new_zeros(len(kept)).masked_scatter(kept, losses).reshape(shape)
    # an empty mean is zero with a graph, so that backward works on a batch with nothing to learn
    return losses.sum() if reduction == "sum" else losses.sum() / max(len(losses), 1)


def _check_hyper(temperature: float, floor: float, top_k: int | None, reduction: str) -> None:
    check_temperature(temperature)
    check_choice("reduction", reduction, Reduction)
    if not 0 <= floor < 1:
        raise HyperparameterError("label_weight_floor", found=floor, expected="in [0, 1)")
    if top_k is not None and top_k < 1:
        raise HyperparameterError("top_k", found=top_k, expected="at least 1")


def _check_teacher(largest_N: Tensor) -> None:
    """Refuse rows by their largest logit (or the logsumexp of all): it is NaN or infinite where one of them is."""
    rows = (~largest_N.isfinite()).nonzero().flatten().tolist()
    if rows:
        raise NonFiniteError("the teacher's logits hold NaN or infinity", found=f"rows {rows[:5]}")


def _check_label_takes_part(gone: Tensor) -> None:
    if bool(gone.any()):
        raise NonFiniteError("the logit of a label is minus infinity: its class does not take part")


def _check_shapes(student: Tensor, teacher: Tensor, labels: Tensor, class_dim: int) -> None:
    if student.ndim < 2 or not -student.ndim <= class_dim < student.ndim:
        found = f"class_dim {class_dim} of logits {tuple(student.shape)}"
        raise ShapeError("the dimension of the classes", found=found, expected="one of two dimensions or more")
    if student.shape != teacher.shape:
        raise ShapeError(
            "student and teacher logits",
            found=f"{tuple(student.shape)} and {tuple(teacher.shape)}",
            expected="one shape",
        )
    rows = student.movedim(class_dim, -1).shape[:-1]
    expected = student.shape if labels.is_floating_point() else rows
    if labels.shape != expected:
        raise ShapeError("labels", found=tuple(labels.shape), expected=tuple(expected))


@torch.no_grad()
def _teacher_logits(teacher: nn.Module, training: Samples, size: int) -> tuple[Tensor, Tensor]:
    """The teacher's logits on samples from everywhere in the data, and the labels they predict."""
    step = math.ceil(len(training) / JUDGED)
    for first in range(step):  # the next ones where none of these has a label
        chosen = read(training, range(first, len(training), step))
        found = []
        for batch in batched(chosen, size, pad_token_id=pad_token_id(teacher)):
            logits, labels = predict(teacher, to_model(batch, teacher))
            rows = (labels.flatten() >= 0).nonzero().flatten()
            most = JUDGED_LABELS * min(size, len(chosen)) / len(chosen)
            rows = rows[:: max(1, math.ceil(len(rows) / most))]
            found.append((logits.flatten(0, -2)[rows], labels.flatten()[rows]))
        logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        if len(labels):
            return logits, labels
    raise CalibrationError("training", found=f"{len(training)} samples without a label", do="Give labels.")
