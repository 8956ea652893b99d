"""Training of the network of portions on a table of one's own recipes, from the table to a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import torch

from weightsmith.core.io import check_output
from weightsmith.core.training import FitOptions
from weightsmith_kitchen.portions.estimator import PortionEstimator
from weightsmith_kitchen.portions.recipes import NOT_LEARNED, OTHER, LabeledRecipe, RecipeTable, read_labeled

__all__ = ["PortionScores", "PortionsTrained", "train_portions"]


@dataclass(frozen=True)
class PortionScores:
    """Estimates for recipes that were not trained on.

    Attributes
    ----------
    recipes : int
        How many.
    units : float
        Share of the ingredients whose unit is right.
    error : float
        Mean absolute error of the recipes' energies, in kcal.
    """

    recipes: int
    units: float
    error: float


@dataclass(frozen=True)
class PortionsTrained:
    """What training on a table gave.

    Attributes
    ----------
    out : str
        The estimator's folder.
    recipes : int
        That were trained on.
    ingredients : int
        Size of the vocabulary.
    units : tuple of str
        That portions are given in.
    test : PortionScores or None
        On other recipes; None without any.
    notes : tuple of str
        What was left out, with counts.
    """

    out: str
    recipes: int
    ingredients: int
    units: tuple[str, ...]
    test: PortionScores | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return asdict(self)


def train_portions(
    table: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    held_out: float = 0.2,
    slots: int = 10,
    width: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    **options: Unpack[FitOptions],
) -> PortionsTrained:
    """Train an estimator of portions, test it on recipes that were left out, and write it as a folder.

    Parameters
    ----------
    table : path-like
        See `read_labeled`.
    out : path-like
        The folder to create.
    held_out : float, default: 0.2
        Share of the recipes to test on.
    slots : int, default: 10
        Most ingredients of a recipe; those of the least energy beyond it are left out.
    width : int, default: 256
        Of the network.
    seed : int, default: 0
        Of split, weights, order and dropout.
    overwrite : bool, default: False
        Replace what is at ``out``.
    **options
        See `PortionEstimator.fit`.

    Raises
    ------
    RecipeError
        If the table cannot be read, or no recipe is left to learn from.
    CheckpointError
        If ``out`` exists or cannot be written; said before training.
    """
    check_output(out, overwrite=overwrite, inputs=[table])
    recipes = read_labeled(table)
    order = torch.randperm(len(recipes), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = int(len(recipes) * held_out)
    held, learned = [recipes[place] for place in order[:cut]], [recipes[place] for place in order[cut:]]
    torch.manual_seed(seed)
    # Heads of 64, as in the paper, drown the small embeddings of a narrow network.
    estimator = PortionEstimator(RecipeTable.learn(learned, slots=slots), width=width, head_width=max(4, width // 8))
    estimator.fit(learned, seed=seed, **options)
    estimator.save_pretrained(out, overwrite=overwrite)
    vocabulary, units = estimator.table.ingredients, tuple(estimator.table.units)
    test, notes = _tested(estimator, held)
    return PortionsTrained(str(out), len(learned), len(vocabulary), units, test, notes)


def _tested(estimator: PortionEstimator, held: Sequence[LabeledRecipe]) -> tuple[PortionScores | None, tuple[str, ...]]:
    """Scores on recipes that were held out, and what of these the estimator does not know."""
    table = estimator.table
    known, notes = set(table.ingredients), []
    unknown = Counter(item.name for recipe in held for item in recipe.ingredients if item.name not in known)
    if unknown:
        told = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(10))
        more = f", and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        notes.append(f"ingredients of the test that are in no recipe learned from, and left out: {told}{more}")
    strange = sorted({item.unit for recipe in held for item in recipe.ingredients} - set(table.units))
    if strange and OTHER not in table.units:
        notes.append(f"units of the test that are in no recipe learned from, and not scored: {', '.join(strange)}")
    samples = table.samples(held)
    if not samples:
        return None, (*notes, "no recipe was left to test on: give more recipes, or a larger --held-out")
    output = estimator.outputs(held)
    mask, unit = (torch.stack([sample[name] for sample in samples]) for name in ("mask", "unit"))
    total = torch.stack([sample["total"] for sample in samples])
    right = ((output.units.argmax(-1) == unit) & mask).sum() / (mask & (unit != NOT_LEARNED)).sum().clamp_min(1)
    error = (output.total - total).abs().mean() * table.kcal_scale
    return PortionScores(len(samples), float(right), float(error)), tuple(notes)
