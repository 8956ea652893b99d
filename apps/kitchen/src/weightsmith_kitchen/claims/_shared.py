"""What the claims share: the user's data or a clear error, arms from values by name, sums of mean energies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from weightsmith.claims.harness import Arm, user_data
from weightsmith.core.errors import CalibrationError
from weightsmith_kitchen.portions import LabeledRecipe

__all__ = ["Role", "Roles", "arms_of", "needed_data", "sums_of_means"]

Role: TypeAlias = Literal["method", "baseline", "control"]
Roles: TypeAlias = Mapping[str, Role]
"""From the name of an arm to its role."""


def needed_data(name: str, experiment: str) -> Path:
    """The path of data that an experiment cannot do without.

    Parameters
    ----------
    name : str
        A folder in the folder that ``WEIGHTSMITH_DATA`` names.
    experiment : str
        What needs it.

    Raises
    ------
    CalibrationError
        If it is not there.
    """
    folder = user_data(name, experiment)
    if folder is None:
        raise CalibrationError(
            f"data of {experiment}", found="nothing", do=f"Set WEIGHTSMITH_DATA to a folder with {name}."
        )
    return folder


def arms_of(values: Mapping[str, Sequence[float]], roles: Roles, *, default: Role = "baseline") -> list[Arm]:
    """One arm per name, in the order of the values.

    Examples
    --------
    >>> [(arm.name, arm.role) for arm in arms_of({"ours": [1.0], "theirs": [2.0]}, {"ours": "method"})]
    [('ours', 'method'), ('theirs', 'baseline')]
    """
    return [Arm(name, roles.get(name, default), found) for name, found in values.items()]


def sums_of_means(train: Sequence[LabeledRecipe], test: Sequence[LabeledRecipe]) -> list[float]:
    """The paper's Pimean: the sum of the mean energies of a recipe's ingredients; an unknown one counts 0."""
    energies: dict[str, list[float]] = {}
    for recipe in train:
        for item in recipe.ingredients:
            energies.setdefault(item.name, []).append(item.kcal)
    mean = {name: statistics.fmean(found) for name, found in energies.items()}
    return [sum(mean.get(item.name, 0.0) for item in recipe.ingredients) for recipe in test]
