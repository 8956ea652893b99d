r"""Gaussian sparse coding: spike and slab, units that are off or have a Gaussian value, added up.

.. math:: y = \sum_h s_h z_h W_h + \varepsilon, \qquad s_h \sim \operatorname{Bernoulli}(\pi_h), \quad
          z \sim N(\mu, \Psi), \quad \varepsilon \sim N(0, \Sigma)

Legend: ``N`` points, ``D`` features, ``H`` components, ``C`` candidates, ``K`` states, ``J`` sets of one size.

References
----------
Sheikh, Shelton, Lücke, "A Truncated EM Approach for Spike-and-Slab Sparse Coding", JMLR 15, 2014; in the library of
arXiv 1908.06843.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.choices import check_choice
from weightsmith.dictionary._prosper.base import TruncatedEM
from weightsmith.dictionary._prosper.linear import solve_components
from weightsmith.dictionary._prosper.model import Expectation, Parameters, Sums, largest_candidates, plain
from weightsmith.dictionary._prosper.schedule import Points, Settings, annealed
from weightsmith.dictionary._prosper.slab import Lower, SlabStates, product, slab_states
from weightsmith.dictionary._prosper.start import Moments, Start
from weightsmith.dictionary._prosper.states import States

__all__ = ["GSC", "SlabParameters"]

Slab = Literal["diagonal", "full"]
Noise = Literal["scalar", "diagonal", "full"]

PI_RANGE = (5e-5, 1 - 5e-5)
"""Where the probability of a unit is kept."""

LEAST_VARIANCE = 1e-10
"""Of the slab."""


@dataclass(frozen=True)
class SlabParameters(Parameters):
    """Parameters of the spike-and-slab model; ``sigma`` is a Cholesky factor where the noise's covariance is full.

    Attributes
    ----------
    mean_H : Tensor of shape (components,)
        Of the slab.
    covariance_HH : Tensor of shape (components, components)
        Of the slab; diagonal where the model says so.
    """

    mean_H: Float[Tensor, "components"]
    covariance_HH: Float[Tensor, "components components"]


@dataclass(eq=False, repr=False)
class GSC(TruncatedEM[SlabParameters]):
    """Dictionary, sparsity, amplitudes and noise for data that add up components of any strength.

    It has local optima: take several ``n_init``.

    Parameters
    ----------
    n_components, n_candidates, max_active, max_iter, tol, n_init
        As for :class:`~weightsmith.dictionary.BSC`.
    schedule : mapping, "auto" or None, default: "auto"
        As for :class:`~weightsmith.dictionary.BSC`; "auto" lowers the temperature from 4 to 1 at 80 % of the steps.
    slab : {"diagonal", "full"}, default: "diagonal"
        Covariance of the amplitudes.
    noise : {"scalar", "diagonal", "full"}, default: "scalar"
        Covariance of the noise.
    components_init, random_state, device
        As for :class:`~weightsmith.dictionary.BSC`.
    pi_init : array-like of shape (n_components,), optional
        Between 0 and 1; drawn by default.
    sigma_init : float, optional
        > 0; by default from the mean of the features' variances.
    slab_mean_init : array-like of shape (n_components,), optional
        Drawn by default.
    slab_variance_init : array-like of shape (n_components,), optional
        > 0; drawn by default.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        One atom per row.
    pi_ : ndarray of shape (n_components,)
        Probability that a unit is on.
    sigma_ : float, or ndarray of shape (n_features,)
        Standard deviation of the noise; an array unless it is scalar.
    noise_covariance_ : float, or ndarray of shape (n_features,) or (n_features, n_features)
        As ``noise`` says.
    slab_mean_ : ndarray of shape (n_components,)
        Mean amplitude of a unit that is on.
    slab_covariance_ : ndarray of shape (n_components, n_components)
        Of the amplitudes.
    lower_bound_curve_, lower_bound_, n_iter_, n_features_in_
        As for :class:`~weightsmith.dictionary.BSC`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> codes = (rng.random((500, 2)) < 0.3) * rng.normal(3, 1, (500, 2))
    >>> X = codes @ np.array([[1.0, 0, 1, 1], [0, 1, 1, -1]]) + rng.normal(0, 0.3, (500, 4))
    >>> model = GSC(2, max_iter=50, n_init=3, random_state=0).fit(X)
    >>> model.pi_.round(1).tolist(), round(model.sigma_, 1)
    ([0.3, 0.3], 0.3)
    """

    _schedule: ClassVar[Mapping[str, Points]] = annealed(4.0, 0.8)

    _: KW_ONLY
    slab: Slab = "diagonal"
    noise: Noise = "scalar"
    slab_mean_init: Start | None = None
    slab_variance_init: Start | None = None

    def _start(self, moments: Moments, generator: torch.Generator) -> SlabParameters:
        check_choice("slab", self.slab, Slab)
        check_choice("noise", self.noise, Noise)
        count, features = self.n_components, len(moments.mean_D)
        components_HD = self._components_start(moments, generator)
        draw_2H = torch.rand(2, count, dtype=torch.float64, generator=generator)
        mean_H = torch.randn(count, dtype=torch.float64, generator=generator)
        sigma = self._given(
            "sigma_init", (1.001 * moments.variance_D.mean()).clamp(min=moments.sigma_floor**2).sqrt(), 0
        )
        if self.noise != "scalar":
            sigma = sigma.expand(features).clone()
        if self.noise == "full":
            sigma = sigma.diag()
        return SlabParameters(
            components_HD,
            pi=self._given("pi_init", (0.95 * draw_2H[0]).clamp(min=0.05), 0, 1),
            sigma=sigma,
            mean_H=self._given("slab_mean_init", mean_H),
            covariance_HH=self._given("slab_variance_init", (2 * draw_2H[1]).clamp(min=0.05), 0).diag(),
        )

    def _floored(self, parameters: SlabParameters, sigma_floor: float) -> SlabParameters:
        sigma = parameters.sigma
        if self.noise == "full":
            # Its factor has no negative or vanishing diagonal, whatever the M-step or the schedule's noise gave.
            floor = sigma.diagonal().abs().clamp(min=sigma_floor)
            sigma = sigma.tril(-1) + floor.diag()
            if float(torch.linalg.svdvals(sigma)[-1]) < sigma_floor:
                sigma = _factor(sigma @ sigma.T, sigma_floor**2)
        else:
            sigma = sigma.abs().clamp(min=sigma_floor)
        return replace(parameters, pi=parameters.pi.clamp(*PI_RANGE), sigma=sigma)

    def _n_used(self, n_all: float, parameters: SlabParameters, states: States, now: Settings) -> int:
        count = super()._n_used(n_all, parameters, states, now)
        if self.noise == "full":
            # The covariance of fewer points is singular, and the points left out then count as impossible.
            count = max(count, min(int(n_all), parameters.components_HD.shape[1] + 1))
        return count

    def _revived(self, parameters: SlabParameters, component: int, row_D: Tensor) -> SlabParameters:
        mean_H, covariance_HH = parameters.mean_H.clone(), parameters.covariance_HH.clone()
        mean_H[component] = 1
        covariance_HH[component], covariance_HH[:, component] = 0, 0
        covariance_HH[component, component] = 1
        parameters = super()._revived(parameters, component, row_D)
        return replace(parameters, mean_H=mean_H, covariance_HH=covariance_HH)

    def _activity(self, parameters: SlabParameters) -> float:
        return float(parameters.pi.mean())

    def _log_constant(self, parameters: SlabParameters) -> Tensor:
        features = parameters.components_HD.shape[1]
        scale = parameters.sigma.diagonal() if self.noise == "full" else parameters.sigma.expand(features)
        return (1 - parameters.pi).log().sum() - features / 2 * math.log(2 * math.pi) - scale.log().sum()

    def _white(self, rows_ND: Tensor, parameters: SlabParameters) -> Tensor:
        if self.noise == "full":
            return torch.linalg.solve_triangular(parameters.sigma, rows_ND.T, upper=False).T
        return rows_ND / parameters.sigma

    def _colored(self, noise_ND: Tensor, parameters: SlabParameters) -> Tensor:
        return noise_ND @ parameters.sigma.T if self.noise == "full" else noise_ND * parameters.sigma

    def _slab_states(
        self, data_ND: Tensor, candidates_NC: Tensor, parameters: SlabParameters, states: States
    ) -> Iterator[SlabStates]:
        return slab_states(
            self._white(data_ND, parameters),
            self._white(parameters.components_HD, parameters),
            parameters.mean_H,
            parameters.covariance_HH,
            candidates_NC,
            states,
        )

    def _candidates(self, data_ND: Tensor, parameters: SlabParameters, n_candidates: int) -> Tensor:
        none = torch.empty(len(data_ND), 0, dtype=torch.long, device=data_ND.device)
        alone = States(len(parameters.mean_H), 1, 1, device=self.device)
        (single,) = self._slab_states(data_ND, none, parameters, alone)
        return largest_candidates(-single.quadratic_JN.T, n_candidates)

    def _joint(
        self, data_ND: Tensor, parameters: SlabParameters, states: States, temperature: float
    ) -> tuple[Tensor, Tensor]:
        candidates_NC = self._candidates(data_ND, parameters, states.n_candidates)
        zero_1N = self._white(data_ND, parameters).square().sum(1)[None]
        groups = self._slab_states(data_ND, candidates_NC, parameters, states)
        quadratic_KN = torch.cat([zero_1N, *(group.quadratic_JN for group in groups)])
        odds_H = parameters.pi.logit()
        joint_NK = -0.5 * quadratic_KN.T  # the paper's code has no half: it squares the likelihood against the prior
        joint_NK[:, 1 : states.first_set] += odds_H
        joint_NK[:, states.first_set :] += odds_H[candidates_NC] @ states.sets_SC.T
        return candidates_NC, joint_NK

    def _means(self, block: Expectation, parameters: SlabParameters, states: States) -> Tensor:
        code_HN = torch.zeros(len(parameters.mean_H), len(block.data_ND), dtype=torch.float64, device=self.device)
        for group, q_JN in self._weighted(block, parameters, states):
            for component, mean, shift in zip(group.active, group.mean, group.shift, strict=True):
                code_HN.scatter_add_(0, component.expand_as(q_JN), q_JN * (mean + shift))
        return code_HN.T

    def _weighted(
        self, block: Expectation, parameters: SlabParameters, states: States
    ) -> Iterator[tuple[SlabStates, Tensor]]:
        """The states by their size, each with its probabilities."""
        start = 1
        for group in self._slab_states(block.data_ND, block.candidates_NC, parameters, states):
            stop = start + len(group.quadratic_JN)
            yield group, block.q_NK[:, start:stop].T
            start = stop

    def _sums(self, block: Expectation, parameters: SlabParameters, states: States, temperature: float) -> Sums:
        components = states.n_components
        code_HN = torch.zeros(components, len(block.data_ND), dtype=torch.float64, device=block.q_NK.device)
        moment_HH, second_HH = code_HN.new_zeros(2, components, components)
        first_H = code_HN.new_zeros(components)
        for group, q_JN in self._weighted(block, parameters, states):
            value = [mean + shift for mean, shift in zip(group.mean, group.shift, strict=True)]
            for component, mean in zip(group.active, value, strict=True):
                code_HN.scatter_add_(0, component.expand_as(q_JN), q_JN * mean)
            _add_pairs(moment_HH, group.active, q_JN, _plus_outer(group.covariance, value))
            if self.slab == "full":
                pull = product(group.prior_precision, group.shift)
                for component, mean in zip(group.active, pull, strict=True):
                    _add(first_H, component, q_JN * mean)
                _add_pairs(second_HH, group.active, q_JN, _missing(group, pull))
        used_N = block.q_NK.sum(1)
        sums = {
            "usage": states.expected_codes(block.q_NK, block.candidates_NC).sum(0),
            "cross_HD": code_HN @ block.data_ND,
            "code_H": code_HN.sum(1),
            "moment_HH": moment_HH,
        }
        if self.slab == "full":
            sums |= {"first_H": first_H, "second_HH": second_HH}
        if self.noise == "full":
            return sums | {"square": (used_N[:, None] * block.data_ND).T @ block.data_ND}
        return sums | {"square": used_N @ block.data_ND.square()}

    def _maximize(self, sums: Sums, n_used: float, parameters: SlabParameters, states: States) -> SlabParameters:
        components_HD = solve_components(parameters.components_HD, sums["cross_HD"], sums["moment_HH"])
        mean_H, covariance_HH = self._new_slab(sums, n_used, parameters)
        return replace(
            parameters,
            components_HD=components_HD,
            pi=sums["usage"] / n_used,
            sigma=self._new_sigma(sums, n_used, components_HD),
            mean_H=mean_H,
            covariance_HH=covariance_HH,
        )

    def _new_sigma(self, sums: Sums, n_used: float, components_HD: Tensor) -> Tensor:
        cross_HD, moment_HD = sums["cross_HD"], sums["moment_HH"] @ components_HD
        if self.noise == "full":
            cross_DD = components_HD.T @ cross_HD
            error_DD = (sums["square"] - cross_DD - cross_DD.T + components_HD.T @ moment_HD) / n_used
            ridge = 1e-9 * error_DD.diagonal().mean().clamp(min=1e-280)
            return _factor(error_DD + ridge * torch.eye(len(error_DD)).to(error_DD), float(ridge))
        error_D = sums["square"] + (components_HD * (moment_HD - 2 * cross_HD)).sum(0)
        variance = (error_D / n_used).clamp(min=0)
        return (variance if self.noise == "diagonal" else variance.mean()).sqrt()

    def _new_slab(self, sums: Sums, n_used: float, parameters: SlabParameters) -> tuple[Tensor, Tensor]:
        old_HH = parameters.covariance_HH
        if self.slab == "full":
            # Amplitudes of inactive units count as missing: their posterior given the active ones is part of the sums.
            step_H = old_HH @ sums["first_H"] / n_used
            second_HH = old_HH @ (sums["second_HH"] @ old_HH) / n_used
            covariance_HH = old_HH + second_HH - step_H[:, None] * step_H
            return parameters.mean_H + step_H, (covariance_HH + covariance_HH.T) / 2
        usage_H = sums["usage"]
        used = usage_H > 1e-6
        mean_H = torch.where(used, sums["code_H"] / usage_H.clamp(min=1e-6), parameters.mean_H)
        variance_H = sums["moment_HH"].diagonal() / usage_H.clamp(min=1e-6) - mean_H.square()
        return mean_H, torch.where(used, variance_H.clamp(min=LEAST_VARIANCE), old_HH.diagonal()).diag()

    def _draw(self, parameters: SlabParameters, n_samples: int, generator: torch.Generator) -> Tensor:
        shape = (n_samples, len(parameters.pi))
        on_NH = torch.rand(shape, dtype=torch.float64, generator=generator) < parameters.pi
        white_NH = torch.randn(shape, dtype=torch.float64, generator=generator)
        return on_NH * (parameters.mean_H + white_NH @ torch.linalg.cholesky(parameters.covariance_HH).T)

    def _superpose(self, codes_NH: Tensor, parameters: SlabParameters) -> Tensor:
        return codes_NH @ parameters.components_HD

    def _publish(self, parameters: SlabParameters, dtype: np.dtype[Any]) -> None:
        super()._publish(parameters, dtype)
        self.slab_mean_ = parameters.mean_H.numpy()
        self.slab_covariance_ = parameters.covariance_HH.numpy()
        sigma = parameters.sigma
        self.noise_covariance_: Any = plain(sigma.square())
        if self.noise == "full":
            self.sigma_, self.noise_covariance_ = sigma.norm(dim=1).numpy(), (sigma @ sigma.T).numpy()


def _plus_outer(lower: Lower, vector: list[Tensor]) -> Lower:
    """A symmetric matrix plus a vector's outer product with itself."""
    return [[lower[i][j] + vector[i] * vector[j] for j in range(i + 1)] for i in range(len(vector))]


