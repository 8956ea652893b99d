"""Nutrition tables: what foods hold per 100 g, and what household measures of them weigh."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
