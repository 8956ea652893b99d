r"""Widen a network: which axes of which weights double, and baselines that fill them.

A narrow model and one of twice its width are compared tensor by tensor. An axis keeps its size or
doubles; a weight matrix whose two axes double is a grid of 2 x 2 blocks, each of the narrow shape. The baselines:

* Net2Net (Chen, Goodfellow, Shlens 2016, arXiv 1511.05641): every unit twice, its outgoing weights halved;
  the function is unchanged.
* random growth: the narrow weight in one corner, :math:`\begin{pmatrix} W & R \\ R & R \end{pmatrix}`.
* the sum of two members' logits, without a larger network.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.data import Batch, call
from weightsmith.core.errors import HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.models import evaluation_mode, get_module
from weightsmith.core.symmetry import Symmetry, find_symmetry, outputs_of
from weightsmith.core.training import logits_of

__all__ = ["LogitSum", "grow_randomly", "is_matrix", "match_widths", "widen_net2net"]

FUSED = ("c_attn", "qkv", "query_key_value", "qkv_proj", "wqkv", "gate_up_proj")
"""Layers with several parts in one output axis: its halves are not the members' units."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SEVERAL_MATRICES = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Modules that hold matrices of outputs by inputs under names of their own."""

TOLERANCE = 1e-4
"""Outputs that differ by more than this share of their largest value are not the same; models may round in float32."""


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
    _check_same_names(narrow, wide)
    ours, theirs = (dict(model.state_dict(keep_vars=True)) for model in (narrow, wide))
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
    narrow: nn.Module,
    wide: nn.Module,
    batch: Batch,
    *,
    noise: float = 0.05,
    generator: torch.Generator | None = None,
) -> None:
    """Fill a wide model with every unit of the narrow one twice, so that it computes the same function.

    Which axes hold the same units is found by running both models (:func:`~weightsmith.core.symmetry.find_symmetry`),
    so attention heads double as blocks, and queries, keys and values in one matrix each by themselves. A wide model
    that would compute something else is refused, as where units that double are summed or normalized together.

    Parameters
    ----------
    narrow, wide : nn.Module
        One architecture in two widths; ``wide`` is changed.
    batch : Batch
        A batch of both models.
    noise : float, default: 0.05
        Standard deviation of what is added to a copy's weights, over theirs; without it the copies stay equal in
        training.
    generator : torch.Generator, optional
        Draws the noise.

    Raises
    ------
    HyperparameterError
        If ``noise`` is negative.
    ShapeError
        If the models have other tensors than one another, or an axis grows that does not hold the same units in both.
    UnsupportedModelError
        If tied weights grow, or the wide model would not compute the same function on the batch; it is unchanged.

    References
    ----------
    Chen, Goodfellow, Shlens 2016, arXiv 1511.05641.

    Examples
    --------
    >>> narrow, wide = (nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2)) for n in (4, 8))
    >>> widen_net2net(narrow, wide, torch.ones(1, 3), noise=0.0)
    >>> torch.allclose(narrow(torch.ones(1, 3)), wide(torch.ones(1, 3)), atol=1e-6)
    True
    """
    if not 0 <= noise < math.inf:
        raise HyperparameterError("noise", found=noise, expected="a number >= 0")
    _check_same_names(narrow, wide)
    small, large = (find_symmetry(model, batch) for model in (narrow, wide))
    values, target = {}, wide.state_dict()
    copies: dict[str, tuple[int, Tensor]] = {}
    for name, value in narrow.state_dict().items():
        inputs = _inputs_axis(*_owner(narrow, name))
        for axis in range(value.ndim):
            if value.shape[axis] == target[name].shape[axis]:
                continue
            if name in small.aliases or name in small.aliases.values():
                raise UnsupportedModelError(f"tied weight {name!r} grows", do="Keep its width, or untie it.")
            origin = _origin(small, large, name, axis)
            value = value.index_select(axis, origin.to(value.device))
            if axis == inputs:  # what leaves a unit is shared by its copies
                shares = origin.bincount()[origin].to(value)
                value = value / shares.view(-1, *[1] * (value.ndim - axis - 1))
            elif inputs is not None:
                copies[name] = axis, _repeated(origin).to(value.device)
        values[name] = value
    _check_same_function(narrow, wide, values, batch)
    for name, places in copies.items():
        value = values[name]
        drawn = torch.randn(value.index_select(*places).shape, generator=generator)
        values[name] = value.index_add(*places, (noise * value.std() * drawn).to(value))
    for name, value in values.items():
        target[name].copy_(value)


