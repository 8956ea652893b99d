r"""Interpolate a model's weights on the straight line between two sets of weights.

.. math::
    \theta(\alpha) = (1 - \alpha)\,\theta_0 + \alpha\,\theta_1

Barrier curves, accuracy curves of weight averaging and slices of the loss are measured at points of such a line.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.io import StateDict
from weightsmith.core.tied import tensor_owners

__all__ = ["along_line", "interpolate_", "lerp"]


def lerp(
    start: Shaped[Tensor, "*shape"],
    end: Shaped[Tensor, "*shape"],
    alpha: float,
    out: Shaped[Tensor, "*shape"] | None = None,
) -> Shaped[Tensor, "*shape"]:
    """Return ``(1 - alpha) * start + alpha * end``, computed in float32 at least and rounded once.

    At ``alpha = 0`` and ``alpha = 1`` the finite values are those of ``start`` and ``end`` bit by bit. Integers and
    booleans are not averaged: they are those of ``end``.

    Parameters
    ----------
    start, end : Tensor
        Of one shape.
    alpha : float
        Any number; outside [0, 1] the line is extrapolated.
    out : Tensor, optional
        Where to write; also gives the element type and the device, which are otherwise those of ``end``.

    Returns
    -------
    Tensor
        ``out``, or a new tensor.

    Examples
    --------
    >>> lerp(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), 0.25)
    tensor([1.5000, 2.0000])
    >>> lerp(torch.tensor([1]), torch.tensor([3]), 0.25)
    tensor([3])
    """
    out = torch.empty_like(end) if out is None else out
    if not (end.is_floating_point() or end.is_complex()):
        return out.copy_(end)
    alike = start.dtype == end.dtype == out.dtype and start.device == end.device == out.device
    # torch has no arithmetic on eight-bit floats and complex halves; on floats of two bytes it uses float32
    if alike and end.dtype.itemsize > (4 if end.is_complex() else 1):
        return torch.lerp(start, end, alpha, out=out)
    wide = torch.promote_types(out.dtype, torch.float32) if out.dtype.itemsize > 1 else torch.float32
    return out.copy_(torch.lerp(start.to(out.device, wide), end.to(out.device, wide), alpha))


def along_line(
    model: nn.Module, start: StateDict, end: StateDict, alphas: Iterable[float]
) -> Generator[float, None, None]:
    """Set the model to points of the line between two sets of weights, one after the other, in place.

    A step reads both ends and writes the weights once, so rounding errors do not accumulate. The model's weights are
    restored when the loop ends, breaks or raises.

    Parameters
    ----------
    model : nn.Module
        Holds the weights at each point; not copied. Tied weights are set once.
    start, end : state dict
        The ends of the line, with the names of ``model.state_dict()`` (which they may be); of tied weights one name
        is enough. Integer buffers are those of ``end`` throughout.
    alphas : iterable of float
        The points: 0 is ``start``, 1 is ``end``, outside of [0, 1] the line is extrapolated.

    Yields
    ------
    float
        The point that the model is at.

    Raises
    ------
    ShapeError
        If the ends lack weights of the model, have others, or differ in shape; the model is not touched.
    HyperparameterError
        If a point is not finite.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> start, end = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[3.0]])}
    >>> [model.weight.item() for alpha in along_line(model, start, end, (0.0, 0.5, 1.0))]
    [1.0, 2.0, 3.0]
    """
    own, backup, triples = _line(model, start, end)
    return _walk(own, backup, triples, alphas)


def interpolate_(model: nn.Module, start: StateDict, end: StateDict, alpha: float) -> None:
    """Set the model to a point of the line between two sets of weights, in place.

    Parameters
    ----------
    model, start, end
        As for :func:`along_line`.
    alpha : float
        The point.

    Raises
    ------
    ShapeError, HyperparameterError
        As :func:`along_line`.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> interpolate_(model, {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[3.0]])}, 0.5)
    >>> model.weight.item()
    2.0
    """
    own, backup, triples = _line(model, start, end)
    try:
        _put(triples, alpha)
    except BaseException:
        _restore(own, backup)
        raise


def _line(
    model: nn.Module, start: StateDict, end: StateDict
) -> tuple[StateDict, StateDict, list[tuple[Tensor, Tensor, Tensor]]]:
    """The model's tensors, copies of them, and of each what to write to and the two ends."""
    own = model.state_dict()
    owners = tensor_owners(own)
    for side, ends in (("start", start), ("end", end)):
        _check_same(f"{side} of the line", ends, own, owners)
    backup = {name: own[name].clone() for name in dict.fromkeys(owners.values())}
    # an end that is the model's own storage would move with the model
    alias = {own[name].data_ptr(): copy for name, copy in backup.items() if copy.numel()}
    triples = [(own[name], *(_stay(_find(ends, owners, name), alias) for ends in (start, end))) for name in backup]
    return own, backup, triples


@torch.no_grad()
def _put(triples: Iterable[tuple[Tensor, Tensor, Tensor]], alpha: float) -> None:
    if not math.isfinite(alpha):
        raise HyperparameterError("alpha", found=alpha, expected="a finite number")
    for target, start, end in triples:
        lerp(start, end, alpha, out=target)


def _walk(
    own: StateDict, backup: StateDict, triples: list[tuple[Tensor, Tensor, Tensor]], alphas: Iterable[float]
) -> Generator[float, None, None]:
    try:
        for alpha in alphas:
            _put(triples, alpha)
            yield alpha
    finally:
        _restore(own, backup)


@torch.no_grad()
def _restore(own: StateDict, backup: StateDict) -> None:
    for name, tensor in backup.items():
        own[name].copy_(tensor)


def _find(ends: StateDict, owners: Mapping[str, str], name: str) -> Tensor:
    """The tensor of ``name``, or of a weight that the model ties to it."""
    return next(ends[other] for other in (name, *owners) if other in ends and owners[other] == owners[name])


def _stay(tensor: Tensor, alias: Mapping[int, Tensor]) -> Tensor:
    """The tensor, or the copy of it where it is a weight of the model itself."""
    copy = alias.get(tensor.data_ptr()) if tensor.numel() else None
    return tensor.detach() if copy is None or copy.shape != tensor.shape else copy


def _check_same(what: str, state: StateDict, own: StateDict, owners: Mapping[str, str]) -> None:
    given = {owners[name] for name in state if name in owners}
    missing = [name for name, owner in owners.items() if name not in state and owner not in given]
    odd = missing + [name for name in state if name not in owners]
    if odd:
        raise ShapeError(f"{what}: {len(odd)} names", found=odd[:5], expected="the names of model.state_dict()")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ShapeError(f"{what}: {name!r}", found=tuple(tensor.shape), expected=tuple(own[name].shape))
