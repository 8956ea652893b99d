r"""A scikit-learn classifier whose features are a dictionary learned for both the data and the labels.

Legend: see :mod:`weightsmith.dictionary._supervised.problem`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse
import torch
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    check_non_negative,
    validate_data,
)
from torch import Tensor

from weightsmith.core.choices import check_choice, check_number, check_whole
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.processes import all_reduce_sum, gather_objects, process_count
from weightsmith.dictionary._shared.checks import moderate
from weightsmith.dictionary._shared.estimator import DictionaryEstimator, as_numpy, as_tensor
from weightsmith.dictionary._supervised.factored import descend, least_squares_codes
from weightsmith.dictionary._supervised.gradient import projected_gradient
from weightsmith.dictionary._supervised.joint import label_energies
from weightsmith.dictionary._supervised.majorize import majorize
from weightsmith.dictionary._supervised.problem import Model, Problem, Rows, Solution

__all__ = ["SupervisedDictionaryClassifier"]

CODE_SWEEPS = 200
"""Rounds over the atoms in which a new sample's non-negative code is found."""

Solver = Literal["mm", "bcd", "lpgd"]
Prediction = Literal["code", "joint"]
Selector = Sequence[int] | Sequence[str] | Sequence[bool] | Callable[[Any], Any]


@dataclass(eq=False, repr=False)
class SupervisedDictionaryClassifier(ClassifierMixin, DictionaryEstimator):
    r"""Learn one low-rank dictionary that both reconstructs the features and predicts the label.

    Between PCA or NMF with logistic regression, whose dictionary ignores the labels, and logistic regression without a
    dictionary. Covariates may bypass the dictionary and enter the classifier directly.

    .. math::

        \min \sum_i \ell(y_i, \beta^\top W^\top x_i + \Gamma^\top z_i) + \xi \lVert X - W H \rVert_F^2
            + \nu \left(\lVert W\beta \rVert_F^2 + \lVert \Gamma \rVert_F^2\right)

    The features are not centered.

    Parameters
    ----------
    n_components : int, default: 8
        Atoms, >= 1; at most the rank of the data.
    xi : float, default: 0.1
        Weight of the reconstruction, > 0: small for the label, large for PCA's dictionary. Under Gaussian noise of
        variance :math:`\sigma^2` on the features the maximum-likelihood value is :math:`1/(2\sigma^2)`.
    alpha : float, default: 1e-3
        The L2 penalty :math:`\nu` on the classifier, its intercept included; >= 0.
    model : {"filter", "feature"}, default: "filter"
        Whether the label is a function of the atoms' inner products with the features, or of the codes.
    solver : {"mm", "bcd", "lpgd"}, default: "mm"
        Majorize-minimize; block coordinate descent, for ``nonnegative``; the paper's projected gradient, which is slow.
    nonnegative : bool, default: False
        Whether dictionary and codes must not be negative; needs ``solver="bcd"`` and features >= 0.
    aux_features : sequence of int, str or bool, or callable, optional
        The columns of ``X`` that bypass the dictionary: positions, names (of a data frame), a mask, or a function of
        ``X`` that returns one of these. They are standardized internally; their coefficients are for the raw columns.
    prediction : {"code", "joint"}, default: "code"
        How the feature model predicts: from the least-squares code of a sample, or the label whose best code has the
        smallest cost in features and label together.
    class_weight : dict or "balanced", optional
        Weights of the classes in the loss of the labels, >= 0; the reconstruction ignores them.
    max_iter : int, default: 1000
        Most steps.
    tol : float, default: 1e-7
        Relative decrease per step below which to stop.
    random_state : int, RandomState or None, default: None
        Seed of the start of ``solver="bcd"``; the other solvers draw nothing.
    device : str, default: "cpu"
        Where to compute, as torch names it.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    components_ : ndarray of shape (n_components, n_dictionary_features)
        The atoms as rows: orthonormal (``"mm"``), or with Frobenius norm 1 in all.
    coef_ : ndarray of shape (1, n_components) or (n_classes - 1, n_components)
        The classifier on the codes; the first class has the logit 0.
    aux_coef_ : ndarray of shape (1 or n_classes - 1, n_aux_features)
        Its coefficients of the covariates.
    intercept_ : ndarray of shape (1,) or (n_classes - 1,)
        Its intercept.
    aux_features_ : ndarray of int
        Positions of the covariates in ``X``.
    n_components_ : int
        Atoms found.
    reconstruction_err_ : float
        :math:`\lVert X - WH \rVert_F` on the training data, samples weighted.
    objective_curve_ : list of float
        The objective before the first step and after each.
    n_iter_ : int
        Steps taken.
    n_features_in_ : int
        Columns of ``X``, covariates included.
    feature_names_in_ : ndarray of str
        Their names, where ``X`` had names.

    Notes
    -----
    Launched by ``torchrun``, each process fits on its own samples: with ``model="filter"`` and ``solver="mm"`` all
    sums are added up over processes, and every process gets the model of all samples.

    References
    ----------
    Lee, Lyu, Yao, "Supervised Dictionary Learning with Auxiliary Covariates", arXiv 2206.06774. Its convex lift:
    "Exponentially Convergent Algorithms for Supervised Matrix Factorization", arXiv 2311.11182.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import minmax_scale
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = minmax_scale(X)
    >>> classifier = SupervisedDictionaryClassifier(n_components=2).fit(X, y)
    >>> classifier.transform(X).shape, classifier.components_.shape
    ((569, 2), (2, 30))
    >>> bool(classifier.score(X, y) > 0.97)
    True
    """

    n_components: int = 8
    _: KW_ONLY
    xi: float = 0.1
    alpha: float = 1e-3
    model: Model = "filter"
    solver: Solver = "mm"
    nonnegative: bool = False
    aux_features: Selector | None = None
    prediction: Prediction = "code"
    class_weight: Mapping[Any, float] | Literal["balanced"] | None = None
    max_iter: int = 1000
    tol: float = 1e-7
    random_state: int | np.random.RandomState | None = None
    device: str = "cpu"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn the dictionary and the classifier.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            The features, covariates among them.
        y : array-like of shape (n_samples,)
            The labels, two or more.
        sample_weight : array-like of shape (n_samples,), optional
            Weights >= 0; a weight of two is the same as the sample twice.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is outside its range, or the data are not what the parameters need.
        """
        self._check_parameters()
        shared = process_count() > 1
        if shared and (self.model, self.solver) != ("filter", "mm"):
            raise ValueError(
                f"several processes fit together: model={self.model!r}, solver={self.solver!r} cannot. "
                "Use model='filter' and solver='mm', or fit in one process."
            )
        aux = self.aux_features(X) if callable(self.aux_features) else self.aux_features
        X, y = validate_data(
            self,
            as_numpy(X),
            as_numpy(y),
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            ensure_min_samples=1 if shared else 2,
        )
        moderate(X)
        check_classification_targets(y)
        weight = _check_sample_weight(as_numpy(sample_weight), X, dtype=np.float64, ensure_non_negative=True)
        self.classes_ = _all_labels(y[weight > 0])
        if len(self.classes_) < 2:
            raise ValueError(f"y needs at least two classes; it has one class: {self.classes_.tolist()}")
        self.aux_features_ = self._positions(aux)
        features, covariates = self._split(X)
        if self.nonnegative:
            check_non_negative(features, "SupervisedDictionaryClassifier (nonnegative=True)")
        if self.solver == "lpgd" and scipy.sparse.issparse(features):
            raise ValueError("solver='lpgd' forms dense matrices; use solver='mm' for sparse data")

        samples = torch.tensor(float(np.count_nonzero(weight)))
        all_reduce_sum(samples)
        rank = min(self.n_components, features.shape[1], int(samples))
        problem, mean, scale = self._problem(features, covariates, y, weight, shared)
        solution = self._solve(problem, rank)
        if not solution.converged:
            warnings.warn(
                f"not converged after {self.max_iter} steps; raise max_iter, tol or alpha",
                ConvergenceWarning,
                stacklevel=2,
            )
        found = solution.atoms_PR.shape[1]
        if found < self.n_components:
            warnings.warn(
                f"n_components={self.n_components} is more than the data allow: {found} are found", stacklevel=2
            )
        self._keep(solution, mean, scale, X.dtype)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the codes, an array of shape (n_samples, n_components).

        Of the filter model (and of every orthonormal dictionary) they are the inner products with the atoms; of the
        feature model the least-squares codes, non-negative where the dictionary is.
        """
        features, _ = self._checked(X)
        if self.model == "filter":
            return np.asarray(features @ self.components_.T)
        return self._least_squares(features)

    def reconstruct(self, X: Any) -> np.ndarray:
        """Return the nearest point to every sample that the dictionary can form, without the covariates.

        An array of shape (n_samples, n_dictionary_features).
        """
        features, _ = self._checked(X)
        return self._least_squares(features) @ self.components_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits: of class 1 if there are two, of shape (n_samples,), else of all, the first 0."""
        features, covariates = self._checked(X)
        offset = covariates @ self.aux_coef_.T + self.intercept_
        if self.model == "filter":
            logits = np.asarray(features @ (self.coef_ @ self.components_).T) + offset
        elif self.prediction == "joint":
            logits = self._joint(features, offset)
        else:
            logits = self._least_squares(features) @ self.coef_.T + offset
        if len(self.classes_) == 2:
            return logits[:, 0]
        return np.hstack([np.zeros_like(logits[:, :1]), logits])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of all classes, an array of shape (n_samples, n_classes)."""
        return self._logits(X).softmax(1).numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities, an array of shape (n_samples, n_classes)."""
        return self._logits(X).log_softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of every sample, an array of shape (n_samples,)."""
        check_is_fitted(self)
        logits = self.decision_function(X)
        return self.classes_[logits.argmax(1) if logits.ndim == 2 else (logits > 0).astype(int)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.solver != "lpgd"
        tags.input_tags.positive_only = self.nonnegative
        return tags

    def _logits(self, X: Any) -> Tensor:
        """The logits of all classes, the first 0."""
        check_is_fitted(self)
        logits = self.decision_function(X)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        return torch.from_numpy(logits)

    def _check_parameters(self) -> None:
        check_whole("n_components", self.n_components)
        check_whole("max_iter", self.max_iter)
        for name in ("xi", "alpha", "tol"):
            check_number(name, getattr(self, name))
        if self.xi == 0:
            raise ValueError("xi must be > 0; use LogisticRegression for xi=0")
        for name, choices in {"model": Model, "solver": Solver, "prediction": Prediction}.items():
            check_choice(name, getattr(self, name), choices)
        if self.nonnegative and self.solver != "bcd":
            raise ValueError(f"nonnegative=True needs solver='bcd', got solver={self.solver!r}")
        if self.prediction == "joint" and (self.model != "feature" or self.nonnegative):
            raise ValueError("prediction='joint' needs model='feature' and nonnegative=False")

    def _positions(self, aux: Any) -> np.ndarray:
        """Resolve ``aux_features`` to column positions."""
        count = self.n_features_in_
        names = getattr(self, "feature_names_in_", None)
        wanted = np.atleast_1d(np.asarray([] if aux is None else aux))
        if wanted.size == 0:
            return np.zeros(0, dtype=int)
        if wanted.dtype.kind in "UO":
            if names is None:
                raise ValueError("aux_features are names, but X has no column names")
            unknown = [name for name in wanted if name not in names]
            if unknown:
                raise ValueError(f"aux_features {unknown} are not columns of X; its columns are {list(names)}")
            positions = np.flatnonzero(np.isin(names, wanted.astype(object)))
        elif wanted.dtype.kind == "b":
            if wanted.shape != (count,):
                raise ValueError(f"aux_features is a mask of {wanted.size} values for {count} columns")
            positions = np.flatnonzero(wanted)
        elif wanted.dtype.kind in "iu":
            if wanted.min() < -count or wanted.max() >= count:
                raise ValueError(f"aux_features {wanted.tolist()} are not all columns of X, which has {count}")
            positions = np.unique(wanted % count)
        else:
            raise ValueError(f"aux_features must be positions, names, a mask or a callable, got {aux!r}")
        if len(positions) == count:
            raise ValueError("aux_features select all columns: nothing is left for the dictionary")
        return positions

    def _split(self, X: Any) -> tuple[Any, np.ndarray]:
        """The dictionary's columns, dense or sparse, and the covariates, dense."""
        if not len(self.aux_features_):
            return X, np.zeros((X.shape[0], 0), dtype=X.dtype)
        own = np.setdiff1d(np.arange(X.shape[1]), self.aux_features_)
        covariates = X[:, self.aux_features_]
        return X[:, own], covariates.toarray() if scipy.sparse.issparse(covariates) else covariates

    def _checked(self, X: Any) -> tuple[Any, np.ndarray]:
        check_is_fitted(self)
        return self._split(
            moderate(validate_data(self, as_numpy(X), reset=False, accept_sparse="csr", dtype=[np.float64, np.float32]))
        )

    def _problem(
        self, features: Any, covariates: np.ndarray, y: np.ndarray, weight: np.ndarray, shared: bool
    ) -> tuple[Problem, Tensor, Tensor]:
        device = torch.device(self.device)
        label = np.where(weight > 0, np.searchsorted(self.classes_, y), 0)  # without weight, y may be no class
        class_weight = np.ones(len(self.classes_))
        if self.class_weight == "balanced":
            counts = torch.from_numpy(np.bincount(label, weight, minlength=len(self.classes_)))
            all_reduce_sum(counts)
            class_weight = (counts.sum() / (len(counts) * counts)).numpy()
        elif self.class_weight is not None:
            class_weight = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)
            if not np.all((class_weight >= 0) & (class_weight < np.inf)) or not class_weight.any():
                raise HyperparameterError("class_weight", found=self.class_weight, expected="numbers >= 0, not all 0")
        weight_N = torch.as_tensor(weight, device=device)
        # otherwise the scale of the covariates would limit the step of all blocks; standardized they are the same model
        z_NQ = torch.as_tensor(covariates, dtype=torch.float64, device=device)
        sums = torch.cat([weight_N.sum()[None], weight_N @ z_NQ])
        all_reduce_sum(sums)
        mean_Q = sums[1:] / sums[0]
        square_Q = weight_N @ (z_NQ - mean_Q).square()
        all_reduce_sum(square_Q)
        scale_Q = (square_Q / sums[0]).sqrt()
        scale_Q = scale_Q.where(scale_Q > 1e-12 * mean_Q.abs(), 1.0)
        y_NK = torch.as_tensor(label[:, None] == np.arange(1, len(self.classes_)), dtype=torch.float64, device=device)
        problem = Problem(
            rows=Rows(_tensor(features).to(device)),
            z_NZ=torch.cat([torch.ones_like(weight_N)[:, None], (z_NQ - mean_Q) / scale_Q], dim=1),
            y_NK=y_NK,
            weight_N=weight_N,
            label_weight_N=weight_N * torch.as_tensor(class_weight[label], device=device),
            xi=float(self.xi),
            nu=float(self.alpha),
            shared=shared,
        )
        return problem, mean_Q, scale_Q

    def _solve(self, problem: Problem, rank: int) -> Solution:
        options: dict[str, Any] = {"model": self.model, "max_iter": int(self.max_iter), "tol": float(self.tol)}
        if self.solver == "mm":
            return majorize(problem, rank, **options)
        if self.solver == "lpgd":
            return projected_gradient(problem, rank, **options)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        return descend(problem, rank, nonnegative=self.nonnegative, generator=generator, **options)

    def _keep(self, solution: Solution, mean_Q: Tensor, scale_Q: Tensor, dtype: Any) -> None:
        """Fix the signs, fold the covariates' scale into their coefficients, and store all as arrays."""
        atoms_PR = solution.atoms_PR
        peak_1R = atoms_PR.abs().argmax(0, keepdim=True)
        sign_R = torch.where(atoms_PR.gather(0, peak_1R)[0] < 0, -1.0, 1.0)
        aux_QK = solution.gamma_ZK[1:] / scale_Q[:, None]
        intercept_K = solution.gamma_ZK[0] - mean_Q @ aux_QK
        self.components_ = (atoms_PR * sign_R).T.cpu().numpy().astype(dtype)
        self.coef_ = (solution.beta_RK * sign_R[:, None]).T.cpu().numpy().astype(dtype)
        self.aux_coef_ = aux_QK.T.cpu().numpy().astype(dtype)
        self.intercept_ = intercept_K.cpu().numpy().astype(dtype)
        self.n_components_ = len(self.components_)
        self.reconstruction_err_ = float(np.sqrt(solution.squared_error))
        self.objective_curve_ = solution.values
        self.n_iter_ = max(1, len(solution.values) - 1)

    def _products(self, features: Any) -> tuple[Tensor, Tensor]:
        """The inner products of the samples with the atoms, and of the atoms with each other."""
        atoms_RP = torch.from_numpy(self.components_).double()
        target_NR = torch.from_numpy(np.asarray(features @ self.components_.T)).double()
        return target_NR, atoms_RP @ atoms_RP.T

    def _least_squares(self, features: Any) -> np.ndarray:
        target_NR, gram_RR = self._products(features)
        start_NR = torch.zeros_like(target_NR) if self.nonnegative else None
        codes_NR = least_squares_codes(target_NR, gram_RR, start_NR=start_NR, sweeps=CODE_SWEEPS)
        return codes_NR.numpy().astype(self.components_.dtype)

    def _joint(self, features: Any, offset: np.ndarray) -> np.ndarray:
        beta_RK, offset_NK = torch.from_numpy(self.coef_.T).double(), torch.from_numpy(offset).double()
        energy_NC = label_energies(*self._products(features), beta_RK, offset_NK, xi=float(self.xi))
        return (energy_NC[:, :1] - energy_NC[:, 1:]).numpy().astype(self.components_.dtype)


def _tensor(features: Any) -> Tensor:
    """An array or a sparse matrix as a tensor."""
    if not scipy.sparse.issparse(features):
        return as_tensor(features)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(features.indptr.astype(np.int64)),
            torch.from_numpy(features.indices.astype(np.int64)),
            torch.from_numpy(features.data),
            size=features.shape,
            check_invariants=False,
        )


def _all_labels(y: np.ndarray) -> np.ndarray:
    """The labels of all processes, sorted."""
    return np.unique(np.concatenate(gather_objects(np.unique(y))))
