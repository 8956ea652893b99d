r"""Maximum magnitude component analysis: signed components; of those on, the value of largest magnitude is seen.

.. math:: y_d = W_{h^*d} + \varepsilon_d, \qquad h^* = \arg\max_h |s_h W_{hd}|, \quad
          s_h \sim \operatorname{Bernoulli}(\pi), \quad \varepsilon \sim N(0, \sigma^2 I)

References
----------
Bornschein, Henniges, Lücke, "Are V1 Simple Cells Optimized for Visual Occlusions?", PLoS Computational Biology 9, 2013;
in the library of arXiv 1908.06843.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from weightsmith.dictionary._prosper.maxima import MaximumEM
from weightsmith.dictionary._prosper.model import Parameters, largest_candidates
from weightsmith.dictionary._prosper.schedule import Points, annealed

__all__ = ["MMCA"]

HALF_LIFE, LEAST_STEP = 2.5, 0.2
"""Inertia: weight of a feature at which a component has moved by 1 - 1/e, and the least share it moves by."""


@dataclass(eq=False, repr=False)
class MMCA(MaximumEM):
    """Dictionary, sparsity and noise for signed data whose components combine by the largest magnitude.

    Parameters
    ----------
    n_components, n_candidates, max_active, max_iter, tol, n_init
        As for :class:`~weightsmith.dictionary.BSC`.
    schedule : mapping, "auto" or None, default: "auto"
        As for :class:`~weightsmith.dictionary.BSC`; "auto" lowers the temperature from 4 to 1 at 80 % of the steps.
        A higher temperature also softens the maximum.
    inertia : bool, default: True
        Move components that explain little only a part of the way.
    components_init, pi_init, sigma_init, random_state, device
        As for :class:`~weightsmith.dictionary.BSC`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        One atom per row.
    pi_, sigma_, lower_bound_curve_, lower_bound_, n_iter_, n_features_in_
        As for :class:`~weightsmith.dictionary.BSC`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.random((200, 3, 1)) < 0.3
    >>> parts = codes * np.array([[4.0, 4, 0, 0, 4], [0, 0, -4, -4, -3], [-3, 0, 3, 0, 0]])
    >>> X = np.take_along_axis(parts, np.abs(parts).argmax(1, keepdims=True), 1)[:, 0] + rng.normal(0, 0.3, (200, 5))
    >>> model = MMCA(3, max_iter=50, n_init=3, random_state=0).fit(X)
    >>> sorted(model.components_.round().astype(int).tolist())
    [[-3, 0, 3, 0, 0], [0, 0, -4, -4, -3], [4, 4, 0, 0, 4]]
    """

    _schedule: ClassVar[Mapping[str, Points]] = annealed(4.0, 0.8)

    inertia: bool = field(default=True, kw_only=True)

    def _sharpness(self, temperature: float) -> float:
        return min(1 / (1 - 1 / max(temperature, 1.2)), 35.0)

    def _candidates(self, data_ND: Tensor, parameters: Parameters, n_candidates: int) -> Tensor:
        components_HD = parameters.components_HD
        nearness_NH = 2 * (data_ND @ components_HD.T) - components_HD.square().sum(1)
        return largest_candidates(nearness_NH, n_candidates)

    def _new_components(self, weighted_HD: Tensor, weight_HD: Tensor, parameters: Parameters) -> Tensor:
        new_HD: Tensor = weighted_HD / weight_HD.clamp(min=1e-4)
        if not self.inertia:
            return new_HD
        step_HD = (1 - (-weight_HD / HALF_LIFE).exp()).clamp(min=LEAST_STEP)
        return step_HD * new_HD + (1 - step_HD) * parameters.components_HD
