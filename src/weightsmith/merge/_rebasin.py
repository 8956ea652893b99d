"""Match and average two checkpoints on disk, in memory that depends on their largest tensors, not on their size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.io import CheckpointWriter, StoredState, check_output, skeleton
from weightsmith.core.io._map import QUANTISED
from weightsmith.core.linalg import is_finite
from weightsmith.core.results import Result, record
from weightsmith.core.symmetry import Permutations, Symmetry, find_symmetry
from weightsmith.merge._soup import check_two
from weightsmith.merge._weight_matching.matching import Normalize, match_weights
from weightsmith.merge._weight_matching.weight_pair import STALE, check_same_architecture, row_ranges, rows

__all__ = ["rebasin"]

SIDE = 224
"""Of the image that convolutional networks are traced with whose configuration names no size."""


def rebasin(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    alpha: float = 0.5,
    restarts: int = 1,
    normalize: Normalize = "none",
    symmetry: Symmetry | None = None,
    overwrite: bool = False,
    generator: torch.Generator | None = None,
) -> Result:
    """Put one checkpoint's units in another's order and average the two on disk (Git Re-Basin).

    The checkpoints stay on disk: weights are read when they are needed, and large ones in pieces.

    Parameters
    ----------
    checkpoints : sequence of path
        FIRST SECOND: Hugging Face folders of one architecture, trained separately.
    out : path
        Folder for the average, in the order of FIRST; element types, config, tokenizer and other small files come from
        SECOND.
    alpha : float, default: 0.5
        How far the average lies from FIRST towards SECOND, in [0, 1]; at 1 it is SECOND, permuted and not changed else.
    restarts : int, default: 1
        Starts of the search, of which the best is kept.
    normalize : {"none", "layer"}, default: "none"
        Whether every tensor counts by its size, or all alike.
    symmetry : Symmetry, optional
        What may be permuted; by default it is traced on the architecture that FIRST's configuration names.
    overwrite : bool, default: False
        Replace what is at ``out``.
    generator : torch.Generator, optional
        Draws the order of the search; seed 0 by default.

    Returns
    -------
    Result
        Per matrix its relative distance before and after; the permutations as a file.

    Raises
    ------
    HyperparameterError
        If there are not two checkpoints, or a number is out of range.
    CheckpointError, NonFiniteError, ShapeError, UnsupportedModelError
        If a checkpoint cannot be read, holds NaN or infinity, is quantised, or the two do not fit; nothing is written.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.
    """
    check_two(checkpoints)
    if not 0 <= alpha <= 1:
        raise HyperparameterError("alpha", found=alpha, expected="0 <= alpha <= 1")
    check_output(out, overwrite=overwrite)
    with record("rebasin", alpha=alpha, restarts=restarts, normalize=normalize) as result:
        model = skeleton(checkpoints[0]) if symmetry is None else None
        first, second = (StoredState(path, model) for path in checkpoints)
        for path, state in zip(checkpoints, (first, second), strict=True):
            _check_kind(path, state)
        if model is not None:
            symmetry = find_symmetry(model, _example(model))
            result.notes.append("What may be permuted was traced without weights, and not tried on any.")
        assert symmetry is not None
        check_same_architecture(first.specs, second.specs, "the checkpoints")
        found = match_weights(first, second, symmetry, restarts=restarts, normalize=normalize, generator=generator)
        like = checkpoints[1] if Path(checkpoints[1]).is_dir() else None
        with CheckpointWriter(out, second.reader.specs, like=like, overwrite=overwrite) as writer:
            _write(writer, first, second, symmetry, found.perms, alpha, result)
        if symmetry.has_statistics and 0 < alpha < 1:
            warnings.warn(STALE, stacklevel=2)
            result.notes.append(STALE)
        found.add_to_result(symmetry, result)
    return result


def _write(
    writer: CheckpointWriter,
    first: StoredState,
    second: StoredState,
    symmetry: Symmetry,
    perms: Permutations,
    alpha: float,
    result: Result,
) -> None:
    """Permute, average and write tensor by tensor, what is not of floating point as it is."""
    names = {key: name for name, key in reversed(second.keys_of.items())}
    for key, kind in writer.specs.items():
        name = names.get(key, key)
        own = symmetry.aliases.get(name, name)
        if name not in first or not kind.dtype.is_floating_point:
            writer.write(key, second.reader.tensor(key))
            continue
        squares = torch.zeros(3, dtype=torch.float64)
        each = kind.numel // max(kind.shape[0], 1) if kind.shape else 1
        for begin, end in (
            row_ranges(symmetry, own) if own in symmetry.shapes else [(0, kind.shape[0] if kind.shape else 1)]
        ):
            a, b = (rows(state, name, begin, end) for state in (first, second))
            moved = symmetry.permute_tensor(own, b, perms)
            wide = a.float() if a.dtype != torch.float64 else a
            merged = moved if alpha == 1 else torch.lerp(wide, moved.to(wide), alpha).to(kind.dtype)
            if not is_finite(merged if merged.element_size() > 1 else merged.float()):
                raise NonFiniteError(f"tensor {name!r}", found="NaN or infinity", do="Repair the checkpoints.")
            writer.write_range(key, begin * each, merged.reshape(-1))
            squares += torch.stack([_squares(wide), _squares(wide - b.to(wide)), _squares(wide - moved.to(wide))])
        if own in symmetry.axes and own not in symmetry.buffers and len(kind.shape) > 1:
            size, before, after = (math.sqrt(value) for value in squares.tolist())
            size = max(size, torch.finfo(torch.float32).tiny)
            result.layer(name, distance_before=before / size, distance_after=after / size)


def _squares(tensor: Tensor) -> Tensor:
    return tensor.double().square().sum()


def _check_kind(path: Path, state: StoredState) -> None:
    for key, kind in state.reader.specs.items():
        if kind.dtype in QUANTISED and len(kind.shape) > 1:
            raise UnsupportedModelError(
                f"tensor {key!r} of {path} is quantised", found=kind.dtype, do="Dequantise the checkpoint first."
            )


def _example(model: nn.Module) -> dict[str, Tensor]:
    """A batch that a transformers model can be called with."""
    if getattr(model, "main_input_name", "") == "pixel_values":
        config: Any = model.config
        size, channels = getattr(config, "image_size", SIDE), config.num_channels
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.zeros(1, channels, height, width)}
    return {name: value[:1] for name, value in model.dummy_inputs.items()}  # type: ignore[operator, union-attr]
