"""Damaged configurations and shard indexes: loaded, or refused in one clear error; nothing else happens."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import CheckpointReader, load_model
from weightsmith.testing import tiny

VALUES = [0, 1, -1, 3, 1.5, True, None, "", "x", "../x", "/etc/passwd", [], {}, [1], {"a": 1}, 2**31, 10**30, "é" * 300]
TEXTS = ["{", "}", "[", "]", '"', ",", ":", "0", "-", "\\", "\\ud800", "\x00", "NaN", "1e999", "null"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "model"
    tiny("llama")[0].save_pretrained(path, max_shard_size="20KB")
    assert (path / "model.safetensors.index.json").exists()
    return path


def places(value, path=()):
    """Every place of a nested value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def damaged(draw, sound):
    """The text of a value with one or two values replaced, removed or added, and sometimes its text damaged."""
    value = copy.deepcopy(sound)
    for _ in range(draw.randint(1, 2)):
        path = draw.choice([place for place in places(value) if place])
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        kind = draw.randrange(4)
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(["extra", "model.norm.weight", "auto_map", "dtype"])] = copy.deepcopy(
                draw.choice(VALUES)
            )
        else:
            holder[path[-1]] = copy.deepcopy(draw.choice(VALUES))
    text = json.dumps(value)
    for _ in range(draw.choice([0, 0, 0, 1])):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(TEXTS) + text[at + draw.randrange(3) :]
    return text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json"])
def test_damaged_json(folder, name, count):
    file, draw, loaded = folder / name, random.Random(0), 0
    longest, text = 0, file.read_text()
    try:
        for _ in range(count):
            changed = damaged(draw, json.loads(text))
            file.write_text(changed, encoding="utf-8", errors="surrogatepass")
            try:
                if name == "config.json":
                    model = load_model(folder)
                    assert all(parameter.device == torch.device("cpu") for parameter in model.parameters())
                else:
                    reader = CheckpointReader(folder)
                    assert all(reader.tensor(key).shape == reader.specs[key].shape for key in reader)
                loaded += 1
            except WeightsmithError as error:
                longest = max(longest, len(str(error)))
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}\n{changed[:3000]}") from error
    finally:
        file.write_text(text)
    assert 0 < loaded < count
    assert longest < 2000
