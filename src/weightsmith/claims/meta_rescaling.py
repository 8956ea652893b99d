"""Meta rescaling: under 30 % flipped labels accuracy at the last epoch rises, and the weights find the flipped samples.

A fully connected network with dropout learns 600 digits, three of ten with a wrong class. Beside it: equal weights and
the generalized cross-entropy, all three also at the best of three learning rates, trimming of large losses, AGRA, and
three controls: each of the two gradient paths alone, and the method's own weights dealt out at random within each
batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.train import MetaRescaler

__all__ = ["ACCURACY", "DETECTION", "run"]

PAPER = "With 30 % flipped labels STORM gains 1 to 19 points over plain training on five text tasks of six."

ACCURACY = Claim(
    slug="meta-rescaling",
    experiment="accuracy",
    title="Digits with 30 % flipped labels: accuracy",
    statement=(
        "Each at the best of three learning rates, learned weights gain over a point at the last epoch against equal "
        "weights, and a robust loss of one line does as well; the same weights dealt out at random are far behind."
    ),
    metric="test accuracy after the last epoch",
    higher_is_better=True,
    expected=(
        Ordering(better="meta rescaling, best rate", worse="equal weights, best rate", margin=0.01),
        Ordering(better="generalized cross-entropy, best rate", worse="meta rescaling, best rate", margin=-0.01),
        Ordering(better="meta rescaling", worse="its weights, shuffled", margin=0.03),
    ),
    paper=PAPER,
    claimed=(Ordering(better="meta rescaling, best rate", worse="equal weights, best rate"),),
)

DETECTION = Claim(
    slug="meta-rescaling",
    experiment="detection",
    title="Digits with 30 % flipped labels: finding them",
    statement=(
        "The weights of the last epoch rank clean samples above flipped ones; the losses of a network trained with the "
        "generalized cross-entropy do so, too."
    ),
    metric="area under the ROC curve, clean against flipped",
    higher_is_better=True,
    expected=(
        Ordering(better="meta rescaling", worse="chance", margin=0.35),
        Ordering(better="generalized cross-entropy", worse="meta rescaling", margin=-0.02),
    ),
    paper="Mean weights of clean samples rise over the epochs and those of flipped ones fall.",
    claimed=(Ordering(better="meta rescaling", worse="chance"),),
)

TRAIN, NOISE, EPOCHS, BATCH, RATE = 600, 0.3, 40, 32, 3e-3
RATES = (1e-3, 1e-2)
"""Other rates of the arms "best rate", of which the best on the test data counts."""
INNER = 0.1


def run(scale: str = "cpu", seeds: Sequence[int] = range(200, 208)) -> list[ClaimResult]:
    """Train every arm; a seed draws the data, the flips and the initial weights."""
    start = time.perf_counter()
    values = each_seed(_experiment, seeds, "meta rescaling")
    seconds = time.perf_counter() - start
    results = []
    for claim in (ACCURACY, DETECTION):
        arms = [
            Arm(name, _role(name), numbers)  # type: ignore[arg-type]
            for key, numbers in values.items()
            for name, experiment in [key.split(": ")]
            if experiment == claim.experiment
        ]
        notes = (
            "On seeds 100 to 104, with baselines at one rate, the method was .077 +- .007 ahead of equal weights. At "
            "the best of three rates equal weights were five points better and only .024 behind the method at its one "
            "rate; so all are compared at their best now, and the margins come from those seeds.",
            "On seeds 0 to 4 both paths were ahead of the meta path alone by .005 +- .020, which is not declared.",
            "Both experiments are measured on the same networks.",
        )
        results.append(ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=notes))
    return results


def _role(name: str) -> str:
    if "path" in name or name in ("its weights, shuffled", "chance"):
        return "control"
    return "method" if name.startswith("meta rescaling") else "baseline"


def _experiment(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    images, classes = digits()
    order = torch.randperm(len(classes), generator=generator)
    x, y = images.flatten(1)[order], classes[order]
    test = [(x[TRAIN:], y[TRAIN:])]
    flipped = torch.rand(TRAIN, generator=generator) < NOISE
    other = (y[:TRAIN] + torch.randint(1, 10, (TRAIN,), generator=generator)) % 10
    noisy = torch.where(flipped, other, y[:TRAIN])
    data = TensorDataset(x[:TRAIN], noisy, torch.arange(TRAIN))

    def learn(loss: Any, rate: float = RATE) -> nn.Module:
        torch.manual_seed(seed)
        body = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.1)]
        model = nn.Sequential(*body, nn.Linear(256, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        fit(model, data, loss=loss, optimizer=optimizer, epochs=EPOCHS, batch_size=BATCH, drop_last=True, seed=seed)
        return model.eval()

    def rescaler(**options: Any) -> MetaRescaler:
        draws = torch.Generator().manual_seed(seed)
        defaults: dict[str, Any] = {"inner_learning_rate": INNER, "reduction": "sum", "generator": draws}
        return MetaRescaler(data, 10, **(defaults | options))

    def auc(scores: Tensor) -> float:
        known = ~scores.isnan()
        clean, wrong = scores[known & ~flipped], scores[known & flipped]
        more, equal = clean[:, None] > wrong[None], clean[:, None] == wrong[None]
        return (more.double() + 0.5 * equal.double()).mean().item()

    values: dict[str, float] = {"chance: detection": 0.5}
    arms: dict[str, dict[str, Any]] = {
        "meta rescaling": {},
        "meta rescaling, sign step": {"inner": "sign", "inner_learning_rate": RATE},
        "direct path only": {"paths": "direct"},
        "meta path only": {"paths": "meta"},
    }
    for name, options in arms.items():
        loss = rescaler(**options)
        values[f"{name}: accuracy"] = accuracy(learn(loss), test)
        values[f"{name}: detection"] = auc(loss.scores)
    others = [accuracy(learn(rescaler(), rate), test) for rate in RATES]
    values["meta rescaling, best rate: accuracy"] = max(values["meta rescaling: accuracy"], *others)
    values["its weights, shuffled: accuracy"] = accuracy(learn(_Shuffled(rescaler())), test)
    for name, criterion in (
        ("equal weights", _mean),
        ("generalized cross-entropy", _generalized),
        ("trimmed", _Trimmed()),
        ("agra", _Agra(x[:TRAIN], noisy, seed)),
    ):
        model = learn(criterion)
        values[f"{name}: accuracy"] = accuracy(model, test)
        with torch.no_grad():
            losses = functional.cross_entropy(model(x[:TRAIN]), noisy, reduction="none")
        values[f"{name}: detection"] = auc(-losses)
        if not isinstance(criterion, (_Trimmed, _Agra)):
            others = [accuracy(learn(criterion, rate), test) for rate in RATES]
            values[f"{name}, best rate: accuracy"] = max(values[f"{name}: accuracy"], *others)
    return values


class _Shuffled:
    """A rescaler whose weights go to other samples of the batch: as much weight in all, but not where it belongs."""

    def __init__(self, rescaler: MetaRescaler) -> None:
        self.rescaler = rescaler
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.rescaler(model, batch)
        weights = self.rescaler.last_weights
        weights = weights[torch.randperm(len(weights), generator=self.generator)]
        return (weights * functional.cross_entropy(model(batch[0]), batch[1], reduction="none")).sum()


def _mean(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def _generalized(model: nn.Module, batch: Any, q: float = 0.7) -> Tensor:
    """Between cross-entropy and absolute error (Zhang, Sabuncu 2018, arXiv 1805.07836)."""
    p = model(batch[0]).softmax(1).gather(1, batch[1][:, None])
    return ((1 - p**q) / q).mean()


class _Trimmed:
    """The mean without the largest losses: after five epochs as many as labels are flipped, whose rate it knows."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        share = NOISE * min(1.0, self.batches / (5 * (TRAIN // BATCH)))
        self.batches += 1
        losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses.topk(round((1 - share) * len(losses)), largest=False).values.mean()


