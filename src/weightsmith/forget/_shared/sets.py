"""The sets of a run: what is held out, what may not be in both, and the errors on each."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Subset

from weightsmith.core.data import Samples
from weightsmith.core.errors import CalibrationError
from weightsmith.forget._shared.regression import Distance, check_regression, errors

__all__ = ["EMPTY", "frozen_note", "head", "held_out", "overlap", "prepared_sets", "refuse_overlap", "set_errors"]

MEASURED = 1024
"""Samples of each set that are measured before and after a run."""

EMPTY = "The forget set is empty: nothing was done."

SHARE = 8
"""Every eighth sample to retain is held out."""


def held_out(retain: Samples, other: Samples | None) -> tuple[Samples, Samples]:
    """Return what is retained, and what is in neither set: ``other``, or every eighth sample.

    Raises
    ------
    CalibrationError
        If there are too few samples.

    Examples
    --------
    >>> retained, neither = held_out(list(range(10)), None)
    >>> [*retained], [*neither]
    ([1, 2, 3, 4, 5, 6, 7, 9], [0, 8])
    """
    if other is not None and len(other):
        return retain, other
    if len(retain) < 2:
        raise CalibrationError(
            "the retain set",
            found=f"{len(retain)} samples",
            expected="at least 2, one of which is held out",
            do="Give more, or samples in neither set as `other`.",
        )
    count = len(retain)
    return (
        Subset(retain, [index for index in range(count) if index % SHARE]),  # type: ignore[arg-type]
        Subset(retain, [*range(0, count, SHARE)]),  # type: ignore[arg-type]
    )


def head(samples: Samples) -> Samples:
    """Return the samples that are measured."""
    return samples if len(samples) <= MEASURED else Subset(samples, [*range(MEASURED)])  # type: ignore[arg-type]


def overlap(forget: Samples, retain: Samples) -> int:
    """Count the samples to retain that are also to be forgotten: their input and their label are the same.

    Examples
    --------
    >>> overlap([(1.0, 2.0)], [(1.0, 3.0), (1.0, 2.0)])
    1
    """
    if isinstance(forget, Subset) and isinstance(retain, Subset) and forget.dataset is retain.dataset:
        return len({*forget.indices} & {*retain.indices})
    known = {_digest(forget[index]) for index in range(len(forget))}
    return sum(_digest(retain[index]) in known for index in range(len(retain)))


def refuse_overlap(forget: Samples, retain: Samples) -> None:
    """Refuse samples that are in both sets: their input and their label are the same.

    Raises
    ------
    CalibrationError
        If there are any.

    Examples
    --------
    >>> refuse_overlap([(1.0, 2.0)], [(1.0, 3.0)])
    """
    if both := overlap(forget, retain):
        raise CalibrationError(
            "samples in both the forget and the retain set", found=both, do="Remove them from one of the sets."
        )


def prepared_sets(
    model: nn.Module, forget: Samples, retain: Samples, other: Samples | None, distance: Distance
) -> dict[str, Samples]:
    """Return what a regression network is to forget, to retain, and what is in neither set, all of it checked.

    Raises
    ------
    CalibrationError
        If there is nothing to retain, or a sample is in both sets.
    ShapeError, UnsupportedModelError
        As :func:`~weightsmith.forget._shared.regression.check_regression`.
    """
    if not len(retain):
        raise CalibrationError(
            "the retain set is empty",
            expected="at least one sample",
            do="This method needs data to retain; gradient ascent on the samples to forget does not.",
        )
    check_regression(model, {"forget": forget, "retain": retain, **({"other": other} if other else {})}, distance)
    refuse_overlap(forget, retain)
    retained, neither = held_out(retain, other)
    return {"forgotten": forget, "retained": retained, "neither": neither}


def set_errors(model: nn.Module, sets: Mapping[str, Samples], distance: Distance) -> dict[str, float]:
    """Return the mean error on each set as ``error_NAME``."""
    return {f"error_{name}": float(errors(model, head(samples), distance).mean()) for name, samples in sets.items()}


def frozen_note(model: nn.Module) -> list[str]:
    """Say which parameters did not take part."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    more = ", ..." if len(frozen) > 3 else ""
    return [f"{len(frozen)} frozen parameters did not change: {', '.join(frozen[:3])}{more}."] if frozen else []


def _digest(sample: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, sample)
    return digest.digest()


def _feed(digest: Any, part: Any) -> None:
    values = _numbers(part)
    if values is not None:  # of any type and container: a copy in another one is the same sample
        digest.update(str(values.shape).encode())
        digest.update(values.tobytes())
    elif isinstance(part, Mapping):
        mask = part.get("attention_mask")
        for name in sorted(part):
            value = part[name]
            if isinstance(mask, Tensor) and isinstance(value, Tensor) and mask.ndim == 1 and value.shape == mask.shape:
                value = value[mask.bool()]  # each set is padded to its own longest sample
            digest.update(name.encode())
            _feed(digest, value)
    elif isinstance(part, (tuple, list)):
        for each in part:
            _feed(digest, each)
    else:
        digest.update(repr(part.tolist() if isinstance(part, np.ndarray) else part).encode())


def _numbers(part: Any) -> np.ndarray | None:
    """A tensor, array, number or nested sequence of numbers in float64, where it holds them; None for anything else."""
    if isinstance(part, Tensor):
        part = part.detach().cpu()
        part = (part.double() if part.is_floating_point() else part).numpy()
    if isinstance(part, (tuple, list)):
        values = [each for each in map(_numbers, part) if each is not None]
        alike = len(values) == len(part) and len({each.shape for each in values}) == 1
        return np.stack(values) if alike else None
    if not isinstance(part, (numbers.Real, np.ndarray)) or np.asarray(part).dtype.kind not in "biuf":
        return None
    exact = np.asarray(part)
    return exact if exact.dtype.kind in "iu" and np.any(np.abs(exact) > 2**53) else exact.astype(np.float64)
