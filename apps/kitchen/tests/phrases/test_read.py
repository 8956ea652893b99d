"""Ingredient lines that other parsers read wrongly, each with what must come out."""

import pytest
from hypothesis import given, settings, strategies as st

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.phrases.read import read_ingredient, read_ingredients
from weightsmith_kitchen.quantity import Quantity


@pytest.mark.parametrize(
    ("line", "quantity", "unit", "name"),
    [
        ("1 and 1/2 cups rye flour", "1 1/2", "cup", "rye flour"),
        ("1/3rd cup molasses", "1/3", "cup", "molasses"),
        ("1/3 cup flour", "1/3", "cup", "flour"),
        ("2½ tablespoons capers", "2 1/2", "tablespoon", "capers"),
        ("1 -2 teaspoons vanilla", "1-2", "teaspoon", "vanilla"),
        ("½–1 tsp salt", "1/2-1", "teaspoon", "salt"),
        ("1 to 3 cups water", "1-3", "cup", "water"),
        ("1 1/2 to 2 cups milk", "1 1/2-2", "cup", "milk"),
        ("250g unsalted butter", "250", "gram", "unsalted butter"),
        ("6large eggs", "6", None, "eggs"),
        ("20 grams poppy seeds", "20", "gram", "poppy seeds"),
        ("2 cups chicken broth", "2", "cup", "chicken broth"),
        ("5 fl oz single cream", "5", "fluid ounce", "single cream"),
        ("5 oz single cream", "5", "ounce", "single cream"),
        ("1 lb 85/15 minced beef", "1", "pound", "85/15 minced beef"),
        ("2 T sugar", "2", "tablespoon", "sugar"),
        ("2 t sugar", "2", "teaspoon", "sugar"),
        ("1 lb 2 oz beef", "1 1/8", "pound", "beef"),
        ("2 tablespoons plus 2 teaspoons maple syrup", "2 2/3", "tablespoon", "maple syrup"),
        ("4 garlic cloves, minced", "4", "clove", "garlic"),
        ("1 head of garlic", "1", "head", "garlic"),
        ("1 dozen eggs", "1", "dozen", "eggs"),
        ("half a lemon", "1/2", None, "lemon"),
        ("one onion", "1", None, "onion"),
        ("two and a half cups of flour", "2 1/2", "cup", "flour"),
        ("a pinch of salt", "1", "pinch", "salt"),
        ("chicken stock - 2 cups", "2", "cup", "chicken stock"),
        ("2% milk, 1 cup", "1", "cup", "2% milk"),
        ("3-4 sprigs of thyme", "3-4", "sprig", "thyme"),
        ("1 or 2 chillies", "1-2", None, "chillies"),
        ("• 2 cups rice", "2", "cup", "rice"),
        ("3 cloves", "3", "clove", "cloves"),
        ("1/2 of an onion", "1/2", None, "onion"),
        ("½ an onion, chopped", "1/2", None, "onion"),
        ("1 lb 8 oz haddock", "1 1/2", "pound", "haddock"),
        ("6 ¼-inch-thick slices crusty bread", "6", "slice", "crusty bread"),
        ("4 punnets cherry tomatoes", "4", "punnet", "cherry tomatoes"),
        ("2 Japanese aubergines or 1 large purple aubergine", "2", None, "Japanese aubergines"),
        ("salt to taste", None, None, "salt"),
        ("olive oil", None, None, "olive oil"),
        ("a few sprigs of thyme", None, "sprig", "thyme"),
    ],
)
def test_amount_unit_and_name(line, quantity, unit, name):
    found = read_ingredient(line)
    assert found.quantity == (None if quantity is None else Quantity.parse(quantity))
    assert (found.unit, found.name) == (unit, name)
    assert found.text == line
    assert found.package is None


@pytest.mark.parametrize(
    ("line", "quantity", "unit", "package", "name"),
    [
        ("1 ½ (14 ounce) jars pesto", "1 1/2", "jar", ("14", "ounce"), "pesto"),
        ("2 - 3 x 15ml tablespoons sesame oil", "2-3", "tablespoon", ("15", "milliliter"), "sesame oil"),
        ("1 3 lb. duck", "1", None, ("3", "pound"), "duck"),
        ("1 14 oz can corn", "1", "can", ("14", "ounce"), "corn"),
        ("Two 14-ounce cans diced tomatoes", "2", "can", ("14", "ounce"), "diced tomatoes"),
        ("1 x 400g/14oz can beans", "1", "can", ("400", "gram"), "beans"),
        ("400g can chickpeas", "1", "can", ("400", "gram"), "chickpeas"),
        ("4 (6 ounce) salmon fillets", "4", None, ("6", "ounce"), "salmon fillets"),
        ("2 cans tuna (5 oz each)", "2", "can", ("5", "ounce"), "tuna"),
        ("1 tin (400g) coconut milk", "1", "can", ("400", "gram"), "coconut milk"),
    ],
)
def test_packages(line, quantity, unit, package, name):
    found = read_ingredient(line)
    assert (found.quantity, found.unit) == (Quantity.parse(quantity), unit)
    assert found.package == (Quantity.parse(package[0]), package[1])
    assert found.name == name


