import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from weightsmith.core.models import fold_parametrizations


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_only_one_kind_is_folded_and_frozen_weights_stay_frozen():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    parametrize.register_parametrization(model[0], "weight", Double())
    parametrizations.spectral_norm(model[1])
    model[0].parametrizations.weight.original.requires_grad_(False)
    model.eval()
    x = torch.randn(4, 3)
    expected, twin = model(x), copy.deepcopy(model)
    assert fold_parametrizations(model, Double) == [model[0]]
    assert type(model[0]) is nn.Linear
    assert not model[0].weight.requires_grad
    assert parametrize.is_parametrized(model[1])
    assert fold_parametrizations(model) == [model[1]]
    for one in (model, twin, copy.deepcopy(twin)):
        torch.testing.assert_close(one(x), expected)
