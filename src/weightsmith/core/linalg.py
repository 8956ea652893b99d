"""The linear algebra several methods share: columns replaced with error feedback, low-rank bases.

Legend: ``O`` outputs, ``I`` inputs, ``B`` a block of columns, ``S`` and ``L`` the short and the long side, ``R`` rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError, WeightsmithError
from weightsmith.core.sharding import local

__all__ = [
    "COLUMN_BLOCK",
    "damped_factor",
    "inner_product",
    "inverse_cholesky",
    "is_finite",
    "project",
    "randomized_singular_basis",
    "refine_singular_basis",
    "replace_columns",
    "singular_basis",
    "solve_factored",
    "upcast",
]

COLUMN_BLOCK = 128
"""Columns that :func:`replace_columns` updates at once; the columns after them follow when the block is done."""

PANEL = (256, 1024)
"""Columns of a matrix that are factored and inverted at a time, in float64: an eighth of them, within these bounds."""

PIECE = 1 << 16
"""Elements that :func:`inner_product` multiplies at a time."""

SQUARED_PRECISION = 1e-4
"""Below this share of the largest eigenvalue a Gram matrix in float32 does not resolve its eigenvectors."""


def upcast(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return a tensor of half precision or eight-bit floats in float32, any other unchanged.

    Examples
    --------
    >>> upcast(torch.zeros(1, dtype=torch.bfloat16)).dtype, upcast(torch.zeros(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def inner_product(a: Shaped[Tensor, "*shape"], b: Shaped[Tensor, "*shape"]) -> float:
    """Return the sum of the products of two tensors: pieces in float32, their sum in float64, without copies of either.

    Examples
    --------
    >>> inner_product(torch.ones(2, 3, dtype=torch.bfloat16), torch.full((2, 3), 0.5))
    3.0
    """
    pieces = zip(a.reshape(-1).split(PIECE), b.reshape(-1).split(PIECE), strict=True)
    return sum(float(torch.dot(upcast(x), upcast(y).to(upcast(x)))) for x, y in pieces)


def inverse_cholesky(
    gram_II: Float[Tensor, "in in"], damping: float = 0.01, *, out: Float[Tensor, "in in"] | None = None
) -> Float[Tensor, "in in"]:
    r"""Upper Cholesky factor of a damped inverse.

    .. math:: U^\top U = (G + \lambda\, \overline{\operatorname{diag} G}\; I)^{-1}

    Parameters
    ----------
    gram_II : Tensor of shape (in, in)
        Symmetric, positive semi-definite.
    damping : float, default: 0.01
        Added to the diagonal, as a fraction of its mean; multiplied by ten until the factorization succeeds.
    out : Tensor of shape (in, in), optional
        Where the factor is written, in float32; may be the Gram matrix, of which large ones come only once to memory.

    Returns
    -------
    Tensor of shape (in, in)
        In float32, computed in float64.

    Raises
    ------
    NonFiniteError
        If the Gram matrix holds NaN or infinity.

    Examples
    --------
    >>> inverse_cholesky(torch.diag(torch.tensor([4.0, 16.0])), damping=0.0).diagonal()
    tensor([0.5000, 0.2500])
    """
    if not is_finite(gram_II):
        raise NonFiniteError("the Gram matrix holds NaN or infinity", do="Check the calibration data.")
    scale = max(float(gram_II.diagonal().double().mean()), torch.finfo(torch.float32).tiny)
    factor_II = gram_II.to(torch.float32, copy=True) if out is None else out.copy_(gram_II)
    damped_factor(factor_II, damping, scale)
    _invert_upper(factor_II.triu_())
    return factor_II


def damped_factor(matrix_II: Float[Tensor, "in in"], damping: float, scale: float, *, least: float = 1e-6) -> float:
    r"""Factor a symmetric matrix in place, its diagonal raised until it is positive definite.

    .. math:: U U^\top = G + \lambda s\, I

    Computed in panels of float64, one at a time: G of 14,336 inputs, which comes in float32, would take 1.6 GB. Each
    number of U is rounded to the matrix's own precision.

    Parameters
    ----------
    matrix_II : Tensor of shape (in, in)
        G, positive semi-definite and finite. The factor takes the place of its upper triangle and its diagonal; what
        is below them stays.
    damping : float
        :math:`\lambda`, >= 0; multiplied by ten until the factorization succeeds.
    scale : float
        :math:`s`, the size of the diagonal, > 0.
    least : float, default: 1e-6
        What follows a damping of 0, > 0.

    Returns
    -------
    float
        The damping it needed.

    Examples
    --------
    >>> matrix = torch.tensor([[10.0, 2.0], [2.0, 4.0]])
    >>> damped_factor(matrix, 0.0, 1.0)
    0.0
    >>> matrix.triu()
    tensor([[3., 1.],
            [0., 2.]])
    """
    diagonal_I = matrix_II.diagonal().double()
    while not _factor_upper(matrix_II, diagonal_I + damping * scale):
        damping = max(10 * damping, least)
    return damping


def solve_factored(upper_II: Float[Tensor, "in in"], right_RI: Float[Tensor, "rows in"]) -> None:
    r"""Solve :math:`X U U^\top = B` for X, which takes the place of B; what is below the diagonal of U is not read.

    Parameters
    ----------
    upper_II : Tensor of shape (in, in)
        U, as :func:`damped_factor` leaves it.
    right_RI : Tensor of shape (rows, in)
        B, in float64.

    Examples
    --------
    >>> right = torch.tensor([[12.0, 8.0]]).double()
    >>> solve_factored(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), right)
    >>> right
    tensor([[0.8889, 1.5556]], dtype=torch.float64)
    """
    panels = _panels(len(upper_II))
    for own in reversed(panels):  # Y with Y U^T = B
        right_RI[:, own] -= right_RI[:, own.stop :] @ upper_II[own, own.stop :].double().mT
        lower_PP = upper_II[own, own].double().mT
        right_RI[:, own] = torch.linalg.solve_triangular(lower_PP, right_RI[:, own], upper=False, left=False)
    for own in panels:  # X with X U = Y
        right_RI[:, own] -= right_RI[:, : own.start] @ upper_II[: own.start, own].double()
        upper_PP = upper_II[own, own].double()
        right_RI[:, own] = torch.linalg.solve_triangular(upper_PP, right_RI[:, own], upper=True, left=False)


def _panels(size: int) -> list[slice]:
    width = min(max(size // 8, PANEL[0]), PANEL[1])
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


def _factor_upper(matrix_II: Float[Tensor, "in in"], diagonal_I: Float[Tensor, "in"]) -> bool:
    r"""Write :math:`U` of :math:`G = U U^\top` to the upper triangle and the diagonal; what is below them keeps G.

    Returns whether G, with ``diagonal_I`` as its diagonal, is positive definite.
    """
    panels = _panels(len(matrix_II))
    for number, own in reversed(list(enumerate(panels))):
        own_PA = matrix_II[own, own.stop :].double()
        own_PP = matrix_II[own, own].double().mT - own_PA @ own_PA.mT
        own_PP.diagonal().copy_(diagonal_I[own] - own_PA.square().sum(1))
        reversed_PP, failed = torch.linalg.cholesky_ex(own_PP.flip(0, 1))
        if failed:
            return False
        own_PP = reversed_PP.flip(0, 1)
        matrix_II[own, own] = matrix_II[own, own].tril(-1) + own_PP
        for rows in panels[:number]:
            rest_RP = matrix_II[own, rows].double().mT - matrix_II[rows, own.stop :].double() @ own_PA.mT
            matrix_II[rows, own] = torch.linalg.solve_triangular(own_PP.mT, rest_RP, upper=False, left=False)
    return True


def _invert_upper(upper_II: Float[Tensor, "in in"]) -> None:
    r"""Invert an upper triangular matrix in place, in panels of float64, one at a time.

    With :math:`U` in panels, :math:`X_{ij} = -U_{ii}^{-1} \sum_{i < k \le j} U_{ik} X_{kj}`.
    """
    panels = _panels(len(upper_II))
    for number, own in reversed(list(enumerate(panels))):
        own_PP = upper_II[own, own].double()
        inverse_PP = torch.linalg.solve_triangular(own_PP, torch.eye(len(own_PP)).to(own_PP), upper=True)
        own_PA = upper_II[own, own.stop :].double()
        for columns in panels[number + 1 :]:
            between = slice(own.stop, columns.stop)
            sum_PP = own_PA[:, : columns.stop - own.stop] @ upper_II[between, columns].double()
            upper_II[own, columns] = -inverse_PP @ sum_PP
        upper_II[own, own] = inverse_PP


def replace_columns(
    weight_OI: Float[Tensor, "out in"],
    factor_II: Float[Tensor, "in in"],
    replacement: Callable[[Tensor, int], Tensor],
) -> Float[Tensor, "out in"]:
    r"""Replace the columns of a weight in order; the columns that follow compensate the output error of each.

    The least-squares update of SparseGPT, which replaces weights by zero, and of GPTQ, which rounds them. With
    :math:`U` from :func:`inverse_cholesky`, a column :math:`w_i` replaced by :math:`\hat w_i` changes the columns
    :math:`j > i`:

    .. math:: e_i = (w_i - \hat w_i) / U_{ii}, \qquad w_j \leftarrow w_j - e_i U_{ij}

    Parameters
    ----------
    weight_OI : Tensor of shape (out, in)
        The weight, in float32 or float64; it does not change.
    factor_II : Tensor of shape (in, in)
        Upper Cholesky factor of the inverse Gram matrix of the inputs.
    replacement : callable
        ``replacement(weight_OI, i)`` returns the new column ``i``, of shape (out,). The weight it is given holds all
        updates so far in the columns of the current block, ``i`` to the next multiple of :data:`COLUMN_BLOCK`.

    Returns
    -------
    Tensor of shape (out, in)
        The new weight.

    References
    ----------
    Frantar, Alistarh, "SparseGPT", arXiv 2301.00774. Frantar et al., "GPTQ", arXiv 2210.17323.

    Examples
    --------
    >>> factor = inverse_cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), damping=0.0)
    >>> replace_columns(torch.ones(1, 2), factor, lambda w, i: torch.zeros(1) if i == 0 else w[:, i])
    tensor([[0.0000, 1.5000]])
    """
    w_IO = weight_OI.T.clone(memory_format=torch.contiguous_format)  # a column is then one run of memory
    factor_II = factor_II.to(w_IO)
    columns = len(w_IO)
    for start in range(0, columns, COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, columns)
        error_BO = torch.empty_like(w_IO[start:stop])
        for i in range(start, stop):
            new_O, error_O = replacement(w_IO.T, i), error_BO[i - start]
            torch.sub(w_IO[i], new_O, out=error_O).div_(factor_II[i, i])
            w_IO[i] = new_O
            w_IO[i + 1 : stop].addcmul_(factor_II[i, i + 1 : stop].unsqueeze(1), error_O, value=-1)
        w_IO[stop:].addmm_(factor_II[start:stop, stop:].T, error_BO, alpha=-1)
    return w_IO.T.contiguous()


def is_finite(values: Shaped[Tensor, "..."]) -> bool:
    """Whether no value is NaN or infinite, from the smallest and the largest value: one pass without a copy.

    Of a sharded tensor each process looks at its own part.

    Examples
    --------
    >>> is_finite(torch.ones(3)), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    values = local(values)
    values = torch.view_as_real(values) if values.is_complex() else values
    return not values.numel() or bool(torch.stack(values.aminmax()).isfinite().all())


