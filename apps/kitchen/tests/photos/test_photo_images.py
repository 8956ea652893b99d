"""What cameras, phones and web pages save: read upright and in three channels, or refused by what was found."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.images import (
    PhotoNotice,
    hash_distance,
    near_duplicates,
    open_photo,
    original_size,
    photo_hash,
)

ORIENTATION = 0x0112


def scene(width: int = 120, height: int = 80) -> Image.Image:
    """A picture without symmetry: red at the upper left, a blue disc at the right."""
    image = Image.new("RGB", (width, height), (200, 220, 200))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 3, height // 3), fill=(220, 20, 20))
    draw.ellipse((width // 2, height // 3, width - 5, height - 5), fill=(20, 20, 220))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(first: Image.Image, second: Image.Image) -> float:
    assert first.size == second.size
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_shows_the_same_upright_picture(orientation):
    turned = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the camera says: turn by 270 to see it upright
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = scene() if turned is None else scene().transpose(turned)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo = open_photo(encoded(stored, "PNG", exif=exif))
    assert photo.size == original_size(photo) == (120, 80)
    assert difference(photo, scene()) == 0
    assert not photo.getexif()  # nothing that would turn it a second time


def test_a_jpeg_of_orientation_six_and_the_upright_picture_agree():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = encoded(scene(480, 320).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    upright = encoded(scene(480, 320), "JPEG", quality=95)
    first, second = open_photo(turned, side=64), open_photo(upright, side=64)
    assert original_size(first) == original_size(second) == (480, 320)
    assert difference(first, second) < 2
    assert hash_distance(photo_hash(first), photo_hash(second)) <= 2


def test_damaged_metadata_do_not_keep_a_photo_from_being_turned():
    orientation = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")  # a text where a fraction belongs
    tiff = b"II*\0" + struct.pack("<IH", 8, 2) + orientation + resolution + struct.pack("<I", 0)
    stored = encoded(scene().transpose(Image.Transpose.ROTATE_90), "PNG", exif=b"Exif\0\0" + tiff)
    with pytest.raises(TypeError):  # what makes this a test: they can be read, but not be written anew
        ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    photo = open_photo(stored)
    assert photo.size == original_size(photo) == (120, 80)
    assert difference(photo, scene()) == 0


def test_grey_palette_and_one_bit_pictures_have_three_channels():
    for mode in ("L", "P", "1", "YCbCr", "CMYK"):
        kind = "TIFF" if mode in ("YCbCr", "CMYK") else "PNG"
        photo = open_photo(encoded(scene().convert(mode), kind))
        assert photo.mode == "RGB"
        assert photo.size == (120, 80)
    assert open_photo(encoded(scene().convert("L"))).getpixel((1, 1)) == (scene().convert("L").getpixel((1, 1)),) * 3


def test_a_cmyk_jpeg_is_not_inverted():
    photo = open_photo(encoded(scene().convert("CMYK"), "JPEG", quality=95))
    assert difference(photo, scene()) < 6


def test_sixteen_bits_keep_their_brightness():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    photo = open_photo(encoded(Image.fromarray(values)))
    pixels = np.asarray(photo)[..., 0].astype(int)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert np.abs(pixels - np.rint(values / 257.0)).max() <= 1


def test_real_numbers_and_32_bit_pictures_are_refused():
    with pytest.raises(PhotoError, match="real numbers"):
        open_photo(encoded(Image.new("F", (40, 40), 0.5), "TIFF"))
    with pytest.raises(PhotoError, match="8 or 16 bits"):
        open_photo(encoded(Image.fromarray(np.full((40, 40), 70_000, np.int32)), "TIFF"))


def test_transparency_is_composed_on_the_background():
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert open_photo(encoded(clear)).getpixel((5, 5)) == (255, 255, 255)
    assert open_photo(encoded(clear), background=(10, 20, 30)).getpixel((5, 5)) == (10, 20, 30)
    half = Image.new("RGBA", (64, 64), (200, 0, 0, 128))
    assert open_photo(encoded(half)).getpixel((5, 5)) == pytest.approx((227, 127, 127), abs=1)
    grey = Image.new("LA", (64, 64), (0, 0))
    assert open_photo(encoded(grey)).getpixel((5, 5)) == (255, 255, 255)
    palette = scene().convert("P")
    hole = palette.getpixel((1, 1))
    assert open_photo(encoded(palette, "PNG", transparency=hole)).getpixel((1, 1)) == (255, 255, 255)
    keyed = Image.new("RGB", (64, 64), (1, 2, 3))
    assert open_photo(encoded(keyed, "PNG", transparency=(1, 2, 3))).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_read_with_a_notice(kind):
    frames = [scene(), Image.new("RGB", (120, 80), "black")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.warns(PhotoNotice, match="2 frames, the first is read"):
        photo = open_photo(data)
    assert difference(photo, scene()) < 12


def test_truncated_photos_are_refused_not_filled_with_grey():
    noise = Image.effect_noise((300, 300), 90).convert("RGB")
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(noise, kind)
        with pytest.raises(PhotoError, match="damaged|found"):
            open_photo(data[: len(data) // 2], name="lunch.jpg")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "is empty: found 0 bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"<?xml version='1.0'?><feed/>", "an XML file"),
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML><p>404</p>", "an HTML page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photo"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"PK\x03\x04" + b"\0" * 30, "a compressed archive"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (b"hello there", "starts with 68 65 6c 6c"),
    ],
)
def test_other_files_with_the_name_of_a_photo(data, found, tmp_path):
    path = tmp_path / "lunch.jpg"
    path.write_bytes(data)
    with pytest.raises(PhotoError, match=found) as caught:
        open_photo(path)
    assert "lunch.jpg" in str(caught.value)


def test_missing_files_folders_and_text_files(tmp_path):
    with pytest.raises(PhotoError, match="No such file"):
        open_photo(tmp_path / "none.jpg")
    with pytest.raises(PhotoError, match="a folder"):
        open_photo(tmp_path)
    with pytest.raises(PhotoError, match="opened as text"):
        open_photo(io.StringIO("text"), name="lunch.jpg")
    with pytest.raises(PhotoError, match="null byte"):
        open_photo("a\0b.jpg")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels, of a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PhotoError, match="too large"):
            open_photo(bomb(side, side))


def test_limits_are_the_callers():
    data = encoded(scene(400, 300))
    with pytest.raises(PhotoError, match=r"found 400 x 300 pixels, expected at most 0.1 megapixels"):
        open_photo(data, max_megapixels=0.1)
    with pytest.raises(PhotoError, match="over 100 bytes"):
        open_photo(io.BytesIO(data), max_bytes=100)
    endless = type("Endless", (), {"read": lambda self, size: b"\xff" * size})()
    with pytest.raises(PhotoError, match="over 1,000 bytes"):
        open_photo(endless, max_bytes=1000)


def test_small_pictures_are_enlarged_with_a_notice():
    with pytest.warns(PhotoNotice, match="20 x 10 pixels are few"):
        photo = open_photo(encoded(scene(20, 10)))
    assert photo.size == (64, 32)
    assert original_size(photo) == (20, 10)
    with pytest.warns(PhotoNotice):
        assert min(open_photo(encoded(Image.new("RGB", (1, 1)))).size) == 32


def test_draft_decoding_is_smaller_but_large_enough():
    data = encoded(scene(1600, 1200), "JPEG", quality=95)
    small = open_photo(data, side=224)
    assert small.size == (400, 300)
    assert original_size(small) == (1600, 1200)
    assert difference(small, open_photo(data).resize((400, 300), Image.Resampling.BOX)) < 3


def test_sources_agree(tmp_path):
    data = encoded(scene())
    path = Path(tmp_path, "a.png")
    path.write_bytes(data)
    image = Image.open(path)
    for source in (data, path, str(path), io.BytesIO(data), image):
        assert difference(open_photo(source), scene()) == 0
    given = Image.new("RGB", (50, 50), "red")
    open_photo(given).putpixel((0, 0), (0, 0, 0))
    assert given.getpixel((0, 0)) == (255, 0, 0)  # the caller's image is not the one that is returned


def test_hash_survives_what_copies_go_through_and_tells_others_apart():
    own = photo_hash(scene(400, 300))
    copies = [
        scene(400, 300).resize((200, 150)),
        open_photo(encoded(scene(400, 300), "JPEG", quality=40)),
        scene(400, 300).point(lambda value: min(255, int(value * 1.1))),
    ]
    assert max(hash_distance(own, photo_hash(copy)) for copy in copies) <= 6
    other = Image.effect_mandelbrot((400, 300), (-2, -1.5, 1, 1.5), 50)
    assert hash_distance(own, photo_hash(other)) > 16
    assert near_duplicates([own, photo_hash(other), photo_hash(copies[0])], distance=6) == [(0, 2)]


def test_near_duplicates_agree_with_pairs():
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**63, 60)]
    hashes += [value ^ (1 << 5) ^ (1 << 63) for value in hashes[:7]]
    wanted = [(a, b) for a in range(67) for b in range(a + 1, 67) if hash_distance(hashes[a], hashes[b]) <= 2]
    assert near_duplicates(hashes, distance=2) == wanted
    assert len(wanted) == 7


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 80}),
        ("JPEG", {"quality": 80, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
    ],
)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(kind, options):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    whole = encoded(scene(64, 48), kind, **options, **({"exif": exif} if kind not in ("GIF", "BMP") else {}))
    rng, outcomes = np.random.default_rng(0), set()
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 8)):
            data[place] = rng.integers(0, 256)
        if rng.random() < 0.2:
            del data[rng.integers(1, len(data)) :]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                photo = open_photo(bytes(data), side=32)
                assert photo.mode == "RGB"
                assert min(photo.size) >= 32
                outcomes.add("read")
            except PhotoError:
                outcomes.add("refused")
    assert outcomes
