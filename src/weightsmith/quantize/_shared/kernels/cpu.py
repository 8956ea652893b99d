"""Products of packed codes with one input, compiled with numba for the CPU.

A row of codes is stored in blocks of 16 words of 32 bits. Field p of word j holds the code of column 16 p + j of the
block, so that one shift and one mask give the codes of 16 columns that are beside each other: with them the loop over j
becomes vector instructions. A block has 256 columns of two bits or 128 of four.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from weightsmith.core.threads import start_threads

__all__ = ["products"]

start_threads()

FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


@intrinsic
def _two(typing: Any, word: Any, shift: Any) -> Any:
    """The two bits of a word at a shift, as float32; numba itself would widen the word to 64 bits."""
    return types.float32(word, types.int64), lambda *args: _field(*args, mask=3)


@intrinsic
def _four(typing: Any, word: Any, shift: Any) -> Any:
    """The four bits of a word at a shift, as float32."""
    return types.float32(word, types.int64), lambda *args: _field(*args, mask=15)


def _field(context: Any, builder: Any, signature: Any, args: Any, *, mask: int) -> Any:
    word, shift = args
    bits = builder.lshr(word, builder.trunc(shift, ir.IntType(32)))
    return builder.sitofp(builder.and_(bits, ir.Constant(ir.IntType(32), mask)), ir.FloatType())


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _rows_of_two(x: NDArray[Any], words: NDArray[Any], y: NDArray[Any], start: int, stop: int) -> None:
    """Two rows at a time, so that each input is loaded once for both."""
    for o in range(start, stop, 2):
        first = second = np.float32(0)
        for block in range(words.shape[1]):
            a, b, z = words[o, block], words[o + 1, block], x[block]
            for j in range(16):
                u, v = a[j], b[j]
                x0, x1, x2, x3 = z[0, j], z[1, j], z[2, j], z[3, j]
                x4, x5, x6, x7 = z[4, j], z[5, j], z[6, j], z[7, j]
                first += (_two(u, 0) * x0 + _two(u, 2) * x1 + _two(u, 4) * x2 + _two(u, 6) * x3) + (
                    _two(u, 8) * x4 + _two(u, 10) * x5 + _two(u, 12) * x6 + _two(u, 14) * x7
                )
                second += (_two(v, 0) * x0 + _two(v, 2) * x1 + _two(v, 4) * x2 + _two(v, 6) * x3) + (
                    _two(v, 8) * x4 + _two(v, 10) * x5 + _two(v, 12) * x6 + _two(v, 14) * x7
                )
                x0, x1, x2, x3 = z[8, j], z[9, j], z[10, j], z[11, j]
                x4, x5, x6, x7 = z[12, j], z[13, j], z[14, j], z[15, j]
                first += (_two(u, 16) * x0 + _two(u, 18) * x1 + _two(u, 20) * x2 + _two(u, 22) * x3) + (
                    _two(u, 24) * x4 + _two(u, 26) * x5 + _two(u, 28) * x6 + _two(u, 30) * x7
                )
                second += (_two(v, 16) * x0 + _two(v, 18) * x1 + _two(v, 20) * x2 + _two(v, 22) * x3) + (
                    _two(v, 24) * x4 + _two(v, 26) * x5 + _two(v, 28) * x6 + _two(v, 30) * x7
                )
        y[o], y[o + 1] = first, second


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _rows_of_four(x: NDArray[Any], words: NDArray[Any], y: NDArray[Any], start: int, stop: int) -> None:
    for o in range(start, stop, 2):
        first = second = np.float32(0)
        for block in range(words.shape[1]):
            a, b, z = words[o, block], words[o + 1, block], x[block]
            for j in range(16):
                u, v = a[j], b[j]
                x0, x1, x2, x3 = z[0, j], z[1, j], z[2, j], z[3, j]
                x4, x5, x6, x7 = z[4, j], z[5, j], z[6, j], z[7, j]
                first += (_four(u, 0) * x0 + _four(u, 4) * x1 + _four(u, 8) * x2 + _four(u, 12) * x3) + (
                    _four(u, 16) * x4 + _four(u, 20) * x5 + _four(u, 24) * x6 + _four(u, 28) * x7
                )
                second += (_four(v, 0) * x0 + _four(v, 4) * x1 + _four(v, 8) * x2 + _four(v, 12) * x3) + (
                    _four(v, 16) * x4 + _four(v, 20) * x5 + _four(v, 24) * x6 + _four(v, 28) * x7
                )
        y[o], y[o + 1] = first, second


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _part(x: NDArray[Any], words: NDArray[Any], y: NDArray[Any], start: int, stop: int) -> None:
    if x.shape[1] == 16:
        _rows_of_two(x, words, y, start, stop)
    else:
        _rows_of_four(x, words, y, start, stop)


@njit(fastmath=FASTMATH, nogil=True, cache=True, parallel=True)
def _parts(x: NDArray[Any], words: NDArray[Any], y: NDArray[Any], parts: int) -> None:
    pairs = y.size // 2
    for part in prange(parts):
        _part(x, words, y, 2 * (pairs * part // parts), 2 * (pairs * (part + 1) // parts))


def products(x: NDArray[Any], words: NDArray[Any], y: NDArray[Any], parts: int) -> None:
    """Sum each row's codes times the inputs.

    Parameters
    ----------
    x : float32 array of shape (blocks, 16 or 8, 16)
        The input, filled up with zeros: 16 groups of columns for two bits, 8 for four.
    words : int32 array of shape (out, blocks, 16)
        The codes, unsigned. The number of rows is even.
    y : float32 array of shape (out,)
        Receives the sums.
    parts : int
        Threads.
    """
    if parts == 1:
        _part(x, words, y, 0, y.size)
    else:
        _parts(x, words, y, parts)
