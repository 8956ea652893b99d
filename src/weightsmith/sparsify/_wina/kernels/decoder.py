"""One token through a decoder block on the CPU, in two calls with the key-value cache's update between them.

Between the matrix-vector products of :mod:`.cpu` a decode step does some fifty operations on a few hundred numbers
each; here they cost nothing beside the products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from weightsmith.sparsify._wina.kernels.cpu import FASTMATH, sparse_columns

__all__ = ["GELU", "GELU_TANH", "RELU", "SILU", "after_cache", "before_cache"]

SILU, GELU, GELU_TANH, RELU = 0, 1, 2, 3

PARALLEL_ABOVE = 1 << 17
"""Multiply-adds of attention that are worth a second thread."""


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _rms_norm(x: NDArray[Any], gain: NDArray[Any], eps: float, y: NDArray[Any]) -> None:
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = np.float32(1 / math.sqrt(total / x.size + eps))
    for i in range(x.size):
        y[i] = x[i] * scale * gain[i]


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _norm_and_rotate(heads: NDArray[Any], gain: NDArray[Any], eps: float, cos: NDArray[Any], sin: NDArray[Any]) -> None:
    """Normalise each head (where there is a gain) and rotate its halves by the position's angles, in place."""
    half = heads.shape[1] // 2
    for h in range(heads.shape[0]):
        head = heads[h]
        if gain.size > 0:
            _rms_norm(head, gain, eps, head)
        for i in range(half):
            first, second = head[i], head[half + i]
            head[i] = first * cos[i] - second * sin[i]
            head[half + i] = second * cos[half + i] + first * sin[half + i]


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def before_cache(
    hidden: NDArray[Any],
    gain: NDArray[Any],
    eps: float,
    qkv: Any,
    head_gains: NDArray[Any],
    head_eps: float,
    cos: NDArray[Any],
    sin: NDArray[Any],
    heads: int,
    kv_heads: int,
    normed: NDArray[Any],
    y: NDArray[Any],
) -> None:
    """Norm, query, key and value, and the rotation of queries and keys.

    Parameters
    ----------
    hidden : array of shape (width,)
        The token's hidden state.
    gain, eps : array of shape (width,) and float
        Of the norm before attention.
    qkv : tuple of arrays
        What :func:`~.cpu.sparse_columns` takes for the three layers.
    head_gains, head_eps : array of shape (2, head size) or (2, 0), and float
        Of the norms of query and key heads, where the model has them.
    cos, sin : arrays of shape (head size,)
        Of the position's angles.
    heads, kv_heads : int
        Number of query heads and of key (and value) heads.
    normed : array of shape (width,)
        Room for the norm's output.
    y : array of shape ((heads + 2 * kv_heads) * head size,)
        Receives queries, keys and values.
    """
    _rms_norm(hidden, gain, eps, normed)
    sparse_columns(normed, y, *qkv)
    size = cos.size
    split = heads * size
    _norm_and_rotate(y[:split].reshape(heads, size), head_gains[0], head_eps, cos, sin)
    _norm_and_rotate(y[split : split + kv_heads * size].reshape(kv_heads, size), head_gains[1], head_eps, cos, sin)


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _attend(query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], scale: float, y: NDArray[Any]) -> None:
    """One head's attention to all cached tokens."""
    tokens, size = key.shape
    score = np.empty(tokens, np.float32)
    highest = np.float32(-np.inf)
    for t in range(tokens):
        row, total = key[t], np.float32(0)
        for i in range(size):
            total += query[i] * row[i]
        score[t] = total * np.float32(scale)
        highest = max(highest, score[t])
    total = np.float32(0)
    for t in range(tokens):
        score[t] = math.exp(score[t] - highest)
        total += score[t]
    y[:] = 0
    for t in range(tokens):
        row, share = value[t], score[t] / total
        for i in range(size):
            y[i] += share * row[i]


@njit(fastmath=FASTMATH, nogil=True, cache=True, parallel=True)
def _attend_parallel(
    query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], scale: float, y: NDArray[Any]
) -> None:
    for h in prange(query.shape[0]):
        kv = h * key.shape[0] // query.shape[0]
        _attend(query[h], key[kv], value[kv], scale, y[h])


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _activate(x: NDArray[Any], kind: int) -> None:
    for i in range(x.size):
        v = x[i]
        if kind == SILU:
            x[i] = v / (np.float32(1) + math.exp(-v))
        elif kind == GELU:
            x[i] = np.float32(0.5) * v * (np.float32(1) + math.erf(v * np.float32(math.sqrt(0.5))))
        elif kind == GELU_TANH:
            inner = np.float32(math.sqrt(2 / math.pi)) * (v + np.float32(0.044715) * v * v * v)
            x[i] = np.float32(0.5) * v * (np.float32(1) + math.tanh(inner))
        else:
            x[i] = max(v, np.float32(0))


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def after_cache(
    hidden: NDArray[Any],
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    scale: float,
    out: Any,
    gain: NDArray[Any],
    eps: float,
    gate_up: Any,
    activation: int,
    down: Any,
    attended: NDArray[Any],
    normed: NDArray[Any],
    inner: NDArray[Any],
    y: NDArray[Any],
) -> None:
    """Attention, output projection, norm and gated MLP, with both residual additions.

    Parameters
    ----------
    hidden : array of shape (width,)
        The token's hidden state.
    query : array of shape (heads, head size)
        Its queries.
    key, value : arrays of shape (kv heads, tokens, head size)
        All tokens' keys and values.
    scale : float
        Of the attention scores.
    out, gate_up, down : tuple of arrays
        What :func:`~.cpu.sparse_columns` takes for these layers.
    gain, eps : array of shape (width,) and float
        Of the norm before the MLP.
    activation : int
        One of ``SILU``, ``GELU``, ``GELU_TANH``, ``RELU``.
    attended, normed, inner : arrays of shape (heads * head size,), (width,) and (2 * inner width,)
        Room.
    y : array of shape (width,)
        Receives the block's output.
    """
    heads, size = query.shape
    if heads * size * key.shape[1] > PARALLEL_ABOVE and out[6].shape[0] > 1:
        _attend_parallel(query, key, value, scale, attended.reshape(heads, size))
    else:
        for h in range(heads):
            kv = h * key.shape[0] // heads
            _attend(query[h], key[kv], value[kv], scale, attended[h * size : (h + 1) * size])
    sparse_columns(attended, y, *out)
    for i in range(y.size):
        y[i] += hidden[i]
    _rms_norm(y, gain, eps, normed)
    sparse_columns(normed, inner, *gate_up)
    width = inner.size // 2
    gate, up = inner[:width], inner[width:]
    _activate(gate, activation)
    for i in range(width):
        gate[i] *= up[i]
    sparse_columns(gate, normed, *down)
    for i in range(y.size):
        y[i] += normed[i]
