"""ProSper: bars of either sign found with their sparsity and noise, and the likelihood tells sums from maxima.

Three experiments on 5 x 5 bars: how many are found, how near the noise comes, and which superposition the data have.
The first two are measured on the same thirty draws. Their number came from the variance of the stored five (seeds 20
to 24): the closest ordering, of BSC's noise and that of PCA, needs about as many.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA, DictionaryLearning, FastICA, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.dictionary import BSC, MMCA

__all__ = ["BARS", "NOISE", "SUPERPOSITION", "bars_data", "found", "run"]

BARS = Claim(
    slug="prosper",
    experiment="bars",
    title="Signed bars: ten atoms from 500 points",
    statement=(
        "Of ten bars whose sign is random, binary sparse coding finds at least four more than L1 dictionary learning "
        "whose penalty is chosen by its held-out error, eight more than ICA, and no fewer than with the penalty that "
        "only the truth can tell."
    ),
    metric="bars found, of 10",
    higher_is_better=True,
    expected=(
        Ordering(better="bsc", worse="dictionary learning, penalty by held-out error", margin=4),
        Ordering(better="bsc", worse="dictionary learning, best penalty", margin=-0.5),
        Ordering(better="bsc", worse="fastica", margin=8),
    ),
    paper="Has no table of results; its bars tests ask for all bars, with pi and sigma near the truth.",
)

NOISE = Claim(
    slug="prosper",
    experiment="noise",
    title="Signed bars: the noise without cross-validation",
    statement="BSC's sigma is within 0.1 of the true 2; what PCA and dictionary learning leave over is further off.",
    metric="absolute error of the noise's standard deviation",
    higher_is_better=False,
    expected=(
        Ordering(better="bsc", worse="a tenth"),
        Ordering(better="bsc", worse="pca residual"),
        Ordering(better="bsc", worse="dictionary learning residual"),
    ),
)

SUPERPOSITION = Claim(
    slug="prosper",
    experiment="superposition",
    title="Sum or maximum, by held-out likelihood",
    statement=(
        "On bars that cover each other the maximum-magnitude model has the higher held-out likelihood, on bars that "
        "add up the linear one."
    ),
    metric="held-out log-likelihood a point",
    higher_is_better=True,
    expected=(
        Ordering(better="mmca on maxima", worse="bsc on maxima"),
        Ordering(better="bsc on sums", worse="mmca on sums"),
    ),
)

SIZE, AMPLITUDE, ACTIVITY, SIGMA, POINTS = 5, 10.0, 0.2, 2.0, 500
PENALTIES, BATCH_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0), (1.0, 3.0)
COUNT = 2 * SIZE

BARS_NOTES = (
    "Dictionary learning is scikit-learn's MiniBatchDictionaryLearning, positive codes, penalties of 0.1 to 10. Its "
    "best penalty is the one that finds most bars of this very seed; the batch version has it chosen the same way, of "
    "1 and 3.",
    "First declared as four bars more than with a penalty of 1: on seeds 0 to 4 that failed, with 3.4 bars more. Then "
    "as here, beside two easier orderings, on seeds 20 to 24, where the tie with the best penalty was not certain "
    "(0.8 +- 1.4 bars more). These thirty seeds are others.",
    "The gap to dictionary learning is one of choosing its penalty: with the best of five it finds nearly all bars.",
)
NOISE_NOTES = (
    "First declared against dictionary learning with the penalty that finds most bars: on seeds 0 to 4 its error was "
    "larger by 0.75 on average, but spread too widely to tell. The penalty is now the one a user would choose. On "
    "seeds 20 to 24 PCA was further off by 0.011 +- 0.023; these thirty seeds are others.",
)
SUPERPOSITION_NOTES = (
    "MMCA stands for the maximum since the noisy points are signed, which MCA refuses; with non-negative components "
    "both are the same model.",
)


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Run the experiments; a seed draws the signs, the points and the starts."""
    return [*signed_bars(scale, seeds or range(100, 130)), superposition(scale, seeds or range(20, 25))]


def signed_bars(scale: str, seeds: Sequence[int]) -> list[ClaimResult]:
    """Run the experiments on bars of either sign, both on the same draws."""
    values, seconds = _measure(_signed_bars, seeds, BARS.title)
    errors = {name.removeprefix("noise: "): each for name, each in values.items() if name.startswith("noise: ")}
    counts = {name: each for name, each in values.items() if not name.startswith("noise: ")}
    return [
        ClaimResult.judge(claim, _arms(each), scale=scale, seeds=seeds, seconds=seconds, notes=notes)
        for claim, each, notes in ((BARS, counts, BARS_NOTES), (NOISE, errors, NOISE_NOTES))
    ]


