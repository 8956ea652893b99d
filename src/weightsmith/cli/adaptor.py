"""Make a command of a method: arguments and options from its typed signature, help from its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import torch
import typer
from rich.console import Console
from rich.markup import escape

from weightsmith.core import progress
from weightsmith.core.errors import CheckpointError, HyperparameterError
from weightsmith.core.io import atomic_output, check_output, check_written, read_yaml, with_revision
from weightsmith.core.results import Result, documents
from weightsmith.embedded import find_folder, open_model
from weightsmith.quantize import check_packable
from weightsmith.rehearsal import check_data, check_files, check_network, check_options
from weightsmith.signature import REQUIRED, Field, Role, Signature, Source
from weightsmith.workbench import (
    DEFAULT_SAMPLES,
    Data,
    Evaluation,
    Layout,
    Workbench,
    check_device,
    measure_files,
    move_to_device,
    run_on_disk,
)

__all__ = ["make_command", "on_stdout"]

Publish: TypeAlias = Callable[[Result], None]
"""Writes the report and the record that were asked for."""

DATA, OUTPUT = "Data", "Output"
PLAIN = (int, float, str, bool, Path)
DTYPES = ("float16", "bfloat16", "float32", "float64")
FILES = "text, .jsonl, .csv, .parquet, .safetensors, a folder of images, or a hub id"
STDOUT = (Path("/dev/stdout"), Path("/dev/fd/1"), Path("/proc/self/fd/1"))


def make_command(name: str, signature: Signature) -> typer.Typer:
    """Return an application with the method as its one command.

    Parameters
    ----------
    name : str
        Name of the command.
    signature : Signature
        The method. One that changes a model becomes ``MODEL OUT``, one that measures a model ``MODEL``, one on files
        has its files as arguments. Other networks, data and hyper-parameters become options.
    """
    arguments, run = _arguments(signature)

    def command(**given: Any) -> None:
        hyper = {key: _parsed(field, given.pop(key)) for key, field in signature.fields.items()}
        if str(given.get("model", "")).endswith((".yaml", ".yml")):
            given["model"] = _named_in(Path(given["model"]), hyper, signature)
        if "revision" in given:
            _fold_revision(given, "model" if "model" in given else signature.measured[0].name)
        on = [role.name for role in signature.measured] or [key for key in ("model",) if key in given]
        refs = [ref for key in on for ref in (given[key] if isinstance(given[key], list) else [given[key]])]
        title = f"{name} on {' and '.join(refs)}" if refs else name
        files: dict[str, Any] = {kind: given.pop(kind) for kind in ("report", "json") if kind in given}
        written = signature.written(hyper)
        own = [value for name, value in hyper.items() if isinstance(value, Path) and name not in written]
        check_written({**files, **written}, inputs=[*_inputs(signature, given), *own], out=_out(signature, given))
        _refuse_inside(_out(signature, given), hyper)
        if given.pop("dry_run", False):
            _rehearse(name, signature, given, hyper)
            return
        result = run(given, hyper, lambda result: _publish(result, title, **files))
        if isinstance(result, Result):
            _print(result, _out(signature, given), **files)

    parameters = [*arguments, *map(_option, signature.fields.values())]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
    app.command(name, help=escape(signature.description))(command)
    return app


def _arguments(
    signature: Signature,
) -> tuple[list[inspect.Parameter], Callable[[dict[str, Any], dict[str, Any], Publish], Any]]:
    """The arguments and options that the method's roles ask for, and how to run it with what was given.

    What runs it publishes the result before the model appears, where it writes the model itself.
    """
    if signature.model is None:
        seed = [_SEED] if signature.generator is not None else []
        reports = _REPORTS if signature.paths else []
        files = [_file(role, written=role is signature.paths[-1]) for role in signature.paths]
        measured = [_EVALUATION] if _merges(signature) else []
        data = [option for role in signature.data for option in _source(role, alone=False)]
        dry_run = [_DRY_RUN] if _writes(signature) else []
        run = _make if _writes(signature) else _call
        return [*files, *data, *measured, *seed, *reports, *dry_run], lambda given, hyper, publish: run(
            signature, given, hyper, publish
        )
    if signature.measures:
        networks = [_MODEL]
        if len(signature.measured) > 1:
            networks = [_parameter(r.name, str, typer.Argument(help=escape(r.help))) for r in signature.measured]
        elif signature.measured[0].many:
            networks = _several(signature.measured[0])
        networks += _network_options([role for role in signature.networks if role not in signature.measured])
        data = [option for role in signature.data for option in _source(role, alone=role == signature.defaulted)]
        seed = [_SEED] if data or signature.generator is not None else []
        return [*networks, *data, *seed, *_LOADING, *_REPORTS], lambda given, hyper, publish: _published(
            _measure(signature, given, hyper), publish
        )
    return _transform_arguments(signature), lambda given, hyper, publish: _transform(signature, hyper, publish, **given)


def _several(role: Role) -> list[inspect.Parameter]:
    """Several networks in a row, with or without the name of the parameter before them."""
    named = typer.Option(f"--{role.name}", hidden=True)
    return [
        _parameter(role.name, list[str], typer.Argument(help=escape(role.help))),
        _parameter(f"named_{role.name}", bool, named, False),
    ]


def _merges(signature: Signature) -> bool:
    """Whether it makes a network of several."""
    return signature.output == "a model" and any(role.kind == "paths" for role in signature.paths)


def _writes(signature: Signature) -> bool:
    """Whether its last file is one that it writes."""
    return signature.output is not None


def _out(signature: Signature, given: Mapping[str, Any]) -> Path | None:
    """Where the command writes its model; None for one that writes none."""
    if signature.model is None and _writes(signature):
        return Path(given[signature.paths[-1].name])
    return given.get("out")


def _inputs(signature: Signature, given: Mapping[str, Any]) -> list[str]:
    """What the command reads, as it is named on the line."""
    written = signature.paths[-1].name if _writes(signature) else None
    names = {*(name for name in signature.roles if name != written), "model", "evaluation", "control"}
    values = [given[name] for name in names if given.get(name) is not None]
    return [str(each) for value in values for each in (value if isinstance(value, list) else [value])]


def _refuse_inside(out: Path | None, values: Mapping[str, Any]) -> None:
    """Refuse a file inside OUT, which appears as a whole and would replace it."""
    for name, path in values.items():
        if out is not None and isinstance(path, Path) and out.resolve() in path.resolve().parents:
            found = f"{path}, inside the output {out}"
            raise HyperparameterError(name, found=found, expected="a place outside, as the output is replaced whole")


def _file(role: Role, *, written: bool) -> inspect.Parameter:
    kind = list[str] if role.kind == "paths" else str
    return _parameter(role.name, kind, typer.Argument(help=escape(role.help) or ("Where to write." if written else "")))


def _transform_arguments(signature: Signature) -> list[inspect.Parameter]:
    data = [option for role in signature.data for option in _source(role, alone=role == signature.defaulted)]
    trains = any(role.kind == "samples" for role in signature.data)
    needed = [role.kind for role in signature.data if role.required]
    streams = "samples" not in needed and (not trains or "batches" in needed)
    control = typer.Option(help="Text on which the model should not become worse.", rich_help_panel=DATA)
    stream = typer.Option(
        "--stream",
        help="Read, change and write one block at a time: for models larger than memory.",
        rich_help_panel=OUTPUT,
    )
    speed = typer.Option("--speed", help="Also measure how fast the model writes.", rich_help_panel=DATA)
    overwrite = typer.Option("--overwrite", help="Replace what is at OUT.", rich_help_panel=OUTPUT)
    compressed = typer.Option("--compressed", help="Write sparse weights small.", rich_help_panel=OUTPUT)
    packed = typer.Option("--packed", help="Write weights on few levels as packed codes.", rich_help_panel=OUTPUT)
    return [
        _MODEL,
        _parameter("out", Path, typer.Argument(help="Folder to write the changed model to.")),
        *_network_options(signature.networks),
        *data,
        *([_parameter("control", str | None, control, None)] if trains else []),
        _EVALUATION,
        _parameter("speed", bool, speed, False),
        _SEED,
        _parameter("device", str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=DATA), "cpu"),
        *_LOADING,
        _parameter("overwrite", bool, overwrite, False),
        _parameter("compressed", bool, compressed, False),
        *([_parameter("packed", bool, packed, False)] if signature.on_levels else []),
        # what trains goes over the whole model many times
        *([_parameter("stream", bool, stream, False)] if streams else []),
        *_REPORTS,
        _DRY_RUN,
    ]


def _network_options(roles: Sequence[Role]) -> list[inspect.Parameter]:
    what = "Folder, Hugging Face id or embedded:NAME."
    return [
        _parameter(role.name, str if role.required else str | None, typer.Option(help=f"{escape(role.help)} {what}"),
                   REQUIRED if role.required else None)
        for role in roles
    ]  # fmt: skip


def _source(role: Role, *, alone: bool) -> list[inspect.Parameter]:
    """The options of one data parameter; the only one of a method falls back on embedded text."""
    needed = role.required and not alone
    help_text = f"{escape(role.help)} {FILES[0].upper()}{FILES[1:]}{'; else embedded text' if alone else ''}."
    file = typer.Option(help=help_text, rich_help_panel=DATA)
    samples = typer.Option(help=f"Samples of {role.name}.", min=1, rich_help_panel=DATA)
    length = typer.Option(help="Tokens per sample.", min=1, rich_help_panel=DATA)
    return [
        _parameter(role.name, str if needed else str | None, file, REQUIRED if needed else None),
        _parameter(f"{role.name}_samples", int, samples, DEFAULT_SAMPLES[role.kind]),
        _parameter(f"{role.name}_length", int, length, Source().length),
    ]


def _sources(signature: Signature, given: Mapping[str, Any]) -> dict[str, Source]:
    """Where the data of each parameter come from, as the options say."""
    return {
        role.name: Source(
            file=given[role.name], samples=given[f"{role.name}_samples"], length=given[f"{role.name}_length"]
        )
        for role in signature.data
        if role.required or given[role.name] is not None
    }


def _measure(signature: Signature, given: dict[str, Any], hyper: dict[str, Any]) -> Any:
    """Measure a checkpoint by its name, which the method reads itself; or models, opened, and their data."""
    role = signature.measured[0]
    first, others = role.name, [each.name for each in signature.networks]
    ref, *more = given[first] if role.many else [given[first]]
    local = Path(ref).exists() or ref.startswith("embedded:")
    streamed = not others and not signature.data and signature.tokenizer is None
    if local and streamed and given["dtype"] is None:
        return signature.function(**{first: ref}, **hyper)
    opened = open_model(ref, dtype=_dtype(given["dtype"]))
    values = {**hyper, **{name: given[name] for name in others}, **({first: more} if role.many else {})}
    bench = Workbench(
        opened, Data(sources=_sources(signature, given)), given.get("seed", 0), dtype=_dtype(given["dtype"])
    )
    return bench.call(signature, values)


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


def _transform(
    signature: Signature,
    hyper: dict[str, Any],
    publish: Publish,
    *,
    model: str,
    out: Path,
    evaluation: str | None,
    speed: bool,
    seed: int,
    device: str,
    dtype: str | None,
    overwrite: bool,
    compressed: bool,
    packed: bool = False,
    stream: bool = False,
    control: str | None = None,
    **others: Any,
) -> Result:
    check_output(out, overwrite=overwrite)
    if packed and compressed:
        raise typer.BadParameter("does not go with --compressed", param_hint="'--packed'")
    layout: Layout = "packed" if packed else "compressed" if compressed else "plain"
    data = Data(
        sources=_sources(signature, others), evaluation=Evaluation(file=evaluation, control=control, speed=speed)
    )
    networks = {role.name: others[role.name] for role in signature.networks if others[role.name] is not None}
    values = {**hyper, **networks}
    if stream:
        if layout != "plain" or device != "cpu" or dtype is not None:
            raise typer.BadParameter(
                "goes with none of --compressed, --packed, --device and --dtype", param_hint="'--stream'"
            )
        return run_on_disk(model, out, signature, values, data, seed=seed, overwrite=overwrite, publish=publish)
    opened = open_model(model, dtype=_dtype(dtype))
    if packed:
        check_packable(opened.model)
    bench = Workbench(move_to_device(opened, device), data, seed, device, _dtype(dtype))
    result = bench.apply(signature, values)
    files = documents([result], out, [model])
    bench.save(out, files, overwrite=overwrite, layout=layout, publish=lambda: publish(result))
    return result


def _rehearse(name: str, signature: Signature, given: Mapping[str, Any], hyper: Mapping[str, Any]) -> None:
    """Check everything that can be checked before the work, and say what it would be."""
    out, model = _out(signature, given), given.get("model")
    if out is not None:
        check_output(out, overwrite={**given, **hyper}.get("overwrite", False))
    if "device" in given:
        check_device(given["device"])
    networks = {role.name: given[role.name] for role in signature.networks if given[role.name] is not None}
    if model is not None:
        check_network(model)
    for ref in networks.values():
        check_network(ref)
    paths = {role.name: _named(given[role.name], role, check_files) for role in signature.paths[:-1]}
    sources = _sources(signature, given)
    data = [*(source.file for source in sources.values()), given.get("evaluation"), given.get("control")]
    for file in data:
        if file is not None:
            check_data(file)
    check_options(signature, {**hyper, **networks, **sources, **paths}, model)
    files = [each for path in paths.values() for each in (path if isinstance(path, list) else [path])]
    read = ", ".join(str(each) for each in [model, *networks.values(), *files, *data] if each is not None)
    options = ", ".join(f"{key}={value!r}" for key, value in hyper.items())
    print(f"{name}({options})\nreads: {read}\nmodel: {out}\nNothing was run.")


def _make(signature: Signature, given: dict[str, Any], hyper: dict[str, Any], publish: Publish) -> Any:
    """Run a method that writes its last file; the file appears when it is measured, and all else is written."""
    out = signature.paths[-1].name
    with atomic_output(given[out], overwrite=hyper.get("overwrite", False)) as target:
        return _call(signature, {**given, out: target}, hyper, publish)


def _call(signature: Signature, given: dict[str, Any], hyper: dict[str, Any], publish: Publish) -> Any:
    arguments = dict(hyper)
    for role in signature.paths:
        value, written = given[role.name], role is signature.paths[-1]
        arguments[role.name] = Path(value) if written else _named(value, role, find_folder)
    if signature.generator is not None:
        arguments[signature.generator.name] = torch.Generator().manual_seed(given["seed"])
    sources = _sources(signature, given)
    for role in signature.data:
        if role.name in sources:
            read = arguments[signature.paths[-2].name]
            last = read[-1] if isinstance(read, list) else read
            bench = Workbench(open_model(last), Data(sources=sources), given.get("seed", 0))
            arguments[role.name] = bench.read(role, alone=False)
    result = signature.function(**arguments)
    if given.get("evaluation") is not None:
        *_, last, out = (arguments[role.name] for role in signature.paths)
        measure_files(result, last, out, Evaluation(file=given["evaluation"]), seed=given.get("seed", 0))
    return _published(result, publish)


def _named(value: str | list[str], role: Role, find: Callable[[str], Path]) -> Path | list[Path]:
    """The files of an argument; what is none on this machine is found, as ``embedded:NAME`` or a hub id."""
    if isinstance(value, list):
        return [path for ref in value if isinstance(path := _named(ref, role, find), Path)]
    if Path(value).exists():
        return Path(value)
    try:
        return find(value)
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint=role.name.upper()) from error


def _fold_revision(given: dict[str, Any], name: str) -> None:
    """Take ``--revision`` as part of the name of the first network: ``org/name@revision``."""
    revision, value = given.pop("revision"), given[name]
    first, *others = value if isinstance(value, list) else [value]
    first = with_revision(first, revision)
    given[name] = [first, *others] if isinstance(value, list) else first


def _published(result: Any, publish: Publish) -> Any:
    if isinstance(result, Result):
        publish(result)
    return result


def _publish(result: Result, title: str, report: Path | None, json: Path | None) -> None:
    if json is not None:
        result.to_json(json)
    if report is not None:
        result.report(report, title)


def on_stdout(*files: Path | None) -> bool:
    """Whether one of the files is standard output: a reader of it expects nothing else there."""
    return any(file in STDOUT for file in files)


def _print(result: Result, model: Path | None, report: Path | None, json: Path | None) -> None:
    console = Console(quiet=progress.is_silent() and (model is not None or on_stdout(report, json)))
    console.print(result.table())
    if result.inputs:
        console.print(result.networks())
    if result.before or result.after:
        console.print(result.comparison())
    for note in result.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    for what, path in (("model", model), ("report", report), ("record", json)):
        if path is not None:
            console.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)


def _option(field: Field) -> inspect.Parameter:
    """One hyper-parameter as an option; a type that no option has becomes text that is parsed as the field's type."""
    flag = "--" + field.name.replace("_", "-")
    kind = _plain_type(field)
    shorter = [flag.removesuffix("-name")] if flag.endswith("-name") else []  # `class` is a word of Python's
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        *shorter,
        help=escape(field.help),
        rich_help_panel=field.group or None,
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


