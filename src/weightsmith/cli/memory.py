"""What malloc does with memory that was freed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's parameters."""


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors; elsewhere nothing is changed.

    By default glibc returns what is freed at once, and the system must clear each page anew: two fifths of a TIES
    merge's processor time. Up to 256 MB are kept, per thread 64 MB; tensors above 32 MB are returned as before.

    Returns
    -------
    bool
        Whether this system's malloc has these parameters.

    Examples
    --------
    >>> import platform
    >>> keep_freed_memory() or platform.libc_ver()[0] != "glibc"
    True
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    values = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 256 << 20, TOP_PAD: 16 << 20}
    return all(libc.mallopt(parameter, value) for parameter, value in values.items())
