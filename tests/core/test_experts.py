"""Experts in one stacked parameter are layers of their own."""

import copy
import re

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from weightsmith.core.errors import LayerNotFoundError, UnsupportedModelError
from weightsmith.core.io import meta_model, offloaded
from weightsmith.core.models import block_layers, find_experts, find_matrices, stream, unreached, watching_experts
from weightsmith.core.statistics import Gram
from weightsmith.core.symmetry import find_symmetry
from weightsmith.merge import rebasin, weight_matching
from weightsmith.sparsify import dsnot, magnitude, sparsegpt, wanda
from weightsmith.testing import outputs, tiny


def gpt_oss():
    """Transposed matrices, biases, and gates and values in turn."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = GptOssConfig(
        **sizes, num_hidden_layers=2, head_dim=8, vocab_size=64, num_local_experts=4, num_experts_per_tok=2
    )
    model = GptOssForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


MODELS = {"mixtral": lambda: tiny("mixtral")[0], "qwen3_moe": lambda: tiny("qwen3_moe")[0], "gpt_oss": gpt_oss}


@pytest.mark.parametrize("name", MODELS)
def test_experts_one_after_the_other_compute_the_same(name):
    model, batch = MODELS[name](), tiny("mixtral")[1]
    expected = outputs(model, batch)
    seen = {}

    def see(layer, x, token):
        assert x.shape == (len(token), layer.weight_OI.shape[1])
        seen[layer.name] = seen.get(layer.name, 0) + len(token)

    with watching_experts(find_experts(model), see):
        assert torch.allclose(outputs(model, batch), expected, atol=1e-5)
    assert torch.equal(outputs(model, batch), expected)
    for parameter in ("gate_up_proj", "down_proj"):
        tokens = [count for layer, count in seen.items() if layer.endswith(parameter)]
        assert sum(tokens) == 2 * 2 * 8 * 40  # two blocks, two experts per token


@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_the_real_tokens_of_each_expert(name):
    model, batch = MODELS[name](), tiny("mixtral")[1]
    real = batch["attention_mask"].bool().flatten()
    for block in stream(model, [batch]):
        caught = []
        experts = block.module.mlp.experts
        hook = experts.register_forward_pre_hook(lambda _, args, caught=caught: caught.append(args))
        args, kwargs, _ = block.inputs[0]
        with torch.no_grad():
            block.module(*args, **kwargs)
        hook.remove()
        hidden, chosen = caught[0][:2]
        statistics = block.observe(block.layers, Gram)
        layers = [layer for layer in block.layers if layer.parameter == "gate_up_proj"]
        assert len(layers) == 4
        for layer in layers:
            rows = hidden[(chosen == layer.expert).any(1) & real]
            if layer.name not in statistics:
                assert len(rows) == 0
                continue
            assert statistics[layer.name].rows == len(rows)
            assert torch.allclose(statistics[layer.name].gram_II, rows.T @ rows, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prune", [wanda, sparsegpt, dsnot, lambda model, data: magnitude(model)])
@pytest.mark.parametrize("name", MODELS)
def test_every_expert_is_pruned(prune, name):
    model, batch = MODELS[name](), tiny("mixtral")[1]
    result = prune(model, [batch])
    rows = {row["layer"]: row for row in result.layers}
    for layer in block_layers(model):
        zeros = 1 - layer.weight_OI.count_nonzero() / layer.weight_OI.numel()
        if layer.name in rows:
            assert rows[layer.name]["sparsity"] == pytest.approx(0.5, abs=0.01) == float(zeros)
        else:
            assert zeros == 0
            kind = re.sub(r"\d+", "*", layer.name, count=1)
            assert any(f"'{layer.name}'" in note or f"x '{kind}'" in note for note in result.notes)
    assert sum("experts" in name for name in rows) >= 12
    assert any("2 x 'model.layers.*.mlp" in note for note in result.notes), "the router is named and counted"


def test_an_expert_without_tokens_stays_dense_and_is_named():
    model, batch = tiny("mixtral")
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.gate.weight.zero_()  # equal logits: the first two experts are chosen
    result = wanda(model, [batch])
    experts = model.model.layers[0].mlp.experts
    idle = [e for e in range(4) if experts.gate_up_proj[e].count_nonzero() == experts.gate_up_proj[e].numel()]
    assert len(idle) == 2
    for expert in idle:
        assert any(f"experts.{expert}.gate_up_proj" in note for note in result.notes)


def test_patterns_select_experts():
    model, _ = tiny("mixtral")
    assert [layer.expert for layer in find_experts(model, "*layers.0*experts.[12].down_proj")] == [1, 2]
    assert not find_experts(model, exclude="*experts*")


def test_stacks_without_the_interface_are_named():
    from transformers.models.llama4.modeling_llama4 import Llama4TextConfig, Llama4TextMoe

    sizes = {"hidden_size": 16, "intermediate_size": 16, "intermediate_size_mlp": 16, "num_local_experts": 2}
    model = torch.nn.ModuleList([Llama4TextMoe(Llama4TextConfig(**sizes))])
    found = find_experts(model)
    assert found or any("gate_up_proj" in note for note in unreached(model, block_layers(model)))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_stream_from_disk(name, tmp_path):
    model, batch = tiny(name)
    model.save_pretrained(tmp_path / "dense")
    with offloaded(tmp_path / "dense", tmp_path / "sparse") as stored:
        result = wanda(stored, [batch])
    assert sum("experts" in row["layer"] for row in result.layers) == 2 * 4 * 2
    wanda(model, [batch])
    again, report = type(model).from_pretrained(tmp_path / "sparse", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_re_basin_on_disk_refuses_experts_by_name_and_works_in_memory(name, tmp_path):
    model, batch = tiny(name)
    other = copy.deepcopy(model)
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder)
    with pytest.raises(UnsupportedModelError, match=r"experts\.\w+_proj"):
        rebasin([tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    experts = other.model.layers[0].mlp.experts
    with torch.no_grad():  # the units of the experts in another order
        order = torch.randperm(experts.down_proj.shape[2])
        experts.gate_up_proj.copy_(experts.gate_up_proj[:, torch.cat([order, order + len(order)])])
        experts.down_proj.copy_(experts.down_proj[:, :, order])
    assert weight_matching(model, [batch], other=other).totals["distance_after"] < 1e-5


def test_an_architecture_with_experts_is_traced_without_weights(tmp_path):
    model, _ = tiny("mixtral")
    model.save_pretrained(tmp_path)
    symmetry = find_symmetry(meta_model(tmp_path), {"input_ids": torch.zeros(1, 4, dtype=torch.long)})
    assert "model.layers.0.mlp.experts.gate_up_proj" in symmetry.axes


def test_a_pattern_that_matches_nothing_is_named():
    model = tiny("mixtral", layers=1)[0]
    with pytest.warns(UserWarning, match=r"no layer matches \['\*k_prj'\] of the patterns"):
        found = find_matrices(model, ["*q_proj", "*k_prj", "*experts*"], "*experts.0.*")
    assert [layer.name for layer in found[:2]] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.experts.1.gate_up_proj",
    ]
    with pytest.raises(LayerNotFoundError, match="no layer matches"):
        find_matrices(model, "nowhere")
