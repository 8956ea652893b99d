"""Feature ids of tokens, and the linear-chain CRF over sums of table rows: decode, marginals, loss and gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["FEATURES", "decode", "feature_ids", "loss_and_gradient", "marginals"]

AFFIX, NEIGHBORS, LONGEST = 5, 4, 40
FEATURES = 1 + 4 + 2 * AFFIX + 6 + 2 * NEIGHBORS + 4
"""Feature ids of one token; -1 where one is absent."""

_PRIME = np.uint64(0x100000001B3)
_BASIS = np.uint64(0xCBF29CE484222325)
_EDGE = np.uint64(0x2545F4914F6CDD1D)


@njit(cache=True, nogil=True)
def _mixed(code: Any, salt: int) -> Any:
    """A well-spread 64-bit code of a code and the number of its template."""
    code = (code ^ (np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xFF51AFD7ED558CCD)
    code = (code ^ (code >> np.uint64(32))) * np.uint64(0xC4CEB9FE1A85EC53)
    return code ^ (code >> np.uint64(29))


@njit(cache=True, nogil=True)
def _class_of(char: Any) -> int:
    """The letter of a word's shape: X upper case, x lower case, d digit, else the character itself."""
    if 48 <= char <= 57:
        return 100
    if 97 <= char <= 122 or char >= 0xDF:
        return 120
    if 65 <= char <= 90 or char >= 0xC0:
        return 88
    return char


@njit(cache=True, nogil=True)
def _shape(chars: Any, start: int, end: int) -> Any:
    """Code of a word's shape: its first and last two classes, and the set of those between."""
    code = _BASIS
    length = end - start
    head = min(2, length)
    tail = max(head, length - 2)
    for at in range(start, start + head):
        code = (code ^ np.uint64(_class_of(chars[at]))) * _PRIME
    between = np.uint64(0)
    for at in range(start + head, start + tail):
        between |= np.uint64(1) << np.uint64(_class_of(chars[at]) & 63)
    code = (code ^ between) * _PRIME
    for at in range(start + tail, end):
        code = (code ^ np.uint64(_class_of(chars[at]))) * _PRIME
    return code


