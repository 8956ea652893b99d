"""Output mixing, as DARTS does it: every choice of a layer is run on its own, and the outputs are mixed.

The ablation of TangleNAS: the same slices and weights, as many passes through a layer as it has joint choices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.search._tanglenas.supernet import Supernet

__all__ = ["mix_outputs"]


def mix_outputs(net: Supernet) -> None:
    """Make the linear layers and convolutions of a super-network mix outputs instead of weights.

    Parameters
    ----------
    net : Supernet
        Changed in place, until it is closed. Not for networks whose attention is split by a choice.

    Raises
    ------
    UnsupportedModelError
        If a layer of another kind depends on a choice.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> net = Supernet(model, {"0.out_features": [2, 4, 8]}, torch.ones(1, 3))
    >>> net.state.set_weights({"0.out_features": torch.tensor([0.2, 0.5, 0.3])})
    >>> mixed = model[0](torch.ones(1, 3))
    >>> mix_outputs(net)
    >>> torch.allclose(model[0](torch.ones(1, 3)), mixed, atol=1e-6)
    True
    """
    if net.space.heads is not None:
        raise UnsupportedModelError("attention that is split by a choice", do="Search no hidden size and no heads.")
    layers = dict.fromkeys(module for module, _ in net.parametrized)
    for name, module in net.model.named_modules():
        if module not in layers or isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if type(module).__bases__[0] not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            raise UnsupportedModelError(f"{name!r} cannot mix outputs", found=type(module).__bases__[0].__name__)
        net.replace_forward(module, _mixture(net, name, module))


def _mixture(net: Supernet, name: str, module: Any) -> Callable[[Tensor], Tensor]:
    key = f"{name}.weight".lstrip(".")
    cuts = net.space.axes[key]
    dims = tuple(d for d in net.space.choices if any(cut is not None and d in cut.dims for cut in cuts))
    channel = -1 if isinstance(module, nn.Linear) else 1
    slices = []
    for architecture in net.space.joint(dims):
        positions = [net.space.positions(key, axis, architecture) for axis in range(len(cuts))]
        slices.append([slice(None) if p is None else slice(int(p[0]), int(p[-1]) + 1) for p in positions])

    def original(attribute: str) -> Tensor:
        held: Any = getattr(module, "parametrizations", {})
        value: Tensor = held[attribute].original if attribute in held else getattr(module, attribute)
        return value

    def forward(x: Tensor) -> Tensor:
        whole, weights = original("weight"), net.state.joint(dims)
        total: Tensor | None = None
        for place in net.state.active(dims):
            own = slices[place]
            weight = whole[tuple(own)]
            bias = None if module.bias is None else original("bias")[own[0]]
            rows = x if own[1] == slice(None) else x.narrow(channel, own[1].start, own[1].stop - own[1].start)
            if isinstance(module, nn.Linear):
                out = nn.functional.linear(rows, weight, bias)
            else:
                less = [
                    (a - b) // 2 * d for a, b, d in zip(whole.shape[2:], weight.shape[2:], module.dilation, strict=True)
                ]
                padding = [p - q for p, q in zip(module.padding, less, strict=True)]
                convolve = getattr(nn.functional, f"conv{whole.ndim - 2}d")
                out = convolve(rows, weight, bias, module.stride, padding, module.dilation)
            missing = whole.shape[0] - weight.shape[0]
            if missing:
                pad = [0, missing] if channel == -1 else [0, 0] * (out.ndim - 2) + [0, missing]
                out = nn.functional.pad(out, pad)
            total = out * weights[place] if total is None else total + out * weights[place]
        assert total is not None
        return total

    return forward
