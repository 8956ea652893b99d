"""Meta-train :class:`SmoothRule`: an evolution strategy on the accuracy of transfer between small tasks.

A task is one small network: trained on five classes, made to forget, retrodicted three steps, fine-tuned on 50 images
of five other classes, tested on more of those. The classes are characters of invented alphabets, or digits in any
grouping but the claim's. The gradient of the mean accuracy with respect to the rule's five numbers is estimated from
antithetic pairs that see the same networks, images, heads and batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tools.know.images import digits, glyphs
from tools.know.stacked import Stack, Weights, gather_images
from weightsmith.core.progress import track
from weightsmith.predict._know.network import STAGES
from weightsmith.predict._know.smooth import SmoothRule
from weightsmith.predict._know.trajectory import nested_sizes

__all__ = ["Tasks", "Variant", "evolve", "make_tasks", "transfer"]

_log = logging.getLogger("weightsmith")

CLASSES, SOURCE, TARGET, OTHERS = 5, 650, 50, 850
STEPS = 3
NAMES = ("drift", "smooth", "size", "size_fan", "size_rms")
START = (0.0, 0.0, -0.7, -0.15, 0.0)
SPREAD = (0.2, 0.06, 0.12, 0.08, 0.08)
"""How far apart the antithetic pairs are, in each of the five numbers."""
RATE, INERTIA = 8.0, 0.7


@dataclass(frozen=True)
class Variant:
    """A kind of task: how wide the networks are, and which images they see."""

    widths: tuple[int, int, int]
    jitter: float | None
    """Of the invented characters; None for groups of digits other than the claim's."""
    noise: float = 0.0


VARIANTS = (
    Variant((16, 32, 32), None),
    Variant((16, 32, 32), 0.06, 0.08),
    Variant((8, 16, 32), 0.06, 0.02),
    Variant((24, 32, 48), None),
    Variant((24, 24, 48), 0.08, 0.05),
    Variant((16, 32, 64), 0.045, 0.0),
)


@dataclass
class Tasks:
    """Networks that were trained and made to forget, each with images of its own new task.

    Attributes
    ----------
    stack : Stack
        The trained networks.
    history : list of dict
        Their weights along the forgetting trajectory, smallest training set first.
    x, y : Tensor
        Images and labels of the new task, shuffled.
    """

    stack: Stack
    history: list[Weights]
    x: Float[Tensor, "networks images 1 height width"]
    y: Int[Tensor, "networks images"]


def make_tasks(count: int, seed: int) -> list[Tasks]:
    """Train ``count`` networks of every variant and record how they forget.

    Parameters
    ----------
    count : int
        Networks of each variant.
    seed : int
        Of everything random.
    """
    return [
        _make(count, variant, torch.Generator().manual_seed(seed + number))
        for number, variant in enumerate(track(VARIANTS, "networks that forget"))
    ]


def transfer(task: Tasks, weights: Weights, generator: torch.Generator) -> Float[Tensor, " networks"]:
    """Fine-tune from ``weights`` on 50 images of the new task; return the accuracy on the others.

    The recipe is the paper's, shortened: 10 epochs of the head alone, then 30 of everything with a cosine rate.
    """
    stack = task.stack.copy(weights)
    stack.new_head(CLASSES, generator)
    x, y = task.x[:, :TARGET], task.y[:, :TARGET]
    stack.recalibrate(x)
    stack.train(x, y, epochs=10, lr=1e-3, generator=generator, names=["head.weight", "head.bias"])
    stack.train(x, y, epochs=30, lr=4e-4, generator=generator, cosine=True)
    return stack.accuracy(task.x[:, TARGET:], task.y[:, TARGET:])


def evolve(tasks: Sequence[Tasks], *, iterations: int, pairs: int, seed: int) -> SmoothRule:
    """Follow the estimated gradient of the transfer accuracy, one variant of networks at a time.

    Parameters
    ----------
    tasks : sequence of Tasks
    iterations : int
        Steps of the search.
    pairs : int
        Antithetic pairs of a step.
    seed : int
        Of the search.

    Returns
    -------
    SmoothRule
    """
    generator = torch.Generator().manual_seed(seed)
    mean, spread = torch.tensor(START, dtype=torch.float64), torch.tensor(SPREAD, dtype=torch.float64)
    velocity = torch.zeros_like(mean)
    for iteration in track(range(iterations), "evolving the rule"):
        task = tasks[iteration % len(tasks)]
        count, images = task.y.shape
        order = torch.stack([torch.randperm(images, generator=generator) for _ in range(count)])
        task = Tasks(task.stack, task.history, *gather_images(task.x, task.y, order))
        gradient, scores = torch.zeros_like(mean), []
        for _ in range(pairs):
            noise = torch.randn(len(mean), generator=generator, dtype=torch.float64)
            above, below = (_score(task, mean + side * spread * noise, iteration) for side in (1, -1))
            gradient += noise * (above - below) / (2 * pairs)
            scores += [above, below]
        velocity = INERTIA * velocity + gradient
        mean = mean + spread * velocity * RATE * (1 - 0.7 * iteration / iterations)
        _log.info("step %d: accuracy %.4f, %s", iteration, sum(scores) / len(scores), _rule(mean))
    return _rule(mean)


def _rule(numbers: Tensor) -> SmoothRule:
    return SmoothRule(**{name: round(value, 6) for name, value in zip(NAMES, numbers.tolist(), strict=True)})


def _score(task: Tasks, numbers: Tensor, seed: int) -> float:
    rule, weights = _rule(numbers), dict(task.history[-1])
    for name in task.stack.kernels:
        histories = zip(*(snapshot[name].clone() for snapshot in task.history), strict=True)
        weights[name] = torch.stack([rule(history, STEPS) for history in histories])
    return float(transfer(task, weights, torch.Generator().manual_seed(seed)).mean())


def _make(count: int, variant: Variant, generator: torch.Generator) -> Tasks:
    tasks = [_task(variant, generator) for _ in range(count)]
    x, y, target_x, target_y = (torch.stack(tensors) for tensors in zip(*tasks, strict=True))
    stack = Stack.fresh(count, variant.widths, CLASSES, generator)
    stack.train(x, y, epochs=15, lr=1e-3, generator=generator)
    forgetting, history = stack.copy(), [stack.weights]
    for size in nested_sizes(SOURCE, 0.5, STAGES)[1:]:
        forgetting.train(x[:, :size], y[:, :size], epochs=5, lr=1e-3, generator=generator)
        history.insert(0, forgetting.weights)
    return Tasks(stack, history, target_x, target_y)


def _task(variant: Variant, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels of five classes to train on, and of five others to transfer to, shuffled."""
    if variant.jitter is None:
        x, y, other_x, other_y = digits(CLASSES, generator)
        return x[:SOURCE], y[:SOURCE], other_x[:OTHERS], other_y[:OTHERS]
    each = OTHERS // CLASSES
    images = glyphs(1, 2 * CLASSES, each, jitter=variant.jitter, noise=variant.noise, generator=generator)[0]
    labels = torch.arange(CLASSES).repeat_interleave(each)
    order, others = (torch.randperm(OTHERS, generator=generator) for _ in range(2))
    x, other_x = (half.flatten(0, 1) for half in images.split(CLASSES))
    return x[order][:SOURCE], labels[order][:SOURCE], other_x[others], labels[others]
