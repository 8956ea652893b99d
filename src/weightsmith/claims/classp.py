"""CLASSP: digits, then the same digits with their pixels permuted; how much of the first task is left?

Every optimizer learns the second task to the same training accuracy, so that none keeps the first by not learning. Each
arm had a sweep of its own on seeds that are not among those judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.continual import CLASSP, EWC, L2SP, Replay
from weightsmith.core.data import collate
from weightsmith.embedded import digits

__all__ = ["NEW", "OLD", "WAYS", "Way", "learn_two_tasks", "run"]

PAPER = (
    "On MNIST then Fashion-MNIST, and on two sentiment tasks, CLASSP keeps more of the first task than SGD, Adam, "
    "AdaGrad and EWC at equal accuracy on the second; without the threshold it keeps less."
)

OLD = Claim(
    slug="classp",
    experiment="old",
    title="CLASSP on digits, then permuted digits: the first task",
    statement=(
        "After a second task learned equally well, CLASSP with power 1 keeps half a point more of the first than "
        "AdaGrad and EWC at their best. A new accumulator for the second task costs five points: what protects the "
        "first is the old one."
    ),
    metric="test accuracy on the first task, after the second",
    higher_is_better=True,
    expected=(
        Ordering(better="CLASSP", worse="EWC", margin=0.005),
        Ordering(better="CLASSP", worse="AdaGrad", margin=0.005),
        Ordering(better="CLASSP", worse="CLASSP, new accumulator", margin=0.05),
    ),
    paper=PAPER,
    claimed=(
        Ordering(better="CLASSP", worse="SGD"),
        Ordering(better="CLASSP", worse="Adam"),
        Ordering(better="CLASSP", worse="AdaGrad"),
        Ordering(better="CLASSP", worse="EWC"),
        Ordering(better="CLASSP, threshold 1e-5 on the first", worse="CLASSP"),
    ),
)

NEW = Claim(
    slug="classp",
    experiment="new",
    title="CLASSP on digits, then permuted digits: the second task",
    statement="It learns the second task as well as AdaGrad and EWC do, within one and a half points.",
    metric="test accuracy on the second task",
    higher_is_better=True,
    expected=(
        Ordering(better="CLASSP", worse="AdaGrad", margin=-0.015),
        Ordering(better="CLASSP", worse="EWC", margin=-0.015),
    ),
)

TRAIN, BATCH, EPOCHS, MOST_EPOCHS, LEARNED = 1400, 32, 20, 60, 0.99
"""Training images, batch size, epochs on the first task, at most on the second, and the training accuracy to reach."""

SWEEPS = (
    "Swept on seeds 100 to 102: CLASSP .025 to .4; AdaGrad .005 to .16; SGD .01 to .5; Adam 2e-4 to 2e-3; EWC 30 to "
    "1000, with the Fisher information of single samples and SGD at .05 to .1; L2-SP .001 to .1; replay with SGD at "
    ".05 to .4."
)

Data = tuple[Tensor, Tensor]
Optimizer = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Way:
    """A way to learn two tasks one after the other.

    Attributes
    ----------
    optimizer : callable
        Makes an optimizer of parameters.
    penalty : float or None
        Strength of EWC or, with ``everywhere``, of L2-SP.
    everywhere : bool
        Hold all weights alike.
    replay : int
        Images per class of the first task in every batch of the second.
    joint : bool
        Train on both tasks at once.
    fresh : bool
        A new optimizer for the second task.
    second : mapping
        Hyper-parameters of the optimizer that the second task changes.
    """

    optimizer: Optimizer
    penalty: float | None = None
    everywhere: bool = False
    replay: int = 0
    joint: bool = False
    fresh: bool = False
    second: Mapping[str, Any] = field(default_factory=dict)


def sgd(lr: float) -> Optimizer:
    """Return SGD."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def classp(lr: float, **options: Any) -> Optimizer:
    """Return CLASSP."""
    return lambda parameters: CLASSP(parameters, lr=lr, **options)


