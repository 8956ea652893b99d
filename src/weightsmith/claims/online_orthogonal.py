"""Online orthogonal dictionaries: exact without tuning, able to follow drift, and sparser than PCA on photographs.

Three experiments: a stream with known sparse directions, a stream whose directions change, and patches of photographs.
The eight seeds are a number from the variance of seeds 0 to 4, which were looked at before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.fft import dct

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.dictionary import OnlineOrthogonalDictionary
from weightsmith.dictionary._online_orthogonal.frank_wolfe import FrankWolfe, Settings

__all__ = ["DRIFT", "PATCHES", "STREAM", "run"]

STREAM = Claim(
    slug="online-orthogonal",
    experiment="stream",
    title="Finding an orthonormal basis of 20 atoms in 1000 batches of 20",
    statement=(
        "Without anything to tune the error is 5 times below that of MiniBatchDictionaryLearning at penalty 0.1, 3 "
        "times at 1, and within a factor of 3 of it at its best penalty, 0.3."
    ),
    metric="log10 of the error, 1 - mean |cosine| of the true atoms and their best matches",
    higher_is_better=False,
    expected=(
        Ordering(better="ours", worse="MiniBatchDictionaryLearning, 0.1", margin=math.log10(5)),
        Ordering(better="ours", worse="MiniBatchDictionaryLearning, 1", margin=math.log10(3)),
        Ordering(better="ours", worse="MiniBatchDictionaryLearning, 0.3", margin=-math.log10(3)),
    ),
    paper="The method converges at a rate of O(ln t / t^(1/4)) and beats existing online schemes on such data.",
    claimed=(
        Ordering(better="ours", worse="MiniBatchDictionaryLearning, 0.1"),
        Ordering(better="ours", worse="MiniBatchDictionaryLearning, 0.3"),
        Ordering(better="ours", worse="MiniBatchDictionaryLearning, 1"),
    ),
)

DRIFT = Claim(
    slug="online-orthogonal",
    experiment="drift",
    title="600 batches after all atoms were replaced",
    statement=(
        "With a floor under the steps the new basis is found, 5 times as exactly as with steps that decay and 50 "
        "times as exactly as with the paper's."
    ),
    metric="log10 of the error against the new atoms",
    higher_is_better=False,
    expected=(
        Ordering(better="ours, floor 0.05", worse="ours, decaying", margin=math.log10(5)),
        Ordering(better="ours, floor 0.05", worse="ours, decaying as in the paper", margin=math.log10(50)),
        Ordering(better="ours, floor 0.05", worse="MiniBatchDictionaryLearning, 0.3"),
    ),
)

PATCHES = Claim(
    slug="online-orthogonal",
    experiment="patches",
    title="The 4 largest of 64 coefficients of 8 x 8 patches",
    statement="From principal axes, one pass leaves less error than PCA, and four passes less than the cosine basis.",
    metric="squared error of held-out patches that keep 4 coefficients, over their energy",
    higher_is_better=False,
    expected=(
        Ordering(better="ours, one pass", worse="PCA"),
        Ordering(better="ours, four passes", worse="cosine basis"),
        Ordering(better="cosine basis", worse="PCA"),
    ),
)

STREAM_NOTES = (
    "Ours is the worst of three random starts a seed; the others have one.",
    "FastICA and batch MSP see all 20 000 rows at once.",
    "First declared with a factor of 5 at penalty 1, too: on seeds 0 to 4 it was 19, in 3 to 109. Five would need 21 "
    "seeds.",
)
DRIFT_NOTES = (
    "First expected: an error above 0.1 with any steps that decay. That is so with the paper's (t^-0.75); with the "
    "default, t^-0.5, it was 0.02 to 0.06 on seeds 0 to 2, which were looked at before this was declared.",
    "On seeds 0 to 4 the factor over the paper's steps was 108, in 63 to 182. A hundred, as first declared, would need "
    "425 seeds to tell; fifty is declared now.",
    "On the eight seeds since then the errors are smaller than on those five, in all arms but that of the paper's "
    "steps.",
)
PATCHES_NOTES = (
    "First expected: one pass beats the cosine basis. On seed 0, looked at before this was declared, they tied.",
)

ATOMS, DENSITY, BATCH, BATCHES, CHANGE = 20, 0.3, 20, 1000, 600
TRAINING_PATCHES, SIDE = 16_640, 8


def run(scale: str = "cpu", seeds: Sequence[int] = tuple(range(100, 108))) -> list[ClaimResult]:
    """Run the experiments; a seed draws basis, codes and starts, or which patches are held out."""
    results = []
    for claim, experiment, notes in (
        (STREAM, _stream_errors, STREAM_NOTES),
        (DRIFT, _drift_errors, DRIFT_NOTES),
        (PATCHES, _patch_errors, PATCHES_NOTES),
    ):
        start = time.perf_counter()
        values = each_seed(experiment, seeds, claim.title)
        seconds = time.perf_counter() - start
        arms = [Arm(name, _role(name), numbers) for name, numbers in values.items()]
        results.append(ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=notes))
    return results


def sparse_stream(
    seed: int, *, samples: int, gaussian: bool = False
) -> tuple[Float[ndarray, "samples features"], Float[ndarray, "features atoms"]]:
    """Rows with Bernoulli-Gaussian codes (Gaussian ones as a control) in a random orthonormal basis, and the basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((ATOMS, ATOMS)))[0]
    codes = rng.standard_normal((samples, ATOMS))
    if not gaussian:
        codes *= rng.random((samples, ATOMS)) < DENSITY
    return codes @ basis.T, basis


