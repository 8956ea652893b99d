"""What operations that move numbers do to axes: views, cuts, concatenation, and places that mean something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightsmith.merge._weight_matching.axes import Axis, join, product, unify
from weightsmith.merge._weight_matching.steps import Axes, Rule, fixed, fresh, give, in_step, tensors

# --- shapes


def view(t: Axes, out: Tensor, self: Tensor, *_: Any, **__: Any) -> Any:
    """The factors of the old dimensions grouped anew."""
    if 0 in out.shape or self.dtype != out.dtype:
        return NotImplemented
    rest: Axis | None = product(t.dims(self))
    dims: list[Axis] = []
    for size in out.shape:
        assert rest is not None
        halves = rest.split_product(size)
        if halves is None:
            return NotImplemented
        dims.append(halves[0] if size > 1 else Axis(1))
        rest = halves[1]
    give(t, out, dims)
    return None


def permute(t: Axes, out: Tensor, self: Tensor, order: Sequence[int]) -> None:
    """The dimensions in another order."""
    give(t, out, [t.dims(self)[i] for i in order])


def transpose(t: Axes, out: Tensor, self: Tensor, a: int = 0, b: int = 1) -> None:
    """Two dimensions change places."""
    dims = [*t.dims(self)]
    if dims:
        dims[a], dims[b] = dims[b], dims[a]
    give(t, out, dims)


def squeeze(t: Axes, out: Tensor, self: Tensor, dim: Any = None) -> None:
    """Dimensions of size 1 go."""
    where = (
        {d % self.ndim for d in ([dim] if isinstance(dim, int) else dim or range(self.ndim))} if self.ndim else set()
    )
    give(t, out, [axis for i, axis in enumerate(t.dims(self)) if i not in where or self.shape[i] != 1])


def unsqueeze(t: Axes, out: Tensor, self: Tensor, dim: int) -> None:
    """A dimension of size 1 comes."""
    dims = [*t.dims(self)]
    dims.insert(dim % out.ndim, Axis(1))
    give(t, out, dims)


def expand(t: Axes, out: Tensor, self: Tensor, *_: Any, **__: Any) -> None:
    """Copies along an axis may be permuted as one likes."""
    dims = fresh(out.shape)
    in_step(t, dims, self)
    give(t, out, dims)


def repeat(t: Axes, out: Tensor, self: Tensor, repeats: Sequence[int]) -> None:
    """Copies one after the other."""
    dims = [Axis(1)] * (len(repeats) - self.ndim) + [*t.dims(self)]
    give(t, out, [product([Axis(count), axis]) for count, axis in zip(repeats, dims, strict=True)])


def cut(axis: Axis, start: int, stop: int) -> Axis:
    """The indices from ``start`` to ``stop``; the axis is taken apart there."""
    axis = axis.resolve()
    if (start, stop) == (0, axis.size):
        return axis
    if axis.kind == "leaf" and axis.fixed:
        return fixed(stop - start)
    tail = axis.split_sum(start) if start else (axis, axis)
    part = None if tail is None else (tail[1], tail[1]) if stop == axis.size else tail[1].split_sum(stop - start)
    if part is None:
        axis.fix("is cut at a place that does not line up")
        return fixed(stop - start)
    return part[0]


def slice_(
    t: Axes, out: Tensor, self: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> None:
    """A run of indices."""
    dims = [*t.dims(self)]
    first, stop, _ = slice(start, end, step).indices(self.shape[dim])
    if out.shape[dim] == 0:
        dims[dim] = Axis(0)
    elif step != 1:
        dims[dim].fix()
        dims[dim] = fixed(out.shape[dim])
    else:
        dims[dim] = cut(dims[dim], first, stop)
    give(t, out, dims)


def select(t: Axes, out: Tensor, self: Tensor, dim: int, index: int) -> None:
    """One index: its place is fixed, the others are not."""
    dims = [*t.dims(self)]
    index %= self.shape[dim]
    cut(dims.pop(dim), index, index + 1)
    give(t, out, dims)


def split(t: Axes, out: Sequence[Tensor], self: Tensor, *args: Any, dim: int = 0, **_: Any) -> None:
    """Runs of indices, one after the other."""
    dim = args[1] if len(args) > 1 else dim
    start = 0
    for part in out:
        dims = [*t.dims(self)]
        dims[dim] = cut(dims[dim], start, start + part.shape[dim]) if part.shape[dim] else Axis(0)
        start += part.shape[dim]
        give(t, part, dims)


def unbind(t: Axes, out: Sequence[Tensor], self: Tensor, dim: int = 0) -> None:
    """Every index of an axis by itself."""
    for index, part in enumerate(out):
        select(t, part, self, dim, index)


def cat(t: Axes, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    """The sum of axes."""
    parts = [part for part in parts if tuple(part.shape) != (0,)]
    if not parts:
        give(t, out, fresh(out.shape))
        return
    dim %= out.ndim
    dims = [*t.dims(parts[0])]
    for part in parts[1:]:
        for i, (a, b) in enumerate(zip(dims, t.dims(part), strict=True)):
            if i != dim:
                unify(a, b)
    dims[dim] = join([t.dims(part)[dim] for part in parts])
    give(t, out, dims)


def stack(t: Axes, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    """A new axis whose places mean something."""
    dims = [*t.dims(parts[0])]
    for part in parts[1:]:
        in_step(t, dims, part)
    dims.insert(dim % out.ndim, fixed(len(parts)))
    give(t, out, dims)


def as_strided(t: Axes, out: Tensor, self: Tensor, size: Sequence[int], strides: Sequence[int], *offset: Any) -> Any:
    """Only where it changes no more than the strides of dimensions of size 1, as pooling to one place does."""
    dims = t.dims(self)
    was = [stride for axis, stride in zip(dims, t.strides(self), strict=True) if axis.size > 1]
    now = [stride for length, stride in zip(size, strides, strict=True) if length > 1]
    if [axis.size for axis in dims] != [*size] or was != now or offset not in ((), (self.storage_offset(),)):
        return NotImplemented
    give(t, out, dims)
    return None


def pad(t: Axes, out: Tensor, self: Tensor, widths: Sequence[int], *_: Any) -> Any:
    """Constants before and after."""
    dims = [*t.dims(self)]
    for i in range(len(widths) // 2):
        before, after = widths[2 * i], widths[2 * i + 1]
        if min(before, after) < 0:
            return NotImplemented
        dims[-1 - i] = join([Axis(before), dims[-1 - i], Axis(after)])
    give(t, out, dims)
    return None


def channel_shuffle(t: Axes, out: Tensor, self: Tensor, groups: int) -> Any:
    """Channels ``[groups, each]`` become ``[each, groups]``."""
    dims = [*t.dims(self)]
    halves = dims[1].split_product(groups)
    if halves is None:
        return NotImplemented
    dims[1] = product([halves[1], halves[0]])
    give(t, out, dims)
    return None


# --- places that mean something


def spatial(count: int) -> Rule:
    """Pooling and resizing over the last ``count`` axes."""

    def rule(t: Axes, out: Any, self: Tensor, *_: Any, **__: Any) -> None:
        channels, places = t.dims(self)[: self.ndim - count], t.dims(self)[self.ndim - count :]
        for axis in places:
            axis.fix()
        for result in tensors(out):
            give(t, result, [*channels, *map(fixed, result.shape[result.ndim - count :])])

    return rule


def ordered(position: int) -> Rule:
    """What goes along an axis in order (``position``: where the argument ``dim`` stands, after the tensor)."""

    def rule(t: Axes, out: Any, self: Tensor, *args: Any, dim: Any = None, dims: Any = None, **_: Any) -> Any:
        where = args[position] if len(args) > position else dim if dim is not None else dims
        where = -1 if where is None else where
        if isinstance(where, bool):
            return NotImplemented
        along = {d % self.ndim for d in ([where] if isinstance(where, int) else where)} if self.ndim else set()
        axes = t.dims(self)
        for i in along:
            axes[i].fix()
        for result in tensors(out):
            if result.ndim != self.ndim:
                return NotImplemented
            give(t, result, [fixed(result.shape[i]) if i in along else axis for i, axis in enumerate(axes)])
        return None

    return rule


def triangle(t: Axes, out: Tensor, self: Tensor, *_: Any) -> None:
    """Upper or lower triangles."""
    for axis in t.dims(self)[-2:]:
        axis.fix()
    give(t, out, t.dims(self))


def embedding(t: Axes, out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> None:
    """Rows by number: their order is that of the tokens."""
    rows, columns = t.dims(weight)
    rows.fix()
    give(t, out, [*t.dims(indices), columns])


def index(t: Axes, out: Tensor, self: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """Places by number; axes that are not indexed pass."""
    axes = t.dims(self)
    chosen = [i for i, numbers in enumerate(indices) if numbers is not None]
    if not chosen or any(numbers.dtype in (torch.bool, torch.uint8) for numbers in indices if numbers is not None):
        return NotImplemented
    for i in chosen:
        axes[i].fix()
    shape = torch.broadcast_shapes(*(numbers.shape for numbers in indices if numbers is not None))
    new = fresh(shape)
    in_step(t, new, list(indices))
    together = chosen[-1] - chosen[0] == len(chosen) - 1
    kept = [axis for i, axis in enumerate(axes) if i not in chosen]
    place = chosen[0] if together else 0
    give(t, out, [*kept[:place], *new, *kept[place:]])
    return None


def index_select(t: Axes, out: Tensor, self: Tensor, dim: int, indices: Tensor) -> None:
    """Places of one axis by number."""
    dims = [*t.dims(self)]
    dims[dim].fix()
    dims[dim] = fixed(out.shape[dim])
    give(t, out, dims)


def gather(t: Axes, out: Tensor, self: Tensor, dim: int, indices: Tensor, **_: Any) -> None:
    """Places of one axis by numbers that differ along the others."""
    for i, (a, b) in enumerate(zip(t.dims(self), t.dims(indices), strict=True)):
        if i == dim % self.ndim:
            a.fix()
        elif a.size == b.size:
            unify(a, b)
        else:
            a.fix()
            b.fix()
    give(t, out, t.dims(indices))


def unfold(t: Axes, out: Tensor, self: Tensor, dim: int, size: int, step: int) -> None:
    """Windows along an axis."""
    dims = [*t.dims(self)]
    dims[dim].fix()
    dims[dim] = fixed(out.shape[dim])
    give(t, out, [*dims, fixed(size)])
