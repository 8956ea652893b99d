import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.layers import find_layers
from weightsmith.sparsify.dsnot import dsnot
from weightsmith.sparsify.pruning import Pattern, magnitude, sparsegpt, wanda


def test_pattern_counts_survive_floating_point():
    assert Pattern.parse(0.29).count(100) == 29
    assert Pattern.parse("0.5") == Pattern.parse(0.5)
    for bad in (0, 1, -0.1, "4:2", "0:4", "half"):
        with pytest.raises(HyperparameterError, match="sparsity"):
            Pattern.parse(bad)


def test_magnitude_by_row_and_by_layer():
    weight = torch.tensor([[1.0, 2, 3, 4], [10.0, 20, 30, 40]])
    for group, zeros in (("row", [[0, 1], [0, 1]]), ("layer", [[0, 1, 2, 3], []])):
        model = nn.Sequential(nn.Linear(4, 2, bias=False))
        model[0].weight.data.copy_(weight)
        magnitude(model, sparsity=0.5, group=group)
        assert [(row == 0).nonzero().flatten().tolist() for row in model[0].weight] == zeros


def test_wanda_is_weight_times_input_norm():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    result = wanda(model, [torch.tensor([[10.0, 1.0, 1.0, 0.1], [10.0, 1.0, 1.0, 0.1]])], sparsity=0.5)
    assert model[0].weight.tolist() == [[1.0, 0.0, 3.0, 0.0]]
    removed, all_of_it = 2**2 + (4 * 0.1) ** 2, 10**2 + 2**2 + 3**2 + (4 * 0.1) ** 2
    assert result.layers[0]["output_error"] == pytest.approx((removed / all_of_it) ** 0.5)


def test_sparsegpt_solves_the_least_squares_problem_of_its_mask():
    """With one column removed, the update is the exact minimiser over the columns that follow it."""
    torch.manual_seed(0)
    x = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 1, bias=False))
    weight = model[0].weight.detach().double().clone()
    weight[0, 0] = 1e-4  # the first column goes, all others are free to make up for it
    model[0].weight.data.copy_(weight)
    sparsegpt(model, [x.float()], sparsity=0.17, damping=0.0)
    target = x @ weight.T
    best = torch.linalg.lstsq(x[:, 1:], target).solution
    torch.testing.assert_close(model[0].weight[0, 1:].double(), best[:, 0], rtol=1e-3, atol=1e-5)
    assert model[0].weight[0, 0] == 0


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_sparsegpt_beats_wanda_beats_magnitude_on_correlated_inputs(sparsity):
    torch.manual_seed(0)
    mix = torch.randn(64, 256) * (0.1 + 3 * torch.rand(256))
    x = [torch.randn(4, 128, 64) @ mix for _ in range(4)]
    dense = nn.Sequential(nn.Linear(256, 32))
    target = dense(torch.cat(x))
    error = {}
    for prune in (magnitude, wanda, sparsegpt):
        model = copy.deepcopy(dense)
        prune(model, sparsity=sparsity) if prune is magnitude else prune(model, x, sparsity=sparsity)
        assert abs((model[0].weight == 0).float().mean() - 0.5) < 1e-6
        error[prune] = (model(torch.cat(x)) - target).square().mean().item()
    assert error[sparsegpt] < 0.5 * error[wanda] < 0.5 * error[magnitude]


def tiny(name):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    gqa = small | {"num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8, "pad_token_id": 0}
    ids = {"input_ids": torch.randint(1, 60, (8, 40), generator=torch.Generator().manual_seed(0))}
    ids["attention_mask"] = (torch.arange(40) < torch.tensor([40, 40, 40, 40, 40, 40, 40, 31])[:, None]).long()
    t = transformers
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**gqa)), ids
    if name == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**gqa)), ids
    if name == "gemma3":
        return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**gqa, sliding_window=8)), ids
    if name == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64)), ids
    if name == "opt":
        config = t.OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
        return t.OPTForCausalLM(config), ids
    if name == "bert":
        return t.BertForSequenceClassification(t.BertConfig(**small, vocab_size=64)), ids
    if name == "vit":
        config = t.ViTConfig(**small, image_size=32, patch_size=4)
        return t.ViTForImageClassification(config), {"pixel_values": torch.rand(8, 3, 32, 32)}
    if name == "cnn":
        cnn = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        return nn.Sequential(*cnn, nn.Flatten(), nn.Linear(8 * 15 * 15, 4)), torch.rand(8, 3, 32, 32)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), torch.rand(300, 12)


MODELS = ["llama", "qwen3", "gemma3", "gpt2", "opt", "bert", "vit", "cnn", "mlp"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prune", [wanda, sparsegpt, dsnot])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_model(name, prune, dtype):
    torch.manual_seed(0)
    model, batch = tiny(name)
    model = model.to(dtype)
    move = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    batch = move(batch) if isinstance(batch, torch.Tensor) else {key: move(value) for key, value in batch.items()}
    untouched = {n: p.clone() for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n or "head" in n}
    result = prune(model, [batch], sparsity=0.5)
    assert result.totals["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert all(p.dtype == dtype for p in model.parameters())
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in untouched.items())
    for layer in find_layers(model):
        if any(row["layer"] == layer.name for row in result.layers):
            assert (layer.weight_OI == 0).float().mean() == pytest.approx(0.5, abs=0.03), layer.name


def test_conv1d_prunes_along_its_inputs():
    model = nn.Sequential(Conv1D(2, 4))
    model[0].weight.data.copy_(torch.tensor([[1.0, 9], [2, 8], [3, 7], [4, 6]]))
    magnitude(model, sparsity=0.5)
    assert model[0].weight.tolist() == [[0, 9], [0, 8], [3, 0], [4, 0]]


def test_failure_puts_every_block_back():
    torch.manual_seed(0)
    model, batch = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for call in (lambda: magnitude(model), lambda: wanda(model, [batch]), lambda: sparsegpt(model, [batch])):
        with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.(up|down)_proj"):
            call()
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]) or bool(value.isnan().any())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.config.use_cache


def test_bad_input():
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(CalibrationError, match="no calibration batches"):
        wanda(model, [])
    with pytest.raises(CalibrationError, match="inputs of layer '0': found 7 features, expected 6"):
        wanda(model, [torch.rand(3, 7)])
    with pytest.raises(ShapeError, match=r"layer '0' for sparsity 2:4: found 6 columns, expected a multiple of 4"):
        wanda(model, [torch.rand(3, 6)], sparsity="2:4")
    with pytest.raises(NonFiniteError, match="inputs of layer '0'"):
        wanda(model, [torch.full((3, 6), float("inf"))])
    with pytest.raises(HyperparameterError, match="needs an unstructured sparsity"):
        magnitude(model, sparsity="2:4", group="layer")
    assert int((model[0].weight == 0).sum()) == 0
