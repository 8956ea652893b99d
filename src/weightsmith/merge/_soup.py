r"""Sums of trained weights: the uniform soup, task arithmetic, spherical interpolation.

.. math::
    \theta = \sum_i w_i \theta_i \;\text{(soup)}, \qquad
    \theta = \theta_0 + \lambda \sum_i (\theta_i - \theta_0) \;\text{(task arithmetic)}, \qquad
    \theta = \frac{\sin((1-t)\omega)}{\sin\omega}\theta_0 + \frac{\sin(t\omega)}{\sin\omega}\theta_1
    \;\text{(slerp)}

Each exists for state dicts in memory and, as a command, for checkpoints of any size on disk; both share one rule.
Arithmetic is in float32, rounded once to the element type of the last network.

Wortsman et al. 2022, arXiv 2203.05482 (soup); Ilharco et al. 2023, arXiv 2212.04089 (task arithmetic); Shoemake 1985
(slerp).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import Combine, Pass, Rule, StateDict, merge_folders, merge_state_dicts
from weightsmith.core.models import lerp
from weightsmith.core.results import Result, record

__all__ = [
    "add_tasks",
    "average",
    "check_two",
    "interpolation",
    "slerp",
    "slerp_average",
    "soup",
    "task_arithmetic",
    "wide",
]


def average(states: Sequence[StateDict], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average state dicts: the uniform soup, or a weighted one.

    Parameters
    ----------
    states : sequence of state dict
        Of one architecture, fine-tuned from one start.
    weights : sequence of float, optional
        Used as they are: those of an average sum to one. Equal by default.

    Returns
    -------
    dict of str to Tensor
        Integers are those of the last.

    Raises
    ------
    HyperparameterError
        If there is not one finite weight for each network.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.

    Examples
    --------
    >>> average([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}])
    {'w': tensor([0.5000])}
    """
    return merge_state_dicts(states, _linear(_shares(len(states), weights)))


def soup(
    checkpoints: Sequence[Path], out: Path, *, weights: Sequence[float] | None = None, overwrite: bool = False
) -> Result:
    """Average checkpoints on disk: the uniform soup, or a weighted one.

    Parameters
    ----------
    checkpoints : sequence of path
        Two or more networks of one architecture, fine-tuned from one start.
    out : path
        Folder for the average; small files come from the last checkpoint.
    weights : sequence of float, optional
        One a checkpoint, used as they are; equal by default.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If the weights or the checkpoints do not fit; nothing is written.

    References
    ----------
    Wortsman et al. "Model soups". ICML 2022. arXiv:2203.05482.
    """
    rule = _linear(_shares(len(checkpoints), weights))
    return _on_disk("soup", checkpoints, out, rule, overwrite=overwrite, hyper={"weights": weights})


def add_tasks(base: StateDict, tuned: Sequence[StateDict], scale: float | Sequence[float] = 0.4) -> dict[str, Tensor]:
    """Add what each fine-tuning changed to the base network, scaled.

    Parameters
    ----------
    base : state dict
        What all were fine-tuned from.
    tuned : sequence of state dict
        Fine-tuned networks.
    scale : float or sequence of float, default: 0.4
        For all, or one a network; negative forgets a task.

    Returns
    -------
    dict of str to Tensor
        ``base + scale_1 (tuned_1 - base) + ...``.

    Raises
    ------
    HyperparameterError
        If there is not one finite scale for each network.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.

    Examples
    --------
    >>> base, a, b = ({"w": torch.tensor([value])} for value in (1.0, 2.0, 5.0))
    >>> add_tasks(base, [a, b], scale=0.5)
    {'w': tensor([3.5000])}
    """
    return merge_state_dicts([base, *tuned], _tasks(_scales(len(tuned), scale)))


def task_arithmetic(
    checkpoints: Sequence[Path], out: Path, *, scale: Sequence[float] = (0.4,), overwrite: bool = False
) -> Result:
    """Add what each fine-tuning changed to the base network, checkpoints on disk.

    Parameters
    ----------
    checkpoints : sequence of path
        The base network first, then those fine-tuned from it.
    out : path
        Folder for the result; small files come from the last checkpoint.
    scale : sequence of float, default: 0.4
        One for all, or one a fine-tuned network; negative forgets a task.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If the scales or the checkpoints do not fit; nothing is written.

    References
    ----------
    Ilharco et al. "Editing Models with Task Arithmetic". ICLR 2023. arXiv:2212.04089.
    """
    rule = _tasks(_scales(len(checkpoints) - 1, scale[0] if len(scale) == 1 else scale))
    return _on_disk("task-arithmetic", checkpoints, out, rule, overwrite=overwrite, hyper={"scale": scale})


