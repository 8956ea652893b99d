"""Rounding of weights to levels: rows of zeros, rows below the normal numbers, and weights beyond float32."""

from __future__ import annotations

import copy
from inspect import unwrap

import numpy as np
import pytest
import torch
from torch import nn

from weightsmith.core.errors import HyperparameterError, NonFiniteError
from weightsmith.core.io import load_state_dict
from weightsmith.quantize import Quantization, gptq, pack_linear, round_to_nearest, save_packed, unpack_checkpoint


def gptq_on_ones(model, **options):
    return unwrap(gptq)(model, [torch.ones(4, 8, dtype=model[0].weight.dtype)], **options)


@pytest.mark.parametrize("quantize", [round_to_nearest, gptq_on_ones])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_zeros_stay_zero_and_small_ones_keep_their_values(quantize, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 3, bias=False)).to(dtype)
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[1] *= 1e-5  # below the normal numbers of float16
    before = model[0].weight.detach().double()
    quantize(model, weight_bits=8)
    after = model[0].weight.detach().double()
    assert not after[0].any()
    step = 2 * before.abs().amax(1, keepdim=True) / 255
    assert ((after - before).abs() <= 8 * step + 2.0**-24)[1:].all()
    assert after[1].any()


def test_weights_beyond_float32_are_refused_and_stay():
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1e299)
    with pytest.raises(NonFiniteError, match=r"rounded weight of '0' .* values up to 1e\+299"):
        round_to_nearest(model)
    assert (model[0].weight == 1e299).all()


@pytest.mark.parametrize("quantize", [round_to_nearest, gptq_on_ones])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_type_are_packed_bit_by_bit(quantize, bits, dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6)).to(dtype)
    result = quantize(model, weight_bits=bits)
    save_packed(model, tmp_path / "packed", files=result.files)
    unpack_checkpoint(tmp_path / "packed", tmp_path / "dense")
    unpacked = load_state_dict(tmp_path / "dense")
    assert all(torch.equal(unpacked[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("quantize", [round_to_nearest, gptq_on_ones])
def test_bits_may_be_a_number_of_numpy(quantize):
    model = nn.Sequential(nn.Linear(8, 6))
    results = [unwrap(quantize)(copy.deepcopy(model), weight_bits=bits) for bits in (4, np.int64(4))]
    assert results[0].hyper == results[1].hyper
    assert results[0].files == results[1].files, "it is a plain number in JSON"
    for odd in (np.float64(4), np.int64(9), True):
        with pytest.raises(HyperparameterError, match=r"weight_bits: found \w.*, expected a whole number from 2 to 8"):
            unwrap(quantize)(model, weight_bits=odd)


def test_one_token_through_packed_weights_of_float64():
    torch.manual_seed(0)
    model, token = nn.Sequential(nn.Linear(512, 4)).double(), torch.rand(1, 512, dtype=torch.float64)
    plan = Quantization.from_json(round_to_nearest(model).files["quantization.json"])
    with torch.no_grad():
        dense = model(token)
        pack_linear(model, plan)
        assert torch.allclose(model(token), dense, rtol=1e-12, atol=0)
