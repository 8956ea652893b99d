r"""Ternary sparse coding: units off, or on with either sign, added up.

.. math:: y = \sum_h s_h W_h + \varepsilon, \qquad p(s_h = \pm 1) = \pi / 2, \quad \varepsilon \sim N(0, \sigma^2 I)

References
----------
Exarchakis, Henniges, Eggert, Lücke, "Ternary Sparse Coding", LVA/ICA 2012; in the library of arXiv 1908.06843.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightsmith.dictionary._prosper.linear import LinearEM, LinearParameters
from weightsmith.dictionary._prosper.schedule import Points, annealed

__all__ = ["TSC"]


@dataclass(eq=False, repr=False)
class TSC(LinearEM):
    """Dictionary, sparsity and noise for data that add and subtract components.

    Also the single units that are not candidates are kept as states, unlike in the paper's code: a tighter bound, and
    the same for all linear models. A component is a candidate once, by its better sign; the paper's code may list it
    twice.

    Parameters
    ----------
    n_components, n_candidates, max_active, max_iter, tol, n_init, fit_offset
        As for :class:`~weightsmith.dictionary.BSC`.
    schedule : mapping, "auto" or None, default: "auto"
        As for :class:`~weightsmith.dictionary.BSC`; "auto" lowers the temperature from 2 to 1 at 70 % of the steps.
    components_init, pi_init, sigma_init, random_state, device
        As for :class:`~weightsmith.dictionary.BSC`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        One atom per row.
    pi_ : float
        Probability that a unit is on, with either sign.
    sigma_ : float
        Standard deviation of the noise.
    offset_, lower_bound_curve_, lower_bound_, n_iter_, n_features_in_
        As for :class:`~weightsmith.dictionary.BSC`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.choice([-1, 0, 1], (500, 2), p=[0.15, 0.7, 0.15])
    >>> X = codes @ np.array([[4.0, 0, 4], [0, 4, 0]]) + rng.normal(0, 0.5, (500, 3))
    >>> model = TSC(2, random_state=0).fit(X)
    >>> round(model.pi_, 1), round(model.sigma_, 1)
    (0.3, 0.5)
    """

    _schedule: ClassVar[Mapping[str, Points]] = annealed(2.0, 0.7)

    def _unit_values(self) -> tuple[float, ...]:
        return (-1.0, 1.0)

    def _value_probabilities(self, parameters: LinearParameters) -> Tensor:
        half = parameters.pi / 2
        return torch.stack([1 - parameters.pi, half, half])
