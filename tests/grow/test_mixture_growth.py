import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from models import tiny
from weightsmith.claims.mixture_growth import _cover_least
from weightsmith.core.errors import HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.io import load_model, save_model
from weightsmith.core.models import fold_parametrizations
from weightsmith.core.training import default_loss, fit
from weightsmith.grow import LogitSum, MixtureGrowth, grow_randomly, mixture_growth, parameter_groups, widen_net2net
from weightsmith.grow._mixture_growth import joint_loss
from weightsmith.grow._shared.templates import LAYOUTS, TemplateMix, coefficients, grow_coefficients
from weightsmith.grow._widen_net2net import match_widths


def mlp(width):
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 4)
    )


class ResNet(nn.Module):
    """A residual CNN with batch normalisation, a depthwise convolution and a classifier after flattening."""

    def __init__(self, width):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv, self.second = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(16 * width, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.second(self.conv(self.depthwise(x))).relu()).flatten(1))


def trained_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def blocks_of(growth):
    wide = growth.grow()
    return wide, {name: get(wide, name) for name in growth.layers}


def get(model, name):
    return model.get_submodule(name).weight.detach()


@pytest.mark.parametrize(("make", "shape"), [(mlp, (5, 6)), (ResNet, (5, 3, 4, 4))])
def test_without_new_blocks_it_is_the_sum_of_its_members(make, shape):
    growth = MixtureGrowth(lambda width: make(width).double(), width=8, generator=generator())
    members = [trained_statistics(growth.member(number)) for number in (0, 1)]
    x = torch.randn(shape, dtype=torch.float64)
    wide = growth.grow("zero").eval()
    ensemble = LogitSum(*members)(x)
    torch.testing.assert_close(wide(x), ensemble, rtol=0, atol=1e-12)
    assert torch.equal(wide(x).argmax(1), ensemble.argmax(1))
    assert growth.fixed == []
    assert growth.ensemble_error(x) < 1e-12


def test_layout_of_the_blocks():
    alphas = [nn.Parameter(torch.tensor([float(m)])) for m in range(4)]
    ones = torch.ones(1, 2, 3)
    weight = TemplateMix(alphas, LAYOUTS[True, True])(ones, ones)
    expected = torch.tensor([[0.0, 2.0], [3.0, 1.0]]).repeat_interleave(2, 0).repeat_interleave(3, 1)
    assert torch.equal(weight.detach(), expected)
    assert TemplateMix(alphas, LAYOUTS[True, False])(ones, ones).tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert TemplateMix(alphas, LAYOUTS[False, True])(ones, ones).tolist() == [[0.0] * 3 + [1.0] * 3] * 2


def test_a_member_mixes_its_own_templates_and_trains_nothing_else():
    growth = MixtureGrowth(mlp, width=8, generator=generator())
    layer = growth.layers["2"]
    mixed = sum(alpha * template for alpha, template in zip(layer.alphas[0], layer.templates[0], strict=True))
    torch.testing.assert_close(get(growth.member(0), "2"), mixed.detach())
    before = copy.deepcopy(growth.layers)
    data = TensorDataset(torch.randn(64, 6), torch.randint(4, (64,)))
    fit(growth.member(0), data, optimizer=torch.optim.AdamW(parameter_groups(growth.member(0)), lr=0.1), epochs=2)
    for name, layer in growth.layers.items():
        assert not torch.equal(layer.templates[0], before[name].templates[0])
        assert not torch.equal(layer.alphas[0], before[name].alphas[0])
        assert torch.equal(layer.templates[1], before[name].templates[1])
        assert all(torch.equal(a, b) for a, b in zip(layer.alphas[1:], before[name].alphas[1:], strict=True))
    untouched = growth.member(1)
    assert all(parameter.grad is None for parameter in untouched.parameters())


def test_gradients_of_templates_and_coefficients():
    growth = MixtureGrowth(lambda width: mlp(width).double(), width=4, generator=generator())
    wide, layer = growth.grow(), growth.layers["2"]
    x = torch.randn(7, 6, dtype=torch.float64)
    weight = wide[2].weight.detach().requires_grad_()
    torch.func.functional_call(MixtureGrowth.export(wide), {"2.weight": weight}, (x,)).square().sum().backward()
    wide(x).square().sum().backward()
    rows = [half.chunk(2, 1) for half in weight.grad.chunk(2, 0)]
    gradient = {0: rows[0][0], 2: rows[0][1], 3: rows[1][0], 1: rows[1][1]}
    for number in (0, 1):
        for j in range(2):
            expected = sum(layer.alphas[m][j] * gradient[m] for m in (number, number + 2))
            torch.testing.assert_close(layer.templates[number].grad[j], expected.detach())
    for m, alpha in enumerate(layer.alphas):
        expected = torch.stack([(gradient[m] * layer.templates[m % 2][j]).sum() for j in range(2)])
        torch.testing.assert_close(alpha.grad, expected.detach())


