"""Phases: the numbered checks of the method's specification, its bad input, the published table, traps of its field."""

import inspect
import io
import json
import math
import os
import pickle
import re
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from weightsmith.analyze import (
    BezierCurve,
    LandscapeMetrics,
    PhaseZoo,
    classify_phase,
    connectivity,
    hessian_summary,
    landscape_metrics,
    largest_eigenvalue,
    linear_cka,
    phase_sensitivity,
    phases,
    trace_estimate,
    train_curve,
    train_phase_zoo,
)
from weightsmith.analyze._phases.curve import loss_and_error, rate_factor
from weightsmith.analyze._phases.hessian import _Hessian as Hessian, twice_differentiable
from weightsmith.core.data import batched
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.models import recalibrate_batchnorm
from weightsmith.core.training import fit
from weightsmith.predict import WeightZoo


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(samples=96, classes=3):
    x = drawn(samples, 4)
    return [(row, int(label)) for row, label in zip(x, x[:, :classes].argmax(1), strict=True)]


DATA = problem()


def perceptron(seed=0, width=5, norm=False):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(4, width), *middle, nn.Tanh(), nn.Linear(width, 3))


def trained(seed=0, width=8, norm=False, epochs=8):
    model = perceptron(seed, width, norm)
    fit(model, DATA, epochs=epochs, batch_size=16, learning_rate=1e-2, seed=seed)
    return model


def llama(seed=0, tied=True):
    torch.manual_seed(seed)
    small = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(
        LlamaConfig(**small, vocab_size=11, num_hidden_layers=1, tie_word_embeddings=tied, initializer_range=0.2)
    ).eval()


def exact_hessian(model, x, y):
    parameters = dict(model.named_parameters())

    def loss(*values):
        return functional.cross_entropy(functional_call(model, dict(zip(parameters, values, strict=True)), (x,)), y)

    rows = torch.autograd.functional.hessian(loss, tuple(parameters.values()))
    sizes = [p.numel() for p in parameters.values()]
    return torch.cat(
        [torch.cat([rows[i][j].reshape(sizes[i], sizes[j]) for j in range(len(sizes))], 1) for i in range(len(sizes))]
    )


class Kept:
    """Everything of a model that a measure must leave as it was."""

    def __init__(self, model):
        self.model = model
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.modes = [module.training for module in model.modules()]
        self.flags = [p.requires_grad for p in model.parameters()]

    def check(self):
        assert all(torch.equal(tensor, self.state[name]) for name, tensor in self.model.state_dict().items())
        assert self.modes == [module.training for module in self.model.modules()]
        assert self.flags == [p.requires_grad for p in self.model.parameters()]
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in self.model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())


# --- mode connectivity and the curve


def test_connectivity_is_the_mean_of_the_ends_minus_the_farthest_error():
    assert connectivity([0, 0, 0.014, 0, 0]) == pytest.approx(-0.014)
    assert connectivity([11.71, 12.04, 13.10, 11.92, 11.55]) == pytest.approx(-1.47)
    assert connectivity([5, 3, 2, 3, 5]) == 3
    assert connectivity([4, 4, 4, 4, 4]) == 0
    with pytest.raises(HyperparameterError):
        connectivity([1, 2])


def test_a_curve_has_its_coefficients_and_its_ends_bit_by_bit():
    ends = [{"w": drawn(100, seed=seed) * 1e3} for seed in (1, 2)]
    curve = BezierCurve(*ends, {"w": drawn(100, seed=3)})
    expected = 0.5625 * ends[0]["w"] + 0.375 * curve.middle["w"] + 0.0625 * ends[1]["w"]
    assert torch.allclose(curve.at(0.25)["w"], expected, rtol=1e-6)
    assert torch.equal(curve.at(0.0)["w"], ends[0]["w"])
    assert torch.equal(curve.at(1.0)["w"], ends[1]["w"])


def test_a_curve_starts_as_the_straight_line():
    model, (first, second) = perceptron(), (perceptron(seed).state_dict() for seed in (1, 2))
    curve = train_curve(model, first, second, DATA, epochs=1, batch_size=32, learning_rate=0.0)
    for t in (0.25, 0.5, 0.75):
        for name, value in curve.at(t).items():
            assert torch.allclose(value, (1 - t) * first[name] + t * second[name], atol=1e-6)


def test_learning_rates_of_a_curve_are_those_of_the_taxonomy():
    factors = [rate_factor(epoch, 10) for epoch in range(1, 11)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01, 0.01])


