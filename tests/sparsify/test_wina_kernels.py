"""The kernels against W @ (m * x), and the models that run on them against the same models with masks."""

from __future__ import annotations

import copy
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    DynamicCache,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
    ViTConfig,
)
from transformers.pytorch_utils import Conv1D

from columns import expected, group_case
from processes import apart
from weightsmith.core.errors import (
    CheckpointError,
    LayerNotFoundError,
    MissingDependencyError,
    UnsupportedModelError,
)
from weightsmith.core.levels import Grid, Quantization, WeightLevels
from weightsmith.quantize import round_to_nearest
from weightsmith.sparsify import ActivationPlan, apply_plan, calibrate_wina, plan_report, remove_plan, wina
from weightsmith.sparsify._wina.kernels import BITS
from weightsmith.sparsify._wina.linear import SparseLinear
from weightsmith.sparsify._wina.plan import Projection

pytest.importorskip("numba", reason="the CPU kernel needs numba")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CAUSAL = {
    "llama": LlamaConfig(**SMALL, **SPECIAL),
    "qwen3": Qwen3Config(**SMALL, **SPECIAL, head_dim=8),
    "gemma": GemmaConfig(**SMALL, **SPECIAL, head_dim=8),
    "phi3": Phi3Config(**SMALL, **SPECIAL),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, **SPECIAL),
    "opt": OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        **SPECIAL,
    ),
}


def causal(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return noisy(AutoModelForCausalLM.from_config(copy.deepcopy(CAUSAL[name])))


def noisy(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = parameter.data * 2 + 0.05 * torch.randn_like(parameter)
    return model.eval()


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, 64, (2, 24), generator=generator)}]


