import copy
import math
import pickle

import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st
from torch import nn

from models import tiny
from weightsmith.adapt import LIFTAdamW, lift, lift_groups, principal_mask
from weightsmith.adapt._lift.groups import approx_rank
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.linalg import project, singular_basis
from weightsmith.core.selection import largest_k
from weightsmith.core.training import default_loss, fit

I = torch.arange(48, dtype=torch.float64)  # noqa: E741
GOLDEN = (torch.sin(1.7 * I) + 0.3 * torch.cos(0.31 * I)).float().view(6, 8)
UP = "model.layers.0.mlp.up_proj.weight"
MASKS = {
    0: [1, 3, 10, 12, 14, 21, 23, 25, 32, 34, 36, 38, 45, 47],
    3: [1, 5, 6, 12, 14, 21, 23, 25, 32, 36, 38, 40, 45, 47],
    7: [1, 6, 14, 16, 21, 23, 25, 32, 38, 40, 41, 42, 45, 47],
    11: [1, 7, 14, 21, 23, 25, 32, 33, 38, 40, 41, 42, 45, 47],
}


def golden_gradient(step):
    return torch.cos(0.9 * I + 0.5 * step).float().view(6, 8)


def chosen(optimizer, parameter):
    return optimizer.state[parameter]["index"].tolist()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adam(weight, gradients, lr, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0):
    """Adam as the paper's code has it, on the dense weight."""
    weight = weight.clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, g in enumerate(gradients, 1):
        first = first * betas[0] + (1 - betas[0]) * g
        second = second * betas[1] + (1 - betas[1]) * g * g
        weight = weight * (1 - lr * weight_decay)
        size = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        weight = weight - size * first / (second.sqrt() + eps)
    return weight


# the choice of weights


@pytest.mark.parametrize("shape", [(6, 8), (40, 30), (30, 300)])
def test_full_rank_is_magnitude(shape):
    weight = randn(*shape)
    k = weight.numel() // 7
    mask = principal_mask(weight, min(shape), k)
    assert torch.equal(mask.flatten().nonzero().squeeze(1), largest_k(weight, k))


def test_a_block_of_ones_is_principal_and_a_larger_lone_weight_is_not():
    weight = torch.zeros(8, 8)
    weight[:6, :6] = 1
    weight[7, 7] = 5
    torch.testing.assert_close(torch.linalg.svdvals(weight)[:2], torch.tensor([6.0, 5.0]))
    assert torch.equal(principal_mask(weight, 1, 36), weight == 1)
    assert principal_mask(weight, 8, 1)[7, 7]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 30), columns=st.integers(2, 30), seed=st.integers(0, 99), data=st.data())
def test_mask_has_k_weights_and_follows_scale_and_order(rows, columns, seed, data):
    weight = randn(rows, columns, seed=seed)
    k = data.draw(st.integers(1, rows * columns))
    rank = data.draw(st.integers(1, min(rows, columns)))
    mask = principal_mask(weight, rank, k)
    assert int(mask.sum()) == k
    assert torch.equal(principal_mask(4.0 * weight, rank, k), mask)
    order_O = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    order_I = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
    permuted = principal_mask(weight[order_O][:, order_I], rank, k)
    assert int((permuted != mask[order_O][:, order_I]).sum()) <= 2  # a pair that rounding could swap
    assert int((mask != principal_mask(weight.T, rank, k).T).sum()) <= 2


def test_ties_leave_exactly_k():
    weight = torch.ones(9, 12)
    assert principal_mask(weight, 9, 17).flatten().nonzero().squeeze(1).tolist() == list(range(17))
    assert int(principal_mask(weight, 1, 17).sum()) == 17


@pytest.mark.parametrize(("power", "niter", "least"), [(1.0, 4, 0.99), (0.5, 4, 0.97), (1.0, 2, 0.98)])
def test_randomised_masks_of_decaying_spectra(power, niter, least):
    left, right = (torch.linalg.qr(randn(size, 768, seed=size)).Q for size in (1024, 768))
    weight = (left * torch.arange(1.0, 769) ** -power) @ right.T
    k = round(0.05 * weight.numel())
    exact = principal_mask(weight, 64, k)
    overlap = (principal_mask(weight, 64, k, niter=niter) & exact).sum() / k
    assert overlap > least


