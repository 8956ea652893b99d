"""The command: train a model's weights as pairs of conductances and read them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from weightsmith.core.data import Samples
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.models import exclude_frozen, find_layers, unreached
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    draw_seed,
    fit,
    refuse_adapters,
    requires_grad_restored,
    sample_losses,
    seed_of,
    training_method,
)
from weightsmith.quantize._synapse.devices import SoftBounds, SynapseDevice, read_device
from weightsmith.quantize._synapse.pairs import Update, check_arrays, to_analog, to_digital
from weightsmith.quantize._synapse.pulses import Coding, PulsedOptimizer, check_rules

__all__ = ["synapse"]


@training_method(learning_rate=0.05, epochs=10, batch_size=1)
def synapse(
    model: nn.Module,
    training: Samples,
    *,
    curves: Path | None = None,
    pulses: int = 64,
    beta_up: float = 3.0,
    beta_down: float = 6.0,
    device_variation: float = 0.0,
    cycle_variation: float = 0.0,
    stuck: float = 0.0,
    update: Update = "unidirectional",
    weight_scale: float = 2.0,
    write_by_pulses: bool = False,
    error_threshold: float = 0.1,
    input_threshold: float = 0.5,
    coding: Coding = "threshold",
    refresh_at: float = 0.9,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a model's weights as pairs of analog conductances, one identical pulse at a time.

    Parameters
    ----------
    model : nn.Module
        A classifier or a language model. Changed in place; at the end its weights are plain again, as read from the
        conductances.
    training : sequence of samples
        Samples with labels.
    curves : Path, optional
        CSV file of a measured device with the columns ``potentiation`` and ``depression``, see :func:`read_device`.
        Without, the device has soft bounds with the three numbers below.
    pulses : int, default: 64
        Pulses from the lowest conductance to the highest.
    beta_up, beta_down : float, default: 3.0, 6.0
        Non-linearity of potentiation and depression; 0 is linear.
    device_variation : float, default: 0.0
        Relative standard deviation of the steps of different devices.
    cycle_variation : float, default: 0.0
        Relative standard deviation of the steps of one device.
    stuck : float, default: 0.0
        Share of devices that never change, in [0, 1).
    update : {"unidirectional", "bidirectional", "single"}, default: "unidirectional"
        Potentiate one device of the pair; or also depress the other; or one device beside a fixed reference.
    weight_scale : float, default: 2.0
        Weight of the largest difference of two conductances.
    write_by_pulses : bool, default: False
        Program and refresh by a whole number of pulses instead of exactly.
    error_threshold : float, default: 0.1
        Errors up to this ask for no pulse.
    input_threshold : float, default: 0.5
        Inputs up to this magnitude are not active.
    coding : {"threshold", "rate"}, default: "threshold"
        Inputs of inner layers are active above the threshold, or at random with their magnitude as probability.
    refresh_at : float, default: 0.9
        Pairs with a conductance beyond this are erased and programmed anew, in (0, 1].
    include, exclude : str or sequence of str
        Patterns on the paths of layers whose weights become conductances.
    generator : torch.Generator, optional
        Draws the devices, the order of the samples and the variation between pulses.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The learning rate is that of all other
        parameters (plain gradient descent). The paper has a batch size of 1.

    Returns
    -------
    Result
        Per layer ``pulses``, ``refreshes``, ``saturated`` (share of conductances at an end) and ``relative_change`` of
        the weights; in total pulses, refreshes, pulses per sample and the losses.

    Raises
    ------
    CalibrationError
        If the table of the device cannot be used, there are no samples, or labels are real numbers.
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If a weight, an error or the loss is not finite.
    UnsupportedModelError
        If no layer has a weight of its own.

    References
    ----------
    Lim et al., arXiv 1707.06381.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> samples = [(torch.tensor([1.0, 0.0]), 0), (torch.tensor([0.0, 1.0]), 1)] * 8
    >>> result = synapse(model, samples, epochs=2)
    >>> model(torch.eye(2)).argmax(1).tolist(), result.totals["refreshes"]
    ([0, 1], 0)
    """
    check_arrays(update, weight_scale)
    check_rules(error_threshold, input_threshold, coding, refresh_at)
    if options["accumulation_steps"] > 1:
        raise HyperparameterError(
            "accumulation_steps", found=options["accumulation_steps"], expected=1, do="Set batch_size instead."
        )
    varied: dict[str, Any] = {
        "device_variation": device_variation,
        "cycle_variation": cycle_variation,
        "stuck": stuck,
    }
    if curves is None:
        device = SynapseDevice(SoftBounds(pulses, beta_up), SoftBounds(pulses, beta_down), **varied)
    else:
        device = read_device(curves, **varied)
    refuse_adapters(model)
    rules: dict[str, Any] = {
        "error_threshold": error_threshold,
        "input_threshold": input_threshold,
        "coding": coding,
        "refresh_at": refresh_at,
    }
    arrays: dict[str, Any] = {"update": update, "weight_scale": weight_scale, "write_by_pulses": write_by_pulses}
    about: dict[str, Any] = {"pulses": pulses, "beta_up": beta_up, "beta_down": beta_down}
    if curves is not None:
        about = {"curves": str(curves)}
    seed = draw_seed(generator)
    draw = torch.Generator().manual_seed(seed)
    chosen: dict[str, Any] = {"include": include, "exclude": exclude}
    with record(
        "synapse", seed=seed_of(generator), **about, **varied, **arrays, **rules, **chosen, **options
    ) as result:
        result.notes += unreached(model, find_layers(model), "Not of devices", trains=True)
        left_out, notes = exclude_frozen(find_layers(model, include, exclude), exclude)
        result.notes += notes
        layers = to_analog(model, device, **arrays, include=include, exclude=left_out, generator=draw)
        before = {layer.name: layer.weight.detach().clone() for layer in layers}
        with requires_grad_restored(model):
            optimizer = PulsedOptimizer(
                model, options["learning_rate"], weight_decay=options["weight_decay"], generator=draw, **rules
            )
            try:
                run = fit(model, training, loss=_summed, optimizer=optimizer, seed=seed, **options)
            finally:
                optimizer.close()
        stats = optimizer.stats()
        to_digital(model)
        for layer in layers:
            old = before[layer.name].float()
            change = (layer.weight.detach().float() - old).norm() / old.norm().clamp_min(1e-12)
            result.layer(layer.name, **stats[layer.name], relative_change=float(change))
        result.curves["training loss"] = run.losses
        totals = {name: sum(each[name] for each in stats.values()) for name in ("pulses", "refreshes")}
        seen = len(training) * options["epochs"]
        result.totals = {"conductances": 2 * sum(w.numel() for w in before.values()), **totals}
        result.totals["pulses_per_sample"] = totals["pulses"] / seen
        if still := [name for name, each in stats.items() if not each["pulses"]]:
            more = f" and {len(still) - 3} more" if len(still) > 3 else ""
            result.notes.append(
                f"{len(still)} of {len(stats)} layers got no pulse ({', '.join(map(repr, still[:3]))}{more}): "
                "lower error_threshold or input_threshold."
            )
    return result


def _summed(model: nn.Module, batch: Any) -> Tensor:
    """The sum of the losses of all labels, so that the error at a logit is target minus probability."""
    losses, _ = sample_losses(model, batch)
    return losses.sum()
