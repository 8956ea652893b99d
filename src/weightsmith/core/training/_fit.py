"""The one training loop, on Accelerate: the same call on a CPU, a GPU, or under torchrun.

A method enters through PyTorch's own interfaces: an optimizer, a loss function, parametrizations of the model, a
callback after each step.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from weightsmith.core.caller import callers_settings
from weightsmith.core.data import Samples, collate, pad_token_id, read
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError
from weightsmith.core.models import device_of
from weightsmith.core.processes import gather_objects, launched_count
from weightsmith.core.progress import track
from weightsmith.core.sharding import refuse_without_fsdp, sharded_parameters
from weightsmith.core.training._batch_loss import Loss, default_loss, has_label
from weightsmith.core.training._float_steps import float_steps
from weightsmith.core.training._optimizer import (
    adamw,
    check_optimizer,
    rates_restored,
    refuse_sparse_gradients,
    schedule,
    trained_parameters,
)
from weightsmith.core.training._options import FitOptions, training_method

__all__ = ["Fit", "batch_count", "draw_seed", "fit", "seed_of"]


@dataclass
class Fit:
    """The record of a training run.

    Attributes
    ----------
    losses : list of float
        Training loss of every optimizer step, averaged over its micro-batches and processes.
    scores : list of float
        What ``evaluate`` returned, once per epoch.
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


