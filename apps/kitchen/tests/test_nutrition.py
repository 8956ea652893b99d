"""The nutrition table: what names mean, what measures weigh, and what contradicts itself."""

import json
import pickle
import statistics
from pathlib import Path

import pytest

from weightsmith_kitchen import (
    Estimate,
    Food,
    Ingredient,
    NutritionError,
    NutritionTable,
    Quantity,
    make_kit,
    price,
    read_ingredient,
)
from weightsmith_kitchen.nutrition import energy_notes, measures, sodium_mg, usda

REFERENCE = Path(__file__).parents[4] / "shared" / "data" / "apps" / "caloraify" / "database.json"


@pytest.fixture(scope="module")
def table():
    return NutritionTable.default()


# Names as cooks write them, and the energy per 100 g within which a right row lies.
MEANT = [
    ("butter", 700, 760),
    ("unsalted butter", 700, 760),
    ("onion", 30, 50),
    ("plain flour", 340, 370),
    ("all-purpose flour", 340, 370),
    ("olive oil", 880, 902),
    ("eggs", 130, 160),
    ("egg yolk", 300, 340),
    ("milk", 45, 70),
    ("caster sugar", 375, 405),
    ("icing sugar", 375, 405),
    ("brown sugar", 370, 390),
    ("salt", 0, 1),
    ("black pepper", 240, 260),
    ("garlic", 130, 160),
    ("chicken", 150, 300),
    ("minced beef", 150, 270),
    ("tomatoes", 15, 25),
    ("tomato paste", 75, 100),
    ("soy sauce", 45, 65),
    ("basmati rice", 340, 370),
    ("spaghetti", 350, 375),
    ("cheddar cheese", 390, 415),
    ("feta", 260, 280),
    ("mozzarella", 250, 310),
    ("double cream", 320, 360),
    ("sour cream", 180, 210),
    ("honey", 300, 310),
    ("vanilla extract", 280, 295),
    ("baking soda", 0, 1),
    ("cinnamon", 240, 270),
    ("cumin", 370, 385),
    ("oregano", 255, 275),
    ("lemon juice", 18, 30),
    ("carrots", 35, 45),
    ("potatoes", 55, 95),
    ("aubergine", 18, 30),
    ("courgette", 14, 25),
    ("spring onions", 25, 40),
    ("red bell pepper", 24, 35),
    ("jalapeno", 25, 35),
    ("chickpeas", 130, 390),
    ("walnuts", 640, 680),
    ("peanut butter", 580, 620),
    ("cocoa powder", 220, 240),
    ("breadcrumbs", 380, 400),
    ("mayonnaise", 660, 720),
    ("white wine", 78, 86),
    ("coconut milk", 180, 240),
    ("cilantro", 20, 26),
    ("avocado", 155, 170),
    ("raisins", 290, 310),
    ("cornstarch", 375, 385),
    ("sesame oil", 880, 902),
    ("gelatin", 330, 340),
    ("icing sugar (for dusting)", 375, 405),
    ("butter or margarine", 700, 760),
]


def test_most_names_of_a_kitchen_mean_the_right_row(table):
    wrong = []
    for name, low, high in MEANT:
        food = table.lookup(name)
        if food is None or food.kcal is None or not low <= food.kcal <= high:
            wrong.append((name, food and (food.name, food.kcal)))
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize(
    ("line", "low", "high"),
    [
        ("100 g dried apricots", 230, 250),
        ("1 cup cooked rice", 190, 220),
        ("200 g dried lentils", 690, 730),
        ("1 (15-oz.) can chickpeas", 500, 650),
        ("1 cup cream", 450, 850),
        ("100 g mince", 180, 260),
        ("1 cup tomato sauce", 50, 80),
        ("100 g self-raising flour", 340, 370),
        ("100 g peppers", 20, 35),
        ("2 peppers", 45, 80),
        ("1 tsp pepper", 5, 7),
        ("100 g cod", 75, 90),
        ("200 g arborio rice", 690, 750),
        ("1 cup grated parmesan", 380, 450),
        ("2 dozen eggs", 1600, 1850),
        ("1 cup tea", 0, 5),
        ("1 red pepper", 20, 45),
    ],
)
def test_a_line_is_priced_as_a_cook_means_it(table, line, low, high):
    found = price(read_ingredient(line), table)
    assert found.kcal is not None, found.notes
    assert low <= found.kcal.value <= high, found.food.name


