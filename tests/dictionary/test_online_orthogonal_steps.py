"""The iteration itself: steps by hand, invariances, the linear problem, polar factors, the objective's maxima."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from weightsmith.core.errors import ShapeError
from weightsmith.dictionary._online_orthogonal.frank_wolfe import FrankWolfe, Settings, polar

ROWS = torch.tensor([[1.0, 2], [0, 1], [-1, 0.5]], dtype=torch.float64)


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def rotation(n, seed):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def sparse_rows(n, samples, seed, theta=0.4):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(samples, n, dtype=torch.float64, generator=generator)
    return codes * (torch.rand(samples, n, generator=generator) < theta) @ rotation(n, seed + 1).T


def run(start, batches, **hyper):
    state = FrankWolfe(start)
    for batch in batches:
        state.step([batch], Settings(**hyper))
    return state


def close(found, expected, atol=1e-9):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def test_two_steps_by_hand():
    state = run(torch.eye(2).double(), [ROWS], step_power=0.75)
    close(-state.gradient_NN, double([[0.6666666667, 1.25], [0.5, 3.0416666667]]))
    first = double([[0.9801548126, 0.1982335576], [-0.1982335576, 0.9801548126]])
    close(state.dictionary_NN, first)
    assert state.gap == pytest.approx(0.0750825982, abs=1e-9)
    objective = -(ROWS @ torch.eye(2).double()).abs().pow(3).sum(1).mean() / 3
    assert float(objective) == pytest.approx(-1.2361111111)
    half = run(torch.eye(2).double(), [ROWS, ROWS], step_power=0.75, rho_power=1.0)
    state.step([ROWS], Settings(step_power=0.75))
    close(-state.gradient_NN, double([[0.5501162585, 1.4442506803], [0.1605115593, 3.3237804031]]))
    close(state.dictionary_NN, double([[0.9617713005, 0.267401743], [-0.267401743, 0.9617713005]]))
    close(torch.linalg.svdvals(state.dictionary_NN), double([0.9982523362, 0.9982523362]))
    close(polar(-half.gradient_NN), double([[0.9592098048, 0.2826951545], [-0.2826951545, 0.9592098048]]))
    close(half.dictionary_NN, double([[0.9677008365, 0.2484547236], [-0.2484547236, 0.9677008365]]))


@pytest.mark.parametrize(("power", "at_atom", "halfway"), [(3, 0.7978845608, 0.6810370722), (4, 1.5, 1.125)])
def test_atoms_are_the_maxima_of_the_population_objective(power, at_atom, halfway):
    """For two Bernoulli-Gaussian codes of density one half, from Gaussian moments and from a large sample."""
    moment = 2 ** (power / 2) * math.gamma((power + 1) / 2) / math.sqrt(math.pi)
    assert 0.5 * moment == pytest.approx(at_atom, abs=1e-9)
    assert moment * (0.5 * 2 ** (-power / 2) + 0.25) == pytest.approx(halfway, abs=1e-9)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(400_000, 2, generator=generator) * (torch.rand(400_000, 2, generator=generator) < 0.5)
    for direction, expected in (([1.0, 0.0], at_atom), ([0.5**0.5, 0.5**0.5], halfway)):
        assert float((codes @ torch.tensor(direction)).abs().pow(power).mean()) == pytest.approx(expected, rel=0.02)


@given(n=st.integers(1, 6), size=st.integers(1, 12), seed=st.integers(0, 99), power=st.sampled_from([2.5, 3.0, 4.0]))
@settings(max_examples=40)
def test_iterates_stay_in_the_ball_and_the_gap_is_not_negative(n, size, seed, power):
    rows = sparse_rows(n, 8 * size, seed)
    state = FrankWolfe(rotation(n, seed + 7))
    for batch in rows.split(size):
        before, steps = state.dictionary_NN.clone(), state.steps
        state.step([batch], Settings(power=power))
        assert float(torch.linalg.svdvals(state.dictionary_NN)[0]) <= 1 + 1e-6
        basis = state.orthogonal()
        close(basis.T @ basis, torch.eye(n).double(), 1e-10)
        if state.steps > steps:
            nuclear = float(torch.linalg.svdvals(state.gradient_NN).sum())
            gap = nuclear + float((state.gradient_NN * before).sum())
            assert state.gap == pytest.approx(gap, abs=1e-9 * max(nuclear, 1))
            assert state.gap >= 0


def test_gap_is_zero_exactly_at_stationary_points():
    start = rotation(5, 0)
    positive = torch.diag(torch.arange(1.0, 6).double())
    for target, stationary in ((positive, True), (positive @ rotation(5, 1), False)):
        rows = torch.eye(5).double()
        state = FrankWolfe(start)
        gradient = -start @ target
        state._sums = lambda chunks, settings, g=gradient: (g.clone(), torch.ones(5).double(), 1)
        state.step([rows], Settings())
        assert (state.gap < 1e-9) == stationary


@given(n=st.integers(1, 7), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_the_linear_problem_is_solved_by_the_polar_factor(n, seed):
    gradient = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    best = float((gradient * polar(-gradient)).sum())
    assert best == pytest.approx(-float(torch.linalg.svdvals(gradient).sum()))
    for other in range(20):
        assert float((gradient * rotation(n, other)).sum()) >= best - 1e-9


def test_scale_of_the_stream_does_not_matter_but_that_of_single_batches_does():
    batches = sparse_rows(5, 200, 0).split(20)
    start = rotation(5, 3)
    plain = run(start, batches)
    close(run(start, [37.5 * batch for batch in batches]).dictionary_NN, plain.dictionary_NN, 1e-12)
    scales = [1.0, 5.0] * 5
    uneven = [scale * batch for scale, batch in zip(scales, batches, strict=True)]
    assert float((run(start, uneven).dictionary_NN - plain.dictionary_NN).abs().max()) > 1e-3
    directions = run(start, batches, normalize=True)
    close(run(start, uneven, normalize=True).dictionary_NN, directions.dictionary_NN, 1e-12)


@given(n=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_rotated_data_and_permuted_starts_carry_over(n, seed):
    batches, start, turn = sparse_rows(n, 160, seed).split(40), rotation(n, seed + 3), rotation(n, seed + 5)
    plain = run(start, batches).dictionary_NN
    close(run(turn @ start, [batch @ turn.T for batch in batches]).dictionary_NN, turn @ plain, 1e-8)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    signs = torch.randint(2, (n,), generator=generator).double() * 2 - 1
    close(run(start[:, order] * signs, batches).dictionary_NN, plain[:, order] * signs, 1e-8)


def test_full_steps_on_all_data_are_iterations_of_batch_msp():
    rows, basis = sparse_rows(6, 500, 0), rotation(6, 9)
    state = FrankWolfe(basis)
    for _ in range(3):
        state.step([rows], Settings(rho_power=0.0, step_power=0.0))
        codes = rows @ basis
        u, _, vh = torch.linalg.svd(rows.T @ (codes.sign() * codes.abs() ** 2))
        basis = u @ vh
        close(state.dictionary_NN, basis, 1e-10)


def test_running_gradient_of_a_constant_gradient_is_that_gradient():
    state = FrankWolfe(torch.eye(2).double())
    for _ in range(10):
        state.dictionary_NN = torch.eye(2).double()
        state.step([ROWS], Settings())
        close(-state.gradient_NN, double([[2 / 3, 1.25], [0.5, 3.0416666666666667]]), 1e-12)


def test_gradients_that_cancel_are_no_step():
    state = FrankWolfe(torch.eye(2).double())
    state.step([ROWS], Settings())
    at = state.dictionary_NN = torch.eye(2).double()
    cancelling = state.gradient_NN.clone()
    rho = 2**-0.5
    state._sums = lambda chunks, settings: (-cancelling * (1 - rho) / rho, torch.ones(2).double(), 1)
    state.step([ROWS], Settings())
    close(state.gradient_NN, torch.zeros(2, 2).double(), 1e-12)
    assert state.dictionary_NN is at


def test_single_precision_stays_orthogonal():
    state = run(rotation(40, 0).float(), sparse_rows(40, 4000, 0).float().split(40))
    basis = state.orthogonal()
    assert basis.dtype == torch.float32
    close(basis.T @ basis, torch.eye(40), 1e-5)


@given(n=st.integers(1, 40), seed=st.integers(0, 99), spread=st.floats(0, 4))
@settings(max_examples=40)
def test_newton_schulz_is_the_exact_polar_factor(n, seed, spread):
    values = torch.logspace(0, -spread, n, dtype=torch.float64)
    matrix = rotation(n, seed) * values @ rotation(n, seed + 1).T
    close(polar(matrix, "newton-schulz"), polar(matrix, "svd"), 1e-8)
    single = polar(matrix.float(), "newton-schulz")
    close(single.T @ single, torch.eye(n), 3e-5)


def test_polar_factors_of_singular_matrices_are_orthogonal():
    for method in ("auto", "svd", "newton-schulz"):
        for matrix in (torch.zeros(4, 4), torch.ones(4, 4), torch.diag(torch.tensor([1.0, 1e-12, 0, 2]))):
            factor = polar(matrix, method)
            close(factor.T @ factor, torch.eye(4), 1e-5)
            assert float((factor * matrix).sum()) == pytest.approx(float(torch.linalg.svdvals(matrix).sum()), rel=1e-5)
    with pytest.raises(ShapeError, match=r"found \(2, 3\), expected square"):
        polar(torch.ones(2, 3))


def test_principal_axes_are_the_start():
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((30, 3)) * [3, 2, 1])
    state = FrankWolfe(rotation(3, 0))
    state.step([rows], Settings(principal_start=True))
    axes = torch.linalg.eigh(rows.T @ rows)[1].flip(1)
    close(state.dictionary_NN, run(axes, [rows]).dictionary_NN, 1e-10)
