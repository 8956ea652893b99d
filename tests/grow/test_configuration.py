"""Every field of a configuration that numbers or counts blocks follows the depth."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DeepseekV3Config,
    Dinov2Config,
    Dinov2ForImageClassification,
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


@pytest.mark.parametrize("depth", [1, 4])
def test_a_list_that_is_as_long_as_the_model_is_deep_by_chance_stays(depth, tmp_path):
    """Two kinds of relative attention and two ends of text are no entries of the two blocks."""
    torch.manual_seed(0)
    kinds = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    config = DebertaV2Config(**SIZES, **kinds, num_hidden_layers=2, eos_token_id=[1, 2], num_labels=3)
    model = DebertaV2ForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    expand(model, depth=depth)
    assert (model.config.pos_att_type, model.config.eos_token_id) == (["p2c", "c2p"], [1, 2])
    ids = torch.arange(30)[None] % 64
    with torch.no_grad():
        expected = model(ids).logits
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)(ids).logits
    torch.testing.assert_close(again, expected)


def dinov2(**fields):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    return Dinov2ForImageClassification(Dinov2Config(**sizes, **fields, num_hidden_layers=3)).eval()


@pytest.mark.parametrize("depth", [2, 5])
def test_a_backbone_gives_the_output_of_the_last_block(depth, tmp_path):
    model = dinov2()
    expand(model, depth=depth)
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(again(images).logits, model(images).logits)
    assert (again.config.out_features, again.config.out_indices) == ([f"stage{depth}"], [depth])


def test_a_backbone_whose_outputs_leave_is_refused():
    model = dinov2(out_features=["stage1", "stage3"])
    with pytest.raises(UnsupportedModelError, match=r"out_features.*\['stage3'\].*stage2"):
        expand(model, depth=2)
    assert model.config.num_hidden_layers == len(model.dinov2.encoder.layer) == 3
    expand(model, depth=4)
    assert model.config.out_features == ["stage1", "stage3"]


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
