r"""Learn an orthonormal basis in which vectors are sparse, from a stream, with one small decomposition per mini-batch.

Vectors :math:`y = D^\star x` with sparse x and orthogonal :math:`D^\star` have their sparse directions where a norm of
higher order than 2 is largest. The search runs over the convex hull of the orthogonal matrices, the unit ball of the
spectral norm, on whose extreme points the minimisers lie:

.. math:: \min_{\|D\|_2 \le 1} f(D) = -\tfrac1p\, \mathbb E \|D^\top y\|_p^p

Stochastic Frank-Wolfe steps stay in the ball; for a mini-batch Y of B rows with codes :math:`A = Y D`

.. math::
    M_t = (1-\rho_t)\, M_{t-1} - \tfrac{\rho_t}{B}\, Y^\top (A\,|A|^{p-2}), \qquad
    S_t = \operatorname{polar}(-M_t), \qquad
    D_t = D_{t-1} + \gamma_t\,(S_t - D_{t-1})

The dictionary is reported as :math:`\operatorname{polar}(D_t)`, the nearest orthogonal matrix.

Legend: ``B`` samples of a batch, ``N`` features, as many as atoms. Inside, atoms are columns, as in the equations; in
``components_`` they are rows, as scikit-learn has it.

References
----------
Xue and Lau, "Online Orthogonal Dictionary Learning Based on Frank-Wolfe Method", IEEE Transactions on Neural Networks
and Learning Systems 2022, arXiv 2103.01484.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from weightsmith.core.choices import check_choice, check_number, check_whole
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite
from weightsmith.core.processes import broadcast_first, gather_objects
from weightsmith.core.selection import lowest_k_mask
from weightsmith.dictionary._online_orthogonal.frank_wolfe import FrankWolfe, PolarMethod, Settings, polar
from weightsmith.dictionary._shared.checks import moderate
from weightsmith.dictionary._shared.estimator import DictionaryEstimator, as_tensor

__all__ = ["OnlineOrthogonalDictionary"]

Rows: TypeAlias = ArrayLike | Tensor | sparse.sparray | sparse.spmatrix
"""What the estimator takes as rows."""

SVD_LIMIT = 4096
"""From this width on a singular value decomposition takes minutes."""

CHUNK = 8192
"""Rows of a batch on the device at a time."""


@dataclass(eq=False, repr=False)
class OnlineOrthogonalDictionary(DictionaryEstimator):
    r"""An orthonormal sparsifying basis, learned batch by batch; encoding is one matrix product.

    Memory is two matrices of features x features, whatever the length of the stream. Under ``torchrun`` every process
    passes its own rows, the gradients are added up, and all end with the same dictionary.

    Parameters
    ----------
    power : float, default: 3.0
        The p of the objective, above 2. 3 converges fastest; 4 is less sensitive to the start.
    rho_power : float, default: 0.5
        Weight of a batch in the running gradient: :math:`\rho_t = t^{-\text{rho\_power}}`. 0 to 1; 0 forgets the past.
    step_power : float, default: 0.5
        Length of a step: :math:`\gamma_t = t^{-\text{step\_power}}`. 0 to 1. 0.75 has the rate that the paper proves,
        :math:`O(\ln t / t^{1/4})`; 0.5 was faster wherever it was measured.
    step_floor : float, default: 0.0
        Lower bound of both, 0 to 1. Above 0 (0.05, say) the dictionary follows a stream that changes.
    batch_size : int, default: 64
        Rows of a step of :meth:`fit`; at least the number of features makes good use of a step.
        Each call of :meth:`partial_fit` is one batch.
    max_epochs : int, default: 1
        Passes of :meth:`fit` over the data.
    tol : float, default: 0.0
        :meth:`fit` stops when ``relative_gap_`` falls below it; 0 makes all passes.
    shuffle : bool, default: True
        Whether :meth:`fit` draws a new order of the rows for every pass.
    whiten : bool, default: False
        Multiply the data with the inverse root of their running second moment first. Finds complete dictionaries that
        are not orthogonal; ``components_`` are then the atoms in the space of the data.
    normalize : bool, default: False
        Learn from the samples' directions only: a few huge samples otherwise dominate a gradient that grows with the
        cube of their size.
    init : {"random", "pca"} or array-like of shape (n_features, n_features), default: "random"
        Where to start: a random rotation, the principal axes of the first samples (five per feature; better for
        images and activations), or rows to make orthonormal.
    polar : {"auto", "svd", "newton-schulz"}, default: "auto"
        How to compute polar factors, see :func:`~weightsmith.dictionary._online_orthogonal.frank_wolfe.polar`.
    random_state : int, RandomState or None, default: None
        Of the start and of the order of the rows.
    device : str, default: "cpu"
        Where to compute, ``"cuda"`` for instance. Can be changed between calls.

    Attributes
    ----------
    components_ : ndarray of shape (n_features, n_features)
        Atoms, one per row; orthonormal unless ``whiten``.
    gap_ : float
        Frank-Wolfe gap of the last step, :math:`\langle M_t, D_{t-1} - S_t\rangle \ge 0`; 0 at a stationary point.
    relative_gap_ : float
        Moving average of the gap over the nuclear norm of :math:`M_t`.
    energies_ : ndarray of shape (n_features,)
        Running mean square of every atom's code. ``components_[np.argsort(-energies_)]`` has the strongest first;
        the atoms themselves keep their order, so that learning can continue.
    n_steps_ : int
        Steps taken.
    n_samples_seen_ : int
        Rows seen, those of batches without any signal included.
    n_features_in_ : int
        Features.

    See Also
    --------
    sklearn.decomposition.MiniBatchDictionaryLearning : Overcomplete dictionaries.
    sklearn.decomposition.FastICA : A batch method for data that fit in memory.

    Notes
    -----
    Data without sparse directions (Gaussian noise) have no preferred basis: any basis is returned, and :meth:`score`
    shows no gain. A common positive factor on all batches changes nothing; factors that differ from batch
    to batch do, unless ``normalize``. The data are not centered.

    References
    ----------
    Xue and Lau, arXiv 2103.01484.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> basis = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    >>> codes = rng.standard_normal((20_000, 10)) * (rng.random((20_000, 10)) < 0.3)
    >>> learner = OnlineOrthogonalDictionary(random_state=0).fit(codes @ basis.T)
    >>> bool((abs(learner.components_ @ basis).max(axis=1) > 0.999).all())
    True
    """

    _: KW_ONLY
    power: float = 3.0
    rho_power: float = 0.5
    step_power: float = 0.5
    step_floor: float = 0.0
    batch_size: int = 64
    max_epochs: int = 1
    tol: float = 0.0
    shuffle: bool = True
    whiten: bool = False
    normalize: bool = False
    init: Literal["random", "pca"] | ArrayLike = "random"
    polar: PolarMethod = "auto"
    random_state: int | np.random.RandomState | None = None
    device: str = "cpu"

    def fit(self, X: Rows, y: object = None) -> Self:
        """Learn from all rows, in batches; forgets what was learned before.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            Finite; float32 and float64 are kept, half precision is computed in float32. A memory-mapped array is read
            batch by batch. Under ``torchrun`` this process's rows.
        y : ignored
            Present for API consistency.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data or a hyper-parameter is out of range.
        """
        rows = self._rows(X, reset=True)
        random = check_random_state(self.random_state)
        state, settings = self._start(rows, random), self._settings()
        for batch in self._batches(rows.shape[0], random):
            state.step(_Chunks(rows, batch), settings)
            if state.relative_gap < self.tol:
                break
        self._state = state
        return self

    def partial_fit(self, X: Rows, y: object = None) -> Self:
        """Take one step on a batch; the first call draws the start.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            One batch, as for :meth:`fit`. Without any signal (all zeros) nothing is learned.
        y : ignored
            Present for API consistency.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data or a hyper-parameter is out of range.
        """
        first = not hasattr(self, "_state")
        rows = self._rows(X, reset=first)
        if first:
            self._state = self._start(rows, check_random_state(self.random_state))
        self._here().step(_Chunks(rows), self._settings())
        return self

    def transform(self, X: Rows) -> np.ndarray | Tensor:
        """Return the codes of the rows: their coordinates in the basis.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            An array for an array; for a tensor a tensor, on its device.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        encoder_NN = self._here().encoder()
        if isinstance(rows, Tensor):
            return (rows.to(encoder_NN) @ encoder_NN).to(rows)
        if encoder_NN.is_cuda and isinstance(rows, np.ndarray):
            codes = _tensor(rows).to(encoder_NN) @ encoder_NN
            return codes.cpu().numpy().astype(rows.dtype, copy=False)
        return np.asarray(rows @ encoder_NN.cpu().numpy().astype(rows.dtype))

    def inverse_transform(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the rows that codes stand for.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Codes, of :meth:`transform` or :meth:`keep_largest`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            Of the kind of the codes.
        """
        check_is_fitted(self)
        decoder_NN = self._here().decoder()
        codes = self._codes(X)
        if codes.shape[1] != len(decoder_NN):
            raise ShapeError("codes", found=tuple(codes.shape), expected=f"(n_samples, {len(decoder_NN)})")
        if isinstance(codes, Tensor):
            return (codes.to(decoder_NN) @ decoder_NN).to(codes)
        return np.asarray(codes @ decoder_NN.cpu().numpy().astype(codes.dtype))

    def keep_largest(self, codes: ArrayLike | Tensor, top_k: int) -> np.ndarray | Tensor:
        """Keep the entries of largest magnitude in every row, of equal ones the last, and zero the others.

        Parameters
        ----------
        codes : array-like or Tensor of shape (n_samples, n_features)
            Codes.
        top_k : int
            Entries to keep per row, 0 to the number of features.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            Of the kind of the codes.

        Raises
        ------
        HyperparameterError
            If ``top_k`` is out of range.

        Examples
        --------
        >>> OnlineOrthogonalDictionary().keep_largest([[3.0, -4.0, 1.0]], top_k=1)
        array([[ 0., -4.,  0.]])
        """
        values_BN = torch.as_tensor(self._codes(codes))
        width = values_BN.shape[1]
        drop = width - check_whole("top_k", top_k, 0, width)
        kept_BN = values_BN.masked_fill(lowest_k_mask(values_BN.abs(), drop), 0.0)
        return kept_BN if isinstance(codes, Tensor) else kept_BN.numpy()

    def score(self, X: Rows, y: object = None) -> float:
        r"""Return how sparse the rows are in the basis: minus the mean of :math:`\|z\|_1 / (\sqrt n\,\|z\|_2)`.

        Between -1 (all entries of equal size) and :math:`-1/\sqrt n` (a single entry); about -0.8 for Gaussian codes.
        Rows of zeros count as -1.
        """
        codes_BN = torch.as_tensor(self.transform(X))
        size_B = codes_BN.norm(dim=1) * math.sqrt(codes_BN.shape[1])
        return -float(torch.where(size_B > 0, codes_BN.abs().sum(1) / size_B.clamp(min=1e-300), 1.0).mean())

    @property
    def components_(self) -> np.ndarray:
        """Atoms, one per row."""
        return self._fitted().decoder().cpu().numpy()

    @property
    def energies_(self) -> np.ndarray:
        """Running mean square of every atom's code."""
        return self._fitted().energy_N.cpu().numpy()

    @property
    def gap_(self) -> float:
        """Frank-Wolfe gap of the last step."""
        return self._fitted().gap

    @property
    def relative_gap_(self) -> float:
        """Moving average of the gap over the nuclear norm of the running gradient."""
        return self._fitted().relative_gap

    @property
    def n_steps_(self) -> int:
        """Steps taken."""
        return self._fitted().steps

    @property
    def n_samples_seen_(self) -> int:
        """Rows seen."""
        return self._fitted().samples

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        if hasattr(self, "_state"):
            self._state.to(torch.device("cpu"))  # a pickle made on a GPU opens without one
        return super().__getstate__()

    # Inside -----------------------------------------------------------------------------------------------------------

    def _fitted(self) -> FrankWolfe:
        if not hasattr(self, "_state"):
            raise AttributeError(f"{type(self).__name__} has learned nothing yet: call fit or partial_fit")
        return self._state

    def _here(self) -> FrankWolfe:
        """The state, on the device that is asked for now."""
        self._state.to(torch.device(self.device))
        return self._state

    def _batches(self, count: int, random: np.random.RandomState) -> Iterator[np.ndarray]:
        """The numbers of the rows of every batch; all processes take equally many."""
        steps = int(max(gather_objects(math.ceil(count / self.batch_size))))
        for _ in range(self.max_epochs):
            order = random.permutation(count) if self.shuffle else np.arange(count)
            for step in range(steps):
                yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def _start(self, rows: Any, random: np.random.RandomState) -> FrankWolfe:
        """The state before the first step."""
        dtype = rows.dtype if isinstance(rows, Tensor) else torch.from_numpy(np.empty(0, rows.dtype)).dtype
        width = rows.shape[1]
        start_NN = torch.from_numpy(random.standard_normal((width, width)))
        if not isinstance(self.init, str):
            given = check_array(self.init, dtype=np.float64)
            if given.shape != (width, width):
                raise ShapeError("init", found=given.shape, expected=(width, width), do="Give one atom per row.")
            start_NN = polar(torch.from_numpy(given).T)
        else:
            basis_NN, upper_NN = torch.linalg.qr(start_NN)
            start_NN = basis_NN * upper_NN.diagonal().sign()
        start_NN = start_NN.to(torch.device(self.device), dtype)
        broadcast_first(start_NN)
        if width > SVD_LIMIT and (self.polar == "svd" or (self.polar == "auto" and not start_NN.is_cuda)):
            do = "take polar='auto'" if start_NN.is_cuda else "take device='cuda' and polar='auto', or larger batches"
            warnings.warn(f"a decomposition of {width} x {width} per step is slow: {do}", stacklevel=3)
        return FrankWolfe(start_NN)

    def _rows(self, X: Any, reset: bool) -> Any:
        """The checked rows: a tensor in float32 or float64, an array or a CSR matrix."""
        self._check_hyperparameters()
        if not isinstance(X, Tensor):
            if not reset and self._is_plain(X):
                return X
            rows = validate_data(self, X, dtype=[np.float64, np.float32], accept_sparse="csr", reset=reset)
            return moderate(rows, self._highest_power())
        rows = X.detach()
        if rows.ndim != 2 or 0 in rows.shape:
            raise ShapeError("X", found=tuple(rows.shape), expected="(n_samples, n_features), neither 0")
        if not reset and rows.shape[1] != self.n_features_in_:
            raise ShapeError("features of X", found=rows.shape[1], expected=self.n_features_in_)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if not is_finite(rows):
            raise NonFiniteError("X contains NaN or infinity")
        moderate(rows, self._highest_power())
        if reset:
            self.n_features_in_ = rows.shape[1]
        return rows

    def _is_plain(self, X: Any) -> bool:
        """Whether rows need no conversion: scikit-learn's own check takes longer than a step."""
        return (
            type(X) is np.ndarray
            and X.dtype in (np.float64, np.float32)
            and X.ndim == 2
            and len(X) > 0
            and X.shape[1] == self.n_features_in_
            and not hasattr(self, "feature_names_in_")
            and bool(np.vdot(X, X) <= float(np.finfo(X.dtype).max) ** (2 / self._highest_power()))
        )

    def _highest_power(self) -> float:
        """The power of the rows' norms that a step adds up."""
        return 2.0 if self.normalize or self.whiten else float(self.power)

    def _codes(self, codes: Any) -> Any:
        return codes if isinstance(codes, Tensor) else check_array(codes, dtype=[np.float64, np.float32])

    def _settings(self) -> Settings:
        principal_start = isinstance(self.init, str) and self.init == "pca"
        named = {name: getattr(self, name) for name in Settings._fields if name != "principal_start"}
        return Settings(**named, principal_start=principal_start)

    def _check_hyperparameters(self) -> None:
        for name in ("rho_power", "step_power", "step_floor", "tol"):
            check_number(name, getattr(self, name), 0, 1)
        for name in ("batch_size", "max_epochs"):
            check_whole(name, getattr(self, name))
        check_choice("polar", self.polar, PolarMethod)
        if not isinstance(self.power, numbers.Real) or not 2 < self.power < math.inf:
            raise HyperparameterError(
                "power", found=self.power, expected="> 2, 3 or 4 recommended", do="At 2 all rotations are equally good."
            )
        if isinstance(self.init, str) and self.init not in ("random", "pca"):
            raise HyperparameterError("init", found=self.init, expected="'random', 'pca' or an array")


@dataclass(frozen=True)
class _Chunks:
    """The rows of one batch as dense tensors, not too many at a time."""

    rows: Any
    order: np.ndarray | None = None

    def __iter__(self) -> Iterator[Float[Tensor, "chunk features"]]:
        count = self.rows.shape[0] if self.order is None else len(self.order)
        for first in range(0, count, CHUNK):
            here = slice(first, first + CHUNK)
            yield _tensor(self.rows[here if self.order is None else self.order[here]])


def _tensor(rows: Any) -> Tensor:
    """Dense rows as a tensor, without a copy where they allow it."""
    if isinstance(rows, Tensor):
        return rows
    return as_tensor(rows if isinstance(rows, np.ndarray) else rows.toarray())
