"""What a quantized model needs beside its weights, as one JSON file: ``quantization.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from weightsmith.core.errors import CheckpointError
from weightsmith.core.io import parse_json
from weightsmith.core.levels._grid import Grid

__all__ = ["FILE", "ActivationLevels", "Quantization", "WeightLevels", "puts_on_levels"]

FILE = "quantization.json"
VERSION = 1

F = TypeVar("F", bound=Callable[..., Any])


def puts_on_levels(method: F) -> F:
    """Mark a method whose result has :data:`FILE`, so that its weights can be saved packed."""
    method.on_levels = True  # type: ignore[attr-defined]
    return method


@dataclass(frozen=True)
class WeightLevels:
    """The levels of one layer's weight.

    Attributes
    ----------
    bits : int
        Of each code.
    half : bool
        Whether zero is half-way between two levels.
    unit : list of float
        For each output, the number that its levels are whole multiples of: odd ones with ``half``.
    """

    bits: int
    half: bool
    unit: list[float]

    def integers(self, rows: Tensor) -> Tensor:
        """Return the whole multiples that the rows of a weight are made of.

        Raises
        ------
        CheckpointError
            If the rows are not on the levels.

        Examples
        --------
        >>> WeightLevels(2, True, [0.125]).integers(torch.tensor([[0.125, -0.375]])).int()
        tensor([[ 1, -3]], dtype=torch.int32)
        """
        unit = torch.tensor(self.unit, dtype=rows.dtype, device=rows.device).unsqueeze(1)
        grid = Grid(self.bits, self.half)
        found = (rows.double() / unit.double().clamp_min(torch.finfo(torch.float64).tiny)).round()
        n = grid.half_levels
        lowest, highest = (1 - 2 * n, 2 * n - 1) if self.half else (-n, n - 1)
        found = found.clamp_(lowest, highest).to(rows.dtype)
        if rows.shape[0] != len(self.unit) or not torch.equal(found * unit, rows):
            raise CheckpointError(
                "weights off their levels", expected=f"{self.bits} bits", do="Pack what the method gave, unchanged."
            )
        return found

    def codes(self, rows: Tensor) -> tuple[Tensor, int, int]:
        """Return unsigned codes :math:`u`, a factor :math:`a` and an offset :math:`c`: weights are :math:`(a u - c) t`.

        Here :math:`t` is the unit of the row.

        Raises
        ------
        CheckpointError
            If the rows are not on the levels.

        Examples
        --------
        >>> WeightLevels(2, True, [0.125]).codes(torch.tensor([[0.125, -0.375]]))
        (tensor([[2, 0]], dtype=torch.uint8), 2, 3)
        """
        n = Grid(self.bits, self.half).half_levels
        factor, offset = (2, 2 * n - 1) if self.half else (1, n)
        codes = (self.integers(rows).to(torch.int32) + offset) // factor
        return codes.to(torch.uint8), factor, offset


@dataclass(frozen=True)
class ActivationLevels:
    """The levels of one layer's inputs.

    Attributes
    ----------
    bits : int
        Of each activation.
    signed : bool
        Whether there are levels below zero.
    step : nested list of float
        One step, or one per position.
    before, after : nested list of float or None
        The shifts, in their own shape.
    """

    bits: int
    signed: bool
    step: list[Any]
    before: list[Any] | None
    after: list[Any] | None


@dataclass(frozen=True)
class Quantization:
    """How a model's weights and activations are quantized.

    Attributes
    ----------
    weights : mapping of str to WeightLevels
        By layer.
    activations : mapping of str to ActivationLevels
        By the path of the quantizer.
    attentions : mapping of str to int or None
        Attention with fake-quantized factors, and the bits of its joint query-key weight.

    Examples
    --------
    >>> plan = Quantization({"fc": WeightLevels(4, True, [0.5])})
    >>> Quantization.from_json(plan.to_json()) == plan
    True
    """

    weights: Mapping[str, WeightLevels]
    activations: Mapping[str, ActivationLevels] = field(default_factory=dict)
    attentions: Mapping[str, int | None] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self) | {"version": VERSION})

    @classmethod
    def from_json(cls, text: str) -> Quantization:
        """Read :meth:`to_json`'s text.

        Raises
        ------
        CheckpointError
            If it is damaged, or of a version this one does not know.
        """
        fields = parse_json(text, FILE)
        try:
            version = fields.pop("version")
            if version != VERSION:
                raise CheckpointError(f"version of {FILE}", found=version, expected=VERSION)
            return cls(
                {name: WeightLevels(**row) for name, row in fields["weights"].items()},
                {name: ActivationLevels(**row) for name, row in fields["activations"].items()},
                dict(fields["attentions"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{FILE} is damaged", found=f"{type(error).__name__}: {error}") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Quantization:
        """Read the file in a model's folder.

        Raises
        ------
        CheckpointError
            If there is none, or it is damaged.
        """
        path = Path(folder) / FILE
        try:
            return cls.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {path}", found=error) from error
