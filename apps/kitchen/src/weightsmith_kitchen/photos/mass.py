r"""Mass of a food from its class and its size on a photo, where an object of known size lies beside it.

A photo tells angles, not lengths. With a box around the food and one around a reference object (a coin) of known
length, the box of the food has a width :math:`w` and a height :math:`h` in millimeters. For the class :math:`c`

.. math::

    \log m = a + a_c + (b + b_c)^\top z, \qquad z = (\log w, \log h, v) - \text{mean},

with :math:`v = 1` for a photo from above. The terms of the classes are shrunk by ridge regression, so a class with few
portions follows the others; the strength is chosen, and the interval measured, on portions left out. The
decomposition into class and size follows A. B. Jelodar, Y. Sun, arXiv:2112.09839; the data set with reference coins is
Y. Liang, J. Li, arXiv:1705.07632.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from weightsmith.core.io import atomic_output, read_json, write_file
from weightsmith_kitchen.errors import ModelError, PhotoError
from weightsmith_kitchen.photos.boxes import SMALLEST_BOX

__all__ = ["FoodSize", "Mass", "MassEstimator", "Reference", "grouped_folds"]

CONFIG, MODEL_TYPE = "config.json", "weightsmith-food-mass"
LEVELS, SLOPES = (1.0, 2.0, 4.0, 8.0, 16.0), (0.1, 0.3, 1.0, 3.0)
"""Strengths of ridge regression on the classes' own levels and on their own slopes, to choose from."""
SHARED = 1e-2
"""Strength on the slopes that all classes share: hardly any, since a rare class is to follow them."""
FOLDS = 5
BEYOND = 1.5
"""Factor by which a side may leave the range that was learned from before the estimate counts as unusual."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An object of known size on a photo.

    Attributes
    ----------
    box : sequence of 4 float
        (xmin, ymin, xmax, ymax) in pixels of the upright photo.
    length : float
        Length of the longer side of its box in mm: the diameter of a coin, since a coin seen at an angle keeps one
        diameter.

    Raises
    ------
    PhotoError
        If the length is not finite, or not above 0.
    """

    box: Sequence[float]
    length: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.length) and self.length > 0):
            raise PhotoError("length of the reference", found=self.length, expected="mm, a number > 0")


@dataclass(frozen=True, slots=True)
class FoodSize:
    """Size of a food's box.

    Attributes
    ----------
    width, height : float
        In mm.
    top : bool, optional
        Photographed from above (True) or from the side (False); None if that is not known.
    """

    width: float
    height: float
    top: bool | None = None

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if not (math.isfinite(value) and value > 0):
                raise PhotoError(f"{name} of a food in mm", found=value, expected="a number > 0")

    @classmethod
    def of_boxes(
        cls, box: Sequence[float] | None, reference: Reference | None, *, top: bool | None = None, name: str = "photo"
    ) -> FoodSize:
        """Size of a food from its box and that of a reference object.

        Parameters
        ----------
        box : sequence of 4 float or None
            Around the food, (xmin, ymin, xmax, ymax) in pixels.
        reference : Reference or None
            An object of known size in the plane of the food.
        top : bool, optional
            Whether it is photographed from above.
        name : str, default: "photo"
            The photo's name in errors.

        Raises
        ------
        PhotoError
            If the box or the reference is missing, or has no area.

        Examples
        --------
        >>> FoodSize.of_boxes((100, 50, 300, 150), Reference((10, 10, 60, 55), 25.0))
        FoodSize(width=100.0, height=50.0, top=None)
        """
        for what, found in (("box of the food", box), ("reference object of known size", reference)):
            if found is None:
                raise PhotoError(
                    f"size of the food in {name}",
                    found=f"no {what}",
                    expected="a box around the food and one around a reference object",
                    do="Put a coin beside the food and mark both; without them only the typical mass of the food is "
                    "known: estimate(label).",
                )
        assert box is not None
        assert reference is not None
        width, height = _sides(box, f"box of the food in {name}")
        scale = reference.length / max(_sides(reference.box, f"box of the reference in {name}"))
        return cls(width * scale, height * scale, top)


