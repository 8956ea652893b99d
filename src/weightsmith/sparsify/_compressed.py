"""Compressed sparse checkpoints: the ``sparse-bitmask`` layout of compressed-tensors.

A tensor with many zeros becomes four: its nonzero values row by row, a bit mask of their places, the start of each
row's values, and its shape. At 50 % zeros a float32 checkpoint shrinks to about 53 %.

compressed-tensors up to 0.13, and the releases of vLLM and transformers built on it, read this layout; later ones have
dropped it. :func:`load_compressed` restores the dense weights bit for bit, with any version.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightsmith.core.errors import CheckpointError
from weightsmith.core.io import (
    CheckpointReader,
    TemporaryFolder,
    TensorSpec,
    load_model,
    recode_checkpoint,
    save_recoded,
)
from weightsmith.core.progress import track

__all__ = ["compress_checkpoint", "decompress_checkpoint", "load_compressed", "save_compressed"]

PARTS = ("shape", "compressed", "bitmask", "row_offsets")
FORMAT = "sparse-bitmask"
MIN_SPARSITY = 0.1
"""Tensors with a smaller fraction of zeros are not compressed: the mask would need more than the zeros save."""


def save_compressed(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    publish: Callable[[], object] = lambda: None,
) -> None:
    """Write a model as :func:`~weightsmith.core.io.save_model` does, with its sparse weights compressed.

    Parameters and errors are those of ``save_model``.
    """
    saved: dict[str, Any] = {"like": like, "tokenizer": tokenizer, "files": files}
    save_recoded(compress_checkpoint, model, out, overwrite=overwrite, publish=publish, **saved)


def load_compressed(folder: str | os.PathLike[str]) -> nn.Module:
    """Load a compressed Hugging Face folder as a dense model, in evaluation mode.

    Raises
    ------
    CheckpointError
        If the folder is damaged or incomplete.
    """
    with TemporaryFolder() as scratch:
        decompress_checkpoint(folder, Path(scratch) / "dense")
        return load_model(Path(scratch) / "dense")


def compress_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    publish: Callable[[], object] = lambda: None,
) -> None:
    """Compress the sparse matrices of a checkpoint folder, one tensor at a time.

    Parameters
    ----------
    source : path-like
        A folder as ``save_model`` writes it.
    out : path-like
        The folder to create; a ``config.json`` gets a ``quantization_config`` that names the layout.
    overwrite : bool, default: False
        Replace what is at ``out``.
    publish : callable, optional
        Called when all is written, just before the folder appears.

    Raises
    ------
    CheckpointError
        If ``source`` is damaged or ``out`` cannot be written.
    """
    zeros = weights = 0

    def tensors(reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
        nonlocal zeros, weights
        zeros = weights = 0
        for key in track(reader, "compressing", total=len(reader)):
            tensor = reader.tensor(key)
            zeros += tensor.numel() - int(tensor.count_nonzero())
            weights += tensor.numel()
            yield from _compress(key, tensor).items()

    def edit(config: dict[str, Any]) -> None:
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {
                "format": FORMAT,
                "global_sparsity": round(zeros / max(weights, 1), 6),
                "sparsity_structure": "unstructured",
                "targets": ["Linear"],
                "ignore": [],
            },
        }

    recode_checkpoint(source, out, tensors, edit, overwrite=overwrite, publish=publish)


def decompress_checkpoint(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Make a compressed folder dense again, bit for bit.

    Parameters
    ----------
    source : path-like
        A folder that ``sparsify ... --compressed`` or :func:`save_compressed` wrote.
    out : path-like
        The folder to create.

    Raises
    ------
    CheckpointError
        If a compressed tensor's parts are missing or do not fit together.

    Examples
    --------
    >>> from weightsmith.core.io import load_state_dict
    >>> from weightsmith.testing import tiny
    >>> model = tiny("llama")[0]
    >>> with TemporaryFolder() as folder:
    ...     save_compressed(model, Path(folder, "small"))
    ...     decompress_checkpoint(Path(folder, "small"), Path(folder, "dense"))
    ...     torch.equal(load_state_dict(Path(folder, "dense"))["model.norm.weight"], model.model.norm.weight)
    True
    """
    reader = CheckpointReader(source)
    packed = [key.removesuffix(".compressed") for key in reader if key.endswith(".compressed")]
    parts = {f"{key}.{part}" for key in packed for part in PARTS}
    specs = {key: spec for key, spec in reader.specs.items() if key not in parts}
    for key in packed:
        shape = reader.tensor(f"{key}.shape").tolist()
        specs[key] = TensorSpec(reader.specs[f"{key}.compressed"].dtype, tuple(shape))

    def tensors(reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
        for key in track(specs, "decompressing"):
            yield key, _decompress(reader, key) if key in packed else reader.tensor(key)

    recode_checkpoint(source, out, tensors, lambda config: None, specs=specs)


def _compress(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return the four parts of a tensor, or the tensor itself if it is not a sparse matrix."""
    nonzero = tensor != 0
    if tensor.is_floating_point():
        nonzero |= tensor.signbit()  # zero has a sign, too
    if tensor.ndim != 2 or nonzero.float().mean() > 1 - MIN_SPARSITY:
        return {key: tensor}
    counts = nonzero.sum(-1)
    parts = (
        torch.tensor(tensor.shape),
        tensor[nonzero],
        torch.from_numpy(np.packbits(nonzero.numpy(), axis=-1, bitorder="little")),
        counts.cumsum(0) - counts,
    )
    return {f"{key}.{name}": part for name, part in zip(PARTS, parts, strict=True)}


def _decompress(reader: CheckpointReader, key: str) -> Tensor:
    missing = [f"{key}.{part}" for part in PARTS if f"{key}.{part}" not in reader]
    if missing:
        raise CheckpointError(f"compressed tensor {key!r} of {reader.path} lacks {missing}")
    shape, values, bitmask, _ = (reader.tensor(f"{key}.{part}") for part in PARTS)
    rows, columns = shape.tolist()
    bits = np.unpackbits(bitmask.numpy(), axis=-1, count=columns, bitorder="little")
    nonzero = torch.from_numpy(bits).bool()
    if nonzero.shape != (rows, columns) or int(nonzero.sum()) != len(values):
        raise CheckpointError(
            f"compressed tensor {key!r} of {reader.path}",
            found=f"{len(values)} values for {int(nonzero.sum())} places in {tuple(nonzero.shape)}",
            expected=(rows, columns),
        )
    dense = torch.zeros(rows, columns, dtype=values.dtype)
    dense[nonzero] = values
    return dense
