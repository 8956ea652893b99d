"""The groups of axes that share one order, and permutations of them applied to a network's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from weightsmith.core.errors import ShapeError, UnsupportedModelError
from weightsmith.core.io import StoredState, TensorSpec

__all__ = ["AxisBlock", "AxisBlocks", "Group", "Permutations", "Side", "Symmetry"]

Permutations: TypeAlias = dict[str, Int[Tensor, "..."]]
"""By group: ``perm[i]`` is the old index that comes to place ``i``; with a row for each index of ``within``."""

Side: TypeAlias = Literal["input", "output"]

K = TypeVar("K")


@dataclass(frozen=True)
class Group:
    """Indices that may be reordered, if they are reordered at all places where the group occurs.

    **What a group promises**: index ``i`` of the group denotes the same unit at each of its places. Reordering the
    group's indices at all places leaves the function unchanged, and no place outside of them depends on the order. So
    a unit is removed by removing its index at all places, or repeated by repeating it there (and sharing its value
    where it is summed over). Where an operation averages over the units, as a layer norm does, this changes the
    average.

    A group ``within`` another one has an order of its own in each block of that other (the channels in each head). Its
    blocks must stay equal in size: as many units are removed in each block.

    Attributes
    ----------
    name : str
        The first weight and axis it acts on.
    size : int
        Number of indices.
    within : str, default: ""
        The group whose blocks each have an order of this one.
    """

    name: str
    size: int
    within: str = ""


@dataclass(frozen=True)
class AxisBlock:
    """A part of one axis of a tensor: the product of the indices of some groups and of fixed ones.

    Attributes
    ----------
    groups : tuple of str
        Slowest first; empty strings where the indices are fixed.
    sizes, strides : tuple of int
        One per group; the index ``i`` is at ``offset + sum(strides * i)``.
    offset : int
        Place of the first index.
    """

    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def places(self) -> Int[Tensor, "..."]:
        """Return the place of each index on the axis, one dimension per group.

        Examples
        --------
        >>> AxisBlock(("heads", "channels"), (2, 3), (3, 1), 6).places()
        tensor([[ 6,  7,  8],
                [ 9, 10, 11]])
        """
        places = torch.tensor(self.offset)
        for size, stride in zip(self.sizes, self.strides, strict=True):
            places = places.unsqueeze(-1) + stride * torch.arange(size)
        return places


AxisBlocks: TypeAlias = tuple[tuple[AxisBlock, ...], ...]
"""The blocks of each axis of a tensor; none where an axis is fixed."""


@dataclass(frozen=True)
class Symmetry:
    """The groups of a network's hidden axes; see :class:`Group` for what they promise.

    Attributes
    ----------
    groups : dict of str to Group
        By name; a group comes after the one it is ``within``.
    axes : dict of str to tuple of tuple of AxisBlock
        For every tensor of the state dict that holds a group, the blocks of each axis; axes without blocks are fixed.
    shapes : dict of str to tuple of int
        Of every tensor of the state dict that was traced.
    left_out : dict of str to str
        Weights with an axis that could not be followed, and why.
    aliases : dict of str to str
        Other names of tied weights: they are permuted with the first and count once.
    buffers : frozenset of str
        Tensors that are permuted but not trained, such as running statistics.
    activations : dict of tuple of (str, {"input", "output"}) to tuple of tuple of AxisBlock
        For modules by name: the blocks of each axis of their first input, and of their output.

    Examples
    --------
    >>> from weightsmith.core.symmetry import find_symmetry
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> symmetry = find_symmetry(model, torch.rand(1, 3))
    >>> symmetry.members("0.weight[0]")
    [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
    """

    groups: dict[str, Group]
    axes: dict[str, AxisBlocks]
    shapes: dict[str, tuple[int, ...]]
    left_out: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    activations: dict[tuple[str, Side], AxisBlocks] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, dims in self.axes.items():
            for block in (block for blocks in dims for block in blocks):
                for name, size in zip(block.groups, block.sizes, strict=True):
                    if name and (name not in self.groups or self.groups[name].size != size):
                        known = self.groups[name].size if name in self.groups else "no such group"
                        raise ShapeError(f"{size} indices of {key!r} in group {name!r}", expected=known)

    @property
    def has_statistics(self) -> bool:
        """Whether running statistics of batch normalization are among the buffers."""
        return any(key.endswith("running_var") for key in self.buffers)

    def members(self, name: str) -> list[tuple[str, int]]:
        """Return the tensors and axes where a group occurs; ``axes`` says in which blocks."""
        return [
            (key, axis)
            for key, dims in self.axes.items()
            for axis, blocks in enumerate(dims)
            if any(name in block.groups for block in blocks)
        ]

    def identity(self) -> Permutations:
        """Return the permutations that change nothing."""
        return {
            name: torch.arange(group.size)
            .expand(*([self.groups[group.within].size] if group.within else []), -1)
            .clone()
            for name, group in self.groups.items()
        }

    def random(self, generator: torch.Generator | None = None) -> Permutations:
        """Return permutations drawn uniformly."""
        return {
            name: torch.stack([torch.randperm(perm.shape[-1], generator=generator) for _ in rows]).view_as(perm)
            for name, perm in self.identity().items()
            for rows in [perm.reshape(-1, perm.shape[-1])]
        }

    def inverse(self, perms: Permutations) -> Permutations:
        """Return the permutations that undo ``perms``."""
        return {
            name: perms[name].argsort(-1)[perms[group.within]] if group.within else perms[name].argsort()
            for name, group in self.groups.items()
        }

    def compose(self, first: Permutations, then: Permutations) -> Permutations:
        """Return the permutations that apply ``first`` and then ``then``, which may lack some groups."""
        both = dict(first)
        for name, group in self.groups.items():
            if name not in then and group.within not in then:
                continue
            step = then.get(name, torch.arange(group.size))
            if group.within:
                outer = first[group.within]
                inner = then.get(group.within, torch.arange(len(outer)))
                # rows of `then` count the blocks as `first` left them, those of the result as they were at the start
                step = step.expand(len(outer), -1)
                both[name] = first[name].clone()
                both[name][outer[inner]] = first[name][outer[inner]].gather(1, step[inner])
            else:
                both[name] = first[name][step]
        return both

    def order(self, key: str, axis: int, perms: Permutations) -> Int[Tensor, "size"] | None:
        """Return the old place that comes to each place of an axis; None where nothing moves.

        Parameters
        ----------
        key : str
            A tensor of the state dict.
        axis : int
            Its axis.
        perms : dict of str to Tensor
            The permutations; groups that it lacks are not reordered.
        """
        blocks = self.axes[key][axis] if key in self.axes else ()
        moving = [block for block in blocks if perms.keys() & set(block.groups)]
        if not moving:
            return None
        order = torch.arange(self.shapes[key][axis])
        for block in moving:
            order[block.places()] = self._old_places(block, perms)
        return order

    def _old_places(self, block: AxisBlock, perms: Permutations) -> Int[Tensor, "..."]:
        old: dict[str, Tensor] = {}
        places = torch.tensor(block.offset)
        for i, (name, size, stride) in enumerate(zip(block.groups, block.sizes, block.strides, strict=True)):
            moved = torch.arange(size).view(-1, *[1] * (len(block.sizes) - i - 1))
            if name in perms:
                within = self.groups[name].within
                moved = perms[name][old[within], moved] if within else perms[name][moved]
            old[name] = moved
            places = places + stride * moved
        return places

    def permute_tensor(self, key: str, tensor: Tensor, perms: Permutations) -> Tensor:
        """Return a tensor permuted, or rows of it that keep their order."""
        for axis in range(tensor.ndim):
            order = self.order(key, axis, perms)
            if order is not None:
                tensor = tensor.index_select(axis, order.to(tensor.device))
        return tensor

    def permute(self, state: Mapping[str, Tensor], perms: Permutations) -> dict[str, Tensor]:
        """Return the state dict with its weights permuted; what is not permuted is passed on unchanged.

        Raises
        ------
        ShapeError
            If a permutation or tensor is missing or does not fit.

        Examples
        --------
        >>> from weightsmith.core.symmetry import find_symmetry
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> symmetry = find_symmetry(model, torch.rand(1, 3))
        >>> swapped = symmetry.permute(model.state_dict(), {"0.weight[0]": torch.tensor([1, 0])})
        >>> bool((swapped["0.bias"] == model[0].bias.flip(0)).all())
        True
        """
        self.check_state(state)
        self.check_permutations(perms)
        keys = {key: key for key in self.axes} | self.aliases
        moved = {key: self.permute_tensor(first, state[key], perms) for key, first in keys.items()}
        return {**state, **moved}

    def permute_(self, model: nn.Module, perms: Permutations) -> None:
        """Permute the weights of a model in place; its function stays the same.

        Raises
        ------
        ShapeError
            If a permutation or weight is missing or does not fit.
        """
        state = model.state_dict()
        permuted = self.permute(state, perms)
        with torch.no_grad():
            for key in self.axes:
                state[key].copy_(permuted[key])

    def check_state(self, state: Mapping[str, Tensor], whose: str = "the state dict") -> None:
        """Refuse a state dict of another architecture.

        Raises
        ------
        ShapeError
            If a tensor is missing or has another shape.
        UnsupportedModelError
            If a tensor holds integers.
        """
        kinds: Mapping[str, Tensor | TensorSpec] = state.specs if isinstance(state, StoredState) else state
        if missing := [key for key in self.shapes if key not in state]:
            raise ShapeError(f"{whose} lacks {len(missing)} tensors such as {missing[:3]}", do="Use one architecture.")
        odd = [key for key, shape in self.shapes.items() if tuple(kinds[key].shape) != shape]
        if odd:
            raise ShapeError(
                f"{len(odd)} tensors of {whose} such as {odd[:3]}",
                found=tuple(kinds[odd[0]].shape),
                expected=self.shapes[odd[0]],
            )
        for key in self.shapes:
            dtype = kinds[key].dtype
            if not (dtype.is_floating_point or dtype.is_complex):
                raise UnsupportedModelError(
                    f"tensor {key!r} of {whose} is packed or quantized",
                    found=dtype,
                    do="Use the weights before quantization.",
                )

    def check_permutations(self, perms: Permutations) -> None:
        """Refuse permutations that do not fit the groups.

        Raises
        ------
        ShapeError
            If one is missing, of another size, or no permutation.
        """
        for name, identity in self.identity().items():
            if name not in perms:
                raise ShapeError(f"permutation {name!r} is missing", found=f"permutations such as {[*perms][:3]}")
            if perms[name].shape != identity.shape or not bool((perms[name].sort(-1).values == identity).all()):
                raise ShapeError(
                    f"permutation {name!r}",
                    found=f"a tensor {tuple(perms[name].shape)}",
                    expected=f"the numbers 0 to {identity.shape[-1] - 1} once in each row of {tuple(identity.shape)}",
                )

    def without(self, names: Sequence[str], reason: str) -> Symmetry:
        """Return the symmetry with some groups fixed, and those within them."""
        gone = set(names)
        for name, group in self.groups.items():
            if group.within in gone:
                gone.add(name)
        left_out = dict(self.left_out)
        for key, dims in self.axes.items():
            if any(gone & set(block.groups) for blocks in dims for block in blocks):
                left_out.setdefault(key, reason)
        axes = _without(self.axes, gone)
        return replace(
            self,
            groups={name: group for name, group in self.groups.items() if name not in gone},
            axes=axes,
            left_out=left_out,
            aliases={alias: key for alias, key in self.aliases.items() if key in axes},
            activations=_without(self.activations, gone),
        )


def _without(axes: Mapping[K, AxisBlocks], gone: set[str]) -> dict[K, AxisBlocks]:
    """The blocks with some groups fixed; blocks without a group are dropped."""
    kept = {}
    for key, dims in axes.items():
        left = tuple(
            tuple(
                replace(block, groups=tuple("" if name in gone else name for name in block.groups))
                for block in blocks
                if set(block.groups) - gone - {""}
            )
            for blocks in dims
        )
        if any(left):
            kept[key] = left
    return kept
