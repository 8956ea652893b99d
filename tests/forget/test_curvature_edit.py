"""Curvature edit: the numbered checks of its specification, its bad input, and recitation worked by hand."""

from __future__ import annotations

import copy
import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from weightsmith.analyze import KroneckerFactors, collect_kfac, curvature_bands, load_kfac, save_kfac
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import offloaded
from weightsmith.core.models import find_layers
from weightsmith.forget import apply_delta, curvature_edit, edit_matrix, kept_directions, ranking_agreement, recitation
from weightsmith.testing import samples, tiny

W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
A = torch.diag(torch.tensor([2.0, 1.0]))


def factors(a, g):
    return KroneckerFactors(a, g, 1, 1.0)


def random_factors(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, g = torch.randn(60, columns, generator=generator), torch.randn(60, rows, generator=generator)
    return factors(x.T @ x / 60, g.T @ g / 60)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(0.5, [[1, 0], [0, 0]]), (0.75, [[1, 2], [0, 0]]), (0.76, [[1, 2], [3, 0]]), (1.0, [[1, 2], [3, 4]])],
)
def test_check_1_diagonal_factors(keep, expected):
    edit = edit_matrix(W, factors(A, torch.diag(torch.tensor([3.0, 1.0]))), keep=keep)
    torch.testing.assert_close(edit.weight_OI, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("keep", "expected", "loss"),
    [
        (0.5, [[2, 0], [2, 0]], 30.0),
        (0.75, [[2, 3], [2, 3]], 3.0),
        (0.9, [[1, 3], [3, 3]], 1.0),
        (1.0, [[1, 2], [3, 4]], 0.0),
    ],
)
def test_check_2_rotated_outputs_and_predicted_loss(keep, expected, loss):
    g = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    edit = edit_matrix(W, factors(A, g), keep=keep)
    torch.testing.assert_close(edit.weight_OI, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    change = W - edit.weight_OI
    assert edit.predicted_loss == pytest.approx(float(0.5 * (change.T @ g @ change @ A).trace()), abs=1e-4)
    assert edit.predicted_loss == pytest.approx(loss, abs=1e-4)


def test_check_3_limits_and_the_smallest_set():
    weight, found = torch.randn(7, 5), random_factors(7, 5)
    assert torch.equal(edit_matrix(weight, found, keep=0.9999).weight_OI, weight)
    torch.testing.assert_close(
        edit_matrix(weight, found, keep=0.99989).weight_OI.norm(), weight.norm(), rtol=0.1, atol=0
    )
    assert edit_matrix(weight, found, keep=1e-9).kept_pairs == pytest.approx(1 / 35)
    for keep in (0.3, 0.6, 0.9):
        edit = edit_matrix(weight, found, keep=keep)
        smaller = kept_pairs_products(found, keep)
        assert edit.kept_mass >= keep
        assert (smaller.sum() - smaller.min()) / all_products(found).sum() < keep


def all_products(found):
    lam, mu = (torch.linalg.eigvalsh(m).clamp(min=0).flip(0) for m in (found.gradients_OO, found.inputs_II))
    return lam[:, None] * mu


def kept_pairs_products(found, keep):
    lam, mu = (torch.linalg.eigvalsh(m).clamp(min=0).flip(0) for m in (found.gradients_OO, found.inputs_II))
    return (lam[:, None] * mu)[kept_directions(lam, mu, keep)]


@pytest.mark.parametrize("criterion", ["mass", "loss"])
def test_keeping_all_rounds_only(criterion):
    weight, found = torch.randn(7, 5), random_factors(7, 5)
    torch.testing.assert_close(
        edit_matrix(weight, found, keep=0.9998999, criterion=criterion).weight_OI, weight, rtol=0.2, atol=0.2
    )


def test_check_4_idempotent_scale_and_rotation():
    weight, found = torch.randn(6, 5), random_factors(6, 5)
    once = edit_matrix(weight, found, keep=0.6).weight_OI
    torch.testing.assert_close(edit_matrix(once, found, keep=0.6).weight_OI, once, rtol=1e-4, atol=1e-5)
    scaled = factors(3 * found.inputs_II, 0.1 * found.gradients_OO)
    torch.testing.assert_close(edit_matrix(weight, scaled, keep=0.6).weight_OI, once, rtol=1e-4, atol=1e-5)
    r, q = torch.linalg.qr(torch.randn(6, 6)).Q, torch.linalg.qr(torch.randn(5, 5)).Q
    turned = factors(q @ found.inputs_II @ q.T, r @ found.gradients_OO @ r.T)
    theirs = edit_matrix(r @ weight @ q.T, turned, keep=0.6).weight_OI
    torch.testing.assert_close(theirs, r @ once @ q.T, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=6),
    st.lists(st.sampled_from([0.0, 1e-9, 0.25, 1.0, 2.0, 4.0]), min_size=1, max_size=6),
    st.sampled_from([1e-9, 0.1, 0.5, 0.6, 0.9, 1.0]),
)
def test_check_5_bisection_equals_sorting_and_is_a_staircase(rows, columns, keep):
    rows, columns = (torch.tensor(each, dtype=torch.float64).sort(descending=True).values for each in (rows, columns))
    if not float(rows.sum() * columns.sum()):
        return
    mask = kept_directions(rows, columns, keep)
    products = (rows[:, None] * columns).flatten()
    order = products.argsort(descending=True, stable=True)
    count = int((products[order].cumsum(0) < keep * products.sum() * (1 - 1e-12)).sum()) + 1
    assert int(mask.sum()) == count
    assert float(products[mask.flatten()].sum()) == pytest.approx(float(products[order[:count]].sum()))
    lengths = mask.sum(1)
    assert bool((lengths[1:] <= lengths[:-1]).all())
    assert all(bool(row[: int(n)].all()) for row, n in zip(mask, lengths, strict=True))


