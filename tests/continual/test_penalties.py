"""EWC and L2-SP: closed forms, several tasks, heads that grow, and what a Fisher pass must leave unchanged."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.continual import EWC, L2SP, grow_head
from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
)
from weightsmith.core.training import default_loss, fit


def network(classes=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, classes))


def batches(seed=0, count=5, classes=2):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 4, generator=generator), torch.randint(classes, (6,), generator=generator))
        for _ in range(count)
    ]


def moved(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_the_model_is_found_under_its_wrappers():
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    for model in (network(), Wrapping()):
        penalty = L2SP(1.0)
        penalty.consolidate(nn.DataParallel(model))
        moved(model, 0)
        expected = penalty(model).item()
        assert expected > 0
        assert penalty(torch.compile(model, backend="eager")).item() == expected
        assert penalty(nn.DataParallel(model)).item() == expected


def test_importance_is_the_mean_of_the_squared_gradients_of_batches():
    model = network()
    penalty = EWC(1.0)
    penalty.consolidate(model, batches())
    squares = []
    for batch in batches():
        model.zero_grad()
        default_loss(model, batch).backward()
        squares.append(model[0].weight.grad.square())
    assert torch.allclose(penalty.importance["0.weight"], torch.stack(squares).mean(0))


@pytest.mark.parametrize("tasks", [1, 3])
def test_penalty_and_gradient_are_those_of_the_sum_over_tasks(tasks):
    """After a step of task 2 the penalty is positive: the anchor is not compared with itself."""
    model, terms, penalty = network(), [], EWC(200.0)
    for task in range(tasks):
        moved(model, task)
        one = EWC(200.0)
        for each in (one, penalty):
            each.consolidate(model, batches(task))
        terms.append(one)
    assert (penalty(model).item() > 0) == (tasks > 1)
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    moved(model, 9)
    value = penalty(model)
    assert value.item() == pytest.approx(sum(term(model).item() for term in terms), rel=1e-4)
    assert value.item() > 0
    found = torch.autograd.grad(value, [*model.parameters()])
    for (name, weight), gradient in zip(model.named_parameters(), found, strict=True):
        expected = sum(2 * 200.0 * term.importance[name] * (weight - term.anchor[name]) for term in terms)
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_decay_weakens_earlier_tasks():
    model, faded, latest = network(), EWC(1.0, decay=0.0), EWC(1.0)
    faded.consolidate(model, batches(0))
    moved(model, 1)
    faded.consolidate(model, batches(1))
    latest.consolidate(model, batches(1))
    moved(model, 2)
    assert faded(model).item() == pytest.approx(latest(model).item(), rel=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan"), None])
def test_decay_out_of_range_is_refused_at_construction(decay):
    kind = Exception if decay is None else HyperparameterError  # the tests' type checks come first
    with pytest.raises(kind, match="decay"):
        EWC(1.0, decay=decay)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_strength_out_of_range_is_refused(strength):
    for penalty in (EWC, L2SP):
        with pytest.raises(HyperparameterError, match="strength"):
            penalty(strength)


@pytest.mark.parametrize("kind", ["ewc", "l2sp"])
def test_grown_head_is_held_in_its_old_rows_only(kind):
    model = network(2)
    penalty = EWC(10.0) if kind == "ewc" else L2SP(10.0)
    penalty.consolidate(model, *([batches()] if kind == "ewc" else []))
    grow_head(model[2], 4)
    assert penalty(model).item() == 0
    moved(model, 1)
    gradient = torch.autograd.grad(penalty(model), model[2].weight)[0]
    assert (gradient[:2] != 0).any()
    assert (gradient[2:] == 0).all()
    if kind == "ewc":  # and the next task is added to it
        penalty.consolidate(model, batches(1, classes=4))
        assert penalty.importance["2.weight"].shape == (4, 8)


def test_fisher_pass_leaves_modes_statistics_and_gradients_unchanged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    for training in (True, False):
        model.train(training)
        model[1].eval()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        modes = [module.training for module in model.modules()]
        before = copy.deepcopy(model.state_dict())
        penalty, again = EWC(1.0), EWC(1.0)
        penalty.consolidate(model, batches())
        again.consolidate(model, batches())
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
        for name, value in penalty.importance.items():  # no dropout
            assert torch.equal(value, again.importance[name])


def test_frozen_parameters_are_free():
    model = network()
    model[0].requires_grad_(False)
    penalty = EWC(1.0)
    penalty.consolidate(model, batches())
    assert set(penalty.importance) == {"2.weight", "2.bias"}
    model.requires_grad_(True)
    model[2].requires_grad_(False)
    penalty.consolidate(model, batches())
    assert set(penalty.importance) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_other_models_and_bad_batches_are_refused():
    penalty = EWC(1.0)
    with pytest.raises(CalibrationError, match="no calibration batches"):
        penalty.consolidate(network(), [])
    with pytest.raises(NonFiniteError, match="gradient"):
        penalty.consolidate(network(), [(torch.full((2, 4), float("inf")), torch.tensor([0, 1]))])
    assert penalty.importance == {}
    penalty.consolidate(network(3), batches())
    with pytest.raises(ShapeError, match="'2.weight'"):
        penalty(network(2))
    with pytest.raises(LayerNotFoundError, match=r"0\.weight"):
        penalty(nn.Linear(4, 3))


def test_state_is_saved_and_half_precision_models_are_held_in_float32():
    model = network().bfloat16()
    penalty, again = EWC(3.0), EWC(3.0)
    penalty.consolidate(model, [(x.bfloat16(), y) for x, y in batches()])
    assert penalty.importance["0.weight"].dtype == torch.float32
    stream = io.BytesIO()
    torch.save(penalty.state_dict(), stream)
    stream.seek(0)
    again.load_state_dict(torch.load(stream, weights_only=True))
    moved(model, 1)
    assert again(model).item() == penalty(model).item() > 0


def test_fit_with_the_penalty_stays_nearer():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    first, second = TensorDataset(x, (x[:, 0] > 0).long()), TensorDataset(x, (x[:, 1] > 0).long())
    distances = []
    for strength in (0.0, 100.0):
        model, penalty = network(), L2SP(strength)
        fit(model, first, epochs=5, learning_rate=0.01)
        start = copy.deepcopy(model)
        penalty.consolidate(model)
        fit(model, second, loss=penalty.added_to(), epochs=5, learning_rate=0.01)
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        distances.append(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    assert distances[1] < 0.1 * distances[0]
