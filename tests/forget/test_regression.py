"""Blindspot and Gaussian unlearning: the numbered checks of their specification, and its lines of bad input."""

from __future__ import annotations

import copy
import inspect
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Subset
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from weightsmith.cli.main import app
from weightsmith.core.data import Samples, collate
from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.results import Result
from weightsmith.forget import (
    AttentionTaps,
    attention_difference,
    attention_map,
    blindspot,
    finetune_on_retain,
    gaussian,
    membership_share,
    paired_distance,
    partial_exposure,
    predict_values,
    random_targets,
    relearn_batches,
    sample_errors,
    svc_membership_share,
    wagle,
    wasserstein_distance,
)
from weightsmith.forget._blindspot import Flagged, blindspot_loss
from weightsmith.forget._shared.attention import tapped_layers
from weightsmith.forget._shared.regression import distance_of
from weightsmith.forget._shared.sets import overlap
from weightsmith.testing import Snapshot, check_transform, samples, tiny

PARTS = (("forget", 0, 8), ("retain", 8, 24))


def net(seed=0, outputs=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, outputs))


def data(count=24, seed=0, outputs=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return [(row, row.sum().expand(outputs).clone()) for row in x]


def blindspot_alone(
    model: nn.Module, forget: Samples, retain: Samples, *, generator: torch.Generator | None = None
) -> Result:
    """Make the helper as well, which the contract would give."""
    return blindspot(model, forget, retain, batch_size=8, generator=generator)


def loss_on(model, helper, forget, retain, *, loss="l1", attention_weight=50.0, layers="auto"):
    """The loss of one batch of all samples."""
    names = tapped_layers(model, layers) if attention_weight else []
    taps = AttentionTaps(model, names), AttentionTaps(helper, names)
    objective = blindspot_loss(model, helper, distance_of(loss), taps, dict.fromkeys(names, 1.0), attention_weight)
    flagged = Flagged(forget, retain)
    return objective(model, collate([flagged[index] for index in range(len(flagged))]))


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("shift", [0.0, 1.5, -2.0])
def test_check_1_wasserstein_distance(shift):
    a = torch.randn(50)
    assert wasserstein_distance(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 3, 5])) == pytest.approx(4 / 3)
    assert wasserstein_distance(a, a + shift) == pytest.approx(abs(shift), abs=1e-6)
    assert wasserstein_distance(a, a[torch.randperm(50)] + shift) == pytest.approx(abs(shift), abs=1e-6)
    b = torch.randn(50)
    assert wasserstein_distance(a, b) == pytest.approx(float((a.sort()[0] - b.sort()[0]).abs().mean()), rel=1e-5)
    assert paired_distance(a, b) >= wasserstein_distance(a, b)


def test_check_2_attention_by_hand():
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    y = torch.tensor([[[[0.0, 1.0]], [[0.0, 1.0]]]])
    torch.testing.assert_close(attention_map(x), torch.tensor([[0.928477, 0.371391]]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention_map(y), torch.tensor([[0.0, 1.0]]))
    assert attention_difference(x, y).item() == pytest.approx(0.628609, abs=1e-6)
    assert attention_difference(x, 3 * x).item() == pytest.approx(0, abs=1e-12)
    assert attention_difference(x, -x).item() == 0
    for _ in range(20):
        a, b = torch.randn(2, 5, 3, 4, 4)
        assert 0 <= attention_difference(a, b).item() <= 2 / 16


def test_check_3_all_retained_is_the_ordinary_step():
    model, helper, retain = net(), net(1), data()
    loss = loss_on(model, helper, [], retain)
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    x, y = collate(retain)
    ordinary = (model(x) - y).abs().mean()
    ordinary.backward()
    torch.testing.assert_close(loss, ordinary)
    for ours, theirs in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_check_3_labels_to_forget_are_never_used():
    model, helper = net(), net(1)
    forget = [(x, torch.full_like(y, math.nan)) for x, y in data()]
    assert loss_on(model, helper, forget, []).isfinite()
    loss = loss_on(model, helper, forget, data(seed=1))
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model))
    result = blindspot(net(), forget[:8], data(seed=1), helper=helper, attention_weight=1.0)
    assert result.totals["steps"] == 1
    assert math.isnan(result.before["error_forgotten"])


