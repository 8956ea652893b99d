"""Features of a sample: 19 numbers on its loss and confidence, compared with recent samples of its class.

Legend: ``G`` passes, ``B`` samples, ``C`` classes, ``M`` samples in memory.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = ["FEATURES", "ClassMemory", "normal_divergence", "normal_overlap"]

FEATURES = 19

EPSILON = 1e-8
"""Standard deviation in place of zero."""


class ClassMemory:
    """Loss and confidence of recent samples of each class, and features that compare a sample with them.

    Parameters
    ----------
    classes : int
        Number of classes.
    window : int
        Samples to store per class, in batches.

    Attributes
    ----------
    held : tuple of Tensor
        Of the stored samples, oldest first: moments of loss and confidence ``[M, 4]``, labels and whether the passes
        agree with them ``[M]``.
    """

    def __init__(self, classes: int, window: int = 1) -> None:
        self.classes, self.window = classes, window
        self.reset()

    def reset(self) -> None:
        """Remove all samples, as at the start of an epoch."""
        self.held: tuple[Tensor, ...] = torch.empty(0, 4), torch.empty(0).long(), torch.empty(0).long()

    @torch.no_grad()
    def features(
        self, losses: Float[Tensor, "G B"], logits: Float[Tensor, "G B C"], labels: Int[Tensor, "B"]
    ) -> Float[Tensor, "B 19"]:
        """Store a batch and return its features.

        A sample is compared with those of its class that the passes agree on as they do on it: most of them predict its
        label, or not. The features are, for its loss and for its confidence, mean over passes and standard deviation
        over passes, each with the group's mean and standard deviation; then divergence and overlap of the normal
        distributions of its loss and of the group's, each with the group's mean and standard deviation; then whether
        the passes agree with the label.
        """
        rows_B4 = _moments(losses, logits.softmax(2).amax(2))
        agree_B = _agreement(logits, labels)
        rows_M4, labels_M, agree_M = self._append((rows_B4, labels, agree_B), self.window * len(labels))
        group_M = 2 * labels_M + agree_M
        mean_M4, deviation_M4 = _group_statistics(rows_M4, group_M, 2 * self.classes)
        pairs_M2 = torch.stack(
            [
                normal_divergence(rows_M4[:, 0], rows_M4[:, 1], mean_M4[:, 0], mean_M4[:, 1]),
                normal_overlap(rows_M4[:, 0], rows_M4[:, 1], mean_M4[:, 0], mean_M4[:, 1]),
            ],
            1,
        )
        pair_mean_M2, pair_deviation_M2 = _group_statistics(pairs_M2, group_M, 2 * self.classes)
        mine = slice(len(rows_M4) - len(labels), None)
        triples = [(rows_M4, mean_M4, deviation_M4, k) for k in range(4)]
        triples += [(pairs_M2, pair_mean_M2, pair_deviation_M2, k) for k in range(2)]
        columns = [part[mine, k] for *parts, k in triples for part in parts]
        return torch.stack([*columns, agree_B.double()], 1).float()

    def _append(self, batch: tuple[Tensor, ...], most: int) -> tuple[Tensor, ...]:
        """Append a batch; of each class keep the last ``most`` samples."""
        every = [torch.cat([old.to(new), new]) for old, new in zip(self.held, batch, strict=True)]
        labels_M = every[1]
        one_hot = functional.one_hot(labels_M.flip(0), self.classes)
        age = one_hot.cumsum(0).flip(0).gather(1, labels_M[:, None])[:, 0]
        self.held = tuple(part[age <= most] for part in every)
        return self.held


def normal_divergence(mean: Tensor, deviation: Tensor, other_mean: Tensor, other_deviation: Tensor) -> Tensor:
    """Kullback-Leibler divergence of normal distributions; zero where a deviation is zero.

    Examples
    --------
    >>> one = torch.tensor
    >>> round(normal_divergence(one(0.5), one(0.1), one(1.0), one(0.2)).item(), 6)
    3.443147
    """
    degenerate = (deviation == 0) | (other_deviation == 0)
    s, big_s = (x.masked_fill(degenerate, 1.0) for x in (deviation, other_deviation))
    divergence = (big_s / s).log() + (s.square() + (mean - other_mean).square()) / (2 * big_s.square()) - 0.5
    return divergence.masked_fill(degenerate, 0.0)


def normal_overlap(mean: Tensor, deviation: Tensor, other_mean: Tensor, other_deviation: Tensor) -> Tensor:
    """Area under both densities of two normal distributions, between 0 and 1; deviations are at least 1e-8.

    Examples
    --------
    >>> one = torch.tensor
    >>> round(normal_overlap(one(0.0), one(1.0), one(1.0), one(1.0)).item(), 6)
    0.617075
    """
    m, s, big_m, big_s = (x.double() for x in (mean, deviation, other_mean, other_deviation))
    s, big_s = s.clamp(min=EPSILON), big_s.clamp(min=EPSILON)
    distance, spread = (big_m - m).abs(), big_s.square() - s.square()
    alike = spread.abs() <= 1e-12 * s.square()
    safe = spread.masked_fill(alike, 1.0)
    # the densities cross where their logarithms do: at two points, or at the middle when they are alike
    middle = m * big_s.square() - big_m * s.square()
    half = s * big_s * (distance.square() + safe * (big_s.square() / s.square()).log()).clamp(min=0).sqrt()
    between = sum(
        (_normal_cdf((x - big_m) / big_s) - _normal_cdf((x - m) / s)).abs()
        for x in ((middle + half) / safe, (middle - half) / safe)
    )
    overlap = torch.where(alike, torch.special.erfc(distance / (2 * math.sqrt(2) * s)), 1 - between)
    return overlap.clamp(0, 1).to(mean.dtype)


def _moments(losses_GB: Tensor, confidence_GB: Tensor) -> Float[Tensor, "B 4"]:
    """Mean and standard deviation over passes, of loss and of confidence."""
    columns = []
    for values in (losses_GB.double(), confidence_GB.double()):
        columns += [values.mean(0), values.std(0) if len(values) > 1 else torch.zeros_like(values[0])]
    return torch.stack(columns, 1)


def _agreement(logits_GBC: Tensor, labels: Tensor) -> Int[Tensor, "B"]:
    """Whether most passes predict the label; the first decides a tie."""
    right_GB = logits_GBC.argmax(2) == labels
    count_B, passes = right_GB.sum(0), len(right_GB)
    tie_B = 2 * count_B == passes
    return torch.where(tie_B, right_GB[0], 2 * count_B > passes).long()


def _group_statistics(rows: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each row's group; of a group of one the deviation is 1e-8."""
    count = torch.bincount(group, minlength=groups).clamp(min=1).to(rows)[:, None]
    mean = rows.new_zeros(groups, rows.shape[1]).index_add(0, group, rows) / count
    squares = rows.new_zeros(groups, rows.shape[1]).index_add(0, group, (rows - mean[group]).square())
    deviation = torch.where(count > 1, (squares / (count - 1).clamp(min=1)).sqrt(), EPSILON)
    return mean[group], deviation[group]


def _normal_cdf(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)
