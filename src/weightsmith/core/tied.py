"""Tied weights: which names stand for one tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["parameter_names", "tensor_owners"]


def tensor_owners(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each name of a state dict the first name of the same tensor, which is its own unless it is tied.

    Two names are tied if their tensors share memory, element type, shape and strides. A tensor without elements is
    never tied.

    Examples
    --------
    >>> import torch
    >>> shared = torch.zeros(2)
    >>> tensor_owners({"embedding": shared, "head": shared, "bias": torch.zeros(2)})
    {'embedding': 'embedding', 'head': 'embedding', 'bias': 'bias'}
    """
    first: dict[object, str] = {}
    return {name: first.setdefault(_place(name, tensor), name) for name, tensor in state.items()}


def parameter_names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return all names of each parameter, tied ones more than one.

    Examples
    --------
    >>> model = nn.ModuleDict({"embedding": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
    >>> model["head"].weight = model["embedding"].weight
    >>> list(parameter_names(model).values())
    [['embedding.weight', 'head.weight']]
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _place(name: str, tensor: Tensor) -> object:
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()) if tensor.numel() else name
