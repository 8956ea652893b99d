"""The masks by hand, sub-networks as exact slices of every architecture, samplers, the search, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from weightsmith.core.data import call
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.io import load_model, save_model
from weightsmith.core.models import has_batchnorm, recalibrate_batchnorm
from weightsmith.core.training import draw_seed
from weightsmith.search import (
    DARTS,
    GDAS,
    SPOS,
    DrNAS,
    Supernet,
    mix_outputs,
    random_search,
    search,
    sparsemax,
    spos,
    tanglenas,
)
from weightsmith.search._tanglenas.loop import TRAINING, Bilevel
from weightsmith.search._tanglenas.method import net_loss
from weightsmith.search._tanglenas.superposition import ArchState, AxisCut, Superposition, parts_of
from weightsmith.testing import samples, tiny

SPACES = {
    "llama": {
        "hidden_size": [16, 24, 32],
        "num_key_value_heads": [1, 2],
        "intermediate_size": [16, 48, 64],
        "num_hidden_layers": [1, 2],
    },
    "qwen3": {
        "hidden_size": [16, 24, 32],
        "num_attention_heads": [2, 4],
        "intermediate_size": [16, 64],
        "num_hidden_layers": [1, 2],
    },
    "gemma3": {"num_attention_heads": [2, 4], "intermediate_size": [16, 48, 64], "num_hidden_layers": [1, 2]},
    "gpt2": {
        "hidden_size": [16, 24, 32],
        "num_attention_heads": [2, 4],
        "mlp_ratio": [1, 2, 4],
        "num_hidden_layers": [1, 2],
    },
    "opt": {"hidden_size": [16, 24, 32], "num_attention_heads": [1, 2, 4], "ffn_dim": [16, 64]},
    "bert": {
        "hidden_size": [16, 24, 32],
        "num_attention_heads": [2, 4],
        "intermediate_size": [16, 48, 64],
        "num_hidden_layers": [1, 2],
    },
    "t5": {"num_heads": [2, 4], "d_ff": [16, 64]},
    "vit": {
        "hidden_size": [16, 24, 32],
        "num_attention_heads": [2, 4],
        "mlp_ratio": [1.5, 2],
        "num_hidden_layers": [1, 2],
    },
    "mixtral": {"hidden_size": [16, 24, 32], "num_attention_heads": [2, 4], "intermediate_size": [16, 48, 64]},
    "cnn": {"0.out_channels": [2, 4, 8], "3.out_channels": [4, 8], "3.kernel_size": [1, 3]},
    "mlp": {"0.out_features": [4, 8, 16]},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def outputs(model, batch):
    out = call(model, batch)
    return out if isinstance(out, torch.Tensor) else out.logits


def open_net(name):
    model, batch = tiny(name)
    return Supernet(model, SPACES[name], batch, generator=generator()), model, batch


def first(sizes, whole):
    """The table of an axis whose choices keep the first indices."""
    return torch.arange(whole) < torch.tensor(sizes)[:, None]


def superposed(axes, weights):
    """A parametrization of a tensor with such axes."""
    state = ArchState({name: tuple(range(1, len(w) + 1)) for name, w in weights.items()})
    state.set_weights(weights)
    sizes = {name: len(w) for name, w in weights.items()}
    return Superposition(state, parts_of(axes, sizes, "cpu", {}), len(axes))


# --- masks


def test_masks_of_one_dimension_are_cumulative_sums():
    weights = torch.tensor([0.7, 0.2, 0.1])
    mask = superposed([AxisCut(("c",), first([1, 2, 3], 3))], {"c": weights}).mask()
    torch.testing.assert_close(mask, torch.tensor([1.0, 0.3, 0.1]))
    place = torch.arange(7)
    kept = torch.stack([(place >= (7 - k) // 2) & (place < (7 + k) // 2) for k in (3, 5, 7)])
    mask = superposed([AxisCut(("k",), kept)] * 2, {"k": torch.tensor([0.2, 0.7, 0.1])}).mask()
    torch.testing.assert_close(mask[3], torch.tensor([0.1, 0.8, 1.0, 1.0, 1.0, 0.8, 0.1]))
    torch.testing.assert_close(mask[0], torch.full((7,), 0.1))


def test_joint_weights_are_row_major_and_sum_to_one():
    state = ArchState({"a": (1, 2, 3), "b": (1, 2, 3)})
    state.set_weights({"a": torch.tensor([0.7, 0.2, 0.1]), "b": torch.tensor([0.2, 0.7, 0.1])})
    joint = state.joint(("a", "b"))
    torch.testing.assert_close(joint, torch.tensor([0.14, 0.49, 0.07, 0.04, 0.14, 0.02, 0.02, 0.07, 0.01]))
    assert joint.sum().item() == pytest.approx(1)


def test_a_hidden_size_that_is_a_product_couples_both_axes():
    """Embeddings of 2 or 4, feed-forward layers of once or twice as many: the mask of the specification."""
    sizes = [2, 4, 4, 8]
    axes = [AxisCut(("e", "r"), first(sizes, 8)), AxisCut(("e",), first([2, 4], 4))]
    mask = superposed(axes, {"e": torch.tensor([0.3, 0.7]), "r": torch.tensor([0.6, 0.4])}).mask()
    expected = torch.full((8, 4), 0.28)
    expected[:2] = torch.tensor([1.0, 1.0, 0.7, 0.7])
    expected[2:4] = torch.tensor([0.82, 0.82, 0.7, 0.7])
    torch.testing.assert_close(mask, expected)


def test_factors_equal_the_sum_over_all_27_combinations():
    drawn = {name: torch.rand(3, generator=generator(n)).softmax(0).double() for n, name in enumerate("iok")}
    inner, outer, kernels = (8, 16, 32), (16, 32, 64), (3, 5, 7)
    place = torch.arange(7)
    centers = torch.stack([(place >= (7 - k) // 2) & (place < (7 + k) // 2) for k in kernels])
    axes = [AxisCut(("o",), first(outer, 64)), AxisCut(("i",), first(inner, 32)), *[AxisCut(("k",), centers)] * 2]
    form = superposed(axes, drawn)
    form._parts = tuple(type(p)(p.dims, p.axes, tuple(t.double() for t in p.tables)) for p in form._parts)
    summed = torch.zeros(64, 32, 7, 7, dtype=torch.float64)
    for i, a in zip(inner, drawn["i"], strict=True):
        for o, b in zip(outer, drawn["o"], strict=True):
            for k, c in zip(kernels, drawn["k"], strict=True):
                start = (7 - k) // 2
                summed[:o, :i, start : start + k, start : start + k] += a * b * c
    assert (form.mask() - summed).abs().max() < 1e-15


def test_all_ones_by_hand():
    layer = nn.Linear(10, 10)
    nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
    axes = [None, AxisCut(("i",), first([6, 8, 10], 10))]
    for weights, expected in (([0.2, 0.7, 0.1], 8.8), ([0.0, 1.0, 0.0], 9.0)):
        mixed = superposed(axes, {"i": torch.tensor(weights)})(layer.weight)
        torch.testing.assert_close(
            functional.linear(torch.ones(1, 10), mixed, layer.bias), torch.full((1, 10), expected)
        )


def test_the_mixture_of_weights_is_the_mixture_of_outputs_and_gradients_are_inner_products():
    """Also the trap of a shared kernel: its gradient is the sum of those of all branches."""
    conv = nn.Conv2d(3, 4, 5, padding=2)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    x = torch.randn(2, 3, 6, 6, generator=generator())
    net = Supernet(model, {"0.kernel_size": [1, 3, 5]}, x)
    weights = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    net.state.set_weights({"0.kernel_size": weights})
    mixed = conv(x)
    upstream = torch.randn(mixed.shape, generator=generator(1))
    whole = conv.parametrizations.weight.original
    by_mask = torch.autograd.grad((mixed * upstream).sum(), [whole, weights])
    slices = [functional.pad(whole[:, :, s : 5 - s, s : 5 - s], [s] * 4) for s in (2, 1, 0)]
    summed = sum(a * functional.conv2d(x, w, padding=2) for a, w in zip(weights, slices, strict=True))
    summed = summed + conv.bias[:, None, None]
    torch.testing.assert_close(mixed, summed, atol=1e-5, rtol=1e-5)
    by_sum = torch.autograd.grad((summed * upstream).sum(), [whole, weights], retain_graph=True)
    torch.testing.assert_close(by_mask[0], by_sum[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_mask[1], by_sum[1], atol=1e-4, rtol=1e-4)
    mixed_weight = sum(a * w for a, w in zip(weights.detach(), slices, strict=True)).detach().requires_grad_()
    out = functional.conv2d(x, mixed_weight, conv.bias, padding=2)
    (outer,) = torch.autograd.grad((out * upstream).sum(), mixed_weight)
    inner = torch.stack([(outer * w).sum() for w in slices])
    torch.testing.assert_close(by_mask[1], inner, atol=1e-4, rtol=1e-4)


def test_27_convolutions_mixed_by_output_and_by_weight():
    """The spec's layer in small: same outputs and gradients, from one pass instead of 27."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 7, padding=3), nn.Flatten(), nn.Linear(12 * 64, 2)]
    model, x = nn.Sequential(*layers), torch.randn(2, 3, 8, 8)
    net = Supernet(model, {"0.out_channels": [2, 4, 8], "1.out_channels": [3, 6, 12], "1.kernel_size": [3, 5, 7]}, x)
    results = []
    for by_output in (False, True):
        net.state.sample(DrNAS(), 0.0, generator())
        if by_output:
            mix_outputs(net)
        hidden = torch.randn(2, 8, 8, 8, generator=generator(1))
        out = model[1](hidden)
        wanted = [model[1].parametrizations.weight.original, *net.arch_parameters()]
        gradients = torch.autograd.grad(out.square().mean(), wanted)
        results.append((out, *gradients))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    net.close()
    assert type(model[1]) is nn.Conv2d


