import pytest
from hypothesis import given, strategies as st

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.phrases.tokens import tokenize, tokenize_lines

MIXED = "1\u00a01/2"


@pytest.mark.parametrize(
    ("line", "forms"),
    [
        ("1 1/2 cups", [MIXED, "cups"]),
        ("1\u00a01/2 cups", [MIXED, "cups"]),
        ("1½ cups", [MIXED, "cups"]),
        ("1 ½ (14 ounce) jars", [MIXED, "-LRB-", "14", "ounce", "-RRB-", "jars"]),
        ("1-1/2 cups", [MIXED, "cups"]),
        ("1 and 1/2 cups", [MIXED, "cups"]),
        ("1 & ½ cups", [MIXED, "cups"]),
        ("1 1⁄2 cups", [MIXED, "cups"]),
        ("½ cup", ["1/2", "cup"]),
        ("⅔ cup", ["2/3", "cup"]),
        ("⅚ ⅞ ⅕ ⅐", ["5/6", "7/8", "1/5", "1/7"]),
        ("1/3rd cup molasses", ["1/3", "cup", "molasses"]),
        ("2–4 leeks", ["2-4", "leeks"]),
        ("1 -2 teaspoons", ["1-2", "teaspoons"]),
        ("½–1 tsp", ["1/2-1", "tsp"]),
        ("1½-2 lb.", ["1\u00a01/2-2", "lb."]),
        ("2 - 3 x 15ml tablespoons", ["2-3", "x", "15", "ml", "tablespoons"]),
        ("2 - 14 oz cans", ["2", "-", "14", "oz", "cans"]),
        ("1 to 3 cups", ["1", "to", "3", "cups"]),
        ("1 3 lb. duck", ["1", "3", "lb.", "duck"]),
        ("1 14 oz can corn", ["1", "14", "oz", "can", "corn"]),
        ("250g unsalted butter", ["250", "g", "unsalted", "butter"]),
        ("6large eggs", ["6", "large", "eggs"]),
        ("1 lb 85/15 minced beef", ["1", "lb", "85/15", "minced", "beef"]),
        ("300g/10 1/2 oz", ["300", "g", "/", "10\u00a01/2", "oz"]),
        ("100g/3½oz", ["100", "g", "/", "3\u00a01/2", "oz"]),
        ("1 (6-ounce) package", ["1", "-LRB-", "6", "-", "ounce", "-RRB-", "package"]),
        ("1 1/4-inch thick slices", ["1\u00a01/4-inch", "thick", "slices"]),
        ("cut into 1-inch pieces", ["cut", "into", "1-inch", "pieces"]),
        ("1,000 g", ["1,000", "g"]),
        ("1.5kg, .5 l", ["1.5", "kg", ",", ".5", "l"]),
        ("2% milk", ["2", "%", "milk"]),
        ("bird's eye, don't peel", ["bird", "'s", "eye", ",", "do", "n't", "peel"]),
        ("Hellmann’s [optional]", ["Hellmann", "'s", "-LRB-", "optional", "-RRB-"]),
        ("half-and-half and/or Creole/Cajun", ["half-and-half", "and/or", "Creole/Cajun"]),
        ("salt.", ["salt", "."]),
        ("crème fraîche", ["crème", "fraîche"]),
        ("", []),
        (" \t\n ", []),
    ],
)
def test_forms(line, forms):
    assert [token.form for token in tokenize(line)] == forms


def test_places_are_characters_of_the_line():
    line = "2½ cups 🧅 onions, peeled"
    assert [line[token.start : token.end] for token in tokenize(line)] == [
        "2½", "cups", "🧅", "onions", ",", "peeled"
    ]  # fmt: skip


@given(st.lists(st.text(alphabet=st.sampled_from("12½/-–., ()'’&andtrhx é🧅gozlb\n"), max_size=30), max_size=6))
def test_tokens_cover_everything_but_blanks(lines):
    batch = tokenize_lines(lines)
    assert len(batch) == len(lines)
    for number, line in enumerate(lines):
        tokens = batch.tokens(number)
        assert tokens == tokenize(line)
        end = 0
        for token in tokens:
            assert end <= token.start < token.end <= len(line)
            assert not line[end : token.start].strip()
            assert token.form
            end = token.end
        assert not line[end:].strip()


def test_bad_input():
    with pytest.raises(RecipeError, match="one string"):
        tokenize_lines("1 egg")
    with pytest.raises(RecipeError, match="line 1: found NoneType"):
        tokenize_lines(["1 egg", None])