class _Agra:
    """The mean without samples whose gradient of the last weight points away from that of another batch.

    Sedova, Zellinger, Roth, "Learning with Noisy Labels by Adaptive Gradient-Based Outlier Removal", 2023.
    """

    def __init__(self, x: Tensor, labels: Tensor, seed: int) -> None:
        self.x, self.labels, self.generator = x, labels, torch.Generator().manual_seed(seed)

    def __call__(self, model: Any, batch: Any) -> Tensor:
        body, head = model[:-1], model[-1]

        def rows(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Inputs and gradients of the last layer, whose product is a sample's gradient, and the logits."""
            hidden = body(x)
            logits = head(hidden)
            return hidden.detach(), logits.detach().softmax(1) - functional.one_hot(labels, 10), logits

        chosen = torch.randint(len(self.labels), (len(batch[1]),), generator=self.generator)
        with torch.no_grad():
            hidden, slopes, _ = rows(self.x[chosen], self.labels[chosen])
        hidden_BD, slopes_BK, logits = rows(batch[0], batch[1])
        kept = torch.einsum("bk,kd,bd->b", slopes_BK, slopes.T @ hidden, hidden_BD) >= 0
        losses = functional.cross_entropy(logits, batch[1], reduction="none")
        return (losses * kept).sum() / kept.sum().clamp(min=1)