def singular_basis(matrix_OI: Float[Tensor, "out in"], rank: int) -> Float[Tensor, "short rank"]:
    r"""The leading singular vectors of a matrix on its shorter side, from the eigenvectors of its Gram matrix.

    Exact like a full SVD and several times cheaper: of :math:`A A^\top` (or :math:`A^\top A`) only the eigenvectors are
    computed, never the long side's singular vectors.

    Parameters
    ----------
    matrix_OI : Tensor of shape (out, in)
        Finite.
    rank : int
        1 to the shorter side.

    Returns
    -------
    Tensor of shape (min(out, in), rank)
        Orthonormal columns, largest singular value first, in float32 (float64 for a float64 matrix).

    Raises
    ------
    HyperparameterError
        If ``rank`` is out of range.
    NonFiniteError
        If the matrix holds NaN or infinity.
    WeightsmithError
        If the eigenvectors converge neither in float32 nor in float64.

    Examples
    --------
    >>> singular_basis(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2).abs()
    tensor([[0., 0.],
            [1., 0.],
            [0., 1.]])
    """
    short_SL = _short_side_first(matrix_OI, rank)
    for precise in (short_SL, short_SL.double()):
        try:
            squares, vectors = torch.linalg.eigh(precise @ precise.T)
        except torch.linalg.LinAlgError:
            continue
        if precise.dtype == torch.float64 or squares[-rank] > SQUARED_PRECISION * squares[-1]:
            return vectors[:, -rank:].flip(1).to(short_SL.dtype)
    raise WeightsmithError(
        "the singular vectors do not converge", found=f"a matrix {tuple(matrix_OI.shape)} of norm {short_SL.norm():.3g}"
    )


