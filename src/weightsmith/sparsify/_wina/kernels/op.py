"""The column kernels as one operator of torch, so that torch.compile keeps it in its graph."""

from __future__ import annotations

import torch
from torch import Tensor

from weightsmith.core.threads import lock

__all__ = ["sparse_columns"]


@torch.library.custom_op("weightsmith::sparse_columns", mutates_args=())
def sparse_columns(
    x_I: Tensor,
    weights: Tensor,
    limits_LI: Tensor,
    outs: list[int],
    bias_O: Tensor,
    unit_O: Tensor,
    shift_O: Tensor,
) -> Tensor:
    """Compute the products of layers that share an input, from the inputs beyond their limits, in float32.

    Parameters
    ----------
    x_I : Tensor of shape (in,)
        The input.
    weights : Tensor of shape (in * sum(outs),)
        The transposed weights ``[in, out]``, layer after layer.
    limits_LI : Tensor of shape (layers, in)
        A layer drops input i when its magnitude is at most ``limits_LI[layer, i]``.
    outs : list of int
        Outputs of each layer.
    bias_O : Tensor of shape (sum(outs),)
        Added to the products, in float32.
    unit_O, shift_O : Tensor of shape (sum(outs),) or (0,)
        Of weights that are codes ``u`` for ``unit * u - shift``; empty for others, and on CUDA.

    Returns
    -------
    Tensor of shape (sum(outs),)

    Examples
    --------
    >>> none = torch.zeros(0)
    >>> x, weights = torch.tensor([0.5, 2.0]), torch.eye(2).flatten()
    >>> sparse_columns(x, weights, torch.ones(1, 2), [2], torch.zeros(2), none, none)
    tensor([0., 2.])
    """
    layers = len(limits_LI)
    if x_I.device.type == "cuda":
        from weightsmith.sparsify._wina.kernels import cuda

        kept = torch.zeros(layers, dtype=torch.int32, device=x_I.device)
        return cuda.sparse_columns(x_I, weights, limits_LI, tuple(outs), bias_O, kept)
    from weightsmith.sparsify._wina.kernels import cpu

    y = torch.empty(sum(outs))
    with lock:
        total_L = torch.zeros(layers, dtype=torch.int64)
        buffers = cpu.arguments(weights, limits_LI, outs, bias_O, unit_O, shift_O, total_L)
        cpu.sparse_columns(x_I.float().numpy(), y.numpy(), *buffers)
    return y


@sparse_columns.register_fake
def _(
    x_I: Tensor,
    weights: Tensor,
    limits_LI: Tensor,
    outs: list[int],
    bias_O: Tensor,
    unit_O: Tensor,
    shift_O: Tensor,
) -> Tensor:
    return x_I.new_empty(sum(outs), dtype=torch.float32)
