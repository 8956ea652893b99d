"""Linear assignment by shortest augmenting paths from given dual variables, compiled for the CPU with numba.

Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems", Computing
38 (1987). Every column has a dual variable (its price); the best column of a row is where score minus dual is largest.
Rows whose best column no other row wants are assigned at once; the others bid a few times, as in an auction; for the
rest a shortest augmenting path is searched. The result is optimal for any dual variables at the start; they only decide
how many paths are searched.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["augment"]

BIDS = 8
"""Rounds of bids before paths are searched."""

ORDERED = {"nnan", "nsz"}
"""Lets maxima vectorize; sums are not reordered, so that the largest number is found again."""


@njit(cache=True, nogil=True, fastmath=ORDERED)
def _two_largest(score: NDArray[np.floating], dual: NDArray[np.float64]) -> tuple[float, float]:
    largest, second = -np.inf, -np.inf
    for j in range(len(dual)):
        net = score[j] - dual[j]
        second = max(second, min(largest, net))
        largest = max(largest, net)
    return largest, second


@njit(cache=True, nogil=True)
def _find(score: NDArray[np.floating], dual: NDArray[np.float64], net: float) -> int:
    for j in range(len(dual)):
        if score[j] - dual[j] >= net:
            return j
    return -1


@njit(cache=True, nogil=True, fastmath=ORDERED)
def _relax(
    score: NDArray[np.floating],
    dual: NDArray[np.float64],
    base: float,
    row: int,
    reached: NDArray[np.float64],
    ahead: NDArray[np.float64],
    back: NDArray[np.int64],
) -> float:
    """Extend the paths from ``row`` to all columns not yet passed; return the distance of the nearest."""
    nearest = np.inf
    for j in range(len(dual)):
        distance = base - (score[j] - dual[j])
        shorter = distance < reached[j]
        reached[j] = distance if shorter else reached[j]
        ahead[j] = distance if shorter else ahead[j]
        back[j] = row if shorter else back[j]
        nearest = min(nearest, ahead[j])
    return nearest


@njit(cache=True, nogil=True)
def augment(score: NDArray[np.floating], dual: NDArray[np.float64], column: NDArray[np.int64]) -> None:
    """Find the assignment of largest total.

    Parameters
    ----------
    score : array of shape (n, n)
        Of each column to each row; finite.
    dual : array of shape (n,)
        Dual variables of the columns; any numbers, best those of a similar problem. Changed to those of the solution.
    column : array of shape (n,)
        Of each row, at the start; kept where it is among the best. Changed to the solution.
    """
    n = len(dual)
    owner = np.full(n, -1, np.int64)
    free, count = np.empty(n, np.int64), 0
    for i in range(n):
        largest, _ = _two_largest(score[i], dual)
        wanted = column[i]
        if score[i, wanted] - dual[wanted] < largest or owner[wanted] >= 0:
            wanted = _find(score[i], dual, largest)
        if owner[wanted] < 0:
            owner[wanted], column[i] = i, wanted
        else:
            column[i], free[count] = -1, i
            count += 1
    for _ in range(BIDS):
        bidders, count = count, 0
        for k in range(bidders):
            i = free[k]
            largest, second = _two_largest(score[i], dual)
            wanted = _find(score[i], dual, largest)
            loser = owner[wanted]
            if loser >= 0 and largest == second:  # a bid would raise nothing
                loser = i
            else:
                dual[wanted] += largest - second
                owner[wanted], column[i] = i, wanted
            if loser >= 0:
                column[loser], free[count] = -1, loser
                count += 1
    highest = np.empty(n)
    for i in range(n):
        highest[i], _ = _two_largest(score[i], dual)
    reached, ahead, back = np.empty(n), np.empty(n), np.empty(n, np.int64)
    passed, distances = np.empty(n, np.int64), np.empty(n)
    for k in range(count):
        start = free[k]
        row, distance, steps = start, 0.0, 0
        reached[:] = np.inf
        ahead[:] = np.inf
        while True:
            distance = _relax(score[row], dual, distance + highest[row], row, reached, ahead, back)
            nearest = 0
            while ahead[nearest] > distance:
                nearest += 1
            if owner[nearest] < 0:
                break
            passed[steps], distances[steps] = nearest, distance
            steps += 1
            reached[nearest], ahead[nearest] = -np.inf, np.inf
            row = owner[nearest]
        for step in range(steps):
            dual[passed[step]] += distance - distances[step]
            highest[owner[passed[step]]] -= distance - distances[step]
        highest[start] -= distance
        while True:  # every row on the path takes its next column
            row = back[nearest]
            owner[nearest] = row
            nearest, column[row] = column[row], nearest
            if row == start:
                break
