"""What operations that move numbers do to axes: views, slices, concatenation, and places that have a meaning.

The rules are listed in :mod:`weightsmith.core.symmetry._rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weightsmith.core.symmetry._axes import Axis, TensorAxes, fixed, join, product, tensors_in, unify


def which(dim: int | Sequence[int] | None, ndim: int) -> set[int]:
    """Return the axes that an argument ``dim`` names; all where it names none."""
    named = range(ndim) if dim is None or (isinstance(dim, Sequence) and not dim) else dim
    return {d % ndim for d in ([named] if isinstance(named, int) else named)} if ndim else set()


# --- shapes


def view(t: TensorAxes, out: Tensor, /, *, self: Tensor, **_: Any) -> Any:
    """The factors of the old dimensions grouped anew."""
    if 0 in out.shape or self.dtype != out.dtype:
        return NotImplemented
    rest = product(t.dims(self))
    dims: list[Axis] = []
    for size in out.shape:
        halves = rest.split_product(size)
        if halves is None:
            return NotImplemented
        dims.append(halves[0] if size > 1 else Axis(1))
        rest = halves[1]
    t.give(out, dims)
    return None


def permute(t: TensorAxes, out: Tensor, /, *, self: Tensor, dims: Sequence[int]) -> None:
    """The dimensions in another order."""
    t.give(out, [t.dims(self)[i] for i in dims])


def transpose(t: TensorAxes, out: Tensor, /, *, self: Tensor, dim0: int = 0, dim1: int = 1) -> None:
    """Two dimensions are exchanged."""
    axes = [*t.dims(self)]
    if len(axes) > 1:
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    t.give(out, axes)


def squeeze(t: TensorAxes, out: Tensor, /, *, self: Tensor, dim: Any = None) -> None:
    """Dimensions of size 1 are removed."""
    where = which(dim, self.ndim)
    t.give(out, [axis for i, axis in enumerate(t.dims(self)) if i not in where or self.shape[i] != 1])


def unsqueeze(t: TensorAxes, out: Tensor, /, *, self: Tensor, dim: int) -> None:
    """A dimension of size 1 is inserted."""
    axes = [*t.dims(self)]
    axes.insert(dim % out.ndim, Axis(1))
    t.give(out, axes)


def expand(t: TensorAxes, out: Tensor, /, *, self: Tensor, **_: Any) -> None:
    """Copies along an axis may be permuted freely."""
    axes = [*map(Axis, out.shape)]
    t.in_step(axes, self)
    t.give(out, axes)


def repeat(t: TensorAxes, out: Tensor, /, *, self: Tensor, repeats: Sequence[int]) -> None:
    """Copies one after the other."""
    axes = [Axis(1)] * (len(repeats) - self.ndim) + [*t.dims(self)]
    t.give(out, [product([Axis(count), axis]) for count, axis in zip(repeats, axes, strict=True)])


def slice_(
    t: TensorAxes, out: Tensor, /, *, self: Tensor, dim: int, start: int | None, end: int | None, step: int
) -> None:
    """Consecutive indices."""
    axes = [*t.dims(self)]
    first, stop, _ = slice(start, end, step).indices(self.shape[dim])
    if out.shape[dim] == 0:
        axes[dim] = Axis(0)
    elif step != 1:
        axes[dim].fix()
        axes[dim] = fixed(out.shape[dim])
    else:
        axes[dim] = axes[dim].slice(first, stop)
    t.give(out, axes)


def select(t: TensorAxes, out: Tensor, /, *, self: Tensor, dim: int, index: int) -> None:
    """One index: its place is fixed, the others are not."""
    axes = [*t.dims(self)]
    index %= self.shape[dim]
    axes.pop(dim).slice(index, index + 1)
    t.give(out, axes)


def split(t: TensorAxes, out: Sequence[Tensor], /, *, self: Tensor, dim: int, **_: Any) -> None:
    """Consecutive indices, part after part."""
    start = 0
    for part in out:
        axes = [*t.dims(self)]
        axes[dim] = axes[dim].slice(start, start + part.shape[dim]) if part.shape[dim] else Axis(0)
        start += part.shape[dim]
        t.give(part, axes)


def unbind(t: TensorAxes, out: Sequence[Tensor], /, *, self: Tensor, dim: int) -> None:
    """Every index of an axis by itself."""
    for index, part in enumerate(out):
        select(t, part, self=self, dim=dim, index=index)


def cat(t: TensorAxes, out: Tensor, /, *, tensors: Sequence[Tensor], dim: int) -> None:
    """The sum of axes."""
    parts = [part for part in tensors if tuple(part.shape) != (0,)]
    if not parts:
        t.give(out, [*map(Axis, out.shape)])
        return
    dim %= out.ndim
    axes = [*t.dims(parts[0])]
    for part in parts[1:]:
        for i, (a, b) in enumerate(zip(axes, t.dims(part), strict=True)):
            if i != dim:
                unify(a, b)
    axes[dim] = join([t.dims(part)[dim] for part in parts])
    t.give(out, axes)


def stack(t: TensorAxes, out: Tensor, /, *, tensors: Sequence[Tensor], dim: int) -> None:
    """A new axis whose places have a meaning."""
    axes = [*t.dims(tensors[0])]
    t.in_step(axes, tensors[1:])
    axes.insert(dim % out.ndim, fixed(len(tensors)))
    t.give(out, axes)


def as_strided(
    t: TensorAxes, out: Tensor, /, *, self: Tensor, size: Any, stride: Any, storage_offset: int | None
) -> Any:
    """Only where it changes no more than the strides of dimensions of size 1, as pooling to one place does."""
    dims = t.dims(self)
    was = [step for axis, step in zip(dims, t.strides(self), strict=True) if axis.size > 1]
    now = [step for length, step in zip(size, stride, strict=True) if length > 1]
    moved = storage_offset not in (None, self.storage_offset())
    if [axis.size for axis in dims] != [*size] or was != now or moved:
        return NotImplemented
    t.give(out, dims)
    return None


def pad(t: TensorAxes, out: Tensor, /, *, self: Tensor, pad: Sequence[int], **_: Any) -> Any:
    """Constants before and after."""
    axes = [*t.dims(self)]
    if min(pad, default=0) < 0:
        return NotImplemented
    for i in range(len(pad) // 2):
        axes[-1 - i] = join([Axis(pad[2 * i]), axes[-1 - i], Axis(pad[2 * i + 1])])
    t.give(out, axes)
    return None


# --- places that have a meaning


def spatial(count: int) -> Callable[..., Any]:
    """Pooling, resizing and padding over the last ``count`` axes."""

    def rule(t: TensorAxes, out: Any, /, **named: Any) -> None:
        x = next(tensors_in(named))
        for axis in t.dims(x)[x.ndim - count :]:
            axis.fix()
        for result in tensors_in(out):
            t.give(result, [*t.dims(x)[: x.ndim - count], *map(fixed, result.shape[result.ndim - count :])])

    return rule


def ordered(t: TensorAxes, out: Any, /, *, self: Tensor, dim: Any = None, dims: Any = None, **_: Any) -> Any:
    """What follows the order of an axis: running sums, sorting, flips."""
    along, axes = which(dims if dim is None else dim, self.ndim), t.dims(self)
    for i in along:
        axes[i].fix()
    for result in tensors_in(out):
        t.give(result, [fixed(result.shape[i]) if i in along else axis for i, axis in enumerate(axes)])


def index(t: TensorAxes, out: Tensor, /, *, self: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """Places by number; axes that are not indexed keep their order."""
    axes = t.dims(self)
    chosen = [i for i, numbers in enumerate(indices) if numbers is not None]
    if not chosen or any(numbers.dtype in (torch.bool, torch.uint8) for numbers in tensors_in(indices)):
        return NotImplemented
    for i in chosen:
        axes[i].fix()
    new = [*map(Axis, torch.broadcast_shapes(*(numbers.shape for numbers in tensors_in(indices))))]
    t.in_step(new, indices)
    kept = [axis for i, axis in enumerate(axes) if i not in chosen]
    place = chosen[0] if chosen[-1] - chosen[0] == len(chosen) - 1 else 0
    t.give(out, [*kept[:place], *new, *kept[place:]])
    return None


def gather(t: TensorAxes, out: Tensor, /, *, self: Tensor, dim: int, index: Tensor, **_: Any) -> None:
    """Places of one axis by numbers that differ along the others."""
    for i, (a, b) in enumerate(zip(t.dims(self), t.dims(index), strict=True)):
        if i == dim % self.ndim:
            a.fix()
        elif a.size == b.size:
            unify(a, b)
        else:
            a.fix()
            b.fix()
    t.give(out, t.dims(index))


def unfold(t: TensorAxes, out: Tensor, /, *, self: Tensor, dimension: int, size: int, **_: Any) -> None:
    """Windows along an axis."""
    axes = [*t.dims(self)]
    axes[dimension].fix()
    axes[dimension] = fixed(out.shape[dimension])
    t.give(out, [*axes, fixed(size)])
