"""The model card that is saved with a model: what it was made from, how, and what was measured."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from weightsmith.core.io import downloaded, shown_name
from weightsmith.core.report import format
from weightsmith.core.report.record import Record

__all__ = ["model_card"]

INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What a card takes over from that of the model it was made from."""


def model_card(results: Sequence[Record], name: str, parents: Sequence[str | os.PathLike[str]]) -> str:
    """Return a model card in Markdown, with the metadata that the Hugging Face hub reads.

    Parameters
    ----------
    results : sequence of Record
        What was done, in order.
    name : str
        Heading: the model's name.
    parents : sequence of path-like
        What the model was made from: folders, files or hub ids. License and language come from the last one's card.

    Examples
    --------
    >>> print(model_card([Record("wanda", hyper={"sparsity": 0.5})], "small", ["org/large"]))
    ---
    tags:
    - weightsmith
    - wanda
    base_model:
    - org/large
    ---
    <BLANKLINE>
    # small
    <BLANKLINE>
    Made from `org/large`. `weightsmith.json` is the full record.
    <BLANKLINE>
    ## wanda
    <BLANKLINE>
    | option | value |
    | --- | --- |
    | sparsity | 50 % |
    <BLANKLINE>
    """
    names = [shown_name(parent) for parent in parents]
    hub = [found[1] for each in names if (found := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@.+)?", each))]
    metadata = {
        **_inherited(parents[-1:]),
        "tags": ["weightsmith", *dict.fromkeys(result.method for result in results)],
        **({"base_model": [*dict.fromkeys(hub)]} if hub else {}),
    }
    made = f"Made from {', '.join(f'`{each}`' for each in names)}. " if names else ""
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip(),
        "---\n",
        f"# {name}\n",
        f"{made}`weightsmith.json` is the full record.",
    ]
    for result in results:
        options = [(format.label(name), format.show(name, value)) for name, value in result.hyper.items()]
        lines += [f"\n## {result.title or result.method}", *_table(("option", "value"), options)]
        heading, *rows = format.distances(result.inputs) or [[]]
        lines += _table(heading, rows)
        lines += _table(("measure", "before", "after"), _measures(result))
        lines += ["", *[f"- {note}" for note in result.notes]] if result.notes else []
    return format.printable("\n".join(lines) + "\n")


def _measures(result: Record) -> list[tuple[str, ...]]:
    names = format.measures(result.before, result.after)
    return [
        (format.label(name), *(format.show_with_spread(name, each) for each in (result.before, result.after)))
        for name in names
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    body = [" | ".join(text.replace("|", r"\|").replace("\n", " ") for text in row) for row in (header, *rows)]
    return ["", f"| {body[0]} |", f"|{' --- |' * len(header)}", *(f"| {row} |" for row in body[1:])]


def _inherited(parents: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """The license and language that the card of a folder, or of a model of the hub, names."""
    for parent in parents:
        with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):  # ValueError: of a date that there is not
            card = (downloaded(parent) or Path(parent)) / "README.md"
            front = re.match(r"---\n(.*?)\n---", card.read_text("utf-8-sig"), re.DOTALL)
            metadata = yaml.safe_load(front[1]) if front else None
            if isinstance(metadata, dict):  # comments alone are nothing
                return {key: metadata[key] for key in INHERITED if key in metadata}
    return {}
