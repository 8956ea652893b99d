"""A recipe's lines and steps as one record: ingredients, techniques, utensils and events in order of time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.language import load_parser
from weightsmith_kitchen.phrases.lines import split_line
from weightsmith_kitchen.phrases.read import read_ingredients
from weightsmith_kitchen.phrases.tagger import IngredientTagger, TaggedLine
from weightsmith_kitchen.quantity import Quantity
from weightsmith_kitchen.recipe import Event, Ingredient, Recipe

from .events import events_of_doc, parse_steps, split_steps
from .labels import InstructionTagger, default_instruction_tagger, techniques, utensils

if TYPE_CHECKING:
    from spacy.language import Language

__all__ = ["structure_recipe"]


def structure_recipe(
    *,
    ingredients: Sequence[str],
    instructions: Sequence[str] = (),
    title: str = "",
    servings: Quantity | Fraction | float | None = None,
    tagger: IngredientTagger | None = None,
    instruction_tagger: InstructionTagger | None = None,
    events: bool = True,
    nlp: Language | None = None,
) -> Recipe:
    """Turn the text of a recipe into a record.

    Parameters
    ----------
    ingredients : sequence of str
        One ingredient per line; empty lines are left out.
    instructions : sequence of str, optional
        One or more steps per text; numbers before them and rules between them are removed.
    title : str, optional
        Name of the recipe.
    servings : Quantity, Fraction, float or str, optional
        How many people it feeds; needed by `Recipe.scale`.
    tagger : IngredientTagger, optional
        Reads the ingredients; the one that ships by default.
    instruction_tagger : InstructionTagger, optional
        Finds techniques and utensils; the one that ships by default.
    events : bool, default: True
        Parse the instructions into events. Needs the extra ``events`` (spaCy and its English model).
    nlp : Language, optional
        Another spaCy pipeline with a parser.

    Returns
    -------
    Recipe
        Events that name no technique are left out.

    Raises
    ------
    RecipeError
        If ingredients or instructions are one string, or hold something else.
    MissingDependencyError
        If events are asked for and spaCy or its model is not installed.

    Examples
    --------
    >>> recipe = structure_recipe(
    ...     ingredients=["2 cups rice", "salt to taste"],
    ...     instructions=["Rinse the rice in a sieve."],
    ...     servings=4,
    ...     events=False,
    ... )
    >>> recipe.techniques, recipe.utensils, recipe.scale(servings=6).ingredients[0].quantity
    (('rinse',), ('sieve',), Quantity('3'))
    """
    for name, value in (("ingredients", ingredients), ("instructions", instructions)):
        if isinstance(value, str):
            raise RecipeError(name, found="one string", expected="a list of strings", do=f"Pass [{name}].")
        for place, text in enumerate(value):
            if not isinstance(text, str):
                raise RecipeError(f"{name}, item {place}", found=type(text).__name__, expected="a string")
    lines_of = [part for line in ingredients if line.strip() for part in split_line(line, tagger=tagger)]
    items = read_ingredients(lines_of, tagger=tagger)
    steps = split_steps(instructions)
    labeler = default_instruction_tagger() if instruction_tagger is None else instruction_tagger
    lines = list(labeler.tag_many(steps))
    found: list[Event] = []
    if events and steps:
        docs = parse_steps(steps, nlp=load_parser() if nlp is None else nlp, tagger=labeler)
        for step, (doc, line) in enumerate(zip(docs, lines, strict=True)):
            found += _labeled(events_of_doc(doc, step=step), line, items)
    return Recipe(
        ingredients=tuple(items),
        instructions=tuple(steps),
        title=title,
        servings=None if servings is None else Quantity.of(servings),
        events=tuple(found),
        techniques=_each_once(technique for line in lines for technique in _techniques(line).values()),
        utensils=_each_once(utensil for line in lines for utensil in _utensils(line).values()),
    )


def _techniques(line: TaggedLine) -> dict[str, str]:
    """Words of a step that are techniques, in lower case, and their base forms."""
    words = [span.text.lower() for span in line.spans if span.label == "TECHNIQUE"]
    return {word: techniques().get(word, (word, 0))[0] for text in words for word in (text, *text.split())}


def _utensils(line: TaggedLine) -> dict[str, str]:
    """Utensils of a step, in lower case, and their names in the singular."""
    words = [span.text.lower() for span in line.spans if span.label == "UTENSIL"]
    return {word: utensils().get(tuple(word.split()), word) for word in words}


def _each_once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _labeled(events: Sequence[Event], line: TaggedLine, items: Sequence[Ingredient]) -> list[Event]:
    """The events whose process is a technique, with the techniques, utensils and ingredients that they name."""
    verbs, tools, found = _techniques(line), _utensils(line), []
    for event in events:
        process = event.process.removeprefix("!")
        if process not in verbs:
            continue
        words = event.object.split()
        stems = {_stem(word) for word in words}
        found.append(
            replace(
                event,
                techniques=(verbs[process],),
                utensils=_each_once(name for text, name in tools.items() if f" {text} " in f" {event.object} "),
                ingredients=_each_once(item.name for item in items if _head(item.name) in stems),
            )
        )
    return found


def _head(name: str) -> str:
    """The word that an instruction calls an ingredient by: the last one of its name, before "or" and "in"."""
    words = re.split(r"\s(?:or|in|with|for)\s", name.lower())[0].split()
    return _stem(words[-1]) if words else "\0"


def _stem(word: str) -> str:
    word = word.lower()
    for ending, other in (("ies", "y"), ("ves", "f"), ("oes", "o"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + other
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
