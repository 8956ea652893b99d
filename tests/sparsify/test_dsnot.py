import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from weightsmith.claims.dsnot import authors_mask
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, ShapeError, UnsupportedModelError
from weightsmith.core.models import Layer
from weightsmith.core.statistics import InputStatistics
from weightsmith.sparsify import dsnot, refine_mask
from weightsmith.sparsify._shared.pruning import Pattern, wanda_score

WEIGHT = torch.tensor([[1.0, -0.5, 0.4, 0.3, -0.2, 0.1]])
TOKENS = torch.tensor([[[1.0, 2, 1, 3, 1, 4], [2, 1, 1, 1, 2, 2], [3, 0, 1, 2, 0, 3]]])


def statistics_of(x, width=None):
    statistics = InputStatistics(Layer("fc", nn.Linear(x.shape[-1], 1)))
    statistics.update(x)
    return statistics


def correlated(rows=64, columns=512, tokens=400, sequences=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = 0.05 * torch.randn(rows, columns, generator=generator)
    mean = torch.randn(columns, generator=generator) * 0.3
    spread = 2 * torch.rand(columns, generator=generator)
    return weight, torch.randn(sequences, tokens, columns, generator=generator) * spread + mean


@pytest.fixture
def hand():
    statistics = statistics_of(TOKENS)
    torch.testing.assert_close(statistics.sum_I, torch.tensor([6.0, 3, 3, 6, 3, 9]))
    torch.testing.assert_close(statistics.square_sum_I, torch.tensor([14.0, 5, 3, 14, 5, 29]))
    torch.testing.assert_close(statistics.variance_I, torch.tensor([2, 2, 0, 2, 2, 2]) / 3)
    statistics.sums_3I[2, 2] = statistics.rows  # the third input's variance, set to one as the worked example does
    return statistics


def test_worked_example(hand):
    start = Pattern.parse(0.5).mask(wanda_score(WEIGHT, hand))
    assert start[0].nonzero().flatten().tolist() == [2, 4, 5]
    done = refine_mask(WEIGHT, start, hand)
    assert done.pruned_OI[0].nonzero().flatten().tolist() == [1, 2, 4]
    torch.testing.assert_close(done.error_before_O, torch.tensor([1.5]))
    torch.testing.assert_close(done.error_after_O, torch.tensor([-0.9]))
    assert done.swaps_O.item() == 1


@pytest.mark.parametrize(("same_sign", "pruned"), [(False, [1, 2, 3]), (True, [2, 4, 5])])
def test_worked_example_with_the_authors_rules(hand, same_sign, pruned):
    start = Pattern.parse(0.5).mask(wanda_score(WEIGHT, hand))
    assert authors_mask(WEIGHT, start, hand, same_sign=same_sign, cycles=2)[0].nonzero().flatten().tolist() == pruned


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_swaps_are_those_of_a_loop_over_rows(seed, sparsity):
    weight, x = correlated(rows=16, seed=seed)
    x[..., 7] = 0.5  # constant: its growing score is infinite
    x[..., 9] = 0
    weight[:, 20:40] = weight[:, 20:21]
    x[..., 20:40] = x[..., 20:21]  # equal scores: the first column is the best
    statistics, pattern = statistics_of(x), Pattern.parse(sparsity)
    start = pattern.mask(weight.abs())
    done = refine_mask(weight, start, statistics, start_score_OI=weight.abs(), pattern=pattern)
    assert done.swaps_O.sum() > 8
    for row, (mask, swaps) in enumerate(zip(done.pruned_OI, done.swaps_O, strict=True)):
        expected, count = swap_row(weight[row], start[row], statistics, pattern.m)
        assert mask.tolist() == expected
        assert swaps == count


def swap_row(weight, start, statistics, m, tolerance=0.1):
    """One row, one weight at a time."""
    contribution, pruned = weight * statistics.sum_I, start.tolist()
    gain = statistics.sum_I.abs() * statistics.variance_I.pow(-1)
    grow, cost = weight.abs() * gain.nan_to_num(nan=0.0, posinf=torch.inf), wanda_score(weight[None], statistics)[0]
    columns, touched, swaps = range(len(pruned)), set(), 0
    error = (contribution * start)[None].sum(1)[0]
    while error.abs() > tolerance and swaps < 50:
        sign = 1 if error > 0 else -1
        free = [c for c in columns if c not in touched]
        growable = [c for c in free if pruned[c] and contribution[c] * sign > 0]
        if not growable:
            break
        grown = max(growable, key=lambda c: grow[c].item())
        if m:
            droppable = [c for c in free if not pruned[c] and c // m == grown // m]
        else:
            droppable = [c for c in free if not pruned[c] and contribution[c] * sign < 0]
        if not droppable:
            break
        dropped = min(droppable, key=lambda c: (weight.abs() if m else cost)[c].item())
        new = error - contribution[grown] + contribution[dropped]
        if not new.abs() < error.abs():
            break
        pruned[grown], pruned[dropped], error, swaps = False, True, new, swaps + 1
        touched |= {grown, dropped}
    return pruned, swaps


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sparsity=st.sampled_from([0.1, 0.5, 0.9, "2:4", "1:4", "4:8"]),
    columns=st.sampled_from([8, 64, 136]),
)
def test_counts_stay_and_no_error_grows(seed, sparsity, columns):
    weight, x = correlated(rows=7, columns=columns, tokens=50, seed=seed)
    statistics, pattern = statistics_of(x), Pattern.parse(sparsity)
    start = pattern.mask(wanda_score(weight, statistics))
    done = refine_mask(weight, start, statistics, pattern=pattern, tolerance=0.01)
    assert torch.equal(done.pruned_OI.sum(1), start.sum(1))
    if pattern.m:
        assert bool((done.pruned_OI.reshape(7, -1, pattern.m).sum(2) == pattern.n).all())
    error = (weight * statistics.sum_I * done.pruned_OI).sum(1)
    torch.testing.assert_close(done.error_after_O, error, rtol=1e-4, atol=1e-3)
    assert bool((done.error_after_O.abs() <= done.error_before_O.abs()).all())


@pytest.mark.parametrize("change", [{"tolerance": float("inf")}, {"max_swaps": 0}])
def test_nothing_to_do_keeps_the_mask(change):
    weight, x = correlated()
    statistics = statistics_of(x)
    start = Pattern.parse(0.7).mask(wanda_score(weight, statistics))
    assert torch.equal(refine_mask(weight, start, statistics, **change).pruned_OI, start)


def test_inputs_of_zero_mean_change_nothing():
    weight, x = correlated()
    statistics = statistics_of(torch.cat([x, -x], dim=1))
    start = Pattern.parse(0.7).mask(wanda_score(weight, statistics))
    assert torch.equal(refine_mask(weight, start, statistics).pruned_OI, start)


def test_negated_and_permuted_columns():
    weight, x = correlated()
    start = Pattern.parse(0.7).mask(wanda_score(weight, statistics_of(x)))
    plain = refine_mask(weight, start, statistics_of(x)).pruned_OI
    sign = torch.randint(2, (weight.shape[1],)) * 2.0 - 1
    assert torch.equal(refine_mask(weight * sign, start, statistics_of(x * sign)).pruned_OI, plain)
    order = torch.randperm(weight.shape[1])
    permuted = refine_mask(weight[:, order], start[:, order], statistics_of(x[..., order])).pruned_OI
    assert torch.equal(permuted, plain[:, order])


def test_dead_and_constant_inputs_are_no_first_choice():
    weight, x = correlated(columns=64)
    x[..., 3] = 0
    x[..., 5] = 1
    statistics = statistics_of(x)
    start = Pattern.parse(0.5).mask(wanda_score(weight, statistics))
    done = refine_mask(weight, start, statistics)
    assert bool(done.error_after_O.isfinite().all())
    assert bool(done.pruned_OI[:, 3].all())


def test_error_is_that_of_a_real_forward_pass_and_survivors_keep_every_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 16))
    dense = model[0].weight.detach().clone()
    x = torch.rand(4, 100, 96)
    outputs = model(x)
    result = dsnot(model, list(x.split(1)), sparsity=0.6, start="magnitude", tolerance=0.0)
    weight = model[0].weight.detach()
    survivors = weight != 0
    assert torch.equal(weight[survivors], dense[survivors])
    assert torch.equal(survivors.sum(1), torch.full((16,), 96 - 57))
    error = (outputs - model(x)).mean((0, 1)).abs().mean().item()
    assert result.layers[0]["row_error_after"] == pytest.approx(error, rel=1e-4)
    assert result.layers[0]["row_error_after"] < 0.2 * result.layers[0]["row_error_before"]


