"""DSnoT's swaps row by row, compiled for the CPU with numba; :mod:`weightsmith.sparsify._dsnot` has the same in torch.

A row costs one pass that sorts its weights into four lists of candidates, then one scan of two lists a swap. Scores are
kept as integers that order like the non-negative floats they are the bits of: their maximum vectorises.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from weightsmith.sparsify._wina.kernels import start_threads

__all__ = ["IMPROVE", "REFERENCE", "SAME_SIGN", "swap_rows"]

start_threads()

IMPROVE, SAME_SIGN, REFERENCE = 0, 1, 2
HIGHEST = np.int32(0x7F800001)
KEPT, PRUNED, GROWN, DROPPED = 0, 1, 2, 3


@njit(inline="always")
def _best(keys: NDArray[np.int32], count: int) -> int:
    """Position of the largest key (of equal ones the first), or -1 when all are used up (zero)."""
    largest = np.int32(0)
    for k in range(count):
        largest = max(largest, keys[k])
    if largest == 0:
        return -1
    for k in range(count):
        if keys[k] == largest:
            return k
    return -1


@njit(inline="always")
def _lowest_of_run(score: NDArray[np.float32], state: NDArray[np.int8], grown: int, m: int) -> int:
    """Column of the lowest starting score among the kept weights of the run of ``m`` columns around ``grown``."""
    first, best = grown - grown % m, -1
    for column in range(first, first + m):
        if state[column] == KEPT and (best < 0 or score[column] < score[best]):
            best = column
    return best


@njit(parallel=True, cache=True, nogil=True)
def swap_rows(
    contribution: NDArray[np.float32],
    grow: NDArray[np.float32],
    cost: NDArray[np.float32],
    start_score: NDArray[np.float32],
    pruned: NDArray[np.bool_],
    error: NDArray[np.float32],
    swaps: NDArray[np.int64],
    m: int,
    max_swaps: int,
    tolerance: float,
    rule: int,
    threads: int,
) -> None:
    """Swap in every row; ``pruned``, ``error`` and ``swaps`` are changed in place.

    Parameters
    ----------
    contribution, grow, cost, start_score : arrays of shape (out, in), float32
        Signed contribution to the row's error, size of the growing score, Wanda's score, starting mask's score.
    pruned : array of shape (out, in), bool
        The mask, True where the weight is removed.
    error : array of shape (out,), float32
        The rows' expected errors.
    swaps : array of shape (out,), int64
        Counts the swaps.
    m : int
        Run length of an N:M pattern, 0 for unstructured.
    max_swaps : int
        Swaps of a row at most.
    tolerance : float
        Rows with a smaller error are left alone.
    rule : int
        ``IMPROVE``, ``SAME_SIGN`` or ``REFERENCE``.
    threads : int
        Each takes an equal share of the rows.
    """
    rows, columns = contribution.shape
    for part in prange(threads):
        keys = np.empty((4, columns), dtype=np.int32)  # lists: grow, drop of side 0; grow, drop of side 1
        places = np.empty((4, columns), dtype=np.int32)
        bits = np.empty(1, dtype=np.float32)
        state = np.empty(columns, dtype=np.int8)
        for row in range(rows * part // threads, rows * (part + 1) // threads):
            count = np.zeros(4, dtype=np.int64)
            for column in range(columns):
                signed = contribution[row, column]
                state[column] = PRUNED if pruned[row, column] else KEPT
                if signed == 0.0:
                    continue
                if pruned[row, column]:
                    which = 0 if signed > 0.0 else 2
                    bits[0] = grow[row, column]
                    key = bits.view(np.int32)[0] + np.int32(1)
                else:
                    which = 1 if signed < 0.0 else 3
                    bits[0] = cost[row, column]
                    key = HIGHEST - bits.view(np.int32)[0]
                keys[which, count[which]] = key
                places[which, count[which]] = column
                count[which] += 1
            first = error[row]
            for _ in range(max_swaps):
                old = error[row]
                if not abs(old) > tolerance:
                    break
                side = 0 if old > 0.0 else 2
                at_grow = _best(keys[side], count[side])
                if at_grow < 0:
                    break
                grown = places[side, at_grow]
                if m > 0:
                    dropped = _lowest_of_run(start_score[row], state, grown, m)
                    at_drop = dropped
                else:
                    at_drop = _best(keys[side + 1], count[side + 1])
                    dropped = places[side + 1, at_drop]
                if at_drop < 0:
                    break
                new = np.float32(old - contribution[row, grown] + contribution[row, dropped])
                if rule == IMPROVE and not abs(new) < abs(old):
                    break
                if rule == SAME_SIGN and np.sign(new) != np.sign(first):
                    break
                keys[side, at_grow] = 0
                if m == 0:
                    keys[side + 1, at_drop] = 0
                state[grown], state[dropped] = GROWN, DROPPED
                pruned[row, grown], pruned[row, dropped] = False, True
                error[row] = new
                swaps[row] += 1
