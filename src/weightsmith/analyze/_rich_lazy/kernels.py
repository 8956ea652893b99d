r"""Tangent kernels from the factors of a layer's gradients, and how much two kernels agree.

The gradient of row :math:`r` (an output for a sample) by a weight matrix is :math:`\sum_t \delta_t^r a_t^\top`, with
the layer's inputs :math:`a_t` and the gradients :math:`\delta_t` of its outputs. The kernel needs no Jacobian:

.. math:: K_{rr'} = \sum_{t,t'} (\delta_t^r \cdot \delta_{t'}^{r'}) (a_t^r \cdot a_{t'}^{r'})

Legend: ``N`` samples, ``T`` positions, ``D`` outputs or directions of outputs, ``R`` rows (``N`` times ``D``), ``I``
inputs, ``O`` outputs of the layer, ``M`` gradients that are not zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.errors import CalibrationError, NonFiniteError, ShapeError

__all__ = ["centered_alignment", "kernel_alignment", "reduce_kernel", "tangent_kernel"]

PIECE = 2**26
"""Values of a temporary tensor: rows or outputs are worked off in pieces of this size."""


def tangent_kernel(
    inputs_NTI: Float[Tensor, "samples positions in"], gradients_NDTO: Float[Tensor, "samples directions positions out"]
) -> Float[Tensor, "rows rows"]:
    """Return the Gram matrix of the gradients by a weight matrix, from its inputs and the gradients of its outputs.

    Of the two orders of summation, over pairs of positions or over pairs of weights, the cheaper one is taken. Neither
    holds the Jacobian.

    Parameters
    ----------
    inputs_NTI : Tensor of shape (samples, positions, in)
        What the layer received.
    gradients_NDTO : Tensor of shape (samples, directions, positions, out)
        The gradients of several outputs of the network by the layer's outputs.

    Returns
    -------
    Tensor of shape (rows, rows)
        One row per sample and direction, the directions of a sample side by side.

    Examples
    --------
    Of the network ``w2 @ W1 @ x`` with ``W1`` the identity, ``w2 = (1, 0)`` and whitened inputs, by ``W1``:

    >>> tangent_kernel(torch.eye(2).unsqueeze(1), torch.tensor([1.0, 0.0]).expand(2, 1, 1, 2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    samples, directions, positions, outs = gradients_NDTO.shape
    if inputs_NTI.shape[:2] != (samples, positions):
        raise ShapeError("inputs of a layer", found=tuple(inputs_NTI.shape), expected=(samples, positions, "in"))
    rows, ins = samples * directions, inputs_NTI.shape[2]
    place_M3 = gradients_NDTO.abs().amax(-1).nonzero()  # an output does not depend on later states of a recurrence
    count = len(place_M3)
    by_positions = count**2 * outs + (samples * positions) ** 2 * ins
    by_weights = rows * positions * outs * ins * 2 + rows**2 * outs * ins
    if by_positions > by_weights:
        return _by_weights(inputs_NTI, gradients_NDTO)
    sample_M, direction_M, position_M = place_M3.unbind(1)
    g_MO = gradients_NDTO[sample_M, direction_M, position_M]
    x_NI = inputs_NTI.flatten(0, 1)
    gram_NN = x_NI @ x_NI.T
    at_M, row_M = sample_M * positions + position_M, sample_M * directions + direction_M
    half_RR = x_NI.new_zeros(rows, rows)  # pairs in one order, those within a piece in both at half their value
    step = max(1, min(PIECE // max(count, 1), -(-count // 8)))
    for start in range(0, count, step):
        piece = slice(start, start + step)
        pairs_PM = (g_MO[piece] @ g_MO[start:].T).mul_(gram_NN[at_M[piece]][:, at_M[start:]])
        pairs_PM[:, : len(pairs_PM)] /= 2
        by_row_PR = pairs_PM.new_zeros(len(pairs_PM), rows).index_add_(1, row_M[start:], pairs_PM)
        half_RR.index_add_(0, row_M[piece], by_row_PR)
    return half_RR + half_RR.T


def _by_weights(
    inputs_NTI: Float[Tensor, "samples positions in"], gradients_NDTO: Float[Tensor, "samples directions positions out"]
) -> Float[Tensor, "rows rows"]:
    """The Gram matrix of the rows' gradients, which are formed for some of the layer's outputs at a time."""
    samples, directions, _, outs = gradients_NDTO.shape
    rows, ins = samples * directions, inputs_NTI.shape[2]
    kernel_RR = inputs_NTI.new_zeros(rows, rows)
    step = max(1, PIECE // 4 // (rows * ins))
    for start in range(0, outs, step):
        piece_NDTO = gradients_NDTO[..., start : start + step]
        jacobian_RJ = torch.einsum("ndto,nti->ndoi", piece_NDTO, inputs_NTI).reshape(rows, -1)
        kernel_RR.addmm_(jacobian_RJ, jacobian_RJ.T)
    return kernel_RR


def reduce_kernel(
    kernel_RR: Float[Tensor, "rows rows"], directions: int
) -> tuple[Float[Tensor, "samples samples"], Float[Tensor, "directions samples samples"]]:
    """Return the kernel of the samples alone: the trace over directions, and the blocks of each direction.

    Examples
    --------
    >>> trace_NN, blocks_DNN = reduce_kernel(torch.arange(16.0).reshape(4, 4), 2)
    >>> trace_NN, torch.equal(blocks_DNN.sum(0), trace_NN)
    (tensor([[ 5.,  9.],
            [21., 25.]]), True)
    """
    samples = len(kernel_RR) // directions
    blocks_NDNE = kernel_RR.reshape(samples, directions, samples, directions)
    blocks_DNN = blocks_NDNE.diagonal(dim1=1, dim2=3).permute(2, 0, 1)
    return blocks_DNN.sum(0), blocks_DNN


def kernel_alignment(
    before_RR: Float[Tensor, "rows rows"], after_RR: Float[Tensor, "rows rows"], what: str = "kernel"
) -> float:
    r"""Return the cosine of two kernels, :math:`\sum K_0 \odot K_f / (\|K_0\|_F \|K_f\|_F)`, uncentered.

    Parameters
    ----------
    before_RR, after_RR : Tensor of shape (rows, rows)
        Of the same rows.
    what : str, default: "kernel"
        What an error names.

    Raises
    ------
    CalibrationError
        If a kernel is zero: nothing depends on the layer, or all of its units are dead.
    NonFiniteError
        If one holds NaN or infinity.
    ShapeError
        If they are not of the same rows.

    Examples
    --------
    >>> round(kernel_alignment(torch.eye(2), torch.ones(2, 2)), 7)
    0.7071068
    """
    if before_RR.shape != after_RR.shape:
        raise ShapeError(what, found=f"{len(before_RR)} and {len(after_RR)} rows", expected="the same probe")
    kernels = [before_RR.double(), after_RR.double()]
    norms = [float(kernel.norm()) for kernel in kernels]
    for when, norm in zip(("before", "after"), norms, strict=True):
        if norm == 0:
            raise CalibrationError(
                f"the {what} is zero {when} training, so its alignment is undefined",
                do="Give a probe that reaches the layer, or leave it out with exclude.",
            )
        if norm != norm or norm == float("inf"):
            raise NonFiniteError(f"the {what} {when} training holds NaN or infinity")
    return float((kernels[0] / norms[0] * (kernels[1] / norms[1])).sum())


def centered_alignment(before_NN: Float[Tensor, "n n"], after_NN: Float[Tensor, "n n"], what: str = "kernel") -> float:
    """Return the linear CKA of two Gram matrices, unbiased, so that few samples of many units do not look alike.

    Its terms are the U-statistics of Song et al. (2012); values may be slightly below zero or above one.

    Parameters
    ----------
    before_NN, after_NN : Tensor of shape (n, n)
        Of the same samples, at least four.
    what : str, default: "kernel"
        What an error names.

    Raises
    ------
    CalibrationError
        If there are fewer than four samples, or the samples do not differ.
    NonFiniteError
        If a matrix holds NaN or infinity.

    Examples
    --------
    >>> gram_NN = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 8)
    >>> gram_NN = gram_NN @ gram_NN.T
    >>> round(centered_alignment(gram_NN, 5 * gram_NN), 6)
    1.0
    """
    if len(before_NN) < 4:
        raise CalibrationError(f"the unbiased {what}", found=f"{len(before_NN)} samples", expected="at least 4")
    first, second = (_without_diagonal(each_NN.double()) for each_NN in (before_NN, after_NN))
    if not bool((first + second).isfinite().all()):
        raise NonFiniteError(f"the {what} holds NaN or infinity")
    own = _unbiased(first, first) * _unbiased(second, second)
    if own <= 0:
        raise CalibrationError(f"the {what} does not differ between samples", do="Give more, and different, samples.")
    return _unbiased(first, second) / own**0.5


def _without_diagonal(kernel_NN: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return kernel_NN - torch.diag(kernel_NN.diagonal())


def _unbiased(first_NN: Float[Tensor, "n n"], second_NN: Float[Tensor, "n n"]) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion, up to a factor; the diagonals are zero."""
    n = len(first_NN)
    product = float((first_NN * second_NN).sum())
    means = float(first_NN.sum()) * float(second_NN.sum()) / ((n - 1) * (n - 2))
    return product + means - 2 / (n - 2) * float(first_NN.sum(0) @ second_NN.sum(0))
