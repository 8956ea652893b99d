"""What each operation does to axes: one small function per kind of ATen operation.

A rule is called as ``rule(axes, out, **arguments)`` with the operation's arguments under the names of its schema. It
unifies or fixes axes of its inputs and sets those of its results. It returns ``NotImplemented`` for a case it does not
know; then every axis involved is fixed, as for an operation without a rule. Operations that torch can decompose into
those of the table, such as layer and batch normalization or embeddings, need no rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightsmith.core.symmetry import _shape_rules as shapes
from weightsmith.core.symmetry._axes import Axis, TensorAxes, fixed, product, tensors_in, unify

__all__ = ["AxisRule", "arguments_of", "rule_of"]

AxisRule: TypeAlias = Callable[..., Any]
"""Called with the axes of all tensors, the operation's result and its arguments by name."""


def arguments_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call of an ATen operation; defaults are filled in.

    Examples
    --------
    >>> arguments_of(torch.ops.aten.unbind.int, [torch.zeros(2)], {})
    {'self': tensor([0., 0.]), 'dim': 0}
    """
    named = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            named[argument.name] = args[position]
        elif not argument.is_out and (argument.name in kwargs or argument.has_default_value()):
            named[argument.name] = kwargs.get(argument.name, argument.default_value)
    return named


def rule_of(func: Any) -> AxisRule | None:
    """Return the rule of an ATen operation; None where there is none."""
    name = func.overloadpacket.__name__
    if rule := RULES.get(name) or RULES.get(name.removesuffix("_")):
        return rule
    if torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags:
        return _pointwise
    match = SPATIAL.match(name)
    return shapes.spatial(int(match[1])) if match else None


# --- pointwise operations, copies and constants


def _pointwise(t: TensorAxes, out: Any, /, **named: Any) -> None:
    """All inputs and outputs share their orders."""
    for result in tensors_in(out):
        dims = t.dims(result) if t.knows(result) else tuple(map(Axis, result.shape))
        t.set(result, dims)
        t.in_step(dims, named)


def _same(t: TensorAxes, out: Any, /, **named: Any) -> None:
    """Copies and softmax: equivariant under any permutation of any axis."""
    for result in tensors_in(out):
        t.give(result, t.dims(next(tensors_in(named))))


def _constant(t: TensorAxes, out: Tensor, /, **_: Any) -> None:
    """The same value everywhere."""
    if not t.knows(out):
        t.set(out, map(Axis, out.shape))


def _nothing(t: TensorAxes, out: Any, /, **_: Any) -> None:
    """Reads one number."""


# --- sums over axes


def _matmul(t: TensorAxes, out: Tensor, /, **named: Any) -> None:
    """``[..., m, k] @ [..., k, n]`` or ``[..., k] @ [k]``, with a tensor added where there is a third."""
    *added, a, b = tensors_in(named)
    *rows, k = t.dims(a)
    *batch, inner = t.dims(b) if b.ndim == 1 else t.dims(b)[:-1]
    columns = t.dims(b)[-1:] if b.ndim > 1 else ()
    for x, y in zip(rows, batch, strict=False):
        unify(x, y)
    unify(k, inner)
    t.record(*rows, *columns, k)
    t.give(out, [*rows, *columns])
    t.in_step(t.dims(out), added)


def _grouped_mm(t: TensorAxes, out: Tensor, /, **named: Any) -> Any:
    """``[rows, k] @ [experts, k, n]``, where the rows of one expert are adjacent."""
    a, b = list(tensors_in(named))[:2]
    if (a.ndim, b.ndim) != (2, 3):
        return NotImplemented
    rows, k = t.dims(a)
    experts, inner, n = t.dims(b)
    rows.fix()
    experts.fix()
    unify(k, inner)
    t.record(experts, k, n)
    t.give(out, [rows, n])
    return None


def _reduce(t: TensorAxes, out: Any, /, *, self: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
    """Symmetric in the axes it removes: sum, mean, maximum, variance, norm."""
    dims = t.dims(self)
    t.record(*dims)
    gone = shapes.which(dim, self.ndim)
    for result in tensors_in(out):
        t.give(result, [Axis(1) if i in gone else axis for i, axis in enumerate(dims) if keepdim or i not in gone])


def _extremum(t: TensorAxes, out: Any, /, *, self: Tensor, other: Tensor | None = None, **named: Any) -> None:
    """Maximum or minimum; along an axis it also returns the place, a number that depends on the order."""
    if other is not None:
        _pointwise(t, out, self=self, other=other)
        return
    if not isinstance(out, Tensor):
        t.dims(self)[named["dim"]].fix()
    _reduce(t, out, self=self, **named)


def _argument(t: TensorAxes, out: Tensor, /, *, self: Tensor, dim: int | None = None, **named: Any) -> None:
    """The place of an extremum: a number that depends on the order."""
    for i in shapes.which(dim, self.ndim):
        t.dims(self)[i].fix()
    _reduce(t, out, self=self, dim=dim, **named)


def _convolution(
    t: TensorAxes, out: Tensor, /, *, input: Tensor, weight: Tensor, bias: Any, transposed: bool, groups: int, **_: Any
) -> Any:
    """Channels in groups; positions are fixed."""
    batch, channels, *space = t.dims(input)
    first, second, *kernel = t.dims(weight)
    for axis in (*space, *kernel):
        axis.fix()
    halves = channels.split_product(groups)
    if halves is None:
        return NotImplemented
    if transposed:  # the weight is [in, out of a group]
        unify(channels, first)
        made, summed = product([halves[0], second]), halves[1]
    else:  # [out, in of a group]
        outer = first.split_product(groups)
        if outer is None:
            return NotImplemented
        unify(halves[0], outer[0])
        unify(halves[1], second)
        made, summed = first, second
    if bias is not None:
        unify(t.dims(bias)[0], made)
    t.record(batch, made, summed)
    t.give(out, [batch, made, *map(fixed, out.shape[2:])])
    return None


def _group_norm(t: TensorAxes, out: Any, /, *, input: Tensor, weight: Any, bias: Any, group: int, **_: Any) -> Any:
    """Channels are permuted within their group, and groups as blocks; torch's decomposition uses strides."""
    dims = t.dims(input)
    halves = dims[1].split_product(group)
    if halves is None:
        return NotImplemented
    for tensor in tensors_in([weight, bias]):
        unify(t.dims(tensor)[0], dims[1])
    result, *statistics = tensors_in(out)
    t.give(result, dims)
    for statistic in statistics:
        t.give(statistic, [dims[0], halves[0]])
    return None


