"""Packed checkpoints of quantized weights: whole numbers of few bits and one scale per output.

A Hugging Face model is written in the ``pack-quantized`` layout of compressed-tensors, which transformers and vLLM
read: for each linear layer ``weight_packed`` (int32, the codes of a row one after the other, low bits first),
``weight_scale`` and ``weight_shape``. Its levels are whole multiples of the scale. Levels half a step beside zero are
odd multiples of half a step, so they take one bit more: two and three bits are stored in four, four bits in eight.

Any other model is read by :func:`unpack_checkpoint` only, and is stored in 2, 4 or 8 bits per weight: the codes
themselves, in the same three tensors.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Int
from torch import Tensor, nn

from weightsmith.core.errors import CheckpointError, UnsupportedModelError
from weightsmith.core.io import (
    CheckpointReader,
    TemporaryFolder,
    TensorSpec,
    checkpoint_keys,
    load_model,
    meta_model,
    recode_checkpoint,
    save_recoded,
)
from weightsmith.core.levels import FILE, Grid, Quantization, WeightLevels
from weightsmith.core.models import block_layers
from weightsmith.core.progress import track
from weightsmith.quantize._ofq.prepare import apply_quantization

__all__ = [
    "Quantization",
    "check_packable",
    "load_quantized",
    "pack_checkpoint",
    "pack_codes",
    "save_packed",
    "unpack_checkpoint",
    "unpack_codes",
]

PARTS = ("packed", "scale", "shape")
WIDTHS = (2, 4, 8)
"""Bits of a stored code, which divide those of a byte."""


def save_packed(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    publish: Callable[[], object] = lambda: None,
) -> None:
    """Write a model as :func:`~weightsmith.core.io.save_model` does, with its quantized weights packed.

    Parameters
    ----------
    model : nn.Module
        With weights on their levels.
    files : mapping of str to str
        Among them ``quantization.json``: the ``files`` of the result of :func:`ofq`, :func:`lsq`, :func:`gptq` or
        :func:`round_to_nearest`.
    out, like, tokenizer, overwrite, publish
        As for ``save_model``.

    Raises
    ------
    CheckpointError
        As ``save_model``; or if ``quantization.json`` is missing, or the weights are no longer on their levels.
    """
    if FILE not in (files or {}):
        raise CheckpointError(
            "nothing to pack", found=f"no {FILE}", do="Quantize the model first, with weightsmith quantize."
        )
    saved: dict[str, Any] = {"like": like, "tokenizer": tokenizer, "files": files}
    save_recoded(pack_checkpoint, model, out, overwrite=overwrite, publish=publish, **saved)


def check_packable(model: nn.Module) -> None:
    """Refuse a model of transformers of which nothing could be packed.

    Raises
    ------
    UnsupportedModelError
        If its blocks have no ``nn.Linear``: compressed-tensors replaces no other layers.
    """
    if hasattr(model, "save_pretrained") and not any(type(layer.module) is nn.Linear for layer in block_layers(model)):
        kinds = sorted({type(layer.module).__name__ for layer in block_layers(model)})
        raise UnsupportedModelError("packed", found=f"layers of {', '.join(kinds)}", expected="nn.Linear")


def load_quantized(folder: str | os.PathLike[str]) -> nn.Module:
    """Load a quantized Hugging Face model, packed or not, with its activations quantized too, in evaluation mode.

    Raises
    ------
    CheckpointError
        If the folder is damaged, or holds no ``quantization.json``.
    """
    plan = Quantization.load(folder)
    with TemporaryFolder() as scratch:
        dense = Path(folder)
        if any(key.endswith(".weight_packed") for key in CheckpointReader(folder)):
            dense = Path(scratch) / "dense"
            unpack_checkpoint(folder, dense)
        model = load_model(dense)
    apply_quantization(model, plan)
    return model.eval()


def pack_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    publish: Callable[[], object] = lambda: None,
) -> None:
    """Pack the quantized weights of a checkpoint folder, one tensor at a time.

    Parameters
    ----------
    source : path-like
        A folder with ``quantization.json``.
    out : path-like
        The folder to create.
    overwrite : bool, default: False
        Replace what is at ``out``.
    publish : callable, optional
        Called when all is written, just before the folder appears.

    Raises
    ------
    CheckpointError
        If ``source`` is damaged, its weights are off their levels, or ``out`` cannot be written.

    Warns
    -----
    UserWarning
        If the release of transformers that is installed cannot load packed weights of this architecture.
    """
    plan = Quantization.load(source)
    held = CheckpointReader(source)
    integers, linear, keys = _layout(source, held)
    chosen = {keys[f"{name}.weight"]: name for name in plan.weights if name in linear and f"{name}.weight" in keys}

    def tensors(reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
        for key in track(reader, "packing", total=len(reader)):
            if key in chosen:
                yield from _pack(key, reader.tensor(key), plan.weights[chosen[key]], integers=integers)
            else:
                yield key, reader.tensor(key)

    def edit(config: dict[str, Any]) -> None:
        levels = {name: plan.weights[name] for name in sorted(chosen.values())}
        config["quantization_config"] = _config(levels, linear - {*levels})

    if not chosen:
        raise CheckpointError("nothing to pack", found=f"no quantized linear layer in {source}")
    if integers and (reason := _unreadable(source, held, chosen.values())):
        warnings.warn(
            f"transformers {transformers.__version__} cannot load the packed weights of this model: {reason}. "
            "weightsmith.quantize.load_quantized does.",
            stacklevel=2,
        )
    recode_checkpoint(source, out, tensors, edit, overwrite=overwrite, publish=publish)


def unpack_checkpoint(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Undo :func:`pack_checkpoint`, bit for bit.

    Raises
    ------
    CheckpointError
        If a packed tensor's parts are missing or do not fit together.
    """
    plan = Quantization.load(source)
    reader = CheckpointReader(source)
    packed = [key.removesuffix("_packed") for key in reader if key.endswith(".weight_packed")]
    integers, _, keys = _layout(source, reader.renamed({key: f"{key}_packed" for key in packed}))
    names = {key: name.removesuffix(".weight") for name, key in keys.items()}
    for key in packed:
        missing = [f"{key}_{part}" for part in PARTS if f"{key}_{part}" not in reader]
        if missing or names.get(key) not in plan.weights:
            raise CheckpointError(f"packed tensor {key!r} of {source}", found=f"lacks {missing or FILE}")
    parts = {f"{key}_{part}" for key in packed for part in PARTS}
    specs = {key: spec for key, spec in reader.specs.items() if key not in parts}
    for key in packed:
        specs[key] = TensorSpec(reader.specs[f"{key}_scale"].dtype, tuple(reader.tensor(f"{key}_shape").tolist()))

    def tensors(reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
        for key in track(specs, "unpacking"):
            if key in packed:
                yield key, _unpack(reader, key, plan.weights[names[key]], integers=integers)
            else:
                yield key, reader.tensor(key)

    recode_checkpoint(source, out, tensors, lambda config: None, specs=specs)


def pack_codes(codes: Int[Tensor, "out in"], width: int) -> Int[Tensor, "out words"]:
    """Store codes of two's range one after the other in 32-bit words, low bits first.

    Parameters
    ----------
    codes : Tensor of shape (out, in)
        Whole numbers from ``-2**(width - 1)`` to ``2**(width - 1) - 1``.
    width : {2, 4, 8}
        Bits per code.

    Returns
    -------
    Tensor of shape (out, words)
        int32; rows are filled up to whole words.

    Examples
    --------
    >>> words = pack_codes(torch.tensor([[-2, -1, 0, 1]]), 2)
    >>> f"{words.item():08b}", unpack_codes(words, 2, 4).tolist()
    ('11100100', [[-2, -1, 0, 1]])
    """
    per_byte = 8 // width
    unsigned = (codes.to(torch.int16) + 2 ** (width - 1)).to(torch.uint8).numpy()
    columns = -(-unsigned.shape[1] // (4 * per_byte)) * 4 * per_byte
    unsigned = np.pad(unsigned, ((0, 0), (0, columns - unsigned.shape[1])))
    parts = (unsigned[:, place::per_byte] << np.uint8(place * width) for place in range(per_byte))
    data = np.ascontiguousarray(np.bitwise_or.reduce(list(parts)))
    return torch.from_numpy(data.view("<i4"))


def unpack_codes(words: Int[Tensor, "out words"], width: int, columns: int) -> Int[Tensor, "out in"]:
    """Undo :func:`pack_codes`.

    Examples
    --------
    >>> unpack_codes(pack_codes(torch.tensor([[-8, 7, 3]]), 4), 4, 3).tolist()
    [[-8, 7, 3]]
    """
    data = words.contiguous().numpy().view(np.uint8)
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    unsigned = (data[:, :, None] >> shifts) & np.uint8(2**width - 1)
    codes = unsigned.reshape(len(data), -1)[:, :columns].astype(np.int16) - 2 ** (width - 1)
    return torch.from_numpy(codes)


def _width(levels: WeightLevels, *, integers: bool) -> int:
    """Bits of a stored code: those that compressed-tensors' readers know, or the least that divide a byte."""
    if integers:
        return 4 if levels.bits + levels.half <= 4 else 8
    return next(width for width in WIDTHS if width >= levels.bits)


def _pack(key: str, weight: Tensor, levels: WeightLevels, *, integers: bool) -> Iterator[tuple[str, Tensor]]:
    try:
        found = levels.integers(weight.flatten(1))
    except CheckpointError as error:
        raise CheckpointError(f"cannot pack {key!r}", found=error) from error
    codes = found if integers or not levels.half else (found - 1) / 2
    yield f"{key}_packed", pack_codes(codes.to(torch.int16), _width(levels, integers=integers))
    yield f"{key}_scale", torch.tensor(levels.unit, dtype=weight.dtype).unsqueeze(1)
    yield f"{key}_shape", torch.tensor(weight.shape)


def _unpack(reader: CheckpointReader, key: str, levels: WeightLevels, *, integers: bool) -> Tensor:
    words, scale, shape = (reader.tensor(f"{key}_{part}") for part in PARTS)
    size = tuple(shape.tolist())
    width = _width(levels, integers=integers)
    rows = len(scale)
    columns = int(np.prod(size)) // max(rows, 1)
    if words.shape != (rows, -(-columns * width // 32)) or rows * columns != int(np.prod(size)):
        raise CheckpointError(f"packed tensor {key!r} of {reader.path}", found=tuple(words.shape), expected=size)
    codes = unpack_codes(words, width, columns)
    found = codes if integers else Grid(levels.bits, levels.half).integers(codes)
    matrix = (found.float() * scale.float()).to(scale.dtype) if scale.dtype != torch.float64 else found * scale
    return matrix.view(size)


def _layout(source: str | os.PathLike[str], reader: CheckpointReader) -> tuple[bool, set[str], dict[str, str]]:
    """Whether it is a model of transformers; the layers that can be packed; the checkpoint's name of each weight."""
    if not (Path(source) / "config.json").is_file():
        return False, {key.removesuffix(".weight") for key in reader}, {key: key for key in reader}
    model = meta_model(source)  # compressed-tensors replaces linear layers only
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    return True, linear, checkpoint_keys(model, reader)[0]


def _unreadable(source: str | os.PathLike[str], reader: CheckpointReader, packed: Iterable[str]) -> str:
    """Why transformers cannot load a model some of whose linear layers are packed; empty if it can."""
    model: Any = meta_model(source)
    if stacks := checkpoint_keys(model, reader)[1]:
        return f"it does not find the parts of {next(iter(stacks))!r} beside them"
    for name in packed:
        del model.get_submodule(name).weight
    for module in model.modules():
        module._is_hf_initialized = False
    try:
        with torch.random.fork_rng(devices=[]):
            model.initialize_weights()  # as it does on loading, with the packed layers in place
    except Exception as error:  # a model on the meta device may fail otherwise, which says nothing of packed layers
        if isinstance(error, AttributeError) and "'weight'" in str(error):
            return "it initializes weights first, which packed layers lack"
    return ""


def _config(chosen: Mapping[str, WeightLevels], ignored: set[str]) -> dict[str, Any]:
    """The ``quantization_config`` that compressed-tensors reads: a group of layers for each width."""
    groups: dict[str, Any] = {}
    for width in WIDTHS:
        names = [name for name, levels in chosen.items() if _width(levels, integers=True) == width]
        if names:
            weights = {"num_bits": width, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
            groups[f"group_{len(groups)}"] = {"targets": names, "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(ignored),
    }
