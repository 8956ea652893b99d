"""How much faster than scikit-learn's MiniBatchDictionaryLearning is a batch, at equal or lower error?

Goal: at least 8 times, at 20 features in batches of 20. Every penalty of the peer is timed with both of its solvers,
"lars", its default, and "cd", coordinate descent, which is faster; the ratio is that to the fastest peer whose error
after 1000 batches is no more than ours. Wider dictionaries are timed too. The limit is what two matrix products of a
batch take at the machine's rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio
from sklearn.decomposition import MiniBatchDictionaryLearning
from threadpoolctl import threadpool_limits

from weightsmith.dictionary import OnlineOrthogonalDictionary

FEATURES, BATCHES = 20, 1000
PENALTIES = (0.1, 0.2, 0.3, 0.5, 1)


def stream(features: int, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches of as many rows as features, with codes of which three in ten are not zero, and the basis."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((features, features)))[0]
    shape = batches, features, features
    return rng.standard_normal(shape) * (rng.random(shape) < 0.3) @ basis.T, basis


def peer(features: int, alpha: float, solver: str) -> Callable[[], Any]:
    return lambda: MiniBatchDictionaryLearning(
        n_components=features,
        alpha=alpha,
        batch_size=features,
        fit_algorithm=solver,
        random_state=0,
    )


def learn(make: Callable[[], Any], batches: np.ndarray) -> Any:
    learner = make()
    for batch in batches:
        learner.partial_fit(batch)
    return learner


def error(learner: Any, basis: np.ndarray) -> float:
    atoms = learner.components_ / np.maximum(np.linalg.norm(learner.components_, axis=1, keepdims=True), 1e-300)
    return float(1 - abs(atoms @ basis).max(axis=0).mean())


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    batches, basis = stream(FEATURES, BATCHES)
    makers: dict[str, Callable[[], Any]] = {"ours": lambda: OnlineOrthogonalDictionary(random_state=0)}
    for solver in ("lars", "cd"):
        makers |= {f"scikit-learn, {solver}, alpha {alpha}": peer(FEATURES, alpha, solver) for alpha in PENALTIES}
    errors = {name: error(learn(make, batches), basis) for name, make in makers.items()}
    timed = batches[:100]
    arms = {name: lambda make=make: learn(make, timed) for name, make in makers.items()}
    timings = alternate(arms, rounds=options.rounds)
    as_exact = [name for name in makers if name != "ours" and errors[name] <= errors["ours"]]
    fastest = min(as_exact, key=lambda name: timings[name].median)
    limit = 4 * FEATURES**3 / gemm_rate(dtype=torch.float64)
    rows = [
        (name, 1e3 * timing.median / len(timed), errors[name], ratio(timing, timings["ours"]))
        for name, timing in timings.items()
    ]
    print_table(("arm", "ms/batch", "error after 1000 batches", "time over ours"), rows)
    wide = {}
    for features in (64, 128):
        few, _ = stream(features, 10)
        pair = {
            "ours": lambda few=few: learn(lambda: OnlineOrthogonalDictionary(random_state=0), few),
            "peer": lambda few=few, features=features: learn(peer(features, 0.3, fastest.split(", ")[1]), few),
        }
        times = alternate(pair, rounds=max(options.rounds // 2, 2))
        wide[f"ratio at {features} features"] = ratio(times["peer"], times["ours"])
        wide[f"ms at {features} features"] = 1e3 * times["ours"].median / len(few)
    print_table(("width", "value"), list(wide.items()))
    finish(
        "online_odl_batch",
        ratio=ratio(timings[fastest], timings["ours"]),
        goal=8,
        limit=1e3 * limit,
        ours=1e3 * timings["ours"].median / len(timed),
        peer=1e3 * timings[fastest].median / len(timed),
        unit="ms/batch",
        store=options.store,
        fastest_peer=fastest,
        ratio_to_default_solver=min(
            ratio(timings[name], timings["ours"]) for name in as_exact if name.startswith("scikit-learn, lars")
        ),
        error_ours=errors["ours"],
        error_peer=errors[fastest],
        **wide,
    )


if __name__ == "__main__":
    main()
