"""WAGLE: the numbered checks of its specification, its bad input, and the promise that frozen means bit-identical."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.training import fit
from weightsmith.forget import (
    WeightMask,
    WeightScores,
    apply_delta,
    attribute_weights,
    masked_updates,
    unlearn,
    wagle,
)
from weightsmith.forget._shared.sets import overlap
from weightsmith.testing import samples, tiny

pytestmark = pytest.mark.filterwarnings("ignore:gamma", "ignore:.*not used by any sample")


class Planted(nn.Module):
    """Three weights; samples are gradients, so that g_f and g_r are what the specification gives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -2.0, 0.1]))

    def forward(self, x):
        # cross-entropy of (s, -s) at class 0 has the slope -2 sigmoid(-2 s) along s: -1 at s = 0
        s = x @ (self.weight - self.weight.detach())
        return torch.stack([s, -s], -1)


FORGET = [(-torch.tensor([1.0, 0.1, -3.0]), torch.tensor(0))]
RETAIN = [(-torch.tensor([0.2, 0.0, 0.05]), torch.tensor(0))]


@pytest.mark.parametrize(
    ("gamma", "scores", "top"),
    [
        (math.inf, [0.5, 0.2, 0.3], {0, 2}),
        (1.0, [0.3, 0.2, 0.15], {0, 1}),
        (0.1, [1.5, 0.2, 1.2], {0, 2}),
        (1e-6, [199999.5, 0.2, 149999.7], {0, 2}),
    ],
)
def test_check_1_by_hand(gamma, scores, top):
    found = attribute_weights(Planted(), FORGET, RETAIN, gamma=gamma)
    torch.testing.assert_close(found.scores["weight"], torch.tensor(scores), rtol=1e-6, atol=1e-6)
    assert set(found.top(0.67)["weight"].nonzero().flatten().tolist()) == top


def test_check_2_limits_and_invariances():
    model, _ = tiny("mlp")
    forget, retain = samples("mlp")[:6], samples("mlp")[6:]
    snip = attribute_weights(model, forget, method="snip").scores
    limit = attribute_weights(model, forget, retain, gamma=math.inf).scores
    assert all(torch.equal(snip[name], limit[name]) for name in snip)
    scores = attribute_weights(model, forget, retain, gamma=1.0)
    scaled = WeightScores({name: 3 * score for name, score in scores.scores.items()})
    assert scaled.top(0.4).masks.keys() == scores.top(0.4).masks.keys()
    assert all(torch.equal(scaled.top(0.4)[name], scores.top(0.4)[name]) for name in snip)


def test_a_retain_gradient_of_zero_gives_snip_for_every_gamma():
    for gamma in (1e-6, 1.0):
        found = attribute_weights(Planted(), FORGET, [(torch.zeros(3), torch.tensor(0))], gamma=gamma)
        torch.testing.assert_close(found.scores["weight"], torch.tensor([0.5, 0.2, 0.3]))


@pytest.mark.parametrize("density", [0.0, 1 / 108, 0.5, 1.0])
def test_check_3_masks_have_exactly_as_many_ones(density):
    scores = attribute_weights(tiny("mlp")[0], samples("mlp")[:4], samples("mlp")[4:])
    mask = scores.top(density)
    assert mask.count == int(density * scores.size)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "Adafactor": lambda p: Adafactor(p, lr=0.01, relative_step=False, weight_decay=0.1),
}


def steps(model, optimizer, count):
    for number in range(count):
        x = torch.rand(4, 12, generator=torch.Generator().manual_seed(number))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("warm", [False, True])
