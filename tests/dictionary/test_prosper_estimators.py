"""ProSper's models as scikit-learn estimators: contract, bad input, devices and processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dictionary.data import bars
from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.dictionary import BSC, DSC, GSC, MCA, MMCA, TSC
from weightsmith.dictionary._prosper import base, start

ALL = [BSC, TSC, DSC, MCA, MMCA, GSC]
SEVERAL = pytest.mark.parametrize("kind", ALL)
SHORT = {"max_iter": 8, "random_state": 0}


def matched(components, atoms):
    """Cosine of every atom with its own component, and which that is."""
    normal = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (components, atoms)]
    cosine = normal[0] @ normal[1].T
    rows, columns = linear_sum_assignment(-np.abs(cosine))
    return np.abs(cosine[rows, columns]), rows[np.argsort(columns)]


# The contract ---------------------------------------------------------------------------------------------------------


@SEVERAL
def test_clone_pickle_pipeline_and_names(kind):
    points = np.abs(bars(points=60)[0])
    model = kind(4, **SHORT).fit(points)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(points), model.transform(points))
    np.testing.assert_array_equal(clone(model).fit(points).components_, model.components_)
    piped = make_pipeline(StandardScaler(), kind(4, **SHORT) if kind is not MCA else BSC(4, **SHORT)).fit(points)
    assert piped.transform(points).shape == (60, 4)
    assert list(model.get_feature_names_out()) == [f"{kind.__name__.lower()}{i}" for i in range(4)]
    assert model.components_.shape == (4, 25)
    assert len(model.lower_bound_curve_) == model.n_iter_ + 1 == 9


def test_grid_search_finds_the_number_of_components():
    points, _, _ = bars(points=400)
    kinds = {"n_components": [5, 10]}
    search = GridSearchCV(BSC(n_candidates=5, max_active=3, max_iter=40, random_state=0), kinds, cv=2).fit(points)
    assert search.best_params_ == {"n_components": 10}


@SEVERAL
def test_float32_in_float32_out(kind):
    points = np.abs(bars(points=60)[0])
    model, single = kind(4, max_iter=1, random_state=0), kind(4, max_iter=1, random_state=0)
    model.fit(points)
    single.fit(points.astype(np.float32))
    assert single.transform(points.astype(np.float32)).dtype == np.float32
    assert single.components_.dtype == np.float32
    np.testing.assert_allclose(single.components_, model.components_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_in(dtype):
    points = torch.from_numpy(bars(points=60)[0]).to(dtype)
    model = BSC(4, **SHORT).fit(points)
    plain = points.float().numpy() if dtype == torch.bfloat16 else points.numpy()
    np.testing.assert_array_equal(BSC(4, **SHORT).fit(plain).components_, model.components_)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@SEVERAL
def test_cuda_is_the_cpu(kind):
    points = np.abs(bars(points=200)[0])
    one, other = kind(4, **SHORT).fit(points), kind(4, **SHORT, device="cuda").fit(points)
    np.testing.assert_allclose(other.components_, one.components_, atol=1e-6)


@SEVERAL
def test_chunks_change_nothing(kind, monkeypatch):
    points = np.abs(bars(points=90)[0])
    model = kind(5, max_active=3, **SHORT).fit(points)
    monkeypatch.setattr(base, "CHUNK_BYTES", 1 << 13)
    monkeypatch.setattr(start, "CHUNK_BYTES", 1 << 13)
    monkeypatch.setattr(base, "CACHE_BYTES", 0)
    small = kind(5, max_active=3, **SHORT).fit(points)
    np.testing.assert_allclose(small.components_, model.components_, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(small.transform(points), model.transform(points), atol=1e-7)


# What they learn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (BSC(10, n_candidates=6), {"signed": True}),
        (TSC(10, n_candidates=6), {"values": (-1.0, 0.0, 1.0), "p": (0.1, 0.8, 0.1)}),
        (DSC(10, n_candidates=6, values=(0, 1, 2)), {"values": (0, 1, 2), "p": (0.8, 0.15, 0.05)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bars_with_their_prior_and_noise(model, data):
    points, atoms, codes = bars(0, **data)
    model = clone(model).set_params(max_iter=50, n_init=3, random_state=0).fit(points)
    cosine, order = matched(model.components_, atoms)
    assert (cosine > 0.95).all()
    assert model.sigma_ == pytest.approx(2, abs=0.15)
    if isinstance(model, DSC):
        np.testing.assert_allclose(model.pi_, [0.8, 0.15, 0.05], atol=0.03)
    else:
        assert model.pi_ == pytest.approx(0.2, abs=0.02)
    wrong = np.abs(np.abs(model.posterior(points).states[:, 0][:, order]) - np.abs(codes)) > 0.5
    assert wrong.mean() < 0.03


@pytest.mark.parametrize(("kind", "seed", "starts"), [(MCA, 0, 3), (MMCA, 5, 1)])
def test_bars_that_cover_each_other(kind, seed, starts):
    points, atoms, _ = bars(5, maximum=True, points=150)
    model = kind(10, n_candidates=6, max_active=3, max_iter=40, n_init=starts, random_state=seed)
    model.fit(points.clip(min=0) if kind is MCA else points)
    assert (matched(model.components_, atoms)[0] > 0.95).all()
    assert model.pi_ == pytest.approx(0.2, abs=0.02)


def test_gsc_learns_amplitudes():
    points, atoms, _ = bars(1, points=1000, sigma=0.0)
    generator = np.random.default_rng(0)
    codes = (generator.random((1000, 10)) < 0.2) * generator.normal(1, 0.5, (1000, 10))
    points = codes @ atoms + generator.normal(0, 1.0, (1000, 25))
    model = GSC(10, n_candidates=6, max_active=3, max_iter=40, random_state=0).fit(points)
    cosine, order = matched(model.components_, atoms)
    assert (cosine > 0.95).all()
    assert model.sigma_ == pytest.approx(1.0, abs=0.1)
    scaled = model.transform(points)[:, order] * np.linalg.norm(model.components_[order], axis=1)
    sign = np.sign((model.components_[order] * atoms).sum(1))
    assert np.corrcoef((scaled * sign).ravel(), codes.ravel())[0, 1] > 0.95


@SEVERAL
def test_sample_and_reconstruct(kind):
    points = np.abs(bars(points=200)[0])
    model = kind(5, max_iter=15, random_state=0).fit(points)
    drawn, codes = model.sample(4000, random_state=1)
    again, _ = model.sample(4000, random_state=1)
    np.testing.assert_array_equal(drawn, again)
    assert (codes != 0).mean() == pytest.approx(np.mean(1 - model.pi_[1] if kind is DSC else model.pi_), abs=0.03)
    assert (drawn - model.inverse_transform(codes)).std() == pytest.approx(model.sigma_, rel=0.05)


def test_posterior_is_sorted_normalized_and_dense():
    points, _, _ = bars(points=80)
    model = BSC(6, n_candidates=4, max_active=4, max_iter=20, random_state=0).fit(points)
    everything = model.posterior(points, top_k=model._states().size)
    np.testing.assert_allclose(everything.probabilities.sum(1), 1, atol=1e-12)
    assert (np.diff(everything.probabilities, axis=1) <= 0).all()
    marginals = np.einsum("nt,nth->nh", everything.probabilities, everything.states)
    np.testing.assert_allclose(marginals, everything.marginals, atol=1e-12)
    np.testing.assert_allclose(marginals, model.transform(points), atol=1e-12)


def test_adaptive_posterior_finds_crowded_points():
    points, _, codes = bars(points=600)
    model = BSC(10, n_candidates=6, max_active=3, max_iter=60, n_init=2, random_state=0).fit(points)
    crowded = codes.sum(1) == 5
    plain = (model.posterior(points[crowded]).states[:, 0] != 0).sum(1)
    adaptive = model.posterior(points[crowded], top_k=2, adaptive=True)
    assert (plain <= 3).all()
    assert ((adaptive.states[:, 0] != 0).sum(1) == 5).mean() > 0.8
    assert (adaptive.probabilities[:, 0] >= adaptive.probabilities[:, 1]).all()


def test_restarts_keep_the_best():
    points, _, _ = bars(points=200)
    short = {"n_candidates": 5, "max_iter": 15, "schedule": None, "random_state": 0}
    assert BSC(10, n_init=4, **short).fit(points).lower_bound_ >= BSC(10, **short).fit(points).lower_bound_


def test_tolerance_stops_after_the_schedule():
    points, _, _ = bars(points=200)
    model = BSC(5, max_iter=100, tol=1e-4, random_state=0).fit(points)
    assert 80 < model.n_iter_ < 100
    assert BSC(5, max_iter=100, tol=1e-4, schedule=None, random_state=0).fit(points).n_iter_ < 80


def test_offset_is_learned():
    points, atoms, _ = bars(0, signed=True)
    model = BSC(10, n_candidates=5, max_active=3, fit_offset=True, max_iter=50, n_init=6, random_state=0).fit(
        points + 30
    )
    assert (matched(model.components_, atoms)[0] > 0.95).all()
    assert model.sigma_ == pytest.approx(2, abs=0.15)


# Bad input and edge cases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"n_candidates": 3, "max_active": 4}, "max_active <= n_candidates <= n_components"),
        ({"n_candidates": 11}, "max_active <= n_candidates <= n_components"),
        ({"n_components": 60, "n_candidates": 60, "max_active": 6}, "states per point: found"),
        ({"pi_init": 1.0}, "pi_init"),
        ({"pi_init": 0.0}, "pi_init"),
        ({"sigma_init": -1.0}, "sigma_init"),
        ({"components_init": np.zeros((3, 25))}, "components_init"),
        ({"max_iter": 0}, "max_iter"),
        ({"n_init": 0}, "n_init"),
        ({"tol": -1.0}, "tol"),
        ({"schedule": {"heat": [(0, 1.0)]}}, "schedule: found 'heat'"),
        ({"schedule": {"temperature": 3}}, "schedule of temperature"),
        ({"schedule": {"temperature": [(0, 0.0)]}}, "schedule of temperature"),
        ({"schedule": {"cut": [(0, 2.0)]}}, "schedule of cut"),
    ],
)
def test_wrong_hyperparameters(hyper, message):
    with pytest.raises((HyperparameterError, ShapeError), match=message):
        BSC(**{"n_components": 10, **hyper}).fit(bars(points=20)[0])


@pytest.mark.parametrize(
    "model",
    [
        DSC(4, values=(1, 2)),
        DSC(4, values=(0, 1, 1)),
        DSC(4, values=(0,)),
        DSC(4, pi_init=(0.5, 0.5, 0.5)),
        DSC(4, min_pi_zero=1.0),
        GSC(4, slab_variance_init=[1.0, 0.0, 1.0, 1.0]),
    ],
)
def test_wrong_hyperparameters_of_a_model(model):
    with pytest.raises(HyperparameterError):
        model.fit(bars(points=20)[0])


def test_wrong_data():
    points = bars(points=20)[0]
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        BSC(4).fit(points[:1])
    with pytest.raises(ValueError, match="Negative values in data passed to MCA"):
        MCA(4).fit(points)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN|infinity"):
            BSC(4).fit(np.where(points > 9, bad, points))
    model = BSC(4, **SHORT).fit(points)
    with pytest.raises(HyperparameterError, match="top_k"):
        model.posterior(points, top_k=1000)
    with pytest.raises(ShapeError, match="codes"):
        model.inverse_transform(np.ones((2, 3)))


@SEVERAL
@pytest.mark.parametrize(
    "points",
    [
        np.zeros((30, 4)),
        np.full((30, 4), 3.0),
        np.concatenate([np.zeros((5, 4)), np.abs(np.random.default_rng(0).normal(size=(25, 4)))]),
        np.abs(np.random.default_rng(0).normal(size=(30, 1))),
        np.abs(np.random.default_rng(0).normal(size=(2, 4))),
        1e6 * np.abs(np.random.default_rng(0).normal(size=(30, 4))),
    ],
    ids=["zeros", "constant", "zero rows", "one feature", "two points", "large"],
)
def test_degenerate_data_stay_finite(kind, points):
    model = kind(6, max_iter=10, random_state=0).fit(points)
    for value in (model.components_, model.sigma_, model.pi_, model.transform(points), model.score_samples(points)):
        assert np.isfinite(value).all()
    assert np.all(model.sigma_ > 0)


def test_full_noise_of_fewer_points_than_features_has_a_floor_and_leaves_no_point_out():
    points = np.random.default_rng(0).normal(size=(20, 60))
    model = GSC(5, max_iter=60, random_state=0, noise="full").fit(points)
    assert model.lower_bound_ == max(model.lower_bound_curve_)
    assert model.score_samples(points).min() > 0
    floor = 1e-3 * points.std()
    assert np.linalg.eigvalsh(model.noise_covariance_)[0] > (0.5 * floor) ** 2
    same = GSC(3, max_iter=60, random_state=0, noise="full", slab="full").fit(np.repeat(points[:1, :4], 50, 0))
    assert np.isfinite(same.lower_bound_)


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_samples_out_of_range_are_refused(count):
    with pytest.raises(HyperparameterError, match="n_samples"):
        BSC(3, max_iter=2, random_state=0).fit(np.random.default_rng(0).normal(size=(20, 4))).sample(count)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-10, 2.0**20])
@pytest.mark.parametrize("model", [BSC(4), TSC(4), DSC(4), MCA(4), MMCA(4), GSC(4), GSC(4, noise="full")], ids=str)
def test_the_unit_of_the_data_does_not_matter(model, scale):
    rng = np.random.default_rng(0)
    X = abs((rng.random((200, 8)) < 0.2) @ (4.0 * (rng.random((8, 6)) < 0.3)) + 0.3 * rng.standard_normal((200, 6)))
    one, other = (clone(model).set_params(max_iter=10, random_state=0).fit(unit * X) for unit in (1.0, scale))
    np.testing.assert_allclose(other.components_, scale * one.components_, rtol=1e-9, atol=1e-12 * scale)
    assert other.lower_bound_ + 6 * np.log(scale) == pytest.approx(one.lower_bound_, rel=1e-9)


def test_prior_and_noise_stay_in_range():
    points = np.tile([1.0, 2.0, 3.0], (20, 1))
    always = BSC(2, max_iter=50, components_init=[[1, 2, 3], [50, 0, 0]], random_state=0).fit(points)
    assert 1e-5 <= always.pi_ <= 1 - 1e-5
    model = DSC(2, max_iter=30, min_pi_zero=0.9, random_state=0).fit(bars(points=50)[0])
    assert model.pi_[1] >= 0.9 - 1e-5
    assert model.pi_.sum() == pytest.approx(1)
    assert (model.pi_ >= 0.9e-6).all()


def test_dead_component_is_put_on_a_badly_explained_point():
    generator = np.random.default_rng(0)
    atoms = np.array([[10.0, 0, 0, 0], [0, 10.0, 0, 0]])
    points = (generator.random((200, 2)) < 0.4) @ atoms + 0.1 * generator.normal(size=(200, 4))
    begin = np.array([[10.0, 0, 0, 0], [0, 0, -1e3, 0]])  # the second one is far from every point
    model = BSC(2, components_init=begin, pi_init=0.4, sigma_init=0.5, schedule=None, max_iter=20).fit(points)
    assert (matched(model.components_, atoms)[0] > 0.999).all()
    assert model.sigma_ == pytest.approx(0.1, abs=0.02)


def test_cancelling_maxima_are_finite():
    model = MMCA(2, n_candidates=2, max_active=2, schedule=None, max_iter=5, components_init=[[3.0, 1], [-3.0, 1]])
    points = np.array([[3.0, 1], [-3.0, 1], [0.1, 1], [0.0, 0], [-0.1, 1]])
    assert np.isfinite(model.fit(points).components_).all()


def test_noise_and_partial_steps_are_reproducible():
    points, _, _ = bars(points=120)
    names = ("components_noise", "pi_noise", "sigma_noise", "data_noise", "partial")
    schedule = {name: [(0, 0.2), (0.5, 0.5 if name == "partial" else 0.0)] for name in names}
    model = BSC(5, schedule=schedule, **SHORT)
    first, second = (clone(model).fit(points).components_ for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, BSC(5, schedule=None, **SHORT).fit(points).components_)