def test_corrected_bias_takes_the_rest_of_the_mean_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 16))
    x = torch.rand(4, 100, 96)
    outputs = model(x)
    dsnot(model, list(x.split(1)), sparsity=0.8, correct_bias=True)
    torch.testing.assert_close(model(x).mean((0, 1)), outputs.mean((0, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_every_start_and_pattern(start, sparsity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    result = dsnot(model, [torch.rand(300, 64)], sparsity=sparsity, start=start)
    assert result.totals["sparsity"] == 0.5
    assert result.totals["row_error_after"] <= result.totals["row_error_before"]


def test_few_tokens_keep_the_starting_mask():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8))
    assert dsnot(model, [torch.rand(100, 64)]).totals["swaps"] == 0


def test_masks_from_elsewhere():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8))
    keep = torch.rand(8, 64) > 0.3
    dsnot(model, [torch.rand(300, 64)], masks={"0": keep})
    assert torch.equal((model[0].weight != 0).sum(1), keep.sum(1))


def test_masks_take_the_place_of_every_start():
    x, pruned = torch.rand(300, 64), []
    for start in ("wanda", "sparsegpt"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8))
        dsnot(model, [x], masks={"0": torch.rand(8, 64) > 0.3}, start=start)
        pruned.append(model[0].weight.detach())
    assert torch.equal(*pruned)


