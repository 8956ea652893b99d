"""Folders that ``train`` writes, given to the commands that use them, and what each command refuses."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from weightsmith_kitchen import FoodClassifier
from weightsmith_kitchen.cli import app
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.kit.amounts import with_amounts
from weightsmith_kitchen.kit.photo import kit_of_list
from weightsmith_kitchen.models import kind_of, models_of
from weightsmith_kitchen.nutrition import NutritionTable
from weightsmith_kitchen.photos.mass import FoodSize, MassEstimator
from weightsmith_kitchen.phrases.tagger import IngredientTagger
from weightsmith_kitchen.portions import LabeledIngredient, LabeledRecipe, PortionEstimator, RecipeTable
from weightsmith_kitchen.recipe import Ingredient


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """Calls the second word of each line the unit, and the rest the name."""
    tokens = [["2", "zorbs", "sugar"], ["3", "zorbs", "flour"], ["1", "zorb", "rice"]] * 3
    folder = tmp_path_factory.mktemp("models") / "tagger"
    IngredientTagger(["QUANTITY", "UNIT", "NAME"]).fit(tokens, [["QUANTITY", "UNIT", "NAME"]] * 9).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def portions(tmp_path_factory):
    torch.manual_seed(0)
    egg, milk = LabeledIngredient("egg", "count", 2, 140), LabeledIngredient("milk", "cup", 1, 150)
    salt = LabeledIngredient("truffle dust", "blob", 3, 5)
    recipes = [LabeledRecipe((egg, milk, salt)), LabeledRecipe((egg, salt)), LabeledRecipe((milk,))] * 4
    estimator = PortionEstimator(RecipeTable.learn(recipes, fewest=1), width=32, head_width=8)
    estimator.fit(recipes, epochs=150, learning_rate=3e-3)
    folder = tmp_path_factory.mktemp("models") / "portions"
    estimator.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "classifier"
    FoodClassifier.default().save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (96, 96), (120, 60, 20)).save(tmp_path / "plain.png")
    return tmp_path / "plain.png"


def test_a_tagger_of_ones_own_reads_recipes_kits_and_lines(tagger, tmp_path):
    recipe = tmp_path / "r.txt"
    recipe.write_text("Cake\n\n2 zorbs sugar\n", "utf-8")
    shipped = json.loads(run("parse", recipe).stdout)["ingredients"][0]
    assert (shipped["name"], shipped["unit"]) != ("sugar", "zorb")
    for command in (
        ["parse", recipe],
        ["kit", recipe, "--format", "json"],
        ["estimate", "2 zorbs sugar", "--format", "json"],
    ):
        made = json.loads(run(*command, "--model", tagger).stdout)["ingredients"][0]
        assert (made["name"], made["unit"], made["quantity"]) == ("sugar", "zorb", "2")


def test_learned_portions_fill_what_the_line_does_not_say(portions):
    lines = ("eggs", "2 cups milk", "truffle dust", "saffron")
    made = json.loads(run("estimate", *lines, "--model", portions, "--format", "json").stdout)
    egg, milk, dust, saffron = made["ingredients"]
    assert egg["unit"] is None
    assert float(egg["quantity"].split("/")[0]) > 0
    assert egg["kcal"][0] == pytest.approx(140, rel=0.35)  # two eggs of the table
    assert egg["unread"][0].startswith("amount by learned portions: 2 count (")
    assert (milk["quantity"], milk["unread"]) == ("2", [])  # what the line says is kept
    assert "blob" in dust["unread"][0]
    assert dust["unread"][0].endswith("no unit of the kitchen")
    assert saffron["unread"] == ["no portion of it was learned"]
    plain = json.loads(run("estimate", *lines, "--format", "json").stdout)["ingredients"]
    assert [item["quantity"] for item in plain] == [None, "2", None, None]


def test_learned_portions_in_kits_of_recipes_and_photos(portions, classifier, photo, tmp_path, monkeypatch):
    recipe = tmp_path / "r.txt"
    recipe.write_text("Omelette\n\neggs\n1 cup milk\n", "utf-8")
    made = json.loads(run("kit", recipe, "--model", portions, "--format", "json").stdout)
    assert made["ingredients"][0]["kcal"] is not None
    items = with_amounts([Ingredient("egg"), Ingredient("egg")], PortionEstimator.from_pretrained(portions))
    assert all(item.quantity is not None for item in items)
    # An own classifier and own portions together: one kit.
    made = json.loads(run("kit", photo, "--model", classifier, "--model", portions, "--format", "json").stdout)
    assert "notes" in made


def test_a_list_that_a_model_wrote_becomes_a_kit(portions):
    table = NutritionTable.default()
    kit = kit_of_list(
        "eggs, 1 apple of 200 g, 2 glasses of milk", table, portions=PortionEstimator.from_pretrained(portions)
    )
    egg, apple, milk = kit.ingredients
    assert egg.quantity is not None
    assert apple.grams.value == 200
    assert milk.notes == ("the unit 'glass' is not known",)
    assert kit.notes == ("a model wrote this list: correct it",)
    with pytest.raises(Exception, match="list that the model wrote: found 'no food here'"):
        kit_of_list("no food here", table)


def test_the_kind_of_a_folder_is_read_from_it(tagger, portions, classifier):
    assert [kind_of(folder) for folder in (tagger, portions, classifier)] == ["tagger", "portions", "classifier"]
    assert models_of([tagger, portions]) == {"tagger": str(tagger), "portions": str(portions)}


def test_a_folder_of_another_kind_is_refused_by_what_it_is(tagger, portions, classifier, tmp_path, photo):
    def said(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert isinstance(result.exception, ModelError), result.output
        return str(result.exception)

    assert "found a classifier of photos (train recognize), expected a tagger of ingredient lines" in said(
        "parse", photo, "--model", classifier
    )
    assert "found a tagger of ingredient lines (train ingredients), expected a classifier of photos" in said(
        "recognize", photo, "--model", tagger
    )
    assert "expected a tagger of ingredient lines (train ingredients) or an estimator of portions" in said(
        "estimate", "1 egg", "--model", classifier
    )
    assert f"as {tagger}, expected one of each kind" in said("kit", photo, "--model", tagger, "--model", tagger)
    assert "found no such folder" in said("kit", photo, "--model", tmp_path / "none")
    assert "found no config.json in it" in said("kit", photo, "--model", tmp_path)
    masses = MassEstimator().fit(["egg"] * 4, [50, 52, 60, 61], [FoodSize(side, side) for side in (40, 42, 44, 46)])
    masses.save_pretrained(tmp_path / "masses")
    assert "found a model of the type 'weightsmith-food-mass'" in said("kit", photo, "--model", tmp_path / "masses")
    (tmp_path / "config.json").write_text("{", "utf-8")
    assert "config.json" in said("kit", photo, "--model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "weightsmith-vision-prefix-lm"}', "utf-8")
    assert "two models that name the foods of a photo" in said("kit", photo, "--model", classifier, "--model", tmp_path)
