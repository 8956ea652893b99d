import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dictionary.data import drawn
from weightsmith.core.errors import HyperparameterError
from weightsmith.dictionary import SupervisedDictionaryClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
]


def small(**options):
    return SupervisedDictionaryClassifier(**{"n_components": 2, "max_iter": 100, "random_state": 0} | options)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": "feature", "xi": 1.0},
        {"model": "feature", "prediction": "joint"},
        {"solver": "bcd"},
        {"solver": "bcd", "nonnegative": True},
        {"solver": "bcd", "model": "feature", "nonnegative": True},
        {"solver": "lpgd"},
        {"solver": "lpgd", "model": "feature"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_attributes_shapes_and_types(options, classes, dtype):
    x, y = drawn(classes=classes)
    names = np.array(["beta", "alpha", "gamma"])[y]
    model = small(aux_features=[9], **options).fit(x.astype(dtype), names)
    assert model.classes_.tolist() == sorted(set(names))
    assert model.n_features_in_ == 10
    assert model.components_.shape == (2, 9)
    assert model.coef_.shape == (classes - 1, 2)
    assert model.aux_coef_.shape == (classes - 1, 1)
    assert model.intercept_.shape == (classes - 1,)
    x = x.astype(dtype)
    logits, proba = model.decision_function(x), model.predict_proba(x)
    assert logits.shape == ((60,) if classes == 2 else (60, 3))
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    rounding = 1e-7 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x)), proba, rtol=rounding)
    chosen = model.classes_[proba.argmax(1)]
    assert (chosen == model.predict(x)).all()
    for array in (logits, proba, model.transform(x), model.reconstruct(x), model.components_, model.coef_):
        assert array.dtype == dtype
    assert (model.components_[range(2), np.abs(model.components_).argmax(1)] > 0).all()
    if "nonnegative" in options:
        assert model.components_.min() >= 0
    error = np.linalg.norm(x[:, :9] - model.reconstruct(x))
    assert error <= model.reconstruction_err_ * 1.001
    assert list(model.get_feature_names_out()) == [f"superviseddictionaryclassifier{i}" for i in range(2)]


def test_the_prediction_is_the_formula():
    x, y = drawn(classes=3)
    model = small(aux_features=[0, -1]).fit(x, y)
    assert model.aux_features_.tolist() == [0, 9]
    logits = model.transform(x) @ model.coef_.T + x[:, [0, 9]] @ model.aux_coef_.T + model.intercept_
    np.testing.assert_allclose(model.decision_function(x)[:, 1:], logits)
    np.testing.assert_allclose(model.transform(x), x[:, 1:-1] @ model.components_.T)
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(2), atol=1e-9)


