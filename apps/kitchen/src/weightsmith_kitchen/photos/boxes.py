"""Boxes around foods: checked, enlarged by a margin, carried through scaling and cropping, and thinned out.

A box is (xmin, ymin, xmax, ymax) in pixels of the upright photo, the maximum exclusive. Boxes in [0, 1] are read only
where they are declared so: a box of (0, 0, 1, 1) pixels and one that is the whole photo look the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from weightsmith_kitchen.errors import PhotoError

__all__ = ["SMALLEST_BOX", "Box", "as_box", "iou", "map_box", "nms", "with_margin"]

SMALLEST_BOX = 4.0
"""Pixels of a side below which a box shows nothing."""

TOLERANCE = 1.0
"""Pixels that a box may reach over the edge, for those who count from 1 or round up."""


class Box(NamedTuple):
    """A rectangle in pixels.

    Attributes
    ----------
    xmin, ymin : float
        The upper left corner.
    xmax, ymax : float
        The first column and row that do not belong to it.
    """

    xmin: float
    ymin: float
    xmax: float
    ymax: float

    @property
    def width(self) -> float:
        """Width in pixels."""
        return self.xmax - self.xmin

    @property
    def height(self) -> float:
        """Height in pixels."""
        return self.ymax - self.ymin

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return self.width * self.height


def as_box(box: Sequence[float], size: tuple[int, int], *, normalized: bool = False, name: str = "photo") -> Box:
    """Check a box against its photo.

    Parameters
    ----------
    box : sequence of 4 float
        (xmin, ymin, xmax, ymax), in pixels unless declared otherwise.
    size : tuple of int
        Width and height of the upright photo in pixels.
    normalized : bool, default: False
        The numbers are shares of the width and the height, in [0, 1].
    name : str, default: "photo"
        The photo's name in errors.

    Raises
    ------
    PhotoError
        If it is not four numbers, has no area, is smaller than 4 pixels, or reaches out of the photo.

    Examples
    --------
    >>> as_box([0.25, 0.5, 1, 1], (200, 100), normalized=True)
    Box(xmin=50.0, ymin=50.0, xmax=200.0, ymax=100.0)
    >>> as_box([0.25, 0.5, 1, 1], (200, 100), name="lunch.jpg")
    Traceback (most recent call last):
    weightsmith_kitchen.errors.PhotoError: box of lunch.jpg: found [0.25, 0.5, 1.0, 1.0], expected pixels of a photo \
