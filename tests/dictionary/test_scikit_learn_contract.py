"""scikit-learn's own checks of every estimator, for every way that one fits or predicts."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import check_estimator

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
