"""A model with the data to calibrate and measure it, as named on the command line or in a recipe."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from weightsmith.core.data import Batches, Samples, read_text, token_ids, token_windows
from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.io import on_disk, save_model
from weightsmith.core.metrics import measure, perplexity, sample_text
from weightsmith.core.results import Result
from weightsmith.embedded import OpenedModel, find_folder, load_tokenizer, open_model, open_text
from weightsmith.signature import MODEL_FIELDS, SAMPLES, Signature
from weightsmith.sparsify import save_compressed

__all__ = ["Data", "Evaluation", "Source", "Training", "Workbench", "run_on_disk", "to_device"]

PROMPT = "Explain in two sentences what a blacksmith does."
BATCH_SIZE = 8


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Data that a method reads.

    Attributes
    ----------
    file : str or None
        A UTF-8 text for language models, or ``embedded:NAME`` (see :func:`weightsmith.embedded.text`); a ``.csv`` file
        with columns ``text`` and ``label`` for text classifiers; or a ``.safetensors`` file whose tensors hold one
        sample a row (a single tensor is the model's only argument, several are keyword arguments). None takes
        embedded text.
    samples : int
        Number of samples.
    length : int
        Tokens a sample; text only.
    """

    file: str | None = None
    samples: int = Field(default=16, ge=1)
    length: int = Field(default=256, ge=1)


class Training(Source):
    """As :class:`Source`, with more samples."""

    samples: int = Field(default=128, ge=1)


class Evaluation(_Part):
    """What the model is measured on before and after each method.

    Attributes
    ----------
    file : str or None
        Text to measure perplexity on; None takes embedded text, of other topics than the calibration.
    control : str or None
        Another text, on which a fine-tuned model should not have become worse.
    tokens : int
        Number of tokens of each to measure on.
    speed : bool
        Also measure how fast the model writes.
    """

    file: str | None = None
    control: str | None = None
    tokens: int = Field(default=2048, ge=2)
    speed: bool = False


class Data(_Part):
    """Where a method's data and the measures' come from.

    Attributes
    ----------
    calibration : Source
        What transforms look at.
    training : Training
        What methods that train read.
    in_domain, shifted : Training
        Held-out samples like those a network was tuned on, and drifted ones.
    evaluation : Evaluation
        What the model is measured on.
    """

    calibration: Source = Source()
    training: Training = Training()
    in_domain: Training = Training()
    shifted: Training = Training()
    evaluation: Evaluation = Evaluation()


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
        for name in signature.roles.keys() & set(SAMPLES):
            roles[name] = self.samples(name)
        device = next((parameter.device for parameter in self.opened.model.parameters()), "cpu")
        others = {name: open_model(hyper[name]).model.to(device) for name in MODEL_FIELDS if name in hyper}
        result: Result = signature.function(**roles, **{**hyper, **others})
        result.seed = self.seed
        return result

    def batches(self) -> Batches:
        """Return the calibration batches.

        Raises
        ------
        CalibrationError
            If the file cannot be read, or the model reads no text and there is no file of tensors.
        """
        source = self.data.calibration
        if source.file is not None and source.file.endswith(".safetensors"):
            columns = _columns(source.file, source.samples)
            batches = [tensor.split(BATCH_SIZE) for tensor in columns.values()]
            if len(batches) == 1 and "input_ids" not in columns:
                return list(batches[0])
            return [dict(zip(columns, parts, strict=True)) for parts in zip(*batches, strict=True)]
        return self._windows(source, BATCH_SIZE)

    def samples(self, role: str = "training") -> Samples:
        """Return samples to train on or to measure; tokens without labels are their own.

        Raises
        ------
        CalibrationError
            As :meth:`batches`; or if the file of tensors has only one.
        """
        source: Training = getattr(self.data, role)
        if source.file is not None and source.file.endswith(".safetensors"):
            columns = _columns(source.file, source.samples)
            if "input_ids" in columns:
                columns.setdefault("labels", columns["input_ids"])
        elif source.file is not None and source.file.endswith(".csv"):
            columns = self._labelled(Path(source.file), source)
        else:
            (batch,) = self._windows(source, source.samples)
            columns = {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def measure(self) -> dict[str, float]:
        """Measure the model as it is now: its size, and perplexity and speed where it is a causal language model."""
        evaluation = self.data.evaluation
        measures = measure(self.opened.model, ids=self._evaluation_ids(evaluation.file), speed=evaluation.speed)
        if evaluation.control is not None and self._writes:
            ids = self._evaluation_ids(evaluation.control)
            measures = {"control_perplexity": perplexity(self.opened.model, ids), **measures}
        return measures

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

    def _evaluation_ids(self, file: str | None) -> Any:
        if not self._writes:
            return None
        ids = token_ids(self.opened.tokenizer, open_text(file or "embedded:evaluation"))
        return ids[: self.data.evaluation.tokens]

    def _windows(self, source: Source, batch_size: int) -> list[dict[str, Tensor]]:
        ids = token_ids(self._tokenizer(), open_text(source.file or "embedded:calibration"))
        generator = torch.Generator().manual_seed(self.seed)
        return token_windows(
            ids, length=source.length, count=source.samples, batch_size=batch_size, generator=generator
        )

    def _labelled(self, path: Path, source: Source) -> dict[str, Tensor]:
        """The rows of a CSV file with columns text and label, padded to one length."""
        rows = list(csv.DictReader(io.StringIO(read_text(path))))[: source.samples]
        if not rows or not {"text", "label"} <= rows[0].keys():
            found = f"{len(rows)} rows, columns {list(rows[0]) if rows else []}"
            raise CalibrationError(f"labelled text {path}", found=found, expected="rows with columns text and label")
        odd = [row["label"] for row in rows if not str(row["label"]).isdecimal()]
        if odd:
            raise CalibrationError(f"labels of {path}", found=odd[:3], expected="class indices 0, 1, 2, ...")
        words = [row["text"] for row in rows]
        tokens = self._tokenizer()(
            words, truncation=True, padding="max_length", max_length=source.length, return_tensors="pt"
        )
        return {**tokens, "labels": torch.tensor([int(row["label"]) for row in rows])}

    def _tokenizer(self) -> Any:
        if self.opened.tokenizer is None:
            raise CalibrationError(
                "this model has no tokenizer, so it cannot read text",
                do="Give a .safetensors file with the model's inputs, one sample a row.",
            )
        return self.opened.tokenizer


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


def _columns(path: str, samples: int) -> dict[str, Tensor]:
    """The tensors of a file, one sample a row."""
    try:
        tensors = {name: tensor[:samples] for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"cannot read the samples in {path}", found=str(error)) from error
    rows = {len(tensor) for tensor in tensors.values()}
    if len(rows) != 1 or 0 in rows:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise CalibrationError(f"tensors of {path}", found=shapes, expected="one row a sample in each")
    return tensors
