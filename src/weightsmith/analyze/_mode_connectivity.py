r"""Whether two trained networks are connected by a line of low loss, and why.

.. math::
    B = \max_\alpha \big[ L(\theta(\alpha)) - (1 - \alpha)\,L(\theta_a) - \alpha\,L(\theta_b) \big],
    \qquad \theta(\alpha) = (1 - \alpha)\,\theta_a + \alpha\,\theta_b

is the barrier between two sets of weights. Ito, Yamada, Kumagai, "Analysis of Linear Mode Connectivity via
Permutation-Based Weight Matching" (ICLR 2025), arXiv 2402.04051, explain why matching removes it: it aligns the
directions of the largest singular values (:func:`weightsmith.analyze.alignment`), while the distance falls little.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.analyze._shared.alignment import alignment, matrices_of
from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import StateDict
from weightsmith.core.models import along_line, evaluation_mode, has_batchnorm, recalibrate_batchnorm
from weightsmith.core.progress import track
from weightsmith.core.results import Result, record
from weightsmith.embedded import open_model

__all__ = [
    "BarrierCurve",
    "LossSlice",
    "barrier",
    "barrier_curve",
    "distance",
    "loss_slice",
    "mode_connectivity",
    "second_order_barrier",
]

Measure = Callable[[nn.Module], float]
"""The loss of a model, over data of the caller's choice."""


POINTS = tuple(step / 24 for step in range(25))
"""The points of the line at which the paper measures the loss."""


@dataclass(frozen=True)
class BarrierCurve:
    """The loss along a line between two sets of weights.

    Attributes
    ----------
    alphas : tuple of float
        From 0, the first network, to 1, the second.
    losses : tuple of float
        At each point.
    """

    alphas: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """See :func:`barrier`."""
        return barrier(self.losses, self.alphas)


