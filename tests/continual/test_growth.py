"""Heads that grow: the optimizer follows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from weightsmith.adapt import LIFTAdamW
from weightsmith.continual import CLASSP, grow_head
from weightsmith.core.errors import HyperparameterError, UnsupportedModelError

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


def test_a_head_whose_weight_is_computed_is_refused():
    for head in (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), masked(nn.Linear(3, 2))):
        with pytest.raises(UnsupportedModelError, match="the weight of the head is computed: found"):
            grow_head(head, 4)
        assert head.out_features == 2
        assert head.bias.shape == (2,)


def masked(head):
    return prune.random_unstructured(head, "weight", 0.5)


def test_a_part_of_the_weights_is_chosen_anew():
    torch.manual_seed(0)
    head, x = nn.Linear(64, 20, bias=False), torch.randn(8, 64)
    optimizer = LIFTAdamW([head.weight], lr=0.01, density=0.3, niter=2, update_interval=3)

    def steps():
        for _ in range(4):
            optimizer.zero_grad()
            head(x).square().sum().backward()
            optimizer.step()

    steps()
    grow_head(head, 40, optimizer=optimizer)
    before = head.weight.detach().clone()
    steps()
    assert (head.weight != before)[20:].any()


def test_statistics_of_rows_grow():
    torch.manual_seed(0)
    head, x = nn.Linear(8, 3), torch.randn(4, 8)
    optimizer = torch.optim.Adafactor(head.parameters(), lr=0.01)
    head(x).square().sum().backward()
    optimizer.step()
    rows = optimizer.state[head.weight]["row_var"].clone()
    grow_head(head, 5, optimizer=optimizer)
    grown = optimizer.state[head.weight]["row_var"]
    assert torch.equal(grown[:3], rows)
    assert not grown[3:].any()
    head(x).square().sum().backward()
    optimizer.step()
    assert head.weight.isfinite().all()