def test_checks_3_and_4_masked_weights_are_bit_identical(name, dtype, warm):
    model = tiny("mlp")[0].train()
    steps_model = model if dtype == torch.float32 else model.float()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    if warm:
        steps(steps_model, optimizer, 3)
    generator = torch.Generator().manual_seed(0)
    mask = {n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    with masked_updates(model, optimizer, mask):
        steps(model, optimizer, 10)
    for key, after in model.state_dict().items():
        assert torch.equal(after[~mask[key]], before[key][~mask[key]])
        assert not torch.equal(after, before[key])
    now = copy.deepcopy(model.state_dict())
    steps(model, optimizer, 1)
    assert any(not torch.equal(now[key][~mask[key]], value[~mask[key]]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_check_3_density_0_changes_nothing_and_density_1_is_the_optimizer_itself(name):
    model = tiny("mlp")[0].train()
    start = copy.deepcopy(model.state_dict())
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    with masked_updates(
        model, optimizer, {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    ):
        steps(model, optimizer, 10)
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())
    plain, masked = (copy.deepcopy(model) for _ in range(2))
    steps(plain, OPTIMIZERS[name](list(plain.parameters())), 10)
    optimizer = OPTIMIZERS[name](list(masked.parameters()))
    with masked_updates(
        masked, optimizer, {n: torch.ones_like(p, dtype=torch.bool) for n, p in masked.named_parameters()}
    ):
        steps(masked, optimizer, 10)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in masked.state_dict().items())


def test_clipping_sees_masked_gradients_only():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with masked_updates(model, optimizer, {"weight": torch.tensor([[True, False]])}):
        model(torch.tensor([[3.0, 4.0]])).sum().backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 1.0).item() == 3.0


def test_gradients_of_frozen_weights_that_are_not_finite_reach_no_other():
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    with masked_updates(model, optimizer, {"weight": torch.tensor([[True, False]])}):
        model(torch.tensor([[3.0, math.inf]])).sum().backward()
        assert model.weight.grad.tolist() == [[3.0, 0.0]]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert model.weight[0, 1] == before[0, 1]
    assert model.weight[0, 0].item() == pytest.approx(before[0, 0].item() - 1, abs=1e-5)


def test_a_mask_of_zeros_by_name_stops_gradient_ascent():
    """A mask that reached no parameter had let all of them move (traps, section A)."""
    model = tiny("mlp")[0]
    before = copy.deepcopy(model.state_dict())
    mask = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    unlearn(model, samples("mlp")[:8], samples("mlp")[8:], objective="ascent", mask=mask, learning_rate=0.1, epochs=10)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(LayerNotFoundError, match="the mask names 'nowhere'"):
        unlearn(model, samples("mlp"), samples("mlp"), mask={**mask, "nowhere": mask["0.bias"]})
    with pytest.raises(LayerNotFoundError, match="nothing for 1 trainable parameters such as '0.bias'"):
        unlearn(model, samples("mlp"), samples("mlp"), mask={n: m for n, m in mask.items() if n != "0.bias"})
    with pytest.raises(ShapeError, match="'0.bias'"):
        unlearn(model, samples("mlp"), samples("mlp"), mask={**mask, "0.bias": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="boolean"):
        unlearn(model, samples("mlp"), samples("mlp"), mask={**mask, "0.bias": torch.ones(16)})


def test_the_mask_comes_from_the_weights_passed_in():
    trained, fresh = tiny("mlp")[0], tiny("mlp")[0]
    fit(trained, samples("mlp"), epochs=20, learning_rate=0.01)
    data = samples("mlp")
    ours, theirs = (attribute_weights(m, data[:8], data[8:]).top(0.3) for m in (trained, fresh))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_check_7_identical_batches_score_like_one():
    model = tiny("mlp")[0]
    one = attribute_weights(model, samples("mlp")[:4], samples("mlp")[4:8], batch_size=4)
    many = attribute_weights(model, samples("mlp")[:4] * 5, samples("mlp")[4:8] * 3, batch_size=4)
    for name, score in one.scores.items():
        torch.testing.assert_close(many.scores[name], score, rtol=1e-4, atol=1e-6)


def test_check_8_accumulation_is_in_float32():
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, x):
            s = x @ (self.weight - 1.0)
            return torch.stack([s, -s], -1)

    data = [(torch.full((1,), -1e-3), torch.tensor(0))] * 4096
    score = attribute_weights(Slope(), data, method="saliency", batch_size=1).scores["weight"]
    assert score.dtype == torch.float32
    assert abs(4096 * score.item() - 4.096) < 1e-2  # 1e-3 itself is rounded to bfloat16 once
    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(4096):
        total += torch.tensor(1e-3, dtype=torch.bfloat16)
    assert total.item() == 0.5


def test_ties_go_to_the_first():
    mask = WeightScores({"a": torch.ones(2, 2), "b": torch.ones(3)}).top(5 / 7)
    assert mask["a"].all()
    assert mask["b"].tolist() == [True, False, False]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "qwen3_moe", "t5", "bert", "vit"])
def test_every_parameter_has_a_score_tied_ones_once(architecture):
    model, data = tiny(architecture)[0], samples(architecture)
    scores = attribute_weights(model, data[:4], data[4:8])
    assert scores.scores.keys() == dict(model.named_parameters()).keys()
    assert all(score.dtype == torch.float32 and bool((score >= 0).all()) for score in scores.scores.values())


