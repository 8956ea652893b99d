"""Ingredients and recipes, as they were written and as they were read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.foods import Estimate, Food
from weightsmith_kitchen.nouns import counted
from weightsmith_kitchen.quantity import Quantity, as_fraction

__all__ = ["Event", "Ingredient", "Recipe", "Span"]

TAKEN_FOR = ": taken for "
"""In the note of an ingredient that is priced by the row of another food, or of a more general one."""

LONGEST = 2_000
"""Characters of a field that is read from JSON."""


@dataclass(frozen=True, slots=True)
class Span:
    """Labeled characters of a text: ``text[start:end]``."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One ingredient: as a line of a recipe has it, and what was found out about it.

    Attributes
    ----------
    name : str
        The food: ``"corned beef"``. Empty if the line names none.
    quantity : Quantity or None
        How many units. None where the line has none, as in "salt to taste".
    unit : str or None
        Name of a unit of `weightsmith_kitchen.units`, the word of the line if that is none, or None for a plain count.
    text : str
        The line.
    size, state, temperature, dry_fresh : str or None
        Such as ``"small"``, ``"chopped"``, ``"frozen"``, ``"fresh"``.
    package : tuple of Quantity and str, or None
        What one unit holds: 14 ounce in "2 (14 ounce) cans".
    alternatives : tuple of (Quantity, str)
        The same amount in other units, as in "300g/10 1/2 oz".
    optional : bool
        The line says so.
    spans : tuple of Span
        What the tagger found in ``text``.
    confidence : float or None
        Lowest probability of a label in the line, from 0 to 1.
    food : Food or None
        The row that energy comes from.
    grams, kcal : Estimate or None
        Weight and energy of the whole amount.
    basis : str
        How the weight was found: "amount", "density of ...", "weight of one clove of ...".
    notes : tuple of str
        What could not be done when it was priced, and why.
    unread : tuple of str
        What the line says that was left out, or was assumed.
    """

    name: str
    quantity: Quantity | None = None
    unit: str | None = None
    text: str = ""
    size: str | None = None
    state: str | None = None
    temperature: str | None = None
    dry_fresh: str | None = None
    package: tuple[Quantity, str] | None = None
    alternatives: tuple[tuple[Quantity, str], ...] = ()
    optional: bool = False
    spans: tuple[Span, ...] = ()
    confidence: float | None = None
    food: Food | None = None
    grams: Estimate | None = None
    kcal: Estimate | None = None
    basis: str = ""
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that a reader must know: what was not read, then what could not be priced."""
        return self.unread + self.notes

    def scale(self, factor: Fraction | float) -> Ingredient:
        """The same ingredient with all amounts times a factor; sizes, temperatures and packages stay.

        Raises
        ------
        RecipeError
            If the factor is not above 0, or not finite.
        """
        if not factor > 0:
            raise RecipeError("factor", found=str(factor), expected="> 0")
        factor = as_fraction(factor, "factor")
        return replace(
            self,
            quantity=None if self.quantity is None else self.quantity * factor,
            alternatives=tuple((amount * factor, unit) for amount, unit in self.alternatives),
            grams=None if self.grams is None else self.grams * float(factor),
            kcal=None if self.kcal is None else self.kcal * float(factor),
        )

    def measured(self) -> str:
        """Amount and unit as a cook writes them: ``"1 1/2 cups"``; empty if the line has no amount.

        Examples
        --------
        >>> Ingredient("flour", Quantity.parse("1.5"), "cup").measured()
        '1 1/2 cups'
        >>> Ingredient("butter", Quantity.parse("1/16"), "cup").measured()
        '1 tablespoon'
        """
        if self.quantity is None:
            return ""
        from weightsmith_kitchen.units import UNITS, convert, find_unit

        amount, known = self.quantity, None if self.unit is None else find_unit(self.unit)
        for name, least in (("cup", Fraction(1, 4)), ("tablespoon", Fraction(1, 2))):
            if known is not None and known.name == name and 0 < amount.high < least:
                smaller = UNITS["tablespoon" if name == "cup" else "teaspoon"]  # as a cook measures it
                amount, known = convert(amount, known, smaller), smaller
        return f"{amount.kitchen()} {known.spelled(amount) if known else self.unit or ''}".strip()

    def called(self) -> str:
        """The name as it follows the amount: ``"egg"`` of one, ``"eggs"`` of several; the line where it has no name.

        Examples
        --------
        >>> eggs = Ingredient("eggs", Quantity.of(2))
        >>> eggs.called(), eggs.scale(Fraction(1, 2)).called()
        ('eggs', 'egg')
        """
        if self.quantity is None or self.unit is not None:
            return self.name or self.text
        return counted(self.name, self.quantity.high > 1) or self.text

    def line(self) -> str:
        """The ingredient as a line that is read to the same amount, exactly; without a unit where it has no amount.

        Examples
        --------
        >>> Ingredient("tomatoes", Quantity.parse("1 1/2"), "can", package=(Quantity.of(14), "ounce")).line()
        '1 1/2 (14 ounce) can tomatoes'
        """
        held = "" if self.package is None else f"({self.package[0]} {self.package[1]})"
        amount = "" if self.quantity is None else str(self.quantity)
        unit = "" if self.quantity is None else self.unit or ""  # "cup flour" is one cup
        parts = (amount, held, unit, self.size or "", self.called() if self.name else "")
        return " ".join(part for part in parts if part) or self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; `from_dict` gives the same ingredient again."""
        return {
            "name": self.name,
            "quantity": None if self.quantity is None else self.quantity.to_json(),
            "unit": self.unit,
            "text": self.text,
            "size": self.size,
            "state": self.state,
            "temperature": self.temperature,
            "dry_fresh": self.dry_fresh,
            "package": None if self.package is None else _stored(self.package),
            "alternatives": [_stored(item) for item in self.alternatives],
            "optional": self.optional,
            "spans": [[span.start, span.end, span.label] for span in self.spans],
            "confidence": self.confidence,
            "food": None if self.food is None else self.food.to_dict(),
            "grams": _numbers(self.grams),
            "kcal": _numbers(self.kcal),
            "basis": self.basis,
            "notes": list(self.notes),
            "unread": list(self.unread),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Ingredient:
        """Read what `to_dict` wrote. Only ``name`` must be there.

        Raises
        ------
        RecipeError
            If a field is not one of `to_dict`'s, or holds something else.
        """
        if not isinstance(stored, Mapping) or not isinstance(stored.get("name"), str):
            raise RecipeError("ingredient", found=str(stored)[:80], expected="a JSON object with the text field 'name'")
        unknown = set(stored) - set(cls.__dataclass_fields__)
        if unknown:
            raise RecipeError(
                f"ingredient {stored['name']!r}",
                found=f"the field {sorted(unknown)[0]!r}",
                expected=", ".join(cls.__dataclass_fields__),
            )
        fields = dict(stored)
        for name in ("unit", "text", "size", "state", "temperature", "dry_fresh", "basis"):
            value = fields.get(name)
            if not (value is None or isinstance(value, str)) or len(value or "") > LONGEST:
                what = f"ingredient {stored['name'][:80]!r}, {name}"
                raise RecipeError(what, found=str(value)[:80], expected="a text")
        try:
            if fields.get("quantity") is not None:
                fields["quantity"] = Quantity.from_json(fields["quantity"])
            if fields.get("package") is not None:
                fields["package"] = _measure(fields["package"])
            fields["alternatives"] = tuple(map(_measure, fields.get("alternatives", ())))
            fields["spans"] = tuple(_span(item) for item in fields.get("spans", ()))
            for name in ("notes", "unread"):
                fields[name] = texts(fields, name)
            if not isinstance(fields.get("confidence"), (int, float, type(None))):
                raise RecipeError("confidence", found=str(fields["confidence"])[:80], expected="a number")
            for name in ("grams", "kcal"):
                if fields.get(name) is not None:
                    fields[name] = Estimate.from_list(fields[name])
            if fields.get("food") is not None:
                fields["food"] = Food.from_dict(fields["food"])
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise RecipeError(f"ingredient {stored['name']!r}", found=error) from None
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Event:
    """One action of an instruction: who, does what, with what.

    Attributes
    ----------
    step : int
        Number of the instruction, from 0.
    process : str
        The verb, with ``"!"`` before it if it is negated.
    object : str
        What it is done to or with.
    subject : str or None
        Who or what does it.
    techniques, utensils, ingredients : tuple of str
        Which of its words are known techniques, utensils, and ingredients of the recipe.
    """

    step: int
    process: str
    object: str
    subject: str | None = None
    techniques: tuple[str, ...] = ()
    utensils: tuple[str, ...] = ()
    ingredients: tuple[str, ...] = ()

    def as_tuple(self) -> tuple[str, ...]:
        """(subject, process, object), or (process, object) where there is no subject."""
        return (self.process, self.object) if self.subject is None else (self.subject, self.process, self.object)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Event:
        """Read what `to_dict` wrote."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as it was read.

    Attributes
    ----------
    ingredients : tuple of Ingredient
        In the order of the recipe.
    instructions : tuple of str
        One text per step.
    title : str
        Its name; may be empty.
    servings : Quantity or None
        How many people it feeds. None if it is not said: nothing is made up.
    makes : tuple of Quantity and str, or None
        How many pieces, or what else, it makes: 24 cookies, 1 loaf. No number of people follows from it.
    events : tuple of Event
        In order of time.
    techniques, utensils : tuple of str
        All that the steps name, in order, each once.
    notes : tuple of str
        What the text has that was left out.
    """

    ingredients: tuple[Ingredient, ...]
    instructions: tuple[str, ...] = ()
    title: str = ""
    servings: Quantity | None = None
    events: tuple[Event, ...] = ()
    techniques: tuple[str, ...] = ()
    utensils: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    makes: tuple[Quantity, str] | None = None

    def scale(self, *, servings: Quantity | Fraction | float) -> Recipe:
        """The recipe for another number of people.

        Raises
        ------
        RecipeError
            If the recipe does not say how many it feeds, or ``servings`` is not above 0.
        """
        wanted = Quantity.of(servings)
        if not wanted.low > 0:
            raise RecipeError("servings", found=str(wanted), expected="> 0")
        if self.servings is None or not self.servings.middle > 0:
            raise RecipeError("servings of the recipe are not known", do="Set `servings` first.")
        factor = wanted.middle / self.servings.middle
        items = tuple(item.scale(factor) for item in self.ingredients)
        makes = None if self.makes is None else (self.makes[0] * factor, self.makes[1])
        return replace(self, servings=wanted, ingredients=items, makes=makes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "title": self.title,
            "servings": None if self.servings is None else self.servings.to_json(),
            "makes": None if self.makes is None else _stored(self.makes),
            "ingredients": [item.to_dict() for item in self.ingredients],
            "instructions": list(self.instructions),
            "events": [event.to_dict() for event in self.events],
            "techniques": list(self.techniques),
            "utensils": list(self.utensils),
            "notes": list(self.notes),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Recipe:
        """Read what `to_dict` wrote.

        Raises
        ------
        RecipeError
            If it is something else.
        """
        try:
            events = tuple(Event.from_dict(item) for item in stored.get("events", ()))
            listed = tuple(Ingredient.from_dict(item) for item in stored["ingredients"])
        except (AttributeError, KeyError, TypeError) as error:
            raise RecipeError(
                "recipe", found=f"{type(error).__name__}: {error}", expected="what to_dict wrote"
            ) from None
        title = stored.get("title", "")
        if not isinstance(title, str):
            raise RecipeError("title", found=str(title)[:80], expected="a text")
        return cls(
            ingredients=listed,
            instructions=texts(stored, "instructions"),
            title=title,
            servings=None if stored.get("servings") is None else Quantity.from_json(stored["servings"]),
            events=events,
            techniques=texts(stored, "techniques"),
            utensils=texts(stored, "utensils"),
            notes=texts(stored, "notes"),
            makes=read_makes(stored.get("makes")),
        )

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote.

        Raises
        ------
        RecipeError
            If it is not a recipe in JSON.
        """
        try:
            return cls.from_dict(json.loads(text))
        except RecipeError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError("recipe", found=f"{type(error).__name__}: {error}", expected="JSON of a recipe") from None


