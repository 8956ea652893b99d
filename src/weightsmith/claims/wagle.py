"""WAGLE: at equal forgetting masks keep no more of what no set names; the choice of weights matters for speed only.

A network learns 960 facts (120 invented people, eight attributes) by heart. The facts of 12 people are to be forgotten
and those of 72 retained; the other 36 people are in neither set. NPO for 150 steps through all weights, or through the
80 % or 30 % of the weights that a score marks. The sixteen seeds are a number from the variance of seeds 10 to 19,
which were looked at before.

:func:`biographies` does the same with SmolLM2-135M: it learns to answer questions about invented people and unlearns a
tenth of them, until their answers are as unlikely as those about people it was never told of.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightsmith.claims import _invented as invented
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.data import token_ids
from weightsmith.core.metrics import perplexity
from weightsmith.core.training import fit
from weightsmith.embedded import text
from weightsmith.forget import (
    WeightMask,
    answer_probabilities,
    attribute_weights,
    generated_answers,
    rouge_l,
    unlearn,
)
from weightsmith.forget._unlearn import Objective
from weightsmith.forget._wagle.attribution import Method

__all__ = ["BIOGRAPHIES", "FAST", "PROTECTS", "biographies", "run"]

PEOPLE, ATTRIBUTES, VALUES, NAMES = 120, 8, 24, 12
FORGOTTEN, RETAINED = 12, 72
STEPS_PER_EPOCH, EPOCHS = 3, 50
GAMMA = 1e-4
STOPPED, ENOUGH = ("all weights", "wagle 0.8", "random 0.8"), 0.2
"""Arms that are also measured at the first step at which no more than a fifth of the facts to forget is left."""
DENSITIES: dict[Method, tuple[float, ...]] = {
    "wagle": (0.8, 0.3),
    "saliency": (0.3,),
    "magnitude": (0.3,),
    "random": (0.8, 0.3),
}

PROTECTS = Claim(
    slug="wagle",
    experiment="protects",
    title="Through 80 % of the weights or through all: what is left of facts in neither set",
    statement=(
        "WAGLE's mask keeps a point more of the other facts than all weights do, and a random mask as many; all "
        "weights, stopped in time, keep ten points more."
    ),
    metric="accuracy on facts in neither set after 150 steps",
    higher_is_better=True,
    expected=(
        Ordering("wagle 0.8", "all weights", 0.01),
        Ordering("random 0.8", "wagle 0.8", -0.01),
        Ordering("all weights, stopped", "wagle 0.8", 0.1),
    ),
    paper="Unlearning through the weights that WAGLE selects preserves utility better than through all or random ones.",
    claimed=(Ordering("wagle 0.8", "all weights"), Ordering("wagle 0.8", "random 0.8")),
)

FAST = Claim(
    slug="wagle",
    experiment="fast",
    title="Through 30 % of the weights: how far forgetting gets in 150 steps",
    statement=(
        "Weights chosen by their gradient forget further than random ones; WAGLE's further than random or the largest "
        "ones."
    ),
    metric="accuracy on the facts to forget after 150 steps",
    higher_is_better=False,
    expected=(
        Ordering("saliency 0.3", "random 0.3", 0.02),
        Ordering("wagle 0.3", "random 0.3"),
        Ordering("wagle 0.3", "magnitude 0.3"),
    ),
    paper="WAGLE improves the efficacy of unlearning over random and magnitude-based selection.",
    claimed=(Ordering("wagle 0.3", "random 0.3"), Ordering("wagle 0.3", "magnitude 0.3")),
)

BIOGRAPHIES = Claim(
    slug="wagle",
    experiment="biographies",
    title="SmolLM2-135M unlearns a tenth of the people it was told of",
    statement="When as much is forgotten, no mask keeps a tenth more of what is known about people in neither set.",
    metric="probability of answers about people in neither set, when that of answers to forget is down to 0.2",
    higher_is_better=True,
    expected=(
        Ordering("random 0.8", "wagle 0.8", -0.1),
        Ordering("all weights", "wagle 0.8", -0.1),
    ),
    paper="Unlearning through the weights that WAGLE selects preserves utility better than through all or random ones.",
    claimed=(Ordering("wagle 0.8", "all weights"), Ordering("wagle 0.8", "random 0.8")),
    scales=("cpu", "gpu"),
)


@dataclass(frozen=True)
class Size:
    """How many people there are, what they are asked, and how long a model learns and unlearns."""

    people: int
    forgotten: int
    retained: int
    facts: int
    epochs: int
    batch_size: int
    most_steps: int
    unlearning_rate: float
    densities: tuple[float, ...]
    gammas: tuple[float, ...]
    methods: tuple[Method, ...]
    objectives: tuple[Objective, ...]


SIZES = {
    "cpu": Size(40, 4, 24, 3, 10, 24, 24, 3e-5, (0.8,), (1e-4,), ("random",), ("npo",)),
    "gpu": Size(
        200,
        20,
        120,
        20,
        3,
        32,
        20,
        1e-5,
        (0.4, 0.8, 0.95),
        (1e-4, 1e-2, 1e-8),
        ("snip", "saliency", "magnitude", "random"),
        ("npo", "graddiff"),
    ),
}
"""The first of the gammas is the default; the others are arms of their own."""

MEASURED, UNLIKELY = 36, 0.2
SEEDS = range(100, 116)


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Run all experiments; a seed draws the facts, the network, the masks and the order of the samples."""
    return [*toys(scale, seeds or SEEDS), biographies(scale, seeds)]