def randomized_singular_basis(
    matrix_OI: Float[Tensor, "out in"], rank: int, *, niter: int = 4, generator: torch.Generator | None = None
) -> Float[Tensor, "short rank"]:
    """Approximate the leading singular vectors on the shorter side, by ``torch.svd_lowrank`` at twice the rank.

    Faster than :func:`singular_basis` where the rank is far below the shorter side. Slowly decaying singular values
    need more power iterations.

    Parameters
    ----------
    matrix_OI : Tensor of shape (out, in)
        Finite.
    rank : int
        1 to the shorter side.
    niter : int, default: 4
        Power iterations, >= 0.
    generator : torch.Generator, optional
        Of the random start; seed 0 by default. The global generator does not change.

    Returns
    -------
    Tensor of shape (min(out, in), rank)
        Orthonormal columns, largest singular value first.

    Raises
    ------
    HyperparameterError
        If ``rank`` or ``niter`` is out of range.
    NonFiniteError
        If the matrix holds NaN or infinity.

    References
    ----------
    Halko, Martinsson, Tropp, "Finding structure with randomness", arXiv 0909.4061.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([1.0, 9.0, 3.0, 0.5]))
    >>> randomized_singular_basis(matrix, 1).abs().squeeze().round(decimals=3)
    tensor([0., 1., 0., 0.])
    """
    short_SL = _short_side_first(matrix_OI, rank)
    if niter < 0:
        raise HyperparameterError("niter", found=niter, expected=">= 0")
    seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with torch.random.fork_rng([short_SL.device] if short_SL.is_cuda else []):
        torch.manual_seed(seed)
        return torch.svd_lowrank(short_SL, q=min(2 * rank, len(short_SL)), niter=niter)[0][:, :rank]


