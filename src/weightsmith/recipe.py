"""A recipe: methods in a row on one model, written as YAML, checked before anything runs, measured after each step.

.. code-block:: yaml

    model: embedded:smollm2
    out: smollm2-half
    seed: 0
    data:
      calibration: {samples: 16, length: 256}
    steps:
      - wanda: {sparsity: 0.5}
      - wina: {sparsity: 0.25}

Every step is a command of the catalog with its hyper-parameters, and whatever else its signature asks for: the data of
a parameter (a file, or the fields of :class:`~weightsmith.signature.Source`) stand in the step or, for all steps, under
``data``; another network is named as the model is. A method on files makes the model of the steps after it, and
``$model`` stands for the model before it:

.. code-block:: yaml

    out: merged
    steps:
      - wise-ft: {checkpoints: [base, tuned], alpha: 0.4}
      - pld: {teacher: tuned, training: mails.jsonl}
      - wise-ft: {checkpoints: [base, $model]}

With ``compare`` in place of ``steps`` (or after them) several alternatives start from the same model, and the report
sets them side by side:

.. code-block:: yaml

    compare:
      gentle: [magnitude: {sparsity: 0.3}]
      harsh: [magnitude: {sparsity: 0.6}]

The model after the last finished step is kept beside
``out`` until the recipe is finished, so a run that was interrupted goes on where it stopped. (A step that does more
than change weights, such as ``wina``, is run again then, with those after it.)
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weightsmith import __version__, catalog
from weightsmith.core.errors import HyperparameterError, RecipeError
from weightsmith.core.io import (
    YamlLoader,
    atomic_output,
    check_output,
    check_written,
    kept_folder,
    load_state_dict,
    read_yaml,
    with_revision,
    write_file,
)
from weightsmith.core.jobs import Backend, run_jobs
from weightsmith.core.progress import track
from weightsmith.core.report import report_page
from weightsmith.core.results import Result, documents
from weightsmith.embedded import OpenedModel, open_model
from weightsmith.signature import Signature, Source, Whole, read
from weightsmith.workbench import CURRENT, Data, Evaluation, Layout, Workbench, move_to_device

__all__ = ["Recipe", "Step", "load_recipe", "run_recipe"]

RECORD, REPORT, FINISHED = "weightsmith.json", "report.html", ".finished.json"


@dataclass(frozen=True)
class Step:
    """One step: a command of the catalog and its validated values."""

    command: str
    values: Mapping[str, Any]
    signature: Signature

    def __str__(self) -> str:
        return f"{self.command}({', '.join(f'{name}={_shown(value)}' for name, value in self.values.items())})"


class Recipe(BaseModel):
    """A validated recipe.

    Attributes
    ----------
    model : str or None
        ``embedded:NAME``, a folder, or a hub id as ``org/name`` or ``org/name@revision``. None if the first step
        makes the model.
    out : Path
        The folder to write.
    steps : list of Step
        Run in order.
    compare : dict of str to list of Step
        Alternatives, each run on a copy of the model after ``steps``; the model of each is written to its own folder
        in ``out``. There is at least one step or alternative.
    seed : int
        Seed of everything random.
    data : dict of str to Source
        Data of the methods, by the name of their parameter.
    evaluation : Evaluation
        Data of the measures.
    device : str
        Where the model works: ``cpu``, ``cuda``, ``cuda:1``.
    dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        Element type that ``model`` and other networks are loaded in; their own by default.
    revision : str
        Branch, tag or commit of ``model``, where it is a hub id.
    compressed : bool
        Write sparse weights small, see :mod:`weightsmith.sparsify._compressed`.
    packed : bool
        Write weights on few levels as packed codes, see :mod:`weightsmith.quantize._packed`.
    report : Path or None
        The HTML report; ``report.html`` in ``out`` when left out.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)

    model: str | None = None
    out: Path
    steps: list[Step] = []
    compare: dict[str, list[Step]] = {}
    seed: Whole = Field(0, ge=0, lt=2**32)
    data: dict[str, Source] = {}
    evaluation: Evaluation = Evaluation()
    device: str = "cpu"
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    revision: str = "main"
    compressed: bool = False
    packed: bool = False
    report: Path | None = None

    @property
    def layout(self) -> Layout:
        """How the model is stored."""
        return "packed" if self.packed else "compressed" if self.compressed else "plain"

    def sources(self, steps: Sequence[Step]) -> list[str]:
        """Return the names of the models and data that these steps and the measures read."""
        values = [
            self.model,
            *self.data.values(),
            self.evaluation.file,
            self.evaluation.control,
            *self.evaluation.tasks,
        ]
        for step in steps:
            read = {role.name for role in step.signature.roles.values()}
            written = step.signature.written(step.values)
            values += [
                value
                for name, value in step.values.items()
                if name in read or (isinstance(value, Path) and name not in written)
            ]
        values = [each for value in values for each in (value if isinstance(value, list) else [value])]
        files = [value.file if isinstance(value, Source) else value for value in values]
        return sorted({str(file) for file in files if file is not None})

    def check_written(self) -> None:
        """Refuse a report, or another file of a step, where it would replace what is read or written otherwise.

        The report may be an HTML page in ``out``, in folders of any name without a suffix.

        Raises
        ------
        CheckpointError
            If it cannot be created or replaced.
        HyperparameterError
            If it is something else that the recipe reads or writes.
        """
        steps = [*self.steps, *(step for steps in self.compare.values() for step in steps)]
        written: dict[str, Path] = {}
        for number, step in enumerate(steps, 1):
            for name, path in step.signature.written(step.values).items():
                written[f"step {number} ({step.command}), {name}"] = path
        out, place = Path(os.path.realpath(self.out)), Path(os.path.realpath(self.report or self.out / REPORT))
        inside = place != out and place.is_relative_to(out)
        check_written({**written, "report": None if inside else self.report}, inputs=self.sources(steps), out=self.out)
        files = [part for part in place.relative_to(out).parts if Path(part).suffix] if inside else []
        if inside and (files != [place.name] or place.suffix != Path(REPORT).suffix or place.name in self.compare):
            found = f"{self.report}, which may be a file of the model"
            raise HyperparameterError("report", found=found, expected=f"a {Path(REPORT).suffix} file")

    def fingerprint(self, steps: Sequence[Step], contents: Mapping[str, str]) -> str:
        """Return a digest of everything that the model after these steps depends on.

        Parameters
        ----------
        steps : sequence of Step
            The first steps of the recipe.
        contents : mapping of str to str
            Digests of the files and folders among :meth:`sources`, by their names.
        """
        parts = [
            __version__,
            self.model,
            self.dtype,
            self.revision,
            self.seed,
            self.layout,
            self.data,
            self.evaluation,
            [(step.command, dict(step.values)) for step in steps],
            [contents.get(name, name) for name in self.sources(steps)],
        ]
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()

    def bench(self, opened: OpenedModel | None) -> Workbench:
        """Return a workbench with a model and the recipe's data."""
        data = Data(sources=self.data, evaluation=self.evaluation)
        return Workbench(opened, data, self.seed, self.device, self._torch_dtype)

    def open(self) -> OpenedModel:
        """Open the model that the steps start from."""
        assert self.model is not None
        return open_model(self.model, dtype=self._torch_dtype, revision=self.revision)

    @property
    def parents(self) -> list[str]:
        """The model that the steps start from, if there is one, with its revision."""
        return [] if self.model is None else [with_revision(self.model, self.revision)]

    @property
    def _torch_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else getattr(torch, self.dtype)


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Parameters
    ----------
    path : path-like
        The YAML file.
    settings : sequence of str
        ``key=value`` that replace what the file says: ``out=there``, ``data.calibration.samples=8``, or a step's
        field as ``wanda.sparsity=0.6`` (``steps.2.wanda.sparsity`` where a command occurs twice; the first step is 1).

    Returns
    -------
    Recipe
        Every step's fields checked against its function's signature.

    Raises
    ------
    RecipeError
        If the file is no YAML mapping or too long, a field is unknown, missing or of a wrong type, or a step is no
        method.
    """
    try:
        raw = read_yaml(path, f"recipe {path}")
    except HyperparameterError as error:
        raise RecipeError(str(error)) from error
    if not isinstance(raw, dict):
        raise RecipeError(f"recipe {path}", found=type(raw).__name__, expected="a mapping with model, out and steps")
    for setting in settings:
        _apply_setting(raw, setting)
    raw = {key: value for key, value in raw.items() if value is not None}  # `seed:` alone is no seed
    _check_names(raw, Recipe, "recipe")
    _check_parts(raw)
    data = raw.get("data") or {}
    compare = raw.get("compare") or {}
    if not isinstance(compare, dict) or not all(_is_name(name) for name in compare):
        raise RecipeError("compare", found=compare, expected="a mapping from a name to a list of steps")
    parsed: dict[str, Any] = {
        "steps": _steps(raw.get("steps"), "steps", "step ", data) if "steps" in raw or not compare else [],
        "compare": {name: _steps(steps, f"compare.{name}", f"{name}, step ", data) for name, steps in compare.items()},
    }
    if raw.get("out") == "":
        raise RecipeError("out", found=raw["out"], expected="the folder to write")
    for name in ("out", "report"):
        if str(raw.get(name)).startswith("~"):
            do = "Write the path without ~, which only a shell expands."
            raise RecipeError(name, found=raw[name], expected="a path", do=do)
    _check_data(data, parsed)
    _check_model(raw, parsed)
    try:
        sources = {name: {"file": source} if isinstance(source, str) else source for name, source in data.items()}
        recipe = Recipe.model_validate({**raw, **parsed, "data": sources})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = None if first["type"] == "missing" else repr(first["input"])
        raise RecipeError(f"{where}: {first['msg'].lower()}", found=found) from error
    check_written({"report": recipe.report}, inputs=[path])
    check_written({}, inputs=[path], out=recipe.out)
    return recipe


def run_recipe(
    recipe: Recipe, *, overwrite: bool = False, workers: int = 1, backend: Backend = "processes"
) -> list[Result]:
    """Run the steps in order on one model, measure after each, save the model and the report.

    Parameters
    ----------
    recipe : Recipe
        From :func:`load_recipe`.
    overwrite : bool, default: False
        Replace what is at ``recipe.out``.
    workers, backend
        Alternatives run in several processes, each with a model of its own, see
        :func:`~weightsmith.core.jobs.run_jobs`. They write beside ``recipe.out``, which all machines of a Ray cluster
        have to see.

    Returns
    -------
    list of Result
        One per step, in order; those of steps that an earlier, interrupted run finished are read back.

    Raises
    ------
    CheckpointError
        If ``out`` exists and ``overwrite`` is off.
    """
    check_output(recipe.out, overwrite=overwrite)  # before anything runs
    recipe.check_written()
    with kept_folder(recipe.out) as work:
        contents = _contents(recipe)
        bench, results = _run_steps(recipe, work / "steps", contents)
        arms = []
        if recipe.compare:
            bench.look()
            run = partial(_run_arm, recipe, start=bench, work=work / "compare", contents=contents)
            jobs = run_jobs(run, [*recipe.compare], workers=workers, backend=backend)
            arms = [*track(jobs, "compare", total=len(recipe.compare))]
        every = [*results, *(result for arm in arms for result in arm)]
        _write(recipe, work, bench, every, overwrite=overwrite)
    return every


def _write(recipe: Recipe, work: Path, bench: Workbench, results: list[Result], *, overwrite: bool) -> None:
    """Write the model or the alternatives, with record and report; a report elsewhere just before ``out`` appears."""
    out = Path(os.path.abspath(recipe.out))
    real, place = Path(os.path.realpath(out)), Path(os.path.realpath(recipe.report or out / REPORT))
    title = f"{out.name}: {f'{len(recipe.compare)} alternatives' if recipe.compare else f'{len(results)} steps'}"
    page = report_page(results, title)
    texts = documents(results, out, recipe.parents)
    inside = place.is_relative_to(real)
    if inside:
        texts[str(place.relative_to(real))] = page

    def publish() -> None:
        if not inside:
            write_file(place, page)

    if not recipe.compare:
        bench.save(out, texts, overwrite=overwrite, layout=recipe.layout, publish=publish)
        return
    own = {"README.md"}.union(*(result.files for result in results))  # each alternative has its own
    texts = {name: text for name, text in texts.items() if name not in own}
    with atomic_output(out, overwrite=overwrite) as target:
        for name in recipe.compare:
            _link(work / "compare" / name, target / name)
        for name, text in texts.items():
            write_file(target / name, text)
        publish()


def _link(arm: Path, target: Path) -> None:
    """Put a finished alternative into ``out``; it stays where it is until ``out`` is complete."""
    try:
        shutil.copytree(arm, target, copy_function=os.link, ignore=shutil.ignore_patterns(FINISHED))
    except OSError:  # a file system without hard links
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(arm, target, ignore=shutil.ignore_patterns(FINISHED))


def _contents(recipe: Recipe) -> dict[str, str]:
    """Digests of what the recipe reads, where a later run may go on from a model that this one keeps."""
    whole = [*recipe.steps, *(step for steps in recipe.compare.values() for step in steps)]
    if len(recipe.steps) < 2 and not recipe.compare:
        return {}
    paths = {name: Path(name) for name in recipe.sources(whole)}
    return {name: _digest(path) for name, path in paths.items() if path.exists()}


def _digest(path: Path) -> str:
    """A digest of a file, or of all files in a folder."""
    total = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in track(files, f"reading {path.name}"):
        total.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        with open(file, "rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def _run_steps(recipe: Recipe, work: Path, contents: Mapping[str, str]) -> tuple[Workbench, list[Result]]:
    """Run the steps, from the last one that an interrupted run of this very recipe finished.

    The model is kept after each step that is not the last, and not after a step that brought files of its own: the
    weights alone are not all that it did.
    """
    results = _finished(recipe, work, recipe.steps, contents)
    opened = _kept(recipe, work) if results else None if recipe.model is None else recipe.open()
    bench = recipe.bench(None if opened is None else move_to_device(opened, recipe.device))
    for number in track(range(len(results) + 1, len(recipe.steps) + 1), "recipe"):
        step = recipe.steps[number - 1]
        results.append(bench.apply(step.signature, step.values))
        results[-1].title = f"{number}. {step.command}"
        if (number < len(recipe.steps) or recipe.compare) and not any(result.files for result in results):
            note = _note(recipe, results, recipe.steps[:number], contents)
            bench.save(work, {FINISHED: note}, overwrite=True)
    return bench, results


def _run_arm(recipe: Recipe, name: str, *, start: Workbench, work: Path, contents: Mapping[str, str]) -> list[Result]:
    """Run one of the alternatives on a copy of the model and save it, unless an interrupted run did."""
    steps, work = recipe.compare[name], work / name
    whole = [*recipe.steps, *steps]
    if results := _finished(recipe, work, whole, contents):
        return results
    bench = start.copy()
    for number, step in enumerate(steps, 1):
        results.append(bench.apply(step.signature, step.values))
        results[-1].title = name if len(steps) == 1 else f"{name}: {number}. {step.command}"
    note = _note(recipe, results, whole, contents)
    files = {**documents(results, work, recipe.parents), FINISHED: note}
    bench.save(work, files, overwrite=True, layout=recipe.layout)
    return results


def _finished(recipe: Recipe, work: Path, steps: Sequence[Step], contents: Mapping[str, str]) -> list[Result]:
    """The results that an interrupted run kept in a folder, if it was a run of the first of these very steps."""
    try:
        note = json.loads((work / FINISHED).read_text("utf-8"))
        done = steps[: note["steps"]]
        if note["fingerprint"] != recipe.fingerprint(done, contents):
            return []
        return [Result.from_json(json.dumps(result)) for result in note["results"]]
    except (OSError, ValueError, KeyError, TypeError):  # nothing was kept, or it is damaged
        return []


def _kept(recipe: Recipe, work: Path) -> OpenedModel:
    if (work / "config.json").is_file() or recipe.model is None:
        return open_model(work)
    opened = recipe.open()
    opened.model.load_state_dict(load_state_dict(work))
    return opened


def _note(recipe: Recipe, results: Sequence[Result], steps: Sequence[Step], contents: Mapping[str, str]) -> str:
    fingerprint = recipe.fingerprint(steps, contents)
    return json.dumps(
        {
            "fingerprint": fingerprint,
            "steps": len(steps),
            "results": [json.loads(result.to_json()) for result in results],
        }
    )


def _steps(raw: Any, where: str, each: str, data: Mapping[str, Any]) -> list[Step]:
    if not isinstance(raw, list) or not raw:
        raise RecipeError(where, found=raw, expected="a list of methods, such as `- wanda: {sparsity: 0.5}`")
    return [_step(step, f"{each}{number}", data) for number, step in enumerate(raw, 1)]


def _is_name(name: Any) -> bool:
    """Whether an alternative may have this name: it names a folder beside the record and the report."""
    return isinstance(name, str) and bool(re.fullmatch(r"\w[\w. -]*", name)) and name not in (RECORD, REPORT)


def _step(raw: Any, where: str, data: Mapping[str, Any]) -> Step:
    if isinstance(raw, str):
        raw = {raw: {}}
    if not isinstance(raw, dict) or len(raw) != 1:
        raise RecipeError(where, found=raw, expected="one method with its fields, such as `wanda: {sparsity: 0.5}`")
    ((name, values),) = raw.items()
    rows = catalog.commands()
    if name not in rows:
        near = difflib.get_close_matches(str(name), rows, n=1)
        raise RecipeError(
            f"{where}: no method {name!r}",
            do=f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(sorted(rows))}.",
        )
    signature = read(catalog.load(rows[name].commands[name].entry))
    if signature.model is None and signature.output != "a model":
        raise RecipeError(f"{where}: {name!r} writes {signature.output}, not a model, so it cannot be a step")
    if values is not None and not (isinstance(values, dict) and all(isinstance(key, str) for key in values)):
        raise RecipeError(f"{where} ({name})", found=values, expected="a mapping of fields")
    try:
        return Step(name, signature.check(values or {}, f"{where} ({name})", data), signature)
    except HyperparameterError as error:
        raise RecipeError(str(error)) from error


def _shown(value: Any) -> str:
    """A value as the recipe spells it."""
    if isinstance(value, Source):
        return repr(value.model_dump(exclude_unset=True))
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def _check_parts(raw: Mapping[str, Any]) -> None:
    if isinstance(raw.get("evaluation"), dict):
        _check_names(raw["evaluation"], Evaluation, "evaluation")
    if not isinstance(raw.get("data") or {}, dict) or not all(isinstance(name, str) for name in raw.get("data") or {}):
        raise RecipeError("data", found=raw["data"], expected="a mapping from a parameter to file, samples and length")
    for name, source in (raw.get("data") or {}).items():
        if isinstance(source, dict):
            _check_names(source, Source, f"data.{name}")


def _check_data(data: Mapping[str, Any], parsed: Mapping[str, Any]) -> None:
    """Refuse data that no step reads."""
    every = [*parsed["steps"], *(step for steps in parsed["compare"].values() for step in steps)]
    read_by = {role.name for step in every for role in step.signature.data}
    for name in data:
        if name not in read_by:
            near = difflib.get_close_matches(str(name), read_by, n=1)
            raise RecipeError(
                f"data: no step reads {name!r}",
                do=f"Did you mean {near[0]!r}?" if near else f"The steps read {', '.join(sorted(read_by)) or 'none'}.",
            )


def _check_model(raw: Mapping[str, Any], parsed: Mapping[str, Any]) -> None:
    """Refuse a recipe whose first steps need a model that is not there."""
    if raw.get("model") is not None:
        return
    for first in [parsed["steps"][:1]] if parsed["steps"] else [steps[:1] for steps in parsed["compare"].values()]:
        if first[0].signature.model is not None or CURRENT in map(str, files_read(first[0])):
            raise RecipeError("model is missing", do=f"Name the model that {first[0].command!r} starts from.")


def files_read(step: Step) -> list[Path]:
    values = [step.values[role.name] for role in step.signature.paths[:-1]]
    return [path for value in values for path in (value if isinstance(value, list) else [value])]


def _check_names(raw: Mapping[Any, Any], cls: type[BaseModel], where: str) -> None:
    for name in raw:
        if name not in cls.model_fields:
            near = difflib.get_close_matches(str(name), cls.model_fields, n=1)
            raise RecipeError(
                f"{where}: unknown field {name!r}",
                do=f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(cls.model_fields)}.",
            )


def _apply_setting(raw: dict[str, Any], setting: str) -> None:
    """Put one ``key=value`` into the raw recipe."""
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"setting {setting!r}", expected="key=value, such as wanda.sparsity=0.6")
    if keys[0] not in Recipe.model_fields:
        mine = [place for place, step in _places(raw) if keys[0] in _names(step)]
        if len(mine) != 1:
            found = f"{len(mine)} steps named {keys[0]!r}"
            raise RecipeError(
                f"setting {setting!r}", found=found, do="Name the step by number: steps.2.wanda.sparsity."
            )
        keys = [*mine[0], *keys]
    place: Any = raw
    try:
        for key in keys[:-1]:
            if isinstance(place, list):
                index = int(key) - 1
                if index < 0:
                    raise IndexError(key)
                if isinstance(place[index], str):
                    place[index] = {place[index]: {}}
                place = place[index]
            else:
                if place.get(key) is None:
                    place[key] = {}
                place = place[key]
        place[keys[-1]] = yaml.load(text, YamlLoader)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise RecipeError(f"setting {setting!r} leads nowhere in the recipe") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"value of setting {setting!r} is not YAML", found=text) from error


def _places(raw: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
    """Every step, with the keys that lead to it."""
    compare = raw.get("compare")
    lists = [(["steps"], raw.get("steps"))]
    lists += [(["compare", name], steps) for name, steps in compare.items()] if isinstance(compare, dict) else []
    return [([*keys, str(n)], step) for keys, steps in lists for n, step in enumerate(steps or [], 1)]


def _names(step: Any) -> list[str]:
    return [step] if isinstance(step, str) else list(step) if isinstance(step, dict) else []
