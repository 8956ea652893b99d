"""What belongs to the caller: a model and a data set run with the settings that they were written for."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from weightsmith.core.caller import callers_settings, usual_settings
from weightsmith.sparsify import calibrate_wina, wanda
from weightsmith.train import loss_reweighting


@pytest.fixture
def doubles():
    """The caller computes in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class OwnTensors(nn.Module):
    """A model that makes tensors of the default type when it runs: with float32 ones it cannot multiply."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 8)}) for _ in range(2))
        self.head = nn.Linear(8, 4)
        for block in self.blocks:
            block.forward = lambda x, b=block: (b["q"](x) + b["k"](x)) @ torch.eye(8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x @ torch.eye(8))


class OwnSamples(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, place):
        return torch.tensor([0.5 + place] * 8), place % 4


@pytest.mark.parametrize("method", [wanda, calibrate_wina])
def test_a_model_makes_tensors_of_the_callers_type(doubles, method):
    torch.manual_seed(0)
    model = OwnTensors()
    method(model, [torch.randn(5, 8) for _ in range(3)], sparsity=0.5)
    assert torch.get_default_dtype() == torch.float64


def test_a_data_set_makes_tensors_of_the_callers_type(doubles):
    torch.manual_seed(0)
    model = OwnTensors()
    before = model.head.weight.detach().clone()
    loss_reweighting(model, OwnSamples(), epochs=1, batch_size=4)
    assert not torch.equal(model.head.weight, before)


def test_settings_nest_and_end_with_their_block(doubles):
    def now():
        return torch.get_default_dtype(), torch.get_default_device().type

    own, usual = (torch.float64, "meta"), (torch.float32, "cpu")
    with torch.device("meta"):
        with callers_settings():
            assert now() == own
        with usual_settings():
            assert now() == usual
            with callers_settings():
                assert now() == own
                with callers_settings(), usual_settings(), usual_settings():
                    assert now() == usual
                    with callers_settings():
                        assert now() == own
                assert now() == own
            with pytest.raises(KeyError), callers_settings():
                raise KeyError
            assert now() == usual
        assert now() == own
    assert now() == (torch.float64, "cpu")


def test_another_thread_has_no_settings_to_return_to(doubles):
    found = []

    def run():
        with callers_settings():
            found.append(torch.get_default_dtype())

    with usual_settings():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert found == [torch.float32]
