"""From the foods that a photo shows to a kit that a person corrects: a photo tells the food, not the amount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith_kitchen.calories.grammar import parse_list
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.kit.amounts import with_amounts
from weightsmith_kitchen.kit.kit import MealKit
from weightsmith_kitchen.nutrition import NutritionTable, measures, price
from weightsmith_kitchen.photos.images import name_of
from weightsmith_kitchen.photos.mass import FoodSize, Mass, MassEstimator, Reference
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Ingredient

if TYPE_CHECKING:
    from weightsmith_kitchen.photos.classifier import FoodClassifier
    from weightsmith_kitchen.photos.results import Recognition
    from weightsmith_kitchen.portions import PortionEstimator

__all__ = ["PhotoKit", "kit_of_list", "kit_of_photo"]

ASSUMED = 100
"""Grams of a food of which no piece has a known weight."""
NOT_LEARNED = "its mass was not learned"


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
    masses: MassEstimator | None = None,
    reference: Reference | None = None,
    portions: PortionEstimator | None = None,
) -> PhotoKit:
    """Recognize the foods of a photo and price one piece, or 100 g, of each; or its mass, if its size is known.

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
    masses : MassEstimator, optional
        Learned on foods that were weighed, with the classifier's labels. It needs boxes and a reference; a food that
        it did not learn is assumed as before.
    reference : Reference, optional
        An object of known size on the photo, such as a coin.
    portions : PortionEstimator, optional
        Gives foods whose mass is not estimated the portion that it learned, where it learned one.

    Raises
    ------
    PhotoError
        If the photo or a box cannot be used, or masses are asked for without boxes and a reference.
    """
    from weightsmith_kitchen.photos.loading import classifier_of

    if masses is not None and (boxes is None or reference is None):
        FoodSize.of_boxes(None if boxes is None else boxes[0], reference, name=name_of(photo))
    recognition = (classifier or classifier_of()).predict(photo, boxes)
    items, notes, assumed = [], [], False
    for number, region in enumerate(recognition.regions, 1):
        if region.answer is None:
            where = "" if region.box is None else f"box {number}: "
            notes.append(f"{where}not recognized: {region.reason}")
            continue
        if masses is not None and region.answer.label in masses.labels:
            size = FoodSize.of_boxes(region.box, reference, name=recognition.photo)
            items.append(_weighed(region.answer.food, masses.estimate(region.answer.label, size), table))
        else:
            assumed = True
            why = (NOT_LEARNED,) if masses is not None else ()
            items.append(_assumed(region.answer.food, table, portions, why))
    if assumed:
        notes.append("a photo tells the food, not the amount: correct the amounts")
    dish = recognition.answer.food if recognition.answer is not None and len(recognition.regions) == 1 else ""
    return PhotoKit(recognition, MealKit(tuple(items), dish=dish, notes=tuple(notes)))


def _weighed(food: str, mass: Mass, table: NutritionTable) -> Ingredient:
    said = f"{mass.grams:.0f} g by its size, from {mass.low:.0f} to {mass.high:.0f} g"
    unusual = ("of an unusual size: weigh it",) if mass.unusual else ()
    amount = Quantity.of(round(mass.grams))
    return price(Ingredient(food, amount, "gram", text=food, unread=(said, *unusual)), table)


def _assumed(food: str, table: NutritionTable, portions: PortionEstimator | None, why: tuple[str, ...]) -> Ingredient:
    item = Ingredient(food, text=food, unread=why)
    if portions is not None:
        (item,) = with_amounts([item], portions)
    if item.quantity is None:
        piece = any(portion.unit == "piece" for portion in measures.find(food))
        amount, unit = (Quantity.of(1), None) if piece else (Quantity.of(ASSUMED), "gram")
        assumed = "one piece" if piece else f"{ASSUMED} g"
        item = replace(item, quantity=amount, unit=unit, unread=(f"{assumed} assumed", *item.unread))
    return price(item, table)


def kit_of_list(text: str, table: NutritionTable, *, portions: PortionEstimator | None = None) -> MealKit:
    """The kit of a list that a model wrote about a photo, such as ``"1 apple of 244 g, 2 slices of bread"``.

    Parameters
    ----------
    text : str
        See `parse_list`.
    table : NutritionTable
        Where foods are looked up.
    portions : PortionEstimator, optional
        Gives foods without an amount the portion that it learned.

    Raises
    ------
    RecipeError
        If nothing in it can be read.

    Examples
    --------
    >>> made = kit_of_list("1 apple of 244 g, 1/0 cup of milk", NutritionTable.default())
    >>> [(item.name, item.measured()) for item in made.ingredients], made.complete
    ([('apple', '244 grams'), ('1/0 cup of milk', '')], False)
    """
    items = [
        Ingredient(
            item.ingredient or item.text,
            item.amount,
            item.unit or None,
            item.text,
            unread=() if item.error is None else (item.error,),
        )
        for item in parse_list(text)
    ]
    if portions is not None:
        items = [*with_amounts(items, portions)]
    if not any(item.quantity is not None for item in items):
        raise RecipeError("list that the model wrote", found=repr(text[:80]), expected="amounts and foods")
    return MealKit(tuple(price(item, table) for item in items), notes=("a model wrote this list: correct it",))
