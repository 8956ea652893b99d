"""The linear assignment: optimal from any prices, proven by its own prices, the same total as SciPy's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightsmith.core.errors import NonFiniteError
from weightsmith.merge._weight_matching import assignment
from weightsmith.merge._weight_matching.assignment import assign

pytest.importorskip("numba", reason="prices are used by the compiled search: pip install 'weightsmith[kernels]'")


def total(cost: Tensor, perm: Tensor) -> float:
    return float(cost.double()[torch.arange(len(cost)), perm].sum())


def best_total(cost: Tensor) -> float:
    rows, columns = linear_sum_assignment(cost.double().numpy(), maximize=True)
    return float(cost.double().numpy()[rows, columns].sum())


@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    levels=st.sampled_from([0, 1, 2, 5]),
)
@settings(deadline=None, max_examples=150)
def test_optimal_from_any_prices(n: int, seed: int, dtype: torch.dtype, levels: int) -> None:
    g = torch.Generator().manual_seed(seed)
    # few levels: many ties, and rows that all want the same
    cost = torch.randint(levels, (n, n), generator=g).to(dtype) if levels else torch.randn(n, n, generator=g).to(dtype)
    price = 3 * torch.randn(n, generator=g, dtype=torch.float64)
    perm = assign(cost, price)
    assert sorted(perm.tolist()) == list(range(n))
    assert total(cost, perm) == pytest.approx(best_total(cost), abs=1e-5)


def test_prices_prove_the_optimum() -> None:
    g = torch.Generator().manual_seed(0)
    cost = torch.randn(200, 30, generator=g) @ torch.randn(30, 200, generator=g)
    price = torch.zeros(200, dtype=torch.float64)
    perm = assign(cost, price)
    # the dual problem's value with these prices bounds every assignment, and this one reaches it
    bound = float(price.sum() + (cost.double() - price).max(1).values.sum())
    assert total(cost, perm) == pytest.approx(bound, rel=1e-12)


def test_prices_of_a_similar_problem_leave_the_total_as_it_is() -> None:
    g = torch.Generator().manual_seed(1)
    price = torch.zeros(120, dtype=torch.float64)
    cost = torch.randn(120, 120, generator=g)
    for _ in range(5):
        cost = cost + 0.05 * torch.randn(120, 120, generator=g)
        perm = assign(cost, price)
        assert total(cost, perm) == pytest.approx(best_total(cost), rel=1e-6)
        cost, price = cost[:, perm], price[perm]  # as the descent does: columns now in the new order


def test_equal_numbers_everywhere_give_a_permutation() -> None:
    perm = assign(torch.full((17, 17), 3.0), torch.zeros(17, dtype=torch.float64))
    assert sorted(perm.tolist()) == list(range(17))


def test_without_numba_the_total_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = torch.randn(50, 50, generator=torch.Generator().manual_seed(2))
    compiled = assign(cost, torch.zeros(50, dtype=torch.float64))
    monkeypatch.setattr(assignment, "find_spec", lambda name: None)
    price = torch.zeros(50, dtype=torch.float64)
    assert total(cost, assign(cost, price)) == pytest.approx(total(cost, compiled), rel=1e-12)
    assert not np.any(price.numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    cost = torch.zeros(3, 3)
    cost[1, 2] = bad
    with pytest.raises(NonFiniteError, match="overflow"):
        assign(cost, torch.zeros(3, dtype=torch.float64))
