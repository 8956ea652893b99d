r"""Discrete sparse coding: units with a few given values, added up.

.. math:: y = \sum_h s_h W_h + \varepsilon, \qquad p(s_h = \varphi_k) = \pi_k, \quad \varepsilon \sim N(0, \sigma^2 I)

References
----------
Exarchakis and Lücke, "Discrete Sparse Coding", Neural Computation 29, 2017; in the library of arXiv 1908.06843.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.core.errors import HyperparameterError
from weightsmith.dictionary._prosper.linear import LinearEM, LinearParameters, largest_candidates
from weightsmith.dictionary._prosper.schedule import Points, annealed
from weightsmith.dictionary._prosper.start import Start, given, inside
from weightsmith.dictionary._prosper.states import States
from weightsmith.dictionary._prosper.tsc import best_single_values

__all__ = ["DSC"]

LEAST_PROBABILITY = 1e-6
"""Of any value of a unit."""


class DSC(LinearEM):
    """Dictionary, the probability of every value, and noise, for units with a few given values.

    Parameters
    ----------
    n_components : int, default: 10
        Number of components, ``H``.
    values : sequence of float, default: (-1.0, 0.0, 1.0)
        What a unit can be; all different, 0 among them.
    n_candidates, max_active, max_iter, tol, n_init, fit_offset
        As for :class:`~weightsmith.dictionary.BSC`.
    schedule : mapping, "auto" or None, default: "auto"
        "auto" lowers the temperature from 2 to 1 at 70 % of the steps and raises the data cut from 0 to 1 at two
        thirds, with a little noise on the components until 60 %.
    min_pi_zero : float, default: 0.0
        The least probability of the value 0; the others are scaled to fit.
    pi_init : array-like of shape (n_values,), optional
        Probabilities in the order of ``values``; by default 0 has ``1 - 1 / n_components`` and the others draw
        their shares.
    components_init, sigma_init, random_state, device
        As for :class:`~weightsmith.dictionary.BSC`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        One atom a row.
    pi_ : ndarray of shape (n_values,)
        Probabilities in the order of ``values``.
    sigma_ : float
        Standard deviation of the noise.
    offset_, lower_bound_curve_, lower_bound_, n_iter_, n_features_in_
        As for :class:`~weightsmith.dictionary.BSC`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.choice([0, 1, 2], (500, 2), p=[0.6, 0.3, 0.1])
    >>> X = codes @ np.array([[4.0, 0, 4], [0, 4, 0]]) + rng.normal(0, 0.5, (500, 3))
    >>> model = DSC(2, values=(0, 1, 2), n_init=3, random_state=0).fit(X)
    >>> model.pi_.round(1).tolist(), round(model.sigma_, 1)
    ([0.6, 0.3, 0.1], 0.5)
    """

    _schedule: ClassVar[Mapping[str, Points]] = annealed(2.0, 0.7)

    def __init__(
        self,
        n_components: int = 10,
        *,
        values: Sequence[float] = (-1.0, 0.0, 1.0),
        n_candidates: int | Literal["auto"] = "auto",
        max_active: int | Literal["auto"] = "auto",
        schedule: Mapping[str, Points] | Literal["auto"] | None = "auto",
        max_iter: int = 100,
        tol: float = 0.0,
        n_init: int = 1,
        fit_offset: bool = False,
        min_pi_zero: float = 0.0,
        components_init: Start | None = None,
        pi_init: Start | None = None,
        sigma_init: Start | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            n_components,
            n_candidates=n_candidates,
            max_active=max_active,
            schedule=schedule,
            max_iter=max_iter,
            tol=tol,
            n_init=n_init,
            fit_offset=fit_offset,
            components_init=components_init,
            pi_init=pi_init,
            sigma_init=sigma_init,
            random_state=random_state,
            device=device,
        )
        self.values = values
        self.min_pi_zero = min_pi_zero

    def _unit_values(self) -> tuple[float, ...]:
        values = [float(value) for value in self.values]
        if 0.0 not in values or len(set(values)) < max(2, len(values)) or not np.isfinite(values).all():
            raise HyperparameterError("values", found=values, expected="different numbers, 0 and others")
        return tuple(value for value in values if value)

    def _zero_first(self) -> list[int]:
        """The order of the probabilities inside: that of the value 0, then the others."""
        zero = [float(value) for value in self.values].index(0.0)
        return [zero, *(number for number in range(len(self.values)) if number != zero)]

    def _pi_drawn(self, generator: torch.Generator) -> Tensor:
        if not 0 <= self.min_pi_zero < 1:
            raise HyperparameterError("min_pi_zero", found=self.min_pi_zero, expected="0 to 1, 1 excluded")
        if self.pi_init is not None:
            pi = inside("pi_init", given("pi_init", self.pi_init, (len(self.values),)))[self._zero_first()]
            if abs(float(pi.sum()) - 1) > 1e-6:
                raise HyperparameterError("pi_init", found=f"a sum of {float(pi.sum()):g}", expected="a sum of 1")
            return pi
        active = 1 / max(self.n_components, 2)
        share_V = torch.rand(len(self.values) - 1, dtype=torch.float64, generator=generator).clamp(min=1e-3)
        return torch.cat([torch.tensor([1 - active], dtype=torch.float64), active * share_V / share_V.sum()])

    def _activity(self, parameters: LinearParameters) -> float:
        return float(1 - parameters.pi[0])

    def _candidates(
        self, match_NH: Float[Tensor, "points components"], parameters: LinearParameters, n_candidates: int
    ) -> Int[Tensor, "points candidates"]:
        odds_V = self._log_odds(parameters)
        return largest_candidates(best_single_values(match_NH, parameters, self._unit_values(), odds_V), n_candidates)

    def _log_odds(self, parameters: LinearParameters) -> Float[Tensor, "values"]:
        return (parameters.pi[1:] / parameters.pi[0]).log()

    def _new_pi(
        self, counts_V: Float[Tensor, "values"], n_used: float, parameters: LinearParameters, states: States
    ) -> Tensor:
        pi_V = counts_V / (n_used * states.n_components)
        pi_V = pi_V * ((1 - self.min_pi_zero) / pi_V.sum().clamp(min=1e-300)).clamp(max=1.0)
        return torch.cat([1 - pi_V.sum(0, keepdim=True), pi_V])

    def _floored(self, parameters: LinearParameters, sigma_floor: float) -> LinearParameters:
        low = parameters.pi.clamp(min=LEAST_PROBABILITY)
        return replace(
            parameters,
            pi=low / low.sum() if bool((low != parameters.pi).any()) else parameters.pi,
            sigma=parameters.sigma.abs().clamp(min=sigma_floor),
        )

    def _draw(
        self, parameters: LinearParameters, n_samples: int, generator: torch.Generator
    ) -> Float[Tensor, "points components"]:
        return self._draw_values(parameters.pi, n_samples, generator)

    def _publish(self, parameters: LinearParameters, dtype: np.dtype[Any]) -> None:
        self.components_ = parameters.components_HD.numpy().astype(dtype)
        self.offset_ = parameters.offset_D.numpy().astype(dtype)
        self.sigma_ = float(parameters.sigma)
        self.pi_ = parameters.pi.numpy()[np.argsort(self._zero_first())]
