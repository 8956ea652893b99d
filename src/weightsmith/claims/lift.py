"""Does it matter that the trained weights are the principal ones?

Two experiments: the paper's two-layer network, which overwrites an old function from 100 samples, and a byte-level
language model that moves from documentation to source code.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.adapt import LIFTAdamW, lift_groups
from weightsmith.claims.byte_lm import BATCH, byte_text, nll, pretrained, windows
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.linalg import project, singular_basis
from weightsmith.core.selection import largest_k
from weightsmith.core.training import fit

__all__ = ["FORGETTING", "TARGET", "TOY", "Selection", "finetune_toy", "pretrain_toy", "run", "toy_optimizers"]

TOY = Claim(
    slug="lift",
    experiment="toy",
    title="LIFT on the paper's two-layer network",
    statement=(
        "From 100 samples of a new target, the principal 5 % of the weights reach at most half the validation error "
        "of the largest 5 %, and those at most half of that of all weights. Random weights have at least four times "
        "the error of the principal ones."
    ),
    metric="log validation mean square error",
    higher_is_better=False,
    expected=(
        Ordering(better="lift", worse="magnitude", margin=math.log(2)),
        Ordering(better="magnitude", worse="all weights", margin=math.log(2)),
        Ordering(better="lift", worse="random", margin=math.log(4)),
    ),
    paper="Fine-tuning the principal weights generalizes from few samples, other choices of as many weights do not.",
    claimed=(
        Ordering(better="lift", worse="all weights"),
        Ordering(better="lift", worse="magnitude"),
        Ordering(better="lift", worse="random"),
        Ordering(better="lift", worse="gradient"),
    ),
)

TARGET = Claim(
    slug="lift",
    experiment="target",
    title="LIFT on a byte-level language model: the new text",
    statement=(
        "On 20 kB of source code it makes no difference which 5 % of the weights are trained: principal and random "
        "ones tie within 0.02 nats. All weights, taken half of the way, are better."
    ),
    metric="nats per byte on source held out",
    higher_is_better=False,
    expected=(
        Ordering(better="lift", worse="random", margin=-0.02),
        Ordering(better="random", worse="lift", margin=-0.02),
        Ordering(better="all weights, halfway", worse="lift"),
    ),
    paper="On models of 1 to 8 billion weights LIFT beats full fine-tuning, LoRA and other choices of sparse weights.",
    claimed=(
        Ordering(better="lift", worse="all weights"),
        Ordering(better="lift", worse="magnitude"),
        Ordering(better="lift", worse="random"),
    ),
)

FORGETTING = Claim(
    slug="lift",
    experiment="forgetting",
    title="LIFT on a byte-level language model: the old text",
    statement=(
        "Sparse fine-tuning forgets less of the documentation than that of all weights, through random weights no more "
        "than 0.02 nats beyond the principal ones; all weights, taken half of the way, forget less still."
    ),
    metric="nats per byte on documentation held out",
    higher_is_better=False,
    expected=(
        Ordering(better="lift", worse="all weights"),
        Ordering(better="random", worse="lift", margin=-0.02),
        Ordering(better="all weights, halfway", worse="lift"),
    ),
    paper="LIFT keeps up to 20 % more of the source domains' accuracy than full fine-tuning and LoRA.",
    claimed=(Ordering(better="lift", worse="all weights"),),
)

Score = Callable[[Tensor, Tensor, int, torch.Generator | None], Tensor]

DENSITY = 0.05
TOY_NOTES = (
    "Predicting zero is better than every arm: the experiment shows how well the old function is overwritten from few "
    "samples, not that the new one is learned.",
)
LANGUAGE_NOTES = (
    "On seeds 100 to 104 all held but one: on the old text the principal weights were .058 +- .066 nats better than "
    "all weights. From that variance sixteen other seeds are used here, with the same declaration.",
)

SOURCE_BYTES, STEPS, EVALUATION_BYTES = 20_000, 200, 20_000
SPARSE_RATE, DENSE_RATE = 3e-3, 1e-3
"""The best of {3e-3, 1e-2, 3e-2} and of {3e-4, 1e-3, 3e-3}, on a seed that is not among those judged."""


class Selection(LIFTAdamW):
    """LIFT's optimizer with another criterion.

    Parameters
    ----------
    params : iterable
        As for :class:`~weightsmith.adapt.LIFTAdamW`.
    score : callable
        From a weight matrix, its gradient, the rank and a generator to scores; the largest magnitudes are trained.
    generator : torch.Generator
        For the score.
    **hyper
        As for the optimizer.
    """

    def __init__(self, params: Any, score: Score, generator: torch.Generator, **hyper: Any) -> None:
        self.score = score
        super().__init__(params, generator=generator, **hyper)

    def select(self, parameter: Tensor, group: Mapping[str, Any]) -> Int[Tensor, "K"]:
        """Choose the weights of the largest scores."""
        assert parameter.grad is not None
        score = self.score(parameter.detach(), parameter.grad, group["approx_rank"], self.generator)
        return largest_k(score, round(group["density"] * parameter.numel()))


CHOICES: dict[str, Score] = {
    "magnitude": lambda weight, gradient, rank, generator: weight,
    "random": lambda weight, gradient, rank, generator: torch.rand(weight.shape, generator=generator),
    "gradient": lambda weight, gradient, rank, generator: gradient,
    "least principal": lambda weight, gradient, rank, generator: (
        1 / project(weight, singular_basis(weight, rank)).abs().clamp(min=1e-30)
    ),
}


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Run both experiments; a seed draws network, data and order."""
    return [toy(scale, seeds or range(100, 105)), *language(scale, seeds or range(105, 121))]


