import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from models import PLAIN, TRANSFORMERS, tiny
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.models import find_layers
from weightsmith.quantize import gptq
from weightsmith.sparsify import dsnot, magnitude, sparsegpt, teal, wanda
from weightsmith.sparsify._shared.pruning import Pattern


@pytest.mark.parametrize("method", [magnitude, wanda])
def test_equal_scores_of_transposed_bf16_weights(method):
    """bf16 has many equal magnitudes in a row, and GPT-2 keeps its weights as (in, out)."""
    model, batch = tiny("gpt2")
    model.bfloat16()
    assert method(model, *([] if method is magnitude else [[batch]])).totals["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_pattern_counts_survive_floating_point():
    assert Pattern.parse(0.29).count(100) == 29
    assert Pattern.parse("0.5") == Pattern.parse(0.5)
    for bad in (0, 1, -0.1, "4:2", "0:4", "half"):
        with pytest.raises(HyperparameterError, match="sparsity"):
            Pattern.parse(bad)


def test_magnitude_by_row_and_by_layer():
    weight = torch.tensor([[1.0, 2, 3, 4], [10.0, 20, 30, 40]])
    for group, zeros in (("row", [[0, 1], [0, 1]]), ("layer", [[0, 1, 2, 3], []])):
        model = nn.Sequential(nn.Linear(4, 2, bias=False))
        model[0].weight.data.copy_(weight)
        magnitude(model, sparsity=0.5, group=group)
        assert [(row == 0).nonzero().flatten().tolist() for row in model[0].weight] == zeros


def test_wanda_is_weight_times_input_norm():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    result = wanda(model, [torch.tensor([[10.0, 1.0, 1.0, 0.1], [10.0, 1.0, 1.0, 0.1]])], sparsity=0.5)
    assert model[0].weight.tolist() == [[1.0, 0.0, 3.0, 0.0]]
    removed, all_of_it = 2**2 + (4 * 0.1) ** 2, 10**2 + 2**2 + 3**2 + (4 * 0.1) ** 2
    assert result.layers[0]["output_error"] == pytest.approx((removed / all_of_it) ** 0.5)


def test_sparsegpt_solves_the_least_squares_problem_of_its_mask():
    """With one column removed, the update is the exact minimiser over the columns that follow it."""
    torch.manual_seed(0)
    x = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 1, bias=False))
    weight = model[0].weight.detach().double().clone()
    weight[0, 0] = 1e-4  # the first column goes, all others are free to make up for it
    model[0].weight.data.copy_(weight)
    sparsegpt(model, [x.float()], sparsity=0.17, damping=0.0)
    target = x @ weight.T
    best = torch.linalg.lstsq(x[:, 1:], target).solution
    torch.testing.assert_close(model[0].weight[0, 1:].double(), best[:, 0], rtol=1e-3, atol=1e-5)
    assert model[0].weight[0, 0] == 0


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_sparsegpt_beats_wanda_beats_magnitude_on_correlated_inputs(sparsity):
    torch.manual_seed(0)
    mix = torch.randn(64, 256) * (0.1 + 3 * torch.rand(256))
    x = [torch.randn(4, 128, 64) @ mix for _ in range(4)]
    dense = nn.Sequential(nn.Linear(256, 32))
    target = dense(torch.cat(x))
    error = {}
    for prune in (magnitude, wanda, sparsegpt):
        model = copy.deepcopy(dense)
        prune(model, sparsity=sparsity) if prune is magnitude else prune(model, x, sparsity=sparsity)
        assert abs((model[0].weight == 0).float().mean() - 0.5) < 1e-6
        error[prune] = (model(torch.cat(x)) - target).square().mean().item()
    assert error[sparsegpt] < 0.5 * error[wanda] < 0.5 * error[magnitude]


@pytest.mark.parametrize("name", TRANSFORMERS + PLAIN)
@pytest.mark.parametrize("prune", [wanda, sparsegpt, dsnot])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_model(name, prune, dtype):
    torch.manual_seed(0)
    model, batch = tiny(name)
    model = model.to(dtype)
    move = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    batch = move(batch) if isinstance(batch, torch.Tensor) else {key: move(value) for key, value in batch.items()}
    untouched = {n: p.clone() for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n or "head" in n}
    result = prune(model, [batch], sparsity=0.5)
    assert result.totals["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert all(p.dtype == dtype for p in model.parameters())
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in untouched.items())
    for layer in find_layers(model):
        if any(row["layer"] == layer.name for row in result.layers):
            assert (layer.weight_OI == 0).float().mean() == pytest.approx(0.5, abs=0.03), layer.name


