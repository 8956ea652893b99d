"""Steps of an optimizer on weights of half precision, without losing the small ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from weightsmith.core.sharding import is_sharded
from weightsmith.core.training._restore import HALVES

__all__ = ["float_steps"]


@contextmanager
def float_steps(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let an optimizer step copies in float32 of its half-precision parameters, for a block.

    A step smaller than half the spacing of bfloat16 numbers, 0.4 % of the weight, would be lost. The model computes in
    its own data type throughout. Weights that are set between two steps are taken over; those that are split between
    processes are stepped as they are. The state of PyTorch's own optimizers is in float32 in the block, and afterwards
    in the parameters' type, which they demand.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; one that keeps float32 copies itself, and says so by its attribute ``keeps_float``, is left alone.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.SGD([weight], lr=1e-3)
    >>> with float_steps(optimizer):
    ...     for _ in range(100):
    ...         weight.grad = torch.ones_like(weight)
    ...         optimizer.step()
    >>> weight.dtype, round(weight.item(), 1)
    (torch.bfloat16, 0.9)
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    halves = [p for p in trained if p.dtype in HALVES and not is_sharded(p)]
    if not halves or getattr(optimizer, "keeps_float", False):
        yield
        return
    floats = [p.detach().float() for p in halves]
    held: list[tuple[Tensor, Tensor | None]] = []

    def begin(*_: object) -> None:
        for parameter, copy in zip(halves, floats, strict=True):
            own, gradient = parameter.data, parameter.grad
            held.append((own, gradient))
            copy.copy_(copy.where(copy.to(own.dtype) == own, own))  # somebody else may have set it meanwhile
            parameter.data = copy
            parameter.grad = None if gradient is None else gradient.float()

    def end(*_: object) -> None:
        for parameter, copy, (own, gradient) in zip(halves, floats, held, strict=False):
            parameter.data = own.copy_(copy)
            parameter.grad = gradient
        held.clear()

    _state_to(optimizer, halves, torch.float32)
    with ExitStack() as stack:
        if type(optimizer).__module__.startswith("torch.optim."):
            stack.callback(_state_to, optimizer, halves, None)
        stack.callback(end)  # of a step that an exception stopped
        for hook in (optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)):
            stack.callback(hook.remove)
        yield


def _state_to(optimizer: torch.optim.Optimizer, parameters: list[Tensor], dtype: torch.dtype | None) -> None:
    """Convert what an optimizer holds of each weight; by default to the parameters' own types."""
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            each = isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape
            if each and name != "step":
                state[name] = value.to(dtype or parameter.dtype)
