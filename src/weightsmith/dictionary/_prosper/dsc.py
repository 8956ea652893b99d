r"""Discrete sparse coding: units with a few given values, added up.

.. math:: y = \sum_h s_h W_h + \varepsilon, \qquad p(s_h = \varphi_k) = \pi_k, \quad \varepsilon \sim N(0, \sigma^2 I)

References
----------
Exarchakis and Lücke, "Discrete Sparse Coding", Neural Computation 29, 2017; in the library of arXiv 1908.06843.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weightsmith.core.errors import HyperparameterError
from weightsmith.dictionary._prosper.linear import LinearEM, LinearParameters
from weightsmith.dictionary._prosper.schedule import Points, annealed
from weightsmith.dictionary._prosper.start import given
from weightsmith.dictionary._prosper.states import States

__all__ = ["DSC"]

LEAST_PROBABILITY = 1e-6
"""Least prior probability of any value."""


@dataclass(eq=False, repr=False)
class DSC(LinearEM):
    """Dictionary, the probability of every value, and noise, for units with a few given values.

    Parameters
    ----------
    n_components : int, default: 10
        Number of components, ``H``.
    values : sequence of float, default: (-1.0, 0.0, 1.0)
        Values a unit can take; all different, 0 among them.
    n_candidates, max_active, max_iter, tol, n_init, fit_offset
        As for :class:`~weightsmith.dictionary.BSC`.
    schedule : mapping, "auto" or None, default: "auto"
        As for :class:`~weightsmith.dictionary.BSC`; "auto" lowers the temperature from 2 to 1 at 70 % of the steps.
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
        One atom per row.
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

    _: KW_ONLY
    values: Sequence[float] = (-1.0, 0.0, 1.0)
    min_pi_zero: float = 0.0

    def _unit_values(self) -> tuple[float, ...]:
        values = [float(value) for value in self.values]
        if 0.0 not in values or len(set(values)) < max(2, len(values)) or not np.isfinite(values).all():
            raise HyperparameterError("values", found=values, expected="different numbers, 0 and others")
        return tuple(value for value in values if value)

    def _zero_first(self) -> list[int]:
        """The order of the probabilities inside: that of the value 0, then the others."""
        zero = [float(value) for value in self.values].index(0.0)
        return [zero, *(number for number in range(len(self.values)) if number != zero)]

    def _pi_start(self, generator: torch.Generator) -> Tensor:
        if not 0 <= self.min_pi_zero < 1:
            raise HyperparameterError("min_pi_zero", found=self.min_pi_zero, expected="0 to 1, 1 excluded")
        if self.pi_init is not None:
            pi = given("pi_init", self.pi_init, (len(self.values),), 0, 1)[self._zero_first()]
            if abs(float(pi.sum()) - 1) > 1e-6:
                raise HyperparameterError("pi_init", found=f"a sum of {float(pi.sum()):g}", expected="a sum of 1")
            return pi
        active = 1 / max(self.n_components, 2)
        share_V = torch.rand(len(self.values) - 1, dtype=torch.float64, generator=generator).clamp(min=1e-3)
        return torch.cat([torch.tensor([1 - active], dtype=torch.float64), active * share_V / share_V.sum()])

    def _value_probabilities(self, parameters: LinearParameters) -> Tensor:
        return parameters.pi

    def _new_pi(self, counts_V: Tensor, n_used: float, parameters: LinearParameters, states: States) -> Tensor:
        pi_V = counts_V / (n_used * states.n_components)
        pi_V = pi_V * ((1 - self.min_pi_zero) / pi_V.sum().clamp(min=1e-300)).clamp(max=1.0)
        return torch.cat([1 - pi_V.sum(0, keepdim=True), pi_V])

    def _pi_in_range(self, pi: Tensor) -> Tensor:
        low = pi.clamp(min=LEAST_PROBABILITY)
        return low / low.sum() if bool((low != pi).any()) else pi

    def _publish(self, parameters: LinearParameters, dtype: np.dtype[Any]) -> None:
        super()._publish(parameters, dtype)
        self.pi_ = self.pi_[np.argsort(self._zero_first())]
