r"""Bone's arithmetic: how a small set of blocks changes a weight matrix, forward and backward.

A weight of ``O`` outputs and ``I`` inputs is cut into blocks of ``R`` by ``R``, :math:`W_{oi}`:

.. math::

    \text{bat:}\quad W'_{oi} = W_{oi} + W_{oi} B_o + B_o \qquad
    \text{bat-row:}\quad W'_{oi} = W_{oi} + W_{oi} B_i + B_i \qquad
    \text{miss:}\quad W'_{oj} = W_{oj} + D_{j \bmod R,\, o}

Where ``O`` or ``I`` is no multiple of ``R`` the last blocks hang over the edge, as if the weight went on with zeros.

Legend: ``O`` outputs, ``I`` inputs, ``R`` block size, ``N`` blocks in a row, ``G`` blocks in a column, ``T`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from weightsmith.core.errors import UnsupportedModelError

__all__ = ["BatLinear", "add_shards", "apply_bat", "apply_bat_row", "apply_miss", "row_linear", "undo_bat"]
__all__ += ["undo_bat_row", "undo_miss"]

MAX_CONDITION = 1e12
"""Blocks ``I + B`` with a larger condition number are not inverted, even in double precision."""


def apply_bat(weight: Float[Tensor, "*batch out in"], block_GRR: Float[Tensor, "G R R"]) -> Tensor:
    """Return ``W + W B + B`` with one block for every row of blocks (``"bat"``).

    Parameters
    ----------
    weight : Tensor of shape (..., out, in)
        The weights; leading dimensions are experts or groups of a convolution, each with blocks of its own.
    block_GRR : Tensor of shape (batch * ceil(out / R), R, R)
        The blocks.

    Returns
    -------
    Tensor of shape (..., out, in)
        A new weight, in the wider of both types, float32 at least.

    Examples
    --------
    With blocks of one number every row is scaled and shifted:

    >>> apply_bat(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[[0.1]], [[-0.2]]]))
    tensor([[1.2000, 2.3000],
            [2.2000, 3.0000]])
    """
    weight, block_GRR = _wide(weight, block_GRR)
    r = block_GRR.shape[-1]
    padded = _pad(weight, r)
    # the rows of W_oi for all i are rows of R consecutive numbers in memory: a reshape, not a permutation
    strips = padded.reshape(len(block_GRR), -1, r)
    updated = torch.baddbmm(strips, strips, block_GRR)
    updated = updated.view(len(block_GRR), r, -1, r).add_(block_GRR.unsqueeze(2))
    return _crop(updated.view(padded.shape), weight)


def apply_bat_row(weight: Float[Tensor, "*batch out in"], block_NRR: Float[Tensor, "N R R"]) -> Tensor:
    """Return ``W + W B + B`` with one block for every column of blocks (``"bat-row"``).

    Parameters and result as for :func:`apply_bat`, with ``ceil(in / R)`` blocks, shared by leading dimensions.

    Examples
    --------
    >>> apply_bat_row(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[[0.1]], [[-0.2]]]))
    tensor([[1.2000, 1.4000],
            [3.4000, 3.0000]])
    """
    weight, block_NRR = _wide(weight, block_NRR)
    n, r = block_NRR.shape[:2]
    padded = _pad(weight, r)
    columns = padded.reshape(-1, n, r).transpose(0, 1)
    updated = torch.baddbmm(columns, columns, block_NRR).unflatten(1, (-1, r)) + block_NRR.unsqueeze(1)
    return _crop(updated.flatten(1, 2).transpose(0, 1).reshape(padded.shape), weight)


def apply_miss(weight: Float[Tensor, "*batch out in"], shard_RM: Float[Tensor, "R M"]) -> Tensor:
    """Return the weight plus a shard repeated along the inputs (``"miss"``), and along the outputs (``"mini"``).

    Parameters
    ----------
    weight : Tensor of shape (..., out, in)
        The weights.
    shard_RM : Tensor of shape (R, M)
        ``M`` is the number of all outputs, or divides it.

    Returns
    -------
    Tensor of shape (..., out, in)
        A new weight, in the wider of both types, float32 at least.

    Examples
    --------
    >>> apply_miss(torch.zeros(2, 5), torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    tensor([[1., 2., 1., 2., 1.],
            [3., 4., 3., 4., 3.]])
    """
    weight, shard_RM = _wide(weight, shard_RM)
    return weight + _tiled(weight, shard_RM)


def undo_bat(weight: Float[Tensor, "*batch out in"], block_GRR: Float[Tensor, "G R R"]) -> Tensor:
    """Return the weight that :func:`apply_bat` was given, ``(W' - B) (I + B)^-1``, solved in float64.

    Raises
    ------
    UnsupportedModelError
        If ``I + B`` cannot be inverted.

    Examples
    --------
    >>> undo_bat(torch.tensor([[1.2, 2.3], [2.2, 3.0]]), torch.tensor([[[0.1]], [[-0.2]]])).float()
    tensor([[1., 2.],
            [3., 4.]])
    """
    block_GRR = check_invertible(block_GRR, weight.shape[-1])
    r, edge = block_GRR.shape[-1], weight.shape[-1] % block_GRR.shape[-1]
    padded = _pad(weight.double(), r)
    strips = padded.reshape(len(block_GRR), r, -1, r) - block_GRR.unsqueeze(2)
    solved = torch.linalg.solve(_with_identity(block_GRR), strips.flatten(1, 2), left=False).view(strips.shape)
    if edge:  # W' has only the first columns of the last blocks in a row; they follow from the corners of I + B
        corner = _with_identity(block_GRR)[:, :edge, :edge]
        solved[:, :, -1, :edge] = torch.linalg.solve(corner, strips[:, :, -1, :edge], left=False)
    return _crop(solved.reshape(padded.shape), weight)


def undo_bat_row(weight: Float[Tensor, "*batch out in"], block_NRR: Float[Tensor, "N R R"]) -> Tensor:
    """Return the weight that :func:`apply_bat_row` was given, solved in float64.

    Raises
    ------
    UnsupportedModelError
        If ``I + B`` cannot be inverted.
    """
    block_NRR = check_invertible(block_NRR, weight.shape[-1], rows=True)
    n, r = block_NRR.shape[:2]
    edge = weight.shape[-1] % r
    padded = _pad(weight.double(), r)
    columns = padded.reshape(-1, n, r).transpose(0, 1).unflatten(1, (-1, r)) - block_NRR.unsqueeze(1)
    changed = _with_identity(block_NRR)
    if edge:  # W' has only the first columns of the last block; they follow from the corner of I + B
        changed[-1, edge:, :edge], changed[-1, :, edge:] = 0, torch.eye(r)[:, edge:]
    solved = torch.linalg.solve(changed, columns.flatten(1, 2), left=False)
    return _crop(solved.transpose(0, 1).reshape(padded.shape), weight)


def undo_miss(weight: Float[Tensor, "*batch out in"], shard_RM: Float[Tensor, "R M"]) -> Tensor:
    """Return the weight that :func:`apply_miss` was given, in float64."""
    return weight.double() - _tiled(weight, shard_RM.double())


def check_invertible(block: Float[Tensor, "n R R"], width: int, *, rows: bool = False) -> Float[Tensor, "n R R"]:
    """Return the blocks in float64, or raise if ``I + B`` has no inverse, or its corner where blocks are cut off.

    Parameters
    ----------
    block : Tensor of shape (n, R, R)
        The blocks.
    width : int
        Inputs of the weight; the last block in a row is cut off where they are no multiple of ``R``.
    rows : bool, default: False
        Whether there is a block for every column of blocks (``"bat-row"``): only the last one is cut off then.

    Raises
    ------
    UnsupportedModelError
        If the condition number of a block ``I + B`` is above ``MAX_CONDITION``.
    """
    block = block.detach().double()
    edge = width % block.shape[-1]
    whole = _with_identity(block)
    inverted = [whole[:-1], whole[-1:, :edge, :edge]] if edge and rows else [whole]
    inverted += [whole[:, :edge, :edge]] if edge and not rows else []
    condition = torch.cat([torch.linalg.cond(matrix) for matrix in inverted]).max().item()
    if not condition < MAX_CONDITION:
        raise UnsupportedModelError(
            "cannot invert I + B, so the merged adapter cannot be taken out again",
            found=f"condition number {condition:.1e}",
            expected=f"below {MAX_CONDITION:.0e}",
            do="Merge with keep_base=True.",
        )
    return block


class BatLinear(torch.autograd.Function):
    """A linear layer under ``"bat"`` that keeps only its input for the backward pass.

    The updated weight is computed again there, so that no matrix of ``out`` by ``in`` outlives a layer's own step.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*tokens in"], weight_OI: Tensor, block_GRR: Tensor, bias_O: Tensor | None
    ) -> Float[Tensor, "*tokens out"]:
        """Return ``x W'^T + bias``."""
        with torch.autocast(x.device.type, enabled=False):
            ctx.save_for_backward(x, weight_OI, block_GRR)
            return functional.linear(x, apply_bat(weight_OI, block_GRR).to(x.dtype), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "*tokens out"]) -> tuple[Tensor | None, None, Tensor, Tensor | None]:
        """Return the gradients of input, blocks and bias."""
        x, weight_OI, block_GRR = ctx.saved_tensors
        r = block_GRR.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            grad_x = grad @ apply_bat(weight_OI, block_GRR).to(grad.dtype) if ctx.needs_input_grad[0] else None
            grad_TO, x_TI = _rows(grad), _rows(x)
            # dL/dB_o = sum_i (W_oi + 1)^T G_oi, with G = grad^T x
            grad_OI, weight_OI = _wide(grad_TO.T @ x_TI, weight_OI)
            strips_G, strips_W = (_pad(matrix, r).reshape(len(block_GRR), -1, r) for matrix in (grad_OI, weight_OI))
            grad_block = torch.baddbmm(strips_G.unflatten(1, (r, -1)).sum(2), strips_W.transpose(1, 2), strips_G)
            grad_bias = grad_TO.sum(0) if ctx.needs_input_grad[3] else None
        return grad_x, None, grad_block.to(block_GRR.dtype), grad_bias