def test_training_bends_a_curve_around_a_barrier():
    """Two networks that differ by the order of their hidden units: the line has a barrier, the curve hardly any."""
    model = trained(width=12, epochs=40)
    turned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    turned["0.weight"], turned["0.bias"] = turned["0.weight"][order], turned["0.bias"][order]
    turned["2.weight"] = turned["2.weight"][:, order]
    line = train_curve(model, model.state_dict(), turned, DATA, epochs=1, batch_size=32, learning_rate=0.0)
    curve = train_curve(model, model.state_dict(), turned, DATA, epochs=60, batch_size=32)
    assert line.connectivity < -5
    assert curve.connectivity > line.connectivity / 2


def test_ends_of_a_curve_with_batch_normalization_have_the_networks_own_errors():
    models = [trained(seed, norm=True) for seed in (0, 1)]
    kept = [Kept(model) for model in models]
    curve = train_curve(models[0], *(model.state_dict() for model in models), DATA, epochs=2, batch_size=32)
    batches = batched(DATA, 32)
    assert [curve.errors[0], curve.errors[-1]] == [100 * loss_and_error(model, batches)[1] for model in models]
    for each in kept:
        each.check()


def test_statistics_of_batch_normalization_are_weighted_by_the_sizes_of_batches():
    model, x = nn.Sequential(nn.BatchNorm1d(3)), drawn(25, 3)
    batches = x.split(10)
    recalibrate_batchnorm(model, batches)
    means = torch.stack([batch.mean(0) for batch in batches])
    variances = torch.stack([batch.var(0) for batch in batches])
    weights = torch.tensor([10.0, 10.0, 5.0])[:, None] / 25
    assert torch.allclose(model[0].running_mean, (weights * means).sum(0), atol=1e-6)
    assert torch.allclose(model[0].running_var, (weights * variances).sum(0), atol=1e-6)
    assert model[0].momentum == 0.1


