"""Weights that are pairs of conductances, as a parametrization of PyTorch.

Legend: ``O`` outputs, ``I`` inputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError, UnsupportedModelError
from weightsmith.core.models import Layer, fold_parametrizations, own_weights
from weightsmith.core.training import restored_on_error
from weightsmith.quantize._synapse.devices import SynapseDevice

__all__ = [
    "ConductancePair",
    "Conductances",
    "Update",
    "analog_layers",
    "check_arrays",
    "held_by",
    "to_analog",
    "to_digital",
]

Update: TypeAlias = Literal["unidirectional", "bidirectional", "single"]

FLOOR = 0.05
"""Conductance of a weight's smaller device at the start: room for neither device to be at its end."""


class Conductances(NamedTuple):
    """The two devices of each weight, as arrays of outputs by inputs."""

    plus: Tensor
    minus: Tensor


class ConductancePair(nn.Module):
    r"""The parametrization :math:`w = s\,(g^+ - g^-)`, and the pulses that change it.

    Parameters
    ----------
    shape : sequence of int
        Shape of the weights: of outputs by anything.
    device : SynapseDevice
        What each conductance does.
    update : {"unidirectional", "bidirectional", "single"}, default: "unidirectional"
        How a request is carried out. Up potentiates :math:`g^+`, down potentiates :math:`g^-`; or up also depresses
        :math:`g^-` and down :math:`g^+`; or there is one device, beside a fixed reference of 0.5.
    weight_scale : float, default: 2.0
        :math:`s`, the largest weight.
    write_by_pulses : bool, default: False
        Program conductances by a whole number of pulses from zero, which leaves an error, instead of exactly.
    transposed : bool, default: False
        Weights are inputs by outputs.
    generator : torch.Generator, optional
        Draws the devices.

    Examples
    --------
    >>> from weightsmith.quantize import SoftBounds
    >>> device = SynapseDevice(SoftBounds(64, 4.0), SoftBounds(64, 4.0))
    >>> pair = ConductancePair((1, 2), device)
    >>> devices = Conductances(*pair.right_inverse(torch.tensor([[0.5, 0.0]])))
    >>> pair.pulse(devices, ups=torch.tensor([[1, 0]]), downs=torch.tensor([[0, 1]]))
    2
    >>> pair(*devices)
    tensor([[ 0.5871, -0.1174]])
    """

    speeds: Tensor
    stuck_at: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        device: SynapseDevice,
        update: Update = "unidirectional",
        *,
        weight_scale: float = 2.0,
        write_by_pulses: bool = False,
        transposed: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_arrays(update, weight_scale)
        self.device, self.update, self.weight_scale = device, update, weight_scale
        self.write_by_pulses, self.shape, self.transposed = write_by_pulses, tuple(shape), transposed
        rows, columns = shape[0], math.prod(shape[1:])
        array = (columns, rows) if transposed else (rows, columns)
        # steps of g+ up, g+ down, g- up, g- down; one number where all devices are alike
        varied = bool(device.device_variation or device.stuck)
        speeds = device.draw_speeds((4, *array), generator) if varied else torch.ones(4, 1, 1)
        stuck_at = torch.full((2, *array) if device.stuck else (2, 1, 1), -1.0)  # no conductance: not stuck
        if device.stuck:
            stuck = torch.rand(2, *array, generator=generator) < device.stuck
            stuck_at[stuck] = torch.rand(int(stuck.sum()), generator=generator)
            speeds.view(2, 2, *array)[stuck[:, None].expand(2, 2, *array)] = 0.0
        self.register_buffer("speeds", speeds)
        self.register_buffer("stuck_at", stuck_at)
        self.dtype, self.trains = torch.float32, True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConductancePair:
        self.dtype = fn(torch.zeros((), dtype=self.dtype)).dtype  # as `.to(dtype)` changes the model
        return super()._apply(fn, recurse)

    def forward(self, plus: Float[Tensor, "out in"], minus: Float[Tensor, "out in"]) -> Float[Tensor, "..."]:
        """Return the weights in their own shape."""
        if plus.element_size() < 4:
            raise UnsupportedModelError(
                "conductances",
                found=str(plus.dtype),
                expected="torch.float32, in which small pulses are not lost",
                do="Call model.float() first; convert it after to_digital.",
            )
        weight_OI = (self.weight_scale * (plus - minus)).to(self.dtype)
        return weight_OI.T if self.transposed else weight_OI.view(self.shape)

    def right_inverse(self, weight: Float[Tensor, "..."]) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out in"]]:
        """Program the weights into conductances, in float32; weights beyond the range are cut off."""
        self.dtype = weight.dtype
        share = (weight.T if self.transposed else weight.flatten(1)).detach().float() / self.weight_scale
        if self.update == "unidirectional":
            targets = FLOOR + share.clamp_min(0), FLOOR + (-share).clamp_min(0)
        elif self.update == "bidirectional":
            targets = 0.5 + share / 2, 0.5 - share / 2
        else:
            targets = 0.5 + share, torch.full_like(share, 0.5)
        plus, minus = (self._written(target.clamp(0, 1), place) for place, target in enumerate(targets))
        return plus, minus

    @property
    def limit(self) -> float:
        """The largest weight that can be programmed."""
        share = {"unidirectional": 1 - FLOOR, "bidirectional": 1.0, "single": 0.5}
        return self.weight_scale * share[self.update]

    @torch.no_grad()
    def pulse(
        self,
        devices: Conductances,
        ups: Tensor,
        downs: Tensor,
        *,
        rows: Tensor | slice = slice(None),
        generator: torch.Generator | None = None,
    ) -> int:
        """Carry out requests in place and return the number of pulses.

        Parameters
        ----------
        devices : Conductances
            Changed in place.
        ups, downs : Tensor
            How many times each weight is to rise and to fall. Of both, ups come first.
        rows : Tensor or slice, default: all
            The outputs that ``ups`` and ``downs`` are for.
        generator : torch.Generator, optional
            Draws the variation between pulses.
        """
        plus, minus = devices

        def move(g: Tensor, place: int, counts: Tensor, *, up: bool) -> Tensor:
            speeds = self.speeds[place]
            speed: Tensor = speeds if speeds.shape[0] == 1 else speeds[rows]
            if self.device.cycle_variation:
                noise = torch.randn(counts.shape, generator=generator).to(g.device)
                speed = speed * (1 + self.device.cycle_variation * noise / counts.clamp_min(1).sqrt())
            moved = (self.device.potentiate if up else self.device.depress)(g, counts, speed)
            return torch.where(counts > 0, moved, g)

        pulses = int((ups.sum() + downs.sum()).item())
        if self.update == "unidirectional":
            plus[rows] = move(plus[rows], 0, ups, up=True)
            minus[rows] = move(minus[rows], 2, downs, up=True)
            return pulses
        plus[rows] = move(move(plus[rows], 0, ups, up=True), 1, downs, up=False)
        if self.update == "single":
            return pulses
        minus[rows] = move(move(minus[rows], 3, ups, up=False), 2, downs, up=True)
        return 2 * pulses

    @torch.no_grad()
    def refresh(self, devices: Conductances, at: float, *, rows: Tensor | slice = slice(None)) -> int:
        """Erase pairs of which one device is beyond ``at`` and program their difference; return how many."""
        if self.update != "unidirectional":
            return 0
        plus, minus = devices.plus[rows], devices.minus[rows]
        high, low = torch.maximum(plus, minus), torch.minimum(plus, minus)
        full = (high > at) & (low > 0)  # with one device at zero there is nothing to gain
        if self.device.stuck:
            full &= (self.stuck_at < 0).all(0)[rows]
        count = int(full.sum())
        if count:
            difference = plus - minus
            new = (self._written(d.clamp_min(0), place, rows) for place, d in enumerate((difference, -difference)))
            for whole, old, value in zip(devices, (plus, minus), new, strict=True):
                whole[rows] = torch.where(full, value, old)
        return count

    def _written(self, target: Tensor, place: int, rows: Tensor | slice = slice(None)) -> Tensor:
        """What programming gives: the target, the nearest number of pulses, or where a device is stuck."""
        if self.write_by_pulses:
            speeds = self.speeds[2 * place]
            counts = self.device.potentiation.pulses_to(target).round()
            target = self.device.potentiate(
                torch.zeros_like(target), counts, speeds if len(speeds) == 1 else speeds[rows]
            )
        if not self.device.stuck:
            return target
        stuck_at = self.stuck_at[place][rows]
        return torch.where(stuck_at < 0, target, stuck_at)

    def saturated(self, devices: Conductances) -> float:
        """The share of conductances within 1 % of an end that pulses lead to."""
        used = devices if self.update != "single" else (devices.plus,)
        full = [g > 0.99 if self.update == "unidirectional" else (g > 0.99) | (g < 0.01) for g in used]
        return float(torch.stack(full).float().mean())

    def extra_repr(self) -> str:
        """Say how weights change."""
        return f"{self.update}, weight_scale={self.weight_scale:g}"


