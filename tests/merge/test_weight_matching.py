import copy
import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from models import tiny
from permutable import NETS, make, roughen
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.symmetry import find_symmetry
from weightsmith.merge import (
    match_activations,
    match_straight_through,
    match_weights,
    merge_many,
    weight_matching,
)
from weightsmith.merge._weight_matching.many import mean


def mlp(*widths, seed=0):
    torch.manual_seed(seed)
    layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def gaussian(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def planted(model, batch, seed=0):
    """A symmetry, the model's weights, the same shuffled, and the permutations that undo it."""
    symmetry = find_symmetry(model, batch, verify=False)
    perms = symmetry.random(torch.Generator().manual_seed(seed))
    state = model.state_dict()
    return symmetry, state, symmetry.permute(state, perms), symmetry.inverse(perms)


def same(a, b):
    return all(a[name].equal(b[name]) for name in b)


@pytest.mark.parametrize("width", [16, 64, 128])
def test_a_planted_permutation_is_found_in_twenty_mlps_of_twenty(width):
    for trial in range(20):
        model = gaussian(mlp(64, width, width, width, 10), trial)
        symmetry, state, shuffled, truth = planted(model, torch.rand(1, 64), trial)
        found = match_weights(state, shuffled, symmetry)
        assert same(found.perms, truth)
        assert found.distance_after == 0
        assert found.objective == pytest.approx(
            sum(state[key].square().sum().item() for key in symmetry.axes), rel=1e-5
        )


class Blocks(nn.Module):
    """Three residual blocks of rank two layers."""

    def __init__(self, stream, hidden):
        super().__init__()
        self.inn, self.out = nn.Linear(4, stream), nn.Linear(stream, 4)
        self.up = nn.ModuleList(nn.Linear(stream, hidden) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(hidden, stream) for _ in range(3))

    def forward(self, x):
        x = self.inn(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(functional.relu(up(x)))
        return self.out(x)


def test_residual_networks_need_the_first_pass_or_restarts():
    found = {"first pass": 0, "identity": 0, "restarts": 0}
    for trial in range(12):
        model = gaussian(Blocks(20, 32), trial)
        symmetry, state, shuffled, truth = planted(model, torch.rand(1, 4), trial)
        plain = match_weights(state, shuffled, symmetry, start=symmetry.identity())
        again = match_weights(state, shuffled, symmetry, start=symmetry.identity(), restarts=5)
        ahead = match_weights(state, shuffled, symmetry)
        for matching in (plain, again, ahead):
            assert all(a <= b for a, b in itertools.pairwise(matching.history))
            assert matching.objective >= max(matching.starts) * (1 - 1e-5)
        assert again.starts[0] == plain.objective
        for name, matching in (("first pass", ahead), ("identity", plain), ("restarts", again)):
            found[name] += same(matching.perms, truth)
    assert found["restarts"] > found["identity"]
    assert found["first pass"] == 12


def test_two_by_two():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    symmetry = find_symmetry(model, torch.rand(1, 2))
    a = {"0.weight": torch.tensor([[1.0, 0], [0, 2]]), "2.weight": torch.zeros(2, 2)}
    b = {"0.weight": torch.tensor([[0.0, 2], [1, 0]]), "2.weight": torch.zeros(2, 2)}
    found = match_weights(a, b, symmetry)
    assert found.perms["0.weight[0]"].tolist() == [1, 0]
    assert found.history[0] == 0
    assert found.objective == 5
    # the law of cosines: 5 + 5 - 2 * 5
    assert found.distance_after == 0
    assert found.distance_before == pytest.approx(math.sqrt(10))


def test_one_hidden_layer_is_solved_by_one_assignment():
    a, b = mlp(6, 6, 3, seed=0), mlp(6, 6, 3, seed=1)
    symmetry = find_symmetry(a, torch.rand(1, 6))
    found = match_weights(a, b, symmetry)
    assert found.sweeps == 1
    best = max(
        sum(
            float((a.state_dict()[key] * tensor).sum())
            for key, tensor in symmetry.permute(b.state_dict(), {"0.weight[0]": torch.tensor(order)}).items()
            if key in symmetry.axes
        )
        for order in itertools.permutations(range(6))
    )
    assert found.objective == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("name", ["mlp", "llama", "gpt2", "resnet, batch norm"])
def test_a_model_with_itself(name):
    model, batch = tiny(name) if name not in NETS else make(name)[:2]
    symmetry = find_symmetry(model, batch)
    found = match_weights(model, model, symmetry)
    assert same(found.perms, symmetry.identity())
    assert found.sweeps == 1
    assert found.history[0] == found.history[1]
    merged = mean([model.state_dict(), symmetry.permute(model.state_dict(), found.perms)])
    assert all(tensor.equal(model.state_dict()[key]) for key, tensor in merged.items())


@pytest.mark.parametrize(
    "name", ["gpt2", "bert", "vit", "llama", "qwen3", "resnet, group norm", "dense", "depthwise", "grouped"]
)
def test_planted_permutations_of_heads_groups_and_streams_are_found(name):
    model, batch = tiny(name) if name not in NETS else make(name)[:2]
    symmetry, state, shuffled, truth = planted(roughen(model), batch)
    found = match_weights(state, shuffled, symmetry, restarts=8)
    assert same(found.perms, truth)
    moved = symmetry.permute(shuffled, found.perms)
    assert all(moved[key].equal(tensor) for key, tensor in state.items())


def test_the_distance_is_that_of_the_objective():
    a, b = mlp(6, 12, 12, 3, seed=0), mlp(6, 12, 12, 3, seed=1)
    symmetry = find_symmetry(a, torch.rand(1, 6))
    found = match_weights(a, b, symmetry)
    squares = sum(float(x.state_dict()[key].square().sum()) for x in (a, b) for key in symmetry.axes)
    assert found.distance_after**2 == pytest.approx(squares - 2 * found.objective, rel=1e-5)
    assert 0 < found.distance_drop < 1
    assert found.distance_drop == 1 - found.distance_after / found.distance_before


def test_layers_of_equal_weight_ignore_their_size():
    a, b = mlp(6, 12, 12, 3, seed=0), mlp(6, 12, 12, 3, seed=1)
    symmetry = find_symmetry(a, torch.rand(1, 6))
    big = copy.deepcopy(b)
    with torch.no_grad():
        big[0].weight.mul_(1000.0)
    plain, scaled = (match_weights(a, other, symmetry, normalize="layer") for other in (b, big))
    assert same(plain.perms, scaled.perms)
    assert plain.objective == pytest.approx(scaled.objective, rel=1e-5)
    assert not same(match_weights(a, b, symmetry).perms, match_weights(a, big, symmetry).perms)


def test_the_same_seed_gives_the_same_permutations():
    a, b = (gaussian(Blocks(12, 20), seed) for seed in (0, 1))
    symmetry = find_symmetry(a, torch.rand(1, 4))
    runs = [match_weights(a, b, symmetry, restarts=3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert same(runs[0].perms, runs[1].perms)
    assert runs[0].history == runs[1].history


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = gaussian(mlp(6, 24, 24, 3), 0).to(dtype)
    symmetry, state, shuffled, truth = planted(model, torch.rand(1, 6).to(dtype))
    assert same(match_weights(state, shuffled, symmetry).perms, truth)
    assert symmetry.permute(shuffled, truth)["0.weight"].dtype == dtype


def test_dead_and_duplicate_units_give_a_valid_result():
    model = gaussian(mlp(6, 8, 3), 0)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[1] = tensor[0]
            tensor[2] = 0
        model[2].weight[:, 1] = model[2].weight[:, 0]
        model[2].weight[:, 2] = 0
    symmetry, state, shuffled, _ = planted(model, torch.rand(1, 6))
    runs = [match_weights(state, shuffled, symmetry) for _ in range(2)]
    assert same(runs[0].perms, runs[1].perms)
    assert runs[0].distance_after == 0
    symmetry.check_permutations(runs[0].perms)


def test_bad_input_is_refused():
    model = mlp(6, 8, 3)
    symmetry = find_symmetry(model, torch.rand(1, 6))
    with pytest.raises(HyperparameterError, match="restarts"):
        match_weights(model, model, symmetry, restarts=0)
    with pytest.raises(ShapeError, match="the second model"):
        match_weights(model, mlp(6, 9, 3), symmetry)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[2].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"'2.weight' of the second model"):
        match_weights(model, broken, symmetry)
    nothing = find_symmetry(nn.Linear(3, 2), torch.rand(1, 3))
    with pytest.raises(ShapeError, match="nothing to permute"):
        match_weights(nn.Linear(3, 2), nn.Linear(3, 2), nothing)


# --- activations


@pytest.mark.parametrize("similarity", ["correlation", "product"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet, batch norm", "gpt2"])
def test_activations_of_a_shuffled_model_give_the_permutation_back(name, similarity):
    model, batch = tiny(name) if name not in NETS else make(name)[:2]
    roughen(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter += 5 * key.endswith("bias")  # no unit is silent: those have no partner of their own
    symmetry, _, shuffled, truth = planted(model, batch)
    twin = copy.deepcopy(model)
    twin.load_state_dict(shuffled)
    torch.manual_seed(1)
    if name == "gpt2":
        batches = [{"input_ids": torch.randint(1, 60, (8, 20))} for _ in range(4)]
    else:
        batches = [torch.rand(64, *batch.shape[1:]) for _ in range(4)]
    found = match_activations(model, twin, symmetry, batches, similarity=similarity)
    assert same(found.perms, truth)
    assert not model.training


def test_activations_of_padding_do_not_count():
    """Texts of other lengths, each alone or padded in one batch, give the same numbers."""
    model, batch = tiny("bert")
    roughen(model)
    symmetry, _, shuffled, truth = planted(model, batch)
    twin = copy.deepcopy(model)
    twin.load_state_dict(shuffled)
    lengths = [40, 7, 23, 12, 31, 18, 9, 28]
    padded = batch | {"attention_mask": (torch.arange(40) < torch.tensor(lengths)[:, None]).long()}
    alone = [{"input_ids": batch["input_ids"][i : i + 1, :length]} for i, length in enumerate(lengths)]
    found = [match_activations(model, twin, symmetry, each) for each in ([padded], alone)]
    assert same(found[0].perms, truth)
    assert same(found[1].perms, truth)
    products = [match_activations(model, twin, symmetry, each, similarity="product") for each in ([padded], alone)]
    assert products[0].objective == pytest.approx(products[1].objective, rel=1e-4)


def test_units_that_no_activation_shows_are_told():
    """Fused experts compute their inner units without a layer."""
    model, batch = tiny("mixtral")
    symmetry = find_symmetry(model, batch)
    with pytest.warns(UserWarning, match=r"2 groups .* keep their order, such as .*experts.gate_up_proj"):
        found = match_activations(model, model, symmetry, [batch])
    assert found.perms.keys() == symmetry.groups.keys()


def test_activations_need_data():
    model = mlp(6, 8, 3)
    symmetry = find_symmetry(model, torch.rand(1, 6))
    with pytest.raises(CalibrationError, match="no batches"):
        match_activations(model, model, symmetry, [])


# --- straight-through


def test_the_straight_through_target_starts_at_the_first_model():
    a, b = mlp(6, 16, 3, seed=0), mlp(6, 16, 3, seed=1)
    symmetry = find_symmetry(a, torch.rand(1, 6))
    torch.manual_seed(2)
    batches = [(torch.rand(64, 6), torch.randint(3, (64,))) for _ in range(4)]
    before = copy.deepcopy((a.state_dict(), b.state_dict()))
    one = match_straight_through(a, b, symmetry, batches[:1])
    assert same(one.perms, match_weights(a, b, symmetry).perms)
    middle = mean([a.state_dict(), symmetry.permute(b.state_dict(), one.perms)])
    probe = copy.deepcopy(a)
    probe.load_state_dict(middle)
    assert one.losses[0] == pytest.approx(
        functional.cross_entropy(probe(batches[0][0]), batches[0][1]).item(), rel=1e-5
    )
    for model, state in zip((a, b), before, strict=True):
        assert all(tensor.equal(state[key]) for key, tensor in model.state_dict().items())


def test_straight_through_lowers_the_loss_at_the_midpoint():
    a, b = mlp(6, 16, 16, 3, seed=0), mlp(6, 16, 16, 3, seed=1)
    symmetry = find_symmetry(a, torch.rand(1, 6))
    torch.manual_seed(2)
    x = torch.rand(256, 6)
    batch = (x, (x[:, :3] + x[:, 3:]).argmax(1))
    found = match_straight_through(a, b, symmetry, [batch], epochs=60, learning_rate=1.0)
    assert min(found.losses) < found.losses[0]
    symmetry.check_permutations(found.perms)
    with pytest.raises(CalibrationError):
        match_straight_through(a, b, symmetry, [])
    with pytest.raises(HyperparameterError, match="momentum"):
        match_straight_through(a, b, symmetry, [batch], momentum=1.0)


# --- many models


def test_copies_shuffled_at_random_merge_into_one():
    model = gaussian(mlp(6, 24, 24, 3), 0)
    symmetry = find_symmetry(model, torch.rand(1, 6))
    states = [symmetry.permute(model.state_dict(), symmetry.random(torch.Generator().manual_seed(s))) for s in range(4)]
    merged = merge_many(states, symmetry)
    moved = [symmetry.permute(state, perms) for state, perms in zip(states, merged.perms, strict=True)]
    for state in moved[1:]:
        assert all(torch.equal(state[key], tensor) for key, tensor in moved[0].items())
    probe = copy.deepcopy(model)
    probe.load_state_dict(merged.state)
    x = torch.rand(32, 6)
    torch.testing.assert_close(probe(x), model(x), rtol=1e-5, atol=1e-4)


def test_merging_brings_every_model_closer_to_the_mean():
    models = [mlp(6, 24, 24, 3, seed=seed) for seed in range(3)]
    symmetry = find_symmetry(models[0], torch.rand(1, 6))
    merged = merge_many(models, symmetry)

    def spread(states):
        middle = mean(states)
        return sum(float((state[key] - middle[key]).square().sum()) for state in states for key in symmetry.axes)

    states = [model.state_dict() for model in models]
    moved = [symmetry.permute(state, perms) for state, perms in zip(states, merged.perms, strict=True)]
    assert spread(moved) < spread(states)
    assert all(torch.equal(merged.state[key], tensor) for key, tensor in mean(moved).items())
    assert 1 <= merged.rounds < 100
    with pytest.raises(HyperparameterError, match="models"):
        merge_many(models[:1], symmetry)


# --- the command


def test_the_command_merges_in_place_and_tells_what_it_did():
    a, b = (gaussian(mlp(6, 16, 16, 3), seed) for seed in (0, 1))
    start, end = (copy.deepcopy(model.state_dict()) for model in (a, b))
    symmetry = find_symmetry(a, torch.rand(1, 6))
    perms = match_weights(start, end, symmetry).perms
    result = weight_matching(a, [torch.rand(8, 6)], other=b, alpha=0.25)
    moved = symmetry.permute(end, perms)
    for key, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * start[key] + 0.25 * moved[key])
    assert all(tensor.equal(end[key]) for key, tensor in b.state_dict().items())
    assert {row["layer"] for row in result.layers} == {"0.weight", "2.weight", "4.weight"}
    assert result.totals["distance_after"] < result.totals["distance_before"]
    stored = json.loads(result.files["permutations.json"])
    assert same({name: torch.tensor(perm) for name, perm in stored.items()}, perms)
    assert not result.curves


def test_the_command_on_a_language_model_measures_the_barrier():
    model, batch = tiny("gpt2")
    other = copy.deepcopy(model)
    symmetry = find_symmetry(model, batch)
    symmetry.permute_(other, symmetry.random(torch.Generator().manual_seed(0)))
    before = copy.deepcopy(model.state_dict())
    result = weight_matching(model, [batch], other=other)
    assert all(torch.allclose(tensor, before[key], atol=1e-6) for key, tensor in model.state_dict().items())
    assert abs(result.totals["barrier after matching"]) < 1e-4
    assert len(result.curves["loss along the line, before matching"]) == 13
    assert not result.notes
    again = weight_matching(model, [batch], other=copy.deepcopy(model))
    assert "in one order already" in again.notes[0]


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_without_labels_there_is_no_loss_to_measure(name):
    """A classifier's tokens are no labels, nor are those of an encoder whose decoder has its own."""
    model, batch = tiny(name)
    other = copy.deepcopy(model)
    symmetry = find_symmetry(model, batch)
    symmetry.permute_(other, symmetry.random(torch.Generator().manual_seed(0)))
    before = copy.deepcopy(model.state_dict())
    result = weight_matching(model, [batch], other=other)
    assert not result.curves
    assert same(model.state_dict(), before)
    labels = {"labels": torch.arange(8) % 2 if name == "bert" else batch["decoder_input_ids"].contiguous()}
    measured = weight_matching(model, [batch | labels], other=other)
    assert abs(measured.totals["barrier after matching"]) < 1e-4


def test_the_command_re_estimates_batch_normalisation():
    model = make("vgg")[0]
    other = roughen(copy.deepcopy(model), seed=3)
    data = torch.rand(32, 3, 8, 8)
    weight_matching(model, [data], other=other)
    first = model[0](data)
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(CalibrationError):
        weight_matching(model, [], other=other)
    with pytest.raises(HyperparameterError, match="alpha"):
        weight_matching(model, [data], other=other, alpha=1.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ShapeError, match="differ in 13 names"):
        weight_matching(model, [data], other=make("depthwise")[0])
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())


def test_the_command_gives_the_model_its_weights_back_when_it_fails():
    """Batches that the trace can use, and then one that it cannot."""
    one, two = (nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    before = {key: tensor.clone() for key, tensor in one.state_dict().items()}
    with pytest.raises(RuntimeError, match="shapes"):
        weight_matching(one, [torch.rand(4, 3), torch.rand(4, 5)], other=two)
    assert all(torch.equal(before[key], tensor) for key, tensor in one.state_dict().items())
    plain = [
        nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 2)) for _ in "ab"
    ]
    weight_matching(plain[0], [torch.rand(4, 3)], other=plain[1])