def test_check_4_loss_is_the_mean_over_samples():
    model, helper = net(), net(1)
    forget, retain = data(7), data(13, seed=1)
    loss = loss_on(model, helper, forget, retain, loss="mse", attention_weight=0.0)
    parts = []
    for which, rows in (("forget", forget), ("retain", retain)):
        x, y = collate(rows)
        target = helper(x) if which == "forget" else y
        parts.append((model(x) - target).square().mean())
    torch.testing.assert_close(loss, 7 / 20 * parts[0] + 13 / 20 * parts[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ["l1", "mse", "huber"])
def test_check_5_a_helper_equal_to_the_network_teaches_nothing(loss):
    model = net()
    before = Snapshot(model)
    value = loss_on(model, copy.deepcopy(model), data(), [], loss=loss)
    value.backward()
    assert value.item() == 0
    assert all(not gradient.any() for gradient in gradients(model))
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not [change for change in before.changes(model) if "grad" not in change]


def test_check_6_the_helper_stays_bit_identical():
    model, _ = tiny("cnn_regression")
    helper = nn.Sequential(*copy.deepcopy(model), nn.Dropout(0.5)).train()
    before = Snapshot(helper)
    rows = samples("cnn_regression", 24)
    blindspot(model, rows[:8], rows[8:], helper=helper, epochs=2, batch_size=8)
    assert not before.changes(helper)
    assert all(parameter.grad is None for parameter in helper.parameters())


def test_check_7_random_targets():
    count = 100_000
    y = 3 + 2 * torch.randn(count)
    forget = [(torch.zeros(1), value) for value in y[: count // 2]]
    retain = [(torch.zeros(1), value) for value in y[count // 2 :]]
    drawn = random_targets(forget, retain, generator=torch.Generator().manual_seed(0))
    n = len(drawn)
    assert abs(float(torch.corrcoef(torch.stack([drawn, y[:n]]))[0, 1])) < 4 / math.sqrt(n)
    assert abs(float(drawn.mean() - y.mean())) < 3 * float(y.std()) / math.sqrt(n)
    assert abs(float(drawn.std() - y.std())) < 3 * float(y.std()) / math.sqrt(2 * n)
    again = random_targets(forget, retain, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    three = [(torch.zeros(1), torch.tensor([value])) for value in (1.0, 2.0, 3.0)]
    normal = torch.randn(1, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = random_targets(three[:1], three[1:], generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, (2 + 1.0 * normal).float())  # the sample standard deviation is 1


def test_check_7_other_draws():
    forget, retain = data(50), data(50, seed=1)
    kept = torch.stack([y for _, y in retain])
    found = random_targets(forget, retain, targets="retained", generator=torch.Generator().manual_seed(0))
    assert {*found.flatten().tolist()} <= {*kept.flatten().tolist()}
    clipped = random_targets(forget * 20, retain, clip=True, generator=torch.Generator().manual_seed(0))
    assert kept.min() <= clipped.min() <= clipped.max() <= kept.max()


def test_check_7_retained_labels_are_untouched():
    forget, retain = data(8), data(16, seed=1)
    before = [y.clone() for _, y in (*forget, *retain)]
    gaussian(net(), forget, retain)
    assert all(torch.equal(y, old) for (_, y), old in zip((*forget, *retain), before, strict=True))


def test_check_8_vectors_have_a_gradient():
    x = torch.randn(6, 5, requires_grad=True)
    attention_difference(x, torch.randn(6, 5)).backward()
    assert x.grad.abs().max() > 1e-4


def test_check_9_membership_of_equal_distributions_is_a_half():
    generator = torch.Generator().manual_seed(0)
    members, others, forgotten = torch.rand(3, 2000, generator=generator)
    assert membership_share(members, others, forgotten) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("share", [membership_share, svc_membership_share])
def test_membership_by_errors_that_are_not_finite_is_refused(share):
    with pytest.raises(NonFiniteError, match="errors of members hold NaN"):
        share(torch.full((3,), float("nan")), torch.rand(3), torch.rand(3))


def test_check_9_both_attackers_give_one_order():
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    members, others = 0.5 * torch.rand(300, generator=generator), torch.rand(300, generator=generator)
    shares = [
        [share(members, others, scale * torch.rand(300, generator=generator)) for scale in (0.5, 0.8, 1.0, 2.0)]
        for share in (membership_share, svc_membership_share)
    ]
    for found in shares:
        assert found == sorted(found, reverse=True)


def test_check_10_relearning_changes_no_network_of_the_caller():
    model = net().train()
    before = Snapshot(model)
    known = net()
    finetune_on_retain(known, data(64), epochs=60, batch_size=16, learning_rate=1e-2)
    bound = 1.05 * float(sample_errors(known, data(16)).mean())
    slow = relearn_batches(model, data(64), data(16), bound, batch_size=16, epochs=200)
    assert not before.changes(model)
    assert slow > relearn_batches(known, data(64), data(16), bound, batch_size=16) == 0
    assert relearn_batches(model, data(64), data(16), 0.0, batch_size=64, epochs=1) is None


def test_predictions_on_forgotten_samples_become_the_helpers():
    everything = data(256)
    forget, retain = ([each for each in everything if (each[1] > 1) == wanted] for wanted in (True, False))
    model = net()
    finetune_on_retain(model, everything, epochs=40, batch_size=32, learning_rate=1e-2)
    helper = partial_exposure(model, retain, epochs=20, batch_size=32)
    start = wasserstein_distance(predict_values(model, forget), predict_values(helper, forget))
    result = blindspot(model, forget, retain, helper=helper, epochs=20, batch_size=32, learning_rate=3e-3)
    assert result.before["wasserstein_to_helper"] == pytest.approx(start)
    assert result.after["wasserstein_to_helper"] < start / 3
    assert result.after["error_retained"] < 0.3
    assert [row["layer"] for row in result.layers] == ["1", "3"]
    assert all(row["attention_after"] < row["attention_before"] for row in result.layers)
    assert not any("Nothing was forgotten" in note for note in result.notes)


def test_a_run_without_a_helper_makes_one():
    rows = data(40)
    result = blindspot_alone(net(), rows[:8], rows[8:])
    assert result.totals["helper_steps"] == 2 * 4  # 28 samples, of which four are in neither set, in batches of 8
    assert result.totals["helper_error_neither"] > 0


def test_a_weak_helper_is_said():
    rows = data(256)
    model = net()
    finetune_on_retain(model, rows, epochs=60, batch_size=32, learning_rate=1e-2)
    result = blindspot(model, rows[:32], rows[32:], helper_epochs=1, helper_learning_rate=1e-6)
    assert any("The helper is weak" in note for note in result.notes)


def test_nothing_forgotten_is_said():
    rows = data(64)
    result = blindspot(net(), rows[:8], rows[8:], learning_rate=1e-9)
    assert any("Nothing was forgotten" in note for note in result.notes)


# --- bad input


def test_batches_without_one_kind_skip_its_term():
    model, helper = net(), net(1)
    assert loss_on(model, helper, [], data(3)).isfinite()
    assert loss_on(model, helper, data(3), []).isfinite()
    blindspot(model, data(2), data(16, seed=1), helper=helper, batch_size=1)


@pytest.mark.parametrize("method", [blindspot, gaussian])
def test_an_empty_forget_set_changes_nothing_and_warns(method):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="The forget set is empty"):
        result = method(model, [], data())
    assert "nothing was done" in result.notes[0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_empty_retain_set_is_refused():
    with pytest.raises(
        CalibrationError, match=r"retain set is empty.*This method needs data to retain; gradient ascent"
    ):
        blindspot(net(), data(), [])
    for method in (gaussian, blindspot):
        with pytest.raises(CalibrationError, match="retain set is empty"):
            method(net(), data(), [])


@pytest.mark.parametrize("method", [blindspot, gaussian])
def test_samples_in_both_sets_are_refused(method):
    rows = data()
    with pytest.raises(CalibrationError, match="found 3"):
        method(net(), rows[:8], rows[5:])
    with pytest.raises(CalibrationError, match="found 1"):
        method(net(), Subset(rows, range(8)), Subset(rows, range(7, 24)))


@pytest.mark.parametrize("method", [blindspot, gaussian])
def test_samples_of_other_are_in_neither_set(method):
    forget, retain, other = (data(8, seed=seed) for seed in (0, 1, 2))
    for name, rows in {"forget": forget, "retain": retain}.items():
        with pytest.raises(CalibrationError, match=f"samples in both the {name} and the other set: found 1"):
            method(net(), forget, retain, other=[*other, rows[3]])


def test_samples_are_the_same_by_all_of_their_values_in_any_container():
    def image(value, size=64):
        pixels = np.zeros((size, size), np.float32)
        pixels[30:34, 30:34] = value
        return pixels

    rows = [(image(value), np.float32([0.5])) for value in range(4)]
    assert overlap(rows[:2], rows[2:]) == 0
    assert overlap([(np.array([1.0]), 1)], [(np.array([1.0 + 1e-10]), 1)]) == 0
    copies = [(rows[0][0].astype(np.float64), torch.tensor([0.5])), (rows[1][0].tolist(), [0.5])]
    assert overlap(rows[:2], copies) == 2
    assert overlap([(torch.tensor([2**53]), 1)], [(torch.tensor([2**53 + 1]), 1)]) == 0
    assert overlap([([1.0, 2.0], 1)], [(torch.tensor([1.0, 2.0]), torch.tensor(1)), ([1.0, 2.0], 2)]) == 1


@pytest.mark.parametrize("method", [blindspot, gaussian])
@pytest.mark.parametrize("label", [torch.tensor(1.0), torch.ones(2), torch.ones(1, 1)])
def test_shapes_are_never_broadcast(method, label):
    forget, retain = ([(x, label.clone()) for x, _ in data(8, seed=seed)] for seed in (0, 1))
    with pytest.raises(ShapeError, match=r"outputs of shape \(1, 1\), expected labels of shape \(1, 1\)"):
        method(net(), forget, retain)


def test_whole_numbers_are_targets_where_shapes_agree():
    rows = [(x, torch.tensor([n % 5])) for n, (x, _) in enumerate(data())]
    assert gaussian(net(), rows[:8], rows[8:]).totals["steps"] == 1
    assert blindspot(net(), rows[:8], rows[8:]).totals["steps"] == 1


def test_layers_that_return_tuples_are_tapped_at_their_first_tensor():
    class Recurrent(nn.Module):
        def __init__(self, batch_first):
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, batch_first=batch_first), nn.Linear(6, 1)

        def forward(self, x):
            states = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))[0]
            return self.head(states[:, -1] if self.rnn.batch_first else states[-1])

    rows = [(torch.randn(5, 4), torch.randn(1)) for _ in range(24)]
    for batch_first in (True, False):
        model = Recurrent(batch_first)
        result = blindspot(model, rows[:8], rows[8:], batch_size=6)
        assert [row["layer"] for row in result.layers] == ["rnn"]
        with AttentionTaps(model, ["rnn"]).recording(torch.ones(24, dtype=torch.bool)) as maps:
            model(torch.stack([x for x, _ in rows]))
        assert maps["rnn"].shape == (24, 6)  # the mean over time


def test_networks_whose_layers_differ_are_refused():
    def conv(padding):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=padding), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
        )

    rows = [(torch.randn(3, 8, 8), torch.randn(1)) for _ in range(24)]
    with pytest.raises(ShapeError, match="layer '1': attention maps of the two networks: found .*36.*expected .*64"):
        blindspot(conv(1), rows[:8], rows[8:], helper=conv(0))
    blindspot(conv(1), rows[:8], rows[8:], helper=conv(0), attention_weight=0.0)
    with pytest.raises(LayerNotFoundError, match="no layer '1' to compare.*attention_weight to 0"):
        blindspot(net(), data()[:8], data()[8:], helper=nn.Sequential(nn.Linear(4, 1)))
    with pytest.raises(ShapeError):
        blindspot(net(), data()[:8], data()[8:], helper=net(outputs=2), attention_weight=0.0)


def test_a_map_without_energy_is_zero():
    zero, x = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    difference = attention_difference(zero, x)
    difference.backward()
    assert difference.item() == pytest.approx(1 / 16)
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_are_float32(dtype):
    assert attention_map((300 * torch.randn(2, 3, 4, 4)).to(dtype)).dtype == torch.float32
    assert attention_map((300 * torch.ones(2, 3, 4, 4)).to(dtype)).isfinite().all()


def test_bf16_autocast_and_batch_norm():
    model, _ = tiny("cnn_regression")
    rows = samples("cnn_regression", 24)
    result = blindspot(model.train(), rows[:1], rows[1:], batch_size=8, precision="bf16")
    assert math.isfinite(result.after["error_forgotten"])


def test_measures_refuse_augmentation():
    class Augmented:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.randn(4), torch.zeros(1)

    with pytest.raises(CalibrationError, match="another input on each reading.*Switch the augmentation off"):
        predict_values(net(), Augmented())


def test_operations_in_place_do_not_change_what_is_recorded():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 1))
    x = torch.randn(5, 4)
    with AttentionTaps(model, ["0"]).recording(torch.ones(5, dtype=torch.bool)) as maps:
        model(x).sum().backward()
    torch.testing.assert_close(maps["0"], attention_map(model[0](x)))
    result = blindspot(model, data()[:8], data()[8:], layers="0")
    assert result.layers[0]["layer"] == "0"


