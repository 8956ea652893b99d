"""scikit-learn's own checks of every estimator, for every way that one fits or predicts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from weightsmith.core.errors import NonFiniteError
from weightsmith.dictionary import (
    BSC,
    DSC,
    GSC,
    MCA,
    MMCA,
    TSC,
    OnlineOrthogonalDictionary,
    SupervisedDictionaryClassifier,
)

SMALL = {"n_components": 2, "max_iter": 5, "random_state": 0}
ESTIMATORS = [
    *(kind(3, max_iter=2) for kind in (BSC, TSC, DSC, MCA, MMCA, GSC)),
    OnlineOrthogonalDictionary(random_state=0),
    OnlineOrthogonalDictionary(random_state=0, whiten=True, normalize=True),
    OnlineOrthogonalDictionary(random_state=0, init="pca", polar="newton-schulz"),
    SupervisedDictionaryClassifier(max_iter=50),
    SupervisedDictionaryClassifier(**SMALL, model="feature"),
    SupervisedDictionaryClassifier(n_components=2, max_iter=10, model="feature", prediction="joint"),
    SupervisedDictionaryClassifier(**SMALL, solver="bcd"),
    SupervisedDictionaryClassifier(**SMALL, solver="bcd", model="feature"),
    SupervisedDictionaryClassifier(**SMALL, solver="lpgd"),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: " ".join(str(estimator).split()))
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(estimator):
    results = check_estimator(estimator, on_skip=None)
    statuses = [result["status"] for result in results]
    assert statuses.count("passed") >= 46
    assert set(statuses) <= {"passed", "skipped"}


@pytest.mark.parametrize("estimator", ESTIMATORS[:7] + ESTIMATORS[9:10], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_data_whose_squares_overflow_are_refused(estimator, dtype):
    X = np.random.default_rng(0).random((40, 6)).astype(dtype)
    y = np.arange(40) % 2
    large = X * dtype(1e200 if dtype is np.float64 else 1e30)
    with pytest.raises(NonFiniteError, match="of X overflow: found values up to .* Divide X by a constant"):
        clone(estimator).fit(large, y)
    fitted = clone(estimator).fit(X, y)
    if hasattr(fitted, "partial_fit"):
        with pytest.raises(NonFiniteError, match="of X overflow"):
            fitted.partial_fit(large)
