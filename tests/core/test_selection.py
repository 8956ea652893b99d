import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings, strategies as st

from weightsmith.core import selection
from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.selection import (
    falling_order,
    keep_,
    kth_largest,
    kth_smallest,
    largest_k,
    lowest_k_mask,
    lowest_n_of_m_mask,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 5), columns=st.integers(1, 40), values=st.integers(1, 6), data=st.data())
def test_lowest_k_is_a_stable_sort(rows, columns, values, data):
    k = data.draw(st.integers(0, columns))
    score = torch.randint(values, (rows, columns), generator=torch.Generator().manual_seed(columns)).float()
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    expected.scatter_(1, score.sort(dim=1, stable=True).indices[:, :k], True)
    assert torch.equal(lowest_k_mask(score, k), expected)


def test_lowest_k_of_equal_scores_in_a_transposed_matrix():  # as of the layers of GPT-2, whose weights are (in, out)
    score = torch.randint(4, (30, 20), generator=torch.Generator().manual_seed(0)).float().T
    assert torch.equal(lowest_k_mask(score, 13), lowest_k_mask(score.contiguous(), 13))


def test_n_of_m():
    mask = lowest_n_of_m_mask(torch.rand(6, 16), 1, 4)
    assert bool((mask.reshape(6, 4, 4).sum(2) == 1).all())
    with pytest.raises(ShapeError, match="found 10, expected a multiple of 4"):
        lowest_n_of_m_mask(torch.rand(2, 10), 2, 4)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 400), values=st.integers(1, 6), seed=st.integers(0, 100), data=st.data())
def test_largest_k_is_a_stable_sort_of_magnitudes(size, values, seed, data):
    k = data.draw(st.integers(0, size))
    x = torch.randint(-values, values + 1, (size,), generator=torch.Generator().manual_seed(seed)).float()
    expected = x.abs().sort(descending=True, stable=True).indices[:k].sort().values
    assert torch.equal(largest_k(x, k), expected)


@pytest.mark.parametrize("make", [torch.randn, torch.rand, lambda *shape: torch.randn(*shape).round(decimals=1)])
@pytest.mark.parametrize("share", [1e-5, 0.05, 0.5, 0.999])
def test_largest_k_of_many_values(make, share):
    torch.manual_seed(0)
    x = make(300, 400)
    k = max(1, int(share * x.numel()))
    expected = x.abs().flatten().sort(descending=True, stable=True).indices[:k].sort().values
    assert torch.equal(largest_k(x, k), expected)


def test_largest_k_where_the_sample_misleads():
    x = torch.zeros(200_000)
    x[torch.arange(0, 200_000, (200_000 // (1 << 14)) | 1)] = 1.0  # just the values that are sampled
    k = int(x.sum()) + 10
    assert torch.equal(largest_k(x, k), x.sort(descending=True, stable=True).indices[:k].sort().values)
    with pytest.raises(HyperparameterError, match="k: found 4, expected 0 to 3"):
        largest_k(torch.ones(3), 4)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 1.0000001, 2.5, 3e38]), max_size=9), min_size=1, max_size=5
    ),
    st.data(),
)
def test_streaming_threshold_equals_sorting(parts, data):
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    every = torch.cat(tensors).sort(descending=True).values
    k = data.draw(st.integers(0, len(every)))
    ((bound, equal),) = kth_largest(lambda: [[tensor] for tensor in tensors], lambda _: k)
    if k == 0:
        assert (bound, equal) == (math.inf, 0)
    else:
        assert bound == every[k - 1].item()
        assert equal == int((every[:k] == bound).sum())


def test_threshold_of_many_scores_in_pieces():
    scores = torch.rand(5_000_001, generator=torch.Generator().manual_seed(0))
    ((bound, _),) = kth_largest(lambda: [[scores[:3_000_000]], [scores[3_000_000:]]], lambda _: 1_234_567)
    assert bound == scores.kthvalue(len(scores) - 1_234_567 + 1).values.item()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kth_smallest_is_that_of_torch(dtype, threads, monkeypatch):
    monkeypatch.setattr(selection, "PARTITIONED", 500)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    score = torch.randn(37, 90, generator=torch.Generator().manual_seed(0)).to(dtype)
    for given_score in (score, score.T[:, :30], score[:, ::2], score.round()):
        for k in (1, 7, given_score.shape[1]):
            assert torch.equal(kth_smallest(given_score, k), given_score.kthvalue(k, dim=1).values)


@settings(max_examples=40, deadline=None)
@given(runs=st.integers(0, 5), m=st.sampled_from([1, 2, 4, 8, 20]), values=st.integers(1, 5), data=st.data())
def test_n_of_m_is_a_stable_sort_of_each_run(runs, m, values, data):
    n = data.draw(st.integers(0, m))
    score = torch.randint(values, (3, runs * m), generator=torch.Generator().manual_seed(runs)).float()
    expected = torch.zeros(3 * runs, m, dtype=torch.bool)
    expected.scatter_(1, score.reshape(-1, m).sort(dim=1, stable=True).indices[:, :n], True)
    assert torch.equal(lowest_n_of_m_mask(score, n, m), expected.reshape(score.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (9, 40), (3, 50, 1000), (2, 200_000)])
def test_keeping_is_masked_fill_of_the_rest(dtype, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with suppress(IndexError):  # no values
        values.view(-1)[0], values.view(-1)[-1] = float("nan"), -float("inf")
        kept.view(-1)[0], kept.view(-1)[-1] = False, False
    expected = values.masked_fill(~kept, 0)
    assert torch.equal(keep_(values.clone(), kept), expected)
    strided = values.transpose(0, -1).contiguous().transpose(0, -1)
    assert torch.equal(keep_(strided.clone(), kept), expected)
    assert torch.equal(keep_(strided.transpose(0, -1), kept.transpose(0, -1)), expected.transpose(0, -1))
    assert not keep_(values, kept).signbit()[~kept].any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_falling_order_is_a_stable_sort(dtype, threads, monkeypatch):
    monkeypatch.setattr(selection, "PARTITIONED", 200)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    key = torch.randn(20, 60, generator=torch.Generator().manual_seed(0)).to(dtype)
    key[0, :9] = torch.tensor([0.0, -0.0, 0.0, -0.0, float("inf"), -float("inf"), -float("inf"), float("inf"), 0.0])
    for given_key in (key, key.round(), key.T, key[:, ::3], key[:0]):
        assert torch.equal(falling_order(given_key), given_key.argsort(dim=1, descending=True, stable=True))
    key[1, 5], key[2, 7] = float("nan"), torch.tensor(0.0) / 0.0  # whose sign differs on x86
    assert falling_order(key)[1:3, 0].tolist() == [5, 7]
    key[2, 7] = -key[2, 7]
    assert falling_order(key)[2, 0] == 7
