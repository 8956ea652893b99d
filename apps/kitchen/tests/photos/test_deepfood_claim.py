"""What the claim stands on: its features and its folds."""

import numpy as np
import pytest

from weightsmith_kitchen.claims._handcrafted import color_and_gradients
from weightsmith_kitchen.claims.deepfood import BOXES, FOLDS, GROCERIES, portion_folds
from weightsmith_kitchen.photos.folder import Example, FoodPhotos

COLORS = 256


def stripes(horizontal: bool) -> np.ndarray:
    row = (np.arange(128) // 4 % 2 * 200).astype(np.uint8)
    plane = np.broadcast_to(row[:, None] if horizontal else row[None, :], (128, 128))
    return np.repeat(plane[..., None], 3, axis=2)


def test_flat_pictures_have_a_color_and_no_gradient():
    found = color_and_gradients(np.full((128, 128, 3), (200, 10, 10), np.uint8))
    assert found[COLORS:].max() == 0
    assert sorted(np.unique(found[:COLORS])) == [0, 1]
    assert found[:COLORS].sum() == 4  # one color in each of four cells


def test_gradients_tell_orientations_and_not_brightness():
    across, down = color_and_gradients(stripes(False))[COLORS:], color_and_gradients(stripes(True))[COLORS:]
    assert np.dot(across, down) < 0.05 * np.dot(across, across)
    darker = color_and_gradients(stripes(False) // 2)[COLORS:]
    assert np.abs(across - darker).max() < 0.01
    assert across.max() <= 0.2 + 1e-6


def test_colors_are_counted_by_place():
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:64, :64] = 255
    found = color_and_gradients(picture)[:COLORS].reshape(4, 64)
    assert found[0].argmax() == 63
    assert (found[1:].argmax(1) == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_portions_stay_in_one_fold_and_classes_in_all(seed):
    examples = [
        Example(f"{label}{portion}-{photo}.jpg", label, group=f"{label}{portion}")
        for label in ("apple", "bread")
        for portion in range(5)
        for photo in range(4)
    ]
    photos = FoodPhotos(examples)
    folds = portion_folds(photos, seed)
    by_portion = {}
    for example, fold in zip(photos, folds, strict=True):
        by_portion.setdefault(example.group, set()).add(int(fold))
    assert all(len(found) == 1 for found in by_portion.values())
    for label in photos.classes:
        assert {int(f) for f, x in zip(folds, photos, strict=True) if x.label == label} == set(range(FOLDS))


def test_the_declarations_are_of_one_method():
    assert GROCERIES.slug == BOXES.slug == "deepfood"
    assert len(GROCERIES.expected) <= 3
    assert len(BOXES.expected) <= 3