def test_a_layer_that_runs_twice_has_two_maps():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.act, self.head = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.act(self.body(self.act(self.body(x)))))

    result = blindspot(Twice(), data()[:8], data()[8:])
    assert [row["layer"] for row in result.layers] == ["act", "act#2"]


def test_networks_that_cannot_start_anew_need_a_helper():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.factor * x

    model = nn.Sequential(nn.Linear(4, 1), Scale())
    with pytest.raises(UnsupportedModelError, match=r"1 \(Scale\).*pass a helper"):
        blindspot(model, data()[:8], data()[8:])
    blindspot(model, data()[:8], data()[8:], helper=copy.deepcopy(model))


def test_the_helper_is_new_and_has_nothing_frozen():
    model = net()
    model[0].requires_grad_(False)
    helper = partial_exposure(model, data(), learning_rate=1e-9)
    assert not torch.equal(helper[0].weight, model[0].weight)
    assert all(parameter.requires_grad for parameter in helper.parameters())
    bert, _ = tiny("bert_regression")
    new = partial_exposure(bert, samples("bert_regression"), learning_rate=1e-9)
    assert type(new) is type(bert)
    assert not torch.equal(new.classifier.weight, bert.classifier.weight)


def test_the_network_is_no_helper_of_itself():
    model = net()
    with pytest.raises(HyperparameterError, match="the network itself"):
        blindspot(model, data()[:8], data()[8:], helper=model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "pinball", "quantiles": [0.5, 1.5]}, "numbers in"),
        ({"attention_weight": -1.0}, "attention_weight"),
        ({"layer_weights": [1.0]}, r"one for each of \['1', '3'\]"),
        ({"layer_weights": [1.0, -1.0]}, "numbers >= 0"),
        ({"helper_epochs": 0}, "helper_epochs"),
        ({"helper_learning_rate": math.inf}, "helper_learning_rate"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(HyperparameterError, match=message):
        blindspot(net(), data()[:8], data()[8:], **options)
    with pytest.raises(LayerNotFoundError, match="no layer matches 'conv"):
        blindspot(net(), data()[:8], data()[8:], layers="conv*")


def test_gaussian_refuses_targets_it_cannot_draw_from():
    rows = data()
    with pytest.raises(CalibrationError, match="at least 2, for a standard deviation"):
        random_targets(rows[:1], rows[:0])
    with pytest.raises(NonFiniteError, match="targets of the samples"):
        gaussian(net(), [(x, torch.full((1,), math.nan)) for x, _ in rows[:8]], rows[8:])


def test_unknown_words_are_refused():
    with pytest.raises(HyperparameterError, match="'l1', 'mse', 'huber' or 'pinball'"):
        inspect.unwrap(distance_of)("l3")
    with pytest.raises(HyperparameterError, match="'normal' or 'retained'"):
        inspect.unwrap(gaussian)(net(), [], [], targets="uniform")


def test_quantiles():
    rows = [(x, y.squeeze()) for x, y in data(64)]
    model = net(outputs=3)
    finetune_on_retain(model, rows, loss="pinball", epochs=100, batch_size=16, learning_rate=1e-2)
    found = predict_values(model, rows)
    assert (found.diff(dim=1).mean(0) > 0).all()  # the quantiles are in order
    blindspot(model, rows[:8], rows[8:], loss="pinball")
    gaussian(model, rows[:8], rows[8:], loss="pinball", quantiles=[0.2, 0.5, 0.8])
    with pytest.raises(ShapeError, match="2 quantiles in the last axis"):
        gaussian(model, rows[:8], rows[8:], loss="pinball", quantiles=[0.2, 0.5])


def test_classifiers_and_language_models_are_refused_by_name():
    for name in ("bert", "llama"):
        rows = samples(name)
        with pytest.raises(UnsupportedModelError, match="is no regression.*num_labels=1, or problem_type='regression'"):
            gaussian(tiny(name)[0], rows[:4], rows[4:])


def test_several_outputs_of_a_hugging_face_model():
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=64,
        num_labels=3,
        problem_type="regression",
    )
    rows = [{"input_ids": torch.randint(64, (6 + n % 3,)), "labels": torch.randn(3)} for n in range(16)]
    result = blindspot(BertForSequenceClassification(config), rows[:4], rows[4:])
    assert [row["layer"] for row in result.layers] == ["bert.encoder.layer.0"]