def test_principal_mask_agrees_with_the_singular_value_decomposition():
    weight = randn(50, 80)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    approximation = (left[:, :9] * values[:9]) @ right[:9]
    expected = approximation.abs().flatten().topk(200).indices.sort().values
    assert torch.equal(principal_mask(weight, 9, 200).flatten().nonzero().squeeze(1), expected)


# the optimizer against the paper's code


def test_trajectory_of_the_papers_code():
    weight = nn.Parameter(GOLDEN.clone())
    optimizer = LIFTAdamW([weight], lr=0.1, lora_rank=1, approx_rank=2, update_interval=4)
    for step in range(1, 13):
        weight.grad = golden_gradient(step)
        optimizer.step()
        last = max(done for done in MASKS if done <= step)
        assert chosen(optimizer, weight) == MASKS[last], step
    change = weight.detach() - GOLDEN
    assert weight.sum().item() == pytest.approx(1.1836846, abs=2e-6)
    assert change.abs().sum().item() == pytest.approx(5.6838617, abs=5e-6)
    assert int((change != 0).sum()) == 22
    row1 = [0.622458, 0.115093, -0.966851, -0.438257, 0.098528, -0.297832, -1.111476, 0.340354]
    row5 = [-0.722254, 1.119296, 1.059788, -0.530187, -0.420092, 1.147005, 0.296552, -1.742385]
    torch.testing.assert_close(weight.detach()[[1, 5]], torch.tensor([row1, row5]), rtol=0, atol=1e-5)
    state = optimizer.state[weight]
    assert state["exp_avg"].sum().item() == pytest.approx(-0.0738535, abs=3e-6)
    assert state["exp_avg_sq"].sum().item() == pytest.approx(2.5019796, abs=3e-6)


def test_trajectory_whose_mask_never_changes():
    weight = nn.Parameter(GOLDEN.clone())
    optimizer = LIFTAdamW([weight], lr=0.01, lora_rank=1, approx_rank=2, update_interval=4)
    for step in range(1, 10):
        weight.grad = golden_gradient(step)
        optimizer.step()
        assert chosen(optimizer, weight) == MASKS[0]
    change = weight.detach() - GOLDEN
    assert change.sum().item() == pytest.approx(0.0310776, abs=1e-6)
    assert change.abs().sum().item() == pytest.approx(0.5261033, abs=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("group", [{"density": 1.0}, {"density": None}])
def test_dense_is_adam(group, weight_decay):
    start, gradients = randn(12, 7), [randn(12, 7, seed=seed) for seed in range(1, 9)]
    weight = nn.Parameter(start.clone())
    optimizer = LIFTAdamW([{"params": [weight], **group}], lr=0.01, weight_decay=weight_decay, update_interval=3)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    expected = adam(start, gradients, 0.01, weight_decay=weight_decay)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-7)


def test_chosen_weights_follow_adam_and_the_others_stay():
    start, gradients = randn(20, 30), [randn(20, 30, seed=seed) for seed in range(1, 6)]
    weight = nn.Parameter(start.clone())
    optimizer = LIFTAdamW([weight], lr=0.01, weight_decay=0.1, density=0.1, approx_rank=4, update_interval=None)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient)
    mask = principal_mask(start, 4, 60)
    assert torch.equal(weight.detach()[~mask], start[~mask])
    torch.testing.assert_close(weight.detach()[mask], adam(start, gradients, 0.01, weight_decay=0.1)[mask])


def test_first_step_is_the_learning_rate():
    weight = nn.Parameter(randn(30, 40))
    before, gradient = weight.detach().clone(), randn(30, 40, seed=1)
    optimizer = LIFTAdamW([weight], lr=1e-3, eps=1e-2, density=0.05)
    weight.grad = gradient
    optimizer.step()
    index = optimizer.state[weight]["index"].long()
    moved, g = (weight.detach() - before).flatten()[index].abs(), gradient.flatten()[index].abs()
    torch.testing.assert_close(moved, 1e-3 * g / (g + 1e-2 / math.sqrt(0.05)), rtol=1e-3, atol=1e-7)


