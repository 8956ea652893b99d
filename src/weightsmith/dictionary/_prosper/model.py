"""What a model is to truncated EM: its parameters and the steps that differ from model to model.

Legend: ``N`` points, ``D`` features, ``H`` components, ``C`` candidates, ``K`` states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.dictionary._prosper.schedule import Points, Settings
from weightsmith.dictionary._prosper.start import Moments
from weightsmith.dictionary._prosper.states import States

__all__ = ["Expectation", "Model", "Parameters", "Sums"]

PI_RANGE = (1e-5, 1 - 1e-5)
"""Where the probability of a unit is kept."""

Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Parameters:
    """What a model learns.

    Attributes
    ----------
    components_HD : Tensor of shape (components, features)
        One atom a row.
    pi : Tensor
        The prior of the units; its shape depends on the model.
    sigma : Tensor
        Standard deviation of the noise.
    """

    components_HD: Float[Tensor, "components features"]
    pi: Float[Tensor, "*prior"]
    sigma: Float[Tensor, "*noise"]


P = TypeVar("P", bound=Parameters)


class Expectation(NamedTuple):
    """The E-step of some points."""

    data_ND: Float[Tensor, "points features"]
    candidates_NC: Int[Tensor, "points candidates"]
    q_NK: Float[Tensor, "points states"]
    evidence_N: Float[Tensor, "points"]
    """Log of the sum over the states of the tempered joint."""
    likelihood_N: Float[Tensor, "points"]
    """The same at temperature 1, up to a constant of the parameters."""


class Model(ABC, Generic[P]):
    """The steps a model adds; one that changes another step says so in its own file."""

    n_components: int
    device: str
    _schedule: ClassVar[Mapping[str, Points]]
    """What the estimator's ``schedule="auto"`` is."""

    @abstractmethod
    def _start(self, moments: Moments, generator: torch.Generator) -> P:
        """The parameters of the first step."""

    @abstractmethod
    def _joint(
        self, data_ND: Float[Tensor, "points features"], parameters: P, states: States, temperature: float
    ) -> tuple[Int[Tensor, "points candidates"], Float[Tensor, "points states"]]:
        """The components that fit every point best, and the log-joint of its states without the constant."""

    @abstractmethod
    def _log_constant(self, parameters: P) -> Tensor:
        """What the log-joint leaves out."""

    @abstractmethod
    def _sums(self, block: Expectation, parameters: P, states: States, temperature: float) -> Sums:
        """What the M-step needs of some points: sums over them, ``usage`` of every component among them."""

    @abstractmethod
    def _maximise(self, sums: Sums, n_used: float, parameters: P, states: States) -> P:
        """The parameters that maximise the expected log-joint."""

    @abstractmethod
    def _draw(self, parameters: P, n_samples: int, generator: torch.Generator) -> Float[Tensor, "points components"]:
        """Codes drawn from the prior."""

    @abstractmethod
    def _superpose(
        self, codes_NH: Float[Tensor, "points components"], parameters: P
    ) -> Float[Tensor, "points features"]:
        """What the units give together."""

    @abstractmethod
    def _activity(self, parameters: P) -> float:
        """Probability that a unit is active."""

    def _truncation(self, n_candidates: int, max_active: int) -> States:
        return States(self.n_components, n_candidates, max_active, self._unit_values(), self.device)

    def _unit_values(self) -> tuple[float, ...]:
        """The non-zero values of a unit."""
        return (1.0,)

    def _temper(
        self, joint_NK: Float[Tensor, "points states"], now: Settings, parameters: P, states: States
    ) -> Float[Tensor, "points states"]:
        """The log-joint at the step's temperature, in place."""
        return joint_NK.div_(now.temperature)

    def _floored(self, parameters: P, sigma_floor: float) -> P:
        """The parameters within their ranges."""
        low, high = PI_RANGE
        return replace(
            parameters, pi=parameters.pi.clamp(low, high), sigma=parameters.sigma.abs().clamp(min=sigma_floor)
        )

    def _revived(self, parameters: P, component: int, row_D: Float[Tensor, "features"]) -> P:
        """The parameters with a dead component put where a badly explained point is."""
        components_HD = parameters.components_HD.clone()
        components_HD[component] = row_D
        return replace(parameters, components_HD=components_HD)

    def _means(self, block: Expectation, parameters: P, states: States) -> Float[Tensor, "points components"]:
        return states.expected_codes(block.q_NK, block.candidates_NC)

    def _coloured(self, noise_ND: Float[Tensor, "points features"], parameters: P) -> Float[Tensor, "points features"]:
        """White noise given the model's covariance."""
        return parameters.sigma * noise_ND

    def _publish(self, parameters: P, dtype: np.dtype[Any]) -> None:
        """Set the public attributes."""
        self.components_ = parameters.components_HD.numpy().astype(dtype)
        self.pi_: Any = float(parameters.pi)
        self.sigma_: Any = float(parameters.sigma)
