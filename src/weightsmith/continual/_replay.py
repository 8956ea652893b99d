"""Replay: a few samples per class of earlier tasks, in every batch of later ones.

Robins 1995, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from weightsmith.core.choices import check_whole
from weightsmith.core.data import Sample, Samples, collate, take
from weightsmith.core.errors import CalibrationError

__all__ = ["Replay"]


class Replay:
    """Keep up to ``per_class`` samples per class, drawn uniformly from all that were added.

    Samples are kept unchanged, so that every field keeps its name: a mapping may also hold what else is to be replayed,
    such as the logits of the model after the task.

    Parameters
    ----------
    per_class : int, default: 20
        Samples to keep per class. The class is the field ``labels`` or ``label`` of a mapping, or the second of a pair;
        samples with other labels, such as texts, all belong to one class.
    generator : torch.Generator, optional
        Draws the samples.

    Examples
    --------
    >>> replay = Replay(per_class=2, generator=torch.Generator().manual_seed(0))
    >>> replay.add([(torch.tensor([float(n)]), n % 3) for n in range(30)])
    >>> len(replay), sorted(label for _, label in replay)
    (6, [0, 0, 1, 1, 2, 2])
    >>> replay.resize(1)
    >>> len(replay)
    3
    """

    def __init__(self, per_class: int = 20, *, generator: torch.Generator | None = None) -> None:
        self.per_class = check_whole("per_class", per_class)
        self.generator = generator
        self._kept: dict[int | None, list[tuple[float, Sample]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def __getitem__(self, number: int) -> Sample:
        return self._samples()[number]

    def add(self, samples: Samples) -> None:
        """Add the samples of a task; where a class has more than are kept, each is kept with equal probability."""
        for label, members in self._by_class(samples).items():
            keys = torch.rand(len(members), generator=self.generator, dtype=torch.float64).tolist()
            self._kept.setdefault(label, []).extend(zip(keys, members, strict=True))
        self.resize(self.per_class)

    def resize(self, per_class: int) -> None:
        """Keep another number per class: fewer are a uniform choice of the present ones, more apply to later tasks."""
        self.per_class = check_whole("per_class", per_class)
        for label, kept in self._kept.items():  # the lowest of random keys are a uniform choice, and stay one
            self._kept[label] = sorted(kept, key=lambda pair: pair[0])[:per_class]

    def mixed_into(
        self, data: Samples, batch_size: int = 32, *, per_batch: int | None = None, pad_token_id: int = 0
    ) -> DataLoader[Any]:
        """Return a loader of shuffled batches of new samples, each with stored ones added.

        Parameters
        ----------
        data : Samples
            The samples of the new task, with the same fields.
        batch_size : int, default: 32
            New samples per batch.
        per_batch : int, optional
            Stored samples per batch, drawn anew each time; by default all of them.
        pad_token_id : int, default: 0
            See :func:`weightsmith.core.data.collate`.

        Examples
        --------
        >>> replay = Replay(per_class=1)
        >>> replay.add([(torch.zeros(2), 0), (torch.zeros(2), 1)])
        >>> loader = replay.mixed_into([(torch.ones(2), 2)] * 8, batch_size=4)
        >>> [labels.tolist() for _, labels in loader]
        [[2, 2, 2, 2, 0, 1], [2, 2, 2, 2, 0, 1]]
        """
        if not len(data):
            raise CalibrationError("no samples of the new task")
        stored = self._samples()
        count = len(stored) if per_batch is None else min(check_whole("per_batch", per_batch), len(stored))

        def mix(new: list[Sample]) -> Any:
            drawn: Sequence[int] = range(len(stored))
            if count < len(stored):
                drawn = torch.randperm(len(stored), generator=self.generator)[:count].tolist()
            return collate([*new, *(stored[number] for number in drawn)], pad_token_id=pad_token_id)

        return DataLoader(cast(Dataset[Any], data), batch_size, shuffle=True, generator=self.generator, collate_fn=mix)

    def _by_class(self, samples: Samples) -> dict[int | None, list[Sample]]:
        groups: dict[int | None, list[Sample]] = {}
        for sample in take(samples):
            groups.setdefault(_class_of(sample), []).append(sample)
        return groups

    def _samples(self) -> list[Sample]:
        return [sample for kept in self._kept.values() for _, sample in kept]


def _class_of(sample: Sample) -> int | None:
    label: Any = None
    if isinstance(sample, Mapping):
        label = next((sample[name] for name in ("labels", "label") if name in sample), None)
    elif isinstance(sample, (tuple, list)) and len(sample) > 1:
        label = sample[1]
    if isinstance(label, Tensor):
        label = label.item() if label.numel() == 1 and not label.is_floating_point() else None
    return int(label) if isinstance(label, Integral) else None
