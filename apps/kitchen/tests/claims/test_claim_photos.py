"""The claim on photos, on invented portions and a tiny random language model: its cheap arms have closed forms."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from weightsmith.embedded import folder as embedded_folder, load_tokenizer
from weightsmith_kitchen.claims import _photos
from weightsmith_kitchen.claims._photos import PHOTOS, Size, portions
from weightsmith_kitchen.vlm import VisionPrefixLM
from weightsmith_kitchen.vlm.parts import open_vision

MASS = {"apple": (100, 200, 300), "egg": (50, 60, 70)}
COLORS = {"apple": (200, 30, 30), "egg": (240, 230, 210)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two foods of three portions, five photos of each; one portion has no mass."""
    monkeypatch.setattr(_photos, "user_cache_path", lambda *_, **__: tmp_path)
    rng, rows = np.random.default_rng(0), []
    with zipfile.ZipFile(tmp_path / "ecustfd_224.zip", "w") as archive:
        for label, masses in MASS.items():
            for number, mass in enumerate((*masses, None)):
                for photo in range(5):
                    name = f"{label}{number:03}T({photo}).jpg"
                    pixels = np.clip(np.array(COLORS[label]) + rng.normal(0, 10, (48, 64, 3)), 0, 255)
                    file = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
                    archive.writestr(name, file.getvalue())
                    rows.append(
                        {
                            "file": name,
                            "portion_id": f"{label}{number:03}",
                            "objects": [{"name": label, "box": [1, 1, 20, 20]}, {"name": "coin", "box": [1, 1, 3, 3]}],
                            "portions": [] if mass is None else [{"type": label, "mass_g": mass}],
                        }
                    )
    (tmp_path / "ecustfd.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def tiny(monkeypatch):
    tokenizer = load_tokenizer(embedded_folder("smollm2"))
    real, vision = VisionPrefixLM.from_parts, open_vision().module

    def from_parts(**options):
        lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        )
        return real(vision=vision, lm=lm, tokenizer=tokenizer, **options)

    monkeypatch.setattr(VisionPrefixLM, "from_parts", from_parts)


def test_invented_portions(folder, tiny, monkeypatch):
    monkeypatch.setitem(_photos.SIZES, "cpu", Size(3, 2, 1, 6, 2, 1e-3, 1e-3, 1e-4))
    data = portions(folder, 3)
    assert len(data.photos) == 18  # three of five photos of each portion that has a mass
    assert data.tokens.shape == (18, 49, 1280)
    assert data.answer(0) == "1 apple of 100 g"
    result = _photos.run(folder, "cpu", (0, 1, 2))
    values = {arm.name: arm.values for arm in result.arms}
    assert set(values) == {
        "projector only",
        "projector and LoRA",
        "digits only",
        "full fine-tuning",
        "direct regression",
        "class mean mass",
        "constant median",
    }
    # One portion of each food is tested; colors tell the foods, so the error is that of the mean of the two others.
    possible = {
        (abs(a - np.mean([x for x in MASS["apple"] if x != a])) + abs(b - np.mean([x for x in MASS["egg"] if x != b])))
        / 2
        for a in MASS["apple"]
        for b in MASS["egg"]
    }
    assert all(any(abs(value - each) < 1e-6 for each in possible) for value in values["class mean mass"])
    assert "6 portions of 2 foods" in result.notes[0]
    assert "class mean mass 1.000" in result.notes[1]
    # a random language model writes no mass: the median counts
    assert values["projector only"] == values["constant median"]
    assert "projector only 100.0%" in result.notes[2]
    assert values["full fine-tuning"] == values["constant median"]


def test_the_declaration_has_three_orderings():
    assert PHOTOS.slug == "caloraify"
    assert len(PHOTOS.expected) <= 3
