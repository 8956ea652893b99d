"""The first stage on generated plates: does the list of ingredients follow from the image, or from the dish alone?

The plates of `_plates`; the dish is given. The control takes, for each dish, the foods that are most frequent in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightsmith.claims.harness import Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.training import FitOptions, fit
from weightsmith_kitchen.claims._plates import CHANNELS, DISHES, FOODS, NAMES, TEST, TRAIN, Plates, encoder, make_plates
from weightsmith_kitchen.claims._shared import Roles, arms_of
from weightsmith_kitchen.portions import IngredientDecoder

__all__ = ["INGREDIENTS", "ingredients"]

MAIN = OPTIONAL = 3
"""Most foods of each list, on these plates."""
SHAPE: dict[str, Any] = {"width": 32, "layers": 1, "heads": 4, "head_width": 8, "dropout": 0.0}
OPTIONS: FitOptions = {"epochs": 20, "learning_rate": 5e-3, "batch_size": 64, "scheduler": "cosine", "warmup": 0.05}

DECODER, NO_DISH, BLIND, FREQUENT = (
    "image and dish",
    "image, no dish",
    "dish, no image",
    "most frequent foods of the dish",
)

INGREDIENTS = Claim(
    slug="meal-kit",
    experiment="ingredients",
    title="Meal kit, ingredients of generated plates",
    statement=(
        "The decoder's lists overlap more with the true ones than the most frequent foods of the dish, and need the "
        "image."
    ),
    metric="intersection over union of all foods of a plate",
    higher_is_better=True,
    expected=(Ordering(DECODER, FREQUENT, 0.1), Ordering(DECODER, BLIND, 0.2)),
    paper="With the dish token the intersection over union is 34.1 %, without it 31.5 %.",
    claimed=(Ordering(DECODER, NO_DISH),),
)
ROLES: Roles = {DECODER: "method", BLIND: "control", FREQUENT: "control"}


def ingredients(scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Judge the lists of plates: each seed draws plates and trains anew.

    Parameters
    ----------
    scale : {"cpu"}
        Recorded with the results.
    seeds : sequence of int
        Of the plates and of training.
    """
    start = time.perf_counter()
    values = each_seed(overlaps, seeds, INGREDIENTS.title)
    seconds = time.perf_counter() - start
    notes = (
        "No photos with lists of ingredients are at hand: this stage is not measured on real ones. The paper's lists "
        "have up to 5 and 10 of 202 ingredients, these up to 3 and 3 of 12.",
    )
    return ClaimResult.judge(
        INGREDIENTS, arms_of(values, ROLES), scale=scale, seeds=seeds, seconds=seconds, notes=notes
    )


def overlaps(seed: int, sizes: tuple[int, int] = (TRAIN, TEST), options: FitOptions = OPTIONS) -> dict[str, float]:
    """Mean intersection over union of each arm."""
    train, test = make_plates(sizes[0], 2 * seed), make_plates(sizes[1], 2 * seed + 1)
    main, optional = _lists(train)
    truth = [{NAMES.index(item.name) + 1 for item in recipe.ingredients} for recipe in test.recipes]
    found = {}
    for name, told, seen in ((DECODER, True, True), (NO_DISH, False, True), (BLIND, True, False)):
        torch.manual_seed(seed)
        vision: dict[str, Any] = {"image_encoder": encoder(), "image_channels": CHANNELS} if seen else {}
        decoder = IngredientDecoder(FOODS, DISHES if told else 1, main=MAIN, optional=OPTIONAL, **SHAPE, **vision)
        dishes = [part.dishes if told else [0] * len(part.dishes) for part in (train, test)]
        samples = [
            {"dish": torch.tensor(dish), "main": one, "optional": other, **({"image": photo} if seen else {})}
            for dish, one, other, photo in zip(dishes[0], main, optional, train.photos, strict=True)
        ]
        order = torch.Generator().manual_seed(seed)

        def loss(model: Any, batch: dict[str, Tensor], order: torch.Generator = order) -> Tensor:
            given: Tensor = model.loss(
                batch["dish"], batch["main"], batch["optional"], batch.get("image"), generator=order
            )
            return given

        fit(decoder, samples, loss=loss, seed=seed, **options)
        lists = decoder.generate(dishes[1], test.photos if seen else None)
        found[name] = _overlap([set(made.ingredients) for made in lists], truth)
    frequent = _frequent(train, main | optional)
    found[FREQUENT] = _overlap([frequent[dish] for dish in test.dishes], truth)
    return found


def _lists(plates: Plates) -> tuple[Tensor, Tensor]:
    """Which foods are on the two lists of each plate."""
    main = torch.zeros(len(plates.recipes), FOODS, dtype=torch.bool)
    optional = torch.zeros_like(main)
    for row, (recipe, count) in enumerate(zip(plates.recipes, plates.mains, strict=True)):
        for place, item in enumerate(recipe.ingredients):
            (main if place < count else optional)[row, NAMES.index(item.name)] = True
    return main, optional


def _frequent(plates: Plates, present: Tensor) -> list[set[int]]:
    """For each dish the most frequent foods: as many as overlap best with the plates that were learned from."""
    made = []
    for dish in range(DISHES):
        rows = present[torch.tensor(plates.dishes) == dish]
        ranked = rows.float().mean(0).argsort(descending=True)
        best = max(range(1, FOODS + 1), key=lambda count: _top_overlap(rows, ranked[:count]))
        made.append({int(food) + 1 for food in ranked[:best]})
    return made


def _top_overlap(rows: Tensor, foods: Tensor) -> float:
    shared = rows[:, foods].sum(1)
    return float((shared / (rows.sum(1) + len(foods) - shared)).mean())


def _overlap(found: Sequence[set[int]], truth: Sequence[set[int]]) -> float:
    shares = [len(one & other) / len(one | other) for one, other in zip(found, truth, strict=True)]
    return sum(shares) / len(shares)
