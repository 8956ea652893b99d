"""Find a network's symmetry: trace it once, name the groups, and try them on random weights."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from weightsmith.core.data import Batch, call
from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.models import evaluation_mode
from weightsmith.core.symmetry._axes import Axis, Run
from weightsmith.core.symmetry._symmetry import AxisBlock, AxisBlocks, Group, Permutations, Symmetry
from weightsmith.core.symmetry._trace import Trace, leaves_of, outputs_of, trace

__all__ = ["find_symmetry"]

TOLERANCE = 1e-3
"""Outputs that differ by more than this share of their largest value are not the same; models may round in float32."""

K = TypeVar("K")


def find_symmetry(model: nn.Module, batch: Batch, *, verify: bool = True) -> Symmetry:
    """Find which axes of which tensors share one order, by running the model on one batch.

    Every operation of the forward pass is observed, so any model that runs is handled: residual streams, grouped
    convolutions, attention heads (with grouped queries), gates, tied weights, concatenations, recurrent layers.

    Parameters
    ----------
    model : nn.Module
        Any model; run in evaluation mode, its weights are only read. One on the meta device is run with zeros that
        take no memory; its groups are not verified.
    batch : Batch
        A batch of the model; one sample is enough, for recurrent layers of two steps or more.
    verify : bool, default: True
        Permute a copy with random weights at random and compare its outputs; groups that change them are left out, by
        name.

    Returns
    -------
    Symmetry
        The groups, each with the tensors and axes it acts on. Axes that an operation without a rule touches are fixed,
        and so are weights that the batch does not reach; ``left_out`` names both.

    Raises
    ------
    UnsupportedModelError
        If weights are quantized or complex.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> symmetry = find_symmetry(model, torch.rand(1, 3))
    >>> [(group.name, group.size) for group in symmetry.groups.values()]
    [('0.weight[0]', 5)]
    >>> sorted(symmetry.axes)
    ['0.bias', '0.weight', '2.weight']
    """
    _check_kind(model)
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        model, verify = _with_zeros(model), False
    leaves, aliases = leaves_of(model)
    parameters = {name for name, _ in model.named_parameters()}
    symmetry = _read(trace(model, leaves, batch), leaves, parameters, aliases)
    return _verified(symmetry, model, batch) if verify and symmetry.groups else symmetry


def _check_kind(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise UnsupportedModelError(f"weight {name!r} is complex", found=parameter.dtype, expected="real weights")
        if not parameter.is_floating_point():
            raise UnsupportedModelError(
                f"weight {name!r} is packed or quantized",
                found=parameter.dtype,
                do="Use the weights before quantization.",
            )
    if getattr(model, "quantization_method", None) is not None or getattr(model, "is_quantized", False):
        raise UnsupportedModelError("the model is quantized", do="Use the weights before quantization.")


def _with_zeros(model: nn.Module) -> nn.Module:
    """A copy whose tensors on the meta device are zeros that share one element each; tied ones stay tied."""
    copied = copy.deepcopy(model)
    made: dict[Tensor, Tensor] = {}
    for module in copied.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if tensor not in made:
                    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    made[tensor] = nn.Parameter(zeros, False) if isinstance(tensor, nn.Parameter) else zeros
                tensors[name] = made[tensor]  # type: ignore[assignment]
    return copied


# --- from axes to groups


def _read(
    seen: Trace, leaves: Mapping[str, Tensor], parameters: Container[str], aliases: Mapping[str, str]
) -> Symmetry:
    """Name the free leaves of the weights' axes as groups."""
    left_out = {}
    for name, tensor in leaves.items():
        if name not in seen.reached and tensor.ndim:
            seen.fix(tensor)
            left_out[name] = "is not reached by the example batch"
    runs = {name: [axis.runs() for axis in seen.dims(tensor)] for name, tensor in leaves.items()}
    for run in _all_runs(runs):
        for leaf in run.leaves:
            if run.leaves.count(leaf) > 1:
                leaf.fix("occurs twice in one axis")
    within = _within(seen, runs)
    names: dict[Axis, str] = {}
    for key, dims in runs.items():
        for axis, parts in enumerate(dims):
            free = list(dict.fromkeys(leaf for run in parts for leaf in run.leaves if not leaf.fixed))
            for number, leaf in enumerate(free):
                names.setdefault(leaf, f"{key}[{axis}]" + (f".{number}" if len(free) > 1 else ""))
            reasons = [leaf.reason for run in parts for leaf in run.leaves if leaf.fixed and leaf.reason]
            if reasons and key in parameters:
                left_out.setdefault(key, reasons[0])
    groups: dict[str, Group] = {}
    for leaf in names:
        # a group that holds another holds it within no third one, so one step up is enough
        for each in (within.get(leaf), leaf):
            if each is not None:
                parent = within.get(each)
                groups.setdefault(names[each], Group(names[each], each.size, names[parent] if parent else ""))
    axes = _blocks(runs, names)
    return Symmetry(
        groups,
        axes,
        {name: tuple(tensor.shape) for name, tensor in leaves.items()},
        left_out,
        {alias: key for alias, key in aliases.items() if key in axes},
        frozenset(name for name in leaves if name not in parameters),
        _blocks({place: [axis.runs() for axis in dims] for place, dims in seen.activations.items()}, names),
    )


