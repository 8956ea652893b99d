"""Masses from class and size: geometry, learning, intervals, what cannot be known, folders, kits."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from weightsmith_kitchen.errors import ModelError, PhotoError
from weightsmith_kitchen.photos.mass import FoodSize, MassEstimator, Reference, grouped_folds

COIN = Reference((10.0, 10.0, 35.0, 30.0), 25.0)  # 25 pixels wide: one millimeter per pixel


def spheres(classes, count, seed, noise=0.02):
    """Foods of a density each, as spheres photographed from the side, three photos per portion."""
    rng = np.random.default_rng(seed)
    labels, masses, sizes, groups = [], [], [], []
    for label, density in classes.items():
        for portion in range(count):
            side = rng.uniform(40, 90)
            grams = density * math.pi / 6 * (side / 10) ** 3
            for _ in range(3):
                seen = side * np.exp(noise * rng.standard_normal(2))
                labels.append(label)
                masses.append(grams)
                sizes.append(FoodSize(*map(float, seen), top=None))
                groups.append(f"{label}{portion}")
    return labels, masses, sizes, groups


CLASSES = {"apple": 0.8, "bread": 0.25, "plum": 1.0}


@pytest.fixture(scope="module")
def masses():
    labels, grams, sizes, groups = spheres(CLASSES, 12, 0)
    return MassEstimator().fit(labels, grams, sizes, groups=groups)


@given(st.floats(0.05, 20.0))
@settings(deadline=None, max_examples=20)
def test_the_size_does_not_depend_on_the_resolution(scale):
    boxes = ([100.0, 50.0, 180.0, 110.0], [10.0, 10.0, 110.0, 90.0])
    first = FoodSize.of_boxes(boxes[0], Reference(boxes[1], 25.0))
    if min(80 * scale, 60 * scale) < 4.5:
        return
    again = FoodSize.of_boxes([scale * v for v in boxes[0]], Reference([scale * v for v in boxes[1]], 25.0))
    assert (first.width, first.height) == (20.0, 15.0)
    assert (again.width, again.height) == pytest.approx((20.0, 15.0))


def test_class_and_size_give_the_mass(masses):
    labels, grams, sizes, _ = spheres(CLASSES, 20, 1)
    error = np.abs(masses.predict(labels, sizes) / grams - 1)
    typical = np.abs(masses.predict(labels) / grams - 1)
    assert error.mean() < 0.08
    assert typical.mean() > 4 * error.mean()


def test_a_class_with_one_portion_follows_the_others():
    labels, grams, sizes, groups = spheres(CLASSES, 12, 0)
    rare = spheres({"egg": 1.0}, 1, 3)
    learned = MassEstimator().fit(labels + rare[0], grams + rare[1], sizes + rare[2], groups=groups + rare[3])
    small, large = (learned.estimate("egg", FoodSize(side, side)).grams for side in (40.0, 80.0))
    assert 3 < large / small < 10  # a cube would be 8


def test_intervals_hold_what_they_say(masses):
    labels, grams, sizes, _ = spheres(CLASSES, 60, 2)
    found = [masses.estimate(label, size) for label, size in zip(labels, sizes, strict=True)]
    inside = np.mean([mass.low <= true <= mass.high for mass, true in zip(found, grams, strict=True)])
    assert 0.8 <= inside <= 0.99
    alone = masses.estimate("apple")
    assert alone.basis == "class"
    assert alone.high / alone.low > 2 * found[0].high / found[0].low


def test_an_unusual_size_is_said(masses):
    assert not masses.estimate("apple", FoodSize(60, 60)).unusual
    assert masses.estimate("apple", FoodSize(400, 400)).unusual


def test_the_view_counts_where_it_is_known():
    """The same loaf looks smaller from the side."""
    rng = np.random.default_rng(0)
    labels, grams, sizes, groups = [], [], [], []
    for portion in range(30):
        side = rng.uniform(50, 100)
        for top in (True, False):
            seen = side * np.exp(0.05 * rng.standard_normal(2)) * ((1, 1) if top else (0.7, 0.7))
            labels.append("loaf")
            grams.append(side**3 / 4000)
            sizes.append(FoodSize(*map(float, seen), top))
            groups.append(str(portion))
    with_view = MassEstimator().fit(labels, grams, sizes, groups=groups).predict(labels, sizes)
    blind = [FoodSize(size.width, size.height) for size in sizes]
    without = MassEstimator().fit(labels, grams, blind, groups=groups).predict(labels, blind)
    assert np.abs(with_view - grams).mean() < 0.6 * np.abs(without - grams).mean()


def test_photos_without_a_reference_tell_the_class_alone(masses):
    sizes = [None, FoodSize(60, 60)]
    found = masses.predict(["apple", "apple"], sizes)
    assert found[0] == pytest.approx(masses.predict(["apple"])[0])
    assert found[1] == pytest.approx(masses.estimate("apple", sizes[1]).grams)
    labels, grams, known, groups = spheres(CLASSES, 4, 0)
    learned = MassEstimator().fit(labels, grams, [None, *known[1:]], groups=groups)
    assert learned.labels == ("apple", "bread", "plum")


def test_without_boxes_or_a_reference_the_error_says_what_to_do():
    with pytest.raises(PhotoError, match=r"lunch\.jpg: found no reference object.*Put a coin"):
        FoodSize.of_boxes((0, 0, 50, 50), None, name="lunch.jpg")
    with pytest.raises(PhotoError, match="found no box of the food"):
        FoodSize.of_boxes(None, COIN)
    with pytest.raises(PhotoError, match=r"box of the reference.*4 pixels"):
        FoodSize.of_boxes((0, 0, 50, 50), Reference((35.1, 86.7, 35.7, 87.6), 25.0))


@pytest.mark.parametrize("length", [0, 0.0, -25.0, float("nan"), float("inf")])
def test_a_reference_has_a_length(length):
    with pytest.raises(PhotoError, match="length of the reference: found .*, expected mm, a number > 0"):
        Reference(COIN.box, length)


def test_what_cannot_be_learned_or_asked_is_refused(masses):
    labels, grams, sizes, groups = spheres(CLASSES, 2, 0)
    with pytest.raises(PhotoError, match="one of each per photo"):
        MassEstimator().fit(labels, grams[1:], sizes)
    with pytest.raises(PhotoError, match="fewer than two"):
        MassEstimator().fit(labels, grams, sizes, groups=["one"] * len(labels))
    with pytest.raises(PhotoError, match=r"mass of photo 1 \(apple\)"):
        MassEstimator().fit(labels, [grams[0], math.nan, *grams[2:]], sizes, groups=groups)
    with pytest.raises(PhotoError, match="sizes of plum"):
        MassEstimator().fit(
            labels, grams, [None if x == "plum" else size for x, size in zip(labels, sizes, strict=True)], groups=groups
        )
    with pytest.raises(PhotoError, match=r"\['pizza'\], expected apple, bread, plum"):
        masses.estimate("pizza")
    with pytest.raises(ModelError, match="Call fit first"):
        MassEstimator().estimate("apple")
    with pytest.raises(ModelError, match="coverage"):
        MassEstimator(coverage=1.0)


def test_a_folder_keeps_everything(masses, tmp_path):
    masses.save_pretrained(tmp_path / "masses")
    again = MassEstimator.from_pretrained(tmp_path / "masses")
    size = FoodSize(70.0, 65.0, True)
    assert again.estimate("bread", size) == masses.estimate("bread", size)
    assert again.estimate("bread") == masses.estimate("bread")
    path = tmp_path / "masses" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for changed, said in (
        ({"model_type": "other"}, "other"),
        ({"center": [0.0]}, "center"),
        ({"sized": None}, "sized"),
        ({"spread": {}}, "class and size"),
    ):
        path.write_text(json.dumps(config | changed), encoding="utf-8")
        with pytest.raises(ModelError, match=said):
            MassEstimator.from_pretrained(tmp_path / "masses")


@given(st.integers(2, 6), st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_folds_keep_portions_together_and_deal_every_class(folds, seed):
    labels, _, _, groups = spheres(CLASSES, 7, 0)
    found = grouped_folds(labels, groups, folds, seed=seed)
    for group in set(groups):
        assert len({int(f) for f, g in zip(found, groups, strict=True) if g == group}) == 1
    for label in CLASSES:
        counts = np.bincount([f for f, x in zip(found, labels, strict=True) if x == label], minlength=folds) / 3
        assert counts.max() - counts.min() <= 1


def test_a_kit_has_the_masses_of_its_foods(tmp_path):
    from weightsmith_kitchen import FoodClassifier, NutritionTable, Preprocess
    from weightsmith_kitchen.kit.photo import kit_of_photo

    classifier = FoodClassifier(["apple", "bread"], "inception-v1", preprocess=Preprocess(side=64))
    labels, grams, sizes, groups = spheres({"apple": 0.8, "bread": 0.25}, 5, 0)
    learned = MassEstimator().fit(labels, grams, sizes, groups=groups)
    photo = tmp_path / "lunch.png"
    Image.new("RGB", (200, 150), "white").save(photo)
    box = [100.0, 50.0, 160.0, 110.0]
    table = NutritionTable.default()
    made = kit_of_photo(photo, table, boxes=[box], classifier=classifier, masses=learned, reference=COIN)
    (item,) = made.kit.ingredients
    expected = learned.estimate(made.recognition.answer.label, FoodSize(60.0, 60.0))
    assert item.unit == "gram"
    assert float(item.quantity.low) == round(expected.grams)
    assert any(f"from {expected.low:.0f} to {expected.high:.0f} g" in note for note in item.unread)
    with pytest.raises(PhotoError, match=r"lunch\.png: found no reference object"):
        kit_of_photo(photo, table, boxes=[box], classifier=classifier, masses=learned)
    assumed = kit_of_photo(photo, table, boxes=[box], classifier=classifier)
    assert "assumed" in assumed.kit.ingredients[0].unread[0]


DATA = Path(os.environ.get("WEIGHTSMITH_DATA", "")) / "apps" / "ecustfd"


@pytest.mark.skipif(not (DATA / "ecustfd.json").exists(), reason="WEIGHTSMITH_DATA names no folder with apps/ecustfd")
def test_masses_of_real_foods_with_true_classes():
    from weightsmith_kitchen.claims._mass import COIN as DIAMETER, FOLDS

    labels, grams, sizes, groups = [], [], [], []
    for row in json.loads((DATA / "ecustfd.json").read_text("utf-8")):
        foods, coins = ([x for x in row["objects"] if (x["name"] == "coin") is coin] for coin in (False, True))
        if len(foods) == 1 and row["portions"]:
            labels.append(foods[0]["name"])
            grams.append(row["portions"][0]["mass_g"])
            groups.append(row["portion_id"])
            try:
                sizes.append(FoodSize.of_boxes(foods[0]["box"], Reference(coins[0]["box"], DIAMETER)))
            except PhotoError:
                sizes.append(None)
    assert (len(labels), len(set(groups))) == (2861, 146)
    assert sizes.count(None) == 1  # doughnut006S(15): its coin's box is smaller than a pixel
    held = grouped_folds(labels, groups, FOLDS) == 0
    known = [[value for value, out in zip(values, held, strict=True) if not out] for values in (labels, grams, sizes)]
    portions = [group for group, out in zip(groups, held, strict=True) if not out]
    learned = MassEstimator().fit(*known, groups=portions)
    asked = [[value for value, out in zip(values, held, strict=True) if out] for values in (labels, sizes)]
    truth = np.array(grams)[held]
    error = np.abs(learned.predict(*asked) - truth).mean()
    assert error < np.abs(learned.predict(asked[0]) - truth).mean()
    assert error < 24
