"""Read, stream and write the tensors of checkpoints: Hugging Face folders, safetensors files, torch state dicts.

Reading is tensor by tensor and never maps a whole file, so a checkpoint may exceed memory and address space.
Writing is all or nothing: everything goes to a temporary sibling that is renamed when it is complete.
"""

from __future__ import annotations

import copy
import json
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from weightsmith.core.errors import CheckpointError, ShapeError
from weightsmith.core.io._atomic import atomic_output
from weightsmith.core.io._aux_files import copy_aux_files
from weightsmith.core.io._header import LONGEST_HEADER, TensorSpec, read_header, write_header
from weightsmith.core.io._json import read_json

__all__ = ["CheckpointReader", "CheckpointWriter", "StateDict", "load_state_dict"]

StateDict: TypeAlias = Mapping[str, Tensor]
"""Names and tensors, as ``model.state_dict()`` returns them."""

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
TRAINING_STATE = re.compile(r"(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states)(_\d+)?")
"""Names of pickles that trainers write beside a state dict."""


class CheckpointReader:
    """The tensors of a checkpoint, read one at a time when asked for.

    Parameters
    ----------
    path : path-like
        A Hugging Face folder (sharded or not), a ``.safetensors`` file, or a torch pickle of a state dict
        (loaded with ``weights_only=True``).

    Attributes
    ----------
    path : Path
        What was opened.
    specs : dict of str to TensorSpec
        Every tensor's element type and shape, known without reading the tensors.
    metadata : dict of str to str
        Metadata of the files' headers.

    Raises
    ------
    CheckpointError
        If the path has no weights, a shard is missing or truncated, its header is damaged, or the index and the
        shards disagree.

    Examples
    --------
    >>> import tempfile, safetensors.torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     safetensors.torch.save_file({"w": torch.arange(3.0)}, f"{folder}/model.safetensors")
    ...     CheckpointReader(folder).tensor("w")
    tensor([0., 1., 2.])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.specs: dict[str, TensorSpec] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._pickled: dict[str, Tensor] = {}
        for shard in self._shards():
            if shard.suffix in PICKLES:
                self._read_pickle(shard)
            else:
                self._read_header(shard)
        self._check_index()

    def __contains__(self, key: str) -> bool:
        return key in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def keys(self) -> list[str]:
        """Return the names of all tensors, in file order."""
        return list(self.specs)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(spec.nbytes for spec in self.specs.values())

    def renamed(self, keys: Mapping[str, str]) -> CheckpointReader:
        """Return a reader of some tensors under other names.

        Parameters
        ----------
        keys : mapping of str to str
            From each new name to the stored one.
        """
        reader = copy.copy(self)
        reader.specs = {new: self.specs[old] for new, old in keys.items()}
        reader._places = {new: self._places[old] for new, old in keys.items() if old in self._places}
        reader._pickled = {new: self._pickled[old] for new, old in keys.items() if old in self._pickled}
        return reader

    def tensor(self, key: str) -> Tensor:
        """Read one tensor.

        Raises
        ------
        CheckpointError
            If there is no such tensor or its bytes cannot be read.
        """
        if key in self._pickled:
            return self._pickled[key]
        return self.read(key).view(self._spec(key).shape)

    def read(self, key: str, begin: int = 0, end: int | None = None, *, out: Tensor | None = None) -> Tensor:
        """Read some elements of a tensor; threads may do so at the same time.

        Parameters
        ----------
        key : str
            Name of the tensor.
        begin, end : int
            First element, and the one after the last, counted row after row; all by default.
        out : Tensor, optional
            Where to put them: one axis of ``end - begin`` elements of the stored type, contiguous, on the CPU.

        Returns
        -------
        Tensor
            ``out`` where it is given, and one axis in any case.

        Raises
        ------
        CheckpointError
            If there is no such tensor, or its file ends too early or cannot be read.
        ShapeError
            If the tensor has no such elements, or ``out`` does not fit them.

        Examples
        --------
        >>> import tempfile, safetensors.torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     safetensors.torch.save_file({"w": torch.arange(6.0).view(2, 3)}, f"{folder}/model.safetensors")
        ...     CheckpointReader(folder).read("w", 2, 5)
        tensor([2., 3., 4.])
        """
        spec = self._spec(key)
        end = spec.numel if end is None else end
        if not 0 <= begin <= end <= spec.numel:
            raise ShapeError(
                f"elements of tensor {key!r} in {self.path}", found=(begin, end), expected=f"within 0 to {spec.numel}"
            )
        wanted = TensorSpec(spec.dtype, (end - begin,))
        if out is not None and TensorSpec.of(out) != wanted:
            raise ShapeError(f"room for tensor {key!r}", found=TensorSpec.of(out), expected=wanted)
        if key in self._pickled:
            part = self._pickled[key].reshape(-1)[begin:end]
            return part if out is None else out.copy_(part)
        out = torch.empty(wanted.shape, dtype=wanted.dtype) if out is None else out
        shard, offset = self._places[key]
        try:
            _read_into(out, shard, offset + begin * spec.dtype.itemsize, key)
        except OSError as error:
            raise CheckpointError(f"cannot read tensor {key!r} of {self.path}", found=error) from error
        return out

    def _spec(self, key: str) -> TensorSpec:
        if key not in self.specs:
            raise CheckpointError(
                f"no tensor {key!r} in {self.path}", found=f"{len(self)} tensors such as {self.keys()[:4]}"
            )
        return self.specs[key]

    def _shards(self) -> list[Path]:
        if self.path.is_file():
            if self.path.suffix not in {".safetensors", *PICKLES}:
                raise CheckpointError(
                    f"unknown checkpoint format of {self.path}",
                    expected="a folder, .safetensors, .bin, .pt or .pth",
                )
            return [self.path]
        if not self.path.is_dir():
            raise CheckpointError(f"no checkpoint at {self.path}", do="Give a folder or a .safetensors file.")
        if (self.path / INDEX).is_file():
            return [self.path / name for name in sorted(set(self._index().values()))]
        if (self.path / WHOLE).is_file():  # beside it may lie others, which transformers does not read either
            return [self.path / WHOLE]
        pickles = sorted(
            file for file in self.path.iterdir() if file.suffix in PICKLES and not TRAINING_STATE.fullmatch(file.stem)
        )
        shards = sorted(self.path.glob("*.safetensors")) or pickles
        if not shards:
            raise CheckpointError(
                f"no weights in {self.path}",
                found=sorted(file.name for file in self.path.iterdir())[:8],
                expected="*.safetensors",
            )
        return shards

    def _index(self) -> dict[str, str]:
        index = self.path / INDEX
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"damaged index {index}", found=weight_map, expected="a mapping 'weight_map'")
        outside = [name for name in weight_map.values() if not isinstance(name, str) or Path(name).name != name]
        if outside:
            raise CheckpointError(f"damaged index {index}", found=outside[0], expected="files of this folder")
        return weight_map

    def _check_index(self) -> None:
        if not (self.path / INDEX).is_file():
            return
        for key, shard in self._index().items():
            if key not in self._places or self._places[key][0].name != shard:
                raise CheckpointError(
                    f"tensor {key!r} is listed in {INDEX} but missing in {shard}",
                    do="Download the shard again.",
                )

    def _read_header(self, shard: Path) -> None:
        with _damage_of(self.path, shard), _open(shard) as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, LONGEST_HEADER):
                raise ValueError(f"header of {length} bytes in a file of {size} bytes")
            metadata, specs, begins = read_header(file.read(length), size - 8 - length)
        if twice := next((key for key in specs if key in self.specs), None):
            raise CheckpointError(
                f"tensor {twice!r} is in two files of {self.path}",
                found=f"{self._places[twice][0].name} and {shard.name}",
                expected=f"each tensor once, or {INDEX} to say where",
                do="Move the file that does not belong to the model elsewhere.",
            )
        self.metadata.update(metadata)
        self.specs.update(specs)
        self._places.update({key: (shard, 8 + length + begin) for key, begin in begins.items()})

    def _read_pickle(self, shard: Path) -> None:
        with _damage_of(self.path, shard):
            _open(shard).close()
        try:
            loaded = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch.load raises many types on damaged or unsafe pickles
            raise CheckpointError(
                f"cannot load {shard} safely",
                found=str(error).splitlines()[0],
                expected="a state dict of tensors",
                do="Convert the file to safetensors.",
            ) from error
        if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
            raise CheckpointError(f"{shard} is not a state dict", expected="a flat mapping of names to tensors")
        self._pickled.update(loaded)
        self.specs.update({key: TensorSpec.of(value) for key, value in loaded.items()})


class CheckpointWriter:
    """Write a checkpoint tensor by tensor, in any order, knowing all shapes beforehand.

    A context manager: on a clean exit the checkpoint appears at ``out`` complete; on an exception nothing remains.

    Parameters
    ----------
    out : path-like
        A folder, or a path that ends in ``.safetensors`` for a single file.
    specs : mapping of str to TensorSpec
        Every tensor that will be written.
    like : path-like, optional
        A checkpoint folder whose other files (config, tokenizer, generation settings) are copied.
    overwrite : bool, default: False
        Replace what is at ``out``.
    max_shard_bytes : int, default: 5e9
        Shards larger than this are split (tensors never are).

    Attributes
    ----------
    publish : callable
        Called when all is written, just before the checkpoint appears.

    Raises
    ------
    CheckpointError
        If ``out`` exists and ``overwrite`` is off, the disk cannot hold the checkpoint, or a tensor was not written.
    ShapeError
        If a tensor differs from its spec.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        specs: Mapping[str, TensorSpec],
        *,
        like: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:
        self.out = Path(out)
        self.specs = dict(specs)
        self.like = like
        self.publish: Callable[[], object] = lambda: None
        self._max_shard_bytes = max_shard_bytes
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        self._files: list[BinaryIO] = []
        self._left = {key: spec.numel for key, spec in self.specs.items()}
        self._counting = Lock()
        self._output = atomic_output(self.out, overwrite=overwrite, nbytes=sum(s.nbytes for s in self.specs.values()))

    def __enter__(self) -> CheckpointWriter:
        self.target = self._output.__enter__()
        try:
            self._lay_out()
        except BaseException as error:
            self._close(quietly=True)
            self._output.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def announce(self, specs: Mapping[str, TensorSpec]) -> None:
        """Announce other tensors than at first; nothing may have been written yet."""
        assert all(self._left[key] == spec.numel for key, spec in self.specs.items())
        self._close(quietly=True)
        for file in self._files:
            Path(file.name).unlink()
        (self.target / INDEX).unlink(missing_ok=True)
        self.specs, self._files, self._places = dict(specs), [], {}
        self._left = {key: spec.numel for key, spec in self.specs.items()}
        self._lay_out()

    def write(self, key: str, tensor: Tensor) -> None:
        """Write one tensor at its place.

        Raises
        ------
        ShapeError
            If it is not the announced shape and type.
        """
        spec = self.specs.get(key)
        if spec != TensorSpec.of(tensor):
            raise ShapeError(f"tensor {key!r} for {self.out}", found=TensorSpec.of(tensor), expected=spec)
        self.write_range(key, 0, tensor.detach().reshape(-1))

    def write_range(self, key: str, begin: int, chunk: Tensor) -> None:
        """Write some elements of a tensor, each of them once; threads may do so at the same time.

        Parameters
        ----------
        key : str
            Name of the tensor.
        begin : int
            Place of the chunk's first element, counted row after row.
        chunk : Tensor
            One axis of elements of the announced type.

        Raises
        ------
        ShapeError
            If no such tensor was announced, or the chunk is not a part of it.
        """
        spec = self.specs.get(key)
        if (
            spec is None
            or chunk.ndim != 1
            or chunk.dtype != spec.dtype
            or not 0 <= begin <= begin + len(chunk) <= spec.numel
        ):
            raise ShapeError(
                f"elements of tensor {key!r} for {self.out}",
                found=(begin, TensorSpec.of(chunk)),
                expected=f"a part of {spec}" if spec else f"tensors such as {list(self.specs)[:4]}",
            )
        file, offset = self._places[key]
        view, at = _bytes(chunk.cpu().contiguous()), offset + begin * chunk.element_size()
        while len(view):
            count = os.pwrite(file.fileno(), view, at)
            view, at = view[count:], at + count
        with self._counting:
            self._left[key] -= len(chunk)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._close(quietly=error is not None)
            if error is None:
                self._complete()
        except BaseException as failure:
            self._output.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._output.__exit__(kind, error, trace)

    def _complete(self) -> None:
        missing = sorted(key for key, left in self._left.items() if left > 0)
        if missing:
            raise CheckpointError(f"{len(missing)} tensors of {self.out} were never written in full: {missing[:4]}")
        if self.like is not None and self.target.is_dir():
            copy_aux_files(Path(self.like), self.target)
        self.publish()

    def _close(self, *, quietly: bool) -> None:
        """Close the files; a disk may say only now that it is full."""
        for file in self._files:
            with suppress(OSError) if quietly else nullcontext():
                file.flush()
                os.fsync(file.fileno())
            with suppress(OSError):
                file.close()

    def _lay_out(self) -> None:
        shards = self._split()
        if self.out.suffix == ".safetensors":
            names = [self.target]
        elif len(shards) == 1:
            names = [self.target / WHOLE]
        else:
            names = [self.target / f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
            weight_map = {key: name.name for name, keys in zip(names, shards, strict=True) for key in keys}
            total = sum(spec.nbytes for spec in self.specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.target / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        for name, keys in zip(names, shards, strict=True):
            text, places, size = write_header({key: self.specs[key] for key in keys})
            file = open(name, "wb")  # noqa: SIM115 - stays open until the writer exits
            self._files.append(file)
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size)
            self._places.update({key: (file, 8 + len(text) + place) for key, place in places.items()})

    def _split(self) -> list[list[str]]:
        if self.out.suffix == ".safetensors":
            return [list(self.specs)]
        shards: list[list[str]] = [[]]
        size = 0
        for key, spec in self.specs.items():
            if shards[-1] and size + spec.nbytes > self._max_shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(key)
            size += spec.nbytes
        return shards


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint into memory."""
    reader = CheckpointReader(path)
    return {key: reader.tensor(key) for key in reader}


@contextmanager
def _damage_of(path: Path, shard: Path) -> Iterator[None]:
    """Say which file of a checkpoint it is that is missing or damaged."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{shard}: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"shard {shard.name} of {path} is missing", do="Download it again.") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {shard}", found=error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(
            f"{shard} is truncated or damaged", found=error, do="Download or copy the file again."
        ) from error


def _open(shard: Path) -> BinaryIO:
    """Open a file for reading, and nothing else: a pipe would wait forever, and a device may never end."""
    file = open(shard, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointError("not a file", do="Download or copy the file again.")
    return file


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _read_into(tensor: Tensor, shard: Path, at: int, key: str) -> None:
    """Fill a tensor from the offset ``at`` of a file, by system calls: Python's file objects are slower."""
    if tensor.numel() == 0:
        return
    view, done = _bytes(tensor), 0
    file = os.open(shard, os.O_RDONLY)
    try:
        while done < len(view):
            count = os.preadv(file, [view[done:]], at + done)
            if not count:
                raise CheckpointError(
                    f"tensor {key!r} in {shard} is truncated", found=f"{done} bytes", expected=f"{len(view)} bytes"
                )
            done += count
    finally:
        os.close(file)
