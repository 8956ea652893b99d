"""``weightsmith kitchen train``: every trained model is a folder, with a report on data that it did not learn from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from weightsmith_kitchen.options import LISTED, Overwrite, Report, console, json_line

__all__ = ["train"]

train = typer.Typer(help="Train on your own data; every trained model is a folder.", no_args_is_help=True)


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
    overwrite: Overwrite = False,
    format: Report = "text",
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
    if format == "json":
        print(json_line(made.to_dict()))
        return
    shown = console()
    shown.print(f"{out}: trained; report.json has the training, the test and the confusions")
    if made.test is not None:
        top = ", ".join(f"top-{k} {share:.1%}" for k, share in made.test.accuracy.items())
        shown.print(f"test: {made.test.photos} photos, {top}, calibration error {made.test.calibration_error:.3f}")
        for true, given, photos_of in made.test.confusions[:10]:
            shown.print(f"  {true} taken for {given}: {photos_of}", markup=False)
    else:
        _print_notes(["no photo was left to test on: give more photos, or more groups of them"])
    for one, other in made.leaks[:LISTED]:
        shown.print(f"  look alike in different parts: {one}, {other}", markup=False)


@train.command("ingredients")
def train_ingredients(
    phrases: Annotated[Path, typer.Argument(help="Token, tab, label; an empty line between phrases.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    test: Annotated[Path | None, typer.Option(help="Phrases to test on, in the same format.")] = None,
    overwrite: Overwrite = False,
    format: Report = "text",
) -> None:
    """Train a tagger of ingredient lines on labeled phrases; `parse`, `kit` and `estimate` read with it."""
    from weightsmith_kitchen.phrases.commands import train_ingredients as work

    made = work(phrases, out, test=test, overwrite=overwrite)
    if format == "json":
        print(json_line(made.to_dict()))
        return
    print(f"{out}: {made.phrases} phrases, labels {', '.join(made.labels)}")
    if made.f1 is not None:
        print(f"F1 of exact spans on {made.test_phrases} phrases: {made.f1:.4f}")
    _print_notes(made.notes)


@train.command("portions")
def train_portions(
    recipes: Annotated[Path, typer.Argument(help="CSV: recipe, ingredient, unit, portion, kcal.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the recipes to test on.")] = 0.2,
    slots: Annotated[int, typer.Option(min=1, help="Most ingredients of a recipe; the rest is left out.")] = 10,
    width: Annotated[int, typer.Option(min=2, help="Width of the network; the paper has 1024.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the recipes.")] = 60,
    learning_rate: Annotated[float, typer.Option(help="Of Adam; 1e-4 for tens of thousands of recipes.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of split, order and dropout.")] = 0,
    overwrite: Overwrite = False,
    format: Report = "text",
) -> None:
    """Train units, portions and energies of ingredients on recipes that have them; `kit` and `estimate` use them."""
    from weightsmith_kitchen.portions.commands import train_portions as work

    made = work(
        recipes,
        out,
        held_out=held_out,
        slots=slots,
        width=width,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        overwrite=overwrite,
    )
    if format == "json":
        print(json_line(made.to_dict()))
        return
    print(f"{out}: {made.recipes} recipes, {made.ingredients} ingredients, units {', '.join(made.units)}")
    if made.test is not None:
        right, error = made.test.units, made.test.error
        print(f"{made.test.recipes} other recipes: units {right:.1%} right, mean error of the total {error:.0f} kcal")
    _print_notes(made.notes)


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
    overwrite: Overwrite = False,
    format: Report = "text",
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
    if format == "json":
        print(json_line(made.to_dict()))
        return
    print(f"{out}: trained on {made.photos} photos in {made.seconds:.0f} s, loss {made.loss:.3f}; {made.checks}")
    _print_notes(made.notes)
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


def _print_notes(notes: Sequence[str]) -> None:
    """Say on standard error what is odd, also where a trained folder was written."""
    for note in notes[:LISTED]:
        print(f"note: {note}", file=sys.stderr)
    if len(notes) > LISTED:
        print(f"... and {len(notes) - LISTED} more", file=sys.stderr)
