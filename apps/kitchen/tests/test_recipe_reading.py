"""Recipes as they are pasted: headings or none, Markdown tables, web pages, JSON."""

from __future__ import annotations

import json
import time

import pytest

from weightsmith_kitchen import Quantity, RecipeError, make_kit, read_recipe

SCHEMA = {
    "@graph": [
        {"@type": "WebPage", "name": "A page"},
        {
            "@type": ["Recipe"],
            "name": "Caf&eacute; cake",
            "recipeYield": ["1 cake", "8 servings"],
            "recipeIngredient": ["2 cups flour", "1 egg plus 1 yolk"],
            "recipeInstructions": [
                {"@type": "HowToSection", "itemListElement": [{"@type": "HowToStep", "text": "Mix <b>all</b>."}]},
                "Bake.",
            ],
        },
    ]
}


def texts(recipe):
    return [item.text for item in recipe.ingredients]


@pytest.mark.parametrize("page", [False, True])
def test_linked_data_is_read_from_a_page_or_as_it_is(page):
    text = json.dumps(SCHEMA)
    if page:
        text = (
            f'<html><head><script type="application/ld+json">{text}</script></head><body><p>Cookies!</p></body></html>'
        )
    recipe = read_recipe(text)
    assert recipe.title == "Café cake"
    assert recipe.servings == Quantity.of(8)
    assert texts(recipe) == ["2 cups flour", "1 egg", "1 yolk"]
    assert recipe.instructions == ("Mix all.", "Bake.")


def test_a_page_without_data_is_read_by_its_lines():
    page = "<h1>Soup</h1><ul><li>2 cups water</li><li>1 onion</li></ul><ol><li>Boil the water.</li></ol>"
    recipe = read_recipe(page + "<script>const x = '1 cup poison'</script>")
    assert (recipe.title, texts(recipe), recipe.instructions) == (
        "Soup",
        ["2 cups water", "1 onion"],
        ("Boil the water.",),
    )


def test_a_parsed_recipe_is_read_again():
    recipe = read_recipe("Pancakes\nServes 4\n2 cups flour\n3 eggs")
    assert read_recipe(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "JSON without one"),
        ("[1, 2", "JSON that cannot be read"),
        ("[" * 100_000, "JSON that cannot be read"),
        ('{"recipeIngredient": 5}', "other things than texts"),
        ('{"recipeIngredient": []}', "no ingredient line"),
        ("<script>alert(1)</script>", "no ingredient line"),
    ],
)
def test_what_holds_no_recipe_is_said(text, said):
    with pytest.raises(RecipeError, match=said):
        read_recipe(text)


def test_a_title_may_begin_with_a_bracket():
    recipe = read_recipe("[Vegan] Pancakes\nServes 4\n2 cups flour\n3 bananas\n")
    assert (recipe.title, len(recipe.ingredients)) == ("[Vegan] Pancakes", 2)


def test_too_many_ingredients_in_json_are_refused():
    with pytest.raises(RecipeError, match="at most 10000"):
        read_recipe(json.dumps({"recipeIngredient": ["1 egg"] * 10_001}))


def test_markdown_tables():
    table = "| Amount | Food |\n|---|:--:|\n| 2 cups | flour |\n| 1 tsp | salt |\n"
    table += "\n| Food | How much |\n|--|--|\n| water | 1 cup |"
    assert texts(read_recipe("# Bread\n\n" + table)) == ["2 cups flour", "1 tsp salt", "1 cup water"]


def test_steps_without_heading_or_number():
    recipe = read_recipe("Omelette\n2 eggs\nsalt\nBeat the eggs\nFry in butter for 3 minutes.\nServe hot.")
    assert texts(recipe) == ["2 eggs", "salt"]
    assert recipe.instructions == ("Beat the eggs", "Fry in butter for 3 minutes.", "Serve hot.")
    kept = ["Juice of 1 lemon", "Butter for the pan", "Salt to taste", "Roast beef"]
    assert texts(read_recipe("\n".join(["Salad", "1 cucumber", *kept]))) == ["1 cucumber", *kept]


