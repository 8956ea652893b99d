"""Look items up in the table: exact key, other unit, similar ingredient, or unknown.

An ingredient that is not in the table is compared by the cosine of its pairs and triples of letters, weighted by how
rare they are in the table. Only rows whose unit converts to the item's unit are candidates: "1 tablespoon of buter"
never takes the energy of a pound of butter. All items are compared in one matrix product.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from weightsmith_kitchen.calories.grammar import ListItem
from weightsmith_kitchen.calories.table import CalorieTable
from weightsmith_kitchen.errors import NutritionError
from weightsmith_kitchen.nutrition.encoder import minilm
from weightsmith_kitchen.units import find_unit

__all__ = ["CalorieIndex", "Embedding", "Match", "minilm"]

Embedding = Callable[[Sequence[str]], npt.ArrayLike]
"""Texts to vectors, (N, F)."""
How = Literal["exact", "converted", "similar", "unknown"]


@dataclass(frozen=True, slots=True)
class Match:
    """An item and the row that gives its energy.

    Attributes
    ----------
    item : ListItem
        What was looked up.
    how : {"exact", "converted", "similar", "unknown"}
        The row has the item's key; its ingredient in another unit; a similar ingredient; there is none.
    row : str or None
        The key of the row, as written in the table.
    per_unit : float
        kcal in one of the item's units; 0 where the row is unknown.
    similarity : float
        Of the ingredients, 0 to 1.
    why : str
        The explanation.
    """

    item: ListItem
    how: How
    row: str | None
    per_unit: float
    similarity: float
    why: str

    @property
    def known(self) -> bool:
        """It has an energy."""
        return self.row is not None

    @property
    def kcal(self) -> float:
        """Energy at the middle of the amount."""
        return self.per_unit * float(self.item.amount.middle) if self.known and self.item.amount else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Energy at the least and at the most of the amount."""
        if not self.known or self.item.amount is None:
            return 0.0, 0.0
        return self.per_unit * float(self.item.amount.low), self.per_unit * float(self.item.amount.high)