def toy(scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Fine-tune two-layer networks."""
    start = time.perf_counter()
    values = each_seed(_toy_errors, seeds, "two-layer network")
    seconds = time.perf_counter() - start
    return ClaimResult.judge(TOY, _arms(values), scale=scale, seeds=seeds, seconds=seconds, notes=TOY_NOTES)


def language(scale: str, seeds: Sequence[int]) -> list[ClaimResult]:
    """Fine-tune byte-level language models."""
    start = time.perf_counter()
    values = each_seed(_byte_losses, seeds, "byte-level language model")
    seconds = time.perf_counter() - start
    results = []
    for claim in (TARGET, FORGETTING):
        own = {name: numbers for (kind, _, name), numbers in _split(values).items() if kind == claim.experiment}
        results.append(
            ClaimResult.judge(claim, _arms(own), scale=scale, seeds=seeds, seconds=seconds, notes=LANGUAGE_NOTES)
        )
    return results


def _split(values: Mapping[str, list[float]]) -> dict[tuple[str, str, str], list[float]]:
    """Values named ``experiment: arm`` by experiment and arm."""
    return {tuple(name.partition(": ")): numbers for name, numbers in values.items()}  # type: ignore[misc]


def _arms(values: dict[str, list[float]]) -> list[Arm]:
    roles = {"lift": "method", "all weights": "baseline", "magnitude": "baseline"}
    return [Arm(name, roles.get(name, "control"), numbers) for name, numbers in values.items()]  # type: ignore[arg-type]


class _TwoLayers(nn.Module):
    """relu(x W) a, with W of 512 inputs and 128 units."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(512, 128, bias=False)
        self.out = nn.Parameter(torch.randn(128, generator=generator) / 128**0.5)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.randn(128, 512, generator=generator) / 512**0.5)

    def forward(self, x: Float[Tensor, "samples 512"]) -> Float[Tensor, "samples"]:
        return self.hidden(x).relu() @ self.out


def _old(x: Tensor) -> Tensor:
    return x[:, :32].sum(1) + 0.1 * x[:, 32:64].sin().sum(1)


def _new(x: Tensor) -> Tensor:
    # the paper prints slices x[:64] whose shapes disagree; single inputs are what it can mean
    return 0.2 * x[:, 64] * x[:, 65] * x[:, 66] + 0.1 * (x[:, 67] * x[:, 68]).sin()


def _error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - y).square().mean())


