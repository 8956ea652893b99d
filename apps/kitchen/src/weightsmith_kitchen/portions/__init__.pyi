from .comparators import IngredientMLP as IngredientMLP
from .estimator import PortionEstimate as PortionEstimate, PortionEstimator as PortionEstimator
from .ingredients import IngredientDecoder as IngredientDecoder, IngredientList as IngredientList, set_loss as set_loss
from .metrics import TotalErrors as TotalErrors, total_errors as total_errors
from .network import (
    KitOutput as KitOutput,
    PortionCalorieNet as PortionCalorieNet,
    kit_loss as kit_loss,
    unit_weights as unit_weights,
)
from .recipes import (
    LabeledIngredient as LabeledIngredient,
    LabeledRecipe as LabeledRecipe,
    RecipeTable as RecipeTable,
    read_labeled as read_labeled,
)
