r"""What training does to the tangent kernel of a two-layer linear network, in closed form.

For :math:`f(x) = w_2^\top W_1 x` on whitened inputs, with :math:`M = W_1^\top W_1` and :math:`q = \|w_2\|^2` at the
start, training on a target :math:`\beta` from small weights ends in a kernel proportional to
:math:`\beta\beta^\top + I`, so that

.. math::

    \mathrm{KA}(\beta) = \frac{\beta^\top M \beta + \operatorname{tr} M + q(d + 1)}{\|M + q I\|_F \sqrt{d + 3}}, \qquad
    \mathbb E\,\mathrm{KA} = \Bigl(1 + \frac1d\Bigr) \sqrt{\frac{\mathrm{PR}}{d + 3}} \quad (q = 0),

with the effective rank :math:`\mathrm{PR} = (\sum s^2)^2 / \sum s^4` of the singular values of :math:`W_1`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import upcast

__all__ = ["effective_rank", "expected_kernel_alignment"]


def effective_rank(weight_OI: Float[Tensor, "out in"]) -> float:
    r"""Return the participation ratio of the squared singular values, :math:`(\sum s^2)^2 / \sum s^4`.

    It is computed from the smaller Gram matrix, without a decomposition.

    Raises
    ------
    NonFiniteError
        If the matrix holds NaN or infinity, or is zero.

    Examples
    --------
    >>> round(effective_rank(torch.diag(torch.tensor([2.0, 1.0]))), 6)
    1.470588
    """
    gram = _gram(weight_OI)
    return float(gram.trace() ** 2 / gram.square().sum())


def expected_kernel_alignment(
    weight_OI: Float[Tensor, "out in"], *, target: Float[Tensor, " size"] | None = None, readout_square: float = 0.0
) -> float:
    r"""Return the kernel alignment that the linear theory expects of training from an initial weight matrix.

    It orders initial weights by how lazily they learn: high means that the features stay. For deep and nonlinear
    networks the order is all that it says.

    Parameters
    ----------
    weight_OI : Tensor of shape (out, in)
        The first layer at the start.
    target : Tensor of shape (in,), optional
        The direction of the task; for inputs :math:`F x` it is :math:`F^\top w`. By default the mean over all
        directions.
    readout_square : float, default: 0.0
        Squared norm of the second layer at the start.

    Raises
    ------
    HyperparameterError
        If ``readout_square`` is negative, or the target is zero.
    NonFiniteError
        If the matrix holds NaN or infinity, or is zero.
    ShapeError
        If the target does not fit.

    Examples
    --------
    >>> round(expected_kernel_alignment(torch.eye(4)), 7)
    0.9449112
    """
    if not readout_square >= 0:
        raise HyperparameterError("readout_square", found=readout_square, expected=">= 0")
    size = weight_OI.shape[1]
    gram = _gram(weight_OI)
    # of M + q I: |.|^2 = sum s^4 + 2 q sum s^2 + d q^2, whichever of the two Gram matrices is at hand
    trace, square, q = float(gram.trace()), float(gram.square().sum()), readout_square
    norm = math.sqrt(square + 2 * q * trace + size * q**2)
    along = trace / size
    if target is not None:
        if target.shape != (size,):
            raise ShapeError("target", found=tuple(target.shape), expected=(size,))
        length = float(target.double().norm())
        if not 0 < length < math.inf:
            raise HyperparameterError("target", found=f"a vector of length {length}", expected="a direction")
        along = float((weight_OI.double() @ (target.double() / length)).square().sum())
    return (along + trace + q * (size + 1)) / (norm * math.sqrt(size + 3))


def _gram(weight_OI: Float[Tensor, "out in"]) -> Float[Tensor, "short short"]:
    w = upcast(weight_OI.detach())
    w = w.T if w.shape[0] > w.shape[1] else w
    scale = w.abs().max().double()
    if not 0 < float(scale) < math.inf:
        raise NonFiniteError("a weight matrix", found=f"largest value {float(scale)}", expected="finite, and not all 0")
    return (w @ w.T).double() if w.dtype == torch.float32 and w.shape[0] > 256 else w.double() @ w.double().T