def test_aux_features_by_position_name_mask_and_function():
    pandas = pytest.importorskip("pandas")
    x, y = drawn()
    frame = pandas.DataFrame(x, columns=[f"f{i}" for i in range(10)])
    wanted = small(aux_features=[3, 7]).fit(x, y).decision_function(x)
    mask = np.isin(np.arange(10), [3, 7])
    for aux in (["f7", "f3"], mask, [-3, -7], lambda data: ["f3", "f7"], lambda data: data.columns.isin(["f3", "f7"])):
        np.testing.assert_array_equal(small(aux_features=aux).fit(frame, y).decision_function(frame), wanted)
    none = small().fit(x, y).decision_function(x)
    np.testing.assert_array_equal(small(aux_features=[]).fit(x, y).decision_function(x), none)
    with pytest.raises(ValueError, match="are not columns of X"):
        small(aux_features=["f3", "zebra"]).fit(frame, y)
    with pytest.raises(ValueError, match="no column names"):
        small(aux_features=["f3"]).fit(x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xi": 0.0}, "xi must be > 0; use LogisticRegression for xi=0"),
        ({"xi": -1.0}, "xi: found .*, expected a number >= 0"),
        ({"xi": np.nan}, "xi: found .*, expected a number >= 0"),
        ({"alpha": -1.0}, "alpha: found -1.0, expected a number >= 0"),
        ({"n_components": 0}, "n_components: found 0, expected a whole number >= 1"),
        ({"n_components": 1.5}, "n_components: found 1.5, expected a whole number >= 1"),
        ({"max_iter": 0}, "max_iter: found 0"),
        ({"model": "both"}, "model: found 'both', expected 'filter' or 'feature'"),
        ({"solver": "adam"}, "solver: found 'adam', expected 'mm', 'bcd' or 'lpgd'"),
        ({"prediction": "joint"}, "needs model='feature'"),
        ({"nonnegative": True}, "needs solver='bcd'"),
        ({"aux_features": list(range(10))}, "all columns"),
        ({"aux_features": [10]}, "not all columns of X"),
        ({"aux_features": [True, False]}, "mask of 2 values"),
        ({"aux_features": [0.5]}, "must be positions"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options).fit(*drawn())


def test_bad_data():
    x, y = drawn()
    with pytest.raises(ValueError, match="one class"):
        small().fit(x, np.zeros(60))
    with pytest.raises(ValueError, match="one class"):
        small().fit(x, y, sample_weight=y)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN|infinity"):
            small().fit(np.where(x > 0.99, bad, x), y)
    with pytest.raises(ValueError, match="Negative values"):
        small(solver="bcd", nonnegative=True).fit(x - 0.5, y)
    with pytest.raises(ValueError, match="Negative"):
        small().fit(x, y, sample_weight=-np.ones(60))
    with pytest.raises(ValueError, match="sparse"):
        small(solver="lpgd").fit(scipy.sparse.csr_matrix(x), y)


def test_too_many_components_are_clipped_with_a_warning():
    x, y = drawn(p=4)
    with pytest.warns(UserWarning, match="4 are found"):
        model = small(n_components=9).fit(x, y)
    assert model.n_components_ == 4
    rank_two = np.hstack([x[:, :2], x[:, :2]])
    with pytest.warns(UserWarning, match="2 are found"):
        assert small(n_components=3).fit(rank_two, y).reconstruction_err_ < 1e-6


def test_hard_data_stay_finite():
    x, y = drawn()
    hard = {
        "constant": (np.ones_like(x), {}),
        "zero": (np.zeros_like(x), {}),
        "collinear covariates": (np.hstack([x, x[:, :1], x[:, :1]]), {"aux_features": [10, 11]}),
        "huge covariates": (np.hstack([x, 1e9 * x[:, :1] + 1e12]), {"aux_features": [10]}),
        "extreme logits": (1e8 * x, {}),
        "separable": (np.where(y[:, None] == 1, x + 2, x), {"alpha": 0.0}),
    }
    for name, (data, options) in hard.items():
        for solver in ("mm", "bcd", "lpgd"):
            model = small(solver=solver, max_iter=40, **options).fit(data, y)
            assert np.isfinite(model.predict_proba(data)).all(), name
            assert np.diff(model.objective_curve_).max(initial=-1) <= 1e-9 * model.objective_curve_[0], name
    with pytest.warns(ConvergenceWarning, match="not converged after 5 steps"):
        small(max_iter=5).fit(x, y)


def test_log_probabilities_of_extreme_logits_are_finite():
    x, y = drawn()
    model = small().fit(x, y)
    logits = np.stack([np.zeros(len(x)), model.decision_function(1e4 * x)], axis=1)
    assert logits.max() > 1000
    np.testing.assert_allclose(model.predict_log_proba(1e4 * x), log_softmax(logits, axis=1), rtol=1e-9)


def test_covariates_of_any_scale_are_one_model():
    x, y = drawn()
    draw = np.random.RandomState(1)
    z = np.column_stack([draw.randn(60) + y, draw.randn(60)])
    one = small(aux_features=[10, 11]).fit(np.hstack([x, z]), y)
    other = small(aux_features=[10, 11]).fit(np.hstack([x, z * [1e6, 1e-6] + [7, 3e-6]]), y)
    np.testing.assert_allclose(one.aux_coef_, other.aux_coef_ * [1e6, 1e-6], rtol=1e-5)
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", ["filter", "feature"])
@pytest.mark.parametrize("classes", [2, 3])
def test_weights_are_repetitions(seed, model, classes):
    """At the solution; on the way there the steps of the feature model's solver differ."""
    x, y = drawn(20, 6, classes, seed)
    weight = np.random.RandomState(seed).randint(0, 4, 20)
    weight[[0, np.argmax(y), np.argmin(y), np.flatnonzero(y == 1)[0]]] = 1
    one = small(model=model, class_weight={0: 2.0, 1: 1.0, 2: 1.0} if classes == 3 else None)
    one.set_params(tol=1e-12, max_iter=20_000, alpha=0.05).fit(x, y, sample_weight=weight)
    other = clone(one).fit(x.repeat(weight, axis=0), y.repeat(weight))
    np.testing.assert_allclose(one.decision_function(x), other.decision_function(x), atol=1e-4)
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-4)


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 2.0, 2: 1.0}])
@pytest.mark.parametrize("solver", ["mm", "bcd", "lpgd"])
def test_a_class_without_weight_is_no_class(solver, class_weight):
    x, y = drawn(40, 6, 4)
    weight = np.isin(y, (0, 2)).astype(float)
    kept = weight > 0
    one = small(solver=solver, class_weight=class_weight, n_components=1).fit(x, y, sample_weight=weight)
    other = clone(one).fit(x[kept], y[kept])
    assert one.classes_.tolist() == [0, 2]
    np.testing.assert_allclose(one.decision_function(x), other.decision_function(x), atol=0.05)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_classes_out_of_range_are_refused(weight):
    x, y = drawn(20, 6, 2, 0)
    with pytest.raises(HyperparameterError, match="class_weight"):
        small(class_weight={0: 1.0, 1: weight}).fit(x, y)


