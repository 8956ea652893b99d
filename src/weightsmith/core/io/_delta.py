"""What fine-tuning changed, where few weights changed: their places and new values, in one safetensors file.

Values are the new weights themselves and not differences, so that base and delta give the fine-tuned model bit for bit.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from weightsmith.core.errors import CheckpointError, LayerNotFoundError, ShapeError
from weightsmith.core.io._tagged import load_tagged, save_tagged

__all__ = ["Part", "SparseDelta", "apply_delta", "load_delta", "matching", "save_delta"]

KIND = "sparse delta"
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of an element's size: equal bits, not equal numbers, are the same weight (0 and -0 are not)."""


@dataclass(frozen=True)
class Part:
    """The changed weights of one tensor.

    Attributes
    ----------
    index : Tensor of shape (changed,)
        Flat row-major places, int32 (int64 for tensors of 2^31 weights and more), ascending.
    value : Tensor of shape (changed,)
        New values, in the weights' type.
    shape : tuple of int
        Of the whole tensor.
    checksum : int
        CRC-32 of the base's values at these places, to detect another base.
    """

    index: Int[Tensor, "changed"]
    value: Shaped[Tensor, "changed"]
    shape: tuple[int, ...]
    checksum: int


@dataclass(frozen=True)
class SparseDelta:
    """The changed weights of a model.

    Attributes
    ----------
    parts : dict of str to Part
        By the tensors' names in the state dict.
    """

    parts: dict[str, Part]

    @classmethod
    def between(cls, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> SparseDelta:
        """Find what differs.

        Parameters
        ----------
        base, tuned : mapping of str to Tensor
            Tensors before and after; those of ``base`` that ``tuned`` lacks are taken to be unchanged.

        Raises
        ------
        LayerNotFoundError
            If ``base`` lacks a tensor.
        ShapeError
            If shapes or element types differ.

        Examples
        --------
        >>> part = SparseDelta.between({"w": torch.zeros(2, 2)}, {"w": torch.eye(2)}).parts["w"]
        >>> part.index, part.value
        (tensor([0, 3], dtype=torch.int32), tensor([1., 1.]))
        """
        parts = {}
        for name, after in tuned.items():
            before = matching(base, name, after.shape, after.dtype)
            before, after = before.detach().reshape(-1).to(after.device), after.detach()
            flat = after.reshape(-1)
            index = (_bits(before) != _bits(flat)).nonzero().squeeze(1)
            narrow = torch.int32 if after.numel() < 2**31 else torch.int64
            parts[name] = Part(index.to(narrow), flat[index], tuple(after.shape), _checksum(before[index]))
        return cls(parts)

    @property
    def nbytes(self) -> int:
        """Size of indices and values."""
        return sum(t.numel() * t.element_size() for part in self.parts.values() for t in (part.index, part.value))


def save_delta(delta: SparseDelta, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a delta to a ``.safetensors`` file, all or nothing.

    Raises
    ------
    CheckpointError
        If the file exists and ``overwrite`` is off, its name ends otherwise, or it cannot be written.
    """
    tensors = {}
    for name, part in delta.parts.items():
        tensors[f"{name}.index"], tensors[f"{name}.value"] = part.index, part.value
    parts = {name: {"shape": list(p.shape), "checksum": p.checksum} for name, p in delta.parts.items()}
    save_tagged(tensors, path, kind=KIND, about=parts, overwrite=overwrite)


def load_delta(path: str | os.PathLike[str]) -> SparseDelta:
    """Read a delta that :func:`save_delta` wrote.

    Raises
    ------
    CheckpointError
        If the file cannot be read or is no sparse delta.

    Examples
    --------
    >>> import tempfile
    >>> delta = SparseDelta.between({"w": torch.zeros(2, 2)}, {"w": torch.eye(2)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_delta(delta, f"{folder}/lift.safetensors")
    ...     load_delta(f"{folder}/lift.safetensors").parts["w"].value
    tensor([1., 1.])
    """
    return load_tagged(
        path,
        KIND,
        lambda reader, parts: SparseDelta(
            {
                name: Part(
                    reader.tensor(f"{name}.index"), reader.tensor(f"{name}.value"), tuple(p["shape"]), p["checksum"]
                )
                for name, p in parts.items()
            }
        ),
    )


@torch.no_grad()
def apply_delta(model: nn.Module, delta: SparseDelta | str | os.PathLike[str]) -> None:
    """Turn the base model into the fine-tuned one, bit for bit.

    Parameters
    ----------
    model : nn.Module
        The model the delta was taken from; changed in place.
    delta : SparseDelta or path-like
        The delta, or its file.

    Raises
    ------
    CheckpointError
        If the model is another base: its weights at the changed places are not those the delta was taken from.
    LayerNotFoundError
        If the model lacks a tensor.
    ShapeError
        If a tensor has another shape or element type.

    Examples
    --------
    >>> base = nn.Linear(2, 2, bias=False)
    >>> tuned = nn.Linear(2, 2, bias=False)
    >>> apply_delta(base, SparseDelta.between(base.state_dict(), tuned.state_dict()))
    >>> torch.equal(base.weight, tuned.weight)
    True
    """
    if not isinstance(delta, SparseDelta):
        delta = load_delta(delta)
    state = model.state_dict(keep_vars=True)
    for name, part in delta.parts.items():
        weight = matching(state, name, torch.Size(part.shape), part.value.dtype)
        if len(part.index) and not 0 <= int(part.index.min()) <= int(part.index.max()) < weight.numel():
            raise ShapeError(f"places in {name!r}", found=int(part.index.max()), expected=f"below {weight.numel()}")
        if _checksum(weight.detach().reshape(-1)[part.index.to(weight.device)]) != part.checksum:
            raise CheckpointError(
                f"tensor {name!r} is not the one the delta was taken from",
                do="Apply the delta to the base model it was made with, once.",
            )
    for name, part in delta.parts.items():
        weight = state[name].detach()
        flat = weight.reshape(-1)
        flat[part.index.to(weight.device)] = part.value.to(weight.device)
        weight.copy_(flat.view(weight.shape))


def matching(tensors: Mapping[str, Tensor], name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a tensor by its name, if it has the shape and element type.

    Raises
    ------
    LayerNotFoundError
        If there is none of that name.
    ShapeError
        If it has another shape or element type.
    """
    if name not in tensors:
        raise LayerNotFoundError(f"no tensor {name!r}", found=f"{len(tensors)} tensors such as {list(tensors)[:3]}")
    tensor = tensors[name]
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ShapeError(f"tensor {name!r}", found=(tuple(tensor.shape), tensor.dtype), expected=(tuple(shape), dtype))
    return tensor


def _bits(values: Shaped[Tensor, "size"]) -> Int[Tensor, "size"]:
    return values.view(BITS[values.element_size()])


def _checksum(values: Shaped[Tensor, "size"]) -> int:
    return zlib.crc32(values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
