"""Make one checkpoint from one or several, tensor by tensor and chunk by chunk; the same for state dicts in memory.

A tensor map sees one chunk of one tensor of every source at a time. Chunks are read into, and written from, a few fixed
buffers by workers that each read, compute and write, so reading overlaps with writing, and memory is bounded whatever
the size of the checkpoint or of its largest tensor.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from weightsmith.core.errors import NonFiniteError, UnsupportedModelError
from weightsmith.core.io._atomic import check_output, write_file
from weightsmith.core.io._checkpoint import CheckpointReader, CheckpointWriter, StateDict
from weightsmith.core.io._header import DTYPES, TensorSpec
from weightsmith.core.linalg import is_finite
from weightsmith.core.progress import track
from weightsmith.core.tied import tensor_owners

__all__ = ["RECOMPUTED", "ChunkMap", "Chunks", "TensorMap", "check_elementwise", "map_checkpoints", "map_state_dicts"]

ChunkMap: TypeAlias = Callable[[Sequence[Tensor], Tensor], Tensor]
"""From one chunk of a tensor of every source, and a buffer for the result, to the result: the buffer or another."""

Chunks: TypeAlias = Callable[[], Iterator[list[Tensor]]]
"""Iterates once over all chunks of a tensor, for what depends on the whole tensor, such as its norm."""

TensorMap: TypeAlias = Callable[[str, Chunks], "ChunkMap | None"]
"""From a tensor's name to how its chunks are mapped; None where the last source's tensor is copied."""

CHUNK = 2**21
"""Bytes per chunk: larger ones exceed the processor's cache, smaller ones make the workers wait for each other."""

PACKED = {torch.uint8, torch.int8, torch.int32, DTYPES.get("F4"), DTYPES.get("F8_E8M0")} - {None}
"""Element types of packed or quantized weights, where a tensor has more than one axis."""

ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|vera_lambda|hada_w|lokr_w)")
"""Names of the factors of adapters."""

RECOMPUTED = ("*rotary_emb.inv_freq", "*rotary_embeddings.inv_freq", "*position_ids", "*attn.masked_bias")
"""Shell patterns of buffers that models compute when they are loaded; only older releases stored them."""

WORKERS = max(2, min(4, os.cpu_count() or 1))
"""Each reads, computes and writes; more than the disk serves at a time bring nothing."""


def check_elementwise(specs: Mapping[str, TensorSpec], who: str) -> None:
    """Refuse tensors whose elements are not weights, so that arithmetic on them gives other weights than meant.

    Parameters
    ----------
    specs : mapping of str to TensorSpec
        The tensors of a checkpoint or state dict.
    who : str
        What it is called in errors.

    Raises
    ------
    UnsupportedModelError
        If weights are packed or have a scale beside them, or are the factors of an adapter, whose product is the
        update.

    Examples
    --------
    >>> check_elementwise({"q_proj.lora_A.weight": TensorSpec(torch.float32, (2, 8))}, "adapter")
    Traceback (most recent call last):
    weightsmith.core.errors.UnsupportedModelError: tensor 'q_proj.lora_A.weight' of adapter is a factor of an adapter: \
    only the product of its factors is an update. Merge the adapter into its base first (PEFT's merge_and_unload).
    """
    scaled = {name.rpartition("_scale")[0] for name in specs if "_scale" in name.rpartition(".")[2]}
    for name, spec in specs.items():
        if ADAPTER.search(name):
            raise UnsupportedModelError(
                f"tensor {name!r} of {who} is a factor of an adapter: only the product of its factors is an update",
                do="Merge the adapter into its base first (PEFT's merge_and_unload).",
            )
        if len(spec.shape) > 1 and (spec.dtype in PACKED or name in scaled):
            raise UnsupportedModelError(
                f"tensor {name!r} of {who} is quantized", found=spec.dtype, do="Dequantize the checkpoint first."
            )


