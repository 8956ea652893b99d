"""Every command that changes a model does on a CUDA device what it does on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from models import tiny
from weightsmith import catalog
from weightsmith.signature import read

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]

SIGNATURES = {name: read(catalog.load(m.commands[name].entry)) for name, m in catalog.commands().items()}
SMALL = {
    "bone": {"r": 4},
    "kappatune": {"rank": 2},
    "d2nwg-layers": {"include": "*q_proj", "chunk": 16, "latent": 4, "vae_steps": 20, "steps": 5, "candidates": 1},
    "expand": {"depth": 3},
    "learngene": {"stages": 1},
}
COMMANDS = [
    name for name, s in SIGNATURES.items() if s.model is not None and not s.measures and name != "meta-rescaling"
]
"""All that change a language model; meta-rescaling trains classifiers only."""
RANDOM = ("d2nwg-layers", "mixture-growth", "kappatune", "bone", "lift", "spdf", "learngene", "bang")
"""Drawn on the model's own device, or trained for many steps: compared by what is finite and changed only."""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_cpu_and_the_gpu_agree(name, precision):
    signature = SIGNATURES[name]
    model, batch = tiny("llama")
    model = model.to(getattr(torch, precision))
    if precision == "bfloat16" and name in ("d2nwg-layers", "weight-matching"):
        pytest.skip("compared in float32")
    samples = [{key: value[row] for key, value in batch.items()} for row in range(8)]
    samples = [{**sample, "labels": sample["input_ids"]} for sample in samples]
    states = {}
    for device in ("cpu", "cuda"):
        ours = copy.deepcopy(model).to(device)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.1)
        data = {role.name: [batch] if role.kind == "batches" else samples for role in signature.data}
        networks = {role.name: copy.deepcopy(other).to(device) for role in signature.networks}
        generator = {} if signature.generator is None else {signature.generator.name: torch.Generator().manual_seed(0)}
        signature.function(ours, **data, **networks, **generator, **SMALL.get(name, {}))
        assert all(parameter.device.type == device for parameter in ours.parameters())
        states[device] = {key: value.float().cpu() for key, value in ours.state_dict().items()}
        with torch.no_grad():
            inputs = {key: value.to(device) for key, value in batch.items()}
            assert ours(**inputs).logits.isfinite().all()
    assert states["cpu"].keys() == states["cuda"].keys()
    if name in RANDOM:
        return
    for key, mine in states["cpu"].items():
        close = torch.isclose(mine, states["cuda"][key], rtol=2e-2, atol=2e-3)
        assert close.double().mean() > 0.97, f"{key}: {1 - close.double().mean():.1%} differ"
