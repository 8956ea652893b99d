"""Meta-training: stacked networks equal single ones, rows are cut rightly, both searches find what is there."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from safetensors.torch import load
from torch import nn
from torch.nn import functional

from tools.know import ours as meta_ours, paper as meta_paper
from tools.know.images import digits, glyphs, textures
from tools.know.nets import NETS
from tools.know.stacked import BLOCKS, STRIDES, Stack, gather_images
from weightsmith.predict import SmoothRule


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def member(stack: Stack, number: int) -> nn.Sequential:
    """One network of a stack as ordinary modules."""
    layers: list[nn.Module] = []
    for block in range(BLOCKS):
        weight = stack.weights[f"{block}.weight"][number]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, STRIDES[block], padding=1)
        norm = nn.BatchNorm2d(weight.shape[0])
        with torch.no_grad():
            for parameter, name in ((conv.weight, "weight"), (conv.bias, "bias")):
                parameter.copy_(stack.weights[f"{block}.{name}"][number])
            for parameter, name in ((norm.weight, "scale"), (norm.bias, "shift")):
                parameter.copy_(stack.weights[f"{block}.{name}"][number])
        layers += [conv, norm, nn.ReLU()]
    head = nn.Linear(*reversed(stack.weights["head.weight"].shape[1:]))
    with torch.no_grad():
        head.weight.copy_(stack.weights["head.weight"][number])
        head.bias.copy_(stack.weights["head.bias"][number])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)


def test_a_stack_trains_as_its_members_alone():
    x, y = torch.rand(2, 8, 1, 8, 8, generator=generator()), torch.randint(3, (2, 8), generator=generator())
    stack = Stack.fresh(2, (4, 6, 5), 3, generator(1))
    alone = [member(stack, number) for number in range(2)]
    start = {name: weight.clone() for name, weight in stack.weights.items()}
    before = stack.copy()
    # A bias before normalization has no gradient but rounding, which Adam would turn into whole steps.
    names = [name for name in stack.weights if name not in ("0.bias", "1.bias", "2.bias")]
    stack.train(x, y, epochs=3, lr=1e-2, generator=generator(), batch=8, names=names)
    for number, model in enumerate(alone):
        moving = [p for name, p in model.named_parameters() if name not in ("0.bias", "3.bias", "6.bias")]
        optimizer = torch.optim.Adam(moving, lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[number]), y[number]).backward()
            optimizer.step()
        logits = model.eval()(x[number])
        assert (stack.logits(x)[number] - logits).abs().max() < 1e-3
        accuracy = (logits.argmax(1) == y[number]).float().mean()
        assert stack.accuracy(x, y)[number] == accuracy
    assert all(torch.equal(before.weights[name], weight) for name, weight in start.items())


def test_only_named_weights_are_trained_and_statistics_can_be_replaced():
    x, y = torch.rand(2, 32, 1, 8, 8, generator=generator()), torch.randint(3, (2, 32), generator=generator())
    stack = Stack.fresh(2, (4, 6, 5), 3, generator(1))
    start = dict(stack.weights)
    stack.train(x, y, epochs=1, lr=1e-2, generator=generator(), names=["head.weight"])
    assert [name for name in start if not torch.equal(start[name], stack.weights[name])] == ["head.weight"]
    stack.recalibrate(x)
    first = functional.conv2d(x[0], start["0.weight"][0], start["0.bias"][0], padding=1)
    assert torch.allclose(stack.means[0][:4], first.mean((0, 2, 3)), atol=1e-6)


def test_images_are_repeatable_and_classes_differ():
    one, again = (glyphs(1, 3, 20, generator=generator(4)) for _ in range(2))
    assert torch.equal(one, again)
    assert 0 <= one.min() < one.max() <= 1
    means = one[0].mean(1).flatten(1)
    within = (one[0].flatten(2) - means.unsqueeze(1)).square().mean()
    assert torch.cdist(means, means).square().sum() / 6 / 64 > within / 4
    x, y = textures(3, 10, generator=generator())
    assert x.std() == pytest.approx(1.1, abs=0.3)
    assert y.bincount().tolist() == [10, 10, 10]


def test_digits_are_never_grouped_as_in_the_claim(monkeypatch):
    """Whatever the permutation, the claim's groups are drawn again."""
    claim = [list(range(10)), [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]]
    drawn = iter([torch.arange(1797), *map(torch.tensor, claim), torch.tensor([0, 1, 2, 3, 9, 4, 5, 6, 7, 8])])
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: next(drawn))
    x, y, other_x, other_y = digits(5, generator())
    assert next(drawn, None) is None
    assert len(x) + len(other_x) == 1797
    assert y.unique().tolist() == other_y.unique().tolist() == [0, 1, 2, 3, 4]


