"""Candidates of a text and their vectors: the windows of words that the classifier is asked about, and its answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from weightsmith_phenotype.kernels.compiled import compiled
from weightsmith_phenotype.kernels.match import BARRIER, COMMA, ENDS, FUNCTION, JOINT, KNOWN, LINK

__all__ = ["candidates", "products", "shortlist"]


@njit(cache=True, nogil=True, fastmath=True, _nrt=False)
def _product(vectors: Any, vector: Any, rows: Any, row: Any) -> Any:
    """A dot product, summed in whatever order is fastest."""
    total = np.float32(0)
    for n in range(rows.shape[1]):
        total += rows[row, n] * vectors[vector, n]
    return total


@compiled
def products(vectors: Any, rows: Any, out: Any) -> None:
    """Write the dot product of each vector with each row to ``out``, [vectors, rows].

    A text has a handful of candidates and an ontology thousands of concepts: the concepts are read from memory once, in
    order. A general product of matrices first copies them, in twice the time.
    """
    for row in range(rows.shape[0]):
        for vector in range(vectors.shape[0]):
            out[vector, row] = _product(vectors, vector, rows, row)


@compiled
def candidates(
    ids: Any, flags: Any, features: Any, taken: Any, gate: Any, lengths: Any, spans: Any, vectors: Any, total: Any
) -> Any:
    """Windows of ``lengths`` (least, most) words that may name something, with their vectors.

    A window begins and ends with a word that can do so, crosses no sign and no function word, has a word of the
    ontology, and overlaps no place in ``taken``. Its vector is the mean of its words' features, centered and of length
    one. Where the linear test ``gate`` (weights, then a bias) is negative it is left out.

    Returns how many there are; ``spans`` and ``vectors`` hold the first of them; ``total`` is room for a vector.
    """
    sums, counts = features
    shortest, longest = lengths
    count, size = 0, sums.shape[1]
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


@compiled
def shortlist(
    spans: Any,
    vectors: Any,
    ids: Any,
    flags: Any,
    postings: Any,
    index: Any,
    concepts: Any,
    scale: Any,
    threshold: Any,
    room: Any,
    keep: Any,
) -> None:
    """Set ``keep`` for the candidates whose probability is above a threshold where few concepts share it.

    A candidate is compared with the concepts that have one of its stems in a name, and with "no concept", the last row
    of ``concepts``. All others would only lower the probability, so a candidate that is left out here is right to be
    left out, unless its best concept has none of its stems. ``postings`` is the row of each word's stem in ``index``
    (starts, members) or -1; ``room`` has an integer, zero at first, and a float per concept.
    """
    starts, members = index
    seen, logits = room
    for candidate in range(len(spans)):
        count = 0
        for place in range(spans[candidate, 0], spans[candidate, 1]):
            posting = postings[ids[place]]
            if posting < 0 or flags[ids[place]] & LINK:
                continue
            for n in range(starts[posting], starts[posting + 1]):
                concept = members[n]
                if seen[concept]:
                    continue
                seen[concept] = 1
                logits[count] = scale * _product(vectors, candidate, concepts, concept)
                count += 1
        for place in range(spans[candidate, 0], spans[candidate, 1]):
            posting = postings[ids[place]]
            if posting >= 0:
                for n in range(starts[posting], starts[posting + 1]):
                    seen[members[n]] = 0
        keep[candidate] = False
        if count:
            highest = logits[0]
            for n in range(count):
                highest = max(highest, logits[n])
            total = np.exp(scale * _product(vectors, candidate, concepts, len(concepts) - 1) - highest)
            for n in range(count):
                total += np.exp(logits[n] - highest)
            keep[candidate] = 1 / total > threshold