def row_linear(
    base: Callable[[Tensor], Tensor], x: Float[Tensor, "*tokens in"], block_NRR: Float[Tensor, "N R R"]
) -> Float[Tensor, "*tokens out"]:
    r"""Run any linear layer under ``"bat-row"`` without touching its weight.

    With :math:`b_i = B_i x_i` of every piece :math:`x_i` of the input,

    .. math:: W' x = W (x + (b_1, \dots, b_N)) + (\textstyle\sum_i b_i, \sum_i b_i, \dots)

    Parameters
    ----------
    base : callable
        The layer, quantized or not.
    x : Tensor of shape (..., in)
        Its input.
    block_NRR : Tensor of shape (ceil(in / R), R, R)
        The blocks.

    Returns
    -------
    Tensor of shape (..., out)
        In the dtype that ``base`` returns.
    """
    n, r = block_NRR.shape[:2]
    pieces = _rows(_pad_inputs(x, r)).unflatten(-1, (n, r)).transpose(0, 1)
    moved = torch.bmm(pieces, block_NRR.to(x.dtype).transpose(1, 2))
    shift = moved.transpose(0, 1).reshape(*x.shape[:-1], n * r)[..., : x.shape[-1]]
    y = base(x + shift)
    return _add_tiled(y, moved.sum(0).reshape(*x.shape[:-1], r).to(y.dtype))


