"""One self-contained HTML page about what was done to a model: it opens offline, prints, and knows dark from light."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from weightsmith.core.io import write_file
from weightsmith.core.report import chart, format, pictures
from weightsmith.core.report.card import model_card
from weightsmith.core.report.record import Record

__all__ = ["Record", "model_card", "report_page", "write_report"]


def write_report(results: Sequence[Record], path: str | Path, title: str | None = None) -> Path:
    """Write the report of one or several results.

    Parameters
    ----------
    results : sequence of Record
        In the order they are told: the steps of a recipe, or alternatives to be compared.
    path : path-like
        The HTML file; its folder is made, an older file is replaced.
    title : str, optional
        Heading of the page; the methods' names when left out.

    Returns
    -------
    Path
        The file that was written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report([Record("wanda", after={"perplexity": 21.5})], f"{folder}/report.html").read_text()
    >>> "21.5" in page and "<script src" not in page
    True
    """
    write_file(path, report_page(results, title))
    return Path(path)


def report_page(results: Sequence[Record], title: str | None = None) -> str:
    """Return the report of one or several results as HTML; parameters are those of :func:`write_report`."""
    sections = [_section(result) for result in results]
    page = _template().render(
        title=title or ", ".join(section["title"] for section in sections),
        sections=sections,
        overview=pictures.overview(results),
        environment=next((result.environment for result in results if result.environment), {}),
        seconds=sum(result.seconds for result in results),
        written=datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"),
    )
    return format.printable(page)


def _section(result: Record) -> dict[str, Any]:
    """What the template needs of one result, in words."""
    cards = [
        {"label": format.label(name), "value": format.show(name, value)}
        for name, value in result.totals.items()
        if isinstance(value, (int, float, str))
    ]
    if result.seconds:
        cards.append({"label": "time", "value": format.show("seconds", result.seconds)})
    if result.peak_memory:
        cards.append({"label": "peak memory", "value": format.show("bytes", result.peak_memory)})
    columns = list(dict.fromkeys(name for row in result.layers for name in row if name != "layer"))
    figures, kinds = pictures.layers(result.layers, result.maps)
    return {
        "title": result.title or result.method,
        "result": result,
        "cards": cards,
        "inputs": format.distances(result.inputs),
        "measures": _measures(result),
        "curves": pictures.curves(result.curves),
        "figures": figures,
        "kinds": kinds,
        "columns": [format.label(name) for name in columns],
        "glossary": {format.label(name): format.explain(name) for name in columns},
        "speed": "tokens_per_second" in result.after,
        "rows": [[row["layer"], *(format.show(name, row.get(name, "")) for name in columns)] for row in result.layers],
        "hyper": {name: format.show(name, value) for name, value in result.hyper.items()},
    }


def _measures(result: Record) -> list[dict[str, Any]]:
    """Before and after, as text and as lengths of two bars in per cent of the longer one."""
    rows = []
    for name in format.measures(result.before, result.after):
        before, after = result.before.get(name), result.after.get(name)
        known = {when: value for when, value in (("before", before), ("after", after)) if value is not None}
        longest = format.longest(known.values())
        row = {
            "label": format.label(name),
            "hint": {1: "more is better", -1: "less is better", 0: ""}[format.direction(name)],
            "shown": {
                when: format.show_with_spread(name, each)
                for when, each in (("before", result.before), ("after", result.after))
            },
            "width": {when: format.length(value, longest) for when, value in known.items()},
            "change": "",
            "tone": "same",
        }
        if before is not None and after is not None:
            tone = format.tone(name, result.before, result.after)
            row |= {"change": format.change(before, after), "tone": tone}
        rows.append(row)
    return rows


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("weightsmith.core.report", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["show"] = format.show
    environment.globals["line_chart"] = chart.line_chart
    environment.globals["heat_map"] = chart.heat_map
    return environment.get_template("page.html.jinja")
