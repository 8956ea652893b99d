"""Meal kits: reading recipes, scaling, corrections in words, exports."""

import csv
import io
import json
import re
import statistics
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console

from weightsmith_kitchen import (
    Ingredient,
    MealKit,
    NutritionTable,
    Quantity,
    Recipe,
    RecipeError,
    edit,
    make_kit,
    read_recipe,
)
from weightsmith_kitchen.errors import KitchenError
from weightsmith_kitchen.foods import Estimate
from weightsmith_kitchen.kit import to_csv, to_pdf
from weightsmith_kitchen.quantity import read_yield
from weightsmith_kitchen.report import kit_text

PASTED = """
Grandma's Pancakes
Serves 4

Ingredients:
- 2 cups all-purpose flour
- 2 large eggs, beaten
* 1 1/2 cups milk
- 1/2 stick unsalted butter, melted
- 1 (14 ounce) can black beans, drained
- salt to taste

Method
1. Whisk the eggs with the milk.
2) Add flour, then fry in butter.
"""


@pytest.fixture(scope="module")
def table():
    return NutritionTable.default()


@pytest.fixture(scope="module")
def kit(table):
    return make_kit(read_recipe(PASTED), table)


def amounts(kit):
    return {item.name: item.measured() for item in kit.ingredients}


def test_a_pasted_recipe_is_read(kit):
    recipe = read_recipe(PASTED)
    assert recipe.title == "Grandma's Pancakes"
    assert recipe.servings == Quantity.of(4)
    assert len(recipe.ingredients) == 6
    assert recipe.instructions == ("Whisk the eggs with the milk.", "Add flour, then fry in butter.")
    assert amounts(kit)["black beans"] == "1 can"


def test_totals_are_the_sums_of_the_parts(kit):
    parts = [item.kcal for item in kit.ingredients if item.kcal is not None]
    assert kit.kcal.value == pytest.approx(sum(part.value for part in parts))
    assert kit.kcal.low <= kit.kcal.value <= kit.kcal.high
    assert kit.kcal_per_serving.value == pytest.approx(kit.kcal.value / 4)
    assert kit.complete  # salt has no energy, however much it is
    assert 900 < next(item.kcal.value for item in kit.ingredients if "flour" in item.name) < 920


def test_scaling_multiplies_exactly_and_back(kit):
    double = kit.scale(8)
    assert double.kcal.value == pytest.approx(2 * kit.kcal.value)
    assert [item.quantity for item in double.ingredients if item.quantity] == [
        item.quantity * 2 for item in kit.ingredients if item.quantity
    ]
    assert double.scale(4).to_dict()["ingredients"][0]["quantity"] == "2"
    assert kit.scale(4).kcal == kit.kcal
    assert kit.scale(Fraction(4, 3)).scale(4).ingredients[0].quantity == kit.ingredients[0].quantity
    assert kit.ingredients[4].package == double.ingredients[4].package  # a can holds what it held


@pytest.mark.parametrize("servings", [0, -1, float("nan"), "0", "many", 10**9])
def test_impossible_servings_are_refused(kit, servings):
    with pytest.raises(RecipeError):
        kit.scale(servings)


def test_a_recipe_that_does_not_say_how_many_it_serves(table):
    kit = make_kit(["2 eggs"], table)
    assert not kit.servings_known
    assert "does not say how many" in kit.notes[0]
    assert make_kit(["2 eggs"], table, servings=2).servings_known
    reply = edit(kit, "for 6 people", table)
    assert "taken for one person" in reply.said
    assert [note for note in reply.kit.notes if "does not say" in note] == [
        "the recipe does not say how many it serves: it is taken for one person, and multiplied by 6"
    ]
    assert edit(kit, "double it", table).kit.notes == kit.notes
    assert not edit(kit, "double it", table).kit.servings_known


def test_a_volume_is_no_number_of_people():
    assert read_recipe("Sauce\nMakes 2 1/2 cups\n1 cup cream").servings is None
    assert read_recipe("Stew\nServes 4-6\n1 onion").servings == Quantity.parse("4-6")


@pytest.mark.parametrize("text", ["", "  \n ", "Ingredients\nMethod\n1. Cook it."])
def test_a_text_without_ingredients_is_refused(text):
    with pytest.raises(RecipeError, match="no ingredient line"):
        read_recipe(text)


def test_too_long_recipes_are_refused_and_long_ones_are_read():
    assert len(read_recipe("\n".join(["1 egg"] * 5_000)).ingredients) == 5_000
    with pytest.raises(RecipeError, match="10001 lines"):
        read_recipe("\n".join(["1 egg"] * 10_001))
    with pytest.raises(RecipeError, match="line 1 of the recipe"):
        read_recipe("x" * 3_000)


