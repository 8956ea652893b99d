"""The estimator: what it finds, scikit-learn's contract, state, devices of data, processes, bad input."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from dictionary.data import problem
from weightsmith.dictionary import OnlineOrthogonalDictionary
from weightsmith.dictionary._online_orthogonal.frank_wolfe import FrankWolfe, Settings


def error(learner, basis):
    """One minus the mean over the true atoms of the best match."""
    atoms = learner.components_ / np.linalg.norm(learner.components_, axis=1, keepdims=True)
    return 1 - abs(atoms @ basis).max(axis=0).mean()


def batches(rows, size):
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def streamed(rows, size, **settings):
    learner = OnlineOrthogonalDictionary(random_state=0, **settings)
    for batch in batches(rows, size):
        learner.partial_fit(batch)
    return learner


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_basis_in_one_pass(seed):
    rows, basis = problem(n=20, samples=20_000, seed=seed)
    errors = []
    for start in range(2):
        learner = OnlineOrthogonalDictionary(random_state=start)
        for batch in batches(rows, 20):
            learner.partial_fit(batch)
        errors.append(error(learner, basis))
        assert learner.relative_gap_ < 2e-3
    assert max(errors) < 0.002


def test_one_sample_at_a_time_and_the_paper_s_steps():
    rows, basis = problem(samples=6000)
    assert error(streamed(rows, 1), basis) < 0.002
    rows, basis = problem(samples=10_000)
    assert error(streamed(rows, 10, step_power=0.75), basis) < 0.002


def test_power_four():
    rows, basis = problem(samples=20_000)
    assert error(streamed(rows, 20, power=4), basis) < 0.01


def test_a_floor_follows_a_stream_that_changes():
    before, _ = problem(n=20, samples=12_000, seed=0)
    after, basis = problem(n=20, samples=12_000, seed=1)
    rows = np.concatenate([before, after])
    assert error(streamed(rows, 20, step_floor=0.05), basis) < 0.01
    assert error(streamed(rows, 20, step_power=0.75), basis) > 0.1
    assert error(streamed(rows, 20), basis) > 0.02


def test_whitening_finds_a_basis_that_is_not_orthogonal():
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((20_000, 8)) * (rng.random((20_000, 8)) < 0.3)
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0] + 0.35 * rng.standard_normal((8, 8))
    basis /= np.linalg.norm(basis, axis=0)
    rows = codes @ basis.T
    assert np.linalg.cond(basis) > 3
    plain, whitened = streamed(rows, 32), streamed(rows, 32, whiten=True)
    assert error(whitened, basis) < 0.005 < 0.02 < error(plain, basis)
    found = whitened.transform(rows)
    np.testing.assert_allclose(whitened.inverse_transform(found), rows, atol=1e-10)
    np.testing.assert_allclose(found @ whitened.components_, rows, atol=1e-10)


def test_whitening_takes_constant_features():
    rows, _ = problem(n=6, samples=2000)
    rows[:, 2] = 0.0
    learner = streamed(rows, 16, whiten=True)
    assert np.isfinite(learner.components_).all()
    np.testing.assert_allclose(learner.inverse_transform(learner.transform(rows)), rows, atol=1e-8)


def test_directions_alone_withstand_huge_samples():
    rows, basis = problem(samples=20_000)
    rng = np.random.default_rng(1)
    hit = rng.random(len(rows)) < 0.01
    rows[hit] = 1000 * rng.standard_normal((hit.sum(), 10))
    assert error(streamed(rows, 20, normalize=True), basis) < 0.01
    assert error(streamed(rows, 20), basis) > 0.1


@pytest.mark.parametrize("factor", [2.0**-50, 2.0**-200])
def test_directions_alone_do_not_depend_on_the_size(factor):
    rows, _ = problem(samples=2_000)
    rows *= np.exp(np.random.default_rng(1).standard_normal((len(rows), 1)))  # what plain learning would notice
    one, other = (streamed(factor * rows, 20, normalize=True) for factor in (1.0, factor))
    np.testing.assert_allclose(other.components_, one.components_, atol=1e-12)


def test_output_is_orthogonal_and_reversible():
    rows, _ = problem()
    learner = streamed(rows, 20)
    np.testing.assert_allclose(learner.components_ @ learner.components_.T, np.eye(10), atol=1e-10)
    codes = learner.transform(rows)
    np.testing.assert_allclose(codes, rows @ learner.components_.T, atol=1e-12)
    np.testing.assert_allclose(learner.inverse_transform(codes), rows, atol=1e-12)
    assert np.linalg.norm(codes) == pytest.approx(np.linalg.norm(rows), rel=1e-12)
    single = streamed(rows.astype(np.float32), 20)
    assert single.components_.dtype == single.transform(rows.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(single.components_ @ single.components_.T, np.eye(10), atol=1e-5)


def test_keeping_the_largest_codes():
    codes = np.array([[1.0, -3.0, 2.0], [0.0, 0.0, 5.0]])
    keep = OnlineOrthogonalDictionary().keep_largest
    np.testing.assert_array_equal(keep(codes, 2), [[0, -3, 2], [0, 0, 5]])
    np.testing.assert_array_equal(keep(codes, 0), np.zeros((2, 3)))
    np.testing.assert_array_equal(keep(codes, 3), codes)
    assert torch.equal(keep(torch.from_numpy(codes), 1), torch.tensor([[0.0, -3, 0], [0, 0, 5]]).double())
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="top_k: found"):
            keep(codes, wrong)


def test_passes_of_fit_are_the_batches_in_order():
    rows, _ = problem(samples=1010)
    learner = OnlineOrthogonalDictionary(batch_size=20, shuffle=False, max_epochs=2, random_state=0).fit(rows)
    online = OnlineOrthogonalDictionary(random_state=0)
    for _ in range(2):
        for batch in batches(rows, 20):
            online.partial_fit(batch)
    np.testing.assert_array_equal(learner.components_, online.components_)
    assert learner.n_steps_ == online.n_steps_ == 102
    assert learner.n_samples_seen_ == 2020


def test_fit_of_rows_in_order_of_their_class_is_shuffled():
    rows, basis = problem(samples=10_000)
    rows = rows[np.argsort(rows[:, 0])]
    assert error(OnlineOrthogonalDictionary(random_state=0).fit(rows), basis) < 0.003


def test_fit_stops_at_a_small_gap():
    rows, basis = problem(samples=40_000)
    stopped = OnlineOrthogonalDictionary(tol=3e-3, batch_size=10, random_state=0).fit(rows)
    assert 50 < stopped.n_steps_ < 2000
    assert error(stopped, basis) < 0.02


def test_principal_start():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 4)) * [4, 3, 2, 1]
    first = rows[:8]
    learner = OnlineOrthogonalDictionary(init="pca").partial_fit(first)
    axes = torch.linalg.eigh(torch.from_numpy(first.T @ first))[1].flip(1)
    by_hand = FrankWolfe(axes)
    by_hand.step([torch.from_numpy(first)], Settings())
    np.testing.assert_allclose(learner.components_, by_hand.decoder().numpy(), atol=1e-10)
    learner.partial_fit(rows[8:16])
    assert learner.n_steps_ == 1
    learner.partial_fit(rows[16:24]).partial_fit(rows[24:32])
    assert learner.n_steps_ == 2
    assert learner.n_samples_seen_ == 32


def test_given_start():
    rows, basis = problem()
    learner = OnlineOrthogonalDictionary(init=2 * basis.T).partial_fit(rows[:50])
    by_hand = FrankWolfe(torch.from_numpy(basis))
    by_hand.step([torch.from_numpy(rows[:50])], Settings())
    np.testing.assert_allclose(learner.components_, by_hand.decoder().numpy(), atol=1e-12)


def test_pickled_and_copied_learners_go_on_bit_for_bit():
    rows, _ = problem(samples=400)
    for settings in ({}, {"whiten": True}, {"init": "pca"}):
        learner = streamed(rows[:200], 20, **settings)
        again = pickle.loads(pickle.dumps(learner))
        for batch in batches(rows[200:], 20):
            learner.partial_fit(batch)
            again.partial_fit(batch)
        np.testing.assert_array_equal(learner.components_, again.components_)
        assert (learner.gap_, learner.n_steps_) == (again.gap_, again.n_steps_)
        assert not hasattr(clone(learner), "components_")


def test_kinds_of_rows_agree():
    rows, _ = problem(samples=200)
    whole = streamed(rows, 50)
    for other in (sparse.csr_matrix(rows), sparse.csr_array(rows), torch.from_numpy(rows), rows[:, ::-1][:, ::-1]):
        learner = OnlineOrthogonalDictionary(random_state=0)
        for first in range(0, 200, 50):
            learner.partial_fit(other[first : first + 50])
        np.testing.assert_allclose(learner.components_, whole.components_, atol=1e-12)
        codes = learner.transform(other)
        assert isinstance(codes, torch.Tensor) == isinstance(other, torch.Tensor)
        np.testing.assert_allclose(np.asarray(codes), whole.transform(rows), atol=1e-12)


def test_half_precision_is_computed_in_single():
    rows, basis = problem(samples=10_000)
    for dtype in (torch.bfloat16, torch.float16):
        learner = OnlineOrthogonalDictionary(random_state=0)
        for batch in batches(torch.from_numpy(rows).to(dtype), 20):
            learner.partial_fit(batch)
        assert learner.components_.dtype == np.float32
        assert error(learner, basis) < 0.005
        codes = learner.transform(torch.from_numpy(rows[:5]).to(dtype))
        assert codes.dtype == torch.float32


def test_read_only_memory_map(tmp_path):
    rows, _ = problem(samples=300)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = OnlineOrthogonalDictionary(random_state=0, batch_size=50).fit(mapped)
        once = OnlineOrthogonalDictionary(random_state=0).partial_fit(mapped)
    np.testing.assert_array_equal(
        learner.components_, OnlineOrthogonalDictionary(random_state=0, batch_size=50).fit(rows).components_
    )
    assert once.n_samples_seen_ == 300


def test_a_large_batch_is_one_step_in_chunks(monkeypatch):
    rows, _ = problem(samples=500)
    whole = {whiten: streamed(rows, 250, whiten=whiten).components_ for whiten in (False, True)}
    monkeypatch.setattr("weightsmith.dictionary._online_orthogonal.method.CHUNK", 40)
    for whiten, components in whole.items():
        np.testing.assert_allclose(streamed(rows, 250, whiten=whiten).components_, components, atol=1e-9)


def test_memory_is_two_matrices():
    learner = streamed(problem(n=20, samples=4000)[0], 20)
    kept = [value for value in vars(learner._state).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in kept) == 2 * 20**2 + 20


def test_pipeline_and_grid():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    codes = rng.standard_normal((6000, 8)) * (rng.random((6000, 8)) < 0.3)
    rows, classes = codes @ basis.T, (abs(codes[:, 0]) > 0).astype(int)
    pipeline = make_pipeline(
        OnlineOrthogonalDictionary(random_state=0, max_epochs=5), _Magnitude(), LogisticRegression()
    )
    assert pipeline.fit(rows, classes).score(rows, classes) > 0.9
    assert make_pipeline(_Magnitude(), LogisticRegression()).fit(rows, classes).score(rows, classes) < 0.75
    grid = GridSearchCV(OnlineOrthogonalDictionary(random_state=0), {"step_power": [0.5, 1.0], "max_epochs": [3]}, cv=2)
    assert grid.fit(rows).best_params_["step_power"] == 0.5
    assert grid.best_estimator_.get_feature_names_out()[0] == "onlineorthogonaldictionary0"


class _Magnitude(TransformerMixin, BaseEstimator):
    """A step that a linear model needs: the size of a code."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.minimum(abs(X), 0.2)


