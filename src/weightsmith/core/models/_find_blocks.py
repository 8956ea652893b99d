"""The repeated blocks of a model, and the weights that a module itself holds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.models._layers import find_layers
from weightsmith.core.processes import plain_model, wrapper_path

__all__ = ["find_blocks", "held_weights", "refuse_foreign_blocks"]

CODES = (torch.int8, torch.uint8, torch.int32)
"""Types in which quantized weights are packed; buffers of positions are of 64 bits."""


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the repeated blocks of a model by structure.

    They are the entries, holding weight matrices, of the outermost ``nn.ModuleList`` s; failing those, the children
    of a model that is itself an ``nn.Sequential``; failing those, the model as a whole, under the name ``""``. What
    wraps a model (``torch.compile``, data parallelism) is a part of the names only.

    Examples
    --------
    >>> list(find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))))
    ['0', '2']
    """
    blocks = {name: block for name, block in _stacked(model) if find_layers(block, strict=False)}
    return blocks or {wrapper_path(model).rstrip("."): plain_model(model)}


def refuse_foreign_blocks(model: nn.Module) -> None:
    """Refuse a model whose repeated blocks hold weights, but none that can be changed: its head is not all of it.

    Raises
    ------
    UnsupportedModelError
        If the weights of all blocks are packed, quantized, or of layers that are not one matrix.

    Examples
    --------
    >>> refuse_foreign_blocks(nn.ModuleDict({"body": nn.ModuleList([nn.LSTM(2, 2)]), "head": nn.Linear(2, 2)}))
    Traceback (most recent call last):
    weightsmith.core.errors.UnsupportedModelError: the model's blocks: found 'body.0.weight_ih_l0' of LSTM as \
    their first weight, expected weights of linear or convolutional layers. Dequantize the model, or take it before \
    its layers were replaced.
    """
    if wrapper_path(model).rstrip(".") not in find_blocks(model):
        return
    held = (
        f"{'.'.join(filter(None, (name, path, weight)))!r} of {type(module).__name__}"
        for name, block in _stacked(model)
        for path, module in block.named_modules()
        if not isinstance(module, nn.Embedding)
        for weight in held_weights(module)
    )
    if first := next(held, None):
        raise UnsupportedModelError(
            "the model's blocks",
            found=f"{first} as their first weight",
            expected="weights of linear or convolutional layers",
            do="Dequantize the model, or take it before its layers were replaced.",
        )


def held_weights(module: nn.Module) -> dict[str, int]:
    """Name the weights that a module itself holds, and count their values.

    They are its parameters of two axes and more, the codes of quantized weights among its buffers, and PyTorch's packed
    weights.

    Examples
    --------
    >>> held_weights(nn.Linear(2, 3)), held_weights(nn.BatchNorm1d(3))
    ({'weight': 6}, {})
    """
    codes = {name: value for name, value in module._buffers.items() if value is not None and value.dtype in CODES}
    tensors = {**module._parameters, **codes}.items()
    found = {name: value.numel() for name, value in tensors if value is not None and value.ndim > 1}
    if "_packed_params" in module._modules:
        found["_packed_params"] = module.weight().numel()  # type: ignore[operator]
    return found


def _stacked(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The entries of the outermost lists of modules, or the children of a model that is a sequence."""
    stacks: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        outer = any(name.startswith(f"{stack}.") for stack, _ in stacks)
        if isinstance(module, nn.ModuleList) and not outer:
            stacks.append((name, module))
    if not stacks and isinstance(plain := plain_model(model), nn.Sequential):
        stacks.append((wrapper_path(model).rstrip("."), plain))
    for name, stack in stacks:
        for child, block in stack.named_children():
            yield f"{name}.{child}".lstrip("."), block
