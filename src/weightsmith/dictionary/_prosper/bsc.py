r"""Binary sparse coding: units on or off, added up.

.. math:: y = \sum_h s_h W_h + \varepsilon, \qquad s_h \sim \operatorname{Bernoulli}(\pi), \quad
          \varepsilon \sim N(0, \sigma^2 I)

References
----------
Henniges, Puertas, Bornschein, Eggert, Lücke, "Binary Sparse Coding", LVA/ICA 2010; in the library of arXiv 1908.06843.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from weightsmith.dictionary._prosper.linear import LinearEM, LinearParameters
from weightsmith.dictionary._prosper.model import largest_candidates
from weightsmith.dictionary._prosper.schedule import Points, annealed

__all__ = ["BSC"]


@dataclass(eq=False, repr=False)
class BSC(LinearEM):
    r"""Dictionary, sparsity and noise for data that add up components that are on or off.

    Parameters
    ----------
    n_components : int, default: 10
        Number of components, ``H``.
    n_candidates : int or "auto", default: "auto"
        Components considered per point, 1 to ``n_components``; "auto" is the smaller of 8 and ``n_components``.
    max_active : int or "auto", default: "auto"
        Most active units per state, 1 to ``n_candidates``; "auto" is the smaller of 4 and ``n_candidates``. With all
        three equal and ``schedule=None`` this is exact EM.
    schedule : mapping, "auto" or None, default: "auto"
        What changes from step to step, see :class:`~weightsmith.dictionary._prosper.schedule.Settings`: control points
        ``(position, value)`` by name, such as ``{"temperature": [(0, 5.0), (0.8, 1.0)]}``. "auto" lowers the
        temperature from 5 to 1 at 80 % of the steps and raises the data cut from 0 to 1 at two thirds, with a little
        noise on the components until 60 %; None keeps all constant.
    max_iter : int, default: 100
        EM steps; the schedule spans all of them.
    tol : float, default: 0.0
        Once the schedule is constant, stop when the mean log-likelihood changes by less than this share.
    n_init : int, default: 1
        Starts; the result with the best log-likelihood is kept.
    fit_offset : bool, default: False
        Also learn a vector that is added to every point.
    components_init : array-like of shape (n_components, n_features), optional
        The start; by default the mean of the data with noise.
    pi_init : float, optional
        Between 0 and 1; by default ``1 / n_components``.
    sigma_init : float, optional
        > 0; by default the mean of the features' standard deviations.
    random_state : int, RandomState or None, default: None
        Seed of the start and of the noise of the schedule.
    device : str, default: "cpu"
        Where to compute, in float64.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        One atom per row.
    pi_ : float
        Probability that a unit is on.
    sigma_ : float
        Standard deviation of the noise.
    offset_ : ndarray of shape (n_features,)
        Zero unless ``fit_offset``.
    lower_bound_curve_ : ndarray of shape (n_iter + 1,)
        Mean log-likelihood per point before every step and after the last.
    lower_bound_ : float
        Its last value.
    n_iter_ : int
        Steps made.
    n_features_in_ : int
        Number of features.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.random((200, 3)) < 0.3
    >>> X = codes @ np.array([[4.0, 0, 0, 4], [0, 4, 0, 0], [0, 0, 4, 4]]) + rng.normal(0, 0.5, (200, 4))
    >>> model = BSC(3, n_init=3, random_state=0).fit(X)
    >>> round(model.pi_, 1), round(model.sigma_, 1)
    (0.3, 0.5)
    >>> bool((model.posterior(X).states[:, 0].sum(1) == codes.sum(1)).mean() > 0.99)
    True
    """

    _schedule: ClassVar[Mapping[str, Points]] = annealed(5.0, 0.8)

    def _candidates(self, match_NH: Tensor, parameters: LinearParameters, n_candidates: int) -> Tensor:
        # The point's own length does not change the order of the cosines, so an all-zero point needs no care.
        length_H = parameters.components_HD.norm(dim=1).clamp(min=1e-300)
        return largest_candidates(match_NH / length_H, n_candidates)