def test_score_is_the_sparsity_of_directions():
    learner = OnlineOrthogonalDictionary(init=np.eye(4)).fit(np.eye(4))
    assert learner.score(100 * np.eye(4) @ learner.components_) == pytest.approx(-0.5)
    assert learner.score(np.zeros((2, 4))) == -1
    gaussian = np.random.default_rng(0).standard_normal((4000, 64))
    assert OnlineOrthogonalDictionary(random_state=0).fit(gaussian).score(gaussian) == pytest.approx(-0.8, abs=0.02)


def test_energies_find_the_strong_atoms():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    scale = np.array([1.0, 3, 1, 1, 1, 1])
    rows = (rng.standard_normal((20_000, 6)) * (rng.random((20_000, 6)) < 0.3) * scale) @ basis.T
    learner = streamed(rows, 20)
    strongest = learner.components_[np.argmax(learner.energies_)]
    assert abs(strongest @ basis[:, 1]) > 0.99
    assert learner.energies_.max() == pytest.approx(0.3 * 9, rel=0.25)


def test_batches_without_signal_change_nothing():
    rows, _ = problem(samples=200)
    learner = streamed(rows, 20)
    before = learner.components_
    learner.partial_fit(np.zeros((5, 10)))
    np.testing.assert_array_equal(learner.components_, before)
    assert (learner.n_steps_, learner.n_samples_seen_) == (10, 205)
    for settings in ({}, {"whiten": True}, {"init": "pca"}):
        empty = OnlineOrthogonalDictionary(random_state=0, **settings).fit(np.zeros((9, 3)))
        np.testing.assert_allclose(empty.components_ @ empty.components_.T, np.eye(3), atol=1e-10)
        assert empty.n_steps_ == 0


