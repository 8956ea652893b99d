"""Which phase of training networks are in, and what to change.

Schürholt, Meynent, Zhou, Lu, Yang, Borth, "A Model Zoo on Phase Transitions in Neural Networks" (2025), arXiv
2504.18072, with the phases of Yang et al. (2021), arXiv 2107.11228: width is the load of a network, batch size or
learning rate the temperature of its training, and the loss landscape tells five phases apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from weightsmith.analyze._phases.classify import PHASES, classify_phase, phase_sensitivity
from weightsmith.analyze._phases.curve import POINTS, train_curve
from weightsmith.analyze._phases.metrics import LandscapeMetrics, landscape_metrics
from weightsmith.analyze._phases.zoo import PhaseZoo
from weightsmith.core.data import Samples
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.results import Result, record
from weightsmith.core.training import FitOptions, seed_of
from weightsmith.embedded import open_model

__all__ = ["phases"]

CURVE_EPOCHS = 30
"""Of the curve between two networks."""


def phases(
    models: Sequence[nn.Module | str],
    training: Samples,
    test: Samples | None = None,
    *,
    tau_loss: float | None = None,
    tau_mc: float = 1.0,
    tau_cka: float = 0.7,
    best_loss: float | None = None,
    zoo: Path | None = None,
    load: float | None = None,
    temperature: float | None = None,
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
        the zoo, or of the networks given, with which phases I and II cannot be told from the others.
    zoo : Path, optional
        Folder of a zoo (:func:`train_phase_zoo`): the report has the map of its phases, and the result names its cell
        with the nearest measures.
    load, temperature : float, optional
        Where the networks lie on the map of the zoo, such as their width and batch size.
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
    if (load is None) != (temperature is None) or (load is not None and zoo is None):
        raise HyperparameterError("load and temperature", found=(load, temperature), expected="both, with a zoo")
    cells = PhaseZoo.open(zoo) if zoo is not None else None
    hyper: dict[str, Any] = {
        "tau_loss": tau_loss,
        "tau_mc": tau_mc,
        "tau_cka": tau_cka,
        "best_loss": best_loss,
        "zoo": zoo,
        "load": load,
        "temperature": temperature,
        "hessian_samples": hessian_samples,
        "probes": probes,
    }
    with record("phases", seed=seed_of(generator), **hyper, **train_curve.fit_defaults | options) as result:  # type: ignore[attr-defined]
        metrics = landscape_metrics(
            nets, training, test, hessian_samples=hessian_samples, probes=probes, generator=generator, **options
        )
        losses = [network.train_loss for network in metrics.networks]
        losses += [cell["train_loss"] for cell in cells.cells if not cell["diverged"]] if cells else []
        best = best_loss if best_loss is not None else min(losses) if metrics.language_model else 0.0
        taus: dict[str, Any] = {"tau_loss": tau_loss, "tau_mc": tau_mc, "tau_cka": tau_cka, "best_loss": best}
        fill(result, names, metrics)
        phase = classify_phase(metrics, **taus)
        result.totals = {"phase": phase, **result.totals}
        result.notes = [f"Phase {phase}, {PHASES[phase].meaning}.", PHASES[phase].advice, *result.notes]
        if options.get("epochs", CURVE_EPOCHS) < CURVE_EPOCHS:
            result.notes.append(
                f"Curves of fewer than {CURVE_EPOCHS} epochs leave barriers that are none: phases I and III."
            )
        if equal := [pair for pair in metrics.pairs if pair.distance == 0]:
            result.notes.append(f"{len(equal)} pairs are the same network: give networks of other seeds.")
        if metrics.language_model and best_loss is None and cells is None:
            result.notes.append("Give best_loss: without it phases I and II of a language model are not found.")
        for name, found in phase_sensitivity(metrics, **taus).items():
            if others := {f"{factor:g} times": label for factor, label in found.items() if label != phase}:
                told = ", ".join(f"{label} at {times}" for times, label in others.items())
                result.notes.append(f"The phase depends on {name}: {told} its value.")
        if cells:
            own = None if load is None or temperature is None else {cells.load: load, cells.temperature: temperature}
            result.pictures["phases of the zoo"] = cells.picture(own, **taus)
            result.notes.append(beside(cells, metrics, phase, taus))
    return result


phases.fit_defaults = train_curve.fit_defaults  # type: ignore[attr-defined]


def beside(zoo: PhaseZoo, metrics: LandscapeMetrics, phase: str, taus: Mapping[str, Any]) -> str:
    """Which cell of a zoo has the nearest measures, and where the zoo generalizes."""
    place = zoo.nearest(metrics)
    found = dict(zip([(c[zoo.load], c[zoo.temperature]) for c in zoo.cells], zoo.phases(**taus), strict=True))
    at = (place[zoo.load], place[zoo.temperature])
    told = f"Nearest cell of the zoo by measures: {zoo.load} {at[0]}, {zoo.temperature} {at[1]} (phase {found[at]})."
    good = [cell for cell, each in found.items() if each == "IV-B"]
    if phase != "IV-B" and good:
        best = min(good, key=lambda cell: sum(abs(math.log(a / b)) for a, b in zip(cell, at, strict=True)))
        told += f" The next one in phase IV-B: {zoo.load} {best[0]}, {zoo.temperature} {best[1]}."
    return told


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
                "top_eigenvalue": hessian.top_eigenvalue,
            }
            if not hessian.converged:
                told = f"is {hessian.residual:.2g} after {hessian.products - hessian.probes} products"
                result.notes.append(f"The largest eigenvalue of {name} has not converged: its residual {told}.")
        result.layer(name, **row)
    for pair in metrics.pairs:
        name = f"{pair.first + 1} and {pair.second + 1}"
        result.layer(name, mode_connectivity=pair.mode_connectivity, cka=pair.cka, distance=pair.distance)
        result.curves[f"training error along the curve, in %: {name}"] = [
            (int(100 * t), error) for t, error in zip(POINTS, pair.errors, strict=True)
        ]
    if hessians := [network.hessian for network in metrics.networks if network.hessian is not None]:
        residual = max(each.residual for each in hessians)
        drawn = ", ".join(str(each.probes) for each in hessians)
        result.notes.append(f"Random vectors of the traces: {drawn}. Largest residual: {residual:.2g}.")
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
