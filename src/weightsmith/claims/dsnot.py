"""DSnoT: swapping removed and kept weights repairs a bad mask and slightly improves a good one.

Two experiments: the output of one wide layer, and the perplexity of SmolLM2-135M pruned to 50 %.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from weightsmith.claims.harness import Claim, ClaimResult, Ordering, measured
from weightsmith.core.data import Batches, token_ids, token_windows
from weightsmith.core.metrics import perplexity
from weightsmith.core.models import Layer
from weightsmith.core.results import record
from weightsmith.core.statistics import InputStatistics
from weightsmith.embedded import load, text
from weightsmith.sparsify import dsnot, magnitude, refine_mask, sparsegpt, wanda
from weightsmith.sparsify._shared.pruning import Pattern, prune_layers, remove, wanda_score

__all__ = ["LAYER", "PERPLEXITY", "authors_mask", "run"]

LAYER = Claim(
    slug="dsnot",
    experiment="layer",
    title="DSnoT on one layer of 256 x 2048 at 70 %",
    statement="The improve rule takes 7 % or more off the output error of Wanda's mask; random swaps add to it.",
    metric="output mean square error over that of Wanda's mask",
    higher_is_better=False,
    expected=(
        Ordering(better="dsnot", worse="wanda", margin=0.07),
        Ordering(better="dsnot", worse="dsnot, reference rule"),
        Ordering(better="wanda", worse="random swaps"),
    ),
    paper="Swaps that shrink the expected output error improve a pruning mask.",
    claimed=(Ordering(better="dsnot", worse="wanda"),),
)

PERPLEXITY = Claim(
    slug="dsnot",
    experiment="perplexity",
    title="DSnoT on SmolLM2-135M at 50 %",
    statement=(
        "From a magnitude mask the swaps at least halve the perplexity, from Wanda's mask they lower it a little; "
        "SparseGPT, which also moves the remaining weights, is better than both."
    ),
    metric="log perplexity",
    higher_is_better=False,
    expected=(
        Ordering(better="magnitude + dsnot", worse="magnitude", margin=math.log(2)),
        Ordering(better="wanda + dsnot", worse="wanda"),
        Ordering(better="sparsegpt", worse="wanda + dsnot"),
    ),
    paper="DSnoT improves Wanda and SparseGPT masks on models with rows of 4096 weights and more, at 60 % and above.",
    claimed=(Ordering(better="wanda + dsnot", worse="wanda"),),
)

NOTES = (
    "First declared as a tie after Wanda, within 10 %: on seeds 0, 1, 2 that failed, the swaps lowered the perplexity "
    "by 6 %. The declaration was changed once, and is judged on seeds that were not used to make it.",
)

CALIBRATION_WINDOWS, CALIBRATION_LENGTH = 16, 256
EVALUATION_TOKENS = 1024


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Run both experiments; a seed draws the layer, or the calibration windows."""
    return [
        measured(LAYER, _layer_errors, _role, scale=scale, seeds=seeds or range(3)),
        measured(PERPLEXITY, _Perplexities(), _role, scale=scale, seeds=seeds or range(3, 6), notes=NOTES),
    ]


def _role(name: str) -> str:
    if name == "random swaps" or "attention only" in name:
        return "control"
    return "method" if "dsnot" in name else "baseline"