# --- corrections in words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "name", "amount"),
    [
        ("3 eggs instead of 2", "eggs", "3"),
        ("3 instead of 2 eggs", "eggs", "3"),
        ("use 1 egg", "eggs", "1"),
        ("there are 5 eggs", "eggs", "5"),
        ("half the milk", "milk", "3/4 cup"),
        ("half a cup of milk", "milk", "1/2 cup"),
        ("twice as much milk", "milk", "3 cups"),
        ("200 g flour", "all-purpose flour", "200 grams"),
        ("add 2 tbsp honey", "honey", "2 tablespoons"),
        ("oat milk instead of milk", "oat milk", "1 1/2 cups"),
        ("replace butter with margarine", "margarine", "1/2 stick"),
        ("1 cup of rye flour instead of flour", "rye flour", "1 cup"),
        ("for 6 people", "eggs", "3"),
        ("6 servings", "eggs", "3"),
        ("serves 8", "eggs", "4"),
        ("double it", "eggs", "4"),
        ("please use 3 eggs", "eggs", "3"),
        ("half the milk and 3 eggs", "eggs", "3"),
        ("no butter but 3 eggs", "eggs", "3"),
        ("2 cans of black beans", "black beans", "2 cans"),
    ],
)
def test_what_can_be_said(kit, table, said, name, amount):
    reply = edit(kit, said, table)
    assert reply.understood, reply.said
    assert amounts(reply.kit)[name] == amount


@pytest.mark.parametrize("said", ["no butter", "without the butter", "leave out butter", "I have no butter"])
def test_what_is_left_out(kit, table, said):
    reply = edit(kit, said, table)
    assert [item.name for item in reply.kit.ingredients] == [
        item.name for item in kit.ingredients if "butter" not in item.name
    ]
    assert reply.kit.kcal.value < kit.kcal.value


def test_several_corrections_are_done_in_order(kit, table):
    reply = edit(kit, "3 eggs instead of 2, no butter; for 8 people", table)
    assert amounts(reply.kit)["eggs"] == "6"
    assert "unsalted butter" not in amounts(reply.kit)
    assert reply.kit.servings == 8


@pytest.mark.parametrize(
    "said",
    [
        *(
            "",
            "make it spicy",
            "no chocolate",
            "for 0 people",
            "for -2 people",
            "2 eggs, no chocolate",
            "1/0 eggs",
            "???",
        ),
        *(
            "1 cup milk less",
            "no more than 1 cup milk",
            "not 2 cups milk",
            "-1 eggs",
            "margarine instead of half the butter",
        ),
        *("no eggs but 2 bananas", "no tomatoes"),
    ],
)
def test_what_is_not_understood_changes_nothing(kit, table, said):
    reply = edit(kit, said, table)
    assert not reply.understood
    assert reply.kit == kit
    assert reply.said


def test_several_foods_are_left_out_at_once(kit, table):
    for said in ("no eggs and butter", "without eggs or butter", "no eggs and no butter"):
        reply = edit(kit, said, table)
        assert reply.understood, reply.said
        assert not {"eggs", "unsalted butter"} & set(amounts(reply.kit))


def test_a_sauce_of_a_food_is_not_the_food_and_a_package_keeps_its_content(table):
    kit = make_kit(["1 cup tomato sauce", "1 (15-oz.) can black beans"], table)
    assert not edit(kit, "no tomatoes", table).understood
    reply = edit(kit, "2 cans of black beans", table)
    assert reply.kit.ingredients[1].grams.value == pytest.approx(30 * 28.3495, rel=1e-4)


def test_a_wrong_premise_is_said(kit, table):
    assert edit(kit, "3 eggs instead of 5", table).said == "eggs: 3 (it was 2, not 5)"


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("For the sauce:\n1 cup cream\nFOR THE TOPPING\n2 eggs\nTo serve\n1 lemon", ["cream", "eggs", "lemon"]),
        ("Prep time: 10 minutes\nCalories: 300\nPortions: 3\n2 eggs", ["eggs"]),
        ("2 cups flour\t1 cup sugar\n1 egg    2 tbsp butter", ["flour", "sugar", "egg", "butter"]),
    ],
)
def test_headings_and_facts_are_no_ingredients_and_columns_are_parted(lines, names):
    assert [item.name for item in read_recipe("Dish\n" + lines).ingredients] == names


