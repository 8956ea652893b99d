"""Two ways to hold the weights of two networks while they are matched: in memory, or on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from weightsmith.core.errors import ShapeError
from weightsmith.core.io import StoredState, TensorSpec
from weightsmith.merge._weight_matching.spec import Permutations, PermutationSpec

__all__ = ["STALE", "Held", "InMemory", "OnDisk", "check_alike", "permute", "row_ranges", "rows"]

PIECE = 2**21
"""Elements of a large tensor that are read from disk at a time, where its rows keep their order."""

STALE = (
    "The running statistics of batch normalisation are averaged too, and wrong for the averaged weights: re-estimate "
    "them on training inputs with weightsmith.core.models.recalibrate_batchnorm."
)
"""To be said wherever networks are averaged without data."""


class InMemory:
    """All weights in memory, in float32 at least, the second network's permuted when a permutation changes."""

    keeps = 1
    """Costs may be kept that are no larger than their weight."""

    def __init__(self, spec: PermutationSpec, a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        self.spec, self.a, self.b = spec, a, b
        self.dtype = next(iter(a.values())).dtype

    @classmethod
    def of(cls, spec: PermutationSpec, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> InMemory:
        """Take what has a say from two state dicts, the second's to the device of the first's."""
        a, b = {}, {}
        for key in spec.axes:
            if key not in spec.buffers:
                a[key], b[key] = _wide(first[key].detach(), second[key].detach())
        return cls(spec, a, b)

    def pairs(self, key: str) -> Iterator[tuple[Tensor, Tensor]]:
        """A weight of both networks."""
        yield self.a[key], self.b[key]

    def permuted(self, perms: Permutations) -> InMemory:
        """The same with the second network permuted."""
        moved = {key: permute(self.spec, key, tensor, perms) for key, tensor in self.b.items()}
        return InMemory(self.spec, self.a, moved)

    def move(self, step: Permutations, keys: Iterable[str]) -> None:
        """Permute some weights."""
        self.b.update({key: permute(self.spec, key, self.b[key], step) for key in keys})

    def copy(self) -> InMemory:
        """The same, to be moved apart."""
        return InMemory(self.spec, self.a, dict(self.b))


class OnDisk:
    """Weights that are read and permuted each time they are asked for; only the permutations are in memory."""

    keeps = 0
    """No costs are kept."""
    dtype = torch.float32

    def __init__(
        self,
        spec: PermutationSpec,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        perms: Permutations | None = None,
    ) -> None:
        self.spec, self.first, self.second, self.perms = spec, first, second, perms or {}

    def pairs(self, key: str) -> Iterator[tuple[Tensor, Tensor]]:
        """A weight of both networks, rows that keep their order in pieces."""
        for begin, end in row_ranges(self.spec, key):
            a, b = _wide(*(rows(state, key, begin, end) for state in (self.first, self.second)))
            yield a, permute(self.spec, key, b, self.perms)

    def permuted(self, perms: Permutations) -> OnDisk:
        """The same with the second network permuted."""
        both = self.spec.compose(self.perms, perms) if self.perms else perms
        return OnDisk(self.spec, self.first, self.second, both)

    def move(self, step: Permutations, keys: Iterable[str]) -> None:
        """Note a step."""
        self.perms = self.spec.compose(self.perms or self.spec.identity(), step)

    def copy(self) -> OnDisk:
        """The same, to be moved apart."""
        return OnDisk(self.spec, self.first, self.second, self.perms)


Held: TypeAlias = InMemory | OnDisk
"""Both networks' weights, of which ``pairs`` gives those of one name, the second's as permuted so far."""


def check_alike(
    first: Mapping[str, Tensor] | Mapping[str, TensorSpec],
    second: Mapping[str, Tensor] | Mapping[str, TensorSpec],
    which: str = "the networks",
) -> None:
    """Refuse to average two that differ in the name or shape of a tensor, permuted or not.

    Raises
    ------
    ShapeError
        With the tensors' names.
    """
    odd = sorted(first.keys() ^ second.keys())
    if odd:
        raise ShapeError(f"{which} differ in {len(odd)} names", found=odd[:5], expected="the same")
    shapes = [(name, tuple(first[name].shape), tuple(second[name].shape)) for name in first]
    bad = [row for row in shapes if row[1] != row[2]]
    if bad:
        raise ShapeError(f"{which} differ in {len(bad)} shapes", found=bad[:5], expected="the same")


def permute(spec: PermutationSpec, key: str, tensor: Tensor, perms: Permutations) -> Tensor:
    """Permute one tensor, or rows of it that keep their order."""
    for axis in range(tensor.ndim):
        order = spec.order(key, axis, perms)
        if order is not None:
            tensor = tensor.index_select(axis, order.to(tensor.device))
    return tensor


def row_ranges(spec: PermutationSpec, key: str) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each piece; all rows in one where they are permuted.

    Examples
    --------
    >>> list(row_ranges(PermutationSpec({}, {}, {"w": (3, 2**20)}), "w"))
    [(0, 2), (2, 3)]
    """
    shape = spec.shapes[key]
    if not shape or (key in spec.axes and spec.axes[key][0]):
        yield 0, shape[0] if shape else 1
        return
    step = max(1, PIECE // max(1, torch.Size(shape[1:]).numel()))
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def rows(state: Mapping[str, Tensor], key: str, begin: int, end: int) -> Tensor:
    """Rows of a tensor in memory or on disk; a number has none."""
    if isinstance(state, StoredState):
        return state.rows(key, begin, end) if state.specs[key].shape else state[key]
    return state[key].detach()[begin:end] if state[key].ndim else state[key].detach()


def _wide(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, on the first one's device."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(a.device, dtype)
