"""The one door for photos: whatever a camera, a phone or a web page saved becomes an upright RGB image, or an error.

Photos come from strangers. Only formats of photographs are decoded, sizes are checked before pixels are, and what is
refused is said by what was found in the file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.fft import dctn

from weightsmith_kitchen.errors import PhotoError

__all__ = [
    "BACKGROUND",
    "MAX_BYTES",
    "MAX_MEGAPIXELS",
    "SMALLEST",
    "PhotoNotice",
    "PhotoSource",
    "hash_bits",
    "hash_distance",
    "name_of",
    "near_duplicates",
    "open_photo",
    "original_size",
    "photo_hash",
]

PhotoSource: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image
"""A path, the bytes of a file, an open binary file, or an image of Pillow's."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded. Formats that run programs (EPS) or that nobody takes photos in are not."""

BACKGROUND = (255, 255, 255)
"""The color behind transparent pixels."""

MAX_BYTES = 64 * 2**20
MAX_MEGAPIXELS = 60.0
SMALLEST = 32
"""Pixels of the shorter side below which a photo is enlarged."""

HASH_SIDE, HASH_IMAGE = 8, 32
DEPTH_16 = 65535
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How the picture of each orientation is turned; Pillow counts degrees counterclockwise."""


class PhotoNotice(UserWarning):
    """A photo was read, but not all of it, or not as it was."""


def open_photo(
    source: PhotoSource,
    *,
    side: int | None = None,
    background: tuple[int, int, int] = BACKGROUND,
    max_megapixels: float = MAX_MEGAPIXELS,
    max_bytes: int = MAX_BYTES,
    name: str | None = None,
) -> Image.Image:
    """Open a photo as an upright 8-bit RGB image.

    The orientation that cameras write (EXIF) is applied. Grey, palette, CMYK and 16-bit pictures are converted,
    transparent ones composed on ``background``. Of an animation or a file with several pages the first is read, with a
    :class:`PhotoNotice`. Pictures with a side of less than 32 pixels are enlarged, with a notice. Color profiles are
    not applied.

    Parameters
    ----------
    source : path-like, bytes, binary file or Image
        The photo. A file object is read to its end.
    side : int, optional
        Pixels of the shorter side that are enough: a JPEG is then decoded at a half, a quarter or an eighth of its
        size, which is several times faster. :func:`original_size` still gives the full size.
    background : tuple of int, default: white
        Red, green and blue behind transparent pixels, 0 to 255.
    max_megapixels : float, default: 60
        Larger pictures are refused before they are decoded.
    max_bytes : int, default: 64 MiB
        Larger files are refused before they are read whole.
    name : str, optional
        What the photo is called in errors; the path by default.

    Returns
    -------
    PIL.Image.Image
        Mode ``"RGB"``.

    Raises
    ------
    PhotoError
        If there is no such file, it is empty, too large, no photo, or damaged.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> Image.new("L", (40, 60), 128).save(file, "PNG")
    >>> photo = open_photo(file.getvalue())
    >>> photo.mode, photo.size, photo.getpixel((0, 0))
    ('RGB', (40, 60), (128, 128, 128))
    >>> open_photo(b"<!doctype html><title>Not found</title>", name="lunch.jpg")
    Traceback (most recent call last):
    weightsmith_kitchen.errors.PhotoError: photo lunch.jpg: found an HTML page, expected a JPEG, PNG, WebP, GIF, BMP, \
TIFF or AVIF picture. Save the picture itself, not the page around it.
    """
    called = name or name_of(source)
    if isinstance(source, Image.Image):
        return _finished(source, called, background, max_megapixels, side=None)
    data = _read(source, called, max_bytes)
    _refuse_other_kinds(data, called)
    import io

    try:
        # a picture that is between once and twice Pillow's own limit is only warned of: ours is below
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PhotoError(
            f"photo {called} is too large", found=str(error).split(",")[0], expected=f"{max_megapixels:g} megapixels"
        ) from error
    except UnidentifiedImageError as error:
        raise _no_photo(called, f"no picture ({_head(data)})") from error
    except Exception as error:  # decoders raise all kinds on damaged files
        raise _damaged(called, error) from error
    return _finished(image, called, background, max_megapixels, side)


def original_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of the upright photo before it was decoded at a smaller size or enlarged.

    Examples
    --------
    >>> original_size(Image.new("RGB", (64, 48)))
    (64, 48)
    """
    size = image.info.get("original_size", image.size)
    return (int(size[0]), int(size[1]))


