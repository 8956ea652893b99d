"""Weight aligning: ten digits, and the ten classes of CIFAR-10, in five stages of two classes with a small memory.

Every way of learning has the network, the stages, the memory and the schedule of the authors' code at this size. The
head is new in every stage, as theirs; its old rows are learned again from the memory and the old model's logits.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.claims import _cifar
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed, user_data
from weightsmith.continual import ExemplarMemory, align_classifier, class_incremental_loss, clip_weights_hook
from weightsmith.core.data import take
from weightsmith.core.models import evaluation_mode
from weightsmith.embedded import digits

__all__ = ["CIFAR", "CLAIM", "WAYS", "Task", "Way", "cifar", "learn_in_stages", "run"]

CLAIM = Claim(
    slug="weight-aligning",
    title="Weight aligning on digits in five stages",
    statement=(
        "With 20 samples of memory, distillation with clipped and aligned weights ends ten points above distillation "
        "alone and above distillation with clipped weights. Without clipping, aligning gains less."
    ),
    metric="test accuracy on all ten classes after the last stage",
    higher_is_better=True,
    expected=(
        Ordering(better="KD, clipped and aligned", worse="KD", margin=0.1),
        Ordering(better="KD, clipped and aligned", worse="KD, clipped", margin=0.1),
        Ordering(better="KD, clipped and aligned", worse="KD, aligned", margin=0.03),
    ),
    paper="On CIFAR-100 in five stages, aligning raises distillation with a memory from 42.9 to 59.2 %.",
    claimed=(Ordering(better="KD, clipped and aligned", worse="KD"),),
)

CIFAR = dataclasses.replace(
    CLAIM,
    experiment="cifar",
    title="Weight aligning on CIFAR-10 in five stages",
    statement=(
        "With 1 % of the images in memory, distillation with clipped and aligned weights ends ten points above "
        "distillation alone and above distillation with clipped weights, and five above aligning without clipping."
    ),
    expected=(
        Ordering(better="KD, clipped and aligned", worse="KD", margin=0.1),
        Ordering(better="KD, clipped and aligned", worse="KD, clipped", margin=0.1),
        Ordering(better="KD, clipped and aligned", worse="KD, aligned", margin=0.05),
    ),
    scales=("cpu", "gpu"),
)

CLASSES, STAGE, TRAIN = 10, 2, 1300
BLOCK = 4096
"""Samples that a network reads at once, outside of training."""

Members: TypeAlias = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """Classes that come in stages, numbered as they come, and the network that learns them.

    Attributes
    ----------
    train, test : pair of Tensor
        Samples and their classes.
    body : callable
        Makes the network below the head.
    width : int
        Its outputs.
    memory : int
        Samples in all that may be kept.
    epochs, batch : int
        Passes in each stage, and samples per step.
    rate : float
        Of SGD, with momentum 0.9.
    augment : callable, default: unchanged
        What is done with the samples of each step.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    body: Callable[[], nn.Module]
    width: int
    memory: int
    epochs: int
    batch: int
    rate: float
    augment: Callable[[Tensor], Tensor] = lambda samples: samples


@dataclass(frozen=True)
class Way:
    """A way to learn classes in stages.

    Attributes
    ----------
    distill : bool
        Distill from the model of the stage before.
    clip : bool
        Clip the head's weights at 0.
    align : bool
        Align the head after each stage.
    p : float
        Norm to align with.
    after : str
        What is done with the network after each stage: ``"bias"`` fits BiC's two scalars, ``"tau"`` divides rows by
        their norms, ``"balanced"`` fine-tunes on as many new samples as there are in memory, ``"means"`` classifies by
        the nearest mean of the exemplars (iCaRL).
    memory : int
        Multiple of the samples that may be kept.
    herding : bool
        Keep those that herding picks, not the first of each class.
    """

    distill: bool = True
    clip: bool = False
    align: bool = False
    p: float = 2.0
    after: Literal["", "bias", "tau", "balanced", "means"] = ""
    memory: int = 1
    herding: bool = False