def test_tied_weights_share_the_middle_of_a_curve():
    models = [llama(seed) for seed in (0, 1)]
    ids = torch.randint(11, (32, 5), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    curve = train_curve(models[0], *(m.state_dict() for m in models), data, epochs=1, batch_size=8, learning_rate=0.01)
    assert "lm_head.weight" not in curve.middle
    assert "model.embed_tokens.weight" in curve.middle
    assert len(curve.errors) == 5


def test_what_has_no_place_in_a_curve_is_refused():
    model = perceptron()
    ends = (model.state_dict(), perceptron(1).state_dict())
    for options in ({"scheduler": "cosine"}, {"warmup": 0.1}, {"epochs": 0}):
        with pytest.raises(HyperparameterError):
            train_curve(model, *ends, DATA, **{"batch_size": 32, **options})
    with pytest.raises(CalibrationError, match="batch_size"):
        train_curve(model, *ends, DATA, batch_size=97)
    with pytest.raises(ShapeError):
        train_curve(model, ends[0], perceptron(1, width=6).state_dict(), DATA, batch_size=32)
    with pytest.raises(ShapeError):
        train_curve(model, ends[0], {}, DATA, batch_size=32)
    with pytest.raises(NonFiniteError):
        train_curve(model, *ends, DATA, batch_size=32, learning_rate=1e8)


# --- the Hessian


def test_every_draw_gives_the_trace_of_a_diagonal_matrix():
    diagonal = torch.tensor([3.0, -5.0, 0.5, 1.0])
    found = trace_estimate(lambda rows: rows * diagonal, diagonal, probes=30)
    assert found.value == -0.5
    assert found.error == 0
    assert found.probes == 10


def test_the_largest_eigenvalue_keeps_its_sign():
    diagonal = torch.tensor([1.0, -3.0, 2.0, 0.1])
    found = largest_eigenvalue(lambda rows: rows * diagonal, diagonal)
    assert found.value == pytest.approx(-3, abs=1e-5)
    assert found.converged
    turned = torch.linalg.qr(drawn(4, 4))[0]
    matrix = turned * diagonal @ turned.T
    assert largest_eigenvalue(lambda rows: rows @ matrix, diagonal).value == pytest.approx(-3, abs=1e-5)


def test_an_eigenvalue_that_has_not_converged_says_so():
    diagonal = torch.linspace(-1, 1, 500)
    found = largest_eigenvalue(lambda rows: rows * diagonal, diagonal, steps=3)
    assert not found.converged
    assert found.products == 3
    eigenvalues = diagonal.double() - found.value
    assert eigenvalues.abs().min() <= found.residual + 1e-6


def test_a_negative_trace_stops_at_its_error_and_lies_within_it():
    values = torch.cat([torch.full((200,), -1.0), torch.full((100,), 0.5)])
    turned = torch.linalg.qr(drawn(300, 300))[0]
    matrix = turned * values @ turned.T
    found = trace_estimate(lambda rows: rows @ matrix, values, probes=400, tolerance=0.02)
    assert found.probes < 400
    assert found.error <= 0.02 * abs(found.value)
    assert abs(found.value + 150) < 4 * found.error


def test_a_basis_leaves_less_to_draw():
    values = torch.cat([torch.tensor([100.0, 80.0, -60.0]), torch.full((297,), 0.01)])
    turned = torch.linalg.qr(drawn(300, 300))[0]
    matrix = turned * values @ turned.T
    top = largest_eigenvalue(lambda rows: rows @ matrix, values, steps=20)
    plain = trace_estimate(lambda rows: rows @ matrix, values, probes=50, tolerance=1e-9)
    deflated = trace_estimate(
        lambda rows: rows @ matrix, values, probes=50, tolerance=1e-9, basis_KP=top.basis_KP, captured=top.captured
    )
    assert deflated.error < plain.error / 20
    assert abs(deflated.value - float(values.sum())) < 4 * deflated.error + 1e-3


def test_a_small_memory_restarts_the_iterations():
    values = torch.linspace(0, 1, 400)
    values[7] = -4
    found = largest_eigenvalue(lambda rows: rows * values, values, memory=8 * 400 * 4 / 1e9, steps=60)
    assert len(found.basis_KP) <= 8
    assert found.converged
    assert found.value == pytest.approx(-4, abs=1e-3)


@pytest.mark.parametrize("memory", [4.0, 1e-6], ids=["graphs kept", "graphs made anew"])
def test_hessian_measures_are_those_of_the_exact_hessian(memory):
    model = perceptron(norm=True).double()
    model[1].running_mean.copy_(drawn(5)), model[1].running_var.copy_(drawn(5).square() + 0.5)
    model.train()
    x, y = drawn(30, 4).double(), torch.arange(30) % 3
    kept = Kept(model)
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]  # of unequal size: labels count equally
    found = hessian_summary(model, batches, steps=100, probes=20, tolerance=1e-9, memory=memory)
    kept.check()
    exact = exact_hessian(model.eval(), x, y)
    with twice_differentiable():
        assert torch.allclose(Hessian(model, batches, memory)(torch.eye(len(exact)).double()), exact, atol=1e-10)
    values = torch.linalg.eigvalsh(exact)
    assert found.top_eigenvalue == pytest.approx(float(values[values.abs().argmax()]), rel=1e-5 if memory == 4 else 0.2)
    assert abs(found.trace - float(values.sum())) < 4 * found.trace_error + 1e-5


def test_the_order_of_hidden_units_changes_no_measure():
    model = trained()
    turned = perceptron(width=8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        turned[0].weight.copy_(model[0].weight[order]), turned[0].bias.copy_(model[0].bias[order])
        turned[2].weight.copy_(model[2].weight[:, order]), turned[2].bias.copy_(model[2].bias)
    batches = batched(DATA, 96)
    with twice_differentiable():
        first, second = (Hessian(m, batches, 1.0)(torch.eye(67)) for m in (model, turned))
    assert float(first.trace()) == pytest.approx(float(second.trace()), rel=1e-4)
    values = [hessian_summary(m, batches, steps=100, probes=2, tolerance=1e-5).top_eigenvalue for m in (model, turned)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert loss_and_error(model, batches) == pytest.approx(loss_and_error(turned, batches), rel=1e-5)
    x = torch.stack([row for row, _ in DATA])
    assert linear_cka(model(x).detach(), turned(x).detach()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_a_language_model_with_fused_attention_has_second_derivatives(kind):
    model = llama().to(kind)
    ids = torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(0))
    kept = Kept(model)
    found = hessian_summary(model, [{"input_ids": ids[:4]}, {"input_ids": ids[4:]}], steps=30, probes=10)
    kept.check()
    assert all(map(math.isfinite, (found.trace, found.top_eigenvalue)))
    assert found.converged
    if kind == torch.float32:
        names = dict(model.named_parameters())

        def loss(*values):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                logits = functional_call(model, dict(zip(names, values, strict=True)), (ids,)).logits
            return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

        rows = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in names.values()))
        trace = sum(float(rows[i][i].reshape(p.numel(), -1).trace()) for i, p in enumerate(names.values()))
        assert abs(found.trace - trace) < 4 * found.trace_error + 1e-3 * abs(trace)