def test_a_diet_is_kept(table):
    assert table.lookup("vegan butter") is None
    assert "vegetarian" not in table.lookup("salmon fillets").name.lower()


def test_what_is_in_no_table_is_not_made_up(table):
    assert table.lookup("unobtainium") is None
    assert table.lookup("") is None
    found = price(Ingredient("unobtainium", Quantity.of(100), "gram"), table)
    assert found.grams == Estimate(100, 100, 100)
    assert found.kcal is None
    assert "in no table; nearest:" in found.notes[0]


def test_plurals_and_letter_case_change_nothing(table):
    for one, other in (("tomato", "Tomatoes"), ("egg", "EGGS"), ("red onion", "Red onions")):
        assert table.lookup(one).id == table.lookup(other).id


def test_a_row_is_found_by_its_id(table):
    food = table.lookup("honey")
    assert table.get(food.id) == food
    assert food.id.startswith("usda:")
    for bad in ("usda:999999999", "usda:x", "honey", "own:1"):
        with pytest.raises(NutritionError, match="id of a food"):
            table.get(bad)


def test_a_row_names_its_source_and_survives_json(table):
    food = table.lookup("honey")
    assert food.source in {f"USDA FoodData Central, {kind}" for kind in usda.KINDS.values()}
    again = Food.from_dict(json.loads(json.dumps(food.to_dict())))
    assert again.to_dict() == food.to_dict()


def test_a_missing_value_is_not_zero(table):
    food = next(match.food for match in table.search("Oil, olive, extra virgin") if match.food.kcal is None)
    assert "the table has no energy for it" in food.notes
    assert all(value is not None for value in food.nutrients.values())
    assert set(food.nutrients) < set(usda.NUTRIENTS)


def test_sodium_is_read_by_its_column(table):
    salt = table.lookup("table salt")
    assert 38_000 < salt.nutrients["sodium_mg"] < 39_400  # 22.99 / 58.44 of a kilogram


@pytest.mark.parametrize(("amount", "unit"), [(3000, "mg"), (3, "g"), (3_000_000, "ug"), (3, "grams")])
def test_sodium_of_salt_does_not_depend_on_the_unit(amount, unit):
    assert sodium_mg(amount, unit, salt=True) == pytest.approx(1180.2, abs=0.1)
    assert sodium_mg(amount, unit, salt=False) == pytest.approx(3000)


def test_energies_that_contradict_themselves_are_named():
    assert "exchanged" in energy_notes(720, None, 172)[0]
    assert "one kcal is 4.184 kJ" in energy_notes(172, None, 172)[0]
    assert energy_notes(172, None, 720) == ()
    assert "kilojoules" in energy_notes(1490, 352)[0]
    assert energy_notes(356, 352) == ()
    assert "pure fat" in energy_notes(1800, None)[0]


def test_the_embedding_finds_what_shares_no_word(table):
    names = [match.food.name for match in table.search("zwieback rusk", limit=5)]
    assert any("toast" in name.lower() or "rusk" in name.lower() or "bread" in name.lower() for name in names), names