def add_shards(
    y: Float[Tensor, "*tokens out"], x: Float[Tensor, "*tokens in"], shard_RM: Float[Tensor, "R M"]
) -> Float[Tensor, "*tokens out"]:
    """Add ``s(x) D`` to a linear layer's output, with ``s`` the sum of the input's pieces (``"miss"``, ``"mini"``)."""
    r, m = shard_RM.shape
    pieces = _pad_inputs(x, r).unflatten(-1, (-1, r))
    sums = pieces.sum(-2, dtype=torch.promote_types(x.dtype, torch.float32))  # before D: R numbers, not I
    sums, shard_RM = _wide(sums, shard_RM)
    if m == y.shape[-1] and y.dtype == shard_RM.dtype and not torch.is_autocast_enabled(y.device.type):
        return torch.addmm(_rows(y), _rows(sums), shard_RM).view(y.shape)
    return _add_tiled(y, (sums @ shard_RM).to(y.dtype))


def _add_tiled(y: Tensor, piece: Tensor) -> Tensor:
    """Add a piece of the last dimension to every such piece of ``y``, the last one cropped."""
    out, width = y.shape[-1], piece.shape[-1]
    if out % width:
        return y + piece.repeat(*[1] * (y.ndim - 1), math.ceil(out / width))[..., :out]
    return (y.unflatten(-1, (-1, width)) + piece.unsqueeze(-2)).flatten(-2)


def _tiled(weight: Tensor, shard_RM: Tensor) -> Tensor:
    """The shard as a matrix of the weight's shape: repeated along outputs (mini) and inputs, the last one cropped."""
    r, m = shard_RM.shape
    *outputs, width = weight.shape
    rows = shard_RM.T.repeat(math.prod(outputs) // m, math.ceil(width / r))
    return rows[:, :width].reshape(weight.shape)


def _wide(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types, at least float32: in half precision a small block is lost beside a weight."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])  # of one vector, or of none, too


def _pad_inputs(x: Tensor, r: int) -> Tensor:
    return functional.pad(x, (0, -x.shape[-1] % r)) if x.shape[-1] % r else x  # padding by nothing would copy


def _pad(weight: Tensor, r: int) -> Tensor:
    out, width = weight.shape[-2:]
    return functional.pad(weight, (0, -width % r, 0, -out % r)) if out % r or width % r else weight


def _crop(padded: Tensor, like: Tensor) -> Tensor:
    return padded[..., : like.shape[-2], : like.shape[-1]]


def _with_identity(block: Tensor) -> Tensor:
    return block + torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
