"""Weights that are computed from other tensors, adapters, and what is not reached."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.models import find_layers
from weightsmith.sparsify import StaticSparsity, dsnot, magnitude, sparsegpt, wanda
from weightsmith.testing import Snapshot, tiny
from weightsmith.train import compand

COMPUTED = {
    "weight_norm": lambda model: weight_norm(model[0]),
    "parametrizations.weight_norm": lambda model: parametrizations.weight_norm(model[0]),
    "spectral_norm": lambda model: spectral_norm(model[0]),
    "parametrizations.spectral_norm": lambda model: parametrizations.spectral_norm(model[0]),
    "prune": lambda model: prune.l1_unstructured(model[0], "weight", 0.25),
    "compand": lambda model: compand(model, include="0"),
    "static sparsity": lambda model: StaticSparsity(model, 0.25, include="0"),
}


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("method", [wanda, sparsegpt, dsnot, magnitude])
def test_computed_weights_are_refused_by_name(compute, method):
    model, data = perceptron(), [torch.randn(300, 8)]
    compute(model)
    before = Snapshot(model)
    given = () if method is magnitude else (data,)
    with pytest.raises(UnsupportedModelError, match="layer '0' is computed"):
        method(model, *given)
    assert not before.changes(model)
    assert [row["layer"] for row in method(model, *given, exclude="0").layers] == ["1", "2"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm])
def test_separate_computed_weights_are_not_tied(wrap):
    model = perceptron()
    for layer in model:
        wrap(layer)
    assert [(layer.name, layer.aliases) for layer in find_layers(model)] == [("0", ()), ("1", ()), ("2", ())]


def test_finding_layers_runs_no_power_iteration():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4))).train()
    before = Snapshot(model)
    find_layers(model)
    assert not before.changes(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mixtral"])
def test_under_an_adapter_the_base_weights_are_pruned(name):
    model, batch = tiny(name)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, config).eval()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = wanda(model, [batch])
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert all("lora_" not in n for n in changed)
    assert any("base_layer" in n for n in changed)
    count = sum("lora_" in n for n in before)
    assert any(f"{count} x 'adapters'" in note for note in result.notes)


def test_a_merged_adapter_is_refused():
    model, batch = tiny("llama")
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    model.merge_adapter()
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match="an adapter is merged into the weight of"):
        wanda(model, [batch])
    assert not before.changes(model)