def test_conv1d_prunes_along_its_inputs():
    model = nn.Sequential(Conv1D(2, 4))
    model[0].weight.data.copy_(torch.tensor([[1.0, 9], [2, 8], [3, 7], [4, 6]]))
    magnitude(model, sparsity=0.5)
    assert model[0].weight.tolist() == [[0, 9], [0, 8], [3, 0], [4, 0]]


def test_failure_puts_every_block_back():
    torch.manual_seed(0)
    model, batch = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for call in (lambda: magnitude(model), lambda: wanda(model, [batch]), lambda: sparsegpt(model, [batch])):
        with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.(up|down)_proj"):
            call()
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]) or bool(value.isnan().any())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.config.use_cache


def test_bad_input():
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(CalibrationError, match="no calibration batches"):
        wanda(model, [])
    with pytest.raises(CalibrationError, match="inputs of layer '0': found 7 features, expected 6"):
        wanda(model, [torch.rand(3, 7)])
    with pytest.raises(ShapeError, match=r"layer '0' for sparsity 2:4: found 6 columns, expected a multiple of 4"):
        wanda(model, [torch.rand(3, 6)], sparsity="2:4")
    with pytest.raises(NonFiniteError, match="inputs of layer '0'"):
        wanda(model, [torch.full((3, 6), float("inf"))])
    with pytest.raises(HyperparameterError, match="needs an unstructured sparsity"):
        magnitude(model, sparsity="2:4", group="layer")
    assert int((model[0].weight == 0).sum()) == 0


def test_magnitudes_of_float64_are_compared_as_such():
    rows = 1 + 1e-9 * torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(64, 4, bias=False)).double()
    model[0].weight.data.copy_(rows)
    magnitude(model, sparsity=0.5)
    assert torch.equal(model[0].weight == 0, rows <= rows.sort(dim=1).values[:, 31:32])


class Towers(nn.Module):
    """Blocks for text and blocks for images, of which only the first run without images."""

    def __init__(self):
        super().__init__()
        self.text, self.vision = (
            nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)]) for _ in range(2)
        )

    def forward(self, x):
        for block in self.text:
            x = block(x)
        return x


@pytest.mark.parametrize("method", [wanda, sparsegpt, dsnot, gptq, teal])
def test_what_no_token_reaches_is_counted(method):
    model = Towers()
    before = copy.deepcopy(model.vision)
    with pytest.warns(UserWarning, match="no calibration batch reached blocks"):
        result = method(model, [torch.rand(300, 4)])
    assert {row["layer"] for row in result.layers} == {f"text.{n}.{part}" for n in (0, 1) for part in (0, 1)}
    (note,) = [note for note in result.notes if "No calibration token reached" in note]
    assert "reached 4 of 8 layers (64 weights)" in note
    assert "2 x 'vision.*.0', 2 x 'vision.*.1'." in note
    assert all(torch.equal(a, b) for a, b in zip(model.vision.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("method", [wanda, gptq])
def test_nothing_that_a_token_reaches(method):
    class Attention(nn.Module):
        """Multiplies with the weight of its projection without calling it."""

        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    with pytest.raises(CalibrationError, match=r"no calibration token reaches a layer: found 1 layers .*out_proj"):
        method(Attention(), [torch.rand(6, 2, 4)])


def test_an_expert_that_the_first_batch_does_not_reach():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])

        def forward(self, x):
            return self.experts[int(x[0, 0] > 0)](x)

    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Experts(), Experts()])

        def forward(self, x):
            return self.layers[1](self.layers[0](x).abs() * x[:, :1].sign())

    batches = [-torch.rand(9, 4), torch.rand(9, 4)]
    for method in (wanda, teal):
        result = method(Mixture(), batches)
        assert len(result.layers) == 4
        assert not any("No calibration token" in note for note in result.notes)
