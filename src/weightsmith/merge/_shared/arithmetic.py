"""Arithmetic on weights that the merging methods share, and the checks of their numbers."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import TensorMap
from weightsmith.core.linalg import upcast
from weightsmith.core.models import lerp

__all__ = ["check_alpha", "check_density", "check_finite", "interpolation", "weight_table", "weighted_sum"]


def interpolation(alpha: float) -> TensorMap:
    """Return the map of the straight line between two networks; exact at both ends."""
    return lambda name, chunks: lambda parts, out: lerp(parts[0], parts[1], alpha, out)


def weighted_sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum tensors with weights, in float32 at least.

    Examples
    --------
    >>> import torch
    >>> weighted_sum([torch.tensor([1.0]), torch.tensor([3.0])], [0.5, 1.0])
    tensor([3.5000])
    """
    total = upcast(parts[0]) * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(upcast(part), alpha=weight)
    return total


def weight_table(weights: Sequence[str], count: int) -> Callable[[str], list[float]]:
    """Read how much each of ``count`` networks counts, by the names of the tensors.

    Parameters
    ----------
    weights : sequence of str
        ``"0.3,0.7"`` for all tensors or ``"PATTERN=0.3,0.7"`` for those that match; one number is for all networks.
        The last line that matches counts; without any, all networks count 1.
    count : int
        Networks.

    Raises
    ------
    HyperparameterError
        If a line is not of this form.

    Examples
    --------
    >>> of = weight_table(["0.5", "*.mlp.*=0.3,0.7"], 2)
    >>> of("layers.0.mlp.up"), of("lm_head")
    ([0.3, 0.7], [0.5, 0.5])
    """
    table = []
    for line in weights:
        pattern, _, numbers = line.rpartition("=")
        try:
            values = [float(number) for number in numbers.split(",")]
        except ValueError:
            values = []
        if len(values) not in (1, count) or not all(map(math.isfinite, values)):
            raise HyperparameterError(
                "weights", found=line, expected=f"'PATTERN=' and one number, or {count} with commas between"
            )
        table.append((pattern or "*", values * count if len(values) == 1 else values))
    return lambda name: next((v for p, v in reversed(table) if fnmatch.fnmatchcase(name, p)), [1.0] * count)


def check_finite(name: str, value: float) -> float:
    """Return a number; refuse one that is not finite.

    Raises
    ------
    HyperparameterError
        If it is not finite.
    """
    if not math.isfinite(value):
        raise HyperparameterError(name, found=value, expected="a finite number")
    return value


def check_alpha(alpha: float, *, stacklevel: int = 3) -> float:
    """Return a share of the second network; warn of extrapolation.

    Raises
    ------
    HyperparameterError
        If it is not finite.
    """
    if not math.isfinite(alpha):
        raise HyperparameterError("alpha", found=alpha, expected="a number, usually in [0, 1]")
    if not 0 <= alpha <= 1:
        warnings.warn(f"alpha = {alpha} lies outside [0, 1]: the line is extrapolated", stacklevel=stacklevel)
    return alpha


def check_density(density: float) -> float:
    """Return a share of the weights of a task vector.

    Raises
    ------
    HyperparameterError
        If it is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise HyperparameterError("density", found=density, expected="in (0, 1]")
    return density
