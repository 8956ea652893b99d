"""Generated plates: photos of 64 x 64 on which each food is a disc, or a few, with an area proportional to its amount.

The list of foods is given; units, portions and energies are read from the image. All networks have the same encoder,
data and budget.
"""

from __future__ import annotations

import colorsys
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from weightsmith.claims.harness import Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import FitOptions, fit
from weightsmith_kitchen.claims._shared import Roles, arms_of, sums_of_means
from weightsmith_kitchen.portions import (
    IngredientMLP,
    LabeledIngredient,
    LabeledRecipe,
    PortionEstimator,
    RecipeTable,
    TotalErrors,
    total_errors,
)
from weightsmith_kitchen.portions.network import LOSSES

__all__ = ["PLATES", "Plates", "encoder", "make_plates", "plates"]

FOODS, DISHES, SIDE = 12, 4, 64
NAMES = [f"food {number}" for number in range(1, FOODS + 1)]
UNIT_AREA = {"cup": 180.0, "count": 60.0}
"""Pixels that one unit covers."""
NOISE, OCCLUDED = 0.1, 0.05
"""Deviation of the noise of a pixel in [0, 1]; share of the plate that a grey square hides."""
HUE = 0.03
"""Deviation of a food's hue from plate to plate; neighbors are 1/12 apart."""
TRAIN, TEST = 2000, 500


@dataclass(frozen=True)
class Plates:
    """Generated plates.

    Attributes
    ----------
    photos : Tensor of shape (plates, 3, 64, 64)
        Pixels, about from -1 to 1.
    recipes : list of LabeledRecipe
        Main ingredients first.
    dishes, mains : list of int
        The dish of each plate, and how many of its ingredients are main ones.
    """

    photos: Tensor
    recipes: list[LabeledRecipe]
    dishes: list[int]
    mains: list[int]


def make_plates(count: int, seed: int) -> Plates:
    """Draw plates.

    Each dish has five foods of which two or three are main ingredients; none to three of the other foods are optional.
    A food comes in cups (one disc) or is counted (one to four discs), in four of five plates in the unit that is its
    own. Its energy per area lies between 0.5 and 4 kcal per pixel, the same in both units.
    """
    rng = np.random.default_rng(seed)
    density = np.geomspace(0.5, 4.0, FOODS)[np.random.default_rng(7).permutation(FOODS)]
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.full((count, SIDE, SIDE, 3), 0.95)
    recipes, dishes, mains = [], [], []
    for plate in range(count):
        dish = int(rng.integers(DISHES))
        own = [(3 * dish + step) % FOODS for step in range(5)]
        chosen = rng.permutation(own)[: int(rng.integers(2, 4))].tolist()
        others = [food for food in range(FOODS) if food not in own]
        extra = rng.permutation(others)[: int(rng.integers(4))].tolist()
        items, placed = [], np.zeros((0, 3))
        for place, food in enumerate([*chosen, *extra]):
            unit = ("cup", "count")[(food % 2) ^ int(rng.random() < 0.2)]
            if unit == "cup":
                amount = float(rng.uniform(0.5, 1.6) if place < len(chosen) else rng.uniform(0.25, 0.6))
                areas = [amount * UNIT_AREA[unit]]
            else:
                amount = float(rng.integers(2, 5) if place < len(chosen) else rng.integers(1, 3))
                areas = [UNIT_AREA[unit]] * int(amount)
            kcal = amount * UNIT_AREA[unit] * float(density[food])
            hue = (food / FOODS + HUE * rng.standard_normal()) % 1
            color = colorsys.hsv_to_rgb(hue, 0.9, 0.9)
            items.append(LabeledIngredient(NAMES[food], unit, amount, kcal))
            for area in areas:
                radius = math.sqrt(area / math.pi)
                placed = np.concatenate([placed, [_free(placed, radius, rng)]])
                column, row, _ = placed[-1]
                pixels[plate][(x - column) ** 2 + (y - row) ** 2 <= radius**2] = color
        hidden = round(SIDE * math.sqrt(OCCLUDED))
        top, left = rng.integers(SIDE - hidden + 1, size=2)
        pixels[plate, top : top + hidden, left : left + hidden] = 0.5
        recipes.append(LabeledRecipe(tuple(items), f"plate {plate}"))
        dishes.append(dish)
        mains.append(len(chosen))
    pixels += NOISE * rng.standard_normal(pixels.shape)
    photos = torch.from_numpy((2 * pixels - 1).astype(np.float32).transpose(0, 3, 1, 2).copy())
    return Plates(photos, recipes, dishes, mains)


