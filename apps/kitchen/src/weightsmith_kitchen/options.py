"""Options that several commands share, so that each is spelled and explained once; and how they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "LISTED",
    "Jobs",
    "Kits",
    "Models",
    "Out",
    "Overwrite",
    "Report",
    "Resume",
    "Rows",
    "Runs",
    "Servings",
    "Table",
    "console",
    "json_line",
]

LISTED = 50
"""Failures that are printed; the rest is counted."""
FORMAT = typer.Option(
    "--format", help="JSON: an object per line, for each photo, recipe, kit, food or training; CSV: rows of them."
)

Report = Annotated[Literal["text", "json"], FORMAT]
Rows = Annotated[Literal["text", "json", "csv"], FORMAT]
Kits = Annotated[Literal["text", "json", "csv", "pdf"], FORMAT]
Models = Annotated[
    list[Path] | None,
    typer.Option("--model", help="Folder that `train` wrote, in place of what ships. May be repeated: one of a kind."),
]
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


def console() -> Console:
    """Standard output, with tables."""
    from rich.console import Console

    return Console()


def json_line(value: Any) -> str:
    """Plain values as a line of JSON."""
    return json.dumps(value, ensure_ascii=False)