class Logits(nn.Module):
    """A linear layer without inputs that matter: its outputs are given logits."""

    def __init__(self, logits):
        super().__init__()
        self.layer = nn.Linear(1, len(logits), bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(logits)[:, None])

    def forward(self, x):
        return self.layer(x)


def test_check_6_exact_sampled_and_empirical_fisher():
    p = torch.tensor([0.7, 0.2, 0.1])
    model = Logits(p.log().tolist())
    exact = collect_kfac(model, [torch.ones(4, 1)], find_layers(model), fisher="exact")["layer"].gradients_OO
    expected = torch.tensor([[0.21, -0.14, -0.07], [-0.14, 0.16, -0.02], [-0.07, -0.02, 0.09]])
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-6)
    sampled = collect_kfac(model, [torch.ones(100_000, 1)], find_layers(model))["layer"].gradients_OO
    assert bool(((sampled - expected).abs() < 0.01).all())
    fitted = Logits([40.0, 0.0, 0.0])
    batch = (torch.ones(3, 1), torch.zeros(3, dtype=torch.long))
    empirical = collect_kfac(fitted, [batch], find_layers(fitted), fisher="empirical")["layer"].gradients_OO
    assert float(empirical.abs().max()) < 1e-12


def test_check_7_moments_padding_and_merging():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(20, 4)
    both = collect_kfac(model, [x], find_layers(model), fisher="exact")
    torch.testing.assert_close(both["0"].inputs_II, x.T @ x / 20)
    halves = collect_kfac(model, [x[:7], x[7:]], find_layers(model), fisher="exact")
    for name, found in both.items():
        torch.testing.assert_close(halves[name].gradients_OO, found.gradients_OO, rtol=1e-5, atol=1e-7)
        assert torch.equal(found.gradients_OO, found.gradients_OO.T) or torch.allclose(
            found.gradients_OO, found.gradients_OO.T, atol=1e-7
        )
        assert float(torch.linalg.eigvalsh(found.gradients_OO).min()) > -1e-6


