"""The nutrition table: search by the names that cooks use, look rows up, add a user's own."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.core.errors import MissingDependencyError
from weightsmith.core.io import atomic_output
from weightsmith.core.progress import stage
from weightsmith_kitchen.errors import NutritionError
from weightsmith_kitchen.foods import Estimate, Food, Portion
from weightsmith_kitchen.nutrition import measures, usda
from weightsmith_kitchen.nutrition.encoder import minilm
from weightsmith_kitchen.nutrition.own import read_csv
from weightsmith_kitchen.nutrition.ranking import (
    Name,
    Rarity,
    default_row,
    known,
    plain,
    rewritten,
    score,
    stems,
    without_liquid,
    words,
)

__all__ = ["Match", "NutritionTable"]

FOODS, VECTORS = "foods.sqlite", "vectors.safetensors"
CANDIDATES = 150
LABELS = 200
"""Rows of branded foods that a density is the median of, at most."""
FEWEST = 5
WIDEST = 3.0
"""Largest ratio of the 90th to the 10th percentile of the weight of a piece."""
LABELED_UNITS = ("piece", "slice", "can", "bottle", "cube")
"""Counted units whose weights are taken from labels. Their packages are often of one serving, those of recipes not."""
SHORTEST = 3
"""Letters of the longest word of a name that products are looked up by."""
LABELED = "labels of products named"
REMEMBERED = 10_000
"""Names whose embedding and row are kept."""
UNSEEN: Any = object()
NEAR = 0.2
"""Rows whose scores differ by no more fit as well."""
BEST = 4.0
"""Score of the row that a short name means by default."""
OWN_BONUS = 2.5
"""A user's row has no embedding, and is preferred to a row of the table with the same words."""


@dataclass(frozen=True, slots=True)
class Match:
    """A row that may be the food, how well its name fits, and whether it fits well enough to be taken for the food."""

    food: Food
    score: float
    known: bool


