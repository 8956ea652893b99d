"""From architecture parameters to the weights of the choices: one sampler per published search method.

A sampler is called with the parameters of one dimension, how much of the search is over (from 0 to 1) and a generator.
It returns one weight per choice; they sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions.dirichlet import _Dirichlet_backward
from torch.nn import functional

from weightsmith.core.errors import HyperparameterError

__all__ = ["DARTS", "GDAS", "SPOS", "DrNAS", "Sampler", "sparsemax"]

SMALLEST = 1e-4
"""Concentrations are not below this: samples of lower ones are NaN."""
ATTEMPTS = 10
"""How often a sample that is not finite is drawn anew."""


@runtime_checkable
class Sampler(Protocol):
    """What a sampler is."""

    learns: ClassVar[bool]
    """Whether the weights have a gradient with respect to the parameters."""

    def __call__(
        self, alpha: Float[Tensor, "choices"], progress: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "choices"]:
        """Return one weight per choice."""


def sparsemax(alpha: Float[Tensor, "choices"]) -> Float[Tensor, "choices"]:
    """Project onto the probability simplex: like softmax, but low values get exactly 0.

    Examples
    --------
    >>> sparsemax(torch.tensor([0.5, 0.1, -0.2]))
    tensor([0.7000, 0.3000, 0.0000])
    """
    sorted_C = alpha.sort(descending=True).values
    counts_C = torch.arange(1, len(alpha) + 1, device=alpha.device)
    support = int((1 + counts_C * sorted_C > sorted_C.cumsum(0)).sum())
    threshold = (sorted_C[:support].sum() - 1) / support
    return (alpha - threshold).clamp(min=0)


@dataclass(frozen=True)
class DARTS:
    """The same weights in every step: the sparsemax of the parameters (Liu, Simonyan, Yang 2019).

    Examples
    --------
    >>> DARTS()(torch.zeros(2), 0.0)
    tensor([0.5000, 0.5000])
    """

    learns: ClassVar[bool] = True

    def __call__(
        self, alpha: Float[Tensor, "choices"], progress: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "choices"]:
        """Return one weight per choice."""
        return sparsemax(alpha)


@dataclass(frozen=True)
class DrNAS:
    r"""Weights drawn from the Dirichlet distribution of concentration :math:`elu(\alpha) + 1` (Chen et al. 2021).

    Examples
    --------
    >>> weights = DrNAS()(torch.zeros(3), 0.0, torch.Generator().manual_seed(0))
    >>> round(weights.sum().item(), 6)
    1.0
    """

    learns: ClassVar[bool] = True

    def __call__(
        self, alpha: Float[Tensor, "choices"], progress: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "choices"]:
        """Return one weight per choice."""
        # drawn on the CPU, so that a seed gives the same weights on every device and in every process
        concentration_C = (functional.elu(alpha.cpu().double()) + 1).clamp(min=SMALLEST)
        weights_C: Tensor = _Dirichlet.apply(concentration_C, generator)
        return weights_C.to(alpha)


@dataclass(frozen=True)
class GDAS:
    """One choice in every step, drawn by Gumbel noise, with the gradient of the soft weights (Dong, Yang 2019).

    Parameters
    ----------
    highest, lowest : float, default: 10.0 and 0.1
        Temperature at the start and at the end of the search; it falls linearly.

    Raises
    ------
    HyperparameterError
        If they are not positive, or the temperature would rise.

    Examples
    --------
    >>> GDAS()(torch.tensor([50.0, 0.0]), 1.0, torch.Generator().manual_seed(0))
    tensor([1., 0.])
    >>> GDAS().temperature(0.0), round(GDAS().temperature(1.0), 6)
    (10.0, 0.1)
    """

    highest: float = 10.0
    lowest: float = 0.1
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.highest:
            found = f"from {self.highest} to {self.lowest}"
            raise HyperparameterError("temperature", found=found, expected="positive numbers that fall")

    def temperature(self, progress: float) -> float:
        """Return the temperature after a share of the search."""
        return self.highest - (self.highest - self.lowest) * progress

    def __call__(
        self, alpha: Float[Tensor, "choices"], progress: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "choices"]:
        """Return 1 for the choice that was drawn, 0 for the others."""
        for _ in range(ATTEMPTS):
            noise_C = -torch.empty(alpha.shape).exponential_(generator=generator).log().to(alpha)
            soft_C = ((alpha.log_softmax(0) + noise_C) / self.temperature(progress)).softmax(0)
            if bool(soft_C.isfinite().all()):
                break
        else:
            soft_C = alpha.softmax(0)
        hard_C = functional.one_hot(soft_C.argmax(), len(alpha)).to(alpha)
        # the gradient of the chosen slice alone, as if no other had been run; the softmax hands it on to all parameters
        return hard_C * (1 + soft_C - soft_C.detach())


@dataclass(frozen=True)
class SPOS:
    """One choice in every step, each as likely as the others; nothing is learned about them (Guo et al. 2020).

    Examples
    --------
    >>> SPOS()(torch.zeros(3), 0.0, torch.Generator().manual_seed(0)).sum()
    tensor(1.)
    """

    learns: ClassVar[bool] = False

    def __call__(
        self, alpha: Float[Tensor, "choices"], progress: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "choices"]:
        """Return 1 for the choice that was drawn, 0 for the others."""
        drawn = torch.randint(len(alpha), (), generator=generator)
        return functional.one_hot(drawn, len(alpha)).to(alpha)


class _Dirichlet(torch.autograd.Function):
    """A sample with the implicit gradient, as in ``torch.distributions``, and with a generator."""

    @staticmethod
    def forward(ctx: Any, concentration_C: Tensor, generator: torch.Generator | None) -> Tensor:
        for _ in range(ATTEMPTS):
            weights_C = torch._sample_dirichlet(concentration_C, generator)
            if bool(weights_C.isfinite().all()):
                break
        else:  # the limit of low concentrations: all weight on one choice
            drawn = torch.multinomial(concentration_C, 1, generator=generator)
            weights_C = functional.one_hot(drawn[0], len(concentration_C)).to(concentration_C)
        ctx.save_for_backward(weights_C, concentration_C)
        return weights_C

    @staticmethod
    def backward(ctx: Any, gradient_C: Tensor) -> tuple[Tensor, None]:
        weights_C, concentration_C = ctx.saved_tensors
        return _Dirichlet_backward(weights_C, concentration_C, gradient_C).nan_to_num(), None