@dataclass(frozen=True)
class LossSlice:
    """The loss on the plane through three sets of weights.

    Attributes
    ----------
    x, y : tuple of float
        Coordinates of the columns and rows, in units of weight distance.
    losses : Tensor of shape (rows, columns)
        The loss at each point.
    points : tuple of tuple of float
        Where the three sets of weights lie.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    losses: Float[Tensor, "rows columns"]
    points: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def barrier(losses: Sequence[float], alphas: Sequence[float] | None = None) -> float:
    """Return by how much the loss along a line exceeds the linear interpolation of the losses at its ends.

    Parameters
    ----------
    losses : sequence of float
        The first and the last are those of the ends.
    alphas : sequence of float, optional
        Where they were measured, ascending from 0 to 1; evenly spaced by default.

    Returns
    -------
    float
        The maximum over the points between the ends; negative where the loss is lower at all of them, and NaN where one
        of them is NaN.

    Raises
    ------
    HyperparameterError
        If there are fewer than three losses, or the points do not ascend from 0 to 1.

    Examples
    --------
    >>> barrier([1.0, 5.0, 3.0]), barrier([1.0, 0.5, 2.0])
    (3.0, -1.0)
    """
    alphas = [i / (len(losses) - 1) for i in range(len(losses))] if alphas is None else alphas
    if len(losses) < 3 or len(losses) != len(alphas):
        raise HyperparameterError("losses along a line", found=len(losses), expected="three or more, one per point")
    if alphas[0] != 0 or alphas[-1] != 1 or any(after < before for before, after in pairwise(alphas)):
        raise HyperparameterError("points of a line", found=tuple(alphas), expected="from 0 to 1, ascending")
    ends = losses[0], losses[-1]
    between = list(zip(losses, alphas, strict=True))[1:-1]
    heights = [loss - (1 - alpha) * ends[0] - alpha * ends[1] for loss, alpha in between]
    return math.nan if any(map(math.isnan, heights)) else max(heights)


def barrier_curve(
    model: nn.Module,
    start: StateDict,
    end: StateDict,
    loss: Measure,
    *,
    alphas: Sequence[float] = POINTS,
    calibration: Batches | None = None,
) -> BarrierCurve:
    """Measure the loss along the line between two sets of weights.

    Parameters
    ----------
    model : nn.Module
        Of their architecture; its own weights are restored afterwards.
    start, end : state dict
        The ends.
    loss : callable
        ``loss(model)`` as a number.
    alphas : sequence of float
        Where to measure; 25 points, as in the paper.
    calibration : Batches, optional
        Training inputs from which the running statistics of batch normalization are re-estimated at every point
        between the ends. Without them the barrier of a network with batch normalization has no meaning, and a warning
        says so.

    Raises
    ------
    NonFiniteError
        If a loss at an end is NaN or infinite, or statistics of batch normalization between the ends are.
    ShapeError
        If the ends do not fit the model.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> ends = [{"weight": torch.tensor([[w]])} for w in (-1.0, 1.0)]
    >>> curve = barrier_curve(model, *ends, lambda m: (1 - m.weight.item() ** 2) ** 2, alphas=(0.0, 0.5, 1.0))
    >>> curve.losses, curve.barrier
    ((0.0, 1.0, 0.0), 1.0)
    """
    batches = _for_statistics(model, calibration)
    losses = []
    with evaluation_mode(model):
        for alpha in along_line(model, start, end, track(list(alphas), "loss along the line")):
            if batches is not None and alpha not in (0, 1):
                recalibrate_batchnorm(model, batches)
            losses.append(float(loss(model)))
            if alpha in (0, 1) and not math.isfinite(losses[-1]):
                raise NonFiniteError(f"the loss at end {alpha:g} of the line", found=losses[-1])
    return BarrierCurve(tuple(map(float, alphas)), tuple(losses))


def distance(start: StateDict, end: StateDict, names: Sequence[str] | None = None) -> float:
    """Return the Euclidean distance of two sets of weights, over all floating tensors or those named.

    Raises
    ------
    ShapeError
        If the second lacks a tensor, or has one of another shape.

    Examples
    --------
    >>> distance({"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([4.0, 3.0])})
    4.0
    """
    names = [name for name in start if start[name].is_floating_point()] if names is None else names
    _check_same(names, start, end)
    return math.sqrt(sum(float((start[name].double() - end[name].double()).square().sum()) for name in names))


@torch.no_grad()
def loss_slice(
    model: nn.Module,
    corners: tuple[StateDict, StateDict, StateDict],
    loss: Measure,
    *,
    steps: int = 15,
    margin: float = 0.25,
    calibration: Batches | None = None,
) -> LossSlice:
    """Measure the loss on the plane through three sets of weights.

    Parameters
    ----------
    model : nn.Module
        Of their architecture; its own weights are restored afterwards.
    corners : tuple of three state dicts
        The first is the origin, the second lies on the first axis.
    loss : callable
        ``loss(model)`` as a number.
    steps : int, default: 15
        Points in each direction.
    margin : float, default: 0.25
        How far the slice extends beyond the three, as a share of its size.
    calibration : Batches, optional
        Re-estimates batch normalization at every point, as for :func:`barrier_curve`.

    Raises
    ------
    HyperparameterError
        If ``steps`` is below 2, or the three lie on a line.
    NonFiniteError
        If statistics of batch normalization are NaN or infinite at a point.
    ShapeError
        If the corners differ in names or shapes, or do not fit the model.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> corners = tuple({"weight": torch.tensor([w])} for w in ([0.0, 0.0], [2.0, 0.0], [0.0, 3.0]))
    >>> slice_ = loss_slice(model, corners, lambda m: m.weight.square().sum().item(), steps=2, margin=0.0)
    >>> slice_.losses
    tensor([[ 0.,  4.],
            [ 9., 13.]])
    """
    if steps < 2:
        raise HyperparameterError("steps", found=steps, expected=">= 2")
    origin, second, third = corners
    names = [name for name, tensor in origin.items() if tensor.is_floating_point()]
    for corner in (second, third):
        _check_same(names, origin, corner)
    along = {name: second[name].double() - origin[name].double() for name in names}
    aside = {name: third[name].double() - origin[name].double() for name in names}
    width = _dot(along, along) ** 0.5
    shift = _dot(along, aside) / width if width else 0.0
    across = {name: aside[name] - shift / width * along[name] for name in names} if width else aside
    height = _dot(across, across) ** 0.5
    if min(width, height) <= 1e-6 * max(width, height):
        raise HyperparameterError("corners of a slice", found="three on a line", expected="three that span a plane")
    xs = _spread(min(0.0, shift), max(width, shift), margin, steps)
    ys = _spread(0.0, height, margin, steps)
    batches = _for_statistics(model, calibration)
    losses = torch.zeros(steps, steps)
    with evaluation_mode(model):
        for row, y in enumerate(track(ys, "loss slice")):
            ends = [
                {
                    name: tensor
                    if name not in along
                    else (tensor.double() + x * along[name] / width + y * across[name] / height).to(tensor.dtype)
                    for name, tensor in origin.items()
                }
                for x in (xs[0], xs[-1])
            ]
            places = [(x - xs[0]) / (xs[-1] - xs[0]) for x in xs]
            for column, _ in enumerate(along_line(model, ends[0], ends[1], places)):
                if batches is not None:
                    recalibrate_batchnorm(model, batches)
                losses[row, column] = loss(model)
    return LossSlice(tuple(xs), tuple(ys), losses, ((0.0, 0.0), (width, 0.0), (shift, height)))


def second_order_barrier(
    model: nn.Module, start: StateDict, end: StateDict, loss: Callable[[nn.Module], Tensor]
) -> float:
    r"""Predict the barrier at the midpoint from the gradients and curvatures at the ends.

    .. math::
        \tfrac12 (g_a - g_b)^\top \delta + \tfrac14 \delta^\top (H_a + H_b)\, \delta, \qquad
        \delta = \tfrac12 (\theta_b - \theta_a)

    Exact for a quadratic loss. For networks after weight matching it is far from the measured barrier, which is the
    paper's argument that they are not connected because they are close.

    Parameters
    ----------
    model : nn.Module
        Of their architecture; its own weights are restored afterwards.
    start, end : state dict
        The ends.
    loss : callable
        ``loss(model)``, twice differentiable.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> ends = [{"weight": torch.tensor([[w]])} for w in (-1.0, 3.0)]
    >>> second_order_barrier(model, *ends, lambda m: m.weight.square().sum())
    -4.0
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    delta = {name: (end[name].to(p) - start[name].to(p)) / 2 for name, p in parameters.items()}
    terms = []
    with evaluation_mode(model):
        for _ in along_line(model, start, end, (0.0, 1.0)):
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(model), [*parameters.values()], create_graph=True)
                slope = sum((g * delta[name]).sum() for name, g in zip(parameters, gradients, strict=True))
                assert isinstance(slope, Tensor)
                bends = (
                    torch.autograd.grad(slope, [*parameters.values()], allow_unused=True)
                    if slope.requires_grad
                    else [None] * len(parameters)
                )
            curve = sum(
                float((h * delta[name]).sum()) for name, h in zip(parameters, bends, strict=True) if h is not None
            )
            terms.append((float(slope.detach()), curve))
    (slope_a, curve_a), (slope_b, curve_b) = terms
    return (slope_a - slope_b) / 2 + (curve_a + curve_b) / 4


def mode_connectivity(model: nn.Module | str, *, other: nn.Module | str, gamma: float = 0.3) -> Result:
    """Compare the weights of two networks of one architecture, layer by layer, without data.

    Parameters
    ----------
    model : nn.Module or str
        One network, or its location: a folder, a hub id, or ``embedded:NAME``.
    other : nn.Module or str
        The other network, or its location.
    gamma : float, default: 0.3
        Singular directions below this share of the largest are left out of the alignment, in [0, 1].

    Returns
    -------
    Result
        For each matrix the distance relative to its norm, the alignment of the singular directions, and the relative
        difference of the singular values, which no permutation can change.

    Raises
    ------
    HyperparameterError
        If ``gamma`` is out of range.
    LayerNotFoundError
        If there is no matrix.
    ShapeError
        If the two differ in names or shapes.

    References
    ----------
    Ito, Yamada, Kumagai, arXiv 2402.04051.
    """
    first, second = (open_model(each).model if isinstance(each, str) else each for each in (model, other))
    start, end = first.state_dict(), second.state_dict()
    if missing := start.keys() ^ end.keys():
        raise ShapeError(f"{len(missing)} tensors are in one model only", found=sorted(missing)[:3])
    with record("mode-connectivity", gamma=gamma) as result:
        result.reading = True
        matrices = matrices_of(first)
        found = alignment(start, end, matrices, gamma=gamma)
        for name, matrix in matrices.items():
            a, b = (matrix(state[name].detach()).double() for state in (start, end))
            s_a, s_b = torch.linalg.svdvals(a), torch.linalg.svdvals(b)
            result.layer(
                name,
                distance=float((a - b).norm() / a.norm()),
                alignment=found.layers[name],
                spectrum_difference=float((s_a - s_b).norm() / s_a.norm()),
            )
        result.title = "mode connectivity"
        result.totals = {"distance": distance(start, end), "alignment": found.value}
    return result


def _check_same(names: Sequence[str], first: StateDict, second: StateDict) -> None:
    for name in names:
        shapes = [tuple(state[name].shape) if name in state else None for state in (first, second)]
        if None in shapes or shapes[0] != shapes[1]:
            raise ShapeError(f"{name!r} of the second weights", found=shapes[1] or "none", expected=shapes[0])


def _for_statistics(model: nn.Module, calibration: Batches | None) -> Batches | None:
    """The batches to estimate batch normalization from, if there is any; a warning where they are missing."""
    if not has_batchnorm(model):
        return None
    if calibration is None:
        warnings.warn(
            "The model has batch normalization, whose running statistics do not fit between the ends: pass "
            "calibration batches to estimate them.",
            stacklevel=3,
        )
    return calibration


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


def _spread(low: float, high: float, margin: float, steps: int) -> list[float]:
    room = margin * (high - low)
    low, high = low - room, high + room
    return [low + (high - low) * i / (steps - 1) for i in range(steps)]
