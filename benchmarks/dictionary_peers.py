"""What do dictionaries of image patches cost to learn, and how much do they lose?

8 x 8 patches of two photographs, 64 atoms, four coefficients kept of every held-out patch, found by orthogonal matching
pursuit for all. There is no ratio to reach: the table is the answer. Reported is the time of the fastest peer that
loses no more than the best of ours, over that one's. Of the packages in the ``bench`` extra SPAMS (GPL, for this
comparison only) and dictlearn take part where they are installed.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from harness import finish, parser, print_table
from sklearn.datasets import load_sample_images
from sklearn.decomposition import (
    NMF,
    PCA,
    DictionaryLearning,
    FastICA,
    MiniBatchDictionaryLearning,
    sparse_encode,
)
from sklearn.feature_extraction.image import extract_patches_2d
from threadpoolctl import threadpool_limits

from weightsmith.dictionary import GSC, OnlineOrthogonalDictionary

ATOMS, KEPT, TRAINING = 64, 4, 10_000
ALPHA = 0.2


def patches() -> tuple[np.ndarray, np.ndarray]:
    """Patches to learn from and held-out ones, of the left and the right part of both photographs."""
    sides: list[list[np.ndarray]] = [[], []]
    for image in load_sample_images().images:
        grey, middle = image.mean(axis=2) / 255, image.shape[1] * 3 // 4
        for side, part in zip(sides, (grey[:, :middle], grey[:, middle:]), strict=True):
            side.append(extract_patches_2d(part, (8, 8), max_patches=TRAINING // 2, random_state=0).reshape(-1, 64))
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def lost(atoms: np.ndarray, rows: np.ndarray) -> float:
    """The share of the energy that the best few atoms of each row do not hold."""
    atoms = atoms / np.maximum(np.linalg.norm(atoms, axis=1, keepdims=True), 1e-12)
    codes = sparse_encode(rows, atoms, algorithm="omp", n_nonzero_coefs=KEPT)
    return float(((rows - codes @ atoms) ** 2).sum() / (rows**2).sum())


def spams_atoms(rows: np.ndarray) -> np.ndarray:
    import spams

    options = {"K": ATOMS, "lambda1": ALPHA, "iter": 200, "batchsize": 256, "numThreads": 1, "verbose": False}
    return spams.trainDL(np.asfortranarray(rows.T), **options).T


def dictlearn_atoms(rows: np.ndarray) -> np.ndarray:
    import dictlearn

    return dictlearn.MiniBatchDictionaryLearning(n_components=ATOMS, random_state=0).fit(rows).components_


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    warnings.filterwarnings("ignore")
    raw, raw_held_out = patches()
    rows, held_out = (part - part.mean(axis=1, keepdims=True) for part in (raw, raw_held_out))

    def online(**hyper: float) -> Callable[[], np.ndarray]:
        return lambda: OnlineOrthogonalDictionary(init="pca", random_state=0, **hyper).fit(rows).components_

    alike = {"n_components": ATOMS, "alpha": ALPHA, "fit_algorithm": "cd", "random_state": 0}
    learners: dict[str, Callable[[], np.ndarray]] = {
        "online orthogonal, one pass": online(),
        "online orthogonal, four passes": online(max_epochs=4),
        "GSC, 20 steps": lambda: (
            GSC(ATOMS, n_candidates=6, max_active=3, max_iter=20, random_state=0, n_init=1).fit(rows).components_
        ),
        "PCA": lambda: PCA().fit(rows).components_,
        "FastICA": lambda: FastICA(ATOMS - 1, random_state=0, max_iter=200).fit(rows).mixing_.T,
        "NMF, patches as they are": lambda: NMF(ATOMS, init="nndsvda", max_iter=100).fit(raw).components_,
        "MiniBatchDictionaryLearning": lambda: (
            MiniBatchDictionaryLearning(**alike, batch_size=256, max_iter=5).fit(rows).components_
        ),
        "DictionaryLearning, 2000 patches": lambda: (
            DictionaryLearning(**alike, max_iter=20).fit(rows[:: len(rows) // 2000]).components_
        ),
    }
    learners |= {
        f"{name} (peer package)": lambda learn=learn: learn(rows)
        for name, learn in (("spams", spams_atoms), ("dictlearn", dictlearn_atoms))
        if importlib.util.find_spec(name)
    }
    table = {}
    for name, learn in learners.items():
        start = time.perf_counter()
        atoms = learn()
        table[name] = (time.perf_counter() - start, lost(atoms, held_out))
        print(f"{name}: {table[name][0]:.2f} s, {table[name][1]:.3f} lost", flush=True)
    print_table(("learner", "s", "energy lost"), [(name, *values) for name, values in table.items()])
    own = {name for name in table if name.startswith(("online", "GSC"))}
    best = min(own, key=lambda name: table[name][1])
    ours, bound = table[best]
    peers = {name: seconds for name, (seconds, loss) in table.items() if loss <= bound and name not in own}
    nearest = min(peers, key=lambda name: peers[name])
    finish(
        "dictionary_peers",
        ratio=peers[nearest] / ours,
        goal=None,
        limit=None,
        ours=ours,
        peer=peers[nearest],
        unit="s to learn",
        store=options.store,
        arms=[best, nearest],
        table={name: {"seconds": seconds, "lost": loss} for name, (seconds, loss) in table.items()},
    )


if __name__ == "__main__":
    main()