def _stored(measure: tuple[Quantity, str]) -> list[Any]:
    return [measure[0].to_json(), measure[1]]


def texts(stored: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that is a list of texts, empty where it is left out.

    Raises
    ------
    RecipeError
        If it is something else.
    """
    found = stored.get(name, [])
    if not isinstance(found, (list, tuple)) or not all(isinstance(item, str) for item in found):
        raise RecipeError(name, found=str(found)[:80], expected="a list of texts")
    return tuple(found)


def read_makes(stored: Any) -> tuple[Quantity, str] | None:
    """How many of what a recipe makes, from JSON.

    Raises
    ------
    RecipeError
        If it is something else.
    """
    if stored is None:
        return None
    if not isinstance(stored, list) or len(stored) != 2 or not isinstance(stored[1], str):
        raise RecipeError("makes", found=str(stored)[:60], expected='an amount and a word: ["24", "cookies"]')
    amount = Quantity.from_json(stored[0])
    if not amount.low > 0:
        raise RecipeError("makes", found=str(amount), expected="above 0")
    return amount, stored[1]


def _span(stored: Any) -> Span:
    start, end, label = stored
    if type(start) is not int or type(end) is not int or not isinstance(label, str):
        raise RecipeError("span", found=str(stored)[:80], expected="two offsets and a label")
    return Span(start, end, label)


def _measure(stored: Any) -> tuple[Quantity, str]:
    if not isinstance(stored, (list, tuple)) or len(stored) != 2 or not isinstance(stored[1], str):
        raise RecipeError("measure", found=str(stored)[:80], expected="an amount and a unit")
    return Quantity.from_json(stored[0]), str(stored[1])


def _numbers(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.value, estimate.low, estimate.high]