def recovery_error(components: Float[ndarray, "atoms features"], basis: Float[ndarray, "features atoms"]) -> float:
    """One minus the mean over the true atoms of the absolute cosine with the learned atom that fits best."""
    lengths = np.linalg.norm(components, axis=1, keepdims=True)
    return float(1 - abs(components / np.maximum(lengths, 1e-300) @ basis).max(axis=0).mean())


def patches() -> Float[ndarray, "patches pixels"]:
    """All 8 x 8 patches, at a distance of 4, of the two photographs that scikit-learn brings, each of zero mean."""
    from sklearn.datasets import load_sample_image

    parts = []
    for name in ("china.jpg", "flower.jpg"):
        grey = load_sample_image(name).mean(axis=2) / 255
        windows = np.lib.stride_tricks.sliding_window_view(grey, (SIDE, SIDE))[::4, ::4]
        parts.append(windows.reshape(-1, SIDE**2))
    rows = np.concatenate(parts)
    return rows - rows.mean(axis=1, keepdims=True)


def kept_error(
    rows: Float[ndarray, "samples features"], components: Float[ndarray, "atoms features"], top_k: int
) -> float:
    """Squared error of rows that keep their ``top_k`` largest coefficients, over their energy."""
    energy = np.sort(np.square(rows @ components.T), axis=1)
    return float(energy[:, : energy.shape[1] - top_k].sum() / energy.sum())


def cosine_basis() -> Float[ndarray, "atoms pixels"]:
    """The discrete cosine transform of a patch, atoms as rows."""
    line = dct(np.eye(SIDE), norm="ortho", axis=0)
    return np.kron(line, line)


def principal_axes(rows: Float[ndarray, "samples features"]) -> Float[ndarray, "atoms features"]:
    """The eigenvectors of the second moment as rows."""
    return np.linalg.eigh(rows.T @ rows)[1].T


def _learn(learner: Any, rows: Float[ndarray, "samples features"]) -> Any:
    for first in range(0, len(rows), BATCH):
        learner.partial_fit(rows[first : first + BATCH])
    return learner


