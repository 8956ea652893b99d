from .errors import (
    KitchenError as KitchenError,
    ModelError as ModelError,
    NutritionError as NutritionError,
    PhotoError as PhotoError,
    RecipeError as RecipeError,
)

__version__: str
