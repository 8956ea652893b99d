"""Rich or lazy: the higher the rank of the initial recurrent weights, the less their tangent kernel turns.

A recurrent network learns a perceptual decision (two alternatives, forced choice) from initial weights that are one
draw, reduced to several ranks at the same norm. Beside them: a smaller and a larger gain, the usual control of
laziness; an orthogonal matrix; and rank 1 with the spectral norm kept, the control for the dynamics that a larger
singular value brings. Two-layer linear networks check the closed form.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from weightsmith.analyze import aligned_, expected_kernel_alignment, kernel_alignment, low_rank_, rich_lazy
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.training import fit

__all__ = [
    "ALIGNED",
    "CHANGE",
    "FEATURES",
    "KERNEL",
    "THEORY",
    "DecisionNetwork",
    "decisions",
    "linear",
    "perceptual_decisions",
    "recurrent",
    "run",
    "theory",
    "trained_alignment",
]

PAPER = (
    "On 2AF, DMS, CXT and sequential MNIST kernel and representation alignment rise, and the change of the weights "
    "falls, with the rank of the initial recurrent weights at equal norm."
)

KERNEL = Claim(
    slug="rich-lazy",
    experiment="kernel",
    title="Perceptual decisions: tangent kernel",
    statement=(
        "At equal Frobenius norm rank 1 turns its tangent kernel more than rank 10 and full rank do. The largest "
        "singular value has a part in it: rank 1 with the spectral norm kept turns its kernel less."
    ),
    metric="kernel alignment of the recurrent weights",
    higher_is_better=True,
    expected=(
        Ordering(better="full rank", worse="rank 1", margin=0.15),
        Ordering(better="rank 10", worse="rank 1"),
        Ordering(better="rank 1, spectral norm kept", worse="rank 1", margin=0.05),
    ),
    paper=PAPER,
    claimed=(Ordering(better="full rank", worse="rank 10"), Ordering(better="rank 10", worse="rank 1")),
    scales=("cpu", "gpu"),
)

FEATURES = Claim(
    slug="rich-lazy",
    experiment="features",
    title="Perceptual decisions: features",
    statement="At equal norm the features of rank 1 move farther than those of full rank.",
    metric="representation alignment of the last states",
    higher_is_better=True,
    expected=(Ordering(better="full rank", worse="rank 1"),),
    paper=PAPER,
    claimed=(Ordering(better="full rank", worse="rank 1"),),
    scales=("cpu", "gpu"),
)

CHANGE = Claim(
    slug="rich-lazy",
    experiment="change",
    title="Perceptual decisions: change of the weights",
    statement="At equal norm the weights of rank 1 move farther than those of full rank.",
    metric="Frobenius norm of the change of the recurrent weights",
    higher_is_better=False,
    expected=(Ordering(better="full rank", worse="rank 1"),),
    paper=PAPER,
    claimed=(Ordering(better="full rank", worse="rank 1"),),
    scales=("cpu", "gpu"),
)

THEORY = Claim(
    slug="rich-lazy",
    experiment="theory",
    title="Linear networks: closed form",
    statement=(
        "The closed form predicts the kernel alignment of two-layer linear networks trained from small weights; the "
        "rank alone, and the closed form of other ranks, do not."
    ),
    metric="mean absolute error of the kernel alignment, ranks 1 to 20",
    higher_is_better=False,
    expected=(
        Ordering(better="closed form", worse="closed form of other ranks", margin=0.1),
        Ordering(better="closed form", worse="rank over inputs", margin=0.05),
    ),
    paper="For whitened inputs and small initial weights the expected kernel alignment grows with the effective rank.",
    claimed=(Ordering(better="closed form", worse="closed form of other ranks"),),
)

ALIGNED = Claim(
    slug="rich-lazy",
    experiment="aligned",
    title="Linear networks: low rank, aligned to the task",
    statement="Rank 1 learns richly at random and lazily, beyond full rank, when both layers are aligned to the task.",
    metric="kernel alignment",
    higher_is_better=True,
    expected=(
        Ordering(better="rank 1, aligned", worse="full rank", margin=0.01),
        Ordering(better="rank 1, aligned", worse="rank 1, aligned without the readout", margin=0.3),
        Ordering(better="full rank", worse="rank 1", margin=0.5),
    ),
    paper="Low-rank initial weights that are aligned to the task are an exception: they learn lazily.",
    claimed=(Ordering(better="rank 1, aligned", worse="rank 1"),),
)

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"units": 100, "ranks": (1, 10), "steps": 2000, "probe": 64},
    "gpu": {"units": 300, "ranks": (1, 30, 100), "steps": 10000, "probe": 320},
}
GAIN, BATCH = 1.25, 32
RATE, RATES = 0.003, {"rank 1, spectral norm kept": 0.01}
"""The paper's learning rate, and that of the arm for which the pilot found a lower loss at the other, 0.01."""

