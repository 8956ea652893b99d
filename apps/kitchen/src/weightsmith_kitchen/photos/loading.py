"""Trained classifiers, each loaded once per process."""

from __future__ import annotations

from functools import lru_cache

from weightsmith_kitchen.photos.classifier import FoodClassifier

__all__ = ["classifier_of"]


@lru_cache(maxsize=2)
def classifier_of(model: str | None = None) -> FoodClassifier:
    """A trained classifier from its folder, or the one that ships."""
    return FoodClassifier.default() if model is None else FoodClassifier.from_pretrained(model)