def test_masks_have_the_layout_of_the_modules_weight():
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(64, 64))
    keep = torch.rand(64, 64) > 0.3
    dsnot(model, [torch.rand(300, 64)], masks={"0": keep}, max_swaps=0)
    assert torch.equal(model[0].weight != 0, keep)


def test_layer_output_error_gate():
    """W ~ .05 N(0, 1), 70 % Wanda: the refined mask has at most .93 of Wanda's output error and a tenth of its bias."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weight = 0.05 * torch.randn(256, 2048, generator=generator)
        x = torch.randn(1000, 2048, generator=generator) * 2 * torch.rand(2048, generator=generator)
        x += 0.3 * torch.randn(2048, generator=generator)
        statistics = statistics_of(x.unsqueeze(0))
        start = Pattern.parse(0.7).mask(wanda_score(weight, statistics))
        done = refine_mask(weight, start, statistics, tolerance=0.1)
        removed = [x @ (weight * mask).T for mask in (start, done.pruned_OI)]
        assert removed[1].square().mean() / removed[0].square().mean() <= 0.93
        assert removed[1].mean(0).abs().mean() <= 0.03
        assert 5 < done.swaps_O.float().mean() < 20


def test_bad_input():
    model = nn.Sequential(nn.Linear(64, 8))
    dense = model[0].weight.detach().clone()
    x = [torch.rand(300, 64)]
    with pytest.raises(HyperparameterError, match="max_swaps: found -1"):
        dsnot(model, x, max_swaps=-1)
    with pytest.raises(HyperparameterError, match=r"sparsity: found 1\.5"):
        dsnot(model, x, sparsity=1.5)
    with pytest.raises(ShapeError, match=r"mask of layer '0': found \(3, 3\), expected \(8, 64\)"):
        dsnot(model, x, masks={"0": torch.ones(3, 3)})
    with pytest.raises(LayerNotFoundError, match="no mask for layer '0'"):
        dsnot(model, x, masks={})
    assert torch.equal(model[0].weight, dense)
    model[0].weight.data[:, :40] = 0
    with pytest.raises(UnsupportedModelError, match="'0' is already sparse"):
        dsnot(model, x)
