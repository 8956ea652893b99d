"""TangleNAS: the cost of mixing weights, the rank of the network that is found, and what choices can be told apart.

Three experiments of the specification. One convolution with 27 joint choices, mixed by weights and by outputs. A space
of 729 networks on short signals of ten classes: the data are made like MNIST-1D (templates of twelve points, padded,
shifted, scaled, sheared, with correlated noise), not MNIST-1D itself. A linear regression whose true kernel is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.training import FitOptions, fit
from weightsmith.search import SPOS, DrNAS, Supernet, mix_outputs, search
from weightsmith.search._tanglenas.method import draw, net_loss

__all__ = ["MEMORY", "RANK", "SIGNAL", "TIME", "cost", "identifiability", "rank", "run"]

PAPER = "Gradient-based search in a network with shared weights finds better networks than search in two stages."
SHARED = "Mixing weights keeps the cost of one network, where mixing outputs has that of all choices."

TIME = Claim(
    slug="tanglenas",
    experiment="time",
    title="One convolution with 27 joint choices: forward and backward pass",
    statement="Mixing the weights takes less than half the time of mixing the outputs.",
    metric="log seconds per step",
    higher_is_better=False,
    expected=(Ordering("mixed weights", "mixed outputs", math.log(2)),),
    paper=SHARED,
    claimed=(Ordering("mixed weights", "mixed outputs", math.log(2)),),
)
MEMORY = Claim(
    slug="tanglenas",
    experiment="memory",
    title="One convolution with 27 joint choices: bytes kept for the backward pass",
    statement="Mixing the weights keeps less than an eighth of the bytes.",
    metric="log bytes of saved tensors",
    higher_is_better=False,
    expected=(Ordering("mixed weights", "mixed outputs", math.log(8)),),
    paper=SHARED,
    claimed=(Ordering("mixed weights", "mixed outputs", math.log(8)),),
)
RANK = Claim(
    slug="tanglenas",
    experiment="rank",
    title="A space of 729 networks on short signals, trained from scratch",
    statement="The network found by gradients beats a random one, and does not lose to the one found in two stages.",
    metric="test accuracy after training from scratch",
    higher_is_better=True,
    expected=(Ordering("gradients", "random"), Ordering("gradients", "two stages", -0.005)),
    paper=PAPER,
    claimed=(Ordering("gradients", "two stages"), Ordering("gradients", "random")),
    scales=("cpu", "gpu"),
)
SIGNAL = Claim(
    slug="tanglenas",
    experiment="signal",
    title="A linear regression whose true kernel is 3, 5 or 7 of 7 taps",
    statement="A true kernel of 3 is found more often than one of 7: errors go to smaller kernels.",
    metric="share of seeds whose selected kernel is the true one",
    higher_is_better=True,
    expected=(Ordering("true kernel 3", "true kernel 7"),),
)

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"samples": (2000, 1000), "epochs": 40, "retrain": 20, "random": 8, "candidates": 100},
    "gpu": {"samples": (4000, 1000), "epochs": 60, "retrain": 30, "random": 20, "candidates": 100},
}
SPACE = {
    **{f"{place}.out_channels": (8, 16, 32) for place in (0, 2, 4)},
    **{f"{place}.kernel_size": (3, 5, 7) for place in (0, 2, 4)},
}
LENGTH, POINTS, CLASSES = 40, 12, 10


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Run all experiments."""
    some: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    return [*cost(scale, **some), rank(scale, **some), identifiability(scale, **some)]


# --- cost


def cost(scale: str = "cpu", seeds: Sequence[int] = tuple(range(10, 15))) -> list[ClaimResult]:
    """Time a step of one convolution, and count the bytes it keeps."""
    start = time.perf_counter()
    timed = each_seed(lambda seed: _cost(seed)[0], seeds, "time of a step")
    kept = each_seed(lambda seed: _cost(seed)[1], seeds, "bytes of a step")
    seconds = time.perf_counter() - start
    return [
        ClaimResult.judge(claim, _arms(values, "mixed weights"), scale=scale, seeds=seeds, seconds=seconds)
        for claim, values in ((TIME, timed), (MEMORY, kept))
    ]


