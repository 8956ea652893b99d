"""Models as folders: load Hugging Face checkpoints, and write any model all or nothing.

Code that comes with a checkpoint never runs: :func:`from_pretrained` is the only call of transformers' loaders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightsmith.core.errors import CheckpointError, UnsupportedModelError, WeightsmithError
from weightsmith.core.io._atomic import atomic_output, write_file
from weightsmith.core.io._aux_files import copy_aux_files
from weightsmith.core.io._checkpoint import CheckpointReader
from weightsmith.core.io._hub import checkpoint_folder
from weightsmith.core.io._json import read_json

__all__ = ["from_pretrained", "load_config", "load_model", "model_class", "refuse_packed", "save_model"]

ADAPTER = "adapter_config.json"
LARGEST = 10**8
"""Weights that a configuration may ask for whatever the size of its checkpoint; beyond, 16 for every byte."""


def from_pretrained(loader: Any, path: str | os.PathLike[str], **options: Any) -> Any:
    """Call ``loader.from_pretrained`` of a transformers class: configuration, weights, tokenizer or processor.

    Parameters
    ----------
    loader : type
        Such as ``transformers.AutoTokenizer``.
    path : path-like
        Folder.
    **options
        Passed on.

    Raises
    ------
    UnsupportedModelError
        If the checkpoint needs Python code of its own: it is neither run nor asked about.
    CheckpointError
        If a file is missing or damaged.
    """
    with _loading(path):
        return loader.from_pretrained(path, trust_remote_code=False, **options)


def load_config(path: str | os.PathLike[str], *, revision: str = "main") -> Any:
    """Load the configuration of a folder or hub id; in a folder it must fit the weights, none of which are read.

    Parameters
    ----------
    path : path-like
        Folder or hub id, see :func:`checkpoint_folder`.
    revision : str, default: "main"
        Branch, tag or commit on the hub.

    Raises
    ------
    CheckpointError
        If there is none that transformers knows, or it describes another model than the weights beside it; or if a
        folder is asked for a revision.
    UnsupportedModelError
        If it needs code of its own, names a kernel that would be downloaded and run, or is an adapter without a model.
    """
    import transformers

    folder = checkpoint_folder(path, revision=revision, weights=False)
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        raise UnsupportedModelError(
            f"{path} holds an adapter and no model",
            found=f"an adapter of {base!r}",
            do="Merge the adapter into its base first (PEFT's merge_and_unload), and save that.",
        )
    reader = CheckpointReader(path) if folder == Path(path) else None  # the weights of a hub id may not be here yet
    config = from_pretrained(transformers.AutoConfig, folder)
    with _loading(path):
        parts = [config, *(getattr(config, name) for name in config.sub_configs)]
        kernels = [part._attn_implementation for part in parts if "/" in str(part._attn_implementation)]
        if kernels:
            raise UnsupportedModelError(f"{path} asks for the attention kernel {kernels[0]}", do="Take it out.")
        if reader is not None:
            _check_numbers(reader, config, parts)
    return config


def _check_numbers(reader: CheckpointReader, config: Any, parts: list[Any]) -> None:
    """Refuse a configuration of far more weights than the folder holds, before they fill the memory."""
    from transformers.initialization import no_init_weights

    for part in parts:
        layers = getattr(part, "num_hidden_layers", None)
        if isinstance(layers, int) and not 0 < layers <= len(reader):
            expected = f"1 to {len(reader)}, as many as there are tensors"
            raise CheckpointError(f"number of layers in config.json of {reader.path}", found=layers, expected=expected)
    with torch.device("meta"), no_init_weights():
        model = model_class(config)(config)
    asked = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])
    if asked > max(LARGEST, 16 * reader.nbytes):
        found = f"{asked:,} weights in config.json, {reader.nbytes:,} bytes in the checkpoint"
        raise CheckpointError(f"{reader.path} is inconsistent", found=found, do="Repair config.json.")


@contextmanager
def _loading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say which checkpoint it is that transformers cannot load; on damaged files it raises any type of error."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:  # a bar for each part of a folder says nothing
        logging.disable_progress_bar()
    try:
        yield
    except WeightsmithError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"{path} needs Python code of its own (auto_map), which is never run",
                do="Take a model of a type that transformers knows, or load it yourself and pass the nn.Module.",
            ) from error
        found = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot load {path}", found=found) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def model_class(config: Any) -> type[nn.Module]:
    """Return the transformers class that a configuration names in ``architectures``.

    Raises
    ------
    CheckpointError
        If the configuration names none that transformers has.
    """
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    raise CheckpointError(
        f"transformers has no class for model type {config.model_type!r}",
        found=f"architectures {config.architectures}",
        do="Load the model yourself and pass the nn.Module.",
    )


def load_model(path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, revision: str = "main") -> nn.Module:
    """Load a Hugging Face folder (or hub id) as the class its config names, and refuse incomplete weights.

    Parameters
    ----------
    path : path-like
        Folder or hub id, see :func:`checkpoint_folder`. Code from the checkpoint is never executed.
    dtype : torch.dtype, optional
        Element type; the checkpoint's own by default.
    revision : str, default: "main"
        Branch, tag or commit on the hub.

    Returns
    -------
    nn.Module
        In evaluation mode; tied weights are tied.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, a weight is missing, or a shape does not fit.
    UnsupportedModelError
        If it needs code of its own, or its weights are packed or compressed.
    """
    ref, path = str(path), checkpoint_folder(path, revision=revision)
    config = load_config(path)
    refuse_packed(path, getattr(config, "quantization_config", None))
    model, info = from_pretrained(
        model_class(config),
        path,
        config=config,
        dtype=dtype or "auto",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if info["mismatched_keys"]:
        key, found, expected = next(iter(info["mismatched_keys"]))
        raise CheckpointError(f"tensor {key!r} in {path}", found=tuple(found), expected=tuple(expected))
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{path} lacks {len(missing)} tensors such as {missing[:3]}", do="Copy it again.")
    if not Path(ref).is_dir():  # adapters keep the name of the model they belong to
        model.name_or_path = model.config.name_or_path = ref.partition("@")[0]
    return model.eval()


def refuse_packed(path: str | os.PathLike[str], quantization: Any) -> None:
    """Refuse a folder whose weights are packed or compressed, and say how to have them plain.

    Parameters
    ----------
    path : path-like
        The folder.
    quantization : Any
        What its configuration has as ``quantization_config``.

    Raises
    ------
    UnsupportedModelError
        If they are.

    Examples
    --------
    >>> refuse_packed("small", {"format": "pack-quantized"})
    Traceback (most recent call last):
    weightsmith.core.errors.UnsupportedModelError: the weights of small are packed. Unpack them with \
    weightsmith.quantize.unpack_checkpoint(folder, out); to run them: load_quantized.
    """
    if not isinstance(quantization, dict):
        return
    if (quantization.get("sparsity_config") or {}).get("format") == "sparse-bitmask":
        raise UnsupportedModelError(
            f"the weights of {path} are compressed",
            do="Make them dense with weightsmith.sparsify.decompress_checkpoint(folder, out).",
        )
    if quantization.get("format") == "pack-quantized":
        # transformers leaves the scales as parameters of the layers, which would be saved over those of new weights
        raise UnsupportedModelError(
            f"the weights of {path} are packed",
            do="Unpack them with weightsmith.quantize.unpack_checkpoint(folder, out); to run them: load_quantized.",
        )


def save_model(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    publish: Callable[[], object] = lambda: None,
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
    publish : callable, optional
        Called when all is written, just before the folder appears.

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
            write_file(target / name, text)
        publish()