def test_numbered_ingredients():
    recipe = read_recipe("Cake\n1. 2 cups flour\n2. 3 eggs\n\nMethod\n1. Mix.")
    assert (texts(recipe), recipe.instructions) == (["2 cups flour", "3 eggs"], ("Mix.",))


def test_a_food_in_the_first_line_is_no_title():
    assert texts(read_recipe("salt\n2 eggs")) == ["salt", "2 eggs"]
    assert texts(read_recipe("eggs\nflour")) == ["eggs", "flour"]
    titled = read_recipe("Salsa\n\n2 tomatoes")
    assert (titled.title, texts(titled)) == ("Salsa", ["2 tomatoes"])


def test_a_range_of_servings_says_what_is_taken():
    kit = make_kit(read_recipe("Stew\nServes 4-6\n1 onion"))
    assert kit.notes == ("it serves 4-6: 5 is taken",)


@pytest.mark.parametrize(
    "text", ["flour - 2 cups\neggs - 3", "Flour\t2 cups\nEggs\t3", "\U0001f95a 2 eggs\n\U0001f9c8 1 tbsp butter"]
)
def test_a_first_line_with_an_amount_is_no_title(text):
    recipe = read_recipe(text)
    assert recipe.title == ""
    assert len(recipe.ingredients) == 2
    assert all(item.quantity is not None for item in recipe.ingredients)


def test_what_stands_around_the_list_is_no_ingredient():
    recipe = read_recipe("Cake\nHome\n5 from 12 votes\nIngredients\n2 eggs\n\nNutrition\nFat 10 g\nNotes\nSalt is fine")
    assert (recipe.title, texts(recipe)) == ("Cake", ["2 eggs"])


def test_several_recipes_are_refused_in_json_and_the_largest_is_taken_of_a_page():
    two = [
        {"@type": "Recipe", "recipeIngredient": ["1 egg"]},
        {"@type": "Recipe", "recipeIngredient": ["1 egg", "salt"]},
    ]
    with pytest.raises(RecipeError, match="2 lists of ingredients"):
        read_recipe(json.dumps(two))
    with pytest.raises(RecipeError, match="one recipe at a time"):
        read_recipe("\n".join(map(json.dumps, two)))
    page = "".join(f'<script type="application/ld+json">{json.dumps(recipe)}</script>' for recipe in two)
    assert texts(read_recipe(f"<html>{page}</html>")) == ["1 egg", "salt"]


def test_cells_of_tables_of_a_page_stay_apart():
    page = "<table><tr><td>2 cups</td><td>flour</td></tr><tr><td>3</td><td>eggs</td></tr></table>"
    assert texts(read_recipe(page)) == ["2 cups flour", "3 eggs"]


@pytest.mark.parametrize(
    ("line", "servings"),
    [("For four people", "4"), ("4 persons", "4"), ("Serves four to six", "4-6"), ("Serves 4", "4"), ("Feeds 3", "3")],
)
def test_how_many_it_serves(line, servings):
    recipe = read_recipe(f"Soup\n{line}\n1 onion")
    assert (str(recipe.servings), texts(recipe)) == (servings, ["1 onion"])


def test_control_characters_are_not_kept():
    assert read_recipe("Soup \x1b[31mred\n1 onion").title == "Soup [31mred"


def test_columns_of_nutrients_are_left_out_and_named():
    head = "| Amount | Food | kcal | Protein (g) |\n|---|---|--:|---|\n"
    recipe = read_recipe(
        f"# Bread\n\n{head}| 2 cups | flour | 910 | 26 |\n| 1 tsp | salt | | 0 |\n| | Total | 910 | 26 |\n"
    )
    assert texts(recipe) == ["2 cups flour", "1 tsp salt"]
    notes = ("column 'kcal' of a table: left out", "column 'Protein (g)' of a table: left out")
    assert recipe.notes == (*notes, "row 'Total' of a table: left out")
    assert make_kit(recipe).notes[:2] == notes
    assert read_recipe(recipe.to_json()) == recipe
    bare = read_recipe("2 eggs | 140 kcal\n1 cup milk | 150 kcal\n")
    assert (texts(bare), bare.notes[0]) == (["2 eggs", "1 cup milk"], "140 kcal in a table: left out")
    food = read_recipe("| Food | How much |\n|--|--|\n| Sugar | 1 cup |\n| Fat | 2 tbsp |")
    assert (texts(food), food.notes) == (["1 cup Sugar", "2 tbsp Fat"], ())


