"""Files of our own: named tensors with what they are and a few facts about them, in one ``.safetensors`` file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from weightsmith.core.errors import CheckpointError, WeightsmithError
from weightsmith.core.io._atomic import atomic_output
from weightsmith.core.io._checkpoint import CheckpointReader
from weightsmith.core.io._json import parse_json

__all__ = ["load_tagged", "save_tagged"]

T = TypeVar("T")


def save_tagged(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    kind: str,
    about: Any = None,
    overwrite: bool = False,
) -> None:
    """Write tensors to a ``.safetensors`` file that says what it holds, all or nothing.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        On any device.
    path : path-like
        The file.
    kind : str
        What the file holds, in words, such as ``"sparse delta"``.
    about : object, optional
        Facts beside the tensors, as JSON has them.
    overwrite : bool, default: False
        Replace an existing file.

    Raises
    ------
    CheckpointError
        If the file exists and ``overwrite`` is off, its name ends otherwise, or it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"file of a {kind}: {path.name!r}", expected="a name that ends in .safetensors")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_output(path, overwrite=overwrite, nbytes=sum(tensor.nbytes for tensor in held.values())) as target:
        save_file(held, target, metadata={"format": _tag(kind), "about": json.dumps(about)})


def load_tagged(path: str | os.PathLike[str], kind: str, build: Callable[[CheckpointReader, Any], T]) -> T:
    """Read what :func:`save_tagged` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    kind : str
        What it must hold.
    build : callable
        ``build(reader, about)`` makes the object.

    Raises
    ------
    CheckpointError
        If the file cannot be read, holds something else, or lacks what ``build`` looks for.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tagged({"w": torch.ones(2)}, f"{folder}/a.safetensors", kind="example", about={"power": 2})
    ...     load_tagged(f"{folder}/a.safetensors", "example", lambda reader, about: (reader.tensor("w"), about))
    (tensor([1., 1.]), {'power': 2})
    """
    reader = CheckpointReader(path)
    if reader.metadata.get("format") != _tag(kind):
        raise CheckpointError(f"{path} holds no {kind}", found=reader.metadata.get("format"), expected=_tag(kind))
    about = parse_json(reader.metadata.get("about", ""), str(path))
    try:
        return build(reader, about)
    except WeightsmithError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged", found=error, do="Copy the file again.") from error


def _tag(kind: str) -> str:
    return f"weightsmith-{kind.replace(' ', '-')}"
