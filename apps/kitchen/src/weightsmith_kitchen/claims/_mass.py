"""Meal kit on photos: is the mass of a food better composed of class and size than predicted directly?

ECUSTFD (in the user's data): photos of one food of known mass, with boxes around the food and a coin of 25 mm. Photos
of one portion are in one of five folds. All rows read the same frozen features.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from weightsmith.claims.harness import Claim, ClaimResult, Ordering, each_seed
from weightsmith_kitchen.claims._shared import Roles, arms_of
from weightsmith_kitchen.claims.deepfood import _features, single_foods
from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.folder import FoodPhotos
from weightsmith_kitchen.photos.mass import FoodSize, MassEstimator, Reference, grouped_folds
from weightsmith_kitchen.photos.probe import fit_probe

__all__ = ["MASS", "mass"]

COIN = 25.0
"""Diameter in mm."""
FOLDS, REPEATS, SIDE = 5, 2, 224
BOUND = 19.7
CLASS_STRENGTH = 0.01
STRENGTHS = (100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Of ridge regression on standardized features; one is chosen inside the training folds."""
SIZE_SCALE = 10.0
"""Columns of the size are multiplied by this, so that ridge regression hardly shrinks them: two among 1,280."""

METHOD, VIEW, TYPICAL = "predicted class x size", "predicted class x size, view", "predicted class alone"
DIRECT_LOG = "direct, crop and size, logarithm"
GOAL = f"bound of {BOUND:g} g"

MASS = Claim(
    slug="meal-kit",
    experiment="mass",
    title="Meal kit, mass of a food on a photo",
    statement=(
        f"Class and size compose the mass to {BOUND:g} g or better; that is 4 g better than directly from features and "
        "size, and 3 g better than from the class alone."
    ),
    metric="mean absolute error in g, five folds by portion",
    higher_is_better=False,
    expected=(Ordering(METHOD, GOAL), Ordering(METHOD, DIRECT_LOG, 4.0), Ordering(METHOD, TYPICAL, 3.0)),
    paper="Energy composed of ingredients and portions has an error of 279 kcal, predicted directly 380 kcal.",
    claimed=(Ordering(METHOD, DIRECT_LOG),),
)

ROLES: Roles = {
    METHOD: "method",
    VIEW: "method",
    GOAL: "control",
    "true class x size": "control",
    "true class alone": "control",
}


class Weighed(NamedTuple):
    """The photos with a mass and a coin."""

    photos: FoodPhotos
    whole: np.ndarray
    crops: np.ndarray
    masses: np.ndarray
    sizes: list[FoodSize | None]
    """Width and height; the view is not told. None where the coin's box is too small to be one."""
    viewed: list[FoodSize | None]
    """The same with the view."""