def test_a_title_that_is_a_food():
    titled = read_recipe("Butter\n2 cups heavy cream\n1/4 tsp salt\n")
    assert (titled.title, texts(titled)) == ("Butter", ["2 cups heavy cream", "1/4 tsp salt"])
    assert texts(read_recipe("Salt\n2 eggs")) == ["Salt", "2 eggs"]  # stands in lists without an amount
    assert texts(read_recipe("Butter\nsugar\n2 eggs")) == ["Butter", "sugar", "2 eggs"]


def test_parts_of_the_dish_without_a_colon():
    recipe = read_recipe("Lasagna\n\nSauce\n2 cups tomatoes\n1 onion\nTopping\n1 cup cheese\nSalt")
    assert (recipe.title, texts(recipe)) == ("Lasagna", ["2 cups tomatoes", "1 onion", "1 cup cheese", "Salt"])
    text = "Cake\nIngredients\n2 cups flour\n\nLemon glaze\n1 cup sugar\nTomato sauce\n1 egg\n"
    text += "Wet ingredients\n1 cup milk\nSauce"
    # Within a list "Tomato sauce" may be food, and so may a word that no amount follows.
    assert texts(read_recipe(text)) == ["2 cups flour", "1 cup sugar", "Tomato sauce", "1 egg", "1 cup milk", "Sauce"]
    data = json.dumps({"recipeIngredient": ["Dough", "2 cups flour", "1 egg"]})
    assert texts(read_recipe(data)) == ["2 cups flour", "1 egg"]


@pytest.mark.parametrize(("size", "basis"), [({}, "an unknown amount"), ({"servingSize": "1.5 cups"}, "1.5 cups")])
def test_nutrients_of_a_page_are_kept_in_a_note_and_a_volume_is_no_number_of_servings(size, basis):
    nutrition = {"@type": "NutritionInformation", "calories": "240 kcal", "fatContent": "8 g", **size}
    page = {"@type": "Recipe", "recipeIngredient": ["1 egg"], "recipeYield": "1.5 cups", "nutrition": nutrition}
    recipe = read_recipe(f'<html><script type="application/ld+json">{json.dumps(page)}</script></html>')
    assert recipe.servings is None
    assert recipe.notes == (f"nutrients that the page prints, for {basis}: calories 240 kcal, fat 8 g: not used",)
    kit = make_kit(recipe)
    assert kit.kcal.value < 100
    assert not kit.servings_known


def test_a_heading_may_have_its_list_on_the_same_line():
    recipe = read_recipe("Salad\nServes 2\nIngredients: 2 tomatoes, 1 cucumber, 100 g feta\nInstructions: mix.")
    assert [item.name for item in recipe.ingredients] == ["tomatoes", "cucumber", "feta"]
    assert recipe.instructions == ("mix.",)
    assert recipe.title == "Salad"


HEADS = ["| food | amount | unit |", "| Qty | Unit | Item |", "| Item | Qty | Note |", "| Qty | Item |"]
FOOD, QTY, NOTE, TWO = (f"{head}\n|{'--|' * (head.count('|') - 1)}\n" for head in HEADS)


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        (f"{FOOD}| onion | 2 | medium |\n| flour | 1 | cup |", ["2 medium onion", "1 cup flour"]),
        (f"{QTY}| 3 | large | eggs |\n| | pinch | salt |", ["3 large eggs", "pinch salt"]),
        (f"{NOTE}| butter | 2 tbsp | melted |\n| salt | to taste | |", ["2 tbsp butter, melted", "salt to taste"]),
        (f"{TWO}| 1 cup | 2% milk |\n| - | pepper |", ["1 cup 2% milk", "pepper"]),
        ("onion | 2 | medium", ["2 medium onion"]),
    ],
)
def test_units_and_sizes_in_columns_of_their_own(table, lines):
    recipe = read_recipe(f"Soup\n\n{table}")
    assert texts(recipe) == lines
    onion = read_recipe(f"Soup\n\n{FOOD}| onion | 2 | medium |").ingredients[0]
    assert (onion.quantity, onion.unit, onion.size) == (Quantity.of(2), None, "medium")


