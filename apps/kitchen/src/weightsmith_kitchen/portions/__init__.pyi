from .estimator import PortionEstimate as PortionEstimate, PortionEstimator as PortionEstimator
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
