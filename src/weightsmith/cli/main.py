"""The entry point: the tree of commands, and how errors end."""

from __future__ import annotations

import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from safetensors import SafetensorError

from weightsmith import __version__, catalog
from weightsmith.cli.lazy import Product, Root, Verb, hush_transformers, products
from weightsmith.cli.memory import keep_freed_memory
from weightsmith.core import progress
from weightsmith.core.errors import HyperparameterError, MissingDependencyError, RecipeError, WeightsmithError
from weightsmith.core.jobs import Backend, run_jobs

__all__ = ["app", "main"]

Dtype = Literal["float16", "bfloat16", "float32", "float64"]
INTERRUPTED = 130
"""The exit code after Ctrl+C."""
METHODS, WORK, APPS = "Methods, by what you want", "Look and run", "Products, installed beside it"

app = typer.Typer(
    name="weightsmith",
    cls=Root,
    help="Published methods for the weights of trained networks.",
    epilog="Start with `weightsmith demo`, or `weightsmith sparsify wanda embedded:smollm2 OUT`.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (verb for verb in catalog.VERBS if catalog.commands(verb)):
    app.add_typer(
        typer.Typer(cls=Verb, no_args_is_help=True), name=_verb, help=catalog.VERBS[_verb], rich_help_panel=METHODS
    )
for _product in products():
    _summary = _product.dist.metadata["Summary"] if _product.dist else ""
    app.add_typer(
        typer.Typer(cls=Product, no_args_is_help=True), name=_product.name, help=_summary, rich_help_panel=APPS
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0 (done), 1 (failed), 2 (wrong usage) or 130 (stopped by Ctrl+C).

    An error is one line on standard error, and so is a warning. Anywhere on the line, ``--debug`` shows its traceback
    and other packages' warnings, and ``--quiet`` leaves only errors and the results asked for.
    """
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    logging.basicConfig(format="%(message)s", level=logging.WARNING if debug else logging.ERROR)
    progress.silence("--quiet" in arguments)
    format_before = warnings.formatwarning
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.filterwarnings("ignore", module="(?!weightsmith)")
                warnings.formatwarning = progress.notice
            app([word for word in arguments if word not in ("--debug", "--quiet")], prog_name="weightsmith")
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # Typer has made it of a KeyboardInterrupt, which may say how to go on
            interrupt = getattr(stop.__context__, "__cause__", None)
            print("; ".join(["stopped", *map(str, getattr(interrupt, "args", ()))]), file=sys.stderr)
        raise
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, (WeightsmithError, OSError, SafetensorError, MemoryError))
        message = str(error) or type(error).__name__
        message = message if known else f"{type(error).__name__}: {error} (a bug? --debug shows where)"
        print("error:", " ".join(message.split()), file=sys.stderr)
        sys.exit(2 if isinstance(error, (HyperparameterError, RecipeError)) else 1)
    finally:
        warnings.formatwarning = format_before


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"weightsmith {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and all warnings.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only errors and the results asked for.")] = False,
) -> None:
    """Options for every command; ``main`` takes ``--debug`` and ``--quiet`` away before Typer sees them."""


@app.command(rich_help_panel=WORK)
def methods(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    verb: Annotated[str | None, typer.Option(help="Only this verb.")] = None,
) -> None:
    """List all methods: verb, paper, what it does, what became of its claim."""
    from weightsmith.cli import tables

    if verb is not None and verb not in catalog.VERBS:
        raise typer.BadParameter(f"found {verb!r}, expected one of {', '.join(catalog.VERBS)}", param_hint="'--verb'")
    rows = [method for method in catalog.METHODS if verb in (None, method.verb)]
    tables.print_methods(rows, as_json=json)


@app.command(rich_help_panel=WORK)
def show(slug: Annotated[str, typer.Argument(help="A method or command, as `weightsmith methods` lists it.")]) -> None:
    """Show one method: what it does, its commands and defaults, its paper, its claim."""
    from weightsmith.cli import tables

    tables.print_method(catalog.find(slug), slug)


@app.command(rich_help_panel=WORK)
def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, replaces what the file says.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and show its steps.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at the recipe's out.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Alternatives that run at a time, in processes.")] = 1,
    backend: Annotated[Backend, typer.Option(help="Where alternatives run.")] = "processes",
) -> None:
    """Run a recipe: several methods in a row on one model, measured before and after each."""
    from rich.console import Console

    from weightsmith.recipe import load_recipe, run_recipe
    from weightsmith.rehearsal import check_recipe

    hush_transformers()
    console = Console(quiet=progress.is_silent())
    loaded = load_recipe(recipe, settings or [])
    for number, step in enumerate(loaded.steps, 1):
        console.print(f"{number}. {step}", markup=False)
    for name, steps in loaded.compare.items():
        console.print(f"{name}: {', then '.join(map(str, steps))}", markup=False)
    check_recipe(loaded, overwrite=overwrite)
    if dry_run:
        console.print(f"{loaded.model or 'no model'} -> {loaded.out}\nNothing was run.", markup=False)
        return
    for result in run_recipe(loaded, overwrite=overwrite, workers=workers, backend=backend):
        console.print(result.table())
        console.print(result.comparison())
    written = f"model: {loaded.out}\nreport: {loaded.report or loaded.out / 'report.html'}"
    console.print(written, markup=False, highlight=False, soft_wrap=True)


@app.command(rich_help_panel=WORK)
def measure(
    model: Annotated[str, typer.Argument(help="Folder, Hugging Face id (org/name, org/name@revision), embedded:NAME.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help="Tasks of lm-eval, separated by commas: names such as arc_easy, or YAML files."),
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(help="Text for perplexity, or labeled data; else embedded text.")
    ] = None,
    control: Annotated[str | None, typer.Option(help="Another text for perplexity.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples of each task or of labeled data.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Solved examples before a question; else the task's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 8,
    speed: Annotated[bool, typer.Option("--speed", help="Also measure how fast the model writes.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[Dtype | None, typer.Option(help="Load weights as; else their own type.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of a hub id.")] = "main",
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the record as JSON here.")] = None,
) -> None:
    """Measure a model: perplexity, size, accuracy on labeled data, and tasks of the evaluation harness."""
    from rich.console import Console

    from weightsmith.cli.adaptor import on_stdout
    from weightsmith.core.io import check_written, with_revision
    from weightsmith.workbench import Evaluation, measure_model

    hush_transformers()
    named = tuple(name.strip() for each in tasks or () for name in each.split(",") if name.strip())
    if tasks and not named:
        raise typer.BadParameter("found no name, expected tasks separated by commas", param_hint="'--tasks'")
    read = [each for each in (model, evaluation, control, *named) if each is not None]
    check_written({"report": report, "json": json}, inputs=read)
    asked = Evaluation(
        file=evaluation,
        control=control,
        samples=samples,
        speed=speed,
        tasks=named,
        shots=shots,
        batch_size=batch_size,
    )
    result = measure_model(with_revision(model, revision), asked, seed=seed, device=device, dtype=dtype)
    if json is not None:
        result.to_json(json)
    if report is not None:
        result.report(report, f"measures of {model}")
    Console(quiet=progress.is_silent() and on_stdout(report, json)).print(result.comparison())


@app.command(rich_help_panel=WORK)
def claims(
    slugs: Annotated[list[str] | None, typer.Argument(help="Methods; all that are not planned when left out.")] = None,
    scale: Annotated[Literal["cpu", "gpu"], typer.Option(help="Size of the experiment.")] = "cpu",
    seeds: Annotated[int | None, typer.Option(min=3, help="Seeds 0, 1, ...; by default those of the claim.")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder to write <slug>.json into.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Methods whose claims run at a time, in processes.")] = 1,
    backend: Annotated[Backend, typer.Option(help="Where claims run.")] = "processes",
) -> None:
    """Run the papers' claims: method against baselines and controls. Exits with 1 when one does not hold."""
    from rich.console import Console

    from weightsmith.claims.harness import run_claim, scales_of

    hush_transformers()
    chosen = [catalog.find(slug) for slug in slugs or [m.slug for m in catalog.METHODS if not m.planned]]
    for method in chosen:
        if method.planned:
            raise WeightsmithError(f"{method.slug!r} is planned: it has no claim to run yet")
        if not method.installed:
            missing = f"{method.slug}: the product {method.distribution} is not installed"
            if slugs:
                raise MissingDependencyError(missing, do="Install it, and run the claim again.")
            print(f"{missing}; its claim is left out", file=sys.stderr)
    chosen = [method for method in chosen if method.installed]
    runs = []
    for method in chosen:
        run = catalog.load(f"{method.claim_module}:run")
        if scale in (scales := scales_of(run)):
            runs.append(run)
            continue
        missing = f"{method.slug}: its claim has no scale {scale!r}"
        if slugs:
            raise HyperparameterError(missing, expected=" or ".join(scales))
        print(f"{missing}; it is left out", file=sys.stderr)
    hold = True
    judge = partial(run_claim, scale=scale, seeds=None if seeds is None else range(seeds))
    for outcome in run_jobs(judge, runs, workers=workers, backend=backend):
        for result in outcome:
            Console().print(result.table())
            hold = hold and result.holds
            if store is not None:
                result.store(store)
    if not hold:
        raise typer.Exit(1)


@app.command(rich_help_panel=WORK)
def push(
    folder: Annotated[Path, typer.Argument(help="Folder that a command or recipe wrote.")],
    name: Annotated[str, typer.Argument(help="org/name, or org/name@branch.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "",
) -> None:
    """Upload a model folder, with its model card, to the Hugging Face hub."""
    from weightsmith.core.io import push_to_hub

    hush_transformers()
    with progress.stage(f"pushing {folder}"):
        commit = push_to_hub(folder, name, private=private, message=message)
    print(f"pushed: {commit}")