of 200 x 100. Pass normalized=True if these are shares of the width and the height.
    """
    try:
        values = [float(value) for value in box]
    except (TypeError, ValueError) as error:
        raise PhotoError(f"box of {name}", found=box, expected="xmin, ymin, xmax, ymax") from error
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise PhotoError(f"box of {name}", found=values, expected="four finite numbers: xmin, ymin, xmax, ymax")
    width, height = size
    if normalized:
        if min(values) < 0 or max(values) > 1:
            raise PhotoError(
                f"normalized box of {name}", found=values, expected="numbers from 0 to 1", do="Are they pixels?"
            )
        values = [values[0] * width, values[1] * height, values[2] * width, values[3] * height]
    elif max(values) <= 1 and min(values) >= 0:
        raise PhotoError(
            f"box of {name}",
            found=values,
            expected=f"pixels of a photo of {width} x {height}",
            do="Pass normalized=True if these are shares of the width and the height.",
        )
    xmin, ymin, xmax, ymax = values
    if xmax <= xmin or ymax <= ymin:
        raise PhotoError(
            f"box of {name} has no area", found=values, expected="xmin < xmax and ymin < ymax (corners, not a size)"
        )
    if min(xmin, ymin) < -TOLERANCE or xmax > width + TOLERANCE or ymax > height + TOLERANCE:
        raise PhotoError(
            f"box of {name} reaches out of the photo",
            found=values,
            expected=f"inside {width} x {height}",
            do="Boxes are in pixels of the upright photo at its full size.",
        )
    found = _clipped(Box(xmin, ymin, xmax, ymax), size)
    if min(found.width, found.height) < SMALLEST_BOX:
        raise PhotoError(f"box of {name} is too small", found=list(found), expected=f"sides of {SMALLEST_BOX:g} pixels")
    return found


def with_margin(box: Box, margin: float, size: tuple[int, int]) -> Box:
    """The box larger by a share of its width and height on each side, clipped to the photo.

    Examples
    --------
    >>> grown = with_margin(Box(89.5, 62.9, 148.2, 110.1), 0.1, (224, 151))
    >>> [round(value, 2) for value in grown]
    [83.63, 58.18, 154.07, 114.82]
    """
    x, y = margin * box.width, margin * box.height
    return _clipped(Box(box.xmin - x, box.ymin - y, box.xmax + x, box.ymax + y), size)


def map_box(
    box: Box,
    size: tuple[int, int],
    *,
    resized: tuple[int, int] | None = None,
    crop: tuple[float, float, float, float] | None = None,
) -> Box | None:
    """Where a box is after its photo has been scaled and then cropped; None if less than 4 pixels are left of it.

    Parameters
    ----------
    box : Box
        In pixels of the photo.
    size : tuple of int
        Width and height of the photo.
    resized : tuple of int, optional
        Width and height after scaling.
    crop : tuple of float, optional
        (left, top, width, height) of the crop, in pixels after scaling.

    Examples
    --------
    >>> map_box(Box(20, 10, 60, 50), (200, 100), resized=(100, 100), crop=(5, 0, 50, 40))
    Box(xmin=5.0, ymin=10.0, xmax=25.0, ymax=40.0)
    >>> map_box(Box(20, 10, 60, 50), (200, 100), crop=(100, 0, 50, 50)) is None
    True
    """
    to = resized or size
    x, y = to[0] / size[0], to[1] / size[1]
    left, top, width, height = crop or (0.0, 0.0, float(to[0]), float(to[1]))
    moved = Box(box.xmin * x - left, box.ymin * y - top, box.xmax * x - left, box.ymax * y - top)
    found = _clipped(moved, (width, height))
    return found if min(found.width, found.height) >= SMALLEST_BOX else None


def iou(first: Sequence[Box], second: Sequence[Box]) -> Float[np.ndarray, "first second"]:
    """Intersection over union of every box with every other.

    Examples
    --------
    >>> iou([Box(0, 0, 10, 10)], [Box(5, 0, 15, 10), Box(20, 0, 30, 10)]).round(3).tolist()
    [[0.333, 0.0]]
    """
    a = np.asarray(first, dtype=float).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=float).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.clip(sides, 0, None), axis=-1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def nms(
    boxes: Sequence[Box], scores: Sequence[float], labels: Sequence[object] | None = None, *, threshold: float = 0.5
) -> list[int]:
    """Non-maximum suppression: drop boxes that overlap a better one of the same label.

    Parameters
    ----------
    boxes : sequence of Box
        What was found.
    scores : sequence of float
        Higher is better; of equal ones the first is kept.
    labels : sequence, optional
        Only boxes of one label suppress each other; by default all are of one.
    threshold : float, default: 0.5
        Intersection over union above which the worse one is dropped.

    Returns
    -------
    list of int
        Places of the boxes that are kept, best first.

    Examples
    --------
    >>> boxes = [Box(0, 0, 10, 10), Box(1, 0, 11, 10), Box(1, 0, 11, 10)]
    >>> nms(boxes, [0.5, 0.9, 0.8], ["rice", "rice", "peas"])
    [1, 2]
    """
    if not boxes:
        return []
    overlaps = iou(boxes, boxes) > threshold
    kept: list[int] = []
    for place in np.argsort(-np.asarray(scores, dtype=float), kind="stable").tolist():
        rivals = [other for other in kept if labels is None or labels[other] == labels[place]]
        if not overlaps[place, rivals].any():
            kept.append(place)
    return kept


def _clipped(box: Box, size: tuple[float, float]) -> Box:
    x = [min(max(value, 0.0), float(size[0])) for value in (box.xmin, box.xmax)]
    y = [min(max(value, 0.0), float(size[1])) for value in (box.ymin, box.ymax)]
    return Box(x[0], y[0], x[1], y[1])
