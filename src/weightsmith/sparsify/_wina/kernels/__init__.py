"""The column kernels: compiled with numba for the CPU and with Triton for CUDA."""

from __future__ import annotations

import threading

import torch

__all__ = ["BITS", "lock", "start_threads"]

BITS = {torch.float32: torch.float32, torch.float16: torch.uint16, torch.bfloat16: torch.int16}
"""Storage types, and as what numpy sees them: it has no bfloat16."""

lock = threading.Lock()
"""The CPU kernel uses shared buffers, and numba's simplest threading layer must not be entered twice."""


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
