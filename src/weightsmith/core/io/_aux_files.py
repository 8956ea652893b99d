"""What stands beside the weights of a model, and which files hold weights."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ["PLANS", "copy_aux_files", "is_weights"]

PLANS = ("quantization.json", "wina.json")
"""What methods have said of the weights beside them: false of others."""

WEIGHT_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".ckpt",
    ".npz",
    ".tflite",
}


def copy_aux_files(source: Path, target: Path, *, plans: bool = False) -> None:
    """Copy what belongs to a model other than its weights: config, tokenizer, generation settings, model card.

    Sub-folders come along: modules of sentence-transformers, further chat templates. One that holds weights does not,
    since it is a checkpoint or an export of the old weights, unless ``modules.json`` lists it. Nothing hidden does.
    Files in which a method has kept something about the old weights come along with ``plans`` only.
    """
    if not source.is_dir():
        return
    modules = _listed_modules(source / "modules.json")
    for item in source.iterdir():
        new = target / item.name
        if new.exists() or item.name.startswith(".") or (item.name in PLANS and not plans):
            continue
        if item.is_file() and not is_weights(item):
            shutil.copy2(item, new)
        elif item.is_dir() and not item.is_symlink():
            files = [file for file in item.rglob("*") if file.is_file()]
            if files and (item.name in modules or not any(map(is_weights, files))):
                shutil.copytree(item, new, ignore=_not_files)


def _listed_modules(path: Path) -> set[str]:
    """The sub-folders that a sentence-transformers model is made of."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return {str(module["path"]) for module in json.loads(path.read_text("utf-8"))}
    return set()


def is_weights(file: Path) -> bool:
    """Return whether a file holds weights, or is an index of such files, by its name.

    Examples
    --------
    >>> is_weights(Path("model-00001-of-00002.safetensors")), is_weights(Path("config.json"))
    (True, False)
    """
    return file.suffix in WEIGHT_SUFFIXES or file.name.endswith(".index.json")


def _not_files(folder: str, names: list[str]) -> list[str]:
    """What :func:`copytree` leaves out: links to folders, which may be loops, and what is no file or folder."""
    paths = [(name, Path(folder, name)) for name in names]
    return [name for name, path in paths if not path.is_file() and (path.is_symlink() or not path.is_dir())]
