"""Zoos of weights, and many networks trained at once."""

from __future__ import annotations

import json
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.jobs import run_jobs
from weightsmith.core.symmetry import find_symmetry
from weightsmith.core.training import Task, train_many
from weightsmith.merge import match_weights
from weightsmith.predict import WeightZoo


class Tied(nn.Module):
    """A scalar, tied weights, batch normalisation, half precision and an integer buffer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.low = nn.Parameter(torch.randn(2, 2, dtype=torch.bfloat16))


def members(count=3, build=Tied):
    return [build().state_dict() for _ in range(count)]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_rows_become_the_same_state_dicts_again():
    states = members()
    zoo = WeightZoo.from_state_dicts(states)
    assert sum(slot.size for slot in zoo.slots) == zoo.weights_NP.shape[1] == 9 + 6 + 1 + 4
    assert zoo.weights_NP.dtype == np.float32
    assert zoo.aliases == {"second.weight": "first.weight"}
    for state, row in zip(states, zoo.weights_NP, strict=True):
        padded = np.concatenate([row, np.full(5, 7.0, np.float32)])
        assert same(zoo.state_dict(row), state)
        assert same(zoo.state_dict(padded), state)
        assert zoo.state_dict(row)["low"].dtype == torch.bfloat16


def test_running_statistics_are_the_first_members():
    states = members(2)
    states[1]["norm.running_mean"] += 1
    zoo = WeightZoo.from_state_dicts(states)
    assert not any("running" in slot.name for slot in zoo.slots)
    assert torch.equal(zoo.state_dict(zoo.weights_NP[1])["norm.running_mean"], states[0]["norm.running_mean"])


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5))
def test_any_shapes_come_back(shapes):
    states = [{f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)} for _ in range(2)]
    zoo = WeightZoo.from_state_dicts(states)
    assert same(zoo.state_dict(zoo.weights_NP[1]), states[1])


def test_folder_of_members_and_folder_of_the_zoo(tmp_path):
    source = tmp_path / "members"
    (source / "b").mkdir(parents=True)
    states = members(2, lambda: nn.Linear(2, 2))
    support = torch.randn(2, 2, 4, 3)
    save_file(states[0], source / "a.safetensors")
    save_file(states[1], source / "b" / "adapter_model.safetensors")
    save_file({"support": support[0]}, source / "a.support.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.support\.safetensors is missing"):
        WeightZoo.from_folder(source)
    save_file({"support": support[1, :1]}, source / "b.support.safetensors")
    with pytest.raises(ShapeError, match=r"b\.support\.safetensors: found \(1, 4, 3\), expected \(2, 4, 3\)"):
        WeightZoo.from_folder(source)
    save_file({"support": support[1, 0]}, source / "b.support.safetensors")
    with pytest.raises(ShapeError, match="classes, examples, features"):
        WeightZoo.from_folder(source)
    save_file({"examples": support[1]}, source / "b.support.safetensors")
    with pytest.raises(CheckpointError, match="no tensor 'support'"):
        WeightZoo.from_folder(source)
    save_file({"support": support[1]}, source / "b.support.safetensors")
    zoo = WeightZoo.from_folder(source)
    again = WeightZoo.from_folder(zoo.save(tmp_path / "zoo"))
    assert isinstance(again.weights_NP, np.memmap)
    for here in (zoo, again):
        assert same(here.state_dict(here.weights_NP[1]), states[1])
        assert np.array_equal(here.support_NCSF, support.numpy())
    only = WeightZoo.from_folder(source, include=["bias"])
    assert [slot.name for slot in only.slots] == ["bias"]


def test_saved_zoos_keep_what_is_not_generated(tmp_path):
    zoo = WeightZoo.from_state_dicts(members())
    again = WeightZoo.from_folder(zoo.save(tmp_path / "zoo"))
    assert same(again.state_dict(again.weights_NP[2]), zoo.state_dict(zoo.weights_NP[2]))
    with pytest.raises(CheckpointError):
        zoo.save(tmp_path / "zoo")


@pytest.mark.parametrize(
    "include", [["low"], ["scale", "norm.weight"], ["second.weight"], ["second.weight", "first.weight"]]
)
def test_a_saved_zoo_of_some_tensors_is_that_of_the_members(include, tmp_path):
    states = members()
    saved = WeightZoo.from_state_dicts(states).save(tmp_path / "zoo")
    expected, found = WeightZoo.from_state_dicts(states, include=include), WeightZoo.from_folder(saved, include=include)
    for before, after in zip(expected.weights_NP, found.weights_NP, strict=True):
        assert same(found.state_dict(after), expected.state_dict(before))
        assert found.state_dict(after).keys() == set(include)
    with pytest.raises(ShapeError, match="'head' to include: found none, expected one of"):
        WeightZoo.from_folder(saved, include=["head"])
    with pytest.raises(ShapeError, match="expected weights among them"):
        WeightZoo.from_folder(saved, include=["norm.running_mean"])


def test_members_no_better_than_guessing_are_told(tmp_path):
    states, support = members(3, lambda: nn.Linear(3, 2)), torch.randn(3, 2, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WeightZoo.from_state_dicts(states, support_NCSF=support, accuracy_N=[0.53, 0.9, 1.0])
        WeightZoo.from_state_dicts(states, accuracy_N=[0.1, 0.1, 0.1])  # of how many classes is not known
    for number, (state, accuracy) in enumerate(zip(states, (0.9, 0.51, 0.2), strict=True)):
        save_file(state, tmp_path / f"{number}.safetensors")
        save_file({"support": support[number]}, tmp_path / f"{number}.support.safetensors")
        (tmp_path / f"{number}.metrics.json").write_text(json.dumps({"accuracy": accuracy}))
    told = r"2 of 3 members .* among 2 classes, such as member 1 with 51\.0%"
    with pytest.warns(UserWarning, match=told):
        zoo = WeightZoo.from_folder(tmp_path)
    with pytest.warns(UserWarning, match=told):
        again = WeightZoo.from_folder(zoo.save(tmp_path / "zoo"))
    assert np.array_equal(zoo.accuracy_N, again.accuracy_N)
    for text in ("{}", "[]", "no numbers", '{"accuracy": null}'):
        (tmp_path / "2.metrics.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"no number 'accuracy' in .*2\.metrics\.json"):
            WeightZoo.from_folder(tmp_path)
    (tmp_path / "2.metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"2\.metrics\.json is missing"):
        WeightZoo.from_folder(tmp_path)
    with pytest.raises(ShapeError, match=r"accuracy: found \(2,\)"):
        WeightZoo.from_state_dicts(states, accuracy_N=[0.1, 0.2])
    for wrong in (1.2, -0.1, float("nan")):
        with pytest.raises(HyperparameterError, match="accuracy of members"):
            WeightZoo.from_state_dicts(states, accuracy_N=[0.9, 0.9, wrong])


def test_what_is_no_zoo_is_refused(tmp_path):
    states = members(2, lambda: nn.Linear(2, 2))
    with pytest.raises(ShapeError, match=r"member 1 of the zoo: found weight \(3, 2\)"):
        WeightZoo.from_state_dicts([states[0], nn.Linear(2, 3).state_dict()])
    with pytest.raises(ShapeError, match="tensors of member 1 of the zoo: found 1"):
        WeightZoo.from_state_dicts([states[0], nn.Linear(2, 2, bias=False).state_dict()])
    with pytest.raises(ShapeError, match="2 or more"):
        WeightZoo.from_state_dicts(states[:1])
    with pytest.raises(ShapeError, match="2 or more"):
        WeightZoo.from_state_dicts([])
    with pytest.raises(ShapeError, match="'nothing' to include"):
        WeightZoo.from_state_dicts(states, include=["nothing"])
    with pytest.raises(ShapeError, match="support"):
        WeightZoo.from_state_dicts(states, support_NCSF=np.zeros((3, 2, 5, 4)))
    states[1]["bias"][0] = torch.nan
    with pytest.raises(NonFiniteError, match="member 1 of the zoo"):
        WeightZoo.from_state_dicts(states)
    zoo = WeightZoo.from_state_dicts(members())
    with pytest.raises(ShapeError, match="row of a zoo: found 3"):
        zoo.state_dict(torch.zeros(3))
    with pytest.raises(CheckpointError, match="no members"):
        WeightZoo.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no members"):
        WeightZoo.from_folder(tmp_path / "nowhere")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"cannot read .*broken\.safetensors"):
        WeightZoo.from_folder(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"slots": []}))
    with pytest.raises(CheckpointError, match="cannot read the zoo"):
        WeightZoo.from_folder(tmp_path)


# training many at once ----------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def tasks(count=5, samples=20):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, samples, 4, generator=generator)
    return Task(inputs, torch.randint(3, (count, samples), generator=generator))


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=1e-2),
}


def one_by_one(task, optimizer, steps, seed, batch_size):
    torch.manual_seed(seed)
    model = network()
    step, draw = optimizer(model.parameters()), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(task.labels), (batch_size,), generator=draw) if batch_size else slice(None)
        step.zero_grad()
        functional.cross_entropy(model(task.inputs[rows]), task.labels[rows]).backward()
        step.step()
    return model.state_dict()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("same_start", [True, False])
def test_all_at_once_is_one_by_one(optimizer, batch_size, same_start):
    data = tasks()
    options = {"steps": 12, "batch_size": batch_size}
    states = train_many(network, data, optimizer=optimizer, same_start=same_start, **options)
    for number, state in enumerate(states):
        seed = 0 if same_start else number
        alone = one_by_one(Task(data.inputs[number], data.labels[number]), optimizer, seed=seed, **options)
        for key, tensor in alone.items():
            torch.testing.assert_close(state[key], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("optimizer", [OPTIMIZERS["sgd"], partial(torch.optim.Adam, lr=0.05)])
def test_members_of_one_start_are_alike_and_others_are_not(optimizer):
    common, own = (
        WeightZoo.from_state_dicts(train_many(network, tasks(30), optimizer=optimizer, steps=50, same_start=same))
        for same in (True, False)
    )
    assert common.mean_cosine_similarity() > 0.2
    assert abs(own.mean_cosine_similarity()) < 0.05
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(8, generator=generator) for _ in range(30)]
    rows = [common.state_dict(row) for row in common.weights_NP]
    permuted = [
        {"0.weight": s["0.weight"][o], "0.bias": s["0.bias"][o], "2.weight": s["2.weight"][:, o], "2.bias": s["2.bias"]}
        for s, o in zip(rows, orders, strict=True)
    ]
    assert abs(WeightZoo.from_state_dicts(permuted).mean_cosine_similarity()) < 0.05
    symmetry = find_symmetry(network(), torch.rand(1, 4))
    matched = [symmetry.permute(state, match_weights(permuted[0], state, symmetry).perms) for state in permuted]
    assert WeightZoo.from_state_dicts(matched).mean_cosine_similarity() > 0.2


def test_what_all_units_share_does_not_make_members_alike():
    """Inputs with a mean push all units the same way; a head alone has no units to permute."""
    generator = torch.Generator().manual_seed(0)
    states = [
        {"first": 5 + torch.randn(8, 6, generator=generator), "last": 5 + torch.randn(2, 8, generator=generator)}
        for _ in range(20)
    ]
    assert abs(WeightZoo.from_state_dicts(states).mean_cosine_similarity()) < 0.05
    assert WeightZoo.from_state_dicts(states, include=["last"]).mean_cosine_similarity() == 1


def test_the_callers_random_numbers_stay_the_same():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_many(network, tasks(2), steps=1)
    assert torch.equal(torch.rand(3), expected)


linear = partial(nn.Linear, 4, 3)
"""Other processes can import it, which they cannot a function of this file."""


def test_processes_give_the_same_members():
    data = tasks(3)
    here = train_many(linear, data, steps=3, same_start=False)
    there = train_many(linear, data, steps=3, same_start=False, workers=2)
    assert all(
        torch.allclose(mine[key], its[key], atol=1e-6) for mine, its in zip(here, there, strict=True) for key in mine
    )


def test_bad_training_is_refused():
    data = tasks()
    with pytest.raises(ShapeError, match="tasks"):
        train_many(network, Task(data.inputs, data.labels[:2]))
    with pytest.raises(UnsupportedModelError, match="batch normalization"):
        train_many(partial(nn.BatchNorm1d, 4), data)
    with pytest.raises(HyperparameterError, match="steps"):
        train_many(network, data, steps=0)
    with pytest.raises(HyperparameterError, match="batch_size"):
        train_many(network, data, batch_size=-1)
    with pytest.raises(HyperparameterError, match="workers"):
        run_jobs(abs, [1], workers=0)
    data.inputs[3] = torch.nan
    with pytest.raises(NonFiniteError, match="member 3 at step 1"):
        train_many(network, data)
