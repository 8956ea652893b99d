"""A recipe: methods in a row on one model, written as YAML, checked before anything runs, measured after each step.

.. code-block:: yaml

    model: embedded:smollm2
    out: smollm2-half
    seed: 0
    calibration: {samples: 16, length: 256}
    steps:
      - wanda: {sparsity: 0.5}
      - wina: {sparsity: 0.25}

Every step is a command of the catalog with its hyper-parameters. The model after the last finished step is kept beside
``out`` until the recipe is finished, so a run that was interrupted goes on where it stopped. (A step that does more
than change weights, such as ``wina``, is run again then, with those after it.)
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weightsmith import catalog
from weightsmith.core.checkpoint import check_output, load_state_dict, save_model
from weightsmith.core.errors import HyperparameterError, RecipeError
from weightsmith.core.progress import track
from weightsmith.core.report import write_report
from weightsmith.core.results import Result
from weightsmith.embedded import OpenedModel, open_model
from weightsmith.signature import Signature, YamlLoader, read
from weightsmith.workbench import Data, Workbench, to_device

__all__ = ["Recipe", "Step", "load_recipe", "run_recipe"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class Calibration(_Strict):
    """The ``calibration`` part: see :class:`weightsmith.workbench.Data`."""

    file: Path | None = None
    samples: int = Field(default=16, ge=1)
    length: int = Field(default=256, ge=1)


class Evaluation(_Strict):
    """The ``evaluation`` part: see :class:`weightsmith.workbench.Data`."""

    file: Path | None = None
    tokens: int = Field(default=2048, ge=2)
    speed: bool = False


@dataclass(frozen=True)
class Step:
    """One step: a command of the catalog and its validated hyper-parameters."""

    command: str
    hyper: Mapping[str, Any]
    signature: Signature

    def __str__(self) -> str:
        return f"{self.command}({', '.join(f'{name}={value!r}' for name, value in self.hyper.items())})"


class Recipe(_Strict):
    """A validated recipe.

    Attributes
    ----------
    model : str
        ``embedded:NAME``, a folder or a hub id.
    out : Path
        The folder to write.
    steps : list of Step
        At least one.
    seed : int
        Seed of everything random.
    calibration, evaluation
        Data for the methods and for the measures.
    device : str
        Where the model works: ``cpu``, ``cuda``, ``cuda:1``.
    compressed : bool
        Write sparse weights small, see :mod:`weightsmith.sparsify.compressed`.
    report : Path or None
        The HTML report; ``report.html`` in ``out`` when left out.
    """

    model: str
    out: Path
    steps: list[Step] = Field(min_length=1)
    seed: int = 0
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    device: str = "cpu"
    compressed: bool = False
    report: Path | None = None

    @property
    def data(self) -> Data:
        """Calibration and evaluation as the workbench takes them."""
        cal, val = self.calibration, self.evaluation
        return Data(cal.file, cal.samples, cal.length, val.file, val.tokens, val.speed)

    def fingerprint(self, steps: int) -> str:
        """Return a digest of everything that the model after the first ``steps`` steps depends on."""
        parts = [self.model, self.seed, asdict(self.data), [(s.command, dict(s.hyper)) for s in self.steps[:steps]]]
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
    for part, cls in (("calibration", Calibration), ("evaluation", Evaluation)):
        if isinstance(raw.get(part), dict):
            _check_names(raw[part], cls, part)
    steps = raw.get("steps")
    if not isinstance(steps, list) or not steps:
        raise RecipeError("steps", found=steps, expected="a list of methods, such as `- wanda: {sparsity: 0.5}`")
    parsed = [_step(step, f"step {number}") for number, step in enumerate(steps, 1)]
    try:
        return Recipe.model_validate({**raw, "steps": parsed})
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
    check_output(recipe.out, overwrite=overwrite)
    work = recipe.out.with_name(f".{recipe.out.name}.steps")
    results, opened = _resume(recipe, work)
    opened = to_device(opened or open_model(recipe.model), recipe.device)
    bench = Workbench(opened, recipe.data, recipe.seed)
    for number in track(range(len(results) + 1, len(recipe.steps) + 1), "recipe"):
        step = recipe.steps[number - 1]
        result = bench.apply(step.signature, step.hyper)
        result.title = f"{number}. {step.command}"
        results.append(result)
        if number < len(recipe.steps) and not any(done.files for done in results):
            _keep(recipe, work, bench, results)
    files = {name: text for result in results for name, text in result.files.items()}
    files["weightsmith.json"] = json.dumps([json.loads(result.to_json()) for result in results], indent=2) + "\n"
    bench.save(recipe.out, files, overwrite=overwrite, compressed=recipe.compressed)
    write_report(results, recipe.report or recipe.out / "report.html", f"{recipe.out.name}: {len(results)} steps")
    shutil.rmtree(work, ignore_errors=True)
    return results


def _keep(recipe: Recipe, work: Path, bench: Workbench, results: list[Result]) -> None:
    """Save the model after a step, in place of the one after the step before.

    Not called after a step that brought files of its own: the weights alone are not all that it did.
    """
    note = {"fingerprint": recipe.fingerprint(len(results)), "results": [json.loads(r.to_json()) for r in results]}
    save_model(
        bench.opened.model,
        work,
        like=bench.opened.folder,
        tokenizer=bench.opened.tokenizer,
        files={"finished.json": json.dumps(note)},
        overwrite=True,
    )


def _resume(recipe: Recipe, work: Path) -> tuple[list[Result], OpenedModel | None]:
    """The results and the model of the last finished step of an interrupted run of this very recipe."""
    if not (work / "finished.json").is_file():
        return [], None
    note = json.loads((work / "finished.json").read_text("utf-8"))
    results = [Result.from_json(json.dumps(result)) for result in note["results"]]
    if len(results) >= len(recipe.steps) or note["fingerprint"] != recipe.fingerprint(len(results)):
        return [], None
    if (work / "config.json").is_file():
        return results, open_model(work)
    opened = open_model(recipe.model)
    opened.model.load_state_dict(load_state_dict(work))
    return results, opened


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
    if "model" not in needs or set(needs) - {"model", "calibration"}:
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
    steps = raw.get("steps") or []
    if keys[0] not in Recipe.model_fields:
        mine = [number for number, step in enumerate(steps, 1) if keys[0] in _names(step)]
        if len(mine) != 1:
            found = f"{len(mine)} steps named {keys[0]!r}"
            raise RecipeError(
                f"setting {setting!r}", found=found, do="Name the step by number: steps.2.wanda.sparsity."
            )
        keys = ["steps", str(mine[0]), *keys]
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


def _names(step: Any) -> list[str]:
    return [step] if isinstance(step, str) else list(step) if isinstance(step, dict) else []
