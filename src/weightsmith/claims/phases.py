"""Phases: which measure orders a grid of networks as their test accuracy and their averages do.

Digits with some labels drawn at random, perceptrons of two hidden layers over widths and batch sizes, three networks
per cell. A seed draws the split, the random labels, and all networks of a grid.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightsmith.analyze import train_phase_zoo
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering
from weightsmith.core.jobs import run_jobs
from weightsmith.core.progress import track
from weightsmith.embedded import digits

__all__ = ["AVERAGING", "BARRIERS", "PREDICTION", "run"]

TRAIN, NOISE, DECAY = 1000, 0.1, 5e-4
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"widths": (2, 8, 32, 128), "batches": (8, 32, 128), "epochs": 40, "curve": 8, "device": "cpu"},
    "gpu": {"widths": (2, 4, 8, 16, 32, 64, 128, 256), "batches": (8, 16, 32, 64, 128), "epochs": 40, "curve": 30,
            "device": "cuda"},
}  # fmt: skip
"""Sizes of the experiment by scale."""

WORKERS = {"cpu": 2, "gpu": 1}

PAPER = "Phases tell how well networks can be fine-tuned, pruned, ensembled and averaged."
MEASURES = {
    "similarity of outputs (CKA)": ("method", "cka", 1),
    "mode connectivity": ("baseline", "mode_connectivity", 1),
    "training loss": ("baseline", "train_loss", -1),
    "Hessian trace": ("baseline", "hessian_trace", -1),
    "largest eigenvalue": ("baseline", "top_eigenvalue", -1),
    "norm of the weights": ("baseline", "norm", -1),
    "training accuracy": ("control", "train_accuracy", 1),
}
"""Arms: role, column, and its sign where more should be better."""

PREDICTION = Claim(
    slug="phases",
    experiment="prediction",
    title="Which measure orders a grid of networks by test accuracy",
    statement="The similarity of the outputs of seeds orders them better than barriers and sharpness do.",
    metric="rank correlation with the test accuracy of the cells",
    higher_is_better=True,
    expected=(
        Ordering("similarity of outputs (CKA)", "mode connectivity", 0.2),
        Ordering("similarity of outputs (CKA)", "largest eigenvalue"),
    ),
    paper="Similarity of the outputs follows the test accuracy most closely.",
    claimed=tuple(
        Ordering("similarity of outputs (CKA)", name)
        for name in ("training loss", "mode connectivity", "Hessian trace", "largest eigenvalue")
    ),
    scales=("cpu", "gpu"),
)

AVERAGING = Claim(
    slug="phases",
    experiment="averaging",
    title="Which measure orders a grid of networks by the accuracy of the average of three seeds",
    statement="The similarity of outputs orders them better than training loss and training accuracy.",
    metric="rank correlation with the test accuracy of the averaged networks",
    higher_is_better=True,
    expected=(
        Ordering("similarity of outputs (CKA)", "training loss", 0.1),
        Ordering("similarity of outputs (CKA)", "training accuracy"),
    ),
    paper=PAPER,
    scales=("cpu", "gpu"),
)

BARRIERS = Claim(
    slug="phases",
    experiment="barriers",
    title="Barriers between seeds of narrow and wide networks",
    statement="The mode connectivity of widths 2 and 8 is three points below that of width 128.",
    metric="mode connectivity, in points of training error",
    higher_is_better=True,
    expected=(Ordering("width 128", "widths 2 and 8", 3.0),),
    paper="Small networks have barriers between seeds, large ones have not.",
    claimed=(Ordering("width 128", "widths 2 and 8"),),
    scales=("cpu", "gpu"),
)


@dataclass(frozen=True)
class Perceptron:
    """Makes networks of a width."""

    device: str = "cpu"

    def __call__(self, width: int) -> nn.Module:
        """A perceptron of two hidden layers."""
        layers = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        return nn.Sequential(*layers).to(self.device)


def run(scale: str = "cpu", seeds: Sequence[int] = tuple(range(20, 26))) -> list[ClaimResult]:
    """Measure a grid per seed."""
    start = time.perf_counter()
    jobs = run_jobs(partial(grid, scale), list(seeds), workers=WORKERS[scale])
    grids = list(track(jobs, "grids", total=len(seeds)))
    seconds = time.perf_counter() - start
    judge = partial(ClaimResult.judge, scale=scale, seeds=seeds, seconds=seconds)
    results = []
    for claim, target in ((PREDICTION, "test_accuracy"), (AVERAGING, "average")):
        arms = [
            Arm(name, role, [sign * correlation(cells, column, target) for cells in grids])  # type: ignore[arg-type]
            for name, (role, column, sign) in MEASURES.items()
        ]
        results.append(judge(claim, arms, notes=[told(grids)]))
    wide = [mean([c["mode_connectivity"] for c in cells if c["width"] == 128]) for cells in grids]
    narrow = [mean([c["mode_connectivity"] for c in cells if c["width"] <= 8]) for cells in grids]
    arms = [Arm("width 128", "method", wide), Arm("widths 2 and 8", "baseline", narrow)]
    return [*results, judge(BARRIERS, arms, notes=[f"Curves were trained for {SIZES[scale]['curve']} epochs."])]


def grid(scale: str, seed: int) -> list[dict[str, Any]]:
    """Train and measure a grid; return its cells with their phase, and with the accuracy of the averaged networks."""
    sizes = SIZES[scale]
    device = "cuda" if sizes["device"] == "cuda" and torch.cuda.is_available() else "cpu"
    draw = torch.Generator().manual_seed(seed)
    images, labels = digits()
    order = torch.randperm(len(labels), generator=draw)
    x, y = images.flatten(1)[order].to(device), labels[order].clone()
    wrong = torch.rand(TRAIN, generator=draw) < NOISE
    y[:TRAIN][wrong] = torch.randint(10, (int(wrong.sum()),), generator=draw)
    y = y.to(device)
    training, test = (list(zip(x[part], y[part], strict=True)) for part in (slice(TRAIN), slice(TRAIN, None)))
    build = Perceptron(device)
    with tempfile.TemporaryDirectory() as folder:
        zoo = train_phase_zoo(
            build, training, test, folder, load={"width": sizes["widths"]},
            temperature={"batch_size": sizes["batches"]}, seeds=3, seed=100 * seed, train_epochs=sizes["epochs"],
            train_weight_decay=DECAY, epochs=sizes["curve"], hessian_samples=640, probes=30,
        )  # fmt: skip
        cells = zoo.table().to_dict("records")
        for cell in cells:
            states = zoo.states(width=cell["width"], batch_size=cell["batch_size"])
            average = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
            cell["average"] = accuracy(build(cell["width"]), average, x[TRAIN:], y[TRAIN:])
            cell["norm"] = mean([sum(float(t.square().sum()) for t in state.values()) ** 0.5 for state in states])
    return cells


@torch.no_grad()
def accuracy(network: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Share of right predictions with given weights."""
    network.load_state_dict(state)
    return float((network(x).argmax(1) == y).double().mean())


