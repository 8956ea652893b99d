r"""Confidence-guided annealing, and what it is measured by and compared with.

A weight is trainable as long as it is near a threshold between two levels: with :math:`z = w / s - 1/2`

.. math:: \exists\, i \in \{-n, \ldots, n - 2\}: \quad |z - i - \tfrac12| \le r

All others are frozen: the optimizer neither moves nor decays them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightsmith.core.errors import HyperparameterError, UnsupportedModelError
from weightsmith.core.sharding import whole
from weightsmith.quantize._ofq.attention import QuantizedAttention
from weightsmith.quantize._ofq.weights import LSQWeight, QuantizedWeight, StatsQ

__all__ = [
    "ConfidenceGuidedAnnealing",
    "IterativeFreezing",
    "Oscillations",
    "check_boundary",
    "fake_quantized",
]

MOMENTUM = 0.01
"""Of the running mean of oscillations."""


class ConfidenceGuidedAnnealing:
    """Freeze the weights that are not near a threshold, in a block of training with any optimizer.

    Gradients are set to zero where they are computed, so before they are clipped. Values are restored after each step
    of the optimizer, whose momentum and weight decay would move them.

    Parameters
    ----------
    model : nn.Module
        With weights under :class:`StatsQ`.
    optimizer : torch.optim.Optimizer
        Of its parameters.
    boundary : float, default: 0.005
        Distance to a threshold in steps up to which a weight is trainable, in [0, 0.5]; 0 freezes all.
    joint : bool, default: False
        Also take the gradient of joint query-key weights away from the thresholds. The reference leaves them alone.

    Raises
    ------
    HyperparameterError
        If ``boundary`` is out of range.
    UnsupportedModelError
        If there is no such weight.

    References
    ----------
    Liu, Liu, Cheng 2023, arXiv 2302.02210.

    Examples
    --------
    >>> model = nn.Linear(4, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.1, 0.0001, 0.3, -0.2]]))
    >>> _ = parametrize.register_parametrization(model, "weight", StatsQ(2))
    >>> latent = model.parametrizations.weight.original
    >>> optimizer, before = torch.optim.AdamW(model.parameters(), weight_decay=0.1), latent.detach().clone()
    >>> with ConfidenceGuidedAnnealing(model, optimizer):
    ...     model(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> latent == before
    tensor([[ True, False,  True,  True]])
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, boundary: float = 0.005, *, joint: bool = False
    ) -> None:
        check_boundary(boundary)
        held = [(latent, kind) for _, latent, kind in fake_quantized(model) if isinstance(kind, StatsQ)]
        self._weights, self._kinds = [latent for latent, _ in held], [kind for _, kind in held]
        if not self._weights:
            raise UnsupportedModelError(
                "annealing of a model without weights under StatsQ", do="Call prepare_qat(model) first."
            )
        self.optimizer, self.boundary = optimizer, boundary
        self._attentions = (
            [m for m in model.modules() if isinstance(m, QuantizedAttention) and m.joint] if joint else []
        )
        self._masks: dict[int, tuple[int, Tensor]] = {}
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []

    def __enter__(self) -> ConfidenceGuidedAnnealing:
        self._hooks: list[Any] = [
            weight.register_hook(partial(self._masked, place))
            for place, weight in enumerate(self._weights)
            if weight.requires_grad
        ]
        self._hooks.append(self.optimizer.register_step_pre_hook(self._hold))
        self._hooks.append(self.optimizer.register_step_post_hook(self._put_back))
        for module in self._attentions:
            module.annealed = partial(trainable, cast(StatsQ, module.joint), boundary=self.boundary)
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self._attentions:
            module.annealed = None

    def share(self) -> float:
        """The share of weights that are trainable now."""
        masks = [self._mask(place) for place in range(len(self._weights))]
        return sum(map(_count, masks)) / max(sum(mask.numel() for mask in masks), 1)

    def _mask(self, place: int) -> Tensor:
        """Which elements of a weight are trainable; computed once per step."""
        weight = self._weights[place]
        held = self._masks.get(place)
        if held is None or held[0] != weight._version:
            mask = trainable(self._kinds[place], weight.detach(), boundary=self.boundary)
            held = self._masks[place] = (weight._version, mask)
        return held[1]

    def _masked(self, place: int, gradient: Tensor) -> Tensor:
        return gradient * self._mask(place)

    @torch.no_grad()
    def _hold(self, *_: object) -> None:
        self._held = [
            (weight, self._mask(place), weight.detach().clone())
            for place, weight in enumerate(self._weights)
            if weight.grad is not None
        ]

    @torch.no_grad()
    def _put_back(self, *_: object) -> None:
        for weight, mask, old in self._held:
            weight.copy_(torch.where(mask, weight, old))
        self._held = []


def check_boundary(boundary: float) -> None:
    """Refuse a boundary that is not a share of a step.

    Raises
    ------
    HyperparameterError
        If it is not in [0, 0.5].
    """
    if not 0 <= boundary <= 0.5:
        raise HyperparameterError("boundary", found=boundary, expected="a number in [0, 0.5]")