def test_a_size_in_place_of_a_unit_is_priced():
    stored = {"title": "", "ingredients": [{"name": "onion", "quantity": "2", "unit": "medium"}]}
    item = make_kit(read_recipe(json.dumps(stored))).ingredients[0]
    assert (item.unit, item.size, item.grams.value) == (None, "medium", 220)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("*1* cup flour", "1 cup flour"),
        ("**2** eggs", "2 eggs"),
        ("- **1 cup** _sifted_ flour", "1 cup sifted flour"),
        ("* __2__ eggs", "2 eggs"),
        ("***3*** eggs", "3 eggs"),
        ("> 2 eggs", "2 eggs"),
        ("`2` eggs", "2 eggs"),
        ("1 cup [flour](https://example.org/flour)", "1 cup flour"),
        ("<b>2</b> eggs", "2 eggs"),
        ("1<sup>1</sup>/<sub>2</sub> cups milk", "1 1/2 cups milk"),
        ("1\\-2 eggs", "1-2 eggs"),
        ("* 2 eggs*", "2 eggs*"),
    ],
)
def test_marks_of_emphasis_are_no_part_of_the_text(line, read):
    assert texts(read_recipe(f"Dish\n1 onion\n{line}")) == ["1 onion", read]
    assert texts(read_recipe(json.dumps({"recipeIngredient": [line.removeprefix("* ")]})))[0].strip("- ") == read
    kit = make_kit([line])
    assert kit.ingredients[0].quantity is not None


def test_fractions_of_a_page_keep_their_whole_number():
    page = "<html><ul><li>1<sup>1</sup>/<sub>2</sub> cups milk</li><li><b>2</b> eggs</li></ul></html>"
    assert [str(item.quantity) for item in read_recipe(page).ingredients] == ["1 1/2", "2"]


LETTER = """Dear Anna,
Here is the cake I promised you last summer.
My mother made it every Sunday.

Lemon cake
By Jane Doe
Serves 8
Makes 1 loaf
4.8 from 120 votes
Prep time: 10 minutes
2 cups flour
3 eggs
The kids loved it!
I use organic lemons.
1 lemon (I use two)
salt and pepper

Beat the eggs, add the flour and bake for 40 minutes.
Enjoy!
Love,
Maria
"""


def test_what_stands_around_a_list_is_left_out_and_named():
    recipe = read_recipe(LETTER)
    assert [item.name for item in recipe.ingredients] == ["flour", "eggs", "lemon", "salt", "pepper"]
    assert (recipe.title, recipe.servings) == ("Lemon cake", Quantity.of(8))
    assert recipe.instructions == ("Beat the eggs, add the flour and bake for 40 minutes.",)
    (note,) = recipe.notes
    assert note.startswith("left out, no ingredient: 'Dear Anna,', 'Here is the cake I promised you last summer.'")
    assert note.endswith("and 8 more lines")
    assert make_kit(recipe).notes == (note,)


@pytest.mark.parametrize(
    "line",
    [
        *("By Jane Doe", "Recipe by Jane", "Adapted from Julia Child", "Photo by John", "March 3, 2021"),
        *("https://example.org/cake", "Print", "Pin it", "Jump to recipe", "Serves 4", "Makes 1 loaf", "Yield: 2 pies"),
        *("120 reviews", "5 stars", "10 minutes", "1 hr 20 min", "350\u00b0F", "Enjoy!", "Best wishes, Jane"),
        *("We love this cake", "This was so good!", "It's my favorite", "24 years ago my aunt made it.", "xoxo"),
    ],
)  # fmt: skip
def test_lines_that_are_no_ingredient(line):
    recipe = read_recipe(f"Cake\nServes 2\nMakes 3 cakes\n2 eggs\n{line}\n1 cup milk")
    assert texts(recipe) == ["2 eggs", "1 cup milk"]
    assert recipe.notes == (f"left out, no ingredient: {line!r}",)
    assert (str(recipe.servings), recipe.makes) == ("2", (Quantity.of(3), "cakes"))