# --- sub-networks


@pytest.mark.parametrize("name", SPACES)
def test_a_sub_network_equals_the_mixture_with_all_weight_on_it(name, tmp_path):
    """The invariant, for whole networks: norms, heads, queries, keys and values, depth, kernels."""
    net, model, batch = open_net(name)
    draws = [net.state.random(generator(seed)) for seed in range(3)]
    smallest = {key: values[0] for key, values in net.space.choices.items()}
    for architecture in (*draws, smallest, net.space.largest):
        assert net.difference(architecture, batch) < 2e-6
        small = net.extracted(architecture)
        assert all(p.requires_grad for p in small.parameters())
        assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters())
    if not isinstance(model, transformers.PreTrainedModel):
        return
    small = net.extracted(smallest)
    small.save_pretrained(tmp_path / "small")
    again = type(small).from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(outputs(again, batch), outputs(small.eval(), batch))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "small")
    assert config.num_attention_heads == small.config.num_attention_heads
    for key, value in smallest.items():  # architecture -> network -> architecture
        if key == "mlp_ratio":
            inner = getattr(config, "n_inner", None) or config.intermediate_size
            assert inner == value * config.hidden_size
        else:
            assert getattr(config, key) == value


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "cnn"])
def test_the_largest_network_is_the_model_unchanged(name):
    model, batch = tiny(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    net = Supernet(model, SPACES[name], batch)
    large = net.extracted(net.space.largest)
    assert all(torch.equal(before[key], value) for key, value in large.state_dict().items())
    assert before.keys() == large.state_dict().keys()
    net.close()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert getattr(getattr(model, "config", None), "_attn_implementation", "sdpa") == "sdpa"
    with torch.no_grad():
        assert torch.equal(outputs(large, batch), outputs(model, batch))


def test_masked_channels_are_zero_and_kept_ones_those_of_the_smaller_network():
    model, batch = tiny("cnn")
    net = Supernet(model, SPACES["cnn"], batch)
    architecture = {"0.out_channels": 4, "3.out_channels": 4, "3.kernel_size": 1}
    net.state.fix(architecture)
    small = net.extracted(architecture)
    with torch.no_grad():
        inside, cut = model[:4](batch), small[:4](batch)
    torch.testing.assert_close(
        inside[:, :4], cut, rtol=1e-6, atol=1e-6
    )  # products of other sizes may add in another order
    assert not inside[:, 4:].any()
    assert not model[:2](batch)[:, 4:].any()  # the shift of batch normalization, too


def test_parameters_counted_by_hand():
    net, _model, _ = open_net("cnn")
    small = net.extracted({"0.out_channels": 4, "3.out_channels": 4, "3.kernel_size": 1})
    assert sum(p.numel() for p in small.parameters()) == (3 * 4 * 9 + 4) + 2 * 4 + (4 * 4 + 4) + (4 * 225 * 4 + 4)
    assert (small[3].kernel_size, small[3].padding, small[5].in_features) == ((1, 1), (0, 0), 900)


def test_queries_keys_and_values_are_sliced_apart():
    """The first rows of each head of each of the three blocks; with all heads the pretrained model is reproduced."""
    net, model, _ = open_net("gpt2")
    whole = model.transformer.h[0].attn.c_attn.parametrizations.weight.original
    for count, hidden in ((4, 24), (2, 24), (4, 32)):
        small = net.extracted(net.space.largest | {"hidden_size": hidden, "num_attention_heads": count})
        cut, size = small.transformer.h[0].attn.c_attn.weight, 32 // count
        rows = [
            part * 32 + head * size + feature
            for part in range(3)
            for head in range(count)
            for feature in range(hidden // count)
        ]
        assert torch.equal(cut, whole[:hidden][:, rows])
        assert small.config.n_head == count


def test_norms_have_the_statistics_of_their_own_features():
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net = Supernet(model, {"0.out_features": [2, 4]}, torch.ones(1, 2))
    net.state.fix({"0.out_features": 2})
    out = model[1](torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
    torch.testing.assert_close(out, torch.tensor([[-1.0, 1.0, 0.0, 0.0]]), atol=1e-4, rtol=0)
    assert net.extracted({"0.out_features": 2})[1].normalized_shape == (2,)


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_data_types(name, dtype):
    model, batch = tiny(name)
    net = Supernet(model.to(dtype), SPACES[name], batch)
    net.state.sample(DrNAS(), 0.0, generator())
    outputs(model, batch).float().square().mean().backward()
    assert all(p.grad is not None for p in net.arch_parameters())
    small = net.extracted({key: values[0] for key, values in net.space.choices.items()})
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_mixed_precision():
    result = tanglenas(tiny("bert")[0], samples("bert"), epochs=1, batch_size=8, precision="bf16")
    assert math.isfinite(result.totals["validation_loss"])


def test_frozen_parameters_stay_frozen():
    model, batch = tiny("bert")
    model.bert.embeddings.requires_grad_(False)
    small = Supernet(model, SPACES["bert"], batch).extracted({key: values[0] for key, values in SPACES["bert"].items()})
    assert not any(p.requires_grad for p in small.bert.embeddings.parameters())
    assert all(p.requires_grad for p in small.bert.encoder.parameters())


def test_a_stack_of_a_plain_network_has_a_depth():
    model = nn.Sequential(nn.Linear(3, 6), nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)]), nn.Linear(6, 2))
    x = torch.randn(4, 3, generator=generator())
    net = Supernet(model, {"1.depth": [1, 3]}, x)
    small = net.extracted({"1.depth": 1})
    assert len(small[1]) == 1
    assert torch.equal(small[1][0].weight, model[1][0].weight)
    weights = torch.tensor([0.25, 0.75])
    net.state.set_weights({"1.depth": weights})
    h = model[0](x)
    one = functional.linear(h, model[1][0].weight, model[1][0].bias)
    three = one
    for layer in list(model[1])[1:]:
        three = functional.linear(three, layer.weight, layer.bias)
    torch.testing.assert_close(model[:2](x), 0.25 * one + 0.75 * three)


