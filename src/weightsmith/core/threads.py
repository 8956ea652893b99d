"""Threads of kernels that are compiled with numba."""

from __future__ import annotations

import threading

import torch

__all__ = ["lock", "start_threads"]

lock = threading.Lock()
"""Numba's simplest threading layer must not be entered twice, and kernels that have buffers share them."""


def start_threads() -> None:
    """Start numba's threads, and leave torch's number of threads alone.

    Numba starts them on its first parallel call, or now. Where it uses torch's OpenMP it sets the number of both, so
    torch's number is set again. The kernels receive the number of threads to use, which is torch's.

    Examples
    --------
    >>> before = torch.get_num_threads()
    >>> start_threads()
    >>> torch.get_num_threads() == before
    True
    """
    import numba

    threads = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(threads)