@pytest.mark.parametrize("name", ["mlp_regression", pytest.param("vit_regression", marks=pytest.mark.slow)])
def test_the_contract_holds_when_the_helper_is_trained_as_well(name):
    check_transform(blindspot_alone, models=[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["blindspot", "gaussian"])
def test_from_the_command_line(tmp_path, name):
    rows = {part: samples("bert_regression", 24)[start:stop] for part, start, stop in PARTS}
    for part, found in rows.items():
        save_file({key: torch.stack([row[key] for row in found]) for key in found[0]}, tmp_path / f"{part}.safetensors")
    tiny("bert_regression")[0].save_pretrained(tmp_path / "model")
    words = ["forget", name, str(tmp_path / "model"), str(tmp_path / "out")]
    for part in ("forget", "retain"):
        words += [f"--{part}", str(tmp_path / f"{part}.safetensors")]
    words += ["--evaluation", str(tmp_path / "retain.safetensors"), "--json", str(tmp_path / "run.json")]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["after"].keys() >= {"mean_absolute_error", "error_forgotten", "error_retained", "error_neither"}
    assert "accuracy" not in told["after"]
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.num_labels == 1


@pytest.mark.parametrize("name", ["mlp_regression", "bert_regression"])
def test_methods_on_classes_refuse_real_numbers(name):
    model, rows = tiny(name)[0], samples(name)
    before = Snapshot(model)
    with pytest.raises(
        CalibrationError, match="labels: found real numbers, expected classes. Use a method for regressions"
    ):
        wagle(model, rows[:4], rows[4:])
    assert not before.changes(model)