def test_people_in_words_and_pieces_that_are_no_people():
    assert read_recipe("Soup\nServes four\n1 onion").servings == Quantity.of(4)
    assert read_recipe("Cookies\nMakes 24 cookies\n1 egg").servings is None
    assert read_recipe("Cookies\nMakes 24\n1 egg").servings is None


def test_a_range_of_pieces_is_scaled_to_its_middle_and_said_so(table):
    reply = edit(make_kit(read_recipe("Cookies\nMakes 24 cookies\n2 eggs"), table), "make 12-24 cookies", table)
    assert (reply.said, reply.kit.makes[0]) == ("makes 18 cookies", Quantity.of(18))


def test_a_line_without_an_amount_has_no_unit():
    assert Ingredient("flour", None, "cup", text="1/0 cup flour").line() == "flour"


def test_an_ambiguous_name_asks(table):
    kit = make_kit(["1 cup white flour", "1 cup rye flour"], table)
    reply = edit(kit, "no flour", table)
    assert not reply.understood
    assert "white flour or rye flour" in reply.said


def test_energy_follows_the_correction(kit, table):
    reply = edit(kit, "3 eggs instead of 2", table)
    before, after = (next(i.kcal.value for i in k.ingredients if i.name == "eggs") for k in (kit, reply.kit))
    assert after == pytest.approx(1.5 * before)


# --- exports ---------------------------------------------------------------------------------------------------------


def test_json_gives_the_same_kit(kit):
    assert MealKit.from_json(kit.to_json()) == kit


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ingredients": 3}', '{"ingredients": [{"nam": "x"}]}', "nonsense"])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(RecipeError):
        MealKit.from_json(text)


JUNK = [None, 0, -1, 1e308, float("nan"), True, "x", [], [1], {}, {"a": 1}, ["1", "2", "3"], [None, None], "9" * 500]


def places(stored, path=()):
    yield path
    for key in stored if isinstance(stored, dict) else range(len(stored)) if isinstance(stored, list) else ():
        yield from places(stored[key], (*path, key))


def put(stored, path, value):
    if not path:
        return value
    copy = list(stored) if isinstance(stored, list) else dict(stored)
    copy[path[0]] = put(stored[path[0]], path[1:], value)
    return copy


def test_json_with_fields_of_other_kinds_is_refused_by_name_or_read(table):
    recipe = read_recipe("Cake\nServes 4\nMakes 24 cookies\n1 (14 oz) can milk\n1. Mix all.").to_dict()
    kit = make_kit(Recipe.from_dict(recipe), table).to_dict()

    def use(made):
        return made.to_json(), made.rows(), to_csv(made), made.shopping_list

    for stored, read in ((recipe, lambda o: make_kit(Recipe.from_dict(o), table)), (kit, MealKit.from_dict)):
        for path in [*places(stored)]:
            if path[:1] == ("shopping_list",):
                continue
            for value in JUNK:
                with suppress(KitchenError):
                    use(read(put(stored, path, value)))
    for name, value in (("notes", None), ("makes", 0), ("instructions", None), ("techniques", 3), ("title", [])):
        with pytest.raises(RecipeError, match=f"^{name}: found"):
            Recipe.from_dict(recipe | {name: value})


def test_csv_has_a_row_per_ingredient_and_no_formula(kit, table):
    hostile = kit.plus(Ingredient("=HYPERLINK(1)", text="=HYPERLINK(1)"))
    rows = list(csv.DictReader(io.StringIO(to_csv(hostile))))
    assert [row["ingredient"] for row in rows[:-2]] == [item.name for item in kit.ingredients]
    assert rows[-2]["ingredient"] == "'=HYPERLINK(1)"
    assert rows[-1]["ingredient"] == "total"
    assert int(rows[-1]["kcal"]) == round(kit.kcal.value)
    assert "lower bound" in rows[-1]["notes"]


def test_pdf_holds_the_list_and_its_sources(kit):
    from pypdf import PdfReader

    made = to_pdf(replace(kit, dish="Crêpes <b>& Co</b>"))
    assert made == to_pdf(replace(kit, dish="Crêpes <b>& Co</b>"))  # no time stamp
    text = " ".join(page.extract_text() for page in PdfReader(io.BytesIO(made)).pages)
    for wanted in ("Crêpes <b>& Co</b>", "all-purpose flour", "1/2 stick", "For 4 people", "FoodData Central"):
        assert wanted in text


