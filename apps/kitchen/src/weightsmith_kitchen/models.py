"""Folders that ``weightsmith kitchen train`` wrote: which kind each is, and the model in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import read_json
from weightsmith_kitchen.errors import ModelError

__all__ = ["Kind", "kind_of", "loaded", "models_of"]

Kind = Literal["tagger", "portions", "classifier", "reader"]
KINDS: Mapping[str, str] = {
    "tagger": "a tagger of ingredient lines (train ingredients)",
    "portions": "an estimator of portions (train portions)",
    "classifier": "a classifier of photos (train recognize)",
    "reader": "a model that writes lists about photos (train vlm)",
}
TYPES: Mapping[str, Kind] = {
    "portion-calorie-net": "portions",
    "weightsmith-food": "classifier",
    "weightsmith-vision-prefix-lm": "reader",
}
"""Values of ``model_type`` in ``config.json``; a tagger has ``format`` and ``buckets`` instead."""


def kind_of(folder: str | Path) -> Kind:
    """Which training wrote a folder.

    Raises
    ------
    ModelError
        If none did; it says what was found.

    Examples
    --------
    >>> from weightsmith_kitchen.phrases.tagger import SHIPPED
    >>> kind_of(SHIPPED)
    'tagger'
    """
    expected = ", ".join(KINDS.values())
    path = Path(folder) / "config.json"
    if not path.is_file():
        found = "no config.json in it" if path.parent.is_dir() else "no such folder"
        raise ModelError(f"{folder}", found=found, expected=expected)
    try:
        config = read_json(path)
    except WeightsmithError as error:
        raise ModelError(f"{path}", found=error, do="Copy it again.") from error
    if {"format", "buckets", "labels"} <= set(config):
        return "tagger"
    kind = TYPES.get(str(config.get("model_type")))
    if kind is None:
        raise ModelError(f"{folder}", found=f"a model of the type {config.get('model_type')!r}", expected=expected)
    return kind


def models_of(folders: Sequence[Path] | None, kinds: Sequence[Kind] = get_args(Kind)) -> dict[str, str]:
    """The folders by their kind, for `loaded`.

    Parameters
    ----------
    folders : sequence of Path or None
        That ``--model`` names.
    kinds : sequence of str
        That the command can use.

    Raises
    ------
    ModelError
        If a folder is of another kind, two are of one, or two models would name the foods of a photo.
    """
    found: dict[str, str] = {}
    for folder in folders or ():
        kind = kind_of(folder)
        if kind not in kinds:
            expected = " or ".join(KINDS[name] for name in kinds)
            raise ModelError(f"--model {folder}", found=KINDS[kind], expected=expected)
        if kind in found:
            raise ModelError(f"--model {folder}", found=f"{KINDS[kind]}, as {found[kind]}", expected="one of each kind")
        found[kind] = str(folder)
    if {"classifier", "reader"} <= set(found):
        raise ModelError(
            f"--model {found['classifier']} and {found['reader']}",
            found="two models that name the foods of a photo",
            expected="one of them",
        )
    return found


def loaded(models: Mapping[str, str], kind: Kind) -> Any:
    """The model of a kind, loaded once per process; None where there is no folder of it."""
    return _loaded(kind, models[kind]) if kind in models else None


@lru_cache(maxsize=8)
def _loaded(kind: Kind, folder: str) -> Any:
    if kind == "tagger":
        from weightsmith_kitchen.phrases.tagger import IngredientTagger

        return IngredientTagger.from_pretrained(folder)
    if kind == "portions":
        from weightsmith_kitchen.portions import PortionEstimator

        return PortionEstimator.from_pretrained(folder)
    if kind == "classifier":
        from weightsmith_kitchen.photos.classifier import FoodClassifier

        return FoodClassifier.from_pretrained(folder)
    from weightsmith_kitchen.vlm import VisionPrefixLM

    return VisionPrefixLM.from_pretrained(folder).reader()