def test_recurrent_and_attention_layers_have_second_derivatives():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            states = self.rnn(x)[0]
            return self.head(self.attention(states, states, states)[0][:, -1])

    torch.manual_seed(0)
    found = hessian_summary(Reader(), [(drawn(8, 5, 4), torch.arange(8) % 3)], steps=20, probes=4)
    assert math.isfinite(found.trace)


def test_hessians_of_bad_input_are_refused():
    model, batch = perceptron(), (drawn(6, 4), torch.arange(6) % 3)
    for options in ({"probes": 1}, {"steps": 0}, {"tolerance": 0.0}, {"memory": -1.0}):
        with pytest.raises(HyperparameterError):
            hessian_summary(model, [batch], **options)
    with pytest.raises(CalibrationError, match="real numbers"):
        hessian_summary(model, [(batch[0], torch.rand(6))])
    with pytest.raises(CalibrationError, match="no label"):
        hessian_summary(model, [(batch[0], torch.full((6,), -100))])
    with pytest.raises(CalibrationError):
        hessian_summary(model, [batch[0]])
    with pytest.raises(HyperparameterError):
        hessian_summary(model, [(batch[0], torch.full((6,), 3))])
    with pytest.raises(NonFiniteError):
        hessian_summary(model, [(batch[0] * math.nan, batch[1])])


def test_a_network_without_second_derivatives_is_refused():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * 2

    batch = (drawn(6, 3), torch.arange(6) % 3)
    with pytest.raises(UnsupportedModelError, match="does not depend"):
        hessian_summary(Unused(), [batch])

    class Distances(nn.Module):
        def __init__(self):
            super().__init__()
            self.centers = nn.Parameter(drawn(3, 3))

        def forward(self, x):
            return torch.cdist(x, self.centers, p=3.0)

    with pytest.raises(UnsupportedModelError, match="second derivative"):
        hessian_summary(Distances(), [batch])


