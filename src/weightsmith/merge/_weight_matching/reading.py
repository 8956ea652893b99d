"""From the axes of a trace to permutations: which leaves are free, and which have an order in each block of others."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from weightsmith.merge._weight_matching.axes import Axis, Run
from weightsmith.merge._weight_matching.trace import Tracer

__all__ = ["Block", "Dims", "Found", "Permutation", "Side", "read"]

Side: TypeAlias = Literal["input", "output"]
K = TypeVar("K")


@dataclass(frozen=True)
class Permutation:
    """A group of indices that may be reordered wherever it occurs.

    Attributes
    ----------
    name : str
        The first weight and axis it acts on.
    size : int
        Number of indices.
    within : str, default: ""
        Another permutation whose blocks each have an order of their own, as the channels within each head.
    """

    name: str
    size: int
    within: str = ""


@dataclass(frozen=True)
class Block:
    """A part of one axis of a weight: the product of the indices of some permutations and of fixed ones.

    Attributes
    ----------
    names : tuple of str
        Permutations, slowest first; empty where the indices are fixed.
    sizes, strides : tuple of int
        Of each; the index ``i`` stands at ``offset + sum(strides * i)``.
    offset : int
        Place of the first index.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def places(self) -> Int[Tensor, "..."]:
        """Where each index stands on the axis, one dimension a factor."""
        places = torch.tensor(self.offset)
        for size, stride in zip(self.sizes, self.strides, strict=True):
            places = places.unsqueeze(-1) + stride * torch.arange(size)
        return places


Dims: TypeAlias = tuple[tuple[Block, ...], ...]
"""The blocks of each axis of a tensor; none where an axis is fixed."""


@dataclass(frozen=True)
class Found:
    """What a trace says: see :class:`~weightsmith.merge._weight_matching.spec.PermutationSpec`."""

    permutations: dict[str, Permutation]
    axes: dict[str, Dims]
    activations: dict[tuple[str, Side], Dims]
    left_out: dict[str, str]


def read(tracer: Tracer, leaves: Mapping[str, Tensor], parameters: Container[str]) -> Found:
    """Turn the axes of the weights into permutations."""
    left_out = {}
    for name, tensor in leaves.items():
        if name not in tracer.reached and tensor.ndim:
            tracer.fix(tensor)
            left_out[name] = "is not reached by the example batch"
    runs = {name: [axis.runs() for axis in tracer.dims(tensor)] for name, tensor in leaves.items()}
    for run in _all_runs(runs):
        for leaf in run.leaves:
            if run.leaves.count(leaf) > 1:
                leaf.fix("occurs twice in one axis")
    within = _within(tracer, runs)
    names: dict[Axis, str] = {}
    for key, dims in runs.items():
        for axis, parts in enumerate(dims):
            free = list(dict.fromkeys(leaf for run in parts for leaf in run.leaves if not leaf.fixed))
            for number, leaf in enumerate(free):
                names.setdefault(leaf, f"{key}[{axis}]" + (f".{number}" if len(free) > 1 else ""))
            reasons = [leaf.reason for run in parts for leaf in run.leaves if leaf.fixed and leaf.reason]
            if reasons and key in parameters:
                left_out.setdefault(key, reasons[0])
    permutations: dict[str, Permutation] = {}

    def add(leaf: Axis) -> None:
        parent = within.get(leaf)
        if parent is not None:
            add(parent)
        permutations.setdefault(names[leaf], Permutation(names[leaf], leaf.size, names[parent] if parent else ""))

    for leaf in names:
        add(leaf)
    axes = _blocks(runs, names)
    sides: dict[tuple[str, Side], list[list[Run]]] = {}
    for name, dims_in in tracer.inputs.items():
        sides[name, "input"] = [axis.runs() for axis in dims_in]
    for name, dims_out in tracer.outputs.items():
        sides[name, "output"] = [axis.runs() for axis in dims_out]
    return Found(permutations, axes, _blocks(sides, names), left_out)


def _blocks(runs: Mapping[K, list[list[Run]]], names: Mapping[Axis, str]) -> dict[K, Dims]:
    """The runs in which something is permuted, by the names of the permutations."""
    found = {}
    for key, dims in runs.items():
        blocks = tuple(
            tuple(
                Block(
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


def _within(tracer: Tracer, runs: Mapping[str, list[list[Run]]]) -> dict[Axis, Axis]:
    """For each free leaf the nearest leaf to its left whose every index may give it an order of its own.

    That holds where no operation ever meets the leaf without the other, and always can tell which index of the other
    belongs to it: the two stand on one axis, or the other stands on exactly one axis. A leaf within another holds none
    itself: composed, such orders would depend on both.
    """
    candidates: dict[Axis, list[Axis]] = {}
    for run in _all_runs(runs):
        for i, leaf in enumerate(run.leaves):
            if not leaf.fixed:
                left = [other for other in run.leaves[:i] if not other.fixed]
                have = candidates.get(leaf)
                candidates[leaf] = left if have is None else [other for other in have if other in left]
    seen: set[tuple[int, ...]] = set()
    for space in tracer.spaces:
        terms = [axis.resolve() for axis in space]
        terms = [term for term in terms if term.size > 1]
        key = tuple(map(id, terms))
        if key not in seen:
            seen.add(key)
            _strike_out(candidates, [term.runs() for term in terms])
    roots = {leaf: [other for other in others if not candidates[other]] for leaf, others in candidates.items()}
    return {leaf: others[-1] for leaf, others in roots.items() if others}


def _strike_out(candidates: dict[Axis, list[Axis]], dims: list[list[Run]]) -> None:
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
