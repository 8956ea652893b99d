"""Layers that receive the same input (query, key and value; gate and up), computed by one kernel call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightsmith.core.errors import MissingDependencyError, UnsupportedModelError
from weightsmith.sparsify._wina.linear import SparseLinear, weight_state

__all__ = ["BITS", "Backend", "Siblings", "check_backend", "lock"]

Backend: TypeAlias = Literal["mask", "cpu", "triton"]

BITS = {torch.float32: torch.float32, torch.float16: torch.uint16, torch.bfloat16: torch.int16}
"""How the CPU kernel is told the storage type: numpy has no bfloat16."""

lock = threading.Lock()
"""Kernels share buffers, and numba's simplest threading layer must not be entered twice."""


def check_backend(backend: Backend, weights: Sequence[Tensor]) -> None:
    """Refuse a kernel that cannot work on these weights, or whose package is not installed.

    Raises
    ------
    UnsupportedModelError
        If the weights are elsewhere, or of another type.
    MissingDependencyError
        If numba or Triton is missing.
    """
    device = {"cpu": "cpu", "triton": "cuda"}.get(backend)
    for weight in weights if device else ():
        if weight.device.type != device and not (backend == "triton" and _interpreted()):
            raise UnsupportedModelError(
                f"backend {backend!r}",
                found=f"weights on {weight.device.type!r}",
                expected=f"weights on {device!r}",
                do="Take backend='auto'.",
            )
        if weight.dtype not in BITS:
            raise UnsupportedModelError(f"backend {backend!r}", found=weight.dtype, expected=list(BITS))
    try:
        if backend == "cpu":
            import weightsmith.sparsify._wina.kernels.cpu
        if backend == "triton":
            import weightsmith.sparsify._wina.kernels.cuda  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"backend {backend!r} needs package {error.name!r}",
            do="pip install 'weightsmith[kernels]', or take backend='mask'.",
        ) from error


def _interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, for tests."""
    import os

    return os.environ.get("TRITON_INTERPRET") == "1"


class Siblings:
    """Layers with one input and one storage.

    The first layer to be called computes all; the others take their part when they are called with the very same
    tensor, unchanged. The weights lie transposed in one flat buffer, and the parameters are views of it.

    Parameters
    ----------
    members : sequence of SparseLinear
        Of one input size, dtype and device.
    backend : {"cpu", "triton"}
        The kernel.
    """

    def __init__(self, members: Sequence[SparseLinear], backend: Backend) -> None:
        self.members = tuple(members)
        self.backend = backend
        self.inputs = members[0].in_features
        self.outs = tuple(member.out_features for member in members)
        self.seen = 0
        self.total = torch.zeros(len(members), dtype=torch.int64 if backend == "cpu" else torch.int32)
        self._state: tuple[Any, ...] = ()
        self._arrays: tuple[Any, ...] = ()
        self._shared: tuple[Tensor, int, tuple[Tensor, ...]] | None = None
        for position, member in enumerate(members):
            member.siblings, member.position = self, position
        self._pack()

    def output(self, member: SparseLinear, x: Tensor) -> Tensor:
        """One member's product with a single token."""
        if len(self.members) == 1 or x.is_inference():
            return self._compute(x)[member.position]
        shared = self._shared
        if shared is None or shared[0] is not x or shared[1] != x._version:
            shared = self._shared = (x, x._version, self._compute(x))
        if member.position == len(self.members) - 1:
            self._shared = None
        return shared[2][member.position]

    def release(self) -> None:
        """Give the parameters storage of their own again, in the usual layout."""
        for member in self.members:
            member.weight.data = member.weight.data.contiguous()
            member.siblings = None

    def arrays(self) -> tuple[Any, ...]:
        """What the CPU kernel takes after the input and before its result, with the weights as they are now."""
        if self._state != self._current():
            self._refresh()
        threads = torch.get_num_threads()
        if len(self._arrays[-3]) != threads:
            self._arrays = (*self._arrays[:-3], np.empty((threads, sum(self.outs)), np.float32), *self._arrays[-2:])
        return self._arrays

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        row = x.detach().reshape(-1)
        with lock:
            y = self._cpu(row) if self.backend == "cpu" else self._triton(row)
            self.seen += 1
        return tuple(part.view(*x.shape[:-1], -1) for part in y.to(x.dtype).split(self.outs))

    def _cpu(self, x: Tensor) -> Tensor:
        from weightsmith.sparsify._wina.kernels.cpu import sparse_columns

        y = torch.empty(sum(self.outs))
        arrays = self.arrays()
        if self.members[0].select == "topk":
            self._limits.copy_(torch.stack([member.limits(x) for member in self.members]))
        sparse_columns(x.float().numpy(), y.numpy(), *arrays)
        return y

    def _triton(self, x: Tensor) -> Tensor:
        from weightsmith.sparsify._wina.kernels.cuda import sparse_columns

        if self._state != self._current():
            self._refresh()
        if self.members[0].select == "topk":
            self._limits.copy_(torch.stack([member.limits(x) for member in self.members]))
        return sparse_columns(x, self._weights, self._limits, self.outs, self._bias, self.total)

    def _current(self) -> tuple[Any, ...]:
        return tuple(
            [weight_state(member.weight) for member in self.members]
            + [weight_state(member.bias) for member in self.members if member.bias is not None]
        )

    def _pack(self) -> None:
        """Copy the weights, transposed, into one buffer and point the parameters there."""
        first = self.members[0].weight
        size = self.inputs * sum(self.outs)
        if first.device.type == "cpu":
            # numpy asks the system for huge pages, torch does not
            self._weights = torch.from_numpy(np.empty(size * first.element_size(), np.uint8)).view(first.dtype)
        else:
            self._weights = torch.empty(size, dtype=first.dtype, device=first.device)
        start = 0
        for member, out in zip(self.members, self.outs, strict=True):
            packed_IO = self._weights[start : start + self.inputs * out].view(self.inputs, out)
            packed_IO.copy_(member.weight_OI.T)
            member.weight.data = packed_IO if member.transposed else packed_IO.T
            start += self.inputs * out
        self._refresh()

    def _refresh(self) -> None:
        """Meet the weights as they are now: pack those that were replaced, compute limits and buffers anew."""
        place, width = self._weights.data_ptr(), self._weights.element_size()
        for member, out in zip(self.members, self.outs, strict=True):
            if member.weight.data_ptr() != place or member.weight.dtype != self._weights.dtype:
                self._pack()
                return
            place += self.inputs * out * width
        device = self._weights.device
        biases = [
            torch.zeros(m.out_features, device=device) if m.bias is None else m.bias.detach().float()
            for m in self.members
        ]
        row = torch.zeros(self.inputs, device=device)
        self._bias = torch.cat(biases)
        self._limits = torch.stack([member.limits(row) for member in self.members])
        self.total = self.total.to(device)
        if device.type == "cpu":
            layers = len(self.members)
            self._arrays = (
                self._weights.view(BITS[self._weights.dtype]).numpy(),
                self._limits.numpy(),
                np.array(self.outs),
                self._bias.numpy(),
                np.empty((layers, self.inputs + 1), np.int64),
                np.empty((layers, self.inputs + 1), np.float32),
                np.empty((torch.get_num_threads(), sum(self.outs)), np.float32),
                np.zeros(layers, np.int64),
                self.total.numpy(),
            )
        self._state = self._current()

    def __getstate__(self) -> dict[str, Any]:
        """A copy finds its weights elsewhere and refreshes."""
        return self.__dict__ | {"_state": (), "_shared": None}
