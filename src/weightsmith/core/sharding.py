"""Tensors that are split between processes: the weights of a model under FSDP2 (``fully_shard``), DTensors.

Only methods that say so work on them; the others refuse. Otherwise the largest values of a shard could be taken for
those of the weight, without an error.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

from weightsmith.core.errors import UnsupportedModelError

__all__ = [
    "is_sharded",
    "like_parameter",
    "local",
    "read_places",
    "refuse_sharded",
    "refuse_without_fsdp",
    "shard_like",
    "sharded_parameters",
    "split_again",
    "whole",
    "write_places",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is split between processes (a DTensor).

    Examples
    --------
    >>> is_sharded(torch.ones(2))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")  # where nobody has imported it there is none
    return module is not None and isinstance(tensor, module.DTensor)


def split_again(model: nn.Module) -> None:
    """Split the weights that FSDP2 leaves gathered after a forward pass; a backward pass gathers what it needs.

    Examples
    --------
    >>> split_again(nn.Linear(2, 2))
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nobody has imported it there is no such module
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def sharded_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters that are split between processes; gathered ones are split again.

    Examples
    --------
    >>> sharded_parameters(nn.Linear(2, 2))
    []
    """
    split_again(model)
    return [name for name, parameter in model.named_parameters() if is_sharded(parameter)]


def refuse_sharded(model: nn.Module, do: str = "Use the method before fully_shard(model).") -> None:
    """Refuse a model whose weights are split between processes.

    Parameters
    ----------
    model : nn.Module
        Any model.
    do : str, optional
        What the user can do.

    Raises
    ------
    UnsupportedModelError
        If a parameter is a DTensor.

    Examples
    --------
    >>> refuse_sharded(nn.Linear(2, 2))
    """
    if names := sharded_parameters(model):
        raise UnsupportedModelError(
            f"{len(names)} parameters such as {names[0]!r} are split between processes",
            found="DTensor",
            expected="whole weights",
            do=do,
        )


def refuse_without_fsdp(model: nn.Module) -> None:
    """Refuse to train a sharded model of which no one adds up the gradients of all trained parameters.

    Raises
    ------
    UnsupportedModelError
        If trained parameters are sharded and others are not, or are sharded by something else than ``fully_shard``.

    Examples
    --------
    >>> refuse_without_fsdp(nn.Linear(2, 2))
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = set(sharded_parameters(model))
    if not sharded:
        return
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        raise UnsupportedModelError(
            f"{len(sharded)} parameters such as {min(sharded)!r} are DTensors",
            expected="a model under torch.distributed.fsdp.fully_shard",
            do="Tensor parallelism alone is not supported.",
        )
    plain = [name for name, each in model.named_parameters() if each.requires_grad and name not in sharded]
    if plain:
        raise UnsupportedModelError(
            f"{len(plain)} trained parameters such as {plain[0]!r} are not sharded while others are",
            do="Add adapters and heads before fully_shard(model): otherwise their gradients are not averaged.",
        )


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all processes, which all have to call this; one that is not sharded as it is.

    Examples
    --------
    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory.

    Examples
    --------
    >>> local(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like_parameter(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter, split in the way the parameter is.

    Examples
    --------
    >>> weight = nn.Parameter(torch.ones(2))
    >>> weight.sum().backward()
    >>> like_parameter(weight)
    tensor([1., 1.])
    """
    gradient: Any = parameter.grad
    split: Any = parameter
    return gradient.redistribute(placements=split.placements) if is_sharded(parameter) else gradient


def shard_like(values: Tensor, like: Tensor) -> Tensor:
    """Split a tensor that every process has whole in the way another of its shape is split.

    Examples
    --------
    >>> shard_like(torch.ones(2), torch.zeros(2))
    tensor([1., 1.])
    """
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import distribute_tensor

    split: Any = like
    return distribute_tensor(values, split.device_mesh, split.placements, src_data_rank=None)


def read_places(tensor: Tensor, index: Int[Tensor, "K"] | None) -> Float[Tensor, "K"]:
    """Return values at flat places of the whole tensor (all by default); of a sharded one on every process.

    Examples
    --------
    >>> read_places(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 2]))
    tensor([2., 3.])
    """
    tensor = tensor.detach()
    if index is None:
        return whole(tensor).reshape(-1)
    if not is_sharded(tensor):
        return tensor.reshape(-1).index_select(0, index)
    here, place = _places(tensor, index)
    values = torch.zeros(len(index), dtype=tensor.dtype, device=index.device)
    values[here] = local(tensor).reshape(-1)[place]
    for group in _sharding_groups(tensor):
        distributed.all_reduce(values, group=group)
    return values


def write_places(tensor: Tensor, index: Int[Tensor, "K"] | None, values: Float[Tensor, "K"]) -> None:
    """Put values at flat places of the whole tensor (all by default); of a sharded one on every process.

    Examples
    --------
    >>> tensor = torch.zeros(2, 2)
    >>> write_places(tensor, torch.tensor([1, 2]), torch.tensor([5.0, 6.0]))
    >>> tensor
    tensor([[0., 5.],
            [6., 0.]])
    """
    if index is None:
        local(tensor.detach()).copy_(local(shard_like(values.view(tensor.shape), tensor)))
        return
    here: Any = slice(None)
    if is_sharded(tensor):
        here, index = _places(tensor, index)
    part = local(tensor.detach())
    flat = part.reshape(-1)
    flat.index_copy_(0, index.long(), values[here].to(flat.dtype))
    if flat.data_ptr() != part.data_ptr():  # a copy, where the weight is not contiguous
        part.copy_(flat.view(part.shape))


def _places(tensor: Any, index: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the flat places of the whole tensor are in this process's part, and where there."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    here = torch.ones_like(index, dtype=torch.bool)
    place, rest = torch.zeros_like(index, dtype=torch.int64), index.long()
    for size, own, first in zip(_strides(tensor.shape), shape, offset, strict=True):
        coordinate = rest // size - first
        rest = rest % size
        here &= (coordinate >= 0) & (coordinate < own)
        place = place * own + coordinate
    return here, place[here]


def _strides(shape: torch.Size) -> list[int]:
    return [shape[axis + 1 :].numel() for axis in range(len(shape))]


def _sharding_groups(tensor: Any) -> list[Any]:
    """The process groups along which the tensor is split; along the others it is repeated."""
    mesh = tensor.device_mesh
    return [mesh.get_group(axis) for axis, place in enumerate(tensor.placements) if place.is_shard()]
