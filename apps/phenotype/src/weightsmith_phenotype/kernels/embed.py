"""Candidates of a text and their vectors: the windows of words that the classifier is asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from weightsmith_phenotype.kernels.match import BARRIER, COMMA, ENDS, FUNCTION, JOINT, KNOWN, LINK

__all__ = ["candidates"]


@njit(cache=True, nogil=True)
def candidates(
    ids: Any, flags: Any, features: Any, taken: Any, gate: Any, lengths: Any, spans: Any, vectors: Any
) -> Any:
    """Windows of ``lengths`` (least, most) words that may name something, with their vectors.

    A window begins and ends with a word that can do so, crosses no sign and no function word, has a word of the
    ontology, and overlaps no place in ``taken``. Its vector is the mean of its words' features, centered and of length
    one. Where the linear test ``gate`` (weights, then a bias) is negative it is left out.

    Returns how many there are; ``spans`` and ``vectors`` hold the first of them.
    """
    sums, counts = features
    shortest, longest = lengths
    count, size = 0, sums.shape[1]
    total = np.empty(size, np.float32)
    for start in range(len(ids)):
        first = flags[ids[start]]
        if first & (BARRIER | JOINT | LINK | FUNCTION | COMMA) or taken[start]:
            continue
        total[:] = 0
        weight, length, known = np.float32(0), 0, False
        for end in range(start, len(ids)):
            kind = flags[ids[end]]
            if kind & JOINT:
                continue
            if kind & (BARRIER | COMMA) or (kind & FUNCTION and not kind & LINK) or taken[end]:
                break
            length += 1
            if length > longest:
                break
            known |= kind & KNOWN != 0
            for n in range(size):
                total[n] += sums[ids[end], n]
            weight += counts[ids[end]]
            if length < shortest or kind & LINK or not kind & ENDS or not known:
                continue
            mean = total.sum() / size
            norm = np.float32(0)
            score = np.float32(0)
            for n in range(size):
                centered = total[n] - mean
                norm += centered * centered
                score += centered * gate[n]
            norm = np.sqrt(norm) + np.float32(1e-12)
            if score / norm + gate[size] < 0:
                continue
            if count < len(spans):
                spans[count, 0], spans[count, 1] = start, end + 1
                for n in range(size):
                    vectors[count, n] = (total[n] - mean) / norm
            count += 1
    return count
