"""Meta-train :class:`SmoothRule`: an evolution strategy on the accuracy of transfer between invented alphabets.

A task is one small network: trained on five characters of an alphabet, made to forget, retrodicted three steps,
fine-tuned on 50 images of five other characters, tested on more of those. No real data set takes part. The gradient
of the mean accuracy with respect to the rule's five numbers is estimated from antithetic pairs that see the same
networks, images, heads and batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.core.progress import track
from weightsmith.predict.know.meta_images import glyphs
from weightsmith.predict.know.meta_stacked import Stack, Weights, gather_images
from weightsmith.predict.know.network import STAGES
from weightsmith.predict.know.smooth import SmoothRule
from weightsmith.predict.know.trajectory import nested_sizes

__all__ = ["Alphabet", "evolve", "make_alphabets", "transfer"]

_log = logging.getLogger("weightsmith")

CLASSES, SOURCE, TARGET = 5, 650, 50
STEPS = 3
NAMES = ("drift", "smooth", "size", "size_fan", "size_rms")
START = (0.0, 0.0, -0.3, 0.0, 0.0)
SPREAD = (0.2, 0.06, 0.12, 0.08, 0.08)
"""How far apart the antithetic pairs are, in each of the five numbers."""
RATE, INERTIA = 8.0, 0.7
VARIANTS: tuple[tuple[tuple[int, int, int], float, float], ...] = (
    ((16, 32, 32), 0.06, 0.08),
    ((8, 16, 32), 0.06, 0.08),
    ((24, 24, 48), 0.06, 0.08),
    ((16, 32, 32), 0.08, 0.12),
    ((16, 32, 32), 0.045, 0.05),
    ((16, 32, 64), 0.06, 0.08),
)
"""Widths of the networks, jitter and noise of the images."""


@dataclass
class Alphabet:
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


def make_alphabets(count: int, seed: int) -> list[Alphabet]:
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


def transfer(alphabet: Alphabet, weights: Weights, generator: torch.Generator) -> Float[Tensor, " networks"]:
    """Fine-tune from ``weights`` on 50 images of the new task; return the accuracy on the others.

    The recipe is the paper's, shortened: 10 epochs of the head alone, then 30 of everything with a cosine rate.
    """
    stack = alphabet.stack.copy(weights)
    stack.new_head(CLASSES, generator)
    x, y = alphabet.x[:, :TARGET], alphabet.y[:, :TARGET]
    stack.recalibrate(x)
    stack.train(x, y, epochs=10, lr=1e-3, generator=generator, names=["head.weight", "head.bias"])
    stack.train(x, y, epochs=30, lr=4e-4, generator=generator, cosine=True)
    return stack.accuracy(alphabet.x[:, TARGET:], alphabet.y[:, TARGET:])


def evolve(alphabets: Sequence[Alphabet], *, iterations: int, pairs: int, seed: int) -> SmoothRule:
    """Follow the estimated gradient of the transfer accuracy, one variant of networks at a time.

    Parameters
    ----------
    alphabets : sequence of Alphabet
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
        alphabet = alphabets[iteration % len(alphabets)]
        count, images = alphabet.y.shape
        order = torch.stack([torch.randperm(images, generator=generator) for _ in range(count)])
        alphabet = Alphabet(alphabet.stack, alphabet.history, *gather_images(alphabet.x, alphabet.y, order))
        gradient, scores = torch.zeros_like(mean), []
        for _ in range(pairs):
            noise = torch.randn(len(mean), generator=generator, dtype=torch.float64)
            above, below = (_score(alphabet, mean + side * spread * noise, iteration) for side in (1, -1))
            gradient += noise * (above - below) / (2 * pairs)
            scores += [above, below]
        velocity = INERTIA * velocity + gradient
        mean = mean + spread * velocity * RATE * (1 - 0.7 * iteration / iterations)
        _log.info("step %d: accuracy %.4f, %s", iteration, sum(scores) / len(scores), _rule(mean))
    return _rule(mean)


def _rule(numbers: Tensor) -> SmoothRule:
    return SmoothRule(**{name: round(value, 6) for name, value in zip(NAMES, numbers.tolist(), strict=True)})


def _score(alphabet: Alphabet, numbers: Tensor, seed: int) -> float:
    rule, weights = _rule(numbers), dict(alphabet.history[-1])
    for name in alphabet.stack.kernels:
        histories = zip(*(snapshot[name].clone() for snapshot in alphabet.history), strict=True)
        weights[name] = torch.stack([rule(history, STEPS) for history in histories])
    return float(transfer(alphabet, weights, torch.Generator().manual_seed(seed)).mean())


def _make(count: int, variant: tuple[tuple[int, int, int], float, float], generator: torch.Generator) -> Alphabet:
    widths, jitter, noise = variant
    images = glyphs(count, 2 * CLASSES, 330, jitter=jitter, noise=noise, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(330).expand(count, -1)
    sets = []
    for half in images.split(CLASSES, dim=1):
        order = torch.stack([torch.randperm(labels.shape[1], generator=generator) for _ in range(count)])
        sets.append(gather_images(half.flatten(1, 2), labels, order))
    (x, y), (target_x, target_y) = sets
    stack = Stack.fresh(count, widths, CLASSES, generator)
    stack.train(x[:, :SOURCE], y[:, :SOURCE], epochs=15, lr=1e-3, generator=generator)
    forgetting, history = stack.copy(), [stack.weights]
    for size in nested_sizes(SOURCE, 0.5, STAGES)[1:]:
        forgetting.train(x[:, :size], y[:, :size], epochs=5, lr=1e-3, generator=generator)
        history.insert(0, forgetting.weights)
    return Alphabet(stack, history, target_x[:, : 1000 + TARGET], target_y[:, : 1000 + TARGET])
