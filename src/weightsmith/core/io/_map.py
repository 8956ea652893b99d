"""Merge networks tensor by tensor and chunk by chunk: state dicts in memory, checkpoints of any size on disk.

A merging rule sees one chunk of one tensor of every network at a time. Chunks are read into, and written from, a few
fixed buffers by workers that each read, compute and write, so reading overlaps with writing and memory is bounded
whatever the size of the checkpoint or of its largest tensor.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from weightsmith.core.errors import (
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io._checkpoint import CheckpointReader, CheckpointWriter, StateDict, TensorSpec
from weightsmith.core.linalg import is_finite
from weightsmith.core.progress import track

__all__ = ["Combine", "Merged", "Pass", "Rule", "merge_folders", "merge_state_dicts"]

Combine: TypeAlias = Callable[[Sequence[Tensor], Tensor], object]
"""Given one chunk of a tensor of every network, then of its weights where there are any, write the merged chunk."""

Pass: TypeAlias = Callable[[], Iterator[list[Tensor]]]
"""Go over all chunks of a tensor once before merging it, for what needs the whole tensor, such as its norm."""

Rule: TypeAlias = Callable[[Pass], Combine]
"""A way to merge: told of each tensor, how its chunks are combined."""

CHUNK = 2**21
"""Bytes a chunk: larger ones leave the processor's cache, smaller ones have the workers wait for each other."""

WORKERS = max(2, min(4, os.cpu_count() or 1))
"""Each reads, computes and writes; more than the disk serves at a time bring nothing."""

QUANTISED = {torch.uint8, torch.int8, torch.int32}


@dataclass
class Merged:
    """What was merged.

    Attributes
    ----------
    merged : dict of str to int
        Tensors that were combined, and their weights.
    kept : list of str
        Tensors taken from the last network as they are: integers, and those that were to be kept.
    """

    merged: dict[str, int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, int]:
        """Counts of tensors and weights."""
        return {"tensors": len(self.merged), "weights": sum(self.merged.values()), "kept_tensors": len(self.kept)}


def merge_state_dicts(
    states: Sequence[StateDict], rule: Rule, *, keep: Sequence[str] = (), weights: Sequence[StateDict] = ()
) -> dict[str, Tensor]:
    """Merge state dicts into a new one, tied tensors once.

    Parameters
    ----------
    states : sequence of state dict
        With the same names and shapes. The result has the element types of the last.
    rule : callable
        How chunks are combined.
    keep : sequence of str
        Shell patterns on names: these are taken from the last state dict, and the others need not have them.
    weights : sequence of state dict
        Element-wise weights, one mapping for each of ``states``; ones where it lacks a name.

    Returns
    -------
    dict of str to Tensor
        In the order of the last. What was not combined is the tensor of the last itself.

    Raises
    ------
    ShapeError
        If names or shapes differ.
    NonFiniteError
        If a tensor holds NaN or infinity.
    UnsupportedModelError
        If weights are quantised.

    Examples
    --------
    >>> largest = lambda chunks: lambda parts, out: torch.maximum(*parts, out=out)
    >>> merge_state_dicts([{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([2.0, 3.0])}], largest)
    {'w': tensor([2., 4.])}
    """
    specs = [{name: TensorSpec.of(tensor) for name, tensor in state.items()} for state in states]
    plan = _plan(specs, [f"state dict {index}" for index in range(len(states))], keep)
    _check_weights([{name: TensorSpec.of(tensor) for name, tensor in state.items()} for state in weights], specs)
    result: dict[str, Tensor] = {}
    done: dict[tuple[object, ...], Tensor] = {}
    for name, last in states[-1].items():
        if name in plan.kept:
            result[name] = last
            continue
        place = (last.data_ptr(), last.dtype, tuple(last.shape), last.stride()) if last.numel() else (name,)
        if place not in done:
            flat = [state[name].detach().to(last.device).reshape(-1) for state in states]
            flat += [_ones_where_missing(state.get(name), flat[-1]) for state in weights]
            combined = torch.empty_like(flat[len(states) - 1])
            rule(lambda flat=flat: iter([flat]))(flat, combined)  # type: ignore[misc]
            _check_finite(name, combined, flat, [f"state dict {index}" for index in range(len(flat))])
            done[place] = combined.view(last.shape)
        result[name] = done[place]
    return result


