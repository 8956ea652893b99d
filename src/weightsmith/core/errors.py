"""The exceptions weightsmith raises: each says what is wrong, what was found, what was expected, what to do."""

from __future__ import annotations

from typing import Any

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "HyperparameterError",
    "LayerNotFoundError",
    "MissingDependencyError",
    "NonFiniteError",
    "RecipeError",
    "ShapeError",
    "UnsupportedModelError",
    "WeightsmithError",
    "WorkerError",
]


LONGEST = 500
"""Characters of what was found, in a message."""


class WeightsmithError(Exception):
    """Base of everything weightsmith raises on bad input.

    Parameters
    ----------
    what : str
        The thing that is wrong, with the name of its layer, key or field.
    found : object, optional
        What was there; of another exception, what it says, without number and path.
    expected : object, optional
        What should have been there.
    do : str, optional
        What the user can do about it, as an imperative.

    Examples
    --------
    >>> print(ShapeError("mask of layer 'fc'", found=(2, 3), expected=(3, 2), do="Transpose the mask."))
    mask of layer 'fc': found (2, 3), expected (3, 2). Transpose the mask.
    >>> print(CheckpointError("cannot read w.bin", found=FileNotFoundError(2, "No such file or directory", "w.bin")))
    cannot read w.bin: found No such file or directory
    """

    def __init__(self, what: str, *, found: Any = None, expected: Any = None, do: str | None = None) -> None:
        facts = [
            f"{label} {_shortened(_text(value))}"
            for label, value in (("found", found), ("expected", expected))
            if value is not None
        ]
        message = what + (": " + ", ".join(facts) if facts else "")
        if do:
            message = message.rstrip(".") + ". " + do
        super().__init__(message)


def _text(value: Any) -> str:
    if isinstance(value, OSError) and value.strerror:
        return value.strerror
    return str(value) or type(value).__name__ if isinstance(value, Exception) else str(value)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"


class LayerNotFoundError(WeightsmithError, LookupError):
    """A layer, block or module that was named is not in the model, or a pattern matches nothing."""


class ShapeError(WeightsmithError, ValueError):
    """Tensors whose shapes must agree do not."""


class HyperparameterError(WeightsmithError, ValueError):
    """A hyper-parameter is outside its range."""


class NonFiniteError(WeightsmithError, ValueError):
    """A weight, statistic or input holds NaN or infinity."""


class CalibrationError(WeightsmithError, ValueError):
    """Calibration data are missing, empty or do not fit the model."""


class CheckpointError(WeightsmithError, OSError):
    """A checkpoint cannot be read, is damaged or cannot be written."""


class UnsupportedModelError(WeightsmithError, TypeError):
    """The method cannot handle this model or layer and changed nothing."""


class RecipeError(WeightsmithError, ValueError):
    """A recipe file does not describe steps that can be run."""


class WorkerError(WeightsmithError, RuntimeError):
    """A process that worked on a part was killed."""


class MissingDependencyError(WeightsmithError, ImportError):
    """An optional package is needed and not installed."""
