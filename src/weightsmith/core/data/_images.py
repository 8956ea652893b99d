"""Folders of images: which files there are, which class each is of, and their pixels in eight bits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.core.errors import CalibrationError

__all__ = ["IMAGES", "image_files", "picture", "train_folder"]

IMAGES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"}
IMAGES |= {".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".pcx", ".ico", ".jp2", ".j2k", ".jpx", ".avif", ".heic"}
TRAIN = {"train", "training"}
SPLITS = TRAIN | {"validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


def image_files(folder: Path) -> tuple[list[Path], list[str] | None]:
    """List the images of a folder, and the class of each: the name of its sub-folder.

    Hidden files are left out. Where all sub-folders are splits (train, validation, test), those of train are listed.

    Raises
    ------
    CalibrationError
        If there are none, or they lie neither all in the folder itself nor all in its sub-folders.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("cat", "test"):
    ...         Path(folder, name).mkdir()
    ...         Path(folder, name, "1.png").touch()
    ...     image_files(Path(folder))[1]
    ['cat', 'test']
    """
    files = {file.relative_to(folder).parts: file for file in _images_under(folder)}
    if not files:
        raise CalibrationError(f"folder {folder}", found="no images", expected=f"files ending in {sorted(IMAGES)}")
    tops = {place[0].lower() if len(place) > 1 else "" for place in files}
    if tops <= SPLITS:
        files = {place[1:]: file for place, file in files.items() if place[0].lower() in TRAIN}
        if not files:
            raise CalibrationError(
                f"sub-folders of {folder}", found=sorted(tops), expected="train", do="Give the folder of one split."
            )
    deepest = max(files, key=len)
    odd = deepest if len(deepest) > 2 else next((place for place in files if len(place) != len(deepest)), None)
    if odd is not None:
        raise CalibrationError(
            f"images of {folder}",
            found="/".join(odd) + ("" if len(deepest) > 2 else f" beside {'/'.join(deepest)}"),
            expected="all in the folder itself, or each in a sub-folder with the name of its class",
            do="Move them, or give a folder of one kind.",
        )
    return list(files.values()), [place[0] for place in files] if len(deepest) == 2 else None


def train_folder(folder: Path) -> Path:
    """The sub-folder of the training data where all sub-folders are splits; else the folder itself."""
    parts = {part.name.lower(): part for part in folder.iterdir() if part.is_dir() and not part.name.startswith(".")}
    return next((parts[name] for name in sorted(TRAIN) if name in parts), folder) if parts.keys() <= SPLITS else folder


def _images_under(folder: Path) -> list[Path]:
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))  # a link may lead back
        folders[:] = [
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(place, name)) not in seen
        ]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(file for file in found if file.suffix.lower() in IMAGES)


def picture(value: Any, mode: str, source: str) -> Any:
    """Decode one image, as the ``datasets`` library stores it, into a PIL image of eight bits per channel.

    Raises
    ------
    CalibrationError
        If it is none.

    Examples
    --------
    >>> from PIL import Image
    >>> wide = Image.fromarray(np.array([[0, 255, 32768, 65535]], dtype=np.uint16))
    >>> np.asarray(picture(wide, "L", "a doctest")).tolist()
    [[0, 0, 128, 255]]
    """
    import datasets
    from PIL import Image

    if not isinstance(value, (Mapping, Image.Image)):
        raise CalibrationError(f"column 'image' of {source}", found=repr(value)[:60], expected="images")
    try:
        image = datasets.Image().decode_example(value)
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError) as error:
        where = value.get("path") if isinstance(value, Mapping) else None
        raise CalibrationError(f"cannot read image {where or ''} of {source}", found=error) from error
    if image.mode.startswith("I"):  # convert() would clip 16 bits to eight instead of scaling
        pixels = np.asarray(image)
        if image.mode != "I" or pixels.max() > 255:
            pixels = pixels.clip(0, 65535) // 256
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image.convert(mode)