def test_parameters_without_curvature_count_as_zero():
    """The bias of a loss that is linear in it, beside a layer that bends."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.idle = nn.Linear(3, 3), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(0)
    model, batch = Half(), (drawn(6, 3), torch.arange(6) % 3)
    found, alone = (hessian_summary(m, [batch], steps=40, tolerance=1e-6) for m in (model, model.layer))
    assert found.top_eigenvalue == pytest.approx(alone.top_eigenvalue, rel=1e-4)


# --- similarity of outputs


def test_similarity_does_not_see_rotations_scales_and_shifts():
    x = drawn(60, 5)
    turned = torch.linalg.qr(drawn(5, 5, seed=1))[0]
    for unbiased in (True, False):
        for other in (x, x @ turned, 3 * x + 2):
            assert linear_cka(x, other, unbiased=unbiased) == pytest.approx(1, abs=1e-5)
    x, y = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    assert linear_cka(x, y, unbiased=False) == pytest.approx(0, abs=1e-12)


def test_similarity_of_independent_features_is_near_zero():
    assert linear_cka(drawn(4000, 5), drawn(4000, 5, seed=1), unbiased=False) < 0.01
    few, others = drawn(64, 400), drawn(64, 400, seed=1)
    assert linear_cka(few, others, unbiased=False) > 0.8, "biased where the features are many"
    assert abs(linear_cka(few, others)) < 0.05


def test_features_that_are_no_matrices_are_refused():
    for x in (drawn(8), drawn(8, 3, 3)):
        with pytest.raises(ShapeError, match=r"expected \(samples, features\) each"):
            inspect.unwrap(linear_cka)(x, x)


def test_the_unbiased_similarity_is_that_of_the_matrices_of_samples():
    for shape in ((8, 3), (8, 20), (258, 4)):
        x, y = drawn(*shape), drawn(*shape, seed=1)
        x, y = x + 5, y + x
        kernels = [z @ z.T for z in (x - x.mean(0), y - y.mean(0))]
        first, second = (k.double() - torch.diag(k.double().diagonal()) for k in kernels)
        n = len(x)

        def dependence(a, b, n=n):
            product = torch.trace(a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2))
            return product - 2 / (n - 2) * (a.sum(0) @ b.sum(0))

        expected = dependence(first, second) / (dependence(first, first) * dependence(second, second)).sqrt()
        assert linear_cka(x, y) == pytest.approx(float(expected), rel=1e-4)


def test_similarity_of_bad_input_is_refused():
    x = drawn(8, 3)
    with pytest.raises(CalibrationError, match="at least 4"):
        linear_cka(x[:3], x[:3])
    with pytest.raises(CalibrationError):
        linear_cka(torch.ones(8, 3), x)
    with pytest.raises(NonFiniteError):
        linear_cka(x, x * math.inf)


# --- phases


SIX_ROWS = [
    (0.926, -6.22, 0.486, "I"),
    (0.085, 2.71, 0.574, "II"),
    (0.002, -11.64, 0.431, "III"),
    (0.001, -0.01, 0.634, "IV-A"),
    (0.002, -0.01, 0.762, "IV-B"),
    (0.001, 0.00, 0.788, "IV-B"),
]


@pytest.mark.parametrize("tau_loss", [0.05, None])
@pytest.mark.parametrize(("loss", "mc", "cka", "phase"), SIX_ROWS)
def test_published_rows_have_their_phases(loss, mc, cka, phase, tau_loss):
    assert classify_phase(LandscapeMetrics(loss, mc, cka), tau_loss=tau_loss) == phase


def golden_cells():
    data = os.environ.get("WEIGHTSMITH_DATA")
    file = Path(data or "") / "phase-taxonomy" / "results.tar.gz"
    if data is None or not file.is_file():
        pytest.skip("the published measures are not here: set WEIGHTSMITH_DATA to a folder with phase-taxonomy/")

    class Numbers(pickle.Unpickler):
        def find_class(self, module, name):
            if module.split(".")[0] == "numpy" or (module, name) == ("collections", "defaultdict"):
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"{module}.{name}")

    wanted = ("loss_acc.pkl", "loss_acc_test.pkl", "CKA_mixup_alpha_16.0.pkl", "curve_test.npz", "hessian.pkl")
    found = defaultdict(dict)
    with tarfile.open(file) as archive:
        for member in archive:
            place = re.fullmatch(r".*subset_10/bs_(\d+)/lr_decay/ResNet18_w(\d+)/metrics/(.+)", member.name)
            if place and place[3] in wanted:
                raw = io.BytesIO(archive.extractfile(member).read())
                value = np.load(raw)["tr_err"] if place[3].endswith("npz") else Numbers(raw).load()
                found[int(place[1]), int(place[2])][place[3]] = value
    cells = {}
    for (batch, width), files in found.items():
        if len(files) < len(wanted) or width == 1:  # the table starts at width 2
            continue
        alike = files["CKA_mixup_alpha_16.0.pkl"]["representation_similarity"]
        cells[batch, width] = LandscapeMetrics(
            train_loss=float(np.mean([each["loss"] for each in files["loss_acc.pkl"].values()])),
            mode_connectivity=connectivity(files["curve_test.npz"].tolist()),
            cka=float(np.mean([alike[i][j][-1] for i in alike for j in alike[i] if i != j])),
            test_accuracy=float(np.mean([each["accuracy"] for each in files["loss_acc_test.pkl"].values()])),
            hessian_trace=float(np.mean([each["trace"] for each in files["hessian.pkl"].values()])),
        )
    return cells


@pytest.mark.parametrize("tau_loss", [0.05, None])
def test_the_published_table_has_its_counts(tau_loss):
    cells = golden_cells()
    assert len(cells) == 169
    found = {place: classify_phase(metrics, tau_loss=tau_loss) for place, metrics in cells.items()}
    assert Counter(found.values()) == {"I": 42, "II": 25, "III": 34, "IV-A": 42, "IV-B": 26}
    accuracy = {
        phase: np.mean([cells[place].test_accuracy for place, label in found.items() if label == phase])
        for phase in ("I", "II", "III", "IV-A", "IV-B")
    }
    assert list(accuracy.values()) == pytest.approx([74.0, 81.1, 80.6, 85.3, 88.3], abs=0.06)
    assert cells[16, 2].train_loss == pytest.approx(0.926, abs=5e-4)
    assert math.log(cells[64, 128].hessian_trace) == pytest.approx(3.74, abs=5e-3)
    assert [found[64, width] for width in (8, 11, 16, 23, 32, 128)] == ["I", "III", "IV-A", "IV-A", "IV-B", "IV-B"]
    assert [found[1024, width] for width in (3, 4, 11, 16, 128)] == ["I", "III", "III", "IV-A", "IV-A"]
    assert {found[16, width] for width in (3, 8, 32, 128)} == {"II"}


def test_divergence_is_no_phase():
    assert classify_phase(LandscapeMetrics(math.nan, 0.0, 0.9)) == "diverged"
    assert classify_phase(LandscapeMetrics(2.3, 0.0, 0.9, diverged=True)) == "diverged"
    broken = perceptron()
    broken[0].weight.data[0, 0] = math.nan
    metrics = landscape_metrics([broken, perceptron(1)], DATA, batch_size=32, epochs=1)
    assert metrics.diverged
    assert classify_phase(metrics) == "diverged"
    silent = [perceptron(seed) for seed in (0, 1)]
    for model in silent:
        nn.init.zeros_(model[2].weight)
    assert landscape_metrics(silent, DATA, batch_size=32, epochs=1).diverged, "no better than guessing"


def test_thresholds():
    metrics = LandscapeMetrics(0.06, -1.1, 0.9, classes=10)
    assert classify_phase(metrics) == "I"
    assert classify_phase(metrics, best_loss=0.05) == "III"
    assert classify_phase(metrics, tau_mc=1.2) == "II"
    assert phase_sensitivity(metrics)["tau_mc"] == {0.5: "I", 0.8: "I", 1.0: "I", 1.25: "II", 2.0: "II"}
    assert phase_sensitivity(metrics, tau_mc=60.0)["tau_mc"] == dict.fromkeys((0.5, 0.8, 1.0, 1.25, 2.0), "II")
    for options in ({"tau_loss": 0.0}, {"tau_mc": -1.0}, {"tau_cka": 1.0}, {"best_loss": -0.1}, {"tau_cka": math.nan}):
        with pytest.raises(HyperparameterError):
            classify_phase(metrics, **options)


def test_measures_of_networks_leave_them_unchanged():
    models = [trained(seed, norm=True) for seed in range(3)]
    models[1].eval()
    kept = [Kept(model) for model in models]
    test = problem()[:40]
    metrics = landscape_metrics(models, DATA, test, epochs=2, batch_size=32, probes=4)
    for each in kept:
        each.check()
    assert [(pair.first, pair.second) for pair in metrics.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert metrics.gap == pytest.approx(metrics.train_accuracy - metrics.test_accuracy)
    expected = math.sqrt(
        sum(
            float((a - b).detach().square().sum())
            for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)
        )
    )
    assert metrics.pairs[0].distance == pytest.approx(expected, rel=1e-5)
    again = landscape_metrics(models, DATA, test, epochs=2, batch_size=32, probes=4)
    assert again.pairs == metrics.pairs
    assert again.networks == metrics.networks


def test_groups_of_networks_that_cannot_be_measured_are_refused():
    with pytest.raises(CalibrationError, match="two or more"):
        landscape_metrics([perceptron()], DATA)
    with pytest.raises(ShapeError, match="network 2"):
        landscape_metrics([perceptron(), perceptron(width=6)], DATA, batch_size=32)
    with pytest.raises(CalibrationError, match="batch_size"):
        landscape_metrics([perceptron(), perceptron(1)], DATA, batch_size=200)
    with pytest.raises(CalibrationError, match="labels"):
        landscape_metrics([perceptron(), perceptron(1)], [row for row, _ in DATA], batch_size=32)
    with pytest.raises(CalibrationError, match="two classes"):
        landscape_metrics([perceptron(), perceptron(1)], [(row, 0) for row, _ in DATA], batch_size=32)
    with pytest.raises(UnsupportedModelError):
        landscape_metrics([nn.ReLU(), nn.ReLU()], DATA, batch_size=32)
    with pytest.raises(HyperparameterError):
        landscape_metrics([perceptron(), perceptron(1)], DATA, batch_size=32, hessian_samples=-1)


def test_a_batch_of_one_class_is_handled():
    data = sorted(DATA, key=lambda pair: pair[1])
    metrics = landscape_metrics([trained(0), trained(1)], data, epochs=1, batch_size=16, probes=2)
    assert math.isfinite(metrics.mode_connectivity)


def test_the_command_says_the_phase_and_what_to_change():
    models = [trained(seed, width=16, epochs=10) for seed in range(2)]
    result = phases(models, DATA, DATA, epochs=5, batch_size=32, probes=10)
    assert [row["layer"] for row in result.layers] == ["network 1", "network 2", "1 and 2"]
    assert result.totals["phase"] in ("I", "II", "III", "IV-A", "IV-B")
    assert result.notes[0].startswith(f"Phase {result.totals['phase']}, ")
    assert any("Random vectors of the traces" in note for note in result.notes)
    json.loads(result.to_json())


def test_language_models_are_measured_from_the_best_loss_known():
    ids = torch.randint(11, (32, 5), generator=torch.Generator().manual_seed(0)).sort(1)[0]
    data = [{"input_ids": row, "labels": row} for row in ids]
    models = [llama(seed) for seed in range(2)]
    for model in models:
        fit(model, data, epochs=6, batch_size=8, learning_rate=1e-2)
        model.bfloat16()
    options = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "probes": 2}
    result = phases(models, data, **options)
    assert result.totals["phase"] != "diverged"
    assert any("best_loss" in note for note in result.notes)
    low = phases(models, data, best_loss=0.0, hessian_samples=0, **options)
    assert low.totals["phase"] in ("I", "II")
    assert "hessian_trace" not in low.totals


def test_text_classifiers_with_dropout_are_measured_without_it():
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = torch.randint(16, (32, 4), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": torch.tensor(int(row[0] > 7))} for row in ids]
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(BertForSequenceClassification(BertConfig(**small, vocab_size=16, hidden_dropout_prob=0.3)))
        fit(models[-1].train(), data, epochs=10, batch_size=8, learning_rate=1e-2)
    first, second = (
        landscape_metrics(models, data, epochs=1, batch_size=8, learning_rate=1e-3, hessian_samples=0) for _ in range(2)
    )
    assert first.pairs == second.pairs


# --- zoos


def build(width):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


SHORT = {"train_epochs": 3, "train_batch_size": 16, "probes": 2, "hessian_samples": 32, "epochs": 1, "batch_size": 32}


def test_networks_trained_at_once_are_those_trained_alone(tmp_path):
    """Momentum, weight decay, one cycle, own order: against torch's own optimizer, for two learning rates."""
    zoo = train_phase_zoo(
        build, DATA, DATA, tmp_path, load={"width": [6]}, temperature={"learning_rate": [0.02, 0.1]}, seeds=2, **SHORT
    )
    x, y = torch.stack([row for row, _ in DATA]), torch.tensor([label for _, label in DATA])
    for rate in (0.02, 0.1):
        for seed, state in enumerate(zoo.states(width=6, learning_rate=rate)):
            torch.manual_seed(seed)
            model = build(6)
            optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=18, cycle_momentum=False)
            draw = torch.Generator().manual_seed(seed)
            for _ in range(3):
                for rows in torch.randperm(96, generator=draw).split(16):
                    optimizer.zero_grad()
                    functional.cross_entropy(model(x[rows]), y[rows]).backward()
                    optimizer.step()
                    schedule.step()
            for name, value in model.state_dict().items():
                assert torch.allclose(state[name], value, atol=1e-5)


