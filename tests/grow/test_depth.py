import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn.utils import prune

from grow_models import cnn, logits
from models import TRANSFORMERS, tiny
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.io import load_model, save_model
from weightsmith.core.models import find_stack
from weightsmith.grow import expand
from weightsmith.grow._expand import assign
from weightsmith.sparsify import remove_plan, wina

WHERE = {"t5": "encoder.block[1:]"}


def test_default_assignments():
    assert assign(12, 5) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [assign(16, 5).count(stage) for stage in range(5)] == [4, 3, 3, 3, 3]
    assert assign(5, 5) == [0, 1, 2, 3, 4]
    assert assign(3, 5) == [0, 2, 4]


@given(st.integers(1, 60), st.integers(1, 12))
def test_assignments_are_in_order_and_even(depth, stages):
    sources = assign(depth, stages)
    assert len(sources) == depth
    assert sources == sorted(sources)
    assert 0 <= sources[0] <= sources[-1] < stages
    if depth >= stages:
        sizes = [sources.count(stage) for stage in range(stages)]
        assert sum(sizes) == depth
        assert max(sizes) - min(sizes) <= 1
    else:
        assert len({*sources}) == depth


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("depth", [2, 7])
@pytest.mark.filterwarnings("ignore:blocks")
def test_the_saved_folder_loads_with_from_pretrained(name, depth, tmp_path):
    model, batch = tiny(name, layers=4)
    dense = copy.deepcopy(model)
    result = expand(model, depth=depth, stack=WHERE.get(name))
    stack = find_stack(model, WHERE.get(name))
    assert len(stack) == depth == len(result.layers)
    assert not torch.equal(logits(model, batch), logits(dense, batch))
    save_model(model, tmp_path / "out")
    loaded = load_model(tmp_path / "out")
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    parameters = [id(p) for block in stack.blocks for p in block.parameters()]
    assert len(parameters) == len({*parameters})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_own_blocks_in_order_change_no_bit(name):
    model, batch = tiny(name, layers=3)
    before = logits(model, batch)
    stack = find_stack(model, WHERE.get(name))
    expand(model, depth=len(stack), stack=WHERE.get(name))
    assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "opt"])
def test_copies_have_their_own_place_in_the_cache(name):
    model, batch = tiny(name, layers=2)
    expand(model, depth=5)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    prompt = batch["input_ids"][:2, :5]
    cached, whole = (model.generate(prompt, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, whole)


def test_lists_of_the_configuration_follow_the_blocks():
    model, _ = tiny("gemma3", layers=2)
    expand(model, depth=4)
    assert model.config.layer_types == ["sliding_attention"] * 2 + ["full_attention"] * 2
    assert model.model.layers[1].self_attn.config is model.config


def test_tied_embeddings_stay_tied():
    model, _ = tiny("gpt2")
    expand(model, depth=5)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_bf16_stays():
    model, batch = tiny("llama")
    model.bfloat16()
    expand(model, depth=3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model, batch).isfinite().all()


def test_a_stage_of_a_cnn_without_its_strided_block():
    model = cnn()
    strided = model["layer3"][0]
    expand(model, depth=5, stack="layer3[1:]")
    assert model["layer3"][0] is strided
    assert len(model["layer3"]) == 6
    assert torch.equal(model["layer3"][1].conv.weight, model["layer3"][2].conv.weight)
    assert model["layer3"](torch.rand(1, 8, 8, 8)).shape == (1, 8, 4, 4)


def test_bad_input_names_what_is_wrong():
    model = cnn()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        UnsupportedModelError, match=r"'layer3.0' and 'layer3.1' differ: conv stride.*stack='layer3\[1:\]'"
    ):
        expand(model, depth=4, stack="layer3")
    with pytest.raises(LayerNotFoundError, match="found no nn.ModuleList"):
        expand(model, depth=4)
    with pytest.raises(LayerNotFoundError, match="no module 'layer9'"):
        expand(model, depth=4, stack="layer9")
    with pytest.raises(LayerNotFoundError, match="is empty"):
        expand(model, depth=4, stack="layer3[4:]")
    with pytest.raises(LayerNotFoundError, match="not a list of blocks"):
        expand(model, depth=4, stack="layer3.0")
    with pytest.raises(HyperparameterError, match="depth: found 0"):
        expand(model, depth=0, stack="layer3[1:]")
    with pytest.raises(HyperparameterError, match=r"assignment: found \[0, 3\].*from 0 to 2"):
        expand(model, depth=2, assignment=[0, 3], stack="layer3[1:]")
    with pytest.raises(HyperparameterError, match="assignment goes back"):
        expand(model, depth=2, assignment=[1, 0], stack="layer3[1:]")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.warns(UserWarning, match=r"blocks \[1\] are not in a model of 2 blocks"):
        expand(model, depth=2, assignment=[2, 0], strict_order=False, stack="layer3[1:]")


def test_adapters_and_unknown_configurations_are_refused():
    model, _ = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.lora_A = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match=r"has an adapter.*Merge it first"):
        expand(model, depth=3)
    model, _ = tiny("llama")
    model.config.num_hidden_layers = 9
    with pytest.raises(UnsupportedModelError, match="no field of the configuration says 2 blocks"):
        expand(model, depth=3)
    assert len(model.model.layers) == 2


@pytest.mark.parametrize("stack", [None, "model.layers"])
def test_a_model_with_sparse_activations_is_refused_until_they_are_removed(stack):
    model, batch = tiny("llama")
    wina(model, [batch])
    with pytest.raises(UnsupportedModelError, match=r"found SparseLinear layers\. Call .*remove_plan\(model\) first"):
        expand(model, depth=4, stack=stack)
    remove_plan(model)
    assert len(expand(model, depth=4, stack=stack).layers) == 4


def test_weights_that_a_hook_computes_are_refused_by_name():
    model, _ = tiny("llama")
    up = model.model.layers[1].mlp.up_proj
    prune.l1_unstructured(up, "weight", 0.5)
    with pytest.raises(
        UnsupportedModelError,
        match=r"the weight of layer 'model.layers.1.mlp.up_proj' is computed: found L1Unstructured.*prune.remove",
    ):
        expand(model, depth=4)
    prune.remove(up, "weight")
    expand(model, depth=4)
    assert float((model.model.layers[3].mlp.up_proj.weight == 0).float().mean()) == 0.5


def test_lists_without_layers_to_find_are_named():
    model = nn.ModuleDict({"body": nn.ModuleList([nn.LSTM(2, 2), nn.LSTM(2, 2)])})
    with pytest.raises(LayerNotFoundError, match=r"found lists \['body'\] without linear or convolutional layers"):
        expand(model, depth=3)
    assert expand(model, depth=3, stack="body").totals["blocks"] == 3
