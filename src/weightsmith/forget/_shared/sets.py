"""The sets of a run: what is held out, what may not be in both, and the errors on each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.utils.data import Subset

from weightsmith.core.data import Samples, sample_digest
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
    known = {sample_digest(forget[index]) for index in range(len(forget))}
    return sum(sample_digest(retain[index]) in known for index in range(len(retain)))


def refuse_overlap(forget: Samples, retain: Samples, *, names: tuple[str, str] = ("forget", "retain")) -> None:
    """Refuse samples that are in both sets, which an error calls by their names: their input and label are the same.

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
            f"samples in both the {names[0]} and the {names[1]} set",
            found=both,
            do="Remove them from one of the sets.",
        )


def prepared_sets(
    model: nn.Module, forget: Samples, retain: Samples, other: Samples | None, distance: Distance
) -> dict[str, Samples]:
    """Return what a regression network is to forget, to retain, and what is in neither set, all of it checked.

    Raises
    ------
    CalibrationError
        If there is nothing to retain, or a sample is in two sets.
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
    if other:
        refuse_overlap(forget, other, names=("forget", "other"))
        refuse_overlap(retain, other, names=("retain", "other"))
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