def test_a_users_own_table_is_preferred(table, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "name,kcal,kj,protein_g,grams_per_cup,grams_per_piece\n"
        "Grandma's flour,350,,10,118,\n"
        "quark,,280,12,,\n"
        "protein bar,200,48,20,,55\n",
        encoding="utf-8",
    )
    own = table.with_csv(path)
    assert len(own) == len(table) + 3
    flour = price(Ingredient("grandma's flour", Quantity.of(1), "cup"), own)
    assert flour.food.source == "own.csv, line 2"
    assert (round(flour.grams.value), round(flour.kcal.value)) == (118, 413)
    assert own.lookup("quark").kcal == pytest.approx(280 / 4.184)
    bar = price(Ingredient("protein bar", Quantity.of(2)), own)
    assert bar.grams.value == 110
    assert "may be exchanged" in bar.notes[0]
    assert table.lookup("grandma's flour").source != "own.csv, line 2"
    assert pickle.loads(pickle.dumps(own)).lookup("quark").name == "quark"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("food,energy\nx,1\n", "the columns food, energy"),
        ("name,kcal\nx,many\n", "line 2, kcal"),
        ("name,kcal\nx,-3\n", "line 2, kcal"),
        ("name,kcal\nx,nan\n", "line 2, kcal"),
        ("name,kcal\n,3\n", "line 2, name"),
        ("name,kcal,grams_per_armful\nx,3,3\n", "grams_per_armful"),
        ("name,kcal,grams_per_ounce\nx,3,28.35\n", "grams_per_ounce: found a unit of weight"),
        ('name,kcal\n"x,3\n', "cannot be read"),
        ("name,kcal,kcal\nx,350,1\n", "two columns 'kcal'"),
        ("name,kcal\nFlour, 00,350\n", "line 2: found more fields than columns"),
        ("name,kcal\nx,3\ny,4\nX,5\n", "line 4: found 'X' again, after line 2"),
        ("", "the columns none"),
    ],
)
def test_a_table_that_cannot_be_read_names_the_place(table, tmp_path, text, said):
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NutritionError, match=said):
        table.with_csv(path)


def test_a_table_in_another_encoding_is_refused(table, tmp_path):
    path = tmp_path / "own.csv"
    path.write_bytes("name,kcal\ncrème,3\n".encode("latin-1"))
    with pytest.raises(NutritionError, match="not UTF-8"):
        table.with_csv(path)


# --- weights of household measures -----------------------------------------------------------------------------------


def test_two_units_of_volume_give_the_same_weight(table):
    cup = price(Ingredient("flour", Quantity.of(1), "cup"), table)
    spoons = price(Ingredient("flour", Quantity.of(16), "tablespoon"), table)
    pinches = price(Ingredient("flour", Quantity.of(48 * 16), "pinch"), table)
    assert cup.grams.value == pytest.approx(125)
    assert spoons.grams.value == pytest.approx(cup.grams.value)
    assert pinches.kcal.value == pytest.approx(cup.kcal.value)


def test_an_ounce_of_volume_is_weighed_with_the_food_and_an_ounce_of_weight_is_not(table):
    honey = price(Ingredient("honey", Quantity.of(5), "fluid ounce"), table)
    weighed = price(Ingredient("honey", Quantity.of(5), "ounce"), table)
    assert weighed.grams.value == pytest.approx(141.75, abs=0.01)
    assert honey.grams.value == pytest.approx(5 * 29.5735 * 339 / 236.588, rel=1e-4)


def test_a_link_that_is_missing_is_said(table):
    handful = price(Ingredient("parsley", Quantity.of(1), "handful"), table)
    assert handful.grams is None
    assert handful.kcal is None
    assert "weight of a handful of 'parsley'" in handful.notes[-1]
    unknown = price(Ingredient("flour", Quantity.of(1), "blorp"), table)
    assert "the unit 'blorp' is not known" in unknown.notes[-1]
    assert "no amount" in price(Ingredient("flour"), table).notes[0]
    assert price(Ingredient("salt"), table).kcal == Estimate(0, 0, 0)


def test_sizes_and_packages(table):
    small, large = (price(Ingredient("eggs", Quantity.of(3), size=size), table) for size in ("small", "large"))
    assert (small.grams.value, large.grams.value) == (114, 150)
    cans = price(Ingredient("black beans", Quantity.of(2), "can", package=(Quantity.of(14), "ounce")), table)
    assert cans.grams.value == pytest.approx(28 * 28.349523125)
    dual = price(Ingredient("butter", Quantity.of(1), "cup", alternatives=((Quantity.of(230), "gram"),)), table)
    assert dual.grams.value == 230


def test_a_range_becomes_an_interval(table):
    found = price(Ingredient("sugar", Quantity.parse("1-2"), "cup"), table)
    assert found.grams.value == pytest.approx(300)
    assert found.grams.low <= 200
    assert found.grams.high >= 400
    assert found.kcal.low < found.kcal.value < found.kcal.high


