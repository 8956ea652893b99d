"""Line up any number of networks and average them all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.progress import track
from weightsmith.merge._weight_matching.holding import STALE, check_alike
from weightsmith.merge._weight_matching.matching import match_weights
from weightsmith.merge._weight_matching.spec import Permutations, PermutationSpec

__all__ = ["Merged", "mean", "merge_many"]

TOLERANCE = 1e-7
"""A model that comes closer to the mean of the others by less than this share stays where it was."""


@dataclass(frozen=True)
class Merged:
    """Several networks lined up.

    Attributes
    ----------
    state : dict of str to Tensor
        The mean of all, in the first one's element types; integer buffers are the first one's.
    perms : list of dict of str to Tensor
        For each network, for :meth:`PermutationSpec.apply`.
    rounds : int
        Rounds over all networks.
    """

    state: dict[str, Tensor]
    perms: list[Permutations]
    rounds: int


def merge_many(
    models: Sequence[nn.Module | Mapping[str, Tensor]],
    spec: PermutationSpec,
    *,
    rounds: int = 100,
    generator: torch.Generator | None = None,
) -> Merged:
    """Match each network to the mean of the others in turn until none comes closer, and average (Git Re-Basin).

    Parameters
    ----------
    models : sequence of nn.Module or state dict
        Two or more of one architecture; only read.
    spec : PermutationSpec
        What may be permuted.
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
    Running statistics of batch normalisation are averaged too, and wrong for the mean: re-estimate them with
    :func:`weightsmith.core.models.recalibrate_batchnorm`. A warning says so.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> spec = PermutationSpec.from_model(model, torch.rand(1, 3))
    >>> shuffled = [spec.apply(model.state_dict(), spec.random()) for _ in range(3)]
    >>> merged = merge_many(shuffled, spec)
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
        spec.check_state(state, f"model {number}")
        check_alike(states[0], state, f"model 1 and model {number}")
    if spec.has_statistics:
        warnings.warn(STALE, stacklevel=2)
    moved = list(states)
    perms = [spec.identity() for _ in states]
    done = 0
    for _ in track(range(rounds), "merging"):
        done += 1
        closer = False
        for number in torch.randperm(len(states), generator=generator).tolist():
            others = mean([state for other, state in enumerate(moved) if other != number])
            found = match_weights(
                others, states[number], spec, start=perms[number] if done > 1 else None, generator=generator
            )
            was = _distance(others, moved[number], spec)
            if found.distance_after < was * (1 - TOLERANCE):
                closer = True
                perms[number] = found.perms
                moved[number] = spec.apply(states[number], found.perms)
        if not closer:
            break
    return Merged(mean(moved), perms, done)


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
        if not first.is_floating_point():
            out[key] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        for state in states:
            total += state[key].to(total)
        out[key] = (total / len(states)).to(first.dtype)
    return out


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], spec: PermutationSpec) -> float:
    keys = [key for key in spec.axes if key not in spec.buffers]
    return sum(float((a[key].double() - b[key].double()).square().sum()) for key in keys) ** 0.5