STIMULUS, CHANNELS = 7, 3


class DecisionNetwork(nn.Module):
    """A recurrent network of rectified units without biases, with logits at each step; or several, stacked.

    Parameters
    ----------
    recurrent : Tensor of shape (units, units), or (networks, units, units)
        Initial recurrent weights; the other weights are drawn, the same for all networks.

    Examples
    --------
    >>> DecisionNetwork(torch.eye(5))(torch.zeros(2, 8, 3)).shape
    torch.Size([2, 8, 3])
    """

    def __init__(self, recurrent: Tensor) -> None:
        super().__init__()
        *networks, units, _ = recurrent.shape
        inward = nn.init.kaiming_uniform_(torch.empty(units, CHANNELS), a=5**0.5)  # the default of nn.Linear
        outward = nn.init.kaiming_uniform_(torch.empty(CHANNELS, units), a=5**0.5)
        self.inward = nn.Parameter(inward.repeat(*networks, 1, 1))
        self.recurrent = nn.Parameter(recurrent.clone())
        self.outward = nn.Parameter(outward.repeat(*networks, 1, 1))

    def forward(self, x_NTI: Tensor) -> Tensor:
        """Return the logits, ``(networks, samples, steps, classes)`` if there are several networks."""
        state = x_NTI.new_zeros(len(x_NTI), self.recurrent.shape[-1])
        logits = []
        for x_NI in x_NTI.unbind(1):
            state = (x_NI @ self.inward.mT + state @ self.recurrent.mT).relu()
            logits.append(state @ self.outward.mT)
        return torch.stack(logits, -2)

    def plain(self, number: int) -> nn.Module:
        """Return one of the stacked networks on torch's own recurrent layer."""
        units = self.recurrent.shape[-1]
        rnn = nn.RNN(CHANNELS, units, nonlinearity="relu", bias=False, batch_first=True)
        readout = nn.Linear(units, CHANNELS, bias=False)
        with torch.no_grad():
            rnn.get_parameter("weight_ih_l0").copy_(self.inward[number])
            rnn.get_parameter("weight_hh_l0").copy_(self.recurrent[number])
            readout.weight.copy_(self.outward[number])
        return nn.Sequential(OrderedDict(rnn=rnn, states=_States(), readout=readout)).to(self.recurrent.device)