def photo_hash(image: Image.Image) -> int:
    """Hash of 64 bits that stays nearly the same when a photo is scaled, recompressed or brightened.

    The grey picture at 32 x 32 is transformed by the cosine transform; a bit says whether one of the 8 x 8 lowest
    frequencies is above their median.

    Parameters
    ----------
    image : Image
        As of :func:`open_photo`.

    Examples
    --------
    >>> picture = Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 50)
    >>> hash_distance(photo_hash(picture), photo_hash(picture.resize((100, 80)))) < 5
    True
    >>> hash_distance(photo_hash(picture), photo_hash(picture.rotate(90))) > 10
    True
    """
    small = image.convert("L").resize((HASH_IMAGE, HASH_IMAGE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:HASH_SIDE, :HASH_SIDE]
    low[np.abs(low) < 1e-6] = 0.0  # rounding noise of flat pictures is no structure
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hash_distance(first: int, second: int) -> int:
    """Bits in which two hashes differ, 0 to 64.

    Examples
    --------
    >>> hash_distance(0b1011, 0b0001)
    2
    """
    return (first ^ second).bit_count()


def hash_bits(hashes: Sequence[int]) -> np.ndarray:
    """Hashes as rows of 64 numbers, +1 or -1: the product of two rows is 64 less twice their distance.

    Examples
    --------
    >>> hash_bits([0, 1]).shape, (hash_bits([0]) @ hash_bits([1]).T).item()
    ((2, 64), 62.0)
    """
    raw = np.frombuffer(b"".join(value.to_bytes(8, "big") for value in hashes), dtype=np.uint8)
    return np.unpackbits(raw).reshape(-1, 64).astype(np.float32) * 2 - 1


def near_duplicates(hashes: Sequence[int], *, distance: int = 4) -> list[tuple[int, int]]:
    """Pairs of places whose hashes differ in at most so many bits, the lower place first.

    Examples
    --------
    >>> near_duplicates([0b111, 0b000, 0b110], distance=1)
    [(0, 2)]
    """
    bits, pairs = hash_bits(hashes), []
    for start in range(0, len(bits), 1024):
        near = (64 - bits[start : start + 1024] @ bits.T) / 2 <= distance
        for row, column in zip(*np.nonzero(near), strict=True):
            if start + row < column:
                pairs.append((int(start + row), int(column)))
    return pairs


def name_of(source: PhotoSource) -> str:
    """What a photo is called in messages.

    Examples
    --------
    >>> name_of("photos/lunch.jpg"), name_of(b"12")
    ('photos/lunch.jpg', '(2 bytes)')
    """
    if isinstance(source, bytes):
        return f"({len(source):,} bytes)"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "(an image)")
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "filename", None) or getattr(source, "name", None) or "(a file)")


def _read(source: str | os.PathLike[str] | bytes | IO[bytes], called: str, max_bytes: int) -> bytes:
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            raise PhotoError(f"photo {called}", found="a folder", expected="a file")
        try:
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            raise PhotoError(f"photo {called} cannot be read", found=error) from error
    else:
        try:
            data = source.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            raise PhotoError(f"photo {called} cannot be read", found=error) from error
        if not isinstance(data, bytes):
            raise PhotoError(f"photo {called}", found="a file opened as text", expected="a binary file")
    if not data:
        raise PhotoError(f"photo {called} is empty", found="0 bytes", do="Save or upload it again.")
    if len(data) > max_bytes:
        raise PhotoError(f"photo {called} is too large", found=f"over {max_bytes:,} bytes", do="Send a smaller one.")
    return data