def test_a_zoo_is_resumed_and_may_grow(tmp_path):
    grid = {"load": {"width": [2, 6]}, "temperature": {"batch_size": [8]}}
    first = train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **SHORT)
    stamp = (tmp_path / "width=2,batch_size=8" / "cell.json").stat().st_mtime_ns
    grid["temperature"] = {"batch_size": [8, 32]}
    zoo = train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **SHORT)
    assert (tmp_path / "width=2,batch_size=8" / "cell.json").stat().st_mtime_ns == stamp
    assert len(first.cells) == 2
    assert len(zoo.cells) == 4
    assert PhaseZoo.open(tmp_path).cells == zoo.cells
    import pandas

    table = pandas.read_parquet(tmp_path / "phases.parquet")
    assert list(table["phase"]) == zoo.phases()
    assert {"width", "batch_size", "train_loss", "cka"} <= set(table.columns)
    assert len(WeightZoo.from_folder(tmp_path / "width=6,batch_size=32")) == 2
    with pytest.raises(CheckpointError, match="another zoo"):
        train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=3, **SHORT)


@pytest.mark.parametrize("other", ["labels", "test", "network", "train"])
def test_cells_of_other_data_networks_and_training_are_refused(other, tmp_path):
    def train(network, training, seed, batch_size):
        pass

    def deeper(width):
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))

    grid = {"load": {"width": [2, 6]}, "temperature": {"batch_size": [8]}}
    train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **SHORT)
    changed = [(row, (label + 1) % 3) for row, label in DATA]
    training, test = changed if other == "labels" else DATA, changed if other == "test" else DATA
    trainer = {"train": train} if other == "train" else {}
    grid["load"] = {"width": [6, 9]}
    with pytest.raises(CheckpointError, match=f"another zoo .* found .'{other.replace('labels', 'training')}"):
        train_phase_zoo(
            deeper if other == "network" else build, training, test, tmp_path, **grid, seeds=2, **trainer, **SHORT
        )
    assert len(PhaseZoo.open(tmp_path).cells) == 2