@pytest.mark.parametrize(
    "line",
    [
        *("salt", "2 star anise", "freshly ground pepper", "Salt and whatever herbs you like", "lovage"),
        *("10 minute rice", "chocolate chips (I use dark)", "pie crust, store-bought or my own", "Printed chocolate"),
        *("cooking spray", "1 recipe pie crust (makes 2)", "Old Bay seasoning", "4 cups flour for 2 people"),
    ],
)  # fmt: skip
def test_lines_that_are_ingredients(line):
    recipe = read_recipe(f"Cake\n2 eggs\n{line}\n1 cup milk")
    assert texts(recipe) == ["2 eggs", line, "1 cup milk"]
    assert recipe.notes == ()


def test_lists_of_pages_are_freed_of_such_lines_too():
    page = {"recipeIngredient": ["Serves 4", "By Jane Doe", "2 eggs", "Makes 12 muffins"], "recipeYield": "12 muffins"}
    recipe = read_recipe(json.dumps(page))
    assert texts(recipe) == ["2 eggs"]
    assert recipe.makes == (Quantity.of(12), "muffins")
    assert recipe.notes == ("left out, no ingredient: 'Serves 4', 'By Jane Doe', 'Makes 12 muffins'",)


@pytest.mark.parametrize(
    ("line", "foods"),
    [
        ("salt and pepper", ["salt", "pepper"]),
        ("Salt & freshly ground black pepper, to taste", ["Salt", "freshly ground black pepper"]),
        ("salt/pepper", ["salt", "pepper"]),
        ("carrots, onions and celery", ["carrots", "onions", "celery"]),
        ("macaroni and cheese", ["macaroni and cheese"]),
        ("flour, bread", ["flour"]),
    ],
)
def test_foods_without_an_amount_are_counted_each(line, foods):
    items = read_recipe(f"Soup\n1 onion\n{line}").ingredients[1:]
    names = [item.text.partition(",")[0] for item in items]
    assert names == foods
    assert all(item.quantity is None for item in items)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize(
    "text",
    [
        "Salt\nPepper\n2 eggs\nbake it",
        "| food | amount |\n|---|---|\n| egg | 2 |\n| milk | 1 cup |\n",
        "Pancakes\n\nIngredients: salt, pepper\n2 eggs\n\nMethod: fry",
    ],
)
def test_line_ends_of_any_system_are_read_alike(text, end):
    """Each CRLF was two line ends: the salt was taken for a title."""
    expected, found = read_recipe(text), read_recipe(text.replace("\n", end))
    assert (found.title, texts(found), found.instructions) == (expected.title, texts(expected), expected.instructions)


@pytest.mark.parametrize("text", ["\n" * 9_000, "- \n" * 9_000, " \n" * 9_000, "<p>" + "\n" * 9_000])
def test_thousands_of_empty_lines_take_no_time(text):
    start = time.perf_counter()
    assert texts(read_recipe(f"{text}2 eggs")) == ["2 eggs"]
    assert time.perf_counter() - start < 2, "it grew with the square of the lines: 4 s here, minutes for 50,000"


def test_a_long_line_of_json_is_refused():
    with pytest.raises(RecipeError, match="ingredient 2 of the recipe: found 39999 characters. Break it up"):
        read_recipe(json.dumps({"recipeIngredient": ["1 egg", "1 " * 20_000]}))


def test_tags_that_do_not_end_take_no_time():
    """Python's parser looked for the end of each of them in all of the rest."""
    start = time.perf_counter()
    assert texts(read_recipe("<p>2 eggs</p>\n1 cup milk &amp; honey\n" + "<a \n" * 9_000))[0] == "2 eggs"
    assert texts(read_recipe("<p>2 eggs</p>1 cup milk"))[-1] == "1 cup milk"
    assert time.perf_counter() - start < 2
