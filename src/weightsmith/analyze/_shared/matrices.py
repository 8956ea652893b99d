"""Find the weight matrices of a model, in a module or in the files of a checkpoint, and read them one at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.io import CheckpointReader, TensorSpec, read_json, refuse_meta, refuse_packed
from weightsmith.core.models import Layer, find_layers
from weightsmith.embedded import find_folder

__all__ = ["FUSED_EXPERTS", "Matrix", "matrices_of_files", "matrices_of_model"]

FUSED_EXPERTS = (".gate_up_proj", ".down_proj", ".gate_proj", ".up_proj")
"""Endings of parameters that hold the matrices of all experts of a layer, ``[experts, ., .]``; the same as PEFT's."""

EMBEDDINGS = ("*embed*", "wte", "wpe", "shared", "relative_attention_bias")
"""In files, where only names tell: last part of an embedding's name."""

PACKED = ("weight", "weight_packed", "weight.bitmask")
"""Endings of tensors that hold a weight, or say where in it values are; those of compressed-tensors among them."""

UNPACK = "Dequantise the model first (the unquantised checkpoint has what this measures)."


@dataclass(frozen=True)
class Matrix:
    """A weight matrix that can be read.

    Attributes
    ----------
    name : str
        Of the module, or of the parameter for fused experts.
    parameter : str
        Of the parameter.
    shape : tuple of int
        ``(out, in)``, or for fused experts ``(experts, ., .)``.
    read : callable
        Returns the weight in that shape.
    aliases : tuple of str
        Other modules that hold the same parameter.
    skip : str
        Why it is no matrix to compare with the others; empty for one that is.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    aliases: tuple[str, ...] = ()
    skip: str = ""


def matrices_of_model(model: nn.Module) -> list[Matrix]:
    """Find the weight matrices of a module; of layers with PEFT adapters the base weight, under the layer's name.

    Raises
    ------
    UnsupportedModelError
        If weights are packed by a quantiser that cannot give them back, or on the meta device.

    Examples
    --------
    >>> [matrix.shape for matrix in matrices_of_model(nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Linear(2, 4)))]
    [(8, 75), (4, 2)]
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    modules = dict(model.named_modules())
    _refuse_unreadable(model, modules)
    tuners = [name for name, module in modules.items() if isinstance(module, BaseTunerLayer)]
    embeddings = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    found = []
    for layer in find_layers(model, strict=False):
        if (name := _without_adapters(layer.name, tuners)) is not None:
            skip = "tied to an embedding" if id(layer.module.weight) in embeddings else ""
            read = partial(_read_layer, layer)
            parameter = f"{name}.weight".removeprefix(".")
            found.append(Matrix(name, parameter, _shape(layer), read, layer.aliases, skip))
    for path, weight in model.named_parameters():
        name = _without_adapters(path, tuners)
        if name is not None and weight.ndim == 3 and path.endswith(FUSED_EXPERTS):
            found.append(Matrix(name, name, tuple(weight.shape), partial(_whole, weight)))
    return found


def matrices_of_files(path: str | os.PathLike[str]) -> list[Matrix]:
    """Find the weight matrices in a checkpoint by the names and shapes of its tensors.

    Parameters
    ----------
    path : path-like
        A folder, a file, a hub id, or ``embedded:NAME``.

    Raises
    ------
    CheckpointError
        If there is no readable checkpoint.
    UnsupportedModelError
        If weights are packed by a quantiser, or compressed.
    """
    place = Path(path) if Path(path).is_file() else find_folder(path)
    if (configuration := place / "config.json").is_file():
        refuse_packed(place, read_json(configuration).get("quantization_config"))
    reader = CheckpointReader(place)
    found = [_of_tensor(reader, key, spec) for key, spec in reader.specs.items()]
    return [matrix for matrix in found if matrix is not None]


def _of_tensor(reader: CheckpointReader, key: str, spec: TensorSpec) -> Matrix | None:
    name, shape, rank = key.removesuffix(".weight"), spec.shape, len(spec.shape)
    fused = rank == 3 and key.endswith(FUSED_EXPERTS)
    if not spec.dtype.is_floating_point or spec.dtype.itemsize < 2:
        if fused or key.endswith(PACKED):
            raise UnsupportedModelError(f"tensor {key!r} in {reader.path} is packed", found=spec.dtype, do=UNPACK)
        return None
    if fused:
        return Matrix(key, key, shape, partial(reader.tensor, key))
    if rank < 2 or name == key:
        return None
    skip = ""
    if any(fnmatchcase(name.rpartition(".")[2], pattern) for pattern in EMBEDDINGS):
        skip = "an embedding by its name"
    elif rank > 2 and shape[1] == 1:
        skip = "a convolution that may be grouped"
    return Matrix(name, key, (shape[0], math.prod(shape[1:])), partial(_read_tensor, reader, key), (), skip)


def _refuse_unreadable(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    if packed := [name for name, module in modules.items() if hasattr(module, "qweight")]:
        raise UnsupportedModelError(f"{len(packed)} packed weights such as that of {packed[0]!r}", do=UNPACK)
    refuse_meta(model)


def _shape(layer: Layer) -> tuple[int, ...]:
    if isinstance(layer.module, nn.Linear):
        return layer.module.out_features, layer.module.in_features  # a quantised weight has another shape
    return tuple(layer.weight_OI.shape)


def _read_layer(layer: Layer) -> Float[Tensor, "out in"]:
    from peft.utils.integrations import dequantize_module_weight

    weight = _whole(dequantize_module_weight(layer.module))
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise UnsupportedModelError(f"weight of {layer.name!r} is packed", found=weight.dtype, do=UNPACK)
    return layer.matrix(weight)


def _read_tensor(reader: CheckpointReader, key: str) -> Float[Tensor, "out in"]:
    return reader.tensor(key).flatten(1)


def _whole(weight: Tensor) -> Tensor:
    """The weight, gathered from all processes where FSDP has split it."""
    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _without_adapters(name: str, tuners: Sequence[str]) -> str | None:
    """The name a weight had before PEFT wrapped its layer; None for the adapters' own weights.

    >>> _without_adapters("q.base_layer", ["q"]), _without_adapters("q.lora_A.default", ["q"])
    ('q', None)
    """
    for tuner in tuners:
        if name.startswith(tuner + "."):
            if not name.startswith(tuner + ".base_layer"):
                return None
            return name.replace(".base_layer", "")
    return name