def _free(placed: np.ndarray, radius: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """A place that overlaps no disc, or after 30 draws the one that overlaps least."""
    spots = rng.uniform(radius, SIDE - radius, (30, 2))
    if not len(placed):
        return float(spots[0, 0]), float(spots[0, 1]), radius
    gap = np.sqrt(((spots[:, None] - placed[None, :, :2]) ** 2).sum(2)) - placed[:, 2] - radius
    least = gap.min(1)
    place = int(np.argmax(least > 0)) if (least > 0).any() else int(least.argmax())
    return float(spots[place, 0]), float(spots[place, 1]), radius


CHANNELS = 32


def encoder() -> nn.Sequential:
    """A small encoder, from 64 x 64 pixels to a map of 4 x 4; averages keep what areas say."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, CHANNELS, 3, 2, 1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.AvgPool2d(2),
    )


SHAPE: dict[str, Any] = {"width": 32, "layers": 1, "heads": 4, "head_width": 8, "dropout": 0.0}
SLOTS = 6
OPTIONS: FitOptions = {"epochs": 30, "learning_rate": 5e-3, "batch_size": 32, "scheduler": "cosine", "warmup": 0.05}

TUPC, BLIND, DIRECT = "Tupc", "Tupc, no image", "direct CNN"
ENERGIES: Mapping[str, float] = {"calorie": 1.0, "total": 1.0}


class Kind(NamedTuple):
    """One of the networks that are given the list."""

    parts: Mapping[str, float]
    """Of the loss."""
    image: bool = True
    alone: bool = False
    """Each ingredient alone, and summed."""


KINDS: Mapping[str, Kind] = {
    TUPC: Kind(LOSSES),
    "Tcalories (energies, no units)": Kind(ENERGIES),
    "Tcalorie (total alone)": Kind({"total": 1.0}),
    "NNupc (each ingredient alone)": Kind(LOSSES, alone=True),
    "NNcalories (each ingredient alone, no units)": Kind(ENERGIES, alone=True),
    BLIND: Kind(LOSSES, image=False),
}

PLATES = Claim(
    slug="meal-kit",
    experiment="plates",
    title="Meal kit, energy of generated plates",
    statement=(
        "Given the ingredients, Tupc has at most three quarters of the error of the same encoder on the total alone; "
        "without the image its error is 1.5 times as large and the largest of all networks."
    ),
    metric="logarithm of the mean absolute error in kcal",
    higher_is_better=False,
    expected=(Ordering(TUPC, DIRECT, -math.log(0.75)), Ordering(TUPC, BLIND, math.log(1.5)), Ordering(DIRECT, BLIND)),
    paper="Energy composed of ingredients and portions has an error of 279 kcal, predicted directly 380 kcal.",
    claimed=(Ordering(TUPC, DIRECT),),
)
ROLES: Roles = {TUPC: "method", BLIND: "control", "constant median": "control"}


def plates(scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Judge the energies of plates: each seed draws plates and trains anew.

    Parameters
    ----------
    scale : {"cpu"}
        Recorded with the results.
    seeds : sequence of int
        Of the plates and of training.
    """
    start = time.perf_counter()
    found: list[tuple[float, TotalErrors]] = []

    def experiment(seed: int) -> dict[str, float]:
        values, accuracy, errors = plate_errors(seed)
        found.append((accuracy, errors))
        return values

    values = each_seed(experiment, seeds, PLATES.title)
    units = float(np.mean([accuracy for accuracy, _ in found]))
    _, of_mean, mean, median = np.mean([errors for _, errors in found], axis=0)
    notes = (
        f"{TRAIN} plates to train on, {TEST} to test. Of Tupc: {of_mean:.1%} of the mean energy; mean relative error "
        f"{mean:.1%}, median {median:.1%}; units right {units:.1%}, where each food's own unit is right for 80 %.",
        "The hue of a food varies from plate to plate (deviation 0.03, neighbors 0.083 apart). In a pilot with fixed "
        "hues the direct network had an error of 74 kcal and Tupc 72; the visible areas times the true energy per area "
        "have 59: where colors alone tell the food, the list is of no use. With a deviation of 0.05 it was 195 and 90.",
        "All networks: 30 epochs of Adam in batches of 32, the same encoder, no dropout (it raised the errors of a "
        "pilot). Images and networks are smaller than in the paper.",
    )
    seconds = time.perf_counter() - start
    return ClaimResult.judge(PLATES, arms_of(values, ROLES), scale=scale, seeds=seeds, seconds=seconds, notes=notes)


def plate_errors(
    seed: int, sizes: tuple[int, int] = (TRAIN, TEST), options: FitOptions = OPTIONS
) -> tuple[dict[str, float], float, TotalErrors]:
    """Errors of all arms, as logarithms; of Tupc also the accuracy of units and the percentages."""
    train, test = make_plates(sizes[0], 2 * seed), make_plates(sizes[1], 2 * seed + 1)
    table = RecipeTable.learn(train.recipes, slots=SLOTS)
    wanted = np.array([recipe.kcal for recipe in test.recipes])
    totals = {}
    accuracy = math.nan
    for name, kind in KINDS.items():
        torch.manual_seed(seed)
        vision: dict[str, Any] = {"image_encoder": encoder(), "image_channels": CHANNELS} if kind.image else {}
        estimator = PortionEstimator(table, **SHAPE, **vision)
        if kind.alone:
            numbers = len(table.ingredients), len(table.units)
            estimator.network = IngredientMLP(*numbers, width=SHAPE["width"], dropout=0.0, **vision)
        seen = [list(part.photos) if kind.image else None for part in (train, test)]
        estimator.fit(train.recipes, seen[0], parts=kind.parts, seed=seed, **options)
        output = estimator.outputs(test.recipes, seen[1])
        totals[name] = (output.total * table.kcal_scale).numpy()
        if name == TUPC:
            samples = table.samples(test.recipes)
            mask, units = (torch.stack([sample[key] for sample in samples]) for key in ("mask", "unit"))
            accuracy = float((output.units.argmax(-1)[mask] == units[mask]).float().mean())
    totals[DIRECT] = _direct(train, test, table.kcal_scale, seed, options)
    totals["Pimean (mean of each ingredient)"] = np.array(sums_of_means(train.recipes, test.recipes))
    totals["constant median"] = np.full_like(wanted, np.median([recipe.kcal for recipe in train.recipes]))
    errors = {name: math.log(float(np.abs(total - wanted).mean())) for name, total in totals.items()}
    return errors, accuracy, total_errors(totals[TUPC].tolist(), wanted.tolist())


def _direct(train: Plates, test: Plates, scale: float, seed: int, options: FitOptions) -> np.ndarray:
    """Totals by the same encoder, averaged over its places, and a linear layer: no list is given."""
    torch.manual_seed(seed)
    last = nn.Linear(CHANNELS, 1)
    network = nn.Sequential(encoder(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, nn.Flatten(0))
    totals = torch.tensor([recipe.kcal for recipe in train.recipes]) / scale
    nn.init.constant_(last.bias, float(totals.mean()))
    samples = [{"image": photo, "total": total} for photo, total in zip(train.photos, totals, strict=True)]

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return (model(batch["image"]) - batch["total"]).square().mean()

    fit(network, samples, loss=loss, seed=seed, **options)
    with torch.no_grad(), evaluation_mode(network):
        found: np.ndarray = (network(test.photos) * scale).numpy()
    return found
