"""A vision-language model that writes a list of foods and amounts about a photo; CaLoRAify, arXiv:2412.09936."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