class _States(nn.Module):
    """Takes the states of a recurrent layer's output."""

    def forward(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[0]


def perceptual_decisions(count: int, generator: torch.Generator) -> tuple[Float[Tensor, "n t i"], Tensor]:
    """Draw trials of a two-alternative forced choice: noisy evidence for seven steps, then the answer.

    Examples
    --------
    >>> x, y = perceptual_decisions(2, torch.Generator().manual_seed(0))
    >>> x.shape, y[:, :7].unique(), bool(((y[:, 7] == 1) | (y[:, 7] == 2)).all())
    (torch.Size([2, 8, 3]), tensor([0]), True)
    """
    answers = torch.randint(2, (count,), generator=generator)
    coherences = torch.tensor([0, 6.4, 12.8, 25.6, 51.2])[torch.randint(5, (count,), generator=generator)]
    signs = torch.stack([1.0 - 2 * answers, 2.0 * answers - 1], 1)  # cos of the angle between channel and answer
    noise = 0.1 * torch.randn(count, STIMULUS, 2, generator=generator)
    x = torch.zeros(count, STIMULUS + 1, CHANNELS)
    x[:, :STIMULUS, 0] = 1
    x[:, :STIMULUS, 1:] = (signs * coherences[:, None] / 200).unsqueeze(1) + 0.5 + noise
    y = torch.zeros(count, STIMULUS + 1, dtype=torch.long)
    y[:, STIMULUS] = 1 + answers
    return x, y


def run(scale: str = "cpu", seeds: Sequence[int] = range(200, 248)) -> list[ClaimResult]:
    """Train every arm; a seed draws the trials, the initial weights and the targets."""
    return [*recurrent(scale, seeds), *theory(scale, seeds)]


def recurrent(scale: str = "cpu", seeds: Sequence[int] = range(200, 248)) -> list[ClaimResult]:
    """Return the experiments on perceptual decisions, all measured on the same networks."""
    start = time.perf_counter()
    values = each_seed(partial(decisions, scale=scale), seeds, "perceptual decisions")
    losses = ", ".join(f"{name[6:]} {np.mean(v):.3f}" for name, v in values.items() if name.startswith("loss: "))
    note = (
        "The expectations were set on seeds 0 to 7, whose variance asked for 40 seeds and more. "
        f"Loss on new trials, mean over the seeds: {losses}."
    )
    return _judged((KERNEL, FEATURES, CHANGE), values, scale, seeds, time.perf_counter() - start, note)


def theory(scale: str = "cpu", seeds: Sequence[int] = range(200, 248)) -> list[ClaimResult]:
    """Return the experiments on two-layer linear networks."""
    start = time.perf_counter()
    values = each_seed(linear, seeds, "linear networks")
    return _judged((THEORY, ALIGNED), values, scale, seeds, time.perf_counter() - start, "Inputs 20, hidden units 50.")


def _judged(
    claims: Sequence[Claim],
    values: dict[str, list[float]],
    scale: str,
    seeds: Sequence[int],
    seconds: float,
    note: str,
) -> list[ClaimResult]:
    results = []
    for claim in claims:
        own = {
            key.split(": ")[1]: numbers for key, numbers in values.items() if key.startswith(f"{claim.experiment}: ")
        }
        arms = [Arm(name, _role(name), numbers) for name, numbers in own.items()]
        results.append(ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=(note,)))
    return results


def _role(name: str) -> Literal["method", "baseline", "control"]:
    if "kept" in name or "other" in name or "without" in name:
        return "control"
    return "method" if name in ("closed form", "rank 1, aligned") or name.startswith("rank 1") else "baseline"


def starts(scale: str, seed: int) -> dict[str, Float[Tensor, "units units"]]:
    """The initial recurrent weights of every arm, all made of one draw."""
    size = SIZES[scale]
    units, draw = size["units"], torch.Generator().manual_seed(seed)
    drawn = torch.randn(units, units, generator=draw) * GAIN / units**0.5
    return {f"rank {rank}": low_rank_(drawn.clone(), rank) for rank in size["ranks"]} | {
        "full rank": drawn,
        "orthogonal": nn.init.orthogonal_(torch.empty(units, units), generator=draw) * GAIN,
        "full rank, gain 0.5": drawn * 0.5 / GAIN,
        "full rank, gain 1.75": drawn * 1.75 / GAIN,
        "rank 1, spectral norm kept": low_rank_(drawn.clone(), 1, norm="spectral"),
    }


def decisions(seed: int, scale: str, rates: Sequence[float] | None = None) -> dict[str, float]:
    """Train all arms of a seed at once and measure each; those of one learning rate are stacked in one network."""
    size = SIZES[scale]
    arms, draw = starts(scale, seed), torch.Generator().manual_seed(seed + 1000)
    x, y = perceptual_decisions(BATCH * size["steps"], draw)
    trials = DataLoader(TensorDataset(x.unflatten(0, (-1, BATCH)), y.unflatten(0, (-1, BATCH))), batch_size=None)
    probe, _ = perceptual_decisions(size["probe"], draw)
    test = perceptual_decisions(2048, draw)
    found: dict[str, float] = {}
    for rate in rates or sorted({RATES.get(name, RATE) for name in arms}):
        names = [name for name in arms if rates or RATES.get(name, RATE) == rate]
        torch.manual_seed(seed)
        networks = DecisionNetwork(torch.stack([arms[name] for name in names]))
        before = deepcopy(networks)
        optimizer = torch.optim.SGD(networks.parameters(), lr=rate, momentum=0.9)
        fit(networks, trials, loss=_loss, optimizer=optimizer, epochs=1, scheduler="constant")
        with torch.no_grad():
            losses = _losses(networks, test).tolist()
        for number, name in enumerate(names):
            result = rich_lazy(
                before.plain(number), networks.plain(number), [*probe.split(32)], include="rnn.weight_hh_l0"
            )
            row = result.layers[0]
            measures = {
                "kernel": row["kernel_alignment"],
                "features": row["representation_alignment"],
                "change": row["weight_change"],
                "loss": losses[number],
            }
            suffix = f" @{rate:g}" if rates else ""
            found |= {f"{measure}: {name}{suffix}": value for measure, value in measures.items()}
    return found


