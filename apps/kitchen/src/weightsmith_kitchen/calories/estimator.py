"""Calories of a list of ingredients, with an explanation of each item, and corrections in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightsmith_kitchen.calories.grammar import ListItem, parse_list
from weightsmith_kitchen.calories.retrieve import CalorieIndex, Embedding, Match
from weightsmith_kitchen.calories.table import CalorieTable
from weightsmith_kitchen.corrections import ADD, INSTEAD, REPLACE, WITHOUT, parts
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.quantity import Quantity

__all__ = ["CalorieEstimator", "CalorieReport"]


@dataclass(frozen=True, slots=True)
class CalorieReport:
    """Items with their energies.

    Attributes
    ----------
    text : str
        The list that was read.
    items : tuple of Match
        In the order of the list.
    servings : float or None
        What the list makes; None where nobody said so.
    """

    text: str
    items: tuple[Match, ...]
    servings: float | None = None

    @property
    def kcal(self) -> float:
        """Sum over the items that are known."""
        return sum(match.kcal for match in self.items)

    @property
    def interval(self) -> tuple[float, float]:
        """The sum at the least and at the most of the amounts."""
        return sum(match.interval[0] for match in self.items), sum(match.interval[1] for match in self.items)

    @property
    def kcal_per_serving(self) -> float | None:
        """None where the number of servings is not known: a list is of a recipe, a photo shows a serving."""
        return None if self.servings is None else self.kcal / self.servings

    @property
    def unmatched(self) -> tuple[Match, ...]:
        """Items without an energy."""
        return tuple(match for match in self.items if not match.known)

    @property
    def lower_bound(self) -> bool:
        """Items are missing in the total."""
        return bool(self.unmatched)

    def __str__(self) -> str:
        lines = [
            f"{match.kcal:8.1f}  {match.item.text}  [{match.row}] {match.why}"
            if match.known
            else f"       ?  {match.item.text}  {match.why}"
            for match in self.items
        ]
        return "\n".join([*lines, f"{self.kcal:8.1f}  kcal{' at least' if self.lower_bound else ''}"])


class CalorieEstimator:
    """From a list of ingredients, or from what a model writes about a photo, to calories.

    Parameters
    ----------
    table : CalorieTable
        The energies.
    reader : callable, optional
        From anything, such as a photo, to the text of the list. Without it the estimator takes texts.
    floor, embed
        See `CalorieIndex`.

    Examples
    --------
    >>> table = CalorieTable.from_rows([("cup rice", 205), ("tablespoon butter", 102)])
    >>> estimator = CalorieEstimator(table)
    >>> report = estimator("1 cup of rice, 3 tablespoons of butter")
    >>> report.kcal, estimator.correct(report, "1 tablespoon of butter instead of 3").kcal
    (511.0, 307.0)
    """

    def __init__(
        self,
        table: CalorieTable,
        *,
        reader: Callable[[Any], str] | None = None,
        floor: float = 0.5,
        embed: Embedding | None = None,
    ) -> None:
        self.table, self.reader = table, reader
        self.index = CalorieIndex(table, floor=floor, embed=embed)

    def __call__(self, source: Any, *, servings: float | None = None) -> CalorieReport:
        """Estimate one list; `servings` is a number > 0.

        Raises
        ------
        RecipeError
            If there is no item, or the number of servings is not positive.
        """
        return self.batch([source], servings=servings)[0]

    def batch(self, sources: Sequence[Any], *, servings: float | None = None) -> list[CalorieReport]:
        """Estimate many lists; the items of all of them are looked up at once."""
        if servings is not None and not 0 < servings < float("inf"):
            raise RecipeError("servings", found=str(servings), expected="a number > 0")
        texts = [self.reader(source) if self.reader is not None else source for source in sources]
        lists = [parse_list(text) for text in texts]
        for text, items in zip(texts, lists, strict=True):
            if not items:
                raise RecipeError("list of ingredients", found=repr(text[:60]), expected="at least one item")
        found = iter(self.index.look_up([item for items in lists for item in items]))
        return [
            CalorieReport(text, tuple(next(found) for _ in items), servings)
            for text, items in zip(texts, lists, strict=True)
        ]

    def correct(self, report: CalorieReport, text: str) -> CalorieReport:
        """Change items in words: "2 cups of rice instead of 1", "no butter", "add 1 cup of milk", "2 cups of rice".

        Parameters
        ----------
        report : CalorieReport
            Stays as it is.
        text : str
            Corrections between commas or semicolons. An amount of an ingredient that is listed replaces it.

        Raises
        ------
        RecipeError
            If a correction is not understood or names nothing that is listed; nothing is then changed.
        """
        items = [match.item for match in report.items]
        corrections = parts(text)
        if not corrections:
            raise RecipeError("correction", found=repr(text), expected="such as 'no butter'")
        for part in corrections:
            self._correct(items, part)
        matches = tuple(self.index.look_up(items))
        return CalorieReport(", ".join(item.text for item in items), matches, report.servings)

    def _correct(self, items: list[ListItem], part: str) -> None:
        if match := WITHOUT.match(part):
            del items[self._place(items, match["old"])]
        elif match := REPLACE.match(part) or INSTEAD.match(part):
            new, old = _one(match["new"]), _one(match["old"])
            # "2 cups of rice instead of 1" names the ingredient once.
            place = self._place(items, old.ingredient or new.ingredient)
            items[place] = _filled(new, items[place], same=not old.ingredient)
        elif match := ADD.match(part):
            items.append(_with_amount(_one(match["new"]), part))
        else:
            new = _with_amount(_one(part), part)
            place = self._place(items, new.ingredient)
            items[place] = _filled(new, items[place], same=True)

    def _place(self, items: Sequence[ListItem], name: str) -> int:
        name = _one(name).ingredient
        wanted = [place for place, item in enumerate(items) if item.ingredient == name]
        if not wanted:
            table = CalorieTable({("item", item.ingredient): 0.0 for item in items}, {})
            index = CalorieIndex(table)
            scores = index.similarities([name])[0]
            if len(scores) and scores.max() >= self.index.floor:
                best = index.ingredients[int(scores.argmax())]
                wanted = [place for place, item in enumerate(items) if item.ingredient == best]
        if len(wanted) != 1:
            listed = ", ".join(item.text for item in items)
            raise RecipeError(
                "correction", found=f"{name!r} is listed {len(wanted)} times", expected=f"one item of: {listed}"
            )
        return wanted[0]


def _one(text: str) -> ListItem:
    items = parse_list(text)
    if len(items) != 1:
        raise RecipeError("correction", found=repr(text), expected="one item")
    return items[0]


def _with_amount(item: ListItem, part: str) -> ListItem:
    if item.amount is None or item.error is not None:
        raise RecipeError("correction", found=repr(part), expected="an amount and an ingredient, or 'no <ingredient>'")
    return item


def _filled(new: ListItem, old: ListItem, *, same: bool) -> ListItem:
    """What the new item leaves open is taken from the old one."""
    amount: Quantity | None = new.amount if new.amount is not None else old.amount
    unit = new.unit or (old.unit if same or new.amount is None else "")
    ingredient = new.ingredient or old.ingredient
    made = replace(
        new, amount=amount, unit=unit, ingredient=ingredient, error=None if amount is not None else old.error
    )
    return replace(made, text=f"{amount} {made.key}" if amount is not None else made.key)
