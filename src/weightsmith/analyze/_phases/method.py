"""Which phase of training networks are in, and what to change.

Schürholt, Meynent, Zhou, Lu, Yang, Borth, "A Model Zoo on Phase Transitions in Neural Networks" (2025), arXiv
2504.18072, with the phases of Yang et al. (2021), arXiv 2107.11228: width is the load of a network, batch size or
learning rate the temperature of its training, and the loss landscape tells five phases apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import nn

from weightsmith.analyze._phases.classify import PHASES, classify_phase, phase_sensitivity
from weightsmith.analyze._phases.curve import POINTS, train_curve
from weightsmith.analyze._phases.metrics import LandscapeMetrics, landscape_metrics
from weightsmith.core.data import Samples
from weightsmith.core.results import Result, record
from weightsmith.core.training import FitOptions
from weightsmith.embedded import open_model

__all__ = ["phases"]


def phases(
    models: Sequence[nn.Module | str],
    training: Samples,
    test: Samples | None = None,
    *,
    tau_loss: float | None = None,
    tau_mc: float = 1.0,
    tau_cka: float = 0.7,
    best_loss: float | None = None,
    hessian_samples: int = 640,
    probes: int = 100,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Tell which phase of training networks are in, and what to change.

    The networks were trained alike from different seeds, two or more. Between each pair a curve is trained.

    Parameters
    ----------
    models : sequence of nn.Module or str
        The networks, or their locations: folders, hub ids, or ``embedded:NAME``.
    training : Samples
        What they were trained on, with labels.
    test : Samples, optional
        Other samples, for the test accuracy and the similarity of the outputs.
    tau_loss : float, optional
        Threshold of the training loss above ``best_loss``, > 0 nats; 0.02 ln C for C classes by default.
    tau_mc : float, default: 1.0
        Threshold of a barrier, in points of training error, > 0.
    tau_cka : float, default: 0.7
        Threshold of the similarity of the outputs, in (0, 1).
    best_loss : float, optional
        The training loss of the best network known. By default 0 for classifiers; for language models the lowest of
        the networks given, with which phases I and II cannot be told from the others.
    hessian_samples : int, default: 640
        Training samples on which the Hessian is measured; 0 leaves it out. It does not decide on the phase.
    probes : int, default: 100
        Random vectors for its trace at most.
    generator : torch.Generator, optional
        Of everything random; seed 0 by default.
    **options
        Options of the curves' training, by default 30 epochs of momentum at 0.1 and batches of 128; language models
        need a lower rate.

    Returns
    -------
    Result
        A row per network (loss, accuracies, trace and largest eigenvalue of the Hessian) and per pair (mode
        connectivity, similarity of the outputs, distance); in total the means and the phase; the training error along
        each curve.

    Raises
    ------
    CalibrationError
        If there are fewer than two networks, labels are missing, or a batch is larger than the data.
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If a curve diverges.
    ShapeError
        If the networks differ in names or shapes.
    UnsupportedModelError
        If the weights are not real numbers, or the outputs have no logits.

    References
    ----------
    Schürholt et al., arXiv 2504.18072; Yang et al., arXiv 2107.11228.

    Examples
    --------
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> data = [(row, int(row[0] > 0)) for row in x]
    >>> models = [nn.Linear(2, 2) for _ in range(2)]
    >>> for model in models:
    ...     _ = nn.init.zeros_(model.bias), model.weight.data.copy_(torch.tensor([[-40.0, 0.0], [40.0, 0.0]]))
    >>> phases(models, data, epochs=2, batch_size=32).totals["phase"]
    'IV-B'
    """
    names = [each if isinstance(each, str) else f"network {place}" for place, each in enumerate(models, 1)]
    nets = [open_model(each).model if isinstance(each, str) else each for each in models]
    with record(
        "phases", tau_loss=tau_loss, tau_mc=tau_mc, tau_cka=tau_cka, hessian_samples=hessian_samples, probes=probes
    ) as result:
        metrics = landscape_metrics(
            nets, training, test, hessian_samples=hessian_samples, probes=probes, generator=generator, **options
        )
        lowest = min(network.train_loss for network in metrics.networks)
        best = best_loss if best_loss is not None else lowest if metrics.language_model else 0.0
        taus: dict[str, Any] = {"tau_loss": tau_loss, "tau_mc": tau_mc, "tau_cka": tau_cka, "best_loss": best}
        fill(result, names, metrics)
        phase = classify_phase(metrics, **taus)
        result.totals = {"phase": phase, **result.totals}
        result.notes = [f"Phase {phase}, {PHASES[phase].meaning}.", PHASES[phase].advice, *result.notes]
        if metrics.language_model and best_loss is None:
            result.notes.append("Give best_loss: without it phases I and II of a language model are not found.")
        for name, found in phase_sensitivity(metrics, **taus).items():
            if others := {f"{factor:g} times": label for factor, label in found.items() if label != phase}:
                told = ", ".join(f"{label} at {times}" for times, label in others.items())
                result.notes.append(f"The phase depends on {name}: {told} its value.")
    return result


phases.fit_defaults = train_curve.fit_defaults  # type: ignore[attr-defined]


def fill(result: Result, names: Sequence[str], metrics: LandscapeMetrics) -> None:
    """Fill a record with measures: rows per network and pair, totals, curves, what did not converge."""
    result.reading, result.title = True, "phase of training"
    for name, network in zip(names, metrics.networks, strict=True):
        row = {"train_loss": network.train_loss, "train_accuracy": network.train_accuracy}
        if network.test_accuracy == network.test_accuracy:
            row["test_accuracy"] = network.test_accuracy
        if (hessian := network.hessian) is not None:
            row |= {
                "hessian_trace": hessian.trace,
                "trace_error": hessian.trace_error,
                "probes": hessian.probes,
                "top_eigenvalue": hessian.top_eigenvalue,
                "residual": hessian.residual,
            }
            if not hessian.converged:
                result.notes.append(f"The largest eigenvalue of {name} has not converged.")
        result.layer(name, **row)
    for pair in metrics.pairs:
        name = f"{pair.first + 1} and {pair.second + 1}"
        result.layer(name, mode_connectivity=pair.mode_connectivity, cka=pair.cka, distance=pair.distance)
        result.curves[f"training error along the curve, in %: {name}"] = [
            (int(100 * t), error) for t, error in zip(POINTS, pair.errors, strict=True)
        ]
    totals = {
        "train_loss": metrics.train_loss,
        "train_accuracy": metrics.train_accuracy,
        "test_accuracy": metrics.test_accuracy,
        "mode_connectivity": metrics.mode_connectivity,
        "cka": metrics.cka,
        "distance": metrics.distance,
        "hessian_trace": metrics.hessian_trace,
        "top_eigenvalue": metrics.top_eigenvalue,
    }
    result.totals = {name: value for name, value in totals.items() if value == value}
