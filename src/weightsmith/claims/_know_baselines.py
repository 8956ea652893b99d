"""Baselines of KNOW's claim: extrapolations and averages of a trajectory, and a warm start.

Every function takes state dicts (**smallest training set first**) and returns one. Integer buffers are those of the
trained network, the last of the trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from weightsmith.core.errors import HyperparameterError, ShapeError

__all__ = [
    "linear_extrapolation",
    "log_linear_extrapolation",
    "moving_average",
    "shrink_and_perturb",
    "snapshot_average",
]

StateDict = Mapping[str, Tensor]


def linear_extrapolation(trajectory: Sequence[StateDict], a: float = 1.0) -> dict[str, Tensor]:
    r"""Extrapolate along the last task vector: :math:`\theta_0 + a (\theta_0 - \theta_1)`.

    Examples
    --------
    >>> linear_extrapolation([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], a=0.5)
    {'w': tensor([4.])}
    """
    return _combine(trajectory, lambda stack: stack[-1] + a * (stack[-1] - stack[-2]))


def log_linear_extrapolation(
    trajectory: Sequence[StateDict], sizes: Sequence[int], *, virtual: float = 2.0
) -> dict[str, Tensor]:
    """Fit a line per weight over the logarithm of the training samples; evaluate it at ``virtual`` times the full set.

    Parameters
    ----------
    trajectory : sequence of state dicts
    sizes : sequence of int
        Training samples of each snapshot.
    virtual : float, default: 2.0
        Multiple of the full data set.

    Raises
    ------
    ShapeError
        If there is not one size for each snapshot.

    Examples
    --------
    >>> line = [{"w": torch.tensor([float(s)])} for s in range(3)]
    >>> log_linear_extrapolation(line, [25, 50, 100], virtual=4.0)["w"].round(decimals=4)
    tensor([4.])
    """
    if len(sizes) != len(trajectory):
        raise ShapeError("sizes of the trajectory", found=len(sizes), expected=len(trajectory))
    x = torch.tensor([math.log(size) for size in sizes], dtype=torch.float64)
    centered = x - x.mean()
    target = math.log(sizes[-1] * virtual) - float(x.mean())
    # The fitted value is linear in the observations: one coefficient per snapshot.
    weights = 1 / len(x) + target * centered / centered.square().sum()
    return _combine(trajectory, lambda stack: torch.tensordot(weights.to(stack), stack, dims=1))


def moving_average(trajectory: Sequence[StateDict], decay: float = 0.5) -> dict[str, Tensor]:
    """Return the exponential moving average along the trajectory, from the smallest training set to the full one.

    Raises
    ------
    HyperparameterError
        If ``decay`` is not in [0, 1).

    Examples
    --------
    >>> moving_average([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}], decay=0.25)
    {'w': tensor([0.7500])}
    """
    if not 0 <= decay < 1:
        raise HyperparameterError("decay", found=decay, expected="a number in [0, 1)")

    def average(stack: Tensor) -> Tensor:
        mean = stack[0]
        for snapshot in stack[1:]:
            mean = decay * mean + (1 - decay) * snapshot
        return mean

    return _combine(trajectory, average)


def snapshot_average(trajectory: Sequence[StateDict]) -> dict[str, Tensor]:
    """Return the uniform average of all snapshots.

    Examples
    --------
    >>> snapshot_average([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}])
    {'w': tensor([0.5000])}
    """
    return _combine(trajectory, lambda stack: stack.mean(dim=0))


def shrink_and_perturb(
    trained: StateDict,
    fresh: StateDict,
    *,
    shrink: float = 0.4,
    perturb: float = 0.1,
) -> dict[str, Tensor]:
    """Warm-start as Ash and Adams do: ``shrink * trained + perturb * fresh`` for tensors of two or more dimensions.

    Parameters
    ----------
    trained, fresh : state dict
        The trained network and a newly initialized one.
    shrink, perturb : float
        Their coefficients.

    References
    ----------
    Ash, Adams. "On Warm-Starting Neural Network Training". NeurIPS 2020. arXiv:1910.08475.

    Examples
    --------
    >>> shrink_and_perturb({"w": torch.ones(1, 1)}, {"w": torch.full((1, 1), 2.0)})["w"].item()
    0.6000000238418579
    """
    return {
        key: shrink * old + perturb * fresh[key] if old.is_floating_point() and old.ndim >= 2 else old
        for key, old in trained.items()
    }


def _combine(trajectory: Sequence[StateDict], function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    combined = dict(trajectory[-1])
    for key, last in combined.items():
        if last.is_floating_point():
            stack = torch.stack([snapshot[key].float() for snapshot in trajectory])
            combined[key] = function(stack).to(last.dtype)
    return combined
