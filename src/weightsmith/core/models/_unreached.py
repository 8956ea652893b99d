"""Name and count what a method on layers does not reach."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from torch import nn

from weightsmith.core.errors import CalibrationError
from weightsmith.core.models._find_blocks import held_weights
from weightsmith.core.models._layers import Layer, adapter_paths

__all__ = ["missed", "unreached"]


def unreached(
    model: nn.Module, layers: Sequence[Layer], what: str = "Not reached", *, trains: bool = False
) -> list[str]:
    """Say which matrices of a model are none of the layers that a method works on.

    Parameters
    ----------
    model : nn.Module
        Any model.
    layers : sequence of Layer
        All that the method can reach, those that the user excludes among them.
    what : str, default: "Not reached"
        What the others are.
    trains : bool, default: False
        The method trains those of the others that are not frozen.

    Returns
    -------
    list of str
        A sentence with the number of matrices of each kind, one for those that are trained and one for those that stay
        as they are; empty if there are none.

    Examples
    --------
    >>> from weightsmith.core.models import block_layers
    >>> model = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4)) for _ in range(2)])
    >>> unreached(model, block_layers(model))
    ["Not reached and unchanged: 2 x '*.1.weight' (Embedding, 24 values)."]
    >>> unreached(model, block_layers(model), "Not sparse", trains=True)
    ["Not sparse, but trained: 2 x '*.1.weight' (Embedding, 24 values)."]
    """
    reached = {id(layer.module._parameters.get(layer.parameter)) for layer in layers}
    inside = tuple(f"{layer.name}." for layer in layers if layer.expert is None)
    adapters = adapter_paths(model)
    kinds: dict[bool, dict[tuple[str, str], list[int]]] = {True: {}, False: {}}  # those that are trained, and others
    for path, module in model.named_modules():
        for name, size in held_weights(module).items():
            weight = module._parameters.get(name, module)
            if id(weight) in reached:
                continue
            reached.add(id(weight))
            whole = f"{path}.{name}".lstrip(".")
            trained = trains and getattr(weight, "requires_grad", False)  # codes and packed weights ask for none
            if whole.startswith(adapters):
                kinds[trained].setdefault(("adapters", "PEFT"), []).append(size)
            elif not whole.startswith(inside):
                kinds[trained].setdefault((_kind(whole), type(module).__name__), []).append(size)
    sentences = []
    for trained, found in kinds.items():
        listed = [f"{len(sizes)} x {kind!r} ({of}, {sum(sizes):,} values)" for (kind, of), sizes in found.items()]
        if listed:
            sentences.append(f"{what}{', but trained' if trained else ' and unchanged'}: {', '.join(listed)}.")
    return sentences


def missed(layers: Sequence[Layer], reached: Collection[str], what: str) -> list[str]:
    """Say which layers no calibration token reached.

    Parameters
    ----------
    layers : sequence of Layer
        All that a method was to change.
    reached : collection of str
        The names of those that it has changed.
    what : str
        What became of the others.

    Returns
    -------
    list of str
        One sentence with the number of layers of each kind; empty if all were reached.

    Raises
    ------
    CalibrationError
        If none was reached.

    Examples
    --------
    >>> from weightsmith.core.models import block_layers
    >>> layers = block_layers(nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)) for _ in range(2)]))
    >>> missed(layers, ["0.0", "1.0"], "they stay dense")
    ["No calibration token reached 2 of 4 layers (16 weights), they stay dense: 2 x '*.1'."]
    """
    others = [layer for layer in layers if layer.name not in reached]
    if not others:
        return []
    if len(others) == len(layers):
        raise CalibrationError(
            "no calibration token reaches a layer",
            found=f"{len(layers)} layers such as {[layer.name for layer in layers[:3]]}",
            do="Give data of the inputs that run through them: tokens, images or both.",
        )
    kinds: dict[str, list[str]] = {}
    for layer in others:
        kinds.setdefault(_kind(layer.name), []).append(layer.name)
    listed = [repr(names[0]) if len(names) == 1 else f"{len(names)} x {kind!r}" for kind, names in kinds.items()]
    weights = sum(layer.weight.numel() for layer in others)
    return [
        f"No calibration token reached {len(others)} of {len(layers)} layers ({weights:,} weights), {what}: "
        f"{', '.join(listed)}."
    ]


def _kind(path: str) -> str:
    """A path without the number of its block."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path, count=1)
