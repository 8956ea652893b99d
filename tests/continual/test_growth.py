"""Heads that grow: the optimizer follows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from weightsmith.adapt import LIFTAdamW
from weightsmith.continual import CLASSP, grow_head
from weightsmith.core.errors import HyperparameterError

OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "CLASSP": lambda parameters: CLASSP(parameters, lr=0.01),
    "LIFTAdamW": lambda parameters: LIFTAdamW(parameters, lr=0.01, density=None),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bias", [True, False])
def test_old_rows_keep_weights_and_moments_and_new_rows_are_trained(name, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=bias))
    optimizer = OPTIMIZERS[name](model.parameters())
    x, y = torch.randn(16, 3), torch.randint(2, (16,))

    def step(classes):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y % classes).backward()
        optimizer.step()

    step(2)
    before = {key: value.clone() for key, value in model[2].state_dict().items()}
    moments = copy.deepcopy(optimizer.state[model[2].weight])
    output = model(x)
    grow_head(model[2], 4, optimizer=optimizer)
    assert model[2].out_features == 4
    torch.testing.assert_close(model(x)[:, :2], output)  # a product of three columns may sum in another order
    for key, value in before.items():
        assert torch.equal(getattr(model[2], key)[:2], value)
    for key, value in moments.items():
        now = optimizer.state[model[2].weight][key]
        if isinstance(value, torch.Tensor) and value.ndim:  # those of LIFT are flat
            assert torch.equal(now[: len(value)], value)
            assert (now[len(value) :] == 0).all()
            assert now.numel() == 2 * value.numel()
        else:
            assert now == value
    assert len(optimizer.state) == len([*model.parameters()])
    weight = model[2].weight.detach().clone()
    y = torch.randint(4, (16,))
    step(4)
    assert (model[2].weight != weight).any(1).all()
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}


def test_heads_do_not_shrink_and_frozen_ones_stay_frozen():
    head = nn.Linear(3, 4).bfloat16().requires_grad_(False)
    with pytest.raises(HyperparameterError, match="classes: found 2"):
        grow_head(head, 2)
    grow_head(head, 6)
    assert head.weight.shape == (6, 3)
    assert head.weight.dtype == torch.bfloat16
    assert not head.weight.requires_grad
