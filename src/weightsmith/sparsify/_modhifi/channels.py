"""Find the channels of a network that can be removed, and cut them out of every tensor that holds them.

Channels are groups of a network's symmetry: the indices that may be permuted together are those that may be removed
together, through residual sums, concatenations, batch normalization and depthwise convolutions. What cannot be removed
from is left out: attention heads and groups of a convolution (channels within other groups), channels that a layer
norm or embedding shares (the residual stream), and, in a Hugging Face model, channels whose number no field of the
configuration says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.models import (
    CONVOLUTIONS,
    RESIZABLE,
    Layer,
    build_empty,
    computed_by,
    find_experts,
    find_layers,
    get_module,
    is_depthwise,
    resize,
)
from weightsmith.core.symmetry import Symmetry

__all__ = ["Channels", "Kept", "cut", "find_channels", "find_fields"]

Kept: TypeAlias = dict[str, Int[Tensor, "..."]]
"""By name of the channels: the indices that stay, ascending; with a row per expert where each has its own."""


@dataclass(frozen=True)
class Channels:
    """Channels that are removed together.

    Attributes
    ----------
    name : str
        The group of the symmetry.
    size : int
        How many there are.
    consumers : tuple of Layer
        The layers that read them; all experts of a stack, each with a choice of its own.
    members : tuple of (str, int)
        The tensors and axes that hold them.
    """

    name: str
    size: int
    consumers: tuple[Layer, ...]
    members: tuple[tuple[str, int], ...]
    columns: Mapping[str, Int[Tensor, "channels columns"]] = field(repr=False)

    @property
    def stacked(self) -> bool:
        """Whether every expert of a stack chooses for itself."""
        return self.consumers[0].expert is not None


def find_channels(model: nn.Module, symmetry: Symmetry) -> tuple[list[Channels], dict[str, str]]:
    """Return the channels that can be removed, and why the others cannot.

    Parameters
    ----------
    model : nn.Module
        Any model.
    symmetry : Symmetry
        Its groups.
    """
    layers: dict[str, list[Layer]] = {}
    for layer in [*find_layers(model, strict=False), *find_experts(model)]:
        owner = layer.name if layer.expert is None else layer.name.rsplit(f".{layer.expert}.", 1)[0]
        layers.setdefault(f"{owner}.{layer.parameter}".lstrip("."), []).append(layer)
    found, reasons = [], {}
    holders = {group.within for group in symmetry.groups.values()}
    for name, group in symmetry.groups.items():
        members = tuple(symmetry.members(name))
        readers = [key for key, axis in members if key in layers and axis == _input_axis(layers[key][0])]
        reason = "is divided into groups or heads" if group.within or name in holders else ""
        reason = reason or _obstacle(model, symmetry, name, members, [layers[key][0] for key in readers])
        if reason:
            reasons[name] = reason
            continue
        consumers = tuple(layer for key in readers for layer in layers[key])
        columns = {layer.name: _columns(symmetry, name, key, layer) for key in readers for layer in layers[key]}
        found.append(Channels(name, group.size, consumers, members, columns))
    return found, reasons


def _obstacle(
    model: nn.Module, symmetry: Symmetry, name: str, members: Sequence[tuple[str, int]], readers: Sequence[Layer]
) -> str:
    """Why a group cannot be cut; empty if it can."""
    tied = {*symmetry.aliases.values()}
    for key, axis in members:
        path, _, _ = key.rpartition(".")
        module = get_module(model, path)
        experts = all(hasattr(module, attribute) for attribute in ("num_experts", "is_transposed", "has_gate"))
        if not (isinstance(module, RESIZABLE) or experts):
            return f"is held by {path or 'the model'!r} ({type(module).__name__}), whose size cannot be cut"
        if key in tied:
            return f"is held by {key!r}, which is tied"
        blocks = [block for block in symmetry.axes[key][axis] if name in block.groups]
        if any(set(block.groups) - {name, ""} or block.groups.count(name) > 1 for block in blocks):
            return f"is interleaved with other channels in {key!r}"
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            return f"belongs to the grouped convolution {path!r}"
    if not readers:
        return "is read by no layer with a weight matrix of its own"
    if len({layer.expert is None for layer in readers}) > 1 or sum(layer.expert is not None for layer in readers) > 1:
        return "is read by experts and by other layers"
    computed = [layer.name for layer in readers if computed_by(layer.module, layer.parameter)]
    return f"is read by {computed[0]!r}, whose weight is computed" if computed else ""


def _input_axis(layer: Layer) -> int:
    if layer.expert is not None:
        return 1 if layer.module.is_transposed else 2
    return 0 if isinstance(layer.module, Conv1D) else 1


def _columns(symmetry: Symmetry, name: str, key: str, layer: Layer) -> Int[Tensor, "channels columns"]:
    """The columns of a layer's matrix that belong to each channel: places on the input axis, times the kernel."""
    joined_CB = torch.cat([*_places(symmetry, name, key, _input_axis(layer))], dim=1)
    kernel = layer.weight[0, 0].numel() if isinstance(layer.module, CONVOLUTIONS) else 1
    return (joined_CB[:, :, None] * kernel + torch.arange(kernel)).flatten(1)


def _places(symmetry: Symmetry, name: str, key: str, axis: int) -> Iterator[Int[Tensor, "channels places"]]:
    """For each block with the group on an axis: the places of each channel."""
    for block in symmetry.axes[key][axis]:
        if name in block.groups:
            places = block.places().movedim(block.groups.index(name), 0)
            yield places.reshape(len(places), -1)


