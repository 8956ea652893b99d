"""Labeled photos of a folder or a table, split so that no plate is in two parts.

Several photos often show one plate, one shelf or one portion. If some are trained on and others tested, the score says
how well the plate is remembered. Photos of one ``group`` therefore stay together, photos that look the same are put
into one group, and all boxes of one photo are one group.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from weightsmith.core.progress import track
from weightsmith_kitchen.batch import PHOTOS
from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.boxes import Box, as_box
from weightsmith_kitchen.photos.images import near_duplicates, open_photo, original_size, photo_hash

__all__ = ["PARTS", "Example", "FoodFolder", "FoodPhotos", "grouped_split", "join_duplicates"]

PARTS = ("train", "validation", "test")
PART_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
FILE_COLUMNS, LABEL_COLUMNS = ("file", "path", "image", "photo", "filename"), ("label", "class", "food")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Example:
    """One labeled photo, or one labeled box of a photo.

    Attributes
    ----------
    photo : str or bytes
        Path of the file, or its bytes.
    label : str
        The food.
    box : Box, optional
        Where it is, in pixels of the upright photo.
    group : str
        Examples of one group stay in one part; by default the photo is its own group, by its name if it has one.
    name : str
        What it is called in messages.
    """

    photo: str | bytes
    label: str
    box: Box | None = None
    group: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.photo if isinstance(self.photo, str) else "(bytes)")
            own = self.photo if isinstance(self.photo, str) else blake2b(self.photo, digest_size=16).hexdigest()
        else:
            own = self.name
        if not self.group:
            object.__setattr__(self, "group", own)


class FoodPhotos(Sequence[Example]):
    """Examples and the classes that they are of, in a fixed order.

    Parameters
    ----------
    examples : sequence of Example
        The photos.
    classes : sequence of str, optional
        Names of the classes; by default the labels that occur, sorted.

    Raises
    ------
    PhotoError
        If a label is not among the classes.

    Examples
    --------
    >>> photos = FoodPhotos([Example("a.jpg", "rice"), Example("b.jpg", "peas")])
    >>> photos.classes, photos.targets.tolist()
    (('peas', 'rice'), [1, 0])
    """

    def __init__(self, examples: Sequence[Example], classes: Sequence[str] | None = None) -> None:
        self.examples = tuple(examples)
        self.classes = tuple(classes) if classes is not None else tuple(sorted({x.label for x in self.examples}))
        place = {label: number for number, label in enumerate(self.classes)}
        unseen = sorted({x.label for x in self.examples} - set(place))
        if unseen:
            raise PhotoError(
                "labels that are not in the training photos",
                found=unseen,
                expected=f"of the {len(place)} classes",
                do="Add training photos of them, or leave these out.",
            )
        self.targets = np.array([place[x.label] for x in self.examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def num_classes(self) -> int:
        """How many classes."""
        return len(self.classes)

    def subset(self, places: Sequence[int] | np.ndarray) -> FoodPhotos:
        """Some of the examples, with all classes."""
        return FoodPhotos([self.examples[int(place)] for place in places], self.classes)


class FoodFolder:
    """Labeled photos on disk, in a training, a validation and a test part.

    Parameters
    ----------
    source : path-like
        A folder with a folder of photos for each class (they may lie in folders ``train``, ``val`` and ``test``); or a
        table: CSV, JSON (a list of objects) or JSON lines. Columns: ``file`` and ``label``, and optionally ``box``
        (four numbers, or columns ``xmin`` to ``ymax``), ``group`` and ``split``. Paths are relative to the table.
    boxes : path-like or mapping, optional
        For a folder: from the path of a photo, relative to the folder, to its box; or a JSON file of that.
    normalized : bool, default: False
        The boxes are shares of the photo's sides, not pixels.
    shares : tuple of float, default: (0.7, 0.15, 0.15)
        Sizes of the three parts, where the source does not tell them.
    duplicates : {"group", "ignore"}, default: "group"
        Whether photos that look the same (by :func:`~weightsmith_kitchen.photos.images.photo_hash`) become one group.
    seed : int, default: 0
        Of the split.

    Attributes
    ----------
    train, validation, test : FoodPhotos
        The parts.
    classes : tuple of str
        Names of the classes, sorted.
    leaks : list of tuple of str
        Pairs of photos that look the same and are in different parts: only where the source tells the parts.

    Raises
    ------
    PhotoError
        If there are no photos, a class has fewer than two, a label of the test is not trained, a file or a column is
        missing, or a box is not inside its photo.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        boxes: str | os.PathLike[str] | Mapping[str, Sequence[float]] | None = None,
        normalized: bool = False,
        shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
        duplicates: Literal["group", "ignore"] = "group",
        seed: int = 0,
    ) -> None:
        path = Path(source)
        if not path.exists():
            raise PhotoError(f"photos {path}", found="nothing there", expected="a folder or a table")
        rows = _folder_rows(path, _boxes(boxes)) if path.is_dir() else _table_rows(path)
        if not rows:
            raise PhotoError(
                f"no photos in {path}", expected=f"a folder for each class, files {', '.join(PHOTOS[:4])} ..."
            )
        examples = [_checked(row, normalized) for row in rows]
        parts = [row["part"] for row in rows]
        self.leaks: list[tuple[str, str]] = []
        known = [part for part in parts if part]
        if known and len(known) < len(parts):
            missing = next(x.name for x, part in zip(examples, parts, strict=True) if not part)
            raise PhotoError(f"photo {missing} has no split", expected="one for all photos or for none")
        _refuse_rare([x for x, part in zip(examples, parts, strict=True) if part in ("", "train")], path)
        pairs = _same(examples) if duplicates == "group" else []
        if known:
            self.leaks = [(examples[a].name, examples[b].name) for a, b in pairs if parts[a] != parts[b]]
        else:
            examples = _joined(examples, pairs)
            parts = grouped_split([x.label for x in examples], [x.group for x in examples], shares=shares, seed=seed)
        held = {
            part: [x for x, own in zip(examples, parts, strict=True) if own == part] for part in PARTS
        }  # in the order of the source
        if not held["train"]:
            raise PhotoError(f"no training photos in {path}", found=dict(Counter(parts)))
        self.train = FoodPhotos(held["train"])
        self.classes = self.train.classes
        self.validation = FoodPhotos(held["validation"], self.classes)
        self.test = FoodPhotos(held["test"], self.classes)

    @property
    def num_classes(self) -> int:
        """How many classes."""
        return len(self.classes)


