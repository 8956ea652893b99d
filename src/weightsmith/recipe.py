"""A recipe: methods in a row on one model, written as YAML, checked before anything runs, measured after each step.

.. code-block:: yaml

    model: embedded:smollm2
    out: smollm2-half
    seed: 0
    calibration: {samples: 16, length: 256}
    steps:
      - wanda: {sparsity: 0.5}
      - wina: {sparsity: 0.25}

Every step is a command of the catalog with its hyper-parameters. With ``compare`` in place of ``steps`` (or after
them) several alternatives start from the same model, and the report sets them side by side:

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
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from weightsmith import catalog
from weightsmith.core.errors import HyperparameterError, RecipeError
from weightsmith.core.io import atomic_output, check_output, load_state_dict, save_model
from weightsmith.core.progress import track
from weightsmith.core.report import write_report
from weightsmith.core.results import Result
from weightsmith.embedded import OpenedModel, open_model
from weightsmith.signature import Signature, YamlLoader, read
from weightsmith.workbench import Data, Evaluation, Source, Training, Workbench, to_device

__all__ = ["Recipe", "Step", "load_recipe", "run_recipe"]

RECORD, FINISHED = "weightsmith.json", "finished.json"


@dataclass(frozen=True)
class Step:
    """One step: a command of the catalog and its validated hyper-parameters."""

    command: str
    hyper: Mapping[str, Any]
    signature: Signature

    def __str__(self) -> str:
        return f"{self.command}({', '.join(f'{name}={value!r}' for name, value in self.hyper.items())})"


class Recipe(BaseModel):
    """A validated recipe.

    Attributes
    ----------
    model : str
        ``embedded:NAME``, a folder or a hub id.
    out : Path
        The folder to write.
    steps : list of Step
        Run in order.
    compare : dict of str to list of Step
        Alternatives, each run on a copy of the model after ``steps``; the model of each is written to its own folder
        in ``out``. There is at least one step or alternative.
    seed : int
        Seed of everything random.
    calibration, training, evaluation
        Data for the methods and for the measures, see :mod:`weightsmith.workbench`.
    device : str
        Where the model works: ``cpu``, ``cuda``, ``cuda:1``.
    compressed : bool
        Write sparse weights small, see :mod:`weightsmith.sparsify._compressed`.
    report : Path or None
        The HTML report; ``report.html`` in ``out`` when left out.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)

    model: str
    out: Path
    steps: list[Step] = []
    compare: dict[str, list[Step]] = {}
    seed: int = 0
    calibration: Source = Source()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    device: str = "cpu"
    compressed: bool = False
    report: Path | None = None

    @property
    def data(self) -> Data:
        """The data as the workbench takes them."""
        return Data(calibration=self.calibration, training=self.training, evaluation=self.evaluation)

    def fingerprint(self, steps: Sequence[Step]) -> str:
        """Return a digest of everything that the model after these steps depends on."""
        parts = [self.model, self.seed, self.data.model_dump(), [(s.command, dict(s.hyper)) for s in steps]]
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Parameters
    ----------
    path : path-like
        The YAML file.
    settings : sequence of str
        ``key=value`` that replace what the file says: ``out=there``, ``calibration.samples=8``, or a step's field as
        ``wanda.sparsity=0.6`` (``steps.2.wanda.sparsity`` where a command occurs twice; the first step is 1).

    Returns
    -------
    Recipe
        Every step's fields checked against its function's signature.

    Raises
    ------
    RecipeError
        If the file is no YAML mapping, a field is unknown, missing or of a wrong type, or a step is no method.
    """
    try:
        raw = yaml.load(Path(path).read_text("utf-8"), YamlLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read recipe {path}", found=str(error)) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML", found=" ".join(str(error).split())) from error
    if not isinstance(raw, dict):
        raise RecipeError(f"recipe {path}", found=type(raw).__name__, expected="a mapping with model, out and steps")
    for setting in settings:
        _apply_setting(raw, setting)
    _check_names(raw, Recipe, "recipe")
    for part, cls in (("calibration", Source), ("training", Training), ("evaluation", Evaluation)):
        if isinstance(raw.get(part), dict):
            _check_names(raw[part], cls, part)
    compare = raw.get("compare") or {}
    if not isinstance(compare, dict) or not all(_is_name(name) for name in compare):
        raise RecipeError("compare", found=compare, expected="a mapping from a name to a list of steps")
    parsed: dict[str, Any] = {
        "steps": _steps(raw.get("steps"), "steps", "step ") if "steps" in raw or not compare else [],
        "compare": {name: _steps(steps, f"compare.{name}", f"{name}, step ") for name, steps in compare.items()},
    }
    try:
        return Recipe.model_validate({**raw, **parsed})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = None if first["type"] == "missing" else repr(first["input"])
        raise RecipeError(f"{where}: {first['msg'].lower()}", found=found) from error


def run_recipe(recipe: Recipe, *, overwrite: bool = False) -> list[Result]:
    """Run the steps in order on one model, measure after each, save the model and the report.

    Parameters
    ----------
    recipe : Recipe
        From :func:`load_recipe`.
    overwrite : bool, default: False
        Replace what is at ``recipe.out``.

    Returns
    -------
    list of Result
        One a step, in order; those of steps that an earlier, interrupted run finished are read back.

    Raises
    ------
    CheckpointError
        If ``out`` exists and ``overwrite`` is off.
    """
    check_output(recipe.out, overwrite=overwrite)  # before anything runs
    work = recipe.out.with_name(f".{recipe.out.name}.steps")
    bench, results = _run_steps(recipe, work / "steps")
    if recipe.compare:
        arms = [_run_arm(recipe, name, bench, work / "compare" / name) for name in track(recipe.compare, "compare")]
        results = [*results, *(result for arm in arms for result in arm)]
        with atomic_output(recipe.out, overwrite=overwrite) as out:
            for path in (work / "compare" / name for name in recipe.compare):
                (path / FINISHED).unlink()
                shutil.move(path, out)
            (out / RECORD).write_text(_as_json(results), "utf-8")
        title = f"{recipe.out.name}: {len(arms)} alternatives"
    else:
        _save(recipe, bench, recipe.out, results, {})
        title = f"{recipe.out.name}: {len(results)} steps"
    write_report(results, recipe.report or recipe.out / "report.html", title)
    shutil.rmtree(work, ignore_errors=True)
    return results


def _run_steps(recipe: Recipe, work: Path) -> tuple[Workbench, list[Result]]:
    """Run the steps, from the last one that an interrupted run of this very recipe finished.

    The model is kept after each step that is not the last, and not after a step that brought files of its own: the
    weights alone are not all that it did.
    """
    results = _finished(recipe, work, recipe.steps)
    opened = to_device(_kept(recipe, work) if results else open_model(recipe.model), recipe.device)
    bench = Workbench(opened, recipe.data, recipe.seed)
    for number in track(range(len(results) + 1, len(recipe.steps) + 1), "recipe"):
        step = recipe.steps[number - 1]
        results.append(bench.apply(step.signature, step.hyper))
        results[-1].title = f"{number}. {step.command}"
        if (number < len(recipe.steps) or recipe.compare) and not _files(results):
            _keep(recipe, bench, work, results, recipe.steps[:number])
    return bench, results


def _run_arm(recipe: Recipe, name: str, start: Workbench, work: Path) -> list[Result]:
    """Run one of the alternatives on a copy of the model and save it, unless an interrupted run did."""
    steps = recipe.compare[name]
    whole = [*recipe.steps, *steps]
    if results := _finished(recipe, work, whole):
        return results
    bench = start.copy()
    for number, step in enumerate(steps, 1):
        results.append(bench.apply(step.signature, step.hyper))
        results[-1].title = name if len(steps) == 1 else f"{name}: {number}. {step.command}"
    _save(recipe, bench, work, results, {FINISHED: _note(recipe, results, whole)})
    return results


def _save(recipe: Recipe, bench: Workbench, out: Path, results: list[Result], more: Mapping[str, str]) -> None:
    """Write the model, replacing what is at ``out``, with the record and the steps' files."""
    files = {**_files(results), RECORD: _as_json(results), **more}
    bench.save(out, files, overwrite=True, compressed=recipe.compressed)


