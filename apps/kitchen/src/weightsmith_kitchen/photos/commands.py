"""Training of a classifier on a folder of one's own photos, from the photos to a folder with a report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

from weightsmith.core.io import check_output
from weightsmith.core.training import FitOptions
from weightsmith_kitchen.photos.backbones import LITE0, open_backbone
from weightsmith_kitchen.photos.classifier import FoodClassifier, Stage
from weightsmith_kitchen.photos.folder import FoodFolder
from weightsmith_kitchen.photos.preprocess import Preprocess
from weightsmith_kitchen.photos.results import Evaluation, Training

__all__ = ["PhotosTrained", "train_recognize"]


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
    check_output(out, overwrite=overwrite, inputs=[folder, boxes])
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
