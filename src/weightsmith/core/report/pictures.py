"""What the report's pictures show: lines over depth or steps, bars to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.core.report import format
from weightsmith.core.report.record import Record

__all__ = ["curves", "layers", "overview"]

MOST_PICTURES = 6
MOST_KINDS = 10


def layers(rows: Sequence[Mapping[str, Any]], maps: Sequence[str] = ()) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw each number that differs between layers of a kind over depth, one line per kind of layer.

    Parameters
    ----------
    rows : sequence of mapping
        The rows of ``Result.layers``.
    maps : sequence of str
        Measures that are drawn as heat maps of kinds by depth, instead of lines.

    Returns
    -------
    figures : list of dict
        Each has ``title``, and ``lines`` over ``axis`` or ``cells`` (see :mod:`weightsmith.core.report.chart`), or
        ``bars``.
    kinds : list of str
        The kinds of layers, in the order of their colors.

    Examples
    --------
    >>> rows = [{"layer": f"blocks.{n}.{kind}", "error": n * 0.1} for n in range(3) for kind in ("up", "down")]
    >>> figures, kinds = layers(rows)
    >>> kinds, [(line["name"], line["x"]) for line in figures[0]["lines"]]
    (['up', 'down'], [('up', [0, 1, 2]), ('down', [0, 1, 2])])
    """
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if _differs(rows, name)]
    places = format.places([row["layer"] for row in rows])
    kinds = list(dict.fromkeys(kind for kind, depth in places if depth is not None))
    depths = {depth for _, depth in places if depth is not None}
    by_depth = len(set(places)) == len(places) > len(kinds) <= MOST_KINDS and len(depths) > 1
    if by_depth:
        of_kinds = [[row for _, row in _of_kind(rows, places, kind)] for kind in kinds]
        names = [name for name in names if any(_differs(mine, name) for mine in of_kinds)]
    else:
        kinds = []
    figures = []
    names.sort(key=lambda name: name not in maps)  # heat maps first
    drawn: dict[str, Any]
    for name in names[:MOST_PICTURES]:
        if not by_depth:
            drawn = {"bars": _bars(rows, name)}
        elif name in maps:
            drawn = {"cells": _lines(rows, places, kinds, name)}
        else:
            drawn = {"lines": _lines(rows, places, kinds, name), "axis": "block"}
        figures.append({"title": format.label(name), **drawn})
    if not any("lines" in figure for figure in figures):
        kinds = []  # there is nothing that a legend of lines could explain
    return figures, kinds


def curves(told: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Draw the curves of a run over its steps; those named ``title: line`` with one title share a picture.

    Examples
    --------
    >>> (figure,) = curves({"training loss": [2.0, 1.0]})
    >>> figure["title"], figure["lines"][0]["x"], figure["lines"][0]["y"]
    ('training loss', [1, 2], [2.0, 1.0])
    >>> (figure,) = curves({"forgotten: dense": [(0, 1.0), (9, 0.5)], "forgotten: masked": [(0, 1.0), (9, 0.7)]})
    >>> figure["title"], [line["name"] for line in figure["lines"]], figure["lines"][1]["x"]
    ('forgotten', ['dense', 'masked'], [0, 9])
    """
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, values in told.items():
        if len(values) < 2:
            continue
        title, _, line = name.partition(": ")
        points = [(n, value) if isinstance(value, (int, float)) else value for n, value in enumerate(values, 1)]
        lines = figures.setdefault(title, [])
        lines.append(_line(line or name, [(x, y, f"step {x}") for x, y in points], len(lines)))
    return [
        {"title": format.label(title), "lines": lines, "axis": "step", **({"legend": True} if len(lines) > 1 else {})}
        for title, lines in figures.items()
    ]


def overview(results: Sequence[Record]) -> list[dict[str, Any]]:
    """Compare several results: for each measure the start and every result's value as a bar.

    Measures that no result changed are left out, and so is everything when there is only one result.

    Returns
    -------
    list of dict
        ``label``, ``hint`` and ``bars``; a bar has ``name``, ``value``, ``width`` in per cent, ``start`` and ``best``.
    """
    if len(results) < 2:
        return []
    panels = []
    for name in format.measures({}, dict.fromkeys(key for result in results for key in result.after)):
        named = [(result.title or result.method, result.after[name]) for result in results if name in result.after]
        told = {who: float(format.number(value)) for who, value in named}
        start = next((float(format.number(result.before[name])) for result in results if name in result.before), None)
        if len(told) < 2 or len({start, *told.values()} - {None}) < 2:
            continue
        sign = format.direction(name)
        numbers = [value for value in told.values() if not math.isnan(value)]
        best = max(numbers, key=lambda value: sign * value, default=math.nan)
        spread = 2 * max(result.after.get(name + format.SPREAD, 0.0) for result in results)
        longest = format.longest([*told.values(), start or 0.0])
        bars = [_bar(name, "start", start, longest, start=True)] if start is not None else []
        for who, value in told.items():
            near = sum(abs(other - best) <= spread for other in told.values())
            is_best = sign != 0 and value == best and near == 1
            bars.append(_bar(name, who, value, longest, best=is_best))
        hint = {1: "more is better", -1: "less is better", 0: ""}[sign]
        panels.append({"label": format.label(name), "hint": hint, "bars": bars})
    return panels


def _bar(
    name: str, who: str, value: float, longest: float, *, start: bool = False, best: bool = False
) -> dict[str, Any]:
    width = format.length(value, longest)
    return {"name": who, "value": format.show(name, value), "width": width, "start": start, "best": best}


def _differs(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if name in row]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return name != "layer" and numeric and len(set(values)) > 1


def _of_kind(
    rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[str, int | None]], kind: str
) -> list[tuple[int, Mapping[str, Any]]]:
    """The depth and the row of each layer of a kind, by depth."""
    found = [(place[1], row) for row, place in zip(rows, places, strict=True) if place[0] == kind]
    return sorted(((depth, row) for depth, row in found if depth is not None), key=lambda pair: pair[0])


def _lines(
    rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[str, int | None]], kinds: Sequence[str], name: str
) -> list[dict[str, Any]]:
    return [
        _line(kind, [(at, row[name], row["layer"]) for at, row in _of_kind(rows, places, kind) if name in row], color)
        for color, kind in enumerate(kinds)
    ]


def _line(name: str, points: Sequence[tuple[int, float, str]], color: int) -> dict[str, Any]:
    x, y, text = zip(*points, strict=True) if points else ((), (), ())
    return {"name": name, "x": [*x], "y": [*map(format.number, y)], "text": [*text], "color": color}


def _bars(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    told = [row for row in rows if name in row]
    longest = format.longest(row[name] for row in told)
    return [_bar(name, row["layer"], row[name], longest) for row in told]
