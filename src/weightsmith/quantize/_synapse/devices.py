"""How a conductance answers identical pulses: the families of the literature, and measured curves.

Conductances are normalized to [0, 1]. A curve describes potentiation; depression is a curve of its own, mirrored.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError

__all__ = ["Curve", "Exponential", "Measured", "SoftBounds", "SynapseDevice", "read_device"]

Number: TypeAlias = float | Tensor
LINEAR = 1e-3
"""Below this non-linearity a curve is a line."""


@runtime_checkable
class Curve(Protocol):
    """A device's response to identical pulses."""

    def advance(self, g: Tensor, pulses: Number = 1, speed: Number = 1.0) -> Tensor:
        """Return the conductances after a number of pulses, each ``speed`` times the typical step, within [0, 1]."""

    def pulses_to(self, g: Tensor) -> Tensor:
        """Return how many pulses lead from 0 to these conductances."""


@dataclass(frozen=True)
class SoftBounds:
    r"""Steps that shrink with the distance to a bound: :math:`g \leftarrow g + p\,(E - g)`.

    With :math:`E = 1 / (1 - e^{-\beta})` and :math:`p = 1 - e^{-\beta / P}`, :math:`P` pulses lead from 0 to 1.

    Parameters
    ----------
    pulses : int, default: 64
        :math:`P`, from the lowest conductance to the highest.
    beta : float, default: 0.0
        Non-linearity :math:`\beta`; 0 is a line with steps of :math:`1 / P`.

    Raises
    ------
    HyperparameterError
        If ``pulses`` is below 1 or ``beta`` negative.

    Examples
    --------
    >>> SoftBounds(64, 4.0).advance(torch.zeros(3), torch.tensor([1.0, 32.0, 64.0]))
    tensor([0.0617, 0.8808, 1.0000])
    """

    pulses: int = 64
    beta: float = 0.0

    def __post_init__(self) -> None:
        _check(self.pulses, self.beta)

    @property
    def bound(self) -> float:
        """:math:`E`, which the steps aim at."""
        return 1 / -math.expm1(-self.beta)

    @property
    def rate(self) -> float:
        """:math:`p`, the share of the distance that a pulse covers."""
        return -math.expm1(-self.beta / self.pulses)

    def advance(self, g: Tensor, pulses: Number = 1, speed: Number = 1.0) -> Tensor:
        """Return the conductances after a number of pulses, in closed form."""
        if self.beta < LINEAR:
            return (g + pulses * speed / self.pulses).clamp(0, 1)
        left = 1 - self.rate * speed
        left = (left.clamp_min(0) if isinstance(left, Tensor) else max(left, 0.0)) ** pulses
        return (self.bound - (self.bound - g) * left).clamp(0, 1)

    def pulses_to(self, g: Tensor) -> Tensor:
        """Return how many pulses lead from 0 to these conductances."""
        if self.beta < LINEAR:
            return g * self.pulses
        return torch.log1p(-g / self.bound) / math.log1p(-self.rate)


@dataclass(frozen=True)
class Exponential:
    r"""Steps that shrink exponentially with the conductance: :math:`dg = a\,e^{-\beta g}`.

    :math:`a = (e^\beta - 1) / (\beta P)`, and :math:`n` pulses give :math:`\ln(e^{\beta g} + a \beta n) / \beta`.

    Parameters
    ----------
    pulses : int, default: 64
        :math:`P`, from the lowest conductance to the highest.
    beta : float, default: 0.0
        Non-linearity :math:`\beta`, at most 80.

    Raises
    ------
    HyperparameterError
        If ``pulses`` is below 1 or ``beta`` out of range.

    Examples
    --------
    >>> Exponential(64, 4.0).advance(torch.zeros(2), torch.tensor([1.0, 64.0]))
    tensor([0.1521, 1.0000])
    """

    pulses: int = 64
    beta: float = 0.0

    def __post_init__(self) -> None:
        _check(self.pulses, self.beta)
        if self.beta > 80:
            raise HyperparameterError("beta", found=self.beta, expected="at most 80")

    @property
    def step(self) -> float:
        """:math:`a`, the first step's slope."""
        return math.expm1(self.beta) / (self.beta * self.pulses)

    def advance(self, g: Tensor, pulses: Number = 1, speed: Number = 1.0) -> Tensor:
        """Return the conductances after a number of pulses, in closed form: pulses act one after the other."""
        if self.beta < LINEAR:
            return (g + pulses * speed / self.pulses).clamp(0, 1)
        grown = (self.beta * g).exp() + self.step * self.beta * pulses * speed
        return (grown.clamp_min(1.0).log() / self.beta).clamp(0, 1)

    def pulses_to(self, g: Tensor) -> Tensor:
        """Return how many pulses lead from 0 to these conductances."""
        return g * self.pulses if self.beta < LINEAR else torch.expm1(self.beta * g) / (self.step * self.beta)


