"""What can go wrong, by name. Every message says what was found, what was expected and what to do."""

from weightsmith.core.errors import WeightsmithError

__all__ = ["KitchenError", "ModelError", "NutritionError", "PhotoError", "RecipeError"]


class KitchenError(WeightsmithError):
    """Base of the errors of this package."""


class PhotoError(KitchenError):
    """A photo, a box or a folder of photos that cannot be read or used."""


class RecipeError(KitchenError, ValueError):
    """A recipe, an ingredient, a unit or an amount that cannot be read or used."""


class NutritionError(KitchenError):
    """A food that is not in the tables, or a table that cannot be read."""


class ModelError(KitchenError):
    """A saved model that cannot be loaded, or that does not fit the data."""