def test_every_measure_has_a_source_and_bounds_around_its_value():
    assert len(measures.rows()) > 250
    for name, _, portion in measures.rows():
        assert portion.source, name
        assert 0 < portion.grams.low <= portion.grams.value <= portion.grams.high, name


def test_curated_densities_agree_with_the_labels_of_products(table):
    """Two independent sources: USDA's household weights, and the servings printed on branded products."""
    ratios = {}
    for name, _, portion in measures.rows():
        if portion.unit == "milliliter":
            labels = table.label_density(name)
            if labels is not None:
                ratios[name] = labels.grams.value / portion.grams.value
    assert len(ratios) > 60
    assert 0.9 < statistics.median(ratios.values()) < 1.1
    assert sum(0.7 < ratio < 1.4 for ratio in ratios.values()) / len(ratios) > 0.7


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the shared data are not here: CaLoRAify's table")
def test_curated_densities_agree_with_energies_of_cups_and_ounces():
    """A third source: kcal per cup over kcal per ounce is the weight of a cup."""
    stored = json.loads(REFERENCE.read_text(encoding="utf-8"))
    ratios = []
    for name in {key.split(" ", 1)[1] for key in stored}:
        cup, ounce = (stored.get(f"{unit} {name}", {}).get("nrg") for unit in ("cup", "ounce"))
        found = [portion for portion in measures.find(name) if portion.unit == "milliliter"]
        if cup and ounce and found:
            ratios.append(found[0].grams.value * 236.588 / (cup / ounce * 28.3495))
    assert len(ratios) > 30
    assert 0.9 < statistics.median(ratios) < 1.1
    assert sum(0.67 < ratio < 1.5 for ratio in ratios) / len(ratios) > 0.7


def test_servings_of_labels_are_read():
    assert usda.household("1/4 cup") == ("cup", 0.25)
    assert usda.household("2 ONZ") == ("ounce", 2.0)
    assert usda.household("8 OZA") == ("fluid ounce", 8.0)
    assert usda.household("3 crackers") == ("cracker", 3.0)
    for text in ("", "cup", "1/0 cup", "0 cup", "2", "1 x"):
        assert usda.household(text) is None


@pytest.mark.parametrize(
    ("line", "low", "high"),
    [
        ("4 bagels", 250, 420),  # by the labels of products
        ("2 English muffins", 110, 130),
        ("10 olives", 25, 60),
        ("3 croissants", 150, 190),
        ("2 packets active dry yeast", 13, 15),
        ("12 large shrimp", 80, 90),
        ("1 can chickpeas", 230, 280),
        ("1 can tomato paste", 165, 175),
        ("6 lasagna sheets", 90, 120),
        ("1 cup dried chickpeas", 195, 205),
        ("zest of 1 lemon", 5, 7),
        ("2 lemons, juiced", 90, 100),
        ("zest and juice of 1 lemon", 50, 65),
        ("twenty-five g butter", 25, 25),
        ("two thirds of a cup of sugar", 130, 135),
        ("2 sticks butter plus 1 tablespoon", 225, 227),
        ("an egg", 44, 56),
        ("juice of half a lemon", 20, 28),
        ("1 (15 oz) can black beans, drained", 250, 260),
        ("2 x 400g tins chickpeas", 800, 800),
        ("3 strips bacon", 80, 90),
        ("1 cup whipped cream", 55, 65),
    ],
)
def test_weights_of_pieces_cans_and_parts_of_fruit(table, line, low, high):
    found = price(read_ingredient(line), table)
    assert low <= float(found.grams) <= high, (found.name, found.grams, found.basis)


