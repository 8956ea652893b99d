import pytest
import torch

from weightsmith.core import linalg
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError, WeightsmithError
from weightsmith.core.linalg import (
    damped_factor,
    inverse_cholesky,
    is_finite,
    project,
    randomized_singular_basis,
    refine_singular_basis,
    singular_basis,
    solve_factored,
)


def test_inverse_cholesky():
    x = torch.randn(50, 8, dtype=torch.float64)
    gram = (x.T @ x).float()
    factor = inverse_cholesky(gram, damping=0.0)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ gram, torch.eye(8), rtol=0, atol=1e-4)


@pytest.mark.parametrize("panel", [7, 256, 1024])
@pytest.mark.parametrize("size", [1, 2, 7, 255, 256, 700, 1025])
def test_inverse_cholesky_in_panels_is_the_factor_of_the_inverse(size, panel, monkeypatch):
    monkeypatch.setattr(linalg, "PANEL", (panel, panel))
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    gram = (x.T @ x).float()
    before = gram.clone()
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(size)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(inverse_cholesky(gram, 0.01), expected.float(), rtol=1e-5, atol=1e-7)
    assert torch.equal(gram, before)
    factor = inverse_cholesky(gram, 0.01)
    assert inverse_cholesky(gram, 0.01, out=gram) is gram  # the factor takes the matrix's place
    assert torch.equal(gram, factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("panel", [7, 64, 1024])
def test_a_matrix_is_factored_in_place_and_solved(panel, dtype, monkeypatch):
    monkeypatch.setattr(linalg, "PANEL", (panel, panel))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 130, generator=generator, dtype=torch.float64)
    matrix = (x.T @ x).to(dtype)
    factor = matrix.clone()
    assert damped_factor(factor, 0.0, 1.0) == 0
    assert torch.equal(factor.tril(-1), matrix.tril(-1))
    upper = factor.triu()
    precision = 40 * torch.finfo(dtype).eps
    assert float((upper @ upper.T - matrix).abs().max() / matrix.abs().max()) < precision
    expected = torch.randn(5, 130, generator=generator, dtype=torch.float64)
    right = expected @ upper.double() @ upper.double().T
    solve_factored(factor, right)
    torch.testing.assert_close(right, expected, rtol=0, atol=1e-9)


def test_damping_grows_until_a_matrix_is_positive_definite():
    matrix = torch.tensor([[1.0, 0.0], [0.0, -3e-5]], dtype=torch.float64)
    assert damped_factor(matrix, 0.0, 2.0, least=1e-6) == pytest.approx(1e-4)  # after 0, 1e-6 and 1e-5
    torch.testing.assert_close(matrix.diagonal(), torch.tensor([1.0002, 1.7e-4], dtype=torch.float64).sqrt())


def test_inverse_cholesky_of_a_singular_matrix_is_damped():
    factor = inverse_cholesky(torch.ones(4, 4), damping=0.0)
    assert bool(factor.isfinite().all())
    assert bool(inverse_cholesky(torch.zeros(3, 3)).isfinite().all())
    with pytest.raises(NonFiniteError, match="Gram matrix"):
        inverse_cholesky(torch.full((2, 2), float("nan")))


def with_spectrum(rows, columns, singular_values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(singular_values), generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, len(singular_values), generator=generator)).Q
    return (left * singular_values) @ right.T


def best_approximation(matrix, rank):
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (40, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_singular_basis_gives_the_best_approximation(shape, dtype):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    basis = singular_basis(matrix, 7)
    assert basis.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(basis.T @ basis, torch.eye(7, dtype=basis.dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(project(matrix, basis).double(), best_approximation(matrix, 7), rtol=0, atol=2e-5)
    values = torch.linalg.svdvals(matrix.double())[:7]
    torch.testing.assert_close(torch.linalg.svdvals(project(matrix, basis).double())[:7], values, rtol=0, atol=1e-4)


def test_singular_basis_resolves_small_singular_values():
    matrix = with_spectrum(60, 80, torch.logspace(0, -5, 30))
    left = torch.linalg.svd(matrix.double(), full_matrices=False)[0][:, 20:22].float()
    basis = singular_basis(matrix, 22)
    assert (basis[:, 20:].T @ left).abs().diagonal().min() > 0.999


def test_singular_basis_retries_in_double_precision_then_gives_up(monkeypatch):
    matrix, eigh, tried = torch.randn(6, 9), torch.linalg.eigh, []

    def fails(symmetric, until=torch.float64):
        tried.append(symmetric.dtype)
        if symmetric.dtype == torch.float64 and until == torch.float64:
            return eigh(symmetric)
        raise torch.linalg.LinAlgError

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    torch.testing.assert_close(project(matrix, singular_basis(matrix, 2)).double(), best_approximation(matrix, 2))
    assert tried == [torch.float32, torch.float64]
    monkeypatch.setattr(torch.linalg, "eigh", lambda symmetric: fails(symmetric, until=None))
    with pytest.raises(WeightsmithError, match=r"do not converge: found a matrix \(6, 9\)"):
        singular_basis(matrix, 2)


def test_randomised_basis_repeats_and_leaves_the_global_generator_alone():
    matrix = torch.randn(50, 70)
    state = torch.get_rng_state()
    first = randomized_singular_basis(matrix, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, randomized_singular_basis(matrix, 5, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, randomized_singular_basis(matrix, 5))


def test_refined_basis_follows_a_matrix_that_moved():
    generator = torch.Generator().manual_seed(0)
    matrix = with_spectrum(60, 80, 1 / torch.arange(1.0, 61), seed=0)
    basis = singular_basis(matrix, 8)
    moved = matrix + 0.002 * torch.randn(60, 80, generator=generator)
    best = best_approximation(moved, 8).float()
    stale, refined = ((project(moved, b) - best).norm() for b in (basis, refine_singular_basis(moved, basis)))
    assert refined < 0.4 * stale
    assert (project(moved, refine_singular_basis(moved, basis, niter=20)) - best).norm() < 0.02 * stale


def test_bases_refuse_bad_input():
    matrix = torch.randn(4, 6)
    for make in (singular_basis, randomized_singular_basis):
        for rank in (0, 5):
            with pytest.raises(HyperparameterError, match=f"rank: found {rank}, expected 1 to 4"):
                make(matrix, rank)
        with pytest.raises(NonFiniteError):
            make(torch.full((4, 6), float("inf")), 2)
    with pytest.raises(HyperparameterError, match="niter"):
        randomized_singular_basis(matrix, 2, niter=-1)
    with pytest.raises(HyperparameterError, match="niter"):
        refine_singular_basis(matrix, singular_basis(matrix, 2), niter=0)
    with pytest.raises(ShapeError, match="rows of the basis: found 6, expected 4"):
        refine_singular_basis(matrix, torch.ones(6, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_is_finite(dtype, bad):
    values = torch.zeros(7, 9, dtype=dtype)
    assert is_finite(values)
    assert is_finite(values[:0])
    values[4, 5] = bad
    assert not is_finite(values)
