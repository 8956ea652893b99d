"""The sparse matrix-vector product as an operator of torch, so that torch.compile can keep it in its graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["sparse_columns"]


@torch.library.custom_op("weightsmith::sparse_columns", mutates_args=())
def sparse_columns(x_I: Tensor, weight_IO: Tensor, limit_I: Tensor, bias_O: Tensor | None) -> Tensor:
    """Product of a transposed weight with the inputs beyond their limits, in float32.

    Parameters
    ----------
    x_I : Tensor of shape (in,)
        The input.
    weight_IO : Tensor of shape (in, out)
        The transposed weight, contiguous.
    limit_I : Tensor of shape (in,)
        Input i is dropped when its magnitude is at most ``limit_I[i]``.
    bias_O : Tensor of shape (out,), optional
        Added to the product.

    Returns
    -------
    Tensor of shape (out,)

    Examples
    --------
    >>> sparse_columns(torch.tensor([0.5, 2.0]), torch.eye(2), torch.ones(2), None)
    tensor([0., 2.])
    """
    inputs, outputs = weight_IO.shape
    bias = torch.zeros(outputs, device=x_I.device) if bias_O is None else bias_O.float()
    if x_I.device.type == "cuda":
        from weightsmith.sparsify._wina.kernels import cuda

        kept = torch.zeros(1, dtype=torch.int32, device=x_I.device)
        return cuda.sparse_columns(x_I, weight_IO.reshape(-1), limit_I[None], (outputs,), bias, kept)
    from weightsmith.sparsify._wina.kernels import cpu
    from weightsmith.sparsify._wina.siblings import BITS

    y = torch.empty(outputs)
    cpu.sparse_columns(
        x_I.float().numpy(),
        y.numpy(),
        weight_IO.reshape(-1).view(BITS[weight_IO.dtype]).numpy(),
        limit_I[None].numpy(),
        np.array([outputs]),
        bias.numpy(),
        np.empty((1, inputs + 1), np.int64),
        np.empty((1, inputs + 1), np.float32),
        np.empty((torch.get_num_threads(), outputs), np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
    )
    return y


@sparse_columns.register_fake
def _(x_I: Tensor, weight_IO: Tensor, limit_I: Tensor, bias_O: Tensor | None) -> Tensor:
    return x_I.new_empty(weight_IO.shape[1], dtype=torch.float32)
