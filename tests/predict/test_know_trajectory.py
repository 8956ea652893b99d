"""Recording how a network forgets: nested subsets, sequential stages, the model as it was."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.core.errors import CalibrationError, HyperparameterError, ShapeError
from weightsmith.predict import ForgettingTrajectory, Trajectory
from weightsmith.predict._know.trajectory import nested_sizes


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def add_size(model, subset):
    """Training that leaves a trace: every weight grows by the samples seen."""
    with torch.no_grad():
        model.weight.add_(len(subset))


def recorder(**options):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, ForgettingTrajectory(model, add_size, torch.zeros(160, 1), **options)


def test_sizes_halve():
    assert nested_sizes(50000) == [50000, 25000, 12500, 6250, 3125]
    assert nested_sizes(100, 1 / 3, 3) == [100, 33, 11]


def test_subsets_are_prefixes_of_one_shuffle():
    subsets = recorder(seed=3)[1].subsets()
    for large, small in pairwise(subsets):
        assert small.indices == large.indices[: len(small)]
    assert sorted(subsets[0].indices) == list(range(160)) != subsets[0].indices
    assert subsets[0].indices == recorder(seed=3)[1].subsets()[0].indices != recorder(seed=4)[1].subsets()[0].indices


def test_stages_continue_from_each_other_and_come_smallest_first():
    model, record = recorder()
    trajectory = record.collect()
    assert trajectory.sizes == (10, 20, 40, 80, 160)
    assert [s["weight"].item() for s in trajectory] == [80 + 40 + 20 + 10, 80 + 40 + 20, 80 + 40, 80, 0]
    assert model.weight.item() == 0


def test_stages_can_restart_from_the_trained_weights():
    _, record = recorder(restart_each_stage=True)
    assert [s["weight"].item() for s in record.collect()] == [10, 20, 40, 80, 0]


def test_the_model_is_restored_when_training_fails():
    model = nn.Linear(1, 1).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail(net, subset):
        nn.init.ones_(net.train().weight)
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        ForgettingTrajectory(model, fail, torch.zeros(32)).collect()
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_stay_one_tensor():
    trajectory = ForgettingTrajectory(Tied(), lambda *_: None, torch.zeros(32)).collect()
    assert trajectory[0]["first.weight"] is trajectory[0]["second.weight"]
    assert trajectory[0]["first.weight"] is not trajectory[1]["first.weight"]


def test_saved_stages_carry_their_sizes(tmp_path):
    from safetensors import safe_open

    trajectory = ForgettingTrajectory(Tied(), lambda *_: None, torch.zeros(32)).collect()
    paths = trajectory.save(tmp_path / "stages")
    assert [path.name for path in paths] == [f"stage-{n}-of-5.safetensors" for n in range(1, 6)]
    for path, size in zip(paths, (2, 4, 8, 16, 32), strict=True):
        with safe_open(path, "pt") as file:
            assert file.metadata()["samples"] == str(size)
            assert set(file.keys()) == {"first.weight", "first.bias"}


def test_bad_requests_are_refused():
    data = TensorDataset(torch.zeros(100, 1))
    for ratio in (0.0, 1.0, -0.5, 2.0):
        with pytest.raises(HyperparameterError, match="ratio"):
            ForgettingTrajectory(nn.Linear(1, 1), add_size, data, ratio=ratio)
    with pytest.raises(HyperparameterError, match="stages"):
        ForgettingTrajectory(nn.Linear(1, 1), add_size, data, stages=1)
    with pytest.raises(CalibrationError, match="found 6, expected >= one batch of 32"):
        ForgettingTrajectory(nn.Linear(1, 1), add_size, data, batch_size=32)
    with pytest.raises(HyperparameterError, match="smallest training set"):
        Trajectory(({}, {}), (100, 50))
    with pytest.raises(ShapeError):
        Trajectory(({}, {}), (100,))
