r"""The phase of training that measures of the loss landscape tell, and what to change.

The five phases are those of Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes"
(NeurIPS 2021), arXiv 2107.11228. The thresholds are conventions: those given here reproduce the phases of that paper's
published measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from weightsmith.analyze._phases.metrics import LandscapeMetrics
from weightsmith.core.errors import HyperparameterError

__all__ = ["PHASES", "Phase", "PhaseName", "classify_phase", "phase_sensitivity"]

PhaseName = Literal["I", "II", "III", "IV-A", "IV-B", "diverged"]

FACTORS = (0.5, 0.8, 1.0, 1.25, 2.0)
"""What thresholds are multiplied by to see whether the phase depends on them."""


@dataclass(frozen=True)
class Phase:
    """A phase of training.

    Attributes
    ----------
    meaning : str
        What it is.
    advice : str
        What to change.
    """

    meaning: str
    advice: str


PHASES: Mapping[PhaseName, Phase] = MappingProxyType(
    {
        "I": Phase(
            "underfitted, and too small: high training loss, and barriers between seeds",
            "Make the network wider. If it cannot be, lower the temperature: larger batches or a lower learning rate.",
        ),
        "II": Phase(
            "underfitted: high training loss, no barriers between seeds",
            "Lower the temperature: larger batches, a lower learning rate or more decay of it, or more epochs.",
        ),
        "III": Phase(
            "too small: low training loss, but barriers between seeds",
            "Make the network wider. The batch size alone does not lead out of this phase.",
        ),
        "IV-A": Phase(
            "overfitted: low training loss, no barriers, but seeds disagree on new data",
            "Raise the temperature: smaller batches or a higher learning rate; or use more data or augmentation.",
        ),
        "IV-B": Phase(
            "generalizing: low training loss, no barriers, and seeds agree",
            "Keep width and temperature.",
        ),
        "diverged": Phase(
            "diverged: the loss is not finite, or the network is no better than guessing",
            "Lower the learning rate, clip gradients, or check the data.",
        ),
    }
)
"""All phases by name."""


def classify_phase(
    metrics: LandscapeMetrics,
    *,
    tau_loss: float | None = None,
    tau_mc: float = 1.0,
    tau_cka: float = 0.7,
    best_loss: float = 0.0,
) -> PhaseName:
    r"""Return the phase of networks from their measures.

    ================  ==========================  ===========================================
    training loss     mode connectivity < -tau    else
    ================  ==========================  ===========================================
    above tau         I                           II
    up to tau         III                         IV-A if CKA < tau, else IV-B
    ================  ==========================  ===========================================

    Parameters
    ----------
    metrics : LandscapeMetrics
        From :func:`landscape_metrics`.
    tau_loss : float, optional
        Threshold of the training loss above ``best_loss`` in nats, > 0; :math:`0.02 \ln C` for ``C`` classes by
        default, 0.046 for ten.
    tau_mc : float, default: 1.0
        Threshold of the mode connectivity in points of training error, > 0.
    tau_cka : float, default: 0.7
        Threshold of the similarity, in (0, 1).
    best_loss : float, default: 0.0
        The lowest training loss that can be reached, >= 0: that of the best network known, for a language model.

    Raises
    ------
    HyperparameterError
        If a threshold is out of range.

    Examples
    --------
    >>> classify_phase(LandscapeMetrics(train_loss=0.002, mode_connectivity=-0.01, cka=0.762))
    'IV-B'
    >>> classify_phase(LandscapeMetrics(train_loss=0.926, mode_connectivity=-6.22, cka=0.486))
    'I'
    """
    tau_loss = 0.02 * math.log(max(metrics.classes, 2)) if tau_loss is None else tau_loss
    for name, value, most in (("tau_loss", tau_loss, math.inf), ("tau_mc", tau_mc, 100), ("tau_cka", tau_cka, 1)):
        if not 0 < value < most:
            raise HyperparameterError(name, found=value, expected=f"above 0 and below {most:g}")
    if not 0 <= best_loss < math.inf:
        raise HyperparameterError("best_loss", found=best_loss, expected=">= 0")
    values = (metrics.train_loss, metrics.mode_connectivity, metrics.cka)
    if metrics.diverged or not all(map(math.isfinite, values)):
        return "diverged"
    barrier = metrics.mode_connectivity < -tau_mc
    if metrics.train_loss - best_loss > tau_loss:
        return "I" if barrier else "II"
    if barrier:
        return "III"
    return "IV-A" if metrics.cka < tau_cka else "IV-B"


def phase_sensitivity(
    metrics: LandscapeMetrics,
    *,
    tau_loss: float | None = None,
    tau_mc: float = 1.0,
    tau_cka: float = 0.7,
    best_loss: float = 0.0,
    factors: Sequence[float] = FACTORS,
) -> dict[str, dict[float, PhaseName]]:
    """Return the phases when one threshold at a time is multiplied by a factor.

    Parameters
    ----------
    metrics, tau_loss, tau_mc, tau_cka, best_loss
        As for :func:`classify_phase`.
    factors : sequence of float, default: 0.5, 0.8, 1, 1.25, 2
        What a threshold is multiplied by; one of the connectivity stays below 100, one of the similarity below 1.

    Examples
    --------
    >>> found = phase_sensitivity(LandscapeMetrics(train_loss=0.06, mode_connectivity=-0.1, cka=0.9))
    >>> found["tau_loss"]
    {0.5: 'II', 0.8: 'II', 1.0: 'II', 1.25: 'II', 2.0: 'IV-B'}
    """
    taus = {
        "tau_loss": 0.02 * math.log(max(metrics.classes, 2)) if tau_loss is None else tau_loss,
        "tau_mc": tau_mc,
        "tau_cka": tau_cka,
    }

    largest = {"tau_loss": math.inf, "tau_mc": 99.9, "tau_cka": 0.999}  # just inside the allowed ranges

    def changed(name: str, factor: float) -> dict[str, float]:
        return {**taus, name: min(taus[name] * factor, largest[name])}

    return {
        name: {factor: classify_phase(metrics, **changed(name, factor), best_loss=best_loss) for factor in factors}
        for name in taus
    }
