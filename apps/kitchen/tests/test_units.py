"""Names of units and factors between them."""

from fractions import Fraction

import pytest

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.units import UNITS, convert, find_unit


@pytest.mark.parametrize(
    ("one", "count", "other"),
    [
        ("cup", 16, "tablespoon"),
        ("cup", 48, "teaspoon"),
        ("tbsp", 3, "tsp"),
        ("pound", 16, "ounce"),
        ("quart", 4, "cup"),
        ("pint", 2, "cup"),
        ("gallon", 16, "cup"),
        ("cup", 8, "fl oz"),
        ("tsp", 16, "pinch"),
        ("kg", 1000, "g"),
        ("dl", 100, "ml"),
        ("pound", Fraction("453.59237"), "gram"),
    ],
)
def test_factors_are_exact(one, count, other):
    assert convert(Quantity.of(1), UNITS[one], UNITS[other]) == Quantity.of(count)


def test_chains_of_conversions_agree():
    amount = Quantity.parse("1 1/3")
    direct = convert(amount, UNITS["gallon"], UNITS["pinch"])
    by_cups = convert(convert(amount, UNITS["gallon"], UNITS["cup"]), UNITS["cup"], UNITS["pinch"])
    assert direct == by_cups


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Cups", "cup"),
        ("TBSP.", "tablespoon"),
        ("T", "tablespoon"),
        ("t", "teaspoon"),
        ("fl. oz.", "fluid ounce"),
        ("fl oz", "fluid ounce"),
        ("oz", "ounce"),
        ("leaves", "leaf"),
        ("bunches", "bunch"),
        ("tins", "can"),
    ],
)
def test_names(word, name):
    assert find_unit(word).name == name


@pytest.mark.parametrize("word", ["unsalted", "rams", "large", "", "g g"])
def test_words_that_are_no_unit(word):
    assert find_unit(word) is None


def test_an_ounce_of_weight_is_not_an_ounce_of_volume():
    assert UNITS["oz"].kind == "mass"
    assert UNITS["fl oz"].kind == "volume"
    with pytest.raises(RecipeError, match="density"):
        convert(Quantity.of(5), UNITS["fl oz"], UNITS["oz"])


def test_an_unknown_unit_names_the_nearest():
    with pytest.raises(RecipeError, match="teaspoon"):
        UNITS["teaspon"]


def test_every_name_leads_to_one_unit():
    for unit in UNITS:
        assert find_unit(unit.name) == unit
        assert find_unit(unit.plural) == unit
