"""OFQ: regressions whose rounded weights oscillate, and small vision transformers at two bits.

The regressions of all seeds run side by side: their rows are independent. The transformers are trained in full
precision first and then with each way of quantizing, for as many epochs in all.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from weightsmith.claims import _cifar
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed, user_data
from weightsmith.core.levels import Grid
from weightsmith.core.progress import track
from weightsmith.core.training import fit, predict
from weightsmith.embedded import digits
from weightsmith.quantize import StatsQ, lsq, ofq
from weightsmith.quantize._ofq.annealing import trainable
from weightsmith.quantize._ofq.weights import lsq as learned_steps

__all__ = ["CIFAR", "DIGITS", "ERRORS", "OSCILLATION", "cifar", "run"]

ROWS, FEATURES, BATCH, STEPS, RATE = 128, 32, 32, 3000, 0.01
BOUNDARY = 0.005
ANNEALED = "StatsQ, annealed"

OSCILLATION = Claim(
    slug="ofq",
    experiment="oscillation",
    title="OFQ, oscillations of the weights of linear regressions at 2 bits",
    statement="In the last thousand steps annealed weights oscillate no more, others in every third step.",
    metric="changes of direction per weight and step",
    higher_is_better=False,
    expected=(Ordering(ANNEALED, "StatsQ", 0.2),),
    paper="Confidence-guided annealing calms the weights that oscillate between two levels.",
    claimed=(Ordering(ANNEALED, "StatsQ"),),
)

ERRORS = tuple(
    Claim(
        slug="ofq",
        experiment=f"error-{bits}-bit",
        title=f"OFQ, error of the rounded weights of linear regressions at {bits} bits",
        statement="Annealing lowers the error of StatsQ's weights, and more than freezing all of them does.",
        metric="mean squared error of the weights",
        higher_is_better=False,
        expected=(Ordering(ANNEALED, "StatsQ"), Ordering(ANNEALED, "StatsQ, all frozen")),
        paper="Confidence-guided annealing brings oscillating weights to the better of two levels.",
        claimed=(Ordering(ANNEALED, "StatsQ"), Ordering(ANNEALED, "StatsQ, all frozen")),
    )
    for bits in (2, 3, 4)
)

TRANSFORMER = (
    "Statistical steps, joint query-key weights and annealing together are above learned steps at two bits: 64.3 "
    "against 54.5 % for DeiT-T on ImageNet."
)

DIGITS = Claim(
    slug="ofq",
    experiment="digits",
    title="OFQ, a small vision transformer on handwritten digits at W2A2",
    statement="OFQ is within two points of learned steps (LSQ), and within seven of full precision.",
    metric="test accuracy",
    higher_is_better=True,
    expected=(Ordering("OFQ", "LSQ", -0.02), Ordering("OFQ", "full precision", -0.07)),
    paper=TRANSFORMER,
    claimed=(Ordering("OFQ", "LSQ"),),
)

CIFAR = Claim(
    slug="ofq",
    experiment="cifar",
    title="OFQ, a small vision transformer on CIFAR-10 at W2A2",
    statement="OFQ is above learned steps (LSQ).",
    metric="test accuracy",
    higher_is_better=True,
    expected=(Ordering("OFQ", "LSQ"),),
    paper=TRANSFORMER,
    claimed=(Ordering("OFQ", "LSQ"), Ordering("OFQ", "StatsQ")),
    scales=("cpu", "gpu"),
)


def run(scale: str = "cpu", seeds: Sequence[int] = tuple(range(40, 50))) -> list[ClaimResult]:
    """Run all experiments; a seed draws the regressions, or the split, the first weights and the order of samples."""
    return [*regressions(scale, seeds), _judged(DIGITS, _digits, scale, seeds[:6]), *cifar(scale, seeds[:6])]


def regressions(scale: str = "cpu", seeds: Sequence[int] = tuple(range(40, 50))) -> list[ClaimResult]:
    """Train weights on their levels from a noisy start; measure the last thousand of three thousand steps."""
    results = []
    for bits, claim in zip((2, 3, 4), ERRORS, strict=True):
        start = time.perf_counter()
        measured = {way: _regression(way, bits, seeds) for way in WAYS}
        seconds = time.perf_counter() - start
        roles: Mapping[str, Literal["method", "control"]] = {ANNEALED: "method", "StatsQ": "method"}
        note = "Oscillations per weight and step: " + ", ".join(
            f"{way} {torch.tensor(turns).mean():.3f}" for way, (turns, _) in measured.items()
        )
        for measure, what in ((0, OSCILLATION), (1, claim)):
            if what is OSCILLATION and bits != 2:
                continue
            arms = [
                Arm(way, "baseline" if "LSQ" in way else roles.get(way, "control"), values[measure])
                for way, values in measured.items()
            ]
            results.append(
                ClaimResult.judge(what, arms, scale=scale, seeds=seeds, seconds=seconds, notes=[f"{note}.", *NOTES])
            )
    return results


WAYS = (ANNEALED, "StatsQ", "StatsQ, all frozen", "StatsQ, a tenth of the learning rate", "LSQ")
NOTES = (
    "Annealing, freezing and the lower learning rate begin half way. All frozen is the end of all oscillation, without "
    "a choice of weights.",
)


def _regression(way: str, bits: int, seeds: Sequence[int]) -> tuple[list[float], list[float]]:
    """Oscillations and errors of each seed's 128 regressions of 32 features."""
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=draw) for draw in draws])

    target = normal(ROWS, FEATURES)
    latent = target + 0.3 * normal(ROWS, FEATURES)
    n = 2 ** (bits - 1)
    kind = StatsQ(bits)
    step = 2 * latent.abs().mean(2, keepdim=True) / (n - 1) ** 0.5
    direction = torch.zeros_like(latent)
    turns, errors, before = torch.zeros(len(seeds)), torch.zeros(len(seeds)), None
    for t in track(range(STEPS), f"{way}, {bits} bits", total=STEPS):
        x = normal(BATCH, FEATURES)
        covariance = 2 * x.mT @ x / BATCH
        rate = RATE / 10 if "tenth" in way and t >= STEPS // 2 else RATE
        rows = latent.flatten(0, 1)
        if way == "LSQ":
            with torch.enable_grad():
                weight = learned_steps(latent.requires_grad_(), step.requires_grad_(), -n, n - 1)
                gradient, slope = torch.autograd.grad(weight, (latent, step), ((weight - target) @ covariance).detach())
            latent, step, weight = latent.detach(), step.detach() - rate * slope, weight.detach()
            codes = Grid(bits).codes(latent, step.clamp_min(1e-5))
        else:
            weight, codes = (found.view_as(latent) for found in (kind(rows), kind.codes(rows)))
            gradient = (weight - target) @ covariance
        if t >= STEPS // 2 and way == "StatsQ, all frozen":
            gradient = torch.zeros_like(gradient)
        if t >= STEPS // 2 and way == ANNEALED:
            gradient = gradient * trainable(kind, rows, boundary=BOUNDARY).view_as(latent)
        if before is not None:
            change = (codes - before).sign()
            if t >= STEPS - 1000:
                turns += (change * direction < 0).float().mean((1, 2)) / 1000
                errors += (weight - target).square().mean((1, 2)) / 1000
            direction = torch.where(change == 0, direction, change)
        before, latent = codes, latent - rate * gradient
    return turns.tolist(), errors.tolist()