@njit(cache=True, nogil=True)
def feature_ids(chars: Any, offsets: Any, first: Any, classes: Any, buckets: int) -> Any:
    """Ids of the features of all tokens, shape (tokens, `FEATURES`), int32.

    ``offsets`` says where each token's code points start in ``chars``, ``first`` which token starts each phrase.
    ``classes`` holds a dictionary's class of each token, or is empty. ``buckets`` is a power of two. Tokens are read up
    to `LONGEST` code points.
    """
    count = len(offsets) - 1
    words, lowered, shapes = np.empty(count, np.uint64), np.empty(count, np.uint64), np.empty(count, np.uint64)
    ids = np.full((count, FEATURES), -1, np.int32)
    mask = np.uint64(buckets - 1)
    for token in range(count):
        start = offsets[token]
        end = min(offsets[token + 1], start + LONGEST)
        word, lower = _BASIS, _BASIS
        for at in range(start, end):
            char = chars[at]
            word = (word ^ np.uint64(char)) * _PRIME
            if 65 <= char <= 90 or 0xC0 <= char <= 0xDE:
                char += 32
            lower = (lower ^ np.uint64(char)) * _PRIME
            if at - start < AFFIX:
                ids[token, 5 + at - start] = np.int32(_mixed(word, 5 + at - start) & mask)
        words[token], lowered[token], shapes[token] = word, lower, _shape(chars, start, end)
        suffix = _BASIS
        for size in range(min(AFFIX, end - start)):
            suffix = (suffix ^ np.uint64(chars[end - 1 - size])) * _PRIME
            ids[token, 5 + AFFIX + size] = np.int32(_mixed(suffix, 5 + AFFIX + size) & mask)
    row = 5 + 2 * AFFIX
    for phrase in range(len(first) - 1):
        begin, stop = first[phrase], first[phrase + 1]
        for token in range(begin, stop):
            left = words[token - 1] if token > begin else _EDGE
            right = words[token + 1] if token + 1 < stop else _EDGE
            before = shapes[token - 1] if token > begin else _EDGE
            after = shapes[token + 1] if token + 1 < stop else _EDGE
            shape = shapes[token]
            ids[token, 0] = np.int32(_mixed(_BASIS, 0) & mask)
            ids[token, 1] = np.int32(_mixed(words[token], 1) & mask)
            ids[token, 2] = np.int32(_mixed(lowered[token], 2) & mask)
            ids[token, 3] = np.int32(_mixed(left, 3) & mask)
            ids[token, 4] = np.int32(_mixed(right, 4) & mask)
            ids[token, row] = np.int32(_mixed(shape, row) & mask)
            ids[token, row + 1] = np.int32(_mixed(before, row + 1) & mask)
            ids[token, row + 2] = np.int32(_mixed(after, row + 2) & mask)
            pair = _mixed(before, row + 3) ^ shape
            ids[token, row + 3] = np.int32(_mixed(pair, row + 3) & mask)
            ids[token, row + 4] = np.int32(_mixed(_mixed(after, row + 4) ^ shape, row + 4) & mask)
            ids[token, row + 5] = np.int32(_mixed(_mixed(after, row + 5) ^ pair, row + 5) & mask)
            if len(classes):
                kind = np.uint64(classes[token])
                kind_left = np.uint64(classes[token - 1]) if token > begin else _EDGE
                kind_right = np.uint64(classes[token + 1]) if token + 1 < stop else _EDGE
                last = row + 6 + 2 * NEIGHBORS
                ids[token, last] = np.int32(_mixed(kind, last) & mask)
                ids[token, last + 1] = np.int32(_mixed(_mixed(left, last) ^ kind, last + 1) & mask)
                ids[token, last + 2] = np.int32(_mixed(_mixed(kind_left, last) ^ kind, last + 2) & mask)
                ids[token, last + 3] = np.int32(_mixed(_mixed(kind_right, last) ^ kind, last + 3) & mask)
            for distance in range(1, NEIGHBORS + 1):
                # Unordered: the template's number is the side's, not the distance's.
                if token - distance >= begin:
                    code = _mixed(words[token - distance], row + 6)
                    ids[token, row + 5 + distance] = np.int32(code & mask)
                if token + distance < stop:
                    code = _mixed(words[token + distance], row + 7)
                    ids[token, row + 5 + NEIGHBORS + distance] = np.int32(code & mask)
    return ids


@njit(cache=True, nogil=True)
def _emissions(ids: Any, table: Any, begin: int, stop: int, scores: Any) -> None:
    labels = table.shape[1]
    for token in range(begin, stop):
        row = scores[token - begin]
        row[:] = 0
        for n in range(ids.shape[1]):
            bucket = ids[token, n]
            if bucket >= 0:
                for label in range(labels):
                    row[label] += table[bucket, label]


@njit(cache=True, nogil=True)
def _longest(first: Any) -> int:
    most = 1
    for phrase in range(len(first) - 1):
        most = max(most, first[phrase + 1] - first[phrase])
    return most


@njit(cache=True, nogil=True)
def decode(ids: Any, first: Any, table: Any, transitions: Any) -> Any:
    """The best label of every token (Viterbi), int8; ``transitions[i, j]`` scores label j after label i."""
    labels = table.shape[1]
    longest = _longest(first)
    scores, back = np.empty((longest, labels), np.float32), np.empty((longest, labels), np.int8)
    best, found = np.empty((2, labels), np.float32), np.empty(len(ids), np.int8)
    for phrase in range(len(first) - 1):
        begin, stop = first[phrase], first[phrase + 1]
        if begin == stop:
            continue
        _emissions(ids, table, begin, stop, scores)
        best[0] = scores[0]
        now = 0
        for step in range(1, stop - begin):
            for to in range(labels):
                top, where = best[now, 0] + transitions[0, to], 0
                for origin in range(1, labels):
                    value = best[now, origin] + transitions[origin, to]
                    if value > top:
                        top, where = value, origin
                best[1 - now, to] = top + scores[step, to]
                back[step, to] = where
            now = 1 - now
        label = np.argmax(best[now])
        for step in range(stop - begin - 1, -1, -1):
            found[begin + step] = label
            if step:
                label = back[step, label]
    return found