def test_positions_of_a_language_model():
    model, _ = tiny("llama")
    layers = find_layers(model, "*up_proj")
    ids = torch.randint(3, 30, (2, 9))
    plain = collect_kfac(model, [{"input_ids": ids}], layers, fisher="empirical")
    assert {found.positions for found in plain.values()} == {16}  # the last token predicts nothing
    padded = {
        "input_ids": torch.cat([ids, torch.zeros(2, 5, dtype=torch.long)], 1),
        "attention_mask": (torch.arange(14) < 9).long().expand(2, -1),
    }
    same = collect_kfac(model, [padded], layers, fisher="empirical")
    for name, found in plain.items():
        assert same[name].positions == 16
        torch.testing.assert_close(same[name].inputs_II, found.inputs_II, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(same[name].gradients_OO, found.gradients_OO, rtol=1e-4, atol=1e-9)


def test_gradients_are_those_of_the_loss():
    model, _ = tiny("llama")
    (layer, *_) = find_layers(model, "*1.mlp.up_proj")
    ids = torch.randint(3, 30, (1, 9))
    found = collect_kfac(model, [{"input_ids": ids}], [layer], fisher="empirical")[layer.name]
    kept = {}

    def keep(module, args, output):
        kept["y"] = output
        output.retain_grad()

    with_hook = layer.module.register_forward_hook(keep)
    loss = model(input_ids=ids, labels=ids).loss
    with_hook.remove()
    (8 * loss).backward()
    g = kept["y"].grad[0, :-1]
    torch.testing.assert_close(found.gradients_OO, g.T @ g / 8, rtol=1e-4, atol=1e-8)


def test_bands_are_ratios_of_mean_projections():
    model, batch = tiny("llama")
    layers = find_layers(model, "*up_proj")
    mask = torch.ones_like(batch["input_ids"])
    mask[0, 5:] = 0
    padded = {"input_ids": batch["input_ids"], "attention_mask": mask}
    other = {"input_ids": (batch["input_ids"] + 3) % 50}
    factors = collect_kfac(model, [other], layers)
    ratios = curvature_bands(model, factors, [padded], [other], bounds=(0.1, 0.5))
    assert [*ratios] == [layer.name for layer in layers]
    for layer in layers:
        means = []
        for data in (padded, other):
            seen = []
            hook = layer.module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                model(**data)
            hook.remove()
            rows = seen[0][data.get("attention_mask", torch.ones_like(other["input_ids"])).bool()]
            vectors = torch.linalg.eigh(factors[layer.name].inputs_II).eigenvectors.flip(1)
            width = len(vectors)
            ends = [0, round(0.1 * width), round(0.5 * width), width]
            projectors = [vectors[:, low:high] @ vectors[:, low:high].T for low, high in itertools.pairwise(ends)]
            means.append([(rows @ projector).norm(dim=1).mean().item() for projector in projectors])
        assert ratios[layer.name] == pytest.approx([a / b for a, b in zip(*means, strict=True)], rel=1e-4)
    same = curvature_bands(model, factors, [other], [other])
    assert all(ratio == 1.0 for row in same.values() for ratio in row)


def test_bands_refuse_what_does_not_fit():
    model, factors = nn.Linear(4, 2), KroneckerFactors(torch.eye(3), torch.eye(2), 1, 1.0)
    data = [torch.ones(1, 4)]
    for taken, bounds, error, message in (
        ({"": factors}, (0.5,), ShapeError, "found 3, expected 4"),
        ({"head": factors}, (0.5,), LayerNotFoundError, "no layer 'head'"),
        ({}, (0.5, 0.2), HyperparameterError, "bounds"),
        ({}, (0.0,), HyperparameterError, "bounds"),
    ):
        with pytest.raises(error, match=message):
            curvature_bands(model, taken, data, data, bounds=bounds)


def test_layers_whose_output_is_changed_in_place_have_the_same_curvature():
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    inplace = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2])
    batch = torch.randn(64, 8)
    expected, found = (collect_kfac(model, [batch], find_layers(model), fisher="exact") for model in (plain, inplace))
    for name, factors_ in expected.items():
        torch.testing.assert_close(found[name].inputs_II, factors_.inputs_II)
        torch.testing.assert_close(found[name].gradients_OO, factors_.gradients_OO)


def test_check_8_the_edit_shrinks_and_keeps_what_is_in_the_span():
    weight, found = torch.randn(6, 8), random_factors(6, 8)
    once = edit_matrix(weight, found, keep=0.7)
    assert once.weight_OI.norm() <= weight.norm()


def test_check_9_levenshtein():
    found = recitation([((1, 3, 4, 5), (1, 2, 3, 4)), ((1, 2, 3, 4), (1, 2, 3, 4)), ((1, 2, 3, 9), (1, 2, 3, 4))])
    assert (found.strict, found.loose) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found.distance == pytest.approx((0.5 + 0.0 + 0.25) / 3)
    assert recitation([((), (1, 2))]).distance == 1.0


