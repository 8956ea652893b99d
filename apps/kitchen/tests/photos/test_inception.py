"""Inception-v1: the counts, shapes and cost that the papers give."""

import pytest
import torch

from weightsmith_kitchen.photos.inception import MODULES, InceptionModule, InceptionV1


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    model = InceptionV1()
    assert parameters(model) - parameters(model.fc) == 5_973_552
    assert parameters(model) == 6_998_552
    assert parameters(InceptionV1(256)) == 6_235_952
    assert parameters(InceptionV1(101)) == 6_077_077
    assert parameters(model.inception_3a) == 163_696


def test_the_reductions_are_what_saves_parameters():
    without = 192 * 64 + 64 + 192 * 128 * 9 + 128 + 192 * 32 * 25 + 32
    assert without == 387_296  # 1 x 1, 3 x 3 and 5 x 5 on all channels
    assert parameters(InceptionModule(*MODULES["inception_3a"])) < without / 2


def test_shapes_and_cost():
    model, sizes, macs = InceptionV1(10).eval(), {}, []

    def note(name):
        return lambda _, inputs, output: sizes.__setitem__(name, tuple(output.shape[1:]))

    def count(module, inputs, output):
        macs.append(output.numel() * module.weight[0].numel())

    for name, module in model.named_modules():
        if isinstance(module, InceptionModule):
            module.register_forward_hook(note(name))
        elif isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert model.features(x).shape == (1, 1024)
    channels = [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    sides = [28, 28, 14, 14, 14, 14, 14, 7, 7]
    assert list(sizes.values()) == [(c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert list(sizes) == list(MODULES)
    assert sum(macs) / 1e9 == pytest.approx(1.582, abs=5e-4)


def test_signals_reach_the_head_and_gradients_the_stem():
    torch.manual_seed(0)
    model = InceptionV1(5, dropout=0.0)
    logits = model(torch.randn(2, 3, 96, 96))
    assert 0.05 < logits.std() < 20
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.conv1.weight.grad.abs().max() > 0
