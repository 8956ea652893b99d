"""Compiled inner loops (numba on the CPU, Triton on CUDA) behind the methods that call them."""

from __future__ import annotations

__all__ = ["use_torch_threads"]


def use_torch_threads() -> None:
    """Give numba as many threads as torch has.

    Both may run on one OpenMP pool; numba, when it starts, sets the pool's size for both, so torch's is set again.

    Examples
    --------
    >>> import numba, torch
    >>> before = torch.get_num_threads()
    >>> use_torch_threads()
    >>> torch.get_num_threads() == before
    True
    """
    import numba
    import torch

    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)
