"""Axes of tensors as terms that are unified: what a reshape splits, and what is permuted together.

Every dimension of every tensor of a network is a term: a leaf of some size, a product of terms (heads by channels of a
head, channels by positions: what a reshape joins) or a sum of terms (what a concatenation joins). Operations unify the
terms of dimensions that share one order. A leaf that is free at the end may be permuted wherever it occurs, and the
function of the network stays the same; a fixed leaf (inputs, outputs, positions) may not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Axis", "Run", "TensorAxes", "fixed", "join", "product", "tensors_in", "unify"]


class Axis:
    """A term: a leaf until it is bound to another term, or to a product or sum of terms.

    Parameters
    ----------
    size : int
        Number of indices.
    fixed : bool, default: False
        Whether its order has a meaning, so that it must not be permuted.
    reason : str, default: ""
        Why it was fixed, where the user should know.
    """

    def __init__(self, size: int, *, fixed: bool = False, reason: str = "") -> None:
        self.size = size
        self.fixed = fixed
        self.reason = reason
        self.kind: Literal["leaf", "product", "sum"] = "leaf"
        self._parts: tuple[Axis, ...] = ()
        self._bound: Axis | None = None

    def __repr__(self) -> str:
        term = self.resolve()
        if term.kind == "leaf":
            return f"{'fixed' if term.fixed else 'free'} {term.size}"
        return f"{term.kind}({', '.join(map(repr, term.parts))})"

    def resolve(self) -> Axis:
        """Return the term that this one is bound to."""
        if self._bound is None:
            return self
        self._bound = self._bound.resolve()
        return self._bound

    @property
    def parts(self) -> tuple[Axis, ...]:
        """The factors or summands; nested terms of the same kind are flattened."""
        flat: list[Axis] = []
        for part in self._parts:
            term = part.resolve()
            flat += term.parts if term.kind == self.kind else [term]
        return tuple(flat)

    def bind(self, term: Axis) -> None:
        """Make this term the same as another; what was fixed stays fixed."""
        this, term = self.resolve(), term.resolve()
        if this is not term:
            if this.kind == "leaf" and this.fixed:
                term.fix(this.reason)
            this._bound = term

    def fix(self, reason: str = "") -> None:
        """Forbid permutations of every leaf."""
        term = self.resolve()
        if term.kind == "leaf":
            term.fixed = True
            term.reason = term.reason or reason
        for part in term.parts:
            part.fix(reason)

    def split_product(self, outer: int) -> tuple[Axis, Axis] | None:
        """Split into ``outer`` blocks of equal size, as a view does; None where the parts do not allow it."""
        term = self.resolve()
        inner = term.size // outer
        if outer * inner != term.size:
            return None
        if outer == 1 or inner == 1:
            return (Axis(1), term) if outer == 1 else (term, Axis(1))
        if term.kind == "product":
            first, *rest = term.parts
            if first.size == outer:
                return first, product(rest)
            if first.size % outer == 0:
                halves = first.split_product(outer)
                return None if halves is None else (halves[0], product([halves[1], *rest]))
            if outer % first.size:
                return None
            halves = product(rest).split_product(outer // first.size)
            return None if halves is None else (product([first, halves[0]]), halves[1])
        if term.kind == "sum":
            if any(part.size % inner for part in term.parts):
                return None
            pairs = [part.split_product(part.size // inner) for part in term.parts]
            found = [pair for pair in pairs if pair is not None]
            if len(found) < len(pairs):
                return None
            for _, block in found[1:]:
                unify(found[0][1], block)
            halves = join([count for count, _ in found]), found[0][1]
        else:
            halves = term._leaf(outer), term._leaf(inner)
        term.bind(product(halves))
        return halves

    def split_sum(self, first: int) -> tuple[Axis, Axis] | None:
        """Split into the first indices and the others, as a slice does; None where the parts do not allow it."""
        term = self.resolve()
        if not 0 < first < term.size:
            return None
        if term.kind == "sum":
            head, *tail = term.parts
            if head.size == first:
                return head, join(tail)
            if head.size < first:
                halves = join(tail).split_sum(first - head.size)
                return None if halves is None else (join([head, halves[0]]), halves[1])
            halves = head.split_sum(first)
            return None if halves is None else (halves[0], join([halves[1], *tail]))
        if term.kind == "product":
            outer, *rest = term.parts
            inner = product(rest)
            if first % inner.size:
                return None
            halves = outer.split_sum(first // inner.size)
            return None if halves is None else (product([halves[0], inner]), product([halves[1], inner]))
        halves = term._leaf(first), term._leaf(term.size - first)
        term.bind(join(halves))
        return halves

    def slice(self, start: int, stop: int) -> Axis:
        """Return the indices from ``start`` to ``stop``; the axis is split there, or fixed where it cannot be."""
        axis = self.resolve()
        if (start, stop) == (0, axis.size):
            return axis
        if axis.kind == "leaf" and axis.fixed:
            return Axis(stop - start, fixed=True)
        tail = axis.split_sum(start) if start else (axis, axis)
        part = None if tail is None else (tail[1], tail[1]) if stop == axis.size else tail[1].split_sum(stop - start)
        if part is None:
            axis.fix("is cut at a place that does not line up")
            return Axis(stop - start, fixed=True)
        return part[0]

    def _leaf(self, size: int) -> Axis:
        return Axis(size, fixed=self.fixed, reason=self.reason)

    def runs(self) -> list[Run]:
        """Return the dimension as products of leaves, each with the places of its indices.

        Examples
        --------
        >>> heads, channels = Axis(2), Axis(3)
        >>> [(run.strides, run.offset) for run in join([Axis(4), product([heads, channels])]).runs()]
        [((1,), 0), ((3, 1), 4)]
        """
        term = self.resolve()
        if term.size == 1:
            return [Run((), (), 0)]
        if term.kind == "leaf":
            return [Run((term,), (1,), 0)]
        if term.kind == "sum":
            offsets = [sum(part.size for part in term.parts[:i]) for i in range(len(term.parts))]
            return [
                Run(run.leaves, run.strides, run.offset + offset)
                for part, offset in zip(term.parts, offsets, strict=True)
                for run in part.runs()
            ]
        outer, *rest = term.parts
        inner = product(rest)
        return [
            Run(
                (*left.leaves, *right.leaves),
                (*(s * inner.size for s in left.strides), *right.strides),
                left.offset * inner.size + right.offset,
            )
            for left in outer.runs()
            for right in inner.runs()
        ]


@dataclass(frozen=True)
class Run:
    """A product of leaves within a dimension: the indices :math:`i` are at ``offset + sum(strides * i)``.

    Attributes
    ----------
    leaves : tuple of Axis
        From the slowest to the fastest.
    strides : tuple of int
        One per leaf.
    offset : int
        Place of the first index.
    """

    leaves: tuple[Axis, ...]
    strides: tuple[int, ...]
    offset: int


def product(factors: Sequence[Axis]) -> Axis:
    """Return the term whose indices run over all factors, the last one fastest; factors of size 1 are left out.

    Examples
    --------
    >>> product([Axis(2), Axis(1), Axis(3, fixed=True)])
    product(free 2, fixed 3)
    """
    return _combine("product", [factor for factor in factors if factor.size != 1], math.prod(f.size for f in factors))


def join(summands: Sequence[Axis]) -> Axis:
    """Return the term whose indices are those of one summand after the other.

    Examples
    --------
    >>> join([Axis(2), Axis(3)]).size
    5
    """
    return _combine("sum", [part for part in summands if part.size], sum(part.size for part in summands))


def unify(a: Axis, b: Axis) -> None:
    """Make two terms of equal size the same; where their parts do not line up, both are fixed.

    Examples
    --------
    >>> flat, heads, channels = Axis(6), Axis(2), Axis(3)
    >>> unify(flat, product([heads, channels]))
    >>> channels.fix()
    >>> flat
    product(free 2, fixed 3)
    """
    a, b = a.resolve(), b.resolve()
    assert a.size == b.size
    if a is b or a.size == 1:
        return
    if a.kind == "leaf":
        a.bind(b)
    elif b.kind == "leaf":
        b.bind(a)
    elif _align(a, b):
        a.bind(b)
    else:
        for term in (a, b):
            term.fix("axes that do not line up")


def _combine(kind: Literal["product", "sum"], parts: list[Axis], size: int) -> Axis:
    if len(parts) == 1:
        return parts[0]
    term = Axis(size)
    if parts:
        term.kind, term._parts = kind, tuple(parts)
    return term


def _align(a: Axis, b: Axis) -> bool:
    """Unify part by part, splitting the larger of two parts; False where that is not possible."""
    sums = "sum" in (a.kind, b.kind)
    left, right = ([*term.parts] if term.kind == ("sum" if sums else "product") else [term] for term in (a, b))
    while left and right:
        if left[0].size < right[0].size:
            left, right = right, left
        large, small = left[0].resolve(), right[0]
        if large.size > small.size:
            halves = large.split_sum(small.size) if sums else large.split_product(small.size)
            if halves is None:
                return False
            left[:1] = halves
        else:
            unify(left.pop(0), right.pop(0))
    return True


class TensorAxes:
    """The axes of every tensor seen so far.

    Attributes
    ----------
    spaces : list of tuple of Axis
        What each operation loops over: the dimensions of its result and those it sums over.
    """

    def __init__(self) -> None:
        self.spaces: list[tuple[Axis, ...]] = []
        # by identity, and only as long as the tensor lives: activations are freed as without a trace
        self._known: MutableMapping[Tensor, tuple[tuple[Axis, ...], tuple[int, ...]]] = WeakIdKeyDictionary()

    def dims(self, tensor: Tensor) -> tuple[Axis, ...]:
        """Return the axes of a tensor; those of a constant are fixed."""
        if tensor not in self._known:
            self.set(tensor, map(fixed, tensor.shape))
        return self._known[tensor][0]

    def set(self, tensor: Tensor, dims: Iterable[Axis]) -> None:
        """Set the axes of a tensor."""
        self._known[tensor] = tuple(dims), tensor.stride()

    def knows(self, tensor: Tensor) -> bool:
        """Whether the tensor has axes already, as the result of an operation in place."""
        return tensor in self._known

    def strides(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the strides that a tensor had when its axes were set, before an operation changed them in place."""
        return self._known[tensor][1]

    def fix(self, tensor: Tensor, reason: str = "") -> None:
        """Fix all axes of a tensor."""
        for axis in self.dims(tensor):
            axis.fix(reason)

    def record(self, *space: Axis) -> None:
        """Note what an operation loops over."""
        self.spaces.append(space)

    def give(self, out: Tensor, dims: Sequence[Axis]) -> None:
        """Set the axes of a result; one written in place has some, which are unified unless its shape changed."""
        # strides alone do not tell that an axis of one place changed its own
        sizes = [axis.size for axis in self.dims(out)] if self.knows(out) else None
        if sizes != [*out.shape] or self.strides(out) != out.stride():
            self.set(out, dims)
            return
        for have, new in zip(self.dims(out), dims, strict=True):
            unify(have, new)

    def in_step(self, dims: Sequence[Axis], value: Any) -> None:
        """Unify the axes of tensors with ``dims`` as broadcasting lines them up: from the last one."""
        for tensor in tensors_in(value):
            for have, new in zip(reversed(dims), reversed(self.dims(tensor)), strict=False):
                if new.size == have.size:
                    unify(have, new)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Iterate over all tensors in nested lists, tuples and mappings.

    Examples
    --------
    >>> import torch
    >>> [tensor.item() for tensor in tensors_in([{"x": torch.tensor(1)}, (torch.tensor(2), "text")])]
    [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))


def fixed(size: int) -> Axis:
    """Return an axis that must not be permuted."""
    return Axis(size, fixed=True)
