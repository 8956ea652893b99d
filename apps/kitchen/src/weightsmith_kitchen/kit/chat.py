"""Corrections in words: "2 eggs instead of 1", "no butter", "for 6 people". Rules, no language model.

What is not understood changes nothing, and the reply says what can be said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from weightsmith_kitchen.corrections import ADD, INSTEAD, REPLACE, WITHOUT, parts
from weightsmith_kitchen.errors import KitchenError, RecipeError
from weightsmith_kitchen.kit.kit import UNSAID, MealKit
from weightsmith_kitchen.nouns import counted
from weightsmith_kitchen.nutrition import NutritionTable, price
from weightsmith_kitchen.nutrition.ranking import words as stems_of
from weightsmith_kitchen.phrases.lines import split_line
from weightsmith_kitchen.phrases.read import read_ingredient
from weightsmith_kitchen.quantity import Quantity, find_quantity
from weightsmith_kitchen.recipe import Ingredient

__all__ = ["HELP", "Reply", "edit"]

HELP = (
    "Say, for example: 2 eggs instead of 1; no butter; add 1 cup of milk; oil instead of butter; for 6 people; "
    "or double it."
)
FACTORS = {
    "half": Fraction(1, 2),
    "halve": Fraction(1, 2),
    "double": Fraction(2),
    "twice": Fraction(2),
    "triple": Fraction(3),
    "a third": Fraction(1, 3),
    "a quarter": Fraction(1, 4),
}
_FACTOR = "|".join(FACTORS)
_RELATIVE = re.compile(
    r"\b(?:less|more|fewer|at most|at least|up to|except|only if|maybe)\b|^\s*not\b|^-\s*\d", re.IGNORECASE
)
_SEVERAL = re.compile(r"\s*(?:\band\b|\bor\b|\bnor\b|&|,)\s*(?:no\s+)?", re.IGNORECASE)
_PEOPLE = re.compile(
    r"^(?:(?:make|scale|it|this|the recipe|kit|please|to|is)\s+)*(?:for|serves?|feeds?)\s+(?P<n>\S.*?)"
    r"(?:\s+(?:people|persons?|servings?|portions?|of us|guests?|adults?|eaters?))?$"
    r"|^(?P<m>\S+(?:\s\d/\d)?)\s+(?:people|persons?|servings?|portions?)$",
    re.IGNORECASE,
)
_PIECES = re.compile(r"^(?:(?:make|bake|for|it|me)\s+)*(?P<n>\S+(?:\s\d/\d)?)\s+(?P<thing>[^\d]+)$", re.IGNORECASE)
_TIMES_ALL = re.compile(
    rf"^(?:make\s+)?(?P<factor>{_FACTOR})(?:\s+(?:it|all|everything|the recipe|of it))?$", re.IGNORECASE
)
_TIMES = re.compile(
    rf"^(?:use\s+|only\s+)*(?P<factor>{_FACTOR})\s+(?!an?\b)"
    r"(?:(?:of|as much|as many|the amount of)\s+)?(?:the\s+)?(?P<name>.+)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a correction.

    Attributes
    ----------
    kit : MealKit
        The corrected kit, or the same one.
    said : str
        What was done, or why nothing was.
    understood : bool
        Something was done.
    """

    kit: MealKit
    said: str
    understood: bool


def edit(kit: MealKit, text: str, table: NutritionTable) -> Reply:
    """Apply a correction that is said in words.

    Several corrections are separated by commas, semicolons or full stops. They are done in order, all or none.

    Parameters
    ----------
    kit : MealKit
        Stays as it is.
    text : str
        What the user said.
    table : NutritionTable
        Prices what is new.

    Examples
    --------
    >>> from weightsmith_kitchen.kit import make_kit
    >>> table = NutritionTable.default()
    >>> reply = edit(make_kit(["1 egg", "100 g butter"], table), "2 eggs instead of 1, no butter", table)
    >>> reply.said, [item.measured() for item in reply.kit.ingredients]
    ('egg: 2; butter is left out', ['2'])
    """
    if not isinstance(text, str):
        raise RecipeError("correction", found=type(text).__name__, expected="a text")
    corrections = parts(text)
    if not corrections:
        return Reply(kit, HELP, False)
    said = []
    changed = kit
    for before, part in zip(["", *corrections], corrections, strict=False):
        try:
            listed = ADD.match(before) is not None and not _has(changed, part)
            changed, what = _edit_one(changed, f"add {part}" if listed else part, table)
        except KitchenError as error:
            return Reply(kit, f"{part!r}: {error}", False)
        said.append(what)
    return Reply(changed, "; ".join(said), True)