WAYS = {
    "KD, clipped and aligned": Way(clip=True, align=True),
    "KD, clipped": Way(clip=True),
    "KD, aligned": Way(align=True),
    "KD, clipped and aligned, L1 norm": Way(clip=True, align=True, p=1.0),
    "KD": Way(),
    "CE, aligned": Way(distill=False, align=True),
    "CE": Way(distill=False),
    "CE, rows of norm 1": Way(distill=False, after="tau"),
    "BiC": Way(after="bias"),
    "balanced fine-tuning": Way(after="balanced"),
    "iCaRL": Way(after="means"),
    "KD, clipped and aligned, herding": Way(clip=True, align=True, herding=True),
    "CE, aligned, herding": Way(distill=False, align=True, herding=True),
    "CE, tenfold memory": Way(distill=False, memory=10),
    "KD, clipped and aligned, tenfold memory": Way(clip=True, align=True, memory=10),
}


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Learn the digits, and CIFAR-10 where it is there, in all ways; a seed draws data, order and initial weights."""
    notes = (
        "All ways have the specification's network and schedule (SGD at 0.05, 40 epochs); none was tuned here.",
        HELD_BACK,
    )
    return [_judged(CLAIM, _digits, scale, seeds or range(8), notes), *cifar(scale, seeds or range(5))]


def cifar(scale: str = "cpu", seeds: Sequence[int] = tuple(range(5))) -> list[ClaimResult]:
    """Learn CIFAR-10, where it is there: on features of EfficientNet-Lite0, or at ``"gpu"`` on the images."""
    folder = user_data(_cifar.FOLDER, CIFAR.title)
    if folder is None:
        return []
    return [_judged(CIFAR, CIFAR_TASKS[scale](folder), scale, seeds, (NETWORKS[scale], HELD_BACK))]


NETWORKS = {
    "cpu": "A perceptron of 128 and 64 units on frozen features of EfficientNet-Lite0 (images enlarged to 128 pixels), "
    "400 images per class, 20 epochs per stage with SGD at 0.05; none of the ways was tuned.",
    "gpu": "ResNet-32 on all images, shifted and mirrored, 60 epochs per stage with SGD at 0.1; none was tuned.",
}
HELD_BACK = "BiC holds back 10 % of the memory, at least one sample per class, where a class has two or more."


def _judged(
    claim: Claim, task: Callable[[torch.Generator], Task], scale: str, seeds: Sequence[int], notes: Sequence[str]
) -> ClaimResult:
    start = time.perf_counter()
    found = each_seed(partial(_every_way, task), seeds, claim.title)
    arms = [Arm(name, _role(name), found[name]) for name in WAYS]
    mean = {name: sum(found[f"{name}: mean"]) / len(seeds) for name in WAYS}
    means = (
        "Mean over the five stages, the first included: "
        + "; ".join(f"{name} {100 * value:.1f}" for name, value in mean.items())
        + "."
    )
    seconds = time.perf_counter() - start
    return ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=(means, *notes))


def _every_way(task: Callable[[torch.Generator], Task], seed: int) -> dict[str, float]:
    measured = {}
    for name, way in WAYS.items():
        generator = torch.Generator().manual_seed(seed)
        measured[name] = learn_in_stages(task(generator), way, generator)
    means = {f"{name}: mean": sum(values) / len(values) for name, values in measured.items()}
    return {name: values[-1] for name, values in measured.items()} | means


def _role(name: str) -> Literal["method", "baseline", "control"]:
    if name == "KD, clipped and aligned":
        return "method"
    return "control" if "aligned" in name or name == "KD, clipped" else "baseline"


def _digits(generator: torch.Generator) -> Task:
    images, labels = digits()
    order, classes = torch.randperm(len(labels), generator=generator), torch.randperm(CLASSES, generator=generator)
    x, y = ((images.flatten(1) - 0.3) / 0.37)[order], classes.argsort()[labels[order]]
    train, test = (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])
    return Task(train, test, partial(_perceptron, 64), 64, memory=20, epochs=40, batch=32, rate=0.05)


def _perceptron(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())


def _on_features(folder: Path) -> Callable[[torch.Generator], Task]:
    """A perceptron on the features of four fifths of the images, scaled to a mean square of one."""
    (x, y), (x_test, y_test) = (_cifar.features(folder, part, "cpu") for part in ("train", "test"))
    x, x_test = (x.shape[1] ** 0.5 * functional.normalize(part, dim=1) for part in (x, x_test))

    def task(generator: torch.Generator) -> Task:
        rows = torch.randperm(len(y), generator=generator)[: len(y) * 4 // 5]
        classes = torch.randperm(CLASSES, generator=generator).argsort()
        train, test = (x[rows], classes[y[rows]]), (x_test, classes[y_test])
        return Task(train, test, partial(_perceptron, x.shape[1]), 64, memory=40, epochs=20, batch=64, rate=0.05)

    return task


def _on_images(folder: Path) -> Callable[[torch.Generator], Task]:
    """ResNet-32 on the images, shifted and mirrored at random, with the authors' rates and fewer epochs."""
    device, size = _cifar.device_of("gpu"), _cifar.SIZES["gpu"]
    (x, y), (x_test, y_test) = (
        (_cifar.scaled(images).to(device), labels.to(device))
        for images, labels in (_cifar.images(folder, part, getattr(size, part)) for part in ("train", "test"))
    )

    def task(generator: torch.Generator) -> Task:
        classes = torch.randperm(CLASSES, generator=generator).argsort().to(device)
        train, test, body = (x, classes[y]), (x_test, classes[y_test]), partial(_cifar.resnet, blocks=5, width=16)
        augment = partial(_cifar.shifted_and_mirrored, generator=generator)
        return Task(train, test, body, 64, memory=500, epochs=60, batch=128, rate=0.1, augment=augment)

    return task


CIFAR_TASKS = {"cpu": _on_features, "gpu": _on_images}


