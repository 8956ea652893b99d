"""Inception-v1: the counts, shapes and cost that the papers give."""

import pytest
import torch

from weightsmith_kitchen.photos.inception import AUXILIARY, MODULES, AuxiliaryHeads, InceptionModule, InceptionV1


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


def test_auxiliary_heads_have_the_papers_layers():
    heads = AuxiliaryHeads(1000)
    counts = [parameters(heads.get_submodule(name)) for name in AUXILIARY]
    linear = 2048 * 1024 + 1024 + 1024 * 1000 + 1000
    assert counts == [512 * 128 + 128 + linear, 528 * 128 + 128 + linear] == [3_188_840, 3_190_888]
    assert parameters(InceptionV1()) + parameters(heads) == 13_378_280  # of GoogLeNet in training, with biases
    sizes = []
    heads.inception_4a[0].register_forward_hook(lambda _, inputs, output: sizes.append(tuple(output.shape)))
    model = InceptionV1(3).eval()
    with torch.no_grad():
        _, maps = model.features_and_maps(torch.randn(2, 3, 224, 224))
        found = heads.eval()(maps)
    assert sizes == [(2, 128, 4, 4)]
    assert [tuple(x.shape) for x in found] == [(2, 1000), (2, 1000)]
    assert {name: maps[name].shape[1] for name in maps} == AUXILIARY


def test_auxiliary_pooling_is_five_by_five_with_stride_three():
    heads, pooled = AuxiliaryHeads(2).eval(), []
    heads.inception_4a[0].register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    maps = {name: torch.rand(1, channels, 14, 14) for name, channels in AUXILIARY.items()}
    heads(maps)
    x = maps["inception_4a"]
    for row in range(4):
        for column in range(4):
            window = x[..., 3 * row : 3 * row + 5, 3 * column : 3 * column + 5]
            assert torch.allclose(pooled[0][..., row, column], window.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("side", [64, 96, 128, 299])
def test_auxiliary_heads_work_at_other_sizes(side):
    model, heads = InceptionV1(2).eval(), AuxiliaryHeads(4).eval()
    with torch.no_grad():
        _, maps = model.features_and_maps(torch.randn(1, 3, side, side))
        assert all(x.shape == (1, 4) for x in heads(maps))