def toys(scale: str = "cpu", seeds: Sequence[int] = SEEDS) -> list[ClaimResult]:
    """Run the experiments with a small network that learns facts by heart."""
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
    for method, densities in DENSITIES.items():
        scores = attribute_weights(base, facts.forget, facts.retain, method=method, gamma=GAMMA, generator=generator)
        for density in densities:
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


def biographies(scale: str = "cpu", seeds: Sequence[int] | None = None) -> ClaimResult:
    """Let SmolLM2 unlearn people; a seed draws whom to forget and to retain, the masks and the order of samples."""
    seeds = seeds or range(10, 13)
    start = time.perf_counter()
    told = _Told(SIZES[scale])
    values = each_seed(lambda seed: _unlearned(told, seed), seeds, "SmolLM2 unlearns people")
    mean = {name: sum(each) / len(each) for name, each in values.items()}
    names = [name.removeprefix("other ") for name in values if name.startswith("other ")]
    parts = ("steps", "forgot", "rouge_l", "kept", "docs")
    rows = [[name, *(f"{mean[f'{part} {name}']:.3g}" for part in parts)] for name in names]
    notes = [
        f"Before, answers have a probability of {told.probability(told.model, told.known):.3f}; those about people "
        f"that the model was never told of, {told.probability(told.model, told.unseen):.3f}.",
        "Steps; probability and ROUGE-L of the answers to forget; probability of those to retain; perplexity of "
        f"documentation (before: {told.docs(told.model):.3g}): " + "; ".join(map(", ".join, rows)) + ".",
        "One model was told of all the people; seeds differ in who is forgotten and retained.",
    ]
    arms = [Arm(name, _role(name), values[f"other {name}"]) for name in names]
    seconds = time.perf_counter() - start
    return ClaimResult.judge(BIOGRAPHIES, arms, scale=scale, seeds=seeds, seconds=seconds, notes=notes)


