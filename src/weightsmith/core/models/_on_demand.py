"""Forward and backward passes of a model whose weights are on disk, with those of one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.io import OffloadedModel, offloaded_of
from weightsmith.core.models._find_blocks import find_blocks

__all__ = ["weights_in_memory", "weights_on_demand"]


@contextmanager
def weights_in_memory(model: nn.Module, module: nn.Module) -> Iterator[None]:
    """Inside, a module's weights are in memory; nothing to do unless the model was opened with ``offloaded``.

    Parameters
    ----------
    model : nn.Module
        The model.
    module : nn.Module
        One of its modules.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> with weights_in_memory(model, model[0]):
    ...     model[0].weight.shape
    torch.Size([2, 2])
    """
    stored = offloaded_of(model)
    if stored is not None:
        stored.load(module)
    try:
        yield
    finally:
        if stored is not None:
            stored.free()


@contextmanager
def weights_on_demand(model: nn.Module) -> Iterator[None]:
    """Inside, a model opened with ``offloaded`` can be called, and gradients of activations go back through it.

    A block's weights are read when it is called and freed when it returns. Autograd, which keeps weights for the
    backward pass, keeps their names instead, and reads them again. Nothing to do for a model in memory.

    Parameters
    ----------
    model : nn.Module
        The model; its parameters must not require gradients.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> with weights_on_demand(model):
    ...     model(torch.ones(1, 2)).shape
    torch.Size([1, 1])
    """
    stored = offloaded_of(model)
    if stored is None:
        yield
        return
    blocks = list(find_blocks(model).values())
    inside = {child for block in blocks for child in block.modules()}
    units = [
        *blocks,
        *(m for m in model.modules() if m not in inside and any(True for _ in m.parameters(recurse=False))),
    ]
    memory = _Memory(stored)
    hooks = [unit.register_forward_pre_hook(memory.read, prepend=True) for unit in units]
    hooks += [unit.register_forward_hook(memory.free, always_call=True) for unit in units]
    try:
        with torch.autograd.graph.saved_tensors_hooks(memory.pack, memory.unpack):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        stored.free()


@dataclass(frozen=True)
class _Place:
    """Where autograd finds a weight again: its module and name, and the view of it that was kept."""

    module: nn.Module
    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Memory:
    """The weights that are in memory now, by the address of their storage."""

    def __init__(self, stored: OffloadedModel) -> None:
        self.stored = stored
        self.owners: dict[int, tuple[nn.Module, str]] = {}
        self.depth = 0

    def read(self, unit: nn.Module, args: object) -> None:
        self.depth += 1
        self.stored.load(unit)
        for name, parameter in unit.named_parameters():
            self.owners[parameter.untyped_storage().data_ptr()] = unit, name

    def free(self, unit: nn.Module, args: object, output: object) -> None:
        self.depth -= 1
        if self.depth == 0:  # a unit may be called inside another
            self.owners.clear()
            self.stored.free()

    def pack(self, tensor: Tensor) -> Any:
        owner = self.owners.get(tensor.untyped_storage().data_ptr())
        if owner is None:
            return tensor
        module, name = owner
        return _Place(module, name, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def unpack(self, kept: Any) -> Tensor:
        if not isinstance(kept, _Place):
            return kept
        weight = self.stored.tensor(kept.module, kept.name)
        return weight.as_strided(kept.size, kept.stride, kept.offset)