def _missing(group: SlabStates, pull: list[Tensor]) -> Lower:
    r""":math:`\Psi_{aa}^{-1} (\langle (z-\mu)(z-\mu)^\top \rangle - \Psi_{aa}) \Psi_{aa}^{-1}`."""
    precision, covariance, size = group.prior_precision, group.covariance, len(pull)

    def column(lower: Lower, j: int) -> list[Tensor]:
        return [lower[max(i, j)][min(i, j)] for i in range(size)]

    columns = [product(precision, product(covariance, column(precision, j))) for j in range(size)]
    return [[columns[j][i] - precision[i][j] + pull[i] * pull[j] for j in range(i + 1)] for i in range(size)]


def _add(onto: Tensor, index: Tensor, value_JN: Tensor) -> None:
    """Add the values of all sets and points at their indices; an index of one column holds for all points."""
    onto.index_add_(0, index.flatten(), (value_JN if index.shape[1] > 1 else value_JN.sum(1)).flatten())


def _factor(covariance_DD: Tensor, least: float) -> Tensor:
    """The Cholesky factor of a covariance whose variance is raised to ``least`` in directions where it is lower."""
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    if float(values_D[0]) < least:
        covariance_DD = (vectors_DD * values_D.clamp(min=least)) @ vectors_DD.T
    return torch.linalg.cholesky(covariance_DD)


def _add_pairs(onto_HH: Tensor, active: list[Tensor], q_JN: Tensor, lower: Lower) -> None:
    """Add weighted symmetric matrices over the active units."""
    flat = onto_HH.view(-1)
    for i in range(len(active)):
        for j in range(i + 1):
            value_JN = q_JN * lower[i][j]
            _add(flat, active[i] * len(onto_HH) + active[j], value_JN)
            if i != j:
                _add(flat, active[j] * len(onto_HH) + active[i], value_JN)
