"""Calibration in two processes, each with half of the batches, gives what one process with all of them gives."""

from __future__ import annotations

import importlib

import pytest
import torch

from processes import two_processes
from weightsmith.testing import tiny

METHODS = {
    "wanda": ("sparsify", {}),
    "sparsegpt": ("sparsify", {}),
    "dsnot": ("sparsify", {}),
    "modhifi": ("sparsify", {}),
    "wina": ("sparsify", {}),
    "gptq": ("quantize", {}),
}


def halves(batch):
    return [{name: value[part::2] for name, value in batch.items()} for part in (0, 1)]


def calibrated(name, part):
    """The model's tensors after the method has seen one half of the batch, or both."""
    verb, options = METHODS[name]
    model, batch = tiny("llama")
    both = halves(batch)
    getattr(importlib.import_module(f"weightsmith.{verb}"), name)(
        model, both if part is None else [both[part]], **options
    )
    return dict(model.state_dict())


def in_a_group(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for name in METHODS:
        torch.save(calibrated(name, rank), f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("processes")
    two_processes("import sys, core.test_calibration_processes as tests; tests.in_a_group(sys.argv[1])", made, made)
    return made


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_the_result_of_one(name, folder):
    one = calibrated(name, None)
    for rank in (0, 1):
        found = torch.load(folder / f"{name}-{rank}.pt")
        assert found.keys() == one.keys()
        for key, value in one.items():
            # A score or a rounded weight on the edge may fall to the other side: the sums are made in another order.
            wrong = ~torch.isclose(found[key], value, rtol=1e-4, atol=1e-5)
            assert wrong.float().mean() <= 0.002, (key, wrong.float().mean())


def test_the_halves_alone_give_something_else(folder):
    """The comparison could fail: without the other half the weights that stay are others."""
    one, half = calibrated("wanda", None), calibrated("wanda", 0)
    assert any(not torch.equal(one[key], half[key]) for key in one)
