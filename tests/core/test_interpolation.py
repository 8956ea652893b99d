import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from models import PLAIN, TRANSFORMERS, tiny
from weightsmith.core.data import call
from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.models import along_line, interpolate_, lerp

HALVES = [torch.bfloat16, torch.float16]


def moved(model, seed=1):
    """A state dict near the model's, tied weights still tied."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1)
    return other.state_dict()


@given(st.floats(0, 1), st.integers(0, 50))
def test_lerp_is_within_two_ulp_of_the_formula(t, seed):
    a, b = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) * 3
    b[:8] = -a[:8]
    exact = (1 - t) * a.double() + t * b.double()
    largest = torch.maximum(a.abs(), b.abs())
    ulp = torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest
    assert bool(((lerp(a, b, t).double() - exact).abs() <= 2 * ulp).all())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_the_ends_of_a_lerp_are_exact(dtype):
    a, b = (torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * 7).to(dtype)
    for first, last, t, expected in ((a, b, 0.0, a), (a, b, 1.0, b), (a, a, 0.5, a)):
        assert torch.equal(lerp(first, last, t).view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float8_e5m2])
def test_low_precision_is_rounded_once_from_float32(dtype):
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.lerp(a.float(), b.float(), 0.3).to(dtype)
    assert torch.equal(lerp(a, b, 0.3).float(), expected.float())


def test_mixed_types_take_the_type_of_the_end():
    a, b = torch.randn(10), torch.randn(10).bfloat16()
    assert lerp(a, b, 0.5).dtype == torch.bfloat16
    assert torch.equal(lerp(a, b, 0.5), torch.lerp(a, b.float(), 0.5).bfloat16())


@pytest.mark.parametrize("name", [*TRANSFORMERS, *PLAIN])
def test_ends_are_the_two_models_and_the_model_is_restored(name):
    model, batch = tiny(name)
    start, end = {key: value.clone() for key, value in model.state_dict().items()}, moved(model)
    outputs = []
    for state in (start, end):
        other = copy.deepcopy(model)
        other.load_state_dict(state)
        with torch.no_grad():
            outputs.append(_logits(call(other, batch)))
    with torch.no_grad():
        walk = [_logits(call(model, batch)).clone() for _ in along_line(model, start, end, (0.0, 0.5, 1.0, 0.0))]
    assert torch.equal(walk[0], outputs[0])
    assert torch.equal(walk[2], outputs[1])
    assert torch.equal(walk[3], outputs[0])
    assert (walk[1] - (walk[0] + walk[2]) / 2).abs().max() > 1e-6  # a deep network is not linear in its weights
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())


def _logits(output):
    return output if isinstance(output, torch.Tensor) else output.logits


def test_a_linear_model_averages_its_logits():
    model, x = nn.Linear(12, 4), torch.rand(30, 12)
    start, end = {key: value.clone() for key, value in model.state_dict().items()}, moved(model)
    first, middle, last = (model(x).detach() for _ in along_line(model, start, end, (0.0, 0.5, 1.0)))
    torch.testing.assert_close(middle, (first + last) / 2, atol=1e-6, rtol=0)


def test_many_steps_leave_no_error_behind():
    model = nn.Linear(64, 64)
    start, end = {key: value.clone() for key, value in model.state_dict().items()}, moved(model)
    for t in along_line(model, start, end, [k / 997 for k in range(998)]):
        expected = torch.lerp(start["weight"], end["weight"], t)
        assert torch.equal(model.weight, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_models(dtype):
    model = tiny("llama")[0].to(dtype)
    start, end = {key: value.clone() for key, value in model.state_dict().items()}, moved(model)
    for t in along_line(model, start, end, (0.3, 1.0)):
        for key, value in model.state_dict().items():
            assert torch.equal(value, torch.lerp(start[key].float(), end[key].float(), t).to(dtype))


def test_the_models_own_state_dict_may_be_an_end():
    model = nn.Linear(3, 3)
    own, other = model.state_dict(), moved(model)
    before = model.weight.detach().clone()
    for t in along_line(model, other, own, (0.0, 0.5, 1.0)):
        assert torch.equal(model.weight, torch.lerp(other["weight"], before, t))
    assert torch.equal(model.weight, before)


def test_integers_are_those_of_the_end_and_one_name_of_a_tied_weight_is_enough():
    model = nn.Sequential(nn.BatchNorm1d(2))
    start, end = model.state_dict(), moved(model)
    end["0.num_batches_tracked"] = torch.tensor(7)
    for _ in along_line(model, start, end, (0.2,)):
        assert model[0].num_batches_tracked.item() == 7
    assert model[0].num_batches_tracked.item() == 0
    tied = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    tied["b"].weight = tied["a"].weight
    ends = {"b.weight": torch.zeros(2, 2)}, {"b.weight": torch.ones(2, 2)}
    for _ in along_line(tied, *ends, (0.25,)):
        assert torch.equal(tied["a"].weight, torch.full((2, 2), 0.25))
        assert tied["a"].weight is tied["b"].weight


def test_the_model_is_restored_on_break_and_error():
    model = nn.Linear(3, 3)
    start, end = moved(model, 1), moved(model, 2)
    before = model.weight.detach().clone()
    for _ in along_line(model, start, end, (0.0, 1.0)):
        break
    assert torch.equal(model.weight, before)
    with pytest.raises(ZeroDivisionError):
        [1 / t for t in along_line(model, start, end, (0.0, 1.0))]
    assert torch.equal(model.weight, before)


def test_what_does_not_fit_is_refused_before_anything_changes():
    model = nn.Linear(3, 3)
    good, before = moved(model), model.weight.detach().clone()
    with pytest.raises(ShapeError, match="names: found \\['bias', 'extra'\\]"):
        along_line(model, good, {"weight": good["weight"], "extra": torch.zeros(1)}, (0.0,))
    with pytest.raises(ShapeError, match="'weight': found \\(3, 2\\), expected \\(3, 3\\)"):
        along_line(model, {**good, "weight": torch.zeros(3, 2)}, good, (0.0,))
    with pytest.raises(HyperparameterError, match="finite"):
        list(along_line(model, good, good, (float("nan"),)))
    assert torch.equal(model.weight, before)


def test_a_model_can_stay_on_the_line():
    model = tiny("gpt2")[0]
    start, end = {key: value.clone() for key, value in model.state_dict().items()}, moved(model)
    interpolate_(model, model.state_dict(), end, 0.3)
    for key, value in model.state_dict().items():
        assert torch.equal(value, torch.lerp(start[key], end[key], 0.3))
    interpolate_(model, start, model.state_dict(), 0.0)
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())
    with pytest.raises(HyperparameterError, match="finite"):
        interpolate_(model, start, end, float("inf"))


def test_complex_tensors_are_averaged():
    start, end = torch.tensor([1 + 1j, 2 - 1j]), torch.tensor([3 + 3j, -1 + 0.5j])
    assert torch.equal(lerp(start, end, 0.25), 0.75 * start + 0.25 * end)
    assert torch.equal(lerp(start, end, 0.0), start)
    assert torch.equal(lerp(start, end, 1.0), end)
    assert torch.equal(lerp(start.to(torch.complex128), end, 0.5), (start + end) / 2)
