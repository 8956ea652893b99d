"""Calories of a generated ingredient list, by look-up in a table of kcal per unit."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