def _named_in(file: Path, hyper: dict[str, Any], signature: Signature) -> str:
    """The model that a method's own file names, which is given in the model's place: the file becomes its option."""
    own = [
        name for name, field in signature.fields.items() if Path in get_args(field.annotation) and hyper[name] is None
    ]
    if len(own) != 1:
        raise HyperparameterError("MODEL", found=str(file), expected="a folder, a Hugging Face id or embedded:NAME")
    content = read_yaml(file, f"MODEL {file}")
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        flag = "--" + own[0].replace("_", "-")
        raise HyperparameterError(
            f"MODEL {file}", found="no model", expected="'model: FOLDER' in it", do=f"Or: MODEL OUT {flag} {file.name}."
        )
    hyper[own[0]] = file
    return str(content["model"])


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
    typer.Argument(
        help="Folder, Hugging Face id (org/name, org/name@revision), or embedded:smollm2, embedded:minilm, "
        "embedded:efficientnet-lite0."
    ),
)
_EVALUATION = _parameter(
    "evaluation",
    str | None,
    typer.Option(
        help="Text to measure perplexity on, or labeled data for accuracy or error. A command on one model measures "
        "embedded text otherwise, one on several networks does not measure.",
        rich_help_panel=DATA,
    ),
    None,
)
_SEED = _parameter(
    "seed", int, typer.Option(help="Seed of everything random.", min=0, max=2**32 - 1, rich_help_panel=DATA), 0
)
_LOADING = [
    _parameter(
        "dtype",
        Literal[DTYPES] | None,
        typer.Option(help="Load weights as; else their own type.", rich_help_panel=DATA),
        None,
    ),
    _parameter("revision", str, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=DATA), "main"),
]
_DRY_RUN = _parameter(
    "dry_run",
    bool,
    typer.Option("--dry-run", help="Check options, files and OUT, say what would be done.", rich_help_panel=OUTPUT),
    False,
)
_REPORTS = [
    _parameter("report", Path | None, typer.Option(help="Write an HTML report here.", rich_help_panel=OUTPUT), None),
    _parameter("json", Path | None, typer.Option(help="Write the record as JSON here.", rich_help_panel=OUTPUT), None),
]
