"""The global random number generators of Python, NumPy and PyTorch, which belong to the caller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["random_state_kept"]


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Have the caller draw the random numbers afterwards that it would have drawn before.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> with random_state_kept():
    ...     inside = torch.rand(1)
    >>> bool(torch.rand(1) == inside)
    True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what runs inside may draw from it
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
