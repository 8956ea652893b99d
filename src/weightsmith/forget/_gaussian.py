r"""Gaussian fine-tuning: replace the labels to forget by random ones and train on.

Tarun, Chundawat, Mandal, Kankanhalli, "Deep Regression Unlearning" (ICML 2023), arXiv 2210.08196 ("Gaussian-Amnesiac").
With the mean :math:`\mu` and the sample standard deviation :math:`s` of all targets, every target to forget is replaced
once,

.. math:: \tilde y_i \sim \mathcal{N}(\mu, s^2) ,

and the network is trained on the retained samples and on these with its ordinary loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples, split_labels
from weightsmith.core.errors import CalibrationError, NonFiniteError
from weightsmith.core.results import Result, record
from weightsmith.core.training import FitOptions, draw_seed, fit, float_weights, seed_of, training_method
from weightsmith.forget._shared.regression import LossName, distance_of, supervised_loss
from weightsmith.forget._shared.sets import EMPTY, frozen_note, prepared_sets, set_errors

__all__ = ["gaussian", "random_targets"]

Draw = Literal["normal", "retained"]


@training_method(learning_rate=1e-3, epochs=1, batch_size=256)
def gaussian(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    *,
    other: Samples | None = None,
    loss: LossName = "l1",
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    targets: Draw = "normal",
    clip: bool = False,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Unlearn samples of a regression by training on random labels for them.

    Parameters
    ----------
    model : nn.Module
        A regression network, changed in place: any module whose outputs have the shape of the labels, or a Hugging
        Face model with ``num_labels=1`` or ``problem_type="regression"``.
    forget : sequence of samples
        What to forget: pairs (input, target), or mappings with ``labels``.
    retain : sequence of samples
        What to keep, of the same kind; none of it in ``forget``.
    other : sequence of samples, optional
        Samples in neither set; they are only measured. By default every eighth sample of ``retain`` is held out for
        that.
    loss : {"l1", "mse", "huber", "pinball"}, default: "l1"
        The loss, and the error that is measured.
    quantiles : sequence of float, default: (0.1, 0.5, 0.9)
        Of the pinball loss, in the order of the outputs.
    targets : {"normal", "retained"}, default: "normal"
        Draw the labels from a normal distribution, or from the retained labels.
    clip : bool, default: False
        Clip them to the range of the retained labels.
    generator : torch.Generator, optional
        Draws the labels and the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is Adam, with decoupled
        weight decay.

    Returns
    -------
    Result
        ``before`` and ``after`` hold the mean error on each set. The target is the error of a network that is retrained
        without the samples to forget, not the highest one.

    Raises
    ------
    CalibrationError
        If ``retain`` is empty, or a sample is in two of the sets.
    HyperparameterError
        If a hyper-parameter is out of range.
    NonFiniteError
        If a parameter, a target or the loss is not finite.
    ShapeError
        If outputs and labels differ in shape.
    UnsupportedModelError
        If it is no regression network, is quantized, or has adapters.

    References
    ----------
    Tarun, Chundawat, Mandal, Kankanhalli, arXiv 2210.08196.

    Examples
    --------
    >>> data = [(torch.tensor([x]), torch.tensor([2 * x])) for x in torch.linspace(-1, 1, 64).tolist()]
    >>> result = gaussian(nn.Linear(1, 1), data[:8], data[8:])
    >>> sorted(result.after)
    ['error_forgotten', 'error_neither', 'error_retained']
    """
    distance = distance_of(loss, quantiles)
    check_choice("targets", targets, Draw)
    seed = draw_seed(generator)
    hyper: dict[str, Any] = {"loss": loss, "quantiles": quantiles, "targets": targets, "clip": clip}
    with record("gaussian", seed=seed_of(generator), **hyper, **options) as result:
        if not len(forget):
            warnings.warn(EMPTY, stacklevel=2)
            result.notes.append(EMPTY)
            return result
        sets = prepared_sets(model, forget, retain, other, distance)
        trained = sets["retained"]
        drawn = random_targets(
            forget, trained, targets=targets, clip=clip, generator=torch.Generator().manual_seed(seed)
        )
        result.before = set_errors(model, sets, distance)
        with float_weights(model):
            data = _Relabeled(forget, drawn, trained)
            run = fit(model, data, loss=supervised_loss(model, distance), seed=seed, **options)
        result.after = set_errors(model, sets, distance)
        result.curves["training loss"] = run.losses
        result.totals = {"steps": run.steps, "mean_target": float(drawn.mean())}
        result.notes += frozen_note(model)
    return result


def random_targets(
    forget: Samples,
    retain: Samples,
    *,
    targets: Draw = "normal",
    clip: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N ..."]:
    """Draw a random target for each sample to forget.

    Parameters
    ----------
    forget, retain : sequence of samples
        Of the normal distribution, the mean and the sample standard deviation (of ``n - 1``) are those of both sets.
    targets : {"normal", "retained"}, default: "normal"
        Draw from a normal distribution, or one of the targets of ``retain``.
    clip : bool, default: False
        Clip to the range of the targets of ``retain``.
    generator : torch.Generator, optional
        Draws them.

    Raises
    ------
    CalibrationError
        If there are fewer than two targets.
    NonFiniteError
        If a target is not finite.

    Examples
    --------
    >>> forget, retain = [(torch.ones(1), torch.tensor(1.0))], [(torch.ones(1), torch.tensor(y)) for y in (2.0, 3.0)]
    >>> random_targets(forget, retain, generator=torch.Generator().manual_seed(0))
    tensor([3.5410])
    """
    labels = [_label(samples[index]) for samples in (forget, retain) for index in range(len(samples))]
    if len(labels) < 2:
        raise CalibrationError("targets", found=len(labels), expected="at least 2, for a standard deviation")
    every = torch.stack(labels)
    known = every[len(forget) :]
    if not bool(every.isfinite().all()):
        raise NonFiniteError("targets of the samples", found="NaN or infinity")
    shape = (len(forget), *every.shape[1:])
    if targets == "retained":
        drawn = known[torch.randint(len(known), (len(forget),), generator=generator)]
    else:
        drawn = every.mean(0) + every.std(0) * torch.randn(shape, generator=generator, dtype=every.dtype)
    drawn = drawn.clamp(known.amin(0), known.amax(0)) if clip else drawn
    return drawn.float()


class _Relabeled(Dataset[Any]):
    """The samples to forget with their new targets, then those to retain."""

    def __init__(self, forget: Samples, targets: Tensor, retain: Samples) -> None:
        self.forget, self.targets, self.retain = forget, targets, retain

    def __len__(self) -> int:
        return len(self.forget) + len(self.retain)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self.forget):
            return _with_label(self.retain[index - len(self.forget)])
        return _with_label(self.forget[index], self.targets[index])


def _label(sample: Any) -> Tensor:
    return torch.as_tensor(split_labels(sample)[1]).double()


def _with_label(sample: Any, label: Tensor | None = None) -> Any:
    """A sample with a real number for a label, so that one batch holds labels of one type."""
    inputs, own = split_labels(sample)
    if label is None:
        label = torch.as_tensor(own, dtype=torch.float32, device=getattr(own, "device", "cpu"))
    return (
        {**inputs, "labels": label} if isinstance(inputs, Mapping) and isinstance(sample, Mapping) else (inputs, label)
    )