# --- what a configuration says


def find_fields(
    model: nn.Module, channels: Sequence[Channels], sizes: Mapping[str, int]
) -> tuple[list[Channels], list[tuple[nn.Module, str, int]], list[str]]:
    """Return the channels whose number a configuration says, those fields with their new values, and the others' names.

    Channels outside Hugging Face models need no field. A field says the number of channels if a model built, without
    memory, from the configuration with a new value has exactly the tensors that remain.

    Parameters
    ----------
    model : nn.Module
        Any model.
    channels : sequence of Channels
        What can be cut.
    sizes : mapping of str to int
        By name of the channels: how many will stay.
    """
    owners: dict[str, PreTrainedModel] = {}
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(_inside(path, other) for other in owners):
            owners[path] = module
    plain = [c for c in channels if not any(_inside(key, path) for path in owners for key, _ in c.members)]
    governed, fields = {c.name for c in plain}, []
    for path, owner in owners.items():
        own = [c for c in channels if all(_inside(key, path) for key, _ in c.members)]
        old = build_empty(owner, {})
        if isinstance(old, str):
            raise UnsupportedModelError(f"{type(owner.config).__name__} does not describe the model", found=old)
        for name, size, kept in _candidates(owner, own, sizes):
            if not (rest := [c for c in own if c.name not in governed and (c.size, sizes[c.name]) == (size, kept)]):
                continue
            new = build_empty(owner, {name: kept})
            said = set() if isinstance(new, str) else _governed(old, new, path, rest)
            if said:
                governed |= said
                fields.append((owner, name, kept))
    return (
        [c for c in channels if c.name in governed],
        fields,
        [c.name for c in channels if c.name not in governed],
    )


def _inside(path: str, owner: str) -> bool:
    return not owner or path == owner or path.startswith(f"{owner}.")


def _candidates(
    owner: PreTrainedModel, channels: Sequence[Channels], sizes: Mapping[str, int]
) -> list[tuple[str, int, int]]:
    """Fields that may say a number of channels, with that number and the new one; those with a value first."""
    numbers = list(dict.fromkeys((c.size, sizes[c.name]) for c in channels))
    stated = [
        (name, *pair)
        for name, pair in product(vars(owner.config), numbers)
        if getattr(owner.config, name) == pair[0] and type(getattr(owner.config, name)) is int
    ]
    unset = [
        (name, *pair)
        for name, pair in product(vars(owner.config), numbers)
        if getattr(owner.config, name) is None and not name.startswith("_") and not name.endswith("_id")
    ]
    return stated + unset


def _governed(old: nn.Module, new: nn.Module, path: str, channels: Sequence[Channels]) -> set[str]:
    """Names of the channels that shrink in the new model; none where anything else changes."""
    before, after = ({n: tuple(t.shape) for n, t in model.state_dict().items()} for model in (old, new))
    if before.keys() != after.keys():
        return set()
    prefix = f"{path}." if path else ""
    changed = {
        (f"{prefix}{key}", axis)
        for key, shape in before.items()
        for axis in range(len(shape))
        if len(shape) != len(after[key]) or shape[axis] != after[key][axis]
    }
    said = {c.name for c in channels if changed & set(c.members)}
    covered = {member for c in channels if c.name in said for member in c.members}
    return said if changed == covered else set()


# --- surgery


@torch.no_grad()
def cut(model: nn.Module, symmetry: Symmetry, kept: Kept) -> None:
    """Remove all but the kept channels from every tensor, in place; the attributes that say sizes follow.

    Gradients of what is cut are dropped. On an error the model is left in part cut: the caller restores it.

    Parameters
    ----------
    model : nn.Module
        The model.
    symmetry : Symmetry
        Its groups.
    kept : dict of str to Tensor
        By group, see :data:`Kept`.
    """
    touched = dict.fromkeys(key for name in kept for key, _ in symmetry.members(name))
    for key in touched:
        path, _, attribute = key.rpartition(".")
        module = get_module(model, path)
        tensor = getattr(module, attribute)
        value = tensor.data
        for axis in range(value.ndim):
            stays = _stays(symmetry, key, axis, kept, value)
            if stays is None:
                continue
            if stays.ndim == 1:
                value = value.index_select(axis, stays.nonzero().flatten().to(value.device))
            else:  # one choice per expert, the first axis
                rows = [
                    x.index_select(axis - 1, s.nonzero().flatten().to(x.device))
                    for x, s in zip(value, stays, strict=True)
                ]
                value = torch.stack(rows)
        tensor.grad = None
        tensor.data = value.contiguous()
        resize(module)


def _stays(
    symmetry: Symmetry, key: str, axis: int, kept: Kept, value: Tensor
) -> Bool[Tensor, "size"] | Bool[Tensor, "experts size"] | None:
    blocks = symmetry.axes[key][axis]
    names = {name for block in blocks for name in block.groups} & kept.keys()
    if not names:
        return None
    experts = max((len(kept[name]) for name in names if kept[name].ndim == 2), default=0)
    stays = torch.ones(max(experts, 1), symmetry.shapes[key][axis], dtype=torch.bool)
    for name in names:
        for row, indices in enumerate(kept[name].view(-1, kept[name].shape[-1]).cpu()):
            gone = torch.ones(symmetry.groups[name].size, dtype=torch.bool)
            gone[indices] = False
            for places_CB in _places(symmetry, name, key, axis):
                stays[row, places_CB[gone].flatten()] = False
    return stays if experts else stays[0]
