"""Write a checkpoint's tensors in another layout, one at a time, and say so in its ``config.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from weightsmith.core.io._atomic import check_output, scratch_folder
from weightsmith.core.io._aux_files import copy_aux_files
from weightsmith.core.io._checkpoint import CheckpointReader, CheckpointWriter
from weightsmith.core.io._header import TensorSpec
from weightsmith.core.io._json import read_json
from weightsmith.core.io._pretrained import save_model

__all__ = ["recode_checkpoint", "save_recoded"]


def recode_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    tensors: Callable[[CheckpointReader], Iterator[tuple[str, Tensor]]],
    edit: Callable[[dict[str, Any]], None],
    *,
    specs: Mapping[str, TensorSpec] | None = None,
    overwrite: bool = False,
    publish: Callable[[], object] = lambda: None,
) -> None:
    """Write other tensors made of a checkpoint's, all or nothing; its other files are copied.

    Parameters
    ----------
    source : path-like
        A folder as ``save_model`` writes it.
    out : path-like
        The folder to create.
    tensors : callable
        From the reader of ``source`` to the names and tensors to write, one after the other. Without ``specs`` it is
        called twice: first for the types and shapes.
    edit : callable
        Changes the content of ``config.json``, from which an older ``quantization_config`` is gone.
    specs : mapping of str to TensorSpec, optional
        Types and shapes of the tensors, where they are known.
    overwrite : bool, default: False
        Replace what is at ``out``.
    publish : callable, optional
        Called when all is written, just before the folder appears.

    Raises
    ------
    CheckpointError
        If ``source`` is damaged or ``out`` cannot be written.
    """
    reader = CheckpointReader(source)
    if specs is None:
        specs = {name: TensorSpec.of(tensor) for name, tensor in tensors(reader)}
    with CheckpointWriter(out, dict(specs), like=source, overwrite=overwrite) as writer:
        writer.publish = publish
        for name, tensor in tensors(reader):
            writer.write(name, tensor)
        copy_aux_files(Path(source), writer.target, plans=True)
        path = writer.target / "config.json"
        if path.is_file():
            config = read_json(path)
            config.pop("quantization_config", None)
            edit(config)
            path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def save_recoded(
    recode: Callable[..., None],
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    publish: Callable[[], object] = lambda: None,
    **saved: Any,
) -> None:
    """Save a model, and then write it in another layout: ``recode(source, out, overwrite=..., publish=...)``.

    The other arguments are those of :func:`save_model`.
    """
    check_output(out, overwrite=overwrite)
    with scratch_folder(out, "dense") as scratch:
        dense = scratch / "dense"
        save_model(model, dense, **saved)
        recode(dense, out, overwrite=overwrite, publish=publish)
