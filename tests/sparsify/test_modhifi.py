"""ModHiFi: the numbered checks of its specification, what it cuts, what it refuses."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from inspect import unwrap

import pytest
import torch
import transformers as t
from torch import nn

from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.fidelity import contributions, pair_scores, second_moments
from weightsmith.core.io import load_model, offloaded, save_model
from weightsmith.core.models import Layer, observe
from weightsmith.core.statistics import Gram
from weightsmith.sparsify import compensate, modhifi, select_channels, subset_fidelity
from weightsmith.sparsify._modhifi.selection import Consumer, channel_scores, check_score, explained, reconstruct
from weightsmith.testing import tiny

TWO = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
THREE = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 1.0]])


def random_moments(inputs, seed=0, rows=400):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64) @ mixing
    return x, x.T @ x / rows


def factors(weight_OI, moment_II, keep):
    """The paper's solution: one system per output, for factors on the contributions."""
    new = torch.zeros_like(weight_OI)
    gone = [i for i in range(weight_OI.shape[1]) if i not in keep]
    for c, w in enumerate(weight_OI):
        q = w[:, None] * w * moment_II
        delta = 1 + torch.linalg.solve(q[keep][:, keep], q[keep][:, gone].sum(1))
        new[c, keep] = w[keep] * delta
    return new[:, keep]


# --- the numbered checks


def test_1_scores_by_hand():
    weight = torch.tensor([[2.0, 1.0]])
    saliency, energy, output = contributions(weight, TWO, torch.tensor([[0], [1]]))
    assert output.tolist() == [8.0]
    assert saliency.tolist() == [[5.0, 3.0]]
    assert saliency.sum() == output
    torch.testing.assert_close(pair_scores(weight, TWO, score="fidelity"), torch.tensor([[0.78125, 0.5625]]))
    alpha = saliency / energy
    torch.testing.assert_close(alpha, torch.tensor([[1.25, 1.5]]))
    assert alpha.argmax() != pair_scores(weight, TWO, score="fidelity").argmax()


def test_2_compensation_by_hand():
    new = compensate(torch.tensor([[2.0, 1.0]]), TWO, [0], ridge=0.0)
    torch.testing.assert_close(new, torch.tensor([[2.5]]))
    torch.testing.assert_close(factors(torch.tensor([[2.0, 1.0]]), TWO, [0]), torch.tensor([[2.5]]))