def test_new_weight_first_moves_by_the_ratio_of_unbiased_moments():
    weight = nn.Parameter(randn(10, 10))
    optimizer = LIFTAdamW([weight], lr=1e-3, eps=1e-12, density=0.1, approx_rank=2, update_interval=500)
    for step in range(1, 501):
        weight.grad = torch.ones(10, 10)
        if step == 500:
            before, old = weight.detach().clone(), set(old)
        optimizer.step()
        if step == 498:
            old = chosen(optimizer, weight)
            weight.data = randn(10, 10, seed=9)
    new = [place for place in chosen(optimizer, weight) if place not in old]
    assert len(new) >= 3
    moved = (before - weight.detach()).flatten()[new]
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * 0.1 / math.sqrt(0.05)), rtol=1e-3, atol=0)


def test_state_is_two_moments_and_an_index_of_each_chosen_weight():
    weight = nn.Parameter(randn(64, 128))
    optimizer = LIFTAdamW([weight], density=0.05)
    weight.grad = randn(64, 128)
    optimizer.step()
    k = round(0.05 * 64 * 128)
    tensors = {key: value for key, value in optimizer.state[weight].items() if isinstance(value, torch.Tensor)}
    assert {key: (len(value), value.dtype) for key, value in tensors.items()} == {
        "index": (k, torch.int32),
        "exp_avg": (k, torch.float32),
        "exp_avg_sq": (k, torch.float32),
    }
    assert optimizer.trained() == k
    assert sum(value.nbytes for value in tensors.values()) == 12 * k


def test_renewal_carries_moments_and_masters():
    weight = nn.Parameter(randn(20, 30).bfloat16())
    optimizer = LIFTAdamW([weight], lr=0.05, density=0.2, approx_rank=3, update_interval=4)
    for seed in range(2):
        weight.grad = randn(20, 30, seed=seed).bfloat16()
        optimizer.step()
    old = {key: value.clone() for key, value in optimizer.state[weight].items() if key != "step"}
    weight.grad = torch.zeros(20, 30, dtype=torch.bfloat16)
    optimizer.step()
    new = optimizer.state[weight]
    before = torch.zeros(600)
    before[old["index"].long()] = old["exp_avg"] * 0.9
    torch.testing.assert_close(new["exp_avg"], before[new["index"].long()])
    stayed = torch.isin(new["index"], old["index"])
    assert 0 < int(stayed.sum()) < len(stayed)
    rounded = weight.detach().flatten()[new["index"].long()]
    assert torch.equal(new["value"].bfloat16(), rounded)
    assert torch.equal(new["value"][~stayed], rounded[~stayed].float())
    assert not torch.equal(new["value"][stayed], rounded[stayed].float())
    assert torch.equal(new["index"], new["index"].sort().values)


def test_half_precision_weights_move_by_less_than_their_resolution():
    weight = nn.Parameter(torch.full((8, 8), 0.02, dtype=torch.bfloat16))
    optimizer = LIFTAdamW([weight], lr=1e-6, density=0.5, approx_rank=8, update_interval=None)
    for _ in range(200):
        weight.grad = torch.ones(8, 8, dtype=torch.bfloat16)
        optimizer.step()
    index = optimizer.state[weight]["index"].long()
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        optimizer.state[weight]["value"], torch.full((32,), 0.01984), rtol=0, atol=3e-5
    )  # 0.02 is 0.0200195 in bfloat16
    assert bool((weight.detach().flatten()[index] < 0.02).all())


