"""The predictor network: the paper's architecture, the authors' file layout, the fast evaluation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from weightsmith.core.errors import CheckpointError, HyperparameterError
from weightsmith.predict import HistoryNet
from weightsmith.predict._know.elementwise import ElementwiseRule
from weightsmith.predict._know.network import load_keras_h5

KERAS_SHAPES = [
    *((5, 64), (64, 8), (8, 64), (8, 64), (8, 64), (64, 32)),
    *((4, 64), (64, 8), (8, 64), (8, 64), (8, 64), (64, 32)),
    (64, 1),
]
"""Kernels of dense, dense_1, ..., dense_12 as [in, out]."""

GOLDEN = {
    (0.0,) * 5: (2.9669830e-4, 2.9317942e-4, 2.1332642e-5),
    (0.1,) * 5: (-1.9623019e-2, -6.3659889e-3, -1.9826479e-2),
    (0.01, 0.02, 0.03, 0.04, 0.05): (-7.6591596e-3, -2.4726498e-3, 1.1859977e-2),
    (0.10, 0.11, 0.12, 0.13, 0.14): (-2.6798073e-2, -6.9589973e-3, -5.5011646e-3),
    (0.05, 0.04, 0.03, 0.02, 0.01): (-5.6826673e-3, -1.4689014e-3, -2.4870681e-2),
    (-0.05, -0.04, -0.03, -0.02, -0.01): (5.309735e-3, 2.4907761e-3, 2.4722196e-2),
    (0.02, 0.03, 0.05, 0.08, 0.12): (-2.0163331e-2, -4.6781949e-3, 4.7380056e-2),
    (1.0, 2.0, 3.0, 4.0, 5.0): (-0.90000749, 1.0, 0.68436915),
}
"""Changes that the authors' Conv, FC and Bias predictors give for a history."""

WRONG_SLOPE = (-6.1966e-4, 1.434894e-2, -4.8883e-4)
"""What a history of zeros gives with torch's default slope of LeakyReLU."""


