r"""Blindspot: train a regression network toward one that never saw the samples to forget.

Tarun, Chundawat, Mandal, Kankanhalli, "Deep Regression Unlearning" (ICML 2023), arXiv 2210.08196. A helper :math:`B` of
the same architecture starts from new random weights and is trained on the retained samples for a few epochs. Then the
network :math:`M` is trained on all samples: toward the labels of those to retain, and toward the helper's outputs and
attention maps of those to forget (:math:`u_i = 1`, :math:`n_f` of the :math:`n` samples of a batch),

.. math:: L = \frac{1}{n} \sum_i \Bigl[ (1 - u_i)\, d(M(x_i), y_i) + u_i\, d(M(x_i), B(x_i)) \Bigr]
          + \frac{n_f}{n}\, \beta \sum_l \mathrm{AT}_l .

Labels of the samples to forget are never used.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from weightsmith.core.choices import check_whole
from weightsmith.core.data import Samples, batched, map_tensors, pad_token_id, split_labels, to_model
from weightsmith.core.errors import HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.models import evaluation_mode
from weightsmith.core.results import Result, record
from weightsmith.core.training import Fit, FitOptions, Loss, draw_seed, fit, float_weights, seed_of, training_method
from weightsmith.forget._regression_measures import paired_distance, wasserstein_distance
from weightsmith.forget._shared.attention import AttentionTaps, differences, tapped_layers
from weightsmith.forget._shared.regression import (
    Distance,
    LossName,
    check_regression,
    distance_of,
    predict_values,
    supervised_loss,
    targets_for,
    values_of,
)
from weightsmith.forget._shared.sets import EMPTY, frozen_note, head, prepared_sets, set_errors

__all__ = ["blindspot", "partial_exposure"]

WEAK = 2.0
"""A helper whose error on retained samples is this many times the network's is too weak to learn from."""