def test_frozen_parameters_are_left_out_and_named():
    model = tiny("mlp")[0]
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in attribute_weights(model, samples("mlp")[:4], samples("mlp")[4:]).scores
    result = wagle(model, samples("mlp")[:4], samples("mlp")[4:], controls=False)
    assert any("0.weight" in note for note in result.notes)


def test_scores_restore_gradients_and_modes():
    model = tiny("mlp")[0].train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    attribute_weights(model, samples("mlp")[:4], samples("mlp")[4:])
    assert model.training
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())


def test_batches_without_labels_are_skipped_and_counted():
    data = samples("llama")
    empty = {**data[0], "labels": torch.full_like(data[0]["labels"], -100)}
    model = tiny("llama")[0]
    scores = attribute_weights(model, [empty, data[1]], data[2:4], batch_size=1)
    plain = attribute_weights(model, [data[1]], data[2:4], batch_size=1)
    assert scores.skipped == 1
    assert all(torch.equal(scores.scores[name], plain.scores[name]) for name in plain.scores)
    with pytest.raises(CalibrationError, match="the forget set has no label that counts"):
        attribute_weights(model, [empty], data[2:4])


def test_gamma_out_of_balance_is_said():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = attribute_weights(tiny("mlp")[0], samples("mlp")[:4], samples("mlp")[4:], gamma=1e-9)
    assert found.balance > 100
    assert "the weights themselves play no part" in str(caught[0].message)


def bad_gradient():
    model = nn.Sequential(nn.Linear(12, 4))
    model[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    return model


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, d: attribute_weights(m, [], d), CalibrationError, "the forget set is empty"),
        (lambda m, d: attribute_weights(m, d, []), CalibrationError, "the retain set is empty"),
        (lambda m, d: unlearn(m, [], d), CalibrationError, "the forget set is empty"),
        (lambda m, d: unlearn(m, d, []), CalibrationError, "the retain set is empty"),
        (lambda m, d: wagle(m, d, d, density=1.2), HyperparameterError, "density"),
        (lambda m, d: wagle(m, d, d, density=0.0), HyperparameterError, "density"),
        (lambda m, d: wagle(m, d, d, gamma=0.0), HyperparameterError, "gamma"),
        (lambda m, d: wagle(m, d, d, beta=-1.0), HyperparameterError, "beta"),
        (lambda m, d: wagle(m, d, d, retain_weight=-1.0), HyperparameterError, "retain_weight"),
        (lambda m, d: wagle(m, d, d, objective="po"), HyperparameterError, "without a tokenizer"),
        (lambda m, d: wagle(m, d, d[:1]), CalibrationError, "at least 2"),
        (lambda m, d: attribute_weights(m.requires_grad_(False), d, d), UnsupportedModelError, "only frozen"),
        (lambda m, d: attribute_weights(bad_gradient(), d, d), NonFiniteError, r"'0.weight' at batch 0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(tiny("mlp")[0], samples("mlp"))


def test_quantized_weights_are_refused():
    model = tiny("mlp")[0]
    model.register_parameter("packed", nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False))
    with pytest.raises(UnsupportedModelError, match="quantized parameters such as 'packed'"):
        attribute_weights(model, samples("mlp"), samples("mlp"))


def test_masks_on_disk_are_bits(tmp_path):
    mask = attribute_weights(tiny("mlp")[0], samples("mlp")[:4], samples("mlp")[4:]).top(0.5)
    mask.save(tmp_path / "mask.safetensors")
    loaded = WeightMask.load(tmp_path / "mask.safetensors")
    assert loaded.keys() == mask.keys()
    assert all(torch.equal(loaded[name], mask[name]) for name in mask)
    with pytest.raises(CheckpointError, match="exists"):
        mask.save(tmp_path / "mask.safetensors")
    with pytest.raises(CheckpointError, match="no sparse delta"):
        apply_delta(tiny("mlp")[0], tmp_path / "mask.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_delta_gives_the_unlearned_model_exactly(tmp_path, dtype):
    model = tiny("llama")[0].to(dtype)
    base, data = copy.deepcopy(model), samples("llama")
    result = wagle(
        model,
        data[:4],
        data[4:],
        density=0.3,
        learning_rate=1e-3,
        controls=False,
        save_delta=tmp_path / "d.safetensors",
    )
    assert 0 < result.totals["changed"] <= 0.3
    apply_delta(base, tmp_path / "d.safetensors")
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in model.state_dict().items())
    wagle(base, data[:4], data[4:], controls=False, save_delta=tmp_path / "d.safetensors")  # an older delta is replaced
    (tmp_path / "other.safetensors").write_bytes(b"something else")
    with pytest.raises(CheckpointError):
        wagle(base, data[:4], data[4:], save_delta=tmp_path / "other.safetensors")


