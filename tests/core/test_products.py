import pytest
import torch
from torch import nn

from weightsmith.core.models import _products, stream
from weightsmith.core.models._products import half_is_slow, products_in_float32
from weightsmith.sparsify import wanda


@pytest.fixture(params=[False, True])
def slow(request, monkeypatch):
    monkeypatch.setattr(_products, "half_is_slow", lambda dtype: request.param)
    return request.param


def test_products_are_exact_to_the_rounding_of_the_result_where_half_precision_is_slow(monkeypatch):
    monkeypatch.setattr(_products, "half_is_slow", lambda dtype: True)
    torch.manual_seed(0)
    layer, x = nn.Linear(999, 40).bfloat16(), torch.randn(7, 999).bfloat16()
    with torch.no_grad(), products_in_float32(layer.parameters()):
        found = layer(x)
    expected = nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
    assert torch.equal(found, expected.bfloat16())


def test_gradients_go_back_through_frozen_weights_and_keep_no_copy_of_them(monkeypatch):
    monkeypatch.setattr(_products, "half_is_slow", lambda dtype: True)
    torch.manual_seed(0)
    layer = nn.Linear(999, 40).bfloat16().requires_grad_(False)
    x = torch.randn(7, 999).bfloat16().requires_grad_(True)
    kept = []
    with (
        products_in_float32(layer.parameters()),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
    ):
        y = layer(x)
    slope = torch.randn_like(y)
    y.backward(slope)
    assert [tensor.data_ptr() for tensor in kept] == [layer.weight.data_ptr()]
    assert torch.equal(x.grad, (slope.float() @ layer.weight.float()).bfloat16())


@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_in_pieces_gives_the_same_product_and_the_same_gradient(monkeypatch, bias):
    monkeypatch.setattr(_products, "half_is_slow", lambda dtype: True)
    torch.manual_seed(0)
    layer, x = nn.Linear(100, 41, bias=bias).bfloat16().requires_grad_(False), torch.randn(2, 7, 100).bfloat16()
    slope = torch.randn(2, 7, 41).bfloat16()

    def product(piece):
        monkeypatch.setattr(_products, "PIECE", piece)
        moved = x.clone().requires_grad_(True)
        with products_in_float32(layer.parameters()):
            y = layer(moved)
        y.backward(slope)
        return y.detach(), moved.grad

    for whole, parts in zip(product(1 << 24), product(700), strict=True):  # seven rows at a time, six in the last piece
        torch.testing.assert_close(parts, whole, rtol=1e-2, atol=1e-2)


def test_what_is_not_half_precision_is_left_alone(monkeypatch):
    monkeypatch.setattr(_products, "half_is_slow", lambda dtype: pytest.fail("asked about float32"))
    layer, x = nn.Linear(5, 3), torch.ones(2, 5)
    with products_in_float32(layer.parameters()):
        found = layer(x)
    assert torch.equal(found, layer(x))


def test_a_stream_of_bf16_blocks_keeps_its_types(slow):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)).bfloat16()
    batches = [torch.randn(8, 16).bfloat16() for _ in range(2)]
    for block in stream(model, batches):
        assert all(args[0].dtype == torch.bfloat16 for args, _, _ in block.inputs)


def test_wanda_prunes_the_same_share_either_way(slow):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).bfloat16()
    assert wanda(model, [torch.randn(32, 64).bfloat16()]).totals["sparsity"] == 0.5


def test_the_probe_answers_once():
    half_is_slow.cache_clear()
    assert half_is_slow(torch.bfloat16) is half_is_slow(torch.bfloat16)
    assert half_is_slow.cache_info().misses == 1
