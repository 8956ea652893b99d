"""The header of safetensors files: the tensors' names, element types, shapes and places, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightsmith.core.errors import CheckpointError

__all__ = ["DTYPES", "LONGEST_HEADER", "TensorSpec", "read_header", "write_header"]

TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, known) for name, known in TYPES.items() if hasattr(torch, known)}
"""By their names in files. Older releases of torch lack the smallest."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PAIRED = "F4"
"""Files count its elements; torch counts bytes, each of which holds two along the last axis."""

LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer ones, too."""


@dataclass(frozen=True)
class TensorSpec:
    """Element type and shape of a stored tensor.

    Examples
    --------
    >>> TensorSpec(torch.bfloat16, (2, 3)).nbytes
    12
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Return the spec of a tensor in memory."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


def read_header(text: bytes, size: int) -> tuple[dict[str, str], dict[str, TensorSpec], dict[str, int]]:
    """Read the header of a safetensors file and check all that the safetensors library checks.

    Parameters
    ----------
    text : bytes
        The header: JSON.
    size : int
        Bytes that follow it, all of which belong to a tensor.

    Returns
    -------
    tuple
        The metadata, every tensor's spec, and the place of its first byte after the header.

    Raises
    ------
    ValueError, KeyError, TypeError
        If the header is damaged.
    CheckpointError
        If a tensor has an element type that torch lacks.
    """
    if not text.startswith(b"{"):
        raise ValueError("the header is not JSON")
    header = json.loads(text.decode(), object_pairs_hook=_once, parse_int=_natural)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text")
    specs: dict[str, TensorSpec] = {}
    spans: dict[str, tuple[int, int]] = {}
    for key, entry in header.items():
        key.encode()  # a lone surrogate is not Unicode
        name, shape, (begin, end) = entry.pop("dtype"), entry.pop("shape"), entry.pop("data_offsets")
        if entry or not isinstance(shape, list) or any(type(number) is not int for number in (*shape, begin, end)):
            raise ValueError(f"tensor {key!r} has shape {shape}, bytes {begin} to {end}, {entry}")
        if name not in DTYPES:
            raise CheckpointError(f"element type of tensor {key!r}", found=name, expected=f"one of {list(DTYPES)}")
        if name == PAIRED:
            if not shape or shape[-1] % 2:
                raise ValueError(f"tensor {key!r} of {name} has shape {shape}: its last axis must be even")
            shape = [*shape[:-1], shape[-1] // 2]
        specs[key], spans[key] = TensorSpec(DTYPES[name], tuple(shape)), (begin, end)
        for axes in range(1, len(shape) + 1):
            if math.prod(shape[:axes]) * 64 >= 2**64:
                raise ValueError(f"tensor {key!r} has shape {shape}")
    place = 0
    for key, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != place or end < begin:
            raise ValueError(f"tensor {key!r} has bytes {begin} to {end}, the one before ends at {place}")
        if end - begin != specs[key].nbytes:
            raise ValueError(f"tensor {key!r} has {end - begin} bytes, its shape needs {specs[key].nbytes}")
        place = end
    if place != size:
        raise ValueError(f"the tensors end at byte {place}, the file at {size}")
    return metadata, specs, {key: begin for key, (begin, _) in spans.items()}


def write_header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int], int]:
    """Return the header of a file of these tensors, the place of each after it, and the bytes of all.

    Examples
    --------
    >>> text, places, size = write_header({"w": TensorSpec(torch.float32, (2, 3))})
    >>> read_header(text, size)[1:], places
    (({'w': TensorSpec(dtype=torch.float32, shape=(2, 3))}, {'w': 0}), {'w': 0})
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, size = {}, 0
    for key, spec in specs.items():
        places[key] = size
        size += spec.nbytes
        name, shape = DTYPE_NAMES[spec.dtype], list(spec.shape)
        if name == PAIRED:
            shape[-1] *= 2
        header[key] = {"dtype": name, "shape": shape, "data_offsets": [places[key], size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), places, size


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key may occur twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _natural(digits: str) -> int:
    """A number of JSON as a header may have it: not even ``-0``."""
    if digits.startswith("-") or int(digits) >= 2**63:
        raise ValueError(f"number {digits}")
    return int(digits)
