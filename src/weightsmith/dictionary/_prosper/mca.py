r"""Maximal causes analysis: non-negative components that cover each other; of those on, the largest value is seen.

.. math:: y_d = \max_h s_h W_{hd} + \varepsilon_d, \qquad s_h \sim \operatorname{Bernoulli}(\pi), \quad W \ge 0, \quad
          \varepsilon \sim N(0, \sigma^2 I)

References
----------
Lücke and Sahani, "Maximal Causes for Non-linear Component Extraction", JMLR 9, 2008; in the library of
arXiv 1908.06843.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from sklearn.utils.validation import check_non_negative
from torch import Tensor

from weightsmith.dictionary._prosper.maxima import MaximumEM
from weightsmith.dictionary._prosper.model import Parameters, largest_candidates
from weightsmith.dictionary._prosper.schedule import Points, annealed

__all__ = ["MCA"]


@dataclass(eq=False, repr=False)
class MCA(MaximumEM):
    """Dictionary, sparsity and noise for non-negative data whose components combine by maximum.

    Costs as many powers as there are different sets of candidates, and has local optima: take ``n_init`` of 3 or more.

    Parameters
    ----------
    n_components, n_candidates, max_active, max_iter, tol, n_init
        As for :class:`~weightsmith.dictionary.BSC`.
    schedule : mapping, "auto" or None, default: "auto"
        As for :class:`~weightsmith.dictionary.BSC`; "auto" lowers the temperature from 4 to 1 at 80 % of the steps.
        A higher temperature also softens the maximum.
    components_init, pi_init, sigma_init, random_state, device
        As for :class:`~weightsmith.dictionary.BSC`; negative components become the smallest positive ones.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        One atom per row, positive.
    pi_, sigma_, lower_bound_curve_, lower_bound_, n_iter_, n_features_in_
        As for :class:`~weightsmith.dictionary.BSC`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.random((200, 3, 1)) < 0.3
    >>> W = np.array([[4.0, 4, 0, 0, 4], [0, 0, 4, 4, 4], [4, 0, 4, 0, 0]])
    >>> X = np.abs((codes * W).max(1) + rng.normal(0, 0.3, (200, 5)))
    >>> model = MCA(3, max_iter=50, n_init=3, random_state=0).fit(X)
    >>> sorted((model.components_ > 2).astype(int).tolist())
    [[0, 0, 1, 1, 1], [1, 0, 1, 0, 0], [1, 1, 0, 0, 1]]
    """

    _schedule: ClassVar[Mapping[str, Points]] = annealed(4.0, 0.8)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags

    def _rows(self, X: Any, *, reset: bool, ensure_min_samples: int = 1) -> Tensor:
        data_ND = super()._rows(X, reset=reset, ensure_min_samples=ensure_min_samples)
        check_non_negative(data_ND.numpy(), "MCA")
        return data_ND

    def _floored(self, parameters: Parameters, sigma_floor: float) -> Parameters:
        positive = replace(parameters, components_HD=parameters.components_HD.clamp(min=0))
        return super()._floored(positive, sigma_floor)

    def _sharpness(self, temperature: float) -> float:
        return 1 / (1 - 1 / max(temperature, 1.05))

    def _candidates(self, data_ND: Tensor, parameters: Parameters, n_candidates: int) -> Tensor:
        excess_HN = [(component_D - data_ND).clamp_(min=0).sum(1) for component_D in parameters.components_HD]
        return largest_candidates(-torch.stack(excess_HN, 1), n_candidates)

    def _new_components(self, weighted_HD: Tensor, weight_HD: Tensor, parameters: Parameters) -> Tensor:
        explained = weight_HD > 1e-12  # what explains nothing stays
        return torch.where(explained, weighted_HD / weight_HD.clamp(min=1e-12), parameters.components_HD)
