"""Rows of tables, folders of images and hub data sets, through the ``datasets`` library."""

from __future__ import annotations

import csv
import glob
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from weightsmith.core.data._images import IMAGES, image_files, train_folder
from weightsmith.core.errors import CalibrationError

__all__ = ["LabelColumn", "Row", "drawn", "is_text", "read_rows"]

BUILDERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
BINARY = {".npz", ".npy", ".pt", ".pth", ".bin", ".pkl", ".zip", ".gz", ".tar", ".arrow", ".xlsx", ".pdf"}
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
"""Tables in a folder of images, which have labels of their own and are read by the ``datasets`` library."""
HUB_ID = r"(\w[\w.-]*/)?\w[\w.-]*(:.+)?"
AHEAD = 10_000
"""Rows of a large file among which samples are drawn."""

Row: TypeAlias = Mapping[str, Any]


class LabelColumn(NamedTuple):
    """The column ``label``: the names of its classes where it has them, and the labels of all rows that were read."""

    names: Sequence[str] | None
    values: Sequence[Any]


def read_rows(source: str, count: int, generator: torch.Generator | None) -> tuple[list[Row], LabelColumn]:
    """Rows of a table, a folder of images or a hub data set, drawn among those that are read, and their labels.

    Raises
    ------
    CalibrationError
        If there is no such data, it cannot be read, or a row lacks a value.
    """
    import datasets

    path = Path(source)
    if path.is_dir() and not any(file.name in METADATA for file in path.rglob("metadata.*")):
        return _read_images(path, count, generator)
    try:
        most = max(AHEAD, count)
        table = _open(source, most)
        features = table.features or {}
        names = getattr(features.get("label"), "names", None)
        if isinstance(features.get("image"), datasets.Image):
            table = table.cast_column("image", datasets.Image(decode=False))  # only those that are drawn
        rows = list(table.take(most))
    except CalibrationError:
        raise
    except StopIteration:  # what an empty .jsonl file raises
        rows, names = [], None
    except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError, RuntimeError) as error:
        what = f"cannot read {source}" if path.exists() else f"no file or folder {source}, and no data set of that name"
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CalibrationError(what, found=found) from error
    if not rows:
        raise CalibrationError(f"{source} holds no rows", expected="at least one")
    labels = [row.get("label") for row in rows]
    rows = [rows[index] for index in drawn(len(rows), count, generator)]
    missing = sorted({name for row in rows for name, value in row.items() if value is None} & {*FORMS_COLUMNS})
    if missing:
        raise CalibrationError(f"rows of {source}", found=f"empty {missing}", expected="a value in every row")
    for row in rows:
        if not isinstance(row.get("text", ""), str):
            raise CalibrationError(f"column 'text' of {source}", found=repr(row["text"])[:60], expected="text")
    return rows, LabelColumn(names, labels)


def _read_images(folder: Path, count: int, generator: torch.Generator | None) -> tuple[list[Row], LabelColumn]:
    files, classes = image_files(folder)
    names = sorted(set(classes)) if classes is not None else None
    rows: list[Row] = []
    for index in drawn(len(files), count, generator):
        label = {} if classes is None or names is None else {"label": names.index(classes[index])}
        rows.append({"image": {"path": str(files[index]), "bytes": None}, **label})
    return rows, LabelColumn(names, range(len(names or ())))


def drawn(total: int, count: int, generator: torch.Generator | None) -> list[int]:
    """The numbers of the rows that are kept, in order."""
    if total <= count:
        return list(range(total))
    return torch.randperm(total, generator=generator)[:count].sort().values.tolist()


def _cell(text: str) -> str | None:
    return text or None


CSV: dict[str, Any] = {
    "index_col": False,  # where rows have a field more than the header, pandas takes the first for an index
    "keep_default_na": False,  # "None" and "NA" are words
    "na_values": [""],
    "converters": dict.fromkeys(("text", "prompt", "completion"), _cell),  # "007" is text
}
FORMS_COLUMNS = ("messages", "prompt", "completion", "text", "label", "image")


def _open(source: str, most: int) -> Any:
    """The rows of a source, of which at most so many will be read."""
    import datasets

    path = Path(source)
    if path.is_file():
        suffix = path.suffix.lower()
        options: dict[str, Any] = {}
        if BUILDERS[suffix] == "csv":
            options = {**CSV, "sep": "\t" if suffix == ".tsv" else ","}
            _check_fields(path, options["sep"], most)
        file = _literal(path)
        return datasets.load_dataset(BUILDERS[suffix], data_files=file, split="train", streaming=True, **options)
    if path.is_dir():
        # with `data_dir` alone, names with the word test in them make another split
        files = {"train": f"{_literal(train_folder(path))}/**"}
        return datasets.load_dataset("imagefolder", data_files=files, split="train", streaming=True)
    if path.suffix.lower() in {*BUILDERS, *IMAGES, *BINARY, ".txt"} or not re.fullmatch(HUB_ID, source):
        raise CalibrationError(
            f"no file or folder {source}", do="Give one that is there, or the id of a Hugging Face data set."
        )
    name, _, split = source.partition(":")
    return datasets.load_dataset(name, split=split or "train", streaming=True)


def _literal(path: Path) -> str:
    """A path as a pattern that stands for nothing else: ``data[1].csv`` is not ``data1.csv``."""
    return glob.escape(os.path.abspath(path))


def _check_fields(path: Path, separator: str, most: int) -> None:
    """Refuse a table with doubled columns, or with more fields in a row than columns: pandas drops such text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream, _long_fields():
            rows = csv.reader(stream, delimiter=separator)
            header = next(rows, [])
            if doubled := [name for name, count in Counter(header).items() if count > 1 and name in FORMS_COLUMNS]:
                raise CalibrationError(f"columns of {path}", found=f"two columns {doubled[0]!r}", do="Leave one.")
            for row in itertools.islice(rows, most):
                if len(row) > len(header):
                    raise CalibrationError(
                        f"line {rows.line_num} of {path}",
                        found=f"{len(row)} fields, more than the header has",
                        expected=f"one field per column: {', '.join(header)}",
                        do="Put quotes around texts with the separator in them, and name every column in the header.",
                    )
    except UnicodeDecodeError as error:
        raise CalibrationError(f"cannot read {path}", found=error, do="Save it as UTF-8.") from error
    except csv.Error as error:
        raise CalibrationError(f"cannot read {path}", found=error) from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read texts of any length."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def is_text(path: Path) -> bool:
    """Whether there is such a file and it is to be read as text."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix in BUILDERS:
        return False
    if suffix in IMAGES:
        raise CalibrationError(f"{path} is one image", expected="a folder of images", do=f"Give {path.parent}.")
    if suffix in BINARY:
        raise CalibrationError(
            f"cannot read {path}",
            found=f"a {suffix} file",
            do="Save tensors as .safetensors, one row per sample, and tables as .parquet or .csv.",
        )
    return True
