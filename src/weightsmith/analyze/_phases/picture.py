"""The map of phases over load and temperature."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from markupsafe import escape

from weightsmith.analyze._phases.classify import PhaseName

__all__ = ["COLORS", "phase_map"]

COLORS: dict[PhaseName, str] = {
    "I": "#b5523b",
    "II": "#e0a458",
    "III": "#7a6c9d",
    "IV-A": "#8fb8de",
    "IV-B": "#4f9d69",
    "diverged": "#9a9a9a",
}
"""Of each phase, in print and on dark pages."""

LEFT, TOP, CELL, HEIGHT = 70, 14, 62, 34


def phase_map(
    cells: Sequence[tuple[float, float]],
    phases: Sequence[PhaseName],
    *,
    load: str = "load",
    temperature: str = "temperature",
    own: tuple[float, float] | None = None,
) -> str:
    """Return the phases of a grid as an SVG picture, with a mark where a network of the user's own lies.

    Parameters
    ----------
    cells : sequence of (load, temperature)
        The places.
    phases : sequence of str
        The phase of each.
    load, temperature : str
        Names of the axes: load to the right, temperature upwards.
    own : (load, temperature), optional
        A place to mark; between cells it is interpolated, beyond the last ones at the edge.

    Examples
    --------
    >>> phase_map([(2, 8), (8, 8)], ["I", "IV-B"], own=(8, 8)).count("<rect")
    4
    """
    across, up = sorted({cell[0] for cell in cells}), sorted({cell[1] for cell in cells})
    width, below = LEFT + CELL * len(across) + 20, TOP + HEIGHT * len(up)
    parts = [f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {below + 72}" role="img" '
             'font-family="sans-serif" font-size="11" fill="currentColor">']  # fmt: skip
    for (x, y), phase in zip(cells, phases, strict=True):
        left, top = LEFT + CELL * across.index(x), below - HEIGHT * (up.index(y) + 1)
        title = f"{load} {x:g}, {temperature} {y:g}: {phase}"
        parts.append(
            f'<rect x="{left}" y="{top}" width="{CELL - 2}" height="{HEIGHT - 2}" fill="{COLORS[phase]}">'
            f"<title>{escape(title)}</title></rect>"
            f'<text x="{left + CELL / 2 - 1}" y="{top + HEIGHT / 2 + 3}" text-anchor="middle" style="fill:#111">{phase}'
            "</text>"
        )
    for place, x in enumerate(across):
        parts.append(f'<text x="{LEFT + CELL * (place + 0.5)}" y="{below + 14}" text-anchor="middle">{x:g}</text>')
    for place, y in enumerate(up):
        parts.append(f'<text x="{LEFT - 6}" y="{below - HEIGHT * (place + 0.5) + 4}" text-anchor="end">{y:g}</text>')
    middle = (LEFT + width) / 2
    parts.append(f'<text x="{middle}" y="{below + 32}" text-anchor="middle">{escape(load)}</text>')
    parts.append(
        f'<text transform="rotate(-90)" x="{-(TOP + below) / 2}" y="14" text-anchor="middle">{escape(temperature)}'
        "</text>"
    )
    if own is not None:
        x, y = LEFT + CELL * (_place(across, own[0]) + 0.5), below - HEIGHT * (_place(up, own[1]) + 0.5)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="13" fill="none" stroke="#111" stroke-width="2.5">'
            f"<title>yours: {own[0]:g}, {own[1]:g}</title></circle>"
        )
        parts.append(f'<text x="{LEFT}" y="{below + 50}">circle: yours</text>')
    for place, phase in enumerate(dict.fromkeys(sorted(phases))):
        left = LEFT + 62 * place
        parts.append(f'<rect x="{left}" y="{below + 56}" width="10" height="10" fill="{COLORS[phase]}"/>')
        parts.append(f'<text x="{left + 14}" y="{below + 65}">{phase}</text>')
    return "".join(parts) + "</svg>"


def _place(values: Sequence[float], value: float) -> float:
    """Where a value lies among sorted ones, as a real number of cells.

    >>> _place([2, 8, 32], 20.0), _place([2, 8], 1.0), _place([2, 8], 8.0)
    (1.5, 0.0, 1.0)
    """
    after = bisect_left(values, value)
    if after == 0 or after == len(values):
        return float(min(after, len(values) - 1))
    return after - 1 + (value - values[after - 1]) / (values[after] - values[after - 1])