def test_rows_are_windows_towards_larger_data_without_normalization_layers():
    model = NETS[1](4)
    snapshots = [{name: torch.full_like(t, float(s)) for name, t in model.state_dict().items()} for s in range(7)]
    rows = meta_paper.forgotten_weights(snapshots, generator(), limit=500)
    assert set(rows) == {"conv", "fc", "bias"}
    assert len(rows["conv"]) == 500
    for table in rows.values():
        assert table.unique(dim=0).tolist() == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert len(rows["bias"]) == 2 * biases


@pytest.mark.parametrize("net", NETS)
def test_recorded_networks_are_small_and_classify(net):
    model = net(6)
    assert sum(p.numel() for p in model.parameters()) <= 30_000
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 6)


def test_the_papers_loss_finds_a_rule_that_is_there(monkeypatch):
    """Weights that move on as they moved last; no more of the last value's error is left than a third."""

    def run(seed):
        h = torch.randn(700, 1, generator=generator(seed)) / 10 + torch.arange(5) * (
            torch.randn(700, 1, generator=generator(seed + 100)) / 50
        )
        return {"fc": torch.cat([h, h[:, -1:] + (h[:, -1:] - h[:, -2:-1])], dim=1)}

    monkeypatch.setattr(meta_paper, "BATCH", 1024)
    runs = [{**run(seed), "conv": run(seed)["fc"], "bias": run(seed)["fc"]} for seed in range(10)]
    net = meta_paper.fit_predictors(runs, seed=0, epochs=8)["fc"]
    rows = run(99)["fc"]
    left = (rows[:, 4] + net(rows[:, :5]) - rows[:, 5]).abs().mean()
    assert left < (rows[:, 4] - rows[:, 5]).abs().mean() / 3


def test_evolution_finds_the_best_numbers(monkeypatch):
    best = torch.tensor([0.2, 0.1, -0.5, -0.1, 0.05], dtype=torch.float64)

    def score(_, numbers, seed):
        return 0.9 - float(((numbers - best) / torch.tensor(meta_ours.SPREAD)).square().sum()) / 500

    monkeypatch.setattr(meta_ours, "_score", score)
    stack = Stack.fresh(2, (4, 4, 4), 5, generator())
    task = meta_ours.Tasks(stack, [stack.weights] * 5, torch.zeros(2, 60, 1, 8, 8), torch.zeros(2, 60).long())
    rule = meta_ours.evolve([task], iterations=80, pairs=5, seed=0)
    found = torch.tensor([getattr(rule, name) for name in meta_ours.NAMES], dtype=torch.float64)
    assert ((found - best) / torch.tensor(meta_ours.SPREAD)).abs().max() < 0.25


def test_transfer_starts_from_the_given_weights():
    stack = Stack.fresh(2, (4, 4, 4), 5, generator())
    x, y = torch.rand(2, 120, 1, 8, 8, generator=generator()), torch.randint(5, (2, 120), generator=generator())
    task = meta_ours.Tasks(stack, [stack.weights] * 5, x, y)
    one, again = (meta_ours.transfer(task, stack.weights, generator(1)) for _ in range(2))
    other = meta_ours.transfer(
        task, {n: w / 9 if n in stack.kernels else w for n, w in stack.weights.items()}, generator(1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_images_are_gathered_for_each_network():
    x, y = torch.rand(2, 5, 1, 2, 2, generator=generator()), torch.arange(10).view(2, 5)
    index = torch.tensor([[4, 0], [2, 2]])
    xs, ys = gather_images(x, y, index)
    assert ys.tolist() == [[4, 0], [7, 7]]
    assert torch.equal(xs[1, 0], x[1, 2])


def test_shipped_predictors_are_whole_and_small():
    folder = resources.files("weightsmith.predict._know")
    ours, paper = (folder.joinpath(f"{name}.safetensors").read_bytes() for name in ("ours", "paper"))
    assert len(ours) + len(paper) < 200_000
    assert sum(tensor.numel() for tensor in load(paper).values()) == 3 * 9425
    rule = SmoothRule.from_tensors(load(ours))
    assert rule.smooth > 0
