"""Make a command of a method: arguments and options from its typed signature, help from its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import typer
from rich.console import Console
from rich.markup import escape

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import check_output
from weightsmith.core.results import Result
from weightsmith.embedded import open_model
from weightsmith.signature import REQUIRED, SAMPLES, Field, Signature
from weightsmith.workbench import Data, Source, Training, Workbench, run_on_disk, to_device

__all__ = ["make_command"]

DATA, OUTPUT = "Data", "Output"
PLAIN = (int, float, str, bool, Path)


def make_command(name: str, signature: Signature) -> typer.Typer:
    """Return an application with the method as its one command.

    Parameters
    ----------
    name : str
        Name of the command.
    signature : Signature
        The method. One with a ``model`` becomes ``MODEL OUT``, or ``MODEL`` if it only measures; one with
        ``checkpoints`` and ``out`` becomes ``CHECKPOINTS... OUT``; its hyper-parameters become options.
    """
    roles, add = _arguments(signature)

    def command(**values: Any) -> None:
        hyper = {key: _parsed(field, values[key]) for key, field in signature.fields.items() if key in values}
        result = add({key: value for key, value in values.items() if key not in signature.fields}, hyper)
        if isinstance(result, Result):
            _tell(
                result, values["report"], values["json"], f"{name} on {values['model']}" if "model" in values else name
            )

    options = [_option(field) for field in signature.fields.values()]
    parameters = [*roles, *options]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
    app.command(name, help=escape(signature.description))(command)
    return app


def _arguments(
    signature: Signature,
) -> tuple[list[inspect.Parameter], Callable[[dict[str, Any], dict[str, Any]], Any]]:
    """The arguments and options that the method's roles ask for, and how to call the method with them."""
    if signature.measures:
        return [_MODEL, *_REPORTS], lambda given, hyper: signature.function(_named(given["model"]), **hyper)
    if "model" in signature.roles:
        return _transform_arguments(signature), lambda given, hyper: _transform(signature, hyper, **given)
    parameters = []
    if "checkpoints" in signature.roles:
        help_text = "Saved weights, in order: folders or .safetensors files."
        parameters.append(_parameter("checkpoints", list[Path], typer.Argument(help=help_text, exists=True)))
    if "out" in signature.roles:
        parameters.append(_parameter("out", Path, typer.Argument(help="Where to write.")))
    if "generator" in signature.roles:
        parameters.append(_SEED)
    if "out" in signature.roles:
        parameters += _REPORTS
    return parameters, lambda given, hyper: _call(signature, hyper, **given)


def _transform_arguments(signature: Signature) -> list[inspect.Parameter]:
    parameters = [
        _MODEL,
        _parameter("out", Path, typer.Argument(help="Folder to write the changed model to.")),
    ]
    if "calibration" in signature.roles:
        parameters += _source("calibration", Source(), "Text, or .safetensors with inputs; else embedded text.")
    for name in SAMPLES:
        if name in signature.roles:
            what = "Text, .csv with text and label, or .safetensors with inputs and labels; else embedded text."
            parameters += _source(name, Training(), what)
    if "training" in signature.roles:
        what = "Text on which the model should not become worse."
        parameters.append(_parameter("control", str | None, typer.Option(help=what, rich_help_panel=DATA), None))
    overwrite = typer.Option("--overwrite", help="Replace what is at OUT.", rich_help_panel=OUTPUT)
    compressed = typer.Option("--compressed", help="Write sparse weights small.", rich_help_panel=OUTPUT)
    stream = typer.Option(
        "--stream",
        help="Read, change and write one block at a time: for models larger than memory.",
        rich_help_panel=OUTPUT,
    )
    speed = typer.Option("--speed", help="Also measure how fast the model writes.", rich_help_panel=DATA)
    return [
        *parameters,
        _parameter(
            "evaluation",
            str | None,
            typer.Option(help="Text to measure perplexity on; else embedded text.", rich_help_panel=DATA),
            None,
        ),
        _parameter("speed", bool, speed, False),
        _SEED,
        _parameter("device", str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=DATA), "cpu"),
        _parameter("overwrite", bool, overwrite, False),
        _parameter("compressed", bool, compressed, False),
        # what trains or measures goes over the whole model many times
        *([] if signature.roles.keys() & set(SAMPLES) else [_parameter("stream", bool, stream, False)]),
        *_REPORTS,
    ]


def _source(name: str, default: Source, what: str) -> list[inspect.Parameter]:
    samples = typer.Option(help="Samples used.", min=1, rich_help_panel=DATA)
    length = typer.Option(help="Tokens a sample.", min=1, rich_help_panel=DATA)
    return [
        _parameter(name, str | None, typer.Option(help=what, rich_help_panel=DATA), None),
        _parameter(f"{name}_samples", int, samples, default.samples),
        _parameter(f"{name}_length", int, length, default.length),
    ]


