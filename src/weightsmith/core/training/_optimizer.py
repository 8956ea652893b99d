"""The optimizer of a training run: what it trains, what it may not hold, and how its learning rate rises and falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, UnsupportedModelError
from weightsmith.core.training._options import FitOptions

__all__ = [
    "adamw",
    "check_optimizer",
    "rates_restored",
    "refuse_sparse_gradients",
    "schedule",
    "trained_parameters",
]

INITIAL = "initial_lr"
"""Where torch's schedules keep the rate that they started from, in a parameter group."""


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained.

    Raises
    ------
    UnsupportedModelError
        If all are frozen.

    Examples
    --------
    >>> len(trained_parameters(nn.Linear(2, 2)))
    2
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UnsupportedModelError(
            "there is nothing to train: all parameters are frozen", do="Call requires_grad_(True) on those to train."
        )
    return trained


def adamw(model: nn.Module, options: FitOptions) -> torch.optim.AdamW:
    """Make the default optimizer of a model."""
    trained = trained_parameters(model)
    fused = all(parameter.is_floating_point() for parameter in trained)  # torch has no fused one for complex numbers
    return torch.optim.AdamW(trained, lr=options["learning_rate"], weight_decay=options["weight_decay"], fused=fused)


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Any) -> None:
    """Refuse an optimizer of tensors that are neither the model's nor, where it is a module, the loss's."""
    modules = [module for module in (model, loss) if isinstance(module, nn.Module)]
    known = {id(parameter) for module in modules for parameter in module.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if unknown := [parameter for parameter in held if id(parameter) not in known]:
        raise HyperparameterError(
            "optimizer",
            found=f"{len(unknown)} of {len(held)} tensors that are not the model's",
            do="Make it of this model's parameters, after the last change of its layers.",
        )


def refuse_sparse_gradients(model: nn.Module) -> None:
    """Refuse embeddings with sparse gradients, for optimizers that do not take them."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.requires_grad:
            raise UnsupportedModelError(
                f"embedding {name!r} has sparse gradients", expected="dense ones", do="Set its sparse to False."
            )


def schedule(steps: int, options: FitOptions) -> Callable[[int], float]:
    """From the number of an optimizer step to the factor of the learning rate.

    Examples
    --------
    >>> factor = schedule(6, {"scheduler": "linear", "warmup": 0.33, "final_learning_rate_ratio": 0.5})
    >>> [factor(step) for step in range(6)]
    [0.0, 0.5, 1.0, 0.875, 0.75, 0.625]
    """
    warmup, final = round(options["warmup"] * steps), options["final_learning_rate_ratio"]

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if options["scheduler"] == "constant":
            return 1.0
        past = min((step - warmup) / max(steps - warmup, 1), 1.0)
        falling = 1 - past if options["scheduler"] == "linear" else (1 + math.cos(math.pi * past)) / 2
        return final + (1 - final) * falling

    return factor


@contextmanager
def rates_restored(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let a schedule start from the learning rates that an optimizer has now, and restore them at its end.

    Examples
    --------
    >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.5)
    >>> with rates_restored(optimizer):
    ...     _ = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    >>> optimizer.param_groups[0]["lr"]
    0.5
    """
    names = ("lr", INITIAL)
    held = [
        (group, {name: _copied(group[name]) for name in names if name in group}) for group in optimizer.param_groups
    ]
    for group, _ in held:
        group.pop(INITIAL, None)  # of an earlier schedule, which the present one would start from
    try:
        yield
    finally:
        for group, rates in held:
            group.pop(INITIAL, None)
            group.update(rates)


def _copied(rate: float | Tensor) -> float | Tensor:
    return rate.clone() if isinstance(rate, Tensor) else rate