@pytest.mark.parametrize(
    ("line", "low", "high"),  # kcal, as common tables have them
    [
        ("1 lb 80/20 ground beef", 1050, 1250),
        ("1 bottle of wine", 580, 660),
        ("1 cup lentils", 640, 730),
        ("1 can cola", 130, 165),
        ("1 can green chiles", 15, 40),
        ("8 oz elbow macaroni", 780, 880),
        ("6 oz bittersweet chocolate", 850, 1050),
        ("1 lb shrimp", 340, 430),
        ("1 pita", 150, 190),
        ("1 cup milk powder", 580, 680),
        ("1 cup whole milk", 140, 160),
        ("1 can water chestnuts", 60, 160),
    ],
)
def test_common_foods_are_taken_for_what_a_cook_means(table, line, low, high):
    found = price(read_ingredient(line), table)
    assert low <= float(found.kcal) <= high, (found.food.name, found.kcal)


def test_dry_legumes_have_three_times_the_energy_of_cooked_ones(table):
    dry, canned = (price(read_ingredient(f"100 g {name}"), table) for name in ("dried chickpeas", "canned chickpeas"))
    assert 340 < float(dry.kcal) < 400
    assert 100 < float(canned.kcal) < 180


def test_labels_agree_with_household_weights_of_pieces(table):
    for name, curated in (("hamburger bun", 44), ("tortilla", 32), ("egg", 50)):
        labels = table.label_weight(name, "piece")
        assert labels.grams.low <= curated <= labels.grams.high
    assert table.label_weight("no such food", "piece") is None
    assert table.label_weight("'; DROP TABLE measures", "piece") is None


def test_what_was_not_read_is_still_said_after_pricing(table):
    found = price(read_ingredient("1 egg plus 1 yolk"), table)
    assert any("not read" in remark for remark in found.remarks)
    assert Ingredient.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("line", "grams"),
    [("1 000 g flour", 1000), ("1'000 g flour", 1000), ("1e3 g sugar", 1000), ("1 pound minus 2 ounces beef", 397)],
)
def test_amounts_of_many_digits_and_differences_are_weighed(table, line, grams):
    assert price(read_ingredient(line), table).grams.value == pytest.approx(grams, rel=0.01)


@pytest.mark.parametrize(
    ("line", "name", "measured"),
    [
        ("a cup and a half of rice", "rice", "1 1/2 cups"),
        ("2 cups minus 2 tbsp flour", "flour", "1 7/8 cups"),
        ("7-up 1 can", "7-up", "1 can"),
        ("100 g", "", "100 grams"),
    ],
)
def test_what_a_line_says_in_other_ways_is_read(line, name, measured):
    item = read_ingredient(line)
    assert (item.name, item.measured()) == (name, measured)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("3/4/5 cups rice", "3/4/5: no number"),
        ("1e400 g flour", "1e400: no number"),
        ("1 0 g flour", "0 g: no amount, not read"),
        ("2 eggs minus 1 yolk", "minus 1: not read"),
        ("1 500 g flour", "1 500 g: read as 1 of 500 gram"),
    ],
)
def test_what_is_no_amount_is_named(line, said):
    assert read_ingredient(line).unread == (said,)


def test_a_table_that_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(NutritionError, match=r"NutritionTable\.build"):
        NutritionTable(tmp_path)


@pytest.mark.parametrize(
    ("line", "grams", "basis"),
    [
        ("1 large can tomatoes", 794, "weight of one, large: usual net weight on US labels"),
        ("2 small onions", 140, "weight of one, small: USDA SR Legacy, household weight"),
        ("1 small head cabbage", 714, "weight of one, small: USDA SR Legacy, household weight"),
        ("2 lg eggs", 100, "weight of one, lg: USDA SR Legacy, household weight"),
        ("1 extra-large egg", 56, "weight of one, extra-large: USDA SR Legacy, household weight"),
        ("3 med carrots", 183, "weight of one, med: USDA SR Legacy, household weight"),
        ("1 inch piece of ginger", 13, "weight of one, 1 inch: volume of a root 1 inch thick, as dense as water"),
        ("5cm piece ginger", 13 * 5 / 2.54, "weight of one, 5cm: volume of a root 1 inch thick, as dense as water"),
        (
            "1 ½-inch piece fresh ginger",
            19.5,
            "weight of one, 1 ½-inch: volume of a root 1 inch thick, as dense as water",
        ),
        ("2 inches ginger", 26, "weight of one, 2 inches: volume of a root 1 inch thick, as dense as water"),
    ],
)
def test_a_size_that_the_table_has_is_used(table, line, grams, basis):
    (item,) = make_kit([line], table).ingredients
    assert item.grams.value == pytest.approx(grams)
    assert item.basis == basis
    assert not any("usual" in note for note in item.notes)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("1 small can tuna", "small: a usual can is taken"),
        ("1 large lemon", "large: a usual piece is taken"),
        ("2 small to medium onions", "small to medium: a usual piece is taken"),
        ("2 (3-inch) potatoes", "3-inch: a usual piece is taken"),
    ],
)
def test_a_size_that_the_table_has_not_is_said(table, line, note):
    (item,) = make_kit([line], table).ingredients
    assert item.grams is not None
    assert note in item.notes


