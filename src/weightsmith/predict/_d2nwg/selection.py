"""Which of the drawn weights to keep, and whether they are new."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from weightsmith.core.errors import ShapeError
from weightsmith.predict._zoo import WeightZoo

__all__ = ["Candidate", "memorisation", "select"]


class Candidate(NamedTuple):
    """Drawn weights and their score.

    Attributes
    ----------
    state : mapping of str to Tensor
        The weights.
    score : float
        What ``evaluate`` said.
    """

    state: Mapping[str, Tensor]
    score: float


def select(
    model: nn.Module, candidates: Sequence[Mapping[str, Tensor]], evaluate: Callable[[nn.Module], float]
) -> list[Candidate]:
    """Score all candidates in the model and return them, the best first.

    Parameters
    ----------
    model : nn.Module
        Gets its own weights back.
    candidates : sequence of mapping of str to Tensor
        What :meth:`WeightDiffusion.sample` drew; tensors they lack stay the model's.
    evaluate : callable
        Score on the support set or on validation data, higher is better; NaN is the worst. On test data the best score
        is too good.

    Raises
    ------
    ShapeError
        If a candidate has tensors that the model does not have, or of other shapes; nothing is scored.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> drawn = [{"weight": torch.tensor([[value]])} for value in (1.0, 3.0, 2.0)]
    >>> [kept.score for kept in select(model, drawn, lambda model: model.weight.item())]
    [3.0, 2.0, 1.0]
    """
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for number, state in enumerate(candidates):
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if wrong := {name: shape for name, shape in found.items() if name not in own or own[name].shape != shape}:
            raise ShapeError(f"tensors of candidate {number}", found=wrong, expected="names and shapes of the model's")
    scored = []
    try:
        for state in candidates:
            model.load_state_dict(state, strict=False)
            scored.append(Candidate(state, float(evaluate(model))))
    finally:
        model.load_state_dict(own)
    return sorted(scored, key=lambda candidate: (math.isnan(candidate.score), -candidate.score))


def memorisation(zoo: WeightZoo, rows: Tensor) -> dict[str, float]:
    """Compare how near drawn weights are to their nearest member with how near members are to each other.

    Parameters
    ----------
    zoo : WeightZoo
        What the generator learnt from.
    rows : Tensor of shape (drawn, weights)
        What it drew, see :meth:`WeightDiffusion.sample_rows`.

    Returns
    -------
    dict of str to float
        Medians of the distances ``"drawn"`` and ``"zoo"``, and their ``"ratio"``: far below 1, members are repeated.

    Examples
    --------
    >>> zoo = WeightZoo.from_state_dicts([{"w": torch.tensor([value])} for value in (0.0, 1.0, 2.0)])
    >>> memorisation(zoo, torch.tensor([[0.5]]))["ratio"]
    0.5
    """
    members = torch.from_numpy(np.unique(zoo.weights_NP, axis=0))  # twice the same member is no distance
    drawn = torch.cdist(rows.cpu(), members).amin(1).median().item()
    own = torch.cdist(members, members).fill_diagonal_(torch.inf).amin(1).median().item()
    return {"drawn": drawn, "zoo": own, "ratio": drawn / max(own, 1e-30)}
