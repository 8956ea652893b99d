"""Recurrent layers step by step, so that the inputs and gradients of each step of their matrices can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import UnsupportedModelError

__all__ = ["KINDS", "matrices_of", "product", "unrolled"]

KINDS = (nn.RNN, nn.GRU, nn.LSTM)

Multiply: TypeAlias = Callable[[nn.Module, str, Tensor], Tensor]
"""Multiplies an input with a named matrix of a module, bias included, and looks at both sides."""


def matrices_of(module: nn.Module) -> list[str]:
    """The names of a recurrent module's matrices.

    >>> matrices_of(nn.GRU(2, 3))
    ['weight_ih_l0', 'weight_hh_l0']
    """
    return [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight")]


@contextmanager
def unrolled(
    modules: Sequence[nn.Module], multiply: Multiply, see_states: Callable[[nn.Module, str, Tensor], None]
) -> Iterator[None]:
    """Let recurrent modules run step by step in plain operations, one product with each matrix per step.

    Parameters
    ----------
    modules : sequence of nn.Module
        Of ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``.
    multiply : callable
        ``multiply(module, name, x)`` returns ``x`` times the matrix, plus its bias. It is called once with all steps
        (samples, steps, in) for the matrix on the inputs, then with the state (samples, units) of each step.
    see_states : callable
        ``see_states(module, suffix, states)`` gets the states (samples, steps, units) of each layer and direction.
    """
    for module in modules:
        vars(module)["forward"] = _Steps(module, multiply, see_states)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


class _Steps:
    """The forward pass of one recurrent module."""

    def __init__(self, module: nn.Module, multiply: Multiply, see_states: Callable[..., None]) -> None:
        self.module, self.multiply, self.see_states = module, multiply, see_states

    def __call__(self, x: Any, state: Any = None) -> tuple[Tensor, Any]:
        module: Any = self.module
        if not isinstance(x, Tensor) or x.ndim != 3 or module.proj_size:
            raise UnsupportedModelError(
                f"a {type(module).__name__} on packed sequences, without a batch, or with projections",
                do="Give padded batches, or leave the layer out with exclude.",
            )
        x = x if module.batch_first else x.transpose(0, 1)
        both, lstm = 1 + module.bidirectional, isinstance(module, nn.LSTM)
        zeros = x.new_zeros(module.num_layers * both, len(x), module.hidden_size)
        begin = (zeros, zeros) if state is None and lstm else (zeros,) if state is None else state
        begin = begin if isinstance(begin, tuple) else (begin,)
        ends = []
        for layer in range(module.num_layers):
            outs = []
            for direction in range(both):
                suffix = f"_l{layer}{'_reverse' if direction else ''}"
                start = tuple(each[layer * both + direction] for each in begin)
                states, end = self._layer(x.flip(1) if direction else x, suffix, start)
                self.see_states(module, suffix, states)
                outs.append(states.flip(1) if direction else states)
                ends.append(end)
            x = torch.cat(outs, 2)
        last = tuple(torch.stack(each) for each in zip(*ends, strict=True))
        return x if module.batch_first else x.transpose(0, 1), last if lstm else last[0]

    def _layer(self, x: Tensor, suffix: str, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All steps of one layer in one direction: the hidden states, and the last state."""
        drives = self.multiply(self.module, f"weight_ih{suffix}", x)
        states = []
        for step in range(x.shape[1]):
            recur = self.multiply(self.module, f"weight_hh{suffix}", state[0])
            state = _step(self.module, drives[:, step], recur, state)
            states.append(state[0])
        return torch.stack(states, 1), state


def product(module: Any, name: str, x: Tensor) -> Tensor:
    """A named matrix times an input, plus its bias."""
    return functional.linear(
        x, getattr(module, name), getattr(module, name.replace("weight", "bias")) if module.bias else None
    )


def _step(module: Any, drive: Tensor, recur: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if isinstance(module, nn.LSTM):
        enter, forget, cell, leave = (drive + recur).chunk(4, 1)
        memory = forget.sigmoid() * state[1] + enter.sigmoid() * cell.tanh()
        return leave.sigmoid() * memory.tanh(), memory
    if isinstance(module, nn.GRU):
        (reset_x, update_x, new_x), (reset_h, update_h, new_h) = drive.chunk(3, 1), recur.chunk(3, 1)
        update = (update_x + update_h).sigmoid()
        new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        return (new + update * (state[0] - new),)
    total = drive + recur
    return (total.relu() if module.nonlinearity == "relu" else total.tanh(),)
