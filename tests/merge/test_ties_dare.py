"""TIES and DARE: closed forms, the same in memory and on disk, bad numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from weightsmith.core.errors import HyperparameterError, NonFiniteError
from weightsmith.core.io import _map_checkpoints
from weightsmith.merge import add_tasks, dare, dare_average, ties, ties_average


def draw(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (40, 16), "norm": (16,), "empty": (0, 4), "scale": ()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()} | {
        "steps": torch.tensor(seed)
    }


def reference_ties(base, tuned, density, alpha):
    """As the paper states it, one tensor, by sorting."""
    deltas = torch.stack([each.double() - base.double() for each in tuned]).view(len(tuned), -1)
    kept = max(1, round(density * deltas.shape[1]))
    smallest = deltas.abs().sort(1, descending=True).values[:, kept - 1 : kept]
    deltas = deltas * (deltas.abs() >= smallest)
    agrees = (deltas.sign() == deltas.sum(0).sign()) & (deltas != 0)
    merged = (deltas * agrees).sum(0) / agrees.sum(0).clamp_min(1)
    return base.double() + alpha * merged.view(base.shape)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    density=st.sampled_from([0.01, 0.2, 0.5, 0.99, 1.0]),
    count=st.integers(1, 4),
    alpha=st.sampled_from([1.0, 0.3, -1.0]),
)
def test_ties_is_the_papers(seed, density, count, alpha):
    base, tuned = draw(seed), [draw(seed + 1 + i) for i in range(count)]
    merged = ties_average(base, tuned, density=density, alpha=alpha)
    for name in ("embed", "norm", "scale"):
        expected = reference_ties(base[name], [each[name] for each in tuned], density, alpha)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-5)
    assert merged["steps"] == tuned[-1]["steps"]


def test_ties_of_one_network_at_full_density_is_that_network():
    base, tuned = draw(0), draw(1)
    merged = ties_average(base, [tuned], density=1.0)
    for name, tensor in tuned.items():
        torch.testing.assert_close(merged[name], tensor)


def test_ties_keeps_the_largest_changes_per_tensor_and_sign():
    base = {"w": torch.zeros(4)}
    tuned = [{"w": torch.tensor([4.0, -1.0, 0.1, 0.0])}, {"w": torch.tensor([-1.0, -3.0, 0.2, 0.0])}]
    assert ties_average(base, tuned, density=0.5)["w"].tolist() == [4.0, -2.0, 0.0, 0.0]
    assert ties_average(base, tuned, density=0.25, alpha=2.0)["w"].tolist() == [8.0, -6.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_checkpoints_and_state_dicts_give_the_same(method, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(_map_checkpoints, "CHUNK", 400)  # tensors span several chunks
    states = [draw(seed, dtype) for seed in range(3)]
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for state, path in zip(states, paths, strict=True):
        save_file(state, path)
    on_disk, in_memory = {"ties": (ties, ties_average), "dare": (dare, dare_average)}[method]
    result = on_disk(paths, tmp_path / "out", density=0.3, alpha=0.7)
    expected = in_memory(states[0], states[1:], density=0.3, alpha=0.7)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(written[name].equal(tensor) for name, tensor in expected.items())
    assert result.totals == {"tensors": 4, "weights": 657, "kept_tensors": 1}


def test_dare_at_full_density_is_task_arithmetic():
    base, tuned = draw(0), [draw(1), draw(2)]
    merged, expected = dare_average(base, tuned, density=1.0, alpha=0.4), add_tasks(base, tuned, 0.4)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor)


def test_dare_keeps_the_mean_and_its_share_of_the_changes():
    base, tuned = (
        {"w": torch.zeros(100_000)},
        {"w": torch.randn(100_000, generator=torch.Generator().manual_seed(0)) + 1},
    )
    merged = dare_average(base, [tuned], density=0.25)["w"]
    kept = merged != 0
    assert kept.double().mean().item() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(merged[kept], 4 * tuned["w"][kept])
    assert merged.mean().item() == pytest.approx(tuned["w"].mean().item(), abs=0.03)


def test_dare_draws_by_its_generator_and_each_network_apart():
    base, tuned = {"w": torch.zeros(200)}, {"w": torch.ones(200)}
    draws = [
        dare_average(base, [tuned], density=0.5, generator=torch.Generator().manual_seed(seed))["w"]
        for seed in (1, 1, 2)
    ]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    both = dare_average(base, [tuned, tuned], density=0.5)["w"]
    assert set(both.tolist()) == {0.0, 2.0, 4.0}


@pytest.mark.parametrize("method", [ties_average, dare_average])
def test_bad_input_is_refused(method):
    base, tuned = draw(0), draw(1)
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(HyperparameterError, match="density"):
            method(base, [tuned], density=density)
    with pytest.raises(HyperparameterError, match="alpha"):
        method(base, [tuned], alpha=float("inf"))
    with pytest.raises(HyperparameterError, match="at least two"):
        method(base, [])
    with pytest.raises(NonFiniteError, match="'norm' of state dict 1"):
        method(base, [tuned | {"norm": torch.full((16,), torch.nan)}], density=1.0)


def test_weights_by_pattern():
    base = {"a.w": torch.zeros(2), "b.w": torch.zeros(2)}
    tuned = [{name: torch.tensor([4.0, 2.0]) for name in base}, {name: torch.tensor([1.0, -6.0]) for name in base}]
    merged = ties_average(base, tuned, density=1.0, weights=["a.*=0.75,0.25"])
    assert merged["a.w"].tolist() == [pytest.approx((0.75 * 4 + 0.25 * 1) / 1), 0.0]  # 1.5 against -1.5 cancel
    assert merged["b.w"].tolist() == [2.5, -6.0]
    merged = dare_average(base, tuned, density=1.0, weights=["2", "b.*=0,1"])
    assert merged["a.w"].tolist() == [10.0, -8.0]
    assert merged["b.w"].tolist() == [1.0, -6.0]


@pytest.mark.parametrize("line", ["", "x", "*=1,2,3", "a=nan", "a=1,", "=inf,1"])
def test_bad_weights_name_the_line(line):
    with pytest.raises(HyperparameterError, match="weights"):
        ties_average({"w": torch.zeros(2)}, [{"w": torch.ones(2)}] * 2, weights=[line])
