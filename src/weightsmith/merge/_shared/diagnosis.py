r"""Diagnose an average of two networks: errors it repairs and makes, confidence, calibration.

Lin, Tan, Hao, Wong, Dong, Zhang, Yang, Zhang 2024, arXiv 2309.17230. Legend: ``N`` samples, ``K`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.core.errors import CalibrationError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite
from weightsmith.core.training import IGNORED

__all__ = [
    "Confidence",
    "calibration_error",
    "confidence",
    "confidence_ratio",
    "diagnose",
    "output_ensemble",
    "transitions",
]

UNBALANCED = 1.5
"""From this ratio of logit scales on, the fine-tuned network's errors dominate the average."""


def transitions(
    pre: Float[Tensor, "..."], tuned: Float[Tensor, "..."], averaged: Float[Tensor, "..."], labels: Int[Tensor, "N"]
) -> dict[str, float]:
    """Count the errors that an average repairs and makes.

    Parameters
    ----------
    pre, tuned, averaged : Tensor of shape (N, K)
        Logits of the pretrained network, the fine-tuned one and the average.
    labels : Tensor of shape (N,)
        Class indices; samples with -100 do not count.

    Returns
    -------
    dict of str to float
        Shares of all samples by three letters, T(rue) or F(alse), of pre, tuned and averaged. ``"FFT"`` is the share
        that both networks classify wrongly and the average correctly; ``"TTF"`` is the opposite.

    Raises
    ------
    ShapeError
        If there is not one label and one row of each network per sample.

    Examples
    --------
    >>> right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> transitions(wrong, wrong, right, torch.tensor([0]))["FFT"]
    1.0
    """
    labels, pre, tuned, averaged = _labeled(labels, pre, tuned, averaged)
    right = torch.stack([logits.argmax(1) == labels for logits in (pre, tuned, averaged)])
    shares = {}
    for letters in product("TF", repeat=3):
        match = torch.stack([row == (letter == "T") for row, letter in zip(right, letters, strict=True)]).all(0)
        shares["".join(letters)] = match.double().mean().item()
    return shares