def adam(lr: float) -> Optimizer:
    """Return Adam."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def adagrad(lr: float) -> Optimizer:
    """Return AdaGrad."""
    return lambda parameters: torch.optim.Adagrad(parameters, lr=lr, eps=1e-5)


WAYS = {
    "CLASSP": Way(classp(0.1)),
    "CLASSP, threshold 1e-5 on the first": Way(classp(0.1, threshold=1e-5), second={"threshold": 0.0}),
    "CLASSP, threshold at the median": Way(classp(0.1, threshold="q0.5")),
    "CLASSP, new accumulator": Way(classp(0.05), fresh=True),
    "CLASSP, power 2": Way(classp(0.08, power=2.0)),
    "AdaGrad": Way(adagrad(0.08)),
    "SGD": Way(sgd(0.2)),
    "Adam": Way(adam(5e-4)),
    "EWC": Way(sgd(0.1), penalty=300.0),
    "L2-SP": Way(sgd(0.05), penalty=0.01, everywhere=True),
    "replay, 20 per class": Way(sgd(0.4), replay=20),
    "both tasks at once": Way(sgd(0.1), joint=True),
}
"""With the best of the sweeps, among what learned the second task."""


def run(scale: str = "cpu", seeds: Sequence[int] = tuple(range(20, 36))) -> list[ClaimResult]:
    """Learn both tasks in every way; a seed draws the data, the permutation and the initial weights."""
    start = time.perf_counter()
    found = each_seed(_every_way, seeds, OLD.title)
    seconds = (time.perf_counter() - start) / 2
    notes = (
        f"The second task ends at a training accuracy of {LEARNED:.0%}, after {MOST_EPOCHS} epochs at most.",
        SWEEPS,
    )
    results = []
    for claim, key in ((OLD, "after"), (NEW, "new")):
        arms = [Arm(name, _role(name), found[f"{name}: {key}"]) for name in WAYS]
        results.append(ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=notes))
    return results


def _every_way(seed: int) -> dict[str, float]:
    measured = {name: learn_two_tasks(seed, way) for name, way in WAYS.items()}
    return {f"{name}: {key}": value for name, values in measured.items() for key, value in values.items()}


def _role(name: str) -> Literal["method", "baseline", "control"]:
    if name == "CLASSP":
        return "method"
    return "control" if name.startswith("CLASSP") or name == "both tasks at once" else "baseline"


def learn_two_tasks(seed: int, way: Way) -> dict[str, float]:
    """Learn both tasks and return test accuracies: of the first before and after the second, and of the second."""
    images, classes = digits()
    generator = torch.Generator().manual_seed(seed)
    order, pixels = torch.randperm(len(classes), generator=generator), torch.randperm(64, generator=generator)
    x, y = ((images.flatten(1) - 0.3) / 0.37)[order], classes[order]
    first, second = (x[:TRAIN], y[:TRAIN]), (x[:TRAIN, pixels], y[:TRAIN])
    first_test, second_test = (x[TRAIN:], y[TRAIN:]), (x[TRAIN:, pixels], y[TRAIN:])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = way.optimizer([*model.parameters()])
    if way.joint:
        both = (torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]))
        for _ in range(EPOCHS):
            _epoch(model, optimizer, both, generator)
        old = _accuracy(model, first_test)
        return {"before": old, "after": old, "new": _accuracy(model, second_test), "epochs": EPOCHS, "learned": 1.0}
    for _ in range(EPOCHS):
        _epoch(model, optimizer, first, generator)
    before = _accuracy(model, first_test)
    penalty: Callable[[nn.Module], Tensor] | None = None
    if way.penalty is not None and way.everywhere:
        penalty = L2SP(way.penalty)
        penalty.consolidate(model)
    elif way.penalty is not None:
        penalty = EWC(way.penalty)
        # the Fisher of single samples: that of batches of 32 is a worse estimate, and keeps less of the first task
        penalty.consolidate(model, list(zip(first[0].split(1), first[1].split(1), strict=True)))
    stored: Data | None = None
    if way.replay:
        replay = Replay(way.replay, generator=generator)
        replay.add(list(zip(*first, strict=True)))
        stored = tuple(collate([replay[number] for number in range(len(replay))]))
    if way.fresh:
        optimizer = way.optimizer([*model.parameters()])
    for group in optimizer.param_groups:
        group.update(way.second)
    epochs = 0
    while epochs < MOST_EPOCHS and _accuracy(model, second) < LEARNED:
        _epoch(model, optimizer, second, generator, penalty, stored)
        epochs += 1
    return {
        "before": before,
        "after": _accuracy(model, first_test),
        "new": _accuracy(model, second_test),
        "epochs": float(epochs),
        "learned": float(_accuracy(model, second) >= LEARNED),
    }


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    generator: torch.Generator,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    stored: Data | None = None,
) -> None:
    for rows in torch.randperm(len(data[1]), generator=generator).split(BATCH):
        x, y = data[0][rows], data[1][rows]
        if stored is not None:
            x, y = torch.cat([x, stored[0]]), torch.cat([y, stored[1]])
        loss = functional.cross_entropy(model(x), y)
        if penalty is not None:
            loss = loss + penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _accuracy(model: nn.Module, data: Data) -> float:
    return float((model(data[0]).argmax(1) == data[1]).double().mean())