@pytest.mark.parametrize(
    ("line", "quantity", "unit", "alternatives"),
    [
        ("300g/10 1/2 oz plain flour", "300", "gram", [("10 1/2", "ounce")]),
        ("500g/1lb 2oz pumpkin", "500", "gram", [("1 1/8", "pound")]),
        ("1 cup (250 mL) milk", "1", "cup", [("250", "milliliter")]),
        ("1/2 cup (1 stick/4 ounces) butter", "1/2", "cup", [("1", "stick"), ("4", "ounce")]),
        ("1 small onion, minced (about ¼ cup)", "1", None, [("1/4", "cup")]),
        ("1 cup chopped leeks (see Notes) 250 mL", "1", "cup", [("250", "milliliter")]),
        ("1 lb vermicelli 500 g", "1", "pound", [("500", "gram")]),
    ],
)
def test_alternatives(line, quantity, unit, alternatives):
    found = read_ingredient(line)
    assert (found.quantity, found.unit) == (Quantity.parse(quantity), unit)
    assert found.alternatives == tuple((Quantity.parse(number), name) for number, name in alternatives)
    assert found.package is None


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("1 1/4-inch thick slices bread", "size", "1 1/4-inch thick"),
        ("1 1/4-inch thick slices bread", "quantity", None),
        ("6 10-inch whole wheat tortillas", "size", "10-inch"),
        ("6 10-inch whole wheat tortillas", "quantity", Quantity.of(6)),
        ("1 (2-inch) piece fresh ginger, grated", "size", "2-inch"),
        ("1 (2-inch) piece fresh ginger, grated", "dry_fresh", "fresh"),
        ("2 large handfuls spinach", "size", "large"),
        ("6large eggs", "size", "large"),
        ("2 cups cooked corned beef, chopped", "state", "cooked, chopped"),
        ("2 onions, peeled and finely chopped", "state", "peeled and finely chopped"),
        ("1 cup butter, at room temperature", "temperature", "room temperature"),
        ("1 cup frozen peas, thawed", "temperature", "frozen"),
        ("1 tsp dried thyme", "dry_fresh", "dried"),
        ("olive oil, for frying (optional)", "optional", True),
        ("olive oil, for frying", "optional", False),
    ],
)
def test_attributes(line, field, value):
    assert getattr(read_ingredient(line), field) == value


def test_what_is_assumed_or_left_out_is_said():
    assert read_ingredient("handful fresh basil leaves").unread == ("one handful is assumed",)
    assert "another choice" in read_ingredient("225g/8oz butter, softened, or baking spread").unread[0]
    found = read_ingredient("1/0 cup sugar")
    assert found.quantity is None
    assert found.unread == ("1/0: no number",)


@pytest.mark.parametrize("number", ["9" * 5000, "1." + "2" * 5000, "1/" + "9" * 5000])
def test_numbers_without_end(number):
    found = read_ingredient(number + " cups flour")
    assert found.quantity is None
    assert found.unread[0].endswith(": no number")


def test_unsure_lines_have_low_confidence():
    assert read_ingredient("1 cup sugar").confidence > 0.95
    assert read_ingredient("1 lb 85/15 minced beef").confidence < 0.6


def test_spans_are_places_in_the_line():
    found = read_ingredient("2½ cups cooked rice")
    assert [(found.text[span.start : span.end], span.label) for span in found.spans] == [
        ("2½", "QUANTITY"),
        ("cups", "UNIT"),
        ("cooked", "STATE"),
        ("rice", "NAME"),
    ]


@pytest.mark.parametrize(
    ("line", "quantity", "unit"),
    [
        ("1.000 g flour", "1000", "gram"),
        ("1.500 ml milk", "1500", "milliliter"),
        ("1.000-1.200 g flour", "1000-1200", "gram"),
        ("1,500 kg rice", "1 1/2", "kilogram"),
        ("1,250 l water", "1 1/4", "liter"),
    ],
)
def test_a_mark_before_three_digits_is_what_the_unit_says_and_is_named(line, quantity, unit):
    found = read_ingredient(line)
    assert (str(found.quantity), found.unit) == (quantity, unit)
    (note,) = (remark for remark in found.remarks if "read as" in remark)
    assert note.startswith(line.rpartition(" ")[0] + ": read as " + quantity)


@pytest.mark.parametrize(
    ("line", "quantity"),
    [
        ("1,000 g flour", "1000"),
        ("1.500 kg sugar", "1 1/2"),
        ("0.125 g saffron", "1/8"),
        ("2.500 tsp salt", "2 1/2"),
        ("1.250 lb beef", "1 1/4"),
        ("1.25 g yeast", "1 1/4"),
        ("half a liter milk", "1/2"),
        ("1 g saffron", "1"),
    ],
)
def test_other_points_and_commas_are_read_as_everywhere(line, quantity):
    found = read_ingredient(line)
    assert str(found.quantity) == quantity
    assert not any("read as" in remark for remark in found.remarks)


def test_empty_and_odd_lines():
    for line in ("", " ", "x", "1", "-", "()", "½", "\ud800", "1/", "/2", "1-", "- -", "%", "2 x", "1 (", "x" * 10_000):
        found = read_ingredient(line)
        assert found.text == line
        assert found.unit is None
    assert read_ingredient("").name == ""
    assert read_ingredient("").confidence is None
    with pytest.raises(RecipeError, match="line 1: found int"):
        read_ingredients(["1 egg", 2])


PIECES = ["1", "½", "2", "1/2", "14", " ", "-", "–", "(", ")", "/", "oz", "g", "cup", "cans", "flour", "or", "to", "x",
          "about", ",", "inch", "large", "of", "a", "%", "dozen", "each", "plus", "fl", "85/15", "1/0"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
def test_no_line_is_too_odd(line):
    found = read_ingredient(line)
    assert found.text == line
    assert type(found).from_dict(found.to_dict()) == found