def test_pdf_of_a_long_list_has_several_pages(table):
    from pypdf import PdfReader

    item = Ingredient("flour", Quantity.of(1), "cup", kcal=Estimate(1, 1, 1))
    assert len(PdfReader(io.BytesIO(to_pdf(MealKit((item,) * 200)))).pages) > 3


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.fractions(0, 50, max_denominator=16), st.sampled_from(["cup", "gram", None])), max_size=6),
    st.fractions(Fraction(1, 8), 40),
)
def test_scaling_and_json_commute(items, servings):
    kit = MealKit(tuple(Ingredient("flour", Quantity.of(amount), unit) for amount, unit in items), Fraction(2))
    assert MealKit.from_json(kit.scale(servings).to_json()) == MealKit.from_json(kit.to_json()).scale(servings)


def test_one_text_is_no_list_of_lines(table):
    with pytest.raises(RecipeError, match="read_recipe"):
        make_kit("2 eggs", table)


PAGES = Path(__file__).parents[4] / "shared" / "data" / "apps" / "recipes-json" / "recipes.json"


@pytest.mark.skipif(not PAGES.is_file(), reason="the shared data are not here: recipes of web pages")
def test_energies_agree_with_those_that_pages_print(table):
    """English recipes that say their servings and calories: an independent reading of the same lists."""
    ratios = []
    for page in json.loads(PAGES.read_text(encoding="utf-8")):
        calories = re.match(r"[\d.]+", str((page.get("nutrients") or {}).get("calories", "")))
        made = read_yield(page.get("yields") or "")
        if not str(page.get("language", "")).startswith("en") or not calories or made is None:
            continue
        if not made[1].startswith("serving") or float(calories[0]) < 50 or len(page["ingredients"]) > 20:
            continue
        kit = make_kit(page["ingredients"], table, servings=float(made[0].middle))
        ratios.append(kit.kcal_per_serving.value / float(calories[0]))
        if len(ratios) == 60:
            break
    assert len(ratios) == 60
    assert 0.85 < statistics.median(ratios) < 1.15
    assert sum(0.67 < ratio < 1.5 for ratio in ratios) > 0.7 * len(ratios)


def test_what_is_added_in_words_may_be_several_foods(table):
    reply = edit(make_kit(["1 egg"], table), "add 1 cup each walnuts and pecans", table)
    assert [item.name for item in reply.kit.ingredients] == ["egg", "walnuts", "pecans"]


@pytest.mark.parametrize(
    "said",
    [
        "add 2 bananas and 1 cup oats",
        "please add 2 bananas and 1 cup of oats",
        "add 2 bananas, 1 cup oats",
        "add 2 bananas, and 1 cup oats",
        "add 2 bananas; add 1 cup oats",
        "add 2 bananas and a cup of oats",
    ],
)
def test_what_is_added_may_be_several_amounts(table, said):
    reply = edit(make_kit(["1 egg"], table), said, table)
    assert reply.understood, reply.said
    assert [(item.name, item.measured()) for item in reply.kit.ingredients] == [
        ("egg", "1"),
        ("bananas", "2"),
        ("oats", "1 cup"),
    ]


def test_what_follows_an_addition(table):
    kit = make_kit(["1 egg", "1 cup milk"], table, servings=2)
    several = edit(kit, "add 1 banana and 2 eggs instead of 1 and 3 cups oats, 2 cups milk, 4 servings", table)
    assert not several.understood  # oats follow no "add"
    done = edit(kit, "add 1 banana and 1 egg, 2 cups milk, 4 servings", table)
    assert [(item.name, str(item.quantity)) for item in done.kit.ingredients] == [
        *(("egg", "2"), ("milk", "4"), ("banana", "2"), ("egg", "2")),
    ]
    assert edit(kit, "add bananas and oats", table).said == "bananas is added; oats is added"
    assert edit(kit, "add salt and pepper", table).kit.missing == "no amount of pepper"


def test_names_follow_their_amounts(table):
    kit = make_kit(["2 eggs", "1 onion", "2 cups flour", "1 tomato", "1 garlic"], table, servings=2)
    assert [item.called() for item in kit.scale(1).ingredients] == ["egg", "onion", "flour", "tomato", "garlic"]
    assert [item.called() for item in kit.scale(6).ingredients] == ["eggs", "onions", "flour", "tomatoes", "garlic"]
    assert kit.scale(1).ingredients[0].line() == "1 egg"
    assert "1 egg is added" in edit(kit, "add 1 eggs", table).said
    text = Console(width=120, file=io.StringIO())
    text.print(kit_text(kit.scale(1)))
    assert "eggs" not in text.file.getvalue()