def test_balanced_classes():
    draw = np.random.RandomState(0)
    x = draw.rand(400, 8)
    y = (x[:, 0] + 0.5 * draw.rand(400) > 1.3).astype(int)
    recalls = [(small(class_weight=w).fit(x, y).predict(x)[y == 1] == 1).mean() for w in (None, "balanced")]
    assert y.mean() < 0.1
    assert recalls[1] > recalls[0] + 0.1
    share = {0: 400 / (2 * (y == 0).sum()), 1: 400 / (2 * (y == 1).sum())}
    balanced, given_share = (small(class_weight=w).fit(x, y).coef_ for w in ("balanced", share))
    np.testing.assert_allclose(balanced, given_share)


@pytest.mark.parametrize(("n", "p"), [(60, 12), (20, 40)])
@pytest.mark.parametrize("options", [{}, {"model": "feature"}, {"solver": "bcd", "nonnegative": True}], ids=str)
def test_sparse_data_are_dense_datas_equal(n, p, options):
    x, y = drawn(n, p)
    x = x * (np.random.RandomState(1).rand(n, p) < 0.3)
    dense = small(aux_features=[1], max_iter=30, **options).fit(x, y)
    found = small(aux_features=[1], max_iter=30, **options).fit(scipy.sparse.csr_matrix(x), y)
    np.testing.assert_allclose(found.components_, dense.components_, atol=1e-6)
    for method in ("decision_function", "transform", "reconstruct"):
        result = getattr(found, method)(scipy.sparse.csr_matrix(x))
        np.testing.assert_allclose(result, getattr(dense, method)(x), atol=1e-5)


def test_tensors_pickle_and_clone():
    x, y = drawn()
    model = small().fit(x, y)
    from_tensors = clone(model).fit(torch.tensor(x), torch.tensor(y))
    np.testing.assert_array_equal(model.components_, from_tensors.components_)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(torch.tensor(x)), model.predict_proba(x))
    nonnegative = {"solver": "bcd", "nonnegative": True, "max_iter": 10}
    same, other = (small(**nonnegative).fit(x, y).components_ for _ in range(2))
    np.testing.assert_array_equal(same, other)
    assert np.abs(small(**nonnegative | {"random_state": 1}).fit(x, y).components_ - same).max() > 1e-3


def test_pipeline_column_transformer_and_grid_search():
    x, y = drawn(90, 12)
    columns = ColumnTransformer([("scaled", StandardScaler(), list(range(10)))], remainder="passthrough")
    pipeline = make_pipeline(columns, small(aux_features=[10, 11], max_iter=30))
    search = GridSearchCV(pipeline, {"superviseddictionaryclassifier__xi": [0.01, 1.0]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.7
    codes = make_pipeline(small(max_iter=30), LogisticRegression()).fit(x, y)
    assert codes.score(x, y) > 0.8


def test_joint_prediction_agrees_where_features_decide():
    x, y = drawn(200, 10)
    train, test = slice(100), slice(100, None)
    options = {"model": "feature", "alpha": 1e-2, "n_components": 4}
    code = small(**options, xi=100.0).fit(x[train], y[train])
    joint = small(**options, xi=1000.0, prediction="joint").fit(x[train], y[train])
    plain = small(**options, xi=1000.0).fit(x[train], y[train])
    assert (joint.predict(x[test]) == plain.predict(x[test])).mean() > 0.95
    assert code.score(x[test], y[test]) > 0.5
