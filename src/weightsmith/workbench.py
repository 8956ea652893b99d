"""A model with the data to calibrate and measure it, as named on the command line or in a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from weightsmith.core.checkpoint import save_model
from weightsmith.core.disk import on_disk
from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.measure import measure, sample_text
from weightsmith.core.results import Result
from weightsmith.core.streaming import Batch, Batches
from weightsmith.core.text import read_text, token_ids, token_windows
from weightsmith.embedded import OpenedModel, find_folder, load_tokenizer, text
from weightsmith.signature import Signature
from weightsmith.sparsify.compressed import save_compressed

__all__ = ["Data", "Workbench", "run_on_disk", "to_device"]

PROMPT = "Explain in two sentences what a blacksmith does."
BATCH_SIZE = 8


@dataclass(frozen=True)
class Data:
    """Where calibration and evaluation data come from.

    Attributes
    ----------
    calibration : Path or None
        A UTF-8 text for language models, or a ``.safetensors`` file whose tensors hold one sample a row (a single
        tensor is the model's only argument, several are keyword arguments). None takes the embedded text.
    samples : int
        Number of samples to calibrate with.
    length : int
        Tokens a sample; text only.
    evaluation : Path or None
        A UTF-8 text to measure perplexity on. None takes the embedded text, of other topics than the calibration.
    tokens : int
        Number of its tokens to measure on.
    speed : bool
        Also measure how fast the model writes.
    """

    calibration: Path | None = None
    samples: int = 16
    length: int = 256
    evaluation: Path | None = None
    tokens: int = 2048
    speed: bool = False


@dataclass
class Workbench:
    """Runs methods on one model and measures it before and after each.

    Attributes
    ----------
    opened : OpenedModel
        The model and its tokenizer.
    data : Data
        Calibration and evaluation data.
    seed : int
        Seed of everything random.

    Examples
    --------
    >>> bench = Workbench(OpenedModel(torch.nn.Linear(2, 2), None, None))
    >>> bench.measure()["parameters"]
    6
    """

    opened: OpenedModel
    data: Data = field(default_factory=Data)
    seed: int = 0
    _state: tuple[dict[str, float], str] | None = None

    def apply(self, signature: Signature, hyper: Mapping[str, Any]) -> Result:
        """Run a method on the model and record its measures and its own text before and after.

        Parameters
        ----------
        signature : Signature
            A method that takes ``model``, and perhaps ``calibration`` and ``generator``.
        hyper : mapping of str to object
            Its hyper-parameters, validated.

        Returns
        -------
        Result
            The method's own record with ``before``, ``after`` and ``samples`` filled in.
        """
        before = self._state or self._look()
        self._state = None
        result = self.call(signature, hyper)
        self._state = self._look()
        result.before, result.after = before[0] | result.before, self._state[0] | result.after
        if self._state[1]:
            result.samples = {"before": before[1], "after": self._state[1]}
        return result

    def copy(self) -> Workbench:
        """Return a bench with a copy of the model; what has been measured of it need not be measured again."""
        self._state = self._state or self._look()
        return replace(self, opened=replace(self.opened, model=deepcopy(self.opened.model)))

    def call(self, signature: Signature, hyper: Mapping[str, Any]) -> Result:
        """Run a method on the model, unmeasured, with what its signature asks for."""
        roles: dict[str, Any] = {"model": self.opened.model}
        if "generator" in signature.roles:
            roles["generator"] = torch.Generator().manual_seed(self.seed)
        if "calibration" in signature.roles:
            roles["calibration"] = self.batches()
        result: Result = signature.function(**roles, **hyper)
        result.seed = self.seed
        return result

    def batches(self) -> Batches:
        """Return the calibration batches.

        Raises
        ------
        CalibrationError
            If the file cannot be read, or the model reads no text and there is no file of tensors.
        """
        data = self.data
        if data.calibration is not None and data.calibration.suffix == ".safetensors":
            return _tensor_batches(data.calibration, data.samples)
        if self.opened.tokenizer is None:
            raise CalibrationError(
                "this model has no tokenizer, so text cannot calibrate it",
                do="Give a .safetensors file with the model's inputs, one sample a row.",
            )
        words = text("calibration") if data.calibration is None else read_text(data.calibration)
        generator = torch.Generator().manual_seed(self.seed)
        ids = token_ids(self.opened.tokenizer, words)
        return token_windows(ids, length=data.length, count=data.samples, batch_size=BATCH_SIZE, generator=generator)

    def measure(self) -> dict[str, float]:
        """Measure the model as it is now: its size, and perplexity and speed where it is a causal language model."""
        return measure(self.opened.model, ids=self._evaluation_ids(), speed=self.data.speed)

    def sample(self) -> str:
        """Return the model's own text on a fixed prompt; empty where it writes none."""
        if not self._writes:
            return ""
        return sample_text(self.opened.model, self.opened.tokenizer, PROMPT)

    def save(
        self,
        out: str | os.PathLike[str],
        files: Mapping[str, str],
        *,
        overwrite: bool = False,
        compressed: bool = False,
    ) -> None:
        """Write the model as a folder, its tokenizer and other small files carried over."""
        write = save_compressed if compressed else save_model
        write(
            self.opened.model,
            out,
            like=self.opened.folder,
            tokenizer=self.opened.tokenizer,
            files=dict(files),
            overwrite=overwrite,
        )

    @property
    def _writes(self) -> bool:
        can_generate = getattr(self.opened.model, "can_generate", None)
        return self.opened.tokenizer is not None and can_generate is not None and can_generate()

    def _look(self) -> tuple[dict[str, float], str]:
        return self.measure(), self.sample()

    def _evaluation_ids(self) -> Int[Tensor, "tokens"] | None:
        if not self._writes:
            return None
        words = text("evaluation") if self.data.evaluation is None else read_text(self.data.evaluation)
        return token_ids(self.opened.tokenizer, words)[: self.data.tokens]


def run_on_disk(
    ref: str | os.PathLike[str],
    out: str | os.PathLike[str],
    signature: Signature,
    hyper: Mapping[str, Any],
    data: Data,
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> Result:
    """Run a method on a checkpoint block by block, with one block in memory; nothing is measured.

    Parameters
    ----------
    ref : path-like
        The checkpoint's folder, or ``embedded:NAME``.
    out : path-like
        Folder for the changed checkpoint.
    signature, hyper, data, seed
        As for :class:`Workbench`.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged or ``out`` cannot be written.
    UnsupportedModelError
        If the method does not work block by block.
    """
    folder = find_folder(ref)
    with on_disk(folder, out, overwrite=overwrite) as model:
        result = Workbench(OpenedModel(model, load_tokenizer(folder), folder), data, seed).call(signature, hyper)
    result.notes.append("Streamed from disk to disk: the model was never whole in memory, so it was not measured.")
    (Path(out) / "weightsmith.json").write_text(result.to_json() + "\n", "utf-8")
    return result


def to_device(opened: OpenedModel, device: str) -> OpenedModel:
    """Move the model to a device.

    Raises
    ------
    HyperparameterError
        If there is no such device on this machine.
    """
    try:
        opened.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise HyperparameterError("device", found=device, expected="cpu, cuda or cuda:N of this machine") from error
    return opened


def _tensor_batches(path: Path, samples: int) -> list[Batch]:
    try:
        tensors = {name: tensor[:samples] for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"cannot read calibration file {path}", found=str(error)) from error
    rows = {len(tensor) for tensor in tensors.values()}
    if len(rows) != 1 or 0 in rows:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise CalibrationError(f"tensors of {path}", found=shapes, expected="one row a sample in each")
    batches = [tensor.split(BATCH_SIZE) for tensor in tensors.values()]
    if len(batches) == 1:
        return list(batches[0])
    return [dict(zip(tensors, parts, strict=True)) for parts in zip(*batches, strict=True)]