@dataclass(frozen=True)
class Measured:
    """A measured curve: the conductance after each pulse, with straight lines between.

    Parameters
    ----------
    levels : sequence of float
        Two or more conductances in [0, 1] that do not fall.

    Raises
    ------
    HyperparameterError
        If they do.

    Examples
    --------
    >>> Measured([0.0, 0.5, 0.75]).advance(torch.tensor([0.0, 0.25, 0.9]))
    tensor([0.5000, 0.6250, 0.9000])
    """

    levels: Sequence[float]

    def __post_init__(self) -> None:
        curve = list(self.levels)
        rises = all(low <= high for low, high in pairwise(curve))
        if len(curve) < 2 or not rises or not 0 <= curve[0] <= curve[-1] <= 1 or curve[0] == curve[-1]:
            raise HyperparameterError("levels", found=curve[:4], expected="two or more in [0, 1] that do not fall")

    def advance(self, g: Tensor, pulses: Number = 1, speed: Number = 1.0) -> Tensor:
        """Return the conductances after a number of pulses; beyond the curve's end they stay."""
        curve = torch.tensor(self.levels, dtype=g.dtype, device=g.device)
        last = len(curve) - 1
        end = (self.pulses_to(g) + pulses * speed).clamp(0, last)
        whole = end.floor().long().clamp(max=last - 1)
        reached = torch.lerp(curve[whole], curve[whole + 1], end - whole)
        return torch.where(g > curve[-1], g, reached)

    def pulses_to(self, g: Tensor) -> Tensor:
        """Return how many pulses lead from the curve's start to these conductances."""
        curve = torch.tensor(self.levels, dtype=g.dtype, device=g.device)
        left = (torch.searchsorted(curve, g.contiguous(), right=True) - 1).clamp(0, len(curve) - 2)
        return left + ((g - curve[left]) / (curve[left + 1] - curve[left]).clamp_min(1e-12)).clamp(0, 1)


