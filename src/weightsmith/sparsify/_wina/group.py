"""Layers that receive the same input (query, key and value; gate and up) are computed by one kernel call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightsmith.core.errors import MissingDependencyError, UnsupportedModelError
from weightsmith.core.threads import lock
from weightsmith.sparsify._wina.kernels import BITS, op
from weightsmith.sparsify._wina.linear import SparseLinear, weight_state

__all__ = ["Backend", "SharedInputGroup", "check_backend"]

Backend: TypeAlias = Literal["mask", "cpu", "triton"]


def check_backend(backend: Backend, weights: Sequence[Tensor]) -> None:
    """Refuse a kernel that cannot work on these weights, or whose package is not installed.

    Raises
    ------
    UnsupportedModelError
        If the weights are on another device, or of another type.
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
    return os.environ.get("TRITON_INTERPRET") == "1"


class SharedInputGroup:
    """Layers that share their input and the storage of their weights.

    The first layer that is called computes the outputs of all; the others return their part when they are called with
    the same, unchanged tensor. The transposed weights are in one flat buffer, and the parameters are views of it. Of
    weights on levels the buffer holds their codes, and the parameters stay, for prompts.

    Parameters
    ----------
    members : sequence of SparseLinear
        Of one input size, dtype, device and number of bits.
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
        self._weights = self._unit = self._shift = torch.empty(0)
        self._state: tuple[Any, ...] = ()
        self._arrays: list[Any] = []
        self._shared: tuple[Tensor, int, tuple[Tensor, ...]] | None = None
        self._number = op.register(self)
        for position, member in enumerate(members):
            member.kernel, member.position = self, position
        self._refresh()

    def output(self, position: int, x: Tensor) -> Tensor:
        """Return the output of one member for a single token."""
        compiling = torch.compiler.is_compiling()
        if not compiling and (len(self.members) == 1 or x.is_inference()):
            return self._parts(x, self.columns(x.detach().reshape(-1)))[position]
        version = 0 if compiling else x._version
        shared = self._shared
        if shared is None or shared[0] is not x or shared[1] != version:
            row = x.detach().reshape(-1)
            y = op.sparse_columns(row, self._number, sum(self.outs)) if compiling else self.columns(row)
            shared = self._shared = (x, version, self._parts(x, y))
        if position == len(self.members) - 1:
            self._shared = None
        return shared[2][position]

    def release(self) -> None:
        """Restore the parameters' own storage, in the usual layout."""
        for member in self.members:
            member.weight.data = member.weight.data.contiguous()
            member.kernel = None

    def columns(self, x_I: Tensor) -> Tensor:
        """Compute the outputs of all members for a single token, one after the other, in float32."""
        with lock:
            if self._state != self._current():
                self._refresh()
            if self.members[0].select == "topk":
                self._limits.copy_(torch.stack([member.limits(x_I) for member in self.members]))
            self.seen += 1
            return self._cpu(x_I) if self.backend == "cpu" else self._triton(x_I)

    def _parts(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return y.to(x.dtype).view(*x.shape[:-1], -1).split(self.outs, -1)

    def _cpu(self, x: Tensor) -> Tensor:
        from weightsmith.sparsify._wina.kernels.cpu import sparse_columns

        threads = torch.get_num_threads()
        if len(self._arrays[-3]) != threads:
            self._arrays[-3] = np.empty((threads, sum(self.outs)), np.float32)
        y = np.empty(sum(self.outs), np.float32)  # numpy's arrays are made in a third of the time of torch's
        sparse_columns(x.float().numpy(), y, *self._arrays)
        return torch.from_numpy(y)

    def _triton(self, x: Tensor) -> Tensor:
        from weightsmith.sparsify._wina.kernels.cuda import sparse_columns

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
            self._weights = _huge_pages(size * first.element_size()).view(first.dtype)
        else:
            self._weights = torch.empty(size, dtype=first.dtype, device=first.device)
        start = 0
        for member, out in zip(self.members, self.outs, strict=True):
            packed_IO = self._weights[start : start + self.inputs * out].view(self.inputs, out)
            packed_IO.copy_(member.weight_OI.T)
            member.weight.data = packed_IO if member.transposed else packed_IO.T
            start += self.inputs * out

    def _is_packed(self) -> bool:
        """Whether the parameters are views of the buffer: they are replaced by ``to`` and ``load_state_dict``."""
        place, width = self._weights.data_ptr(), self._weights.element_size()
        for member, out in zip(self.members, self.outs, strict=True):
            if member.weight.data_ptr() != place or member.weight.dtype != self._weights.dtype:
                return False
            place += self.inputs * out * width
        return True

    def _encode(self) -> None:
        """Store the codes of the weights, transposed; two of at most four bits in a byte."""
        parts, units, shifts = [], [], []
        for member in self.members:
            assert member.levels is not None
            codes_OI, factor, offset = member.codes()
            codes_IO, unit = codes_OI.T, torch.tensor(member.levels.unit)
            if member.stored_bits == 4:
                half = -(-member.out_features // 2)
                high_IO = torch.nn.functional.pad(codes_IO[:, half:], (0, member.out_features % 2))
                codes_IO = codes_IO[:, :half] | high_IO << 4
            parts.append(codes_IO.reshape(-1))
            units.append(factor * unit)
            shifts.append(offset * unit)
        codes = torch.cat(parts)
        self._weights = _huge_pages(len(codes)).copy_(codes)
        if self.members[0].stored_bits == 4:
            self._weights = self._weights.view(torch.int8)
        self._unit, self._shift = torch.cat(units), torch.cat(shifts)

    def _refresh(self) -> None:
        """Store weights that were replaced, and compute limits and buffers for the present weights."""
        if self.members[0].levels is not None:
            self._encode()
        elif not self._is_packed():
            self._pack()
        device = self._weights.device
        biases = [
            torch.zeros(m.out_features, device=device) if m.bias is None else m.bias.detach().float()
            for m in self.members
        ]
        row = torch.zeros(self.inputs, device=device)
        self._bias = torch.cat(biases)
        self._limits = torch.stack([member.limits(row) for member in self.members])
        self.total = self.total.to(device)
        if self.backend == "cpu":
            from weightsmith.sparsify._wina.kernels.cpu import arguments

            scales = self._unit, self._shift
            self._arrays = arguments(self._weights, self._limits, self.outs, self._bias, *scales, self.total)
        self._state = self._current()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what refers to the present storage: a copy has its own and refreshes."""
        return self.__dict__ | {"_state": (), "_shared": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._number = op.register(self)


def _huge_pages(size: int) -> Tensor:
    """Bytes in huge pages, which numpy requests from the system and torch does not."""
    return torch.from_numpy(np.empty(size, np.uint8))
