"""Units, portions and calories of ingredients that are known by name, by a small network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
