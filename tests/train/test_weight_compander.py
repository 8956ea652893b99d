"""Weight compander: the worked numbers, exact start and fold, the bound, and use in every kind of loop."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import transformers
from hypothesis import given, strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

from models import PLAIN, TRANSFORMERS, tiny
from weightsmith.core.data import call
from weightsmith.core.errors import HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.training import fit
from weightsmith.sparsify import wina
from weightsmith.train import compand, weight_compander
from weightsmith.train._weight_compander import (
    SHAPES,
    Compander,
    compander_parameter_groups,
    fold_companders,
    weight_statistics,
)

BOUND = 0.3 * math.pi / 2
"""With slope 2: a = 0.3, b = 0.15."""


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def data():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x[:, :3].argmax(1))


def output(model, batch):
    answer = call(model, batch)
    return answer if isinstance(answer, torch.Tensor) else answer.logits


def psi(v, **options):
    return Compander(BOUND, 2.0, **options).double()(torch.tensor(v, dtype=torch.float64)).item()


def test_worked_values():
    expected = {
        0.05: 0.096525,
        0.15: 0.3 * math.pi / 4,
        1.0: 0.426572,
        10.0: 0.466739,
        0.0: 0.0,
        0.3496683556: 0.3496683556,
    }
    for v, w in expected.items():
        assert psi(v) == pytest.approx(w, abs=1e-6)
        assert psi(-v) == -psi(v)
    inverse = Compander(BOUND, 2.0).double().right_inverse(torch.tensor(0.2, dtype=torch.float64))
    assert inverse.item() == pytest.approx(0.1180264334, abs=1e-8)


def test_worked_derivatives():
    compander = Compander(BOUND, 2.0, learn=True).double()
    a, b = compander.log_a.exp(), compander.log_b.exp()
    for v, slope in ((0.15, 1.0), (0.0, 2.0)):
        point = torch.tensor(v, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.grad(compander(point), point)[0].item() == pytest.approx(slope, rel=1e-6)
    d_log_a, d_log_b = torch.autograd.grad(
        compander(torch.tensor(0.05, dtype=torch.float64)), [compander.log_a, compander.log_b]
    )
    assert (d_log_a / a).item() == pytest.approx(0.3217505544, rel=1e-6)
    assert (d_log_b / b).item() == pytest.approx(-0.6, rel=1e-6)


@pytest.mark.parametrize("function", SHAPES)
def test_gradients_and_the_contract(function):
    compander = Compander(0.4, 3.0, function=function, learn=True).double()
    v = torch.linspace(-0.3, 0.3, 21, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, *_: compander(v), (v, compander.log_a, compander.log_b))
    w = compander(v)
    torch.testing.assert_close(w, -compander(-v))
    assert (w.diff() > 0).all()
    slopes = torch.autograd.grad(w.sum(), v)[0]
    assert slopes.max() == slopes[10] == pytest.approx(3.0, rel=1e-6)
    assert compander(torch.tensor([1e30, -1e30], dtype=torch.float64)).abs().max() <= 0.4 * (1 + 1e-6)
    torch.testing.assert_close(compander.right_inverse(compander(v)), v, rtol=1e-5, atol=1e-7)


def test_one_worked_step():
    model = nn.Linear(1, 1, bias=False)
    parametrize.register_parametrization(model, "weight", Compander(BOUND, 2.0))
    model.parametrizations.weight.original.data.fill_(0.05)
    before = model.weight.item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.weight.sum().backward()
    optimizer.step()
    assert model.parametrizations.weight.original.item() == pytest.approx(0.032, abs=1e-7)
    assert model.weight.item() - before == pytest.approx(-0.0334704, abs=1e-7)


@pytest.mark.parametrize("name", [*TRANSFORMERS, *PLAIN])
@pytest.mark.parametrize("function", ["arctan", "softsign"])
def test_preserve_then_fold_keep_the_function(name, function):
    model, batch = tiny(name)
    keys, before = set(model.state_dict()), output(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tied heads are left out
        compand(model, function=function)
    wrapped = output(model, batch)
    assert (wrapped - before).abs().max() < 2e-6
    fold_companders(model)
    assert torch.equal(output(model, batch), wrapped)
    assert set(model.state_dict()) == keys
    assert not any(isinstance(module, Compander) for module in model.modules())


def test_a_copy_of_a_companded_model_survives_folding():
    model, x = network(), torch.randn(5, 6)
    compand(model)
    copies = [copy.deepcopy(model) for _ in range(2)]
    expected = model(x)
    fold_companders(model)
    for one in (model, copies[0], copy.deepcopy(model)):
        torch.testing.assert_close(one(x), expected)
    fold_companders(copies[0])
    torch.testing.assert_close(copies[1](x), expected)


def test_raw_starts_from_larger_weights():
    model = network()
    old = model[0].weight.detach().clone()
    compand(model, start="raw", slope=3.0)
    assert torch.equal(model[0].parametrizations.weight.original, old)
    small = old.abs() < 0.01 * old.abs().max()
    torch.testing.assert_close(model[0].weight[small], 3 * old[small], rtol=1e-3, atol=0)


def test_without_slope_and_bound_it_is_plain_sgd():
    plain, companded = network(), network()
    with pytest.warns(UserWarning, match="does not push"):
        compand(companded, slope=1.0, bound=1e4)
    for model in (plain, companded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        fit(model, data(), optimizer=optimizer, epochs=3)
    torch.testing.assert_close(companded[0].weight, plain[0].weight, atol=1e-5, rtol=0)


@given(st.floats(0.01, 2.0), st.floats(1.1, 10.0), st.sampled_from(["arctan", "tanh", "softsign", "erf"]))
def test_the_bound_holds_whatever_the_steps(rate, slope, function):
    model = network()
    limits = [2 * model[i].weight.abs().max().item() for i in (0, 2)]
    compand(model, slope=slope, function=function)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    x, y = data().tensors
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for index, limit in zip((0, 2), limits, strict=True):
        assert model[index].weight.abs().max() <= limit * (1 + 1e-6)


def test_decay_alone_shrinks_geometrically_and_zero_stays_zero():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.tensor([[0.0, 0.1, -0.2]])
    compand(model)
    v = model.parametrizations.weight.original.detach().clone()
    optimizer = torch.optim.SGD(compander_parameter_groups(model, lr=0.5, weight_decay=0.1))
    for _ in range(4):
        optimizer.zero_grad()
        (0 * model.weight).sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.parametrizations.weight.original.detach(), v * 0.95**4)
    assert model.weight[0, 0] == 0


def test_learned_companders_move_slowly_and_do_not_decay():
    model = network()
    compand(model, learn=True)
    fast, slow = compander_parameter_groups(model, lr=0.05, weight_decay=0.1)
    assert (len(fast["params"]), fast["lr"], fast["weight_decay"]) == (4, 0.05, 0.1)
    assert (len(slow["params"]), slow["lr"], slow["weight_decay"]) == (4, pytest.approx(0.0005), 0.0)
    before = [p.item() for p in slow["params"]]
    fit(model, data(), optimizer=torch.optim.SGD([fast, slow], momentum=0.9), epochs=20)
    moves = [abs(p.item() - old) for p, old in zip(slow["params"], before, strict=True)]
    assert all(0 < move < 0.5 for move in moves)
    fold_companders(model)
    assert len(list(model.parameters())) == 4


def test_bf16_weights_are_computed_in_float32():
    model = network().bfloat16()
    compand(model)
    v = model[0].parametrizations.weight.original
    assert model[0].weight.dtype == v.dtype == torch.bfloat16
    compander = model[0].parametrizations.weight[0]
    assert torch.equal(model[0].weight, compander(v.float()).bfloat16())


def test_a_plain_checkpoint_loads_into_a_companded_model():
    donor, model = network(), network()
    for parameter in donor.parameters():
        parameter.data *= 1.3
    compand(model)
    model.load_state_dict(donor.state_dict())
    torch.testing.assert_close(model[0].weight, donor[0].weight, atol=1e-6, rtol=0)
    again = network()
    compand(again)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again[0].weight, model[0].weight)
    fold_companders(again)
    again.load_state_dict(donor.state_dict())
    assert torch.equal(again[0].weight, donor[0].weight)


def test_tied_weights_are_left_out_and_stay_tied():
    model, _ = tiny("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    with pytest.warns(UserWarning, match=r"tied weights get no compander: \['lm_head'\]"):
        compand(model)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_without_a_weight_for_a_compander_the_model_is_refused():
    model, _ = tiny("gpt2")
    with pytest.raises(UnsupportedModelError, match=r"one layer alone: found tied weights of \['lm_head'\]"):
        compand(model, include="lm_head")
    model, batch = tiny("gpt2")
    wina(model, [batch])
    for train in (compand, lambda model: weight_compander(model, [(torch.ones(2), 0)])):
        with pytest.raises(UnsupportedModelError, match=r"c_attn.weight' of SparseLinear as their first weight"):
            train(model)


def test_the_layers_that_it_reaches_are_returned():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    assert [layer.name for layer in compand(model)] == ["self_attn.out_proj", "linear1", "linear2"]
    assert isinstance(model.self_attn.in_proj_weight, nn.Parameter)


def test_works_under_autocast_and_cached():
    model, x = network(), torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    compand(model)
    plain = model(x)
    with parametrize.cached():
        assert model[0].weight is model[0].weight
        assert torch.equal(model(x), plain)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=0.05, rtol=0.05)
    half.float().square().sum().backward()
    for layer in (model[0], model[2]):
        assert layer.parametrizations.weight.original.grad.dtype == torch.float32
        assert layer.parametrizations.weight.original.grad.any()


def test_works_in_the_trainer_with_accumulation(tmp_path):
    model, batch = tiny("bert")
    compand(model, learn=True)
    rows = [{"input_ids": ids, "labels": torch.tensor(n % 2)} for n, ids in enumerate(batch["input_ids"])]
    optimizer = torch.optim.SGD(compander_parameter_groups(model, lr=0.05), momentum=0.9)
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    before = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
    fold_companders(model)
    assert (model.bert.encoder.layer[0].output.dense.weight - before).abs().max() > 0
    model.save_pretrained(tmp_path / "plain")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert torch.equal(again.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_the_command_trains_and_folds():
    model, batch = tiny("llama")
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    keys = set(model.state_dict())
    result = weight_compander(model, rows, epochs=4, batch_size=4, generator=torch.Generator().manual_seed(0))
    assert set(model.state_dict()) == keys
    assert len(result.curves["training loss"]) == 8
    assert result.curves["training loss"][-1] < result.curves["training loss"][0]
    assert {row["layer"] for row in result.layers} > {"lm_head", "model.layers.0.self_attn.q_proj"}
    assert all(row["kurtosis_before"] > 0 for row in result.layers)


def test_a_run_that_fails_leaves_the_model_as_it_was():
    model, batch = tiny("llama")
    before = copy.deepcopy(model.state_dict())
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    rows[3]["input_ids"] = rows[3]["input_ids"].float()  # the batch it is in cannot be embedded
    with pytest.raises(RuntimeError):
        weight_compander(model, rows, batch_size=1, epochs=2)
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_statistics():
    model = nn.Linear(100, 100)
    torch.nn.init.normal_(model.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    told = weight_statistics(model)[""]
    assert told["kurtosis"] == pytest.approx(3.0, abs=0.1)
    assert told["dead_share"] == pytest.approx(0.0797, abs=0.01)
    assert told["top_share"] == pytest.approx(0.4326, abs=0.02), "E[z^2; |z| > 1.645]"
    nn.init.zeros_(model.weight)
    assert set(weight_statistics(model)[""].values()) == {0.0}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bound": 0.0}, HyperparameterError, "bound: found 0.0, expected a positive number"),
        ({"bound": float("nan")}, HyperparameterError, "bound: found nan"),
        ({"slope": -1.0}, HyperparameterError, "slope: found -1.0"),
        ({"bound": 0.5}, HyperparameterError, r"\d+ weights of '0' are beyond the bound .* or clamp=True"),
    ],
)
@pytest.mark.filterwarnings("ignore:slope")
def test_bad_hyperparameters_change_nothing(options, error, message):
    model = network()
    with pytest.raises(error, match=message):
        compand(model, **options)
    assert not parametrize.is_parametrized(model[0])


def test_bad_models_are_refused():
    model = network()
    compand(model)
    with pytest.raises(UnsupportedModelError, match="weight of layer '0' is computed"):
        compand(model)
    with pytest.raises(UnsupportedModelError, match="no compander to fold"):
        fold_companders(network())
    broken = network()
    broken[2].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="'2' holds NaN"):
        compand(broken)
    assert not parametrize.is_parametrized(broken[0])


def test_clamp_and_zero_layers():
    model = network()
    largest = model[0].weight.abs().max().item()
    model[2].weight.data.zero_()
    with pytest.warns(UserWarning, match="'2' is all zero"):
        compand(model, bound=0.5, clamp=True)
    assert model[0].weight.abs().max() <= 0.5 * largest
    assert model[2].parametrizations.weight[0].bound == pytest.approx(0.5 / math.sqrt(16))
    assert (model[2].weight == 0).all()


def test_a_frozen_model_has_nothing_to_train():
    with pytest.raises(UnsupportedModelError, match="all parameters are frozen"):
        weight_compander(nn.Linear(2, 2).requires_grad_(False), [(torch.ones(2), 0)])
