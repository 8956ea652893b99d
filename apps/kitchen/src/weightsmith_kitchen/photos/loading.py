"""The classifier that ships, loaded once per process."""

from __future__ import annotations

from functools import cache

from weightsmith_kitchen.photos.classifier import FoodClassifier

__all__ = ["classifier_of"]


@cache
def classifier_of() -> FoodClassifier:
    """The classifier that ships."""
    return FoodClassifier.default()