@dataclass(frozen=True, slots=True)
class Mass:
    """An estimated mass.

    Attributes
    ----------
    grams : float
        The estimate.
    low, high : float
        Interval in g that held the true mass of 90 % of the photos (or the share that `MassEstimator` was given) of
        portions left out in training.
    basis : {"class and size", "class"}
        What it is estimated from.
    unusual : bool
        Whether the size is outside of what was learned from for this class: do not trust the estimate.
    """

    grams: float
    low: float
    high: float
    basis: str
    unusual: bool = False


class MassEstimator:
    """Mass of a food from its class and, if known, its size.

    Parameters
    ----------
    coverage : float, default: 0.9
        Of the intervals.

    Attributes
    ----------
    labels : tuple of str
        Classes that were learned.

    Examples
    --------
    >>> sizes = [FoodSize(side, side) for side in (60, 70, 80, 90)]
    >>> grams = [0.0005 * size.width**3 for size in sizes]
    >>> masses = MassEstimator().fit(["apple"] * 4, grams, sizes)
    >>> abs(masses.estimate("apple", FoodSize(75, 75)).grams - 211) < 15
    True
    >>> masses.estimate("apple").basis
    'class'
    """

    def __init__(self, *, coverage: float = 0.9) -> None:
        if not 0 < coverage < 1:
            raise ModelError("coverage of the intervals", found=coverage, expected="a number between 0 and 1")
        self.coverage = coverage
        self.labels: tuple[str, ...] = ()
        self._center = np.zeros(3)
        self._sized, self._typical = np.zeros(1), np.zeros(1)
        self._spread = {"class and size": 0.0, "class": 0.0}
        self._range = np.zeros((0, 2, 2))

    def fit(
        self,
        labels: Sequence[str],
        masses: Sequence[float],
        sizes: Sequence[FoodSize | None],
        *,
        groups: Sequence[str] | None = None,
    ) -> MassEstimator:
        """Learn from photos of foods that were weighed.

        Parameters
        ----------
        labels : sequence of str
            Class of each photo.
        masses : sequence of float
            In g.
        sizes : sequence of FoodSize or None
            From `FoodSize.of_boxes`; None where there is no reference. Such a photo tells the typical mass only.
        groups : sequence of str, optional
            The portion that each photo shows; photos of one portion are left out together. By default every photo is
            one of its own, and the intervals are too narrow if it is not.

        Raises
        ------
        PhotoError
            If the sequences differ in length, there are fewer than two portions with a size, a class has no size, or a
            mass is not positive.
        """
        names = list(groups) if groups is not None else [str(place) for place in range(len(labels))]
        lengths = {"labels": len(labels), "masses": len(masses), "sizes": len(sizes), "groups": len(names)}
        if len(set(lengths.values())) > 1:
            raise PhotoError("photos to learn masses from", found=lengths, expected="one of each per photo")
        sized = np.array([size is not None for size in sizes], dtype=bool)
        if len({name for name, known in zip(names, sized, strict=True) if known}) < 2:
            raise PhotoError(
                "portions with a size to learn masses from", found="fewer than two", expected="two or more"
            )
        grams = np.asarray(masses, dtype=float)
        for place in np.flatnonzero(~(np.isfinite(grams) & (grams > 0))).tolist():
            raise PhotoError(f"mass of photo {place} ({labels[place]})", found=masses[place], expected="g, above 0")
        self.labels = tuple(sorted(set(labels)))
        classes = self._numbers(labels)
        measured = _measured(sizes)[sized]
        sides = [measured[classes[sized] == number, :2] for number in range(len(self.labels))]
        for label, found in zip(self.labels, sides, strict=True):
            if not len(found):
                raise PhotoError(f"sizes of {label}", found="none", do="Mark food and reference on a photo of it.")
        self._center = _nanmean(measured)
        self._range = np.stack([np.stack([found.min(0), found.max(0)]) for found in sides])
        everyone = np.ones(len(labels), dtype=bool)
        self._sized, self._spread["class and size"] = self._learned(
            self._design(classes[sized], measured), grams, names, labels, sized
        )
        self._typical, self._spread["class"] = self._learned(
            np.eye(len(self.labels))[classes], grams, names, labels, everyone
        )
        return self

    def _learned(
        self, design: np.ndarray, grams: np.ndarray, groups: Sequence[str], labels: Sequence[str], used: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Coefficients at the strength that is best on portions left out, and the quantile of the errors on those."""
        rows = np.flatnonzero(used).tolist()
        named = [groups[row] for row in rows]
        fold = grouped_folds([labels[row] for row in rows], named, min(FOLDS, len(set(named))))
        target = np.log(grams[used])
        column, count = np.arange(design.shape[1]), len(self.labels)
        levels, shared = column < count, (column >= count) & (column < count + 3)
        slopes = SLOPES if not levels.all() else SLOPES[:1]
        best, least = np.zeros(0), math.inf
        errors = np.zeros(0)
        for level, slope in product(LEVELS, slopes):
            penalty = np.where(levels, level, np.where(shared, SHARED, slope))
            left_out = _left_out(design, target, fold, penalty)
            missed = float(np.abs(np.exp(left_out) - grams[used]).mean())
            if missed < least:
                best, least, errors = penalty, missed, np.abs(left_out - target)
        return _ridge(design, target, best), _quantile(errors, self.coverage)

    def predict(
        self, labels: Sequence[str], sizes: Sequence[FoodSize | None] | None = None
    ) -> Float[np.ndarray, "photos"]:
        """Masses in g of many photos, without intervals; from the class alone where there is no size."""
        classes = self._numbers(labels)
        found: np.ndarray = np.exp(_linear(np.eye(len(self.labels))[classes], self._typical))
        if sizes is not None:
            if len(sizes) != len(classes):
                raise PhotoError("sizes", found=len(sizes), expected=f"{len(classes)}, one per label")
            sized = np.array([size is not None for size in sizes], dtype=bool)
            found[sized] = np.exp(_linear(self._design(classes[sized], _measured(sizes)[sized]), self._sized))
        return found

    def estimate(self, label: str, size: FoodSize | None = None) -> Mass:
        """Estimate the mass of one food.

        Parameters
        ----------
        label : str
            One of `labels`.
        size : FoodSize, optional
            Without it the typical mass of the class is given, with a wider interval.

        Raises
        ------
        PhotoError
            If the class was not learned; it names those that were.
        """
        grams = float(self.predict([label], None if size is None else [size])[0])
        basis = "class" if size is None else "class and size"
        factor = math.exp(self._spread[basis])
        unusual = False
        if size is not None:
            low, high = self._range[self.labels.index(label)]
            sides = np.log([size.width, size.height])
            unusual = bool(((sides < low - math.log(BEYOND)) | (sides > high + math.log(BEYOND))).any())
        return Mass(grams, grams / factor, grams * factor, basis, unusual)

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the estimator as a folder, whole or not at all."""
        self._numbers([])
        config = {
            "model_type": MODEL_TYPE,
            "coverage": self.coverage,
            "labels": list(self.labels),
            "center": self._center.tolist(),
            "sized": self._sized.tolist(),
            "typical": self._typical.tolist(),
            "spread": self._spread,
            "range": self._range.tolist(),
        }
        with atomic_output(folder, overwrite=overwrite) as scratch:
            scratch.mkdir(exist_ok=True)
            write_file(scratch / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> MassEstimator:
        """Read what `save_pretrained` wrote.

        Raises
        ------
        ModelError
            If it is something else, or its numbers do not fit.
        """
        config: dict[str, Any] = read_json(Path(folder) / CONFIG)
        if config.get("model_type") != MODEL_TYPE:
            raise ModelError(f"{folder}", found=str(config.get("model_type")), expected=MODEL_TYPE)
        try:
            made = cls(coverage=float(config["coverage"]))
            made.labels = tuple(str(label) for label in config["labels"])
            for name in ("center", "sized", "typical", "range"):
                setattr(made, f"_{name}", np.asarray(config[name], dtype=float))
            made._spread = {basis: float(config["spread"][basis]) for basis in made._spread}
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder}", found=error, expected="what save_pretrained wrote") from None
        count = len(made.labels)
        shapes = {"center": (3,), "sized": (4 * count + 4,), "typical": (count + 1,), "range": (count, 2, 2)}
        for name, shape in shapes.items():
            array = getattr(made, f"_{name}")
            if array.shape != shape or not np.isfinite(array).all():
                raise ModelError(f"{name} of {folder}", found=array.shape, expected=f"finite numbers of shape {shape}")
        return made

    def _numbers(self, labels: Sequence[str]) -> Int[np.ndarray, "photos"]:
        if not self.labels:
            raise ModelError("the estimator of masses has learned nothing", do="Call fit first.")
        unknown = sorted(set(labels) - set(self.labels))
        if unknown:
            raise PhotoError("food whose mass was not learned", found=unknown, expected=", ".join(self.labels))
        place = {label: number for number, label in enumerate(self.labels)}
        return np.array([place[label] for label in labels], dtype=np.int64)

    def _design(self, classes: np.ndarray, measured: np.ndarray) -> Float[np.ndarray, "photos columns"]:
        z = np.nan_to_num(measured - self._center)  # an unknown view counts as the mean of the views
        one = np.eye(len(self.labels))[classes]
        return np.concatenate([one, z, (one[:, :, None] * z[:, None, :]).reshape(len(z), -1)], axis=1)


def grouped_folds(
    labels: Sequence[str], groups: Sequence[str], folds: int = FOLDS, *, seed: int = 0
) -> Int[np.ndarray, "photos"]:
    """Fold of each photo: the groups of each class are dealt in turn, in an order that the seed draws.

    Examples
    --------
    >>> grouped_folds(["apple"] * 4, ["a", "a", "b", "b"], 2).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    True
    """
    rng = np.random.default_rng(seed)
    fold: dict[str, int] = {}
    start = 0
    for label in sorted(set(labels)):
        portions = sorted({group for group, other in zip(groups, labels, strict=True) if other == label} - set(fold))
        for place, number in enumerate(rng.permutation(len(portions))):
            fold[portions[number]] = (start + place) % folds
        start += len(portions)  # classes with few groups do not all begin at the first fold
    return np.array([fold[group] for group in groups], dtype=np.int64)


def _sides(box: Sequence[float], name: str) -> tuple[float, float]:
    values = [float(value) for value in box]
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise PhotoError(name, found=values, expected="four finite numbers: xmin, ymin, xmax, ymax")
    width, height = values[2] - values[0], values[3] - values[1]
    if min(width, height) < SMALLEST_BOX:
        raise PhotoError(name, found=values, expected=f"sides of {SMALLEST_BOX:g} pixels or more")
    return width, height


def _measured(sizes: Sequence[FoodSize | None]) -> Float[np.ndarray, "photos 3"]:
    """Logarithms of width and height, and the view: 1 from above, 0 from the side; NaN where it is not known."""
    rows = np.full((len(sizes), 3), math.nan)
    for row, size in zip(rows, sizes, strict=True):
        if size is not None:
            row[:] = math.log(size.width), math.log(size.height), math.nan if size.top is None else size.top
    return rows


def _nanmean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(0) / np.maximum(known.sum(0), 1)


def _ridge(design: np.ndarray, target: np.ndarray, penalty: np.ndarray) -> Float[np.ndarray, "columns+1"]:
    """Coefficients, and the intercept, which is not shrunk."""
    center, mean = design.mean(0), target.mean()
    x = design - center
    weights = np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ (target - mean))
    return np.append(weights, mean - center @ weights)


def _linear(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return design @ weights[:-1] + weights[-1]


def _left_out(design: np.ndarray, target: np.ndarray, fold: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    found = np.empty_like(target)
    for part in np.unique(fold):
        held = fold == part
        found[held] = _linear(design[held], _ridge(design[~held], target[~held], penalty))
    return found


def _quantile(errors: np.ndarray, coverage: float) -> float:
    """The error that the share ``coverage`` stays below, with the correction of conformal prediction for few errors."""
    rank = min(math.ceil((len(errors) + 1) * coverage), len(errors))
    return float(np.sort(errors)[rank - 1])
