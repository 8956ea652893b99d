"""Map the tensors of a trajectory to the predicted network: check each, predict it, measure what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import ChunkMap, Chunks, TensorSpec
from weightsmith.core.linalg import inner_product
from weightsmith.predict._know.network import STAGES
from weightsmith.predict._know.routing import Kind, Routing, has_normalization, route

__all__ = ["Retrodiction", "Source", "TensorPredictor"]

SHRUNK = 0.3
"""Below this ratio of norms a layer counts as strongly shrunk."""


@runtime_checkable
class TensorPredictor(Protocol):
    """Predicts one tensor from its history."""

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
        """Return a tensor."""


class Retrodiction:
    """The map from a trajectory to the predicted network, for :func:`weightsmith.core.io.map_checkpoints`.

    A chunk is a whole tensor, so one tensor's five snapshots are in memory at a time.

    Parameters
    ----------
    rules : mapping of {"conv", "fc", "bias"} to TensorPredictor
        Kinds without a predictor keep the trained weights.
    sources : sequence of five Source
        Smallest training set first.
    steps : int >= 0
        Steps of the recursion.
    model, skip, routing
        See :func:`weightsmith.predict._know.routing.route`.
    predict_frozen : bool
        Also predict tensors that never changed.
    overwrite_history : bool
        Whether the chunks may be overwritten, as those that are read from files.

    Attributes
    ----------
    measures : dict of str to dict
        Of every predicted tensor so far: ``kind``, ``weights``, ``norm_ratio`` and ``cosine`` to the trained tensor.

    Raises
    ------
    HyperparameterError
        If there are not five sources or ``steps`` is negative.
    ShapeError
        If keys, shapes or types differ between the snapshots.
    UnsupportedModelError
        If the network is quantized or parametrized.
    """

    def __init__(
        self,
        rules: Mapping[Kind, TensorPredictor],
        sources: Sequence[Source],
        *,
        steps: int,
        model: nn.Module | None,
        skip: tuple[type[nn.Module], ...],
        routing: Routing,
        predict_frozen: bool,
        overwrite_history: bool,
    ) -> None:
        if len(sources) != STAGES:
            raise HyperparameterError(
                f"predictor expects {STAGES} stages, got {len(sources)}",
                do="Give the snapshots from the smallest training set to the full one.",
            )
        if steps < 0:
            raise HyperparameterError("steps", found=steps, expected=">= 0")
        self._rules, self._sources, self._steps = rules, sources, steps
        self._predict_frozen, self._overwrite_history = predict_frozen, overwrite_history
        self._specs = sources[-1].specs
        for stage, source in enumerate(sources[:-1]):
            _check_same(source.specs, self._specs, f"snapshot {stage + 1} of {STAGES}")
        routes = route(self._specs, model=model, skip=skip, routing=routing)
        self._kinds = {key: kind for key, kind in routes.items() if kind in rules} if steps else {}
        self.measures: dict[str, dict[str, Any]] = {}
        self._frozen: list[str] = []
        self._outside: list[str] = []
        self._shrunk: list[str] = []

    def __call__(self, key: str, chunks: Chunks) -> ChunkMap | None:
        """Return the map of one tensor; None where the trained tensor is kept.

        Raises
        ------
        NonFiniteError
            If a snapshot of the tensor holds NaN or infinity; of one that is predicted, when it is mapped.
        """
        if key not in self._kinds:
            _check_finite(self._sources[-1].tensor(key), key, STAGES)
            return None
        return lambda parts, out: self._predict(key, parts).reshape(-1)

    def _predict(self, key: str, parts: Sequence[Tensor]) -> Tensor:
        kind, shape = self._kinds[key], self._specs[key].shape
        for stage, part in enumerate(parts, 1):
            _check_finite(part, key, stage)
        trained = parts[-1].view(shape)
        if not self._predict_frozen and all(torch.equal(part, parts[-1]) for part in parts[:-1]):
            self._frozen.append(key)
            return trained
        if self._rules[kind].bounded and max(map(_largest, parts)) > 1:
            self._outside.append(key)
        history = [(part if self._overwrite_history else part.clone()).view(shape) for part in parts[:-1]]
        predicted = self._rules[kind]([*history, trained], self._steps)
        before, after = (math.sqrt(inner_product(tensor, tensor)) for tensor in (trained, predicted))
        ratio = after / before if before else 1.0
        if ratio < SHRUNK:
            self._shrunk.append(key)
        cosine = inner_product(trained, predicted) / (before * after) if before * after else 1.0
        self.measures[key] = {"kind": kind, "weights": trained.numel(), "norm_ratio": ratio, "cosine": cosine}
        return predicted

    @property
    def notes(self) -> list[str]:
        """What the user should know about the tensors predicted so far."""
        notes = []
        if self._kinds and len(self._frozen) == len(self._kinds):
            notes.append("all snapshots are identical: nothing was forgotten, nothing was predicted")
        elif self._frozen:
            notes.append(f"{len(self._frozen)} frozen tensors are unchanged, such as {self._frozen[0]!r}")
        if self._steps and not self._kinds:
            notes.append("no tensor of this network has a predictor: it is unchanged")
        if self._kinds and not has_normalization(self._specs):
            notes.append(
                "the network has no normalization layers: predictions shrink weights, which helps only where "
                "normalization follows; expect transfer to get worse"
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
                "compare with matched_shrink"
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


def _check_finite(tensor: Tensor, key: str, stage: int) -> None:
    if tensor.is_floating_point() and not math.isfinite(_largest(tensor)):
        raise NonFiniteError(
            f"tensor {key!r} of snapshot {stage} holds NaN or infinity", do="Check that training did not diverge."
        )


def _largest(tensor: Tensor) -> float:
    """Largest absolute value without a copy; NaN if there is one."""
    if tensor.numel() == 0:
        return 0.0
    low, high = torch.aminmax(tensor)
    return abs(float(low)) if math.isnan(float(low)) else max(-float(low), float(high))
