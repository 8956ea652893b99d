"""Exemplar memory of a fixed size: the samples whose mean is nearest to that of their class (herding).

Welling 2009, "Herding Dynamical Weights to Learn"; Rebuffi et al. 2017, "iCaRL", arXiv 1611.07725.
Legend: ``N`` samples, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from weightsmith.continual._replay import Replay
from weightsmith.core.choices import check_whole
from weightsmith.core.data import Samples
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite, upcast

__all__ = ["ExemplarMemory", "herd"]


class ExemplarMemory(Replay):
    """Keep ``total`` samples in all, divided equally among the classes: of each those that :func:`herd` picks first.

    Parameters
    ----------
    total : int
        Samples to keep in all. Each of the classes seen so far keeps ``total // classes``.
    features : callable
        From a list of samples to their features ``[N, D]``, such as the inputs of the head in evaluation mode.
    generator : torch.Generator, optional
        Draws the batches of :meth:`mixed_into`.

    Raises
    ------
    HyperparameterError
        If there are more classes than samples to keep.

    Notes
    -----
    Add a class once: its samples are ranked when they are added, and later stages keep the first of each list.

    Examples
    --------
    >>> memory = ExemplarMemory(4, lambda samples: torch.stack([x for x, _ in samples]))
    >>> memory.add([(torch.tensor([1.0, n]), 0) for n in (0.0, 1.0, 2.0)])
    >>> memory.add([(torch.tensor([n, 1.0]), 1) for n in (0.0, 1.0, 2.0)])
    >>> [(x.tolist(), label) for x, label in memory]
    [([1.0, 1.0], 0), ([1.0, 0.0], 0), ([1.0, 1.0], 1), ([0.0, 1.0], 1)]
    """

    def __init__(
        self, total: int, features: Callable[[list[Any]], Tensor], *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(total, generator=generator)
        self.total, self.features = total, features

    def add(self, samples: Samples) -> None:
        """Add the samples of new classes; every class keeps its share.

        Raises
        ------
        HyperparameterError
            If there are more classes than samples to keep, or a class is in the memory already.
        """
        groups = self._by_class(samples)
        if known := sorted(str(label) for label in groups.keys() & self._kept.keys()):
            raise HyperparameterError(
                "classes to add", found=f"{', '.join(known[:5])} in the memory already", do="Add a class once."
            )
        classes = len(groups) + len(self._kept)
        if classes > self.total:
            raise HyperparameterError("total", found=self.total, expected=f"at least the {classes} classes")
        share = self.total // classes if classes else self.total
        ranked = {}
        for label, members in groups.items():
            picks = herd(self.features(members), share)
            ranked[label] = [(float(rank), members[place]) for rank, place in enumerate(picks.tolist())]
        self._kept |= ranked
        self.resize(share)


def herd(features: Float[Tensor, "N D"], count: int) -> Tensor:
    """Rank the samples of a class: the mean of the first ones is near the mean of all.

    Features are scaled to length 1. Of equal scores the first sample is picked. A sample that would be picked twice is
    passed over; after 1.5 times ``count`` picks the rest is left out, as in the authors' code.

    Parameters
    ----------
    features : Tensor of shape (N, D)
        Of the samples of one class.
    count : int
        How many to pick, at least 1.

    Returns
    -------
    Tensor of shape (picks,)
        Their rows, the best first; ``count`` of them or fewer. Those of a smaller count are the first of these.

    Raises
    ------
    HyperparameterError
        If ``count`` is less than 1.
    NonFiniteError
        If a feature is NaN or infinite.
    ShapeError
        If the features are no matrix with a row.

    Examples
    --------
    >>> herd(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), 2)
    tensor([1, 0])
    """
    count = check_whole("count", count)
    if features.ndim != 2 or not len(features):
        raise ShapeError("features of a class", found=tuple(features.shape), expected="[samples, features]")
    if not is_finite(features):
        raise NonFiniteError("the features of a class hold NaN or infinity")
    unit_ND = functional.normalize(upcast(features.detach()), dim=1)
    pull_N = unit_ND @ unit_ND.mean(0)
    score_N, picks = pull_N.clone(), []
    for _ in range(int(1.5 * count)):
        pick = int(score_N.argmax())
        if pick not in picks:
            picks.append(pick)
        if len(picks) == min(count, len(features)):
            break
        score_N += pull_N - unit_ND @ unit_ND[pick]  # of the residual w + mean - pick
    return torch.tensor(picks)
