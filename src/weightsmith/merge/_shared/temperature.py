r"""Temperature scaling: calibrate an overconfident network before it is averaged.

.. math:: T = \arg\min_T -\sum_i \log \mathrm{softmax}(z_i / T)_{y_i}

Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599. Legend: ``N`` samples, ``K`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.core.data import call
from weightsmith.core.errors import CalibrationError, NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import IGNORED, check_labels, logits_of

__all__ = ["balance_logit_scale", "fit_temperature"]


def fit_temperature(logits: Float[Tensor, "N K"], labels: Int[Tensor, "N"]) -> float:
    """Find the temperature that makes logits, divided by it, most likely on held-out labels.

    Parameters
    ----------
    logits : Tensor of shape (N, K)
        On data that was not trained on.
    labels : Tensor of shape (N,)
        Class indices; samples with -100 do not count.

    Returns
    -------
    float
        Between 0.05 and 20; above one for an overconfident network.

    Raises
    ------
    CalibrationError
        If no sample is labeled.
    HyperparameterError
        If a label is not a class.
    NonFiniteError
        If a logit of a labeled sample is NaN or infinite.

    References
    ----------
    Guo et al. "On Calibration of Modern Neural Networks". ICML 2017. arXiv:1706.04599.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0]] * 4)
    >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)  # right for 3 in 4: log(3) = 1.0986
    1.82
    """
    kept = labels != IGNORED
    labels, scores = labels[kept], logits[kept].double()
    if not len(labels):
        raise CalibrationError("no labeled samples to fit the temperature on", expected="at least one")
    check_labels(labels, scores.shape[1])
    if not is_finite(scores):
        raise NonFiniteError("the logits hold NaN or infinity", do="Look for such values in the weights and the data.")
    low, high = math.log(0.05), math.log(20.0)
    for _ in range(60):  # the loss is convex in 1 / T, so its slope changes sign once
        middle = (low + high) / 2
        scaled = scores / math.exp(middle)
        mean = (scaled.softmax(1) * scores).sum(1) - scores.gather(1, labels[:, None])[:, 0]
        low, high = (middle, high) if mean.mean() > 0 else (low, middle)
    return math.exp((low + high) / 2)


@torch.no_grad()
def balance_logit_scale(model: nn.Module, batches: Sequence[tuple[Any, Tensor]]) -> float:
    """Divide a network's last linear layer by the temperature that calibrates it on held-out data.

    Reduces the weight of an overconfident fine-tuned network in an average. It rescales one layer, while an average
    mixes all of them, so it does not replace :func:`weightsmith.merge.bang`.

    Parameters
    ----------
    model : nn.Module
        A classifier; its last ``nn.Linear`` makes the logits. Changed in place.
    batches : sequence of (inputs, class indices)
        Held-out data from the distribution of the training data.

    Returns
    -------
    float
        The temperature.

    Raises
    ------
    CalibrationError
        If there are no batches.
    NonFiniteError
        If a logit is NaN or infinite; the model is unchanged.
    UnsupportedModelError
        If the logits do not come from a linear layer, or its weight is tied to another.

    Examples
    --------
    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[2.0], [0.0]]))
    >>> x, y = torch.ones(4, 1), torch.tensor([0, 0, 0, 1])
    >>> round(balance_logit_scale(model, [(x, y)]), 3), round(model.weight[0].item(), 4)
    (1.82, 1.0986)
    """
    if len(batches) == 0:
        raise CalibrationError("no batches to fit the temperature on", expected="at least one")
    head = _head(model)
    with evaluation_mode(model):
        logits = [logits_of(call(model, inputs)) for inputs, _ in batches]
        temperature = fit_temperature(torch.cat(logits).float(), torch.cat([labels for _, labels in batches]))
        before = [parameter.clone() for parameter in head.parameters()]
        for parameter in head.parameters():
            parameter.div_(temperature)
        after = logits_of(call(model, batches[0][0]))
    if not torch.allclose(after.float(), logits[0].float() / temperature, rtol=0.02, atol=1e-4):
        for parameter, value in zip(head.parameters(), before, strict=True):
            parameter.copy_(value)
        raise UnsupportedModelError("the logits are not the output of the model's last linear layer")
    return temperature


def _head(model: nn.Module) -> nn.Linear:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UnsupportedModelError("the model has no linear layer whose scale could be changed")
    holders = [module for module in model.modules() if getattr(module, "weight", None) is linear[-1].weight]
    if len(holders) > 1:
        raise UnsupportedModelError("the last linear layer's weight is tied to another", do="Untie it first.")
    return linear[-1]
