"""A model with the data to calibrate and measure it, as named on the command line or in a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import PreTrainedModel

from weightsmith.core.data import (
    Batches,
    Reader,
    Samples,
    batched,
    context_length,
    pad_token_id,
    split_labels,
    token_ids,
    without_labels,
)
from weightsmith.core.errors import CalibrationError, CheckpointError, HyperparameterError
from weightsmith.core.io import (
    PLANS,
    TemporaryFolder,
    offloaded,
    offloaded_of,
    save_model,
    shown_name,
    write_file,
)
from weightsmith.core.levels import Quantization
from weightsmith.core.metrics import measure, perplexity, sample_text
from weightsmith.core.progress import stage
from weightsmith.core.report import format
from weightsmith.core.results import Result, documents, record
from weightsmith.core.tasks import check_tasks, measure_tasks
from weightsmith.embedded import OpenedModel, find_folder, load_tokenizer, open_model, open_text
from weightsmith.quantize import save_packed
from weightsmith.signature import Role, Signature, Source, Whole
from weightsmith.sparsify import save_compressed

__all__ = [
    "CURRENT",
    "Data",
    "Evaluation",
    "Layout",
    "Workbench",
    "check_device",
    "measure_files",
    "measure_model",
    "move_to_device",
    "run_on_disk",
]

PROMPT = "Explain in two sentences what a blacksmith does."
WINDOW = 512
"""Tokens that perplexity is measured on at once, or as many as the model can read."""
LABELED = 512
"""Labeled samples to measure on."""
DEFAULT_SAMPLES = {"batches": 16, "samples": 128}
Layout: TypeAlias = Literal["plain", "compressed", "packed"]
"""How the weights of a model are stored."""

ACTIVATIONS, LEVELS = "wina.json", "quantization.json"
"""The plan that says nothing of the weights: which inputs of them are skipped."""

CURRENT = "$model"
"""Among the checkpoints of a method on files, or as another network: the model as it is now."""


class Evaluation(BaseModel):
    """What the model is measured on before and after each method.

    Attributes
    ----------
    file : str or None
        Text to measure perplexity on, or labeled data to measure a classifier's accuracy or a regression's error on,
        see :func:`weightsmith.core.metrics.measure`. None takes embedded text, of other topics than the calibration.
    control : str or None
        For models that write: another text, on which a fine-tuned model should not have become worse.
    tokens : int
        Number of tokens of each text to measure on.
    samples : int or None
        Number of labeled samples, and of samples of each task, to measure on; None takes all of a task.
    speed : bool
        For models that write: also measure how fast the model writes.
    tasks : sequence of str
        Tasks of the evaluation harness: their names, or YAML files, see :mod:`weightsmith.core.tasks`.
    shots : int or None
        Solved examples before each question of a task; the task's own number by default.
    batch_size : int
        Samples and texts per forward pass.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = None
    control: str | None = None
    tokens: Whole = Field(default=2048, ge=2)
    samples: Whole | None = Field(default=LABELED, ge=1)
    speed: bool = False
    tasks: tuple[str, ...] = ()
    shots: Whole | None = Field(default=None, ge=0)
    batch_size: Whole = Field(default=8, ge=1)