def map_state_dicts(
    states: Sequence[StateDict], tensor_map: TensorMap, whose: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Map state dicts to a new one; tied tensors are mapped once.

    Parameters
    ----------
    states : sequence of state dict
        The names and element types of the result are those of the last.
    tensor_map : callable
        Each tensor is one flat chunk.
    whose : sequence of str, optional
        What the state dicts are called in errors.

    Returns
    -------
    dict of str to Tensor
        In the order of the last. What is not mapped is the tensor of the last itself.

    Raises
    ------
    NonFiniteError
        If a result holds NaN or infinity.
    UnsupportedModelError
        If the last ties tensors that differ in another.

    Examples
    --------
    >>> largest = lambda name, chunks: lambda parts, out: torch.maximum(*parts, out=out)
    >>> map_state_dicts([{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([2.0, 3.0])}], largest)
    {'w': tensor([2., 4.])}
    """
    result: dict[str, Tensor] = {}
    owners = tensor_owners(states[-1])
    names = whose or [f"state dict {index}" for index in range(len(states))]
    for name, last in states[-1].items():
        owner = owners[name]
        for state, who in zip(states, names, strict=True) if owner != name else ():
            if name in state and not (state[name] is state[owner] or torch.equal(state[name], state[owner])):
                raise UnsupportedModelError(
                    f"tensors {owner!r} and {name!r} of {who} differ, where {names[-1]} ties them",
                    do=f"Untie {names[-1]}, so that both are merged, or keep {name!r} out.",
                )
        if owner not in result:

            def chunks(name: str = name, last: Tensor = last) -> Iterator[list[Tensor]]:
                yield [state[name].detach().to(last.device).reshape(-1) for state in states]

            chunk_map = tensor_map(name, chunks)
            result[name] = last
            if chunk_map is not None:
                (parts,) = chunks()
                mapped = chunk_map(parts, torch.empty_like(parts[-1]))
                _check_finite(name, mapped, parts, names)
                result[name] = mapped.view(last.shape)
        result[name] = result[owner]
    return result


def map_checkpoints(
    sources: Sequence[CheckpointReader],
    out: Path,
    tensor_map: TensorMap,
    *,
    ranges: Callable[[str, TensorSpec], Iterable[tuple[int, int]]] | None = None,
    workers: int = WORKERS,
    overwrite: bool = False,
    files: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Map checkpoints on disk to a new one, all or nothing, in memory that does not depend on their size.

    Parameters
    ----------
    sources : sequence of CheckpointReader
        The names, element types and small files of the result are those of the last.
    out : path
        Folder, or a ``.safetensors`` file.
    tensor_map : callable
        Called once per tensor, in the order of the last source. The chunks it gets may be overwritten.
    ranges : callable, optional
        From a tensor's name and spec to the first and last element of each chunk, where a map needs whole rows or
        tensors. Memory then depends on them.
    workers : int, optional
        Threads, of which each holds one chunk of every source. With 1 the chunks are mapped in order, by the calling
        thread and as many threads as torch has.
    overwrite : bool, default: False
        Replace what is at ``out``.
    files : callable, optional
        Called when all tensors are written: names and texts of small files, written if ``out`` is a folder.

    Raises
    ------
    CheckpointError
        If a checkpoint cannot be read or ``out`` cannot be written.
    NonFiniteError
        If a result holds NaN or infinity; nothing is written.
    """
    check_output(out, overwrite=overwrite, inputs=[reader.path for reader in sources])
    inputs = [_Source(reader) for reader in sources]
    like = sources[-1].path if sources[-1].path.is_dir() else None
    with CheckpointWriter(out, sources[-1].specs, like=like, overwrite=overwrite) as writer:
        jobs = _jobs(inputs, writer, tensor_map, ranges or (lambda name, spec: _ranges(spec)))
        if workers == 1:
            for job in jobs:
                job()
        else:
            with _pool(workers) as pool:
                _drain(pool, jobs, 4 * workers)
        for name, text in files().items():
            if writer.target.is_dir():
                write_file(writer.target / name, text)


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute on one core each: torch's own threads would wait for each other at every chunk."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _jobs(
    inputs: Sequence[_Source],
    writer: CheckpointWriter,
    tensor_map: TensorMap,
    ranges: Callable[[str, TensorSpec], Iterable[tuple[int, int]]],
) -> Iterator[Callable[[], None]]:
    buffers = _Buffers()
    for name, spec in track(writer.specs.items(), "tensors", total=len(writer.specs)):

        def chunks(name: str = name, spec: TensorSpec = spec) -> Iterator[list[Tensor]]:
            for begin, end in ranges(name, spec):
                yield [source.read(name, begin, end) for source in inputs]

        chunk_map = tensor_map(name, chunks)
        used = inputs[-1:] if chunk_map is None else inputs
        for begin, end in _ranges(spec) if chunk_map is None else ranges(name, spec):
            yield _Job(name, begin, end, used, chunk_map, writer, buffers)


@dataclass(frozen=True)
class _Job:
    """One chunk of one tensor: read from every source, map, write."""

    name: str
    begin: int
    end: int
    sources: Sequence[_Source]
    chunk_map: ChunkMap | None
    writer: CheckpointWriter
    buffers: _Buffers

    def __call__(self) -> None:
        parts = [source.read(self.name, self.begin, self.end) for source in self.sources]
        mapped = parts[-1]
        if self.chunk_map is not None:
            buffer = self.buffers.chunk(self.writer.specs[self.name].dtype, self.end - self.begin)
            mapped = self.chunk_map(parts, buffer)
            _check_finite(self.name, mapped, parts, [str(source.reader.path) for source in self.sources])
        self.writer.write_range(self.name, self.begin, mapped)


def _drain(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], None]], limit: int) -> None:
    """Run jobs with only a few of them waiting; the first error stops all."""
    waiting: deque[Future[None]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > limit:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _ranges(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """First and last element of each chunk of a tensor.

    >>> list(_ranges(TensorSpec(torch.float32, (2**10, 2**10))))
    [(0, 524288), (524288, 1048576)]
    """
    count, step = spec.numel, CHUNK // spec.dtype.itemsize
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


class _Buffers(threading.local):
    """One piece of memory per thread: the next chunk overwrites the last."""

    memory = torch.empty(0, dtype=torch.uint8)

    def chunk(self, dtype: torch.dtype, count: int) -> Tensor:
        size = count * dtype.itemsize
        if self.memory.numel() < size:
            self.memory = torch.empty(max(size, CHUNK), dtype=torch.uint8)
        return self.memory[:size].view(dtype)


class _Source:
    """A checkpoint read in chunks, by several threads at once, each into its own buffers."""

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader = reader
        self._buffers = _Buffers()

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """Read the elements ``begin`` to ``end``; valid until this thread reads the next chunk."""
        room = self._buffers.chunk(self.reader.specs[name].dtype, end - begin)
        return self.reader.read(name, begin, end, out=room)


def _check_finite(name: str, mapped: Tensor, parts: Sequence[Tensor], names: Sequence[str]) -> None:
    numbers = mapped.is_floating_point() or mapped.is_complex()
    if numbers and not is_finite(mapped if mapped.element_size() > 1 else mapped.float()):
        bad = [
            who
            for who, part in zip(names, parts, strict=True)
            if not is_finite(part if part.is_complex() else part.float())
        ]
        where = f" of {', '.join(bad)}" if bad else ""
        raise NonFiniteError(
            f"tensor {name!r}{where}", found="NaN or infinity", do="Repair the checkpoint; nothing was written."
        )