def test_check_9_ranking_agreement():
    before = torch.randn(4, 30)
    torch.testing.assert_close(ranking_agreement(before, before), torch.ones(4))
    assert float(ranking_agreement(before, -before).max()) == 0.0
    with pytest.raises(HyperparameterError, match="k"):
        ranking_agreement(before, before, k=31)
    with pytest.raises(ShapeError, match="after the edit"):
        ranking_agreement(before, before[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_10_undo_is_bit_identical(tmp_path, dtype):
    model = tiny("gpt2")[0].to(dtype)
    before = copy.deepcopy(model.state_dict())
    batches = [{"input_ids": torch.randint(3, 30, (4, 12))}]
    result = curvature_edit(model, batches, save_undo=tmp_path / "undo.safetensors")
    assert [row["layer"] for row in result.layers] == ["transformer.h.1.mlp.c_fc"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["transformer.h.1.mlp.c_fc.weight"]
    apply_delta(model, tmp_path / "undo.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_passes_give_the_same_edit():
    batches = [{"input_ids": torch.randint(3, 30, (4, 12))}]
    one, many = tiny("llama")[0], tiny("llama")[0]
    curvature_edit(one, batches, blocks=[0, 1], fisher="empirical")
    curvature_edit(many, batches, blocks=[0, 1], fisher="empirical", memory=1e-9)
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, many.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_recitation_is_measured_before_and_after():
    model, data = tiny("llama")[0], samples("llama")[:3]
    result = curvature_edit(model, [{"input_ids": torch.randint(3, 30, (4, 12))}], memorized=data)
    assert {"recited_strict", "recited_loose", "recitation_distance"} <= result.before.keys() & result.after.keys()


def test_factors_on_disk(tmp_path):
    found = {"fc": random_factors(4, 3)}
    save_kfac(found, tmp_path / "kfac.safetensors")
    assert torch.equal(load_kfac(tmp_path / "kfac.safetensors")["fc"].inputs_II, found["fc"].inputs_II)
    with pytest.raises(CheckpointError, match="exists"):
        save_kfac(found, tmp_path / "kfac.safetensors")
    with pytest.raises(CheckpointError, match="no sparse delta"):
        apply_delta(nn.Linear(3, 4), tmp_path / "kfac.safetensors")


def mlp_edit(**options):
    return curvature_edit(tiny("mlp")[0], [torch.rand(20, 12)], **{"include": "*", "fisher": "exact", **options})


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return curvature_edit(model, [torch.rand(20, 6)], include="*", fisher="exact", blocks=[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mlp_edit(keep=0.0), HyperparameterError, "keep"),
        (lambda: mlp_edit(keep=1.1), HyperparameterError, "keep"),
        (lambda: mlp_edit(memory=0.0), HyperparameterError, "memory"),
        (lambda: mlp_edit(blocks=[9]), LayerNotFoundError, "blocks"),
        (lambda: mlp_edit(include="*nothing*"), LayerNotFoundError, "nothing"),
        (
            lambda: curvature_edit(tiny("mlp")[0], [torch.rand(4, 12)]),
            LayerNotFoundError,
            "no matrix into a feed-forward hidden layer",
        ),
        (tied, UnsupportedModelError, "shared"),
        (lambda: mlp_edit(fisher="empirical"), CalibrationError, "needs labels"),
        (
            lambda: curvature_edit(tiny("llama")[0], [{"input_ids": torch.ones(1, 4).long()}], fisher="exact"),
            HyperparameterError,
            "exact",
        ),
        (lambda: edit_matrix(W, random_factors(3, 2)), ShapeError, "curvature factors"),
        (lambda: edit_matrix(W, factors(A, torch.zeros(2, 2))), CalibrationError, "no curvature"),
        (lambda: edit_matrix(W, factors(A * float("nan"), A)), NonFiniteError, "factors"),
        (lambda: edit_matrix(W, factors(A, A), keep=-1.0), HyperparameterError, "keep"),
        (lambda: edit_matrix(W, factors(A, A), keep=5.0), HyperparameterError, "keep"),
        (lambda: inspect.unwrap(edit_matrix)(W, factors(A, A), criterion="typo"), HyperparameterError, "criterion"),
        (lambda: recitation([]), CalibrationError, "no memorized"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_few_samples_and_a_dominant_pair_are_noted():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    result = curvature_edit(model, [1000 * torch.ones(3, 4)], include="*", fisher="sampled", blocks=[0], keep=0.5)
    assert any("One pair of directions of '0'" in note for note in result.notes)
    assert any("samples: give more data" in note for note in result.notes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_model_on_disk_becomes_what_it_becomes_in_memory(tmp_path, precision, tied):
    model, batch = tiny("llama")
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    model.to(precision).save_pretrained(tmp_path / "dense")
    model = type(model).from_pretrained(tmp_path / "dense", dtype=precision)  # whose buffers are float32
    old = {name: value.clone() for name, value in model.state_dict().items()}
    with offloaded(tmp_path / "dense", tmp_path / "edited") as stored:
        streamed = curvature_edit(stored, [batch], blocks=[0, 1], keep=0.5)
        assert all(parameter.is_meta for parameter in stored.parameters())
    edited = type(model).from_pretrained(tmp_path / "edited", dtype=precision).state_dict()
    in_memory = curvature_edit(model, [batch], blocks=[0, 1], keep=0.5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(edited[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(edited[name], old[name]) == torch.equal(value, old[name])
    assert [row["layer"] for row in streamed.layers] == [row["layer"] for row in in_memory.layers]


def test_a_model_on_disk_is_not_measured(tmp_path):
    model, batch = tiny("llama")
    model.save_pretrained(tmp_path / "dense")
    with (
        pytest.raises(UnsupportedModelError, match="save_undo"),
        offloaded(tmp_path / "dense", tmp_path / "edited") as stored,
    ):
        curvature_edit(stored, [batch], save_undo=tmp_path / "undo.safetensors")
    assert not (tmp_path / "edited").exists()


@pytest.mark.parametrize("criterion", ["mass", "loss"])
def test_moments_of_few_positions_need_no_whole_decomposition(criterion, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x_NI, g_NO = (torch.randn(6, size, generator=generator) for size in (40, 60))
    weight = torch.randn(60, 40, generator=generator)
    factors = KroneckerFactors(x_NI.T @ x_NI / 6, g_NO.T @ g_NO / 6, 6, 6.0)
    found = edit_matrix(weight, factors, keep=0.7, criterion=criterion)
    monkeypatch.setattr("weightsmith.forget._curvature_edit.FEW_POSITIONS", 1000)
    whole = edit_matrix(weight, factors, keep=0.7, criterion=criterion)
    torch.testing.assert_close(found.weight_OI, whole.weight_OI, rtol=1e-4, atol=1e-4)
    assert found.kept_pairs == whole.kept_pairs
    assert found.predicted_loss == pytest.approx(whole.predicted_loss, rel=1e-4)


def test_factors_that_are_not_of_their_positions_are_decomposed_whole():
    factors = KroneckerFactors(torch.eye(40), torch.eye(60), 6, 6.0)
    edit = edit_matrix(torch.ones(60, 40), factors, keep=0.5)
    assert edit.kept_pairs == pytest.approx(0.5, abs=1e-3)


def test_default_patterns_of_other_architectures_are_not_named(recwarn):
    model, batch = tiny("llama")
    curvature_edit(model, [batch])
    assert not [warning for warning in recwarn if "no layer matches" in str(warning.message)]


@pytest.mark.parametrize("samples", [1, 3])
def test_a_sample_counts_once_however_many_classes_the_exact_fisher_goes_through(samples):
    torch.manual_seed(0)
    model, x_NI = nn.Linear(4, 5), torch.randn(samples, 4)
    found = collect_kfac(model, [x_NI], find_layers(model), fisher="exact")[""].effective_samples
    p_NC = model(x_NI).detach().double().softmax(1)
    trace_N = sum(p_NC[:, c] * (p_NC - torch.eye(5)[c]).square().sum(1) for c in range(5))
    assert found == pytest.approx(float(trace_N.sum() ** 2 / trace_N.square().sum()), rel=1e-5)
    assert found <= samples + 1e-9