@training_method(learning_rate=1e-3, epochs=1, batch_size=256)
def blindspot(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    *,
    helper: nn.Module | None = None,
    other: Samples | None = None,
    loss: LossName = "l1",
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    attention_weight: float = 50.0,
    layers: str | Sequence[str] = "auto",
    layer_weights: Sequence[float] = (),
    helper_epochs: int = 2,
    helper_learning_rate: float = 1e-2,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Unlearn samples of a regression toward a helper that never saw them.

    Parameters
    ----------
    model : nn.Module
        A regression network, changed in place: any module whose outputs have the shape of the labels, or a Hugging
        Face model with ``num_labels=1`` or ``problem_type="regression"``.
    forget : sequence of samples
        What to forget: pairs (input, target), or mappings with ``labels``. The labels are only measured.
    retain : sequence of samples
        What to keep, of the same kind; none of it in ``forget``.
    helper : nn.Module, optional
        A network that never saw the samples to forget; it stays unchanged. By default one of the same architecture is
        initialized and trained on ``retain``. For a model that was fine-tuned, give the pretrained one, fine-tuned on
        the retained samples.
    other : sequence of samples, optional
        Samples in neither set; they are only measured. By default every eighth sample of ``retain`` is held out for
        that.
    loss : {"l1", "mse", "huber", "pinball"}, default: "l1"
        The distance ``d``, and the error that is measured.
    quantiles : sequence of float, default: (0.1, 0.5, 0.9)
        Of the pinball loss, in the order of the outputs.
    attention_weight : float, default: 50.0
        Factor ``beta`` of the attention maps' differences, >= 0. A difference is a mean over the positions of a map, so
        that a large map weighs less than a small one.
    layers : str or sequence of str, default: "auto"
        Whose outputs are compared: shell patterns on names, or ``"auto"`` for the blocks of a transformer, else the
        activation functions, else all layers but the last.
    layer_weights : sequence of float, default: ()
        A factor for each of these layers, in the order of the report; 1 by default.
    helper_epochs : int, default: 2
        Passes of the helper over the retained samples.
    helper_learning_rate : float, default: 1e-2
        Of the helper; all other training options are the network's.
    generator : torch.Generator, optional
        Draws the helper's weights and the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is Adam, with decoupled
        weight decay.

    Returns
    -------
    Result
        Per compared layer the ``attention_before`` and ``attention_after``: the difference of its maps from the
        helper's. ``before`` and ``after`` hold the mean error on each set, and how far the predictions of forgotten
        samples are from the helper's: as distributions (``wasserstein_to_helper``) and sample by sample. The target is
        the error of a network that is retrained without the samples to forget, not the highest one.

    Raises
    ------
    CalibrationError
        If ``retain`` is empty, or a sample is in two of the sets.
    HyperparameterError
        If a hyper-parameter is out of range.
    LayerNotFoundError
        If a layer to compare is not there, or not in the helper.
    NonFiniteError
        If a parameter or the loss is not finite.
    ShapeError
        If outputs and labels differ in shape, or layers of network and helper do.
    UnsupportedModelError
        If it is no regression network, is quantized, has adapters, or cannot be initialized anew.

    References
    ----------
    Tarun, Chundawat, Mandal, Kankanhalli, arXiv 2210.08196.

    Examples
    --------
    >>> data = [(torch.tensor([x]), torch.tensor([2 * x])) for x in torch.linspace(-1, 1, 64).tolist()]
    >>> model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> result = blindspot(model, data[:8], data[8:])
    >>> result.layers[0]["layer"], result.totals["helper_steps"]
    ('1', 2)
    """
    distance = distance_of(loss, quantiles)
    _check(attention_weight, layer_weights, helper_epochs, helper_learning_rate)
    names = tapped_layers(model, layers) if attention_weight else []
    weights = _by_name(names, layer_weights)
    seed = draw_seed(generator)
    hyper: dict[str, Any] = {"loss": loss, "quantiles": quantiles, "attention_weight": attention_weight}
    hyper |= {"layers": layers, "layer_weights": layer_weights}
    hyper |= {"helper_epochs": helper_epochs, "helper_learning_rate": helper_learning_rate}
    with record("blindspot", seed=seed_of(generator), **hyper, **options) as result:
        if not len(forget):
            warnings.warn(EMPTY, stacklevel=2)
            result.notes.append(EMPTY)
            return result
        sets = prepared_sets(model, forget, retain, other, distance)
        trained = sets["retained"]
        teacher_run = Fit()
        if helper is None:
            teacher_options = {**options, "epochs": helper_epochs, "learning_rate": helper_learning_rate}
            helper = fresh_copy(model, seed)
            teacher_run = fit(helper, trained, loss=supervised_loss(helper, distance), seed=seed, **teacher_options)  # type: ignore[arg-type]
        elif helper is model:
            raise HyperparameterError("helper", found="the network itself", expected="another network")
        else:
            check_regression(helper, sets, distance)
        shown, wanted = head(forget), predict_values(helper, head(forget))
        taps = AttentionTaps(model, names), AttentionTaps(helper, names)

        def measure() -> tuple[dict[str, float], dict[str, float]]:
            found, values = set_errors(model, sets, distance), predict_values(model, shown)
            found["wasserstein_to_helper"] = wasserstein_distance(values, wanted)
            found["paired_distance_to_helper"] = paired_distance(values, wanted)
            return found, _attention(model, helper, taps, shown)

        result.before, before = measure()
        with float_weights(model), evaluation_mode(helper):
            objective = blindspot_loss(model, helper, distance, taps, weights, attention_weight)
            run = fit(model, Flagged(forget, trained), loss=objective, seed=seed, **options)
        result.after, after = measure()
        for name in before:
            result.layer(name, attention_before=before[name], attention_after=after[name])
        taught = set_errors(helper, sets, distance)
        result.totals = {"steps": run.steps, "helper_steps": teacher_run.steps}
        result.totals |= {f"helper_{name}": value for name, value in taught.items()}
        result.curves["training loss"] = run.losses
        if teacher_run.losses:
            result.curves["training loss: helper"] = teacher_run.losses
        result.notes += [*_notes(result, taught), *frozen_note(model)]
    return result


def partial_exposure(
    model: nn.Module,
    retain: Samples,
    *,
    loss: LossName = "l1",
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> nn.Module:
    """Train a network of the same architecture from new weights, on the retained samples only.

    Parameters
    ----------
    model : nn.Module
        A regression network; it stays unchanged. A Hugging Face model is made anew from its configuration, of others
        every module with weights needs ``reset_parameters``.
    retain : sequence of samples
        With labels of the shape of the outputs.
    loss : {"l1", "mse", "huber", "pinball"}, default: "l1"
        The loss.
    quantiles : sequence of float, default: (0.1, 0.5, 0.9)
        Of the pinball loss, in the order of the outputs.
    generator : torch.Generator, optional
        Draws the weights and the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`; by default two epochs at a learning rate of
        1e-2 with 256 samples per batch.

    Returns
    -------
    nn.Module
        The helper of :func:`~weightsmith.forget.blindspot`, in evaluation mode.

    Raises
    ------
    UnsupportedModelError
        If a module cannot be initialized anew.

    Examples
    --------
    >>> data = [(torch.tensor([x]), torch.tensor([2 * x])) for x in torch.linspace(-1, 1, 64).tolist()]
    >>> helper = partial_exposure(nn.Linear(1, 1), data, learning_rate=0.1, epochs=60)
    >>> round(helper.weight.item(), 1)
    2.0
    """
    distance = distance_of(loss, quantiles)
    check_regression(model, {"retain": retain}, distance)
    seed = draw_seed(generator)
    helper = fresh_copy(model, seed)
    chosen = {"learning_rate": 1e-2, "epochs": 2, "batch_size": 256, **options}
    fit(helper, retain, loss=supervised_loss(helper, distance), seed=seed, **chosen)  # type: ignore[arg-type]
    return helper.eval()


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """Return a network of the same architecture with new random weights, all of them trainable.

    Raises
    ------
    UnsupportedModelError
        If a module with weights has no ``reset_parameters``.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> torch.equal(fresh_copy(model, 1).weight, model.weight)
    False
    """
    like = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "config") and hasattr(model, "init_weights"):
            fresh = cast(Any, type(model))(copy.deepcopy(model.config))
        else:
            fresh = _reset(copy.deepcopy(model))
    dtype = torch.promote_types(like.dtype, torch.float32)
    return fresh.to(device=like.device, dtype=dtype).requires_grad_(True).eval()


def _reset(model: nn.Module) -> nn.Module:
    modules = dict(model.named_modules())
    resets = {
        name: getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        for name, module in modules.items()
    }
    stuck = [
        f"{name or 'the network'} ({type(module).__name__})"
        for name, module in modules.items()
        if module._parameters and resets[name] is None
    ]
    if stuck:
        raise UnsupportedModelError(
            "a helper needs new weights",
            found=f"modules without reset_parameters: {', '.join(stuck[:3])}",
            do="Give them the method, or pass a helper that never saw the samples to forget.",
        )
    for reset in reversed([*resets.values()]):  # a module's own rule comes after those of its parts
        if reset is not None:
            reset()
    return model


def blindspot_loss(
    model: nn.Module,
    helper: nn.Module,
    distance: Distance,
    taps: tuple[AttentionTaps, AttentionTaps],
    weights: Mapping[str, float],
    attention_weight: float,
) -> Loss:
    """Return the loss of a batch of :class:`Flagged` samples; the helper runs on those to forget only."""

    def loss(wrapped: nn.Module, batch: Any) -> Tensor:
        sample, flags = batch
        inputs, labels = split_labels(to_model(sample, model))
        forgotten = flags.to(labels.device)
        mask = _token_mask(inputs)
        with taps[0].recording(forgotten, mask) as ours:
            values = values_of(wrapped, inputs, model)
        targets = targets_for(model, labels, values, distance)
        kept = ~forgotten
        total = distance(values[kept], targets[kept]).sum()
        count = int(forgotten.sum())
        if count:
            part = map_tensors(lambda tensor: tensor[forgotten], inputs)
            every = torch.ones(count, dtype=torch.bool, device=forgotten.device)
            own = None if mask is None else mask[forgotten]
            with torch.no_grad(), taps[1].recording(every, own) as theirs:
                wanted = values_of(helper, to_model(part, helper)).to(values)
            if wanted.shape != values[forgotten].shape:
                raise ShapeError(
                    "outputs of the helper", found=tuple(wanted.shape[1:]), expected=tuple(values.shape[1:])
                )
            total = total + distance(values[forgotten], wanted).sum()
            for name, difference in differences(ours, theirs).items():
                total = total + attention_weight * weights[name.partition("#")[0]] * count * difference
        return total / len(values)

    return loss


class Flagged(Dataset[tuple[Any, Tensor]]):
    """The samples to forget, then those to retain, each with whether it is to be forgotten."""

    def __init__(self, forget: Samples, retain: Samples) -> None:
        self.forget, self.retain = forget, retain
        self.flags = torch.tensor([True, False])

    def __len__(self) -> int:
        return len(self.forget) + len(self.retain)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        before = len(self.forget)
        return (self.forget[index], self.flags[0]) if index < before else (self.retain[index - before], self.flags[1])


@torch.no_grad()
def _attention(
    model: nn.Module, helper: nn.Module, taps: tuple[AttentionTaps, AttentionTaps], samples: Samples
) -> dict[str, float]:
    """The mean difference of each layer over samples to forget, in evaluation mode."""
    found: dict[str, float] = {}
    if not taps[0].modules:
        return found
    with evaluation_mode(model), evaluation_mode(helper):
        for batch in batched(samples, 64, pad_token_id=pad_token_id(model)):
            inputs, labels = split_labels(to_model(batch, model))
            every, mask = torch.ones(len(labels), dtype=torch.bool, device=labels.device), _token_mask(inputs)
            with taps[0].recording(every, mask) as ours:
                values_of(model, inputs)
            with taps[1].recording(every, mask) as theirs:
                values_of(helper, to_model(inputs, helper))
            for name, difference in differences(ours, theirs).items():
                found[name] = found.get(name, 0.0) + float(difference) * len(labels) / len(samples)
    return found


def _token_mask(inputs: Any) -> Tensor | None:
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _check(attention_weight: float, layer_weights: Sequence[float], helper_epochs: int, rate: float) -> None:
    if not 0 <= attention_weight < math.inf:
        raise HyperparameterError("attention_weight", found=attention_weight, expected="a number >= 0")
    if not all(0 <= weight < math.inf for weight in layer_weights):
        raise HyperparameterError("layer_weights", found=list(layer_weights), expected="numbers >= 0")
    check_whole("helper_epochs", helper_epochs)
    if not 0 <= rate < math.inf:
        raise HyperparameterError("helper_learning_rate", found=rate, expected="a number >= 0")


def _by_name(names: Sequence[str], layer_weights: Sequence[float]) -> dict[str, float]:
    if layer_weights and len(layer_weights) != len(names):
        raise HyperparameterError(
            "layer_weights", found=f"{len(layer_weights)} of them", expected=f"one for each of {list(names)}"
        )
    return dict(zip(names, layer_weights or [1.0] * len(names), strict=True))


def _notes(result: Result, taught: Mapping[str, float]) -> list[str]:
    notes = []
    own, before, after = taught["error_retained"], result.before, result.after
    if own >= WEAK * before["error_retained"]:
        notes.append(
            f"The helper is weak: its error on retained samples is {own:.3g}, more than {WEAK:g} times the network's "
            f"{before['error_retained']:.3g}. Train it longer (helper_epochs), or give a better one."
        )
    if after["paired_distance_to_helper"] > 0.95 * before["paired_distance_to_helper"]:
        notes.append(
            "Nothing was forgotten: predictions are as far from the helper's as before. Raise the learning rate or the "
            "epochs."
        )
    return notes