def test_the_papers_rule_for_block_three():
    rows = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 0.0]]
    alphas = [nn.Parameter(torch.tensor(row)) for row in rows]
    values = torch.linalg.svdvals(torch.tensor(rows[:3]))
    torch.testing.assert_close(values, torch.tensor([2.0**0.5, 1.0]))
    _cover_least(alphas)
    assert alphas[2].tolist() == pytest.approx([0.6, 0.8])
    new = alphas[3].detach() * alphas[3].detach()[0].sign()
    torch.testing.assert_close(new, torch.tensor([0.8, -0.6]))
    torch.testing.assert_close(torch.tensor(rows[:3]) @ new, torch.tensor([0.8, -0.6, 0.0]), rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 5), seed=st.integers(0, 100), scale=st.sampled_from([0.5, 1.0]))
def test_growth_rules(n, seed, scale):
    alphas = coefficients(4, n, generator=generator(seed))
    torch.testing.assert_close(
        torch.stack(alphas).detach().square().sum(), torch.tensor(float(min(4, n))), rtol=1e-4, atol=0
    )
    first, second, *_ = (alpha.detach().clone() for alpha in alphas)
    grow_coefficients(alphas, "orthogonal", scale=scale, generator=generator(seed))
    for old, new in ((first, alphas[2]), (second, alphas[3])):
        assert abs((old @ new).item()) < 1e-5
        assert new.norm().item() == pytest.approx(scale * old.norm().item(), rel=1e-4)
    grow_coefficients(alphas, "copy", scale=scale, generator=generator(seed))
    torch.testing.assert_close(alphas[2] - first, alphas[3] - second)
    assert (alphas[2] - first).norm().item() == pytest.approx(scale, rel=1e-4)
    grow_coefficients(alphas, "random", scale=scale, generator=generator(seed))
    assert 0 <= min(alphas[2].min(), alphas[3].min()) <= max(alphas[2].max(), alphas[3].max()) < scale
    grow_coefficients(alphas, "zero")
    assert alphas[2].abs().max() == alphas[3].abs().max() == 0
    assert torch.equal(alphas[0], first)
    assert torch.equal(alphas[1], second)


def test_parameters_of_a_convolution():
    make = lambda width: nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3, bias=False))  # noqa: E731
    growth = MixtureGrowth(make, width=160)
    layer = growth.layers["1"]
    assert sum(t.numel() for t in layer.templates) == 921_600 == make(320)[1].weight.numel()
    assert sum(a.numel() for a in layer.alphas) == 8
    assert sum(t.numel() for t in growth.layers["0"].templates) == 2 * make(320)[0].weight.numel()


def test_mixed_weights_start_as_kaiming_has_it():
    growth = MixtureGrowth(mlp, width=256, generator=generator())
    for name in growth.layers:
        for member in (0, 1):
            weight = get(growth.member(member), name)
            assert weight.std().item() == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.1)


@pytest.mark.parametrize("init", ["orthogonal", "zero", "copy", "random"])
def test_exports_are_plain_and_compute_the_same(init):
    growth = MixtureGrowth(ResNet, width=8, generator=generator())
    wide = growth.grow(init, generator=generator())
    trained_statistics(wide)
    x = torch.randn(3, 3, 4, 4)
    plain = MixtureGrowth.export(wide)
    assert plain.state_dict().keys() == ResNet(16).state_dict().keys()
    torch.testing.assert_close(plain(x), wide(x))
    assert type(plain.conv) is nn.Conv2d
    again = MixtureGrowth.export(wide)
    assert torch.equal(again.conv.weight, plain.conv.weight)
    member = MixtureGrowth.export(growth.member(0).eval())
    torch.testing.assert_close(member(x), growth.member(0)(x))


