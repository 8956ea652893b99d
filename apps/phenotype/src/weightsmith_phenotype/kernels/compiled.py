"""How the kernels are compiled."""

from __future__ import annotations

from numba import njit

__all__ = ["compiled"]

compiled = njit(cache=True, nogil=True, _nrt=False)
"""Numba without counts of references.

A dozen arrays go along with each call of a kernel's helpers, and counting who holds them took four fifths of the time.
Without the counts a kernel cannot make arrays: those who call it bring the room that it needs.
"""
