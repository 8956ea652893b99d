"""The walk over a trajectory's tensors, in memory or on disk: check each, predict it, measure what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.checkpoint import TensorSpec
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.predict.know.network import STAGES
from weightsmith.predict.know.routing import Kind, Routing, has_normalisation, route

__all__ = ["Prediction", "Retrodiction", "Rule", "Source"]

SHRUNK = 0.3
"""Below this ratio of norms a layer counts as strongly shrunk."""

CHUNK = 1 << 20


@runtime_checkable
class Rule(Protocol):
    """Runs one tensor's history backwards."""

    bounded: bool
    """Whether predictions saturate for weights outside [-1, 1]."""

    def __call__(self, history: Float[Tensor, "5 *shape"], steps: int) -> Tensor:
        """Return the prediction after ``steps`` >= 1 steps; ``history`` is overwritten and may be returned in part."""


@runtime_checkable
class Source(Protocol):
    """A snapshot: a state dict in memory or a :class:`weightsmith.core.checkpoint.CheckpointReader`."""

    specs: dict[str, TensorSpec]

    def tensor(self, key: str) -> Tensor:
        """Return one tensor."""


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
        See :func:`weightsmith.predict.know.routing.route`.
    predict_frozen : bool
        Also predict tensors that never changed.

    Attributes
    ----------
    notes : list of str
        What the user should know; complete once the iteration is over.

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
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Prediction]:
        """Predict every tensor in the order of the trained network's snapshot.

        Raises
        ------
        NonFiniteError
            If a snapshot holds NaN or infinity.
        """
        frozen, outside, shrunk = [], [], []
        for key in self.specs:
            kind = self._kinds.get(key)
            if kind is None:
                yield Prediction(key, _finite(self._sources[-1].tensor(key), key, STAGES), None)
                continue
            history = self._history(key)
            if not self._predict_frozen and all(torch.equal(row, history[-1]) for row in history[:-1]):
                frozen.append(key)
                yield Prediction(key, history[-1], None)
                continue
            low, high = torch.aminmax(history)
            if self._rules[kind].bounded and max(-float(low), float(high)) > 1:
                outside.append(key)
            prediction = self._predict(key, kind, history)
            if prediction.measures and prediction.measures["norm_ratio"] < SHRUNK:
                shrunk.append(key)
            yield prediction
        self._conclude(frozen, outside, shrunk)

    def _history(self, key: str) -> Float[Tensor, "5 *shape"]:
        spec = self.specs[key]
        first = _finite(self._sources[0].tensor(key), key, 1)
        history = torch.empty((STAGES, *spec.shape), dtype=spec.dtype, device=first.device)
        history[0] = first
        del first
        for stage in range(1, STAGES):
            history[stage] = _finite(self._sources[stage].tensor(key), key, stage + 1)
        return history

    def _predict(self, key: str, kind: Kind, history: Float[Tensor, "5 *shape"]) -> Prediction:
        trained = history[-1].clone()
        predicted = self._rules[kind](history, self._steps)
        before, after = _norm(trained), _norm(predicted)
        inner = _inner(trained, predicted)
        measures = {
            "kind": kind,
            "weights": trained.numel(),
            "norm_ratio": after / before if before else 1.0,
            "cosine": inner / (before * after) if before * after else 1.0,
        }
        return Prediction(key, predicted, measures)

    def _conclude(self, frozen: Sequence[str], outside: Sequence[str], shrunk: Sequence[str]) -> None:
        if self._kinds and len(frozen) == len(self._kinds):
            self.notes.append(
                "all snapshots are identical: the trajectory carries no forgetting, nothing was predicted"
            )
        elif frozen:
            self.notes.append(f"{len(frozen)} frozen tensors stay as they are, such as {frozen[0]!r}")
        if self._steps and not self._kinds:
            self.notes.append("no tensor of this network has a predictor: it is unchanged")
        if self._kinds and not has_normalisation(self.specs):
            self.notes.append(
                "the network has no normalisation layers: predictions shrink weights, which helps only where "
                "normalisation follows; expect transfer to get worse"
            )
        if self._kinds and "conv" not in self._kinds.values():
            self.notes.append("the network has no convolutions: the predictors were meta-trained on image networks")
        if outside:
            self.notes.append(
                f"{len(outside)} tensors hold weights outside [-1, 1], such as {outside[0]!r}: the predictor saturates"
            )
        if shrunk:
            self.notes.append(
                f"{len(shrunk)} tensors shrink below {SHRUNK} of their norm, such as {shrunk[0]!r}: compare with "
                "matched_shrink before crediting the prediction"
            )


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
    if tensor.is_floating_point() and tensor.numel():
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise NonFiniteError(
                f"tensor {key!r} of snapshot {stage} holds NaN or infinity", do="Check that training did not diverge."
            )
    return tensor


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


def _inner(a: Tensor, b: Tensor) -> float:
    """Inner product in float32 without a float32 copy of a half-precision tensor."""
    parts = zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True)
    return sum(float(torch.dot(x.float(), y.float())) for x, y in parts)
