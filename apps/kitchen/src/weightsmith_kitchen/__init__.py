"""A photo or a recipe to ingredients, portions, calories and a meal kit.

Four papers share one data model and one nutrition table: food recognition (DeepFood), recipe parsing (Recipe-NER),
meal kits (Tupc) and calories by look-up (CaLoRAify). Everything runs offline.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
