from .chat import Reply as Reply, edit as edit
from .kit import MealKit as MealKit
from .make import make_kit as make_kit
from .photo import PhotoKit as PhotoKit, kit_of_photo as kit_of_photo
from .reading import read_recipe as read_recipe
from .writing import to_csv as to_csv, to_pdf as to_pdf
