"""Two processes with the rows of one, for all dictionaries in one launch."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from dictionary.data import bars, drawn, problem
from processes import two_processes
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

PROSPER = [BSC, TSC, DSC, MCA, MMCA, GSC]
SHARED = {"plain": {}, "whiten": {"whiten": True}, "pca": {"init": "pca"}, "normalize": {"normalize": True}}
CLASSES = np.array(["a", "b", "c"])


def prosper_points():
    points, _, _ = bars(3, points=120)
    return np.abs(np.concatenate([points, points[:10]]))  # ties at the cut


def prosper(kind, random_state=0):
    return kind(5, n_candidates=4, max_active=2, max_iter=12, random_state=random_state)


def supervised(**options):
    return SupervisedDictionaryClassifier(n_components=2, max_iter=100, random_state=0, **options)


def online_in_halves(rows, rank):
    found = {}
    for name, settings in SHARED.items():
        learner = OnlineOrthogonalDictionary(random_state=rank, **settings)
        for first in range(0, len(rows), 20):
            learner.partial_fit(rows[first : first + 15] if rank == 0 else rows[first + 15 : first + 20])
        found[name] = learner.components_
    whole = OnlineOrthogonalDictionary(random_state=rank, batch_size=10).fit(rows[: 155 if rank == 0 else 40])
    return found, whole


def fit_halves(folder):
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    points = prosper_points()
    shard = points[:50] if rank == 0 else points[50:]
    x, y = drawn(61, 12, 3)
    fitted = {
        "prosper": [prosper(kind, 0 if rank == 0 else 99).fit(shard) for kind in PROSPER],
        "supervised": supervised(aux_features=[0], class_weight="balanced").fit(x[rank::2], CLASSES[y[rank::2]]),
        "online": online_in_halves(problem(samples=400)[0], rank),
    }
    with pytest.raises(ValueError, match="several processes"):
        supervised(model="feature").fit(x, y)
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(fitted))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    two_processes("import sys, dictionary.test_several_processes as t; t.fit_halves(sys.argv[1])", folder, folder)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", PROSPER)
def test_prosper(fitted, kind):
    model = prosper(kind).fit(prosper_points())
    for part in fitted:
        shard = part["prosper"][PROSPER.index(kind)]
        np.testing.assert_allclose(shard.components_, model.components_, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(shard.lower_bound_curve_, model.lower_bound_curve_, rtol=1e-10)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_supervised(fitted):
    x, y = drawn(61, 12, 3)
    whole = supervised(aux_features=[0], class_weight="balanced").fit(x, CLASSES[y])
    for part in fitted:
        assert part["supervised"].n_iter_ == whole.n_iter_
        for name in ("components_", "coef_", "aux_coef_", "intercept_", "reconstruction_err_", "objective_curve_"):
            np.testing.assert_allclose(getattr(part["supervised"], name), getattr(whole, name), rtol=0, atol=1e-10)


def test_online(fitted):
    rows, _ = problem(samples=400)
    for name, settings in SHARED.items():
        one = OnlineOrthogonalDictionary(random_state=0, **settings)
        for first in range(0, len(rows), 20):
            one.partial_fit(rows[first : first + 20])
        for part in fitted:
            np.testing.assert_allclose(part["online"][0][name], one.components_, atol=1e-10)
    first, second = (part["online"][1] for part in fitted)
    np.testing.assert_array_equal(first.components_, second.components_)
    assert first.n_steps_ == second.n_steps_ == 16