def test_what_changes_is_inside_the_mask_and_controls_do_not_leak():
    data = samples("llama")
    with_controls, alone = tiny("llama")[0], tiny("llama")[0]
    before = copy.deepcopy(alone.state_dict())
    first = wagle(with_controls, data[:4], data[4:], density=0.2, learning_rate=1e-3)
    wagle(alone, data[:4], data[4:], density=0.2, learning_rate=1e-3, controls=False)
    assert all(torch.equal(v, alone.state_dict()[k]) for k, v in with_controls.state_dict().items())
    for name, parameter in alone.named_parameters():
        row = next(row for row in first.layers if row["layer"] == name)
        assert float((parameter != before[name]).float().mean()) <= row["density"] + 1e-6
    names = {"forgotten", "retained", "neither"}
    assert {key.split(": ")[0] for key in first.curves} == {*(f"probability, {n}" for n in names), "training loss"}
    assert {key.split(": ")[1] for key in first.curves} == {"all weights", "random mask", "wagle"}


def test_learning_rate_too_small_is_reported_as_nothing_forgotten():
    data = samples("mlp")
    result = wagle(tiny("mlp")[0], data[:8], data[8:], learning_rate=1e-9, controls=False)
    assert any("Nothing was forgotten" in note for note in result.notes)


def test_retain_weight_zero_is_said_and_the_damage_is_measured():
    data = samples("mlp")
    result = wagle(tiny("mlp")[0], data[:8], data[8:], retain_weight=0.0, controls=False)
    assert any("Nothing was retained on purpose" in note for note in result.notes)
    assert {"probability_retained", "probability_neither"} <= result.after.keys()


def test_too_long_ascent_is_reported_as_collapse():
    model, data = tiny("mlp")[0], samples("mlp")
    fit(model, data, epochs=60, learning_rate=0.02)
    forget, rest = [s for s in data if s[1] == 0], [s for s in data if s[1] != 0]
    result = wagle(
        model,
        forget,
        rest,
        objective="ascent",
        density=1.0,
        learning_rate=0.1,
        epochs=60,
        clip_norm=None,
        controls=False,
    )
    assert result.after["membership_auc"] < 0.1
    assert any("less likely than samples never seen" in note for note in result.notes)


def test_statistics_of_batch_normalization_do_not_leak_from_the_controls_and_are_in_the_delta(tmp_path):
    data, base = samples("cnn"), tiny("cnn")[0]
    with_controls, alone = copy.deepcopy(base), copy.deepcopy(base)
    wagle(with_controls, data[:4], data[4:], learning_rate=1e-3, save_delta=tmp_path / "delta.safetensors")
    wagle(alone, data[:4], data[4:], learning_rate=1e-3, controls=False)
    apply_delta(base, tmp_path / "delta.safetensors")
    for name, value in with_controls.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
        assert torch.equal(value, base.state_dict()[name]), name


def test_samples_in_both_sets_are_noted_and_a_density_without_weights_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    data = [(torch.randn(4), torch.tensor(n % 2)) for n in range(24)]
    result = wagle(model, data[:4], data[2:], controls=False)
    assert "also to be forgotten" in " ".join(result.notes)
    assert "also to be forgotten" not in " ".join(wagle(model, data[:4], data[4:], controls=False).notes)
    with pytest.raises(HyperparameterError, match="at least 1 of 58 weights"):
        wagle(model, data[:4], data[4:], density=1e-6)


def test_padding_does_not_hide_that_samples_are_in_both_sets():
    ids = torch.tensor([5, 6, 7])
    short = {"input_ids": ids, "attention_mask": torch.ones(3, dtype=torch.long), "labels": ids}
    padded = {key: nn.functional.pad(value, (0, 2)) for key, value in short.items()}
    other = {**padded, "input_ids": torch.tensor([5, 6, 8, 0, 0])}
    assert overlap([short], [padded, other]) == 1