def test_a_part_of_a_zoo_may_be_asked_for(tmp_path):
    grid = {"load": {"width": [2, 6]}, "temperature": {"batch_size": [8]}}
    train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **SHORT)
    grid["load"] = {"width": [6]}
    zoo = train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **SHORT)
    assert [cell["width"] for cell in zoo.cells] == [6]
    assert [cell["width"] for cell in PhaseZoo.open(tmp_path).cells] == [2, 6]


def test_a_cell_that_was_interrupted_is_not_there(tmp_path):
    grid = {"load": {"width": [2]}, "temperature": {"batch_size": [8]}}
    with pytest.raises(HyperparameterError):
        train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **{**SHORT, "learning_rate": -1.0})
    assert not (tmp_path / "width=2,batch_size=8").exists()


def test_networks_with_batch_normalization_are_trained_by_the_user(tmp_path):
    def normed(width):
        return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))

    def train(network, training, *, seed, weight_decay):
        fit(network, training, epochs=2, batch_size=16, learning_rate=1e-2, weight_decay=weight_decay, seed=seed)

    grid = {"load": {"width": [4]}, "temperature": {"weight_decay": [0.01]}}
    zoo = train_phase_zoo(normed, DATA, DATA, tmp_path / "a", **grid, train=train, seeds=2, **SHORT)
    assert "1.running_mean" in zoo.states(width=4, weight_decay=0.01)[0]
    grid["temperature"] = {"batch_size": [8]}
    with pytest.raises(UnsupportedModelError, match="batch normalization"):
        train_phase_zoo(normed, DATA, DATA, tmp_path / "b", **grid, seeds=2, **SHORT)


