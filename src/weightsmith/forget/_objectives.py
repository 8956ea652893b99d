r"""Losses that make a network forget: gradient ascent, GradDiff, NPO and SimNPO.

With :math:`\ell` the negative log-likelihood of a sample to forget, averaged over its tokens, and :math:`\ell_0` that
of the network before,

.. math::

    L_\text{GA} = -\ell, \qquad
    L_\text{NPO} = -\tfrac{2}{\beta} \log \sigma\bigl(\beta (\ell - \ell_0)\bigr), \qquad
    L_\text{SimNPO} = -\tfrac{2}{\beta} \log \sigma\bigl(\beta \ell - \gamma\bigr).

Gradient ascent has no minimum. NPO (Zhang et al., arXiv 2404.05868) starts with the same gradient, which fades as
:math:`\ell` grows; SimNPO (Fan et al., arXiv 2410.07163) needs no reference. GradDiff is gradient ascent plus the loss
on what is to be retained.
"""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError

__all__ = ["graddiff_loss", "gradient_ascent_loss", "npo_loss", "simnpo_loss"]

Reduction = Literal["none", "mean", "sum"]


def gradient_ascent_loss(losses: Float[Tensor, "samples"], *, reduction: Reduction = "mean") -> Float[Tensor, "..."]:
    """Negate the loss of samples to forget.

    Parameters
    ----------
    losses : Tensor of shape (samples,)
        Negative log-likelihood per sample.
    reduction : {"none", "mean", "sum"}, default: "mean"
        Over the samples.

    Examples
    --------
    >>> import torch
    >>> gradient_ascent_loss(torch.tensor([1.0, 3.0]))
    tensor(-2.)
    """
    return _reduce(-losses, reduction)


def graddiff_loss(
    forget: Float[Tensor, "samples"], retain: Float[Tensor, "others"], *, retain_weight: float = 1.0
) -> Float[Tensor, ""]:
    """Gradient ascent on samples to forget, descent on samples to retain.

    Parameters
    ----------
    forget, retain : Tensor of shape (samples,)
        Negative log-likelihood per sample.
    retain_weight : float, default: 1.0
        Factor of the second term, >= 0.

    Raises
    ------
    HyperparameterError
        If ``retain_weight`` is negative.

    Examples
    --------
    >>> import torch
    >>> graddiff_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.5]))
    tensor(-1.5000)
    """
    if not 0 <= retain_weight < math.inf:
        raise HyperparameterError("retain_weight", found=retain_weight, expected="a number >= 0")
    return retain_weight * retain.mean() - forget.mean()


def npo_loss(
    losses: Float[Tensor, "samples"],
    reference: Float[Tensor, "samples"],
    *,
    beta: float = 0.1,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Negative preference optimization: push the likelihood of samples below that of the network before.

    Parameters
    ----------
    losses, reference : Tensor of shape (samples,)
        Negative log-likelihood per sample, now and before, both averaged over tokens or both summed.
    beta : float, default: 0.1
        How soon the gradient fades, > 0; towards 0 the loss becomes gradient ascent.
    reduction : {"none", "mean", "sum"}, default: "mean"
        Over the samples.

    Raises
    ------
    HyperparameterError
        If ``beta`` is not positive.

    References
    ----------
    Zhang, Lin, Bai, Mei, "Negative Preference Optimization", arXiv 2404.05868.

    Examples
    --------
    >>> import torch
    >>> start = torch.tensor([2.0])
    >>> round(npo_loss(start, start).item(), 4)
    13.8629
    """
    _check_beta(beta)
    return _reduce(-2 / beta * functional.logsigmoid(beta * (losses - reference.detach())), reduction)


def simnpo_loss(
    losses: Float[Tensor, "samples"], *, beta: float = 2.5, margin: float = 0.0, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Negative preference optimization without a reference.

    Parameters
    ----------
    losses : Tensor of shape (samples,)
        Negative log-likelihood per sample, averaged over its tokens.
    beta : float, default: 2.5
        How soon the gradient fades, > 0.
    margin : float, default: 0.0
        The loss keeps its full gradient until ``beta * losses`` comes near it.
    reduction : {"none", "mean", "sum"}, default: "mean"
        Over the samples.

    Raises
    ------
    HyperparameterError
        If ``beta`` is not positive.

    References
    ----------
    Fan, Liu, Lin, et al., "Simplicity Prevails", arXiv 2410.07163.

    Examples
    --------
    >>> import torch
    >>> round(simnpo_loss(torch.zeros(1)).item(), 4)
    0.5545
    """
    _check_beta(beta)
    return _reduce(-2 / beta * functional.logsigmoid(beta * losses - margin), reduction)


def _check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise HyperparameterError("beta", found=beta, expected="a number > 0")


def _reduce(losses: Float[Tensor, "samples"], reduction: str) -> Float[Tensor, "..."]:
    check_choice("reduction", reduction, Reduction)
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()
