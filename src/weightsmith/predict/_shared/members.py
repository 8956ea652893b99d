"""The members of a zoo as files: weights, and beside them the examples of their tasks and how good they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from weightsmith.core.errors import CheckpointError, ShapeError

__all__ = ["ACCURACY", "SUPPORT", "find_members", "of_all", "read_accuracy", "read_support", "read_weights", "stacked"]

SUPPORT = ".support.safetensors"
"""Ends the name of the file beside a member that holds its task's examples, a tensor ``support`` of (C, S, F)."""

ACCURACY = ".metrics.json"
"""Ends the name of the file beside a member that holds its ``accuracy`` on its own task."""

Read = TypeVar("Read")


def find_members(folder: Path) -> dict[str, Path]:
    """Return the weights of a folder's members by name: files, or folders that hold one, in the order of the names.

    Examples
    --------
    >>> find_members(Path("nowhere"))
    {}
    """
    members: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            for file in (path / "model.safetensors", path / "adapter_model.safetensors"):
                if file.exists():
                    members[path.name] = file
        elif path.suffix == ".safetensors" and not path.name.endswith(SUPPORT):
            members[path.stem] = path
    return members


def of_all(folder: Path, names: Iterable[str], ending: str, read: Callable[[Path], Read]) -> dict[Path, Read] | None:
    """Read the file beside every member whose name ends so; None where there is no such file at all.

    Raises
    ------
    CheckpointError
        If only some members have one.

    Examples
    --------
    >>> of_all(Path("nowhere"), ["a", "b"], ACCURACY, read_accuracy)
    """
    paths = [folder / (name + ending) for name in names]
    missing = [path for path in paths if not path.exists()]
    if len(missing) == len(paths):
        return None
    if missing:
        raise CheckpointError(f"{missing[0]} is missing", do="Give all members such a file, or none.")
    return {path: read(path) for path in paths}


def read_accuracy(path: Path) -> float:
    """Read how good a member is on its own task, a number ``accuracy``.

    Raises
    ------
    CheckpointError
        If the file cannot be read or has no such number.
    """
    try:
        return float(json.loads(path.read_text("utf-8"))["accuracy"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"no number 'accuracy' in {path}", found=repr(error)) from error


def read_support(path: str | os.PathLike[str]) -> Float[Tensor, "C S F"]:
    """Read the examples of a task, a tensor ``support`` of shape (classes, examples, features).

    Raises
    ------
    CheckpointError
        If the file cannot be read or has no such tensor.
    ShapeError
        If it has other than three dimensions.
    """
    tensors = read_weights(path)
    if "support" not in tensors:
        raise CheckpointError(f"no tensor 'support' in {path}", found=list(tensors)[:5])
    if tensors["support"].ndim != 3:
        found = tuple(tensors["support"].shape)
        raise ShapeError(f"support in {path}", found=found, expected="(classes, examples, features)")
    return tensors["support"].float()


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a file.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}", found=error) from error


def stacked(supports: Mapping[Path, Tensor]) -> np.ndarray:
    """Stack the examples of all members.

    Raises
    ------
    ShapeError
        If members have different numbers of classes, examples or features.

    Examples
    --------
    >>> stacked({Path("a"): torch.zeros(2, 5, 3), Path("b"): torch.zeros(2, 5, 3)}).shape
    (2, 2, 5, 3)
    """
    first, *_ = supports.values()
    for path, support in supports.items():
        if support.shape != first.shape:
            raise ShapeError(f"support in {path}", found=tuple(support.shape), expected=tuple(first.shape))
    return torch.stack(list(supports.values())).numpy()
