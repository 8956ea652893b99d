"""Small steps on weights of half precision are not lost, whoever trains them."""

import copy

import pytest
import torch
from torch import nn

from weightsmith.continual import CLASSP, classp
from weightsmith.core.training import fit, float_steps
from weightsmith.train import loss_reweighting


def problem(dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).to(dtype)
    return model, [(torch.randn(32).to(dtype), n % 4) for n in range(64)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [fit, loss_reweighting, classp])
def test_training_in_half_precision_moves_what_it_moves_in_float32(method, dtype):
    changes = {}
    for kind in (dtype, torch.float32):
        model, samples = problem(dtype)
        before = copy.deepcopy(model).float()
        model = model.to(kind)
        samples = [(x.to(kind), y) for x, y in samples]
        method(model, samples, epochs=5, batch_size=8, learning_rate=2e-4)
        assert all(p.dtype == kind for p in model.parameters())
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        changes[kind] = torch.cat([(p.detach().float() - q.detach()).flatten() for p, q in pairs]).norm().item()
    assert changes[dtype] == pytest.approx(changes[torch.float32], rel=0.2)


def test_states_and_gradients_keep_their_types():
    model, samples = problem()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    fit(model, samples, optimizer=optimizer, epochs=1)
    assert {s["exp_avg"].dtype for s in optimizer.state.values()} == {torch.bfloat16}
    assert {s["step"].dtype for s in optimizer.state.values()} == {torch.float32}
    model(samples[0][0]).sum().backward()
    optimizer.step()  # by hand, as before
    fit(model, samples, optimizer=optimizer, epochs=1)
    slow = CLASSP(model.parameters(), lr=1e-3)
    fit(model, samples, optimizer=slow, epochs=1)
    assert {s["sum"].dtype for s in slow.state.values()} == {torch.float32}


def test_weights_set_between_steps_are_taken_over_and_a_stopped_step_leaves_them():
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    place = weight.data_ptr()
    with float_steps(optimizer):
        for _ in range(10):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        weight.data[0] = 5.0
        for _ in range(10):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    torch.testing.assert_close(weight.float(), torch.tensor([4.99, 0.98, 0.98]), atol=0.016, rtol=0)
    assert weight.data_ptr() == place

    class Stopped(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyboardInterrupt

    optimizer = Stopped([weight], lr=1e-3)
    with pytest.raises(KeyboardInterrupt), float_steps(optimizer):
        optimizer.step()
    assert weight.dtype == torch.bfloat16
    assert weight.data_ptr() == place


def test_the_device_is_the_models_and_the_callers_accelerator_stays():
    from accelerate.state import AcceleratorState, PartialState

    PartialState._reset_state()
    AcceleratorState._reset_state()
    other = PartialState()
    other.device = torch.device("meta")  # as after a run on another device
    model, samples = problem(torch.float32)
    before = model[0].weight.clone()
    fit(model, samples, epochs=1, learning_rate=1e-2)
    assert model[0].weight.device.type == "cpu"
    assert not torch.equal(model[0].weight, before)
    assert PartialState().device.type == "meta"
    PartialState._reset_state()
