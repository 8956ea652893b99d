"""Which layers become sparse, which of them share an input, and whose scores use column norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import LayerNotFoundError, UnsupportedModelError
from weightsmith.core.models import Block, Layer, find_blocks, find_layers
from weightsmith.sparsify._wina.selection import column_norms

__all__ = [
    "REFERENCE",
    "Norms",
    "checked",
    "find_input_groups",
    "linear_layers",
    "projections",
    "score_norm",
    "uses_norms",
]

Norms: TypeAlias = Literal["reference", "all", "none"]

REFERENCE = (
    *("*k_proj", "*.key", "*.k_lin", "*.k", "*key_proj"),
    *("*qkv*", "*query_key_value", "*c_attn", "*Wqkv"),
    *("*gate_proj", "*gate_up_proj", "*.w1", "*wi_0"),
)
"""Keys and gates, alone or fused with other layers: where the reference implementation uses column norms."""


def projections(model: nn.Module, include: str | Sequence[str], exclude: str | Sequence[str]) -> list[Layer]:
    """Find the linear layers inside the model's blocks that match.

    Raises
    ------
    LayerNotFoundError
        If there is none.
    UnsupportedModelError
        If one of them is quantized or wrapped.
    """
    layers = [checked(layer) for layer in linear_layers(model, include, exclude)]
    if not layers:
        raise LayerNotFoundError(
            f"no linear layer inside the model's blocks matches {include!r}",
            do="Activation sparsity works on nn.Linear and Conv1D; convolutions stay dense.",
        )
    return layers


def linear_layers(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> list[Layer]:
    """Find the modules inside the model's blocks that are one linear layer and match."""
    inside = {child for block in find_blocks(model).values() for child in block.modules()}
    return [
        layer
        for layer in find_layers(model, include, exclude, strict=False)
        if layer.module in inside
        and isinstance(layer.module, (nn.Linear, Conv1D))
        # that of nn.MultiheadAttention is never called: a fused function reads its weight
        and not isinstance(layer.module, NonDynamicallyQuantizableLinear)
    ]


def checked(layer: Layer) -> Layer:
    """Return a layer that is plain and linear, and refuse others.

    Raises
    ------
    UnsupportedModelError
        If it is of another type, quantized or wrapped by an adapter.
    """
    weight = getattr(layer.module, "weight", None)
    plain = type(layer.module) in (nn.Linear, Conv1D)
    if not plain or type(weight) is not nn.Parameter or not weight.is_floating_point() or "base_layer" in layer.name:
        raise UnsupportedModelError(
            f"layer {layer.name!r}",
            found=f"{type(layer.module).__name__} with a weight of type {type(weight).__name__}",
            expected="a plain nn.Linear or Conv1D in floating point",
            do="Merge adapters, dequantize, or leave the layer out with exclude.",
        )
    return layer


class _Seen:
    """An accumulator without state: layers that get the same one receive the same tensor."""

    def update(self, x_SNI: Tensor, mask_SN: Tensor | None) -> None:
        pass

    def all_reduce(self) -> None:
        pass


def find_input_groups(block: Block, layers: Sequence[Layer]) -> list[tuple[str, ...]]:
    """Group a block's layers by the tensor they receive, in the order of their calls."""
    first = replace(block, inputs=block.inputs[:1])
    groups: dict[int, list[str]] = {}
    for name, accumulator in first.observe(layers, lambda _: _Seen()).items():
        groups.setdefault(id(accumulator), []).append(name)
    return [tuple(names) for names in groups.values()]


def uses_norms(name: str, norms: Norms) -> bool:
    """Whether the scores of a layer use the norms of its columns.

    Examples
    --------
    >>> uses_norms("layers.0.self_attn.k_proj", "reference"), uses_norms("layers.0.mlp.up_proj", "reference")
    (True, False)
    """
    return norms == "all" or (norms == "reference" and any(fnmatchcase(f".{name}", p) for p in REFERENCE))


def score_norm(layer: Layer, norms: Norms) -> Float[Tensor, " in"]:
    """Return the factors of the magnitudes of a layer's inputs: its column norms, or ones."""
    norm = column_norms(layer.weight_OI)
    return norm if uses_norms(layer.name, norms) else torch.ones_like(norm)