def merge_folders(
    checkpoints: Sequence[Path],
    out: Path,
    rule: Rule,
    *,
    keep: Sequence[str] = (),
    weights: Sequence[Path] = (),
    overwrite: bool = False,
) -> Merged:
    """Merge checkpoints on disk into a new one, all or nothing, in memory that does not depend on their size.

    Parameters
    ----------
    checkpoints : sequence of path
        Folders or files. The result has the names, element types and small files of the last.
    out : path
        Folder, or a ``.safetensors`` file.
    rule, keep
        As in :func:`merge_state_dicts`.
    weights : sequence of path
        Checkpoints of element-wise weights, one for each of ``checkpoints``.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Merged
        What was combined and what was kept.

    Raises
    ------
    CheckpointError
        If a checkpoint cannot be read or ``out`` not be written.
    ShapeError, NonFiniteError, UnsupportedModelError
        As :func:`merge_state_dicts`; nothing is written.
    """
    readers = [_Chunks(path) for path in checkpoints]
    scales = [_Chunks(path) for path in weights]
    specs = [chunks.reader.specs for chunks in readers]
    plan = _plan(specs, [str(path) for path in checkpoints], keep)
    _check_weights([chunks.reader.specs for chunks in scales], specs)
    like = checkpoints[-1] if Path(checkpoints[-1]).is_dir() else None
    with CheckpointWriter(out, readers[-1].reader.specs, like=like, overwrite=overwrite) as writer, _workers() as pool:
        _drain(pool, _jobs(readers, scales, writer, rule, plan))
    return plan


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that compute on one core each: torch's own threads would wait for each other at every chunk."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _jobs(
    readers: Sequence[_Chunks], scales: Sequence[_Chunks], writer: CheckpointWriter, rule: Rule, plan: Merged
) -> Iterator[Callable[[], None]]:
    kept, buffers = set(plan.kept), _Buffers()
    for name, spec in track(writer.specs.items(), "merging", total=len(writer.specs)):
        if name in kept:
            sources: Sequence[_Chunks] = readers[-1:]
            combine: Combine = _last
        else:
            sources = [*readers, *scales]
            combine = rule(lambda sources=sources, name=name: _pass(sources, name))  # type: ignore[misc]
        for begin, end in _ranges(spec):
            yield _Job(name, begin, end, sources, combine, writer, buffers, name not in kept)


@dataclass(frozen=True)
class _Job:
    """One chunk of one tensor: read from every source, combine, write."""

    name: str
    begin: int
    end: int
    sources: Sequence[_Chunks]
    combine: Combine
    writer: CheckpointWriter
    buffers: _Buffers
    check: bool

    def __call__(self) -> None:
        parts = [source.read(self.name, self.begin, self.end) for source in self.sources]
        merged = self.buffers.chunk(self.writer.specs[self.name].dtype, self.end - self.begin)
        self.combine(parts, merged)
        if self.check:
            _check_finite(self.name, merged, parts, [str(source.path) for source in self.sources])
        self.writer.write_range(self.name, self.begin, merged)