def test_sizes_are_in_order():
    by_food = {}
    for name, _, portion in measures.rows():
        by_food.setdefault((name, portion.unit), {})[portion.size] = portion.grams
    order = ("small", "medium", "large", "extra large", "jumbo")
    assert sum(len(sizes) > 3 for sizes in by_food.values()) >= 15
    for sizes in by_food.values():
        weights = [sizes[size].value for size in order if size in sizes]
        assert weights == sorted(weights)
        assert all(sizes[size].low <= sizes[size].value <= sizes[size].high for size in sizes)


@pytest.mark.parametrize(
    ("name", "food", "low", "high"),
    [
        ("vanilla bean", "Vanilla extract", 280, 300),
        ("vanilla pod", "Vanilla extract", 280, 300),
        ("curry paste", "curry paste", 80, 200),
        ("red curry paste", "red curry paste", 80, 200),
        ("pizza dough", "pizza dough", 220, 280),
        ("hot sauce", "Hot pepper sauce", 5, 20),
        ("hot pepper", "Peppers, hot, raw", 20, 50),
        ("hot chilies", "Peppers, hot chili, red, raw", 30, 50),
        ("hot dog buns", "Roll, white, hot dog bun", 250, 290),
        ("hot milk", "Milk, NFS", 40, 70),
        ("tomato paste", "Tomato, paste, canned, without salt added", 70, 100),
        ("phyllo dough", "Phyllo dough", 290, 310),
        ("cookie dough", "Cookie, batter or dough, raw", 400, 450),
    ],
)
def test_a_word_that_tells_the_kind_only_is_not_the_food(table, name, food, low, high):
    found = table.lookup(name)
    assert found.name == food
    assert low < found.kcal < high


def test_a_vanilla_bean_has_a_weight(table):
    (item,) = make_kit(["1 vanilla bean"], table).ingredients
    assert (item.grams.value, item.grams.low, item.grams.high) == (3, 2, 5)


def test_a_list_of_ones_own_changes_no_amount(table, tmp_path):
    (tmp_path / "own.csv").write_text("name,kcal\nchicken broth,7\nbroth,9\nchicken,200\n", "utf-8")
    for one in (table, table.with_csv(tmp_path / "own.csv")):
        (own,) = make_kit(["2 cups chicken broth"], one).ingredients
        assert (own.quantity, own.unit, own.name) == (Quantity.of(2), "cup", "chicken broth")
    assert own.food.name == "chicken broth"
    assert own.food.kcal == 7


def test_foundation_foods_have_energy_and_sodium(table):
    """Some have only energies by factors of their own: none of those with macronutrients is without."""
    rows = [table._row(row) for (row,) in table._base.execute("SELECT row FROM foods WHERE kind = 'foundation_food'")]
    whole = [food for food in rows if {"protein_g", "fat_g", "carbohydrate_g"} <= set(food.nutrients)]
    assert len(whole) > 100
    assert all(food.kcal is not None for food in whole)
    assert sum(not food.notes for food in whole) > 0.9 * len(whole)  # the energy fits the macronutrients
    salted = [food.nutrients["sodium_mg"] for food in rows if "sodium_mg" in food.nutrients]
    assert len(salted) > 100
    assert max(salted) > 1000
    assert len(salted) < len(rows)  # absent is not 0
