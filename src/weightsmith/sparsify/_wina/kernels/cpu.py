"""Column-sparse matrix-vector products on the CPU, compiled with numba.

The weights of layers that share their input are in one flat array, one after the other, each transposed
(``[in, out]``): a kept input reads one contiguous run and a dropped input reads nothing. Storage types: float32;
``uint16`` holds the bits of float16, ``int16`` those of bfloat16; ``uint8`` holds unsigned codes of eight bits,
``int8`` two of four bits: that of output ``o`` in the low half of byte ``o``, that of output ``o + ceil(out / 2)`` in
its high half. Sums are in float32.

The ``fastmath`` flags do not include those that assume that there is no NaN: a NaN input must reach the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from weightsmith.core.threads import start_threads
from weightsmith.sparsify._wina.kernels import BITS

__all__ = ["arguments", "sparse_columns"]

start_threads()

FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


@intrinsic
def _widen(typing: Any, value: Any) -> Any:
    """One stored weight as float32; of two codes in a byte the low one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (stored,) = args
        word = ir.IntType(32)
        if value == types.uint16:
            return builder.fpext(builder.bitcast(stored, ir.HalfType()), ir.FloatType())
        if value == types.int16:
            return builder.bitcast(builder.shl(builder.zext(stored, word), ir.Constant(word, 16)), ir.FloatType())
        if value == types.uint8:
            return builder.sitofp(builder.zext(stored, word), ir.FloatType())
        if value == types.int8:
            return builder.sitofp(builder.and_(builder.zext(stored, word), ir.Constant(word, 15)), ir.FloatType())
        return stored

    return types.float32(value), codegen


@intrinsic
def _high(typing: Any, value: Any) -> Any:
    """The high code of a byte as float32; 0 for other storage types, which have none."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        if value == types.int8:
            return builder.sitofp(builder.lshr(builder.zext(args[0], word), ir.Constant(word, 4)), ir.FloatType())
        return ir.Constant(ir.FloatType(), 0.0)

    return types.float32(value), codegen


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _compact(x: NDArray[Any], limit: NDArray[Any], index: NDArray[Any], value: NDArray[Any]) -> int:
    """List the kept inputs, without branches; NaN is kept."""
    n = 0
    for i in range(x.size):
        index[n] = i
        value[n] = x[i]
        n += 1 - int(abs(x[i]) <= limit[i])
    return n


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _add_columns(weight: NDArray[Any], index: NDArray[Any], value: NDArray[Any], y: NDArray[Any]) -> None:
    """Sum the listed columns times their values into y, eight at a time: y is read and written once for eight."""
    width = weight.shape[1]
    y[:] = 0
    high = y[width:]  # empty where a stored weight has one code
    k = 0
    while k + 8 <= index.size:
        w0, w1, w2, w3 = weight[index[k]], weight[index[k + 1]], weight[index[k + 2]], weight[index[k + 3]]
        w4, w5, w6, w7 = weight[index[k + 4]], weight[index[k + 5]], weight[index[k + 6]], weight[index[k + 7]]
        v0, v1, v2, v3 = value[k], value[k + 1], value[k + 2], value[k + 3]
        v4, v5, v6, v7 = value[k + 4], value[k + 5], value[k + 6], value[k + 7]
        for o in range(width):
            first = v0 * _widen(w0[o]) + v1 * _widen(w1[o]) + v2 * _widen(w2[o]) + v3 * _widen(w3[o])
            second = v4 * _widen(w4[o]) + v5 * _widen(w5[o]) + v6 * _widen(w6[o]) + v7 * _widen(w7[o])
            y[o] += first + second
        for o in range(high.size):
            first = v0 * _high(w0[o]) + v1 * _high(w1[o]) + v2 * _high(w2[o]) + v3 * _high(w3[o])
            second = v4 * _high(w4[o]) + v5 * _high(w5[o]) + v6 * _high(w6[o]) + v7 * _high(w7[o])
            high[o] += first + second
        k += 8
    while k < index.size:
        w0, v0 = weight[index[k]], value[k]
        for o in range(width):
            y[o] += v0 * _widen(w0[o])
        for o in range(high.size):
            high[o] += v0 * _high(w0[o])
        k += 1


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def _share(
    part: int,
    parts: int,
    inputs: int,
    weights: NDArray[Any],
    outs: NDArray[Any],
    index: NDArray[Any],
    value: NDArray[Any],
    kept: NDArray[Any],
    y: NDArray[Any],
) -> None:
    """One thread's share of the kept columns of every layer, summed into its own y."""
    halved = weights.size < inputs * outs.sum()
    start = place = 0
    for layer in range(outs.size):
        stop = start + outs[layer]
        width = (outs[layer] + 1) // 2 if halved else outs[layer]
        first, last = kept[layer] * part // parts, kept[layer] * (part + 1) // parts
        weight = weights[place : place + width * inputs].reshape(inputs, width)
        _add_columns(weight, index[layer, first:last], value[layer, first:last], y[start:stop])
        start, place = stop, place + width * inputs


