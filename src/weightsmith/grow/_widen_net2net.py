r"""Twice the width: which axes of which weights double, and the plain ways to fill them.

A narrow model and one of twice its width are compared tensor by tensor. An axis either stays or doubles; a weight
matrix whose two axes double is a grid of 2 x 2 blocks, each of the narrow shape. The plain ways:

* Net2Net (Chen, Goodfellow, Shlens 2016, arXiv 1511.05641): every unit twice, what leaves it halved; the function stays
* random growth: the narrow weight in one corner, :math:`\begin{pmatrix} W & R \\ R & R \end{pmatrix}`.
* the sum of two members' logits, without growing anything.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.data import call
from weightsmith.core.errors import HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.models import get_module
from weightsmith.core.training import logits_of

__all__ = ["LogitSum", "grow_randomly", "is_matrix", "match_widths", "widen_net2net"]

FUSED = ("c_attn", "qkv", "query_key_value", "qkv_proj", "wqkv", "gate_up_proj")
"""Layers whose outputs are several parts side by side: their halves are not the members' units."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def match_widths(narrow: nn.Module, wide: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the axes that double, of every parameter and buffer by name.

    Parameters
    ----------
    narrow, wide : nn.Module
        One architecture in two widths.

    Returns
    -------
    dict of str to tuple of int
        Empty for what does not grow. Of a weight matrix the axes are its own (0 outputs, 1 inputs for ``nn.Linear``).

    Raises
    ------
    ShapeError
        If an axis neither stays nor doubles, or nothing grows.
    UnsupportedModelError
        If the models have other tensors than one another, or a layer grows whose halves are not two members' units:
        queries, keys and values in one matrix, groups that do not double, tied weights.

    Examples
    --------
    >>> match_widths(nn.Linear(3, 4), nn.Linear(3, 8))
    {'weight': (0,), 'bias': (0,)}
    """
    ours, theirs = (dict(model.state_dict(keep_vars=True)) for model in (narrow, wide))
    if odd := sorted({*ours} ^ {*theirs}):
        raise UnsupportedModelError(
            "narrow and wide model are of different architectures", found=f"{odd[0]!r} in one only"
        )
    axes: dict[str, tuple[int, ...]] = {}
    for name, tensor in ours.items():
        sizes = list(zip(tensor.shape, theirs[name].shape, strict=False))
        if tensor.ndim != theirs[name].ndim or any(b not in (a, 2 * a) for a, b in sizes):
            raise ShapeError(
                f"{name!r} of the wide model",
                found=tuple(theirs[name].shape),
                expected=f"each axis of {tuple(tensor.shape)} or its double",
                do="Take an even width of which every layer's width is a multiple.",
            )
        axes[name] = tuple(axis for axis, (a, b) in enumerate(sizes) if a != b)
        _check_grows(narrow, wide, name, axes[name])
    if not any(axes.values()):
        raise ShapeError("the wide model", found="no tensor larger than the narrow one's")
    tied = [places for places in _places(ours).values() if len(places) > 1 and any(axes[place] for place in places)]
    if tied:
        raise UnsupportedModelError(f"tied weights {tied[0]} grow", do="Keep their width, or untie them.")
    return axes


@torch.no_grad()
def widen_net2net(
    narrow: nn.Module, wide: nn.Module, *, noise: float = 0.05, generator: torch.Generator | None = None
) -> None:
    """Fill a wide model with every unit of the narrow one twice, so that it computes the same.

    Parameters
    ----------
    narrow, wide : nn.Module
        One architecture in two widths; ``wide`` is changed.
    noise : float, default: 0.05
        Standard deviation of what is added to a copy's weights, over theirs; without it the two stay alike for ever.
    generator : torch.Generator, optional
        Draws it.

    Raises
    ------
    HyperparameterError
        If ``noise`` is negative.
    ShapeError, UnsupportedModelError
        As :func:`match_widths`.

    References
    ----------
    Chen, Goodfellow, Shlens 2016, arXiv 1511.05641.

    Examples
    --------
    >>> narrow, wide = (nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2)) for n in (4, 8))
    >>> widen_net2net(narrow, wide, noise=0.0)
    >>> torch.allclose(narrow(torch.ones(1, 3)), wide(torch.ones(1, 3)), atol=1e-6)
    True
    """
    if noise < 0:
        raise HyperparameterError("noise", found=noise, expected="at least 0")
    target = wide.state_dict()
    for name, axes in match_widths(narrow, wide).items():
        value = narrow.state_dict()[name]
        module, attribute = _owner(narrow, name)
        for axis in axes:
            value = torch.cat([value, value], axis)
        if attribute == "weight" and is_matrix(module):
            inputs = _inputs_axis(module)
            if inputs in axes:
                value = value / 2
            if 1 - inputs in axes:
                copies = value.chunk(2, 1 - inputs)[1]
                copies += noise * value.std() * torch.randn(copies.shape, generator=generator).to(value)
        target[name].copy_(value)


@torch.no_grad()
def grow_randomly(narrow: nn.Module, wide: nn.Module) -> None:
    """Write the narrow model's weights into the first halves of a wide one, whose other halves stay as they are.

    Parameters
    ----------
    narrow, wide : nn.Module
        One architecture in two widths; ``wide``, freshly made, is changed.

    Raises
    ------
    ShapeError, UnsupportedModelError
        As :func:`match_widths`.

    Examples
    --------
    >>> narrow, wide = nn.Linear(2, 2), nn.Linear(4, 4)
    >>> grow_randomly(narrow, wide)
    >>> torch.equal(wide.weight[:2, :2], narrow.weight)
    True
    """
    target = wide.state_dict()
    match_widths(narrow, wide)
    for name, value in narrow.state_dict().items():
        target[name][tuple(slice(size) for size in value.shape)] = value


class LogitSum(nn.Module):
    """The plain ensemble: the sum of the members' logits.

    Parameters
    ----------
    *members : nn.Module
        Models of the same classes.

    Examples
    --------
    >>> LogitSum(nn.Identity(), nn.Identity())(torch.ones(1))
    tensor([2.])
    """

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Add up what the members say."""
        return torch.stack([logits_of(call(member, kwargs or args)) for member in self.members]).sum(0)