def test_batch_normalisation_is_joined_and_estimated_anew():
    growth = MixtureGrowth(ResNet, width=8, generator=generator())
    members = [trained_statistics(growth.member(number)) for number in (0, 1)]
    kept = copy.deepcopy(growth).grow("zero")
    for name in ("running_mean", "running_var", "weight", "bias"):
        joined = torch.cat([getattr(member.norm, name) for member in members])
        assert torch.equal(getattr(kept.norm, name), joined)
    x = torch.randn(64, 3, 4, 4)
    wide = growth.grow("orthogonal", calibration=[x], generator=generator())
    with torch.no_grad():
        stem = wide.stem(x)
    torch.testing.assert_close(wide.norm.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_plain_models_grow_as_they_are():
    plain = [mlp(8), mlp(8)]
    x = torch.randn(5, 6)
    growth = MixtureGrowth.from_plain(mlp, *plain, width=8, templates=1)
    for number in (0, 1):
        torch.testing.assert_close(growth.member(number)(x), plain[number](x))
    with pytest.warns(UserWarning, match="no vector of one coefficient"):
        wide = growth.grow()
    torch.testing.assert_close(wide(x), plain[0](x) + plain[1](x))
    fresh = MixtureGrowth.from_plain(mlp, plain[0], width=8, generator=generator())
    torch.testing.assert_close(fresh.member(0)(x), plain[0](x))
    assert not torch.allclose(fresh.member(1)(x), plain[0](x))
    with pytest.raises(UnsupportedModelError, match=r"model 0 is not what make_model makes: found '0\.weight' differs"):
        MixtureGrowth.from_plain(mlp, mlp(16), width=8)


def test_a_members_checkpoint_loads_into_the_other_slot():
    growth = MixtureGrowth(mlp, width=8, generator=generator())
    x = torch.randn(5, 6)
    growth.member(1).load_state_dict(growth.member(0).state_dict())
    assert torch.equal(growth.member(1)(x), growth.member(0)(x))
    assert growth.layers["0"].templates[0] is not growth.layers["0"].templates[1]


def test_layers_of_a_group_share_templates():
    make = lambda width: nn.Sequential(nn.Linear(6, width), *[nn.Linear(width, width) for _ in range(3)])  # noqa: E731
    growth = MixtureGrowth(make, width=8, groups=lambda name: "all", generator=generator())
    assert growth.layers["1"].templates[0] is growth.layers["3"].templates[0]
    assert growth.layers["1"].templates[0] is not growth.layers["0"].templates[0]
    assert not torch.equal(get(growth.member(0), "1"), get(growth.member(0), "3"))
    wide = growth.grow()
    names = [name for name, _ in wide.named_parameters() if "original" in name]
    assert len(names) == 4


def test_assigning_a_weight_finds_templates_that_give_it():
    growth = MixtureGrowth(mlp, width=8, generator=generator())
    wide, weight = growth.grow(), torch.randn(32, 16)
    wide[2].weight = weight
    torch.testing.assert_close(wide[2].weight.detach(), weight, rtol=1e-4, atol=1e-4)


def test_coefficients_do_not_decay_and_nothing_is_unused():
    growth = MixtureGrowth(ResNet, width=8)
    for network in (growth.member(0), growth.grow()):
        decays, stays = parameter_groups(network)
        assert stays["weight_decay"] == 0.0
        assert {p.ndim for p in stays["params"]} == {1}
        default_loss(network, (torch.randn(4, 3, 4, 4), torch.randint(4, (4,)))).backward()
        assert all(p.grad is not None for p in [*decays["params"], *stays["params"]])


def test_autocast_assembles_in_single_precision():
    growth = MixtureGrowth(mlp, width=8, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert growth.grow()[2].weight.dtype == torch.float32


def test_both_members_at_once():
    growth = MixtureGrowth(mlp, width=8, generator=generator())
    members = nn.ModuleList([growth.member(0), growth.member(1)])
    batch = (torch.randn(4, 6), torch.randint(4, (4,)))
    first, second = (default_loss(member, batch) for member in members)
    torch.testing.assert_close(joint_loss()(members, batch), (0.1 * first + second) / 2)


def test_net2net_keeps_the_function_and_then_breaks_the_symmetry():
    for make, x in ((mlp, torch.randn(5, 6)), (ResNet, torch.randn(5, 3, 4, 4))):
        narrow, wide = trained_statistics(make(8)), make(16).eval()
        widen_net2net(narrow, wide, x, noise=0.0)
        assert (narrow(x) - wide(x)).abs().max() < 1e-6 * narrow(x).abs().max() + 1e-6
        widen_net2net(narrow, wide, x, generator=generator())
        assert not torch.allclose(narrow(x), wide(x))
    half = get(wide, "conv")[:8, :8]
    assert torch.equal(half, get(narrow, "conv") / 2)


def test_net2net_on_a_transformer():
    for name in ("llama", "gpt2", "bert"):
        narrow, batch = tiny(name)
        config = copy.deepcopy(narrow.config)
        if name == "gpt2":
            config.n_inner = 256
        else:
            config.intermediate_size *= 2
        wide = type(narrow)(config).eval()
        widen_net2net(narrow, wide, batch, noise=0.0)
        torch.testing.assert_close(narrow(**batch).logits, wide(**batch).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "change"), [("llama", "heads"), ("gpt2", "n_inner")])
def test_net2net_doubles_heads_as_blocks(name, change):
    narrow, batch = tiny(name)
    config = copy.deepcopy(narrow.config)
    if change == "heads":
        config.head_dim = config.hidden_size // config.num_attention_heads
        config.num_attention_heads *= 2
        config.num_key_value_heads *= 2
    else:
        config.n_inner = 256
    wide = type(narrow)(config).eval()
    widen_net2net(narrow, wide, batch, noise=0.0)
    torch.testing.assert_close(narrow(**batch).logits, wide(**batch).logits, rtol=1e-4, atol=1e-5)


class Fused(nn.Module):
    """Queries, keys and values in one matrix."""

    def __init__(self, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(8, 12 * heads), nn.Linear(4 * heads, 3)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_net2net_on_fused_projections():
    torch.manual_seed(0)
    narrow, wide, x = Fused(2), Fused(4), torch.randn(2, 5, 8)
    widen_net2net(narrow, wide, x, noise=0.0)
    torch.testing.assert_close(wide(x), narrow(x))


def test_net2net_refuses_what_it_cannot_follow():
    with pytest.raises(UnsupportedModelError, match="different architectures"):
        widen_net2net(mlp(8), nn.Linear(6, 6), torch.ones(1, 6))
    with pytest.raises(UnsupportedModelError, match="tied weight 'a.weight' grows"):
        widen_net2net(Tied(4), Tied(8), torch.tensor([[1]]))
    with pytest.raises(ShapeError, match="axis 0 of '0.weight'"):
        widen_net2net(nn.Sequential(nn.Linear(6, 4)), nn.Sequential(nn.Linear(6, 8)), torch.ones(1, 6))


class Ends(nn.Module):
    """Layers, or functions, between a layer of some width and one of three outputs."""

    def __init__(self, width, middle):
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(3, width), nn.Linear(width, 3), middle

    def forward(self, x):
        x = self.first(x)
        x = self.middle(x, x, x) if isinstance(self.middle, nn.MultiheadAttention) else self.middle(x)
        return self.last(x[0] if isinstance(x, tuple) else x)


@pytest.mark.parametrize(
    "middle",
    [
        lambda width: nn.Softmax(-1),
        lambda width: lambda x: functional.normalize(x, dim=-1),
        lambda width: nn.MultiheadAttention(width, 2, batch_first=True),
    ],
    ids=["softmax", "normalized", "larger heads"],
)
def test_net2net_refuses_what_would_compute_something_else(middle):
    torch.manual_seed(0)
    narrow, wide = (Ends(width, middle(width)) for width in (8, 16))
    before = copy.deepcopy(wide.state_dict())
    with pytest.raises(UnsupportedModelError, match="outputs that differ by up to"):
        widen_net2net(narrow, wide, torch.randn(2, 5, 3))
    assert all(torch.equal(before[name], value) for name, value in wide.state_dict().items())


@pytest.mark.parametrize(
    "middle",
    [
        lambda width: nn.LSTM(width, width, batch_first=True),
        lambda width: nn.MultiheadAttention(width, width // 4, batch_first=True),
        lambda width: nn.Sequential(nn.Unflatten(-1, (width, 1)), nn.Flatten(0, 1), nn.ConvTranspose1d(width, width, 1),
                                    nn.Unflatten(0, (2, 5)), nn.Flatten(2)),
    ],
    ids=["LSTM", "more heads", "transposed"],
)  # fmt: skip
def test_net2net_halves_what_leaves_a_unit_in_all_kinds_of_layers(middle):
    torch.manual_seed(0)
    narrow, wide = (Ends(width, middle(width)) for width in (8, 16))
    x = torch.randn(2, 5, 3)
    widen_net2net(narrow, wide, x, noise=0.0)
    torch.testing.assert_close(wide(x), narrow(x))


class Tied(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Embedding(10, width), nn.Linear(width, 10, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def test_random_growth_keeps_the_corner():
    narrow, wide = mlp(8), mlp(16)
    rest = wide[2].weight.detach().clone()
    grow_randomly(narrow, wide)
    assert torch.equal(wide[2].weight[:16, :8], narrow[2].weight)
    assert torch.equal(wide[2].weight[16:], rest[16:])
    assert torch.equal(wide[0].bias[:8], narrow[0].bias)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "opt", "vit"])
def test_the_command_doubles_the_inner_width(name, tmp_path):
    model, batch = tiny(name)
    before = copy.deepcopy(model)
    labels = (
        {"labels": torch.zeros(8).long()}
        if name in ("bert", "vit")
        else {"labels": batch["input_ids"]}
        if "input_ids" in batch
        else {}
    )
    samples = [{key: value[row] for key, value in (batch | labels).items()} for row in range(8)]
    result = mixture_growth(model, samples, generator=generator())
    assert result.totals["width"] == 2 * result.totals["width_before"]
    assert result.totals["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(result.layers) == 2 * {"llama": 3}.get(name, 2)
    assert len(result.curves["training loss"]) == len(result.curves["member's training loss"]) == 1
    assert torch.isfinite(model(**batch).logits).all()
    assert not torch.equal(model(**batch).logits, before(**batch).logits)
    save_model(model, tmp_path / "out")
    loaded = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_growing_a_transformer_without_training_changes_nothing():
    model, batch = tiny("llama")
    before = model(**batch).logits
    samples = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    rates = {"member_learning_rate": 0.0, "learning_rate": 0.0, "weight_decay": 0.0}
    result = mixture_growth(model, samples, generator=generator(), **rates)
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)
    assert result.totals["width"] == 128


@pytest.mark.parametrize("seed", [None, 3])
def test_the_seed_on_record_is_that_of_the_grown_weights(seed):
    grown = []
    for other in (0, 1):
        model, batch = tiny("llama")
        samples = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
        torch.manual_seed(other)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        result = mixture_growth(model, samples, init="random", generator=generator)
        grown.append((result.seed, model.state_dict()))
    assert grown[0][0] == grown[1][0]
    assert all(torch.equal(value, grown[1][1][name]) for name, value in grown[0][1].items())


def test_the_trunk_of_a_transformer_is_the_models_own():
    model, batch = tiny("llama")

    def make(width):
        config = copy.deepcopy(model.config)
        config.intermediate_size = width
        return type(model)(config).eval()

    growth = MixtureGrowth.from_plain(make, model, width=64, generator=generator())
    first, second = growth.member(0), growth.member(1)
    torch.testing.assert_close(first(**batch).logits, model(**batch).logits)
    assert "model.embed_tokens.weight" in growth.fixed
    assert not second.model.embed_tokens.weight.requires_grad
    with torch.no_grad():
        first.model.embed_tokens.weight.mul_(2)
    assert torch.equal(second.model.embed_tokens.weight, first.model.embed_tokens.weight)
    second.load_state_dict(first.state_dict())
    wide = growth.grow("zero")
    assert wide.model.embed_tokens.weight is first.model.embed_tokens.weight
    torch.testing.assert_close(wide(**batch).logits, first(**batch).logits, rtol=1e-4, atol=1e-5)
    assert growth.ensemble_error(batch) < 1e-5


def test_what_cannot_grow_is_refused():
    with pytest.raises(ShapeError, match=r"'0.weight' of the wide model: found \(9, 6\)"):
        match_widths(nn.Sequential(nn.Linear(6, 4)), nn.Sequential(nn.Linear(6, 9)))
    with pytest.raises(ShapeError, match="no tensor larger"):
        match_widths(mlp(8), mlp(8))
    with pytest.raises(UnsupportedModelError, match="different architectures"):
        match_widths(mlp(8), nn.Linear(3, 3))
    with pytest.raises(UnsupportedModelError, match="groups of layer '0': found \\(2, 2\\)"):
        match_widths(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)))
    with pytest.raises(UnsupportedModelError, match="grows along 2 axes"):
        match_widths(nn.MultiheadAttention(4, 2), nn.MultiheadAttention(8, 4))
    with pytest.raises(UnsupportedModelError, match="several parts side by side"):
        match_widths(nn.ModuleDict({"qkv": nn.Linear(4, 12)}), nn.ModuleDict({"qkv": nn.Linear(4, 24)}))
    with pytest.raises(UnsupportedModelError, match=r"tied weights \['a.weight', 'b.weight'\] grow"):
        match_widths(tied(4), tied(8))
    with pytest.warns(UserWarning, match="no sum of its members"):
        match_widths(nn.Sequential(nn.LayerNorm(4)), nn.Sequential(nn.LayerNorm(8)))
    match_widths(nn.Sequential(nn.GroupNorm(2, 4)), nn.Sequential(nn.GroupNorm(4, 8)))


def tied(width):
    model = nn.ModuleDict({"a": nn.Embedding(10, width), "b": nn.Linear(width, 10)})
    model["b"].weight = model["a"].weight
    return model


def test_bad_calls():
    for change in ({"width": 0}, {"width": 8, "templates": 0}):
        with pytest.raises(HyperparameterError, match="at least 1"):
            MixtureGrowth(mlp, **change)
    growth = MixtureGrowth(mlp, width=8)
    with pytest.raises(HyperparameterError, match="member: found 2"):
        growth.member(2)
    with pytest.raises(HyperparameterError, match="scale: found -1"):
        growth.grow(scale=-1.0)
    growth.grow()
    with pytest.raises(UnsupportedModelError, match="has grown already"):
        growth.grow()
    with pytest.raises(HyperparameterError, match="noise"):
        widen_net2net(mlp(8), mlp(16), torch.ones(1, 6), noise=-1.0)
    with pytest.raises(UnsupportedModelError, match="no inner width"):
        mixture_growth(mlp(8), [])


def test_members_that_do_not_lie_side_by_side_are_told():
    class Concatenates(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, width), nn.Linear(3, width), nn.Linear(2 * width, 2)

        def forward(self, x):
            return self.out(torch.cat([self.a(x), self.b(x)], 1))

    assert MixtureGrowth(Concatenates, width=4).ensemble_error(torch.randn(5, 3)) > 0.01
    assert MixtureGrowth(mlp, width=4).ensemble_error(torch.randn(5, 6)) < 1e-5


def test_folding_leaves_copies_of_the_module_alone():
    growth = MixtureGrowth(mlp, width=4)
    wide = growth.grow()
    twin, x = copy.deepcopy(wide), torch.randn(2, 6)
    before = wide(x)
    fold_parametrizations(twin)
    assert torch.equal(wide(x), before)
    torch.testing.assert_close(twin(x), before)


def test_stem_and_classifier_of_several_inputs_are_found_by_shape():
    class Two(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.text, self.image = nn.Linear(3, width), nn.Linear(5, width)
            self.body, self.head = nn.Linear(width, width), nn.Linear(width, 2)

        def forward(self, text, image):
            return self.head(self.body((self.text(text) + self.image(image)).relu()).relu())

    growth = MixtureGrowth(Two, width=4, generator=generator())
    assert {name: layer.grows for name, layer in growth.layers.items()} == {
        "text": (True, False), "image": (True, False), "body": (True, True), "head": (False, True),
    }  # fmt: skip
    batch = torch.randn(6, 3), torch.randn(6, 5)
    members = LogitSum(growth.member(0), growth.member(1))(*batch)
    torch.testing.assert_close(growth.grow("zero")(*batch), members)


def test_an_optimizer_made_before_growth_trains_the_grown_network():
    growth = MixtureGrowth(mlp, width=8, generator=generator())
    optimizer = torch.optim.SGD(growth.member(0).parameters(), lr=0.1)
    wide = growth.grow(generator=generator())
    held = {p for group in optimizer.param_groups for p in group["params"]}
    layer = growth.layers["2"]
    assert {layer.templates[0], layer.alphas[0]} < held & {*wide.parameters()}
    before = layer.templates[0].detach().clone()
    default_loss(wide, (torch.randn(4, 6), torch.randint(4, (4,)))).backward()
    optimizer.step()
    assert not torch.equal(layer.templates[0], before)
