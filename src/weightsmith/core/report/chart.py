"""Line charts and heat maps as SVG: static, small, in the colors of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from weightsmith.core.report import format

__all__ = ["heat_map", "line_chart", "ticks"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 230, 52, 10, 8, 34
MOST_DOTS = 100
"""Points of a line that are drawn as dots with their value to hover on."""


def ticks(low: float, high: float, *, whole: bool = False, most: int = 6) -> list[float]:
    """Return round numbers from ``low`` to ``high``, at most ``most``; whole ones where an axis counts.

    Examples
    --------
    >>> ticks(0.0, 1.0), ticks(0, 3, whole=True), ticks(0, 29, whole=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 1.0, 2.0, 3.0], [0.0, 5.0, 10.0, 15.0, 20.0, 25.0])
    """
    power = 10.0 ** math.floor(math.log10(max(high - low, 1e-300) / most))
    steps = (power * factor for factor in (1, 2, 5, 10, 20) if not whole or power * factor >= 1)
    step = next((step for step in steps if (high - low) / step < most), 1.0)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(n * step, digits) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def line_chart(lines: Sequence[Mapping[str, Any]], x_label: str) -> Markup:
    """Draw lines over something that is counted.

    Parameters
    ----------
    lines : sequence of mapping
        Each with ``name``, ``x`` (whole numbers), ``y``, ``text`` (what each point is) and ``color``, a number.
    x_label : str
        What is counted.
    """
    points = [
        [(x, y, text) for x, y, text in zip(line["x"], line["y"], line["text"], strict=True) if math.isfinite(y)]
        for line in lines
    ]
    every = [point for line in points for point in line]
    if not every:
        return Markup("<p>No finite values.</p>")
    left, right = min(x for x, _, _ in every), max(x for x, _, _ in every)
    low, high = min(y for _, y, _ in every), max(y for _, y, _ in every)
    pad = 0.06 * (high - low) or abs(high) or 1.0
    whole = all(isinstance(y, int) for _, y, _ in every)
    low, high = low - pad, high + pad

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in ticks(low, high, whole=whole):
        _, y = at(left, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{format.show("", tick)}</text>')
    for tick in ticks(left, right, whole=True, most=8):
        parts.append(f'<text x="{at(tick, low)[0]}" y="{HEIGHT - 20}" text-anchor="middle">{int(tick)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for line, own in zip(lines, points, strict=True):
        path = " ".join("{},{}".format(*at(x, y)) for x, y, _ in own)
        parts.append(f'<g class="line" data-kind="{escape(line["name"])}" style="color:var(--c{line["color"]})">')
        parts.append(f'<polyline points="{path}"/>')
        for x, y, text in own if len(own) <= MOST_DOTS else ():
            across, down = at(x, y)
            title = f"{escape(text)}: {format.show('', y)}"
            parts.append(f'<circle cx="{across}" cy="{down}" r="3"><title>{title}</title></circle>')
        parts.append("</g>")
    return Markup("".join(parts) + "</svg>")


def heat_map(kinds: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw a number per kind of layer and depth as the color of a cell.

    The scale runs from the lowest to the highest finite value, which are written beside it.

    Parameters
    ----------
    kinds : sequence of mapping
        One row each, with ``name``, ``x`` (depths), ``y`` and ``text`` as for :func:`line_chart`.

    Examples
    --------
    >>> rows = [{"name": "up", "x": [0, 1], "y": [0.5, 1.0], "text": ["blocks.0.up", "blocks.1.up"]}]
    >>> heat_map(rows).count("<rect"), "blocks.1.up: 1" in heat_map(rows)
    (7, True)
    """
    finite = [y for row in kinds for y in row["y"] if math.isfinite(y)]
    if not finite:
        return Markup("<p>No finite values.</p>")
    low, high = min(finite), max(finite)
    first, last = min(x for row in kinds for x in row["x"]), max(x for row in kinds for x in row["x"])
    left = 12 + 6.2 * max(len(str(row["name"])) for row in kinds)
    width, height = (WIDTH - RIGHT - left) / (last - first + 1), 20
    below = TOP + height * len(kinds)

    def cell(x: float, y: float, value: float, wide: float, text: str) -> str:
        share = (value - low) / ((high - low) or 1)
        title = f"<title>{text}</title>" if text else ""
        paint = f"var(--c0) {100 * share:.0f}%, var(--line)"
        return (
            f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{height - 2}" '
            f'style="fill:color-mix(in srgb, {paint})">{title}</rect>'
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {below + 58}" role="img">']
    for place, row in enumerate(kinds):
        top = TOP + height * place
        parts.append(f'<text x="{left - 6:.1f}" y="{top + 13}" text-anchor="end">{escape(row["name"])}</text>')
        for x, y, text in zip(row["x"], row["y"], row["text"], strict=True):
            if math.isfinite(y):
                told = f"{escape(text)}: {format.show('', y)}"
                parts.append(cell(left + width * (x - first), top, y, max(width - 1, 1), told))
    for tick in ticks(first, last, whole=True, most=8) if last > first else [first]:
        across = left + width * (tick - first + 0.5)
        parts.append(f'<text x="{across:.1f}" y="{below + 14}" text-anchor="middle">{int(tick)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{below + 32}" text-anchor="end">block</text>')
    for step in range(5):
        parts.append(cell(left + 14 * step, below + 34, low + (high - low) * step / 4, 14, ""))
    parts.append(f'<text x="{left - 6:.1f}" y="{below + 47}" text-anchor="end">{format.show("", low)}</text>')
    parts.append(f'<text x="{left + 76:.1f}" y="{below + 47}">{format.show("", high)}</text>')
    return Markup("".join(parts) + "</svg>")