def _layer_errors(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    weight = 0.05 * torch.randn(256, 2048, generator=generator)
    x = torch.randn(1000, 2048, generator=generator) * 2 * torch.rand(2048, generator=generator)
    x += 0.3 * torch.randn(2048, generator=generator)
    statistics = InputStatistics(Layer("layer", nn.Linear(2048, 256)))
    statistics.update(x.unsqueeze(0))
    start = Pattern.parse(0.7).mask(wanda_score(weight, statistics))
    masks = {"wanda": start}
    refined = refine_mask(weight, start, statistics)
    masks["dsnot"] = refined.pruned_OI
    masks["dsnot, same-sign rule"] = authors_mask(weight, start, statistics, same_sign=True)
    masks["dsnot, reference rule"] = authors_mask(weight, start, statistics)
    masks["random swaps"] = _random_swaps(start, refined.swaps_O, generator)
    error = {name: (x @ (weight * mask).T).square().mean().item() for name, mask in masks.items()}
    return {name: value / error["wanda"] for name, value in error.items()}


def authors_mask(
    weight_OI: Tensor,
    pruned_OI: Tensor,
    statistics: InputStatistics,
    *,
    same_sign: bool = False,
    cycles: int = 50,
    tolerance: float = 0.1,
) -> Tensor:
    """Refine an unstructured mask (True is removed) with the loop and the stopping rule of the authors' code.

    Sorted candidates, one step of all rows per cycle; a swap is made even if it raises the error, and exhausted
    candidates are not noticed.

    Parameters
    ----------
    weight_OI, pruned_OI : Tensor of shape (out, in)
        The dense weight, and the starting mask.
    statistics : InputStatistics
        Of the layer's inputs.
    same_sign : bool, default: False
        Stop a row before its error changes sign, as the authors' code does for N:M masks.
    cycles : int, default: 50
        Maximum number of swaps per row.
    tolerance : float, default: 0.1
        A row is finished when its expected error is at most this.

    Examples
    --------
    >>> statistics = InputStatistics(Layer("fc", nn.Linear(4, 1)))
    >>> statistics.update(torch.tensor([[[1.0, 1.0, 1.0, 2.0], [3.0, 1.5, 2.0, 4.0]]]))
    >>> weight = torch.tensor([[1.0, -0.4, 0.5, 0.2]])
    >>> authors_mask(weight, torch.tensor([[False, False, True, True]]), statistics, cycles=1)
    tensor([[False,  True, False,  True]])
    """
    pruned_OI = pruned_OI.clone()
    contribution_OI = weight_OI * statistics.sum_I
    error_O1 = (contribution_OI * pruned_OI).sum(1, keepdim=True)
    before_O1 = error_O1

    score_OI = (contribution_OI / statistics.variance_I).masked_fill(~pruned_OI, 0.0)
    grow_order_OI = score_OI.sort(dim=1, stable=True).indices
    grow_value_OI = contribution_OI.double().gather(1, grow_order_OI)
    cost_OI = wanda_score(weight_OI, statistics).masked_fill(pruned_OI, torch.inf)
    drop_orders, drop_values = [], []
    for wrong_sign_OI in (contribution_OI >= 0, contribution_OI <= 0):
        order_OI = cost_OI.masked_fill(wrong_sign_OI, torch.inf).sort(dim=1, stable=True).indices
        drop_orders.append(order_OI)
        drop_values.append(contribution_OI.double().gather(1, order_OI))

    rows, columns = weight_OI.shape
    low_O1, high_O1 = torch.zeros(rows, 1, dtype=torch.long), torch.full((rows, 1), columns - 1)
    pointers = [torch.zeros(rows, 1, dtype=torch.long), torch.zeros(rows, 1, dtype=torch.long)]
    active_O1 = torch.ones(rows, 1, dtype=torch.bool)
    for _ in range(cycles):
        active_O1 &= error_O1.abs() > tolerance
        if not active_O1.any():
            break
        positive_O1 = error_O1 > 0
        grow_at_O1 = torch.where(positive_O1, high_O1, low_O1)
        grown_O1, grown_value_O1 = grow_order_OI.gather(1, grow_at_O1), grow_value_OI.gather(1, grow_at_O1)
        dropped_O1, dropped_value_O1 = (
            torch.where(positive_O1, sides[0].gather(1, pointers[0]), sides[1].gather(1, pointers[1]))
            for sides in (drop_orders, drop_values)
        )
        new_O1 = error_O1 - (grown_value_O1 - dropped_value_O1).float()
        if same_sign:
            active_O1 &= new_O1.sign() == before_O1.sign()
        pruned_OI.scatter_(1, grown_O1, torch.where(active_O1, False, pruned_OI.gather(1, grown_O1)))
        pruned_OI.scatter_(1, dropped_O1, torch.where(active_O1, True, pruned_OI.gather(1, dropped_O1)))
        error_O1 = torch.where(active_O1, new_O1, error_O1)
        high_O1 -= (active_O1 & positive_O1).long()
        low_O1 += (active_O1 & ~positive_O1).long()
        pointers[0] += (active_O1 & positive_O1).long()
        pointers[1] += (active_O1 & ~positive_O1).long()
    return pruned_OI


def _prune_with_authors_rule(model: nn.Module, windows: Batches) -> None:
    pattern = Pattern.parse(0.5)

    def prune(layer: Layer, statistics: InputStatistics) -> dict[str, float]:
        weight_OI = layer.weight_OI.float()
        return remove(layer, authors_mask(weight_OI, pattern.mask(weight_OI.abs()), statistics))

    with record("dsnot, reference rule") as result:
        prune_layers(result, model, windows, "*", (), pattern, InputStatistics, prune)


def _random_swaps(pruned_OI: Tensor, swaps_O: Tensor, generator: torch.Generator) -> Tensor:
    """Swap as many weights per row as DSnoT did, drawn at random."""
    swapped_OI = pruned_OI.clone()
    for swapped, pruned, swaps in zip(swapped_OI, pruned_OI, swaps_O.tolist(), strict=True):
        for places, value in ((pruned.nonzero(), False), ((~pruned).nonzero(), True)):
            drawn = torch.randperm(len(places), generator=generator)[:swaps]
            swapped[places[drawn, 0]] = value
    return swapped_OI


class _Perplexities:
    """Prune fresh copies of the model with each method, calibrated on the windows that a seed draws."""

    def __init__(self) -> None:
        self.model, tokenizer = load("smollm2")
        self.calibration = token_ids(tokenizer, text("calibration"))
        self.evaluation = token_ids(tokenizer, text("evaluation"))[:EVALUATION_TOKENS]

    def __call__(self, seed: int) -> dict[str, float]:
        windows = token_windows(
            self.calibration,
            length=CALIBRATION_LENGTH,
            count=CALIBRATION_WINDOWS,
            batch_size=4,
            generator=torch.Generator().manual_seed(seed),
        )
        return {name: self._log_perplexity(prune, windows) for name, prune in _WAYS.items()}

    def _log_perplexity(self, prune: Callable[[nn.Module, Batches], object], windows: Batches) -> float:
        model = copy.deepcopy(self.model)
        prune(model, windows)
        return math.log(perplexity(model, self.evaluation))


_WAYS: dict[str, Callable[[nn.Module, Batches], object]] = {
    "dense": lambda model, windows: None,
    "magnitude": lambda model, windows: magnitude(model),
    "magnitude + dsnot": lambda model, windows: dsnot(model, windows, start="magnitude"),
    "magnitude + dsnot, reference rule": lambda model, windows: _prune_with_authors_rule(model, windows),
    "magnitude + dsnot, attention only": lambda model, windows: (
        dsnot(model, windows, start="magnitude", exclude="*mlp*"),
        magnitude(model, include="*mlp*"),
    ),
    "wanda": lambda model, windows: wanda(model, windows),
    "wanda + dsnot": lambda model, windows: dsnot(model, windows),
    "sparsegpt": lambda model, windows: sparsegpt(model, windows),
}