class Data(BaseModel):
    """Where a method's data and the measures' come from.

    Attributes
    ----------
    sources : dict of str to Source
        By the name of the method's parameter.
    evaluation : Evaluation
        What the model is measured on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, Source] = {}
    evaluation: Evaluation = Evaluation()


@dataclass
class Workbench:
    """Runs methods on one model and measures it before and after each.

    Attributes
    ----------
    opened : OpenedModel or None
        The model and what belongs to it; None until a method on files has made one.
    data : Data
        Data of the methods and of the measures.
    seed : int
        Seed of everything random.
    device : str
        Where networks that methods make are moved to.
    dtype : torch.dtype or None
        Element type that other networks are loaded in; their own by default.

    Examples
    --------
    >>> bench = Workbench(OpenedModel(torch.nn.Linear(2, 2)))
    >>> bench.measure()["parameters"]
    6
    """

    opened: OpenedModel | None
    data: Data = field(default_factory=Data)
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype | None = None
    _state: tuple[dict[str, float], str] | None = None
    _folders: list[TemporaryFolder] = field(default_factory=list)
    _plans: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self._plans is None:
            folder = None if self.opened is None else self.opened.folder
            places = [folder / name for name in PLANS] if folder is not None else []
            # a damaged one is refused by who reads it, not by who opens the model
            self._plans = {place.name: place.read_text("utf-8", "replace") for place in places if place.is_file()}

    def apply(self, signature: Signature, values: Mapping[str, Any]) -> Result:
        """Run a method and record the model's measures and its own text before and after.

        Parameters
        ----------
        signature : Signature
            The method.
        values : mapping of str to object
            Its hyper-parameters, other networks, data and files, validated.

        Returns
        -------
        Result
            The method's own record with ``before``, ``after`` and ``samples`` filled in.
        """
        before = self._state or (({}, "") if self.opened is None else self._look())
        self._state = None
        result = self.call(signature, values)
        self._state = self._look()
        result.before, result.after = before[0] | result.before, self._state[0] | result.after
        if self._state[1] and not result.samples:  # a method may show what its data ask
            told = {"before": before[1], "after": self._state[1]}
            result.samples = {"prompt": PROMPT, **{when: text for when, text in told.items() if text}}
        return result

    def look(self) -> None:
        """Measure the model, if there is one that was not measured since the last method; its copies keep that."""
        if self.opened is not None:
            self._state = self._state or self._look()

    def copy(self) -> Workbench:
        """Return a bench with a copy of the model; what has been measured of it need not be measured again."""
        self.look()
        opened = self.opened and replace(self.opened, model=deepcopy(self.model))
        return replace(self, opened=opened, _plans=dict(self.plans))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folders": []}  # the process that made them takes them away

    def call(self, signature: Signature, values: Mapping[str, Any]) -> Result:
        """Run a method, unmeasured, with what its signature asks for."""
        arguments = {name: value for name, value in values.items() if name in signature.fields}
        if signature.generator is not None:
            arguments[signature.generator.name] = torch.Generator().manual_seed(self.seed)
        if signature.model is None:
            result = self._call_on_files(signature, values, arguments)
        else:
            first = signature.model
            arguments[first.name] = self.model
            if first.many:
                arguments[first.name] = [self.model, *map(self._network, values.get(first.name, ()))]
            if signature.tokenizer is not None:
                arguments[signature.tokenizer.name] = self._opened.tokenizer
            for role in signature.networks:
                if role.name in values:
                    arguments[role.name] = self._network(values[role.name])
            for role in signature.data:
                if role.required or role.name in values or role.name in self.data.sources:
                    arguments[role.name] = self.read(role, values, alone=role == signature.defaulted)
            result = signature.function(**arguments)
        result.seed = self.seed
        self._follow(result)
        return result

    def _follow(self, result: Result) -> None:
        """Keep the plans that are true of the model: those of the last methods, until one changes the weights."""
        made = {name: text for name, text in result.files.items() if name in PLANS}
        if not result.reading and {*made} != {ACTIVATIONS} and (old := sorted({*self.plans} - {*made})):
            result.notes.append(f"Left out, as the weights that it describes have changed: {', '.join(old)}.")
            self.plans.clear()
            if any(type(module).__module__.startswith("weightsmith.") for module in self.model.modules()):
                self._leave_plans(result)
        self.plans.update(made)

    def _leave_plans(self, result: Result) -> None:
        """Take what a folder would hold of the model: without the layers that follow a plan."""
        if not isinstance(self.model, PreTrainedModel):
            result.notes.append("The measures are of layers that follow it all the same.")
            return
        folder = TemporaryFolder()
        self._folders.append(folder)
        path = Path(folder.name) / "model"
        self.save(path, {})
        again = move_to_device(open_model(path, dtype=self.dtype), self.device)
        self.opened = replace(self._opened, model=again.model)

    @property
    def plans(self) -> dict[str, str]:
        """What methods have said of the weights as they are: files by name, empty for most models."""
        assert self._plans is not None
        return self._plans

    def read(self, role: Role, values: Mapping[str, Any] | None = None, *, alone: bool = True) -> Batches | Samples:
        """Read the data of one of a method's parameters.

        Parameters
        ----------
        role : Role
            The parameter.
        values : mapping of str to object, optional
            What was given to the method; what is not there is looked up in ``data``.
        alone : bool, default: True
            Whether the method reads no other data: then embedded text stands in for what was not given.

        Raises
        ------
        CalibrationError
            If nothing is given, or it cannot be read.
        """
        given = (values or {}).get(role.name, self.data.sources.get(role.name, Source()))
        source = Source(file=given) if isinstance(given, str) else given
        if source.file is None and not alone:
            raise CalibrationError(f"{role.name!r} is missing", expected="a file, a folder of images or a hub id")
        reader = self._reader
        file = source.file or "embedded:calibration"
        count = source.samples or DEFAULT_SAMPLES[role.kind]
        options: Any = {
            "count": count,
            "length": source.length,
            "generator": torch.Generator().manual_seed(self.seed),
        }
        text = file.startswith("embedded:")
        if role.kind == "batches":
            return reader.text_batches(open_text(file), **options) if text else reader.batches(file, **options)
        return reader.text_samples(open_text(file), **options) if text else reader.samples(file, **options)

    def measure(self) -> dict[str, float]:
        """Measure the model: its size; perplexity, speed and tasks of a language model; accuracy or error on labels.

        Raises
        ------
        CalibrationError
            If text is asked for that the model does not write, or the data cannot be read.
        """
        evaluation = self.data.evaluation
        if not self._writes:
            writes = getattr(self.model, "can_generate", lambda: False)()  # so does an encoder-decoder
            asked = ["control", "speed", *(() if writes else ("tasks",))]
            asked = [name for name in asked if getattr(evaluation, name)]
            if asked:
                raise CalibrationError(
                    f"{', '.join(asked)}: only of a model that writes",
                    found=type(self.model).__name__,
                    expected="a causal language model with its tokenizer",
                )
            labelled = None if evaluation.file is None else self._labeled(evaluation)
            return self._on_tasks(evaluation) | measure(self.model, labelled=labelled)
        # a tokenizer may know better: RoBERTa's position embeddings have two more rows than it can read tokens
        limits = (context_length(self.model), getattr(self._opened.tokenizer, "model_max_length", None))
        window = min([WINDOW, *(limit for limit in limits if limit is not None)])
        ids = self._evaluation_ids(evaluation.file)
        measures = measure(self.model, ids=ids, window=window, speed=evaluation.speed)
        if evaluation.control is not None:
            ids = self._evaluation_ids(evaluation.control)
            measures = {"control_perplexity": perplexity(self.model, ids, window=window), **measures}
        return self._on_tasks(evaluation) | measures

    def _on_tasks(self, evaluation: Evaluation) -> dict[str, float]:
        return measure_tasks(
            self.model,
            self._opened.tokenizer,
            evaluation.tasks,
            samples=evaluation.samples,
            shots=evaluation.shots,
            batch_size=evaluation.batch_size,
            seed=self.seed,
        )

    def sample(self) -> str:
        """Return the model's own text on a fixed prompt; empty where it writes none."""
        if not self._writes:
            return ""
        return sample_text(self.model, self._opened.tokenizer, PROMPT)

    def save(
        self,
        out: str | os.PathLike[str],
        files: Mapping[str, str],
        *,
        overwrite: bool = False,
        layout: Layout = "plain",
        publish: Callable[[], object] = lambda: None,
    ) -> None:
        """Write the model as a folder, its tokenizer and other small files carried over.

        Parameters
        ----------
        out : path-like
            The folder.
        files : mapping of str to str
            Small files beside the model; a plan among them is written only if it is true of the weights.
        overwrite : bool, default: False
            Replace what is there.
        layout : {"plain", "compressed", "packed"}, default: "plain"
            Sparse weights as a bit mask, or weights on few levels as packed codes.
        publish : callable, optional
            Called when all is written, just before the folder appears.
        """
        write = {"plain": save_model, "compressed": save_compressed, "packed": save_packed}[layout]
        with stage(f"saving {out}"):
            write(
                self.model,
                out,
                like=self._opened.folder,
                tokenizer=self._opened.tokenizer,
                files={name: text for name, text in files.items() if name not in PLANS} | self.plans,
                overwrite=overwrite,
                publish=publish,
            )

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self._opened.model

    @property
    def _opened(self) -> OpenedModel:
        if self.opened is None:
            raise HyperparameterError(
                "there is no model yet", do="Start with a model, or with a method that makes one."
            )
        return self.opened

    @property
    def _model_device(self) -> torch.device | str:
        return next((parameter.device for parameter in self.model.parameters()), "cpu")

    def _network(self, ref: str) -> nn.Module:
        """Another network by name; ``$model`` is a copy of the model as it is now."""
        return (
            deepcopy(self.model) if ref == CURRENT else open_model(ref, dtype=self.dtype).model.to(self._model_device)
        )

    def _call_on_files(self, signature: Signature, values: Mapping[str, Any], arguments: dict[str, Any]) -> Result:
        """Run a method that reads checkpoints and writes one, and open what it wrote."""
        folder = TemporaryFolder()
        self._folders.append(folder)  # as long as the model: its tokenizer and other small files are copied from here

        def located(ref: Path) -> Path:
            if str(ref) != CURRENT:
                return ref if ref.exists() else find_folder(ref)
            self.save(Path(folder.name) / "model", {}, overwrite=True)
            return Path(folder.name) / "model"

        *read, written = signature.paths
        for role in read:
            value = values[role.name]
            arguments[role.name] = [located(ref) for ref in value] if role.kind == "paths" else located(value)
        for role in signature.data:
            if role.name in values or role.name in self.data.sources:
                arguments[role.name] = replace(self, opened=open_model(_last(arguments, read))).read(
                    role, values, alone=False
                )
        arguments[written.name] = Path(folder.name) / "out"
        result: Result = signature.function(**arguments)
        self.opened = move_to_device(open_model(arguments[written.name]), self.device)
        return result

    @property
    def _writes(self) -> bool:
        """Whether it is a causal language model; an encoder-decoder writes too, but not on from a text."""
        can_generate = getattr(self.model, "can_generate", None)
        if self._opened.tokenizer is None or can_generate is None or not can_generate():
            return False
        return not getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)

    def _look(self) -> tuple[dict[str, float], str]:
        with stage("measuring"):
            return self.measure(), self.sample()

    def _evaluation_ids(self, file: str | None) -> Any:
        file = file or "embedded:evaluation"
        text = open_text(file) if file.startswith("embedded:") else self._reader.text(file)
        return token_ids(self._opened.tokenizer, text)[: self.data.evaluation.tokens]

    def _labeled(self, evaluation: Evaluation) -> list[tuple[Any, Any]]:
        assert evaluation.file is not None
        generator = torch.Generator().manual_seed(self.seed)
        samples = self._reader.samples(
            evaluation.file, count=evaluation.samples or LABELED, length=512, generator=generator
        )
        batches = batched(samples, evaluation.batch_size, pad_token_id=pad_token_id(self.model))
        return [(without_labels(self.model, batch), split_labels(batch)[1]) for batch in batches]

    @property
    def _reader(self) -> Reader:
        return Reader(self.model, self._opened.tokenizer, self._opened.processor)


