"""Meta-train :class:`HistoryNet` as the paper does: predict the next weight of recorded forgetting trajectories.

Small convolutional, residual, densely connected and attention networks are trained on scikit-learn's digits (random
groups of classes) and on generated image sets, and fine-tuned in seven sessions on ever smaller nested subsets.
Five consecutive values of a weight predict the one of the next larger training set.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tools.know.images import CLAIM_GROUPS, glyphs, textures
from tools.know.nets import NETS
from weightsmith.core.io import TensorSpec
from weightsmith.core.progress import track
from weightsmith.predict._know.network import STAGES, HistoryNet
from weightsmith.predict._know.routing import Kind, route
from weightsmith.predict._know.trajectory import ForgettingTrajectory

__all__ = ["fit_predictors", "forgotten_weights", "record_rows"]

_log = logging.getLogger("weightsmith")

SESSIONS = STAGES + 2
IMAGES, ROWS = 8000, 12000
SMALLEST = 8
"""Images of the last session at least."""
BATCH, LR, EPOCHS, PATIENCE = 8192, 1e-3, 40, 5

Rows = dict[Kind, Float[Tensor, "rows 6"]]


def record_rows(runs: int, seed: int) -> list[Rows]:
    """Record ``runs`` trajectories and cut them into rows of five values and their target.

    Parameters
    ----------
    runs : int
        Networks; kinds of network, data, rate, learning rate and batch size are drawn for each.
    seed : int
        Of everything random.

    Returns
    -------
    list of dict
        For each run: kind of weight to rows ``[rows, 6]``.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_one_run(number, generator) for number in track(range(runs), "recording trajectories")]


def fit_predictors(runs: Sequence[Rows], *, seed: int, epochs: int = EPOCHS) -> dict[Kind, HistoryNet]:
    """Fit one network on all kinds of weights, then its head and exponents on each kind.

    The authors' bias predictor shares all but these layers with their convolution predictor.

    Parameters
    ----------
    runs : sequence of rows
        The last tenth of the runs is held out for early stopping.
    seed : int
    epochs : int, default: 40
        At most so many.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = max(1, len(runs) // 10)
    kinds: tuple[Kind, ...] = ("conv", "fc", "bias")

    def rows(part: Sequence[Rows], chosen: Sequence[Kind]) -> Tensor:
        return torch.cat([run[kind] for run in part for kind in chosen if kind in run])

    base = HistoryNet(generator)
    _fit(base, rows(runs[:-held_out], kinds), rows(runs[-held_out:], kinds), list(base.parameters()), generator, epochs)
    predictors = {}
    for kind in kinds:
        net = copy.deepcopy(base)
        tuned = [p for name, p in net.named_parameters() if name.startswith("head") or ".exp." in name]
        _fit(net, rows(runs[:-held_out], [kind]), rows(runs[-held_out:], [kind]), tuned, generator, epochs // 4)
        predictors[kind] = net
    return predictors


def forgotten_weights(snapshots: Sequence[Mapping[str, Tensor]], generator: torch.Generator, limit: int = ROWS) -> Rows:
    """Cut a trajectory (smallest training set first) into windows of five values and the next larger set's value.

    Examples
    --------
    >>> snapshots = [{"weight": torch.full((1, 1), float(s))} for s in range(7)]
    >>> forgotten_weights(snapshots, torch.Generator())["fc"].tolist()
    [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    """
    kinds = route({name: TensorSpec.of(tensor) for name, tensor in snapshots[-1].items()})
    parts: dict[Kind, list[Tensor]] = {}
    for name, kind in kinds.items():
        series = torch.stack([snapshot[name].flatten() for snapshot in snapshots], dim=1)
        parts.setdefault(kind, []).append(series.unfold(1, STAGES + 1, 1).flatten(0, 1))
    rows = {kind: torch.cat(tensors) for kind, tensors in parts.items()}
    return {
        kind: table[torch.randperm(len(table), generator=generator)[:limit]] if len(table) > limit else table
        for kind, table in rows.items()
    }


def _one_run(number: int, generator: torch.Generator) -> Rows:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    x, y = _images(number, generator)
    # The paper's rate starts at 0.3, with 50,000 images.
    rate = uniform(max(0.3, (SMALLEST / len(x)) ** (1 / (SESSIONS - 1))), 0.9)
    lr = uniform(1e-5, 4e-3)
    batch = int(uniform(SMALLEST, max(SMALLEST + 1, len(x) * rate ** (SESSIONS - 1))))
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = NETS[number % len(NETS)](int(y.max()) + 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)

        def one_epoch(net: nn.Module, subset: torch.utils.data.Subset[object]) -> None:
            _train(net, x[subset.indices], y[subset.indices], optimizer, batch)

        # As in the paper's demo, the first session is an epoch like the others, from random weights.
        _train(model, x, y, optimizer, batch)
        recorder = ForgettingTrajectory(model, one_epoch, TensorDataset(x, y), ratio=rate, stages=SESSIONS, seed=number)
        return forgotten_weights(recorder.collect(), generator)


def _images(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    source = number // len(NETS) % 3
    if source == 0:
        images = glyphs(1, 10, IMAGES // 10, generator=generator)[0]
        return images.flatten(0, 1), torch.arange(10).repeat_interleave(IMAGES // 10)
    if source == 1:
        return textures(10, IMAGES // 10, generator=generator)
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    while True:
        classes = torch.randperm(10, generator=generator)[: int(torch.randint(4, 9, (), generator=generator))]
        if set(classes.tolist()) not in CLAIM_GROUPS:
            break
    chosen = torch.isin(y, classes)
    return x[chosen], torch.searchsorted(classes.sort().values, y[chosen])


def _train(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, batch: int) -> None:
    """One epoch."""
    model.train()
    # A last batch of one image has no variance for batch normalization.
    for index in (part for part in torch.randperm(len(x)).split(batch) if len(part) > 1):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()


def _fit(
    net: HistoryNet,
    rows: Tensor,
    held_out: Tensor,
    parameters: Sequence[nn.Parameter],
    generator: torch.Generator,
    epochs: int,
) -> None:
    """Mean absolute error, with the authors' L1 penalties on the first and last layer of each stream."""
    optimizer = torch.optim.Adam(parameters, lr=LR)
    edges = [layer for stream in (net.value, net.delta) for layer in (stream.inp, stream.out)]
    best, best_state, waited = _error(net, held_out), copy.deepcopy(net.state_dict()), 0
    naive = float((held_out[:, -1] - held_out[:, -2]).abs().mean())
    for epoch in range(epochs):
        for index in torch.randperm(len(rows), generator=generator).split(BATCH):
            history, target = rows[index].split([STAGES, 1], dim=1)
            loss = (history[:, -1] + net(history) - target.squeeze(1)).abs().mean()
            penalty = sum(1e-6 * e.weight.abs().sum() + 0.1 * e.bias.abs().sum() for e in edges)
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
        error = _error(net, held_out)
        _log.info("epoch %d: held-out error %.3e (last value: %.3e)", epoch, error, naive)
        waited += 1
        if error < best:
            best, best_state, waited = error, copy.deepcopy(net.state_dict()), 0
        if waited > PATIENCE:
            break
    net.load_state_dict(best_state)


@torch.no_grad()
def _error(net: HistoryNet, rows: Tensor) -> float:
    total = sum(float((part[:, -2] + net(part[:, :-1]) - part[:, -1]).abs().sum()) for part in rows.split(BATCH))
    return total / len(rows)