def slerp_average(start: StateDict, end: StateDict, t: float = 0.5) -> dict[str, Tensor]:
    """Interpolate each tensor along the arc from its direction in ``start`` to that in ``end``.

    Where the two are parallel, or one is zero, this is the straight line.

    Parameters
    ----------
    start, end : state dict
        Of one architecture.
    t : float, default: 0.5
        0 is ``start``, 1 is ``end``.

    Returns
    -------
    dict of str to Tensor
        Integers are those of ``end``.

    Raises
    ------
    HyperparameterError
        If ``t`` is not finite.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.

    Examples
    --------
    >>> slerp_average({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])})
    {'w': tensor([0.7071, 0.7071])}
    """
    return merge_state_dicts([start, end], _slerp(_finite("t", t)))


def slerp(checkpoints: Sequence[Path], out: Path, *, t: float = 0.5, overwrite: bool = False) -> Result:
    """Interpolate two checkpoints on disk along the arc between the directions of each tensor.

    Parameters
    ----------
    checkpoints : sequence of path
        Two networks of one architecture.
    out : path
        Folder for the result; small files come from the second checkpoint.
    t : float, default: 0.5
        0 is the first, 1 is the second.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If there are not two checkpoints or they do not fit; nothing is written.
    """
    check_two(checkpoints)
    return _on_disk("slerp", checkpoints, out, _slerp(_finite("t", t)), overwrite=overwrite, hyper={"t": t})


def interpolation(t: float) -> Rule:
    """The rule of the straight line between two networks; exact at both ends."""
    return lambda chunks: lambda parts, out: lerp(parts[0], parts[1], t, out)


def check_two(checkpoints: Sequence[Path]) -> None:
    """Refuse anything but two checkpoints.

    Raises
    ------
    HyperparameterError
        If there are not two.
    """
    if len(checkpoints) != 2:
        raise HyperparameterError("checkpoints", found=len(checkpoints), expected="two: BASE TUNED")


def wide(part: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The numbers in float32, or in float64 where they are."""
    return part.to(torch.promote_types(part.dtype, torch.float32) if part.element_size() > 1 else torch.float32)


def _linear(weights: Sequence[float]) -> Rule:
    return lambda chunks: lambda parts, out: out.copy_(_sum(parts, weights))


def _sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = wide(parts[0]) * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(wide(part), alpha=weight)
    return total


def _tasks(scales: Sequence[float]) -> Rule:
    def combine(parts: Sequence[Tensor], out: Tensor) -> None:
        base = wide(parts[0])
        total = base.clone()
        for part, scale in zip(parts[1:], scales, strict=True):
            total.add_(wide(part) - base, alpha=scale)
        out.copy_(total)

    return lambda chunks: combine


def _slerp(t: float) -> Rule:
    def rule(chunks: Pass) -> Combine:
        products = torch.zeros(3, dtype=torch.float64)
        for start, end in chunks():
            a, b = wide(start), wide(end)
            products += torch.stack([a @ a, b @ b, a @ b]).double()
        aa, bb, ab = products.tolist()
        norms = math.sqrt(aa * bb)
        cosine = max(-1.0, min(1.0, ab / norms)) if norms > 0 else 1.0
        if not abs(cosine) < 1 - 1e-6:  # parallel, opposite, zero, or NaN, which the engine names
            return lambda parts, out: lerp(parts[0], parts[1], t, out)
        angle = math.acos(cosine)
        weights = [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
        return lambda parts, out: out.copy_(_sum(parts, weights))

    return rule


def _shares(count: int, weights: Sequence[float] | None) -> Sequence[float]:
    shares = [1 / max(count, 1)] * count if weights is None else list(weights)
    if len(shares) != count or not all(map(math.isfinite, shares)):
        raise HyperparameterError("weights", found=weights, expected=f"{count} finite numbers")
    return shares


def _scales(count: int, scale: float | Sequence[float]) -> Sequence[float]:
    scales = [scale] * count if isinstance(scale, (int, float)) else list(scale)
    if len(scales) != count or not all(map(math.isfinite, scales)):
        raise HyperparameterError(
            "scale", found=scale, expected=f"a finite number, or one for each of {count} networks"
        )
    return scales


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise HyperparameterError(name, found=value, expected="a finite number")
    return value


def _on_disk(
    method: str, checkpoints: Sequence[Path], out: Path, rule: Rule, *, overwrite: bool, hyper: dict[str, Any]
) -> Result:
    with record(method, **hyper) as result:
        result.totals = merge_folders(checkpoints, out, rule, overwrite=overwrite).totals
    return result