def correlation(cells: Sequence[dict[str, Any]], column: str, target: str) -> float:
    """Spearman's rank correlation over the cells that are trained."""
    from scipy.stats import spearmanr

    kept = [cell for cell in cells if not cell["diverged"]]
    return float(spearmanr([cell[column] for cell in kept], [cell[target] for cell in kept]).statistic)


def mean(values: Sequence[float]) -> float:
    """The mean of the finite ones."""
    return float(np.nanmean(values))


def told(grids: Sequence[Sequence[dict[str, Any]]]) -> str:
    """What the grids say of the best cells, and of averages."""
    trained = [[cell for cell in cells if not cell["diverged"]] for cells in grids]
    best = sum(
        max(cells, key=lambda cell: cell["test_accuracy"]) is max(cells, key=lambda cell: cell["cka"])
        for cells in trained
    )
    every = [cell for cells in trained for cell in cells]
    good = [cell["cka"] for cell in every if cell["average"] > 0.6]
    low = f", all with a similarity above {min(good):.2f}" if good else ""
    counts = {phase: sum(cell["phase"] == phase for cell in every) for phase in sorted({c["phase"] for c in every})}
    phases = ", ".join(f"{phase} {count}" for phase, count in counts.items())
    return (
        f"The most accurate cell has the highest similarity in {best} of {len(grids)} grids. {len(good)} of "
        f"{len(every)} averages are above 60 %{low}. {sum(map(len, grids)) - len(every)} cells with a network that is "
        f"no better than guessing are left out. Phases: {phases}. In four pilot grids (seeds 0 and 10 to 12) training "
        "loss ordered the cells by test accuracy no worse than the similarity; so that is not among what we declared."
    )