def _blocks(runs: Mapping[K, list[list[Run]]], names: Mapping[Axis, str]) -> dict[K, AxisBlocks]:
    """The runs that hold a group, by the names of the groups."""
    found = {}
    for key, dims in runs.items():
        blocks = tuple(
            tuple(
                AxisBlock(
                    tuple(names.get(leaf, "") for leaf in run.leaves),
                    tuple(leaf.size for leaf in run.leaves),
                    run.strides,
                    run.offset,
                )
                for run in parts
                if any(leaf in names for leaf in run.leaves)
            )
            for parts in dims
        )
        if any(blocks):
            found[key] = blocks
    return found


def _all_runs(runs: Mapping[str, list[list[Run]]]) -> Iterator[Run]:
    for dims in runs.values():
        for parts in dims:
            yield from parts


def _within(seen: Trace, runs: Mapping[str, list[list[Run]]]) -> dict[Axis, Axis]:
    """For each free leaf the nearest leaf to its left whose every index may give it an order of its own.

    That holds where no operation ever meets the leaf without the other, and always can tell which index of the other
    belongs to it: the two are on one axis, or the other is on exactly one axis. A leaf within another holds none
    itself: composed, such orders would depend on both.
    """
    candidates: dict[Axis, list[Axis]] = {}
    for run in _all_runs(runs):
        for i, leaf in enumerate(run.leaves):
            if not leaf.fixed:
                left = [other for other in run.leaves[:i] if not other.fixed]
                have = candidates.get(leaf)
                candidates[leaf] = left if have is None else [other for other in have if other in left]
    checked: set[tuple[int, ...]] = set()
    for space in seen.spaces:
        terms = [term for axis in space if (term := axis.resolve()).size > 1]
        key = tuple(map(id, terms))
        if key not in checked:
            checked.add(key)
            _strike_out(candidates, [term.runs() for term in terms])
    roots = {leaf: [other for other in others if not candidates[other]] for leaf, others in candidates.items()}
    return {leaf: others[-1] for leaf, others in roots.items() if others}


def _strike_out(candidates: dict[Axis, list[Axis]], dims: list[list[Run]]) -> None:
    """Drop the candidates of which an operation over ``dims`` cannot tell the index."""
    for i, parts in enumerate(dims):
        elsewhere = [run for j, other in enumerate(dims) if j != i for run in other]
        alone = [other[0] for j, other in enumerate(dims) if j != i and len(other) == 1]
        for run in parts:
            for leaf in run.leaves:
                candidates[leaf] = [
                    other
                    for other in candidates.get(leaf, ())
                    if run.leaves.count(other) == 1
                    or (sum(r.leaves.count(other) for r in elsewhere) == sum(r.leaves.count(other) for r in alone) == 1)
                ]


# --- verification


def _verified(symmetry: Symmetry, model: nn.Module, batch: Batch) -> Symmetry:
    """Leave out the groups that change the outputs of a copy of the model with random weights."""
    failing = [*symmetry.groups]
    for dtype in (torch.float32, torch.float64):  # float64 is slower, and excludes rounding
        try:
            failing = _failing_permutations(symmetry, copy.deepcopy(model).to(dtype), batch)
        except RuntimeError:  # some kernels support one precision only
            continue
        if not failing:
            return symmetry
    return _verified(symmetry.without(failing, "changes the outputs"), model, batch)


def _failing_permutations(symmetry: Symmetry, probe: nn.Module, batch: Batch) -> list[str]:
    """The groups that change the outputs, or all where they only do so together; the probe's weights are lost."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in probe.state_dict().items():
            if key in symmetry.shapes and tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
                scale = tensor.abs().mean().clamp(min=0.05)
                positive = tensor.ndim < 2 or bool(tensor.min() >= 0)  # so that units are seldom inactive
                tensor.copy_(tensor.abs() + scale * noise if positive else tensor + scale * (2 * noise - 1))
    before = _run(probe, batch)
    perms = symmetry.random(generator)
    if _change(symmetry, probe, perms, batch, before) <= TOLERANCE:
        return []
    symmetry.permute_(probe, symmetry.inverse(perms))
    alone = []
    for name in symmetry.groups:
        one = symmetry.identity() | {name: perms[name]}
        if _change(symmetry, probe, one, batch, before) > TOLERANCE:
            alone.append(name)
        symmetry.permute_(probe, symmetry.inverse(one))
    return alone or [*symmetry.groups]


def _change(symmetry: Symmetry, probe: nn.Module, perms: Permutations, batch: Batch, before: list[Tensor]) -> float:
    """Largest change of an output when the probe is permuted, relative to its largest value."""
    symmetry.permute_(probe, perms)
    after = _run(probe, batch)
    return max(
        (float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in zip(before, after, strict=True)),
        default=0.0,
    )


@torch.no_grad()
def _run(model: nn.Module, batch: Batch) -> list[Tensor]:
    with evaluation_mode(model):
        out = call(model, batch)
        return [tensor for tensor in outputs_of(out) if tensor.is_floating_point() and tensor.numel()]
