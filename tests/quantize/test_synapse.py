"""Synapse rule: the numbered checks of its specification, layers of every kind, devices as tables, what is refused."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional

from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    UnsupportedModelError,
)
from weightsmith.embedded import digits
from weightsmith.quantize import (
    Exponential,
    Measured,
    PulsedOptimizer,
    SoftBounds,
    SynapseDevice,
    read_device,
    synapse,
    to_analog,
    to_digital,
)
from weightsmith.quantize._synapse.pairs import ConductancePair, Conductances, held_by
from weightsmith.testing import samples, tiny

STEEP = SynapseDevice(SoftBounds(64, 3.0), SoftBounds(64, 6.0))
LINEAR = SynapseDevice(SoftBounds(64), SoftBounds(64))
ZERO = torch.zeros(())


def mlp(seed=0, bias=False):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5, bias=bias), nn.Hardtanh(0, 1), nn.Linear(5, 3, bias=bias))


def points(count=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.rand(6, generator=draw), int(torch.randint(3, (), generator=draw))) for _ in range(count)]


def train(model, optimizer, data):
    for x, label in data:
        target = functional.one_hot(torch.tensor([label]), 3).float()
        functional.binary_cross_entropy_with_logits(model(x[None]), target, reduction="sum").backward()
        optimizer.step()
    return model


def pairs(model):
    return [held_by(module) for module in model if isinstance(module, nn.Linear)]


def test_1_soft_bounds_golden():
    curve = SoftBounds(64, 4.0)
    assert curve.bound == pytest.approx(1.0186574, abs=1e-7)
    assert curve.rate == pytest.approx(0.0605869, abs=1e-7)
    after = curve.advance(torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 32.0, 64.0]).double())
    assert after.tolist() == pytest.approx([0.0617173, 0.8807971, 1.0], abs=1e-7)
    last = curve.advance(torch.zeros(2, dtype=torch.float64), torch.tensor([63.0, 64.0]).double()).diff()
    assert last.item() == pytest.approx(0.0012033, abs=1e-7)
    weaker, finer = SoftBounds(64, 2.0), SoftBounds(256, 4.0)
    assert weaker.rate == pytest.approx(0.0307668, abs=1e-7)
    for each, values in ((weaker, (0.0355823, 0.7310586)), (finer, (0.0157928, 0.4008104))):
        found = each.advance(torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 32.0]).double())
        assert found.tolist() == pytest.approx(values, abs=1e-7)


def test_2_exponential_golden():
    curve = Exponential(64, 4.0)
    assert curve.step == pytest.approx(0.2093678, abs=1e-7)
    assert curve.advance(ZERO.double(), 64).item() == pytest.approx(1.0, abs=1e-12)
    g = 0.0
    for _ in range(64):  # Euler's steps overshoot
        g += curve.step * math.exp(-4.0 * g)
    assert g == pytest.approx(1.0084, abs=1e-4)


@given(
    st.integers(1, 300),
    st.floats(0, 12),
    st.integers(0, 40),
    st.floats(0, 1),
    st.sampled_from([SoftBounds, Exponential]),
)
def test_3_single_pulses_are_the_closed_form(pulses, beta, count, start, family):
    curve = family(pulses, beta)
    one = torch.tensor(start, dtype=torch.float64)
    many = curve.advance(one, count)
    for _ in range(count):
        one = curve.advance(one)
    assert one.item() == pytest.approx(many.item(), abs=1e-6)
    assert start - 1e-12 <= many.item() <= 1
    assert curve.advance(ZERO.double(), curve.pulses_to(many)).item() == pytest.approx(many.item(), abs=1e-6)


@pytest.mark.parametrize("family", [SoftBounds, Exponential])
@pytest.mark.parametrize("beta", [0.0, 1e-4, 2e-3])
def test_4_without_non_linearity_a_step_is_one_over_the_pulses(family, beta):
    assert family(50, beta).advance(torch.tensor(0.3)).item() == pytest.approx(0.32, abs=1e-4)


def test_up_and_down_drift_as_the_specification_says():
    device = SynapseDevice(SoftBounds(64, 4.0), SoftBounds(64, 4.0))
    after = device.depress(device.potentiate(torch.tensor([0.2, 0.5, 0.8])))
    assert after.tolist() == pytest.approx([0.2333, 0.4981, 0.7628], abs=1e-4)


def test_5_unidirectional_pairs_only_rise_and_ignore_depression():
    finals = []
    for depression in (SoftBounds(64, 6.0), SoftBounds(3, 0.0), Measured([0.0, 1.0])):
        model = mlp()
        to_analog(model, SynapseDevice(SoftBounds(64, 3.0), depression))
        optimizer = PulsedOptimizer(model, refresh_at=1.0)
        for sample in points():
            before = [devices.plus.clone() for devices in pairs(model)], [d.minus.clone() for d in pairs(model)]
            train(model, optimizer, [sample])
            for old, new in zip(before[0], pairs(model), strict=True):
                assert (new.plus >= old).all()
            for old, new in zip(before[1], pairs(model), strict=True):
                assert (new.minus >= old).all()
        assert sum(each["pulses"] for each in optimizer.stats().values()) > 30
        assert sum(each["refreshes"] for each in optimizer.stats().values()) == 0
        finals.append([tensor for devices in pairs(model) for tensor in devices])
    for other in finals[1:]:
        assert all(torch.equal(a, b) for a, b in zip(finals[0], other, strict=True))


def test_5_a_refresh_keeps_the_weight_and_empties_one_device():
    pair = ConductancePair((3, 4), STEEP)
    devices = Conductances(torch.rand(3, 4), torch.rand(3, 4))
    devices.plus[0, 0], devices.minus[0, 0] = 0.95, 0.4
    devices.plus[0, 1], devices.minus[0, 1] = 0.95, 0.0
    before = pair(*devices)
    expected = (torch.maximum(*devices) > 0.9) & (torch.minimum(*devices) > 0)
    assert pair.refresh(devices, 0.9) == int(expected.sum()) >= 1
    torch.testing.assert_close(pair(*devices), before, rtol=0, atol=2e-7)
    assert (torch.minimum(*devices)[expected] == 0).all()
    assert pair.refresh(devices, 0.9) == 0  # a pair that is full and empty is not refreshed again and again


def test_6_one_sample_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    nn.init.zeros_(model[0].weight)
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model)
    target = torch.tensor([[1.0, 0.0]])
    functional.binary_cross_entropy_with_logits(model(torch.tensor([[1.0, 0.0]])), target, reduction="sum").backward()
    optimizer.step()
    devices = held_by(model[0])
    step = 1 / 64
    torch.testing.assert_close(devices.plus, torch.tensor([[0.05 + step, 0.05], [0.05, 0.05]]))
    torch.testing.assert_close(devices.minus, torch.tensor([[0.05, 0.05], [0.05 + step, 0.05]]))
    optimizer.step()  # the requests are carried out once
    assert optimizer.stats()["0"]["pulses"] == 2


def test_7_nothing_is_asked_above_the_largest_error_or_without_inputs():
    model = mlp()
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model, error_threshold=1.0)
    train(model, optimizer, points())
    assert all(each["pulses"] == 0 for each in optimizer.stats().values())
    optimizer.close()
    optimizer = PulsedOptimizer(model, coding="rate", generator=torch.Generator().manual_seed(0))
    train(model, optimizer, [(torch.zeros(6), 1)] * 5)
    assert optimizer.stats()["0"]["pulses"] == 0


def test_8_same_seed_same_bits():
    def run(**varied):
        model = mlp()
        synapse(model, points(), epochs=2, generator=torch.Generator().manual_seed(3), **varied)
        return model[0].weight

    assert torch.equal(run(), run())
    assert torch.equal(run(coding="rate", cycle_variation=0.3), run(coding="rate", cycle_variation=0.3))
    assert not torch.equal(run(), run(device_variation=0.3))


@pytest.mark.parametrize("update", ["unidirectional", "bidirectional", "single"])
def test_9_weights_stay_in_their_range(update):
    model = mlp()
    to_analog(model, SynapseDevice(SoftBounds(2), SoftBounds(2)), update=update, weight_scale=0.5)
    optimizer = PulsedOptimizer(model, error_threshold=0.0, input_threshold=0.0)
    train(model, optimizer, points(100))
    bound = 0.25 if update == "single" else 0.5
    for module in (model[0], model[2]):
        assert module.weight.abs().max() <= bound
        assert all(((g >= 0) & (g <= 1)).all() for g in held_by(module))


def test_steep_depression_leaves_a_unidirectional_network_to_the_bit():
    results = []
    for beta_down in (0.0, 6.0):
        model = mlp()
        synapse(model, points(), beta_up=0.0, beta_down=beta_down, epochs=3, generator=torch.Generator().manual_seed(0))
        results.append(model[0].weight)
    assert torch.equal(*results)


def test_a_batch_asks_what_its_samples_ask():
    data = points(12)
    x, y = torch.stack([x for x, _ in data]), torch.tensor([y for _, y in data])
    model = mlp()
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model, refresh_at=1.0)
    target = functional.one_hot(y, 3).float()
    functional.binary_cross_entropy_with_logits(model(x), target, reduction="sum").backward()
    error = target - model(x).sigmoid()
    asked = error.sign() * (error.abs() > 0.1)
    hidden = model[1](model[0](x))
    active = (hidden > 0.5).float()
    before = Conductances(*(g.clone() for g in held_by(model[2])))
    optimizer.step()
    ups, downs = (asked > 0).float().T @ active, (asked < 0).float().T @ active
    after = held_by(model[2])
    torch.testing.assert_close(after.plus, (before.plus + ups / 64).clamp(0, 1))
    torch.testing.assert_close(after.minus, (before.minus + downs / 64).clamp(0, 1))
    assert optimizer.stats()["2"]["pulses"] == int((ups + downs).sum())


def test_negative_inputs_turn_the_direction():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.zeros_(model[0].weight)
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model)
    (-model(torch.tensor([[-1.0, 1.0]]))).sum().backward()  # the error is 1
    optimizer.step()
    assert (model[0].weight * 32).round().tolist() == [[-1.0, 1.0]]


def test_a_convolution_is_a_matrix_of_patches():
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
    model = nn.Sequential(convolution)
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model, refresh_at=1.0)
    x = torch.rand(2, 2, 5, 5)
    before = convolution.weight.detach().clone()
    errors = torch.randn(2, 3, 3, 3)
    model(x).backward(-errors)
    optimizer.step()
    active = functional.unfold(x, 3, padding=1, stride=2) > 0.5
    asked = (errors.sign() * (errors.abs() > 0.1)).flatten(2)
    net = torch.einsum("nol,nil->oi", asked, active.float()).view(3, 2, 3, 3)
    torch.testing.assert_close(convolution.weight - before, 2 * net / 64, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "cnn", "mlp"])
def test_architectures_train_and_become_plain_again(name):
    model, _ = tiny(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = synapse(model, samples(name), input_threshold=0.05, error_threshold=0.001, epochs=1)
    assert list(model.state_dict()) == list(before)
    assert all(value.dtype == before[key].dtype for key, value in model.state_dict().items())
    assert result.totals["pulses"] > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_read_out_equals_the_analog_network_and_keeps_bfloat16():
    model = mlp(bias=True).bfloat16()
    x = torch.rand(4, 6).bfloat16()
    to_analog(model, STEEP)
    assert model[0].weight.dtype == torch.bfloat16
    assert held_by(model[0]).plus.dtype == torch.float32
    expected = model(x)
    to_digital(model)
    assert torch.equal(model(x), expected)
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_biases_take_plain_steps():
    model = mlp(bias=True)
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model, 0.5, error_threshold=2.0)
    bias = model[2].bias.detach().clone()
    (-model(torch.rand(1, 6))).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model[2].bias.detach(), bias + 0.5)


def test_a_model_of_conductances_alone_learns_and_layers_may_work_in_place():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(inplace=True), nn.Linear(5, 3, bias=False))
    result = synapse(model, points(), epochs=1)
    assert result.totals["pulses"] > 0


def test_frozen_layers_stay_as_they_are():
    model = mlp(bias=True)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    result = synapse(model, points(), epochs=1)
    assert torch.equal(model[0].weight, before)
    assert [row["layer"] for row in result.layers] == ["2"]
    assert "Frozen and unchanged: 0." in result.notes
    with pytest.raises(LayerNotFoundError, match="every layer that matches is frozen: found .'0', '2'."):
        synapse(mlp().requires_grad_(False), points(), epochs=1)


def test_the_state_goes_on_in_another_optimizer():
    whole, halves = mlp(), mlp()
    for model in (whole, halves):
        to_analog(model, STEEP)
    first = PulsedOptimizer(whole)
    train(whole, first, points(30))
    before = PulsedOptimizer(halves)
    train(halves, before, points(30)[:15])
    before.close()
    resumed = mlp(1)
    to_analog(resumed, STEEP)
    resumed.load_state_dict(halves.state_dict())
    after = PulsedOptimizer(resumed)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(resumed, after, points(30)[15:])
    assert after.stats() == first.stats()
    assert torch.equal(resumed[0].weight, whole[0].weight)


def test_stuck_devices_never_move_and_programming_misses_its_target():
    device = SynapseDevice(SoftBounds(64), SoftBounds(64), stuck=0.3)
    model = mlp()
    target = model[0].weight.detach().clone()
    to_analog(model, device, generator=torch.Generator().manual_seed(0))
    pair = model[0].parametrizations["weight"][0]
    stuck = pair.stuck_at >= 0
    assert 0.1 < stuck.float().mean() < 0.5
    assert not torch.allclose(model[0].weight, target)
    optimizer = PulsedOptimizer(model, error_threshold=0.0, input_threshold=0.0)
    train(model, optimizer, points(60))
    for place, g in enumerate(held_by(model[0])):
        assert torch.equal(g[stuck[place]], pair.stuck_at[place][stuck[place]])


def test_writing_by_pulses_leaves_the_error_of_rounding_and_of_the_devices():
    weight = torch.linspace(-1, 1, 21).view(3, 7)
    for variation, bound in ((0.0, 2 * 0.5 / 64 + 1e-6), (0.3, None)):
        device = SynapseDevice(SoftBounds(64), SoftBounds(64), device_variation=variation)
        pair = ConductancePair(weight.shape, device, write_by_pulses=True, generator=torch.Generator().manual_seed(0))
        error = (pair(*pair.right_inverse(weight)) - weight).abs().max().item()
        assert (1e-4 < error <= 2 * bound) if bound else error > 0.05


def test_devices_differ_by_what_was_asked():
    device = SynapseDevice(SoftBounds(), SoftBounds(), device_variation=0.2)
    speeds = device.draw_speeds((100_000,), torch.Generator().manual_seed(0))
    assert speeds.mean().item() == pytest.approx(1, abs=0.01)
    assert speeds.std().item() == pytest.approx(0.2, abs=0.01)
    assert SynapseDevice(SoftBounds(), SoftBounds(), device_variation=5.0).draw_speeds((1000,)).min() == pytest.approx(
        0.05
    )


def test_pulses_vary_by_what_was_asked():
    device = SynapseDevice(SoftBounds(100), SoftBounds(100), cycle_variation=0.2)
    pair = ConductancePair((1, 50_000), device)
    devices = Conductances(torch.zeros(1, 50_000), torch.zeros(1, 50_000))
    ones = torch.ones(1, 50_000)
    pair.pulse(devices, 4 * ones, 0 * ones, generator=torch.Generator().manual_seed(0))
    assert devices.plus.mean().item() == pytest.approx(0.04, rel=0.01)
    assert devices.plus.std().item() == pytest.approx(0.01 * 0.2 * 2, rel=0.03)  # four independent pulses


def test_a_measured_line_is_the_linear_device(tmp_path):
    rows = "\n".join(f"{10 + n},{74 - n}" for n in range(65))
    path = tmp_path / "device.csv"
    path.write_text(f"potentiation, depression\n{rows}\n")
    device = read_device(path)
    g = torch.rand(50)
    torch.testing.assert_close(device.potentiate(g, 3), LINEAR.potentiate(g, 3))
    torch.testing.assert_close(device.depress(g, 3), LINEAR.depress(g, 3))


def test_a_noisy_table_of_columns_that_differ_is_smoothed(tmp_path):
    path = tmp_path / "device.csv"
    path.write_text("potentiation,depression\n1,9\n3,5\n2.9,3\n6,\n9,\n")
    device = read_device(path)
    levels = [(value - 1) / 8 for value in (1, 2.95, 2.95, 6, 9)]
    assert device.potentiation.levels == pytest.approx(levels)
    assert device.depression.levels == pytest.approx([0, 0.5, 0.75])
    assert device.depress(torch.tensor(0.1)).item() == pytest.approx(0.1)  # measured depression ends above


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("up,down\n1,2\n", CalibrationError, "potentiation"),
        ("", CalibrationError, "no row"),
        ("potentiation,depression\n1,5\n", CalibrationError, "1 values"),
        ("potentiation,depression\n5,5\n1,1\n", CalibrationError, "values that rise"),
        ("potentiation,depression\n1,1\n5,5\n", CalibrationError, "values that fall"),
        ("potentiation,depression\n1,5\nx,1\n", NonFiniteError, "'x'"),
        ("potentiation,depression\n1,5\ninf,1\n", NonFiniteError, "'inf'"),
    ],
)
def test_tables_that_describe_no_device_are_refused(tmp_path, text, error, message):
    path = tmp_path / "device.csv"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_device(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(CalibrationError, match="cannot read"):
        read_device(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SoftBounds(0), "pulses"),
        (lambda: SoftBounds(64, -1.0), "beta"),
        (lambda: Exponential(64, math.nan), "beta"),
        (lambda: Exponential(64, 100.0), "beta"),
        (lambda: Measured([0.5]), "levels"),
        (lambda: Measured([0.0, 0.7, 0.6]), "levels"),
        (lambda: SynapseDevice(SoftBounds(), SoftBounds(), device_variation=-0.1), "device_variation"),
        (lambda: SynapseDevice(SoftBounds(), SoftBounds(), stuck=1.0), "stuck"),
        (lambda: to_analog(mlp(), LINEAR, weight_scale=0.0), "weight_scale"),
        (lambda: synapse(mlp(), points(), refresh_at=0.0), "refresh_at"),
        (lambda: synapse(mlp(), points(), refresh_at=1.1), "refresh_at"),
        (lambda: synapse(mlp(), points(), error_threshold=-1.0), "error_threshold"),
        (lambda: synapse(mlp(), points(), input_threshold=math.nan), "input_threshold"),
        (lambda: synapse(mlp(), points(), accumulation_steps=2), "accumulation_steps"),
    ],
)
def test_options_out_of_range_are_named(make, name):
    with pytest.raises(HyperparameterError, match=name):
        make()


def test_models_that_cannot_be_analog_are_refused_and_unchanged():
    model = mlp()
    with pytest.raises(UnsupportedModelError, match="to_analog"):
        PulsedOptimizer(model)
    with pytest.raises(UnsupportedModelError, match="to_analog"):
        to_digital(model)
    to_analog(model, LINEAR)
    with pytest.raises(UnsupportedModelError, match="is computed"):
        to_analog(model, LINEAR)


def test_weights_beyond_the_range_are_counted():
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, :2] = 3.0
    with pytest.warns(UserWarning, match=r"2 weights are beyond 1\.9"):
        to_analog(model, LINEAR)
    assert model[0].weight[0, 0].item() == pytest.approx(1.9)


def test_an_error_that_is_not_finite_gives_no_pulse():
    model = mlp()
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model)
    before = copy.deepcopy(model.state_dict())
    (model(torch.rand(1, 6)) * torch.nan).sum().backward()
    with pytest.raises(NonFiniteError, match="'0'|'2'"):
        optimizer.step()
    optimizer.step()  # no request is left
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_requests_are_forgotten_with_the_gradients():
    model = mlp()
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model)
    before = copy.deepcopy(model.state_dict())
    model(input=torch.ones(1, 6)).sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model[0](input=torch.ones(1, 6)).sum().backward()
    optimizer.step()
    assert not all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_scaled_loss_and_other_precisions_are_refused():
    model = mlp()
    to_analog(model, LINEAR)
    optimizer, scaler = PulsedOptimizer(model), torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 6)).sum()).backward()
    with pytest.raises(UnsupportedModelError, match="scaled loss.*without a GradScaler"):
        scaler.step(optimizer)
    with pytest.raises(UnsupportedModelError, match="conductances: found torch.bfloat16, expected torch.float32"):
        model.bfloat16()(torch.ones(1, 6).bfloat16())


def test_weights_that_are_read_out_train_on():
    model = mlp(bias=True)
    model[2].weight.requires_grad_(False)
    synapse(model, points(), epochs=1)
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, True]


def test_a_result_without_pulses_says_so():
    result = synapse(mlp(), points(), error_threshold=2.0, epochs=1)
    assert any("2 of 2 layers got no pulse ('0', '2')" in note for note in result.notes)


def test_an_analog_model_can_be_pickled_and_copied():
    model = mlp()
    to_analog(model, STEEP)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(torch.ones(1, 6)), model(torch.ones(1, 6)))
    assert pickle.loads(pickle.dumps(STEEP)) == STEEP


def test_10_soft_bounds_are_those_of_aihwkit():
    curve = SoftBounds(64, 4.0)
    least, highest = curve.rate * curve.bound, curve.bound  # its dw_min and w_max
    g = w = 0.0
    for _ in range(64):
        w += least * (1 - w / highest)
        g = curve.advance(torch.tensor(g, dtype=torch.float64)).item()
        assert g == pytest.approx(w, abs=1e-9)


def test_unidirectional_updates_learn_where_others_do_not():
    images, labels = digits()
    x, scores = images.flatten(1), {}
    for update in ("unidirectional", "bidirectional", "single"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Hardtanh(0, 1), nn.Linear(32, 10, bias=False))
        data = list(zip(x[:300], labels[:300].tolist(), strict=True))
        synapse(model, data, update=update, epochs=2, generator=torch.Generator().manual_seed(0))
        scores[update] = (model(x[300:]).argmax(1) == labels[300:]).float().mean().item()
    assert scores.pop("unidirectional") > max(scores.values()) + 0.15


def test_the_record_says_which_device_it_was(tmp_path):
    path = tmp_path / "device.csv"
    path.write_text("potentiation,depression\n1,9\n5,5\n9,1\n")
    assert synapse(mlp(), points(), curves=path).hyper["curves"] == str(path)
    assert "curves" not in synapse(mlp(), points(), pulses=32).hyper
    assert synapse(mlp(), points(), pulses=32).hyper["pulses"] == 32


def test_a_model_and_its_optimizer_are_copied_together():
    model, data = mlp(bias=True), points(8)
    to_analog(model, SynapseDevice(SoftBounds(64, 3.0), SoftBounds(64, 6.0), cycle_variation=0.3))
    optimizer = PulsedOptimizer(model, 0.1, error_threshold=0.0, generator=torch.Generator().manual_seed(0))
    train(model, optimizer, data[:3])
    functional.cross_entropy(model(data[3][0][None]), torch.tensor([0]), reduction="sum").backward()
    twin, other = copy.deepcopy((model, optimizer))  # without gradients and requests
    optimizer.zero_grad()
    for net, rule in ((model, optimizer), (twin, other)):
        rule.step()
        train(net, rule, data[4:])
    assert optimizer.stats() == other.stats()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    other.close()
    assert not twin[0]._forward_hooks
    assert model[0]._forward_hooks


def test_what_a_copy_of_the_model_sees_is_not_kept():
    model = mlp()
    to_analog(model, LINEAR)
    optimizer = PulsedOptimizer(model, error_threshold=0.0)
    twin = copy.deepcopy(model)
    loss = twin(torch.rand(4, 6)).square().sum()
    assert not loss.requires_grad, "conductances have no gradients but the optimizer's"
    own = PulsedOptimizer(twin, error_threshold=0.0)
    for _ in range(3):
        train(twin, own, points(1))
    orphans = [hook.__self__ for hook in twin[0]._forward_hooks.values() if hook.__self__ not in own._watched]
    assert orphans
    assert not any(orphan.seen for orphan in orphans)
    assert not any(watched.seen for watched in optimizer._watched)
    del optimizer
    assert not model(torch.rand(4, 6)).requires_grad
