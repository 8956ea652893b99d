"""The walk over a trajectory's tensors, in memory or on disk: check each, predict it, measure what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import TensorSpec
from weightsmith.predict._know.network import STAGES
from weightsmith.predict._know.routing import Kind, Routing, has_normalisation, route

__all__ = ["Prediction", "Retrodiction", "Rule", "Source"]

SHRUNK = 0.3
"""Below this ratio of norms a layer counts as strongly shrunk."""

CHUNK = 1 << 20


@runtime_checkable
class Rule(Protocol):
    """Runs one tensor's history backwards."""

    bounded: bool
    """Whether predictions saturate for weights outside [-1, 1]."""

    def __call__(self, history: Sequence[Float[Tensor, "*shape"]], steps: int) -> Tensor:
        """Return the prediction after ``steps`` >= 1 steps.

        All of ``history`` but its last tensor may be overwritten, and the result may be one of its tensors.
        """


@runtime_checkable
class Source(Protocol):
    """A snapshot: a state dict in memory or a :class:`weightsmith.core.io.CheckpointReader`."""

    specs: dict[str, TensorSpec]

    def tensor(self, key: str) -> Tensor:
        """Return a tensor that the caller may overwrite."""


@dataclass
class Prediction:
    """One tensor of the predicted network.

    Attributes
    ----------
    key : str
        Its name.
    tensor : Tensor
        The predicted tensor, or the trained one where nothing was predicted.
    measures : dict or None
        ``kind``, ``weights``, ``norm_ratio`` and ``cosine`` to the trained tensor; None where nothing was predicted.
    """

    key: str
    tensor: Tensor
    measures: dict[str, Any] | None


class Retrodiction:
    """Predict a network tensor by tensor; one tensor's five snapshots and its result are in memory at a time.

    Parameters
    ----------
    rules : mapping of {"conv", "fc", "bias"} to Rule
        Kinds without a rule keep the trained weights.
    sources : sequence of five Source
        Smallest training set first.
    steps : int >= 0
        Steps of the recursion.
    model, skip, routing
        See :func:`weightsmith.predict._know.routing.route`.
    predict_frozen : bool
        Also predict tensors that never changed.

    Attributes
    ----------
    specs : dict of str to TensorSpec
        The tensors of the trained network, in its order.

    Raises
    ------
    HyperparameterError
        If there are not five sources or ``steps`` is negative.
    ShapeError
        If keys, shapes or types differ between the snapshots.
    UnsupportedModelError
        If the network is quantised or parametrised.
    """

    def __init__(
        self,
        rules: Mapping[Kind, Rule],
        sources: Sequence[Source],
        *,
        steps: int,
        model: nn.Module | None,
        skip: tuple[type[nn.Module], ...],
        routing: Routing,
        predict_frozen: bool,
    ) -> None:
        if len(sources) != STAGES:
            raise HyperparameterError(
                f"predictor expects {STAGES} stages, got {len(sources)}",
                do="Give the snapshots from the smallest training set to the full one.",
            )
        if steps < 0:
            raise HyperparameterError("steps", found=steps, expected=">= 0")
        self._rules, self._sources, self._steps = rules, sources, steps
        self._predict_frozen = predict_frozen
        self.specs = sources[-1].specs
        for stage, source in enumerate(sources[:-1]):
            _check_same(source.specs, self.specs, f"snapshot {stage + 1} of {STAGES}")
        routes = route(self.specs, model=model, skip=skip, routing=routing)
        self._kinds = {key: kind for key, kind in routes.items() if kind in rules} if steps else {}
        self._frozen: list[str] = []
        self._outside: list[str] = []
        self._shrunk: list[str] = []

    def predict(self, key: str) -> Prediction:
        """Predict one tensor; let go of it before asking for the next, and memory holds only one's history.

        Raises
        ------
        NonFiniteError
            If a snapshot of the tensor holds NaN or infinity.
        """
        kind = self._kinds.get(key)
        if kind is None:
            return Prediction(key, _finite(self._sources[-1].tensor(key), key, STAGES), None)
        history = [_finite(source.tensor(key), key, stage + 1) for stage, source in enumerate(self._sources)]
        if not self._predict_frozen and all(torch.equal(row, history[-1]) for row in history[:-1]):
            self._frozen.append(key)
            return Prediction(key, history[-1], None)
        if self._rules[kind].bounded and max(map(_largest, history)) > 1:
            self._outside.append(key)
        trained = history[-1]
        predicted = self._rules[kind](history, self._steps)
        before, after = (math.sqrt(_inner(tensor, tensor)) for tensor in (trained, predicted))
        ratio = after / before if before else 1.0
        if ratio < SHRUNK:
            self._shrunk.append(key)
        cosine = _inner(trained, predicted) / (before * after) if before * after else 1.0
        measures = {"kind": kind, "weights": trained.numel(), "norm_ratio": ratio, "cosine": cosine}
        return Prediction(key, predicted, measures)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the tensors predicted so far."""
        notes = []
        if self._kinds and len(self._frozen) == len(self._kinds):
            notes.append("all snapshots are identical: the trajectory carries no forgetting, nothing was predicted")
        elif self._frozen:
            notes.append(f"{len(self._frozen)} frozen tensors stay as they are, such as {self._frozen[0]!r}")
        if self._steps and not self._kinds:
            notes.append("no tensor of this network has a predictor: it is unchanged")
        if self._kinds and not has_normalisation(self.specs):
            notes.append(
                "the network has no normalisation layers: predictions shrink weights, which helps only where "
                "normalisation follows; expect transfer to get worse"
            )
        if self._kinds and "conv" not in self._kinds.values():
            notes.append("the network has no convolutions: the predictors were meta-trained on image networks")
        if self._outside:
            notes.append(
                f"{len(self._outside)} tensors hold weights outside [-1, 1], such as {self._outside[0]!r}: "
                "the predictor saturates"
            )
        if self._shrunk:
            notes.append(
                f"{len(self._shrunk)} tensors shrink below {SHRUNK} of their norm, such as {self._shrunk[0]!r}: "
                "compare with matched_shrink before crediting the prediction"
            )
        return notes


def _check_same(specs: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec], where: str) -> None:
    for key in expected.keys() | specs.keys():
        if key not in specs or key not in expected:
            raise ShapeError(
                f"tensor {key!r} of the trajectory",
                found=f"missing in {where if key not in specs else 'the last snapshot'}",
                expected="the same tensors in every snapshot",
            )
        if specs[key] != expected[key]:
            raise ShapeError(f"tensor {key!r} in {where}", found=specs[key], expected=expected[key])


def _finite(tensor: Tensor, key: str, stage: int) -> Tensor:
    if tensor.is_floating_point() and not math.isfinite(_largest(tensor)):
        raise NonFiniteError(
            f"tensor {key!r} of snapshot {stage} holds NaN or infinity", do="Check that training did not diverge."
        )
    return tensor


def _largest(tensor: Tensor) -> float:
    """Largest absolute value without a copy; NaN if there is one."""
    if tensor.numel() == 0:
        return 0.0
    low, high = torch.aminmax(tensor)
    return abs(float(low)) if math.isnan(float(low)) else max(-float(low), float(high))


def _inner(a: Tensor, b: Tensor) -> float:
    """Inner product in float32 without a float32 copy of the tensors."""
    parts = zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True)
    return sum(float(torch.dot(x.float(), y.float())) for x, y in parts)