@torch.no_grad()
def trainable(kind: QuantizedWeight, weight: Float[Tensor, "..."], *, boundary: float) -> Bool[Tensor, "..."]:
    """Which elements of a weight are near a threshold between two levels.

    Examples
    --------
    >>> trainable(StatsQ(2), torch.tensor([[0.1, 0.0001, 0.3, -0.2]]), boundary=0.005)
    tensor([[False,  True, False, False]])
    """
    rows = kind.rows(weight)
    n = kind.grid.half_levels
    z = kind.grid.positions(rows, kind.step_of(rows))
    threshold = (z - 0.5).round_().clamp_(-n, n - 2).add_(0.5)
    near = (z.sub_(threshold).abs_() <= boundary) & (boundary > 0)
    return near.T if kind.transposed else near.view(weight.shape)


def fake_quantized(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, QuantizedWeight]]:
    """Yield path, latent weight and parametrization of every fake-quantized weight."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            chain: Any = module.parametrizations["weight"]
            if isinstance(chain[0], QuantizedWeight):
                yield name, chain.original, chain[0]


class Oscillations:
    """Counts how often a weight changes its level in the direction opposite to its last change.

    Parameters
    ----------
    model : nn.Module
        With fake-quantized weights.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = parametrize.register_parametrization(model, "weight", StatsQ(2))
    >>> latent, seen = model.parametrizations.weight.original, []
    >>> _ = latent.data.copy_(torch.tensor([[-0.1, 1.0]]))
    >>> counter = Oscillations(model)
    >>> for sign in (1, -1, 1):
    ...     latent.data[0, 0] = sign * 0.1
    ...     _ = counter.update()
    ...     seen.append(counter.events[""])
    >>> seen, counter.rate("")
    ([0, 1, 2], 0.3333333333333333)
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = list(fake_quantized(model))
        self._codes = {name: _codes(kind, latent) for name, latent, kind in self._weights}
        self._direction = {name: torch.zeros_like(codes) for name, codes in self._codes.items()}
        self.events = dict.fromkeys(self._codes, 0)
        self.steps = 0

    def update(self) -> dict[str, Bool[Tensor, "out in"]]:
        """Look at the codes after a step, and return by layer which weights have turned back."""
        self.steps += 1
        turned = {}
        for name, latent, kind in self._weights:
            codes = _codes(kind, latent)
            change = (codes - self._codes[name]).sign_()
            turned[name] = change * self._direction[name] < 0
            self.events[name] += _count(turned[name])
            self._direction[name] = torch.where(change == 0, self._direction[name], change)
            self._codes[name] = codes
        return turned

    def rate(self, name: str) -> float:
        """Events of a layer per weight and step."""
        return self.events[name] / max(self.steps * self._codes[name].numel(), 1)

    def mean(self) -> float:
        """Events of all layers per weight and step."""
        weights = sum(codes.numel() for codes in self._codes.values())
        return sum(self.events.values()) / max(self.steps * weights, 1)


class IterativeFreezing:
    """Freeze weights that oscillate often to the mean of their codes (the baseline of Nagel et al.).

    Parameters
    ----------
    model : nn.Module
        With weights under :class:`LSQWeight`.
    threshold : float
        Running mean of a weight's oscillations per step beyond which it is frozen, in (0, 1).

    References
    ----------
    Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv 2203.11086.
    """

    def __init__(self, model: nn.Module, threshold: float) -> None:
        self.threshold = threshold
        self._weights = [(n, w, k) for n, w, k in fake_quantized(model) if isinstance(k, LSQWeight)]
        self._counter = Oscillations(model)
        self._rate = {name: torch.zeros_like(kind.rows(w.detach())) for name, w, kind in self._weights}
        self._mean = {name: kind.codes(w) for name, w, kind in self._weights}
        self._frozen = {name: torch.zeros_like(rate, dtype=torch.bool) for name, rate in self._rate.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Look at the codes after a step, freeze, and hold what is frozen."""
        turned = self._counter.update()
        for name, weight, kind in self._weights:
            frozen, mean = self._frozen[name], self._mean[name]
            self._rate[name].lerp_(turned[name].float(), MOMENTUM)
            mean.lerp_(kind.codes(weight), MOMENTUM).copy_(torch.where(frozen, mean.round(), mean))
            frozen |= self._rate[name] > self.threshold
            rows = kind.rows(weight)
            held = mean.round() * kind.step_of(rows)
            weight.copy_(kind.like(torch.where(frozen, held, rows), weight))

    def share(self) -> float:
        """The share of weights that are frozen."""
        return sum(map(_count, self._frozen.values())) / sum(f.numel() for f in self._frozen.values())


def _count(mask: Bool[Tensor, "..."]) -> int:
    return int(whole(mask.sum()))  # of a sharded weight over all processes


def _codes(kind: QuantizedWeight, latent: Tensor) -> Tensor:
    return kind.codes(latent).to(torch.int8)