def _keep(recipe: Recipe, bench: Workbench, work: Path, results: list[Result], steps: Sequence[Step]) -> None:
    """Save the model after a step, in place of the one after the step before."""
    opened, note = bench.opened, {FINISHED: _note(recipe, results, steps)}
    work.parent.mkdir(exist_ok=True)
    save_model(opened.model, work, like=opened.folder, tokenizer=opened.tokenizer, files=note, overwrite=True)


def _finished(recipe: Recipe, work: Path, steps: Sequence[Step]) -> list[Result]:
    """The results that an interrupted run kept in a folder, if it was a run of the first of these very steps."""
    if not (work / FINISHED).is_file():
        return []
    note = json.loads((work / FINISHED).read_text("utf-8"))
    same = note["fingerprint"] == recipe.fingerprint(steps[: note["steps"]])
    return [Result.from_json(json.dumps(result)) for result in note["results"]] if same else []


def _kept(recipe: Recipe, work: Path) -> OpenedModel:
    if (work / "config.json").is_file():
        return open_model(work)
    opened = open_model(recipe.model)
    opened.model.load_state_dict(load_state_dict(work))
    return opened


def _note(recipe: Recipe, results: Sequence[Result], steps: Sequence[Step]) -> str:
    note = {"fingerprint": recipe.fingerprint(steps), "steps": len(steps), "results": json.loads(_as_json(results))}
    return json.dumps(note)


def _files(results: Sequence[Result]) -> dict[str, str]:
    return {name: text for result in results for name, text in result.files.items()}


def _as_json(results: Sequence[Result]) -> str:
    return json.dumps([json.loads(result.to_json()) for result in results], indent=2) + "\n"


def _steps(raw: Any, where: str, each: str) -> list[Step]:
    if not isinstance(raw, list) or not raw:
        raise RecipeError(where, found=raw, expected="a list of methods, such as `- wanda: {sparsity: 0.5}`")
    return [_step(step, f"{each}{number}") for number, step in enumerate(raw, 1)]


def _is_name(name: Any) -> bool:
    """Whether an alternative may have this name: it names a folder."""
    return isinstance(name, str) and bool(re.fullmatch(r"\w[\w. -]*", name))


def _step(raw: Any, where: str) -> Step:
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
    needs = [role for role, required in signature.roles.items() if required]
    if signature.measures or "model" not in needs or set(needs) - {"model", "calibration", "training"}:
        raise RecipeError(f"{where}: {name!r} does not change a model in place, so it cannot be a step", found=needs)
    if values is not None and not isinstance(values, dict):
        raise RecipeError(f"{where} ({name})", found=values, expected="a mapping of fields")
    try:
        return Step(name, signature.check(values or {}, f"{where} ({name})"), signature)
    except HyperparameterError as error:
        raise RecipeError(str(error)) from error


def _check_names(raw: Mapping[str, Any], cls: type[BaseModel], where: str) -> None:
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
