"""Merge state dicts in memory, or checkpoints of any size on disk, by one map of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from weightsmith.core.errors import HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.io import (
    PLANS,
    RECOMPUTED,
    CheckpointReader,
    StateDict,
    TensorMap,
    TensorSpec,
    check_elementwise,
    map_checkpoints,
    map_state_dicts,
    read_json,
)
from weightsmith.core.results import Result, documents, record
from weightsmith.merge._shared.distances import Distances

__all__ = ["MergePlan", "check_two", "merge_checkpoints", "merge_state_dicts", "parent_notes", "plan_of"]

CONFIG = "config.json"
INERT = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Settings that say nothing of the function that a network computes."""


@dataclass
class MergePlan:
    """Which tensors are merged.

    Attributes
    ----------
    merged : dict of str to int
        Tensors that are merged, and their number of weights.
    kept : list of str
        Tensors copied from the last network: integers, and those that match ``keep``.
    """

    merged: dict[str, int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def only_merged(self, tensor_map: TensorMap) -> TensorMap:
        """Restrict a map to the tensors that are merged."""
        return lambda name, chunks: tensor_map(name, chunks) if name in self.merged else None


def merge_state_dicts(
    states: Sequence[StateDict],
    tensor_map: TensorMap,
    *,
    keep: Sequence[str] = (),
    weights: Sequence[StateDict] = (),
    real: bool = False,
) -> dict[str, Tensor]:
    """Merge state dicts into a new one, tied tensors once.

    Parameters
    ----------
    states : sequence of state dict
        With the same names and shapes. The result has the element types of the last.
    tensor_map : callable
        How the tensors are merged.
    keep : sequence of str
        Shell patterns of names: these are the last state dict's, and the others need not have them.
    weights : sequence of state dict
        Element-wise weights, one mapping per network; the map gets their chunks before those of the networks.
    real : bool, default: False
        Whether the map has no meaning for complex tensors.

    Returns
    -------
    dict of str to Tensor
        In the order of the last. What was not merged is the tensor of the last itself.

    Raises
    ------
    ShapeError
        If names or shapes differ.
    NonFiniteError
        If a tensor holds NaN or infinity.
    UnsupportedModelError
        If weights are quantized, are factors of adapters, or are complex and the map is for real ones.

    Examples
    --------
    >>> import torch
    >>> largest = lambda name, chunks: lambda parts, out: torch.maximum(*parts, out=out)
    >>> merge_state_dicts([{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([2.0, 3.0])}], largest)
    {'w': tensor([2., 4.])}
    """
    specs, scales = (
        [{name: TensorSpec.of(tensor) for name, tensor in state.items()} for state in group]
        for group in (states, weights)
    )
    names = [f"state dict {index}" for index in range(len(states))]
    plan = plan_of(specs, names, keep, real=real)
    _check_weights(scales, specs)
    whose = [*(f"weights {index}" for index in range(len(weights))), *names]
    return map_state_dicts([*weights, *states], plan.only_merged(tensor_map), whose)


def merge_checkpoints(
    method: str,
    checkpoints: Sequence[Path],
    out: Path,
    tensor_map: TensorMap,
    *,
    keep: Sequence[str] = (),
    weights: Sequence[CheckpointReader] = (),
    real: bool = False,
    whole: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
    hyper: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> Result:
    """Merge checkpoints on disk into a new one, all or nothing, in memory that does not depend on their size.

    Parameters
    ----------
    method : str
        Name of the command.
    checkpoints : sequence of path
        Folders or files. The result has the names, element types and small files of the last.
    out : path
        Folder, or a ``.safetensors`` file.
    tensor_map, keep
        As in :func:`merge_state_dicts`.
    weights : sequence of CheckpointReader
        Element-wise weights, one checkpoint per network; the map gets their chunks before those of the networks.
    real : bool, default: False
        Whether the map has no meaning for complex tensors.
    whole : bool, default: False
        Whether a chunk is a whole tensor.
    overwrite : bool, default: False
        Replace what is at ``out``.
    seed : int, optional
        The seed of everything random, for its result.
    hyper : mapping of str to object
        The command's hyper-parameters, for its result.
    notes : sequence of str
        What the result says besides.

    Returns
    -------
    Result
        Counts of tensors and weights, and the distances of the networks; a note names what was not merged by choice.

    Raises
    ------
    CheckpointError
        If a checkpoint cannot be read or ``out`` cannot be written.
    ShapeError, NonFiniteError, UnsupportedModelError
        As :func:`merge_state_dicts`; nothing is written.
    """
    with record(method, seed=seed, **hyper) as result:
        readers = [CheckpointReader(path) for path in checkpoints]
        plan = plan_of([reader.specs for reader in readers], [str(path) for path in checkpoints], keep, real=real)
        _check_weights([reader.specs for reader in weights], [reader.specs for reader in readers])
        result.totals = {
            "tensors": len(plan.merged),
            "weights": sum(plan.merged.values()),
            "kept_tensors": len(plan.kept),
        }
        if plan.kept:
            few = ", ".join(plan.kept[:5]) + (", ..." if len(plan.kept) > 5 else "")
            result.notes.append(f"Copied from the last network: {few}")
        result.notes += [*notes, *parent_notes(checkpoints)]
        distances = Distances(len(readers))

        def files() -> dict[str, str]:
            result.inputs = distances.rows([str(path) for path in checkpoints])
            return documents([result], out, checkpoints)

        map_checkpoints(
            [*weights, *readers],
            out,
            plan.only_merged(distances.watched(tensor_map)),
            ranges=(lambda name, spec: [(0, spec.numel)]) if whole else None,
            overwrite=overwrite,
            files=files,
        )
    return result


def parent_notes(checkpoints: Sequence[Path]) -> list[str]:
    """Say what the result does not have of the networks' folders.

    Returns
    -------
    list of str
        A sentence on the settings in which the configurations differ, as equal shapes do not make equal functions, and
        one on what methods have said of the networks' weights, such as their levels.
    """
    notes = _differing_settings(checkpoints)
    if plans := [str(path / name) for path in checkpoints for name in PLANS if (path / name).is_file()]:
        notes.append(f"Left out, as the weights that it describes have changed: {', '.join(plans)}.")
    return notes


def _differing_settings(checkpoints: Sequence[Path]) -> list[str]:
    paths = [path / CONFIG for path in checkpoints if (path / CONFIG).is_file()]
    configs = [{key: value for key, value in read_json(path).items() if key not in INERT} for path in paths]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if any(config.get(key) != configs[-1].get(key) for config in configs)]
    if not differing:
        return []
    listed = [f"{key} ({', '.join(dict.fromkeys(repr(c.get(key)) for c in configs))})" for key in differing[:5]]
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return [f"The configurations differ in {', '.join(listed)}{more}; the result has the last network's."]


def _check_weights(weights: Sequence[Mapping[str, TensorSpec]], specs: Sequence[Mapping[str, TensorSpec]]) -> None:
    if len(weights) not in (0, len(specs)):
        raise ShapeError("element-wise weights", found=len(weights), expected=f"one per network ({len(specs)})")
    for scale in weights:
        for name in scale.keys() & specs[-1].keys():
            if scale[name].shape != specs[-1][name].shape:
                raise ShapeError(f"weights of {name!r}", found=scale[name].shape, expected=specs[-1][name].shape)
            if scale[name].dtype.is_complex:
                raise UnsupportedModelError(f"weights of {name!r}", found=scale[name].dtype, expected="real numbers")


def check_two(checkpoints: Sequence[Path]) -> None:
    """Refuse anything but two checkpoints.

    Raises
    ------
    HyperparameterError
        If there are not two.
    """
    if len(checkpoints) != 2:
        raise HyperparameterError("checkpoints", found=len(checkpoints), expected="two: BASE TUNED")


def plan_of(
    specs: Sequence[Mapping[str, TensorSpec]], names: Sequence[str], keep: Sequence[str] = (), *, real: bool = False
) -> MergePlan:
    """Compare networks and decide of each tensor whether it is merged.

    Parameters
    ----------
    specs : sequence of mapping of str to TensorSpec
        The tensors of each network.
    names : sequence of str
        What the networks are called in errors.
    keep : sequence of str
        Shell patterns of names that are the last network's, as are buffers that models compute when they are loaded.
    real : bool, default: False
        Refuse complex tensors.

    Raises
    ------
    HyperparameterError
        If there are fewer than two networks.
    ShapeError
        If names or shapes differ.
    UnsupportedModelError
        If weights are quantized, are factors of adapters, or are complex in one network only or where they must not.
    """
    if len(specs) < 2:
        raise HyperparameterError("networks to merge", found=len(specs), expected="at least two")
    for tensors, who in zip(specs, names, strict=True):
        check_elementwise(tensors, who)
    keep = (*keep, *RECOMPUTED)
    last = specs[-1]
    plan = MergePlan()
    for name, spec in last.items():
        numbers = spec.dtype.is_floating_point or spec.dtype.is_complex
        if any(fnmatchcase(name, pattern) for pattern in keep) or not numbers:
            plan.kept.append(name)
        elif real and spec.dtype.is_complex:
            raise UnsupportedModelError(
                f"tensor {name!r} of {names[-1]} is complex, which this method is not defined for",
                found=spec.dtype,
                do="Use a linear method: soup, wise-ft or task-arithmetic.",
            )
        else:
            plan.merged[name] = spec.numel
    kept = set(plan.kept)
    for other, who in zip(specs[:-1], names, strict=False):
        loose = [name for name in other if name not in last and any(fnmatchcase(name, each) for each in keep)]
        odd = sorted((plan.merged.keys() - other.keys()) | (other.keys() - last.keys() - kept - set(loose)))
        if odd:
            raise ShapeError(
                f"{who} and {names[-1]} differ in {len(odd)} names",
                found=odd[:5],
                expected="the same",
                do='Where only one has a head, take wise-ft with head="finetuned".',
            )
        bad = [name for name in plan.merged if other[name].shape != last[name].shape]
        if bad:
            shapes = [(name, other[name].shape, last[name].shape) for name in bad[:5]]
            raise ShapeError(
                f"{who} and {names[-1]} differ in {len(bad)} shapes",
                found=shapes,
                expected="the same",
                do='Where the heads differ in size, take wise-ft with head="finetuned".',
            )
        for name in plan.merged:
            if other[name].dtype.is_complex != last[name].dtype.is_complex:
                raise UnsupportedModelError(
                    f"tensor {name!r} of {who}",
                    found=other[name].dtype,
                    expected=f"{last[name].dtype} as in {names[-1]}",
                )
    return plan
