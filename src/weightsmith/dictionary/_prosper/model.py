"""What a model is to truncated EM: its hyper-parameters, its parameters, and the steps that differ between models.

Legend: ``N`` points, ``D`` features, ``H`` components, ``C`` candidates, ``K`` states, ``V`` non-zero values of a unit.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.dictionary._prosper.schedule import Points, Settings
from weightsmith.dictionary._prosper.start import Moments, Start, given
from weightsmith.dictionary._prosper.states import States, truncated_prior

__all__ = ["Expectation", "Model", "P", "Parameters", "Sums", "largest_candidates", "plain", "rescaled_pi"]

PI_RANGE = (1e-5, 1 - 1e-5)
"""Where the probability of a unit is kept."""

Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Parameters:
    """What a model learns.

    Attributes
    ----------
    components_HD : Tensor of shape (components, features)
        One atom per row.
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


@dataclass(eq=False, repr=False)
class Model(Generic[P]):
    """The hyper-parameters and the steps of a model.

    The shapes are declared here; overrides name them by the suffixes of their arguments. The steps that are not
    abstract suit units that share one prior, and noise of one variance.
    """

    n_components: int = 10
    _: KW_ONLY
    n_candidates: int | Literal["auto"] = "auto"
    max_active: int | Literal["auto"] = "auto"
    schedule: Mapping[str, Points] | Literal["auto"] | None = "auto"
    max_iter: int = 100
    tol: float = 0.0
    n_init: int = 1
    components_init: Start | None = None
    pi_init: Start | None = None
    sigma_init: Start | None = None
    random_state: int | np.random.RandomState | None = None
    device: str = "cpu"

    _schedule: ClassVar[Mapping[str, Points]]
    """What ``schedule="auto"`` is."""

    # Every model ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _start(self, moments: Moments, generator: torch.Generator) -> P:
        """The parameters of the first step."""

    @abstractmethod
    def _joint(
        self, data_ND: Float[Tensor, "points features"], parameters: P, states: States, temperature: float
    ) -> tuple[Int[Tensor, "points candidates"], Float[Tensor, "points states"]]:
        """The components that fit every point best, and the log-joint of its states without the constant."""

    @abstractmethod
    def _sums(self, block: Expectation, parameters: P, states: States, temperature: float) -> Sums:
        """What the M-step needs of some points: sums over them, ``usage`` of every component among them."""

    @abstractmethod
    def _maximize(self, sums: Sums, n_used: float, parameters: P, states: States) -> P:
        """The parameters that maximize the expected log-joint."""

    @abstractmethod
    def _superpose(
        self, codes_NH: Float[Tensor, "points components"], parameters: P
    ) -> Float[Tensor, "points features"]:
        """The noiseless points of some codes."""

    @abstractmethod
    def _draw(self, parameters: P, n_samples: int, generator: torch.Generator) -> Float[Tensor, "points components"]:
        """Codes drawn from the prior."""

    # Units and their prior --------------------------------------------------------------------------------------------

    def _unit_values(self) -> tuple[float, ...]:
        """The non-zero values of a unit."""
        return (1.0,)

    def _value_probabilities(self, parameters: P) -> Float[Tensor, "1+values"]:
        """The prior of a unit's value, of zero first."""
        return torch.stack([1 - parameters.pi, parameters.pi])

    def _activity(self, parameters: P) -> float:
        """Probability that a unit is active."""
        return 1 - float(self._value_probabilities(parameters)[0])

    def _log_odds(self, parameters: P) -> Float[Tensor, "values"]:
        """Log of the prior of every non-zero value over that of zero."""
        probabilities = self._value_probabilities(parameters)
        return (probabilities[1:] / probabilities[0]).log()

    def _log_prior(self, parameters: P, states: States) -> Float[Tensor, "states"]:
        """Log of the prior of every state over that of the state without active units."""
        return states.counts_KV @ self._log_odds(parameters)

    def _log_constant(self, parameters: P) -> Tensor:
        """What the log-joint leaves out."""
        components, features = parameters.components_HD.shape
        log_zero = components * self._value_probabilities(parameters)[0].log()
        return log_zero - features / 2 * (2 * math.pi * parameters.sigma.square()).log()

    def _temper(
        self, joint_NK: Float[Tensor, "points states"], now: Settings, parameters: P, states: States
    ) -> Float[Tensor, "points states"]:
        """The log-joint at the step's temperature, in place."""
        return joint_NK.div_(now.temperature)

    def _means(self, block: Expectation, parameters: P, states: States) -> Float[Tensor, "points components"]:
        """The posterior mean of every unit's value."""
        return states.expected_codes(block.q_NK, block.candidates_NC)

    # Parameters -------------------------------------------------------------------------------------------------------

    def _given(self, name: str, default: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
        """The start value that the user gives, or the default of the same shape."""
        value = getattr(self, name)
        return default if value is None else given(name, value, tuple(default.shape), low, high)

    def _components_start(self, moments: Moments, generator: torch.Generator) -> Float[Tensor, "components features"]:
        shape = (self.n_components, len(moments.mean_D))
        if self.components_init is not None:
            return given("components_init", self.components_init, shape)
        # The reference's start; the mean alone would leave all components alike.
        return moments.mean_D + moments.scale / 4 * torch.randn(shape, dtype=torch.float64, generator=generator)

    def _pi_start(self, generator: torch.Generator) -> Tensor:
        return self._given("pi_init", torch.tensor(1 / max(self.n_components, 2), dtype=torch.float64), 0, 1)

    def _sigma_start(self, moments: Moments) -> Tensor:
        return self._given("sigma_init", torch.tensor(moments.scale, dtype=torch.float64), 0)

    def _pi_in_range(self, pi: Tensor) -> Tensor:
        return pi.clamp(*PI_RANGE)

    def _floored(self, parameters: P, sigma_floor: float) -> P:
        """The parameters within their ranges."""
        sigma = parameters.sigma.abs().clamp(min=sigma_floor)
        return replace(parameters, pi=self._pi_in_range(parameters.pi), sigma=sigma)

    def _revived(self, parameters: P, component: int, row_D: Float[Tensor, "features"]) -> P:
        """The parameters with a dead component put where a badly explained point is."""
        components_HD = parameters.components_HD.clone()
        components_HD[component] = row_D
        return replace(parameters, components_HD=components_HD)

    def _colored(self, noise_ND: Float[Tensor, "points features"], parameters: P) -> Float[Tensor, "points features"]:
        """White noise given the model's covariance."""
        return parameters.sigma * noise_ND

    def _publish(self, parameters: P, dtype: np.dtype[Any]) -> None:
        """Set the public attributes."""
        self.components_ = parameters.components_HD.numpy().astype(dtype)
        self.pi_: Any = plain(parameters.pi)
        self.sigma_: Any = plain(parameters.sigma)


def plain(tensor: Tensor) -> float | np.ndarray:
    """Return one number as a float, several as an array."""
    return tensor.numpy() if tensor.ndim else float(tensor)


def rescaled_pi(active: Tensor, n_used: float, pi: float, states: States) -> Tensor:
    r"""The activity that explains the mean activity of points with at most ``max_active`` units active.

    .. math:: \pi' = \frac{\pi H A}{B} \cdot \frac{1}{H N} \sum_n \langle |s| \rangle_n

    with the truncated prior's mass :math:`A` and mean activity :math:`B` at the old :math:`\pi`. The factor is 1 where
    all sizes of state are kept.

    Examples
    --------
    >>> round(float(rescaled_pi(torch.tensor(30.0), 10, 0.3, States(4, 4, 4))), 6)
    0.75
    """
    mass, mean_active = truncated_prior(states.n_components, states.max_active, pi)
    return active * pi * mass / (mean_active * n_used)


def largest_candidates(
    score_NH: Float[Tensor, "points components"], n_candidates: int
) -> Int[Tensor, "points candidates"]:
    """The components with the largest scores, by number."""
    return score_NH.topk(n_candidates, 1, sorted=False).indices.sort(1).values
