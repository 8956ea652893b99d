"""Rotating a model does not change its function, and makes the columns of keys and gates orthogonal."""

import copy

import pytest
import torch
import transformers as t
from torch import nn

from weightsmith.claims._wina_rotation import rotate
from weightsmith.core.errors import LayerNotFoundError, UnsupportedModelError
from weightsmith.core.models import swap_module
from weightsmith.sparsify import ActivationPlan, apply_plan, calibrate_wina, remove_plan
from weightsmith.sparsify._wina.plan import Projection

DIM, KV_DIM = 48, 16
IDS = torch.randint(1, 60, (2, 12), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS}]
SMALL = {"hidden_size": DIM, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 6}
GQA = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "pad_token_id": 0}


def randomised(model):
    """No norm has gain one and no bias is zero, so that forgetting one shows."""
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return model.eval()


def llama(**changes):
    """In float64, with norms that compute in it: transformers' go through float32."""
    untied = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
    model = randomised(t.LlamaForCausalLM(t.LlamaConfig(**GQA | untied | changes)).double())
    for name, module in list(model.named_modules()):
        if name.endswith("norm"):
            norm = nn.RMSNorm(DIM, eps=1e-6, dtype=torch.float64)
            norm.weight.data.copy_(module.weight.data)
            swap_module(model, name, norm)
    return model


def off_diagonal(weight):
    gram = weight.T @ weight
    return (gram - gram.diag().diag()).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_the_function_stays_the_same_in_float64(tied):
    model = llama(tie_word_embeddings=tied)
    before, key = model(input_ids=IDS).logits, model.model.layers[0].self_attn.k_proj.weight.clone()
    rotate(model, BATCHES)
    assert (model.model.layers[0].self_attn.k_proj.weight - key).abs().max() > 0.1
    assert (model(input_ids=IDS).logits - before).abs().max() < 1e-10
    other = IDS.flip(1)
    assert torch.equal(model(input_ids=other).logits, copy.deepcopy(model)(input_ids=other).logits)


@torch.no_grad()
def test_columns_of_keys_and_gates_are_orthogonal_and_sorted():
    model = llama()
    before = [off_diagonal(layer.self_attn.k_proj.weight) for layer in model.model.layers]
    rotate(model, BATCHES)
    assert min(before) > 0.1
    for layer in model.model.layers:
        for weight in (layer.self_attn.k_proj.weight, layer.mlp.gate_proj.weight):
            assert off_diagonal(weight) < 1e-10
            assert (weight.norm(dim=0).diff() < 1e-10).all()
        assert layer.self_attn.k_proj.weight[:, KV_DIM:].abs().max() < 1e-12
        assert layer.self_attn.k_proj.weight[:, :KV_DIM].norm(dim=0).min() > 1e-3


@torch.no_grad()
def test_keys_lose_nothing_while_only_their_empty_columns_are_skipped():
    model = llama()
    rotate(model, BATCHES)
    model = model.float()
    name = "model.layers.0.self_attn.k_proj"
    dense, x = copy.deepcopy(model.get_submodule(name)), torch.randn(5, DIM)

    def error(sparsity):
        plan = ActivationPlan(sparsity, "topk", 1.0, {name: Projection(sparsity, 0.0, norms=True)})
        apply_plan(model, plan, backend="mask")
        y = model.get_submodule(name)(x)
        remove_plan(model)
        return (y - dense(x)).abs().max().item()

    assert error(0.5) < 1e-5
    assert error(1 - KV_DIM / DIM) < 1e-5
    assert error(1 - KV_DIM / DIM + 2 / DIM) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3", "Gemma", "Granite"])
def test_other_families_keep_their_logits_and_their_cache(family):
    config = getattr(t, f"{family}Config")(**GQA, tie_word_embeddings=True)
    model = randomised(getattr(t, f"{family}ForCausalLM")(config))
    before = model(input_ids=IDS).logits
    rotate(model, BATCHES)
    close = {"rtol": 1e-3, "atol": 1e-3 * before.abs().max().item()}
    torch.testing.assert_close(model(input_ids=IDS).logits, before, **close)
    tokens = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}
    torch.testing.assert_close(
        model.generate(IDS, use_cache=True, **tokens), model.generate(IDS, use_cache=False, **tokens)
    )
    gate = model.model.layers[1].mlp.gate_proj.weight
    assert off_diagonal(gate) < 1e-4 * gate.square().sum().item()


def test_models_that_are_sparse_or_have_no_keys_are_refused():
    model = llama().float()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    apply_plan(model, calibrate_wina(model, BATCHES), backend="mask")
    with pytest.raises((UnsupportedModelError, LayerNotFoundError)):
        rotate(model, BATCHES)
    remove_plan(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(LayerNotFoundError):
        rotate(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), [torch.randn(3, 4)])


def test_is_exact_for_layer_norm_and_conv1d():
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(
        t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    )
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch = BATCHES[0]
    with torch.no_grad():
        before = model(**batch).logits
        result = rotate(model, BATCHES)
        assert (model(**batch).logits - before).abs().max() < 1e-10
    assert [row["layer"] for row in result.layers] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]


def test_a_norm_with_another_reader_is_refused_and_nothing_changes():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.k_proj = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            h = self.norm(x)
            return self.k_proj(h) + h

    model, x = nn.Sequential(Block()), torch.randn(1, 5, 8)
    before, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match="computes something else"):
        rotate(model, [x])
    assert torch.equal(model(x), before)
    assert state.keys() == model.state_dict().keys()
