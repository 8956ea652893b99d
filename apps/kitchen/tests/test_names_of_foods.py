"""Which row a cook's name means, and what is said of a row that leaves a word of it out."""

import pytest

from weightsmith_kitchen import NutritionTable, make_kit
from weightsmith_kitchen.nutrition.vocabulary import ROWS


@pytest.fixture(scope="module")
def table():
    return NutritionTable.default()


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("200 g sweet chilli sauce", "sweet"),
        ("1 cup cashew milk", "cashew"),
        ("1 cup elderberry juice", "elderberry"),
        ("50 g juniper berries", "juniper"),
        ("100 g mascarpone cheese", "mascarpone"),
        ("200 g lemon curd", "lemon"),
    ],
)
def test_a_word_that_the_row_leaves_out_is_said(table, line, lost):
    kit = make_kit([line], table)
    (item,) = kit.ingredients
    assert not kit.complete
    assert any(note.startswith(lost) and f": taken for {item.food.name!r}" in note for note in item.notes), item.notes


@pytest.mark.parametrize(
    "line", ["2 red onions", "100 g light brown sugar", "3 vine-ripened tomatoes", "2 free-range eggs"]
)
def test_a_variety_is_no_other_food(table, line):
    kit = make_kit([line], table)
    assert kit.complete, kit.ingredients[0].remarks


@pytest.mark.parametrize(
    ("line", "row", "low", "high"),  # kcal per 100 g, as common tables have the raw food
    [
        ("500 g rabbit legs", "Game meat, rabbit, wild, raw", 110, 140),
        ("1 kg chicken legs", "Chicken, drumstick, meat and skin, raw", 110, 190),
        ("1 kg drumsticks", "Chicken, drumstick, meat and skin, raw", 110, 190),
        ("1 kg burgers", "Hamburger, NFS", 230, 300),
        ("1 kg duck legs", "Duck, wild, meat and skin, raw", 180, 250),
        ("200 g crab sticks", "Imitation crab meat", 90, 130),
        ("50 g custard powder", "Cornstarch", 340, 390),
        ("1 tbsp truffle oil", "Olive oil", 800, 902),
        ("1 kg boneless skinless chicken thighs", "Chicken, thigh, boneless, skinless, raw", 115, 155),
        ("1 kg chicken thighs, boneless and skinless", "Chicken, thigh, boneless, skinless, raw", 115, 155),
        ("1 kg chicken thighs", "Chicken, thigh, meat and skin, raw", 180, 225),
        ("1 rotisserie chicken", "Chicken breast, rotisserie, skin eaten", 140, 200),
        ("500 g beef stew meat", "Beef, top sirloin steak, raw", 125, 155),
        ("500 g stewing beef", "Beef, top sirloin steak, raw", 125, 155),
        ("500 g diced beef", "Beef, top sirloin steak, raw", 125, 155),
        ("500 g minced beef", "Beef, ground, raw", 200, 260),
        ("200 g filo pastry", "Phyllo dough", 290, 310),
        ("200 g tuna steaks", "Fish, tuna, raw", 100, 150),
        ("100 g corn kernels", "Corn, sweet, yellow, raw", 80, 100),
        ("500 g baking potatoes", "Potatoes, flesh and skin, raw", 65, 90),
        ("200 g black pudding", "Blood sausage", 280, 390),
        ("1 tsp cumin powder", "Spices, cumin seed", 370, 385),
        ("1 tsp ground coriander", "Spices, coriander seed", 290, 310),
    ],
)
def test_meat_is_weighed_raw_and_a_name_means_its_own_row(table, line, row, low, high):
    kit = make_kit([line], table)
    (item,) = kit.ingredients
    assert item.food.name == row
    assert low <= item.food.kcal <= high
    assert kit.complete, item.remarks


def test_of_a_rotisserie_chicken_the_meat_counts(table):
    (item,) = make_kit(["1 rotisserie chicken"], table).ingredients
    assert (item.grams.value, item.grams.low, item.grams.high) == (600, 450, 750)


def test_every_default_row_is_in_the_table(table):
    assert not [row for row in ROWS.values() if row not in table._by_name]