def test_a_cell_that_diverges_is_labeled_so(tmp_path):
    grid = {"load": {"width": [4]}, "temperature": {"learning_rate": [0.05, 1e12]}}
    zoo = train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **{**SHORT, "train_epochs": 6})
    assert zoo.phases()[0] != "diverged"
    assert zoo.phases()[1] == "diverged"


def test_a_network_is_put_on_the_map_of_a_zoo(tmp_path):
    grid = {"load": {"width": [2, 8]}, "temperature": {"batch_size": [8, 32]}}
    zoo = train_phase_zoo(build, DATA, DATA, tmp_path, **grid, seeds=2, **SHORT)
    models = []
    for state in zoo.states(width=8, batch_size=8):
        models.append(build(8))
        models[-1].load_state_dict(state)
    result = phases(
        models, DATA, DATA, zoo=tmp_path, load=8, temperature=8, probes=2, hessian_samples=32, epochs=1, batch_size=32
    )
    (picture,) = result.pictures.values()
    assert "yours: 8, 8" in picture
    assert any("Nearest cell of the zoo by measures: width 8, batch_size 8" in note for note in result.notes)
    page = result.report(tmp_path / "report.html").read_text()
    assert "yours: 8, 8" in page
    with pytest.raises(HyperparameterError, match="load and temperature"):
        phases(models, DATA, load=8, temperature=8)
    with pytest.raises(CheckpointError, match="no zoo"):
        phases(models, DATA, zoo=tmp_path / "none")


def test_zoos_of_bad_input_are_refused(tmp_path):
    good = {"load": {"width": [2]}, "temperature": {"batch_size": [8]}}
    for change in (
        {"load": {}},
        {"load": {"width": []}},
        {"load": {"width": [2, 2]}},
        {"temperature": {"dropout": [0.1]}},
        {"seeds": 1},
        {"train_epochs": 0},
    ):
        with pytest.raises(HyperparameterError):
            train_phase_zoo(build, DATA, DATA, tmp_path / "zoo", **{**SHORT, **good, **change})
    with pytest.raises(CalibrationError, match="batch sizes"):
        train_phase_zoo(build, DATA, DATA, tmp_path / "zoo", load={"width": [2]}, temperature={"batch_size": [97]})
    assert not (tmp_path / "zoo").exists()