def refine_singular_basis(
    matrix_OI: Float[Tensor, "out in"], basis_SR: Float[Tensor, "short rank"], *, niter: int = 1
) -> Float[Tensor, "short rank"]:
    """Update the singular basis of a matrix after the matrix has changed a little.

    Power iterations that start from the old basis: one is enough where a random start needs many. The columns span
    the subspace in no particular order.

    Parameters
    ----------
    matrix_OI : Tensor of shape (out, in)
        Finite.
    basis_SR : Tensor of shape (min(out, in), rank)
        The old basis.
    niter : int, default: 1
        Power iterations, >= 1.

    Returns
    -------
    Tensor of shape (min(out, in), rank)
        Orthonormal columns.

    Raises
    ------
    HyperparameterError
        If ``niter`` is out of range.
    NonFiniteError
        If the matrix holds NaN or infinity.
    ShapeError
        If the basis does not fit the matrix.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([1.0, 9.0, 3.0]))
    >>> basis = singular_basis(matrix, 1)
    >>> matrix[0, 1] = 0.9
    >>> refine_singular_basis(matrix, basis).abs().squeeze().round(decimals=2)
    tensor([0.1000, 1.0000, 0.0000])
    """
    short_SL = _short_side_first(matrix_OI, basis_SR.shape[1])
    if niter < 1:
        raise HyperparameterError("niter", found=niter, expected=">= 1")
    if len(basis_SR) != len(short_SL):
        raise ShapeError("rows of the basis", found=len(basis_SR), expected=len(short_SL))
    basis_SR = basis_SR.to(short_SL)
    for _ in range(niter):
        basis_SR = torch.linalg.qr(short_SL @ (short_SL.T @ basis_SR)).Q
    return basis_SR


def project(matrix_OI: Float[Tensor, "out in"], basis_SR: Float[Tensor, "short rank"]) -> Float[Tensor, "out in"]:
    """Project a matrix onto a basis of its shorter side; onto a :func:`singular_basis` this is its best approximation.

    Examples
    --------
    >>> project(torch.tensor([[3.0, 3.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[1.0], [0.0]]))
    tensor([[3., 3., 0.],
            [0., 0., 0.]])
    """
    if matrix_OI.shape[0] > matrix_OI.shape[1]:
        return (matrix_OI.to(basis_SR) @ basis_SR) @ basis_SR.T
    return basis_SR @ (basis_SR.T @ matrix_OI.to(basis_SR))


def _short_side_first(matrix_OI: Float[Tensor, "out in"], rank: int) -> Float[Tensor, "short long"]:
    """Check the matrix and return it with its shorter side first, in float32 or float64."""
    if not 1 <= rank <= min(matrix_OI.shape):
        raise HyperparameterError("rank", found=rank, expected=f"1 to {min(matrix_OI.shape)}")
    if not is_finite(matrix_OI):
        raise NonFiniteError("the matrix holds NaN or infinity")
    short_SL = matrix_OI.T if matrix_OI.shape[0] > matrix_OI.shape[1] else matrix_OI
    return short_SL if short_SL.dtype == torch.float64 else short_SL.float()
