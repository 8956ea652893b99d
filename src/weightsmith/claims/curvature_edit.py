"""Curvature edit: wrong labels learned by heart are forgotten and the true ones return; the inputs alone do as well.

A classifier learns digits of which one in ten has a wrong label, until it knows all of them. Its middle matrix is then
edited: by K-FAC, by the second moments of the inputs or of the gradients alone, by singular values, in a random basis,
by magnitude. Every arm keeps what suits it best by the accuracy on wrongly labeled samples, except K-FAC: 90 %.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightsmith.analyze import KroneckerFactors, collect_kfac
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.models import find_layers
from weightsmith.core.training import fit
from weightsmith.forget import edit_matrix

__all__ = ["RECOVERS", "TEST", "run"]

KEEP, NOISE, TRAINING = 0.9, 0.1, 1200
GRID = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)

RECOVERS = Claim(
    slug="curvature-edit",
    experiment="recovers",
    title="Digits with one wrong label in ten, learned by heart, then edited",
    statement="K-FAC gives back more true labels than the best rank of an SVD; the inputs' moments alone do as well.",
    metric="share of wrongly labeled training samples that get their true label",
    higher_is_better=True,
    expected=(
        Ordering("k-fac", "SVD, best rank", 0.2),
        Ordering("k-fac", "gradients alone", 0.2),
        Ordering("inputs alone", "k-fac", -0.05),
    ),
    paper="K-FAC removes memorized labels and recovers true ones better than an SVD.",
    claimed=(Ordering("k-fac", "SVD, best rank"),),
)

TEST = Claim(
    slug="curvature-edit",
    experiment="test",
    title="The same networks on test digits",
    statement="The edit costs less than five points of accuracy.",
    metric="accuracy on test digits",
    higher_is_better=True,
    expected=(Ordering("k-fac", "not edited", -0.05),),
    paper="Validation accuracy rises.",
    claimed=(Ordering("k-fac", "not edited"),),
)


def run(scale: str = "cpu", seeds: Sequence[int] = tuple(range(10, 18))) -> list[ClaimResult]:
    """Run both experiments; a seed draws the wrong labels, the split and the network."""
    start = time.perf_counter()
    values = each_seed(experiment, seeds, "editing what was memorized")
    seconds = time.perf_counter() - start
    names = [name.removeprefix("recovered ") for name in values if name.startswith("recovered ")]

    def arms(what: str) -> list[Arm]:
        roles = {"k-fac": "method", "inputs alone": "control", "gradients alone": "control", "random basis": "control"}
        return [Arm(name, roles.get(name, "baseline"), values[f"{what} {name}"]) for name in names]  # type: ignore[arg-type]

    still = "; ".join(f"{n} {sum(values[f'memorized {n}']) / len(seeds):.2f}" for n in names)
    notes = [f"Wrong labels that are still given: {still}."]
    return [
        ClaimResult.judge(RECOVERS, arms("recovered"), scale=scale, seeds=seeds, seconds=seconds, notes=notes),
        ClaimResult.judge(TEST, arms("test"), scale=scale, seeds=seeds, seconds=seconds),
    ]


def experiment(seed: int) -> dict[str, float]:
    """Train on noisy labels and edit the middle matrix in every way."""
    data = Digits(seed)
    model = data.trained()
    (layer,) = find_layers(model, "2")
    weight = layer.weight.detach().clone()
    factors = collect_kfac(model, [data.x], [layer], fisher="exact")[layer.name]
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(len(weight), len(weight), generator=generator)).Q
    inputs, gradients = torch.eye(weight.shape[1]), torch.eye(len(weight))
    spectrum = torch.linalg.svd(weight, full_matrices=False)
    ranks = [round(len(spectrum.S) * share) for share in (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)]
    arms = {
        "not edited": [weight],
        "k-fac": [edit_matrix(weight, factors, keep=KEEP).weight_OI],
        "k-fac, by loss": [edit_matrix(weight, factors, keep=keep, criterion="loss").weight_OI for keep in GRID],
        "inputs alone": [_edited(weight, factors.inputs_II, gradients, keep) for keep in GRID],
        "gradients alone": [_edited(weight, inputs, factors.gradients_OO, keep) for keep in GRID],
        "random basis": [_edited(weight, turn @ factors.inputs_II @ turn.T, gradients, keep) for keep in GRID],
        "SVD, best rank": [spectrum.U[:, :r] * spectrum.S[:r] @ spectrum.Vh[:r] for r in ranks],
        "magnitude": [weight * (weight.abs() >= weight.abs().quantile(share)) for share in (0.5, 0.7, 0.8, 0.9, 0.95)],
    }
    found: dict[str, float] = {}
    for name, candidates in arms.items():
        scores = []
        for candidate in candidates:
            layer.weight_OI.copy_(candidate)
            scores.append(data.scores(model))
        best = max(scores, key=lambda each: each["recovered"])
        found |= {f"{what} {name}": value for what, value in best.items()}
    return found


def _edited(weight: Tensor, inputs: Tensor, gradients: Tensor, keep: float) -> Tensor:
    return edit_matrix(weight, KroneckerFactors(inputs, gradients, 1, 1.0), keep=keep).weight_OI


class Digits:
    """Digits with wrong labels: a part to train on and one to test on."""

    def __init__(self, seed: int) -> None:
        from sklearn.datasets import load_digits

        generator = torch.Generator().manual_seed(seed)
        bunch = load_digits()
        x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
        order = torch.randperm(len(x), generator=generator)
        self.x, self.true = x[order[:TRAINING]], y[order[:TRAINING]]
        self.x_test, self.y_test = x[order[TRAINING:]], y[order[TRAINING:]]
        self.wrong = torch.randperm(TRAINING, generator=generator)[: round(NOISE * TRAINING)]
        shift = torch.randint(1, 10, (len(self.wrong),), generator=generator)
        self.given = self.true.clone()
        self.given[self.wrong] = (self.true[self.wrong] + shift) % 10
        self.seed = seed

    def trained(self) -> nn.Sequential:
        """A perceptron that knows every given label."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
            model = nn.Sequential(*layers)
        samples = list(zip(self.x, self.given, strict=True))
        fit(model, samples, learning_rate=1e-3, epochs=150, batch_size=64, seed=self.seed)
        return model

    @torch.no_grad()
    def scores(self, model: nn.Module) -> dict[str, float]:
        """Wrong labels still given, true labels given instead, test accuracy."""
        told = model(self.x[self.wrong]).argmax(1)
        return {
            "memorized": float((told == self.given[self.wrong]).float().mean()),
            "recovered": float((told == self.true[self.wrong]).float().mean()),
            "test": float((model(self.x_test).argmax(1) == self.y_test).float().mean()),
        }