# as torch.optim has it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_restores_weights_chosen_steps_and_moments(dtype, tmp_path):
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)).to(dtype)
    make = lambda model: LIFTAdamW(lift_groups(model, 0.2, 3), lr=0.02, update_interval=7)  # noqa: E731
    x = randn(20, 12).to(dtype)

    def train(model, optimizer, steps):
        for _ in range(steps):
            (model(x) - x.flip(1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    optimizer = make(model)
    train(model, optimizer, 10)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = copy.deepcopy(model)
    again = make(resumed)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    groups = zip(optimizer.param_groups, again.param_groups, strict=True)
    for parameter, twin in [pair for one, other in groups for pair in zip(one["params"], other["params"], strict=True)]:
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(torch.as_tensor(again.state[twin][key]), torch.as_tensor(value))
            assert getattr(again.state[twin][key], "dtype", None) == getattr(value, "dtype", None)
    train(model, optimizer, 9)
    train(resumed, again, 9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    fresh = LIFTAdamW(lift_groups(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)), 0.2, 3))
    with pytest.raises(ShapeError, match="optimizer state"):
        fresh.load_state_dict(optimizer.state_dict())


def test_groups_have_their_own_hyper_parameters_and_closures_run():
    first, second, bias = (nn.Parameter(randn(*shape)) for shape in ((10, 10), (10, 20), (10,)))
    optimizer = LIFTAdamW(
        [
            {"params": [first], "density": 0.3, "approx_rank": 2},
            {"params": [second], "lora_rank": 1},
            {"params": [bias], "density": None, "lr": 0.5},
        ],
        lr=0.1,
    )
    before = [parameter.detach().clone() for parameter in (first, second, bias)]
    loss = optimizer.step(lambda: _backward((first.sum() + second.sum() + bias.sum()) ** 2))
    changed = [int((p != b).sum()) for p, b in zip((first, second, bias), before, strict=True)]
    assert changed == [30, 30, 10]
    assert optimizer.trained() == 70
    assert loss > 0
    torch.testing.assert_close((bias.detach() - before[2]).abs(), torch.full((10,), 0.5), rtol=1e-3, atol=0)


def _backward(loss):
    loss.backward()
    return loss.item()


def test_parameters_without_gradient_are_left_out():
    used, unused = nn.Parameter(randn(8, 8)), nn.Parameter(randn(8, 8))
    optimizer = LIFTAdamW([used, unused])
    used.square().sum().backward()
    optimizer.step()
    assert optimizer.state[used]["step"] == 1
    assert unused not in optimizer.state


def test_schedulers_and_learning_rate_zero():
    weight = nn.Parameter(randn(8, 8))
    optimizer = LIFTAdamW([weight], lr=0.1, density=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    before = weight.detach().clone()
    weight.grad = torch.ones(8, 8)
    optimizer.step()
    assert torch.equal(weight, before)
    schedule.step()
    optimizer.step()
    assert int((weight != before).sum()) == 32


def test_gradient_scaler_skips_a_step_without_counting_it():
    weight = nn.Parameter(randn(8, 8))
    optimizer = LIFTAdamW([weight], lr=0.1, density=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for bad in (False, True, False):
        before = weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale((weight * (float("inf") if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, before) == bad
    assert optimizer.state[weight]["step"] == 2


def test_freed_gradients_are_not_for_a_gradient_scaler():
    """It would find none, and the optimizer would take scaled ones."""
    weight = nn.Parameter(randn(8, 8))
    whole = nn.Parameter(randn(8))
    optimizer = LIFTAdamW([{"params": [weight]}, {"params": [whole], "density": None}], free_gradients=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(weight.sum() + whole.sum()).backward()
    with pytest.raises(UnsupportedModelError, match="a GradScaler needs the gradients that are freed"):
        scaler.step(optimizer)
    optimizer.step()


def test_freed_gradients_are_not_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedModelError, match="before they are averaged over processes: found 2 processes"):
        LIFTAdamW([nn.Parameter(randn(8, 8))], free_gradients=True)


def test_clipping_counts_the_trained_weights():
    start = randn(10, 10)
    clipped, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    gradient = randn(10, 10, seed=3)
    mask = principal_mask(start, 2, 10)
    for parameter, limit in ((clipped, 0.5), (plain, None)):
        parameter.grad = gradient.clone() if limit else gradient * 0.5 / gradient[mask].norm()
        LIFTAdamW([parameter], density=0.1, approx_rank=2, eps=0.1, max_grad_norm=limit).step()
    torch.testing.assert_close(clipped, plain)
    assert not torch.equal(clipped.detach(), start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_freed_gradients_train_the_same(dtype):
    models, x = [], randn(16, 12).to(dtype)
    for free in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)).to(dtype)
        groups = lift_groups(model, 0.2, 3, dense="*bias")
        optimizer = LIFTAdamW(groups, lr=0.01, update_interval=4, free_gradients=free, max_grad_norm=0.1)
        for _ in range(6):
            for half in x.chunk(2):
                model(half).float().square().mean().backward()
                assert (model[0].weight.grad is None) == free
            optimizer.step()
            optimizer.zero_grad()
        models.append(model)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)
    loss = models[1](x).float().square().mean()
    loss.backward()
    optimizer.zero_grad()
    before = models[1][0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(models[1][0].weight, before)


def test_randomised_choice_starts_from_the_last_basis():
    weight = nn.Parameter(randn(40, 60))
    optimizer = LIFTAdamW([weight], lr=1e-4, density=0.1, approx_rank=8, update_interval=3, niter=30)
    for seed in range(3):
        weight.grad = randn(40, 60, seed=seed)
        optimizer.step()
    assert optimizer.state[weight]["basis"].shape == (40, 8)
    exact = principal_mask(weight.detach(), 8, 240).flatten().nonzero().squeeze(1)
    assert torch.isin(exact, optimizer.state[weight]["index"]).float().mean() > 0.98
    fixed = LIFTAdamW([weight], density=0.1, approx_rank=8, update_interval=None, niter=2)
    fixed.step()
    assert "basis" not in fixed.state[weight]


def test_a_subclass_may_choose_by_another_criterion():
    class BySmallest(LIFTAdamW):
        def select(self, parameter, group):
            return largest_k(1 / parameter.detach().abs(), 5)

    weight = nn.Parameter(randn(6, 6))
    optimizer = BySmallest([weight])
    weight.grad = torch.ones(6, 6)
    smallest = weight.detach().abs().flatten().topk(5, largest=False).indices.sort().values
    optimizer.step()
    assert chosen(optimizer, weight) == smallest.tolist()


# models


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "t5", "vit", "cnn", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models(name, dtype):
    model, batch = tiny(name)
    model = model.to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    groups = lift_groups(model, density=0.05, approx_rank=2)
    matrices = [weight for _, weight in groups[0]["params"]]
    assert len({id(weight) for weight in matrices}) == len(matrices)
    optimizer = LIFTAdamW(groups, lr=0.1, update_interval=2)
    output = model(**batch) if isinstance(batch, dict) else model(batch.to(dtype))
    output = output if isinstance(output, torch.Tensor) else output[0]
    output.float().square().mean().backward()
    optimizer.step()
    after = model.state_dict()
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    for key, value in after.items():
        if key in trained:
            k = max(1, round(0.05 * value.numel()))
            assert int((value != before[key]).sum()) <= k
        elif key.rpartition(".")[0] not in ("lm_head",):
            assert torch.equal(value, before[key]), key
    # not all: units that are dead for the batch have no gradient
    assert sum(int((after[key] != before[key]).sum()) for key in trained) > 0.7 * optimizer.trained()


def test_choice_does_not_depend_on_the_layout_of_the_weight():
    weight = randn(16, 48)
    mask = principal_mask(weight, 4, 40)
    for parameter in (
        nn.Parameter(weight.view(16, 3, 4, 4).clone(memory_format=torch.channels_last)),
        nn.Parameter(weight.T.contiguous().T),
    ):
        optimizer = LIFTAdamW([parameter], lr=1.0, density=40 / 768, approx_rank=4)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert torch.equal((parameter.detach().reshape(16, 48) != weight), mask)


def test_tied_weights_are_chosen_once_and_the_head_stays_frozen():
    model, _ = tiny("gpt2")
    names = [name for name, _ in lift_groups(model)[0]["params"]]
    assert not any("lm_head" in name for name in names)
    assert not model.lm_head.weight.requires_grad
    assert not model.transformer.wte.weight.requires_grad
    with_head = [name for name, _ in lift_groups(model, exclude=())[0]["params"]]
    assert sorted({*with_head} - {*names}) == ["lm_head.weight"]
    assert len(with_head) == len(names) + 1


@pytest.mark.parametrize("head", ["lm_head", "embed_out"])
def test_a_head_inside_another_module_stays_frozen(head):
    model = nn.ModuleDict({"language_model": nn.ModuleDict({"body": nn.Linear(8, 8), head: nn.Linear(8, 16)})})
    groups = lift_groups(model)
    assert [name for name, _ in groups[0]["params"]] == ["language_model.body.weight"]


def test_a_matrix_of_zeros_changes_by_a_finite_share():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    result = lift(model, [(torch.rand(4), n % 2) for n in range(8)], density=0.5)
    assert all(0 < row["relative_change"] < float("inf") for row in result.layers if row["layer"] == "2")


def test_groups_of_a_classifier_train_its_new_head_whole():
    model, _ = tiny("bert")
    groups = lift_groups(model, lora_rank=1, dense="classifier.*")
    assert [name for name, _ in groups[1]["params"]] == ["classifier.weight", "classifier.bias"]
    assert "classifier.weight" not in [name for name, _ in groups[0]["params"]]
    optimizer = LIFTAdamW(groups)
    expected = sum(min(sum(p.shape), p.numel()) for p in optimizer.param_groups[0]["params"])
    assert optimizer.trained() == expected + sum(p.numel() for p in model.classifier.parameters())


def test_everything_may_be_trained_whole():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = LIFTAdamW(lift_groups(model, dense="*"))
    assert optimizer.trained() == 20


# training loops


def samples(count=24):
    ids = torch.arange(count)[:, None] + torch.arange(12)
    return [{"input_ids": row % 50 + 1} for row in ids]


@pytest.mark.parametrize("free", [False, True])
def test_accumulated_gradients_are_those_of_the_large_batch(free):
    weights = []
    for accumulate, batch_size in ((1, 8), (4, 2)):
        model, _ = tiny("llama")
        optimizer = LIFTAdamW(lift_groups(model, 0.1, 4), lr=1e-2, update_interval=2, free_gradients=free)
        run = fit(model, samples(), optimizer=optimizer, batch_size=batch_size, accumulation_steps=accumulate)
        assert run.steps == 3
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=2e-4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fit_learns_with_a_twentieth_of_the_weights(precision):
    model, _ = tiny("llama")
    optimizer = LIFTAdamW(lift_groups(model, 0.05, 4), lr=2e-2, update_interval=10)
    run = fit(model, samples(), optimizer=optimizer, epochs=12, batch_size=8, precision=precision)
    assert run.losses[-1] < run.losses[0] - 0.3


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_with_accumulation_saves_and_resumes(bf16, tmp_path):
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, row):
            ids = (torch.arange(12) + row) % 50 + 1
            return {"input_ids": ids, "labels": ids}

    def trainer(steps, folder):
        model, _ = tiny("llama")
        optimizer = LIFTAdamW(lift_groups(model, 0.1, 4), lr=1e-2, update_interval=3)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            bf16=bf16,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        return transformers.Trainer(model, arguments, train_dataset=Data(), optimizers=(optimizer, None)), optimizer

    whole, optimizer = trainer(4, tmp_path / "whole")
    whole.train()
    assert all(optimizer.state[p]["step"] == 4 for p in optimizer.param_groups[0]["params"])
    first, _ = trainer(2, tmp_path / "halves")
    first.train()
    second, _ = trainer(4, tmp_path / "halves")
    second.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_command_trains_and_reports():
    model, _ = tiny("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = lift(
        model,
        samples(),
        density=0.1,
        update_interval=5,
        learning_rate=1e-2,
        epochs=4,
        generator=torch.Generator().manual_seed(3),
    )
    after = model.state_dict()
    changed = {key: int((after[key] != before[key]).sum()) for key in after}
    assert result.totals["changed"] == sum(changed.values())
    assert result.totals["delta_bytes"] == 8 * result.totals["changed"]
    assert result.totals["trainable"] == sum(row["trainable"] for row in result.layers)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert len(result.curves["training loss"]) == 12
    assert result.curves["training loss"][-1] < result.curves["training loss"][0]
    row = result.layers[0]
    key = f"{row['layer']}.weight"
    assert row["changed"] == changed[key]
    assert row["relative_change"] == pytest.approx(((after[key] - before[key]).norm() / before[key].norm()).item())


def test_command_repeats_with_the_same_generator():
    weights = []
    for seed in (1, 1, 2):
        model, _ = tiny("llama")
        lift(model, samples(), learning_rate=1e-2, niter=1, generator=torch.Generator().manual_seed(seed))
        weights.append(model.model.layers[0].mlp.up_proj.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_command_that_fails_leaves_the_model_as_it_was():
    model, _ = tiny("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    passes = []

    def fail_at_the_third(module, inputs, output):
        passes.append(not torch.equal(model.model.layers[0].mlp.up_proj.weight, before[UP]))
        if len(passes) == 3:
            raise RuntimeError("out of luck")

    model.lm_head.register_forward_hook(fail_at_the_third)
    with pytest.raises(RuntimeError, match="out of luck"):
        lift(model, samples(), density=0.1, learning_rate=1e-2)
    assert passes == [False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted


# bad input


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"density": 0.0}, r"density: found 0\.0, expected in \(0, 1\]"),
        ({"density": 1.5}, "density"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"approx_rank": 0}, "approx_rank: found 0, expected >= 1"),
        ({"approx_rank": -3}, "approx_rank"),
        ({"update_interval": 0}, "update_interval"),
        ({"niter": -1}, "niter"),
        ({"lr": -1.0}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
    ],
)
def test_hyper_parameters_out_of_range(hyper, message):
    with pytest.raises(HyperparameterError, match=message):
        LIFTAdamW([nn.Parameter(randn(8, 8))], **hyper)


def test_both_budgets_and_a_group_that_is_refused_leave_the_optimizer_as_it_was():
    optimizer = LIFTAdamW([nn.Parameter(randn(8, 8))])
    with pytest.raises(HyperparameterError, match="density and lora_rank: found both"):
        optimizer.add_param_group({"params": [nn.Parameter(randn(8, 8))], "density": 0.1, "lora_rank": 2})
    with pytest.raises(ShapeError, match=r"parameter 'number 0': found \(8,\), expected a matrix"):
        optimizer.add_param_group({"params": [nn.Parameter(randn(8))]})
    assert len(optimizer.param_groups) == 1


def test_ranks_and_budgets_beyond_the_matrix_warn():
    weight = nn.Parameter(randn(8, 12))
    with pytest.warns(UserWarning, match="approx_rank 64 exceeds the shorter side"):
        optimizer = LIFTAdamW([weight], approx_rank=64)
    weight.grad = randn(8, 12)
    optimizer.step()
    assert chosen(optimizer, weight) == largest_k(randn(8, 12), 5).tolist()
    with pytest.warns(UserWarning, match="covers 1 weights whole, such as 'number 0': dense"):
        optimizer = LIFTAdamW([weight], lora_rank=5)
    assert optimizer.trained() == 96


def test_weights_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data[0, 0] = float("nan")
    optimizer = LIFTAdamW(lift_groups(model))
    before = model[0].weight.detach().clone()
    model(randn(2, 8)).nan_to_num().sum().backward()
    with pytest.raises(NonFiniteError, match=r"weights of '1\.weight' hold NaN"):
        optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_parameters_that_lift_cannot_train():
    quantised = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    for parameter, message in (
        (quantised, "found torch.int8, expected floating point"),
        (nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False), "float8"),
        (nn.Parameter(torch.ones(4, 4, dtype=torch.complex64)), "complex64"),
        (nn.Parameter(torch.ones(4, 4, device="meta")), "meta device or empty"),
        (nn.Parameter(torch.ones(0)), "meta device or empty"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            LIFTAdamW([parameter])
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    model[0].weight = quantised
    with pytest.raises(UnsupportedModelError, match=r"parameter '0\.weight'"):
        lift_groups(model)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_sparse_gradients_are_refused():
    table = nn.Embedding(20, 8, sparse=True)
    optimizer = LIFTAdamW(table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(UnsupportedModelError, match="sparse gradient"):
        optimizer.step()


def test_embeddings_can_be_trained_when_asked():
    table = nn.Embedding(20, 8)
    before = table.weight.detach().clone()
    optimizer = LIFTAdamW(table.named_parameters(), lr=0.1, density=0.25)
    table(torch.arange(20)).sum().backward()
    optimizer.step()
    assert int((table.weight != before).sum()) == 40


def test_default_rank_is_at_most_half_of_the_shorter_side():
    weight = nn.Parameter(randn(30, 40))
    optimizer = LIFTAdamW([weight], density=0.1)
    weight.grad = randn(30, 40)
    start = weight.detach().clone()
    optimizer.step()
    assert chosen(optimizer, weight) == largest_k(project(start, singular_basis(start, 15)), 120).tolist()


def test_loss_of_samples_is_the_models_own():
    model, _ = tiny("llama")
    batch = {"input_ids": torch.stack([s["input_ids"] for s in samples()])}
    assert default_loss(model, batch).item() == pytest.approx(model(**batch, labels=batch["input_ids"]).loss.item())


def test_every_expert_of_a_stack_has_its_own_principal_weights():
    from weightsmith.testing import tiny as still

    model, _ = still("mixtral")
    stack = model.model.layers[0].mlp.experts.gate_up_proj
    groups = lift_groups(model, density=0.1)
    assert [group.get("stacked", False) for group in groups] == [False, True]
    assert [name for name, _ in groups[1]["params"]][:2] == [
        f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")
    ]
    optimizer = LIFTAdamW(groups, lr=1e-2)
    ids = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    before = stack.detach().clone()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    for old, new in zip(before, stack.detach(), strict=True):
        chosen = principal_mask(old, approx_rank(old, groups[1]), round(0.1 * old.numel()))
        moved = new != old
        assert moved.sum() > 0.9 * chosen.sum()
        assert not (moved & ~chosen).any()
    with pytest.raises(UnsupportedModelError, match="patterns that choose 1 of them. Choose all or none"):
        lift_groups(model, include="*.experts.2.down_proj")
    text = " ".join(lift(model, [{"input_ids": row} for row in ids], density=0.1).notes)
    assert "mlp.gate" in text, "the router is named"


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_a_copy_between_backward_and_step_holds_the_kept_gradients(how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    options = {"density": 0.2, "free_gradients": True, "max_grad_norm": 0.1}
    optimizer = LIFTAdamW([p for p in model.parameters() if p.ndim == 2], lr=1e-2, **options)
    x = torch.rand(5, 16)
    model(x).square().mean().backward()
    other, again = how((model, optimizer))
    for _ in range(2):
        for network, steps in ((model, optimizer), (other, again)):
            steps.step()
            steps.zero_grad()
            network(x).square().mean().backward()
            assert network[0].weight.grad is None, "the copy frees gradients, too"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("damage", [{"state": {0: {"step": 1}}}, {"param_groups": [{}]}, {"state": None}], ids=str)
def test_a_damaged_state_is_refused(damage):
    optimizer = LIFTAdamW([nn.Parameter(torch.rand(8, 8))], lr=1e-2)
    before = optimizer.state_dict()
    with pytest.raises(CheckpointError, match="optimizer state: found parts are missing"):
        optimizer.load_state_dict(before | damage)
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_dense_parameters_are_found_inside_wrappers_and_named_where_there_are_none(wrap):
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    lift_groups(wrap(model), exclude="2", dense="2.*")
    assert model[2].bias.requires_grad
    with pytest.raises(LayerNotFoundError, match=r"no parameter matches 'classifer\.\*' of dense"):
        lift_groups(wrap(model), dense="classifer.*")


def test_a_model_may_be_one_layer():
    layer = nn.Linear(12, 4)
    before = layer.weight.clone()
    lift(layer, [(torch.randn(12), n % 4) for n in range(8)], density=0.5, learning_rate=0.1)
    assert 0 < int((layer.weight != before).sum()) <= 24


def step(model, optimizer, x):
    model(x).float().square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_set_between_steps_are_taken_over(dtype):
    torch.manual_seed(0)
    head, x = nn.Linear(16, 4).to(dtype), torch.randn(4, 16).to(dtype)
    optimizer = LIFTAdamW([{"params": list(head.parameters()), "density": None}], lr=1e-4)
    step(head, optimizer, x)
    with torch.no_grad():
        head.weight[2:] += 0.5
    before = head.weight.detach().clone()
    step(head, optimizer, x)
    assert float((head.weight - before).abs().max()) < 5e-3


def test_a_state_of_float32_goes_on_in_half_precision():
    torch.manual_seed(0)
    model, x = nn.Linear(16, 4), torch.randn(4, 16)
    first = LIFTAdamW([{"params": list(model.parameters()), "density": None}], lr=1e-5)
    step(model, first, x)
    half = copy.deepcopy(model).bfloat16()
    second = LIFTAdamW([{"params": list(half.parameters()), "density": None}], lr=1e-5)
    second.load_state_dict(first.state_dict())
    before = half.weight.detach().clone()
    for _ in range(400):
        step(half, second, x.bfloat16())
    assert float((half.weight != before).float().mean()) > 0.5
