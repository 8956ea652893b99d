"""Boxes: the worked numbers, and what holds for any."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.boxes import Box, as_box, iou, map_box, nms, with_margin
from weightsmith_kitchen.photos.images import open_photo
from weightsmith_kitchen.photos.preprocess import Preprocess

coordinates = st.tuples(st.floats(0, 180), st.floats(0, 80), st.floats(5, 200), st.floats(5, 100))


def boxes(width: int = 200, height: int = 100):
    return coordinates.map(lambda c: Box(c[0], c[1], min(c[0] + c[2], width), min(c[1] + c[3], height))).filter(
        lambda box: min(box.width, box.height) >= 4 and max(box) > 1
    )


def test_margin_of_the_worked_example():
    grown = with_margin(Box(89.5, 62.9, 148.2, 110.1), 0.1, (224, 151))
    assert grown == pytest.approx((83.63, 58.18, 154.07, 114.82), abs=1e-9)


@pytest.mark.parametrize("shape", ["warp", "crop"])
def test_a_box_that_covers_the_photo_changes_nothing(shape):
    image = Image.effect_mandelbrot((224, 151), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    pixels = Preprocess(side=96, shape=shape, share=0.875)
    assert pixels(image, Box(0, 0, 224, 151)).equal(pixels(image))


def test_a_box_is_in_pixels_of_the_full_photo(tmp_path):
    full = Image.effect_mandelbrot((1600, 1200), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    path = tmp_path / "a.jpg"
    full.save(path, quality=95)
    pixels, box = Preprocess(side=64), Box(200, 300, 900, 1000)
    small = open_photo(path, side=224)
    assert small.width < 1600
    assert (pixels(small, box) - pixels(open_photo(path), box)).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], "four finite numbers"),
        ([1, 2, float("nan"), 9], "four finite numbers"),
        (["a", 2, 3, 4], "expected xmin, ymin, xmax, ymax"),
        ([50, 10, 50, 40], "has no area"),
        ([50, 10, 20, 40], "has no area"),
        ([0, 0, 260, 90], "reaches out of the photo"),
        ([-5, 0, 60, 90], "reaches out of the photo"),
        ([10, 10, 12, 60], "is too small"),
        ([0.1, 0.1, 0.5, 0.5], "Pass normalized=True"),
    ],
)
def test_boxes_that_cannot_be_used(box, message):
    with pytest.raises(PhotoError, match=message) as caught:
        as_box(box, (200, 100), name="lunch.jpg")
    assert "lunch.jpg" in str(caught.value)


def test_normalized_boxes_are_declared():
    assert as_box([0, 0, 1, 1], (200, 100), normalized=True) == Box(0, 0, 200, 100)
    with pytest.raises(PhotoError, match="numbers from 0 to 1"):
        as_box([0, 0, 200, 100], (200, 100), normalized=True)


def test_a_pixel_over_the_edge_is_clipped():
    assert as_box([-0.4, 0, 200.7, 100], (200, 100)) == Box(0, 0, 200, 100)


@settings(max_examples=60, deadline=None)
@given(boxes(), st.floats(0, 1))
def test_margins_grow_inside_the_photo(box, margin):
    grown = with_margin(box, margin, (200, 100))
    assert grown.xmin <= box.xmin
    assert grown.ymax >= box.ymax
    assert min(grown) >= 0
    assert grown.xmax <= 200
    assert grown.ymax <= 100


@settings(max_examples=60, deadline=None)
@given(boxes(), st.integers(40, 400), st.integers(40, 400))
def test_scaling_back_returns_the_box(box, width, height):
    mapped = map_box(box, (200, 100), resized=(width, height))
    if mapped is not None:
        assert map_box(mapped, (width, height), resized=(200, 100)) == pytest.approx(box, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(boxes())
def test_crops_shift_and_clip(box):
    mapped = map_box(box, (200, 100), crop=(50, 20, 80, 60))
    if mapped is None:
        left = min(box.xmax, 130) - max(box.xmin, 50), min(box.ymax, 80) - max(box.ymin, 20)
        assert min(left) < 4
    else:
        assert mapped == pytest.approx(
            (max(box.xmin, 50) - 50, max(box.ymin, 20) - 20, min(box.xmax, 130) - 50, min(box.ymax, 80) - 20)
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=8), st.randoms())
def test_suppression_leaves_no_overlap_and_covers_what_it_drops(found, random):
    scores = [random.choice([0.2, 0.5, 0.9]) for _ in found]
    labels = [random.choice("ab") for _ in found]
    kept = nms(found, scores, labels, threshold=0.5)
    overlaps = iou(found, found)
    for place in range(len(found)):
        rivals = [other for other in kept if other != place and labels[other] == labels[place]]
        assert (place in kept) == (not any(overlaps[place, o] > 0.5 and kept_first(scores, o, place) for o in rivals))
    assert [scores[place] for place in kept] == sorted((scores[place] for place in kept), reverse=True)


def kept_first(scores, other, place):
    return (-scores[other], other) < (-scores[place], place)


def test_overlap_is_symmetric_and_one_for_itself():
    found = [Box(0, 0, 10, 10), Box(5, 5, 20, 20), Box(100, 0, 110, 10)]
    overlaps = iou(found, found)
    assert np.allclose(overlaps, overlaps.T)
    assert np.allclose(np.diag(overlaps), 1)
    assert overlaps[0, 1] == pytest.approx(25 / (100 + 225 - 25))
    assert nms([], []) == []