def is_matrix(module: nn.Module) -> bool:
    """Whether a module's weight is a matrix of outputs by inputs (for a grouped convolution: by a group's inputs)."""
    return isinstance(module, (nn.Linear, Conv1D, *CONVOLUTIONS))


def _inputs_axis(module: nn.Module) -> int:
    return 0 if isinstance(module, Conv1D) else 1


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return get_module(model, path), attribute


def _check_grows(narrow: nn.Module, wide: nn.Module, name: str, axes: tuple[int, ...]) -> None:
    module, attribute = _owner(narrow, name)
    if not axes:
        return
    path = name.rpartition(".")[0]
    if is_matrix(module):
        outputs = 1 - _inputs_axis(module)
        if path.rpartition(".")[2].lower() in FUSED and (attribute == "bias" or outputs in axes):
            raise UnsupportedModelError(
                f"layer {path!r} holds several parts side by side, whose halves are not two members'",
                do="Keep its outputs at one width (grow the inner width of the MLP only), or split it.",
            )
        if isinstance(module, CONVOLUTIONS) and attribute == "weight":
            groups = (module.groups, get_module(wide, path).groups)
            if groups != (1, 1) and (groups[1] != 2 * groups[0] or 1 in axes):
                raise UnsupportedModelError(f"groups of layer {path!r}", found=groups, expected="twice as many")
    elif len(axes) > 1:
        raise UnsupportedModelError(
            f"{name!r} of a {type(module).__name__} grows along {len(axes)} axes", expected="one"
        )
    elif attribute == "weight" and "Norm" in type(module).__name__ and not _separable(module, get_module(wide, path)):
        warnings.warn(
            f"{path!r} ({type(module).__name__}) is taken over all channels: the grown model is no sum of its members",
            stacklevel=3,
        )


def _separable(narrow: nn.Module, wide: nn.Module) -> bool:
    """Whether a norm of the whole width is the members' norms side by side."""
    if isinstance(narrow, nn.GroupNorm):
        return bool(wide.num_groups == 2 * narrow.num_groups)
    return isinstance(narrow, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm))


def _places(state: dict[str, Tensor]) -> dict[int, list[str]]:
    places: dict[int, list[str]] = {}
    for name, tensor in state.items():
        places.setdefault(id(tensor), []).append(name)
    return places
