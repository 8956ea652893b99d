from fractions import Fraction

import pytest

from weightsmith.core.errors import MissingDependencyError
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.language import load_parser
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Recipe
from weightsmith_kitchen.steps.structure import structure_recipe

INGREDIENTS = ["1 1/3 cups rye flour", "2-3 small onions, sliced", "1 cup hot water", "", "salt to taste"]
STEPS = [
    "1. Fry the onions in a large skillet. | 2. Add the flour and the water, whisking constantly.",
    "-----",
    "Serve.",
]


@pytest.fixture(scope="module")
def recipe():
    try:
        load_parser()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return structure_recipe(ingredients=INGREDIENTS, instructions=STEPS, title="Soup", servings=4)


def test_ingredients_and_steps(recipe):
    assert [item.name for item in recipe.ingredients] == ["rye flour", "onions", "water", "salt"]
    assert recipe.ingredients[0].quantity == Quantity.of(Fraction(4, 3))
    assert recipe.instructions[:2] == (
        "Fry the onions in a large skillet.",
        "Add the flour and the water, whisking constantly.",
    )
    assert recipe.techniques == ("fry", "add", "whisk", "serve")
    assert recipe.utensils == ("skillet",)


def test_events_have_their_labels(recipe):
    found = {event.as_tuple(): event for event in recipe.events}
    assert found["fry", "onions"].ingredients == ("onions",)
    assert found["fry", "onions"].techniques == ("fry",)
    assert found["fry", "large skillet"].utensils == ("skillet",)
    assert found["add", "flour"].ingredients == ("rye flour",)
    assert found["add", "water"].step == 1
    assert found["whisking", "constantly"].techniques == ("whisk",)
    assert [event.step for event in recipe.events] == sorted(event.step for event in recipe.events)


def test_scaled_exactly(recipe):
    twice = recipe.scale(servings=8)
    assert twice.servings == Quantity.of(8)
    for one, other in zip(recipe.ingredients, twice.ingredients, strict=True):
        assert other.quantity == (None if one.quantity is None else one.quantity * 2)
        assert (other.size, other.temperature) == (one.size, one.temperature)
    assert twice.ingredients[1].size == "small"
    assert twice.ingredients[2].temperature == "hot"


def test_json_round_trip(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_without_steps_or_events():
    assert structure_recipe(ingredients=[]) == Recipe(())
    assert structure_recipe(ingredients=["1 egg"], instructions=["Boil it."], events=False).techniques == ("boil",)


def test_bad_input():
    with pytest.raises(RecipeError, match="ingredients: found one string"):
        structure_recipe(ingredients="1 egg")
    with pytest.raises(RecipeError, match="instructions, item 0: found int"):
        structure_recipe(ingredients=[], instructions=[3])
