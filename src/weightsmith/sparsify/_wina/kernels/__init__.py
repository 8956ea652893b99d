"""Compiled inner loops (numba on the CPU, Triton on CUDA) behind the methods that call them."""

from __future__ import annotations

__all__ = ["start_threads"]


def start_threads() -> None:
    """Start numba's threads, and leave torch's number of threads alone.

    Numba starts them on its first parallel call, or now. Where it shares torch's OpenMP it sets the number for both,
    so torch's is set again. The kernels are told how many threads to use: as many as torch has.

    Examples
    --------
    >>> import torch
    >>> before = torch.get_num_threads()
    >>> start_threads()
    >>> torch.get_num_threads() == before
    True
    """
    import numba
    import torch

    threads = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(threads)