def calibration_error(logits: Float[Tensor, "..."], labels: Int[Tensor, "N"], *, bins: int = 15) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy.

    Samples are put in ``bins`` equal bins of their largest probability; those with label -100 do not count. A logit of
    minus infinity is a probability of 0.

    Returns
    -------
    float
        Mean distance of confidence and accuracy over the bins, weighted by their samples, in [0, 1].

    Raises
    ------
    CalibrationError
        If no sample is labeled.
    NonFiniteError
        If logits hold NaN or infinity, so that they give no probabilities.
    ShapeError
        If there is not one label per sample.

    References
    ----------
    Guo et al. "On Calibration of Modern Neural Networks". ICML 2017. arXiv:1706.04599.

    Examples
    --------
    >>> logits = torch.tensor([[3.0, 1.0]] * 4).log()
    >>> calibration_error(logits, torch.tensor([0, 0, 0, 1])) < 1e-6
    True
    """
    labels, logits = _labeled(labels, logits)
    probability, choice = logits.double().softmax(1).max(1)
    if not is_finite(probability):
        raise NonFiniteError("the logits hold NaN or infinity", do="Look for such values in the weights and the data.")
    place = (probability * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gap.index_add_(0, place, (choice == labels).double() - probability)
    return gap.abs().sum().item() / len(labels)


@dataclass(frozen=True)
class Confidence:
    """The confidence of a network.

    Attributes
    ----------
    probability : float
        Mean of the largest probability.
    spread : float
        Root mean square of the logits about their mean over the classes: the logit scale.
    """

    probability: float
    spread: float


def confidence(logits: Float[Tensor, "..."]) -> Confidence:
    """Measure the confidence of a network; needs no labels.

    Examples
    --------
    >>> confidence(torch.tensor([[1.0, -1.0]]))
    Confidence(probability=0.8807970285415649, spread=1.0)
    """
    if logits.ndim != 2 or not len(logits):
        raise ShapeError("logits", found=tuple(logits.shape), expected="(N, K), N at least 1")
    scores = logits.float()
    spread = (scores - scores.mean(1, keepdim=True)).square().mean().sqrt()
    return Confidence(scores.softmax(1).max(1).values.mean().item(), spread.item())


def confidence_ratio(pre: Float[Tensor, "..."], tuned: Float[Tensor, "..."]) -> float:
    """Return the ratio of the logit scales of the fine-tuned and the pretrained network.

    Above 1.5 the fine-tuned network's errors dominate an average: fine-tune with :func:`weightsmith.merge.bang`.

    Examples
    --------
    >>> confidence_ratio(torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, -3.0]]))
    3.0
    """
    scale = confidence(pre).spread
    return confidence(tuned).spread / scale if scale > 0 else math.inf


def output_ensemble(
    pre: Float[Tensor, "..."], tuned: Float[Tensor, "..."], *, weight: float = 0.5
) -> dict[str, Float[Tensor, "..."]]:
    """Average two networks' outputs instead of their weights, at twice the cost of inference.

    Parameters
    ----------
    pre, tuned : Tensor of shape (N, K)
        Logits.
    weight : float, default: 0.5
        Share of ``tuned``.

    Returns
    -------
    dict of str to Tensor
        ``"probabilities"`` (their logarithm) and ``"logits"``.

    Examples
    --------
    >>> output_ensemble(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]))["logits"]
    tensor([[1., 1.]])
    """
    if pre.shape != tuned.shape:
        raise ShapeError("logits of the two networks", found=tuple(tuned.shape), expected=tuple(pre.shape))
    probabilities = torch.lerp(pre.float().softmax(1), tuned.float().softmax(1), weight)
    return {"probabilities": probabilities.log(), "logits": torch.lerp(pre.float(), tuned.float(), weight)}


def diagnose(
    pre: Float[Tensor, "..."], tuned: Float[Tensor, "..."], averaged: Float[Tensor, "..."], labels: Int[Tensor, "N"]
) -> dict[str, float]:
    """Diagnose an average on one set of labelled data.

    Parameters
    ----------
    pre, tuned, averaged : Tensor of shape (N, K)
        Logits of the pretrained network, the fine-tuned one and the average.
    labels : Tensor of shape (N,)
        Class indices; samples with -100 do not count.

    Returns
    -------
    dict of str to float
        Accuracies (of the output ensembles too), calibration errors, the confidence ratio, and the shares of errors
        that the average repairs (``FFT``) and makes (``TTF``).

    Raises
    ------
    CalibrationError
        If there are no labeled samples.
    NonFiniteError
        If logits hold NaN or infinity.
    ShapeError
        If there is not one label and one row of each network per sample.

    Examples
    --------
    >>> right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> diagnose(right, wrong, right, torch.tensor([0]))["confidence_ratio"]
    3.0
    """
    if not len(labels):
        raise CalibrationError("no samples to diagnose the average on", expected="at least one")
    labels, pre, tuned, averaged = _labeled(labels, pre, tuned, averaged)
    moves = transitions(pre, tuned, averaged, labels)
    outputs: Mapping[str, Tensor] = {
        "pre": pre,
        "tuned": tuned,
        "averaged": averaged,
        **{f"ensemble_of_{name}": value for name, value in output_ensemble(pre, tuned).items()},
    }
    measures = {f"accuracy_{name}": (x.argmax(1) == labels).double().mean().item() for name, x in outputs.items()}
    measures |= {f"calibration_error_{name}": calibration_error(x, labels) for name, x in outputs.items()}
    return measures | {
        "confidence_ratio": confidence_ratio(pre, tuned),
        "repaired_FFT": moves["FFT"],
        "broken_TTF": moves["TTF"],
    }


def _labeled(labels: Tensor, *logits: Tensor) -> tuple[Tensor, ...]:
    """The labels that count, and their rows of logits."""
    kept = labels != IGNORED
    if not kept.any():
        raise CalibrationError("no labeled samples", expected="at least one")
    for each in logits:
        if each.ndim != 2 or each.shape != logits[0].shape or len(each) != len(labels):
            shapes = [tuple(each.shape) for each in logits]
            raise ShapeError("logits", found=shapes, expected=f"({len(labels)}, classes) each")
    return (labels[kept], *(each[kept] for each in logits))
