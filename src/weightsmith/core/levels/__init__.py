"""Weights on equally spaced levels: codes of few bits, one step per row, and the file that says so."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
