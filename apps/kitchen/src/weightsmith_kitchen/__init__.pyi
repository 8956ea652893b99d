from .errors import (
    KitchenError as KitchenError,
    ModelError as ModelError,
    NutritionError as NutritionError,
    PhotoError as PhotoError,
    RecipeError as RecipeError,
)
from .foods import Estimate as Estimate, Food as Food, Portion as Portion
from .quantity import Quantity as Quantity
from .recipe import Event as Event, Ingredient as Ingredient, Recipe as Recipe, Span as Span

__version__: str