def _losses(networks: nn.Module, batch: Any) -> Float[Tensor, " networks"]:
    x, y = batch
    logits = networks(x.to(next(networks.parameters())))
    each = functional.cross_entropy(
        logits.flatten(0, -2), y.to(logits.device).expand(logits.shape[:-1]).flatten(), reduction="none"
    )
    return each.unflatten(0, logits.shape[:-1]).mean((1, 2))


def _loss(networks: nn.Module, batch: Any) -> Tensor:
    return _losses(networks, batch).sum()  # each network has its own parameters, so none sees the others


INPUTS, HIDDEN, TARGET_RANKS = 20, 50, (1, 2, 5, 10, 20)


def linear(seed: int) -> dict[str, float]:
    """Train two-layer linear networks on whitened inputs: how well the closed form tells the kernel alignment."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randn(INPUTS, generator=draw, dtype=torch.float64)
    target /= target.norm()
    drawn = torch.randn(HIDDEN, INPUTS, generator=draw, dtype=torch.float64)
    flat = {rank: low_rank_(drawn.clone(), rank, spectrum=[1.0] * rank) for rank in TARGET_RANKS}
    flat = {rank: weight / torch.linalg.matrix_norm(weight, 2) for rank, weight in flat.items()}
    none = torch.zeros(HIDDEN, dtype=torch.float64)
    told = {rank: expected_kernel_alignment(weight, target=target) for rank, weight in flat.items()}
    small = {rank: trained_alignment(1e-3 * weight, none, target) for rank, weight in flat.items()}
    large = {rank: trained_alignment(weight, none, target) for rank, weight in flat.items()}

    def error(measured: dict[int, float], guesses: Sequence[float]) -> float:
        return float(np.mean([abs(value - guess) for value, guess in zip(measured.values(), guesses, strict=True)]))

    first = torch.zeros(HIDDEN, dtype=torch.float64)
    first[0] = 1e-3
    aligned = aligned_(drawn.clone(), target, scale=1e-3)
    return {
        "theory: closed form": error(small, [*told.values()]),
        "theory: closed form, initial weights of norm 1": error(large, [*told.values()]),
        "theory: rank over inputs": error(small, [rank / INPUTS for rank in TARGET_RANKS]),
        "theory: closed form of other ranks": error(small, [*told.values()][::-1]),
        "aligned: rank 1, aligned": trained_alignment(aligned, first, target),
        "aligned: rank 1, aligned without the readout": trained_alignment(aligned, none, target),
        "aligned: rank 1": small[1],
        "aligned: full rank": small[INPUTS],
    }


def trained_alignment(w1_HI: Float[Tensor, "h i"], w2_H: Float[Tensor, " h"], target_I: Float[Tensor, " i"]) -> float:
    """The alignment of the tangent kernels of both layers before and after training to a residual of 1e-6."""
    kernels = []
    for steps in (0, 100_000):
        for _ in range(steps):
            residual_I = target_I - w2_H @ w1_HI
            w1_HI, w2_H = w1_HI + 0.02 * torch.outer(w2_H, residual_I), w2_H + 0.02 * w1_HI @ residual_I
            if residual_I.norm() < 1e-6:
                break
        kernels.append(w1_HI.T @ w1_HI + w2_H.square().sum() * torch.eye(INPUTS, dtype=torch.float64))
    return kernel_alignment(kernels[0], kernels[1])