def _last(arguments: Mapping[str, Any], roles: Sequence[Role]) -> Path:
    """The last checkpoint that a method on files reads: data are read as its model takes them."""
    value = arguments[roles[-1].name]
    return value[-1] if isinstance(value, list) else value


def run_on_disk(
    ref: str | os.PathLike[str],
    out: str | os.PathLike[str],
    signature: Signature,
    values: Mapping[str, Any],
    data: Data,
    *,
    seed: int = 0,
    overwrite: bool = False,
    publish: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Run a method on a checkpoint block by block, with one block in memory; nothing is measured.

    Parameters
    ----------
    ref : path-like
        The checkpoint's folder, a hub id, or ``embedded:NAME``.
    out : path-like
        Folder for the changed checkpoint.
    signature, values, data, seed
        As for :class:`Workbench`.
    overwrite : bool, default: False
        Replace what is at ``out``.
    publish : callable, optional
        Called with the result when all is written, just before ``out`` appears.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged or ``out`` cannot be written.
    UnsupportedModelError
        If the method does not work block by block.
    """
    folder = find_folder(ref)
    with offloaded(folder, out, overwrite=overwrite) as model:
        opened = OpenedModel(model, load_tokenizer(folder), folder=folder)
        bench = Workbench(opened, data, seed)
        result = bench.call(signature, values)
        result.notes.append("Streamed from disk to disk: the model was never whole in memory, so it was not measured.")
        stored = offloaded_of(model)
        assert stored is not None
        for name, text in {**bench.plans, **documents([result], out, [ref])}.items():
            write_file(stored.writer.target / name, text)
        stored.writer.publish = lambda: publish(result)
    return result


def measure_model(
    ref: str, evaluation: Evaluation, *, seed: int = 0, device: str = "cpu", dtype: str | None = None
) -> Result:
    """Measure a model, as a recipe does before and after each step, and change nothing.

    Parameters
    ----------
    ref : str
        A folder, a hub id, or ``embedded:NAME``.
    evaluation : Evaluation
        What to measure on.
    seed : int, default: 0
        Seed of everything random.
    device : str, default: "cpu"
        Where the model works.
    dtype : str, optional
        Element type to load the model in; its own by default.

    Returns
    -------
    Result
        The measures are its ``after``.

    Raises
    ------
    CheckpointError
        If there is no such model.
    CalibrationError
        If a task or data are missing, or the model does not write text.

    Examples
    --------
    >>> measure_model("embedded:efficientnet-lite0", Evaluation()).after["parameters"]
    4652008
    """
    check_tasks(evaluation.tasks)
    asked = {name: value for name, value in evaluation.model_dump(exclude_unset=True).items() if value is not None}
    with record("measure", seed=seed, model=shown_name(ref), **asked) as result:
        opened = move_to_device(open_model(ref, dtype=None if dtype is None else getattr(torch, dtype)), device)
        bench = Workbench(opened, Data(evaluation=evaluation), seed)
        with stage("measuring"):
            result.after = bench.measure()
        if ACTIVATIONS in bench.plans:
            result.notes.append(f"Measured dense: the plan in {ACTIVATIONS} was not applied (apply_plan).")
        with suppress(CheckpointError):  # a damaged one is refused by who reads it
            if LEVELS in bench.plans and Quantization.from_json(bench.plans[LEVELS]).activations:
                result.notes.append(f"Measured without the activations' levels in {LEVELS} (load_quantized has them).")
        result.reading = True
    return result


def measure_files(
    result: Result, checkpoints: Sequence[Path], out: Path, evaluation: Evaluation, *, seed: int = 0
) -> None:
    """Measure the networks that a method on files read and the one it wrote, and write its record anew.

    Parameters
    ----------
    result : Result
        Of the method. ``before`` becomes the last network's measures, ``after`` the new one's; a note has those of all.
    checkpoints : sequence of path
        What it read.
    out : path
        The folder it wrote.
    evaluation : Evaluation
        What to measure on.

    Raises
    ------
    CheckpointError
        If ``out`` is not the folder of a model.
    """
    data = Data(evaluation=evaluation)
    with stage("measuring"):
        measures = [Workbench(open_model(path), data, seed).measure() for path in [*checkpoints, out]]
    *parts, result.after = measures
    result.before = parts[-1]
    for name in ("perplexity", "control_perplexity", "loss", "accuracy", "label_accuracy", "mean_absolute_error"):
        if name in result.after:
            values = ", ".join(
                f"{each.name} {format.show(name, m[name])}" for each, m in zip(checkpoints, parts, strict=True)
            )
            result.notes.append(f"{format.label(name)}: {values}; merged {format.show(name, result.after[name])}.")
    for file, text in documents([result], out, checkpoints).items():
        write_file(out / file, text)


def move_to_device(opened: OpenedModel, device: str) -> OpenedModel:
    """Move the model to a device.

    Raises
    ------
    HyperparameterError
        If there is no such device on this machine.
    """
    check_device(device)
    opened.model.to(device)
    return opened


def check_device(device: str) -> None:
    """Refuse a device that is not on this machine.

    Raises
    ------
    HyperparameterError
        If there is no such device.
    """
    try:
        torch.empty(0).to(device)
    except (RuntimeError, AssertionError) as error:
        raise HyperparameterError("device", found=device, expected="cpu, cuda or cuda:N of this machine") from error
