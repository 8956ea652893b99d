"""The bottleneck as a scikit-learn classifier, on features that are computed already."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightsmith.continual._dkvb.bottleneck import DiscreteKeyValueBottleneck
from weightsmith.core.errors import MissingDependencyError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingDependencyError(
        "KeyValueBottleneckClassifier needs scikit-learn", do="pip install scikit-learn, or weightsmith[dictionary]."
    ) from error

__all__ = ["KeyValueBottleneckClassifier"]


@dataclass(eq=False, repr=False)
class KeyValueBottleneckClassifier(ClassifierMixin, BaseEstimator):
    """A classifier on the features of a frozen encoder that learns classes one after another without forgetting.

    The scikit-learn form of :class:`DiscreteKeyValueBottleneck`: labels of any type, ``partial_fit`` with new classes
    at any time.

    Parameters
    ----------
    codebooks : int, default: 64
        Independent projections of the features, each with keys of its own.
    pairs : int, default: 256
        Keys, and values, of each codebook.
    key_dim : int, default: 14
        Dimensions of a key.
    epochs : int, default: 30
        Passes over the samples of each call of :meth:`fit` and :meth:`partial_fit`.
    learning_rate : float, default: 0.0375
        Per value.
    batch_size : int, default: 32
        Samples per step.
    label_smoothing : float, default: 0.1
        Share of the label that is spread over all classes, in [0, 1).
    passes : int, default: 10
        Passes of the moving averages that place the keys.
    random_state : int, RandomState or None, default: None
        Draws the projections, the keys and the order of the samples.
    device : str, default: "cpu"
        Where to compute, ``"cuda"`` for instance.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    bottleneck_ : DiscreteKeyValueBottleneck
        The module. Its last output stands for any other class; the estimator leaves it out.
    n_features_in_ : int
        Columns of ``X``.
    feature_names_in_ : ndarray of str
        Their names, where ``X`` had names.

    Notes
    -----
    Features are taken unchanged: where their scales differ, standardize them first. Everything is computed in float32.

    References
    ----------
    Traeuble et al., "Discrete Key-Value Bottleneck", arXiv 2207.11240.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(n_class=4, return_X_y=True)
    >>> classifier = KeyValueBottleneckClassifier(pairs=64, key_dim=8, random_state=0).init_keys(X)
    >>> for label in range(4):  # one class after the other
    ...     classifier = classifier.partial_fit(X[y == label], y[y == label])
    >>> bool(classifier.score(X, y) > 0.98)
    True
    """

    codebooks: int = 64
    pairs: int = 256
    key_dim: int = 14
    _: KW_ONLY
    epochs: int = 30
    learning_rate: float = 0.0375
    batch_size: int = 32
    label_smoothing: float = 0.1
    passes: int = 10
    random_state: int | np.random.RandomState | None = None
    device: str = "cpu"

    def init_keys(self, X: Any) -> KeyValueBottleneckClassifier:
        """Place the keys at unlabeled samples and forget all classes; :meth:`partial_fit` then keeps these keys.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features, which need not be of the classes that follow.

        Returns
        -------
        KeyValueBottleneckClassifier
            Itself.

        Raises
        ------
        ValueError
            If the data or a parameter is out of range.
        """
        with self._restored_on_error():
            features = torch.from_numpy(validate_data(self, X, dtype=np.float32, order="C"))
            self._place_keys(features)
        return self

    def fit(self, X: Any, y: Any) -> KeyValueBottleneckClassifier:
        """Place the keys at the samples and learn all of their classes, from nothing.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.
        y : array-like of shape (n_samples,)
            The labels.

        Returns
        -------
        KeyValueBottleneckClassifier
            Itself.

        Raises
        ------
        ValueError
            If the data or a parameter is out of range.
        """
        with self._restored_on_error():
            X, y = validate_data(self, X, y, dtype=np.float32, order="C")
            check_classification_targets(y)
            features = torch.from_numpy(X)
            self._place_keys(features)
            self._add_classes(np.unique(y))
            return self._learn(features, y)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> KeyValueBottleneckClassifier:
        """Learn from more samples, of classes known or new; values that they do not use stay unchanged.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features. In a first call without :meth:`init_keys` the keys are placed at them.
        y : array-like of shape (n_samples,)
            The labels.
        classes : array-like, optional
            Labels that are known to come. They are not needed: a new label adds a class whenever it appears.

        Returns
        -------
        KeyValueBottleneckClassifier
            Itself.

        Raises
        ------
        ValueError
            If the data or a parameter is out of range, a label is not in ``classes``, or labels are text after numbers.
        """
        first = not hasattr(self, "bottleneck_")
        with self._restored_on_error():
            X, y = validate_data(self, X, y, dtype=np.float32, order="C", reset=first)
            check_classification_targets(y)
            named = np.unique(y if classes is None else classes)
            if unknown := sorted(set(np.unique(y).tolist()) - set(named.tolist())):
                raise ValueError(f"labels {unknown[:10]} are not in classes={named.tolist()[:10]}")
            features = torch.from_numpy(X)
            if first:
                self._place_keys(features)
            self._add_classes(named)
            return self._learn(features, y)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits of all classes; if there are two, those of the second minus those of the first."""
        logits = self._logits(X)
        return (logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of all classes, an array of shape (n_samples, n_classes)."""
        return self._logits(X).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of every sample, an array of shape (n_samples,)."""
        best = self._logits(X).argmax(1).numpy()
        return self.classes_[best]

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        held = dict(self.__dict__)
        if "bottleneck_" in held:
            held["bottleneck_"] = copy.deepcopy(held["bottleneck_"])
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(held)
            raise

    def _place_keys(self, features: Tensor) -> None:
        self._random = check_random_state(self.random_state)
        generator = self._generator()
        bottleneck = DiscreteKeyValueBottleneck(
            features.shape[1],
            1,
            codebooks=self.codebooks,
            pairs=self.pairs,
            key_dim=self.key_dim,
            generator=generator,
        )
        self.bottleneck_ = bottleneck.to(self.device).eval()
        self.bottleneck_.init_keys(
            features.to(self.device), passes=self.passes, batch_size=self.batch_size, generator=generator
        )
        self.__dict__.pop("classes_", None)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self._random.randint(2**31 - 1)))

    def _add_classes(self, named: np.ndarray) -> None:
        """Add a column of values for each new label; columns stay in the order of the labels.

        The last column is that of any other class: no sample has it, so training makes it unlikely at all pairs that
        are used. New labels start from it, as if they had been there before.
        """
        known = getattr(self, "classes_", named[:0])
        if len(known) and len({label.dtype.kind in "OUS" for label in (known, named)}) > 1:
            raise ValueError(
                f"labels {named.tolist()[:5]} are of another type than those learned before, {known.tolist()[:5]}"
            )
        self.classes_ = np.union1d(known, named)
        held = self.bottleneck_.values.detach()
        values = held[:, -1:].repeat(1, len(self.classes_) + 1)
        values[:, np.searchsorted(self.classes_, known)] = held[:, :-1]
        self.bottleneck_.values = nn.Parameter(values)
        self.bottleneck_.num_classes = len(self.classes_) + 1

    def _learn(self, features: Tensor, y: np.ndarray) -> KeyValueBottleneckClassifier:
        self.bottleneck_.to(self.device).partial_fit(
            features.to(self.device),
            torch.from_numpy(np.searchsorted(self.classes_, y)),
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            label_smoothing=self.label_smoothing,
            generator=self._generator(),
        )
        return self

    @torch.no_grad()
    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self, "classes_")
        features = torch.from_numpy(validate_data(self, X, dtype=np.float32, order="C", reset=False))
        logits: Tensor = self.bottleneck_.to(self.device).eval()(features.to(self.device))
        return logits[:, :-1].cpu()
