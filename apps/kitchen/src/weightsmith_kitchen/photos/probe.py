r"""The linear probe: logistic regression on standardized features, solved to its optimum.

.. math::

    \min_{W, b} \; -\frac1N \sum_i \log \operatorname{softmax}(W z_i + b)_{y_i} + \frac{\lambda}{2} \lVert W \rVert^2,
    \qquad z = (x - \mu) / \sigma

The standardization is then folded into the weights, so that the probe is an ordinary linear layer of the raw features:
the first stage of LP-FT, from which fine-tuning starts without distorting the features.

Kumar, Raghunathan, Jones, Ma and Liang (2022), arXiv:2202.10054.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from weightsmith_kitchen.errors import PhotoError

__all__ = ["Probe", "fit_probe"]

LEAST_DEVIATION = 1e-4
"""A feature that varies less is constant, and gets no weight that its noise could blow up."""


@dataclass(frozen=True)
class Probe:
    """A linear layer.

    Attributes
    ----------
    weight : Tensor of shape (classes, features)
        Of the raw features.
    bias : Tensor of shape (classes,)
        Its offsets.
    loss : float
        The objective at the optimum.
    iterations : int
        Evaluations of it.
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, "classes"]
    loss: float
    iterations: int


def fit_probe(
    features: Float[Tensor, "photos features"],
    targets: Int[Tensor, "photos"],
    classes: int,
    *,
    strength: float = 0.03,
    balanced: bool = False,
    iterations: int = 300,
) -> Probe:
    r"""Fit logistic regression by L-BFGS.

    Parameters
    ----------
    features : Tensor of shape (photos, features)
        Raw features.
    targets : Tensor of shape (photos,)
        Classes, 0 to ``classes - 1``.
    classes : int
        Number of classes.
    strength : float, default: 0.03
        scikit-learn's C: :math:`\lambda = 1 / (C N)`. Smaller is simpler.
    balanced : bool, default: False
        Weigh every class alike, however many photos it has.
    iterations : int, default: 300
        Most evaluations of the objective.

    Raises
    ------
    PhotoError
        If there are no photos, or a feature is NaN or infinite.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1.0], [0.2, 1.0], [1.0, 1.0], [1.2, 1.0]])
    >>> probe = fit_probe(x, torch.tensor([0, 0, 1, 1]), 2, strength=10.0)
    >>> (x @ probe.weight.T + probe.bias).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    if len(features) == 0:
        raise PhotoError("no photos to fit a probe on", expected="at least one of each class")
    if not features.isfinite().all():
        raise PhotoError("features of the photos", found="NaN or infinity", do="Check the backbone's weights.")
    if strength <= 0:
        raise PhotoError("strength of the probe", found=strength, expected="a number above 0")
    x = features.detach().float()
    mean = x.mean(0)
    deviation = x.std(0, correction=0)
    scale = torch.where(deviation > LEAST_DEVIATION, 1 / deviation.clamp_min(LEAST_DEVIATION), 0.0)
    z = (x - mean) * scale
    y = targets.to(z.device)
    per_sample = torch.full((len(y),), 1 / len(y), device=z.device)
    if balanced:
        counts = torch.bincount(y, minlength=classes).clamp_min(1)
        per_sample = 1 / (counts[y] * int((torch.bincount(y, minlength=classes) > 0).sum()))
    decay = 1 / (strength * len(y))
    weight = torch.zeros(classes, z.shape[1], device=z.device, requires_grad=True)
    bias = torch.zeros(classes, device=z.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        lr=1.0,
        max_iter=iterations,
        max_eval=iterations,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    seen: list[float] = []

    def objective() -> Tensor:
        solver.zero_grad()
        losses = functional.cross_entropy(z @ weight.T + bias, y, reduction="none")
        value = (losses * per_sample).sum() + decay / 2 * weight.square().sum()
        value.backward()
        seen.append(value.item())
        return value

    with torch.enable_grad():
        solver.step(objective)
    folded = weight.detach() * scale
    return Probe(folded, bias.detach() - folded @ mean, seen[-1], len(seen))
