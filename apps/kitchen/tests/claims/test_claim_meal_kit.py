"""What the claims of the meal kit stand on: the databank, means of ingredients, nested ridge regression."""

import math
import os
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from weightsmith_kitchen.claims import _ingredients, _mass, _plates, meal_kit
from weightsmith_kitchen.claims._indb import GRAMS, load
from weightsmith_kitchen.claims._shared import arms_of, sums_of_means
from weightsmith_kitchen.portions import LabeledIngredient, LabeledRecipe

DATA = Path(os.environ.get("WEIGHTSMITH_DATA", "")) / "apps"


@pytest.mark.skipif(not (DATA / "indb").exists(), reason="WEIGHTSMITH_DATA names no folder with apps/indb")
def test_the_databank_is_what_the_claim_says():
    bank = load(DATA)
    assert (bank.rows, bank.all_recipes, bank.codes) == (10271, 1014, 332)
    assert bank.coded == pytest.approx(0.986, abs=0.0005)
    items = [item for recipe in bank.recipes for item in recipe.ingredients]
    # a food that a recipe names twice stays two rows
    assert (len(bank.recipes), len(items)) == (998, 10075)
    counts = {"g": 4687, "tsp": 3590, "tbsp": 815, "ml": 471, "C": 265, "sprig": 247}
    assert Counter(item.unit for item in items) == counts
    totals = [recipe.kcal for recipe in bank.recipes]
    assert statistics.median(totals) == pytest.approx(479.3, abs=0.1)
    assert statistics.fmean(totals) == pytest.approx(1082.4, abs=0.1)
    assert GRAMS == {"ml": 1, "g": 1, "tsp": 5, "tbsp": 15, "C": 240, "sprig": 1}


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True), min_size=1, max_size=12))
@settings(deadline=None, max_examples=30)
def test_sums_of_means_have_no_residual_on_what_they_learned(lists):
    rng = np.random.default_rng(len(lists))
    recipes = [
        LabeledRecipe(tuple(LabeledIngredient(name, "g", 1.0, float(rng.uniform(1, 500))) for name in names))
        for names in lists
    ]
    sums = sums_of_means(recipes, recipes)
    assert sum(sums) == pytest.approx(sum(recipe.kcal for recipe in recipes))
    first = recipes[0].ingredients[0].name
    mean = statistics.fmean(x.kcal for recipe in recipes for x in recipe.ingredients if x.name == first)
    alone = LabeledRecipe((LabeledIngredient(first, "g", 1.0, 0.0), LabeledIngredient("unknown", "g", 1.0, 5.0)))
    assert sums_of_means(recipes, [alone]) == pytest.approx([mean])


def test_roles_follow_the_names():
    arms = arms_of({"a": [1.0, 2.0], "b": [3.0, 4.0]}, {"b": "control"}, default="method")
    assert [(arm.name, arm.role, list(arm.values)) for arm in arms] == [
        ("a", "method", [1.0, 2.0]),
        ("b", "control", [3.0, 4.0]),
    ]


def test_nested_ridge_regression_is_that_of_each_fold():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4))
    masses = np.exp(x @ [0.5, 0.0, -0.3, 0.1] + 4 + 0.1 * rng.standard_normal(60))
    fold = np.arange(60) % 5
    plain, logarithm = _mass.direct(x, masses, fold)
    for column, (found, target, back) in enumerate(((plain, masses, lambda v: v), (logarithm, np.log(masses), np.exp))):
        for part in range(5):
            train, held = fold != part, fold == part
            guesses = []
            for strength in _mass.STRENGTHS:
                center, mean = x[train].mean(0), target[train].mean()
                z = x[train] - center
                weights = np.linalg.solve(z.T @ z + strength * np.eye(4), z.T @ (target[train] - mean))
                guesses.append(back((x[held] - center) @ weights + mean))
            near = min(np.abs(guess - found[held]).max() for guess in guesses)
            assert near < 1e-3 * masses.mean(), column


def test_plates_show_what_their_recipes_say():
    plates = _plates.make_plates(40, 3)
    assert plates.photos.shape == (40, 3, 64, 64)
    colored = plates.photos.amax(1) - plates.photos.amin(1) > 0.8  # plate and square are grey
    shown = colored.flatten(1).sum(1).numpy()
    areas = np.array([
        sum(item.portion * _plates.UNIT_AREA[item.unit] for item in recipe.ingredients) for recipe in plates.recipes
    ])  # fmt: skip
    assert (shown < 1.2 * areas + 40).all()
    assert 0.8 < (shown / areas).mean() < 1.02  # discs may overlap, and a square hides 5 %
    for recipe, mains in zip(plates.recipes, plates.mains, strict=True):
        assert 2 <= mains <= 3
        assert len(recipe.ingredients) - mains <= 3
        assert len({item.name for item in recipe.ingredients}) == len(recipe.ingredients)
    density = {}
    for recipe in plates.recipes:
        for item in recipe.ingredients:
            per_area = item.kcal / item.portion / _plates.UNIT_AREA[item.unit]
            assert density.setdefault(item.name, per_area) == pytest.approx(per_area)
    assert torch.equal(_plates.make_plates(3, 5).photos, _plates.make_plates(3, 5).photos)


def test_every_arm_of_the_plates_is_measured():
    values, accuracy, errors = _plates.plate_errors(0, (64, 16), {**_plates.OPTIONS, "epochs": 1})
    assert set(values) == {
        *_plates.KINDS, _plates.DIRECT, "Pimean (mean of each ingredient)", "constant median"
    }  # fmt: skip
    assert all(map(math.isfinite, values.values()))
    assert 0 <= accuracy <= 1
    assert math.log(errors.absolute) == pytest.approx(values[_plates.TUPC], abs=1e-3)


def test_every_arm_of_the_ingredients_is_measured():
    values = _ingredients.overlaps(0, (64, 16), {**_ingredients.OPTIONS, "epochs": 1})
    assert set(values) == {
        _ingredients.DECODER, _ingredients.NO_DISH, _ingredients.BLIND, _ingredients.FREQUENT
    }  # fmt: skip
    assert all(0 <= value <= 1 for value in values.values())
    assert values[_ingredients.FREQUENT] > 0.3


def test_declarations_are_few_and_of_one_method():
    claims = (meal_kit.UNITS, meal_kit.ENERGY, meal_kit.MASS, meal_kit.PLATES, meal_kit.INGREDIENTS)
    assert len({claim.name for claim in claims}) == 5
    for claim in claims:
        assert claim.slug == "meal-kit"
        assert 1 <= len(claim.expected) <= 3
