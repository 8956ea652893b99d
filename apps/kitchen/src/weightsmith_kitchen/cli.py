"""``weightsmith kitchen``: recognize photos, read recipes, price them, train on own data, serve the page."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightsmith.core import progress
from weightsmith_kitchen.options import (
    LISTED,
    Jobs,
    Kits,
    Models,
    Out,
    Overwrite,
    Resume,
    Rows,
    Runs,
    Servings,
    Table,
    console,
    json_line,
)
from weightsmith_kitchen.training import train

if TYPE_CHECKING:
    from weightsmith_kitchen.batch import BatchResult
    from weightsmith_kitchen.kit import MealKit
    from weightsmith_kitchen.nutrition import NutritionTable

__all__ = ["app"]

COLUMNS = ("name", "kcal_per_100g", "category", "source", "id", "score")
"""Of a row of the nutrition table as CSV."""

app = typer.Typer(
    name="kitchen",
    help="Photos and recipes to ingredients, portions, calories and meal kits.",
    no_args_is_help=True,
    add_completion=False,  # that of `weightsmith` covers it
)
app.add_typer(train, name="train")


@app.callback()
def kitchen() -> None:
    """Photos and recipes to ingredients, portions, calories and meal kits."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write the meal kit into.")] = Path("kitchen-demo"),
) -> None:
    """Read a recipe, price it, correct it in words, and write the meal kit as PDF, CSV and JSON."""
    from rich.console import Console

    from weightsmith.core.io import check_file
    from weightsmith_kitchen import demo as demonstration

    check_file(out / "recipe.txt")  # said before the table is made
    demonstration.run(out, Console(quiet=progress.is_silent()))


@app.command()
def recognize(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of them.")],
    out: Out = None,
    format: Rows = "text",
    model: Models = None,
    boxes: Annotated[Path | None, typer.Option(help="JSON: from a photo's name to a list of boxes, in pixels.")] = None,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="The boxes are shares of the photos' sides.")
    ] = False,
    topk: Annotated[int, typer.Option(min=1, help="Candidates for each.")] = 5,
    jobs: Jobs = 1,
    backend: Runs = "processes",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Name the food of photos, with probabilities; silent on what is no food, and on what is not known."""
    from weightsmith_kitchen.models import models_of
    from weightsmith_kitchen.work import recognize_file, region_rows

    options: dict[str, Any] = {
        "models": models_of(model, ["classifier"]),
        "boxes": _boxes(boxes, photos),
        "normalized": normalized,
        "topk": topk,
    }
    _batch(
        photos,
        "photos",
        partial(recognize_file, **options),
        out,
        made_with={"command": "recognize", "format": format, **options},
        render=_render(format, _recognized, region_rows),
        jobs=jobs,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
        reads=[*(model or ()), *([] if boxes is None else [boxes])],
    )


@app.command()
def parse(
    recipes: Annotated[list[Path], typer.Argument(help="Files, JSON lines, or folders of them; - is standard input.")],
    out: Out = None,
    format: Rows = "json",
    model: Models = None,
    events: Annotated[bool, typer.Option("--events", help="Also read who does what (needs spaCy).")] = False,
    jobs: Jobs = 1,
    backend: Runs = "processes",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Read recipes: ingredients with amount, unit, size and state. Exits with 1 when a file could not be read."""
    from weightsmith_kitchen.models import models_of
    from weightsmith_kitchen.work import ingredient_rows, parse_file

    options: dict[str, Any] = {"events": events, "models": models_of(model, ["tagger"])}
    _batch(
        recipes,
        "recipes",
        partial(parse_file, **options),
        out,
        made_with={"command": "parse", "format": format, **options},
        render=_render(format, _parsed, ingredient_rows),
        jobs=jobs,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
        reads=model or (),
    )