def _cost(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Log seconds and log bytes of a step by name."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 7, padding=3), nn.Flatten(), nn.Linear(64 * 256, 2))
    choices = {"0.out_channels": (8, 16, 32), "1.out_channels": (16, 32, 64), "1.kernel_size": (3, 5, 7)}
    net = Supernet(model, choices, torch.randn(1, 3, 16, 16))
    x = torch.randn(32, 32, 16, 16, requires_grad=True)
    seconds, sizes = {}, {}
    for name in ("mixed weights", "mixed outputs"):
        if name == "mixed outputs":
            mix_outputs(net)
        taken, kept = [], 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        for _ in range(4):
            begun = time.perf_counter()
            net.state.sample(DrNAS(), 0.0, torch.Generator().manual_seed(seed))
            kept = 0
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                out = model[1](x)
            out.square().mean().backward()
            taken.append(time.perf_counter() - begun)
        seconds[name], sizes[name] = math.log(min(taken)), math.log(kept)
    return seconds, sizes


# --- rank


def rank(scale: str = "cpu", seeds: Sequence[int] = tuple(range(10, 16))) -> ClaimResult:
    """Search in every way, and train what is found, random networks and the largest one from scratch."""
    start = time.perf_counter()
    found: list[str] = []
    values = each_seed(lambda seed: _rank(seed, SIZES[scale], found), seeds, "networks on short signals")
    percentiles = values.pop("percentile")
    arms = _arms(values, "gradients", controls=("largest",))
    notes = [
        f"Percentile of the network found by gradients among the random ones: "
        f"{sum(percentiles) / len(percentiles):.0f} on average ({', '.join(f'{value:.0f}' for value in percentiles)}).",
        "Data are drawn by a procedure like that of MNIST-1D. Both searches saw the same samples for as many steps.",
        "Found by gradients (channels, then kernels): " + "; ".join(found) + ".",
    ]
    return ClaimResult.judge(RANK, arms, scale=scale, seeds=seeds, seconds=time.perf_counter() - start, notes=notes)


def _rank(seed: int, sizes: dict[str, Any], found: list[str]) -> dict[str, float]:
    train, test = (signals(count, seed + part) for part, count in zip((0, 1000), sizes["samples"], strict=True))
    half = len(train) // 2
    options: FitOptions = {"epochs": sizes["epochs"], "batch_size": 50, "learning_rate": 3e-3, "weight_decay": 5e-4}
    chosen = {}
    for name, sampler in (("gradients", DrNAS()), ("two stages", SPOS())):
        generator = torch.Generator().manual_seed(seed)
        net = Supernet(network(seed), SPACE, train[0][0][None], generator=generator)
        search(net, train[:half], train[half:], sampler=sampler, arch_learning_rate=1e-2, seed=seed, **options)
        if sampler.learns:
            chosen[name] = net.state.argmax()
        else:
            batches = [_stacked(train[half:])]
            drawn = draw(net, sizes["candidates"], seed)
            losses = [net_loss(net, architecture, batches, []) for architecture in drawn]
            chosen[name] = drawn[losses.index(min(losses))]
    found.append(" ".join(map(str, chosen["gradients"].values())))
    net = Supernet(network(seed), SPACE, train[0][0][None])
    drawn = draw(net, sizes["random"], seed + 5000)
    options["epochs"] = sizes["retrain"]

    def accuracy(architecture: dict[str, int]) -> float:
        small = net.extracted(architecture)
        torch.manual_seed(seed)
        for module in small.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                module.reset_parameters()
        fit(small, cast(Any, train), seed=seed, **options)
        x, y = _stacked(test)
        with torch.no_grad():
            return float((small.eval()(x).argmax(1) == y).float().mean())

    others = [accuracy(architecture) for architecture in drawn]
    values = {name: accuracy(architecture) for name, architecture in chosen.items()}
    below = sum((other < values["gradients"]) + (other == values["gradients"]) / 2 for other in others)
    return {
        **values,
        "random": sum(others) / len(others),
        "largest": accuracy(net.space.largest),
        "percentile": 100 * below / len(others),
    }


def network(seed: int) -> nn.Sequential:
    """Return the largest network of the space: three convolutions with strides of 2, and a linear head."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inner in (1, 32, 32):
        layers += [nn.Conv1d(inner, 32, 7, stride=2, padding=3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * LENGTH // 8, CLASSES))


def signals(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return labeled signals of forty points: templates, the same for all seeds, that were deformed."""
    fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    smooth = torch.tensor([0.25, 0.5, 0.25]).view(1, 1, 3)
    templates = functional.conv1d(torch.randn(CLASSES, 1, POINTS, generator=fixed), smooth, padding=1).squeeze(1) * 2
    rows = []
    for number in range(count):
        label = number % CLASSES
        size = POINTS + int(torch.randint(0, 13, (), generator=generator))
        scale = 1 + 0.3 * torch.randn((), generator=generator)
        x = functional.interpolate(templates[label][None, None] * scale, size=size, mode="linear", align_corners=True)
        first = int(torch.randint(0, LENGTH - size + 1, (), generator=generator))
        x = functional.pad(x, (first, LENGTH - size - first))
        noise = functional.conv1d(torch.randn(1, 1, LENGTH, generator=generator), smooth, padding=1)
        shear = 0.4 * torch.randn((), generator=generator) * torch.linspace(-1, 1, LENGTH)
        rows.append(((x + 0.5 * noise + shear)[0], torch.tensor(label)))
    return rows


def _stacked(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


# --- identifiability


def identifiability(scale: str = "cpu", seeds: Sequence[int] = tuple(range(20, 60))) -> ClaimResult:
    """Select the kernel of a regression by the softmax of first-order architecture parameters."""
    start = time.perf_counter()
    kernels = (3, 5, 7)
    smaller = dict.fromkeys(kernels, 0)
    values: dict[str, list[float]] = {}
    for true in kernels:
        chosen = selected(true, seeds)
        values[f"true kernel {true}"] = [float(kernel == true) for kernel in chosen]
        smaller[true] = sum(kernel < true for kernel in chosen)
    notes = [
        "Taken for a smaller kernel: " + ", ".join(f"{n} of {len(seeds)} for {k}" for k, n in smaller.items()) + ".",
        "The product of mask and weights does not tell a low mask on large weights from a high mask on small ones: "
        "architecture weights say little about a choice that the weights can make up for.",
    ]
    arms = [Arm(name, "control" if "3" not in name else "method", each) for name, each in values.items()]
    return ClaimResult.judge(SIGNAL, arms, scale=scale, seeds=seeds, seconds=time.perf_counter() - start, notes=notes)


def selected(true: int, seeds: Sequence[int], steps: int = 1000) -> list[int]:
    """Return for every seed the kernel with the highest parameter after a search on 60 and 60 samples."""
    place, kernels = torch.arange(7), (3, 5, 7)
    table_KT = torch.stack([(place - 3).abs() <= kernel // 2 for kernel in kernels]).float()
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        sizes = ((7,), (2, 60, 7), (2, 60), (7,), (3,))
        drawn.append([torch.randn(size, generator=generator) for size in sizes])
    target, x, noise, weight, alpha = (torch.stack(each) for each in zip(*drawn, strict=True))
    target_ST = target * table_KT[kernels.index(true)]
    y = torch.einsum("spnt,st->spn", x, target_ST) + 0.5 * noise
    weight_ST, alpha_SK = (0.1 * weight).requires_grad_(), (1e-3 * alpha).requires_grad_()
    of_weights, of_choices = torch.optim.SGD([weight_ST], 0.05), torch.optim.Adam([alpha_SK], 3e-3, betas=(0.5, 0.999))
    for _ in range(steps):  # all seeds at once: none sees another
        for part, optimizer in ((1, of_choices), (0, of_weights)):
            optimizer.zero_grad()
            mixed_ST = weight_ST * (alpha_SK.softmax(1) @ table_KT)
            error = torch.einsum("snt,st->sn", x[:, part], mixed_ST) - y[:, part]
            error.square().mean(1).sum().backward()
            optimizer.step()
    return [kernels[place] for place in alpha_SK.argmax(1).tolist()]


def _arms(values: dict[str, list[float]], method: str, controls: Sequence[str] = ()) -> list[Arm]:
    kinds = {name: "method" if name == method else "control" if name in controls else "baseline" for name in values}
    return [Arm(name, cast(Any, kinds[name]), each) for name, each in values.items()]
