"""Training of a tagger on labeled phrases of one's own, from a file to a folder."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsmith.core.io import check_output
from weightsmith.core.progress import stage

from .corpus import read_tagged
from .spans import OUTSIDE
from .tagger import DIWAN, IngredientTagger

__all__ = ["TaggerTrained", "train_ingredients"]


@dataclass(frozen=True)
class TaggerTrained:
    """What training on phrases gave.

    Attributes
    ----------
    out : str
        The tagger's folder.
    phrases : int
        That were trained on.
    labels : tuple of str
        That the tagger gives.
    test_phrases : int
        That were tested on.
    f1 : float or None
        Of exact spans on these; None without any.
    notes : tuple of str
        What is odd about the phrases, with counts.
    """

    out: str
    phrases: int
    labels: tuple[str, ...]
    test_phrases: int
    f1: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return asdict(self)


def train_ingredients(
    phrases: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> TaggerTrained:
    """Train a tagger on labeled phrases and write it as a folder.

    Parameters
    ----------
    phrases : path-like
        See `read_tagged`.
    out : path-like
        The folder to create.
    test : path-like, optional
        Phrases to test on, in the same format.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Raises
    ------
    RecipeError
        If a file cannot be read, or has fewer than two labels.
    CheckpointError
        If ``out`` exists or cannot be written; said before training.
    """
    check_output(out, overwrite=overwrite, inputs=[phrases, test])
    tokens, tags = read_tagged(Path(phrases))
    held, held_tags = ([], []) if test is None else read_tagged(Path(test))
    with stage(f"training on {len(tokens)} phrases"):
        tagger = IngredientTagger(sorted({tag for line in tags for tag in line})).fit(tokens, tags)
    tagger.save_pretrained(Path(out), overwrite=overwrite)
    notes = _odd(tagger.labels, tags, held_tags)
    if not held:
        why = "no test was given" if test is None else f"{test} has no phrase"
        notes.append(f"not tested: {why}; name phrases that were not trained on with --test")
    f1 = tagger.score(held, held_tags) if held else None
    return TaggerTrained(str(out), len(tokens), tagger.labels, len(held), f1, tuple(notes))


def _odd(labels: Sequence[str], tags: Sequence[Sequence[str]], held: Sequence[Sequence[str]]) -> list[str]:
    """What is odd about the labels, each with how many tokens have it."""
    notes = []
    counts = _counts(tags)
    for label in labels:
        if label not in DIWAN:
            near = difflib.get_close_matches(label.upper(), DIWAN, n=1)
            meant = f" (is {near[0]} meant?)" if near else ""
            notes.append(
                f"label {label!r} of {counts[label]} tokens is none of {', '.join(DIWAN)}{meant}: "
                "recipes are read without these tokens"
            )
    if "NAME" not in labels:
        notes.append("no token has the label NAME: names of foods will be guessed")
    unlearned = {label: count for label, count in _counts(held).items() if label not in labels}
    if unlearned:
        told = ", ".join(f"{label!r} ({count})" for label, count in unlearned.items())
        notes.append(f"labels of tokens of the test that no token of the training has, which count as missed: {told}")
    if held and all(tag == OUTSIDE for line in held for tag in line):
        notes.append(f"all tokens of the test have the label {OUTSIDE}: there is no span to find")
    return notes


def _counts(tags: Iterable[Sequence[str]]) -> Counter[str]:
    return Counter(tag for line in tags for tag in line)
