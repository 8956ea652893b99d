"""What operations that compute do to axes: pointwise ones, sums over axes, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from weightsmith.merge._weight_matching.axes import Axis, product, unify
from weightsmith.merge._weight_matching.steps import Axes, fixed, fresh, give, in_step, tensors


def pointwise(t: Axes, out: Any, *args: Any, **kwargs: Any) -> None:
    """All inputs and outputs go in step."""
    for result in tensors(out):
        dims = t.dims(result) if t.knows(result) else tuple(fresh(result.shape))
        t.set(result, dims)
        in_step(t, dims, [args, kwargs])


def same(t: Axes, out: Any, self: Tensor, *_: Any, **__: Any) -> None:
    """Equivariant under any permutation of any axis: copies, softmax."""
    for result in tensors(out):
        give(t, result, t.dims(self))


def constant(t: Axes, out: Tensor, *_: Any, **__: Any) -> None:
    """The same value everywhere."""
    if not t.knows(out):
        t.set(out, tuple(fresh(out.shape)))


def nothing(t: Axes, out: Any, *_: Any, **__: Any) -> None:
    """Reads one number."""


# --- sums over axes


def mm(t: Axes, out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> None:
    """``[..., m, k] @ [..., k, n]``."""
    *batch, m, k = t.dims(a)
    *other, k2, n = t.dims(b)
    for x, y in zip(batch, other, strict=True):
        unify(x, y)
    unify(k, k2)
    t.record(*batch, m, n, k)
    give(t, out, [*batch, m, n])


def addmm(t: Axes, out: Tensor, self: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> None:
    """A product with something added to it."""
    mm(t, out, a, b)
    in_step(t, t.dims(out), self)


def grouped_mm(t: Axes, out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> Any:
    """``[rows, k] @ [experts, k, n]``, where the rows of one expert stand together."""
    if (a.ndim, b.ndim) != (2, 3):
        return NotImplemented
    rows, k = t.dims(a)
    experts, k2, n = t.dims(b)
    rows.fix()
    experts.fix()
    unify(k, k2)
    t.record(experts, k, n)
    give(t, out, [rows, n])
    return None


def mv(t: Axes, out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> None:
    """``[m, k] @ [k]`` and ``[k] @ [k]``."""
    *m, k = t.dims(a)
    unify(k, t.dims(b)[0])
    t.record(*m, k)
    give(t, out, m)


def reduce(t: Axes, out: Any, self: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
    """Symmetric in the axes it takes away: sum, mean, maximum, variance, norm."""
    dims = t.dims(self)
    t.record(*dims)
    gone = {d % self.ndim for d in ([dim] if isinstance(dim, int) else dim or range(self.ndim))} if self.ndim else set()
    kept = [Axis(1) if i in gone else axis for i, axis in enumerate(dims) if keepdim or i not in gone]
    for result in tensors(out):
        give(t, result, kept)


def norm(t: Axes, out: Any, self: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
    """A reduction with one more argument."""
    reduce(t, out, self, dim, keepdim)


def variance(t: Axes, out: Any, self: Tensor, dim: Any = None, *_: Any, keepdim: bool = False, **__: Any) -> None:
    """A reduction whose other arguments are keywords."""
    reduce(t, out, self, dim if not isinstance(dim, bool) else None, keepdim)


def extremum(t: Axes, out: Any, self: Tensor, *args: Any, **kwargs: Any) -> None:
    """Maximum or minimum; with an axis it also gives the place, a number that depends on the order."""
    if len(list(tensors(out))) > 1:
        axis = args[0] if args else kwargs["dim"]
        t.dims(self)[axis].fix()
    elif args and isinstance(args[0], Tensor):
        pointwise(t, out, self, *args)
        return
    reduce(t, out, self, *args, **kwargs)


def number_of(t: Axes, out: Tensor, self: Tensor, dim: int | None = None, keepdim: bool = False) -> None:
    """The place of an extremum: a number that depends on the order."""
    for axis in t.dims(self) if dim is None else [t.dims(self)[dim]]:
        axis.fix()
    reduce(t, out, self, dim, keepdim)


def convolution(
    t: Axes,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    """Channels in groups; places are fixed."""
    batch, channels, *space = t.dims(x)
    first, second, *kernel = t.dims(weight)
    for axis in (*space, *kernel):
        axis.fix()
    if transposed:
        unify(channels, first)
    halves_in = channels.split_product(groups)
    halves_out = None if transposed else first.split_product(groups)
    if halves_in is None or (halves_out is None and not transposed):
        return NotImplemented
    if transposed:
        made = product([halves_in[0], second])
    else:
        assert halves_out is not None
        unify(halves_in[0], halves_out[0])
        unify(halves_in[1], second)
        made = first
    if bias is not None:
        unify(t.dims(bias)[0], made)
    t.record(batch, made, halves_in[1] if transposed else second)
    give(t, out, [batch, made, *map(fixed, out.shape[2:])])
    return None


# --- normalisation


def layer_norm(t: Axes, out: Any, x: Tensor, shape: Sequence[int], *rest: Any) -> None:
    """LayerNorm and RMSNorm over the last axes; scale and shift go in step with them."""
    dims = t.dims(x)
    in_step(t, dims, [value for value in rest if isinstance(value, Tensor)])
    result, *statistics = tensors(out)
    give(t, result, dims)
    for statistic in statistics:
        give(t, statistic, [*dims[: len(dims) - len(shape)], *(Axis(1) for _ in shape)])


def batch_norm(t: Axes, out: Any, x: Tensor, *rest: Any, **_: Any) -> None:
    """Scale, shift, means and variances go in step with the channels."""
    dims = t.dims(x)
    for tensor in tensors(rest):
        unify(t.dims(tensor)[0], dims[1])
    result, *statistics = tensors(out)
    give(t, result, dims)
    for tensor in statistics:
        give(t, tensor, dims[1:2] if tensor.shape == x.shape[1:2] else fresh(tensor.shape))


def group_norm(
    t: Axes, out: Any, x: Tensor, weight: Any, bias: Any, n: int, c: int, space: int, groups: int, eps: float
) -> Any:
    """Channels are permuted within their group, and groups as blocks."""
    dims = t.dims(x)
    halves = dims[1].split_product(groups)
    if halves is None:
        return NotImplemented
    for tensor in tensors([weight, bias]):
        unify(t.dims(tensor)[0], dims[1])
    result, *statistics = tensors(out)
    give(t, result, dims)
    for statistic in statistics:
        give(t, statistic, [dims[0], halves[0]])
    return None
