"""Every command of the catalog that reads data takes it as PyTorch users have it: pairs, data sets, loaders."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from weightsmith import catalog
from weightsmith.signature import read

SIGNATURES = {name: read(catalog.load(m.commands[name].entry)) for name, m in catalog.commands().items()}
STACKED = ("learngene", "mixture-growth")
"""They need a stack of blocks or an inner width, which no plain perceptron has."""
REGRESSIONS = ("blindspot", "gaussian")
"""They need real numbers as labels."""
READS = [
    name
    for name, signature in SIGNATURES.items()
    if signature.model and signature.data and name not in (*STACKED, *REGRESSIONS)
]
SMALL = {
    "bone": {"r": 4},
    "classwise": {"class_name": "1", "fraction": 0.1},
    "curvature-edit": {"include": "*"},
    "kappatune": {"rank": 2},
    "phases": {"batch_size": 8, "epochs": 1, "probes": 2},
    "d2nwg-layers": {"chunk": 16, "latent": 4, "vae_steps": 20, "steps": 5, "candidates": 1},
}


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READS)
def test_pairs_and_loaders(name):
    signature = SIGNATURES[name]
    x, y = torch.randn(24, 12, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4
    pairs = TensorDataset(x, y)
    if signature.data[0].kind == "samples":
        forms = [list(zip(x, y, strict=True)), pairs]
    else:
        forms = [[(x[:12], y[:12]), (x[12:], y[12:])], DataLoader(pairs, batch_size=12)]
    states = []
    for form in forms:
        model = perceptron()
        others = {role.name: perceptron(1) for role in signature.networks}
        generator = {} if signature.generator is None else {signature.generator.name: torch.Generator().manual_seed(0)}
        data = {role.name: form for role in signature.data if role.required}
        networks = [model, perceptron(1)] if signature.model.many else model
        signature.function(networks, **data, **others, **generator, **SMALL.get(name, {}))
        states.append(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]))
    assert torch.equal(*states), "the form of the data does not matter"
