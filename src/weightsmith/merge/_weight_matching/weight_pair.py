"""Two ways to hold the weights of two networks while they are matched: in memory, or read from disk when needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from weightsmith.core.errors import ShapeError
from weightsmith.core.io import StoredState, TensorSpec
from weightsmith.core.linalg import upcast
from weightsmith.core.symmetry import Permutations, Symmetry

__all__ = ["STALE", "InMemoryPair", "OffloadedPair", "WeightPair", "check_same_architecture", "row_ranges", "rows"]

PIECE = 2**21
"""Elements of a large tensor that are read from disk at a time, where its rows keep their order."""

STALE = (
    "Running statistics of batch normalization were averaged, and do not fit the averaged weights: re-estimate them on "
    "training inputs with weightsmith.core.models.recalibrate_batchnorm."
)
"""Stated wherever networks are averaged without data."""


class InMemoryPair:
    """All weights in memory, in float32 at least; the second network's are permuted when a permutation changes."""

    keeps = 1.0
    """Costs may be kept that are no larger than this share of their weight."""

    def __init__(self, symmetry: Symmetry, a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        self.symmetry, self.a, self.b = symmetry, a, b
        self.dtype = next(iter(a.values())).dtype

    @classmethod
    def of(cls, symmetry: Symmetry, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> InMemoryPair:
        """Take the permutable weights of two state dicts, the second's to the device of the first's."""
        a, b = {}, {}
        for key in symmetry.axes:
            if key not in symmetry.buffers:
                a[key], b[key] = _upcast_both(first[key].detach(), second[key].detach())
        return cls(symmetry, a, b)

    def pairs(self, key: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the parts of a weight of both networks: here one, the whole."""
        yield self.a[key], self.b[key]

    def permuted(self, perms: Permutations) -> InMemoryPair:
        """Return the pair with the second network permuted."""
        moved = {key: self.symmetry.permute_tensor(key, tensor, perms) for key, tensor in self.b.items()}
        return InMemoryPair(self.symmetry, self.a, moved)

    def move(self, step: Permutations, keys: Iterable[str]) -> None:
        """Permute some weights of the second network."""
        self.b.update({key: self.symmetry.permute_tensor(key, self.b[key], step) for key in keys})

    def copy(self) -> InMemoryPair:
        """Return a pair that is moved independently."""
        return InMemoryPair(self.symmetry, self.a, dict(self.b))


class OffloadedPair:
    """Weights that are read and permuted each time they are needed; only the permutations are in memory."""

    keeps = 1 / 16
    """Those of a large vocabulary are kept, which take long and do not change."""
    dtype = torch.float32

    def __init__(
        self,
        symmetry: Symmetry,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        perms: Permutations | None = None,
    ) -> None:
        self.symmetry, self.first, self.second, self.perms = symmetry, first, second, perms or {}

    def pairs(self, key: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the parts of a weight of both networks: rows, where these keep their order."""
        for begin, end in row_ranges(self.symmetry, key):
            a, b = _upcast_both(*(rows(state, key, begin, end) for state in (self.first, self.second)))
            yield a, self.symmetry.permute_tensor(key, b, self.perms)

    def permuted(self, perms: Permutations) -> OffloadedPair:
        """Return the pair with the second network permuted."""
        both = self.symmetry.compose(self.perms, perms) if self.perms else perms
        return OffloadedPair(self.symmetry, self.first, self.second, both)

    def move(self, step: Permutations, keys: Iterable[str]) -> None:
        """Note a step."""
        self.perms = self.symmetry.compose(self.perms or self.symmetry.identity(), step)

    def copy(self) -> OffloadedPair:
        """Return a pair that is moved independently."""
        return OffloadedPair(self.symmetry, self.first, self.second, self.perms)


WeightPair: TypeAlias = InMemoryPair | OffloadedPair
"""Both networks' weights, the second's as permuted so far."""


def check_same_architecture(
    first: Mapping[str, Tensor] | Mapping[str, TensorSpec],
    second: Mapping[str, Tensor] | Mapping[str, TensorSpec],
    which: str = "the networks",
) -> None:
    """Refuse to average two networks that differ in the name or shape of a tensor, permuted or not.

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


def row_ranges(symmetry: Symmetry, key: str) -> Iterator[tuple[int, int]]:
    """Iterate over the first row and the one after the last of each piece; one piece where the rows are permuted.

    Examples
    --------
    >>> list(row_ranges(Symmetry({}, {}, {"w": (3, 2**20)}), "w"))
    [(0, 2), (2, 3)]
    """
    shape = symmetry.shapes[key]
    if not shape or (key in symmetry.axes and symmetry.axes[key][0]):
        yield 0, shape[0] if shape else 1
        return
    step = max(1, PIECE // max(1, torch.Size(shape[1:]).numel()))
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def rows(state: Mapping[str, Tensor], key: str, begin: int, end: int) -> Tensor:
    """Return rows of a tensor in memory or on disk; a scalar has none."""
    if isinstance(state, StoredState):
        return state.rows(key, begin, end) if state.specs[key].shape else state[key]
    return state[key].detach()[begin:end] if state[key].ndim else state[key].detach()


def _upcast_both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type, float32 at least, on the first one's device."""
    a, b = upcast(a), upcast(b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(a.device, dtype)