@njit(cache=True, nogil=True)
def _forward_backward(scores: Any, count: int, weights: Any, alpha: Any, beta: Any, local: Any) -> float:
    """Fill the scaled forward and backward probabilities; returns log Z.

    ``weights`` is exp(transitions), ``local`` receives exp(scores - max); with ``alpha`` normalized per token, the
    marginal of a token is ``alpha * beta``.
    """
    labels = weights.shape[0]
    total = 0.0
    scale = np.empty(count)
    for step in range(count):
        top = scores[step].max()
        norm = 0.0
        for to in range(labels):
            local[step, to] = np.exp(scores[step, to] - top)
            value = 1.0
            if step:
                value = 0.0
                for origin in range(labels):
                    value += alpha[step - 1, origin] * weights[origin, to]
            alpha[step, to] = value * local[step, to]
            norm += alpha[step, to]
        for to in range(labels):
            alpha[step, to] /= norm
        scale[step] = norm
        total += top + np.log(norm)
    beta[count - 1] = 1.0
    for step in range(count - 2, -1, -1):
        for origin in range(labels):
            value = 0.0
            for to in range(labels):
                value += weights[origin, to] * local[step + 1, to] * beta[step + 1, to]
            beta[step, origin] = value / scale[step + 1]
    for step in range(count):
        local[step] /= scale[step]
    return total


@njit(cache=True, nogil=True)
def marginals(ids: Any, first: Any, table: Any, transitions: Any, chosen: Any) -> Any:
    """Probability of the chosen label of every token, float32."""
    labels = table.shape[1]
    longest = _longest(first)
    scores = np.empty((longest, labels), np.float32)
    alpha, beta, local = np.empty((longest, labels)), np.empty((longest, labels)), np.empty((longest, labels))
    weights = np.exp(transitions.astype(np.float64))
    found = np.empty(len(ids), np.float32)
    for phrase in range(len(first) - 1):
        begin, stop = first[phrase], first[phrase + 1]
        if begin == stop:
            continue
        _emissions(ids, table, begin, stop, scores)
        _forward_backward(scores, stop - begin, weights, alpha, beta, local)
        for token in range(begin, stop):
            found[token] = alpha[token - begin, chosen[token]] * beta[token - begin, chosen[token]]
    return found


@njit(cache=True, nogil=True)
def loss_and_gradient(ids: Any, first: Any, labels: Any, table: Any, transitions: Any, table_gradient: Any) -> Any:
    """Sum of the negative log-likelihoods of all phrases, and its gradient with respect to the transitions.

    The gradient with respect to the table is added to ``table_gradient``.
    """
    kinds = table.shape[1]
    longest = _longest(first)
    scores = np.empty((longest, kinds))
    alpha, beta, local = np.empty((longest, kinds)), np.empty((longest, kinds)), np.empty((longest, kinds))
    weights = np.exp(transitions)
    gradient = np.zeros((kinds, kinds))
    loss = 0.0
    for phrase in range(len(first) - 1):
        begin, stop = first[phrase], first[phrase + 1]
        count = stop - begin
        if count == 0:
            continue
        _emissions(ids, table, begin, stop, scores)
        loss += _forward_backward(scores, count, weights, alpha, beta, local)
        for step in range(count):
            gold = labels[begin + step]
            loss -= scores[step, gold]
            if step:
                before = labels[begin + step - 1]
                loss -= transitions[before, gold]
                gradient[before, gold] -= 1.0
                for origin in range(kinds):
                    for to in range(kinds):
                        gradient[origin, to] += (
                            alpha[step - 1, origin] * weights[origin, to] * local[step, to] * beta[step, to]
                        )
            for label in range(kinds):
                scores[step, label] = alpha[step, label] * beta[step, label]
            scores[step, gold] -= 1.0
            for n in range(ids.shape[1]):
                bucket = ids[begin + step, n]
                if bucket >= 0:
                    for label in range(kinds):
                        table_gradient[bucket, label] += scores[step, label]
    return loss, gradient
