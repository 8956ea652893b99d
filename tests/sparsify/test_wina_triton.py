"""The Triton kernel: in the interpreter on the CPU, in a process of its own, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from columns import expected, group_case
from weightsmith.sparsify import apply_plan, calibrate_wina, remove_plan
from weightsmith.sparsify._wina.group import SharedInputGroup
from weightsmith.sparsify._wina.kernels import BITS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAVE_TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(not HAVE_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter():
    """Triton must be told before it is first imported, which other tests may have caused."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "TestInterpreted", __file__]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert run.stdout.startswith("." * 11)


@pytest.mark.skipif(not (HAVE_TRITON and INTERPRETED), reason="runs in the process of test_in_the_interpreter")
class TestInterpreted:
    @pytest.mark.parametrize("dtype", list(BITS))
    @pytest.mark.parametrize("limit", [-1.0, 0.7, math.inf])
    def test_columns_are_the_masked_product(self, dtype, limit):
        from weightsmith.sparsify._wina.kernels.cuda import sparse_columns

        outs = (577, 3, 64)
        x, weights = group_case(130, outs, dtype)
        x = x.to(dtype)
        limits = torch.stack([torch.full((130,), limit), torch.full((130,), -1.0), torch.rand(130)])
        bias, kept = torch.randn(sum(outs)), torch.ones(3, dtype=torch.int32)
        y = sparse_columns(x, weights, limits, outs, bias, kept)
        exact = expected(x, weights, limits, outs) + bias
        assert (y - exact).abs().max() <= 1e-5 * exact.abs().max()
        assert kept.tolist() == [1 + n for n in (x.abs() > limits).sum(1).tolist()]

    def test_nan_reaches_the_output(self):
        from weightsmith.sparsify._wina.kernels.cuda import sparse_columns

        x = torch.tensor([1.0, math.nan, 0.1, 2.0])
        y = sparse_columns(
            x, torch.ones(8), torch.full((1, 4), 0.5), (2,), torch.zeros(2), torch.zeros(1, dtype=torch.int32)
        )
        assert y.isnan().all()

    def test_a_model_decodes_as_with_masks(self):
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        ids = torch.randint(3, 64, (1, 24))
        plan = calibrate_wina(model, [{"input_ids": ids}], prefill=1.0)
        apply_plan(model, plan, backend="mask")
        masked = model.generate(ids, max_new_tokens=4, output_logits=True, return_dict_in_generate=True).logits[3]
        remove_plan(model)
        apply_plan(model, plan, backend="triton")
        assert isinstance(model.model.layers[0].mlp.up_proj.kernel, SharedInputGroup)
        assert torch.allclose(
            model.generate(ids, max_new_tokens=4, output_logits=True, return_dict_in_generate=True).logits[3],
            masked,
            atol=1e-5,
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", list(BITS))
def test_triton_on_a_gpu(dtype):
    from weightsmith.sparsify._wina.kernels.cuda import sparse_columns

    outs = (577, 3, 4096)
    x, weights = group_case(1030, outs, dtype)
    x, limits = x.to(dtype), torch.rand(3, 1030)
    exact = expected(x, weights, limits, outs)
    bias, kept = torch.zeros(sum(outs), device="cuda"), torch.zeros(3, dtype=torch.int32, device="cuda")
    y = sparse_columns(x.cuda(), weights.cuda(), limits.cuda(), outs, bias, kept).cpu()
    assert (y - exact).abs().max() <= 1e-4 * exact.abs().max()
