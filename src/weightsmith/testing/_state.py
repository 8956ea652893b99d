"""Everything of a model that a failed call must leave unchanged, and what a finished one may not leave behind."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Snapshot", "differences", "outputs"]


class Snapshot:
    """A model as it is now: weights, buffers, gradients, flags, modes, modules, hooks and configuration.

    Parameters
    ----------
    model : nn.Module
        The model.

    Examples
    --------
    >>> model = nn.Linear(2, 1).eval()
    >>> before = Snapshot(model)
    >>> _ = model.train().weight.data.zero_()
    >>> before.changes(model)
    ['weight: other values', 'the model: training is True, was False']
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors = {name: (tensor, tensor.detach().clone()) for name, tensor in _tensors(model)}
        self._gradients = {
            name: (tensor.requires_grad, tensor.grad, None if tensor.grad is None else tensor.grad.clone())
            for name, tensor in model.named_parameters(remove_duplicate=False)
        }
        self._modules = {name: (module, _look(module)) for name, module in model.named_modules(remove_duplicate=False)}
        self._config = _config(model)

    def changes(self, model: nn.Module) -> list[str]:
        """Name what differs now; empty if nothing does."""
        found = []
        now = dict(_tensors(model))
        for name in {**self._tensors, **now}:
            if name not in now or name not in self._tensors:
                found.append(f"{name}: {'gone' if name in self._tensors else 'new'}")
            elif now[name] is not self._tensors[name][0]:
                found.append(f"{name}: another tensor object")
            elif not same(now[name], self._tensors[name][1]):
                found.append(f"{name}: other values")
        for name, tensor in model.named_parameters(remove_duplicate=False):
            wanted, gradient, values = self._gradients.get(name, (tensor.requires_grad, tensor.grad, tensor.grad))
            if tensor.requires_grad != wanted:
                found.append(f"{name}: requires_grad is {tensor.requires_grad}, was {wanted}")
            if tensor.grad is not gradient or (values is not None and not same(tensor.grad, values)):
                found.append(f"{name}: other gradient")
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in {**self._modules, **modules}:
            place = name or "the model"
            if name not in modules or name not in self._modules:
                found.append(f"{place}: {'gone' if name in self._modules else 'new'}")
                continue
            module, look = self._modules[name]
            if modules[name] is not module:
                found.append(f"{place}: another module")
            elif (now_look := _look(module)) != look:
                found += [
                    f"{place}: {key} is {now_look.get(key)}, was {look.get(key)}"
                    for key in {**look, **now_look}
                    if look.get(key) != now_look.get(key)
                ]
        if _config(model) != self._config:
            found.append("the configuration: changed")
        return found


def differences(first: nn.Module, second: nn.Module) -> list[str]:
    """Name the entries of two state dicts that are not equal bit by bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return [
        name
        for name in {**ours, **theirs}
        if name not in ours or name not in theirs or not same(ours[name], theirs[name])
    ]


def outputs(model: nn.Module, batch: Any) -> Tensor:
    """What a model computes for a batch of :func:`~weightsmith.testing.tiny`."""
    with torch.no_grad():
        found = model(**batch) if isinstance(batch, dict) else model(batch)
    return getattr(found, "logits", found)


def same(first: Any, second: Any) -> bool:
    """Whether two values, tensors among them, are equal; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        if first.is_floating_point():
            return bool(torch.allclose(first, second, rtol=0, atol=0, equal_nan=True))
        return torch.equal(first, second)
    return bool(first == second)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _look(module: nn.Module) -> dict[str, Any]:
    """Mode, class, hooks, parametrizations and the names of a module's attributes."""
    hooks = {
        name: len(value)
        for name, value in vars(module).items()
        if name.endswith("_hooks") and hasattr(value, "__len__")
    }
    attributes = sorted(vars(module))
    return {"training": module.training, "class": type(module).__name__, "attributes": attributes, **hooks}


def _config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return copy.deepcopy(config.to_dict()) if hasattr(config, "to_dict") else None
