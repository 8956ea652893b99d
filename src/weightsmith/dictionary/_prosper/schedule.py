"""What changes from step to step: temperature, data cut, noise, as piecewise linear functions of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, fields, replace

import numpy as np

from weightsmith.core.errors import HyperparameterError

__all__ = ["Points", "Settings", "annealed", "settings_of"]

Points = Sequence[tuple[float, float]]
"""Control points ``(position, value)``; a float is a share of all steps, a negative int counts from the end."""


@dataclass(frozen=True)
class Settings:
    """What holds for one EM step.

    Attributes
    ----------
    temperature : float, default: 1.0
        > 0; the likelihood is raised to its inverse.
    anneal_prior : float, default: 0.0
        Not 0: the prior is raised to the inverse temperature too; MCA, MMCA and GSC always do that.
    cut : float, default: 0.0
        0 to 1: the share of the points expected to have more than ``max_active`` causes that the M-step leaves out.
    partial : float, default: 0.0
        0 to 1: the share of the points drawn for the step; 0 means all.
    components_noise, sigma_noise, data_noise : float, default: 0.0
        Standard deviation of the Gaussian noise added, as a share of the mean of the features' standard deviations.
    pi_noise : float, default: 0.0
        Standard deviation of the Gaussian noise added.
    """

    temperature: float = 1.0
    anneal_prior: float = 0.0
    cut: float = 0.0
    partial: float = 0.0
    components_noise: float = 0.0
    pi_noise: float = 0.0
    sigma_noise: float = 0.0
    data_noise: float = 0.0

    def scaled(self, unit: float) -> Settings:
        """The settings with the noise in the data's unit."""
        names = ("components_noise", "sigma_noise", "data_noise")
        return replace(self, **{name: unit * getattr(self, name) for name in names})


RANGES = {"temperature": (1e-6, float("inf")), "cut": (0.0, 1.0), "partial": (0.0, 1.0)}
"""Values a setting can take, where it is not any number from 0 on."""


def settings_of(schedule: Mapping[str, Points], steps: int) -> list[Settings]:
    """Return the settings of every step.

    Parameters
    ----------
    schedule : mapping of str to sequence of (float, float)
        For every setting its control points: linear in between, constant before the first and after the last.
    steps : int
        At least 1.

    Raises
    ------
    HyperparameterError
        If a setting is unknown, has no points, or a value is out of range.

    Examples
    --------
    >>> [s.temperature for s in settings_of({"temperature": [(0, 5.0), (0.5, 1.0)]}, 6)]
    [5.0, 3.66..., 2.33..., 1.0, 1.0, 1.0]
    """
    names = [field.name for field in fields(Settings)]
    for name, points in schedule.items():
        low, high = RANGES.get(name, (0.0, float("inf")))
        if name not in names:
            raise HyperparameterError("schedule", found=repr(name), expected=f"one of {names}")
        pairs = isinstance(points, Sequence) and all(isinstance(point, Sized) for point in points)
        if not points or not pairs or not all(len(point) == 2 and low <= point[1] <= high for point in points):
            raise HyperparameterError(
                f"schedule of {name}", found=points, expected=f"(position, value) pairs, values {low:g} to {high:g}"
            )
    values = {name: _values(points, steps) for name, points in schedule.items()}
    return [Settings(**{name: value[step] for name, value in values.items()}) for step in range(steps)]


def annealed(temperature: float, end: float) -> dict[str, Points]:
    """Return the default schedule: the temperature falls to 1, and the data cut rises.

    Unlike the paper's it adds noise to the components at high temperature: components that start close become equal
    there, and without noise stay equal.

    Examples
    --------
    >>> annealed(5.0, 0.8)["temperature"]
    [(0, 5.0), (0.8, 1.0)]
    """
    return {
        "temperature": [(0, temperature), (end, 1.0)],
        "cut": [(0, 0.0), (2 / 3, 1.0)],
        "components_noise": [(0, 0.03), (0.6, 0.0)],
    }


def _values(points: Sequence[tuple[float, float]], steps: int) -> list[float]:
    def step(position: float) -> int:
        if isinstance(position, float):
            return int(position * steps)
        return steps + position if position < 0 else position

    positions, values = zip(*sorted((step(position), value) for position, value in points), strict=True)
    return np.interp(range(steps), positions, values).tolist()