def learn_in_stages(task: Task, way: Way, generator: torch.Generator) -> list[float]:
    """Learn two more classes in each stage; return the test accuracy on all seen classes after each."""
    (x, y), (x_test, y_test) = task.train, task.test
    torch.manual_seed(generator.initial_seed())
    model, teacher = nn.Sequential(task.body(), nn.Identity()).to(x.device), None
    total = task.memory * way.memory
    memory = ExemplarMemory(total, lambda members: _features(model, members))
    first: Members = []
    accuracies = []
    for known in range(0, CLASSES, STAGE):
        seen = known + STAGE
        model[1] = nn.Linear(task.width, seen, bias=False, device=x.device)
        rows = ((known <= y) & (y < seen)).nonzero()[:, 0]
        new = list(zip(x[rows], y[rows], strict=True))
        exemplars = take(memory) if way.herding else first
        held: Members = []
        if way.after == "bias" and known:
            exemplars, new, held = _hold_back(exemplars, new, known, generator)
        _train(model, _stack([*new, *exemplars]), task, teacher if way.distill else None, generator, clip=way.clip)
        if way.herding:
            memory.add(new)
        else:
            first = _first_of_each([*first, *new], total // seen)
        exemplars = take(memory) if way.herding else first
        if way.after == "balanced" and known:
            short = dataclasses.replace(task, rate=task.rate / 10, epochs=task.epochs // 4)
            _train(model, _stack(exemplars), short, None, generator)
        if way.after == "tau":
            weight = cast(Tensor, model[1].weight)
            weight.data = functional.normalize(weight.data, dim=1)
        if way.align and known:
            align_classifier(model[1], num_old=known, p=way.p)
        if held:
            model[1] = _bias_corrected(model, _stack(held), known)
        mine = y_test < seen
        predicted = (
            _nearest_means(model, exemplars, x_test[mine]) if way.after == "means" else _logits(model, x_test[mine])
        )
        accuracies.append(float((predicted.argmax(1) == y_test[mine]).double().mean()))
        teacher = copy.deepcopy(model).eval()
    return accuracies


def _train(
    model: nn.Sequential,
    data: tuple[Tensor, Tensor],
    task: Task,
    teacher: nn.Module | None,
    generator: torch.Generator,
    *,
    clip: bool = False,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=task.rate, momentum=0.9, weight_decay=1e-4)
    if clip:
        clip_weights_hook(optimizer, model[1])
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [task.epochs // 2, 4 * task.epochs // 5])
    for _ in range(task.epochs):
        for rows in torch.randperm(len(data[1]), generator=generator).to(data[1].device).split(task.batch):
            samples = task.augment(data[0][rows])
            old = None if teacher is None else _logits(teacher, samples)
            loss = class_incremental_loss(model(samples), old, data[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


class _BiasCorrected(nn.Module):
    """A head whose new logits are scaled and shifted (BiC)."""

    def __init__(self, head: nn.Module, known: int) -> None:
        super().__init__()
        self.head, self.known = head, known
        self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        logits = self.head(features)
        return torch.cat([logits[:, : self.known], logits[:, self.known :] * self.scale + self.shift], 1)


def _bias_corrected(model: nn.Sequential, held: tuple[Tensor, Tensor], known: int) -> nn.Module:
    corrected = _BiasCorrected(model[1], known)
    features = _logits(model[0], held[0])
    optimizer = torch.optim.LBFGS([corrected.scale, corrected.shift], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        # the penalty keeps the two numbers finite where the held-out samples are separable
        value = functional.cross_entropy(corrected(features), held[1]) + 1e-3 * (
            (corrected.scale - 1).square() + corrected.shift.square()
        )
        value.backward()
        return value

    optimizer.step(loss)
    return corrected


def _hold_back(
    stored: Members, new: Members, known: int, generator: torch.Generator
) -> tuple[Members, Members, Members]:
    """A balanced validation set: the last samples of each class in memory, and as many of each new class."""
    per_class = max(1, len(stored) // known // 10)
    held, kept, rest = [], [], []
    for label in range(known):
        members = [sample for sample in stored if int(sample[1]) == label]
        take = per_class if len(members) > per_class else 0
        kept += members[: len(members) - take]
        held += members[len(members) - take :]
    for label in range(known, known + STAGE):
        members = [sample for sample in new if int(sample[1]) == label]
        order = torch.randperm(len(members), generator=generator).tolist()
        held += [members[place] for place in order[:per_class]]
        rest += [members[place] for place in order[per_class:]]
    return kept, rest, held


def _first_of_each(members: Members, count: int) -> Members:
    kept: dict[int, Members] = {}
    for sample in members:
        kept.setdefault(int(sample[1]), []).append(sample)
    return [sample for group in kept.values() for sample in group[:count]]


def _nearest_means(model: nn.Sequential, stored: Members, x: Tensor) -> Tensor:
    """Negative distances to the means of the exemplars."""
    features, labels = functional.normalize(_features(model, stored), dim=1), _stack(stored)[1]
    means = torch.stack([features[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return -torch.cdist(functional.normalize(_logits(model[0], x), dim=1), functional.normalize(means, dim=1))


def _features(model: nn.Sequential, members: Members) -> Tensor:
    return _logits(model[0], _stack(members)[0])


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with evaluation_mode(model):
        return torch.cat([model(part) for part in x.split(BLOCK)])


def _stack(members: Members) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in members]), torch.stack([y for _, y in members])