def _named(model: str) -> Any:
    """What a measure is given: the name of a checkpoint it can read itself, or the model that a hub id stands for."""
    return model if Path(model).exists() or model.startswith("embedded:") else open_model(model).model


def _transform(
    signature: Signature,
    hyper: dict[str, Any],
    *,
    model: str,
    out: Path,
    evaluation: str | None,
    speed: bool,
    seed: int,
    device: str,
    overwrite: bool,
    compressed: bool,
    report: Path | None,
    json: Path | None,
    stream: bool = False,
    control: str | None = None,
    **sources: Any,
) -> Result:
    check_output(out, overwrite=overwrite)
    parts = {
        name: {"file": sources[name], "samples": sources[f"{name}_samples"], "length": sources[f"{name}_length"]}
        for name in ("calibration", *SAMPLES)
        if name in sources
    }
    data = Data.model_validate({**parts, "evaluation": {"file": evaluation, "control": control, "speed": speed}})
    if stream:
        if compressed or device != "cpu":
            raise typer.BadParameter("goes with neither --compressed nor --device", param_hint="'--stream'")
        return run_on_disk(model, out, signature, hyper, data, seed=seed, overwrite=overwrite)
    bench = Workbench(to_device(open_model(model), device), data, seed)
    result = bench.apply(signature, hyper)
    files = {**result.files, "weightsmith.json": result.to_json() + "\n"}
    bench.save(out, files, overwrite=overwrite, compressed=compressed)
    return result


def _call(signature: Signature, hyper: dict[str, Any], **given: Any) -> Any:
    roles: dict[str, Any] = {name: given[name] for name in ("checkpoints", "out") if name in given}
    if "generator" in signature.roles:
        roles["generator"] = torch.Generator().manual_seed(given["seed"])
    return signature.function(**roles, **hyper)


def _tell(result: Result, report: Path | None, json: Path | None, title: str) -> None:
    console = Console()
    console.print(result.table())
    if result.before or result.after:
        console.print(result.comparison())
    for note in result.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    if json is not None:
        result.to_json(json)
    if report is not None:
        result.report(report, title)
        console.print(f"report: {report}")


def _option(field: Field) -> inspect.Parameter:
    """One hyper-parameter as an option; a type that no option has becomes text that is parsed as the field's type."""
    flag = "--" + field.name.replace("_", "-")
    kind = _plain_type(field)
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=escape(field.help),
        metavar=None if kind or field.many else _metavar(field),
        show_default=field.default not in (None, (), []),
    )
    if kind is None:
        kind = list[str] if field.many else str
    if field.default is REQUIRED:
        return _parameter(field.name, kind, info)
    default = _default(field)
    return _parameter(field.name, kind if default is not None else kind | None, info, default)


def _metavar(field: Field) -> str:
    """The alternatives of a union, such as ``NUMBER|2:4|4:8``."""
    words = re.split(r", | or ", field.expects)
    return "|".join(word.strip("'") if word.startswith("'") else word.upper() for word in words)


def _default(field: Field) -> Any:
    """The field's default as Typer shows it."""
    if field.default in (None, REQUIRED) or _plain_type(field) is not None:
        return field.default
    if not field.many:
        return str(field.default)
    return [field.default] if isinstance(field.default, str) else list(field.default)


def _plain_type(field: Field) -> Any:
    """The field's type where Typer has it: a number, a word, a switch, a path, a choice of words; else None."""
    parts = [part for part in get_args(field.annotation) if part is not type(None)]
    optional = len(parts) == 1 and type(None) in get_args(field.annotation)
    annotation = parts[0] if optional else field.annotation
    if annotation in PLAIN:
        return annotation
    if field.choices and all(isinstance(choice, str) for choice in field.choices):
        return Literal[field.choices]
    return None


def _parsed(field: Field, value: Any) -> Any:
    """What Typer gave for a field, as the field's type."""
    if value == _default(field):
        return field.default
    try:
        if field.one_or_many and len(value) == 1:
            return field.validate(value[0])
        return field.parse(value) if isinstance(value, str) and _plain_type(field) is None else field.validate(value)
    except HyperparameterError as error:
        flag = "--" + field.name.replace("_", "-")
        raise typer.BadParameter(str(error).partition(": ")[2], param_hint=f"'{flag}'") from error


def _parameter(name: str, annotation: Any, info: Any, default: Any = REQUIRED) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is REQUIRED else default,
        annotation=Annotated[annotation, info],
    )


_MODEL = _parameter(
    "model",
    str,
    typer.Argument(help="Folder, Hugging Face id, or embedded:smollm2, embedded:minilm, embedded:efficientnet-lite0."),
)
_SEED = _parameter("seed", int, typer.Option(help="Seed of everything random.", rich_help_panel=DATA), 0)
_REPORTS = [
    _parameter("report", Path | None, typer.Option(help="Write an HTML report here.", rich_help_panel=OUTPUT), None),
    _parameter("json", Path | None, typer.Option(help="Write the record as JSON here.", rich_help_panel=OUTPUT), None),
]
