import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import CalibrationError, LayerNotFoundError, NonFiniteError, UnsupportedModelError
from weightsmith.core.models import (
    Layer,
    evaluation_mode,
    find_experts,
    find_layers,
    get_module,
    recalibrate_batchnorm,
    swap_module,
    unreached,
)
from weightsmith.quantize import round_to_nearest
from weightsmith.sparsify import magnitude, wanda
from weightsmith.testing import tiny


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.second = nn.Linear(4, 10, bias=False)
        self.second.weight = self.embed.weight


def test_tied_weights_are_one_layer():
    layers = find_layers(Tied())
    assert [(layer.name, layer.aliases) for layer in layers] == [("body", ()), ("head", ("second",))]


def test_patterns():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "b": nn.Linear(2, 2)})
    assert [layer.name for layer in find_layers(model, "a.*")] == ["a.0", "a.1"]
    assert [layer.name for layer in find_layers(model, ["a.0", "b"], exclude="b")] == ["a.0"]
    with pytest.raises(LayerNotFoundError, match=r"no layer matches \['c'\].*3 layers such as \['a.0'"):
        find_layers(model, "c")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_patterns_are_on_paths_inside_a_wrapper(wrap):
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "lm_head": nn.Linear(2, 3)})
    assert [layer.module for layer in find_layers(wrap(model), exclude="lm_head")] == [model["body"]]
    experts = tiny("mixtral", layers=1)[0]
    inside = find_experts(experts, "model.layers.0.*", exclude="*.1.*")
    found = find_experts(wrap(experts), "model.layers.0.*", exclude="*.1.*")
    assert [layer.expert for layer in found] == [layer.expert for layer in inside] == [0, 2, 3, 0, 2, 3]


def test_a_convolution_in_another_order_of_memory_stays_in_it():
    """Reading it as a matrix, such as to measure it, had brought it into the usual order."""
    layer = Layer("x", nn.Conv2d(3, 2, 5).to(memory_format=torch.channels_last))
    weight, place, strides = layer.weight.detach().clone(), layer.weight.data_ptr(), layer.weight.stride()
    assert torch.equal(layer.weight_OI.view(weight.shape), weight)
    layer.write(2 * layer.weight_OI)
    assert torch.equal(layer.weight, 2 * weight)
    assert (layer.weight.data_ptr(), layer.weight.stride()) == (place, strides)


def test_what_is_written_is_read():
    experts = find_experts(tiny("mixtral", layers=1)[0])
    for layer in [*(Layer("x", module) for module in (nn.Linear(3, 2), Conv1D(2, 3), nn.Conv2d(3, 2, 1))), *experts]:
        new_OI = torch.randn(layer.weight_OI.shape)
        layer.write(new_OI)
        assert torch.equal(layer.weight_OI, new_OI)
        assert torch.equal(layer.matrix(layer.like_weight(new_OI)), new_OI)


def test_grouped_convolutions_are_no_matrix():
    assert find_layers(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), strict=False) == []


def test_weight_is_a_view():
    for module in (nn.Linear(3, 2), Conv1D(2, 3), nn.Conv2d(3, 2, 1)):
        layer = Layer("x", module)
        assert layer.weight_OI.shape == (2, 3)
        layer.weight_OI.fill_(7)
        assert bool((module.weight == 7).all())


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    dims=st.integers(1, 3),
)
def test_rows_times_matrix_is_the_convolution(kernel, stride, padding, dilation, mode, dims):
    if mode == "reflect" and dims == 3:
        mode = "zeros"
    conv_type = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    conv = conv_type(2, 3, kernel, stride, padding, dilation, padding_mode=mode, bias=False)
    x = torch.randn(2, 2, *[9] * dims)
    layer = Layer("conv", conv)
    rows = layer.rows(x)
    expected = conv(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows @ layer.weight_OI.T, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_linear_inputs():
    layer = Layer("fc", nn.Linear(4, 2))
    assert layer.rows(torch.ones(4)).shape == (1, 1, 4)
    assert layer.rows(torch.ones(5, 4)).shape == (1, 5, 4)
    assert layer.rows(torch.ones(2, 5, 4)).shape == (2, 5, 4)
    assert layer.rows(torch.ones(2, 3, 5, 4)).shape == (2, 15, 4)


def test_swap_and_get():
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    new = nn.GELU()
    assert isinstance(swap_module(model, "0.0", new), nn.ReLU)
    assert get_module(model, "0.0") is new
    with pytest.raises(LayerNotFoundError, match=r"no module '0\.1\.2': found 0 has children \['0'\]"):
        get_module(model, "0.1.2")
    with pytest.raises(UnsupportedModelError, match="cannot swap the model itself"):
        swap_module(model, "", new)


def test_evaluation_mode_restores_each_module():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with evaluation_mode(model):
        assert not model[0].training
    assert model[0].training
    assert not model[1].training


def test_a_last_batch_of_one_adds_no_variance():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    batches = list(torch.randn(9, 3).split(4))
    assert recalibrate_batchnorm(model, batches) == 1
    with torch.no_grad():
        means = torch.stack([model[0](batch).mean(0) for batch in batches[:2]])
    assert torch.allclose(model[1].running_mean, means.mean(0), atol=1e-6)
    assert model[1].training


def test_batches_of_one_alone_are_refused_and_the_statistics_stay():
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    model[0].running_mean.fill_(3.0)
    with pytest.raises(CalibrationError, match="two samples or more"):
        recalibrate_batchnorm(model, [torch.randn(1, 2)])
    assert model[0].running_mean.tolist() == [3.0, 3.0]


def test_batch_normalization_that_no_batch_reaches_keeps_its_statistics():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(x)

    model, x = Branches(), torch.randn(9, 2)
    model.unused.running_mean.fill_(7.0)
    model.unused.running_var.fill_(9.0)
    assert recalibrate_batchnorm(model, [x]) == 1
    assert torch.allclose(model.used.running_mean, x.mean(0))
    assert (model.unused.running_mean.tolist(), model.unused.running_var.tolist()) == ([7.0, 7.0], [9.0, 9.0])


def test_statistics_that_are_not_finite_are_refused_and_the_old_ones_stay():
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(2))
    model[1].running_mean.fill_(3.0)
    with pytest.raises(NonFiniteError, match="statistics of '1' on the batches: found NaN"):
        recalibrate_batchnorm(model, [torch.full((4, 2), torch.nan)])
    assert model[1].running_mean.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("batch", [torch.tensor(3.0), (torch.tensor(1.0), torch.tensor(0)), {"input": torch.tensor(2)}])
