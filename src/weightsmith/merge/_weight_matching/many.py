"""Match any number of networks to one another and average them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightsmith.analyze import distance
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.progress import track
from weightsmith.core.symmetry import Permutations, Symmetry
from weightsmith.merge._weight_matching.matching import match_weights
from weightsmith.merge._weight_matching.weight_pair import STALE, check_same_architecture

__all__ = ["MergedNetworks", "mean", "merge_many"]

TOLERANCE = 1e-7
"""A step that reduces a model's distance to the mean of the others by less than this share is not taken."""


@dataclass(frozen=True)
class MergedNetworks:
    """The average of several networks, and the permutations that matched them.

    Attributes
    ----------
    state : dict of str to Tensor
        The mean of all, in the first one's element types; integer buffers are the first one's.
    perms : list of dict of str to Tensor
        For each network, for :meth:`Symmetry.permute`.
    rounds : int
        Rounds over all networks.
    """

    state: dict[str, Tensor]
    perms: list[Permutations]
    rounds: int


def merge_many(
    models: Sequence[nn.Module | Mapping[str, Tensor]],
    symmetry: Symmetry,
    *,
    rounds: int = 100,
    generator: torch.Generator | None = None,
) -> MergedNetworks:
    """Match each network to the mean of the others in turn until none comes closer, and average (Git Re-Basin).

    Parameters
    ----------
    models : sequence of nn.Module or state dict
        Two or more of one architecture; only read.
    symmetry : Symmetry
        The groups that may be permuted.
    rounds : int, default: 100
        Bound on rounds over all networks.
    generator : torch.Generator, optional
        Draws the orders; seed 0 by default.

    Raises
    ------
    HyperparameterError
        If there are fewer than two models, or ``rounds`` is below 1.
    NonFiniteError
        If a weight holds NaN or infinity.
    ShapeError
        If the networks are not of one architecture.

    Notes
    -----
    Running statistics of batch normalization are averaged too, and do not fit the mean: re-estimate them with
    :func:`weightsmith.core.models.recalibrate_batchnorm`. A warning says so.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.

    Examples
    --------
    >>> from weightsmith.core.symmetry import find_symmetry
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> symmetry = find_symmetry(model, torch.rand(1, 3))
    >>> shuffled = [symmetry.permute(model.state_dict(), symmetry.random()) for _ in range(3)]
    >>> merged = merge_many(shuffled, symmetry)
    >>> torch.allclose(merged.state["0.bias"].sort().values, model[0].bias.sort().values)
    True
    """
    if len(models) < 2:
        raise HyperparameterError("models", found=len(models), expected="two or more")
    if rounds < 1:
        raise HyperparameterError("rounds", found=rounds, expected=">= 1")
    generator = generator or torch.Generator().manual_seed(0)
    states = [dict(model.state_dict() if isinstance(model, nn.Module) else model) for model in models]
    for number, state in enumerate(states, 1):
        symmetry.check_state(state, f"model {number}")
        check_same_architecture(states[0], state, f"model 1 and model {number}")
    if symmetry.has_statistics:
        warnings.warn(STALE, stacklevel=2)
    weights = [key for key in symmetry.axes if key not in symmetry.buffers]
    moved = list(states)
    perms = [symmetry.identity() for _ in states]
    done = 0
    for _ in track(range(rounds), "merging"):
        done += 1
        closer = False
        for number in torch.randperm(len(states), generator=generator).tolist():
            others = mean([state for other, state in enumerate(moved) if other != number])
            found = match_weights(
                others, states[number], symmetry, start=perms[number] if done > 1 else None, generator=generator
            )
            if found.distance_after < distance(others, moved[number], weights) * (1 - TOLERANCE):
                closer = True
                perms[number] = found.perms
                moved[number] = symmetry.permute(states[number], found.perms)
        if not closer:
            break
    return MergedNetworks(mean(moved), perms, done)


@torch.no_grad()
def mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts, in float32 at least; integers are the first one's.

    Examples
    --------
    >>> mean([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}])
    {'w': tensor([2.])}
    """
    out = {}
    for key, first in states[0].items():
        if not (first.is_floating_point() or first.is_complex()):
            out[key] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        for state in states:
            total += state[key].to(total)
        out[key] = (total / len(states)).to(first.dtype)
    return out
