"""Weight matching where networks are odd: other names, packed, huge, half precision, normalised, dead, of one unit."""

import copy
import itertools

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from permutable import IDS, make, roughen
from weightsmith.core.errors import NonFiniteError, ShapeError, UnsupportedModelError
from weightsmith.core.io import load_state_dict
from weightsmith.core.symmetry import Symmetry, find_symmetry
from weightsmith.merge import (
    match_activations,
    match_straight_through,
    match_weights,
    merge_many,
    rebasin,
    weight_matching,
)
from weightsmith.merge._weight_matching import matching


def mlp(*widths, seed=0):
    torch.manual_seed(seed)
    layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def planted(model, batch, seed=0):
    """A symmetry, the model's weights, the same shuffled, and the permutations that undo it."""
    symmetry = find_symmetry(model, batch, verify=False)
    perms = symmetry.random(torch.Generator().manual_seed(seed))
    return symmetry, model.state_dict(), symmetry.permute(model.state_dict(), perms), symmetry.inverse(perms)


def same(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in b)


def snapshot(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


# --- what is refused


def test_networks_with_other_names_are_not_averaged():
    """The longer one's last layer would be dropped in silence."""
    model, longer = mlp(3, 8, 8), nn.Sequential(*mlp(3, 8, 8, seed=1), nn.Linear(8, 8))
    before = snapshot(model)
    symmetry = find_symmetry(model, torch.rand(1, 3))
    for one, two in ((model, longer), (longer, model)):
        with pytest.raises(ShapeError, match=r"differ in 2 names.*3\.bias"):
            weight_matching(one, [torch.rand(4, 3)], other=two)
    with pytest.raises(ShapeError, match=r"model 1 and model 2 differ in 2 names"):
        merge_many([model, longer], symmetry)
    with pytest.raises(ShapeError, match=r"the networks differ in 2 names"):
        match_straight_through(model, longer, symmetry, [(torch.rand(4, 3), torch.zeros(4, dtype=torch.long))])
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_packed_weights_are_refused(dtype):
    model = mlp(3, 8, 2)
    symmetry = find_symmetry(model, torch.rand(1, 3))
    packed = model.state_dict() | {"2.weight": torch.ones(2, 8, dtype=dtype)}
    for pair, whose in (((model, packed), "second"), ((packed, model), "first")):
        with pytest.raises(UnsupportedModelError, match=rf"'2.weight' of the {whose} model is packed or quantized"):
            match_weights(*pair, symmetry)
    with pytest.raises(UnsupportedModelError, match="packed or quantized"):
        merge_many([model, packed], symmetry)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["0.bias", "2.weight"])
def test_the_tensor_that_is_not_finite_is_named(key, bad):
    model = mlp(3, 8, 2)
    symmetry = find_symmetry(model, torch.rand(1, 3))
    broken = snapshot(model)
    broken[key].view(-1)[1] = bad
    with pytest.raises(NonFiniteError, match=f"'{key}' of the first model"):
        match_weights(broken, model, symmetry)


def test_products_that_overflow_are_refused_and_fit_in_float64():
    """Also where no assignment sees an infinite product, but their sum is none any more."""
    model = mlp(3, 8, 8)
    symmetry, state, shuffled, truth = planted(model, torch.rand(1, 3))
    for dtype, scale in itertools.product((torch.float32, torch.bfloat16), (2e19, 1e25)):
        huge = {key: (tensor * scale).to(dtype) for key, tensor in state.items()}
        with pytest.raises(NonFiniteError, match="overflow.*float64"):
            match_weights(huge, huge, symmetry)
    huge, moved = ({key: tensor.double() * 1e25 for key, tensor in each.items()} for each in (state, shuffled))
    assert same(match_weights(huge, moved, symmetry).perms, truth)


def test_a_spec_whose_sizes_disagree_is_refused():
    symmetry = find_symmetry(mlp(3, 8, 2), torch.rand(1, 3))
    (name,) = symmetry.groups
    wider = {name: type(symmetry.groups[name])(name, 9, "")}
    for permutations, words in ((wider, "expected 9"), ({}, "no such group")):
        with pytest.raises(ShapeError, match=rf"8 indices of '0.weight' in group.*{words}"):
            Symmetry(permutations, symmetry.axes, symmetry.shapes)


