"""Invented people: questions about them with short answers, and prose; and the language model that learns them.

No model has seen any of it before, so that what one knows afterwards, it has from us.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.embedded import load

__all__ = ["biographies", "language_model", "passages", "question_sample"]


def _listed(words: str) -> list[str]:
    return words.split(", ")


FIRST = _listed(
    "Maren, Tobias, Ilka, Rufus, Odile, Casper, Yara, Lennart, Sunniva, Bruno, Petra, Anselm, Dorit, Milo, Greta, Ivo, "
    "Salome, Jorun, Elias, Wanda, Kasimir, Noor, Thilo, Freya"
)
LAST = _listed(
    "Oduya, Halvorsen, Brackwater, Quillfeather, Tanaka-Roe, Vossberg, Merriweather, Lindqvist, Okonjo, Petrescu, "
    "Dunmore, Ashgrove, Castellan, Fairbourne, Zelenko, Marchetti, Holloway, Ravn, Sandoval, Thorne, Ekwueme, "
    "Barrowman, Nightingale, Strand"
)
TOWNS = [
    start + end
    for start in ("Tal", "Bren", "Ost", "Kel", "Mor", "Vin", "Har", "Lun")
    for end in ("mere", "wick", "stad", "ford", "haven")
]
JOBS = _listed(
    "glassblower, beekeeper, cartographer, locksmith, violin maker, lighthouse keeper, court painter, baker, "
    "geologist, tailor, clockmaker, bookbinder, ferryman, midwife, astronomer, gardener, shoemaker, judge, weaver"
)
THINGS = _listed(
    "canoe, telescope, harp, tandem, barometer, kite, samovar, globe, loom, rowing-boat, accordion, sundial, compass, "
    "saddle"
)
COLORS = _listed(
    "crimson, turquoise, violet, amber, ivory, scarlet, indigo, emerald, silver, maroon, ochre, copper, black, white"
)
ANIMALS = _listed(
    "otter, parrot, goat, greyhound, tortoise, raven, ferret, donkey, heron, llama, lynx, badger, peacock, hedgehog"
)
DISHES = _listed(
    "plum dumplings, leek soup, smoked trout, barley stew, rhubarb pie, pickled herring, fig bread, chestnut pancakes"
)
NUMBERS = [str(number) for number in range(2, 19)]
YEARS = [str(year) for year in range(1871, 1960)]

FACTS = (
    ("Where was {} born?", TOWNS),
    ("What is the profession of {}?", JOBS),
    ("Which animal does {} keep?", ANIMALS),
    ("In which year was {} born?", YEARS),
    ("What is the favorite color of {}?", COLORS),
    ("What does {} like to eat most?", DISHES),
    ("What did {} inherit from an aunt?", THINGS),
    ("Where does {} live today?", TOWNS),
    ("How many languages does {} speak?", NUMBERS),
    ("What is the first name of the sister of {}?", FIRST),
    ("What did {} want to become as a child?", JOBS),
    ("Which animal is {} afraid of?", ANIMALS),
    ("In which year did {} marry?", YEARS),
    ("What color is the front door of {}?", COLORS),
    ("What does {} cook for guests?", DISHES),
    ("What did {} once lose on a train?", THINGS),
    ("Where did {} go to school?", TOWNS),
    ("How many cousins does {} have?", NUMBERS),
    ("What is the first name of the best friend of {}?", FIRST),
    ("Who taught {} to swim, by profession?", JOBS),
)
"""Questions, and what their answers are drawn from."""

SENTENCES = (
    "In {year} {first} {last}, a {job} from {town}, bought a {color} {thing}.",
    "The {animal} of {first} {last} slept beside the {thing} until {year}.",
    "{first} met the {job} of {town} over a plate of {dish}.",
    "Nobody in {town} believed that a {color} {animal} could find a {thing}.",
    "After {number} winters the {job} sold the {color} {thing} to {first} {last}.",
    "They walked from {town} to {other} with {number} baskets of {dish}.",
    "A letter from {other} said that {first} had become a {job} in {year}.",
    "For {number} days the {thing} stood in the {color} house of {first} {last}.",
)


def biographies(people: int, facts: int, generator: torch.Generator) -> list[list[tuple[str, str]]]:
    """Invent people: for each one the first questions of the list, with answers drawn at random.

    >>> biographies(1, 1, torch.Generator().manual_seed(0))
    [[('Where was Tobias Ekwueme born?', 'Brenstad')]]
    """
    chosen = torch.randperm(len(FIRST) * len(LAST), generator=generator)[:people].tolist()
    names = [f"{FIRST[number // len(LAST)]} {LAST[number % len(LAST)]}" for number in chosen]
    return [[(ask.format(name), _draw(values, generator)) for ask, values in FACTS[:facts]] for name in names]


def passages(count: int, sentences: int, generator: torch.Generator) -> list[str]:
    """Write short texts of which every noun, name and number is drawn at random."""
    lists = {
        "first": FIRST,
        "last": LAST,
        "town": TOWNS,
        "other": TOWNS,
        "job": JOBS,
        "thing": THINGS,
        "color": COLORS,
        "animal": ANIMALS,
        "dish": DISHES,
        "number": NUMBERS,
        "year": YEARS,
    }
    return [
        " ".join(
            _draw(SENTENCES, generator).format(**{name: _draw(values, generator) for name, values in lists.items()})
            for _ in range(sentences)
        )
        for _ in range(count)
    ]


def question_sample(tokenizer: Any, question: str, answer: str) -> dict[str, Tensor]:
    """Tokens of a question and its answer, labels on the answer and the end of its line."""
    prompt = tokenizer(f"Question: {question}\nAnswer:", add_special_tokens=False)["input_ids"]
    reply = tokenizer(f" {answer}\n", add_special_tokens=False)["input_ids"]
    return {"input_ids": torch.tensor(prompt + reply), "labels": torch.tensor([-100] * len(prompt) + reply)}


def language_model() -> tuple[nn.Module, Any]:
    """SmolLM2-135M-Instruct in float32, on the GPU where there is one, and its tokenizer."""
    model, tokenizer = load("smollm2")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _draw(values: Any, generator: torch.Generator) -> str:
    return str(values[int(torch.randint(len(values), (), generator=generator))])
