"""``weightsmith kitchen``: recognize photos, read recipes, price them, train on own data, serve the page."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightsmith.core import progress

if TYPE_CHECKING:
    from weightsmith_kitchen.batch import BatchResult
    from weightsmith_kitchen.kit import MealKit
    from weightsmith_kitchen.nutrition import NutritionTable

__all__ = ["app"]

Table = Annotated[
    list[Path] | None,
    typer.Option("--table", help="CSV with columns name and kcal (per 100 g); preferred. May be repeated."),
]
Out = Annotated[Path | None, typer.Option(help="File to write; standard output when left out.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes; the output does not depend on it.")]
Runs = Annotated[Literal["processes", "ray"], typer.Option("--backend", help="Where they run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run was killed, if one was.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT, or start again.")]
Servings = Annotated[float | None, typer.Option(help="Number of people to scale to.")]

LISTED = 50
"""Failures that are printed; the rest is counted."""

app = typer.Typer(
    name="kitchen",
    help="Photos and recipes to ingredients, portions, calories and meal kits.",
    no_args_is_help=True,
    add_completion=False,  # that of `weightsmith` covers it
)


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
    format: Annotated[
        Literal["text", "json", "csv"], typer.Option(help="JSON: a line per photo; CSV: a row per photo or box.")
    ] = "text",
    model: Annotated[
        Path | None, typer.Option(help="Folder that `train recognize` wrote; what ships by default.")
    ] = None,
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
    from weightsmith_kitchen.work import recognize_file, region_rows

    given = _boxes(boxes, photos)
    options: dict[str, Any] = {
        "model": None if model is None else str(model),
        "boxes": given,
        "normalized": normalized,
        "topk": topk,
    }
    _batch(
        photos,
        "photos",
        partial(recognize_file, **options),
        out,
        made_with={"command": "recognize", "format": format, **options},
        render={"text": _recognized, "csv": _csv_of(region_rows), "json": None}[format],
        jobs=jobs,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
    )


@app.command()
def parse(
    recipes: Annotated[list[Path], typer.Argument(help="Text files, or folders of them; - is standard input.")],
    out: Out = None,
    format: Annotated[
        Literal["json", "csv"], typer.Option(help="JSON: a line per recipe; CSV: a row per ingredient.")
    ] = ("json"),
    events: Annotated[bool, typer.Option("--events", help="Also read who does what (needs spaCy).")] = False,
    jobs: Jobs = 1,
    backend: Runs = "processes",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Read recipes: ingredients with amount, unit, size and state. Exits with 1 when a file could not be read."""
    from weightsmith_kitchen.work import ingredient_rows, parse_file

    _batch(
        recipes,
        "recipes",
        partial(parse_file, events=events),
        out,
        made_with={"command": "parse", "format": format, "events": events},
        render=_csv_of(ingredient_rows) if format == "csv" else None,
        jobs=jobs,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
    )


