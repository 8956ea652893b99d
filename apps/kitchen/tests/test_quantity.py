"""Amounts, yields and times read from text."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.quantity import Quantity, find_quantity, read_minutes, read_yield
from weightsmith_kitchen.recipe import Ingredient

F = Fraction


@pytest.mark.parametrize(
    ("text", "low", "high", "end"),
    [
        ("1 and 1/2 cups rye flour", F(3, 2), F(3, 2), 9),
        ("1/3rd cup molasses", F(1, 3), F(1, 3), 5),
        ("1/3 cup flour", F(1, 3), F(1, 3), 3),
        ("2½ tablespoons capers", F(5, 2), F(5, 2), 2),
        ("1 ½ (14 ounce) jars", F(3, 2), F(3, 2), 3),
        ("1-1/2 cups", F(3, 2), F(3, 2), 5),
        ("2 - 3 x 15ml tablespoons", 2, 3, 5),
        ("1 -2 teaspoons", 1, 2, 4),
        ("½–1 tsp", F(1, 2), 1, 3),
        ("1 to 3 cups", 1, 3, 6),
        ("1½-2 cups", F(3, 2), 2, 4),
        ("1 3 lb. duck", 1, 1, 1),
        ("1 14 oz can corn", 1, 1, 1),
        ("250g unsalted butter", 250, 250, 3),
        ("6large eggs", 6, 6, 1),
        ("half a cup", F(1, 2), F(1, 2), 6),
        ("a dozen eggs", 12, 12, 7),
        ("half a dozen eggs", 6, 6, 12),
        ("1,500 g", 1500, 1500, 5),
        ("1,5 l", F(3, 2), F(3, 2), 3),
        ("1⁄2 cup", F(1, 2), F(1, 2), 3),
        (".5 cup", F(1, 2), F(1, 2), 2),
        ("1 000 g", 1000, 1000, 5),
        ("1\u00a0000,5 g", F(2001, 2), F(2001, 2), 7),
        ("12\u202f500 g", 12500, 12500, 6),
        ("1\u2009500 g", 1500, 1500, 5),
        ("1'000'000 g", 10**6, 10**6, 9),
        ("1.000,5 g", F(2001, 2), F(2001, 2), 7),
        ("1.000.000 g", 10**6, 10**6, 9),
        ("1 000-2 000 g", 1000, 2000, 11),
        ("2 200 g cans", 2, 2, 1),
        ("1e3 g", 1000, 1000, 3),
        ("2.5E-1 l", F(1, 4), F(1, 4), 6),
    ],
)
def test_the_amount_at_the_beginning_of_a_line(text, low, high, end):
    found, begin, stop = find_quantity(text)
    assert (found.low, found.high, begin, stop) == (low, high, 0, end)


@pytest.mark.parametrize("text", ["salt", "anise seed", "two-inch pieces", "", "   ", "onion", "tender"])
def test_no_amount(text):
    assert find_quantity(text) is None


def test_what_is_written_of_a_tiny_amount_is_read_again():
    tiny = Quantity.of(F(11, 90_000_000))
    assert (tiny.kitchen(), str(tiny)) == ("0.00000012", "0.0000001222")
    assert Quantity.parse(str(tiny)).low == F(str(tiny))


@pytest.mark.parametrize("text", ["1/0", "1/0 cup", "2 1/0"])
def test_a_denominator_of_zero_is_an_error_of_its_own(text):
    with pytest.raises(RecipeError, match="denominator"):
        find_quantity(text)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("2 1/2 cups", "2 1/2", "cups"),
        ("0.75 cup", "3/4", "cup"),
        ("4-6 servings", "4-6", "servings"),
        ("Serves: 4", "4", ""),
        ("Makes about 24 cookies", "24", "cookies"),
    ],
)
def test_yields(text, amount, unit):
    assert read_yield(text) == (Quantity.parse(amount), unit)


@pytest.mark.parametrize(
    ("text", "minutes"), [("24 hours", 1440), ("1 1/2 hours", 90), ("1½ hours", 90), ("1.5 hours", 90), ("PT45M", 45)]
)
def test_times(text, minutes):
    assert read_minutes(text) == Quantity.of(minutes)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "-2", "x", ""])
def test_what_is_no_amount_is_refused(value):
    with pytest.raises(RecipeError, match="amount"):
        Quantity.of(value)


def test_numbers_of_numpy_are_the_decimals_that_they_print_as():
    assert Quantity.of(np.float64(6.1)) == Quantity.of(6.1) == Quantity(F(61, 10), F(61, 10))
    assert Quantity.of(2) * np.float64(1.1) == Quantity.of(2.2)
    assert Ingredient("flour", Quantity.of(2), "cup").scale(np.float64(1.1)).quantity == Quantity.of(2.2)


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), np.float64("inf")])
def test_factor_that_is_not_finite_is_refused(factor):
    with pytest.raises(RecipeError, match="factor"):
        Quantity.of(2) * factor
    with pytest.raises(RecipeError, match="factor"):
        Ingredient("flour", Quantity.of(2), "cup").scale(factor)


def test_a_range_has_its_smaller_number_first():
    with pytest.raises(RecipeError, match="smaller number first"):
        Quantity(F(3), F(2))


@given(st.fractions(min_value=0, max_value=500, max_denominator=64))
def test_what_is_written_is_read_back(value):
    amount = Quantity(value, value)
    assert Quantity.parse(str(amount)) == amount
    assert Quantity.from_json(amount.to_json()) == amount


@given(st.fractions(min_value=0, max_value=99, max_denominator=1000), st.fractions(min_value=0, max_value=9))
def test_ranges_survive_json_and_scale_exactly(low, width):
    amount = Quantity(low, low + width)
    assert Quantity.from_json(amount.to_json()) == amount
    assert (amount * 2).middle == 2 * amount.middle
    assert (amount * F(1, 7)) * 7 == amount


@given(st.fractions(min_value=F(1, 16), max_value=100, max_denominator=1000))
def test_kitchen_fractions_are_near(value):
    shown = Quantity.parse(Quantity(value, value).kitchen())
    assert abs(shown.middle - value) <= (F(1, 16) if value < 2 else F(1, 8) if value < 20 else F(1, 2))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("twenty-five", 25),
        ("twenty five grams", 25),
        ("two hundred and fifty", 250),
        ("a hundred", 100),
        ("half a dozen", 6),
        ("three quarters of a cup", "3/4"),
        ("a third of a cup", "1/3"),
        ("eighteen", 18),
        ("one-quarter cup", "1/4"),
        ("two-thirds cup", "2/3"),
        ("two and three-quarters cups", "2 3/4"),
        ("one and one half cups", "1 1/2"),
        ("three fourths cup", "3/4"),
        ("two to three onions", "2-3"),
        ("a couple of eggs", 2),
        ("half-dozen eggs", 6),
    ],
)
def test_numbers_in_words(text, value):
    assert find_quantity(text)[0] == Quantity.of(value)


def test_small_amounts_are_not_shown_as_nothing():
    assert Quantity.parse("1/16").kitchen() == "0.062"
    assert Quantity.parse("9/16").kitchen() == "0.56"
    assert Quantity.parse("1/3").kitchen() == "1/3"
