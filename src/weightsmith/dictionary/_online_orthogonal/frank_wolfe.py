r"""Stochastic Frank-Wolfe steps over the unit ball of the spectral norm, and the polar factor that each step needs.

The linear problem of a step has a closed form: :math:`\min_{\|S\|_2 \le 1} \langle M, S\rangle = -\|M\|_*`, reached at
:math:`S = -U V^\top = \operatorname{polar}(-M)` for :math:`M = U \Sigma V^\top`.

Legend: ``B`` samples of a batch, ``N`` features, as many as atoms; atoms are columns.

References
----------
Xue and Lau, "Online Orthogonal Dictionary Learning Based on Frank-Wolfe Method", IEEE Transactions on Neural Networks
and Learning Systems 2022, arXiv 2103.01484.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.errors import NonFiniteError, ShapeError
from weightsmith.core.processes import all_reduce_sum
from weightsmith.dictionary._shared.processes import total

__all__ = ["FrankWolfe", "PolarMethod", "Settings", "polar"]

PolarMethod: TypeAlias = Literal["auto", "svd", "newton-schulz"]
"""How a polar factor is computed; the factor is the same."""

NEWTON_SCHULZ_FROM = 512
"""Width above which matrix products beat the singular value decomposition on a CUDA device."""

NEWTON_SCHULZ_STEPS = 60
"""Enough for singular values down to 1e-9 of the largest: each step multiplies small ones by 1.5."""

WARM_UP = 5
"""Samples per feature that the principal axes are computed from."""

REWHITEN_EVERY = 10
"""Steps between two updates of the whitening, after as many first steps that all update it."""

EIGENVALUE_FLOOR = 1e-6
"""Share of the largest eigenvalue below which whitening treats a direction as constant."""

MEMORY = 0.9
"""Of the moving average of the gap."""


class Settings(NamedTuple):
    """Settings of a step; see :class:`~weightsmith.dictionary.OnlineOrthogonalDictionary`."""

    power: float = 3.0
    rho_power: float = 0.5
    step_power: float = 0.5
    step_floor: float = 0.0
    whiten: bool = False
    normalize: bool = False
    principal_start: bool = False
    polar: PolarMethod = "auto"


class FrankWolfe:
    r"""The state of a run, :math:`(D_t, M_t, t)`, and its step.

    Parameters
    ----------
    start_NN : Tensor of shape (features, atoms)
        :math:`D_0`, orthogonal.

    Attributes
    ----------
    dictionary_NN, gradient_NN : Tensor of shape (features, atoms)
        :math:`D_t`, inside the ball, and :math:`M_t`.
    moment_NN, root_NN, inverse_root_NN : Tensor of shape (features, features) or None
        Second moment of the data and its roots, where they are needed.
    energy_N : Tensor of shape (atoms,)
        Running mean square of the codes.
    steps, samples : int
        Steps taken, rows seen.
    gap, relative_gap : float
        Of the last step, and a moving average of it over the nuclear norm of :math:`M_t`.

    Examples
    --------
    >>> run = FrankWolfe(torch.eye(2))
    >>> run.step([torch.tensor([[1.0, 2.0], [0.0, 1.0], [-1.0, 0.5]])], Settings())
    >>> run.dictionary_NN
    tensor([[ 0.9802,  0.1982],
            [-0.1982,  0.9802]])
    """

    def __init__(self, start_NN: Float[Tensor, "features atoms"]) -> None:
        self.dictionary_NN = start_NN.clone()
        self.gradient_NN = torch.zeros_like(start_NN)
        self.energy_N = start_NN.new_zeros(len(start_NN))
        self.moment_NN: Tensor | None = None
        self.root_NN: Tensor | None = None
        self.inverse_root_NN: Tensor | None = None
        self._orthogonal_NN: Tensor | None = None
        self.steps = self.samples = 0
        self.gap = self.relative_gap = math.inf

    def step(self, chunks: Iterable[Float[Tensor, "chunk features"]], settings: Settings) -> None:
        """Learn from one batch, given in chunks that can be read twice.

        A batch without any signal counts as seen and changes nothing else. Under ``torch.distributed`` the batch is
        that of all processes together.

        Raises
        ------
        NonFiniteError
            If the gradient of the batch overflows; nothing is learned from it.
        """
        warming = settings.principal_start and self.samples < WARM_UP * len(self.energy_N)
        if settings.whiten or warming:
            self._update_moment(chunks, settings)
        if settings.whiten and (self.steps < REWHITEN_EVERY or self.steps % REWHITEN_EVERY == 0):
            self._update_roots()
        if warming:
            # every batch of the warm-up restarts from the principal axes of all rows so far
            assert self.moment_NN is not None
            self.dictionary_NN, self.steps = torch.linalg.eigh(self.moment_NN)[1].flip(1), 0
        gradient_NN, energy_N, count = self._sums(chunks, settings)
        largest = float(gradient_NN.abs().max())
        if not math.isfinite(largest):
            raise NonFiniteError("the gradient of a batch overflows", do="Divide X by a constant.")
        self.samples += count
        self._orthogonal_NN = None
        if not largest:
            return
        self.steps += 1
        rho = max(self.steps**-settings.rho_power, settings.step_floor)
        gamma = max(self.steps**-settings.step_power, settings.step_floor)
        self.gradient_NN.mul_(1 - rho).add_(gradient_NN, alpha=rho / count)
        self.energy_N.mul_(1 - rho).add_(energy_N, alpha=rho / count)
        vertex_NN = polar(-self.gradient_NN, settings.polar)
        norm = -_inner(self.gradient_NN, vertex_NN)
        if not norm > 0:  # gradients that cancel give no direction
            return
        self.gap = max(norm + _inner(self.gradient_NN, self.dictionary_NN), 0.0)
        relative = self.gap / norm
        self.relative_gap = relative if self.steps == 1 else MEMORY * self.relative_gap + (1 - MEMORY) * relative
        self.dictionary_NN.lerp_(vertex_NN, gamma)

    def orthogonal(self) -> Float[Tensor, "features atoms"]:
        """The dictionary: the orthogonal matrix nearest to the iterate."""
        if self._orthogonal_NN is None:
            self._orthogonal_NN = polar(self.dictionary_NN)
        return self._orthogonal_NN

    def encoder(self) -> Float[Tensor, "features atoms"]:
        """The matrix that turns rows into codes."""
        basis_NN = self.orthogonal()
        return basis_NN if self.inverse_root_NN is None else self.inverse_root_NN @ basis_NN

    def decoder(self) -> Float[Tensor, "atoms features"]:
        """The matrix that turns codes into rows: one atom per row."""
        basis_NN = self.orthogonal()
        return (basis_NN if self.root_NN is None else self.root_NN @ basis_NN).T

    def to(self, device: torch.device) -> None:
        """Move the state."""
        if self.dictionary_NN.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))

    def _sums(self, chunks: Iterable[Tensor], settings: Settings) -> tuple[Tensor, Tensor, int]:
        """Gradient, squared codes and number of rows, summed over the batch of all processes."""
        gradient_NN, energy_N = torch.zeros_like(self.gradient_NN), torch.zeros_like(self.energy_N)
        count = 0
        for rows_BN in chunks:
            count += len(rows_BN)
            rows_BN = rows_BN.to(self.dictionary_NN)
            if self.inverse_root_NN is not None:
                rows_BN = rows_BN @ self.inverse_root_NN
            if settings.normalize:
                rows_BN = _directions(rows_BN)
            codes_BN = rows_BN @ self.dictionary_NN
            size_BN = codes_BN.abs()
            powers_BN = size_BN if settings.power == 3 else size_BN.pow(settings.power - 2)
            gradient_NN.addmm_(rows_BN.T, codes_BN * powers_BN, alpha=-1)
            energy_N += torch.linalg.vecdot(codes_BN, codes_BN, dim=0)
        return gradient_NN, energy_N, _reduced(count, gradient_NN, energy_N)

    def _update_moment(self, chunks: Iterable[Tensor], settings: Settings) -> None:
        moment_NN = torch.zeros_like(self.gradient_NN)
        rows = 0
        for rows_BN in chunks:
            rows += len(rows_BN)
            rows_BN = rows_BN.to(self.dictionary_NN)
            moment_NN.addmm_(rows_BN.T, rows_BN)
        count = _reduced(rows, moment_NN)
        weight = max(count / (self.samples + count), settings.step_floor)
        moment_NN /= count
        self.moment_NN = moment_NN if self.moment_NN is None else self.moment_NN.lerp_(moment_NN, weight)

    def _update_roots(self) -> None:
        assert self.moment_NN is not None
        values_N, vectors_NN = torch.linalg.eigh(self.moment_NN.double())
        if values_N[-1] > 0:
            roots_N = values_N.clamp(min=EIGENVALUE_FLOOR * float(values_N[-1])).sqrt()
            self.root_NN = ((vectors_NN * roots_N) @ vectors_NN.T).to(self.moment_NN)
            self.inverse_root_NN = ((vectors_NN / roots_N) @ vectors_NN.T).to(self.moment_NN)


def _directions(rows_BN: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """The rows with length 1, however small they are; rows of zeros stay."""
    largest_B1 = rows_BN.abs().amax(1, keepdim=True)
    return torch.nn.functional.normalize(rows_BN / largest_B1.where(largest_B1 > 0, 1.0))


def _inner(a_NN: Float[Tensor, "n n"], b_NN: Float[Tensor, "n n"]) -> float:
    return float(torch.dot(a_NN.reshape(-1), b_NN.reshape(-1)))


def _reduced(count: int, *sums: Tensor) -> int:
    """Add up ``sums`` over all processes, in place, and return the sum of their numbers of rows."""
    all_reduce_sum(*sums)
    return int(total(count))


def polar(matrix_NN: Float[Tensor, "n columns"], method: PolarMethod = "auto") -> Float[Tensor, "n n"]:
    r"""The orthogonal matrix nearest to a square matrix: :math:`U V^\top` of its singular value decomposition.

    Parameters
    ----------
    matrix_NN : Tensor of shape (n, n)
        Finite, float32 or float64. Of a singular matrix one of its polar factors is returned.
    method : {"auto", "svd", "newton-schulz"}, default: "auto"
        Newton-Schulz is matrix products only, :math:`X \leftarrow \tfrac32 X - \tfrac12 X X^\top X` until it has
        converged to the last digits, and falls back on the decomposition for matrices too near to singular.
        ``"auto"`` takes it for wide matrices on a CUDA device.

    Returns
    -------
    Tensor of shape (n, n)
        Orthogonal.

    Raises
    ------
    ShapeError
        If the matrix is not square.

    Examples
    --------
    >>> polar(torch.tensor([[0.0, 2.0], [-3.0, 0.0]]))
    tensor([[ 0.,  1.],
            [-1.,  0.]])
    """
    if matrix_NN.shape[0] != matrix_NN.shape[1]:
        raise ShapeError("matrix of a polar factor", found=tuple(matrix_NN.shape), expected="square")
    if method == "newton-schulz" or (method == "auto" and matrix_NN.is_cuda and len(matrix_NN) > NEWTON_SCHULZ_FROM):
        factor_NN = _newton_schulz(matrix_NN)
        if factor_NN is not None:
            return factor_NN
    u_NN, _, vh_NN = torch.linalg.svd(matrix_NN)
    return u_NN @ vh_NN


def _newton_schulz(matrix_NN: Float[Tensor, "n n"]) -> Float[Tensor, "n n"] | None:
    """The polar factor by Newton-Schulz iteration; None if it has not converged."""
    width, precision = len(matrix_NN), torch.finfo(matrix_NN.dtype).eps
    bound = (torch.linalg.matrix_norm(matrix_NN, 1) * torch.linalg.matrix_norm(matrix_NN, math.inf)).sqrt()
    if not bool(bound > 0):
        return None
    factor_NN = matrix_NN / bound
    identity_NN = torch.eye(width, dtype=matrix_NN.dtype, device=matrix_NN.device)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram_NN = factor_NN.T @ factor_NN
        if bool((gram_NN - identity_NN).norm() <= 8 * precision * width):
            return factor_NN
        factor_NN = 1.5 * factor_NN - 0.5 * factor_NN @ gram_NN
    return None
