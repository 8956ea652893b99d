import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.core.errors import NonFiniteError, ShapeError
from weightsmith.core.linalg import inverse_cholesky, lowest_k_mask, lowest_n_of_m_mask


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 5), columns=st.integers(1, 40), values=st.integers(1, 6), data=st.data())
def test_lowest_k_is_a_stable_sort(rows, columns, values, data):
    k = data.draw(st.integers(0, columns))
    score = torch.randint(values, (rows, columns), generator=torch.Generator().manual_seed(columns)).float()
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    expected.scatter_(1, score.sort(dim=1, stable=True).indices[:, :k], True)
    assert torch.equal(lowest_k_mask(score, k), expected)


def test_n_of_m():
    mask = lowest_n_of_m_mask(torch.rand(6, 16), 1, 4)
    assert bool((mask.reshape(6, 4, 4).sum(2) == 1).all())
    with pytest.raises(ShapeError, match="found 10, expected a multiple of 4"):
        lowest_n_of_m_mask(torch.rand(2, 10), 2, 4)


def test_inverse_cholesky():
    x = torch.randn(50, 8, dtype=torch.float64)
    gram = (x.T @ x).float()
    factor = inverse_cholesky(gram, damping=0.0)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ gram, torch.eye(8), rtol=0, atol=1e-4)


def test_inverse_cholesky_of_a_singular_matrix_is_damped():
    factor = inverse_cholesky(torch.ones(4, 4), damping=0.0)
    assert bool(factor.isfinite().all())
    assert bool(inverse_cholesky(torch.zeros(3, 3)).isfinite().all())
    with pytest.raises(NonFiniteError, match="Gram matrix"):
        inverse_cholesky(torch.full((2, 2), float("nan")))
