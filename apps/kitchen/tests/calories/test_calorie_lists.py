"""Generated lists: the grammar, the table, and what was destroyed in the data."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from weightsmith_kitchen import NutritionError, RecipeError
from weightsmith_kitchen.calories import CalorieTable, check_lists, parse_list, repair_fractions

DATA = Path(__file__).parents[5] / "shared" / "data" / "apps" / "caloraify"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here: CaLoRAify's released files")


def read(text):
    return [(item.amount.middle, item.key) for item in parse_list(text)]


def test_worked_examples_of_amounts():
    assert read("1 cup of water, 1 1/2 teaspoons of vinegar, 3/4 cup of sugars") == [
        (1, "cup water"),
        (Fraction(3, 2), "teaspoon vinegar"),
        (Fraction(3, 4), "cup sugars"),
    ]
    assert read("half a cup of milk") == [(Fraction(1, 2), "cup milk")]
    assert read("½ Tbsp. Butter; 1½ cups rice\n1,000 g of ham and 2 fl. oz of oil") == [
        (Fraction(1, 2), "tablespoon butter"),
        (Fraction(3, 2), "cup rice"),
        (1000, "gram ham"),
        (2, "fluid ounce oil"),
    ]


@pytest.mark.parametrize(
    ("text", "amount", "key"),
    [
        ("1,5 cups of milk", "3/2", "cup milk"),
        ("0,25 l of milk", "1/4", "liter milk"),
        ("1,25-1,5 cups of milk", "11/8", "cup milk"),
        ("1,500 g of milk", "1500", "gram milk"),
        ("1,5000 g of milk", "3/2", "gram milk"),
        ("2 x 100 g of chocolate", "200", "gram chocolate"),
        ("2x100g chocolate", "200", "gram chocolate"),
        ("2 × 1,5 cups of milk", "3", "cup milk"),
        ("½ X 100 g of chocolate", "50", "gram chocolate"),
        ("2 x 3 x 10 g of chocolate", "60", "gram chocolate"),
        ("2 x 3 eggs of 50 g", "300", "gram eggs"),
    ],
)
def test_decimal_commas_and_products_are_one_amount(text, amount, key):
    assert read(f"1 cup of rice,{text}, 1 egg") == [(1, "cup rice"), (Fraction(amount), key), (1, "egg")]


def test_range_is_an_interval_with_a_middle():
    (item,) = parse_list("1-2 cups of flour")
    assert (item.amount.low, item.amount.high, item.amount.middle) == (1, 2, Fraction(3, 2))


def test_preamble_is_skipped():
    assert read("The dish is 3 Cup Salad, and has 1 ingradients in total. They are: 1 cup of rice.") == [
        (1, "cup rice")
    ]
    assert read("Ingredients: 1 cup of rice") == [(1, "cup rice")]
    assert read("the dish is x and has 1 ingradients in total they are 1 cup of rice") == [(1, "cup rice")]


def test_missing_comma_divides_before_amount_and_unit():
    assert read("1 cup of milk 3 tablespoon of wheat flour, a pinch of salt and 2 cups of rice") == [
        (1, "cup milk"),
        (3, "tablespoon wheat flour"),
        (1, "pinch salt"),
        (2, "cup rice"),
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1/0 cup", "cannot be read"),
        ("0" * 500, "cannot be read|no ingredient"),
        ("1/4 teaspoon", "no ingredient"),
        ("salt", "no amount"),
        ("1/2/3 cup of milk", "cannot be read"),
        ("1,2,3 cups of milk", "cannot be read"),
        ("2 x 1/0 cup of milk", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_an_item_with_an_error(text, error):
    items = parse_list(f"{text}, 1 cup of rice")
    assert re.search(error, items[0].error)
    assert items[1].error is None


def test_code_is_text():
    assert all(item.error for item in parse_list("__import__('os').getcwd(), (lambda: 1)()"))


@given(st.text(max_size=200))
def test_any_text_is_read(text):
    for item in parse_list(text):
        assert item.error or (item.amount is not None and item.ingredient)


def test_list_that_is_no_text():
    with pytest.raises(RecipeError, match="int"):
        parse_list(3)
    with pytest.raises(RecipeError, match="100001 characters"):
        parse_list("1" * 100_001)


def test_table_names_wrong_rows():
    rows = [("cup rice", 205), ("Cups Rice", 200), ("rice", 1), ("cup", 2), ("cup oil", math.nan), ("cup egg", -1)]
    with pytest.raises(NutritionError) as caught:
        CalorieTable.from_rows(rows)
    message = str(caught.value)
    for part in ("duplicate of 'cup rice'", "'rice' has no unit", "'cup' has no ingredient", "nan kcal", "-1 kcal"):
        assert part in message
    with pytest.raises(NutritionError, match="no row"):
        CalorieTable.from_rows([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ('{"cup rice": {"fat": 1}}', "nrg"),
        ('{"cup rice": 1, "cup rice": 2}', "duplicate"),
        ('{"cup rice": {"nrg": NaN}}', "nan"),
        ('{"cup rice": null}', "None"),
    ],
)
def test_table_files_that_are_wrong(tmp_path, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(NutritionError, match=message):
        CalorieTable.from_json(path)
    with pytest.raises(NutritionError, match="absent"):
        CalorieTable.from_json(tmp_path / "absent.json")


def test_inconsistent_rows_are_flagged():
    table = CalorieTable.from_rows(
        [
            ("cup a", 160),
            ("tablespoon a", 10),
            ("teaspoon a", 5),
            ("cup b", 1),
            ("tbsp b", 0),
            ("cup c", 0),
            ("tbsp c", 0),
        ]
    )
    found = {(item.ingredient, item.larger): item.found for item in table.inconsistencies()}
    assert found == {("a", "tablespoon"): 2, ("b", "cup"): math.inf}


def test_repair_leaves_genuine_numbers():
    assert repair_fractions("12 cups, 34 teaspoon, 1 12 pound") == "1/2 cups, 3/4 teaspoon, 1 1/2 pound"
    for text in ("12 eggs", "112 cup", "1/12 cup", "10-12 ounce", "10 to 12 ounce", "12 cupcakes", "12 g of salt"):
        assert repair_fractions(text) == text


def test_check_finds_destroyed_fractions_and_truncation():
    found = check_lists(["12 cup of milk, 1/2 cup of oil", "word " * 51, "1 cup of rice"])
    assert (found.suspicious, found.intact, found.destroyed, found.truncated) == (1, 1, (0,), (1,))
    assert not found.ok
    assert check_lists(["1 cup of rice"]).ok


@needs_data
def test_released_table_and_lists():
    table = CalorieTable.from_json(DATA / "database.json")
    assert len(table) == 1597
    assert len(table.inconsistencies()) == 25
    both = [name for name in table.ingredients if ("cup", name) in table.rows and ("tablespoon", name) in table.rows]
    wrong = [item for item in table.inconsistencies() if item.larger == "cup"]
    zero = [name for name in both if table.rows["cup", name] == table.rows["tablespoon", name] == 0]
    assert len(both) - len(wrong) - len(zero) == 154
    texts = [row["GT"] for row in json.loads((DATA / "test_result.json").read_text())]
    found = check_lists(texts)
    assert len(found.truncated) == 1231  # 21.5 % of 5,720
    assert found.suspicious == 7535


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1 apple of 244 g", [("244", "gram", "apple")]),
        ("1 apple of 219 g, 2 eggs of 50 g", [("219", "gram", "apple"), ("100", "gram", "eggs")]),
        (
            "1 fried dough twist of 40 g, 1 bun of 93.6 g",
            [("40", "gram", "fried dough twist"), ("93.6", "gram", "bun")],
        ),
        ("2-3 slices of bread", [("2-3", "slice", "bread")]),
        ("1 cup of rice of 2 kinds", [("1", "cup", "rice of 2 kinds")]),
    ],
)
def test_pieces_with_a_weight(text, items):
    found = parse_list(text)
    assert all(item.error is None for item in found)
    assert [(float(item.amount.low), item.unit, item.ingredient) for item in found] == [
        (float(amount.split("-")[0]), unit, name) for amount, unit, name in items
    ]
