"""The one training loop, on Accelerate: the same call on a CPU, a GPU, or under torchrun.

What makes methods special enters through PyTorch's own doors: an optimizer, a loss function, parametrisations of the
model, a callback after each step.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.models import call
from weightsmith.core.progress import track

__all__ = [
    "Fit",
    "Loss",
    "Samples",
    "aligned",
    "default_loss",
    "draw_seed",
    "fit",
    "logits_of",
    "mean_loss",
]

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""From the model and a batch to the mean loss over the batch."""

Samples: TypeAlias = Sequence[Mapping[str, Tensor]]
"""Training data of a model with keyword arguments: one mapping a sample, such as ``{"input_ids": LongTensor[L]}``."""


@dataclass
class Fit:
    """The record of a training run.

    Attributes
    ----------
    losses : list of float
        Training loss of every optimizer step, averaged over its micro-batches and processes.
    scores : list of float
        What ``evaluate`` returned, once an epoch.
    steps : int
        Optimizer steps taken.
    best_epoch : int
        The epoch whose weights the model holds: the last one, or the best with ``patience``.
    seconds : float
        Wall time.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    steps: int = 0
    best_epoch: int = 0
    seconds: float = 0.0


def fit(
    model: nn.Module,
    data: Dataset[Any] | Sequence[Any] | DataLoader[Any],
    *,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Literal["constant", "cosine", "linear"] = "constant",
    warmup: float = 0.0,
    final_rate: float = 0.0,
    epochs: int = 1,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    accumulate: int = 1,
    precision: Literal["no", "bf16", "fp16"] = "no",
    clip_norm: float | None = None,
    drop_last: bool = False,
    evaluate: Callable[[nn.Module], float] | None = None,
    higher_is_better: bool = True,
    patience: int | None = None,
    after_step: Callable[[int, float], None] | None = None,
    seed: int = 0,
) -> Fit:
    """Train a model in place.

    Parameters
    ----------
    model : nn.Module
        Any model; parameters with ``requires_grad=False`` stay as they are.
    data : Dataset, sequence of samples, or DataLoader
        A dataset is shuffled, in the same order for every number of processes; a loader is used as it is.
    loss : callable, optional
        ``loss(model, batch)``; by default :func:`default_loss`.
    optimizer : torch.optim.Optimizer, optional
        Over the model's parameters; AdamW without weight decay by default.
    scheduler : {"constant", "cosine", "linear"}, default: "constant"
        How the learning rate falls over all steps, if it does.
    warmup : float, default: 0.0
        Share of all steps, in [0, 1), over which the learning rate first rises from zero.
    final_rate : float, default: 0.0
        What is left of the learning rate at the end, in [0, 1], for schedules that fall.
    epochs : int, default: 1
        Passes over the data.
    learning_rate : float, default: 1e-3
        Of the default optimizer.
    batch_size : int, default: 32
        Samples a micro-batch and process, for datasets.
    accumulate : int, default: 1
        Micro-batches an optimizer step; an incomplete last group of an epoch takes a step too.
    precision : {"no", "bf16", "fp16"}, default: "no"
        Autocast type.
    clip_norm : float, optional
        Upper bound of the gradient's norm.
    drop_last : bool, default: False
        Leave out the incomplete last batch, for datasets.
    evaluate : callable, optional
        ``evaluate(model)`` after every epoch, in evaluation mode.
    higher_is_better : bool, default: True
        The direction of ``evaluate``.
    patience : int, optional
        Stop when this many epochs in a row brought no better score, and go back to the best weights.
    after_step : callable, optional
        ``after_step(step, loss)`` after every optimizer step.
    seed : int, default: 0
        Of the shuffling and of dropout: same seed, same result, on one machine.

    Returns
    -------
    Fit
        Losses, scores and times.

    Raises
    ------
    HyperparameterError
        If a number is out of range, or ``patience`` comes without ``evaluate``.
    CalibrationError
        If there is no batch.
    NonFiniteError
        If the loss becomes NaN or infinite.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 64).unsqueeze(1)
    >>> data = torch.utils.data.TensorDataset(x, 3 * x)
    >>> model = nn.Linear(1, 1)
    >>> squared = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    >>> run = fit(model, data, loss=squared, epochs=100, learning_rate=0.1)
    >>> round(model.weight.item(), 2), run.steps
    (3.0, 200)
    """
    from accelerate.utils import set_seed

    _check(epochs, batch_size, accumulate, evaluate, patience)
    if not 0 <= warmup < 1 or not 0 <= final_rate <= 1:
        raise HyperparameterError("warmup, final_rate", found=(warmup, final_rate), expected="in [0, 1) and [0, 1]")
    set_seed(seed)
    accelerator = _accelerator(model, precision, accumulate)
    if not isinstance(data, DataLoader):
        order = torch.Generator().manual_seed(seed)
        data = DataLoader(
            cast(Dataset[Any], data), batch_size=batch_size, shuffle=True, drop_last=drop_last, generator=order
        )
    optimizer = optimizer or torch.optim.AdamW(_trainable(model), lr=learning_rate, weight_decay=0.0)
    prepared: tuple[Any, Any, Any] = accelerator.prepare(model, optimizer, data)
    wrapped, optimizer, loader = prepared
    if len(loader) == 0:
        raise CalibrationError("no training batch", found=f"batch size {batch_size}, drop_last={drop_last}")
    steps = math.ceil(len(loader) / accumulate) * epochs
    # the schedule counts optimizer steps; Accelerate's wrapper would count one a process
    rate = partial(_rate, scheduler=scheduler, steps=steps, warmup=round(warmup * steps), final=final_rate)
    schedule = LambdaLR(prepared[1].optimizer, rate)
    loss = loss or default_loss
    record, best = Fit(), _Best(higher_is_better, patience)
    start = time.perf_counter()
    for epoch in track(range(epochs), "training", total=epochs):
        wrapped.train()
        group: list[Tensor] = []
        for batch in loader:
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    value = loss(wrapped, batch)
                accelerator.backward(value)
                group.append(value.detach().float())
                if accelerator.sync_gradients:
                    if clip_norm is not None:
                        accelerator.clip_grad_norm_(_trainable(model), clip_norm)
                    _take_step(record, accelerator.reduce(torch.stack(group).mean(), "mean"))
                    group = []
                optimizer.step()
                if accelerator.sync_gradients:
                    schedule.step()
                    if after_step is not None:
                        after_step(record.steps, record.losses[-1])
                optimizer.zero_grad()
        record.best_epoch = epoch
        if evaluate is not None:
            model.eval()
            record.scores.append(float(evaluate(model)))
            if best.is_over(model, record.scores[-1], epoch):
                break
    if best.weights is not None:
        model.load_state_dict(best.weights)
        record.best_epoch = best.epoch
    if accelerator.device.type != "cpu":  # a full garbage collection, for the sake of the cache on the device
        accelerator.free_memory()
    model.eval()
    record.seconds = time.perf_counter() - start
    return record


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss a batch asks for: the model's own with ``labels``, else cross-entropy of (inputs, classes).

    Raises
    ------
    CalibrationError
        If the batch is neither a mapping with ``labels`` or ``input_ids`` nor a pair.

    Examples
    --------
    >>> round(default_loss(nn.Identity(), (torch.zeros(2, 4), torch.tensor([0, 1]))).item(), 4)
    1.3863
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch and "input_ids" in batch:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])) != 0
            batch = {**batch, "labels": batch["input_ids"].masked_fill(~real, -100)}
        if "labels" in batch:
            loss: Tensor = call(model, batch).loss
            return loss
    elif isinstance(batch, Sequence) and len(batch) == 2:
        inputs, classes = batch
        return functional.cross_entropy(call(model, inputs), classes)
    raise CalibrationError(
        "training batch",
        found=type(batch).__name__,
        expected="a mapping with labels, or (inputs, classes)",
        do="Pass a loss.",
    )


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Any]) -> float:
    """Average :func:`default_loss` over batches.

    Examples
    --------
    >>> round(mean_loss(nn.Identity(), [(torch.zeros(2, 4), torch.tensor([0, 1]))]), 4)
    1.3863
    """
    return sum(default_loss(model, batch).item() for batch in batches) / len(batches)


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output, which may be they themselves.

    Raises
    ------
    UnsupportedModelError
        If there are none.

    Examples
    --------
    >>> logits_of(nn.Linear(2, 3)(torch.zeros(5, 2))).shape
    torch.Size([5, 3])
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None:
        raise UnsupportedModelError(
            "the model gives no logits", found=type(output).__name__, do="Use a model with a head."
        )
    return logits


def aligned(model: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``[..., classes]`` and labels ``[...]`` where each position's label is what its logits are about.

    A causal language model's logits are about the next token, so the first label and the last logits go.

    Examples
    --------
    >>> logits, labels = aligned(nn.Identity(), torch.zeros(2, 5), torch.zeros(2))
    >>> logits.shape, labels.shape
    (torch.Size([2, 5]), torch.Size([2]))
    """
    plain = getattr(model, "module", model)  # under DistributedDataParallel
    causal = getattr(plain, "can_generate", None)
    if causal is not None and causal() and not getattr(plain.config, "is_encoder_decoder", False):
        return logits[..., :-1, :], labels[..., 1:]
    return logits, labels


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw the seed of a run from a generator; 0 without one.

    Examples
    --------
    >>> draw_seed(torch.Generator().manual_seed(3)) == draw_seed(torch.Generator().manual_seed(3)) > 0
    True
    """
    return 0 if generator is None else int(torch.randint(2**31, (), generator=generator))


class _Best:
    """Early stopping: the best weights so far, and for how many epochs there were no better."""

    def __init__(self, higher_is_better: bool, patience: int | None) -> None:
        self.sign, self.patience = (1 if higher_is_better else -1), patience
        self.score, self.epoch = -math.inf, 0
        self.weights: dict[str, Tensor] | None = None

    def is_over(self, model: nn.Module, score: float, epoch: int) -> bool:
        if self.patience is None:
            return False
        if self.sign * score > self.score:
            self.score, self.epoch = self.sign * score, epoch
            self.weights = copy.deepcopy(model.state_dict())
        return epoch - self.epoch >= self.patience


def _accelerator(model: nn.Module, precision: str, accumulate: int) -> Any:
    """An Accelerator on the model's own device, or, under torchrun, on the process's."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # it forbids a second run in another precision
    own = torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = not own and all(parameter.device.type == "cpu" for parameter in model.parameters())
    return Accelerator(mixed_precision=precision, gradient_accumulation_steps=accumulate, cpu=cpu)


def _rate(step: int, *, scheduler: str, steps: int, warmup: int, final: float) -> float:
    """The learning rate's factor at a step.

    >>> [_rate(step, scheduler="linear", steps=6, warmup=2, final=0.5) for step in range(6)]
    [0.0, 0.5, 1.0, 0.875, 0.75, 0.625]
    """
    if step < warmup:
        return step / warmup
    past = min((step - warmup) / max(steps - warmup, 1), 1.0)
    falling = {"constant": 1.0, "linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2}[scheduler]
    return final + (1 - final) * falling if scheduler != "constant" else 1.0


def _take_step(record: Fit, loss: Tensor) -> None:
    if not bool(loss.isfinite()):
        raise NonFiniteError(
            f"the loss at step {record.steps + 1}", found=loss.item(), do="Lower the learning rate or clip gradients."
        )
    record.losses.append(loss.item())
    record.steps += 1


def _trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _check(epochs: int, batch_size: int, accumulate: int, evaluate: object, patience: int | None) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("accumulate", accumulate)):
        if value < 1:
            raise HyperparameterError(name, found=value, expected=">= 1")
    if patience is not None and (patience < 1 or evaluate is None):
        raise HyperparameterError("patience", found=patience, expected=">= 1, together with evaluate")