def grouped_split(
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> list[str]:
    """Deal groups to parts so that every class is spread as the shares say, as far as its groups allow.

    Groups of rare classes are dealt first, each to the part that lacks most of its photos; every class has a group in
    the training part.

    Parameters
    ----------
    labels, groups : sequence of str
        Of each example.
    shares : sequence of float
        Sizes of the training, validation and test part; they are scaled to a sum of 1.
    seed : int, default: 0
        Of the order in which groups are dealt.

    Returns
    -------
    list of str
        ``"train"``, ``"validation"`` or ``"test"`` for each example.

    Examples
    --------
    >>> parts = grouped_split(["rice"] * 4 + ["peas"] * 4, ["a", "a", "b", "b", "c", "c", "d", "d"], shares=(1, 0, 1))
    >>> parts.count("train"), parts.count("test"), parts[0] == parts[1]
    (4, 4, True)
    """
    total = float(sum(shares))
    if len(shares) != len(PARTS) or min(shares) < 0 or shares[0] <= 0 or total <= 0:
        raise PhotoError("shares of the parts", found=list(shares), expected="three numbers >= 0, the first above 0")
    wanted = np.asarray(shares, dtype=float) / total
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        members[group][label] += 1
    groups_of = Counter(label for counts in members.values() for label in counts)
    sizes = Counter(labels)
    order = [sorted(members)[place] for place in np.random.default_rng(seed).permutation(len(members))]
    # rare classes first; among equals large groups first, for small ones fill the gaps
    order.sort(key=lambda group: (min(groups_of[label] for label in members[group]), -sum(members[group].values())))
    given: dict[str, np.ndarray] = {label: np.zeros(len(PARTS)) for label in sizes}
    place_of: dict[str, int] = {}
    for group in order:
        counts = members[group]
        lacking = sum(
            (wanted * sizes[label] - given[label]) * count / sizes[label] for label, count in counts.items()
        ) + np.zeros(len(PARTS))
        if any(given[label][0] == 0 for label in counts):
            choice = 0
        else:
            lacking[wanted == 0] = -np.inf
            choice = int(np.argmax(lacking))
        place_of[group] = choice
        for label, count in counts.items():
            given[label][choice] += count
    return [PARTS[place_of[group]] for group in groups]


def join_duplicates(examples: Sequence[Example]) -> list[Example]:
    """The examples, with those whose photos look the same in one group."""
    return _joined(examples, _same(examples))


def _folder_rows(folder: Path, boxes: Mapping[str, Any]) -> list[dict[str, Any]]:
    tops = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    parts = {top: PART_NAMES.get(top.name.lower(), "") for top in tops}
    split = bool(tops) and all(parts.values()) and "train" in parts.values()
    rows = []
    for top in tops:
        for label in sorted(path for path in top.iterdir() if path.is_dir()) if split else [top]:
            for file in sorted(label.rglob("*")):
                if file.suffix.lower() in PHOTOS and file.is_file() and not file.name.startswith("."):
                    key = file.relative_to(folder).as_posix()
                    found = {"file": str(file), "label": label.name, "box": boxes.get(key), "group": ""}
                    rows.append({**found, "part": parts[top] if split else "", "name": key})
    if unknown := sorted(set(boxes) - {row["name"] for row in rows}):
        raise PhotoError(f"boxes of {folder}", found=f"{len(unknown)} for no photo, such as {unknown[0]}")
    return rows


def _boxes(boxes: str | os.PathLike[str] | Mapping[str, Sequence[float]] | None) -> Mapping[str, Any]:
    if boxes is None or isinstance(boxes, Mapping):
        return boxes or {}
    found = _json(Path(boxes))
    if not isinstance(found, dict):
        raise PhotoError(f"boxes {boxes}", found=type(found).__name__, expected="an object: photo to box")
    return found


def _table_rows(table: Path) -> list[dict[str, Any]]:
    ending = table.suffix.lower()
    if ending == ".csv":
        try:
            with table.open(encoding="utf-8-sig", newline="") as file:
                raw: Any = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise PhotoError(f"table {table} cannot be read", found=error, expected="CSV in UTF-8") from error
    elif ending in (".jsonl", ".ndjson"):
        raw = [_parsed(line, f"{table}, line {n}") for n, line in enumerate(_text(table).splitlines(), 1) if line]
    elif ending == ".json":
        raw = _json(table)
    else:
        raise PhotoError(f"photos {table}", found=f"a file {ending or 'without an ending'}", expected=".csv or .json")
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise PhotoError(f"table {table}", found=type(raw).__name__, expected="a list of objects")
    return [_row(row, number, table) for number, row in enumerate(raw, 1)]


def _row(row: Mapping[str, Any], number: int, table: Path) -> dict[str, Any]:
    where = f"row {number} of {table}"
    file, label = (
        next((str(row[name]).strip() for name in names if row.get(name) not in (None, "")), "")
        for names in (FILE_COLUMNS, LABEL_COLUMNS)
    )
    if not file or not label:
        lacking = "file" if not file else "label"
        raise PhotoError(f"{where} has no {lacking}", found=sorted(map(str, row)), expected="columns file and label")
    box: Any = row.get("box")
    if box in (None, "") and row.get("xmin") not in (None, ""):
        box = [row.get(corner) for corner in CORNERS]
    if isinstance(box, str):
        box = box.replace(",", " ").strip("[]() ").split() or None
    part = str(row.get("split") or "").strip().lower()
    if part and part not in PART_NAMES:
        raise PhotoError(f"{where}: split", found=part, expected=", ".join(PART_NAMES))
    path = table.parent / file
    group = str(row.get("group") or "")
    return {
        "file": str(path),
        "label": label,
        "box": box or None,
        "group": group,
        "part": PART_NAMES.get(part, ""),
        "name": file,
    }


def _checked(row: Mapping[str, Any], normalized: bool) -> Example:
    """The example of a row; the box is checked against the photo's size, which is read from its header."""
    if not Path(row["file"]).is_file():
        raise PhotoError(f"photo {row['name']}", found="no such file", do="Paths are relative to the table.")
    box = None
    if row["box"] is not None:
        size = original_size(open_photo(row["file"], side=1, name=row["name"]))
        box = as_box(row["box"], size, normalized=normalized, name=row["name"])
    return Example(row["file"], row["label"], box, row["group"] or row["file"], row["name"])


def _refuse_rare(examples: Sequence[Example], path: Path) -> None:
    photos: dict[str, set[Any]] = defaultdict(set)
    for example in examples:
        photos[example.label].add(example.photo)
    rare = sorted(label for label, files in photos.items() if len(files) < 2)
    if rare:
        raise PhotoError(
            f"classes of {path} with fewer than two photos to train on",
            found=rare,
            do="Add photos of them or take them out.",
        )


def _same(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Pairs of examples of different photos that look the same."""
    first: dict[str | bytes, int] = {}
    for place, example in enumerate(examples):
        first.setdefault(example.photo, place)
    places = list(first.values())
    hashes = [
        photo_hash(open_photo(examples[place].photo, side=32, name=examples[place].name))
        for place in track(places, "looking for photos that are the same")
    ]
    return [(places[a], places[b]) for a, b in near_duplicates(hashes)]


def _joined(examples: Sequence[Example], pairs: Sequence[tuple[int, int]]) -> list[Example]:
    """The examples with the groups of each pair made one."""
    parent = {example.group: example.group for example in examples}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for a, b in pairs:
        first, second = root(examples[a].group), root(examples[b].group)
        parent[max(first, second)] = min(first, second)
    return [replace(example, group=root(example.group)) for example in examples]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PhotoError(f"{path} cannot be read", found=error, expected="text in UTF-8") from error


def _json(path: Path) -> Any:
    return _parsed(_text(path), str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PhotoError(f"{where} is no JSON", found=error) from error