@torch.no_grad()
def decode(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits token by token, through the cache."""
    output, logits = None, []
    for token in ids:
        output = model(input_ids=token.view(1, 1), past_key_values=output and output.past_key_values, use_cache=True)
        logits.append(output.logits[0, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("dtype", list(BITS))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("limit", [-1.0, 0.7, math.inf])
def test_columns_are_the_masked_product(dtype, threads, limit):
    from weightsmith.sparsify._wina.kernels.cpu import sparse_columns

    outs = (577, 3, 64)
    x, weights = group_case(130, outs, dtype)
    limits = torch.stack([torch.full((130,), limit), torch.full((130,), -1.0), torch.rand(130)])
    y, kept, total = np.empty(sum(outs), np.float32), np.zeros(3, np.int64), np.ones(3, np.int64)
    bias = torch.randn(sum(outs))
    sparse_columns(
        *(x.numpy(), y, weights.view(BITS[dtype]).numpy(), limits.numpy(), np.array(outs), bias.numpy()),
        *(np.empty(0, np.float32), np.empty(0, np.float32)),
        *(np.empty((3, 131), np.int64), np.empty((3, 131), np.float32)),
        *(np.empty((threads, sum(outs)), np.float32), kept, total),
    )
    exact = expected(x, weights, limits, outs) + bias
    assert (torch.from_numpy(y) - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert kept.tolist() == (x.abs() > limits).sum(1).tolist()
    assert total.tolist() == (kept + 1).tolist()


def test_nan_reaches_the_output_and_unread_columns_do_not():
    layer = nn.Linear(16, 4, bias=False)
    layer.weight.data[:, 3] = math.nan
    plan = ActivationPlan(0.5, "threshold", 1.0, {"0": Projection(0.5, 0.5, False)})
    model = nn.Sequential(layer)
    apply_plan(model, plan, backend="cpu")
    x = torch.ones(1, 16)
    with torch.no_grad():
        assert model(x).isnan().all()
        x[0, 3] = 0.1  # within its limit: the column is not read
        assert model(x).isfinite().all()
        x[0, 5] = math.nan
        assert model(x).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer_type", [nn.Linear, Conv1D])
@pytest.mark.parametrize("select", ["threshold", "topk"])
def test_a_layer_on_the_kernel_is_the_layer_with_masks(dtype, layer_type, select):
    torch.manual_seed(0)
    layer = nn.Linear(65, 33) if layer_type is nn.Linear else Conv1D(33, 65)
    layer.bias.data.normal_()
    model = nn.Sequential(layer).to(dtype)
    plan = ActivationPlan(0.6, select, 1.0, {"0": Projection(0.6, 0.5, True)})
    rows = torch.randn(8, 1, 65).to(dtype)
    with torch.no_grad():
        apply_plan(model, plan, backend="mask")
        masked = torch.cat([model(x) for x in rows])
        mask_report = plan_report(model)["realized"]
        remove_plan(model)
        apply_plan(model, plan, backend="cpu")
        assert model[0].weight.data_ptr() == model[0].kernel._weights.data_ptr()
        fast = torch.cat([model(x) for x in rows])
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert fast.dtype == dtype
    assert (fast - masked).abs().max() <= tolerance * masked.abs().max()
    assert plan_report(model)["realized"] == pytest.approx(mask_report)


def on_levels(layer: nn.Linear | Conv1D, bits: int, half: bool) -> WeightLevels:
    """Put a layer's weight on random levels."""
    weight_OI = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
    unit = (2.0 ** torch.randint(-6, -2, (len(weight_OI), 1))).to(weight_OI.dtype)
    grid = Grid(bits, half)
    codes = torch.randint(-grid.half_levels, grid.half_levels, weight_OI.shape)
    weight_OI.copy_(grid.integers(codes) * unit)
    return WeightLevels(bits, half, unit.flatten().tolist())


@pytest.mark.parametrize(
    ("bits", "half"), [(2, True), (3, False), (4, True), (4, False), (5, False), (8, False), (7, True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer_type", [nn.Linear, Conv1D])
@pytest.mark.parametrize("threads", [1, 2])
def test_columns_of_codes_are_the_masked_product(bits, half, dtype, layer_type, threads):
    torch.manual_seed(bits)
    model = nn.Sequential(nn.Linear(33, 131) if layer_type is nn.Linear else Conv1D(131, 33)).to(dtype)
    quantization = Quantization({"0": on_levels(model[0], bits, half)})
    plan = ActivationPlan(0.5, "threshold", 1.0, {"0": Projection(0.5, 0.5, False)})
    x = torch.randn(1, 33).to(dtype)
    masked = copy.deepcopy(model)
    apply_plan(masked, plan, backend="mask")
    apply_plan(model, plan, quantization=quantization)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            torch.testing.assert_close(model(x), masked(x), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(before)
    assert plan_report(model)["layers"][0]["bytes"] == 33 * 131 * (4 if bits <= 4 else 8) // 8
    assert plan_report(model)["realized"] == (x.abs() <= 0.5).float().mean()
    assert model[0].kernel._weights.numel() == 33 * (66 if bits <= 4 else 131)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_quantized_model_decodes_from_codes(name, bits):
    model = causal(name)
    result = round_to_nearest(model, weight_bits=bits)
    quantization = Quantization.from_json(result.files["quantization.json"])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plan, ids = calibrate_wina(model, batches()), batches()[0]["input_ids"][0, :8]
    masked = copy.deepcopy(model)
    apply_plan(masked, plan, backend="mask")
    apply_plan(model, plan, quantization=quantization)
    torch.testing.assert_close(decode(model, ids), decode(masked, ids), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    again = copy.deepcopy(model)
    torch.testing.assert_close(decode(again, ids), decode(model, ids), rtol=0, atol=0)
    remove_plan(model)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_weights_off_their_levels_are_refused():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    plan = ActivationPlan(0.5, "threshold", 1.0, dict.fromkeys("01", Projection(0.5, 0.1, False)))
    levels = on_levels(model[0], 4, half=False)
    with pytest.warns(UserWarning, match=r"1 of 2 layers are not quantized: \['1'\]"):
        apply_plan(model, plan, quantization=Quantization({"0": levels}))
    with torch.no_grad():
        model(torch.ones(1, 8))
        model[0].weight[2, 1] += 0.001
        with pytest.raises(CheckpointError, match="'0': weights off their levels"):
            model(torch.ones(1, 8))
    remove_plan(model)
    with (
        pytest.warns(UserWarning, match="1 of 2"),
        pytest.raises(CheckpointError, match="'0': weights off their levels"),
    ):
        apply_plan(model, plan, quantization=Quantization({"0": levels}))
    with pytest.raises(LayerNotFoundError, match=r"no layer of the plan is quantized: found \['9'\]"):
        apply_plan(model, plan, quantization=Quantization({"9": levels}))
    with pytest.raises(UnsupportedModelError, match="quantized columns: found backend 'mask'"):
        apply_plan(model, plan, quantization=Quantization({"0": levels}), backend="mask")
    assert type(model[0]) is nn.Linear


def test_zero_sparsity_is_the_dense_layer_bit_by_bit():
    model, x = nn.Sequential(nn.Linear(33, 17)), torch.randn(5, 33)
    dense = model(x)
    plan = ActivationPlan(0.0, "threshold", 1.0, {"0": Projection(0.0, 0.0, True)})
    apply_plan(model, plan, backend="mask")
    assert torch.equal(model(x), dense)
    remove_plan(model)
    apply_plan(model, plan, backend="cpu")
    with torch.no_grad():
        assert torch.allclose(model(x[:1]), dense[:1], atol=1e-6)


@pytest.mark.parametrize("name", CAUSAL)
def test_decoding_is_the_same_with_masks_with_kernels_and_without_a_cache(name):
    model, ids = causal(name), torch.randint(3, 64, (12,), generator=torch.Generator().manual_seed(5))
    plan = calibrate_wina(model, batches(), prefill=1.0)
    apply_plan(model, plan, backend="mask")
    with torch.no_grad():
        full = model(input_ids=ids[None]).logits[0]
    masked, generated = decode(model, ids), model.generate(ids[None], max_new_tokens=8, do_sample=False)
    remove_plan(model)
    apply_plan(model, plan, backend="cpu")
    scale = full.abs().max()
    assert (masked - full).abs().max() < 1e-5 * scale
    assert (decode(model, ids) - full).abs().max() < 1e-5 * scale
    assert torch.equal(model.generate(ids[None], max_new_tokens=8, do_sample=False), generated)
    assert 0.3 < plan_report(model)["realized"] < 0.7


@pytest.mark.parametrize("name", CAUSAL)
def test_remove_gives_the_dense_model_back_bit_by_bit(name):
    model, ids = causal(name), torch.randint(3, 64, (1, 7))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        dense = model(ids).logits
    wina(model, batches(), sparsity=0.7, backend="cpu")
    sparse_state = model.state_dict()
    assert sparse_state.keys() == state.keys()
    assert all(torch.equal(sparse_state[key], value) for key, value in state.items())
    model.generate(ids, max_new_tokens=3, do_sample=False)
    remove_plan(model)
    assert not any(isinstance(m, SparseLinear) for m in model.modules())
    assert all(p.is_contiguous() for p in model.parameters())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, dense)


@pytest.mark.parametrize(
    ("config", "batch"),
    [
        (
            BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
            {"input_ids": torch.tensor([[1, 5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])},
        ),
        (
            ViTConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=16,
                patch_size=8,
            ),
            {"pixel_values": torch.randn(1, 3, 16, 16)},
        ),
    ],
    ids=["bert", "vit"],
)
def test_encoders(config, batch):
    torch.manual_seed(0)
    model = noisy(AutoModel.from_config(config))
    with torch.no_grad():
        dense = model(**batch).last_hidden_state
        wina(model, [batch], sparsity=0.5, norms="all", backend="mask")
        sparse = model(**batch).last_hidden_state
        remove_plan(model)
        assert torch.equal(model(**batch).last_hidden_state, dense)
    assert not torch.equal(sparse, dense)
    assert torch.allclose(sparse, dense, atol=5)


def test_saved_and_loaded(tmp_path):
    model, ids = causal("llama"), torch.randint(3, 64, (9,))
    result = wina(model, batches(), backend="cpu")
    model.save_pretrained(tmp_path)
    (tmp_path / "wina.json").write_text(result.files["wina.json"])
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    apply_plan(again, ActivationPlan.load(tmp_path))
    assert torch.allclose(decode(again, ids), decode(model, ids), atol=1e-5)


def test_a_copy_is_independent():
    model, ids = causal("llama"), torch.randint(3, 64, (9,))
    wina(model, batches(), backend="cpu")
    before = decode(model, ids)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert decode(twin, ids).abs().max() == 0
    assert torch.equal(decode(model, ids), before)


def test_new_weights_are_met():
    model, ids, other = causal("llama"), torch.randint(3, 64, (9,)), causal("llama")
    plan = calibrate_wina(model, batches())
    apply_plan(model, plan, backend="cpu")
    decode(model, ids)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    model.load_state_dict(other.state_dict())
    apply_plan(other, plan, backend="cpu")
    assert torch.allclose(decode(model, ids), decode(other, ids), atol=1e-5)
    remove_plan(other)
    apply_plan(other.to(torch.bfloat16), plan, backend="cpu")
    assert torch.equal(decode(model.to(torch.bfloat16), ids), decode(other, ids))


def test_layers_of_a_group_compute_once_and_see_changes():
    torch.manual_seed(0)
    first, second = nn.Linear(8, 4), nn.Linear(8, 6)
    projection = Projection(0.0, 0.0, False)
    plan = ActivationPlan(0.0, "threshold", 1.0, {"a": projection, "b": projection}, (("a", "b"),))
    model = nn.ModuleDict({"a": first, "b": second})
    apply_plan(model, plan, backend="cpu")
    x, group = torch.randn(1, 8), model["a"].kernel
    with torch.no_grad():
        model["a"](x), model["b"](x)
        assert group.seen == 1
        model["a"](x)
        x.add_(1)
        assert torch.allclose(model["b"](x), nn.functional.linear(x, second.weight, second.bias), atol=1e-5)
        assert torch.allclose(model["b"](x.clone()), model["b"](x), atol=1e-6)


def test_gradients_flow_and_many_sequences_warn_once():
    model = nn.Sequential(nn.Linear(8, 4))
    wina(model, [torch.randn(20, 8)], norms="all", backend="cpu")
    model(torch.randn(1, 8)).sum().backward()
    assert model[0].weight.grad.count_nonzero() in range(4, 32)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="batch sizes above 1"):
            model(torch.randn(3, 1, 8))
        model(torch.randn(3, 1, 8))


def test_a_mask_without_padding_changes_nothing():
    model, ids = causal("llama"), torch.randint(3, 64, (9,))
    wina(model, batches(), backend="cpu")
    expected_logits, cache = decode(model, ids), DynamicCache()
    with torch.no_grad():
        for token in ids:
            mask = torch.ones(1, cache.get_seq_length() + 1)
            output = model(input_ids=token.view(1, 1), past_key_values=cache, attention_mask=mask)
    assert torch.allclose(output.logits[0, -1], expected_logits[-1], atol=1e-5)


def test_left_padded_batches_decode_like_single_sequences():
    model = causal("llama")
    apply_plan(model, calibrate_wina(model, batches(), prefill=1.0), backend="cpu")
    long, short = torch.randint(3, 64, (1, 6)), torch.randint(3, 64, (1, 4))
    padded = torch.cat([long, nn.functional.pad(short, (2, 0))])
    mask = torch.tensor([[1] * 6, [0, 0] + [1] * 4])
    both = model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    alone = model.generate(input_ids=short, attention_mask=mask[1:, 2:], max_new_tokens=5, do_sample=False)
    assert torch.equal(both[1, 6:], alone[0, 4:])


def test_missing_numba_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "weightsmith.sparsify._wina.kernels.cpu", None)
    model = nn.Sequential(nn.Linear(8, 8))
    plan = calibrate_wina(model, [torch.randn(9, 8)])
    with pytest.raises(MissingDependencyError, match="mask"):
        apply_plan(model, plan, backend="cpu")
    assert type(model[0]) is nn.Linear
    apply_plan(model, plan)
    assert model[0].kernel is None


def test_double_weights_have_no_kernel():
    model = nn.Sequential(nn.Linear(8, 8)).double()
    plan = calibrate_wina(model, [torch.randn(9, 8).double()])
    with pytest.raises(UnsupportedModelError, match="float64"):
        apply_plan(model, plan, backend="cpu")
    apply_plan(model, plan)
    assert model[0].kernel is None
    assert model(torch.randn(1, 8).double()).dtype == torch.float64


COMPILED = """
import copy
import torch
from torch import nn
from weightsmith.sparsify import wina


def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward


for select in ("threshold", "topk"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    wina(model, [torch.randn(50, 16)], norms="all", select=select, backend="cpu")
    other = copy.deepcopy(model)
    x, graphs = torch.randn(1, 16), []
    with torch.no_grad():
        step = torch.compile(model, backend=backend, fullgraph=True)
        assert torch.equal(step(x), model(x))
        (graph,) = graphs
        assert sum("sparse_columns" in str(node.target) for node in graph.graph.nodes) == 2
        model[0].weight.mul_(2)
        assert torch.equal(step(x), model(x))
        model[2].weight.data = torch.ones(4, 8)
        assert torch.equal(step(x), model(x))
        other[0].weight.mul_(3)
        assert torch.equal(torch.compile(other, backend=backend, fullgraph=True)(x), other(x))
    assert model[0].kernel.seen == 6
    assert other[0].kernel.seen == 2
    if select == "threshold":
        with torch.no_grad():
            exported = torch.export.export(other, (x,))
            assert torch.allclose(exported.module()(x), other(x), atol=1e-6)
        assert "sparse_columns" not in exported.graph_module.code
"""


def test_compiled_models_keep_the_operator(tmp_path):
    """In a process of its own: torch.compile cannot trace through the tests' type checks."""
    apart(COMPILED, tmp_path)


def test_the_operator_passes_torchs_own_checks():
    from weightsmith.sparsify._wina.kernels.op import sparse_columns

    model = nn.Sequential(nn.Linear(8, 5))
    wina(model, [torch.randn(50, 8)], norms="all", backend="cpu")
    args = (torch.randn(8), model[0].kernel._number, 5)
    torch.library.opcheck(sparse_columns.default, args, test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(UnsupportedModelError, match="Compile the model again"):
        sparse_columns(torch.randn(8), 10**9, 5)


def test_the_kernels_leave_torchs_threads_alone(tmp_path):
    code = """
import torch
torch.set_num_threads(1)
from weightsmith.sparsify import wina
model = torch.nn.Sequential(torch.nn.Linear(8, 8))
wina(model, [torch.randn(9, 8)], backend="cpu")
with torch.no_grad():
    model(torch.randn(1, 8))
assert torch.get_num_threads() == 1
torch.set_num_threads(2)
with torch.no_grad():
    model(torch.randn(1, 8))
assert torch.get_num_threads() == 2
"""
    apart(code, tmp_path)
