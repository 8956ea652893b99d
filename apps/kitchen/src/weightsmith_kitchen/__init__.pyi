from .calories import CalorieEstimator as CalorieEstimator, CalorieTable as CalorieTable
from .errors import (
    KitchenError as KitchenError,
    ModelError as ModelError,
    NutritionError as NutritionError,
    PhotoError as PhotoError,
    RecipeError as RecipeError,
)
from .foods import Estimate as Estimate, Food as Food, Portion as Portion
from .kit import MealKit as MealKit, edit as edit, make_kit as make_kit, read_recipe as read_recipe
from .nutrition import NutritionTable as NutritionTable, price as price
from .photos.boxes import Box as Box
from .photos.classifier import FoodClassifier as FoodClassifier
from .photos.folder import Example as Example, FoodFolder as FoodFolder, FoodPhotos as FoodPhotos
from .photos.images import PhotoNotice as PhotoNotice, open_photo as open_photo, photo_hash as photo_hash
from .photos.inception import InceptionV1 as InceptionV1
from .photos.mass import FoodSize as FoodSize, Mass as Mass, MassEstimator as MassEstimator, Reference as Reference
from .photos.preprocess import Preprocess as Preprocess
from .phrases.crf import LinearChainCRF as LinearChainCRF
from .phrases.read import read_ingredient as read_ingredient, read_ingredients as read_ingredients
from .phrases.tagger import IngredientTagger as IngredientTagger
from .portions import (
    PortionCalorieNet as PortionCalorieNet,
    PortionEstimator as PortionEstimator,
)
from .quantity import Quantity as Quantity
from .recipe import Event as Event, Ingredient as Ingredient, Recipe as Recipe, Span as Span
from .steps.labels import InstructionTagger as InstructionTagger
from .steps.structure import structure_recipe as structure_recipe
from .vlm import VisionPrefixLM as VisionPrefixLM

__version__: str
