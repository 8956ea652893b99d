"""Raise at the k-th tensor operation, to see what a method leaves behind when it is stopped there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["InterruptAt", "count_operations", "evenly"]


class InterruptAt(TorchDispatchMode):
    """Raise :class:`KeyboardInterrupt` once, before the k-th tensor operation of the block.

    Parameters
    ----------
    operation : int
        Which operation, from 0. A number that is never reached only counts.

    Examples
    --------
    >>> import torch
    >>> weight = torch.zeros(2)
    >>> try:
    ...     with InterruptAt(1):
    ...         _ = weight.add_(1).mul_(5)
    ... except KeyboardInterrupt:
    ...     print(weight)
    tensor([1., 1.])
    """

    def __init__(self, operation: int) -> None:
        super().__init__()
        self.operation = operation
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count, then run the operation."""
        number, self.seen = self.seen, self.seen + 1
        if number == self.operation:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def count_operations(function: Callable[[], Any]) -> tuple[Any, int]:
    """Call a function; return what it returns and the number of its tensor operations.

    Examples
    --------
    >>> import torch
    >>> count_operations(lambda: float(torch.ones(2).sum()))
    (2.0, 3)
    """
    with InterruptAt(-1) as counter:
        found = function()
    return found, counter.seen


def evenly(total: int, points: int) -> list[int]:
    """Return up to ``points`` places spread over ``total``, the first and the last among them.

    Examples
    --------
    >>> evenly(101, 3), evenly(2, 5)
    ([0, 50, 100], [0, 1])
    """
    points = min(points, total)
    return sorted({round(n * (total - 1) / max(points - 1, 1)) for n in range(points)})