@pytest.fixture
def net():
    net = HistoryNet(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return net


@pytest.fixture
def history():
    return torch.randn(5, 1000, generator=torch.Generator().manual_seed(2)) / 5


def test_parameter_counts(net):
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    assert count == {"value": 4712, "delta": 4648, "head": 65}
    assert sum(count.values()) == 9425


def test_forward_is_the_equation(net, history):
    """The equations written out in float64, one weight at a time."""

    def affine(layer, x):
        return layer.weight.double() @ x + layer.bias.double()

    def stream(s, x):
        f = affine(s.inp, x)
        z = affine(s.squeeze, f).clamp(min=0)
        y = affine(s.amp, z) * torch.exp(affine(s.exp, z) * f) + affine(s.add, z)
        o = affine(s.out, y)
        return torch.where(o > 0, o, 0.3 * o)

    for h in history.T[:5].double():
        dh = h[1:] - h[:-1]
        expected = torch.tanh(affine(net.head, torch.cat([stream(net.value, h), stream(net.delta, dh)])))
        assert net(h.float().unsqueeze(0)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_differences_run_from_small_to_large_data():
    seen = []
    net = HistoryNet(torch.Generator().manual_seed(0))
    net.delta.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.tensor([[1.0, 2.0, 4.0, 7.0, 11.0]]))
    assert seen[0].tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_constant_histories_leave_the_difference_stream_constant(net):
    outputs = []
    net.delta.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    net(torch.tensor([[0.1] * 5, [-0.7] * 5, [0.0] * 5]))
    assert torch.equal(outputs[0][0], outputs[0][1])
    assert torch.equal(outputs[0][0], outputs[0][2])


def test_initial_weights_follow_the_authors_scales():
    net = HistoryNet(torch.Generator().manual_seed(0))
    for layer, bound in (
        (net.value.inp, (0.3 / 5) ** 0.5),
        (net.delta.out, (0.3 / 64) ** 0.5),
        (net.value.amp, (6 / 72) ** 0.5),
        (net.head, (6 / 65) ** 0.5),
    ):
        largest = layer.weight.abs().max().item()
        assert 0.9 * bound < largest <= bound
        assert not layer.bias.any()


def test_the_fast_evaluation_is_the_plain_one(net, history):
    assert (ElementwiseRule(net).change(history) - net(history.T)).abs().max() < 1e-6


def test_chunk_size_changes_nothing(net, history):
    results = [ElementwiseRule(net, chunk)(list(history.clone()), 1) for chunk in (1, 333, 1000, 4096)]
    for other in results[1:]:
        assert (other - results[0]).abs().max() < 1e-6
    with pytest.raises(HyperparameterError, match="chunk: found -1"):
        ElementwiseRule(net, -1)


def test_advance_is_shift_and_append(net, history):
    once = history[-1] + net(history.T)
    twice = once + net(torch.stack([*history[1:], once]).T)
    for steps, expected in ((1, once), (2, twice)):
        table = history.clone()
        ElementwiseRule(net, chunk=300)(list(table), steps)
        assert (table[0] - expected).abs().max() < 1e-6
        assert torch.equal(table[1:], history[1:])


def test_threads_change_nothing(net):
    history = torch.randn(5, 1000, generator=torch.Generator().manual_seed(2)) / 5
    alone, together, threads = history.clone(), history.clone(), torch.get_num_threads()
    ElementwiseRule(net, chunk=50)(list(alone), 2)
    try:
        torch.set_num_threads(3)
        ElementwiseRule(net, chunk=50)(list(together), 2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert (alone - together).abs().max() < 1e-6


def write_keras_h5(path: Path, seed: int, shapes=KERAS_SHAPES) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A file in the layout of the authors' predictors, with random numbers."""
    h5py = pytest.importorskip("h5py")
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.9.0"
        for index, shape in enumerate(shapes):
            name = f"dense_{index}" if index else "dense"
            kernel, bias = (torch.randn(s, generator=generator) / 4 for s in (shape, shape[1:]))
            group = file.create_group(name).create_group(name)
            group["kernel:0"], group["bias:0"] = kernel.numpy(), bias.numpy()
            arrays[name] = (kernel, bias)
    return arrays


def test_keras_file_is_read_transposed_and_in_order(tmp_path):
    arrays = write_keras_h5(tmp_path / "net.h5", 0)
    net = load_keras_h5(tmp_path / "net.h5")
    h = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)) / 5

    def dense(number, x):
        kernel, bias = arrays[f"dense_{number}" if number else "dense"]
        return x @ kernel + bias

    def stream(first, x):
        f = dense(first, x)
        z = dense(first + 1, f).relu()
        y = dense(first + 3, z) * torch.exp(dense(first + 4, z) * f) + dense(first + 2, z)
        return nn.functional.leaky_relu(dense(first + 5, y), 0.3)

    expected = torch.tanh(dense(12, torch.cat([stream(0, h), stream(6, h[:, 1:] - h[:, :-1])], dim=1)))
    assert (net(h) - expected.squeeze(1)).abs().max() < 1e-6


@pytest.mark.parametrize("damage", ["missing layer", "wrong shape", "not h5", "no file"])
def test_damaged_keras_files_are_refused(tmp_path, damage):
    path = tmp_path / "net.h5"
    if damage == "missing layer":
        write_keras_h5(path, 0, KERAS_SHAPES[:-1])
    elif damage == "wrong shape":
        write_keras_h5(path, 0, [(6, 64), *KERAS_SHAPES[1:]])
    elif damage == "not h5":
        path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="not a KNOW predictor"):
        load_keras_h5(path)


@pytest.mark.skipif("WEIGHTSMITH_KNOW_H5" not in os.environ, reason="WEIGHTSMITH_KNOW_H5: folder of KNOWN_*.h5")
@pytest.mark.parametrize(("column", "kind"), enumerate(["Conv", "FC", "Bias"]))
def test_golden_outputs_of_the_published_predictors(column, kind):
    net = load_keras_h5(Path(os.environ["WEIGHTSMITH_KNOW_H5"]) / f"KNOWN_{kind}.h5")
    h = torch.tensor(list(GOLDEN))
    expected = torch.tensor([row[column] for row in GOLDEN.values()])
    for out in (net(h), ElementwiseRule(net).change(h.T.contiguous())):
        assert (out - expected).abs().max() < 2e-6
        assert abs(out[0].item() - WRONG_SLOPE[column]) > 1e-4


def test_the_slope_is_not_torchs_default(net, monkeypatch):
    h = torch.zeros(1, 5)
    right = net(h).item()
    monkeypatch.setattr("weightsmith.predict._know.network.SLOPE", 0.01)
    assert abs(net(h).item() - right) > 1e-4
