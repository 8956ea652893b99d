"""What the command line does with photos: recognize them, and train a classifier on a folder of one's own."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

from rich.table import Table

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import check_output
from weightsmith.core.progress import track
from weightsmith.core.training import FitOptions
from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.backbones import LITE0, open_backbone
from weightsmith_kitchen.photos.classifier import FoodClassifier, Stage
from weightsmith_kitchen.photos.folder import ENDINGS, FoodFolder
from weightsmith_kitchen.photos.preprocess import Preprocess
from weightsmith_kitchen.photos.results import Evaluation, Recognition, Training

__all__ = ["PhotoFailure", "PhotosRecognized", "PhotosTrained", "find_photos", "recognize", "train_recognize"]


@dataclass(frozen=True)
class PhotoFailure:
    """A photo that was not recognized.

    Attributes
    ----------
    photo : str
        Its name.
    error : str
        Why.
    """

    photo: str
    error: str

    def to_dict(self) -> dict[str, str]:
        """The attributes, as JSON has them."""
        return {"photo": self.photo, "error": self.error}


@dataclass(frozen=True)
class PhotosRecognized:
    """The foods of several photos.

    Attributes
    ----------
    photos : tuple of Recognition
        What was found, in the order of the photos.
    failures : tuple of PhotoFailure
        Photos that could not be read.
    """

    photos: tuple[Recognition, ...]
    failures: tuple[PhotoFailure, ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {
            "photos": [photo.to_dict() for photo in self.photos],
            "failures": [failure.to_dict() for failure in self.failures],
        }

    def table(self) -> Table:
        """One row for each photo or box, and one for each failure."""
        found = Table("photo", "food", "probability", "else")
        for photo in self.photos:
            for region in photo.regions:
                name = photo.photo if region.box is None else f"{photo.photo} {[round(x) for x in region.box]}"
                others = ", ".join(f"{c.label} {c.probability:.0%}" for c in region.candidates[1:3])
                if region.answer is not None:
                    found.add_row(name, region.answer.label, f"{region.answer.probability:.0%}", others)
                else:
                    guesses = ", ".join(f"{c.label} {c.probability:.0%}" for c in region.candidates[:3])
                    found.add_row(name, "-", "", f"{region.reason}; {guesses}")
        for failure in self.failures:
            found.add_row(failure.photo, "-", "", failure.error)
        return found


@dataclass(frozen=True)
class PhotosTrained:
    """What training on a folder gave.

    Attributes
    ----------
    out : str
        The classifier's folder.
    training : Training
        What was done.
    test : Evaluation or None
        On the test photos; None without any.
    leaks : tuple of (str, str)
        Photos in different parts that look the same.
    """

    out: str
    training: Training
    test: Evaluation | None
    leaks: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {
            "out": self.out,
            "training": self.training.to_dict(),
            "test": self.test.to_dict() if self.test is not None else None,
            "leaks": [list(pair) for pair in self.leaks],
        }


def find_photos(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The photos among files and in folders, sorted within each folder.

    Raises
    ------
    PhotoError
        If there are none, or a path does not exist.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.rglob("*"))
            found += [x for x in inside if x.suffix.lower() in ENDINGS and x.is_file() and not x.name.startswith(".")]
        elif path.exists():
            found.append(path)
        else:
            raise PhotoError(f"photo {path}", found="no such file")
    if not found:
        raise PhotoError("no photos", found=", ".join(map(str, paths)), expected=f"files {', '.join(ENDINGS[:4])} ...")
    return found


def recognize(
    photos: Sequence[str | os.PathLike[str]],
    *,
    model: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    normalized: bool = False,
    topk: int = 5,
    classifier: FoodClassifier | None = None,
) -> PhotosRecognized:
    """Recognize the foods of photos. A photo that cannot be read is listed and does not stop the others.

    Parameters
    ----------
    photos : sequence of path-like
        Files and folders.
    model : path-like, optional
        Folder that :func:`train_recognize` wrote; the default classifier otherwise.
    boxes : path-like, optional
        JSON: from a photo's name to a list of boxes.
    normalized : bool, default: False
        The boxes are shares of the photos' sides.
    topk : int, default: 5
        Candidates for each.
    classifier : FoodClassifier, optional
        One that is loaded already.

    Raises
    ------
    PhotoError
        If there are no photos, or the boxes cannot be read or are of other photos.
    ModelError
        If the classifier cannot be loaded.
    """
    files = find_photos(photos)
    regions = _read_boxes(boxes, files)
    if classifier is None:
        classifier = FoodClassifier.from_pretrained(model) if model is not None else FoodClassifier.default()
    found: list[Recognition] = []
    failures: list[PhotoFailure] = []
    for file in track(files, "recognizing photos"):
        try:
            own = regions.get(str(file), regions.get(file.name))
            found.append(classifier.predict(file, own, topk=topk, normalized=normalized))
        except WeightsmithError as error:
            failures.append(PhotoFailure(str(file), str(error)))
    return PhotosRecognized(tuple(found), tuple(failures))


def train_recognize(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backbone: str = LITE0,
    stages: Sequence[Stage] = ("probe", "finetune"),
    side: int | None = None,
    boxes: str | os.PathLike[str] | None = None,
    normalized: bool = False,
    crop_margin: float = 0.1,
    blocks: int | None = None,
    balanced: bool = False,
    duplicates: Literal["group", "ignore"] = "group",
    workers: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    **options: Unpack[FitOptions],
) -> PhotosTrained:
    """Train a classifier on labeled photos and write it as a folder.

    Parameters
    ----------
    folder : path-like
        A folder for each class, or a table; see :class:`~weightsmith_kitchen.photos.folder.FoodFolder`.
    out : path-like
        The folder to create: the classifier, and ``report.json``.
    backbone : str, default: "embedded:efficientnet-lite0"
        The pretrained network.
    stages : sequence of {"probe", "finetune"}
        The probe alone takes seconds once the photos are read.
    side : int, optional
        Pixels of the network's input; as it was trained by default.
    boxes, normalized
        See :class:`~weightsmith_kitchen.photos.folder.FoodFolder`.
    crop_margin : float, default: 0.1
        What is added to a box on each side, as a share of it.
    blocks, balanced, workers, seed, **options
        See :meth:`~weightsmith_kitchen.photos.classifier.FoodClassifier.fit`.
    duplicates : {"group", "ignore"}, default: "group"
        Keep photos that look the same in one part.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Raises
    ------
    PhotoError
        If the photos cannot be used.
    CheckpointError
        If ``out`` exists or cannot be written; said before training.
    """
    check_output(out, overwrite=overwrite)
    photos = FoodFolder(folder, boxes=boxes, normalized=normalized, duplicates=duplicates, seed=seed)
    opened = open_backbone(backbone)
    preprocess: Preprocess = replace(opened.preprocess, margin=crop_margin, side=side or opened.preprocess.side)
    classifier = FoodClassifier(backbone=opened, preprocess=preprocess)
    training = classifier.fit(
        photos.train,
        photos.validation if len(photos.validation) else None,
        stages=stages,
        blocks=blocks,
        balanced=balanced,
        workers=workers,
        seed=seed,
        **options,
    )
    test = classifier.evaluate(photos.test, workers=workers) if len(photos.test) else None
    result = PhotosTrained(str(out), training, test, tuple(photos.leaks))
    report = json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n"
    classifier.save_pretrained(out, files={"report.json": report}, overwrite=overwrite)
    return result


def _read_boxes(boxes: str | os.PathLike[str] | None, files: Sequence[Path]) -> dict[str, Any]:
    if boxes is None:
        return {}
    try:
        found = json.loads(Path(boxes).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PhotoError(f"boxes {boxes} cannot be read", found=str(error), expected="JSON") from error
    if not isinstance(found, dict) or not all(isinstance(value, list) for value in found.values()):
        raise PhotoError(f"boxes {boxes}", found=type(found).__name__, expected="an object: photo to list of boxes")
    known = {str(file) for file in files} | {file.name for file in files}
    if unknown := sorted(set(found) - known):
        raise PhotoError(f"boxes {boxes}", found=f"{len(unknown)} for no photo, such as {unknown[0]}")
    return found
