"""Hash tables of names, and the bitmaps that are asked before them.

Most words of a text begin no name, so most look-ups find nothing. A table of HPO's names takes 60 MB, and each look-up
waits for memory. A bitmap of the keys' first bits takes some 100 kB, which stay in the core's cache: where its bit is
not set, the table does not have the key.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from weightsmith_phenotype.kernels.compiled import compiled

__all__ = ["append", "build_filter", "build_table", "insert", "look_up", "passes", "phrase"]

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)

BITS_PER_KEY = 8
"""Of a bitmap, at least: then one key in eight that is not in the table is looked up."""


@compiled
def append(state: np.uint64, code: np.uint64) -> np.uint64:
    """The code of a phrase and one more word."""
    mixed = (state ^ code) * _PRIME
    return mixed ^ (mixed >> _SHIFT)


@njit(cache=True, nogil=True)
def phrase(codes: NDArray[np.uint64]) -> np.uint64:
    """The code of words in order."""
    state = np.uint64(1)
    for code in codes:
        state = append(state, code)
    return state


@njit(cache=True, nogil=True)
def build_table(keys: NDArray[np.uint64], least: int = 16) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Slots (half of them empty) with the keys, and the row of each; key 0 means empty."""
    size = 16
    while size < max(least, 2 * len(keys)):
        size *= 2
    slots, rows = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
    for row in range(len(keys)):
        insert(keys[row], row, slots, rows)
    return slots, rows


@compiled
def insert(key: np.uint64, row: int, slots: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
    """Add a key that is not in the table yet, where it has room."""
    mask = np.uint64(len(slots) - 1)
    place = key & mask
    while slots[place] != 0:
        place = (place + np.uint64(1)) & mask
    slots[place], rows[place] = key, row


@compiled
def look_up(key: np.uint64, slots: NDArray[np.uint64], rows: NDArray[np.int32]) -> int:
    """The row of a key, or -1."""
    mask = np.uint64(len(slots) - 1)
    place = key & mask
    while slots[place] != 0:
        if slots[place] == key:
            return rows[place]
        place = (place + np.uint64(1)) & mask
    return -1


@njit(cache=True, nogil=True)
def build_filter(
    slots: NDArray[np.uint64], rows: NDArray[np.int32], scores: NDArray[np.float32], least: np.float32
) -> NDArray[np.uint64]:
    """The bitmap of a table's keys whose row has at least a score; an empty ``scores`` takes all keys."""
    keys = 0
    for place in range(len(slots)):
        keys += slots[place] != 0 and (len(scores) == 0 or scores[rows[place]] >= least)
    length = 1
    while 64 * length < BITS_PER_KEY * keys:
        length *= 2
    bits = np.zeros(length, np.uint64)
    for place in range(len(slots)):
        if slots[place] != 0 and (len(scores) == 0 or scores[rows[place]] >= least):
            # The table goes by the last bits of a key, the bitmap by the first.
            bit = slots[place] >> np.uint64(32)
            bits[(bit >> np.uint64(6)) & np.uint64(length - 1)] |= np.uint64(1) << (bit & np.uint64(63))
    return bits


@compiled
def passes(key: np.uint64, bits: NDArray[np.uint64]) -> bool:
    """False if the table that the bitmap was made of does not have the key; true if it may have it."""
    bit = key >> np.uint64(32)
    return (bits[(bit >> np.uint64(6)) & np.uint64(len(bits) - 1)] >> (bit & np.uint64(63))) & np.uint64(1) != 0
