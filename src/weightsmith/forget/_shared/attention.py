r"""Attention maps of activations, recorded by hooks while any network runs.

The map of an activation :math:`x` is the mean of its squares over the channels (axis 1), as a vector of unit length
(Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv 1612.03928); of a plain vector it is the squares
themselves. Two networks differ by the mean squared difference of their maps.

Legend: ``B`` samples, ``P`` positions of a map, ``T`` tokens.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.core.errors import LayerNotFoundError, ShapeError, UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import find_blocks

__all__ = ["AttentionTaps", "Maps", "attention_difference", "attention_map", "differences", "tapped_layers"]

Maps = dict[str, Tensor]
"""Attention maps ``[B, P]`` by the name of the layer; of its second call in one forward pass, ``NAME#2``."""

ACTIVATIONS = tuple(
    getattr(nn, name)
    for name in torch.nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")
)


def attention_map(x: Float[Tensor, "B ..."], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B P"]:
    """Return where the energy of activations is: the mean square over axis 1, as a vector of length 1.

    Parameters
    ----------
    x : Tensor of shape (B, channels, ...), (B, tokens, features) or (B, features)
        Activations. Features without a second axis are squared only: their mean would be one number, which is 1
        after normalization whatever it was.
    mask : Tensor of shape (B, tokens), optional
        Tokens that count in the mean, where axis 1 holds tokens.

    Returns
    -------
    Tensor of shape (B, positions)
        At least float32. A map without energy is zero.

    Examples
    --------
    >>> attention_map(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]))
    tensor([[0.9285, 0.3714]])
    """
    x = upcast(x)
    if x.ndim == 2:
        energy = x.square()
    elif mask is not None and x.ndim == 3 and mask.shape == x.shape[:2]:
        weights = mask.to(x)[..., None]
        energy = (x.square() * weights).sum(1) / weights.sum(1).clamp(min=1)
    else:  # the squares themselves would be as large as x
        energy = torch.linalg.vector_norm(x, dim=1).square() / x.shape[1]
    return nn.functional.normalize(energy.flatten(1), dim=1, eps=1e-12)


def attention_difference(
    ours: Float[Tensor, "B ..."], theirs: Float[Tensor, "B ..."], mask: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean squared difference of two networks' attention maps, between 0 and 2 / positions.

    Parameters
    ----------
    ours, theirs : Tensor
        Activations of one layer, of the same shape.
    mask : Tensor of shape (B, tokens), optional
        Tokens that count.

    Raises
    ------
    ShapeError
        If the shapes differ.

    Examples
    --------
    >>> x = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    >>> round(attention_difference(x, torch.tensor([[[[0.0, 1.0]], [[0.0, 1.0]]]])).item(), 6)
    0.628609
    """
    return _difference("activations", attention_map(ours, mask), attention_map(theirs, mask))


def tapped_layers(model: nn.Module, layers: str | Sequence[str] = "auto") -> list[str]:
    """Return the names of the layers whose outputs are compared.

    Parameters
    ----------
    model : nn.Module
        The network.
    layers : str or sequence of str, default: "auto"
        Shell patterns on the names of modules. ``"auto"`` takes the repeated blocks of a transformer or residual
        network; else the activation functions; else all layers with weights but the last.

    Raises
    ------
    LayerNotFoundError
        If a pattern matches nothing.

    Examples
    --------
    >>> tapped_layers(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)))
    ['1']
    """
    names = {name: module for name, module in model.named_modules() if name}
    if layers == "auto":
        blocks = [name for name in find_blocks(model) if name] if not isinstance(model, nn.Sequential) else []
        if blocks:
            return blocks
        active = [name for name, module in names.items() if isinstance(module, ACTIVATIONS)]
        weighted = [name for name, module in names.items() if module._parameters and not _is_norm(module)]
        return active or weighted[:-1]
    patterns = [layers] if isinstance(layers, str) else layers
    found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise LayerNotFoundError(f"no layer matches {pattern!r}", found=f"layers such as {[*names][:3]}")
    return found


class AttentionTaps:
    """Record the attention maps of some layers of a network, by hooks.

    Parameters
    ----------
    model : nn.Module
        The network; it stays unchanged.
    layers : sequence of str
        Names of modules, see :func:`tapped_layers`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> taps = AttentionTaps(model, ["1"])
    >>> with taps.recording(torch.tensor([True, False, True])) as maps:
    ...     _ = model(torch.rand(3, 2))
    >>> {name: tuple(found.shape) for name, found in maps.items()}
    {'1': (2, 4)}
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        if missing := [name for name in layers if name not in modules]:
            raise LayerNotFoundError(
                f"{type(model).__name__} has no layer {missing[0]!r} to compare",
                do="Name layers that both networks have, or set attention_weight to 0.",
            )
        self.modules = {name: modules[name] for name in layers}

    @contextmanager
    def recording(self, kept: Bool[Tensor, "_"], mask: Bool[Tensor, "_ _"] | None = None) -> Iterator[Maps]:
        """Record the samples that ``kept`` marks of what runs in the block; ``mask`` marks tokens that count."""
        maps: Maps = {}
        chosen = None if mask is None else mask[kept]
        places = kept.nonzero().squeeze(1)

        def hook(name: str, module: nn.Module) -> Any:
            def see(_: nn.Module, __: Any, output: Any) -> None:
                x = _first_tensor(name, output)
                if _is_time_first(module) and x.ndim == 3:
                    x = x.transpose(0, 1)
                if x.ndim < 2 or len(x) != len(kept):
                    raise ShapeError(
                        f"output of layer {name!r}",
                        found=tuple(x.shape),
                        expected=f"{len(kept)} samples in the first axis",
                        do="Name other layers to compare.",
                    )
                count = sum(key.partition("#")[0] == name for key in maps)
                # a copy, which no operation in place that follows can change
                own = x.index_select(0, places)
                maps[f"{name}#{count + 1}" if count else name] = attention_map(own, chosen)

            return see

        handles = [module.register_forward_hook(hook(name, module)) for name, module in self.modules.items()]
        try:
            yield maps
        finally:
            for handle in handles:
                handle.remove()


def differences(ours: Maps, theirs: Maps) -> dict[str, Tensor]:
    """Return the difference of every layer of two networks.

    Raises
    ------
    ShapeError
        If a layer has another number of positions in the other network, or ran another number of times.
    """
    if ours.keys() != theirs.keys():
        raise ShapeError("layers that ran", found=sorted(theirs), expected=sorted(ours))
    return {name: _difference(f"layer {name!r}", ours[name], theirs[name]) for name in ours}


def _difference(what: str, ours: Tensor, theirs: Tensor) -> Tensor:
    if ours.shape != theirs.shape:
        raise ShapeError(
            f"{what}: attention maps of the two networks", found=tuple(theirs.shape), expected=tuple(ours.shape)
        )
    return (ours - theirs.to(ours)).square().mean()


def _first_tensor(name: str, output: Any) -> Tensor:
    """The output itself, or the first tensor of what recurrent and Hugging Face layers return."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    found = next((value for value in values if isinstance(value, Tensor)), None) if values is not None else None
    if found is None:
        raise UnsupportedModelError(f"output of layer {name!r}", found=type(output).__name__, expected="a tensor")
    return found


def _is_time_first(module: nn.Module) -> bool:
    """Whether the first axis of a module's output is time."""
    own = module if isinstance(module, nn.RNNBase) else getattr(module, "self_attn", None)
    return isinstance(own, (nn.RNNBase, nn.MultiheadAttention)) and not own.batch_first


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__