class _Told:
    """SmolLM2 that learned answers about invented people, and the questions."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.model, self.tokenizer = invented.language_model()
        people = invented.biographies(size.people + size.forgotten, size.facts, torch.Generator().manual_seed(0))
        rows = [[invented.question_sample(self.tokenizer, *fact) for fact in person] for person in people]
        self.people, unseen = rows[: size.people], rows[size.people :]
        self.known, self.unseen = [sample for row in self.people for sample in row], [s for row in unseen for s in row]
        self.text = token_ids(self.tokenizer, text("evaluation"))[:1024]
        self.options: dict[str, Any] = {"batch_size": size.batch_size, "precision": "bf16"}
        schedule: dict[str, Any] = {"learning_rate": 3e-4, "scheduler": "linear", "warmup": 0.1}
        fit(self.model, self.known, epochs=size.epochs, **schedule, **self.options)

    def probability(self, model: nn.Module, samples: Sequence[Any]) -> float:
        """Mean probability of the answers."""
        with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16):
            return float(answer_probabilities(model, samples).mean())

    def docs(self, model: nn.Module) -> float:
        """Perplexity of the documentation of Python."""
        with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16):
            return perplexity(model, self.text, window=128)


def _unlearned(told: _Told, seed: int) -> dict[str, float]:
    """Draw three sets of people, and unlearn the first in every way, until its answers are unlikely."""
    size, generator = told.size, torch.Generator().manual_seed(seed)
    order = torch.randperm(size.people, generator=generator).split(
        [size.forgotten, size.retained, size.people - size.forgotten - size.retained]
    )
    forget, retain, other = ([s for n in part.tolist() for s in told.people[n]] for part in order)
    masks: dict[str, WeightMask | None] = {"all weights": None}
    ways: list[tuple[Method, float]] = [("wagle", gamma) for gamma in size.gammas] + [
        (method, GAMMA) for method in size.methods
    ]
    for method, gamma in ways:
        scores = attribute_weights(told.model, forget, retain, method=method, gamma=gamma, generator=generator)
        name = method if gamma == GAMMA else f"{method}, gamma {gamma:g},"
        masks |= {f"{name} {density:g}": scores.top(density) for density in size.densities}
    found: dict[str, float] = {}
    for name, mask in masks.items():
        for objective in size.objectives:
            model = copy.deepcopy(told.model)
            watch = _Watch(told, model, forget, retain, other)
            with suppress(_Enough):
                unlearn(
                    model,
                    forget,
                    retain,
                    objective=objective,
                    mask=mask,
                    learning_rate=size.unlearning_rate,
                    weight_decay=0.0,
                    scheduler="constant",
                    warmup=0.0,
                    epochs=size.most_steps,
                    after_step=watch,
                    seed=seed,
                    **told.options,
                )
            arm = name if objective == "npo" else f"{name}, {objective}"
            found |= {f"{what} {arm}": value for what, value in watch.found().items()}
    return found


class _Enough(Exception):
    """The answers are forgotten."""


class _Watch:
    """Measure after every step what is left, and stop when the answers to forget are unlikely."""

    def __init__(
        self, told: _Told, model: nn.Module, forget: Sequence[Any], retain: Sequence[Any], other: Sequence[Any]
    ) -> None:
        self.told, self.model, self.forget, self.rest = told, model, forget, (retain[:MEASURED], other[:MEASURED])
        self.trace: list[tuple[float, ...]] = []
        self.end: dict[str, float] = {}

    def __call__(self, step: int, loss: float) -> None:
        forgot = self.told.probability(self.model, self.forget)
        last = forgot <= UNLIKELY or step == self.told.size.most_steps
        if forgot <= 2 * UNLIKELY or last:
            self.trace.append((forgot, *(self.told.probability(self.model, each) for each in self.rest)))
        if not last:
            return
        decode = self.told.tokenizer.decode
        answers = generated_answers(self.model, self.forget)
        recalls = [rouge_l(decode(ours), decode(theirs)) for _, ours, theirs in answers]
        self.end = {"steps": step, "rouge_l": sum(recalls) / len(recalls), "docs": self.told.docs(self.model)}
        raise _Enough

    def found(self) -> dict[str, float]:
        """What is left where the probability crosses the bound, on the straight line between two steps."""
        before, after = self.trace[-2:] if len(self.trace) > 1 else self.trace * 2
        part = min(1.0, (before[0] - UNLIKELY) / max(before[0] - after[0], 1e-9))
        values = (a + part * (b - a) for a, b in zip(before, after, strict=True))
        return dict(zip(("forgot", "kept", "other"), values, strict=True)) | self.end
