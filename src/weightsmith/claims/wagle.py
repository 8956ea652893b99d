"""WAGLE: at equal forgetting masks keep no more of what no set names; the choice of weights matters for speed only.

A network learns 960 facts (120 invented people, eight attributes) by heart. The facts of 12 people are to be forgotten
and those of 72 retained; the other 36 people are in neither set. NPO for 150 steps through all weights, or through the
80 % or 30 % of the weights that a score marks.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.training import fit
from weightsmith.forget import WeightMask, attribute_weights, unlearn
from weightsmith.forget._wagle.attribution import Method

__all__ = ["FAST", "PROTECTS", "run"]

PEOPLE, ATTRIBUTES, VALUES, NAMES = 120, 8, 24, 12
FORGOTTEN, RETAINED = 12, 72
STEPS_PER_EPOCH, EPOCHS = 3, 50
GAMMA = 1e-4
STOPPED, ENOUGH = ("all weights", "wagle 0.8", "random 0.8"), 0.2
"""Arms that are also measured at the first step at which no more than a fifth of the facts to forget is left."""
METHODS: tuple[Method, ...] = ("wagle", "snip", "saliency", "magnitude", "random")

PROTECTS = Claim(
    slug="wagle",
    experiment="protects",
    title="Through 80 % of the weights or through all: what is left of facts in neither set",
    statement="A mask keeps more of the other facts than all weights do; a random mask does so, too.",
    metric="accuracy on facts in neither set after 150 steps",
    higher_is_better=True,
    expected=(Ordering("wagle 0.8", "all weights", 0.01), Ordering("random 0.8", "all weights", 0.01)),
    paper="Unlearning through the weights that WAGLE selects preserves utility better than through all or random ones.",
    claimed=(Ordering("wagle 0.8", "all weights"), Ordering("wagle 0.8", "random 0.8")),
)

FAST = Claim(
    slug="wagle",
    experiment="fast",
    title="Through 30 % of the weights: how far forgetting gets in 150 steps",
    statement="Weights chosen by their gradient forget further than random ones.",
    metric="accuracy on the facts to forget after 150 steps",
    higher_is_better=False,
    expected=(Ordering("saliency 0.3", "random 0.3", 0.02), Ordering("wagle 0.3", "random 0.3")),
    paper="WAGLE improves the efficacy of unlearning over random and magnitude-based selection.",
    claimed=(Ordering("wagle 0.3", "random 0.3"), Ordering("wagle 0.3", "magnitude 0.3")),
)


def run(scale: str = "cpu", seeds: Sequence[int] = tuple(range(10, 20))) -> list[ClaimResult]:
    """Run both experiments; a seed draws the facts, the network, the masks and the order of the samples."""
    start = time.perf_counter()
    values = each_seed(experiment, seeds, "unlearning 12 of 120 people")
    seconds = time.perf_counter() - start
    protects, fast = (
        {name.removeprefix(what): each for name, each in values.items() if name.startswith(what)}
        for what in ("other ", "forgot ")
    )
    judge: dict[str, Any] = {"scale": scale, "seeds": seeds, "seconds": seconds}
    return [
        ClaimResult.judge(PROTECTS, _arms(protects, "0.8"), **judge, notes=_notes(values)),
        ClaimResult.judge(FAST, _arms(fast, "0.3"), **judge),
    ]


def experiment(seed: int) -> dict[str, float]:
    """Unlearn through every mask; accuracy on the three sets."""
    facts = draw_facts(seed)
    base = Memory(seed)
    fit(base, facts.all, learning_rate=3e-3, epochs=60, batch_size=64, seed=seed)
    masks: dict[str, WeightMask | None] = {"all weights": None}
    generator = torch.Generator().manual_seed(seed)
    for method in METHODS:
        scores = attribute_weights(base, facts.forget, facts.retain, method=method, gamma=GAMMA, generator=generator)
        for density in (0.8, 0.3):
            masks[f"{method} {density:g}"] = scores.top(density)
    found = {"learned": accuracy(base, facts.all)}
    for name, mask in masks.items():
        model = copy.deepcopy(base)
        trace: list[tuple[float, float]] = []

        def watch(step: int, loss: float, model: nn.Module = model, trace: list[tuple[float, float]] = trace) -> None:
            trace.append((accuracy(model, facts.forget), accuracy(model, facts.other)))

        unlearn(
            model,
            facts.forget,
            facts.retain,
            mask=mask,
            learning_rate=1e-3,
            weight_decay=0.0,
            scheduler="constant",
            warmup=0.0,
            epochs=EPOCHS,
            batch_size=FORGOTTEN * ATTRIBUTES // STEPS_PER_EPOCH,
            after_step=watch if name in STOPPED else None,
            seed=seed,
        )
        for what, samples in (("forgot", facts.forget), ("kept", facts.retain), ("other", facts.other)):
            found[f"{what} {name}"] = accuracy(model, samples)
        if name in STOPPED:  # the cheap explanation: damage that comes after the facts are forgotten
            stopped = next((other for forgot, other in trace if forgot <= ENOUGH), trace[-1][1])
            found[f"other {name}, stopped"] = stopped
    return found


@dataclass(frozen=True)
class Facts:
    """Samples of three indices (two name tokens, an attribute) and the value."""

    forget: list[tuple[Tensor, Tensor]]
    retain: list[tuple[Tensor, Tensor]]
    other: list[tuple[Tensor, Tensor]]

    @property
    def all(self) -> list[tuple[Tensor, Tensor]]:
        """Every fact."""
        return [*self.forget, *self.retain, *self.other]


def draw_facts(seed: int) -> Facts:
    """Draw people whose names share their parts, and a value for each attribute."""
    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(NAMES * NAMES, generator=generator)[:PEOPLE]
    people = torch.stack([names // NAMES, names % NAMES], 1)
    values = torch.randint(VALUES, (PEOPLE, ATTRIBUTES), generator=generator)
    rows = [
        [(torch.tensor([*person, attribute]), values[n, attribute]) for attribute in range(ATTRIBUTES)]
        for n, person in enumerate(people.tolist())
    ]
    first, second = FORGOTTEN, FORGOTTEN + RETAINED
    forget, retain, other = (
        [fact for row in part for fact in row] for part in (rows[:first], rows[first:second], rows[second:])
    )
    return Facts(forget, retain, other)


class Memory(nn.Module):
    """Three embeddings, one residual block, one class per value."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.parts = nn.ModuleList(nn.Embedding(count, width) for count in (NAMES, NAMES, ATTRIBUTES))
            self.inner = nn.Linear(3 * width, 3 * width)
            self.head = nn.Linear(3 * width, VALUES)

    def forward(self, ids: Tensor) -> Tensor:
        """From indices ``[samples, 3]`` to logits ``[samples, values]``."""
        x = torch.cat([part(ids[:, place]) for place, part in enumerate(self.parts)], 1)
        logits: Tensor = self.head(x + nn.functional.gelu(self.inner(x)))
        return logits