@training_method(takes_sharded=True)
def fit(
    model: nn.Module,
    data: Samples | DataLoader[Any],
    *,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    drop_last: bool = False,
    evaluate: Callable[[nn.Module], float] | None = None,
    higher_is_better: bool = True,
    patience: int | None = None,
    after_step: Callable[[int, float], None] | None = None,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> Fit:
    """Train a model in place. On any exception the model is restored.

    Parameters
    ----------
    model : nn.Module
        Any model. Parameters with ``requires_grad=False`` stay unchanged. Those of half precision are stepped in copies
        in float32, see :func:`float_steps`. All modules are put in training mode, and
        each back in its own mode at the end. Under torchrun every process trains on its part of the data, and gradients
        are averaged; a model under FSDP2 (``fully_shard``) stays sharded.
    data : Dataset, sequence of samples, or DataLoader
        A dataset is shuffled, in the same order for every number of processes, and its samples are put together by
        :func:`weightsmith.core.data.collate`. A loader is used unchanged.
    loss : callable, optional
        ``loss(model, batch)``; by default :func:`default_loss`.
    optimizer : torch.optim.Optimizer, optional
        Over the model's parameters; by default AdamW with ``learning_rate`` and ``weight_decay``. An optimizer that is
        given has its own, and the two options do nothing. Its learning rates follow the schedule, and are what they
        were afterwards.
    drop_last : bool, default: False
        Leave out the incomplete last batch, for datasets.
    evaluate : callable, optional
        ``evaluate(model)`` after every epoch, in evaluation mode; of several processes the mean.
    higher_is_better : bool, default: True
        The direction of ``evaluate``.
    patience : int, optional
        Stop when this many epochs in a row brought no better score, and return to the best weights.
    after_step : callable, optional
        ``after_step(step, loss)`` after every optimizer step.
    seed : int, default: 0
        Of the shuffling and of dropout: same seed, same result, on one machine. Dropout draws from the global
        generators, which threads share: train networks at the same time in processes.
    **options
        Learning rate, epochs, batch size, precision and more: see :class:`FitOptions`.

    Returns
    -------
    Fit
        Losses, scores and times.

    Raises
    ------
    HyperparameterError
        If an option is unknown or out of range, ``patience`` comes without ``evaluate``, or ``optimizer`` holds tensors
        that are not parameters of the model (or of ``loss``).
    CalibrationError
        If there is no sample or batch, or one of a single sample for batch normalization, the data have no length, or
        all labels are -100.
    NonFiniteError
        If a parameter is, or the loss becomes, NaN or infinite.
    UnsupportedModelError
        If all parameters are frozen, or the model has no gradient checkpointing but the option asks for it, is sharded
        in part or not by ``fully_shard``, or has an embedding with sparse gradients that the optimizer does not take.

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

    if patience is not None and (patience < 1 or evaluate is None):
        raise HyperparameterError("patience", found=patience, expected=">= 1, together with evaluate")
    refuse_without_fsdp(model)
    set_seed(seed)
    _check_data(data)
    if not isinstance(data, DataLoader):
        order = torch.Generator().manual_seed(seed)
        data = DataLoader(
            _Read(data),
            batch_size=options["batch_size"],
            shuffle=True,
            drop_last=drop_last,
            generator=order,
            collate_fn=partial(collate, pad_token_id=pad_token_id(model)),
        )
    if optimizer is not None:
        check_optimizer(optimizer, model, loss)
    if optimizer is None or optimizer.defaults.get("fused"):
        refuse_sparse_gradients(model)
    optimizer = optimizer or adamw(model, options)
    start = time.perf_counter()
    with _accelerated(model, options["precision"], options["accumulation_steps"]) as accelerator:
        best = _Best(higher_is_better, patience)
        record = _train(accelerator, model, data, loss or default_loss, optimizer, evaluate, best, after_step, options)
    record.seconds = time.perf_counter() - start
    return record


def _train(
    accelerator: Any,
    model: nn.Module,
    data: DataLoader[Any],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    evaluate: Callable[[nn.Module], float] | None,
    best: _Best,
    after_step: Callable[[int, float], None] | None,
    options: FitOptions,
) -> Fit:
    """The epochs of a run."""
    forward = vars(model).get("forward")
    # a sharded model averages its own gradients: in evaluation mode it is not wrapped once more
    wrapped = accelerator.prepare_model(model, evaluation_mode=bool(sharded_parameters(model)))
    prepared: tuple[Any, Any] = accelerator.prepare(optimizer, data)
    stepping, loader = prepared
    if len(loader) == 0:
        raise CalibrationError("no training batch", found=f"batch size {data.batch_size}, drop_last={data.drop_last}")
    epochs, accumulated = options["epochs"], options["accumulation_steps"]
    record = Fit()
    checkpointing = _gradient_checkpointing(model, options["gradient_checkpointing"])
    with checkpointing, rates_restored(optimizer), float_steps(optimizer):
        # the schedule counts optimizer steps; Accelerate's wrapper would count one per process
        steps = math.ceil(len(loader) / accumulated) * epochs
        rates = LambdaLR(optimizer, schedule(steps, options))
        for epoch in track(range(epochs), "training", total=epochs):
            wrapped.train()
            group: list[Tensor] = []
            counts: list[Tensor | bool] = []
            for number, batch in enumerate(loader):
                if epoch == 0:
                    counts.append(has_label(batch))
                with accelerator.accumulate(wrapped):
                    with accelerator.autocast(), _naming_batches_of_one():
                        value = loss(wrapped, batch)
                    # Accelerate divides by `accumulated`, but the last step of an epoch may have fewer batches
                    fewer = min(accumulated, len(loader) - number // accumulated * accumulated)
                    accelerator.backward(value if fewer == accumulated else value * (accumulated / fewer))
                    group.append(value.detach().float())
                    if accelerator.sync_gradients:
                        if options["clip_norm"] is not None:
                            accelerator.clip_grad_norm_(trained_parameters(model), options["clip_norm"])
                        _take_step(record, accelerator.reduce(torch.stack(group).mean(), "mean"))
                        group = []
                    stepping.step()
                    if accelerator.sync_gradients:
                        rates.step()
                        if after_step is not None:
                            after_step(record.steps, record.losses[-1])
                    stepping.zero_grad()
            if epoch == 0 and not any(gather_objects(any(map(bool, counts)))):
                raise CalibrationError("labels of the training samples", found="-100 for all: none counts")
            record.best_epoch = epoch
            if evaluate is not None:
                model.eval()
                scores = gather_objects(float(evaluate(model)))  # one decides for all when to stop
                record.scores.append(sum(scores) / len(scores))
                if best.is_over(model, record.scores[-1], epoch):
                    break
    _set_forward(model, forward)
    if best.weights is not None:
        model.load_state_dict(best.weights)
        record.best_epoch = best.epoch
    if accelerator.device.type != "cpu":  # a full garbage collection, for the sake of the cache on the device
        accelerator.free_memory()
    return record


class _Read(Dataset[Any]):
    """Samples that are read by :func:`read`, several at once where they can."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Any:
        return read(self.samples, [place])[0]

    def __getitems__(self, places: list[int]) -> list[Any]:
        """Return several samples."""
        several = getattr(self.samples, "__getitems__", None)
        if several is None:
            return read(self.samples, places)
        with callers_settings():
            found: list[Any] = several(places)
            return found


def _check_data(data: Any) -> None:
    """Refuse data without samples, and those of which nobody knows how many steps an epoch has."""
    try:
        count = len(data)
    except TypeError as error:
        kind = type(data.dataset if isinstance(data, DataLoader) else data).__name__
        raise CalibrationError(
            "training samples",
            found=f"{kind}, which has no length",
            expected="a data set with a length",
            do="Read the samples into a list: the schedule counts the steps.",
        ) from error
    if not count and not isinstance(data, DataLoader):
        raise CalibrationError("there are no training samples", expected="at least one")


def batch_count(samples: int, options: FitOptions) -> int:
    """Return how many batches each process trains on per epoch of :func:`fit`.

    Examples
    --------
    >>> batch_count(20, {"batch_size": 8})
    3
    """
    return math.ceil(samples / (options["batch_size"] * launched_count()))


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw the seed of a run from a generator; 0 without one.

    Examples
    --------
    >>> draw_seed(torch.Generator().manual_seed(3)) == draw_seed(torch.Generator().manual_seed(3)) > 0
    True
    """
    return 0 if generator is None else int(torch.randint(2**31, (), generator=generator, device=generator.device))


def seed_of(generator: torch.Generator | None) -> int:
    """Return the seed that a generator started from, for a method's record; 0 without one.

    Examples
    --------
    >>> seed_of(torch.Generator().manual_seed(3))
    3
    """
    return 0 if generator is None else generator.initial_seed()


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


@contextmanager
def _accelerated(model: nn.Module, precision: str, accumulate: int) -> Iterator[Any]:
    """An Accelerator on the model's own device, or, under torchrun, on the process's; the caller's comes back."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, PartialState

    states = (AcceleratorState, PartialState)  # one of each in a process, which keep the first precision and device
    callers = [dict(state._shared_state) for state in states]
    alone = launched_count() == 1
    device = device_of(model)
    cpu = device.type == "cpu" and (alone or not torch.cuda.is_available())
    try:
        AcceleratorState._reset_state(reset_partial_state=alone)
        if alone:
            PartialState(cpu=cpu).device = device
        # a parameter that a sample does not reach, such as an expert, must not stop several processes
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        yield Accelerator(
            mixed_precision=precision, gradient_accumulation_steps=accumulate, cpu=cpu, kwargs_handlers=[unused]
        )
    finally:
        for state, caller in zip(states, callers, strict=True):
            if caller:
                state._shared_state.clear()
                state._shared_state.update(caller)


@contextmanager
def _gradient_checkpointing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Switch gradient checkpointing on where it is wanted and off, and back afterwards."""
    module: Any = model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # both names are deprecated where transformers has newer ones
        wanted = wanted and not module.is_gradient_checkpointing
        if wanted:
            # the reentrant kind gives no gradients behind frozen embeddings
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    yield
    if wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module.gradient_checkpointing_disable()


@contextmanager
def _naming_batches_of_one() -> Iterator[None]:
    """Say what to do where batch normalization has one sample, which has no variance."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        raise CalibrationError(
            "batch normalization",
            found="a batch of one sample",
            expected="two or more",
            do="Choose another batch_size: the last batch holds what remains of the data. (fit can leave it out: "
            "drop_last.)",
        ) from error


def _set_forward(model: nn.Module, forward: Any) -> None:
    """Undo what Accelerate does to a model; ``forward`` is the model's own attribute, if it has one."""
    for name in ("_is_accelerate_prepared", "_original_forward", "forward"):
        vars(model).pop(name, None)
    if forward is not None:
        model.forward = forward


def _take_step(record: Fit, loss: Tensor) -> None:
    if not bool(loss.isfinite()):
        raise NonFiniteError(
            f"the loss at step {record.steps + 1}",
            found=loss.item(),
            do="Lower the learning rate, clip gradients, or leave out samples whose labels are all -100.",
        )
    record.losses.append(loss.item())
    record.steps += 1
