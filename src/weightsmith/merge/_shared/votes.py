r"""The vote model: why the average of two networks with different spurious features is more accurate.

Each feature of a network votes for one of ``K`` classes. Invariant features vote for the true class. Out of
distribution each spurious feature votes, with probability ``p``, for a class drawn uniformly. Two networks that use
different spurious features make different errors, so the sum of their votes is more often correct, as long as neither
network's votes have a larger weight than the other's.

Lin, Tan, Hao, Wong, Dong, Zhang, Yang, Zhang 2024, arXiv 2309.17230.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from itertools import product

from weightsmith.core.errors import HyperparameterError

__all__ = ["output_signal", "single_signal", "vote_accuracy", "weight_signal"]


def vote_accuracy(
    p: float, *, classes: int = 3, invariant: int = 2, spurious: int = 3, networks: int = 1, scale: float = 1.0
) -> float:
    """Return the exact accuracy of one network, or of two with disjoint features and summed votes; ties count evenly.

    Parameters
    ----------
    p : float
        Probability, in [0, 1], that a spurious feature votes for a random class.
    classes, invariant, spurious : int
        Classes, and features of each network.
    networks : {1, 2}
        How many vote.
    scale : float, default: 1.0
        Weight of a vote of the second network.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    HyperparameterError
        If a number is out of range.

    Examples
    --------
    >>> round(vote_accuracy(0.9), 6), round(vote_accuracy(0.9, networks=2), 6)
    (0.865, 0.973027)
    >>> round(vote_accuracy(0.9, networks=2, scale=10.0), 5)
    0.93506
    """
    if not 0 <= p <= 1:
        raise HyperparameterError("p", found=p, expected="in [0, 1]")
    if networks not in (1, 2) or classes < 2 or min(invariant, spurious) < 0:
        raise HyperparameterError(
            "networks, classes, features", found=(networks, classes, invariant, spurious), expected="1 or 2, >= 2, >= 0"
        )
    scores: Mapping[tuple[float, ...], float] = {(0.0,) * classes: 1.0}
    for weight in (1.0, scale)[:networks]:
        votes = _votes(p, classes, spurious)
        total: dict[tuple[float, ...], float] = defaultdict(float)
        for (score, a), (vote, b) in product(scores.items(), votes.items()):
            shares = [vote[0] + invariant, *vote[1:]]
            total[tuple(s + weight * v for s, v in zip(score, shares, strict=True))] += a * b
        scores = total
    accuracy = 0.0
    for score, probability in scores.items():
        best = [abs(value - max(score)) < 1e-9 for value in score]
        accuracy += probability * best[0] / sum(best)
    return accuracy


def single_signal(p: float, *, invariant: float, spurious: float) -> float:
    r"""Return the mean margin over its standard deviation, of one network; the accuracy increases with it.

    .. math:: \frac{n_v + (1 - p)\, n_s}{\sqrt{n_s}}

    Examples
    --------
    >>> single_signal(0.5, invariant=2, spurious=4)
    2.0
    """
    return (invariant + (1 - p) * spurious) / math.sqrt(spurious)


def output_signal(
    p: float,
    *,
    invariant: tuple[float, float],
    spurious: tuple[float, float],
    shared_spurious: float = 0.0,
) -> float:
    r"""Return the same as :func:`single_signal` for the average of two networks' outputs.

    .. math:: \frac{(n_v + n_v') + (1 - p)(n_s + n_s')}{\sqrt{n_s + n_s' + 2 n_{so}}}

    Parameters
    ----------
    p : float
        Probability that a spurious feature votes for a random class.
    invariant, spurious : pair of float
        Features of each network.
    shared_spurious : float, default: 0.0
        Spurious features that both use.

    Returns
    -------
    float
        Without shared features :math:`\sqrt 2` times that of one of two equal networks.

    Examples
    --------
    >>> round(output_signal(0.5, invariant=(2, 2), spurious=(4, 4)) / 2.0, 6)
    1.414214
    """
    return (sum(invariant) + (1 - p) * sum(spurious)) / math.sqrt(sum(spurious) + 2 * shared_spurious)


def weight_signal(
    p: float,
    *,
    invariant: tuple[float, float],
    spurious: tuple[float, float],
    shared_invariant: float = 0.0,
    shared_spurious: float = 0.0,
) -> float:
    r"""Return the same as :func:`output_signal` for averaged weights, in which shared features count four times.

    .. math::
        \frac{(n_v + n_v' + 2 n_{vo}) + (1 - p)(n_s + n_s' + 2 n_{so})}{\sqrt{n_s + n_s' + 14 n_{so}}}

    Examples
    --------
    >>> disjoint = {"invariant": (2, 2), "spurious": (4, 4)}
    >>> weight_signal(0.5, **disjoint) == output_signal(0.5, **disjoint)
    True
    """
    margin = sum(invariant) + 2 * shared_invariant + (1 - p) * (sum(spurious) + 2 * shared_spurious)
    return margin / math.sqrt(sum(spurious) + 14 * shared_spurious)


def _votes(p: float, classes: int, spurious: int) -> dict[tuple[int, ...], float]:
    """The distribution of the spurious votes; the first class is the true one."""
    chances = [1 - p + p / classes, *[p / classes] * (classes - 1)]
    votes: dict[tuple[int, ...], float] = {(0,) * classes: 1.0}
    for _ in range(spurious):
        further: dict[tuple[int, ...], float] = defaultdict(float)
        for vote, probability in votes.items():
            for index, chance in enumerate(chances):
                further[(*vote[:index], vote[index] + 1, *vote[index + 1 :])] += probability * chance
        votes = further
    return votes
