"""Models as folders: load Hugging Face checkpoints, and write any model all or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightsmith.core.errors import CheckpointError
from weightsmith.core.io._atomic import atomic_output, copy_aux_files
from weightsmith.core.io._checkpoint import CheckpointReader

__all__ = ["load_model", "model_class", "save_model"]


def model_class(config: Any) -> type[nn.Module]:
    """Return the transformers class that a configuration names in ``architectures``.

    Raises
    ------
    CheckpointError
        If the configuration names none that transformers has.
    """
    import transformers

    for name in config.architectures or ():
        if isinstance(found := getattr(transformers, name, None), type):
            return found
    raise CheckpointError(
        f"transformers has no class for model type {config.model_type!r}",
        found=f"architectures {config.architectures}",
        do="Load the model yourself and pass the nn.Module.",
    )


def load_model(path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a Hugging Face folder (or hub id) as the class its config names, and refuse incomplete weights.

    Parameters
    ----------
    path : path-like
        Folder or hub id. Code from the checkpoint is never executed.
    dtype : torch.dtype, optional
        Element type; the checkpoint's own by default.

    Returns
    -------
    nn.Module
        In evaluation mode; tied weights are tied.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, a weight is missing, or a shape does not fit.
    """
    import transformers

    if Path(path).is_dir():
        CheckpointReader(path)
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        cls: Any = model_class(config)
        model, info = cls.from_pretrained(
            path, config=config, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot load {path}", found=str(error).strip().splitlines()[0]) from error
    if info["mismatched_keys"]:
        key, found, expected = next(iter(info["mismatched_keys"]))
        raise CheckpointError(f"tensor {key!r} in {path}", found=tuple(found), expected=tuple(expected))
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{path} lacks {len(missing)} tensors such as {missing[:3]}", do="Copy it again.")
    return model.eval()


def save_model(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a folder, all or nothing.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face model (written by its own ``save_pretrained``) or any other (``model.safetensors``; a tied
        weight is stored once).
    out : path-like
        The folder to create.
    like : path-like, optional
        Folder whose tokenizer, generation and other small files are copied.
    tokenizer : optional
        Saved beside the model.
    files : mapping of str to str, optional
        More small files: name to text.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Raises
    ------
    CheckpointError
        If ``out`` exists or cannot be written; nothing is left behind.
    """
    from safetensors.torch import save_model as save_plain

    nbytes = sum({id(p): p.numel() * p.element_size() for p in model.parameters()}.values())
    with atomic_output(out, overwrite=overwrite, nbytes=nbytes) as target:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(target)  # type: ignore[operator]
        else:
            save_plain(model, str(target / "model.safetensors"))
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
        if like is not None:
            copy_aux_files(Path(like), target)
        for name, text in (files or {}).items():
            (target / name).write_text(text, "utf-8")
