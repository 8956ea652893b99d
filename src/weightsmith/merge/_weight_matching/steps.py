"""What the rules of operations stand on: which axes go in step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from weightsmith.merge._weight_matching.axes import Axis, unify

__all__ = ["Axes", "Rule", "fixed", "fresh", "give", "in_step", "tensors"]

Rule: TypeAlias = Callable[..., Any]
"""Called with the tracer, the operation's result and its own arguments."""


@runtime_checkable
class Axes(Protocol):
    """What a rule sees of the tracer."""

    def dims(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of a tensor."""

    def set(self, tensor: Tensor, dims: tuple[Axis, ...]) -> None:
        """Give a tensor its axes."""

    def knows(self, tensor: Tensor) -> bool:
        """Whether it has axes."""

    def record(self, *space: Axis) -> None:
        """Note what an operation loops over."""

    def strides(self, tensor: Tensor) -> tuple[int, ...]:
        """The strides a tensor had when it got its axes."""


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))


def give(t: Axes, out: Tensor, dims: Sequence[Axis]) -> None:
    """Give a result its axes; one written in place has some, which are unified with these unless its shape changed."""
    if not t.knows(out) or t.strides(out) != out.stride():
        t.set(out, tuple(dims))
        return
    for have, new in zip(t.dims(out), dims, strict=True):
        unify(have, new)


def fixed(size: int) -> Axis:
    """An axis that must not be permuted."""
    return Axis(size, fixed=True)


def fresh(shape: Sequence[int]) -> list[Axis]:
    """Axes nothing is known of."""
    return [Axis(size) for size in shape]


def in_step(t: Axes, dims: Sequence[Axis], value: Any) -> None:
    """Unify the axes of a tensor with ``dims`` as broadcasting lines them up: from the last one."""
    for tensor in tensors(value):
        for have, new in zip(reversed(dims), reversed(t.dims(tensor)), strict=False):
            if new.size == have.size:
                unify(have, new)
