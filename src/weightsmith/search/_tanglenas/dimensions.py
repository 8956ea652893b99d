"""The dimensions of a search, and the tables of what each choice keeps of every axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightsmith.core.models import Stack
from weightsmith.core.symmetry import AxisBlock, Symmetry
from weightsmith.search._tanglenas.superposition import Architecture, AxisCut

__all__ = ["Choices", "Heads", "Space", "Width", "axis_cut"]

Choices: TypeAlias = Mapping[str, Sequence[float]]
"""Values by the name of the dimension."""


@dataclass(frozen=True)
class Heads:
    """Attention whose head size is the hidden size divided by the number of heads: both are split anew by a choice.

    Attributes
    ----------
    hidden, heads : str
        The dimensions; empty where there is no choice.
    width, count : int
        Hidden size and number of heads of the largest network.
    """

    hidden: str
    heads: str
    width: int
    count: int


@dataclass
class Space:
    """The dimensions of a search, and what they do to a model.

    Attributes
    ----------
    choices : dict of str to tuple
        Values by dimension, ascending; the last is the model's own. They are whole numbers, but for ratios.
    axes : dict of str to tuple of AxisCut or None
        By name of a tensor, per axis: what the choices keep.
    split : set of (str, int)
        Axes of queries, keys, values and of what reads them that are cut inside the attention.
    heads : Heads or None
        How attention is split, where the choices change it.
    kernels : dict of str to str
        By path of a convolution, the dimension of its kernel size.
    stack : Stack or None
        The row of blocks whose number is chosen, by the dimension ``depth``.
    aliases : dict of str to str
        Other names of tied tensors.
    fields : callable
        From an architecture to the fields of its configuration.
    """

    choices: dict[str, tuple[Any, ...]]
    axes: dict[str, tuple[AxisCut | None, ...]] = field(default_factory=dict)
    split: set[tuple[str, int]] = field(default_factory=set)
    heads: Heads | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    stack: Stack | None = None
    depth: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    fields: Callable[[Architecture], dict[str, Any]] = lambda architecture: {}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of choices of every dimension."""
        return {name: len(values) for name, values in self.choices.items()}

    @property
    def largest(self) -> Architecture:
        """The architecture of the model itself."""
        return {name: values[-1] for name, values in self.choices.items()}

    @property
    def architectures(self) -> int:
        """How many there are."""
        count = 1
        for values in self.choices.values():
            count *= len(values)
        return count

    def joint(self, dims: Sequence[str]) -> Iterator[Architecture]:
        """Iterate over the joint choices of some dimensions, the last one fastest."""
        for values in product(*(self.choices[name] for name in dims)):
            yield dict(zip(dims, values, strict=True))

    def positions(self, key: str, axis: int, architecture: Architecture) -> Tensor | None:
        """Return the positions that an architecture keeps of an axis; None for all."""
        cut = self.axes[key][axis] if key in self.axes else None
        if cut is None:
            return None
        place = list(self.joint(cut.dims)).index({name: architecture[name] for name in cut.dims})
        return cut.kept[place].nonzero().flatten()


@dataclass(frozen=True)
class Width:
    """How many indices stay of so many: a function of some dimensions."""

    dims: tuple[str, ...]
    count: Callable[[Architecture, int], int]


def axis_cut(
    space: Space,
    symmetry: Symmetry,
    key: str,
    axis: int,
    blocks: Sequence[AxisBlock],
    widths: Mapping[str, Width],
    heads: Heads | None,
) -> AxisCut | None:
    """The table of one axis."""
    involved = {n for block in blocks for group in block.groups if group in widths for n in widths[group].dims}
    involved |= {heads.hidden, heads.heads} if heads is not None else set()
    dims = tuple(name for name in space.choices if name in involved)
    if not dims:
        return None
    rows = []
    for one in space.joint(dims):
        kept = torch.ones(symmetry.shapes[key][axis], dtype=torch.bool)
        for block in blocks:
            places = block.places()
            if heads is not None:  # the first features of every head, in each block of queries, keys and values
                count = one.get(heads.heads, heads.count)
                kept[places.flatten().view(count, -1)[:, one[heads.hidden] // count :]] = False
                continue
            for number, group in enumerate(block.groups):
                if group in widths:
                    gone = places.movedim(number, 0)[widths[group].count(one, places.shape[number]) :]
                    kept[gone.flatten()] = False
        rows.append(kept)
    return AxisCut(dims, torch.stack(rows))
