"""Initial weights of a chosen rank, or aligned to a task, that set how lazily a network will learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite, upcast

__all__ = ["aligned_", "dale_", "low_rank_"]

Norm = Literal["frobenius", "spectral"]


@torch.no_grad()
def low_rank_(
    weight: Tensor,
    rank: int,
    *,
    norm: Norm = "frobenius",
    spectrum: Sequence[float] | None = None,
    blocks: int = 1,
) -> Tensor:
    """Reduce a weight to a rank in place, and scale it back to the norm that it had.

    Low rank learns richer features, full rank lazier ones. Draw the weight first: one draw serves all ranks.

    Parameters
    ----------
    weight : Tensor
        A matrix, or the kernel of a convolution, taken as outputs by the rest.
    rank : int
        Singular directions to keep, the largest.
    norm : {"frobenius", "spectral"}, default: "frobenius"
        What stays the same. With the Frobenius norm the largest singular value grows as the rank falls, and with it a
        recurrent network may become chaotic; the spectral norm keeps it.
    spectrum : sequence of float, optional
        Singular values, up to scale, in place of the weight's own: one per direction that is kept.
    blocks : int, default: 1
        Matrices stacked in the rows, each reduced by itself: 3 for ``weight_hh`` of a GRU, 4 of an LSTM.

    Returns
    -------
    Tensor
        ``weight``.

    Raises
    ------
    HyperparameterError
        If the rank is below 1 or above what the matrix has, or another option is out of range.
    NonFiniteError
        If the weight holds NaN or infinity.
    ShapeError
        If the rows are not ``blocks`` equal parts.

    References
    ----------
    Liu et al., arXiv 2310.08513.

    Examples
    --------
    >>> weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    >>> before = weight.norm()
    >>> low = low_rank_(weight, 2)
    >>> int(torch.linalg.matrix_rank(low)), bool(torch.isclose(low.norm(), before))
    (2, True)
    """
    if weight.ndim < 2:
        raise ShapeError("weight", found=tuple(weight.shape), expected="two or more axes")
    if blocks < 1 or len(weight) % blocks:
        raise ShapeError("rows of the weight", found=len(weight), expected=f"a multiple of {blocks} blocks")
    check_choice("norm", norm, Norm)
    parts_BOI = upcast(weight).reshape(blocks, len(weight) // blocks, -1)
    most = min(parts_BOI.shape[1:])
    if not 1 <= rank <= most:
        raise HyperparameterError("rank", found=rank, expected=f"1 to {most}")
    if spectrum is not None and (
        len(spectrum) != rank or not all(0 <= s < torch.inf for s in spectrum) or max(spectrum) <= 0
    ):
        raise HyperparameterError("spectrum", found=list(spectrum), expected=f"{rank} numbers >= 0, not all 0")
    if not is_finite(parts_BOI):
        raise NonFiniteError("the weight holds NaN or infinity")
    if rank == most and spectrum is None:
        return weight
    u_BOK, s_BK, v_BKI = torch.linalg.svd(parts_BOI.double(), full_matrices=False)
    kept_BR = s_BK[:, :rank] if spectrum is None else s_BK.new_tensor(list(spectrum)).expand(blocks, rank)
    order = 2.0 if norm == "frobenius" else torch.inf
    size_B1, kept_B1 = (torch.linalg.vector_norm(s, order, dim=1, keepdim=True) for s in (s_BK, kept_BR))
    kept_BR = kept_BR * torch.where(kept_B1 > 0, size_B1 / kept_B1, 0)
    low_BOI = (u_BOK[..., :rank] * kept_BR.unsqueeze(1)) @ v_BKI[:, :rank]
    return weight.copy_(low_BOI.reshape(weight.shape))


@torch.no_grad()
def aligned_(
    weight: Tensor,
    targets: Float[Tensor, "*k in"],
    *,
    outputs: Float[Tensor, "*k out"] | None = None,
    scale: float | None = None,
) -> Tensor:
    r"""Fill a weight with directions of the task, in place: of low rank and nevertheless lazy.

    The weight becomes :math:`\sigma \sum_i u_i \beta_i^\top / \sqrt k` for orthonormal directions. When the readout is
    aligned with :math:`u` at the same scale, the tangent kernel does not turn during training.

    Parameters
    ----------
    weight : Tensor
        A matrix, or the kernel of a convolution.
    targets : Tensor of shape (in,) or (k, in)
        Directions in the inputs, made orthonormal in order.
    outputs : Tensor of shape (out,) or (k, out), optional
        The units they excite, made orthonormal in order; the first ``k`` units by default.
    scale : float, optional
        Frobenius norm of the result; that of the weight by default.

    Returns
    -------
    Tensor
        ``weight``.

    Raises
    ------
    HyperparameterError
        If the directions are dependent, or there is no scale.
    ShapeError
        If they do not fit the weight.

    Examples
    --------
    >>> aligned_(torch.empty(3, 2), torch.tensor([3.0, 4.0]), scale=5.0).abs()
    tensor([[3., 4.],
            [0., 0.],
            [0., 0.]])
    """
    outs, ins = weight.flatten(1).shape
    v_KI = _orthonormal("targets", torch.atleast_2d(targets), ins)
    count = len(v_KI)
    if outputs is None:
        if count > outs:
            raise ShapeError("targets", found=f"{count} directions", expected=f"at most {outs}, the outputs")
        outputs = torch.eye(count, outs, device=weight.device)
    u_KO = _orthonormal("outputs", torch.atleast_2d(outputs), outs)
    if len(u_KO) != count:
        raise ShapeError("outputs", found=f"{len(u_KO)} directions", expected=f"{count}, one per target")
    size = float(upcast(weight).double().norm()) if scale is None else scale
    if not 0 < size < torch.inf:
        raise HyperparameterError("scale", found=size, expected="> 0", do="Give one, or draw the weight first.")
    return weight.copy_((u_KO.T @ v_KI * (size / count**0.5)).reshape(weight.shape))


@torch.no_grad()
def dale_(weight: Float[Tensor, "out in"], *, excitatory: float = 0.8) -> Tensor:
    """Give each column of a weight one sign, in place: its first units excite, the others inhibit (Dale's law).

    Inhibition is scaled up so that each unit's inputs balance, and the norm of the weight stays. The means of the two
    kinds of cells lower the effective rank.

    Parameters
    ----------
    weight : Tensor of shape (out, in)
        A recurrent matrix, drawn before.
    excitatory : float, default: 0.8
        Share of the columns that excite, in (0, 1).

    Returns
    -------
    Tensor
        ``weight``.

    Raises
    ------
    HyperparameterError
        If one of the two kinds would be empty, or holds zeros only: no scale balances it.
    NonFiniteError
        If the weight holds NaN or infinity.

    Examples
    --------
    >>> dale_(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), excitatory=0.5)
    tensor([[ 1., -1.],
            [ 1., -1.]])
    """
    columns = weight.shape[1]
    count = round(excitatory * columns) if 0 < excitatory < 1 else 0
    if not 0 < count < columns:
        raise HyperparameterError("excitatory", found=excitatory, expected=f"a share of {columns} columns, in (0, 1)")
    if not is_finite(weight):
        raise NonFiniteError("the weight holds NaN or infinity")
    w_OI = upcast(weight).double().abs()
    size, excited, inhibited = w_OI.norm(), w_OI[:, :count].sum(), w_OI[:, count:].sum()
    if not (excited > 0 and inhibited > 0):
        kind = "excite" if inhibited > 0 else "inhibit"
        raise HyperparameterError(f"columns that {kind}", found="zeros only", do="Draw the weight first.")
    w_OI[:, count:] *= -excited / inhibited
    return weight.copy_(w_OI * (size / w_OI.norm()))


def _orthonormal(name: str, given_KJ: Tensor, size: int) -> Float[Tensor, "k size"]:
    if given_KJ.shape[-1] != size:
        raise ShapeError(name, found=tuple(given_KJ.shape), expected=(len(given_KJ), size))
    q_JK, r_KK = torch.linalg.qr(given_KJ.double().T)
    lengths = given_KJ.double().norm(dim=1)
    if len(given_KJ) > size or not bool((r_KK.diagonal().abs() > 1e-9 * lengths).all()):
        raise HyperparameterError(name, found=f"{len(given_KJ)} dependent directions", expected="independent ones")
    return (q_JK * r_KK.diagonal().sign()).T