@torch.no_grad()
def accuracy(model: nn.Module, samples: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of samples whose value is the most likely one."""
    ids, values = (torch.stack(column) for column in zip(*samples, strict=True))
    return float((model(ids).argmax(1) == values).float().mean())


def _arms(values: Mapping[str, Sequence[float]], density: str) -> list[Arm]:
    kept = {name: each for name, each in values.items() if name.startswith("all weights") or density in name}
    return [Arm(name, _role(name), each) for name, each in kept.items()]


def _role(name: str) -> Literal["method", "baseline", "control"]:
    if name.startswith("random") or name.endswith("stopped"):
        return "control"
    return "method" if name.startswith("wagle") else "baseline"


def _notes(values: Mapping[str, Sequence[float]]) -> list[str]:
    def mean(name: str) -> float:
        return sum(values[name]) / len(values[name])

    arms = [name.removeprefix("forgot ") for name in values if name.startswith("forgot ")]
    return [
        f"All facts are learned to {mean('learned'):.3f} before.",
        "Accuracy on facts to forget, to retain, in neither: "
        + "; ".join(f"{a} {mean(f'forgot {a}'):.2f}, {mean(f'kept {a}'):.2f}, {mean(f'other {a}'):.2f}" for a in arms)
        + ".",
    ]