@app.command()
def kit(
    inputs: Annotated[
        list[Path], typer.Argument(help="Recipes, what `parse` wrote, photos, or folders; - is standard input.")
    ],
    out: Out = None,
    format: Kits = "text",
    servings: Servings = None,
    say: Annotated[list[str] | None, typer.Option(help='Correction in words: "no butter". May be repeated.')] = None,
    table: Table = None,
    model: Models = None,
    jobs: Jobs = 1,
    backend: Runs = "processes",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Make meal kits: what to buy, how much, its energy, and where each number comes from."""
    from weightsmith_kitchen.errors import KitchenError
    from weightsmith_kitchen.models import models_of
    from weightsmith_kitchen.sources import texts_of
    from weightsmith_kitchen.work import kit_file, kit_rows

    options: dict[str, Any] = {
        "servings": servings,
        "say": tuple(say or ()),
        "tables": tuple(str(path) for path in table or ()),
        "models": models_of(model),
    }
    _table(table)  # a table that cannot be read is said before any work
    if servings is not None and not 0 < servings <= 10_000:
        raise typer.BadParameter("must be above 0, at most 10000", param_hint="'--servings'")
    work: Callable[[Any], dict[str, Any]] = partial(kit_file, **options)
    reads = [*(table or ()), *(model or ())]
    if format in ("text", "pdf"):
        sources = [] if any(path.is_dir() for path in inputs) else texts_of(_stdin(inputs))
        if len(sources) != 1 or resume:
            found = f"{len(sources)} recipes" if sources else "no recipe, or a folder"
            raise KitchenError(f"the format {format}", found=found, expected="one", do="Write json.")
        from weightsmith_kitchen.kit import MealKit

        _check_one(out, format, overwrite, [*_stdin(inputs), *reads])
        _write_one(MealKit.from_dict(work(sources[0])), out)
        return
    _batch(
        inputs,
        "both",
        work,
        out,
        made_with={"command": "kit", "format": format, **options},
        render=_render(format, None, kit_rows),
        jobs=jobs,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
        reads=reads,
    )


@app.command()
def estimate(
    items: Annotated[list[str], typer.Argument(help='Ingredient lines: "2 eggs" "1 tbsp butter".')],
    servings: Servings = None,
    table: Table = None,
    model: Models = None,
    format: Rows = "text",
) -> None:
    """Add up the energy of ingredients, each with its row in the nutrition table."""
    from weightsmith_kitchen.kit import make_kit
    from weightsmith_kitchen.models import loaded, models_of
    from weightsmith_kitchen.report import kit_text

    _check_stdout()
    models = models_of(model, ["tagger", "portions"])
    tagger, portions = loaded(models, "tagger"), loaded(models, "portions")
    made = make_kit(items, _table(table), servings=servings, tagger=tagger, portions=portions)
    if format == "text":
        console().print(kit_text(made))
    elif format == "json":
        print(made.to_json())
    else:
        _print_csv(made.rows())


@app.command()
def search(
    name: Annotated[str, typer.Argument(help="Name of a food, as a cook writes it.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most rows.")] = 10,
    branded: Annotated[bool, typer.Option("--branded", help="Also branded products.")] = False,
    table: Table = None,
    format: Rows = "text",
) -> None:
    """Search the nutrition table. Exits with 1 when no name is near."""
    from rich.table import Table as Grid

    _check_stdout()
    found = _table(table).search(name, limit=limit, branded=branded)
    if not found:
        print(f"no row of the table has such a name: {name!r}", file=sys.stderr)
        raise typer.Exit(1)
    if not found[0].known:
        print(f"no row is {name!r}; the nearest names:", file=sys.stderr)
    made = [{"score": round(match.score, 3), **match.food.to_dict()} for match in found]
    if format == "json":
        for row in made:
            print(json_line(row))
    elif format == "csv":
        _print_csv([{name: row[name] for name in COLUMNS} for row in made])
    else:
        grid = Grid("food", "kcal / 100 g", "source", "id")
        for match in found:
            energy = "?" if match.food.kcal is None else f"{match.food.kcal:.0f}"
            grid.add_row(match.food.name, energy, match.food.source, match.food.id)
        console().print(grid)
    if not found[0].known:
        raise typer.Exit(1)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")] = 8422,
    table: Table = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest photo or text, in bytes.")] = 20 << 20,
    rate: Annotated[int, typer.Option(min=1, help="Requests per minute and client.")] = 600,
    seconds: Annotated[int, typer.Option(min=1, help="Time for an answer.")] = 60,
) -> None:
    """Serve the page and the REST interface on this machine only; no photo or text is stored or logged."""
    from weightsmith_kitchen.serve import Limits, create_app, listen, run

    with listen(port) as listener:  # a port in use is said at once
        served = create_app(_table(table), limits=Limits(max_bytes, rate, seconds), warm_up=True)
        run(served, listener, open_page=open_page)


# --- what the commands share ------------------------------------------------------------------------------------------


def _table(own: Sequence[Path] | None) -> NutritionTable:
    from weightsmith_kitchen.nutrition import NutritionTable

    table = NutritionTable.default()
    for path in own or ():
        table = table.with_csv(path)
    return table


def _stdin(paths: Sequence[Path]) -> list[Path]:
    """Paths, with standard input as the file that it is."""
    from weightsmith_kitchen.sources import STDIN

    return [STDIN if str(path) == "-" else path for path in paths]


def _check_stdout(do: str = "Leave it open: the result is printed.") -> None:
    from weightsmith_kitchen.errors import KitchenError

    if sys.stdout is None:
        raise KitchenError("standard output is closed", do=do)


def _batch(
    inputs: Sequence[Path],
    kind: Literal["photos", "recipes", "both"],
    work: Callable[[Any], dict[str, Any]],
    out: Path | None,
    *,
    reads: Sequence[Path],
    **options: Any,
) -> None:
    from weightsmith_kitchen.batch import PHOTOS, RECIPES, find_files, run_batch
    from weightsmith_kitchen.errors import KitchenError
    from weightsmith_kitchen.sources import texts_of

    if out is None:
        _check_stdout("Name an output with --out.")
    skipped: dict[str, int] = {}
    suffixes = {"photos": PHOTOS, "recipes": RECIPES, "both": PHOTOS + RECIPES}[kind]
    files = find_files(_stdin(inputs), suffixes, skipped)
    sources = [*files] if kind == "photos" else texts_of(files)
    if not sources:
        raise KitchenError("nothing to read", found=f"no line in {', '.join(map(str, files))}")
    try:
        result = run_batch(sources, work, sys.stdout if out is None else out, reads=[*files, *reads], **options)
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if out is None:
            raise
        raise KeyboardInterrupt(f"go on with --resume --out {out}") from None
    result.skipped = skipped
    _report(result)
    if result.failures:
        raise typer.Exit(1)


def _report(result: BatchResult) -> None:
    """Say on standard error what failed, and how much was done."""
    for failure in result.failures[:LISTED]:
        print(f"error: {failure}", file=sys.stderr)
    if len(result.failures) > LISTED:
        print(f"... and {len(result.failures) - LISTED} more", file=sys.stderr)
    if progress.is_silent():
        return
    said = f"{result.files} files, {len(result.failures)} failed"
    if result.complete:
        said = f"nothing is left to do: {said}"
    elif result.resumed:
        said += f"; {result.resumed} were done before"
    if result.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result.skipped.items()))
        said += f"; not read: {kinds}"
    print(f"{said}; {result.seconds:.1f} s", file=sys.stderr)


def _boxes(path: Path | None, photos: Sequence[Path]) -> dict[str, Any] | None:
    from weightsmith_kitchen.batch import PHOTOS, find_files
    from weightsmith_kitchen.errors import PhotoError

    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PhotoError(f"boxes {path} cannot be read", found=error, expected="JSON") from None
    if not isinstance(found, dict) or not all(isinstance(value, list) for value in found.values()):
        raise PhotoError(f"boxes {path}", found=type(found).__name__, expected="an object: photo to list of boxes")
    files = find_files(photos, PHOTOS)
    known = {str(file) for file in files} | {file.name for file in files}
    if unknown := sorted(set(found) - known):
        raise PhotoError(f"boxes {path}", found=f"{len(unknown)} for no photo, such as {unknown[0]}")
    return found


def _recognized(objects: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Lines for the terminal."""
    from weightsmith_kitchen.work import region_rows

    for made in objects:
        for row in region_rows(made):
            place = f" [{row['box']}]" if row["box"] else ""
            said = f"{row['food']} {row['probability']:.0%}" if row["food"] else f"- ({row['reason']})"
            yield f"{row['file']}{place}: {said}; or {row['others']}\n"


def _parsed(objects: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Recipes for the terminal."""
    from weightsmith_kitchen.recipe import Recipe

    for made in objects:
        recipe = Recipe.from_dict(made)
        serves = "" if recipe.servings is None else f", serves {recipe.servings}"
        makes = "" if recipe.makes is None else f", makes {recipe.makes[0]} {recipe.makes[1]}"
        yield f"{made['file']}: {recipe.title or 'no title'}{serves}{makes}\n"
        for item in recipe.ingredients:
            said = "; ".join(item.remarks)
            yield f"  {item.measured()} {item.called()}".rstrip() + (f" ({said})" if said else "") + "\n"
        yield from (f"  note: {note}\n" for note in recipe.notes)


def _render(
    format: str,
    text: Callable[[Iterator[dict[str, Any]]], Iterator[str]] | None,
    rows_of: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> Callable[[Iterator[dict[str, Any]]], Iterator[str]] | None:
    """What makes the output of the objects; None for the objects themselves, a line of JSON each."""
    return {"text": text, "csv": partial(_csv_pieces, rows_of), "json": None}[format]


def _print_csv(rows: list[dict[str, Any]]) -> None:
    sys.stdout.writelines(_csv_pieces(lambda made: [made], rows))


def _csv_pieces(
    rows_of: Callable[[dict[str, Any]], list[dict[str, Any]]], objects: Iterable[dict[str, Any]]
) -> Iterator[str]:
    """From objects to CSV: their rows under one header."""
    from weightsmith_kitchen.kit.writing import cell

    columns: list[str] = []
    for made in objects:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\r\n")
        for row in rows_of(made):
            if not columns:
                columns = list(row)
                writer.writerow(columns)
            writer.writerow([cell(row[name]) for name in columns])
        yield stream.getvalue()


def _check_one(out: Path | None, format: Literal["text", "pdf"], overwrite: bool, reads: Sequence[Path]) -> None:
    """Refuse an output that cannot be written, before any work."""
    from weightsmith.core.io import check_written
    from weightsmith_kitchen.errors import KitchenError

    if format == "text":
        if out is not None:
            raise KitchenError("the format text is for the terminal", do="Write json, csv or pdf to a file.")
        _check_stdout()
        return
    if out is None:
        raise KitchenError("a PDF is no text for the terminal", do="Name a file with --out.")
    check_written({"out": out}, inputs=reads)
    if out.exists() and not overwrite:
        raise KitchenError(f"{out} exists", do="Choose another output, or replace it with --overwrite.")


def _write_one(made: MealKit, out: Path | None) -> None:
    """Print a kit, or write it as a PDF."""
    from weightsmith.core.io import write_file
    from weightsmith_kitchen.kit import to_pdf
    from weightsmith_kitchen.report import kit_text

    if out is None:
        console().print(kit_text(made))
    else:
        write_file(out, to_pdf(made))