class NutritionTable:
    """Foods per 100 g, by name.

    Parameters
    ----------
    folder : path-like
        What `build` wrote. `default` makes it once and keeps it in the user's cache folder.

    Examples
    --------
    >>> table = NutritionTable.default()
    >>> table.lookup("caster sugar").name
    'Sugars, granulated'
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / FOODS).is_file():
            raise NutritionError(f"{self.folder}", found=f"no {FOODS}", do="Make it with NutritionTable.build.")
        self._local = threading.local()
        self._own: list[Food] = []
        self._lock = threading.Lock()
        self._encoded: dict[str, NDArray[np.float32]] = {}
        self._found: dict[str, Food | None] = {}
        self._products: dict[str, list[int]] = {}

    @classmethod
    def default(cls) -> NutritionTable:
        """USDA FoodData Central; made in about a minute on first use, then kept in the user's cache folder."""
        from filelock import FileLock
        from platformdirs import user_cache_path

        folder = user_cache_path("weightsmith", ensure_exists=True) / "kitchen" / f"usda-{usda.fingerprint()}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):  # a second process waits for the first
                if not folder.exists():
                    cls.build(folder)
        return cls(folder)

    @classmethod
    def build(cls, folder: str | os.PathLike[str]) -> None:
        """Make the table and its embeddings in a folder, whole or not at all.

        Raises
        ------
        CheckpointError
            If the folder exists, or cannot be written.
        """
        with atomic_output(folder) as scratch:
            usda.build(scratch / FOODS)
            _embed(scratch)

    # --- rows -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._base.execute("SELECT count(*) FROM foods").fetchone()[0]) + len(self._own)

    def get(self, identifier: str) -> Food:
        """The row with an id such as ``"usda:22043"``.

        Raises
        ------
        NutritionError
            If there is none.
        """
        for food in self._own:
            if food.id == identifier:
                return food
        kind, _, row = identifier.partition(":")
        if kind == "labels":
            found = self.label_food(row)
        else:
            found = self._row(int(row)) if kind == "usda" and row.isdecimal() and len(row) < 10 else None
        if found is None:
            raise NutritionError("id of a food", found=repr(identifier), do="Search by name.")
        return found

    def search(self, name: str, *, limit: int = 10, branded: bool = False) -> list[Match]:
        """Rows whose names are nearest to a name, best first; a user's own rows come before others that fit as well.

        Parameters
        ----------
        name : str
            As a cook writes it.
        limit : int, default: 10
            Most rows.
        branded : bool, default: False
            Also branded products.
        """
        query = rewritten(name)
        compared = stems(query)
        if not compared.stems:
            return []
        rows = self._candidates(compared)
        vector = None
        if not any(_has_all(compared, stems(self._names[row])) for row in rows):
            # No row has all the words: its meaning must do. Elsewhere the words decide, in a tenth of the time.
            vector = self._vector(query)
            rows = list(dict.fromkeys([*rows, *self._near(vector)]))
        names = {row: self._names[row] for row in rows}
        if branded:
            names |= self._branded_names(compared)
        ranked = []
        for row, text in names.items():
            similarity = self._similarity(row, vector)
            ranked.append((score(compared, stems(text), similarity, self._rarity), row, similarity))
        first = self._by_name.get(default_row(name) or "")
        if first is not None:
            ranked = [(BEST, first, 1.0), *(item for item in ranked if item[1] != first)]
        ranked.sort(key=lambda item: (-item[0], item[1]))
        matches = []
        for value, row, similarity in ranked[:limit]:
            food = self._row(row)
            if food is not None:
                fits = row == first or known(compared, stems(food.name), similarity, self._rarity)
                matches.append(Match(food, value, fits))
        for food in self._own:
            own = stems(food.name)
            if known(compared, own, 0.0, self._rarity):
                matches.append(Match(food, score(compared, own, 0.0, self._rarity) + OWN_BONUS, True))
        return sorted(matches, key=lambda match: -match.score)[:limit]

    def lookup(self, name: str) -> Food | None:
        """The row that a name means; None if none is near enough.

        A row without an energy, or with one that contradicts itself, is passed over where another fits as well. A food
        that only branded products have is taken from their labels, see `label_food`.
        """
        found = self._found.get(name, UNSEEN)
        if found is UNSEEN:
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            found = self._found[name] = self._looked_up(name)
        return found

    def _looked_up(self, name: str) -> Food | None:
        matches = [match for match in self.search(name, limit=12) if match.known]
        food = without_liquid(plain(name)) if default_row(name) is None else None
        if food and not (matches and _has_all(stems(rewritten(name)), stems(matches[0].food.name))):
            return self.lookup(food)  # tomatoes in juice are no tomato juice
        if not matches:
            return self.label_food(name)
        near = [match.food for match in matches if match.score > matches[0].score - NEAR]
        sound = [food for food in near if food.kcal is not None and set(food.notes) <= {usda.COMPUTED}]
        return (sound or [match.food for match in matches if match.food.kcal is not None] or near)[0]

    def nearest(self, name: str, limit: int = 3) -> list[str]:
        """Names of the rows nearest to a name, for messages."""
        return list(dict.fromkeys(match.food.name for match in self.search(name, limit=limit * 2)))[:limit]

    def unknown_words(self, name: str) -> list[str]:
        """Words of a name that no row has, in their singular."""
        return [stem for stem in dict.fromkeys(words(rewritten(name))) if stem not in self._rarity]

    # --- household measures -----------------------------------------------------------------------------------------

    def portions(self, name: str) -> tuple[Portion, ...]:
        """What household measures of a food weigh: from USDA's household weights, else from labels of products.

        A density is given as the weight of one milliliter.
        """
        curated = measures.find(name)
        have = {portion.unit for portion in curated}
        labels = [] if "milliliter" in have else [self.label_density(name)]
        labels += [self.label_weight(name, unit) for unit in LABELED_UNITS if unit not in have]
        return (*curated, *(portion for portion in labels if portion is not None))

    def label_weight(self, name: str, unit: str) -> Portion | None:
        """Weight of a piece, a can or another counted unit by the labels of branded products, as `label_density`.

        A piece is what a label calls by the food's own name: "1 bagel" of bagels. The median is that of the spread of
        sizes, so a factor of 3 between the percentiles is allowed.
        """
        word = stems(rewritten(name)).last if unit == "piece" else unit
        query = f"SELECT grams FROM measures WHERE unit = '{word}' AND row IN ({{}})"
        return self._spread(name, query, unit, WIDEST) if word.isalpha() else None

    def label_density(self, name: str) -> Portion | None:
        """Weight of one milliliter by the labels of branded products whose names have all words of ``name``.

        The median over up to 200 products, with the 10th and 90th percentile. None from fewer than 5, and where the two
        percentiles differ by more than a factor of 2: then the name stands on drinks and on dry goods.
        """
        query = "SELECT grams FROM measures WHERE unit = 'milliliter' AND row IN ({})"
        return self._spread(name, query, "milliliter", 2.0)

    def _spread(self, name: str, query: str, unit: str, widest: float) -> Portion | None:
        found = self._labels(name, query)
        if found is None:
            return None
        middle = float(np.median(found))
        low, high = (float(bound) for bound in np.percentile(found, [10, 90]))
        if high > widest * low:
            return None
        return Portion(unit, Estimate(middle, low, high), f"median of {len(found)} {LABELED} {name!r}")

    def label_food(self, name: str) -> Food | None:
        """A food by the labels of branded products: the median of their energies; None from fewer than 5 of them."""
        found = self._labels(name, "SELECT kcal FROM foods WHERE kcal IS NOT NULL AND row IN ({})")
        if found is None:
            return None
        low, high = np.percentile(found, [10, 90])
        note = (
            f"energy is the median of {len(found)} {LABELED} {name!r}; four in five have {low:.0f} to {high:.0f} kcal"
        )
        return Food(
            f"labels:{rewritten(name)}", name, float(np.median(found)), "USDA FoodData Central, branded", notes=(note,)
        )

    def _labels(self, name: str, query: str) -> list[float] | None:
        named = stems(rewritten(name))
        rows = self._branded(named, LABELS) if max(map(len, named.stems), default=0) >= SHORTEST else []
        found = [value for (value,) in self._base.execute(query.format(", ".join("?" * len(rows))), rows)]
        return found if len(found) >= FEWEST else None

    # --- a user's own rows ------------------------------------------------------------------------------------------

    def with_foods(self, foods: Sequence[Food]) -> NutritionTable:
        """The same table with further rows, which are preferred; this one stays as it is."""
        other = NutritionTable(self.folder)
        other._own = [*self._own, *foods]
        return other

    def with_csv(self, path: str | os.PathLike[str]) -> NutritionTable:
        """The same table with the rows of a CSV file, which are preferred.

        Parameters
        ----------
        path : path-like
            Columns ``name`` and ``kcal`` per 100 g; optionally ``kj``, ``category``, nutrients as `Food` names them,
            and weights in grams as ``grams_per_cup``, ``grams_per_piece``, ... Each name and each column once.

        Raises
        ------
        NutritionError
            Naming the line and the column that cannot be read, or that stands twice.
        """
        return self.with_foods(list(read_csv(Path(path))))

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _base(self) -> sqlite3.Connection:
        if not hasattr(self._local, "base"):  # a connection per thread
            self._local.base = sqlite3.connect(f"file:{self.folder / FOODS}?mode=ro&immutable=1", uri=True)
        return self._local.base

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "own": self._own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]
        self._own = state["own"]

    def _row(self, row: int) -> Food | None:
        names = ", ".join(usda.NUTRIENTS)
        found = self._base.execute(f"SELECT name, kind, category, kcal, {names} FROM foods WHERE row = ?", (row,))
        values = found.fetchone()
        if values is None:
            return None
        nutrients = {name: value for name, value in zip(usda.NUTRIENTS, values[4:], strict=True) if value is not None}
        kcal, notes = usda.notes_of(values[3], nutrients)
        kind = usda.KINDS[values[1]]
        return Food(
            f"usda:{row}",
            values[0],
            kcal,
            f"USDA FoodData Central, {kind}",
            values[2],
            nutrients,
            (),
            notes,
        )

    @cached_property
    def _names(self) -> dict[int, str]:
        generic = ", ".join(f"'{kind}'" for kind in usda.GENERIC)
        return dict(self._base.execute(f"SELECT row, name FROM foods WHERE kind IN ({generic}) ORDER BY row"))

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: row for row, name in reversed(self._names.items())}

    @cached_property
    def _rarity(self) -> Rarity:
        return Rarity([stems(name) for name in self._names.values()])

    @cached_property
    def _index(self) -> dict[str, list[int]]:
        index: dict[str, list[int]] = {}
        for row, name in self._names.items():
            for stem in stems(name).stems:
                index.setdefault(stem, []).append(row)
        return index

    @cached_property
    def _vectors(self) -> tuple[dict[int, int], NDArray[np.float32]] | None:
        """Place of each row among the embeddings, and these; None without them."""
        path = self.folder / VECTORS
        if not path.is_file():
            return None
        from safetensors.numpy import load_file

        stored = load_file(path)
        return {int(row): place for place, row in enumerate(stored["rows"])}, stored["vectors"].astype(np.float32)

    @cached_property
    def _rows(self) -> list[int]:
        return [] if self._vectors is None else list(self._vectors[0])

    def _vector(self, text: str) -> NDArray[np.float32] | None:
        if self._vectors is None:
            return None
        with self._lock:
            if text not in self._encoded:
                if len(self._encoded) >= REMEMBERED:
                    self._encoded.clear()
                self._encoded[text] = minilm([text])[0]
            return self._encoded[text]

    def _similarity(self, row: int, vector: NDArray[np.float32] | None) -> float:
        if vector is None or self._vectors is None or row not in self._vectors[0]:
            return 0.0
        return float(self._vectors[1][self._vectors[0][row]] @ vector)

    def _candidates(self, query: Name) -> list[int]:
        """Rows that share the rarest words with the query."""
        votes: dict[int, float] = {}
        for stem in query.stems:
            for row in self._index.get(stem, ()):
                first = stem in stems(self._names[row]).first
                votes[row] = votes.get(row, 0.0) + self._rarity[stem] * (1.5 if first else 1.0)
        return nlargest(CANDIDATES, votes, key=votes.__getitem__)

    def _near(self, vector: NDArray[np.float32] | None) -> list[int]:
        """Rows with the nearest embeddings."""
        if vector is None or self._vectors is None:
            return []
        near = np.argpartition(-(self._vectors[1] @ vector), 40)[:40]
        return [self._rows[place] for place in near]

    def _branded(self, query: Name, limit: int) -> list[int]:
        text = " ".join(f'"{stem}"' for stem in sorted(query.stems))
        if not text:
            return []
        found = self._products.get(text)
        if found is None:  # a name is asked for several times: its energy, its density, each household unit
            if len(self._products) >= REMEMBERED:
                self._products.clear()
            most = max(CANDIDATES, LABELS)
            rows = self._base.execute(
                "SELECT rowid FROM branded WHERE branded MATCH ? ORDER BY rank LIMIT ?", (text, most)
            )
            found = self._products[text] = [row for (row,) in rows]
        return found[:limit]

    def _branded_names(self, query: Name) -> dict[int, str]:
        rows = self._branded(query, CANDIDATES)
        marks = ", ".join("?" * len(rows))
        return dict(self._base.execute(f"SELECT row, name FROM foods WHERE row IN ({marks})", rows))


def _has_all(query: Name, row: Name) -> bool:
    return query.stems <= row.stems and query.last in row.first


def _embed(folder: Path) -> None:
    """Write the embeddings of all rows that are not branded; without the encoder's package there are none."""
    from safetensors.numpy import save_file

    base = sqlite3.connect(folder / FOODS)
    generic = ", ".join(f"'{kind}'" for kind in usda.GENERIC)
    found = base.execute(f"SELECT row, name FROM foods WHERE kind IN ({generic}) ORDER BY row").fetchall()
    base.close()
    try:
        minilm([""])
    except MissingDependencyError:
        return
    # Texts of like length share a batch, so that little is padded.
    order = sorted(range(len(found)), key=lambda place: len(found[place][1]))
    vectors = np.zeros((len(found), 384), dtype=np.float16)
    with stage("embedding the names of foods (once)"):
        for start in range(0, len(order), 512):
            places = order[start : start + 512]
            vectors[places] = minilm([found[place][1] for place in places]).astype(np.float16)
    save_file({"rows": np.array([row for row, _ in found], dtype=np.int64), "vectors": vectors}, folder / VECTORS)
