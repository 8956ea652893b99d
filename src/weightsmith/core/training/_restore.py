"""Restore a model if changing it fails."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from weightsmith.core.io import refuse_meta
from weightsmith.core.sharding import local, refuse_sharded

__all__ = ["float_weights", "gradients_restored", "modes_restored", "requires_grad_restored", "restored_on_error"]

HALVES = (torch.float16, torch.bfloat16)

_guarded: list[nn.Module] = []
"""Models that a surrounding :func:`restored_on_error` restores."""


@contextmanager
def restored_on_error(model: nn.Module, *, values: bool = True, takes_sharded: bool = False) -> Iterator[None]:
    """Restore a model if the block raises anything, :class:`KeyboardInterrupt` included.

    Restored are the values of parameters and buffers, ``requires_grad``, training mode, modules, parametrizations,
    hooks and the other attributes of every module. Gradients come back as the tensors they were: a block that computes
    gradients sets them to None first.

    Parameters
    ----------
    model : nn.Module
        The model that the block changes.
    values : bool, default: True
        Keep the values in a temporary file. A block that writes to no parameter or buffer needs no copy.
    takes_sharded : bool, default: False
        Whether the block works on weights that are split between processes (FSDP2).

    Raises
    ------
    UnsupportedModelError
        If the values are to be kept but on the meta device, or if the weights are split between processes and the block
        does not take them.

    Examples
    --------
    >>> model = nn.Linear(1, 1).requires_grad_(False)
    >>> before = model.weight.item()
    >>> try:
    ...     with restored_on_error(model):
    ...         _ = model.weight.fill_(7.0)
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     print(model.weight.item() == before)
    True
    """
    if any(model is other for other in _guarded):
        yield
        return
    if values:
        refuse_meta(model)
    if not takes_sharded:
        refuse_sharded(model)
    attributes = [(owner, type(owner), _copied(vars(owner))) for owner in _owners(model)]
    tensors = [*model.parameters(), *model.buffers()]
    places = [tensor.data for tensor in tensors]
    training = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with tempfile.TemporaryFile() as file:
        if values:
            torch.save([local(place) for place in places], file)
        try:
            _guarded.append(model)
            yield
        except BaseException:
            for owner, kind, own in attributes:
                owner.__class__ = kind
                _put_back(vars(owner), own)
            if values:
                file.seek(0)
                held = torch.load(file, map_location="cpu", weights_only=True)
                for place, value in zip(places, held, strict=True):
                    local(place).copy_(value)
            for tensor, place in zip(tensors, places, strict=True):
                tensor.data = place
            for parameter, wanted, gradient in training:
                parameter.requires_grad_(wanted).grad = gradient
            raise
        finally:
            _guarded[:] = [other for other in _guarded if other is not model]


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Restore the training mode of every module at the end of a block; modules that are new get their parent's.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(1, 1)).eval()
    >>> with modes_restored(model):
    ...     _ = model.train()
    >>> model.training, model[0].training
    (False, False)
    """
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    try:
        yield
    finally:
        for name, module in model.named_modules(remove_duplicate=False):
            while name not in modes:
                name = name.rpartition(".")[0]
            module.training = modes[name]


@contextmanager
def requires_grad_restored(model: nn.Module) -> Iterator[None]:
    """Restore which parameters of a model are trained, at the end of a block that trains some of them.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> with requires_grad_restored(model):
    ...     _ = model.requires_grad_(False)
    >>> model.weight.requires_grad
    True
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


@contextmanager
def gradients_restored(model: nn.Module) -> Iterator[None]:
    """Take the gradients of a model away for a block that computes others, and restore them at its end.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> model(torch.ones(1)).backward()
    >>> with gradients_restored(model):
    ...     model.weight.grad is None
    True
    >>> model.weight.grad.item()
    1.0
    """
    held = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in held:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


@contextmanager
def float_weights(model: nn.Module) -> Iterator[None]:
    """Hold the trained weights of a half-precision model in float32 for a block that takes small steps.

    A step smaller than half the spacing of bfloat16 numbers, 0.4 % of the weight, would be lost. At the end of the
    block the weights are rounded to their own data type once; those that did not change come back bit for bit.

    Parameters
    ----------
    model : nn.Module
        All its parameters and buffers of half precision become float32.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    >>> _ = nn.init.ones_(model.weight)
    >>> with float_weights(model), torch.no_grad():
    ...     for _ in range(100):
    ...         _ = model.weight.add_(1e-3)
    >>> model.weight.dtype, round(model.weight.item(), 1)
    (torch.bfloat16, 1.1)
    """
    half = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALVES]
    own = [tensor.dtype for tensor in half]
    for tensor in half:
        tensor.data = tensor.data.float()
    yield  # an error is for restored_on_error
    for tensor, dtype in zip(half, own, strict=True):
        tensor.data, tensor.grad = tensor.data.to(dtype), None


def _owners(model: nn.Module) -> list[Any]:
    """The modules, and the Hugging Face configurations they hold."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return [*model.modules(), *(config for config in configs.values() if hasattr(config, "__dict__"))]


def _copied(attributes: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every attribute with a copy of what it contains, if it is a container."""
    return {
        name: (value, copy.copy(value) if isinstance(value, (dict, list, set)) else None)
        for name, value in attributes.items()
    }


def _put_back(attributes: dict[str, Any], held: Mapping[str, tuple[Any, Any]]) -> None:
    """Undo changes of attributes. Containers stay the same objects: handles of hooks refer to them."""
    attributes.clear()
    for name, (value, content) in held.items():
        attributes[name] = value
        if content is not None:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
