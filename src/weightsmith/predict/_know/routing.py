"""Decide which tensors of a checkpoint are predicted, and by which of the three predictors.

Convolution kernels, matrices and biases have a predictor each. Everything else keeps the trained weights:
normalization layers, running statistics, embeddings, integer buffers, loose parameters such as class tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import nn

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.io import TensorSpec, check_elementwise

__all__ = ["NOT_PREDICTED", "Kind", "has_normalization", "route"]

Kind: TypeAlias = Literal["conv", "fc", "bias"]
Routing: TypeAlias = Literal["rank", "kernel_size"]

NOT_PREDICTED: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Embedding,
)
"""Modules whose tensors are kept, where the model is given."""

_PREDICTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def route(
    specs: Mapping[str, TensorSpec],
    *,
    model: nn.Module | None = None,
    skip: tuple[type[nn.Module], ...] = NOT_PREDICTED,
    routing: Routing = "rank",
) -> dict[str, Kind]:
    """Name the predictor of every tensor that has one.

    Parameters
    ----------
    specs : mapping of str to TensorSpec
        Type and shape of every tensor of the checkpoint.
    model : nn.Module, optional
        The model, to skip modules by type. With and without it a module with running statistics or a one-dimensional
        ``weight`` counts as normalization; without it one with "embed" in its name counts as an embedding.
    skip : tuple of types
        Modules of ``model`` whose tensors are kept.
    routing : {"rank", "kernel_size"}, default: "rank"
        "rank", as in the authors' prediction script: every tensor of three or more dimensions goes to the convolution
        predictor. "kernel_size", as their training data were sorted: 3x3 kernels to the convolution predictor,
        others (1x1, patch embeddings) to the matrix predictor.

    Returns
    -------
    dict of str to {"conv", "fc", "bias"}
        Only the tensors to predict, in the order of ``specs``.

    Raises
    ------
    HyperparameterError
        If ``routing`` is unknown.
    UnsupportedModelError
        If the checkpoint is quantized, holds parametrized modules, or is an adapter.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False))
    >>> specs = {name: TensorSpec.of(tensor) for name, tensor in model.state_dict().items()}
    >>> route(specs)
    {'0.weight': 'conv', '0.bias': 'bias', '2.weight': 'conv'}
    >>> route(specs, routing="kernel_size")["2.weight"]
    'fc'
    """
    check_choice("routing", routing, Routing)
    check_elementwise(specs, "the network")
    kinds: dict[str, Kind] = {}
    for key, spec in specs.items():
        _refuse_unsupported(key, spec)
        if spec.dtype in _PREDICTABLE and not _skipped(key, specs, model, skip):
            kind = _kind(key, spec.shape, routing)
            if kind is not None:
                kinds[key] = kind
    return kinds


def has_normalization(specs: Mapping[str, TensorSpec]) -> bool:
    """Whether the checkpoint has a module with a one-dimensional ``weight``: batch, layer or group normalization.

    Examples
    --------
    >>> has_normalization({"norm.weight": TensorSpec(torch.float32, (8,))})
    True
    """
    return any(len(spec.shape) == 1 and key.rpartition(".")[2] == "weight" for key, spec in specs.items())


def _refuse_unsupported(key: str, spec: TensorSpec) -> None:
    if ".parametrizations." in f".{key}":
        raise UnsupportedModelError(
            f"tensor {key!r} belongs to a parametrized module",
            do="Merge it first with torch.nn.utils.parametrize.remove_parametrizations.",
        )
    if key.endswith("weight") and len(spec.shape) >= 2 and spec.dtype not in _PREDICTABLE:
        raise UnsupportedModelError(
            f"weight {key!r} is quantized", found=spec.dtype, expected="floating point", do="Dequantize it first."
        )


def _skipped(
    key: str, specs: Mapping[str, TensorSpec], model: nn.Module | None, skip: tuple[type[nn.Module], ...]
) -> bool:
    module, _, _ = key.rpartition(".")
    prefix = f"{module}." if module else ""
    weight = specs.get(prefix + "weight")
    if prefix + "running_mean" in specs or (weight is not None and len(weight.shape) == 1):
        return True
    if model is None:
        return "embed" in module.lower()
    try:
        return isinstance(model.get_submodule(module), skip)
    except AttributeError:
        return True


def _kind(key: str, shape: tuple[int, ...], routing: Routing) -> Kind | None:
    leaf = key.rpartition(".")[2]
    if leaf.endswith("bias"):
        return "bias" if len(shape) == 1 else None
    if not leaf.endswith("weight") or len(shape) < 2:
        return None
    if len(shape) == 2:
        return "fc"
    return "conv" if routing == "rank" or shape[2:] == (3, 3) else "fc"