def _has(kit: MealKit, text: str) -> bool:
    """The kit has the food that an amount is said of, or it is no amount: "add 1 cup milk, 2 bananas" adds two."""
    if find_quantity(text) is None or INSTEAD.match(text) or _PEOPLE.match(text):
        return True
    name = read_ingredient(text).name
    return not name or bool(_fitting(kit, name))


def _edit_one(kit: MealKit, text: str, table: NutritionTable) -> tuple[MealKit, str]:
    if _RELATIVE.search(text):
        raise RecipeError(f"not understood: say the amount itself. {HELP}")
    rules: list[tuple[re.Pattern[str], Callable[[MealKit, re.Match[str], NutritionTable], tuple[MealKit, str] | None]]]
    rules = [
        (_PIECES, _pieces),
        (_PEOPLE, _people),
        (WITHOUT, _without),
        (REPLACE, _replace),
        (INSTEAD, _replace),
        (_TIMES_ALL, _times_all),
        (_TIMES, _times),
        (ADD, _add),
    ]
    for pattern, rule in rules:
        match = pattern.match(text)
        done = rule(kit, match, table) if match else None
        if done is not None:
            return done
    stated = _state(kit, text, table)
    if stated is None:
        raise RecipeError(f"not understood. {HELP}")
    return stated


def _pieces(kit: MealKit, match: re.Match[str], table: NutritionTable) -> tuple[MealKit, str] | None:
    """Another number of what the recipe makes: "make 48 cookies"."""
    if kit.makes is None or counted(match["thing"].lower(), False) != counted(kit.makes[1].lower(), False):
        return None
    try:
        wanted = Quantity.parse(match["n"])
    except RecipeError:
        return None
    scaled = _scaled(kit, wanted.middle / kit.makes[0].middle)
    made = kit.makes[0] * (wanted.middle / kit.makes[0].middle)
    return scaled, f"makes {made} {kit.makes[1]}"


def _scaled(kit: MealKit, factor: Fraction) -> MealKit:
    """All amounts times a factor; a number of people that is not known stays so."""
    return replace(kit.scale(kit.servings * factor), servings_known=kit.servings_known, notes=kit.notes)


def _people(kit: MealKit, match: re.Match[str], table: NutritionTable) -> tuple[MealKit, str] | None:
    try:
        servings = Quantity.parse(match["n"] or match["m"])
    except RecipeError:
        return None
    scaled = kit.scale(servings.middle)
    taken = "" if kit.servings_known else f" ({UNSAID}: it is taken for one person)"
    return scaled, f"for {Quantity.of(scaled.servings)} people{taken}"


def _without(kit: MealKit, match: re.Match[str], table: NutritionTable) -> tuple[MealKit, str]:
    said = []
    for name in _SEVERAL.split(match["old"]) if not _is_one(kit, match["old"]) else [match["old"]]:
        place = _find(kit, name)
        said.append(kit.ingredients[place].name)
        kit = kit.without(place)
    return kit, f"{' and '.join(said)} {'is' if len(said) == 1 else 'are'} left out"


def _is_one(kit: MealKit, name: str) -> bool:
    """The whole name is an ingredient, as "salt and pepper" may be."""
    wanted = set(stems_of(name))
    return any(wanted == set(stems_of(item.name)) for item in kit.ingredients)


def _replace(kit: MealKit, match: re.Match[str], table: NutritionTable) -> tuple[MealKit, str]:
    new = read_ingredient(match["new"])
    old = match["old"].strip()
    if re.match(rf"(?:{_FACTOR})\b", old, re.IGNORECASE):
        raise RecipeError(f"a part of an ingredient cannot be exchanged: say both amounts. {HELP}")
    amount = find_quantity(old)
    only_amount = amount is not None and not old[amount[2] :].strip()
    if new.name and (only_amount or amount is not None) and new.quantity is not None:
        # "2 eggs instead of 1": the amount changes, the food stays
        place = _find(kit, new.name if only_amount else old[amount[2] :] if amount else old)
    else:
        place = _find(kit, old)
    was = kit.ingredients[place]
    if new.quantity is None:  # "oil instead of butter": the food changes, the amount stays
        changed = replace(was, name=new.name or match["new"].strip(), food=None)
    elif not new.name:  # "2 instead of 1 egg"
        changed = replace(
            was, quantity=new.quantity, unit=new.unit or was.unit, package=None, alternatives=(), unread=new.unread
        )
    else:
        same = _same(new.name, was.name)
        changed = replace(
            was,
            name=was.name if same else new.name,
            quantity=new.quantity,
            unit=new.unit if new.unit or not same else was.unit,
            size=new.size or (was.size if same else None),
            package=new.package or (was.package if same else None),
            alternatives=(),
            unread=new.unread,
        )
    kit, said = _put(kit, place, changed, table, keep_food=changed.name == was.name)
    if amount is not None and was.quantity is not None and amount[0] != was.quantity:
        said += f" (it was {was.quantity}, not {amount[0]})"
    return kit, said


