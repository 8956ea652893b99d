"""Every field of a configuration that numbers or counts blocks follows the depth."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.deepseek_v3 import DeepseekV3ForCausalLM

from weightsmith.core.errors import NonFiniteError, UnsupportedModelError
from weightsmith.grow import expand
from weightsmith.testing import Snapshot, tiny

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "intermediate_size": 32}


def deepseek(dense=1):
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2}
    heads = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    config = DeepseekV3Config(
        **SIZES, **experts, **heads, num_hidden_layers=3, first_k_dense_replace=dense, num_key_value_heads=4,
        topk_group=1,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config)


def qwen(dense):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_key_value_heads": 2}
    config = Qwen3MoeConfig(**SIZES, **experts, num_hidden_layers=3, head_dim=8, mlp_only_layers=dense)
    return Qwen3MoeForCausalLM(config)


def gpt_neo():
    config = GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_heads=4, num_layers=2, max_position_embeddings=64, window_size=4,
        attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    return GPTNeoForCausalLM(config)


CASES = {
    "deepseek experts": (deepseek, {"stack": "model.layers[1:]", "depth": 4}, "first_k_dense_replace", 1),
    "deepseek dense": (lambda: deepseek(2), {"stack": "model.layers[:2]", "depth": 4}, "first_k_dense_replace", 4),
    "qwen first": (lambda: qwen([0]), {"stack": "model.layers[1:]", "depth": 4}, "mlp_only_layers", [0]),
    "qwen last": (lambda: qwen([2]), {"stack": "model.layers[:2]", "depth": 4}, "mlp_only_layers", [4]),
    "qwen two": (lambda: qwen([0, 1]), {"stack": "model.layers[:2]", "depth": 3}, "mlp_only_layers", [0, 1, 2]),
    "gpt-neo": (gpt_neo, {"depth": 4}, "attention_layers", ["global", "global", "local", "local"]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_loaded_model_computes_the_same(case, tmp_path):
    make, options, field, value = case
    torch.manual_seed(0)
    model = make().eval()
    expand(model, **options)
    assert getattr(model.config, field) == value
    ids = torch.arange(30)[None] % 64
    with torch.no_grad():
        expected = model(ids).logits
        cached = model(ids[:, 29:], past_key_values=model(ids[:, :29]).past_key_values).logits
    assert torch.allclose(cached[0, -1], expected[0, -1], atol=1e-5)
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, expected)


def test_a_pattern_that_no_configuration_has_is_refused():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_key_value_heads": 2}
    config = Qwen3MoeConfig(**SIZES, **experts, num_hidden_layers=4, head_dim=8, decoder_sparse_step=2)
    model = Qwen3MoeForCausalLM(config)  # every second block has experts
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match="Qwen3MoeConfig describes 5 blocks"):
        expand(model, depth=2, stack="model.layers[:1]")
    assert not before.changes(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    model, _ = tiny("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = value
    before = Snapshot(model)
    with pytest.raises(NonFiniteError, match=r"layers\.0\.mlp\.up_proj"):
        expand(model, depth=3)
    assert not before.changes(model)
