"""Weights of pieces, heads and cans, and foods that lie in water, oil or syrup."""

from __future__ import annotations

import pytest

from weightsmith_kitchen import NutritionTable, make_kit
from weightsmith_kitchen.nutrition import measures


@pytest.fixture(scope="module")
def table():
    return NutritionTable.default()


def priced(line, table):
    return make_kit([line], table).ingredients[0]


@pytest.mark.parametrize(
    ("line", "grams", "row"),
    [
        ("1 head broccoli", 280, "Broccoli, raw"),
        ("1 cauliflower", 588, "Cauliflower, raw"),
        ("1 small cauliflower", 265, "Cauliflower, raw"),
        ("1 cabbage", 908, "Cabbage, raw"),
        ("2 corn", 204, None),
        ("1 bulb fennel", 234, "Fennel, bulb, raw"),
        ("12 lasagna noodles", 216, "Pasta, dry, enriched"),
        ("2 sirloin steaks", 604, "Beef, top sirloin steak, raw"),
        ("2 strip steaks", 604, None),
        ("100 g suet", 100, "Fat, beef tallow"),
        ("100 g emmental", 100, "Cheese, Swiss"),
        ("1 cup emmentaler", 108, "Cheese, Swiss"),
        ("1 cup self-rising flour", 125, None),
        ("1 cup self-raising flour", 125, None),
        ("1 tsp black pepper", 2.3, "Spices, pepper, black"),
        ("1 can tuna in water", 113, "Fish, tuna, canned"),
        ("1 can peaches in syrup", None, "Peach, canned, in syrup"),
        ("1 parsnip", 160, "Parsnips, raw"),
        ("4 roma tomatoes", 248, None),
    ],
)
def test_weights_and_rows(table, line, grams, row):
    item = priced(line, table)
    if grams is not None:
        assert item.grams.value == pytest.approx(grams)
        assert item.grams.low <= item.grams.value <= item.grams.high
        assert item.basis
        assert item.kcal.value > 0
    assert row in (None, item.food.name)


def test_what_a_food_lies_in_is_not_the_food(table):
    oil = priced("1 can tuna in oil", table)
    assert oil.grams.value == 113
    assert oil.notes == ("oil is not in the row: taken for 'Fish, tuna, canned'",)
    assert not make_kit(["1 can tuna in oil"], table).complete
    assert make_kit(["1 can tuna in water"], table).complete
    assert priced("1 can tomatoes in juice", table).food.name.startswith("Tomatoes")
    assert "ardine" in priced("1 can sardines in oil", table).food.name.partition(",")[2]
    assert priced("2 bone in chicken thighs", table).food.name == "Chicken, thigh, meat and skin, raw"


def test_a_steak_of_fish_has_not_the_weight_of_one_of_beef(table):
    item = priced("2 tuna steaks", table)
    assert (item.grams, item.kcal) == (None, None)
    assert "no table has the weight of a piece of 'tuna steaks'" in item.notes[0]


def test_every_weight_has_a_source_and_its_bounds():
    for food, _, portion in measures.rows():
        assert portion.source, food
        assert 0 < portion.grams.low <= portion.grams.value <= portion.grams.high, food
