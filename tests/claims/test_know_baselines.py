"""Baselines and batch normalization: closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from weightsmith.claims._know_baselines import (
    linear_extrapolation,
    log_linear_extrapolation,
    moving_average,
    shrink_and_perturb,
    snapshot_average,
)
from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.models import recalibrate_batchnorm, reset_batchnorm
from weightsmith.predict import matched_learning_rates, matched_shrink

SIZES = (10, 20, 40, 80, 160)


def line(slope: float, start: float = 0.0):
    """A weight that grows by ``slope`` with each doubling of the data, and a counter."""
    return [{"w": torch.full((2, 2), start + slope * stage), "n": torch.tensor(stage)} for stage in range(len(SIZES))]


def test_linear_continues_the_last_difference():
    assert linear_extrapolation(line(0.5), a=3.0)["w"].unique().item() == pytest.approx(2.0 + 3 * 0.5)


def test_logfit_continues_a_line_over_the_logarithm():
    for steps in (1, 3):
        fitted = log_linear_extrapolation(line(0.25, 1.0), SIZES, virtual=2.0**steps)["w"]
        assert fitted.unique().item() == pytest.approx(1 + 0.25 * (4 + steps), abs=1e-5)


def test_logfit_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, generator=generator, dtype=torch.float64)
    x = torch.tensor([[1.0, math.log(size)] for size in SIZES], dtype=torch.float64)
    a, b = torch.linalg.lstsq(x, values.unsqueeze(1)).solution.flatten().tolist()
    fitted = log_linear_extrapolation([{"w": v.float().view(1)} for v in values], SIZES, virtual=4.0)["w"]
    assert fitted.item() == pytest.approx(a + b * math.log(4 * SIZES[-1]), abs=1e-5)


def test_averages():
    assert snapshot_average(line(1.0))["w"].unique().item() == 2.0
    assert moving_average(line(1.0), decay=0.0)["w"].unique().item() == 4.0
    assert moving_average(line(1.0), decay=0.5)["w"].unique().item() == pytest.approx(4 - 1 + 2**-4)


@pytest.mark.parametrize("baseline", [linear_extrapolation, moving_average, snapshot_average])
def test_counters_and_types_come_from_the_trained_network(baseline):
    steps = [{**snapshot, "h": snapshot["w"].half()} for snapshot in line(1.0)]
    state = baseline(steps)
    assert state["n"].item() == 4
    assert state["h"].dtype == torch.float16


def test_matched_shrink_has_the_norm_of_one_and_the_direction_of_the_other():
    generator = torch.Generator().manual_seed(0)
    trained, predicted = ({"w": torch.randn(4, 3, generator=generator), "b": torch.zeros(2)} for _ in range(2))
    shrunk, back = matched_shrink(trained, predicted), matched_shrink(predicted, trained)
    assert shrunk["w"].norm().item() == pytest.approx(predicted["w"].norm().item(), rel=1e-6)
    assert torch.allclose(shrunk["w"] / shrunk["w"].norm(), trained["w"] / trained["w"].norm())
    assert back["w"].norm().item() == pytest.approx(trained["w"].norm().item(), rel=1e-6)
    assert torch.allclose(back["w"] / back["w"].norm(), predicted["w"] / predicted["w"].norm())
    assert not shrunk["b"].any()


def test_matched_learning_rates_turn_weights_equally_fast():
    """Under normalization, Adam on a network of half the norm equals Adam with twice the rate."""

    def train(state, predicted_first):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False, eps=1e-12))
            model.load_state_dict(state)
            groups = matched_learning_rates(model, state, predicted_first, learning_rate=0.01)
            optimizer = torch.optim.Adam(groups, eps=0.0)
            for _ in range(5):
                x = torch.randn(8, 3)
                optimizer.zero_grad()
                model(x).pow(3).sum().backward()
                optimizer.step()
            return model[0].weight.detach() / model[0].weight.norm()

    with torch.random.fork_rng():
        torch.manual_seed(1)
        trained = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False)).state_dict()
    halved = {**trained, "0.weight": trained["0.weight"] / 2}
    matched, reference = train(trained, halved), train(halved, halved)
    assert torch.allclose(matched, reference, atol=1e-5)
    assert not torch.allclose(matched, train(trained, trained), atol=1e-3)


def test_shrink_and_perturb_leaves_vectors_alone():
    trained, fresh = {"w": torch.ones(2, 2), "b": torch.ones(2)}, {"w": torch.ones(2, 2), "b": torch.zeros(2)}
    state = shrink_and_perturb(trained, fresh, shrink=0.5, perturb=0.25)
    assert state["w"].unique().item() == 0.75
    assert state["b"].unique().item() == 1.0


def test_bad_requests_are_refused():
    with pytest.raises(ShapeError):
        log_linear_extrapolation(line(1.0), SIZES[1:])
    with pytest.raises(HyperparameterError):
        moving_average(line(1.0), decay=1.0)
    with pytest.raises(ShapeError, match="different tensors"):
        matched_shrink({"a": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(LayerNotFoundError):
        matched_learning_rates(nn.Linear(1, 1), {}, {}, learning_rate=0.1)


class TestBatchNorm:
    @pytest.fixture
    def model(self):
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()

    @pytest.fixture
    def batches(self):
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(50, 2, generator=generator) for _ in range(4)]

    def test_statistics_are_those_of_the_data(self, model, batches):
        assert recalibrate_batchnorm(model, batches) == 1
        outputs = torch.stack([model[0](batch) for batch in batches])
        assert torch.allclose(model[1].running_mean, outputs.mean((0, 1)), atol=1e-6)
        assert torch.allclose(model[1].running_var, outputs.var(1).mean(0), atol=1e-6)
        assert model[1].momentum == 0.1
        assert not any(module.training for module in model.modules())

    def test_without_reset_statistics_move_by_the_momentum(self, model, batches):
        recalibrate_batchnorm(model, batches[:1], reset=False)
        assert torch.allclose(model[1].running_mean, 0.1 * model[0](batches[0]).mean(0), atol=1e-6)

    def test_affine_parameters_stay_and_can_be_reset(self, model, batches):
        nn.init.constant_(model[1].weight, 3.0)
        recalibrate_batchnorm(model, batches)
        assert model[1].weight.unique().item() == 3.0
        reset_batchnorm(model)
        assert (model[1].weight.unique().item(), model[1].running_var.unique().item()) == (1.0, 1.0)

    def test_bad_requests_are_refused(self, model):
        with pytest.raises(CalibrationError):
            recalibrate_batchnorm(model, [])
        with pytest.raises(UnsupportedModelError):
            recalibrate_batchnorm(nn.Linear(1, 1), [torch.zeros(1)])
