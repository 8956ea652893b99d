"""The states that the truncated posterior keeps, and how much of the prior they hold.

Of all states of ``H`` units the posterior of one point keeps: no unit active, every single unit, and all sets of 2 to
``max_active`` of the point's ``C`` candidates, each active unit with every non-zero value it can take. They are
numbered in this order (of the single units all ``H`` with the first value come first), the same way for every point.

Legend: ``N`` points, ``K`` states, ``S`` states of several candidates, ``H`` components, ``C`` candidates, ``V``
non-zero values, ``A`` active units of one size of set, ``P`` pairs of candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations, product

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import binom
from torch import Tensor

from weightsmith.core.errors import HyperparameterError

__all__ = ["MAX_STATES", "States", "truncated_prior"]

MAX_STATES = 200_000
"""Most states per point: beyond it a single point takes too much memory and time."""


class States:
    """All kept states of one truncation.

    Parameters
    ----------
    n_components, n_candidates, max_active : int
        ``1 <= max_active <= n_candidates <= n_components``.
    values : sequence of float, default: (1.0,)
        The non-zero values of a unit.
    device : torch.device or str, default: "cpu"
        Where the tables are.

    Attributes
    ----------
    size : int
        Number of states, ``K``.
    first_set : int
        Number of the first state with several candidates active.

    Raises
    ------
    HyperparameterError
        If there are more than :data:`MAX_STATES` states.

    Examples
    --------
    >>> States(10, 8, 5).size, States(10, 6, 3).size
    (221, 46)
    >>> States(3, 2, 2).sets_SC
    tensor([[1., 1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        n_components: int,
        n_candidates: int,
        max_active: int,
        values: Sequence[float] = (1.0,),
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = range(2, max_active + 1)
        count = sum(math.comb(n_candidates, size) * len(values) ** size for size in sizes)
        self.n_components, self.n_candidates, self.max_active = n_components, n_candidates, max_active
        self.first_set = 1 + len(values) * n_components
        self.size = self.first_set + count
        if self.size > MAX_STATES:
            raise HyperparameterError(
                "states per point",
                found=self.size,
                expected=f"at most {MAX_STATES}",
                do=f"Take fewer than n_candidates={n_candidates} or max_active={max_active}.",
            )
        self.values_V = torch.tensor(values, dtype=torch.float64, device=device)
        self.members = [
            torch.tensor(list(combinations(range(n_candidates), size)), device=device).reshape(-1, size)
            for size in sizes
        ]
        """For each size of set the candidates that are active in each of its states."""
        self.sets_SC = torch.zeros(count, n_candidates, dtype=torch.float64, device=device)
        row = 0
        for members in self.members:
            for values_A in product(values, repeat=members.shape[1]):
                rows = torch.arange(row, row + len(members), device=device)
                self.sets_SC[rows[:, None], members] = torch.tensor(values_A, dtype=torch.float64, device=device)
                row += len(members)

    @cached_property
    def pairs_2P(self) -> Int[Tensor, "2 pairs"]:
        """All pairs of candidates, each with itself included, the lower one first."""
        return torch.triu_indices(self.n_candidates, self.n_candidates, device=self.sets_SC.device)

    @cached_property
    def products_SP(self) -> Float[Tensor, "sets pairs"]:
        """The product of the values of every pair of candidates."""
        first_P, second_P = self.pairs_2P
        return self.sets_SC[:, first_P] * self.sets_SC[:, second_P]

    @cached_property
    def counts_KV(self) -> Float[Tensor, "states values"]:
        """How many units of each state have each of the non-zero values."""
        values, device = len(self.values_V), self.values_V.device
        none_1V = torch.zeros(1, values, dtype=torch.float64, device=device)
        single = torch.eye(values, dtype=torch.float64, device=device).repeat_interleave(self.n_components, 0)
        sets_SV = (self.sets_SC[:, :, None] == self.values_V).sum(1).double()
        return torch.cat([none_1V, single, sets_SV])

    def expected_codes(
        self, q_NK: Float[Tensor, "points states"], candidates_NC: Int[Tensor, "points candidates"], power: float = 1.0
    ) -> Float[Tensor, "points components"]:
        """The mean of every unit's value under the states' probabilities; with ``power=0`` of whether it is active."""
        single_NVH = q_NK[:, 1 : self.first_set].unflatten(1, (len(self.values_V), self.n_components))
        values_V = self.values_V**power
        mean_NH = torch.einsum("nvh,v->nh", single_NVH, values_V) if len(values_V) > 1 else values_V * single_NVH[:, 0]
        sets_SC = self.sets_SC if power else (self.sets_SC != 0).double()
        return mean_NH.scatter_add(1, candidates_NC, q_NK[:, self.first_set :] @ sets_SC)

    def codes(
        self, numbers_NT: Int[Tensor, "points top"], candidates_NC: Int[Tensor, "points candidates"]
    ) -> Float[Tensor, "points top components"]:
        """The values of all units in the states with these numbers."""
        codes_NTH = torch.zeros(*numbers_NT.shape, self.n_components, dtype=torch.float64, device=numbers_NT.device)
        single = (numbers_NT > 0) & (numbers_NT < self.first_set)
        n, t = single.nonzero(as_tuple=True)
        number = numbers_NT[single] - 1
        codes_NTH[n, t, number % self.n_components] = self.values_V[number // self.n_components]
        several = numbers_NT >= self.first_set
        n, t = several.nonzero(as_tuple=True)
        codes_NTH[n[:, None], t[:, None], candidates_NC[n]] = self.sets_SC[numbers_NT[several] - self.first_set]
        return codes_NTH


def truncated_prior(n_components: int, max_active: int, pi: float) -> tuple[float, float]:
    r"""Prior mass of the states with at most ``max_active`` of ``n_components`` units active, and their mean activity.

    .. math:: A = \sum_{g \le \gamma} \binom{H}{g} \pi^g (1-\pi)^{H-g}, \qquad
              B = \sum_{g \le \gamma} g \binom{H}{g} \pi^g (1-\pi)^{H-g}

    Examples
    --------
    >>> mass, active = truncated_prior(10, 3, 0.2)
    >>> round(mass, 6), round(active, 6)
    (0.879126, 1.476395)
    """
    sizes = np.arange(max_active + 1)
    masses = binom(n_components, sizes) * pi**sizes * (1 - pi) ** (n_components - sizes)
    return float(masses.sum()), float(sizes @ masses)