class CalorieIndex:
    """The table's ingredients as vectors.

    Parameters
    ----------
    table : CalorieTable
        The rows.
    floor : float, default: 0.5
        Least similarity of another ingredient, in (0, 1]; below it an item is unknown.
    embed : callable, optional
        Texts to vectors (N, F), such as `minilm`. Its cosine is then used where it is above that of the letters.

    Raises
    ------
    NutritionError
        If the floor is outside (0, 1], or the vectors have another shape or are not finite.

    Examples
    --------
    >>> from weightsmith_kitchen.calories import parse_list
    >>> table = CalorieTable.from_rows([("cup milk", 149), ("cup rice", 205), ("pound butter", 3252)])
    >>> for match in CalorieIndex(table).look_up(parse_list("2 tablespoons of milks, 4 oz butter, 1 cup of buter")):
    ...     print(match.how, match.row, round(match.kcal, 1))
    similar cup milk 18.6
    converted pound butter 813.0
    unknown None 0.0
    """

    def __init__(self, table: CalorieTable, *, floor: float = 0.5, embed: Embedding | None = None) -> None:
        if not 0 < floor <= 1:
            raise NutritionError("floor", found=str(floor), expected="a similarity in (0, 1]")
        self.table, self.floor, self.embed = table, floor, embed
        self.ingredients = table.ingredients
        self._units: dict[str, list[str]] = {}
        for unit, name in table.rows:
            self._units.setdefault(name, []).append(unit)
        counts = [_grams(name) for name in self.ingredients]
        documents = Counter(gram for grams in counts for gram in grams)
        self._columns = {gram: place for place, gram in enumerate(documents)}
        self._weights = np.array([1 + math.log(len(counts) / count) for count in documents.values()])
        # A gram that no ingredient of the table has counts as the rarest one.
        self._rarest = 1 + math.log(len(counts))
        self._vectors_IV = self._vectors(counts)
        self._embedded_IF = self._embeddings(self.ingredients) if embed is not None else None
        self._convertible: dict[str, npt.NDArray[np.bool_]] = {}

    def similarities(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """Similarity of names to the table's ingredients, (N, I), each 0 to 1."""
        found = self._vectors([_grams(name) for name in names]) @ self._vectors_IV.T
        if self._embedded_IF is not None and names:
            found = np.maximum(found, self._embeddings(names) @ self._embedded_IF.T)
        return np.clip(found, 0, 1)

    def look_up(self, items: Sequence[ListItem]) -> list[Match]:
        """Find the row of each item; see the class.

        Parameters
        ----------
        items : sequence of ListItem
            Items with errors are unknown.
        """
        found: dict[int, Match] = {}
        open_items: list[int] = []
        for place, item in enumerate(items):
            match = self._direct(item)
            if match is None:
                open_items.append(place)
            else:
                found[place] = match
        if open_items:
            scores = self.similarities([items[place].ingredient for place in open_items])
            for place, row in zip(open_items, scores, strict=True):
                found[place] = self._similar(items[place], row)
        return [found[place] for place in range(len(items))]

    def _direct(self, item: ListItem) -> Match | None:
        if item.error is not None or item.amount is None:
            return Match(item, "unknown", None, 0.0, 0.0, item.error or "no amount")
        if not item.unit:
            return Match(item, "unknown", None, 0.0, 0.0, "no unit: the table has energies per unit")
        place = item.unit, item.ingredient
        if place in self.table.rows:
            kcal = self.table.rows[place]
            return Match(item, "exact", self.table.keys[place], kcal, 1.0, f"{kcal:g} kcal in 1 {item.unit}")
        priced = self._price(item.unit, item.ingredient) if item.ingredient in self._units else None
        return Match(item, "converted", *priced[:2], 1.0, priced[2]) if priced is not None else None

    def _price(self, unit: str, name: str) -> tuple[str, float, str] | None:
        """Row, kcal per unit and explanation from the nearest unit of an ingredient that converts to this one."""
        if (unit, name) in self.table.rows:
            kcal = self.table.rows[unit, name]
            return self.table.keys[unit, name], kcal, f"{kcal:g} kcal in 1 {unit}"
        factors = {other: factor for other in self._units[name] if (factor := _factor(unit, other)) is not None}
        if not factors:
            return None
        other = min(factors, key=lambda unit: abs(math.log(factors[unit])))
        kcal = self.table.rows[other, name]
        why = f"{kcal:g} kcal in 1 {other}, 1 {unit} = {factors[other]:.4g} {other}"
        return self.table.keys[other, name], kcal * factors[other], why

    def _similar(self, item: ListItem, scores: npt.NDArray[np.float64]) -> Match:
        allowed = self._mask(item.unit)
        if not allowed.any():
            return Match(item, "unknown", None, 0.0, 0.0, f"no row has a unit that {item.unit} converts to")
        best = int(np.where(allowed, scores, -1).argmax())
        score, name = float(scores[best]), self.ingredients[best]
        priced = self._price(item.unit, name) if score >= self.floor else None
        if priced is None:
            least = math.floor(100 * score) / 100  # never shown as large as the floor
            why = f"the nearest ingredient in such a unit is {name!r}, similarity {least:.2f} < {self.floor:g}"
            return Match(item, "unknown", None, 0.0, score, why)
        return Match(item, "similar", *priced[:2], score, f"taken as {name!r}, similarity {score:.2f}: {priced[2]}")

    def _mask(self, unit: str) -> npt.NDArray[np.bool_]:
        """Which ingredients have a row in a unit that this one converts to, (I,)."""
        if unit not in self._convertible:
            self._convertible[unit] = np.array(
                [any(_factor(unit, other) is not None for other in self._units[name]) for name in self.ingredients]
            )
        return self._convertible[unit]

    def _vectors(self, counts: Sequence[Counter[str]]) -> npt.NDArray[np.float64]:
        vectors = np.zeros((len(counts), len(self._columns)))
        for vector, grams in zip(vectors, counts, strict=True):
            beyond = 0.0
            for gram, count in grams.items():
                column = self._columns.get(gram)
                if column is None:
                    beyond += (count * self._rarest) ** 2
                else:
                    vector[column] = count * self._weights[column]
            norm = math.sqrt(float(vector @ vector) + beyond)
            vector /= norm or 1.0
        return vectors

    def _embeddings(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        assert self.embed is not None
        vectors = np.asarray(self.embed(list(names)), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(names) or not np.isfinite(vectors).all():
            raise NutritionError(
                "embedding", found=f"shape {vectors.shape}", expected=f"({len(names)}, F), finite numbers only"
            )
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _factor(unit: str, other: str) -> float | None:
    """How many of the other unit one unit is, or None where they do not convert."""
    if unit == other:
        return 1.0
    one, two = find_unit(unit), find_unit(other)
    if one is None or two is None or one.factor is None or two.factor is None or one.kind != two.kind:
        return None
    return float(one.factor / two.factor)


def _grams(name: str) -> Counter[str]:
    """Pairs and triples of letters of each word between blanks: the order of the words does not count."""
    words = [f" {word} " for word in name.lower().split()]
    return Counter(
        word[start : start + size] for word in words for size in (2, 3) for start in range(len(word) + 1 - size)
    )
