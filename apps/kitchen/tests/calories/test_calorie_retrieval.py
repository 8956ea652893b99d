"""Look-up of items: order of the rules, units, totals, corrections."""

import json
from pathlib import Path

import numpy as np
import pytest

from weightsmith_kitchen import NutritionError, RecipeError
from weightsmith_kitchen.calories import CalorieEstimator, CalorieIndex, CalorieTable, parse_list, repair_fractions
from weightsmith_kitchen.calories.retrieve import minilm

DATA = Path(__file__).parents[5] / "shared" / "data" / "apps" / "caloraify"
ROWS = [
    ("cup rice", 205),
    ("cup rice flour", 578),
    ("tablespoon butter", 102),
    ("pound butter", 3252.24),
    ("cup milk", 149),
    ("pound beef", 1000),
    ("glass wine", 125),
]
TABLE = CalorieTable.from_rows(ROWS)


@pytest.mark.parametrize(
    ("text", "how", "row", "kcal"),
    [
        ("2 cups of rice", "exact", "cup rice", 410),
        ("3 teaspoons of butter", "converted", "tablespoon butter", 102),
        ("2 oz of butter", "converted", "pound butter", 406.53),
        ("1 quart of milk", "converted", "cup milk", 596),
        ("1 cup of flour rice", "similar", "cup rice flour", 578),
        ("16 tablespoons of milks", "similar", "cup milk", 149),
        ("1 glass of wines", "similar", "glass wine", 125),
        ("1 cup of beef", "unknown", None, 0),  # a volume never takes the energy of a pound
        ("1 cup of kangaroo", "unknown", None, 0),
        ("2 milks", "unknown", None, 0),
        ("1 slice of rice", "unknown", None, 0),
        ("1/0 cup of rice", "unknown", None, 0),
    ],
)
def test_order_of_the_look_up(text, how, row, kcal):
    (match,) = CalorieIndex(TABLE).look_up(parse_list(text))
    assert (match.how, match.row) == (how, row)
    assert match.kcal == pytest.approx(kcal)
    assert match.why


def test_exact_key_has_similarity_one():
    index = CalorieIndex(TABLE)
    assert np.diag(index.similarities(index.ingredients)) == pytest.approx(np.ones(len(index.ingredients)))
    assert index.look_up(parse_list("1 cup of rice"))[0].similarity == 1


def test_result_does_not_depend_on_order_or_case():
    index = CalorieIndex(TABLE)
    items = parse_list("2 cups of ricee, 1 tablespoon of butters, 1 cup of Milk, 1 cup of kangaroo")
    found = index.look_up(items)
    back = index.look_up(items[::-1])[::-1]
    assert [(match.row, match.kcal, match.why) for match in found] == [
        (match.row, match.kcal, match.why) for match in back
    ]
    upper = index.look_up(parse_list("2 CUPS OF RICEE, 1 TABLESPOON OF BUTTERS, 1 CUP OF MILK, 1 CUP OF KANGAROO"))
    assert [(match.row, match.kcal) for match in found] == [(match.row, match.kcal) for match in upper]


def test_adding_a_row_does_not_change_exact_totals():
    text = "2 cups of rice, 1 tablespoon of butter"
    more = CalorieTable.from_rows([*ROWS, ("cup rices", 999), ("cup butter", 1), ("teaspoon butter", 7)])
    assert CalorieEstimator(TABLE)(text).kcal == CalorieEstimator(more)(text).kcal == 512


def test_floor_and_embedding_are_checked():
    for floor in (0, 1.5, float("nan")):
        with pytest.raises(NutritionError, match="floor"):
            CalorieIndex(TABLE, floor=floor)
    with pytest.raises(NutritionError, match="shape"):
        CalorieIndex(TABLE, embed=lambda texts: np.ones(3))
    with pytest.raises(NutritionError, match="finite"):
        CalorieIndex(TABLE, embed=lambda texts: np.full((len(texts), 2), np.nan))
    assert CalorieIndex(TABLE, floor=1).look_up(parse_list("1 cup of milks"))[0].how == "unknown"


def test_embedding_finds_what_letters_do_not():
    """An embedding that knows that "moo juice" is milk."""

    def embed(texts):
        return [[1.0, 0.0] if text in ("milk", "moo juice") else [0.0, 1.0] for text in texts]

    text = parse_list("1 cup of moo juice")
    assert CalorieIndex(TABLE).look_up(text)[0].how == "unknown"
    assert CalorieIndex(TABLE, embed=embed).look_up(text)[0].row == "cup milk"


def test_minilm_reads_names():
    (match,) = CalorieIndex(TABLE, embed=minilm).look_up(parse_list("1 cup of cow milk"))
    assert match.row == "cup milk"


def test_report_has_interval_bound_and_servings():
    report = CalorieEstimator(TABLE)("1-2 cups of rice, 1 cup of kangaroo", servings=2)
    assert report.kcal == 307.5
    assert report.interval == (205, 410)
    assert report.kcal_per_serving == 153.75
    assert report.lower_bound
    assert [match.item.ingredient for match in report.unmatched] == ["kangaroo"]
    assert "at least" in str(report)
    assert CalorieEstimator(TABLE)("1 cup of rice").kcal_per_serving is None


def test_reader_and_bad_input():
    assert CalorieEstimator(TABLE, reader=lambda photo: f"{photo} cups of rice")(2).kcal == 410
    with pytest.raises(RecipeError, match="at least one item"):
        CalorieEstimator(TABLE)(" ")
    with pytest.raises(RecipeError, match="servings"):
        CalorieEstimator(TABLE)("1 cup of rice", servings=0)


@pytest.mark.parametrize(
    ("said", "kcal"),
    [
        ("2 cups of rice instead of 1", 410 + 306),
        ("no butter", 205),
        ("no buter, add 1 cup of milk", 205 + 149),
        ("1 tablespoon of butter", 205 + 102),
        ("1 cup of milk instead of rice", 149 + 306),
        ("2 butter", 205 + 204),
    ],
)
def test_corrections(said, kcal):
    estimator = CalorieEstimator(TABLE)
    report = estimator("1 cup of rice, 3 tablespoons of butter")
    assert estimator.correct(report, said).kcal == pytest.approx(kcal)
    assert report.kcal == 511


@pytest.mark.parametrize("said", ["", "no kangaroo", "make it nice", "add butter", "1 cup of milk"])
def test_corrections_that_are_refused(said):
    estimator = CalorieEstimator(TABLE)
    with pytest.raises(RecipeError, match="correction"):
        estimator.correct(estimator("1 cup of rice, 3 tablespoons of butter"), said)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here: CaLoRAify's released files")
def test_row_0_of_the_released_file():
    estimator = CalorieEstimator(CalorieTable.from_json(DATA / "database.json"))
    text = json.loads((DATA / "test_result.json").read_text())[0]["GT"]
    assert estimator(text).kcal == 605.125
    report = estimator(repair_fractions(text))
    assert report.kcal == 522.625
    assert {match.item.ingredient: match.kcal for match in report.items} == {
        "rice": 205,
        "water": 0,
        "butter": 306,
        "salt": 0,
        "spices": 1.5,
        "lemon juice": 3.375,
        "capers": 4,
        "parsley": 2.75,
    }