def test_3_three_inputs_by_hand():
    weight = torch.tensor([[1.0, 1.0, 2.0]])
    torch.testing.assert_close(pair_scores(weight, THREE), torch.tensor([[3.0, 5.0, 6.0]]))
    fidelity = pair_scores(weight, THREE, score="fidelity")
    torch.testing.assert_close(fidelity, torch.tensor([[0.321429, 0.892857, 0.642857]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(compensate(weight, THREE, [0, 1], ridge=0.0), torch.tensor([[1 / 3, 7 / 3]]))
    torch.testing.assert_close(subset_fidelity(weight, THREE, [0, 1]), torch.tensor([0.904762]), atol=1e-6, rtol=0)
    plain = explained(Consumer.linear(weight, THREE), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(plain, torch.tensor([0.714286]), atol=1e-6, rtol=0)


def test_4_subset_fidelity_is_monotone_and_the_error_of_a_forward_pass():
    x, moments = random_moments(8)
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(subset_fidelity(weight, moments, range(8)), torch.ones(5, dtype=torch.float64))
    assert subset_fidelity(weight, moments, []).tolist() == [0.0] * 5
    order, before = torch.randperm(8, generator=torch.Generator().manual_seed(2)), torch.zeros(5, dtype=torch.float64)
    for count in range(1, 9):
        now = subset_fidelity(weight, moments, order[:count].sort().values)
        assert (now >= before - 1e-9).all()
        before = now
    keep = torch.tensor([0, 2, 5])
    new = compensate(weight, moments, keep, ridge=0.0)
    y, error = x @ weight.T, x @ weight.T - x[:, keep] @ new.T
    measured = 1 - error.square().sum(0) / y.square().sum(0)
    torch.testing.assert_close(subset_fidelity(weight, moments, keep), measured, atol=1e-5, rtol=0)


def test_5_with_uncorrelated_inputs_the_highest_fidelities_are_the_best_subset():
    generator = torch.Generator().manual_seed(0)
    moments = torch.diag(torch.rand(6, generator=generator) + 0.1)
    weight = torch.randn(1, 6, generator=generator)
    best = max(itertools.combinations(range(6), 3), key=lambda keep: float(subset_fidelity(weight, moments, keep)))
    for score in ("fidelity", "saliency", "energy", "greedy"):
        assert select_channels(weight, moments, 3, score=score).tolist() == list(best)
    torch.testing.assert_close(compensate(weight, moments, best), weight[:, list(best)])


def test_6_duplicate_neurons_are_removed_without_a_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[8:] = model[0].weight[:8]
        model[0].bias[8:] = model[0].bias[:8]
    x = torch.randn(500, 5)
    hidden = model[1](model[0](x)).detach()
    moments = (hidden.T @ hidden / 500)[[0, 8]][:, [0, 8]].double()
    weight = model[2].weight.detach()[:, [0, 8]].double()
    torch.testing.assert_close(compensate(weight, moments, [0], ridge=0.0), weight.sum(1, keepdim=True))
    before = model(x).detach()
    result = modhifi(model, [x], ratio=0.5, score="greedy")
    assert model[2].weight.shape == (3, 8)
    assert result.layers[0]["fidelity"] > 1 - 1e-6
    torch.testing.assert_close(model(x), before, atol=2e-3, rtol=0)  # the ridge of 1e-4 remains
    assert torch.equal(model(x).argmax(1), before.argmax(1))


def masked(model, layer, inputs, removed):
    """The outputs of the model with some inputs of a layer set to zero."""

    def zero(_, args):
        x = args[0].clone()
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        return (x.index_fill(axis, torch.tensor(removed), 0.0),)

    hook = layer.register_forward_pre_hook(zero)
    with torch.no_grad():
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    hook.remove()
    return getattr(out, "logits", out)


class Residual(nn.Module):
    """A stem, a residual block with a depthwise convolution, a concatenation and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.wide, self.wide_norm = nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20)
        self.depthwise, self.depthwise_norm = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False), nn.BatchNorm2d(20)
        self.narrow, self.narrow_norm = nn.Conv2d(20, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.side = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(18, 4)

    def forward(self, x):
        h = self.stem_norm(self.stem(x)).relu()
        inner = self.wide_norm(self.wide(h)).relu()
        inner = self.depthwise_norm(self.depthwise(inner)).relu()
        h = h + self.narrow_norm(self.narrow(inner))
        joined = torch.cat([h, self.side(x).relu()], 1)
        return self.head(joined.relu().mean((2, 3)))


def images(count=16):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def residual():
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        for _ in range(10):
            model(images())  # running statistics that are not 0 and 1
    return model.eval()


@pytest.mark.parametrize("name", ["mlp", "residual", "llama", "gpt2"])
def test_7_the_cut_model_is_the_masked_model(name):
    if name == "mlp":
        torch.manual_seed(0)
        model, inputs = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 3)), torch.randn(64, 6)
        layers = [("2", lambda m: m[2])]
    elif name == "residual":
        model, inputs = residual(), images()
        layers = [("narrow", lambda m: m.narrow)]
    else:
        model, inputs = tiny(name, layers=1)
        path = {"llama": "model.layers.0.mlp.down_proj", "gpt2": "transformer.h.0.mlp.c_proj"}[name]
        layers = [(path, lambda m: m.get_submodule(path))]
    path, get = layers[0]
    model.eval()
    before = copy.deepcopy(model)
    zero = copy.deepcopy(model)
    modhifi(zero, [inputs], ratio=0)
    assert all(torch.equal(a, b) for a, b in zip(zero.state_dict().values(), model.state_dict().values(), strict=True))
    modhifi(model, [inputs], ratio=0.4, score="l2", compensation="none", include=path)
    axis = 0 if name == "gpt2" else 1
    weight = get(before).weight.detach()
    norms = weight.flatten(2).square().sum(-1) if weight.ndim > 2 else weight.square()
    keep = norms.sum(1 - axis).sort(descending=True, stable=True).indices[: get(model).weight.shape[axis]]
    removed = sorted({*range(weight.shape[axis])} - {*keep.tolist()})
    assert len(removed) == round(0.4 * weight.shape[axis])
    expected = masked(before, get(before), inputs, removed)
    with torch.no_grad():
        if name == "residual":  # re-estimated from the same data, the layers after the cut differ
            for norm in ("wide_norm", "depthwise_norm"):
                stays = torch.tensor(sorted(keep.tolist()))
                for attribute in ("running_mean", "running_var"):
                    getattr(getattr(model, norm), attribute).copy_(getattr(getattr(before, norm), attribute)[stays])
            for norm in ("stem_norm", "narrow_norm"):
                getattr(model, norm).load_state_dict(getattr(before, norm).state_dict())
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    torch.testing.assert_close(getattr(out, "logits", out), expected, atol=1e-5, rtol=1e-5)


def test_8_rows_of_the_cholesky_factor_are_the_energies():
    _, moments = random_moments(6)
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = torch.zeros(6, dtype=torch.float64)
    for w in weight:
        factor = torch.linalg.cholesky(w[:, None] * w * moments)
        total += factor.square().sum(1)
    _, energy, _ = contributions(weight, moments, torch.arange(6)[:, None])
    torch.testing.assert_close(energy.sum(0), total)
    torch.testing.assert_close(energy.sum(0), moments.diagonal() * weight.square().sum(0))


def test_9_one_solution_serves_all_outputs():
    _, moments = random_moments(7)
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keep = [0, 3, 4, 6]
    torch.testing.assert_close(compensate(weight, moments, keep, ridge=0.0), factors(weight, moments, keep))
    saliency, energy, output = contributions(weight, moments, torch.arange(7)[:, None])
    weighted = (saliency.square() / energy).sum(0)  # sum over outputs of fidelity times energy
    assert select_channels(weight, moments, 1, score="greedy").item() == weighted.argmax()
    assert output.shape == (5,)


def test_9_a_convolution_of_one_place_is_a_linear_layer():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    conv = nn.Sequential(nn.Conv2d(6, 10, 1), nn.ReLU(), nn.Conv2d(10, 4, 1))
    for a, b in ((0, 0), (2, 2)):
        conv[a].load_state_dict({"weight": linear[b].weight[:, :, None, None], "bias": linear[b].bias})
    x = torch.rand(8, 6, 5, 5)
    modhifi(conv, [x], ratio=0.3)
    modhifi(linear, [x.permute(0, 2, 3, 1).flatten(0, 2)], ratio=0.3)
    torch.testing.assert_close(conv[2].weight.flatten(1), linear[2].weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("inputs", [5, 150])
def test_9_the_blocked_greedy_choice_is_the_plain_one(inputs):
    _, moments = random_moments(inputs, rows=1000)
    weight = torch.randn(20, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rest, product = moments.clone(), moments @ weight.T
    rest.diagonal().add_(1e-4 * rest.diagonal().mean())
    chosen = []
    for _ in range(int(0.8 * inputs)):
        gain = product.square().sum(1) / rest.diagonal()
        gain[chosen] = -1
        j = int(gain.argmax())
        chosen.append(j)
        step = rest[:, j] / rest[j, j]
        product, rest = product - step[:, None] * product[j], rest - step[:, None] * rest[j]
        rest.diagonal().clamp_(min=1e-9)
    assert select_channels(weight, moments, len(chosen), score="greedy").tolist() == sorted(chosen)


def test_9_greedy_over_kernels_is_the_best_pair_of_small_convolutions():
    """Channels with four columns each: the first choice is the channel with the highest explained energy."""
    _, moments = random_moments(12)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    columns = torch.arange(12).view(3, 4)
    consumer = Consumer(weight, moments, columns)
    score = channel_scores([consumer], "greedy", count=1)
    explained_by = [float(subset_energy(weight, moments, columns[channel].tolist())) for channel in range(3)]
    assert int(score.argmax()) == max(range(3), key=explained_by.__getitem__)


def subset_energy(weight, moments, keep):
    energy = torch.einsum("oi,ij,oj->o", weight, moments, weight)
    return (subset_fidelity(weight, moments, keep) * energy).sum()


def test_10_halves_of_the_data_merge_to_the_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, layer = torch.randn(200, 4), [Layer("2", model[2])]
    whole, halves = observe(model, [x], layer, Gram)["2"], observe(model, [x[:100], x[100:]], layer, Gram)["2"]
    torch.testing.assert_close(second_moments(whole), second_moments(halves), rtol=1e-5, atol=1e-7)
    hidden = model[1](model[0](x)).detach().double()
    torch.testing.assert_close(second_moments(whole).double(), hidden.T @ hidden / 200, rtol=1e-5, atol=1e-7)


# --- what the method does


def test_compensation_restores_what_the_choice_lost():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 5)), torch.randn(1000, 8)
    expected, errors = model(x).detach(), {}
    for compensation in ("ols", "none"):
        pruned = copy.deepcopy(model)
        modhifi(pruned, [x], ratio=0.5, score="greedy", compensation=compensation)
        errors[compensation] = (pruned(x) - expected).square().mean().item()
    assert errors["ols"] < 0.2 * errors["none"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_compensation_kept_weights_stay_as_they_are(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 5)).to(dtype)
    columns = {tuple(column) for column in model[2].weight.T.tolist()}
    modhifi(model, [torch.randn(200, 8, dtype=dtype)], ratio=0.5, compensation="none")
    kept = {tuple(column) for column in model[2].weight.T.tolist()}
    assert len(kept) == 32
    assert kept < columns
    assert model[2].weight.dtype == dtype


@pytest.mark.parametrize("rows", [2, 256])
@pytest.mark.parametrize("ridge", [0.0, 1e-4, 0.1])
def test_what_compensation_wins_back_is_the_fall_of_the_lost_energy(ridge, rows, monkeypatch):
    monkeypatch.setattr("weightsmith.sparsify._modhifi.selection.ROWS", rows)
    _, moment = random_moments(12)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keep = torch.tensor([0, 2, 3, 7, 11])
    after, gain = reconstruct(weight, moment.clone(), keep, ridge=ridge)
    assert torch.equal(after[:, keep], compensate(weight, moment, keep, ridge=ridge))
    before = torch.zeros_like(weight)
    before[:, keep] = weight[:, keep]
    lost = [torch.einsum("oi,ij,oj->", weight - w, moment, weight - w).item() for w in (before, after)]
    assert gain == pytest.approx(lost[0] - lost[1], rel=1e-10)
    assert gain > 0


def test_layers_that_share_their_input_are_each_solved():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.one, self.two = nn.Linear(8, 32), nn.Linear(32, 5, bias=False), nn.Linear(32, 3, bias=False)

        def forward(self, x):
            hidden = self.up(x).relu()
            return torch.cat([self.one(hidden), self.two(hidden)], -1)

    torch.manual_seed(0)
    model, x = Twins(), torch.randn(500, 8)
    hidden, old = model.up(x).relu().detach(), copy.deepcopy(model)
    modhifi(model, [x], ratio=0.5)
    neurons = {tuple(row): i for i, row in enumerate(old.up.weight.tolist())}
    keep = [neurons[tuple(row)] for row in model.up.weight.tolist()]
    moment = hidden.T @ hidden / 500
    for name in ("one", "two"):
        expected = compensate(getattr(old, name).weight.detach(), moment, keep)
        torch.testing.assert_close(getattr(model, name).weight, expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_the_outputs_stays():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 5)), torch.randn(1000, 8)
    mean = model(x).mean(0).detach()
    modhifi(model, [x], ratio=0.7)
    torch.testing.assert_close(model(x).mean(0), mean, atol=1e-4, rtol=1e-4)


def test_the_global_ratio_is_exact_and_differs_by_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
    with torch.no_grad():
        model[2].weight[:, 10:] *= 0.01
    result = modhifi(model, [torch.randn(300, 6)], ratio=0.3, scope="global", score="energy")
    kept = [row["remaining"] for row in result.layers]
    assert sum(kept) == 70 - 21 == result.totals["remaining"]
    assert kept[0] < 28
    assert model[0].out_features == model[2].in_features == kept[0]


def test_a_multiple_is_kept_and_said():
    model, batch = tiny("llama")
    result = modhifi(model, [batch], ratio=0.3, multiple_of=16)
    assert model.config.intermediate_size == 48
    assert "48 of 64" in " ".join(result.notes)
    assert "48 of 48 stay" in " ".join(modhifi(model, [batch], ratio=0.3, multiple_of=64).notes)


def test_layers_shared_by_a_residual_sum_lose_the_same_channels():
    model, x = residual(), images()
    result = modhifi(model, [x], ratio=0.25)
    assert model.stem.out_channels == model.narrow.out_channels == model.wide.in_channels == 9
    assert model.depthwise.groups == model.depthwise.in_channels == model.depthwise.weight.shape[0] == 15
    assert model.wide_norm.num_features == model.depthwise_norm.num_features == 15
    assert model.side.out_channels == 4  # round(0.25 * 6) = 2 leave
    assert model.head.in_features == 13
    assert result.totals["batchnorm_layers"] == 4
    assert model(x).isfinite().all()
    model.train()(x).sum().backward()  # still a network that can be trained


def test_experts_choose_for_themselves():
    model, batch = tiny("mixtral", layers=1)
    before = copy.deepcopy(model)
    modhifi(model, [batch], ratio=0.5, score="l2", compensation="none")
    down, old = model.model.layers[0].mlp.experts.down_proj, before.model.layers[0].mlp.experts.down_proj
    kept = [old[e].square().sum(0).topk(32).indices.sort().values for e in range(4)]
    assert any(not torch.equal(kept[0], other) for other in kept[1:])
    for e in range(4):
        assert torch.equal(down[e], old[e][:, kept[e]])
    assert model.config.intermediate_size == 32


def test_a_cut_model_loads_in_a_fresh_process(tmp_path):
    model, batch = tiny("llama")
    modhifi(model, [batch], ratio=0.3)
    model.save_pretrained(tmp_path / "out")
    torch.save(batch, tmp_path / "batch.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A; "
        "m = A.from_pretrained(sys.argv[1]).eval(); b = torch.load(sys.argv[2]); "
        "torch.save(m(**b).logits.detach(), sys.argv[3])"
    )
    arguments = [tmp_path / "out", tmp_path / "batch.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(**batch).logits)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 45


def test_the_order_of_removal_prefers_the_living():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, -1  # never active
        model[2].weight[:, 1] = 100
    for score in ("saliency", "fidelity", "energy", "greedy"):
        pruned = copy.deepcopy(model)
        modhifi(pruned, [torch.randn(100, 4)], ratio=1 / 6, score=score)
        assert pruned[2].weight.abs().max() < 50, score


# --- bad input


def test_an_input_that_is_always_zero_scores_zero():
    moments = torch.diag(torch.tensor([1.0, 0.0, 2.0]))
    weight = torch.tensor([[1.0, 5.0, 1.0], [0.0, 0.0, 0.0]])
    for score in ("saliency", "fidelity"):
        assert (pair_scores(weight, moments, score=score)[:, 1] == 0).all()
    assert subset_fidelity(weight, moments, [0, 1]).isfinite().all()
    assert subset_fidelity(weight, moments, [0])[1] == 0  # an output without energy
    for score in ("saliency", "fidelity", "energy", "greedy"):
        assert select_channels(weight, moments, 2, score=score).tolist() == [0, 2]


def test_weights_of_zero_take_the_least_squares_form():
    weight = torch.tensor([[0.0, 1.0]])
    new = compensate(weight, TWO, [0], ridge=0.0)
    torch.testing.assert_close(new, torch.tensor([[0.5]]))


def test_compensation_refuses_what_is_not_finite():
    with pytest.raises(NonFiniteError, match="second moments"):
        compensate(torch.ones(1, 2), torch.full((2, 2), torch.nan), [0])


def test_moments_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="second moments"):
        unwrap(select_channels)(torch.ones(1, 3), TWO, 1)
    with pytest.raises(NonFiniteError, match="second moments"):
        subset_fidelity(torch.ones(1, 2), TWO * torch.nan, [0])
    with pytest.raises(HyperparameterError, match="keep"):
        select_channels(torch.ones(1, 2), TWO, 3)
    with pytest.raises(HyperparameterError, match="score"):
        unwrap(check_score)("alpha")
    with pytest.raises(HyperparameterError, match="ridge"):
        compensate(torch.ones(1, 2), TWO, [0], ridge=-1.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("ratio", 1.0), ("ratio", -0.1), ("scope", "block"), ("score", "alpha"), ("multiple_of", 0), ("compensation", "")],
    ids=str,
)
def test_options_out_of_range(option, value):
    with pytest.raises(HyperparameterError, match=option):
        unwrap(modhifi)(tiny("mlp")[0], [tiny("mlp")[1]], **{option: value})


def test_activations_that_are_not_finite_name_the_layer():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(10, 4)
    x[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="'2'"):
        modhifi(model, [x])


def test_fewer_rows_than_inputs_are_said():
    model = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
    with pytest.warns(UserWarning, match="saw 5 calibration rows for 24 kept inputs"):
        modhifi(model, [torch.randn(5, 4)])


def test_no_batches_and_no_layers_are_refused():
    model, batch = tiny("mlp")
    with pytest.raises(CalibrationError):
        modhifi(model, [])
    with pytest.raises(LayerNotFoundError):
        modhifi(model, [batch], include="nothing")


def test_at_least_one_channel_stays():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert modhifi(model, [torch.randn(20, 4)], ratio=0.99).totals["remaining"] == 1
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    assert modhifi(model, [torch.randn(50, 4)], ratio=0.99, multiple_of=8).totals["remaining"] == 8


def test_tied_layers_are_not_cut():
    inner = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.ReLU())]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *inner, nn.Linear(8, 2))
    model[4].weight = model[2].weight
    with pytest.raises(UnsupportedModelError, match="tied"):
        modhifi(model, [torch.randn(20, 4)], include=["2", "4"], ratio=0.5)


def test_batch_normalization_in_training_mode_is_observed_in_evaluation_mode():
    first, second = residual().train(), residual().eval()
    for model in (first, second):
        modhifi(model, [images()], ratio=0.25)
    assert first.training
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_first_token_can_be_left_out():
    model, batch = tiny("llama", layers=1)
    model.model.layers[0].mlp.up_proj.weight.data[:5] *= 3
    plain, skipped = copy.deepcopy(model), copy.deepcopy(model)
    rows = {}
    for each, skip in ((plain, 0), (skipped, 1)):
        rows[skip] = modhifi(each, [batch], ratio=0.25, skip_tokens=skip).layers[0]["fidelity"]
    assert rows[0] != rows[1]
    with pytest.raises(HyperparameterError, match="skip_tokens"):
        modhifi(tiny("mixtral")[0], [batch], skip_tokens=1)


# --- traps of structured pruning


def test_a_model_with_few_key_value_heads_keeps_its_heads(tmp_path):
    config = t.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=16,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model, batch = t.LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(64, (4, 30))}
    result = modhifi(model, [batch], ratio=0.3)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (64, 64)
    assert "q_proj" in " ".join(result.notes)
    model.save_pretrained(tmp_path)
    again = t.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.head_dim == model.config.head_dim == 4
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_a_configuration_with_one_width_refuses_widths_per_layer():
    model, batch = tiny("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(HyperparameterError, match="scope"):
        modhifi(model, [batch], scope="global")
    with pytest.raises(UnsupportedModelError, match="field of the configuration"):
        modhifi(model, [batch], include="model.layers.0.*")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_layer_gains_a_bias(tmp_path):
    model, batch = tiny("llama")
    modhifi(model, [batch], ratio=0.3)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_a_last_convolution_of_one_output_is_not_depthwise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
    modhifi(model, [images()], ratio=0.5)
    assert (model[2].in_channels, model[2].out_channels, model[2].groups) == (8, 1, 1)
    assert model(images()).shape == (16, 1, 4, 4)


@pytest.mark.parametrize(("outputs", "groups"), [(16, 8), (8, 2)])
def test_grouped_convolutions_are_left_whole_and_named(outputs, groups):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, outputs, 3, groups=groups),
        nn.ReLU(),
        nn.Conv2d(outputs, 12, 1),
    ]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(12, 2, 1))
    before = [model[i].weight.clone() for i in (0, 2)]
    result = modhifi(model, [images()], ratio=0.25)
    assert model[2].groups == groups
    assert all(torch.equal(model[i].weight, old) for i, old in zip((0, 2), before, strict=True))
    assert (model[4].out_channels, model[6].in_channels) == (9, 9)
    assert "groups or heads" in " ".join(result.notes)


def test_a_vit_keeps_its_tokens_and_heads():
    model, batch = tiny("vit")
    before = copy.deepcopy(model)
    modhifi(model, [batch], ratio=0.25)
    for name in ("cls_token", "position_embeddings"):
        assert torch.equal(getattr(model.vit.embeddings, name), getattr(before.vit.embeddings, name))
    assert model.vit.layers[0].attention.q_proj.weight.shape == (32, 32)
    assert model.config.intermediate_size == 48


def test_channels_that_a_norm_averages_over_are_refused():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.second(nn.functional.layer_norm(self.first(x), (8,)))

    model, x = Averaged(), torch.randn(50, 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModelError):
        modhifi(model, [x], ratio=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_counts_on_a_width_is_refused_before_anything_changes():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.third(self.second(self.first(x).reshape(-1, 8).relu()).relu())

    model, x = Fixed(), torch.randn(50, 4)
    result = modhifi(model, [x], ratio=0.5)
    assert (model.first.out_features, model.second.out_features) == (8, 3)
    assert "'first.weight[0]' cannot change its size" in " ".join(result.notes)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert", "vit", "mixtral"])
def test_from_disk_it_is_what_it_is_in_memory(name, tmp_path):
    model, batch = tiny(name, layers=3)
    save_model(model, tmp_path / "dense")
    with offloaded(tmp_path / "dense", tmp_path / "out") as stored:
        streamed = modhifi(stored, [batch], score="energy", ratio=0.3)
    whole = modhifi(model, [batch], score="energy", ratio=0.3)
    assert streamed.totals == pytest.approx(whole.totals)  # products depend on where the tensors begin in memory
    for row, same in zip(streamed.layers, whole.layers, strict=True):
        assert row == {key: pytest.approx(value) if isinstance(value, float) else value for key, value in same.items()}
    smaller = load_model(tmp_path / "out")
    assert sum(p.numel() for p in smaller.parameters()) == whole.totals["parameters"]
    torch.testing.assert_close(smaller.state_dict(), model.state_dict())


class Skipping(nn.ModuleList):
    """Blocks of which the last is passed by, except the first time, when the model is traced."""

    passes = 0

    def __iter__(self):
        Skipping.passes += 1
        blocks = list(self._modules.values())
        return iter(blocks if Skipping.passes == 1 else blocks[:-1])


def test_a_block_that_no_batch_reaches_is_cut_by_its_weights_alone(tmp_path):
    """Otherwise its width would not be that of the configuration."""
    model, batch = tiny("bert", layers=3)
    save_model(model, tmp_path / "dense")
    Skipping.passes = 0
    with offloaded(tmp_path / "dense", tmp_path / "out") as stored:
        stored.bert.encoder.layer.__class__ = Skipping
        with pytest.warns(UserWarning, match="no calibration batch reached blocks .*layer.2"):
            result = modhifi(stored, [batch], ratio=0.25)
    assert any("largest weights stay" in note and "layer.2" in note for note in result.notes)
    before, after = (m.bert.encoder.layer[2].output.dense.weight for m in (model, load_model(tmp_path / "out")))
    kept = before.double().square().sum(0).topk(48).indices.sort().values
    assert torch.equal(after, before[:, kept])


def test_channels_across_blocks_are_refused_on_disk(tmp_path):
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2)
    save_model(t.ResNetForImageClassification(config).eval(), tmp_path / "dense")
    batch = {"pixel_values": torch.rand(2, 3, 32, 32)}
    with pytest.raises(UnsupportedModelError), offloaded(tmp_path / "dense", tmp_path / "out") as stored:
        modhifi(stored, [batch])
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_smaller_model(tmp_path):
    from typer.testing import CliRunner

    from models import write_tiny_llama
    from weightsmith.cli.main import app

    folder = write_tiny_llama(tmp_path, rows=8, tokens=32)
    arguments = ["sparsify", "modhifi", str(folder / "tiny"), str(folder / "out"), "--ratio", "0.25", "--score"]
    done = CliRunner().invoke(app, [*arguments, "greedy", "--calibration", str(folder / "inputs.safetensors")])
    assert done.exit_code == 0, done.output
    again = t.AutoModelForCausalLM.from_pretrained(folder / "out")
    assert again.config.intermediate_size == 24
    assert again.model.layers[1].mlp.down_proj.weight.shape == (16, 24)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_ratio_that_removes_nothing_is_refused(scope):
    model, batch = tiny("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(HyperparameterError, match=r"ratio: found 0.02, which removes none of the 16 .*at least 0.06"):
        modhifi(model, [batch], ratio=0.02, scope=scope)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modhifi(model, [batch], ratio=0.07, scope=scope).totals["remaining"] == 15
