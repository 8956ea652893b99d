"""Column-sparse matrix-vector products on CUDA, in Triton: several layers with one input in a single launch.

The grid is (tiles of 128 outputs of any layer) x (slices of the inputs). A program tests its slice of the input
against its layer's limits and loads the rows of the transposed weight whose input is kept; sums are float32, first
per slice, then over the slices, without atomics, so the same input gives the same bits.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

__all__ = ["sparse_columns"]

BLOCK_OUT = 128
BLOCK_IN = 32
PROGRAMS = 512
"""Enough programs to fill a large GPU several times over; slices of the inputs make up what tiles lack."""


@triton.jit
def _tile(  # type: ignore[no-untyped-def]  # Triton reads the parameters itself
    x_pointer,
    weight_pointer,
    limit_pointer,
    layer_pointer,
    start_pointer,
    out_pointer,
    first_pointer,
    partial_pointer,
    kept_pointer,
    inputs,
    total_outputs,
    slice_length,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    layer = tl.load(layer_pointer + tile)
    start = tl.load(start_pointer + tile).to(tl.int64)
    outputs = tl.load(out_pointer + tile)
    first = tl.load(first_pointer + tile)

    o = first + tl.arange(0, BLOCK_O)
    in_layer = o < outputs
    total = tl.zeros([BLOCK_O], dtype=tl.float32)
    kept = 0
    begin = part * slice_length
    end = tl.minimum(begin + slice_length, inputs)
    for offset in range(begin, end, BLOCK_I):
        i = offset + tl.arange(0, BLOCK_I)
        in_range = i < end
        x = tl.load(x_pointer + i, mask=in_range, other=0.0).to(tl.float32)
        limit = tl.load(limit_pointer + layer * inputs + i, mask=in_range, other=0.0)
        # as a negation, so that NaN is kept and shows in the output
        keep = in_range & ((tl.abs(x) <= limit) == 0)
        kept += tl.sum(keep.to(tl.int32), axis=0)
        rows = weight_pointer + start * inputs + i.to(tl.int64)[:, None] * outputs + o[None, :]
        weight = tl.load(rows, mask=keep[:, None] & in_layer[None, :], other=0.0).to(tl.float32)
        total += tl.sum(weight * tl.where(keep, x, 0.0)[:, None], axis=0)
    tl.store(partial_pointer + part * total_outputs + start + o, total, mask=in_layer)
    tl.atomic_add(kept_pointer + layer, kept, mask=first == 0)


def sparse_columns(
    x: Float[Tensor, " in"],
    weights: Float[Tensor, " stored"],
    limits: Float[Tensor, "layers in"],
    outs: tuple[int, ...],
    bias: Float[Tensor, " out"],
    kept: Tensor,
) -> Float[Tensor, " out"]:
    """Compute every layer's product with the one input they share, from the columns each keeps.

    Parameters
    ----------
    x : Tensor of shape (in,)
        The input.
    weights : Tensor of shape (in * sum(outs),)
        The transposed weights ``[in, out]``, layer after layer; float32, float16 or bfloat16.
    limits : Tensor of shape (layers, in)
        A layer keeps input i unless ``abs(x[i]) <= limits[layer, i]``.
    outs : tuple of int
        Outputs of each layer.
    bias : Tensor of shape (sum(outs),)
        Added to the product.
    kept : int32 Tensor of shape (layers,)
        The number of kept inputs is added to it.

    Returns
    -------
    Tensor of shape (sum(outs),)
        In float32.
    """
    tiles = _tiles(outs, x.device)
    inputs, outputs = len(x), sum(outs)
    count = tiles.shape[1]
    wanted = max(1, min(PROGRAMS // count, triton.cdiv(inputs, BLOCK_IN)))
    length = triton.cdiv(triton.cdiv(inputs, wanted), BLOCK_IN) * BLOCK_IN
    slices = triton.cdiv(inputs, length)
    partial = torch.empty(slices, outputs, dtype=torch.float32, device=x.device)
    _tile[(count, slices)](
        x, weights, limits, *tiles, partial, kept, inputs, outputs, length, BLOCK_I=BLOCK_IN, BLOCK_O=BLOCK_OUT
    )
    return partial.sum(0).add_(bias)


@functools.lru_cache(maxsize=4096)
def _tiles(outs: tuple[int, ...], device: torch.device) -> Tensor:
    """For each tile: its layer, the layer's first output among all, its number of outputs, the tile's first output."""
    rows = [
        (layer, sum(outs[:layer]), out, first) for layer, out in enumerate(outs) for first in range(0, out, BLOCK_OUT)
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device).T.contiguous()