def _penalized(alpha: float, seed: int) -> Any:
    """scikit-learn's learner by coordinate descent: the errors of its default solver, in a tenth of the time."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    return MiniBatchDictionaryLearning(
        n_components=ATOMS, alpha=alpha, batch_size=BATCH, fit_algorithm="cd", random_state=seed
    )


def _stream_errors(seed: int) -> Mapping[str, float]:
    from sklearn.decomposition import FastICA

    rows, basis = sparse_stream(seed, samples=BATCH * BATCHES)
    gaussian, no_basis = sparse_stream(seed, samples=BATCH * BATCHES, gaussian=True)

    def ours(rows: ndarray, basis: ndarray, **settings: Any) -> float:
        learners = (OnlineOrthogonalDictionary(random_state=start, **settings) for start in range(3))
        return max(recovery_error(_learn(learner, rows).components_, basis) for learner in learners)

    errors = {
        "ours": ours(rows, basis),
        "ours, the paper's steps": ours(rows, basis, step_power=0.75),
        "ours without the running gradient": ours(rows, basis, rho_power=0.0),
        "ours, Gaussian codes": ours(gaussian, no_basis),
    }
    for alpha in (0.1, 0.3, 1):
        learned = _learn(_penalized(alpha, seed), rows)
        errors[f"MiniBatchDictionaryLearning, {alpha}"] = recovery_error(learned.components_, basis)
    ica = FastICA(random_state=seed, whiten="unit-variance", max_iter=500).fit(rows)
    errors["FastICA (batch)"] = recovery_error(ica.mixing_.T, basis)
    errors["MSP (batch)"] = recovery_error(_msp(rows, seed), basis)
    return {name: math.log10(error) for name, error in errors.items()}


def _msp(rows: Float[ndarray, "samples features"], seed: int, iterations: int = 60) -> Float[ndarray, "atoms features"]:
    """Matching, stretching and projection on all rows: the same steps at full length."""
    start = np.linalg.qr(np.random.default_rng(seed).standard_normal((ATOMS, ATOMS)))[0]
    state = FrankWolfe(torch.from_numpy(start))
    for _ in range(iterations):
        state.step([torch.from_numpy(rows)], Settings(rho_power=0.0, step_power=0.0))
    return state.decoder().numpy()


def _drift_errors(seed: int) -> Mapping[str, float]:
    before, _ = sparse_stream(seed, samples=BATCH * CHANGE)
    after, basis = sparse_stream(1000 + seed, samples=BATCH * CHANGE)
    learners = {
        "ours, floor 0.05": OnlineOrthogonalDictionary(step_floor=0.05, random_state=seed),
        "ours, decaying": OnlineOrthogonalDictionary(random_state=seed),
        "ours, decaying as in the paper": OnlineOrthogonalDictionary(step_power=0.75, random_state=seed),
        "MiniBatchDictionaryLearning, 0.3": _penalized(0.3, seed),
    }
    rows = np.concatenate([before, after])
    return {
        name: math.log10(recovery_error(_learn(learner, rows).components_, basis)) for name, learner in learners.items()
    }


def _patch_errors(seed: int) -> Mapping[str, float]:
    rows = np.random.default_rng(seed).permutation(patches())
    training, held_out = rows[:TRAINING_PATCHES], rows[TRAINING_PATCHES:]
    learned = {
        "ours, one pass": OnlineOrthogonalDictionary(init="pca", random_state=seed),
        "ours, four passes": OnlineOrthogonalDictionary(init="pca", max_epochs=4, random_state=seed),
        "ours, one pass, power 4, random start": OnlineOrthogonalDictionary(power=4.0, random_state=seed),
    }
    bases = {name: learner.fit(training).components_ for name, learner in learned.items()}
    bases["cosine basis"] = cosine_basis()
    bases["PCA"] = principal_axes(training)
    bases["random rotation"] = np.linalg.qr(np.random.default_rng(seed).standard_normal((SIDE**2, SIDE**2)))[0]
    return {name: kept_error(held_out, basis, 4) for name, basis in bases.items()}


def _role(name: str) -> Any:
    if name in ("ours, Gaussian codes", "ours without the running gradient", "random rotation"):
        return "control"
    return "method" if name.startswith("ours") else "baseline"