def test_degenerate_shapes_and_repeated_rows():
    one = OnlineOrthogonalDictionary().fit(np.array([[2.0], [-3.0]]))
    assert abs(one.components_.item()) == 1
    np.testing.assert_allclose(abs(one.transform(np.array([[5.0]]))), [[5.0]])
    few = OnlineOrthogonalDictionary(random_state=0, max_epochs=100).fit(np.ones((1, 30)))
    np.testing.assert_allclose(few.components_ @ few.components_.T, np.eye(30), atol=1e-10)
    assert abs(few.transform(np.ones((1, 30)))).max() == pytest.approx(30**0.5, rel=1e-6)
    same = OnlineOrthogonalDictionary(random_state=0, max_epochs=100).fit(np.ones((50, 3)))
    assert abs(same.transform(np.ones((1, 3)))).max() == pytest.approx(3**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": 2}, "power: found 2, expected > 2, 3 or 4 recommended"),
        ({"power": float("nan")}, "power"),
        ({"power": "3"}, "power: found 3"),
        ({"step_floor": 1.5}, "step_floor: found 1.5"),
        ({"step_floor": -0.1}, "step_floor"),
        ({"rho_power": 2}, "rho_power"),
        ({"step_power": -1}, "step_power"),
        ({"tol": -1}, "tol"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"batch_size": 1.5}, "batch_size: found 1.5"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"init": "zeros"}, "init: found zeros"),
        ({"init": np.eye(3)}, r"init: found \(3, 3\), expected \(10, 10\)"),
        ({"polar": "muon"}, "polar: found 'muon'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        OnlineOrthogonalDictionary().set_params(**settings).fit(problem(samples=20)[0])


def test_bad_rows():
    rows, _ = problem(samples=50)
    learner = streamed(rows, 25)
    before = learner.components_
    for bad in (np.nan, np.inf):
        wrong = rows.copy()
        wrong[3, 2] = bad
        for kind in (wrong, torch.from_numpy(wrong)):
            with pytest.raises(ValueError, match="NaN|infinity"):
                learner.partial_fit(kind)
    for kind in (rows[:, :9], torch.from_numpy(rows[:, :9])):
        for call in (learner.partial_fit, learner.transform, learner.inverse_transform):
            with pytest.raises(ValueError, match="9"):
                call(kind)
    for kind in (torch.ones(5), torch.ones(0, 10)):
        with pytest.raises(ValueError, match="X: found"):
            learner.partial_fit(kind)
    np.testing.assert_array_equal(learner.components_, before)
    with pytest.raises(AttributeError, match="has learned nothing yet"):
        OnlineOrthogonalDictionary().components_  # noqa: B018


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_batch_whose_powers_overflow_is_refused_and_forgotten(kind):
    rows, _ = problem(samples=50)
    learner = OnlineOrthogonalDictionary(random_state=0).partial_fit(kind(rows))
    before = learner.components_
    with pytest.raises(ValueError, match="powers 3 of X overflow"):
        learner.partial_fit(kind(rows * 1e120))
    np.testing.assert_array_equal(learner.components_, before)
    assert np.isfinite(learner.partial_fit(kind(rows)).components_).all()
    with pytest.raises(ValueError, match="powers 3 of X overflow"):
        OnlineOrthogonalDictionary(random_state=0).fit(kind((rows * 1e14).astype("float32")))
    single = OnlineOrthogonalDictionary(random_state=0).partial_fit(kind(rows.astype("float32")))
    with pytest.raises(ValueError, match="gradient of a batch overflows"):
        single.partial_fit(kind(rows * 1e30))
    assert np.isfinite(single.partial_fit(kind(rows)).components_).all()


@pytest.mark.parametrize("polar", ["svd", "auto"])
def test_wide_decompositions_warn(monkeypatch, polar):
    monkeypatch.setattr("weightsmith.dictionary._online_orthogonal.method.SVD_LIMIT", 8)
    with pytest.warns(UserWarning, match="a decomposition of 10 x 10 per step is slow: take device='cuda'"):
        OnlineOrthogonalDictionary(polar=polar).fit(problem(samples=20)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    rows, basis = problem(n=20, samples=20_000)
    learner = OnlineOrthogonalDictionary(random_state=0, device="cuda")
    for batch in batches(torch.from_numpy(rows).cuda(), 20):
        learner.partial_fit(batch)
    assert error(learner, basis) < 0.002
    assert learner.transform(torch.from_numpy(rows[:4])).device.type == "cpu"
    moved = pickle.loads(pickle.dumps(learner)).set_params(device="cpu")
    np.testing.assert_allclose(moved.transform(rows), learner.transform(rows), atol=1e-12)