def _squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def finetune_toy(
    pretrained: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], seed: int, steps: int = 500
) -> list[float]:
    """Fine-tune a copy on 100 samples of the new target; return the validation errors after every 25 steps."""
    model = copy.deepcopy(pretrained)
    generator = torch.Generator().manual_seed(1000 + seed)
    x, held_out = torch.randn(100, 512, generator=generator), torch.randn(1000, 512, generator=generator)
    target, wanted = _new(x), _new(held_out)
    optimizer = make(model)
    errors = [_error(model, held_out, wanted)]
    for step in range(1, steps + 1):
        _squared(model, (x, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            errors.append(_error(model, held_out, wanted))
    return errors


def pretrain_toy(seed: int) -> nn.Module:
    """Train the network on 5000 samples of the old target; the best of 60 epochs on 1000 held out."""
    generator = torch.Generator().manual_seed(seed)
    model = _TwoLayers(generator)
    x, held_out = torch.randn(5000, 512, generator=generator), torch.randn(1000, 512, generator=generator)
    data = torch.utils.data.TensorDataset(x, _old(x))
    fit(
        model,
        data,
        loss=_squared,
        optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01),
        epochs=60,
        batch_size=250,
        evaluate=lambda model: _error(model, held_out, _old(held_out)),
        higher_is_better=False,
        patience=60,
        seed=seed,
    )
    return model


def toy_optimizers(
    seed: int, *, learning_rate: float = 1e-3, rank: int = 8
) -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    """The ways to fine-tune the first layer of the network."""

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return lift_groups(model, DENSITY, rank)

    def chosen(score: Score) -> Callable[[nn.Module], torch.optim.Optimizer]:
        generator = torch.Generator().manual_seed(seed)
        return lambda model: Selection(groups(model), score, generator, lr=learning_rate, update_interval=100)

    return {
        "lift": lambda model: LIFTAdamW(groups(model), lr=learning_rate, update_interval=100),
        "all weights": lambda model: LIFTAdamW(lift_groups(model, 1.0), lr=learning_rate),
        **{name: chosen(score) for name, score in CHOICES.items()},
    }


def _toy_errors(seed: int) -> dict[str, float]:
    pretrained = pretrain_toy(seed)
    runs = {name: finetune_toy(pretrained, make, seed) for name, make in toy_optimizers(seed).items()}
    errors = {name: errors[-1] for name, errors in runs.items()}
    errors["not fine-tuned"] = runs["lift"][0]
    held_out = torch.randn(1000, 512, generator=torch.Generator().manual_seed(seed))
    errors["predicting zero"] = float(_new(held_out).square().mean())
    return {name: math.log(error) for name, error in errors.items()}


def _byte_losses(seed: int) -> dict[str, float]:
    base = pretrained(seed)
    source, documentation = byte_text("source"), byte_text("documentation held out")[:EVALUATION_BYTES]
    start = int(torch.randint(len(source) - SOURCE_BYTES, (), generator=torch.Generator().manual_seed(seed)))
    samples = windows(source[start : start + SOURCE_BYTES], STEPS, seed)
    held_out = byte_text("source held out")[-EVALUATION_BYTES:]

    def tuned(make: Callable[[nn.Module], torch.optim.Optimizer]) -> nn.Module:
        model = copy.deepcopy(base)
        fit(model, samples, optimizer=make(model), scheduler="linear", warmup=0.03, batch_size=BATCH, seed=seed)
        return model

    def sparse(score: Score | None) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        hyper: dict[str, Any] = {"lr": SPARSE_RATE, "update_interval": 50}
        if score is None:
            return tuned(lambda model: LIFTAdamW(lift_groups(model, DENSITY, 8), **hyper))
        return tuned(lambda model: Selection(lift_groups(model, DENSITY, 8), score, generator, **hyper))

    models = {
        "lift": sparse(None),
        "all weights": tuned(lambda model: LIFTAdamW(lift_groups(model, 1.0), lr=DENSE_RATE)),
        "magnitude": sparse(CHOICES["magnitude"]),
        "random": sparse(CHOICES["random"]),
    }
    models["lift, halfway"] = _halfway(base, models["lift"])
    models["all weights, halfway"] = _halfway(base, models["all weights"])
    models["not fine-tuned"] = base
    texts = {"target": held_out, "forgetting": documentation}
    return {f"{kind}: {name}": nll(model, ids) for kind, ids in texts.items() for name, model in models.items()}


def _halfway(base: nn.Module, tuned: nn.Module) -> nn.Module:
    """The model in the middle of base and fine-tuned one: the cheap way to forget less."""
    middle = copy.deepcopy(base)
    with torch.no_grad():
        for parameter, other in zip(middle.parameters(), tuned.parameters(), strict=True):
            parameter.lerp_(other, 0.5)
    return middle
