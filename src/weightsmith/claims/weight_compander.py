"""Weight compander: the trained network survives the loss of weights; dropout survives random losses as well.

A fully connected network learns 150 digits. After training (and folding) the largest weights of every layer, or
weights drawn at random, are set to zero. Beside it: plain training, its tuned variants, clipping to the same bound, and
dropout. The ten seeds are a number from the variance of seeds 20 to 25, which were looked at before.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.metrics import accuracy
from weightsmith.core.models import find_layers
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.train import compand, compander_parameter_groups, fold_companders, weight_statistics

__all__ = ["INTACT", "LARGEST", "RANDOM", "WEIGHTS", "run"]

ABSTRACT = "Companding, on top of standard regularization, improves the performance of neural networks (abstract only)."

LARGEST = Claim(
    slug="weight-compander",
    experiment="largest",
    title="Digits network without the largest 10 % of its weights",
    statement=(
        "A companded network keeps over 10 points more accuracy than a plain one, and more than a clipped one; with "
        "the raw start also more than with dropout."
    ),
    metric="test accuracy after the largest 10 % of each layer are zeroed",
    higher_is_better=True,
    expected=(
        Ordering(better="compander", worse="plain", margin=0.1),
        Ordering(better="compander", worse="plain, clipped to the same bound"),
        Ordering(better="compander, raw start", worse="dropout 0.5"),
    ),
    paper=ABSTRACT,
    claimed=(Ordering(better="compander", worse="plain"),),
)

RANDOM = Claim(
    slug="weight-compander",
    experiment="random",
    title="Digits network without half of its weights, drawn at random",
    statement=(
        "A companded network keeps over 4 points more accuracy than a plain one, and more than a clipped one; dropout "
        "is as good."
    ),
    metric="test accuracy after half of each layer is zeroed, mean of 5 draws",
    higher_is_better=True,
    expected=(
        Ordering(better="compander", worse="plain", margin=0.04),
        Ordering(better="compander", worse="plain, clipped to the same bound"),
        Ordering(better="dropout 0.5", worse="compander", margin=-0.02),
    ),
    paper=ABSTRACT,
    claimed=(Ordering(better="compander", worse="plain"),),
)

INTACT = Claim(
    slug="weight-compander",
    experiment="intact",
    title="Digits network, intact",
    statement="Companding loses at most a point of accuracy against plain training; dropout is better than both.",
    metric="test accuracy",
    higher_is_better=True,
    expected=(
        Ordering(better="compander", worse="plain", margin=-0.01),
        Ordering(better="dropout 0.5", worse="compander"),
    ),
    paper=ABSTRACT,
    claimed=(Ordering(better="compander", worse="plain"),),
)

WEIGHTS = Claim(
    slug="weight-compander",
    experiment="weights",
    title="Digits network: how evenly the weights are used",
    statement="Companded weights have lighter tails than plain ones, and fewer of them are dead.",
    metric="kurtosis of the weights, mean of the hidden layers",
    higher_is_better=False,
    expected=(
        Ordering(better="compander", worse="plain", margin=0.5),
        Ordering(better="compander", worse="plain, clipped to the same bound", margin=0.5),
    ),
    paper="No weight dominates, and few are dead: the kurtosis falls.",
    claimed=(Ordering(better="compander", worse="plain"),),
)

TRAINING, EPOCHS, BATCH, DRAWS, RATE = 150, 100, 32, 5, 0.05
ARMS: dict[str, dict[str, Any]] = {
    "compander": {"companded": "preserve"},
    "compander, raw start": {"companded": "raw"},
    "plain": {},
    "plain, twice the initial weights": {"scale": 2.0},
    "dropout 0.5": {"dropout": 0.5},
    "plain, clipped to the same bound": {"clipped": True},
}


def run(scale: str = "cpu", seeds: Sequence[int] = tuple(range(100, 110))) -> list[ClaimResult]:
    """Train every arm; a seed draws the training images, the initial weights and the weights that are lost."""
    start = time.perf_counter()
    values = each_seed(_experiment, seeds, "weight compander")
    seconds = time.perf_counter() - start
    notes = (
        "First measured on seeds 0 to 5, where the compander that preserves the start kept .056 +- .067 more accuracy "
        "than dropout without the largest weights; since then the raw start is declared to. On seeds 20 to 25 all "
        "held but two at random losses: .052 +- .045 over the clipped network, of .04 declared, and the tie with "
        "dropout. The first is declared without a margin now: .04 would need 190 seeds.",
        "That an intact companded network is better than a plain one, as the paper says, would need 34 seeds: it was "
        "ahead by .004 +- .005 on seeds 20 to 25. There the rate 0.02 and a weight decay of 0.005 were arms, too; "
        "neither changed the order.",
        "The experiments are measured on the same networks; the time is that of all.",
        "Share of the weights below a tenth of their standard deviation: "
        + ", ".join(f"{name} {sum(values[f'{name}: dead']) / len(seeds):.3f}" for name in ARMS)
        + ".",
    )
    results = []
    for claim in (LARGEST, RANDOM, INTACT, WEIGHTS):
        arms = [Arm(name, _role(name), values[f"{name}: {claim.experiment}"]) for name in ARMS]  # type: ignore[arg-type]
        results.append(ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=notes))
    return results


def _role(name: str) -> str:
    return "method" if name.startswith("compander") else "control" if "clipped" in name else "baseline"


def _experiment(seed: int) -> dict[str, float]:
    images, classes = digits()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    x, y = images.flatten(1)[order], classes[order]
    test = [(x[TRAINING:], y[TRAINING:])]
    values = {}
    for name, options in ARMS.items():
        model = _train(TensorDataset(x[:TRAINING], y[:TRAINING]), seed, **options)
        generator = torch.Generator().manual_seed(seed)
        values[f"{name}: intact"] = accuracy(model, test)
        hidden = [*weight_statistics(model).values()][:2]
        values[f"{name}: weights"] = sum(each["kurtosis"] for each in hidden) / 2
        values[f"{name}: dead"] = sum(each["dead_share"] for each in hidden) / 2
        values[f"{name}: largest"] = accuracy(_without(model, _largest), test)
        draws = [accuracy(_without(model, partial(_drawn, generator=generator)), test) for _ in range(DRAWS)]
        values[f"{name}: random"] = sum(draws) / DRAWS
    return values


def _train(
    data: TensorDataset,
    seed: int,
    *,
    scale: float = 1.0,
    dropout: float = 0.0,
    companded: Any = None,
    clipped: bool = False,
) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [nn.Linear(64, 256), nn.Linear(256, 256)]
    body = [part for layer in hidden for part in (layer, nn.ReLU(), nn.Dropout(dropout))]
    model = nn.Sequential(*body, nn.Linear(256, 10))
    weights = [layer.weight for layer in find_layers(model)]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(scale)
    limits = [2 * weight.abs().max().item() for weight in weights]
    if companded:
        compand(model, start=companded)

    def clip(*_: object) -> None:
        with torch.no_grad():
            for weight, limit in zip(weights, limits, strict=True):
                weight.clamp_(-limit, limit)

    groups = compander_parameter_groups(model, lr=RATE, weight_decay=5e-4)
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    settings: dict[str, Any] = {"scheduler": "cosine", "epochs": EPOCHS, "batch_size": BATCH, "seed": seed}
    fit(model, data, optimizer=optimizer, after_step=clip if clipped else None, **settings)
    if companded:
        fold_companders(model)
    return model.eval()


def _without(model: nn.Module, choose: Callable[[Tensor], Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in find_layers(model):
        layer.weight.data[choose(layer.weight.data)] = 0
    return model


def _largest(weight: Tensor) -> Tensor:
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().topk(weight.numel() // 10).indices] = True
    return mask.view_as(weight)


def _drawn(weight: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(weight.shape, generator=generator) < 0.5