def test_shapes_that_differ_are_listed():
    model = mlp(3, 8, 2)
    symmetry = find_symmetry(model, torch.rand(1, 3))
    with pytest.raises(ShapeError, match=r"3 tensors of the second model such as \['0.weight', '0.bias', '2.weight'\]"):
        match_weights(model, mlp(3, 9, 2), symmetry)


def test_the_command_names_what_it_left_in_place():
    class Fourier(nn.Sequential):
        def forward(self, x):
            return self[2](torch.fft.fft(self[1](self[0](x).relu())).real)

    one, two = (Fourier(*(nn.Linear(4, 4) for _ in range(3))) for _ in range(2))
    notes = weight_matching(one, [torch.rand(3, 4)], other=two).notes
    assert any(note.startswith("1.weight keeps the order of an axis: it goes through aten._fft_r2c") for note in notes)


# --- the same network, and children of one parent


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_a_network_with_itself_stays_bit_by_bit(alpha):
    model = make("resnet, layer norm")[0]
    roughen(model)
    before = snapshot(model)
    result = weight_matching(model, [torch.rand(2, 3, 8, 8)], other=copy.deepcopy(model), alpha=alpha)
    assert same(model.state_dict(), before)
    assert result.totals["sweeps"] == 1
    assert result.totals["distance_before"] == result.totals["distance_after"] == 0


def test_a_warm_start_without_gain_changes_nothing():
    model = mlp(6, 8, 8, 3)
    symmetry = find_symmetry(model, torch.rand(1, 6))
    pair = matching._pair_of(model, model, symmetry)
    norms, _ = matching._survey(pair, symmetry)
    descent = matching._Descent(symmetry, pair, norms, symmetry.identity(), "none")
    assert descent.warm_start() is descent
    assert not descent.duals
    assert not descent.costs
    assert descent.history == [descent.objective]


def test_children_of_one_parent_are_told_that_they_are_in_order():
    parent = mlp(8, 24, 24, 3)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 8, generator=generator)
    labels = x[:, :3].argmax(1)

    def train(model, rows, steps):
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            functional.cross_entropy(model(x[rows]), labels[rows]).backward()
            optimiser.step()
        return model

    train(parent, slice(None), 100)
    one, two = (train(copy.deepcopy(parent), rows, 50) for rows in (slice(0, 128), slice(128, 256)))
    a, b = snapshot(one), snapshot(two)
    result = weight_matching(one, [x[:4]], other=two)
    assert 0 < result.totals["distance_after"] == result.totals["distance_before"]
    assert any("in one order already" in note and "Plain averaging gives the same" in note for note in result.notes)
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, (a[key] + b[key]) / 2)


