"""What a model is run on: batches for calibration and measures, samples for training.

Both are what PyTorch users already have: mappings of keyword arguments, single tensors, ``(inputs, labels)`` pairs, a
list of these, a data set, or a ``DataLoader``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from weightsmith.core.errors import CalibrationError

__all__ = [
    "Batch",
    "Batches",
    "Sample",
    "Samples",
    "as_batches",
    "batched",
    "call",
    "map_tensors",
    "split_labels",
    "take",
    "to_device",
]

Batch: TypeAlias = Mapping[str, Any] | Tensor | tuple[Any, ...] | list[Any]
"""Keyword arguments of the model, its only argument, its positional arguments, or ``(inputs, labels)``."""

Batches: TypeAlias = Sequence[Batch] | DataLoader[Any]
"""A list of batches, or a loader that makes them."""

Sample: TypeAlias = Mapping[str, Tensor] | tuple[Any, ...]
"""One sample: keyword arguments such as ``{"input_ids": LongTensor[L], "labels": ...}``, or ``(input, label)``."""


@runtime_checkable
class Samples(Protocol):
    """Anything with a length and a :data:`Sample` at each index: a list, or a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def as_batches(batches: Batches) -> list[Batch]:
    """Return batches as a list, so that they can be counted and gone over more than once.

    Raises
    ------
    CalibrationError
        If there are none.

    Examples
    --------
    >>> loader = DataLoader(torch.arange(5.0), batch_size=2)
    >>> [len(batch) for batch in as_batches(loader)]
    [2, 2, 1]
    """
    listed = list(batches)
    if not listed:
        raise CalibrationError("no calibration batches", expected="at least one")
    return listed


def take(samples: Samples, start: int = 0, stop: int | None = None) -> list[Any]:
    """Return some of the samples, as slicing a list does.

    Examples
    --------
    >>> take([(1.0, 0), (2.0, 1), (3.0, 0)], 1)
    [(2.0, 1), (3.0, 0)]
    """
    return [samples[index] for index in range(*slice(start, stop).indices(len(samples)))]


def batched(samples: Samples, batch_size: int) -> list[Batch]:
    """Collate samples of one shape into batches, in order; the last one may be smaller.

    Raises
    ------
    CalibrationError
        If there are no samples.

    Examples
    --------
    >>> [batch[1].tolist() for batch in batched([(torch.ones(2), n) for n in range(3)], 2)]
    [[0, 1], [2]]
    """
    if len(samples) == 0:
        raise CalibrationError("no samples", expected="at least one")
    starts = range(0, len(samples), batch_size)
    return [default_collate(take(samples, start, start + batch_size)) for start in starts]


def split_labels(batch: Batch) -> tuple[Batch, Tensor]:
    """Take a batch apart into the model's inputs and the labels.

    Raises
    ------
    CalibrationError
        If it is neither a mapping with ``labels`` nor a pair.

    Examples
    --------
    >>> inputs, labels = split_labels({"input_ids": torch.ones(2, 3), "labels": torch.tensor([0, 1])})
    >>> list(inputs), labels.tolist()
    (['input_ids'], [0, 1])
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    raise CalibrationError("a batch without labels", found=found, expected="a mapping with 'labels', or a pair")


def call(model: nn.Module, batch: Batch) -> Any:
    """Call a model with a batch: a mapping as keyword arguments, a tuple or list as positional ones.

    A pair whose second element has no place in ``model.forward``, or is one whole number per row where ``forward``
    asks for one input only, is taken as ``(inputs, labels)``: the model gets the inputs.

    Examples
    --------
    >>> x, y = torch.ones(3, 2), torch.tensor([0, 1, 0])
    >>> call(nn.Linear(2, 4), (x, y)).shape
    torch.Size([3, 4])
    >>> call(nn.Bilinear(2, 2, 4), (x, x)).shape
    torch.Size([3, 4])
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if not isinstance(batch, (tuple, list)):
        return model(batch)
    return model(batch[0]) if _is_labeled(model, batch) else model(*batch)


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch with a function applied to each of its tensors; other values stay unchanged.

    Examples
    --------
    >>> map_tensors(torch.neg, [torch.ones(1), {"x": torch.ones(1), "n": 3}])
    [tensor([-1.]), {'x': tensor([-1.]), 'n': 3}]
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(function, value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(function, value) for value in batch)
    return batch


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Return a batch with all of its tensors on a device.

    Examples
    --------
    >>> to_device([torch.ones(1), {"x": torch.ones(1)}], "meta")[1]["x"].device
    device(type='meta')
    """
    return map_tensors(lambda tensor: tensor.to(device), batch)


def _is_labeled(model: nn.Module, batch: Sequence[Any]) -> bool:
    if len(batch) != 2:
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return False
    places = [parameter for parameter in parameters if parameter.kind in kinds]
    if len(places) < 2:
        return True
    return places[1].default is not inspect.Parameter.empty and _are_labels(*batch)


def _are_labels(inputs: Any, labels: Any) -> bool:
    """Whether the second is one whole number per row of the first, which holds real numbers."""
    if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor) or not inputs.is_floating_point():
        return False
    return labels.ndim == 1 and len(labels) == len(inputs) and not labels.is_floating_point()