def _check_same_function(narrow: nn.Module, wide: nn.Module, values: Mapping[str, Tensor], batch: Batch) -> None:
    """Run copies of both models, the wide one with the values."""
    worst = math.nan
    for dtype in (torch.float32, torch.float64):  # float64 is slower, and excludes rounding
        small, large = (copy.deepcopy(model).to(dtype) for model in (narrow, wide))
        target = large.state_dict()
        for name, value in values.items():
            target[name].copy_(value)
        try:
            pairs = list(zip(_outputs(small, batch), _outputs(large, batch), strict=True))
        except RuntimeError:  # some kernels support one precision only
            if dtype == torch.float64 and math.isnan(worst):
                raise
            continue
        changes = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs]
        if all(change <= TOLERANCE for change in changes):
            return
        worst = max(float((a - b).abs().max()) for a, b in pairs)
    raise UnsupportedModelError(
        "the model widened by copies does not compute the same function",
        found=f"outputs that differ by up to {worst:.2g}",
        expected="no difference beyond rounding",
        do="Keep the width of what is normalized or summed over units, of experts and of heads.",
    )


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    with evaluation_mode(model):
        out = call(model, batch)
        return [tensor for tensor in outputs_of(out) if tensor.is_floating_point() and tensor.numel()]


def _repeated(origin: Int[Tensor, "size"]) -> Int[Tensor, "copies"]:
    """The places that copy what an earlier place copies."""
    first: dict[int, int] = {}
    return torch.tensor(
        [place for place, index in enumerate(origin.tolist()) if first.setdefault(index, place) != place]
    )


def _origin(small: Symmetry, large: Symmetry, key: str, axis: int) -> Int[Tensor, "size"]:
    """The narrow index that each wide index of an axis copies: in each group the index, modulo the narrow size."""
    blocks, ours = (symmetry.axes[key][axis] if key in symmetry.axes else () for symmetry in (large, small))
    sizes = large.shapes[key][axis], small.shapes[key][axis]
    if not blocks or [block.groups for block in blocks] != [block.groups for block in ours]:
        reason = small.left_out.get(key) or large.left_out.get(key) or "holds other units in the two models"
        raise ShapeError(f"axis {axis} of {key!r}, which {reason}", found=f"{sizes[1]} and {sizes[0]} indices")
    origin = torch.full((sizes[0],), -1)
    rest = torch.ones(sizes[1], dtype=torch.bool)
    for block, own in zip(blocks, ours, strict=True):
        places = torch.tensor(own.offset)
        for size, old, stride in zip(block.sizes, own.sizes, own.strides, strict=True):
            places = places.unsqueeze(-1) + stride * (torch.arange(size) % old)
        origin[block.places()] = places
        rest[own.places()] = False
    fixed = rest.nonzero().flatten()
    if int((origin < 0).sum()) != len(fixed):
        raise ShapeError(f"fixed places on axis {axis} of {key!r}", found=int((origin < 0).sum()), expected=len(fixed))
    origin[origin < 0] = fixed
    return origin


@torch.no_grad()
def grow_randomly(narrow: nn.Module, wide: nn.Module) -> None:
    """Write the narrow model's weights into the first halves of a wide one, whose other halves are unchanged.

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
    """The ensemble: the sum of the members' logits.

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
        """Return the sum of the members' logits."""
        return torch.stack([logits_of(call(member, kwargs or args)) for member in self.members]).sum(0)


def is_matrix(module: nn.Module) -> bool:
    """Whether a module's weight is a matrix of outputs by inputs (of a grouped convolution: the inputs per group)."""
    return isinstance(module, (nn.Linear, Conv1D, *CONVOLUTIONS))


def _check_same_names(narrow: nn.Module, wide: nn.Module) -> None:
    if odd := sorted({*narrow.state_dict()} ^ {*wide.state_dict()}):
        raise UnsupportedModelError(
            "narrow and wide model are of different architectures", found=f"{odd[0]!r} in one only"
        )


def _inputs_axis(module: nn.Module, attribute: str) -> int | None:
    """The axis of the inputs in a matrix; None for other tensors."""
    if attribute == "weight" and (is_matrix(module) or (isinstance(module, TRANSPOSED) and module.groups == 1)):
        return 0 if isinstance(module, (Conv1D, *TRANSPOSED)) else 1
    return 1 if "weight" in attribute and isinstance(module, SEVERAL_MATRICES) else None


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return get_module(model, path), attribute


def _check_grows(narrow: nn.Module, wide: nn.Module, name: str, axes: tuple[int, ...]) -> None:
    module, attribute = _owner(narrow, name)
    if not axes:
        return
    path = name.rpartition(".")[0]
    if is_matrix(module):
        outputs = 1 if isinstance(module, Conv1D) else 0
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
