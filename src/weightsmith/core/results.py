"""The record every method returns: what was done to each layer and in total, and how to reproduce it."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from weightsmith.core.io import write_file
from weightsmith.core.report import Record, format, model_card, write_report

__all__ = ["Result", "documents", "environment", "record"]

NUMBERS = ("layers", "totals", "inputs", "before", "after", "curves")
"""What holds numbers: in JSON, NaN and infinities are texts there."""


@dataclass
class Result(Record):
    """What one method did to one model; its attributes are those of :class:`weightsmith.core.report.Record`."""

    def __post_init__(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Fill in the wall time since the record was opened, and the peak memory."""
        self.seconds = time.perf_counter() - self._started
        self.peak_memory = _peak_memory()

    def layer(self, name: str, **measures: Any) -> None:
        """Add the row of one layer."""
        self.layers.append({"layer": name, **measures})

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the record as JSON, and write it to ``path`` when one is given."""
        text = json.dumps(_plain(asdict(self)), indent=2)
        if path is not None:
            write_file(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Rebuild a record from :meth:`to_json`'s text.

        Among layers, totals, inputs, measures and curves, the texts of NaN and infinities become numbers again.

        Examples
        --------
        >>> Result.from_json(Result("wanda", hyper={"sparsity": 0.5}).to_json()).hyper
        {'sparsity': 0.5}
        """
        fields = json.loads(text)
        return cls(**fields | {name: _numbers(fields[name]) for name in NUMBERS if name in fields})

    def table(self) -> Table:
        """Return what was done as a rich table: for each kind of layer the mean of its measures, then the total.

        Examples
        --------
        >>> result = Result("wanda", totals={"sparsity": 0.5})
        >>> for block in range(30):
        ...     result.layer(f"layers.{block}.q_proj", sparsity=0.5)
        >>> [list(column.cells) for column in result.table().columns]
        [['30 × q_proj', 'total'], ['50 %', '50 %']]
        """
        kinds: dict[str, list[dict[str, Any]]] = {}
        for row, (kind, _) in zip(self.layers, format.places([row["layer"] for row in self.layers]), strict=True):
            kinds.setdefault(kind, []).append(row)
        names = list(dict.fromkeys(key for row in [*self.layers, self.totals] for key in row if key != "layer"))
        table = Table(title=_cell(self.title or self.method), title_justify="left", title_style="bold")
        table.add_column("layer")
        for name in names:
            table.add_column(_cell(format.label(name)), justify="right")
        for kind, rows in kinds.items():
            who = f"{len(rows)} × {kind}" if len(rows) > 1 else rows[0]["layer"]
            means = (format.show(name, _mean([row.get(name, "") for row in rows])) for name in names)
            table.add_row(*map(_cell, (who, *means)))
        table.add_section()
        table.add_row("total", *(_cell(format.show(name, self.totals.get(name, ""))) for name in names))
        return table

    def networks(self) -> Table:
        """Return what went into a merge, and the distances of the networks, as a rich table.

        Examples
        --------
        >>> result = Result("soup", inputs=[{"network": "a", "to_result": 0.01, "to_others": [0.0]}])
        >>> [list(column.cells) for column in result.networks().columns]
        [['1. a'], ['1 %'], ['']]
        """
        heading, *rows = format.distances(self.inputs)
        table = Table(*heading[:1], title="distance relative to the row's network", title_justify="left")
        for name in heading[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(_cell(row[0]), *row[1:])
        return table

    def comparison(self) -> Table:
        """Return the measures before and after as a rich table; one column where there is nothing before.

        Examples
        --------
        >>> result = Result("wanda", before={"perplexity": 20.0}, after={"perplexity": 25.0})
        >>> [list(column.cells) for column in result.comparison().columns]
        [['perplexity'], ['20'], ['25'], ['[red]+25 %[/]']]
        """
        colours = {"better": "green", "worse": "red", "same": "dim"}
        table = Table("measure", title_justify="left")
        for name in ("before", "after", "change") if self.before else ("value",):
            table.add_column(name, justify="right")
        for name in format.measures(self.before, self.after):
            if not self.before:
                table.add_row(_cell(format.label(name)), format.show_with_spread(name, self.after))
                continue
            before, after = self.before.get(name), self.after.get(name)
            change = ""
            if before is not None and after is not None:
                colour = colours[format.tone(name, self.before, self.after)]
                change = f"[{colour}]{format.change(before, after)}[/]"
            shown = (format.show_with_spread(name, values) for values in (self.before, self.after))
            table.add_row(_cell(format.label(name)), *shown, change)
        return table

    def report(self, path: str | Path, title: str | None = None) -> Path:
        """Write one self-contained HTML page about this result; see :func:`weightsmith.core.report.write_report`."""
        return write_report([self], path, title)


@contextmanager
def record(method: str, *, seed: int | None = None, **hyper: Any) -> Iterator[Result]:
    """Open the record of a run: wall time, peak memory and environment are filled in at the end.

    Inside, PyTorch's settings are the usual ones, whatever the caller has chosen: see
    :func:`weightsmith.core.caller.usual_settings`.

    Parameters
    ----------
    method : str
        The method's name, as in the catalog.
    seed : int, optional
        The seed of everything random.
    **hyper
        The hyper-parameters the method runs with.

    Yields
    ------
    Result
        To be filled by the method.

    Examples
    --------
    >>> with record("wanda", sparsity=0.5) as result:
    ...     result.layer("fc", sparsity=0.5)
    >>> result.seconds >= 0 and result.layers
    [{'layer': 'fc', 'sparsity': 0.5}]
    """
    from weightsmith.core.caller import usual_settings

    result = Result(method, hyper=hyper, seed=seed, environment=environment())
    with usual_settings():
        yield result
    result.stop()


def documents(
    results: Sequence[Result], out: str | os.PathLike[str], parents: Sequence[str | os.PathLike[str]]
) -> dict[str, str]:
    """Return the small files of a model: its record ``weightsmith.json``, its card ``README.md``, the results' own.

    Parameters
    ----------
    results : sequence of Result
        What was done: one result is stored as an object, several as a list.
    out : path-like
        Where the model is saved; its last part is the model's name.
    parents : sequence of path-like
        What it was made from.

    Returns
    -------
    dict of str to str
        File names and texts.

    Examples
    --------
    >>> sorted(documents([Result("wanda")], "out/sparse", ["org/dense"]))
    ['README.md', 'weightsmith.json']
    """
    for result in results:
        if not result.seconds:  # its run goes on until the model is saved
            result.stop()
    own = {name: text for result in results for name, text in result.files.items()}
    records = [json.loads(replace(result, files={}).to_json()) for result in results]  # they are beside it
    text = json.dumps(records if len(records) != 1 else records[0], indent=2)
    return {**own, "weightsmith.json": text + "\n", "README.md": model_card(results, Path(out).name, parents)}


def environment() -> dict[str, str]:
    """Return the machine and the versions that a result depends on."""
    import torch

    packages = ("weightsmith", "torch", "transformers", "numpy")
    versions = {name: metadata.version(name) for name in packages}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), "platform": platform.platform(), "device": device, **versions}


def _peak_memory() -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _mean(values: list[Any]) -> Any:
    """The mean of numbers; anything else only if all agree."""
    if values and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return sum(map(format.number, values)) / len(values)
    return values[0] if all(value == values[0] for value in values) else "various"


def _cell(text: str) -> str:
    """A text as a rich table shows it: what looks like markup is text too."""
    return escape(format.printable(text))


def _numbers(value: Any) -> Any:
    """Undo what :func:`_plain` does to NaN and infinities; the names of layers and networks are no numbers."""
    if isinstance(value, dict):
        return {key: item if key in ("layer", "network") else _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _plain(value: Any) -> Any:
    """JSON has no tensors, paths, tuples, NaN or infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
