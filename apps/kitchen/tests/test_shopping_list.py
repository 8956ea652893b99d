"""The shopping list: one line per food, its amounts added, in every output; and what the total lacks, by name."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console

from weightsmith_kitchen import Ingredient, MealKit, NutritionTable, Quantity, edit, make_kit, read_recipe
from weightsmith_kitchen.foods import Estimate
from weightsmith_kitchen.kit import to_csv, to_pdf
from weightsmith_kitchen.kit.shopping import purchases
from weightsmith_kitchen.report import kit_text


@pytest.fixture(scope="module")
def table():
    return NutritionTable.default()


def test_a_sum_that_is_scaled_far_down_is_still_a_list(table):
    kit = make_kit(read_recipe("Milk\nServes 10000\n1 cup milk\n1 tbsp milk"), table).scale("0.001")
    assert len(kit.shopping_list) == 1
    assert "e-" not in str(kit.shopping_list[0])


@pytest.mark.parametrize(
    ("lines", "bought"),
    [
        (["1 cup milk", "2 cups milk"], ["3 cups milk"]),
        (["1 cup flour", "2 tbsp flour"], ["1 1/8 cups flour"]),
        (["1 cup water", "1 tsp water"], ["1 cup + 1 teaspoon water"]),
        (["1 lb butter", "100 g unsalted butter"], ["554 grams butter"]),
        (["1 liter water", "1 cup water"], ["1237 milliliters water"]),
        (["1-2 eggs", "1 large egg"], ["2-3 eggs"]),
        (["1 dozen eggs", "2 eggs"], ["14 eggs"]),
        (["1 onion", "1 cup onion, chopped"], ["270 grams onion"]),
        (["1 xyzzy", "2 cups xyzzy"], ["1 piece + 2 cups xyzzy"]),
        (["1 (14 oz) can tomatoes", "1 (28 oz) can tomatoes"], ["1 (14 ounce) can + 1 (28 ounce) can tomatoes"]),
        (["salt", "1 tsp salt", "salt to taste"], ["salt, 1 teaspoon + as needed"]),
        (["salt and pepper"], ["salt, as needed", "pepper, as needed"]),
        (["1 cup basmati rice", "1 cup rice"], ["1 cup basmati rice", "1 cup rice"]),
        (["1 cup frozen peas", "1 cup peas"], ["1 cup frozen peas", "1 cup peas"]),
        (["2 onions", "1 red onion"], ["2 onions", "1 red onion"]),
        (["1 cup flour", "1 cup self-rising flour"], ["1 cup flour", "1 cup self-rising flour"]),
    ],
)
def test_amounts_of_one_food_are_one_line(table, lines, bought):
    kit = make_kit(lines, table)
    assert [str(line) for line in kit.shopping_list] == bought
    assert [item.text for item in kit.ingredients][: len(lines)] == lines or "and" in lines[0]


def test_weights_are_added_and_a_line_without_one_leaves_none(table):
    (milk,) = make_kit(["1 cup milk", "2 cups milk"], table).shopping_list
    assert milk.grams.value == pytest.approx(3 * 244, rel=1e-3)
    assert (milk.places, milk.food) == ((0, 1), make_kit(["milk"], table).ingredients[0].food.id)
    (both,) = make_kit(["1 xyzzy", "100 g xyzzy"], table).shopping_list
    assert (both.amount, both.grams) == ("1 piece + 100 grams", None)


def test_the_list_is_in_every_output(table):
    kit = make_kit(["1 cup milk", "2 eggs", "2 cups milk"], table, servings=2)
    assert [item.name for item in kit.ingredients] == ["milk", "eggs", "milk"]
    stored = json.loads(kit.to_json())["shopping_list"]
    assert [(line["name"], line["amount"], line["ingredients"]) for line in stored] == [
        ("milk", "3 cups", [0, 2]),
        ("eggs", "2", [1]),
    ]
    assert MealKit.from_json(kit.to_json()) == kit
    rows = list(csv.DictReader(io.StringIO(to_csv(kit))))
    assert [row["buy"] for row in rows] == ["3 cups milk", "2 eggs", "", ""]
    assert float(rows[0]["buy_grams"]) == pytest.approx(732, abs=1)
    text = Console(width=120, file=io.StringIO())
    text.print(kit_text(kit))
    assert "to buy:\n  3 cups milk\n  2 eggs\n" in text.file.getvalue()
    pages = pytest.importorskip("pypdf").PdfReader(io.BytesIO(to_pdf(kit))).pages
    shown = " ".join(page.extract_text() for page in pages)
    assert shown.index("Shopping list") < shown.index("3 cups") < shown.index("Ingredients") < shown.index("1 cup")


def test_what_the_total_lacks_is_named(table):
    kit = make_kit(["2 eggs", "salt and pepper", "1 can xyzzy", "1 cup cashew milk"], table)
    assert kit.missing == "no amount of pepper; no energy of xyzzy; another food is taken for cashew milk"
    assert not kit.complete
    for shown in (to_csv(kit), json.dumps(kit.to_dict()), _text(kit)):
        assert "xyzzy" in shown
        assert "pepper" in shown
    assert f"a lower bound: {kit.missing}" in to_csv(kit)
    many = MealKit(tuple(Ingredient(f"food {n}") for n in range(9)))
    assert many.missing == "no energy of food 0, food 1, food 2, food 3, food 4 and 4 more"


def _text(kit):
    text = Console(width=200, file=io.StringIO())
    text.print(kit_text(kit))
    return text.file.getvalue()


UNITS = st.sampled_from(["cup", "tablespoon", "teaspoon", "milliliter", "liter", "gram", "pound", "ounce", None, "can"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.fractions(0, 50, max_denominator=16), UNITS), min_size=1, max_size=6), st.booleans())
def test_no_weight_and_no_line_is_lost(items, weighed):
    grams = Estimate(10.0, 9.0, 11.0) if weighed else None
    made = [Ingredient("flour", Quantity.of(amount), unit, grams=grams) for amount, unit in items]
    (line,) = purchases(made)
    assert line.places == tuple(range(len(items)))
    assert line.amount
    assert (line.grams.value if weighed else line.grams) == (10.0 * len(items) if weighed else None)


# --- what a recipe makes ---


@pytest.mark.parametrize(
    ("line", "makes", "said"),
    [
        ("Makes 24 cookies", (Quantity.of(24), "cookies"), "per cookie"),
        ("Makes 24", (Quantity.of(24), "pieces"), "per piece"),
        ("Yield: 1 loaf", (Quantity.of(1), "loaf"), "per loaf"),
        ("Makes about 2 dozen large muffins", (Quantity.of(24), "large muffins"), "per large muffin"),
        ("This recipe makes 12-16 rolls.", (Quantity.parse("12-16"), "rolls"), "per roll"),
        ("Makes one 9-inch cake", (Quantity.of(1), "9-inch cake"), "per 9-inch cake"),
        ("Makes 2 1/2 cups", (Quantity.parse("2 1/2"), "cups"), "per cup"),
    ],
)
def test_pieces_that_a_recipe_makes(table, line, makes, said):
    recipe = read_recipe(f"Dish\n{line}\n2 cups flour")
    assert (recipe.makes, recipe.servings, len(recipe.ingredients)) == (makes, None, 1)
    assert read_recipe(recipe.to_json()) == recipe
    kit = make_kit(recipe, table)
    assert kit.kcal_per_piece.value == pytest.approx(kit.kcal.value / float(makes[0]))
    assert said in kit.yields
    assert kit.yields in _text(kit)
    assert kit.yields in to_csv(kit)
    assert makes[1] in kit.notes[-1]
    assert MealKit.from_json(kit.to_json()) == kit
    assert kit.scale(kit.servings * 2).makes == (makes[0] * 2, makes[1])


def test_people_and_pieces_on_one_line(table):
    kit = make_kit(read_recipe("Cookies\nServes 6 (makes 24 cookies)\n2 cups flour"), table)
    assert kit.servings == 6
    assert kit.scale(12).makes == (Quantity.of(48), "cookies")
    assert "for 6 people" in _text(kit)
    assert read_recipe("Stew\nMakes 4 servings\n1 onion").servings == Quantity.of(4)
    page = {"recipeIngredient": ["2 eggs"], "recipeYield": ["1 cake", "8 servings"]}
    assert read_recipe(json.dumps(page)).makes == (Quantity.of(1), "cake")


@pytest.mark.parametrize(
    ("said", "makes", "flour"),
    [("make 48 cookies", 48, "4"), ("12 cookies", 12, "1"), ("double it", 48, "4"), ("bake one cookie", 1, "1/12")],
)
def test_pieces_are_scaled_in_words(table, said, makes, flour):
    kit = make_kit(read_recipe("Cookies\nMakes 24 cookies\n2 cups flour"), table)
    reply = edit(kit, said, table)
    assert reply.understood, reply.said
    assert reply.kit.makes == (Quantity.of(makes), "cookies")
    assert reply.kit.ingredients[0].quantity == Quantity.parse(flour)
    assert reply.kit.kcal_per_piece.value == pytest.approx(kit.kcal_per_piece.value)
    assert not reply.kit.servings_known
    for other in ("make 48 muffins", "make 0 cookies"):
        assert not edit(kit, other, table).understood


@pytest.mark.parametrize("stored", ["24 cookies", ["0", "cookies"], ["24"], [24, 3]])
def test_what_a_stored_kit_makes_is_checked(stored):
    from weightsmith_kitchen import RecipeError

    with pytest.raises(RecipeError, match="makes"):
        MealKit.from_dict({"ingredients": [], "makes": stored})