def check_arrays(update: Update, weight_scale: float) -> None:
    """Refuse what no array can be made with."""
    if not 0 < weight_scale < math.inf:
        raise HyperparameterError("weight_scale", found=weight_scale, expected="a positive number")
    check_choice("update", update, Update)


def to_analog(
    model: nn.Module,
    device: SynapseDevice,
    *,
    update: Update = "unidirectional",
    weight_scale: float = 2.0,
    write_by_pulses: bool = False,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> list[Layer]:
    """Program the weights of linear and convolutional layers into pairs of conductances; biases and norms stay plain.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    device : SynapseDevice
        What the conductances are.
    update : {"unidirectional", "bidirectional", "single"}, default: "unidirectional"
        How weights will change, see :class:`PulsedOptimizer`.
    weight_scale : float, default: 2.0
        Weight of the largest difference of two conductances.
    write_by_pulses : bool, default: False
        Program by a whole number of pulses instead of exactly.
    include, exclude : str or sequence of str
        Patterns on the layers' paths.
    generator : torch.Generator, optional
        Draws the devices.

    Returns
    -------
    list of Layer
        The layers whose weights are conductances now.

    Raises
    ------
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If a weight is NaN or infinite.
    UnsupportedModelError
        If a weight is parametrized already or not of floating point, or all are tied.

    Warns
    -----
    UserWarning
        If weights beyond the range are cut off, or layers are left out since their weight is tied.

    References
    ----------
    Lim et al., arXiv 1707.06381.

    Examples
    --------
    >>> from weightsmith.quantize import SoftBounds
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(0, 1), nn.Linear(8, 2))
    >>> x, before = torch.ones(1, 4), model(torch.ones(1, 4))
    >>> [layer.name for layer in to_analog(model, SynapseDevice(SoftBounds(64), SoftBounds(64)))]
    ['0', '2']
    >>> torch.allclose(model(x), before, atol=1e-6)
    True
    """
    check_arrays(update, weight_scale)
    layers, tied = own_weights(model, include, exclude)
    if not layers:
        raise UnsupportedModelError("no weight is of one layer alone", found=f"tied weights of {tied[:4]}")
    if tied:
        warnings.warn(f"layers with tied weights stay plain: {tied[:4]}", stacklevel=2)
    options: dict[str, Any] = {"weight_scale": weight_scale, "write_by_pulses": write_by_pulses}
    pairs = [
        ConductancePair(
            layer.weight.shape,
            device,
            update,
            **options,
            transposed=isinstance(layer.module, Conv1D),
            generator=generator,
        )
        for layer in layers
    ]
    beyond = sum(
        int((layer.weight.detach().abs() > pair.limit).sum()) for layer, pair in zip(layers, pairs, strict=True)
    )
    if beyond:
        warnings.warn(
            f"{beyond} weights are beyond {pairs[0].limit:g} and were cut off: raise weight_scale", stacklevel=2
        )
    with restored_on_error(model):
        for layer, pair in zip(layers, pairs, strict=True):
            pair.trains = layer.weight.requires_grad
            parametrize.register_parametrization(layer.module, "weight", pair.to(layer.weight.device))
            for conductances in held_by(layer.module):
                conductances.requires_grad_(False)
    return layers


def to_digital(model: nn.Module) -> None:
    """Read the conductances out: every weight is a plain parameter again.

    Raises
    ------
    UnsupportedModelError
        If no weight is a pair of conductances.
    """
    found = analog_layers(model)
    if not found:
        raise UnsupportedModelError("no weight is a pair of conductances", do="Call to_analog(model, device) first.")
    with restored_on_error(model):
        fold_parametrizations(model, ConductancePair)
        for _, module, pair in found:
            module.weight.requires_grad_(pair.trains)  # conductances have no gradients


def analog_layers(model: nn.Module) -> list[tuple[str, nn.Module, ConductancePair]]:
    """Return the path, the module and the pair of every layer whose weight is a pair of conductances."""
    return [
        (name, module, module.parametrizations["weight"][0])
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight")
        and isinstance(module.parametrizations["weight"][0], ConductancePair)
    ]


def held_by(module: nn.Module) -> Conductances:
    """The conductances of a layer's weight."""
    originals: Any = module.parametrizations["weight"]  # type: ignore[index]
    return Conductances(originals.original0, originals.original1)
