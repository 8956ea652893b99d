"""Name and count what a method on layers does not reach."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from weightsmith.core.models._layers import Layer, adapter_paths, held_weights

__all__ = ["unreached"]


def unreached(model: nn.Module, layers: Sequence[Layer], what: str = "Not reached and unchanged") -> list[str]:
    """Say which matrices of a model are none of the layers that a method works on.

    Parameters
    ----------
    model : nn.Module
        Any model.
    layers : sequence of Layer
        All that the method can reach, those that the user excludes among them.
    what : str, default: "Not reached and unchanged"
        What the others are.

    Returns
    -------
    list of str
        One sentence with the number of matrices of each kind; empty if there are none.

    Examples
    --------
    >>> from weightsmith.core.models import block_layers
    >>> model = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4)) for _ in range(2)])
    >>> unreached(model, block_layers(model))
    ["Not reached and unchanged: 2 x '*.1.weight' (Embedding, 24 values)."]
    """
    reached = {id(layer.module._parameters.get(layer.parameter)) for layer in layers}
    inside = tuple(f"{layer.name}." for layer in layers if layer.expert is None)
    adapters = adapter_paths(model)
    kinds: dict[tuple[str, str], list[int]] = {}
    for path, module in model.named_modules():
        for name, size in held_weights(module).items():
            weight = module._parameters.get(name, module)
            if id(weight) in reached:
                continue
            reached.add(id(weight))
            whole = f"{path}.{name}".lstrip(".")
            if whole.startswith(adapters):
                kinds.setdefault(("adapters", "PEFT"), []).append(size)
            elif not whole.startswith(inside):
                kind = re.sub(r"(?<![^.])\d+(?![^.])", "*", whole, count=1)
                kinds.setdefault((kind, type(module).__name__), []).append(size)
    listed = [f"{len(sizes)} x {kind!r} ({of}, {sum(sizes):,} values)" for (kind, of), sizes in kinds.items()]
    return [f"{what}: {', '.join(listed)}."] if listed else []