def test_scalar_calibration_tensors_are_refused_by_name(batch):
    model = nn.Sequential(nn.Linear(3, 2))
    before = model[0].weight.clone()
    with pytest.raises(CalibrationError, match="inputs of layer '0': found 0 dimensions"):
        wanda(model, [batch])
    assert torch.equal(model[0].weight, before)


def test_matrices_without_values_are_no_layers():
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 0), nn.Linear(4, 2))
    assert [layer.name for layer in find_layers(model)] == ["2"]


@pytest.mark.parametrize("packed", ["codes", "parameter", "torch"])
@pytest.mark.parametrize("prune", [magnitude, round_to_nearest])
@pytest.mark.filterwarnings("ignore")
def test_blocks_of_packed_layers_are_refused_not_the_head_alone_changed(packed, prune):
    block = nn.Sequential(nn.Linear(4, 4))
    if packed == "torch":
        torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, inplace=True)
    elif packed == "codes":
        block[0] = nn.Module()
        block[0].register_buffer("qweight", torch.ones(4, 4, dtype=torch.int32))
    else:
        block[0] = nn.LSTM(4, 4)
    model = nn.ModuleDict({"body": nn.ModuleList([block]), "head": nn.Linear(4, 2)})
    head = model["head"].weight.detach().clone()
    with pytest.raises(UnsupportedModelError, match=r"the model's blocks: found 'body\.0\.0\."):
        prune(model)
    assert torch.equal(model["head"].weight, head)
    tables = nn.ModuleDict({"tables": nn.ModuleList([nn.Embedding(3, 2)]), "fc": nn.Linear(2, 2)})
    assert magnitude(tables).layers[0]["layer"] == "fc"


def test_the_codes_of_packed_layers_are_counted_as_not_reached():
    packed = nn.Module()
    packed.register_buffer("qweight", torch.ones(4, 2, dtype=torch.int32))
    packed.register_buffer("position_ids", torch.arange(4)[None])
    model = nn.Sequential(nn.Linear(4, 4), packed)
    assert unreached(model, find_layers(model)) == ["Not reached and unchanged: 1 x '*.qweight' (Module, 8 values)."]


def test_what_is_frozen_is_not_told_as_trained():
    model = nn.Sequential(nn.Embedding(3, 4).requires_grad_(False), nn.Embedding(3, 4), nn.Linear(4, 4))
    assert unreached(model, find_layers(model), "Not sparse", trains=True) == [
        "Not sparse, but trained: 1 x '*.weight' (Embedding, 12 values).",
        "Not sparse and unchanged: 1 x '*.weight' (Embedding, 12 values).",
    ]
    assert unreached(model, find_layers(model)) == ["Not reached and unchanged: 2 x '*.weight' (Embedding, 24 values)."]


def test_a_model_without_weights_in_memory_is_refused():
    with pytest.raises(UnsupportedModelError, match="2 parameters such as '0.weight' are on the meta device"):
        magnitude(nn.Sequential(nn.Linear(4, 4, device="meta")))