# --- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    def large(seed):
        model = mlp(64, 24, 24, 5, seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_().mul_(300.0)
        return model.to(dtype)

    one, two = large(0), large(1)
    if dtype == torch.float16:
        assert (one[0].weight @ one[0].weight.T).isinf().any()  # what sums in float16 would be
    symmetry = find_symmetry(one.float(), torch.rand(1, 64))
    wide = match_weights(one, two.float(), symmetry)
    half = match_weights(one.to(dtype), two.to(dtype), symmetry)
    assert same(half.perms, wide.perms)
    assert half.history == wide.history
    assert half.distance_after == wide.distance_after
    start, moved = snapshot(one), symmetry.permute(two.state_dict(), half.perms)
    weight_matching(one, [torch.rand(1, 64).to(dtype)], other=two)
    for key, tensor in one.state_dict().items():
        assert tensor.equal(((start[key].double() + moved[key].double()) / 2).to(dtype))
    mean = merge_many([start, moved], symmetry)
    assert all(tensor.dtype == dtype for tensor in mean.state.values())


# --- batch normalisation


def test_statistics_move_along_but_have_no_say():
    model, batch, _ = make("vgg")
    symmetry, state, shuffled, truth = planted(roughen(model), batch)
    quiet = match_weights(state, shuffled, symmetry)
    loud = match_weights(state | {"1.running_var": 1e6 * state["1.running_var"]}, shuffled, symmetry)
    assert same(quiet.perms, truth)
    assert same(loud.perms, truth)
    assert loud.history == quiet.history
    assert symmetry.permute(shuffled, truth)["1.running_mean"].equal(state["1.running_mean"])


def test_batches_seen_are_copied_as_an_integer_from_one_side():
    model, batch, _ = make("vgg")
    other = roughen(copy.deepcopy(model), seed=1)
    model[1].num_batches_tracked.fill_(7)
    other[1].num_batches_tracked.fill_(30)
    symmetry = find_symmetry(model, batch, verify=False)
    moved = symmetry.permute(other.state_dict(), symmetry.random(torch.Generator().manual_seed(0)))
    assert moved["1.num_batches_tracked"].equal(torch.tensor(30))
    with pytest.warns(UserWarning, match="Running statistics.*re-estimate"):
        merged = merge_many([model, other], symmetry).state
    assert merged["1.num_batches_tracked"].equal(torch.tensor(7))
    model.load_state_dict(merged)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_keep_their_statistics(alpha):
    model, batch, _ = make("vgg")
    roughen(model)
    other = roughen(copy.deepcopy(model), seed=1)
    before = snapshot(model)
    result = weight_matching(model, [batch], other=other, alpha=alpha)
    if alpha:
        symmetry = find_symmetry(other, batch)
        torch.testing.assert_close(model(batch), other(batch), rtol=1e-4, atol=1e-5)
        before = symmetry.permute(other.state_dict(), match_weights(before, other, symmetry).perms)
    assert same(model.state_dict(), before)
    assert result.totals["distance_after"] > 0


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_normalised_networks_on_disk(alpha, tmp_path, recwarn):
    """Without data no statistics can be estimated: the average comes with a warning, the other network without."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic"
    )
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = roughen(transformers.ResNetForImageClassification(config), seed=seed)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked.fill_(10 + seed)
        model.save_pretrained(tmp_path / "ab"[seed])
    recwarn.clear()
    result = rebasin([tmp_path / "a", tmp_path / "b"], tmp_path / "out", alpha=alpha)
    words = "Running statistics of batch normalization were averaged"
    assert any(words in str(warning.message) for warning in recwarn) == (alpha < 1)
    assert any(words in note for note in result.notes) == (alpha < 1)
    merged = load_state_dict(tmp_path / "out")
    counts = [tensor for key, tensor in merged.items() if key.endswith("num_batches_tracked")]
    assert counts
    assert all(count.equal(torch.tensor(11)) for count in counts)
    if alpha == 1:
        twin = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "out").eval()
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(twin(images).logits, model.eval()(images).logits, rtol=1e-4, atol=1e-4)


# --- units that are alike, silent or alone


def with_twins(model):
    """The first two units of the first layer alike, the third and fourth silent."""
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[1] = tensor[0]
            tensor[2:4] = 0
        model[2].weight[:, 1] = model[2].weight[:, 0]
        model[2].weight[:, 2:4] = 0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_twins_and_silent_units_always_go_the_same_way(dtype):
    model = with_twins(mlp(6, 12, 12, 3)).to(dtype)
    symmetry, state, shuffled, _ = planted(model, torch.rand(1, 6).to(dtype))
    runs = [match_weights(state, shuffled, symmetry, restarts=3) for _ in range(3)]
    for run in runs:
        assert same(run.perms, runs[0].perms)
        assert run.distance_after == 0
    assert same(symmetry.permute(shuffled, runs[0].perms), state)
    itself = match_weights(state, state, symmetry)
    assert same(itself.perms, symmetry.identity())  # a tie is no reason to move


def test_twins_and_silent_units_in_activations():
    model = with_twins(mlp(6, 12, 12, 3))
    symmetry, state, shuffled, _ = planted(model, torch.rand(1, 6))
    twin = copy.deepcopy(model)
    twin.load_state_dict(shuffled)
    data = [torch.rand(128, 6, generator=torch.Generator().manual_seed(0))]
    runs = [match_activations(model, twin, symmetry, data) for _ in range(2)]
    assert same(runs[0].perms, runs[1].perms)
    symmetry.check_permutations(runs[0].perms)
    first = symmetry.permute(shuffled, runs[0].perms)
    assert first["0.weight"][:2].equal(state["0.weight"][:2])


def test_a_layer_of_one_unit_between_wider_ones():
    symmetry, state, shuffled, truth = planted(mlp(6, 8, 1, 8, 3), torch.rand(1, 6))
    assert set(truth) == {"0.weight[0]", "4.weight[0]"}
    assert same(match_weights(state, shuffled, symmetry).perms, truth)


def test_a_single_attention_head():
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_key_value_heads=1, vocab_size=64))
    symmetry, state, shuffled, truth = planted(roughen(model.eval()), IDS)
    assert {name: symmetry.groups[name].within for name in truth} == dict.fromkeys(truth, "")
    assert same(match_weights(state, shuffled, symmetry).perms, truth)