def _times_all(kit: MealKit, match: re.Match[str], table: NutritionTable) -> tuple[MealKit, str]:
    scaled = _scaled(kit, FACTORS[match["factor"].lower()])
    return scaled, f"all amounts times {FACTORS[match['factor'].lower()]}"


def _times(kit: MealKit, match: re.Match[str], table: NutritionTable) -> tuple[MealKit, str] | None:
    try:
        place = _find(kit, match["name"])
    except RecipeError:
        return None  # "half a cup of milk" is an amount
    changed = kit.ingredients[place].scale(FACTORS[match["factor"].lower()])
    return kit.put(place, changed), f"{changed.name}: {changed.measured() or 'no amount'}"


def _add(kit: MealKit, match: re.Match[str], table: NutritionTable) -> tuple[MealKit, str] | None:
    said = []
    for part in split_line(match["new"]):
        new = read_ingredient(part)
        if not new.name:
            return None
        priced = price(new, table)
        kit = kit.plus(priced)
        said.append(f"{priced.measured()} {priced.called()} is added".strip())
    return kit, "; ".join(said)


def _state(kit: MealKit, text: str, table: NutritionTable) -> tuple[MealKit, str] | None:
    """An amount of what the kit has: "200 g flour"."""
    new = read_ingredient(re.sub(r"^(?:it was|it's|there (?:is|are)|make it|only|i used|use)\s+", "", text, flags=re.I))
    if new.quantity is None or not new.name:
        return None
    place = _find(kit, new.name)
    was = kit.ingredients[place]
    changed = replace(
        was,
        quantity=new.quantity,
        unit=new.unit if new.unit is not None or was.unit is None else was.unit,
        size=new.size or was.size,
        package=new.package or was.package,
        alternatives=(),
        unread=new.unread,
    )
    return _put(kit, place, changed, table, keep_food=True)


def _put(
    kit: MealKit, place: int, changed: Ingredient, table: NutritionTable, *, keep_food: bool
) -> tuple[MealKit, str]:
    priced = price(changed, table, food=changed.food if keep_food else None)
    return kit.put(place, priced), f"{priced.name}: {priced.measured() or 'no amount'}"


def _same(one: str, other: str) -> bool:
    a, b = set(stems_of(one)), set(stems_of(other))
    return bool(a) and (a <= b or b <= a)


def _find(kit: MealKit, name: str) -> int:
    """Place of the ingredient that a name means.

    Raises
    ------
    RecipeError
        If none or several fit; it names those that are there.
    """
    scored = _fitting(kit, name)
    if not scored:
        there = ", ".join(item.name for item in kit.ingredients[:12])
        raise RecipeError(f"no ingredient {name.strip()!r}", found=there)
    best = max(value for value, _ in scored)
    places = [place for value, place in scored if value == best]
    if len(places) > 1:
        raise RecipeError(
            f"{name.strip()!r} may be {' or '.join(kit.ingredients[place].name for place in places)}",
            do="Say which.",
        )
    return places[0]


def _fitting(kit: MealKit, name: str) -> list[tuple[float, int]]:
    """Places of ingredients that a name may mean, each with the share of the words that both have."""
    wanted = set(stems_of(name))
    scored = []
    for place, item in enumerate(kit.ingredients):
        have = set(stems_of(item.name))
        shared = wanted & have
        last = stems_of(item.name)[-1:]  # "tomato sauce" is no tomato
        if shared and (shared == have or (shared == wanted and wanted.issuperset(last))):
            scored.append((len(shared) / len(wanted | have), place))
    return scored
