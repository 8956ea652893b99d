"""Atomic outputs: written to a temporary sibling, which is renamed when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weightsmith.core.errors import CheckpointError

__all__ = ["atomic_output", "check_output", "copy_aux_files"]

WEIGHT_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
    ".ckpt",
    ".npz",
}


@contextmanager
def atomic_output(out: str | os.PathLike[str], *, overwrite: bool = False, nbytes: int = 0) -> Iterator[Path]:
    """Yield a temporary sibling to write to; rename it to ``out`` on success, remove it on failure.

    Parameters
    ----------
    out : path-like
        The final folder, or the final file when it has a suffix ``.safetensors``.
    overwrite : bool, default: False
        Replace what is there.
    nbytes : int, default: 0
        Bytes that will be written, checked against the free space first.

    Yields
    ------
    Path
        An empty folder (or the path of a file to create).

    Raises
    ------
    CheckpointError
        If ``out`` exists and ``overwrite`` is off, or the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_output(f"{folder}/new") as target:
    ...         _ = (target / "config.json").write_text("{}")
    ...     print(os.listdir(folder))
    ['new']
    """
    out = Path(out)
    check_output(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if nbytes > free:
        raise CheckpointError(f"not enough disk space for {out}", found=f"{free:,} bytes free", expected=f"{nbytes:,}")
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    scratch.chmod(0o755)
    target = scratch / out.name if out.suffix == ".safetensors" else scratch
    try:
        yield target
        _replace(target, out)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot write {out}", found=str(error), do="Nothing was changed.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_output(out: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is done.

    Raises
    ------
    CheckpointError
        If ``out`` exists, is not an empty folder, and ``overwrite`` is off.
    """
    out = Path(out)
    if not overwrite and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} exists", do="Choose another output or pass overwrite=True (--overwrite).")


def copy_aux_files(source: Path, target: Path) -> None:
    """Copy the files of a model other than weights: config, tokenizer, generation settings, model card."""
    if not source.is_dir():
        return
    for file in source.iterdir():
        weights = file.suffix in WEIGHT_SUFFIXES or file.name.endswith(".index.json")
        if file.is_file() and not weights and not (target / file.name).exists():
            shutil.copy2(file, target / file.name)


def _replace(target: Path, out: Path) -> None:
    """Rename ``target`` to ``out``; what was at ``out`` is deleted only after that."""
    if not out.is_dir():
        os.replace(target, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    os.replace(out, old / "content")
    try:
        os.replace(target, out)
    except OSError:
        os.replace(old / "content", out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
