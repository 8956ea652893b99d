"""Damaged safetensors files: what the library refuses is refused, and what is read is what the library reads."""

from __future__ import annotations

import json
import random
import struct

import pytest
import torch
from safetensors import SafetensorError, safe_open

from weightsmith.core.errors import CheckpointError
from weightsmith.core.io import CheckpointReader

NUMBERS = [0, 1, 2, 3, 4, 8, 12, 24, -1, -8, 1.0, 1e3, True, None, "4", [], 2**31, 2**63, 2**64 - 1, 2**64, 10**30]
TYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "I64", "U8", "BOOL", "C64", "F99", 3, None]
TEXTS = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ",",
    ":",
    "0",
    "-",
    " ",
    "\\",
    "\\ud800",
    "é",
    "\x00",
    "\n",
    "1e999",
    "NaN",
    "null",
    "-0",
]


def header_of(draw):
    """A sound header of a few small tensors, and the size of their bytes."""
    header, place = {}, 0
    if draw.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    for number in range(draw.randint(1, 4)):
        name, size = draw.choice([("F32", 4), ("BF16", 2), ("U8", 1), ("F64", 8), ("F8_E8M0", 1), ("F4", 0.5)])
        shape = [draw.randint(0, 3) for _ in range(draw.randint(0, 2))] + [2 * draw.randint(0, 2)]
        end = place + int(torch.Size(shape).numel() * size)
        header[f"t{number}"] = {"dtype": name, "shape": shape, "data_offsets": [place, end]}
        place = end
    return header, place


def damage(draw, header, size):
    """One change of a header's values, some of its text or of the file around it; returns the file."""
    entry = header[draw.choice([key for key in header if key != "__metadata__"])]
    kind, length, extra = draw.randrange(12), 0, b""
    if kind < 3:
        entry["data_offsets"][draw.randrange(2)] = draw.choice(NUMBERS)
    elif kind == 3:
        entry["shape"][draw.randrange(len(entry["shape"]))] = draw.choice(NUMBERS)
    elif kind == 4:
        entry["dtype"] = draw.choice(TYPES)
    elif kind == 5:
        entry[draw.choice([*entry])] = draw.choice([*NUMBERS, {}, [1], [0, 4, 8], [[0]]])
    elif kind == 6:
        del entry[draw.choice([*entry])]
    elif kind == 7:
        header["__metadata__"] = draw.choice([None, {}, {"a": 1}, {"a": None}, [], "", 0, {"a": "b"}])
    elif kind == 8:  # shifted, overlapping, with a hole
        shift = draw.choice([-4, -1, 1, 4, 8])
        spans = [other["data_offsets"] for key, other in header.items() if key != "__metadata__"]
        for span in spans[draw.randrange(len(spans)) :]:
            span[:] = [place + shift for place in span]
    elif kind == 9:
        extra = draw.choice([b"\0", b"\0" * 8])
    elif kind == 10:
        length = draw.choice([-8, -1, 1, 7, 2**20, 2**40, 2**63])
    else:
        entry["more"] = draw.choice(NUMBERS)
    text = json.dumps(header)
    for _ in range(draw.choice([0, 0, 0, 1, 2])):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice([*TEXTS, text[: draw.randint(1, 60)]]) + text[at + draw.randrange(3) :]
    raw = text.encode(errors="surrogatepass")
    raw += b" " * draw.choice([-len(raw) % 8, 0])
    body = draw.randbytes(size if draw.random() < 0.95 else draw.randrange(size + 1))
    return struct.pack("<Q", max(len(raw) + length, 0) % 2**64) + raw + body + extra


def theirs(path):
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}, file.metadata()  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, OverflowError):
        return None


def ours(path):
    try:
        return CheckpointReader(path)
    except CheckpointError:
        return None


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_headers(tmp_path, count):
    path, draw, accepted = tmp_path / "model.safetensors", random.Random(0), 0
    for number in range(count):
        header, size = header_of(draw)
        sound = number % 10 == 0
        if sound:
            text = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + draw.randbytes(size))
        else:
            path.write_bytes(damage(draw, header, size))
        reader, library = ours(path), theirs(path)
        if reader is None:
            assert not sound, path.read_bytes()
            continue
        assert library is not None, path.read_bytes()
        accepted += 1
        shapes, metadata = library
        assert shapes.keys() == set(reader)
        assert reader.metadata == (metadata or {})
        with safe_open(path, framework="pt") as file:
            for key in reader:
                tensor, other = reader.tensor(key), file.get_tensor(key)
                assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
                assert torch.equal(tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    assert accepted > count // 8