def mass(folder: Path, scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Judge the table of masses; each seed stands for two draws of the folds.

    Parameters
    ----------
    folder : Path
        Where ``ecustfd.json`` is.
    scale : {"cpu"}
        Recorded with the results.
    seeds : sequence of int
        Of the folds.
    """
    start = time.perf_counter()
    data = weighed(folder)
    draws = [seed + 1000 * repeat for repeat in range(REPEATS) for seed in seeds]
    found: list[tuple[float, float, float]] = []

    def experiment(seed: int) -> dict[str, float]:
        values, also = masses_of(data, seed)
        found.append(also)
        return values

    values = each_seed(experiment, draws, MASS.title)
    accuracy, sized, typical = np.mean(found, axis=0)
    notes = (
        f"{len(data.photos)} photos, {len({x.group for x in data.photos})} portions, {data.masses.mean():.1f} g each; "
        f"{sum(size is None for size in data.sizes)} without a usable coin. The predicted class is right for "
        f"{accuracy:.1%}. Boxes and the coin are the annotated ones.",
        f"Intervals of 90 % held {sized:.1%} of the masses by class and size, {typical:.1%} by the class alone.",
        "Each draw deals the folds anew from the same photos: the intervals hold the noise of the folds, not that of "
        "the portions.",
    )
    seconds = time.perf_counter() - start
    return ClaimResult.judge(MASS, arms_of(values, ROLES), scale=scale, seeds=draws, seconds=seconds, notes=notes)


def weighed(folder: Path) -> Weighed:
    """Read the photos whose portion was weighed, their features and sizes."""
    every = single_foods(folder, boxes=False)
    rows = {row["file"]: row for row in json.loads((folder / "ecustfd.json").read_text("utf-8"))}
    whole = _features("ecustfd-photos", every, SIDE).numpy()
    crops = _features("ecustfd-boxes", single_foods(folder, boxes=True), SIDE).numpy()
    kept = [place for place, example in enumerate(every) if rows[example.name]["portions"]]
    sizes: list[FoodSize | None] = []
    viewed: list[FoodSize | None] = []
    masses = []
    for place in kept:
        row = rows[every[place].name]
        food, coin = (
            next(found["box"] for found in row["objects"] if (found["name"] == "coin") is wanted)
            for wanted in (False, True)
        )
        for collected, top in ((sizes, None), (viewed, row["view"] == "T")):
            collected.append(_size(food, coin, top))
        masses.append(row["portions"][0]["mass_g"])
    return Weighed(every.subset(kept), whole[kept], crops[kept], np.array(masses), sizes, viewed)


def _size(food: Sequence[float], coin: Sequence[float], top: bool | None) -> FoodSize | None:
    try:
        return FoodSize.of_boxes(food, Reference(coin, COIN), top=top)
    except PhotoError:  # of one photo the coin's box is smaller than a pixel
        return None


def masses_of(data: Weighed, seed: int) -> tuple[dict[str, float], tuple[float, float, float]]:
    """Errors of all rows on one draw of the folds; accuracy of the class and coverage of the two intervals."""
    labels, groups = [x.label for x in data.photos], [x.group for x in data.photos]
    fold = grouped_folds(labels, groups, FOLDS, seed=seed)
    found = {name: np.zeros(len(labels)) for name in (METHOD, VIEW, TYPICAL, "true class x size", "true class alone")}
    answers = np.array(labels, dtype=object)
    inside = np.zeros((2, len(labels)), dtype=bool)
    for part in range(FOLDS):
        train, held = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        take = lambda values, rows: [values[row] for row in rows]  # noqa: E731
        names, grams, portions = (take(values, train) for values in (labels, data.masses, groups))
        plain = MassEstimator().fit(names, grams, take(data.sizes, train), groups=portions)
        seen = MassEstimator().fit(names, grams, take(data.viewed, train), groups=portions)
        answers[held] = predicted = _classes(data, train, held)
        sizes, truth = take(data.sizes, held), take(labels, held)
        found[METHOD][held] = plain.predict(predicted, sizes)
        found[VIEW][held] = seen.predict(predicted, take(data.viewed, held))
        found[TYPICAL][held] = plain.predict(predicted)
        found["true class x size"][held] = plain.predict(truth, sizes)
        found["true class alone"][held] = plain.predict(truth)
        for place, label, size in zip(held, predicted, sizes, strict=True):
            for row, given in enumerate((size, None)):
                estimate = plain.estimate(label, given)
                inside[row, place] = estimate.low <= data.masses[place] <= estimate.high
    known = [size for size in data.sizes if size is not None]
    usual = tuple(np.exp(np.log([(s.width, s.height) for s in known]).mean(0)))
    size = np.log([usual if s is None else (s.width, s.height) for s in data.sizes])
    whole, crops = _standard(data.whole), _standard(data.crops)
    for name, features in (
        ("direct, whole photo", whole),
        ("direct, crop", crops),
        ("direct, crop and size", np.concatenate([crops, SIZE_SCALE * _standard(size)], axis=1)),
    ):
        found[name], found[f"{name}, logarithm"] = direct(features, data.masses, fold)
    values = {name: float(np.abs(guess - data.masses).mean()) for name, guess in found.items()}
    accuracy = float((answers == np.array(labels, dtype=object)).mean())
    return {**values, GOAL: BOUND}, (accuracy, float(inside[0].mean()), float(inside[1].mean()))


def _classes(data: Weighed, train: np.ndarray, held: np.ndarray) -> list[str]:
    """What a linear probe of the crops answers."""
    x, y = torch.from_numpy(data.crops), torch.from_numpy(data.photos.targets)
    probe = fit_probe(x[train], y[train], data.photos.num_classes, strength=CLASS_STRENGTH)
    return [data.photos.classes[number] for number in (x[held] @ probe.weight.T + probe.bias).argmax(1).tolist()]


def _standard(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1, over all photos: no mass is used, and what leaks favors the direct rows."""
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def direct(x: np.ndarray, masses: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression on the mass, and on its logarithm, for every fold from the others.

    The strength of each is the one of `STRENGTHS` with the least error in g when one of the training folds is left out
    in turn. The folds of that are the outer ones, so each sum of products is made once.
    """
    parts = np.unique(fold)
    targets = np.stack([masses, np.log(masses)], axis=1)
    wide = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    squares = {part: wide[fold == part].T @ wide[fold == part] for part in parts}
    products = {part: wide[fold == part].T @ targets[fold == part] for part in parts}
    solved: dict[tuple[frozenset[int], float], np.ndarray] = {}

    def guess(part: int, without: frozenset[int], strength: float) -> np.ndarray:
        if (without, strength) not in solved:
            used = [other for other in parts if other not in without]
            penalty = np.full(wide.shape[1], strength)
            penalty[-1] = 1e-6  # the intercept is not shrunk
            square = sum(squares[other] for other in used) + np.diag(penalty)
            solved[without, strength] = np.linalg.solve(square, sum(products[other] for other in used))
        found = wide[fold == part] @ solved[without, strength]
        return np.stack([found[:, 0], np.exp(found[:, 1])], axis=1)

    out = np.zeros((len(x), 2))
    for part in parts:
        errors = np.zeros((len(STRENGTHS), 2))
        for row, strength in enumerate(STRENGTHS):
            for other in parts[parts != part]:
                guessed = guess(other, frozenset({part, other}), strength)
                errors[row] += np.abs(guessed - masses[fold == other, None]).sum(0)
        for column, row in enumerate(errors.argmin(0)):
            out[fold == part, column] = guess(part, frozenset({part}), STRENGTHS[row])[:, column]
    return out[:, 0], out[:, 1]