@njit(fastmath=FASTMATH, nogil=True, cache=True, parallel=True)
def _shares(
    parts: int,
    inputs: int,
    weights: NDArray[Any],
    outs: NDArray[Any],
    index: NDArray[Any],
    value: NDArray[Any],
    kept: NDArray[Any],
    partial: NDArray[Any],
) -> None:
    for part in prange(parts):
        _share(part, parts, inputs, weights, outs, index, value, kept, partial[part])


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def sparse_columns(
    x: NDArray[Any],
    y: NDArray[Any],
    weights: NDArray[Any],
    limits: NDArray[Any],
    outs: NDArray[Any],
    bias: NDArray[Any],
    unit: NDArray[Any],
    shift: NDArray[Any],
    index: NDArray[Any],
    value: NDArray[Any],
    partial: NDArray[Any],
    kept: NDArray[Any],
    total: NDArray[Any],
) -> None:
    """Compute every layer's product with the one input they share, from the columns each keeps.

    Parameters
    ----------
    x : float32 array of shape (in,)
        The input.
    y : float32 array of shape (sum(outs),)
        Receives the products.
    weights : array of shape (in * sum(outs),), or about half of that with two codes per byte
        The transposed weights, layer after layer.
    limits : float32 array of shape (layers, in)
        A layer keeps input i unless ``abs(x[i]) <= limits[layer, i]``.
    outs : int64 array of shape (layers,)
        Outputs of each layer.
    bias : float32 array of shape (sum(outs),)
        Added to the products.
    unit, shift : float32 arrays of shape (sum(outs),)
        Of codes ``u``: the weight is ``unit * u - shift``. Empty for other weights.
    index, value : int64 and float32 arrays of shape (layers, in + 1)
        Buffers for the kept inputs.
    partial : float32 array of shape (threads, sum(outs))
        Buffers for the sums of each thread; the first size is the number of threads.
    kept, total : int64 arrays of shape (layers,)
        Receives the number of kept inputs; adds it up.
    """
    for layer in range(outs.size):
        kept[layer] = _compact(x, limits[layer], index[layer], value[layer])
        total[layer] += kept[layer]
    parts = partial.shape[0]
    if parts == 1:
        _share(0, 1, x.size, weights, outs, index, value, kept, partial[0])
    else:
        _shares(parts, x.size, weights, outs, index, value, kept, partial)
    for part in range(1, parts):
        for o in range(y.size):
            partial[0, o] += partial[part, o]
    if unit.size == 0:
        for o in range(y.size):
            y[o] = bias[o] + partial[0, o]
        return
    start = 0
    for layer in range(outs.size):
        inputs_sum = value[layer, : kept[layer]].sum()
        for o in range(start, start + outs[layer]):
            y[o] = bias[o] + unit[o] * partial[0, o] - shift[o] * inputs_sum
        start += outs[layer]


def arguments(
    weights: Tensor,
    limits_LI: Tensor,
    outs: Sequence[int],
    bias_O: Tensor,
    unit_O: Tensor,
    shift_O: Tensor,
    total_L: Tensor,
) -> list[Any]:
    """Return what :func:`sparse_columns` takes after ``x`` and ``y``: tensors as arrays, and new buffers."""
    layers, inputs = limits_LI.shape
    return [
        weights.view(BITS.get(weights.dtype, weights.dtype)).numpy(),
        limits_LI.numpy(),
        np.array(outs),
        bias_O.numpy(),
        unit_O.numpy(),
        shift_O.numpy(),
        np.empty((layers, inputs + 1), np.int64),
        np.empty((layers, inputs + 1), np.float32),
        np.empty((torch.get_num_threads(), sum(outs)), np.float32),
        np.zeros(layers, np.int64),
        total_L.numpy(),
    ]