@app.command()
def kit(
    inputs: Annotated[list[Path], typer.Argument(help="Recipes as text, photos, or folders; - is standard input.")],
    out: Out = None,
    format: Annotated[
        Literal["text", "json", "csv", "pdf"], typer.Option(help="JSON: a line per kit; CSV: a row per ingredient.")
    ] = "text",
    servings: Servings = None,
    say: Annotated[list[str] | None, typer.Option(help='Correction in words: "no butter". May be repeated.')] = None,
    table: Table = None,
    jobs: Jobs = 1,
    backend: Runs = "processes",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Make meal kits: what to buy, how much, its energy, and where each number comes from."""
    from weightsmith_kitchen.errors import KitchenError
    from weightsmith_kitchen.work import kit_file, kit_rows

    tables = [str(path) for path in table or ()]
    _table(table)  # a table that cannot be read is said before any work
    if servings is not None and not 0 < servings <= 10_000:
        raise typer.BadParameter("must be above 0, at most 10000", param_hint="'--servings'")
    work = partial(kit_file, servings=servings, say=tuple(say or ()), tables=tuple(tables))
    if format in ("text", "pdf"):
        if len(inputs) != 1 or inputs[0].is_dir() or resume:
            raise KitchenError(f"the format {format}", found=f"{len(inputs)} inputs", expected="one", do="Write json.")
        from weightsmith_kitchen.kit import MealKit

        made = MealKit.from_dict(work(_stdin(inputs)[0]))
        _write_one(made, out, format, overwrite)
        return
    _batch(
        inputs,
        "both",
        work,
        out,
        made_with={"command": "kit", "format": format, "servings": servings, "say": say, "tables": tables},
        render=_csv_of(kit_rows) if format == "csv" else None,
        jobs=jobs,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
    )


@app.command()
def estimate(
    items: Annotated[list[str], typer.Argument(help='Ingredient lines: "2 eggs" "1 tbsp butter".')],
    servings: Servings = None,
    table: Table = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Add up the energy of ingredients, each with its row in the nutrition table."""
    from weightsmith_kitchen.kit import make_kit

    made = make_kit(items, _table(table), servings=servings)
    print(made.to_json(indent=2)) if json else _print_kit(made)


@app.command()
def search(
    name: Annotated[str, typer.Argument(help="Name of a food, as a cook writes it.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most rows.")] = 10,
    branded: Annotated[bool, typer.Option("--branded", help="Also branded products.")] = False,
    table: Table = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Search the nutrition table."""
    from rich.table import Table as Grid

    found = _table(table).search(name, limit=limit, branded=branded)
    if json:
        print(_dumps([{"score": round(match.score, 3), **match.food.to_dict()} for match in found]))
        return
    if not found:
        print(f"no row of the table has such a name: {name!r}", file=sys.stderr)
        raise typer.Exit(1)
    if not found[0].known:
        print(f"no row is {name!r}; the nearest names:", file=sys.stderr)
    grid = Grid("food", "kcal / 100 g", "source", "id")
    for match in found:
        energy = "?" if match.food.kcal is None else f"{match.food.kcal:.0f}"
        grid.add_row(match.food.name, energy, match.food.source, match.food.id)
    _console().print(grid)


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


train = typer.Typer(help="Train on your own data; every trained model is a folder.", no_args_is_help=True)
app.add_typer(train, name="train")


@train.command("recognize")
def train_photos(
    photos: Annotated[Path, typer.Argument(help="A folder per class, or a CSV or JSON table; see the docs page.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    backbone: Annotated[str, typer.Option(help="Pretrained network: embedded, or a Hugging Face folder.")] = (
        "embedded:efficientnet-lite0"
    ),
    probe_only: Annotated[bool, typer.Option("--probe-only", help="Linear probe, no fine-tuning: seconds.")] = False,
    side: Annotated[int | None, typer.Option(min=32, help="Pixels of the input; as pretrained by default.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="JSON: from a photo's name to its boxes.")] = None,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="The boxes are shares of the photos' sides.")
    ] = False,
    crop_margin: Annotated[float, typer.Option(min=0.0, help="Added to a box on each side, as a share of it.")] = 0.1,
    blocks: Annotated[int | None, typer.Option(min=1, help="Last blocks to fine-tune; all by default.")] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="Draw each class as often as the others.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the photos when fine-tuning.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of split, order and augmentation.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a classifier of photos: groups stay in one part, look-alikes are found, probabilities are calibrated."""
    from weightsmith_kitchen.photos.commands import train_recognize

    options: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    made = train_recognize(
        photos,
        out,
        backbone=backbone,
        stages=("probe",) if probe_only else ("probe", "finetune"),
        side=side,
        boxes=boxes,
        normalized=normalized,
        crop_margin=crop_margin,
        blocks=blocks,
        balanced=balanced,
        seed=seed,
        overwrite=overwrite,
        **options,
    )
    if json:
        print(_dumps(made.to_dict()))
        return
    console = _console()
    console.print(f"{out}: trained; report.json has the training, the test and the confusions")
    if made.test is not None:
        top = ", ".join(f"top-{k} {share:.1%}" for k, share in made.test.accuracy.items())
        console.print(f"test: {made.test.photos} photos, {top}, calibration error {made.test.calibration_error:.3f}")
        for true, given, photos_of in made.test.confusions[:10]:
            console.print(f"  {true} taken for {given}: {photos_of}", markup=False)
    for one, other in made.leaks[:LISTED]:
        console.print(f"  look alike in different parts: {one}, {other}", markup=False)


@train.command("ingredients")
def train_ingredients(
    phrases: Annotated[Path, typer.Argument(help="Token, tab, label; an empty line between phrases.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    test: Annotated[Path | None, typer.Option(help="Phrases to test on, in the same format.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Train a tagger of ingredient lines on labeled phrases."""
    from weightsmith.core.io import check_output
    from weightsmith_kitchen.phrases.corpus import read_tagged
    from weightsmith_kitchen.phrases.tagger import IngredientTagger

    check_output(out, overwrite=overwrite)
    tokens, tags = read_tagged(phrases)
    held = None if test is None else read_tagged(test)
    with progress.stage(f"training on {len(tokens)} phrases"):
        tagger = IngredientTagger(sorted({tag for line in tags for tag in line})).fit(tokens, tags)
    tagger.save_pretrained(out, overwrite=overwrite)
    print(f"{out}: {len(tokens)} phrases, labels {', '.join(tagger.labels)}")
    if held is not None:
        print(f"F1 of exact spans on {len(held[0])} phrases: {tagger.score(*held):.4f}")


@train.command("portions")
def train_portions(
    recipes: Annotated[Path, typer.Argument(help="CSV: recipe, ingredient, unit, portion, kcal.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the recipes to test on.")] = 0.2,
    width: Annotated[int, typer.Option(min=2, help="Width of the network; the paper has 1024.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the recipes.")] = 60,
    learning_rate: Annotated[float, typer.Option(help="Of Adam; 1e-4 for tens of thousands of recipes.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of split, order and dropout.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Train units, portions and energies of ingredients on recipes that have them."""
    import torch

    from weightsmith.core.io import check_output
    from weightsmith_kitchen.portions import PortionEstimator, RecipeTable, read_labeled

    check_output(out, overwrite=overwrite)
    made = read_labeled(recipes)
    order = torch.randperm(len(made), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = int(len(made) * held_out)
    test, learned = [made[place] for place in order[:cut]], [made[place] for place in order[cut:]]
    torch.manual_seed(seed)
    # Heads of 64, as in the paper, drown the small embeddings of a narrow network.
    estimator = PortionEstimator(RecipeTable.learn(learned), width=width, head_width=max(4, width // 8))
    estimator.fit(learned, epochs=epochs, learning_rate=learning_rate, seed=seed)
    estimator.save_pretrained(out, overwrite=overwrite)
    table = estimator.table
    print(f"{out}: {len(learned)} recipes, {len(table.ingredients)} ingredients, units {', '.join(table.units)}")
    samples = table.samples(test)
    if not samples:
        print("no recipe was left to test on: give more recipes, or a larger --held-out", file=sys.stderr)
    else:
        output = estimator.outputs(test)
        mask, unit = (torch.stack([sample[name] for sample in samples]) for name in ("mask", "unit"))
        total = torch.stack([sample["total"] for sample in samples])
        right = (output.units.argmax(-1)[mask] == unit[mask]).float().mean()
        error = (output.total - total).abs().mean() * table.kcal_scale
        print(f"{len(samples)} other recipes: units {right:.1%} right, mean error of the total {error:.0f} kcal")


@train.command("vlm")
def train_vision_language(
    photos: Annotated[Path, typer.Argument(help="CSV: photo, answer (a list such as '1 apple of 244 g'), group.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    lm: Annotated[str, typer.Option(help="Language model: embedded, or a Hugging Face folder.")] = "embedded:smollm2",
    rank: Annotated[int, typer.Option(min=0, help="Of the LoRA; 0 trains the projector alone.")] = 8,
    calories: Annotated[
        Path | None, typer.Option(help="JSON, kcal by 'unit ingredient': test kcal; grams are tested without.")
    ] = None,
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the photos to test on.")] = 0.2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the photos.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos per step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Highest; of AdamW.")] = 1e-3,
    precision: Annotated[
        Literal["no", "bf16"], typer.Option(help="bf16 is twice as fast where the processor has it.")
    ] = "no",
    seed: Annotated[int, typer.Option(help="Of split, projector, order and dropout.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a model that writes lists about photos; tests it against a constant and a regression on other groups."""
    from weightsmith_kitchen.vlm.commands import train_vlm

    made = train_vlm(
        photos,
        out,
        lm=lm,
        rank=rank,
        calories=calories,
        held_out=held_out,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=precision,
        seed=seed,
        overwrite=overwrite,
    )
    if json:
        print(_dumps(made.to_dict()))
        return
    print(f"{out}: trained on {made.photos} photos in {made.seconds:.0f} s, loss {made.loss:.3f}; {made.checks}")
    test = made.test
    if test is None:
        return
    print(
        f"{test.photos} photos of other groups: F1 of the foods {test.f1:.3f}, {test.unreadable} lists without a total"
    )
    for name, error in (("the lists", test.error), ("the constant", test.constant), ("regression", test.regression)):
        if error is not None:
            print(f"  mean error of the total, {name}: {error:.1f} {test.unit}")
    if test.error is not None and not test.worth_it:
        print("  a cheaper answer is as good: take the foods from this model at most, not the amounts", file=sys.stderr)


# --- what the commands share ------------------------------------------------------------------------------------------


def _table(own: Sequence[Path] | None) -> NutritionTable:
    from weightsmith_kitchen.nutrition import NutritionTable

    table = NutritionTable.default()
    for path in own or ():
        table = table.with_csv(path)
    return table


def _stdin(paths: Sequence[Path]) -> list[Path]:
    """Paths, with standard input as the file that it is."""
    return [Path("/dev/stdin") if str(path) == "-" else path for path in paths]


def _batch(
    inputs: Sequence[Path],
    kind: Literal["photos", "recipes", "both"],
    work: Callable[[Path], dict[str, Any]],
    out: Path | None,
    **options: Any,
) -> None:
    from weightsmith_kitchen.batch import PHOTOS, RECIPES, find_files, run_batch
    from weightsmith_kitchen.errors import KitchenError

    if out is None and sys.stdout is None:
        raise KitchenError("standard output is closed", do="Name an output with --out.")
    skipped: dict[str, int] = {}
    suffixes = {"photos": PHOTOS, "recipes": RECIPES, "both": PHOTOS + RECIPES}[kind]
    files = find_files(_stdin(inputs), suffixes, skipped)
    try:
        result = run_batch(files, work, sys.stdout if out is None else out, **options)
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if out is not None:
            print(f"stopped; go on with --resume --out {out}", file=sys.stderr)
        raise
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
    if result.resumed:
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


def _csv_of(rows_of: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Callable[..., Iterator[str]]:
    """From objects to CSV: a row per ingredient, under one header."""
    return partial(_csv_pieces, rows_of)


def _csv_pieces(
    rows_of: Callable[[dict[str, Any]], list[dict[str, Any]]], objects: Iterator[dict[str, Any]]
) -> Iterator[str]:
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


def _write_one(made: MealKit, out: Path | None, format: Literal["text", "pdf"], overwrite: bool) -> None:
    from weightsmith.core.io import check_file, write_file
    from weightsmith_kitchen.errors import KitchenError
    from weightsmith_kitchen.kit import to_pdf

    if format == "text":
        if out is not None:
            raise KitchenError("the format text is for the terminal", do="Write json, csv or pdf to a file.")
        _print_kit(made)
        return
    if out is None:
        raise KitchenError("a PDF is no text for the terminal", do="Name a file with --out.")
    check_file(out)
    if out.exists() and not overwrite:
        raise KitchenError(f"{out} exists", do="Choose another output, or replace it with --overwrite.")
    write_file(out, to_pdf(made))


def _print_kit(made: MealKit) -> None:
    from weightsmith_kitchen.report import kit_text

    _console().print(kit_text(made))


def _console() -> Any:
    from rich.console import Console

    return Console()


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
