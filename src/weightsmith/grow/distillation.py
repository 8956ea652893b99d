"""Distillation of a whole model: from a teacher's probabilities to a student that is trained on nothing else.

The teacher may be of any architecture and the data need no labels: what the two must share are the classes.

Legend: ``N`` rows (samples, tokens), ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError, UnsupportedModelError
from weightsmith.core.fit import Fit, Samples, default_loss, fit
from weightsmith.core.layers import evaluation_mode
from weightsmith.core.streaming import call

__all__ = ["agreement", "decaying_adamw", "distil", "soft_distillation"]

Reduction = Literal["batch", "numel"]


def soft_distillation(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "..."], *, tau: float = 1.0, reduction: Reduction = "batch"
) -> Float[Tensor, ""]:
    r"""Compute :math:`\tau^2\,\mathrm{KL}(p_T \Vert p_S)` of logits.

    Parameters
    ----------
    student, teacher : Tensor of shape (N, C)
        Logits, compared in float32 or better; the teacher's are constants.
    tau : float, default: 1.0
        Temperature, positive.
    reduction : {"batch", "numel"}, default: "batch"
        The mean over rows; or, as the paper's code has it, that over ``C`` too. The optimizer hardly sees a difference
        unless the loss is mixed with another.

    Raises
    ------
    HyperparameterError
        If ``tau`` is not positive.
    NonFiniteError
        If the teacher's logits hold NaN.
    ShapeError
        If the two have different classes.

    Examples
    --------
    >>> student, teacher = torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
    >>> round(soft_distillation(student, teacher).item(), 6)
    0.255111
    """
    if not tau > 0:
        raise HyperparameterError("tau", found=tau, expected="positive")
    if student.shape != teacher.shape:
        found = f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        raise ShapeError("logits of teacher and student", found=found, expected="the same classes")
    if bool(teacher.isnan().any()):
        raise NonFiniteError("the teacher's logits hold NaN")
    log_q, log_p = (functional.log_softmax(_single(logits) / tau, 1) for logits in (student, teacher.detach()))
    divergence = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return tau**2 * divergence / (len(student) if reduction == "batch" else student.numel())


def distil(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    *,
    alpha: float = 1.0,
    tau: float = 1.0,
    reduction: Reduction = "batch",
    learning_rate: float = 5e-4,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    epochs: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> Fit:
    r"""Train a student in place on a teacher's probabilities: :math:`(1-\alpha) L_{labels} + \alpha L_{KD}`.

    Parameters
    ----------
    student : nn.Module
        Usually one with shared stages.
    teacher : nn.Module
        Of any architecture with the same classes. It runs in evaluation mode, without gradients.
    data : Dataset, sequence of samples, or DataLoader
        As for :func:`weightsmith.core.fit.fit`. A mapping's padding (``attention_mask`` 0) does not count.
    alpha : float, default: 1.0
        Weight of the teacher, in [0, 1]; at 1 labels are not used and need not be there.
    tau, reduction
        As for :func:`soft_distillation`.
    learning_rate, weight_decay : float
        Of AdamW with cosine decay; vectors (biases, norms) do not decay.
    warmup : float, default: 0.05
        Share of all steps with a rising learning rate.
    epochs, batch_size, seed
        As for :func:`weightsmith.core.fit.fit`.

    Returns
    -------
    Fit
        The losses.

    Raises
    ------
    HyperparameterError
        If ``alpha`` or ``tau`` is out of range.
    NonFiniteError, ShapeError
        As :func:`soft_distillation`.
    UnsupportedModelError
        If a model gives no logits.
    """
    if not 0 <= alpha <= 1:
        raise HyperparameterError("alpha", found=alpha, expected="in [0, 1]")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs = _inputs(batch)
        with torch.no_grad():
            theirs = _rows(call(teacher, inputs), inputs)
        ours = _rows(call(model, inputs), inputs)
        value = alpha * soft_distillation(ours, theirs, tau=tau, reduction=reduction)
        return value if alpha == 1 else value + (1 - alpha) * default_loss(model, batch)

    with evaluation_mode(teacher):
        return fit(
            student,
            data,
            loss=loss,
            optimizer=decaying_adamw(student, learning_rate, weight_decay),
            scheduler="cosine",
            warmup=warmup,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        )


@torch.no_grad()
def agreement(model: nn.Module, teacher: nn.Module, samples: Samples, batch_size: int) -> dict[str, float]:
    """Measure on how much of the data the largest logits are the teacher's, and the divergence from its probabilities.

    Returns
    -------
    dict
        ``agreement``, a share, and ``divergence`` in nats a row.
    """
    same = rows = 0
    divergence = 0.0
    device = next(model.parameters()).device
    with evaluation_mode(model), evaluation_mode(teacher):
        for start in range(0, len(samples), batch_size):
            some = samples[start : start + batch_size]
            inputs = _inputs({name: torch.stack([sample[name] for sample in some]).to(device) for name in some[0]})
            ours, theirs = (_rows(call(network, inputs), inputs) for network in (model, teacher))
            same += int((ours.argmax(1) == theirs.argmax(1)).sum())
            divergence += soft_distillation(ours, theirs).item() * len(ours)
            rows += len(ours)
    return {"agreement": same / rows, "divergence": divergence / rows}


def decaying_adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make an AdamW that lets matrices decay, and vectors (biases, norms) not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)


def _inputs(batch: Any) -> Any:
    """A batch without its labels."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch[0] if isinstance(batch, Sequence) and len(batch) == 2 else batch


def _rows(output: Any, inputs: Any) -> Tensor:
    """The logits of an output as rows; those of padding tokens are left out."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None:
        raise UnsupportedModelError(
            "the model gives no logits to distil", found=type(output).__name__, do="Use a model with a head."
        )
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is not None and mask.shape == logits.shape[:-1]:
        return logits[mask != 0]
    return logits.flatten(0, -2)


def _single(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
