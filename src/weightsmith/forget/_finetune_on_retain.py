"""Fine-tune a regression network on what is retained: the baseline of every method that forgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import nn

from weightsmith.core.data import Samples
from weightsmith.core.training import Fit, FitOptions, draw_seed, fit, float_weights, training_method
from weightsmith.forget._shared.regression import LossName, check_regression, distance_of, supervised_loss

__all__ = ["finetune_on_retain"]


@training_method(learning_rate=1e-3, epochs=5, batch_size=256)
def finetune_on_retain(
    model: nn.Module,
    retain: Samples,
    *,
    loss: LossName = "l1",
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Fit:
    """Train a regression network on the retained samples only.

    Parameters
    ----------
    model : nn.Module
        A regression network, changed in place.
    retain : sequence of samples
        With labels of the shape of the outputs.
    loss : {"l1", "mse", "huber", "pinball"}, default: "l1"
        The loss.
    quantiles : sequence of float, default: (0.1, 0.5, 0.9)
        Of the pinball loss, in the order of the outputs.
    generator : torch.Generator, optional
        Draws the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is Adam, with decoupled
        weight decay.

    Returns
    -------
    Fit
        Losses and times.

    Raises
    ------
    CalibrationError
        If there are no samples.
    ShapeError
        If outputs and labels differ in shape.
    UnsupportedModelError
        If it is no regression network.

    Examples
    --------
    >>> data = [(torch.tensor([x]), torch.tensor([2 * x])) for x in torch.linspace(-1, 1, 32).tolist()]
    >>> finetune_on_retain(nn.Linear(1, 1), data).steps
    5
    """
    distance = distance_of(loss, quantiles)
    check_regression(model, {"retain": retain}, distance)
    with float_weights(model):
        return fit(model, retain, loss=supervised_loss(model, distance), seed=draw_seed(generator), **options)
