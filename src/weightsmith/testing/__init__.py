"""Checks that any method on weights must pass, for the catalog's methods and for your own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