def test_convolutions_with_strides_dilation_and_depth_wise_ones():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 5, stride=2, padding=4, dilation=2, padding_mode="reflect")
            self.b = nn.Conv2d(8, 8, 3, padding="same", groups=8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.b(self.a(x).relu()) + self.a(x)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    choices = {"a.out_channels": [2, 8], "a.kernel_size": [1, 3, 5], "b.kernel_size": [1, 3]}
    net = Supernet(Small(), choices, x)
    for seed in range(4):
        assert net.difference(net.state.random(generator(seed)), x) < 1e-6
    small = net.extracted({"a.out_channels": 2, "a.kernel_size": 3, "b.kernel_size": 1})
    assert (small.b.groups, small.a.padding, small.b.padding) == (2, (2, 2), "same")


def test_memory_of_the_super_network_is_the_model_and_its_architecture_parameters():
    """The macro space of the paper: four convolutions, three widths and three kernels each, 24 parameters."""
    widths = {0: (8, 16, 32), 2: (16, 32, 64), 4: (32, 64, 128), 6: (64, 128, 256)}
    layers, inner = [], 3
    for choices in widths.values():
        layers += [nn.Conv2d(inner, choices[-1], 7, padding=3), nn.ReLU()]
        inner = choices[-1]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    space = {f"{place}.out_channels": values for place, values in widths.items()}
    space |= {f"{place}.kernel_size": (3, 5, 7) for place in widths}
    before = sum(p.numel() for p in model.parameters())
    net = Supernet(model, space, torch.randn(1, 3, 8, 8))
    assert sum(p.numel() for p in net.weight_parameters()) == before
    assert sum(p.numel() for p in net.arch_parameters()) == 24
    assert net.space.architectures == 6561


# --- samplers


def test_sparsemax_by_hand():
    assert sparsemax(torch.tensor([2.0, 0.5, 0.0])).tolist() == [1, 0, 0]
    torch.testing.assert_close(
        sparsemax(torch.tensor([0.001, -0.001, 0.0])), torch.tensor([0.334333, 0.332333, 0.333333]), atol=1e-6, rtol=0
    )
    assert torch.autograd.gradcheck(sparsemax, torch.tensor([0.3, 0.1, -2.0]).double().requires_grad_())


def test_dirichlet_samples_have_their_mean_and_a_gradient():
    alpha = torch.tensor([0.0, -1.0, 1.0], requires_grad=True)
    concentration = functional.elu(alpha.detach()) + 1
    torch.testing.assert_close(concentration, torch.tensor([1.0, 0.367879, 2.0]))
    rng, total = generator(), torch.zeros(3)
    for _ in range(4000):
        total += DrNAS()(alpha, 0.0, rng).detach()
    torch.testing.assert_close(total / 4000, concentration / concentration.sum(), atol=0.02, rtol=0)
    DrNAS()(alpha, 0.0, rng)[2].backward()
    assert alpha.grad.isfinite().all()
    assert alpha.grad[2] > 0


def test_tiny_concentrations_give_no_nan():
    alpha = torch.full((3,), -50.0, requires_grad=True)
    rng = generator()
    for _ in range(50):
        weights = DrNAS()(alpha, 0.0, rng)
        assert weights.isfinite().all()
        assert weights.sum().item() == pytest.approx(1)
        (gradient,) = torch.autograd.grad(weights[0], alpha)
        assert gradient.isfinite().all()


def test_gdas_draws_one_choice_and_teaches_all():
    alpha = torch.tensor([0.1, 0.0, -0.1], requires_grad=True)
    weights = GDAS()(alpha, 0.5, generator())
    assert sorted(weights.tolist()) == [0, 0, 1]
    (weights * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert (alpha.grad != 0).all()
    assert GDAS().temperature(0.0) == 10
    assert GDAS().temperature(1.0) == pytest.approx(0.1)


def test_the_entropy_of_soft_samples_falls_with_the_temperature():
    alpha, entropies = torch.zeros(4), []
    for progress in (0.0, 0.5, 1.0):
        rng, total = generator(), 0.0
        for _ in range(200):
            noise = -torch.empty(4).exponential_(generator=rng).log()
            soft = ((alpha.log_softmax(0) + noise) / GDAS().temperature(progress)).softmax(0)
            total -= (soft * soft.clamp(min=1e-12).log()).sum().item()
        entropies.append(total / 200)
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[0] > 1.3
    assert entropies[-1] < 0.2


def test_spos_is_uniform_and_learns_nothing():
    rng = generator()
    counts = sum(SPOS()(torch.tensor([5.0, 0.0, 0.0]), 0.0, rng) for _ in range(3000))
    assert ((counts / 3000 - 1 / 3).abs() < 0.03).all()
    assert not SPOS.learns


# --- the search


def blobs(count=128):
    """Two classes that a few features tell apart."""
    x = torch.randn(count, 12, generator=generator(5))
    return [(row, torch.tensor(int(row[0] + row[1] > 0))) for row in x]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.mark.parametrize("sampler", [DrNAS(), DARTS(), GDAS()])
def test_each_step_changes_its_own_parameters(sampler):
    model, data = mlp(), blobs(16)
    net = Supernet(model, {"0.out_features": [4, 8, 16]}, data[0][0][None])
    assert not {id(p) for p in net.weight_parameters()} & {id(p) for p in net.arch_parameters()}
    loss = Bilevel(net, sampler, data, (0.1, 0.0), 0, 1, TRAINING)
    weights = [p.clone() for p in net.weight_parameters()]
    alphas = [p.clone() for p in net.arch_parameters()]
    batch = (torch.stack([x for x, _ in data]), torch.stack([y for _, y in data]))
    loss.arch_step(model, batch, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(weights, net.weight_parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(alphas, net.arch_parameters(), strict=True))
    assert all(p.grad is None for p in net.weight_parameters())
    alphas = [p.clone() for p in net.arch_parameters()]
    net.state.sample(sampler, 0.0, generator(), learn=False)
    functional.cross_entropy(model(batch[0]), batch[1]).backward()
    assert all(p.grad is None for p in net.arch_parameters())
    torch.optim.SGD(net.weight_parameters(), 0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(alphas, net.arch_parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, net.weight_parameters(), strict=True))


@pytest.mark.parametrize("method", [tanglenas, spos, random_search])
def test_a_search_learns_and_leaves_a_plain_smaller_network(method, tmp_path):
    (tmp_path / "space.yaml").write_text("0.out_features: [4, 8, 16]\n")
    model = mlp()
    result = method(model, blobs(), space=tmp_path / "space.yaml", epochs=20, learning_rate=0.01, batch_size=16)
    (row,) = result.layers
    assert row["layer"] == "0.out_features"
    assert model[0].out_features == row["choice"] == model[2].in_features
    assert result.totals["parameters"] == sum(p.numel() for p in model.parameters())
    assert result.totals["validation_loss"] < 0.6
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    x, y = (torch.stack(part) for part in zip(*blobs(), strict=True))
    assert (model(x).argmax(1) == y).float().mean() > 0.8


def test_weights_that_no_drawn_network_holds_are_named(tmp_path):
    (tmp_path / "space.yaml").write_text("num_hidden_layers: [1, 2]\n")
    notes = []
    for seed in range(6):  # one step: the second block is part of it or not
        model, _ = tiny("llama")
        before = model.model.layers[1].mlp.up_proj.weight.clone()
        options = {"epochs": 1, "batch_size": 8, "candidates": 2, "generator": generator(seed)}
        result = spos(model, samples("llama"), space=tmp_path / "space.yaml", **options)
        named = any("model.layers.1.mlp.up_proj.weight" in note for note in result.notes)
        if len(model.model.layers) == 2:
            assert named == torch.equal(before, model.model.layers[1].mlp.up_proj.weight)
        notes.append(named)
    assert len(set(notes)) == 2


def test_the_loss_of_the_network_does_not_depend_on_the_batch_size():
    found = []
    for size in (32, 33):  # 33 samples are held out
        options = {"candidates": 2, "epochs": 1, "batch_size": size, "learning_rate": 1e-12}
        found.append(spos(mlp(), blobs()[:66], **options).totals["validation_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_data_that_are_not_finite_are_named_as_the_cause():
    model, (x, y) = mlp(), blobs()[0]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match="Check the data"):
        tanglenas(model, [(torch.full_like(x, math.nan), y)] * 20)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", [tanglenas, spos, random_search])
def test_samples_for_the_choices_that_are_not_finite_are_refused(method):
    samples, seed = blobs(40), draw_seed(generator(7))
    place = torch.randperm(40, generator=generator(seed))[-1]
    samples[place] = (torch.full((12,), math.nan), samples[place][1])
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match="samples for the choices"):
        method(model, samples, epochs=2, generator=generator(7))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_same_seed_same_network():
    found = []
    for seed in (3, 3, 4):
        model = mlp()
        tanglenas(model, blobs(), epochs=2, generator=generator(seed))
        found.append(model.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert any(
        found[0][key].shape != found[2][key].shape or not torch.equal(found[0][key], found[2][key]) for key in found[0]
    )


def test_the_report_says_how_far_the_choices_moved():
    still = tanglenas(mlp(), blobs(), epochs=1)
    assert still.layers[0]["probability_change"] < 0.01
    assert "close to chance" in still.notes[-1]
    moved = tanglenas(mlp(), blobs(), epochs=20, arch_learning_rate=0.1)
    assert moved.layers[0]["probability_change"] > 0.01
    assert moved.layers[0]["gradient_norm"] > 0
    assert not any("close to chance" in note for note in moved.notes)
    assert len(moved.curves["entropy of the choices"]) == len(moved.curves["loss: choices"])


def test_statistics_of_one_sub_network_do_not_leak_into_another():
    model, batch = tiny("cnn")
    data = [(x, torch.tensor(n % 4)) for n, x in enumerate(batch)]
    labeled = [(torch.stack([x for x, _ in data]), torch.stack([y for _, y in data]))]
    net = Supernet(model, SPACES["cnn"], batch)
    a, b = net.state.random(generator(0)), net.state.random(generator(1))
    assert a != b
    before = [buffer.clone() for buffer in model.buffers()]
    once = net_loss(net, a, labeled, labeled)
    net_loss(net, b, labeled, labeled)
    assert net_loss(net, a, labeled, labeled) == once
    assert all(torch.equal(x, y) for x, y in zip(before, model.buffers(), strict=True))


def test_batch_normalization_is_estimated_anew_for_the_network_that_was_found():
    model, batch = tiny("cnn")
    data = [(x, torch.tensor(n % 4)) for n, x in enumerate(batch)]
    tanglenas(model, data, epochs=1, batch_size=4, train_portion=0.5, generator=generator(2))
    assert has_batchnorm(model)
    estimated = model[1].running_mean.clone()
    order = torch.randperm(8, generator=generator(int(torch.randint(2**31, (), generator=generator(2))))).tolist()
    recalibrate_batchnorm(model, [torch.stack([batch[n] for n in order[:4]])])
    torch.testing.assert_close(model[1].running_mean, estimated)


def test_a_found_network_is_refused_by_the_largest(tmp_path):
    model, batch = tiny("bert")
    data = samples("bert")
    tanglenas(model, data, epochs=1, batch_size=8)
    save_model(model, tmp_path / "found")
    again = load_model(tmp_path / "found")
    with torch.no_grad():
        assert torch.equal(outputs(again, batch), outputs(model.eval(), batch))
    small = Supernet(tiny("bert")[0], SPACES["bert"], batch)
    with pytest.raises(RuntimeError, match="size mismatch"):
        tiny("bert")[0].load_state_dict(small.extracted({k: v[0] for k, v in SPACES["bert"].items()}).state_dict())


def test_without_a_space_halves_are_tried():
    model, _ = tiny("t5")
    result = tanglenas(model, samples("t5"), epochs=1, batch_size=8)
    assert {row["layer"] for row in result.layers} == {"d_ff", "num_attention_heads"}


def test_all_samples_for_the_weights_warn(tmp_path):
    with pytest.warns(UserWarning, match="train_portion 1"):
        result = tanglenas(mlp(), blobs(), train_portion=1.0, epochs=1)
    assert "validation_loss" not in result.totals


def test_supernet_and_search_from_python():
    model = mlp()
    net = Supernet(model, {"0.out_features": [4, 8, 16]}, torch.ones(1, 12))
    found = search(net, blobs(), blobs(64), sampler=GDAS(), epochs=2)
    assert len(found.losses) == found.fit.steps == 8
    net.extract({"0.out_features": 8})
    assert model[0].out_features == 8
    assert type(model[0]) is nn.Linear


# --- what is refused


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("bert", {"hidden_size": [32, 16]}, "ascending"),
        ("bert", {"hidden_size": [16, 16, 32]}, "ascending"),
        ("bert", {"hidden_size": [16.5, 32]}, "ascending whole numbers above 0"),
        ("bert", {"hidden_size": [0, 32]}, "above 0"),
        ("bert", {"num_hidden_layers": [0, 2]}, "above 0"),
        ("bert", {"hidden_size": [16, 24]}, "must be the model's own: found 24, expected 32"),
        ("bert", {"num_hidden_layers": [1, 3]}, "must be the model's own: found 3, expected 2"),
        ("bert", {"hidden_size": [16, 18, 32], "num_attention_heads": [1, 4]}, "hidden_size 18"),
        ("bert", {"width": [16, 32]}, "unknown dimension 'width'.*hidden_size"),
        ("bert", {}, "no dimension"),
        ("bert", {"hidden_size": [32]}, "two or more"),
        ("bert", {"mlp_ratio": [1, 2], "intermediate_size": [32, 64]}, "two names"),
        ("gpt2", {"mlp_ratio": [float("nan"), 4]}, "ascending numbers above 0"),
        ("gpt2", {"mlp_ratio": [3.3, 4]}, "impossible choices: found mlp_ratio 3.3, expected a hidden size"),
        ("gpt2", {"mlp_ratio": [1.25, 4], "n_embd": [18, 32]}, "n_embd 18 with mlp_ratio 1.25"),
        ("gpt2", {"n_embd": [16, 32], "hidden_size": [16, 32]}, "two names"),
        ("llama", {"num_attention_heads": [1, 4]}, "num_attention_heads 1 with 2 heads of keys"),
        ("llama", {"num_attention_heads": [2, 4], "num_key_value_heads": [1, 2]}, "one of them"),
        ("gemma3", {"hidden_size": [16, 32]}, "other hidden_size compute something else"),
        ("cnn", {"0.out_channels": [4, 8], "9.out_channels": [4, 8]}, "9"),
        ("cnn", {"3.kernel_size": [2, 3]}, "odd"),
        ("cnn", {"0.kernel_size": [1, 3]}, "must be padded"),
        ("cnn", {"5.out_features": [2, 4]}, "fixed"),
        ("cnn", {"0.colour": [2, 4]}, "0.out_channels"),
        ("mlp", {"0.out_features": [True, 16]}, "whole numbers"),
    ],
)
def test_impossible_spaces_are_refused_by_name(name, choices, message):
    model, batch = tiny(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((HyperparameterError, UnsupportedModelError, LookupError), match=message):
        Supernet(model, choices, batch)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


def test_architectures_outside_the_space_are_refused_with_the_legal_values():
    net, _, _ = open_net("cnn")
    with pytest.raises(HyperparameterError, match=r"'3.kernel_size': found 7, expected \[1, 3\]"):
        net.extracted({"0.out_channels": 2, "3.out_channels": 4, "3.kernel_size": 7})
    with pytest.raises(HyperparameterError, match="'expansion'.*one of"):
        net.extracted({"0.out_channels": 2, "3.out_channels": 4, "3.kernel_size": 3, "expansion": 5})


def test_widths_that_are_one_have_one_parameter():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            return self.head(x + self.b(x.relu()))

    x = torch.randn(2, 3)
    net = Supernet(Residual(), {"a.out_features": [4, 8], "b.out_features": [4, 8]}, x)
    assert list(net.space.choices) == ["a.out_features + b.out_features"]
    assert sum(p.numel() for p in net.arch_parameters()) == 2
    with pytest.raises(HyperparameterError, match="are one width"):
        Supernet(Residual(), {"a.out_features": [4, 8], "b.out_features": [2, 8]}, x)


def test_grouped_convolutions_are_refused():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten())
    with pytest.raises(UnsupportedModelError, match="groups"):
        Supernet(model, {"0.out_channels": [4, 8]}, torch.randn(1, 4, 4, 4))


def test_parametrized_weights_are_refused():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(UnsupportedModelError, match="computed"):
        Supernet(model, {"0.out_features": [4, 16]}, torch.ones(1, 12))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_portion": 0.0}, HyperparameterError, "train_portion"),
        ({"train_portion": 1.2}, HyperparameterError, "train_portion"),
        ({"train_portion": 0.999}, CalibrationError, "0 for the choices"),
        ({"arch_learning_rate": math.nan}, HyperparameterError, "arch_learning_rate"),
        ({"arch_weight_decay": -1.0}, HyperparameterError, "arch_weight_decay"),
    ],
)
def test_options_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        tanglenas.__wrapped__(mlp(), blobs(16), **{**tanglenas.fit_defaults, **options})


def test_spaces_that_are_no_mapping_are_refused(tmp_path):
    for text in ("- 3", "a: 3", "a: [", ""):
        (tmp_path / "space.yaml").write_text(text)
        with pytest.raises(HyperparameterError, match="space"):
            tanglenas(mlp(), blobs(), space=tmp_path / "space.yaml")
    with pytest.raises(HyperparameterError, match="missing"):
        tanglenas(mlp(), blobs(), space=tmp_path / "missing.yaml")


def test_temperatures_must_fall():
    with pytest.raises(HyperparameterError, match="temperature"):
        GDAS(highest=0.1, lowest=1.0)


def test_gradient_checkpointing_with_a_depth(tmp_path):
    (tmp_path / "space.yaml").write_text("num_hidden_layers: [1, 2]\n")
    model, _ = tiny("llama")
    tanglenas(model, samples("llama"), space=tmp_path / "space.yaml", epochs=1, gradient_checkpointing=True)
