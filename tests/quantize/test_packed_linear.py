"""Packed linear layers: the kernels compute what the weight itself does, on models too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from weightsmith.core.errors import CheckpointError, HyperparameterError, UnsupportedModelError
from weightsmith.core.levels import FILE, Grid, WeightLevels
from weightsmith.quantize import PackedLinear, Quantization, ofq, pack_linear, round_to_nearest
from weightsmith.testing import samples, tiny

pytest.importorskip("numba")


def on_levels(rows, columns, bits, half, bias, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    n = 2 ** (bits - 1)
    unit = (torch.rand(rows, generator=draw) + 0.5).to(dtype)
    codes = torch.randint(-n, n, (rows, columns), generator=draw)
    layer = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    layer.weight.data.copy_(Grid(bits, half).integers(codes).to(dtype) * unit[:, None])
    return layer, WeightLevels(bits, half, unit.tolist())


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 600), st.integers(2, 4), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_one_token_is_what_the_weight_gives(rows, columns, bits, half, bias, seed):
    layer, levels = on_levels(rows, columns, bits, half, bias, seed=seed)
    packed = PackedLinear(layer, levels)
    assert torch.equal(packed.weight(), layer.weight)
    x = torch.randn(1, 1, columns, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = layer.double()(x.double())
        scale = float((layer.weight.abs() @ x.double().abs().flatten()).max()) + 1
        assert torch.allclose(packed(x).double(), expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_many_tokens_give_the_same(threads):
    layer, levels = on_levels(33, 300, 2, True, True)
    packed, x = PackedLinear(layer, levels), torch.randn(4, 300)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            single = torch.cat([packed(row[None]) for row in x])
            assert torch.allclose(single, layer(x), atol=1e-3)
            assert torch.equal(packed(x), layer(x))
    finally:
        torch.set_num_threads(before)


def test_half_precision_and_gradients():
    layer, levels = on_levels(6, 40, 3, True, True, torch.bfloat16)
    packed, x = PackedLinear(layer, levels), torch.randn(1, 40, dtype=torch.bfloat16)
    assert packed(x).dtype == torch.bfloat16
    assert torch.allclose(packed(x), layer(x), rtol=0.02, atol=0.1)
    x = x.requires_grad_()
    packed(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0)[None], rtol=0.02, atol=0.1)


def test_nan_reaches_the_output():
    layer, levels = on_levels(4, 20, 2, True, False)
    x = torch.randn(1, 20)
    x[0, 3] = float("nan")
    assert PackedLinear(layer, levels)(x).isnan().all()


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_language_model_decodes_from_packed_layers(architecture):
    model, batch = tiny(architecture)
    result = ofq(model, samples(architecture, 8), epochs=1, batch_size=8, activation_bits=8)
    model.eval()
    with torch.no_grad():
        first = model(batch["input_ids"][:1], use_cache=True)
        token = batch["input_ids"][:1, :1]
        expected = model(token, past_key_values=first.past_key_values).logits
        names = pack_linear(model, Quantization.from_json(result.files[FILE]))
        assert all("layers" in name for name in names)  # the head has eight bits
        cache = model(batch["input_ids"][:1], use_cache=True).past_key_values
        assert torch.allclose(model(token, past_key_values=cache).logits, expected, atol=1e-4)


def test_what_cannot_be_packed():
    layer, levels = on_levels(4, 20, 2, True, False)
    with pytest.raises(HyperparameterError, match="at most 4"):
        PackedLinear(layer, WeightLevels(8, False, levels.unit))
    with pytest.raises(CheckpointError, match="off their levels"):
        PackedLinear(nn.Linear(20, 4), levels)
    with pytest.raises(UnsupportedModelError, match="CPU"):
        PackedLinear(nn.Linear(20, 4, device="meta"), levels)
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UnsupportedModelError, match="cannot be saved"):
        PackedLinear(layer, levels).state_dict()
    with pytest.raises(UnsupportedModelError, match="no layer"):
        pack_linear(model, Quantization.from_json(round_to_nearest(model, weight_bits=8).files[FILE]))
