"""Packed folders in plain transformers: the same outputs, or a warning where that release cannot load them."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel

from weightsmith.core.io import model_class
from weightsmith.quantize import load_quantized, round_to_nearest, save_packed
from weightsmith.testing import tiny


def siglip():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return SiglipVisionModel(SiglipVisionConfig(**shape, image_size=32, patch_size=8)).eval(), tiny("vit")[1]


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "t5", "vit", "mixtral", "qwen3_moe", "siglip"])
def test_a_warning_says_what_transformers_cannot_load(name, tmp_path):
    model, batch = siglip() if name == "siglip" else tiny(name)
    result = round_to_nearest(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_packed(model, tmp_path / "packed", files=result.files)
    said = [str(each.message) for each in caught if "cannot load the packed weights" in str(each.message)]
    assert torch.equal(values(load_quantized(tmp_path / "packed"), batch), values(model, batch))
    plain = model_class(AutoConfig.from_pretrained(tmp_path / "packed"))
    if said:
        with pytest.raises((AttributeError, RuntimeError)):
            plain.from_pretrained(tmp_path / "packed")
    else:
        assert torch.equal(values(plain.from_pretrained(tmp_path / "packed").eval(), batch), values(model, batch))
    assert bool(said) == (name in ("t5", "mixtral", "qwen3_moe", "siglip"))


def values(model, batch):
    with torch.no_grad():
        found = model(**batch)
    return found.pooler_output if "pooler_output" in found else found.logits
