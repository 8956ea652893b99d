"""Matrix products of half-precision layers in float32, where the processor has no instructions for half precision.

On such a CPU PyTorch computes a product in bfloat16 at a fifth of the speed of one in float32. Upcasting a weight costs
a fraction of the product, and the sums are more exact; what a layer returns keeps its type.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["half_is_slow", "products_in_float32"]

HALVES = (torch.bfloat16, torch.float16)
SLOWER = 1.5
"""How many times the time of float32 a product has to take in half precision. In practice it is a fifth or five."""
ROWS, SIDE = 64, 512
PIECE = 1 << 24
"""Elements of a weight that are in float32 at a time: the head of a language model has half a billion."""


@contextmanager
def products_in_float32(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, linear layers of half precision on the CPU compute in float32, if that is faster for these tensors.

    Parameters
    ----------
    tensors : iterable of Tensor
        Weights that will be used; without any of half precision on the CPU nothing is changed.

    Examples
    --------
    >>> weight = torch.ones(2, 3, dtype=torch.bfloat16)
    >>> with products_in_float32([weight]):
    ...     torch.nn.functional.linear(torch.ones(1, 3, dtype=torch.bfloat16), weight)
    tensor([[3., 3.]], dtype=torch.bfloat16)
    """
    kinds = {tensor.dtype for tensor in tensors if tensor.device.type in ("cpu", "meta") and tensor.dtype in HALVES}
    slow = frozenset(kind for kind in kinds if half_is_slow(kind))
    if not slow:
        yield
        return
    with _Float32Products(slow):
        yield


@cache
def half_is_slow(dtype: torch.dtype) -> bool:
    """Measure once whether products of this type take longer on the CPU than those of float32."""
    return _seconds(dtype) > SLOWER * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    x, weight = torch.ones(ROWS, SIDE, dtype=dtype), torch.ones(SIDE, SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        functional.linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return best


class _Float32Products(TorchFunctionMode):
    def __init__(self, dtypes: frozenset[torch.dtype]) -> None:
        super().__init__()
        self.dtypes = dtypes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and args[0].dtype in self.dtypes and args[0].device.type == "cpu":
            x, weight, *bias = args
            if weight.ndim != 2:  # PyTorch takes a vector, too
                return func(*args)
            if not torch.is_grad_enabled():
                return _upcast_linear(x, weight, *bias)
            if not weight.requires_grad and not any(part is not None and part.requires_grad for part in bias):
                return _FrozenLinear.apply(x, weight, *bias)
        return func(*args, **(kwargs or {}))


def _upcast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = x.new_empty(*x.shape[:-1], len(weight))
    x = x.float()
    for rows in _pieces(weight):
        result[..., rows] = functional.linear(x, weight[rows].float(), None if bias is None else bias[rows].float())
    return result


def _pieces(weight: Tensor) -> Iterator[slice]:
    rows = max(1, PIECE // max(weight.shape[1], 1))
    return (slice(start, start + rows) for start in range(0, len(weight), rows))


class _FrozenLinear(torch.autograd.Function):
    """The product with a weight that is not trained: autograd keeps the weight as it is, not its float32 copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(weight)
        return _upcast_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        total = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1], dtype=torch.float32)
        for rows in _pieces(weight):
            total += gradient[..., rows].float() @ weight[rows].float()
        return total.to(gradient.dtype), None, None
