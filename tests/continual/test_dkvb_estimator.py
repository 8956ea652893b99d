"""The bottleneck as a scikit-learn classifier: scikit-learn's own checks, and classes that arrive in turn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from weightsmith.continual import DiscreteKeyValueBottleneck, KeyValueBottleneckClassifier
from weightsmith.core.errors import HyperparameterError

SMALL = {"codebooks": 32, "pairs": 16, "key_dim": 4, "random_state": 0}


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks():
    results = check_estimator(KeyValueBottleneckClassifier(**SMALL), on_skip=None)
    statuses = [result["status"] for result in results]
    assert statuses.count("passed") >= 46
    assert set(statuses) <= {"passed", "skipped"}


def test_classes_in_turn_with_labels_of_any_type_and_order():
    X, digits = load_digits(return_X_y=True)
    y = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])[digits]
    classifier = KeyValueBottleneckClassifier(pairs=64, key_dim=8, epochs=10, random_state=0).init_keys(X)
    with pytest.raises(NotFittedError):
        classifier.predict(X)
    for label in ("six", "one", "zero", "two", "nine", "three"):
        classifier.partial_fit(X[y == label], y[y == label])
    assert classifier.classes_.tolist() == ["nine", "one", "six", "three", "two", "zero"]
    seen = np.isin(y, classifier.classes_)
    assert classifier.score(X[seen], y[seen]) > 0.97


def test_new_classes_leave_old_logits_unchanged():
    X, y = load_digits(return_X_y=True)
    classifier = KeyValueBottleneckClassifier(**SMALL).fit(X[y > 4], y[y > 4])
    before = classifier.decision_function(X)
    classifier.epochs = 0
    classifier.partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert classifier.classes_.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(classifier.decision_function(X)[:, 3:], before)


def test_equals_the_module():
    X, y = load_digits(return_X_y=True)
    fitted = KeyValueBottleneckClassifier(**SMALL).fit(X, y)
    assert isinstance(fitted.bottleneck_, DiscreteKeyValueBottleneck)
    logits = fitted.bottleneck_(fitted.bottleneck_.keys.new_tensor(X)).detach()[:, :-1]
    np.testing.assert_array_equal(fitted.predict_proba(X), logits.softmax(1).numpy())


def test_bad_input():
    X, y = load_digits(return_X_y=True)
    with pytest.raises(ValueError, match=r"labels \[3, 4\] are not in classes=\[0, 1, 2\]"):
        KeyValueBottleneckClassifier(**SMALL).partial_fit(X[y < 5], y[y < 5], classes=[0, 1, 2])
    with pytest.raises(HyperparameterError, match="codebooks"):
        KeyValueBottleneckClassifier(codebooks=0).fit(X, y)
    with pytest.raises(HyperparameterError, match="label_smoothing"):
        KeyValueBottleneckClassifier(**(SMALL | {"label_smoothing": 1.0})).fit(X, y)


def test_a_refused_call_leaves_what_was_learned():
    X, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    classifier = KeyValueBottleneckClassifier(codebooks=2, pairs=4, key_dim=2, epochs=1, random_state=0).fit(X, y)
    before = classifier.predict_proba(X)
    for call, wrong in (("partial_fit", "learning_rate"), ("fit", "passes"), ("init_keys", "passes")):
        right = getattr(classifier, wrong)
        classifier.set_params(**{wrong: -1})
        with pytest.raises(HyperparameterError, match=wrong):
            getattr(classifier, call)(X, *([] if call == "init_keys" else [y + 5]))
        classifier.set_params(**{wrong: right})
        assert classifier.classes_.tolist() == [0, 1]
        np.testing.assert_array_equal(classifier.predict_proba(X), before)


def test_labels_of_another_type_are_refused():
    X = np.random.default_rng(0).normal(size=(20, 4))
    classifier = KeyValueBottleneckClassifier(codebooks=2, pairs=4, key_dim=2, epochs=1).fit(X, np.arange(20) % 2)
    with pytest.raises(ValueError, match="another type"):
        classifier.partial_fit(X, np.array(["a", "b"] * 10))
    assert classifier.classes_.tolist() == [0, 1]
