"""Numbers and names as a reader wants them: units, percentages, what got better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["change", "direction", "label", "places", "show", "tone"]

BETTER = {
    "perplexity": -1,
    "control_perplexity": -1,
    "loss": -1,
    "error": -1,
    "bytes": -1,
    "nonzero": -1,
    "accuracy": +1,
    "tokens_per_second": +1,
}
"""Measures whose direction is known: +1 where more is better, -1 where less is."""

NAMES = {"nonzero": "non-zero weights", "bytes": "size", "tokens_per_second": "tokens per second"}
SHARES = ("accuracy", "sparsity", "density", "share", "fraction")


def label(name: str) -> str:
    """Return a measure's name as words.

    Examples
    --------
    >>> label("tokens_per_second"), label("row_error_before")
    ('tokens per second', 'row error before')
    """
    return NAMES.get(name, name.replace("_", " "))


def show(name: str, value: Any) -> str:
    """Return a measure's value with its unit, as short as it can be read.

    Examples
    --------
    >>> show("sparsity", 0.5), show("bytes", 538_060_032), show("nonzero", 134_515_008), show("seconds", 75.2)
    ('50 %', '538 MB', '134.5 M', '1 min 15 s')
    >>> show("perplexity", 19.7342), show("swaps", 1234), show("layers", ["q", "k"]), show("blocks", None)
    ('19.73', '1,234', 'q, k', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(name, item) for item in value) or "none"
    if not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if "bytes" in name or "memory" in name:
        return _scaled(value, ("B", "kB", "MB", "GB", "TB"))
    if name.endswith("seconds"):
        return _duration(value)
    if name.endswith(SHARES) and 0 <= value <= 1:
        return f"{100 * value:.3g} %"
    if abs(value) >= 1e6:
        return _scaled(value, ("", "k", "M", "G", "T"), digits=4)
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def change(before: float, after: float) -> str:
    """Return the relative change from ``before`` to ``after``: a percentage, or a factor from two on.

    Examples
    --------
    >>> change(20.0, 15.0), change(20.0, 100.0), change(20.0, 20.0), change(0.0, 1.0)
    ('−25 %', '5×', '±0 %', '')
    """
    if before == 0 or not (math.isfinite(before) and math.isfinite(after)):
        return ""
    ratio = after / before
    if ratio >= 2:
        return f"{ratio:.3g}×"
    percent = 100 * (ratio - 1)
    if abs(percent) < 0.05:
        return "±0 %"
    return f"{'+' if percent > 0 else '−'}{abs(percent):.3g} %"


def direction(name: str) -> int:
    """Return +1 where more of a measure is better, -1 where less is, 0 where neither is known."""
    return BETTER.get(name, 0)


def tone(name: str, before: float, after: float) -> str:
    """Return ``"better"``, ``"worse"`` or ``"same"``.

    Examples
    --------
    >>> tone("perplexity", 20.0, 30.0), tone("accuracy", 0.7, 0.8), tone("parameters", 4, 2)
    ('worse', 'better', 'same')
    """
    gain = direction(name) * (after - before)
    if abs(gain) <= 5e-4 * abs(before):
        return "same"
    return "better" if gain > 0 else "worse"


def places(layers: Sequence[str]) -> list[tuple[str, int | None]]:
    """Split layers' paths into their kind and their depth.

    The depth is the first number of a path (None where it has none); the kind is the last word, with as many words
    before it as tell the layers of one depth apart.

    Examples
    --------
    >>> places(["layers.0.mlp.up", "layers.1.mlp.up", "head"])
    [('up', 0), ('up', 1), ('head', None)]
    >>> places(["layer.3.attention.dense", "layer.3.output.dense", "layer.3.attention.key"])
    [('attention.dense', 3), ('output.dense', 3), ('key', 3)]
    """
    split = [layer.split(".") for layer in layers]
    numbers = [next((at for at, part in enumerate(parts) if part.isdigit()), None) for parts in split]
    depths = [None if at is None else int(parts[at]) for parts, at in zip(split, numbers, strict=True)]
    words = [
        [part for part in parts[0 if at is None else at :] if not part.isdigit()] or parts
        for parts, at in zip(split, numbers, strict=True)
    ]
    kinds = [parts[-1] for parts in words]
    for length in range(2, max(map(len, words), default=1) + 1):
        counts = Counter(zip(kinds, depths, strict=True))
        clashing = {kind for (kind, _), count in counts.items() if count > 1}
        kinds = [
            ".".join(parts[-length:]) if kind in clashing else kind for kind, parts in zip(kinds, words, strict=True)
        ]
    return list(zip(kinds, depths, strict=True))


def _scaled(value: float, units: tuple[str, ...], digits: int = 3) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.{digits}g} {units[power]}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