def superposition(scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Run the experiment on bars that add up or cover each other."""
    values, seconds = _measure(_likelihoods, seeds, SUPERPOSITION.title)
    notes = SUPERPOSITION_NOTES
    return ClaimResult.judge(SUPERPOSITION, _arms(values), scale=scale, seeds=seeds, seconds=seconds, notes=notes)


def _measure(
    experiment: Callable[[int], dict[str, float]], seeds: Sequence[int], title: str
) -> tuple[dict[str, list[float]], float]:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return each_seed(experiment, seeds, title), time.perf_counter() - start


def _arms(values: dict[str, list[float]]) -> list[Arm]:
    return [Arm(name, _ROLES.get(name, "baseline"), numbers) for name, numbers in values.items()]  # type: ignore[arg-type]


_ROLES = {
    "bsc": "method",
    "bsc without annealing": "control",
    "points as atoms": "control",
    "a tenth": "control",
    "mmca on maxima": "method",
    "bsc on sums": "method",
}


def bars_data(
    generator: np.random.Generator, *, signed: bool, maximum: bool = False, points: int = POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points of a 5 x 5 image with horizontal and vertical bars, and return them with the bars.

    Parameters
    ----------
    generator : Generator
        Of signs, codes and noise.
    signed : bool
        Each bar has a sign of its own, the same in all points.
    maximum : bool, default: False
        Where bars cross, the larger magnitude is seen and not the sum.
    points : int, default: 500
        How many.

    Examples
    --------
    >>> X, bars = bars_data(np.random.default_rng(0), signed=True)
    >>> X.shape, bars.shape, np.unique(bars).tolist()
    ((500, 25), (10, 25), [-10.0, 0.0, 10.0])
    """
    images = np.zeros((COUNT, SIZE, SIZE))
    for line in range(SIZE):
        images[line, line], images[SIZE + line, :, line] = AMPLITUDE, AMPLITUDE
    bars = images.reshape(COUNT, -1)
    if signed:
        bars = bars * generator.choice([-1.0, 1.0], (COUNT, 1)) + 0.0  # no -0.0
    codes = generator.random((points, COUNT)) < ACTIVITY
    clean = (codes[:, :, None] * bars).max(1) if maximum else codes @ bars
    return clean + generator.normal(0, SIGMA, clean.shape), bars


def found(atoms: np.ndarray, bars: np.ndarray) -> int:
    """Bars that have an atom of their own with an absolute cosine above 0.9.

    Examples
    --------
    >>> found(np.array([[2.0, 0.0], [1.0, 1.0]]), np.eye(2))
    1
    """
    lengths = np.linalg.norm(atoms, axis=1, keepdims=True)
    cosines = np.abs(atoms / np.maximum(lengths, 1e-12) @ (bars / np.linalg.norm(bars, axis=1, keepdims=True)).T)
    rows, columns = linear_sum_assignment(-(cosines > 0.9).astype(float))
    return int((cosines[rows, columns] > 0.9).sum())


def _bsc(seed: int) -> BSC:
    return BSC(COUNT, n_candidates=6, max_active=4, max_iter=60, n_init=3, random_state=seed)


def _dictionaries(points: np.ndarray, seed: int) -> list[MiniBatchDictionaryLearning]:
    return [
        MiniBatchDictionaryLearning(
            COUNT,
            alpha=penalty,
            fit_algorithm="cd",
            transform_algorithm="lasso_cd",
            positive_code=True,
            random_state=seed,
        ).fit(points)
        for penalty in PENALTIES
    ]


def _signed_bars(seed: int) -> dict[str, float]:
    """Bars found by arm, and errors of the noise under the arm's name."""
    generator = np.random.default_rng(seed)
    points, bars = bars_data(generator, signed=True)
    batch = [
        DictionaryLearning(
            COUNT, alpha=penalty, max_iter=100, fit_algorithm="cd", positive_code=True, random_state=seed
        ).fit(points)
        for penalty in BATCH_PENALTIES
    ]
    dictionaries = _dictionaries(points, seed)
    counts = [found(dictionary.components_, bars) for dictionary in dictionaries]
    chosen = _by_held_out_error(points, seed)
    hot = _bsc(seed).fit(points)
    cold = _bsc(seed).set_params(schedule=None, n_init=1).fit(points)
    left_over = points - dictionaries[chosen].transform(points) @ dictionaries[chosen].components_
    noise = {
        "bsc": hot.sigma_,
        "pca residual": float(PCA(COUNT).fit(points).noise_variance_) ** 0.5,
        "dictionary learning residual": float(left_over.std()),
    }
    return {
        "bsc": found(hot.components_, bars),
        "bsc without annealing": found(cold.components_, bars),
        "dictionary learning, penalty 1": counts[PENALTIES.index(1.0)],
        "dictionary learning, penalty by held-out error": counts[chosen],
        "dictionary learning, best penalty": max(counts),
        "batch dictionary learning, best penalty": max(found(d.components_, bars) for d in batch),
        "fastica": found(FastICA(COUNT, random_state=seed, max_iter=1000).fit(points).mixing_.T, bars),
        "points as atoms": found(points[generator.choice(len(points), COUNT, replace=False)], bars),
        **{f"noise: {name}": abs(sigma - SIGMA) for name, sigma in noise.items()},
        "noise: a tenth": 0.1,
    }


def _by_held_out_error(points: np.ndarray, seed: int) -> int:
    """The penalty that a user would choose who does not know the truth."""
    fitted, held_out = np.split(points, 2)
    errors = [
        np.square(held_out - dictionary.transform(held_out) @ dictionary.components_).mean()
        for dictionary in _dictionaries(fitted, seed)
    ]
    return int(np.argmin(errors))


def _likelihoods(seed: int) -> dict[str, float]:
    scores = {}
    for data, maximum in (("maxima", True), ("sums", False)):
        generator = np.random.default_rng(seed)
        points, _ = bars_data(generator, signed=False, maximum=maximum, points=2 * POINTS)
        fitted, held_out = points[:POINTS], points[POINTS:]
        for name, kind in (("mmca", MMCA), ("bsc", BSC)):
            model = kind(COUNT, n_candidates=6, max_active=4, max_iter=60, n_init=3, random_state=seed).fit(fitted)
            scores[f"{name} on {data}"] = model.score(held_out)
    return scores
