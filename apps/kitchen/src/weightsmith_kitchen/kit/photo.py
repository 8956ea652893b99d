"""From the foods that a photo shows to a kit that a person corrects: a photo tells the food, not the amount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith_kitchen.kit.kit import MealKit
from weightsmith_kitchen.nutrition import NutritionTable, measures, price
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Ingredient

if TYPE_CHECKING:
    from weightsmith_kitchen.photos.classifier import FoodClassifier
    from weightsmith_kitchen.photos.results import Recognition

__all__ = ["PhotoKit", "kit_of_photo"]

ASSUMED = 100
"""Grams of a food of which no piece has a known weight."""


@dataclass(frozen=True, slots=True)
class PhotoKit:
    """What a photo shows, and the kit that it makes.

    Attributes
    ----------
    recognition : Recognition
        The foods with their probabilities, for the photo or for each box.
    kit : MealKit
        One ingredient for each food that was recognized; none where the classifier abstains.
    """

    recognition: Recognition
    kit: MealKit

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {"recognition": self.recognition.to_dict(), "kit": self.kit.to_dict()}


def kit_of_photo(
    photo: Path | bytes,
    table: NutritionTable,
    *,
    boxes: Sequence[Sequence[float]] | None = None,
    classifier: FoodClassifier | None = None,
) -> PhotoKit:
    """Recognize the foods of a photo and price one piece, or 100 g, of each.

    Parameters
    ----------
    photo : path-like or bytes
        A photo.
    table : NutritionTable
        Where foods are looked up.
    boxes : sequence of boxes, optional
        One per food, (xmin, ymin, xmax, ymax) in pixels of the upright photo. Without boxes one food is recognized.
    classifier : FoodClassifier, optional
        By default the one that ships.

    Raises
    ------
    PhotoError
        If the photo or a box cannot be used.
    """
    from weightsmith_kitchen.photos.loading import classifier_of

    recognition = (classifier or classifier_of()).predict(photo, boxes)
    items, notes = [], []
    for number, region in enumerate(recognition.regions, 1):
        if region.answer is None:
            where = "" if region.box is None else f"box {number}: "
            notes.append(f"{where}not recognized: {region.reason}")
            continue
        items.append(_assumed(region.answer.food, table))
    if items:
        notes.append("a photo tells the food, not the amount: correct the amounts")
    dish = recognition.answer.food if recognition.answer is not None and len(recognition.regions) == 1 else ""
    return PhotoKit(recognition, MealKit(tuple(items), dish=dish, notes=tuple(notes)))


def _assumed(food: str, table: NutritionTable) -> Ingredient:
    piece = any(portion.unit == "piece" for portion in measures.find(food))
    amount, unit = (Quantity.of(1), None) if piece else (Quantity.of(ASSUMED), "gram")
    assumed = "one piece" if piece else f"{ASSUMED} g"
    return price(Ingredient(food, amount, unit, text=food, unread=(f"{assumed} assumed",)), table)
