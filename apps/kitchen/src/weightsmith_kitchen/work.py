"""What the commands do with one file. Each function is sent to other processes, so it loads what it needs itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weightsmith_kitchen.batch import PHOTOS
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.models import loaded
from weightsmith_kitchen.sources import Source, read_text

if TYPE_CHECKING:
    from weightsmith_kitchen.kit import MealKit
    from weightsmith_kitchen.nutrition import NutritionTable
    from weightsmith_kitchen.recipe import Recipe

__all__ = ["ingredient_rows", "kit_file", "kit_rows", "parse_file", "recognize_file", "region_rows"]


NO_MODELS: Mapping[str, str] = MappingProxyType({})


def recipe_of(source: Source, models: Mapping[str, str] = NO_MODELS) -> Recipe:
    """The recipe in a file or a piece; see `read_recipe`."""
    from weightsmith_kitchen.kit import read_recipe

    return read_recipe(read_text(source), tagger=loaded(models, "tagger"))


def parse_file(source: Source, *, events: bool = False, models: Mapping[str, str] = NO_MODELS) -> dict[str, Any]:
    """The recipe in a file as plain values."""
    recipe = recipe_of(source, models)
    if events:
        from weightsmith_kitchen.steps.structure import structure_recipe

        structured = structure_recipe(
            ingredients=[item.text for item in recipe.ingredients],
            instructions=list(recipe.instructions),
            title=recipe.title,
            servings=recipe.servings,
            tagger=loaded(models, "tagger"),
        )
        recipe = replace(structured, makes=recipe.makes, notes=recipe.notes)
    return recipe.to_dict()


def kit_file(source: Source, **options: Any) -> dict[str, Any]:
    """The meal kit of a recipe or a photo as plain values; see `kit_of`."""
    return kit_of(source, **options).to_dict()


def kit_of(
    source: Source,
    *,
    servings: float | None = None,
    say: tuple[str, ...] = (),
    tables: tuple[str, ...] = (),
    models: Mapping[str, str] = NO_MODELS,
) -> MealKit:
    """The meal kit of a recipe or a photo, scaled and corrected; with models of one's own, see `models_of`."""
    from weightsmith_kitchen.kit import edit, make_kit

    table, portions = table_of(tables), loaded(models, "portions")
    if isinstance(source, Path) and source.suffix.lower() in PHOTOS:
        from weightsmith_kitchen.kit.photo import kit_of_list, kit_of_photo

        if "reader" in models:
            made = kit_of_list(loaded(models, "reader")(source), table, portions=portions)
        else:
            classifier = loaded(models, "classifier")
            made = kit_of_photo(source, table, classifier=classifier, portions=portions).kit
    else:
        made = make_kit(recipe_of(source, models), table, portions=portions)
    for text in say:
        reply = edit(made, text, table)
        if not reply.understood:
            raise RecipeError(f"--say {text!r}: {reply.said}")
        made = reply.kit
    return made if servings is None else made.scale(servings)


def recognize_file(
    path: Path,
    *,
    models: Mapping[str, str] = NO_MODELS,
    boxes: dict[str, list[list[float]]] | None = None,
    normalized: bool = False,
    topk: int = 5,
) -> dict[str, Any]:
    """The foods of a photo as plain values."""
    from weightsmith_kitchen.photos.loading import classifier_of

    own = (boxes or {}).get(str(path), (boxes or {}).get(path.name))
    classifier = loaded(models, "classifier") or classifier_of()
    return classifier.predict(path, own, topk=topk, normalized=normalized).to_dict()


def region_rows(made: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per photo or box of what `recognize_file` gives."""
    rows = []
    for region in made["regions"]:
        others = [guess for guess in region["candidates"] if guess["label"] != region["answer"]]
        rows.append(
            {
                "file": made["file"],
                "box": "" if region["box"] is None else " ".join(f"{side:g}" for side in region["box"]),
                "food": region["food"] or "",
                "label": region["answer"] or "",
                "probability": region["probability"],
                "others": "; ".join(f"{guess['food']} {guess['probability']:.2f}" for guess in others[:3]),
                "reason": region["reason"],
            }
        )
    return rows


@lru_cache(maxsize=4)
def table_of(tables: tuple[str, ...]) -> NutritionTable:
    """The nutrition table with a user's own before it, read once per process."""
    from weightsmith_kitchen.nutrition import NutritionTable

    table = NutritionTable.default()
    for path in tables:
        table = table.with_csv(path)
    return table


def ingredient_rows(made: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per ingredient of what `parse_file` gives."""
    from weightsmith_kitchen.recipe import Ingredient

    rows = []
    for stored in made["ingredients"]:
        item = Ingredient.from_dict(stored)
        rows.append(
            {
                "file": made["file"],
                "title": made["title"],
                "name": item.name,
                "quantity": "" if item.quantity is None else str(item.quantity),
                "unit": item.unit or "",
                "size": item.size or "",
                "state": item.state or "",
                "temperature": item.temperature or "",
                "dry_fresh": item.dry_fresh or "",
                "optional": item.optional,
                "text": item.text,
            }
        )
    return rows


def kit_rows(made: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per ingredient of what `kit_file` gives; of a kit without any, such as a photo of no food, its notes."""
    from weightsmith_kitchen.kit import MealKit
    from weightsmith_kitchen.kit.kit import COLUMNS

    kit = MealKit.from_dict(made)
    rows = kit.rows() or [dict.fromkeys(COLUMNS, "") | {"notes": "; ".join(kit.notes)}]
    makes = "" if kit.makes is None else f"{kit.makes[0]} {kit.makes[1]}"
    told = {"file": made["file"], "dish": kit.dish, "servings": str(kit.servings), "makes": makes}
    return [{**told, **row} for row in rows]