@dataclass(frozen=True)
class SynapseDevice:
    """A device: its two curves, and how much devices and pulses differ.

    Parameters
    ----------
    potentiation, depression : curve
        :class:`SoftBounds`, :class:`Exponential` or :class:`Measured`. Depression is mirrored: its curve goes from the
        highest conductance down.
    device_variation : float, default: 0.0
        Standard deviation of a device's step, relative to the typical one; drawn once for each device and direction,
        never below a twentieth of the typical step.
    cycle_variation : float, default: 0.0
        Standard deviation of each pulse's step, relative to its device's.
    stuck : float, default: 0.0
        Share of the devices that keep a random conductance for ever.

    Raises
    ------
    HyperparameterError
        If a number is out of range.

    Examples
    --------
    >>> device = SynapseDevice(SoftBounds(64, 3.0), SoftBounds(64, 6.0), device_variation=0.1)
    >>> device.potentiate(torch.tensor(0.5)), device.depress(torch.tensor(0.5))
    (tensor(0.5253), tensor(0.4550))
    """

    potentiation: Curve
    depression: Curve
    device_variation: float = 0.0
    cycle_variation: float = 0.0
    stuck: float = 0.0

    def __post_init__(self) -> None:
        for name in ("device_variation", "cycle_variation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise HyperparameterError(name, found=getattr(self, name), expected="a number >= 0")
        if not 0 <= self.stuck < 1:
            raise HyperparameterError("stuck", found=self.stuck, expected="a share in [0, 1)")

    def potentiate(self, g: Tensor, pulses: Number = 1, speed: Number = 1.0) -> Tensor:
        """Return the conductances after pulses that raise them."""
        return self.potentiation.advance(g, pulses, speed)

    def depress(self, g: Tensor, pulses: Number = 1, speed: Number = 1.0) -> Tensor:
        """Return the conductances after pulses that lower them."""
        return 1 - self.depression.advance(1 - g, pulses, speed)

    def draw_speeds(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
        """Draw how large each device's steps are, relative to the typical one."""
        return (1 + self.device_variation * torch.randn(*shape, generator=generator)).clamp_min(0.05)


def read_device(
    path: Path, *, device_variation: float = 0.0, cycle_variation: float = 0.0, stuck: float = 0.0
) -> SynapseDevice:
    r"""Read measured curves of a device from a table.

    Parameters
    ----------
    path : Path
        A CSV file with the columns ``potentiation`` and ``depression``, in any unit: the conductance before the first
        pulse and after each. The columns may differ in length. Where a curve goes back, neighbors are averaged
        (isotonic regression). The lowest value of both is conductance 0, the highest is 1.
    device_variation, cycle_variation, stuck : float, default: 0.0
        As in :class:`SynapseDevice`.

    Raises
    ------
    CalibrationError
        If the file cannot be read, a column is missing or too short, or a curve does not go its way.
    NonFiniteError
        If a value is no finite number.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "device.csv")
    ...     _ = path.write_text("potentiation,depression\n10,30\n25,14\n30,10\n")
    ...     device = read_device(path)
    >>> device.potentiate(torch.tensor(0.0)), device.depress(torch.tensor(1.0))
    (tensor(0.7500), tensor(0.2000))
    """
    from sklearn.isotonic import isotonic_regression

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CalibrationError(f"cannot read {path}", found=error) from error
    columns = {}
    for name in ("potentiation", "depression"):
        if not rows or name not in rows[0]:
            found = list(rows[0]) if rows else "no row"
            raise CalibrationError(f"columns of {path}", found=found, expected="'potentiation' and 'depression'")
        numbers = [_finite(row[name], name, path) for row in rows if (row[name] or "").strip()]
        if len(numbers) < 2:
            raise CalibrationError(f"column {name!r} of {path}", found=f"{len(numbers)} values", expected="at least 2")
        rises = name == "potentiation"
        columns[name] = isotonic_regression(numbers, increasing=rises)
        if (columns[name][-1] > columns[name][0]) != rises or columns[name][0] == columns[name][-1]:
            raise CalibrationError(
                f"column {name!r} of {path}",
                found=f"from {numbers[0]:g} to {numbers[-1]:g}",
                expected="values that rise" if rises else "values that fall",
            )
    low = min(column.min() for column in columns.values())
    span = max(column.max() for column in columns.values()) - low
    up, down = ((columns[name] - low) / span for name in ("potentiation", "depression"))
    return SynapseDevice(
        Measured(up.clip(0, 1).tolist()),
        Measured((1 - down).clip(0, 1).tolist()),
        device_variation,
        cycle_variation,
        stuck,
    )


def _finite(text: str, name: str, path: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise NonFiniteError(f"column {name!r} of {path} holds {text!r}", expected="a finite number")
    return value


def _check(pulses: int, beta: float) -> None:
    if pulses < 1:
        raise HyperparameterError("pulses", found=pulses, expected=">= 1")
    if not 0 <= beta < math.inf:
        raise HyperparameterError("beta", found=beta, expected="a number >= 0")
