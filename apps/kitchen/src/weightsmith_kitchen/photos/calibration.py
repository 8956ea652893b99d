"""Probabilities that mean what they say: temperature scaling, calibration error, and when to abstain.

Guo, Pleiss, Sun and Weinberger (2017), arXiv:1706.04599.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from weightsmith_kitchen.errors import PhotoError

__all__ = ["abstain_threshold", "expected_calibration_error", "fit_temperature"]

SHARPEST, FLATTEST = 0.05, 20.0
"""Temperatures beyond these say that the validation photos cannot tell one (all right, or all wrong)."""


def fit_temperature(logits: Float[Tensor, "photos classes"], targets: Int[Tensor, "photos"]) -> float:
    r"""The temperature :math:`T` that minimizes the negative log-likelihood of :math:`\operatorname{softmax}(l / T)`.

    Dividing by it changes no ranking. It is kept between 0.05 and 20.

    Parameters
    ----------
    logits : Tensor of shape (photos, classes)
        Of validation photos.
    targets : Tensor of shape (photos,)
        Their classes.

    Examples
    --------
    >>> logits = torch.log(torch.tensor([[0.75, 0.25]] * 4)) * 3
    >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 2)
    3.0
    """
    if len(logits) == 0:
        raise PhotoError("no validation photos to fit a temperature on", do="Pass some, or leave it at 1.")
    x, y = logits.detach().double(), targets
    log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")
    low, high = np.log(SHARPEST), np.log(FLATTEST)

    def objective() -> Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(x / log_temperature.clamp(low, high).exp(), y)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return float(log_temperature.detach().clamp(low, high).exp())


def abstain_threshold(
    probabilities: Float[Tensor, "photos classes"], targets: Int[Tensor, "photos"], *, precision: float = 0.95
) -> float:
    """The lowest threshold on the highest probability at which the answers that are given have that precision.

    Parameters
    ----------
    probabilities : Tensor of shape (photos, classes)
        Of validation photos.
    targets : Tensor of shape (photos,)
        Their classes.
    precision : float, default: 0.95
        Share of given answers that are right.

    Returns
    -------
    float
        1.0 if no threshold reaches the precision: then only certainty is answered.

    Examples
    --------
    >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    >>> round(abstain_threshold(p, torch.tensor([0, 0, 1]), precision=1.0), 3)
    0.8
    """
    if not 0 < precision <= 1:
        raise PhotoError("precision", found=precision, expected="a share in (0, 1]")
    confidence, answer = probabilities.max(1)
    order = torch.argsort(confidence, descending=True)
    right = (answer == targets)[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    sorted_ = confidence[order]
    # only the last of equal confidences is a threshold
    last = torch.ones(len(order), dtype=torch.bool)
    last[:-1] = sorted_[1:] < sorted_[:-1]
    good = torch.nonzero((right >= precision) & last).flatten()
    return float(sorted_[good[-1]]) if len(good) else 1.0


def expected_calibration_error(
    probabilities: Float[Tensor, "photos classes"], targets: Int[Tensor, "photos"], *, bins: int = 15
) -> float:
    """Average gap between confidence and accuracy over bins of equal width, weighed by their photos.

    Examples
    --------
    >>> p = torch.tensor([[0.8, 0.2]] * 4)
    >>> round(expected_calibration_error(p, torch.tensor([0, 0, 1, 1])), 6)
    0.3
    """
    confidence, answer = probabilities.double().max(1)
    right = (answer == targets).double()
    place = (confidence * bins).long().clamp_max(bins - 1)
    sums = [torch.zeros(bins, dtype=torch.double).index_add_(0, place, values) for values in (confidence, right)]
    return float((sums[0] - sums[1]).abs().sum() / max(len(targets), 1))
