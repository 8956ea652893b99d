"""Which axes of which tensors may be reordered together, found by running any model once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
