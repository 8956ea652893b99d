"""Lines that name several foods."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from weightsmith_kitchen.phrases.lines import split_line
from weightsmith_kitchen.steps.structure import structure_recipe


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("1 cup each flour and sugar", ["1 cup flour", "1 cup sugar"]),
        ("1/2 tsp each of salt, pepper and cumin", ["1/2 tsp salt", "1/2 tsp pepper", "1/2 tsp cumin"]),
        ("salt and pepper, 1 tsp each", ["1 tsp salt", "1 tsp pepper"]),
        ("1 each red and green pepper", ["1 red pepper", "1 green pepper"]),
        ("1 egg plus 1 yolk", ["1 egg", "1 yolk"]),
        ("1 egg, plus 1 yolk", ["1 egg", "1 yolk"]),
        ("1 cup each sugar and flour, sifted", ["1 cup sugar, sifted", "1 cup flour, sifted"]),
        ("1 cup each onion, celery & carrot (about 2 of each)", ["1 cup onion", "1 cup celery", "1 cup carrot"]),
        ("juice of 1 lemon and zest of 1 orange", ["juice of 1 lemon", "zest of 1 orange"]),
        ("1 red, 1 green and 1 yellow pepper", ["1 red pepper", "1 green pepper", "1 yellow pepper"]),
        ("an onion and a carrot", ["an onion", "a carrot"]),
        ("butter or oil, 2 tbsp", ["2 tbsp butter or oil"]),
        ("2 eggs\n1 cup milk", ["2 eggs", "1 cup milk"]),
        ("2 cups (about 3) apples", ["2 cups apples"]),
        ("2 eggs, 1 cup flour", ["2 eggs", "1 cup flour"]),
        ("2 sticks butter plus 1 tablespoon", ["2 sticks butter", "1 tablespoon butter"]),
        ("200g butter, 100g sugar and 3 eggs", ["200g butter", "100g sugar", "3 eggs"]),
        ("Zest of 2 lemons and 2 limes", ["Zest of 2 lemons", "Zest of 2 limes"]),
        ("half a cup of milk and two eggs", ["half a cup of milk", "two eggs"]),
    ],
)
def test_several_foods_become_several_lines(line, parts):
    assert split_line(line) == parts


@pytest.mark.parametrize(
    "line",
    [
        "1 onion, 1/4 inch dice",
        "1 chicken, about 3 lbs",
        "2 carrots, 1 diced, 1 sliced",
        "1 cup plus 2 tablespoons flour",
        "1 tbsp oil, plus 1 tsp for frying",
        "2 cans (14 oz each) tomatoes",
        "2 peppers, one red, one green",
        "4 eggs, 2 whole, 2 yolks",
        "3 lemons, 5 limes, or 1 grapefruit",
        "2 cups half and half or milk",
        "1 lb potatoes, 2 large",
        "100 g / 4 oz flour",
        "1 and 1/2 cups flour",
        "",
    ],
)
def test_one_food_stays_one_line(line):
    assert split_line(line) == [line]


PARTS = ["1", "½", "2 eggs", "1 cup", "each", "flour", ",", " and ", "plus", "(", ")", "or", "zest of", "1/0", "+", ";"]


@given(st.lists(st.sampled_from(PARTS), max_size=10).map(" ".join))
@settings(deadline=None, max_examples=60)
def test_any_line_gives_lines(line):
    parts = split_line(line)
    assert parts
    assert parts == [line.strip()] or len(parts) > 1


def test_a_structured_recipe_has_an_ingredient_per_food():
    recipe = structure_recipe(ingredients=["1 egg plus 1 yolk", "salt"], events=False)
    assert [item.name for item in recipe.ingredients] == ["egg", "yolk", "salt"]