def _refuse_other_kinds(data: bytes, called: str) -> None:
    """Say by its first bytes what a file is that often has the name of a photo."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise _no_photo(called, "an HTML page", do="Save the picture itself, not the page around it.")
    if head.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")):
        found = "an SVG drawing" if b"<svg" in data[:4096].lower() else "an XML file"
        raise _no_photo(called, found, do="Export it as PNG." if "SVG" in found else None)
    if head.startswith(b"%pdf"):
        raise _no_photo(called, "a PDF document", do="Export the page as PNG.")
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheim", b"ftypmsf1") and b"avif" not in data[:64]:
        raise _no_photo(called, "a HEIC photo", do='Set the phone to "most compatible", or convert it to JPEG.')
    if data[4:8] == b"ftyp" and b"avif" not in data[:64] and b"avis" not in data[:64]:
        raise _no_photo(called, "a video", do="Save a frame of it as JPEG.")
    if data.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise _no_photo(called, "a compressed archive", do="Unpack it.")


def _no_photo(called: str, found: str, do: str | None = None) -> PhotoError:
    expected = "a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF picture"
    return PhotoError(f"photo {called}", found=found, expected=expected, do=do)


def _damaged(called: str, error: Exception) -> PhotoError:
    return PhotoError(f"photo {called} is damaged", found=str(error) or type(error).__name__, do="Copy it again.")


def _head(data: bytes) -> str:
    return "starts with " + " ".join(f"{byte:02x}" for byte in data[:8])


def _finished(
    image: Image.Image, called: str, background: tuple[int, int, int], max_megapixels: float, side: int | None
) -> Image.Image:
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise PhotoError(
            f"photo {called} is too large",
            found=f"{width} x {height} pixels",
            expected=f"at most {max_megapixels:g} megapixels",
            do="Send a smaller one.",
        )
    if width * height == 0:
        raise PhotoError(f"photo {called} has no pixels", found=f"{width} x {height}")
    frames = 1
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            frames = getattr(image, "n_frames", 2)
        if side is not None and image.format in ("JPEG", "MPO"):
            share = max(side, SMALLEST) / min(width, height)
            if share < 1:
                image.draft("RGB", (round(width * share), round(height * share)))
        image.load()
        turned = _upright(image)
        size = (height, width) if _swaps_sides(image) else (width, height)
        rgb = _rgb(turned, called, background)
    except PhotoError:
        raise
    except Exception as error:  # decoders raise all kinds on damaged files
        raise _damaged(called, error) from error
    if frames > 1:
        warnings.warn(f"photo {called}: {frames} frames, the first is read", PhotoNotice, stacklevel=3)
    if min(rgb.size) < SMALLEST:
        scale = SMALLEST / min(rgb.size)
        larger = (max(SMALLEST, round(rgb.width * scale)), max(SMALLEST, round(rgb.height * scale)))
        if larger[0] * larger[1] > max_megapixels * 1e6:
            raise PhotoError(f"photo {called}", found=f"{width} x {height} pixels", expected=f"sides of {SMALLEST}")
        warnings.warn(
            f"photo {called}: {width} x {height} pixels are few, it is enlarged to {larger[0]} x {larger[1]}",
            PhotoNotice,
            stacklevel=3,
        )
        rgb = rgb.resize(larger, Image.Resampling.BICUBIC)
    elif rgb is image:
        rgb = image.copy()
    rgb.info = {"original_size": image.info.get("original_size", size)}
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises all kinds on damaged metadata; these do not make the pixels unreadable
        return 1


def _swaps_sides(image: Image.Image) -> bool:
    return _orientation(image) in (5, 6, 7, 8)


def _upright(image: Image.Image) -> Image.Image:
    # not ImageOps.exif_transpose: it also writes the other metadata anew, and fails where these are damaged
    turn = UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, called: str, background: tuple[int, int, int]) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > DEPTH_16:
            raise PhotoError(
                f"photo {called}", found=f"pixels from {values.min()} to {values.max()}", expected="8 or 16 bits"
            )
        grey = Image.fromarray(((values * 255 + DEPTH_16 // 2) // DEPTH_16).astype(np.uint8))
        return grey.convert("RGB")
    if mode == "F":
        raise PhotoError(f"photo {called}", found="pixels of real numbers", expected="8 or 16 bits per channel")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        below = Image.new("RGBA", with_alpha.size, (*background, 255))
        return Image.alpha_composite(below, with_alpha).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")