@dataclass(frozen=True)
class Size:
    """A vision transformer and its training.

    Attributes
    ----------
    image, patch, channels, hidden, blocks, heads : int
        Of the transformer.
    epochs : int
        In full precision.
    quantized, annealed : int
        Epochs with quantization, and of annealing at their end.
    batch : int
        Samples per step.
    learning_rate : float
        Of all training.
    """

    image: int
    patch: int
    channels: int
    hidden: int
    blocks: int
    heads: int
    epochs: int
    quantized: int
    annealed: int
    batch: int
    learning_rate: float


DIGITS_SIZE = Size(8, 2, 1, 32, 3, 4, 25, 10, 2, 64, 1e-3)
CIFAR_SIZES = {
    "cpu": Size(32, 8, 3, 64, 4, 4, 25, 10, 2, 100, 1e-3),
    "gpu": Size(32, 4, 3, 192, 12, 3, 100, 50, 5, 128, 1e-3),
}
CIFAR_COUNTS = {"cpu": (200, 200), "gpu": (5000, 1000)}


def cifar(scale: str = "cpu", seeds: Sequence[int] = tuple(range(40, 46))) -> list[ClaimResult]:
    """Quantize a transformer trained on CIFAR-10, where the images are there."""
    folder = user_data(_cifar.FOLDER, CIFAR.title)
    if folder is None:
        return []
    counts = CIFAR_COUNTS[scale]
    train, test = _cifar.images(folder, "train", counts[0]), _cifar.images(folder, "test", counts[1])
    (x, y), (x_test, y_test) = ((_cifar.scaled(pixels), labels) for pixels, labels in (train, test))
    experiment = partial(_every_way, CIFAR_SIZES[scale], (x, y), (x_test, y_test), _cifar.device_of(scale))
    return [_judged(CIFAR, experiment, scale, seeds)]


