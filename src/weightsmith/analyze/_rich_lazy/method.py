r"""The laziness report: per layer how far training moved the weights, the features and the tangent kernel.

Liu, Baratin, Cornford, Mihalas, Shea-Brown, Lajoie, "How connectivity structure shapes rich and lazy learning in neural
circuits" (ICLR 2024), arXiv 2310.08513. With the kernel :math:`K = J J^\top` of the gradients of the outputs by a
weight matrix, and the activity :math:`H` of its units on the same probe,

.. math::

    \mathrm{KA} = \frac{\sum K_0 \odot K_f}{\|K_0\|_F \|K_f\|_F}, \qquad
    \mathrm{RA} = \frac{\sum R_0 \odot R_f}{\|R_0\|_F \|R_f\|_F}, \quad R = H H^\top .

Near 1 the network learned lazily: it kept its features. Near 0 it learned rich, new ones.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from weightsmith.analyze._rich_lazy.kernels import centered_alignment, kernel_alignment
from weightsmith.analyze._rich_lazy.observe import Observed, observe_layers, recurrent_layers
from weightsmith.analyze._rich_lazy.theory import expected_kernel_alignment
from weightsmith.core.data import Batches, as_batches
from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import StateDict
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.models import VOCABULARY_HEADS, Layer, along_line, find_layers, matches, patterns, unreached
from weightsmith.core.results import Result, record
from weightsmith.core.training import draw_seed, refuse_adapters, seed_of
from weightsmith.embedded import open_model

__all__ = ["LazinessProbe", "LazinessSnapshot", "compare_checkpoints", "rich_lazy"]


def rich_lazy(
    before: nn.Module | str,
    after: nn.Module | str,
    probe: Batches,
    *,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = VOCABULARY_HEADS,
    directions: int = 2,
    memory: float = 4.0,
    generator: torch.Generator | None = None,
) -> Result:
    """Measure per layer how far training moved the weights, the features and the tangent kernel.

    The samples are the first axis of everything that the model computes. Dropout is off. The activity of a layer is its
    output (before the nonlinearity) or, of a recurrent layer, its state: at the last real position of a sequence, at
    all positions of an image.

    Parameters
    ----------
    before : nn.Module or str
        The model before training, or its location: a folder, a hub id, or ``embedded:NAME``.
    after : nn.Module or str
        The same after training.
    probe : Batches
        Inputs to compare the two on, at least two samples; with four or more the centered alignment is measured, too.
    include, exclude : str or sequence of str
        Shell patterns on the layers' names, for recurrent layers those of their parameters (``rnn.weight_hh_l0``). By
        default the layer over the vocabulary is left out; one that is tied to an embedding always is.
    directions : int, default: 2
        Random directions onto which the outputs of a sample are projected, at least 1, if there are more than 32 or
        they are of tokens. More come closer to the kernel of all outputs, and each costs a backward pass.
    memory : float, default: 4.0
        Gigabytes for the inputs and gradients of layers; if all do not fit, the probe runs several times.
    generator : torch.Generator, optional
        Draws the directions, the same for both models; seed 0 by default.

    Returns
    -------
    Result
        For each layer: norm of the weights' change, also relative; alignment of the tangent kernels and of the
        activities, also centered; share of units whose sign agrees; and the kernel alignment that the linear theory
        expects from the weights before.

    Raises
    ------
    CalibrationError
        If the probe has fewer than two samples, or a kernel or an activity is zero.
    HyperparameterError
        If an option is out of range.
    LayerNotFoundError
        If no layer is left, or the two models have different ones.
    NonFiniteError
        If weights or activations hold NaN or infinity.
    ShapeError
        If a layer has another shape in the other model.
    UnsupportedModelError
        If a model has adapters, or packed weights.

    References
    ----------
    Liu et al., arXiv 2310.08513.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> result = rich_lazy(model, model, [torch.randn(8, 3, generator=draw)])
    >>> round(result.totals["kernel_alignment"], 6), result.totals["weight_change"]
    (1.0, 0.0)
    """
    options: dict[str, Any] = {"include": include, "exclude": exclude, "directions": directions, "memory": memory}
    _check(directions, memory)
    first, second = (open_model(each).model if isinstance(each, str) else each for each in (before, after))
    seed = draw_seed(generator)
    ours, theirs = (LazinessProbe(model, probe, **options, seed=seed) for model in (first, second))
    with record("rich-lazy", seed=seed_of(generator), **options) as result:
        _fill(result, ours._observe(), theirs._observe(), ours._missed())
    return result


@dataclass(frozen=True)
class LazinessSnapshot:
    """A model at one time, as :class:`LazinessProbe` sees it.

    Attributes
    ----------
    weights : mapping of str to Tensor
        Of each layer.
    observed : mapping of str to Observed
        Its kernel, Gram matrix and signs on the probe.
    skipped : mapping of str to str
        Layers that could not be observed, and why.
    """

    weights: Mapping[str, Tensor]
    observed: Mapping[str, Observed]
    skipped: Mapping[str, str]


class LazinessProbe:
    """Watches how far training moves a model's features: a snapshot before, comparisons at any time.

    Parameters
    ----------
    model : nn.Module
        The model that is trained.
    batches : Batches
        The probe.
    include, exclude, directions, memory
        As for :func:`rich_lazy`.
    seed : int, default: 0
        Of the directions.

    Attributes
    ----------
    layers : list of Layer
        What is watched.
    history : list of tuple of (int, dict)
        What :meth:`watch` measured: steps, and the totals at each.

    Examples
    --------
    >>> from weightsmith.core.training import fit
    >>> x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> probe = LazinessProbe(model, [x])
    >>> before = probe.snapshot()
    >>> _ = fit(model, [(row, int(row[0] > 0)) for row in x], epochs=2, batch_size=8, after_step=probe.watch(4))
    >>> 0 < probe.compare(before).totals["kernel_alignment"] < 1, [step for step, _ in probe.history]
    (True, [4, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = VOCABULARY_HEADS,
        directions: int = 2,
        memory: float = 4.0,
        seed: int = 0,
    ) -> None:
        _check(directions, memory)
        self.model, self.batches = model, as_batches(batches)
        self._options: dict[str, Any] = {"directions": directions, "memory": memory, "seed": seed}
        refuse_adapters(model)
        self.layers, self._left_out = _layers(model, patterns(include), patterns(exclude))
        self.history: list[tuple[int, dict[str, Any]]] = []

    def snapshot(self) -> LazinessSnapshot:
        """Observe the model as it is now, and copy its weights."""
        now = self._observe()
        return LazinessSnapshot({name: w.clone() for name, w in now.weights.items()}, now.observed, now.skipped)

    def compare(self, before: LazinessSnapshot) -> Result:
        """Compare the model as it is now with a snapshot; the result is that of :func:`rich_lazy`."""
        with record("rich-lazy", **self._options) as result:
            _fill(result, before, self._observe(), self._missed())
        return result

    def watch(self, every: int = 100) -> Callable[[int, float], None]:
        """Return a callback for :func:`~weightsmith.core.training.fit` (``after_step``) that fills :attr:`history`.

        The snapshot to compare with is taken now.
        """
        if every < 1:
            raise HyperparameterError("every", found=every, expected=">= 1")
        before = self.snapshot()

        def after_step(step: int, loss: float) -> None:
            if step % every == 0:
                self.history.append((step, self.compare(before).totals))

        return after_step

    def callback(self, every: int = 100) -> TrainerCallback:
        """Return a callback for Hugging Face's ``Trainer`` that fills :attr:`history`."""
        watch = self.watch(every)

        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch(state.global_step, 0.0)

        return Watch()

    def _missed(self) -> list[str]:
        """Matrices of the model that have no kernels here, in a sentence."""
        layers = _every_layer(self.model)
        tied = _tied(self.model, layers)
        notes = unreached(self.model, [layer for layer in layers if layer.name not in tied])
        return [note.replace("Not reached and unchanged", "No kernels of") for note in notes]

    def _observe(self) -> LazinessSnapshot:
        weights = {layer.name: layer.weight_OI for layer in self.layers}
        for name, weight in weights.items():
            if not is_finite(weight):
                raise NonFiniteError(f"the weight of layer {name!r} holds NaN or infinity", do="Repair the checkpoint.")
        observed, skipped = observe_layers(self.model, self.batches, self.layers, **self._options)
        if not observed:
            raise LayerNotFoundError("no layer can be observed", found=_counted(skipped))
        return LazinessSnapshot(weights, observed, {**self._left_out, **skipped})


def compare_checkpoints(
    model: nn.Module, before: StateDict, after: StateDict, probe: Batches, **options: Any
) -> Result:
    """Compare two sets of weights of a model, which gets its own back.

    Parameters
    ----------
    model : nn.Module
        Of their architecture.
    before, after : state dict
        The two sets.
    probe : Batches
        Inputs to compare them on.
    **options
        Those of :class:`LazinessProbe`.

    Returns
    -------
    Result
        As of :func:`rich_lazy`.

    Raises
    ------
    ShapeError
        If one does not fit the model.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    >>> result = compare_checkpoints(model, state, {**state, "0.weight": 2 * state["0.weight"]}, [torch.eye(2)])
    >>> round(result.layers[0]["relative_change"], 6)
    1.0
    """
    laziness = LazinessProbe(model, probe, **options)
    states: list[LazinessSnapshot] = []
    for _ in along_line(model, before, after, (0.0, 1.0)):
        states.append(laziness.snapshot())
    with record("rich-lazy", **laziness._options) as result:
        _fill(result, states[0], states[1], laziness._missed())
    return result


def _check(directions: int, memory: float) -> None:
    if directions < 1:
        raise HyperparameterError("directions", found=directions, expected=">= 1")
    if not memory > 0:
        raise HyperparameterError("memory", found=memory, expected="> 0 gigabytes")


def _every_layer(model: nn.Module) -> list[Layer]:
    return [*find_layers(model, strict=False), *recurrent_layers(model)]


def _layers(model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> tuple[list[Layer], dict[str, str]]:
    """The layers to watch, and those that match but cannot be, with the reason."""
    every = _every_layer(model)
    found = [layer for layer in every if matches(layer.name, include, exclude)]
    if not found:
        names = [layer.name for layer in every]
        near = [name for pattern in include for name in difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)]
        raise LayerNotFoundError(
            f"no layer matches {list(include)} without {list(exclude)}",
            found=f"{len(names)} layers such as {names[:5]}",
            do=f"Did you mean {' or '.join(map(repr, near))}?"
            if near
            else "Name modules, not entries of a state dict.",
        )
    tied = _tied(model, found)
    for layer in found:
        weight = layer.weight
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise UnsupportedModelError(
                f"layer {layer.name!r}",
                found=f"weights in {weight.dtype}",
                expected="floating point of 16 bits or more",
                do="Dequantize the model, or leave the layer out with exclude.",
            )
    kept = [layer for layer in found if layer.name not in tied]
    if not kept:
        raise LayerNotFoundError("every layer that matches is tied to an embedding", found=sorted(tied))
    return kept, dict.fromkeys(sorted(tied), "tied to an embedding")


def _tied(model: nn.Module, layers: Sequence[Layer]) -> set[str]:
    """Names of the layers that are tied to an embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {layer.name for layer in layers if id(layer.module._parameters.get(layer.parameter)) in embeddings}


def _fill(result: Result, before: LazinessSnapshot, after: LazinessSnapshot, missed: Sequence[str]) -> None:
    """Compare two snapshots, layer by layer and in total."""
    _check_alike(before, after)
    skipped = {**before.skipped, **after.skipped}
    names = [name for name in before.observed if name in after.observed]
    if not names:
        raise LayerNotFoundError("no layer was observed in both models", found=_counted(skipped))
    samples = len(before.observed[names[0]].gram_NN)
    if samples < 2:
        raise CalibrationError("the probe", found="1 sample", expected="at least 2, to compare how they are alike")
    changes, sizes = [], []
    for name in names:
        old, new = before.observed[name], after.observed[name]
        old_OI = upcast(before.weights[name])
        changes.append(float((upcast(after.weights[name]).to(old_OI.device) - old_OI).norm()))
        sizes.append(float(old_OI.norm()))
        measures = {
            "kernel_alignment": kernel_alignment(old.kernel_RR, new.kernel_RR, f"tangent kernel of layer {name!r}"),
            "representation_alignment": kernel_alignment(old.gram_NN, new.gram_NN, f"activity of layer {name!r}"),
            "centered_alignment": _centered(old, new),
            "sign_agreement": _agreement(old, new),
            "weight_change": changes[-1],
            "relative_change": changes[-1] / sizes[-1] if sizes[-1] else None,
            "expected_alignment": expected_kernel_alignment(old_OI) if sizes[-1] else None,
        }
        result.layer(name, **{key: value for key, value in measures.items() if value is not None})
    kernels = []
    for each in (before, after):
        kernels.append(torch.zeros_like(each.observed[names[0]].kernel_RR, dtype=torch.float64))
        for name in names:
            kernels[-1] += each.observed[name].kernel_RR
    rows = result.layers
    result.reading, result.title = True, "rich or lazy"
    result.maps = ["kernel_alignment", "representation_alignment", "sign_agreement", "relative_change"]
    result.totals = {
        "kernel_alignment": kernel_alignment(kernels[0], kernels[1], "tangent kernel of all layers"),
        "representation_alignment": sum(row["representation_alignment"] for row in rows) / len(rows),
        "sign_agreement": sum(row["sign_agreement"] for row in rows) / len(rows),
        "weight_change": math.hypot(*changes),
        "relative_change": math.hypot(*changes) / (math.hypot(*sizes) or math.inf),
    }
    result.hyper |= {"samples": samples, "kernel_rows": len(kernels[0])}
    least = min(rows, key=lambda row: row["kernel_alignment"])
    if least["kernel_alignment"] < 1 - 1e-6:
        result.notes.append(
            f"Richest: {least['layer'] or 'the model'}, whose tangent kernel has an alignment of "
            f"{least['kernel_alignment']:.3g} with the one before. Near 1 a layer kept its features."
        )
    if samples < 4:
        result.notes.append(f"With {samples} samples the centered alignment is not defined; give at least 4.")
    if skipped:
        result.notes.append(f"Not measured: {_counted(skipped)}.")
    result.notes += missed


def _check_alike(before: LazinessSnapshot, after: LazinessSnapshot) -> None:
    if apart := before.weights.keys() ^ after.weights.keys():
        raise LayerNotFoundError(
            f"{len(apart)} layers are in one of the two models only",
            found=sorted(apart)[:5],
            expected="two states of one model",
            do="Merge adapters first, or name the common layers with include.",
        )
    for name, weight in before.weights.items():
        if weight.shape != (other := after.weights[name].shape):
            raise ShapeError(f"layer {name!r} after training", found=tuple(other), expected=tuple(weight.shape))


def _centered(old: Observed, new: Observed) -> float | None:
    """The unbiased centered alignment; None where the samples are too few or alike."""
    try:
        return centered_alignment(old.gram_NN, new.gram_NN)
    except CalibrationError:
        return None


def _agreement(old: Observed, new: Observed) -> float:
    """The share of units that are on one side of zero, or at zero, both times."""
    differ = np.bitwise_or.reduce(old.signs ^ new.signs, axis=0)
    return 1 - int(np.bitwise_count(differ).sum()) / old.units


def _counted(skipped: Mapping[str, str]) -> str:
    """How many layers were skipped for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in skipped.items():
        reasons.setdefault(why, []).append(name)
    return "; ".join(f"{len(names)} such as {names[0]!r}: {why}" for why, names in reasons.items())