SPATIAL = re.compile(r"_?(?:(?:adaptive_)?(?:avg|max)_pool|upsample_[a-z]+|re(?:flec|plica)tion_pad)([123])d")
"""Names of operations over positions, and over how many axes of them."""

TABLE: dict[AxisRule, str] = {
    _pointwise: "where masked_fill copy_ addcmul addcdiv lerp _prelu_kernel",
    _same: "alias detach clone contiguous _to_copy lift_fresh lift _softmax _log_softmax _safe_softmax "
    "native_dropout _conj",
    _constant: "zeros ones full empty scalar_tensor zeros_like ones_like full_like empty_like new_zeros new_ones "
    "new_full new_empty fill zero",
    _nothing: "_local_scalar_dense is_same_size sym_size",
    _matmul: "mm bmm mv dot addmm baddbmm",
    _grouped_mm: "_grouped_mm",
    _reduce: "sum mean amax amin prod logsumexp any all var var_mean std std_mean linalg_vector_norm norm",
    _extremum: "max min",
    _argument: "argmax argmin",
    _convolution: "convolution",
    _group_norm: "native_group_norm",
    shapes.view: "view _unsafe_view reshape _reshape_alias",
    shapes.permute: "permute",
    shapes.transpose: "transpose t",
    shapes.squeeze: "squeeze",
    shapes.unsqueeze: "unsqueeze",
    shapes.expand: "expand",
    shapes.repeat: "repeat",
    shapes.slice_: "slice",
    shapes.select: "select",
    shapes.split: "split split_with_sizes unsafe_split unsafe_split_with_sizes",
    shapes.unbind: "unbind",
    shapes.cat: "cat",
    shapes.stack: "stack",
    shapes.pad: "constant_pad_nd",
    shapes.as_strided: "as_strided",
    shapes.ordered: "cumsum cumprod logcumsumexp sort argsort flip roll topk",
    shapes.index: "index",
    shapes.gather: "gather",
    shapes.unfold: "unfold",
}
RULES = {name: rule for rule, names in TABLE.items() for name in names.split()}