def _judged(claim: Claim, experiment: Any, scale: str, seeds: Sequence[int]) -> ClaimResult:
    start = time.perf_counter()
    found = each_seed(experiment, seeds, claim.title)
    turns = {name: found.pop(name) for name in [*found] if name.startswith("turns: ")}
    note = "Oscillations per weight and step in the last epoch: " + ", ".join(
        f"{name.removeprefix('turns: ')} {sum(values) / len(values):.1e}" for name, values in turns.items()
    )
    roles: Mapping[str, Literal["method", "baseline", "control"]] = {
        "OFQ": "method",
        "OFQ, all frozen at the end": "control",
        "full precision": "control",
        "StatsQ": "method",
    }
    arms = [Arm(name, roles.get(name, "baseline"), values) for name, values in found.items()]
    seconds = time.perf_counter() - start
    return ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=[f"{note}."])


def _digits(seed: int) -> dict[str, float]:
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = ((images - 0.3) / 0.37)[order], labels[order]
    return _every_way(DIGITS_SIZE, (x[:1437], y[:1437]), (x[1437:], y[1437:]), torch.device("cpu"), seed)


def _every_way(
    size: Size, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], device: torch.device, seed: int
) -> dict[str, float]:
    """Test accuracy in full precision and of each way of quantizing, and how much weights turned back."""
    torch.manual_seed(seed)
    data = TensorDataset(*train)
    options: dict[str, Any] = {"batch_size": size.batch, "learning_rate": size.learning_rate}
    options |= {"scheduler": "cosine", "final_learning_rate_ratio": 0.01, "warmup": 0.05, "weight_decay": 0.05}
    model = _transformer(size).to(device)
    fit(model, data, loss=_cross_entropy, epochs=size.epochs, seed=seed, **options)
    found = {"full precision": _accuracy(model, *test)}
    shorter: dict[str, Any] = {"epochs": size.quantized - size.annealed, "annealing_epochs": size.annealed}
    whole: dict[str, Any] = {"epochs": size.quantized, "annealing_epochs": 0}
    ways: dict[str, Any] = {
        "OFQ": partial(ofq, **shorter),
        "OFQ, all frozen at the end": partial(ofq, boundary=0.0, **shorter),
        "StatsQ": partial(ofq, joint_query_key=False, **whole),
        "LSQ": partial(lsq, epochs=size.quantized),
        "LSQ, iterative freezing": partial(lsq, epochs=size.quantized, freeze_above=0.02),
    }
    for name, way in ways.items():
        student = copy.deepcopy(model)
        result = way(student, data, generator=torch.Generator().manual_seed(seed), **options)
        found[name] = _accuracy(student, *test)
        found[f"turns: {name}"] = result.totals.get("annealed_oscillation", result.totals["oscillation"])
    return found


def _transformer(size: Size) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=size.image,
        patch_size=size.patch,
        num_channels=size.channels,
        hidden_size=size.hidden,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        intermediate_size=2 * size.hidden,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(*predict(model, batch))


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    device = next(model.parameters()).device
    right = [
        predict(model, (part.to(device), labels.to(device)))[0].argmax(1) == labels.to(device)
        for part, labels in zip(x.split(250), y.split(250), strict=True)
    ]
    return float(torch.cat(right).float().mean())