def _drain(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], None]]) -> None:
    """Run jobs with only a few of them waiting; the first error stops all."""
    waiting: deque[Future[None]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 4 * WORKERS:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _pass(sources: Sequence[_Chunks], name: str) -> Iterator[list[Tensor]]:
    for begin, end in _ranges(sources[0].reader.specs[name]):
        yield [source.read(name, begin, end) for source in sources]


def _ranges(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """First and last element of each chunk of a tensor.

    >>> list(_ranges(TensorSpec(torch.float32, (2**10, 2**10))))
    [(0, 524288), (524288, 1048576)]
    """
    count, step = spec.numel, CHUNK // spec.dtype.itemsize
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


def _last(parts: Sequence[Tensor], out: Tensor) -> None:
    out.copy_(parts[-1])


class _Buffers(threading.local):
    """One piece of memory for each thread: the next chunk overwrites the last."""

    memory = torch.empty(0, dtype=torch.uint8)

    def chunk(self, dtype: torch.dtype, count: int) -> Tensor:
        size = count * dtype.itemsize
        if self.memory.numel() < size:
            self.memory = torch.empty(max(size, CHUNK), dtype=torch.uint8)
        return self.memory[:size].view(dtype)


class _Chunks:
    """A checkpoint read in pieces, by several threads at once, each into its own buffers."""

    def __init__(self, path: Path) -> None:
        self.path, self.reader = path, CheckpointReader(path)
        self._buffers = _Buffers()

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """Elements ``begin`` to ``end``; valid until this thread reads the next chunk."""
        if name not in self.reader:  # weights: ones where there are none
            return torch.ones(end - begin)
        room = self._buffers.chunk(self.reader.specs[name].dtype, end - begin)
        return self.reader.read(name, begin, end, out=room)


def _plan(specs: Sequence[Mapping[str, TensorSpec]], names: Sequence[str], keep: Sequence[str]) -> Merged:
    """Compare the networks and decide of each tensor whether it is combined."""
    if len(specs) < 2:
        raise HyperparameterError("networks to merge", found=len(specs), expected="at least two")
    last = specs[-1]
    plan = Merged()
    for name, spec in last.items():
        if any(fnmatchcase(name, pattern) for pattern in keep) or not spec.dtype.is_floating_point:
            plan.kept.append(name)
        else:
            plan.merged[name] = spec.numel
        if spec.dtype in QUANTISED and len(spec.shape) > 1:
            raise UnsupportedModelError(
                f"tensor {name!r} of {names[-1]} is quantised", found=spec.dtype, do="Dequantise the checkpoint first."
            )
    kept = set(plan.kept)
    for other, who in zip(specs[:-1], names, strict=False):
        loose = [name for name in other if name not in last and any(fnmatchcase(name, each) for each in keep)]
        odd = sorted((plan.merged.keys() - other.keys()) | (other.keys() - last.keys() - kept - set(loose)))
        if odd:
            raise ShapeError(
                f"{who} and {names[-1]} differ in {len(odd)} names",
                found=odd[:5],
                expected="the same",
                do='A head that only one has stays with head="finetuned".',
            )
        bad = [name for name in plan.merged if other[name].shape != last[name].shape]
        if bad:
            shapes = [(name, other[name].shape, last[name].shape) for name in bad[:5]]
            raise ShapeError(
                f"{who} and {names[-1]} differ in {len(bad)} shapes",
                found=shapes,
                expected="the same",
                do='A head of other size stays with head="finetuned".',
            )
    return plan


def _check_weights(weights: Sequence[Mapping[str, TensorSpec]], specs: Sequence[Mapping[str, TensorSpec]]) -> None:
    if len(weights) not in (0, len(specs)):
        raise ShapeError("element-wise weights", found=len(weights), expected=f"one for each of {len(specs)} networks")
    for scale in weights:
        for name in scale.keys() & specs[-1].keys():
            if scale[name].shape != specs[-1][name].shape:
                raise ShapeError(f"weights of {name!r}", found=scale[name].shape, expected=specs[-1][name].shape)


def _check_finite(name: str, merged: Tensor, parts: Sequence[Tensor], names: Sequence[str]) -> None:
    if not is_finite(merged if merged.element_size() > 1 else merged.float()):
        bad = [who for who, part in zip(names, parts, strict=True) if not is_finite(part.float())]
        where = f" of {', '.join(bad)}" if bad else ""
        raise NonFiniteError(
            f"tensor {name!r}{where}", found="NaN or infinity", do="Repair the checkpoint; nothing was written."
        )


def _ones_where_missing(weight: Tensor | None, like: Tensor) -> Tensor:
    if weight is None:
        return torch.ones_like(like, dtype=torch.float32)
    return weight.detach().to(like.device).reshape(-1)
