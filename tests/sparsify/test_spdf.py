"""SPDF: exact counts, exact zeros under any optimizer, operations as in the paper, release into a dense model."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from models import PLAIN, TRANSFORMERS, tiny
from weightsmith.core.data import call
from weightsmith.core.errors import HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.models import find_layers
from weightsmith.core.training import fit
from weightsmith.sparsify import StaticSparsity, forward_flops, spdf

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.5),
    "muon": lambda p: torch.optim.Muon([w for w in p if w.ndim == 2], lr=0.1),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(width=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def data(width=16):
    x = torch.randn(64, width, generator=seeded())
    return TensorDataset(x, (x[:, :4]).argmax(1))


def train(model, optimizer, steps=5):
    x, y = data().tensors
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def masked(held):
    return [(layer.weight.detach(), layer.module.weight_mask) for layer in held.layers]


@pytest.mark.parametrize(
    ("shape", "sparsity", "kept"),
    [((768, 768), 0.75, 147_456), ((4096, 4096), 0.5, 8_388_608), ((3072, 768), 0.9, 235_929), ((1, 10), 0.75, 2)],
)
def test_counts_are_the_paper_s(shape, sparsity, kept):
    model = nn.Linear(shape[1], shape[0], bias=False)
    model.weight.data.fill_(1.0)  # of many random weights one may be zero
    StaticSparsity(model, sparsity, generator=seeded())
    assert int(model.weight_mask.sum()) == kept == int(model.weight.count_nonzero())


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.99), st.sampled_from(["random", "magnitude"]))
def test_every_matrix_keeps_exactly_its_share(rows, columns, sparsity, start):
    model = nn.Linear(columns, rows)
    kept = int(torch.tensor(1 - sparsity) * (rows * columns))
    if kept == 0:
        with pytest.raises(HyperparameterError, match="which leaves '' none of its"):
            StaticSparsity(model, sparsity, start=start)
        return
    StaticSparsity(model, sparsity, start=start)
    assert int(model.weight_mask.sum()) == kept


def test_magnitude_keeps_the_largest_and_zeros_keeps_what_is_there():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, -4.0, 1.0, 0.0]])
    held = StaticSparsity(model, 0.5, start="magnitude")
    assert model.weight.tolist() == [[3.0, -4.0, 0.0, 0.0]]
    held.densify()
    assert StaticSparsity(model, start="zeros").layers[0].module.weight_mask.tolist() == [[True, True, False, False]]


def test_zero_sparsity_changes_no_bit():
    plain, controlled = network(), network()
    held = StaticSparsity(controlled, 0.0)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (plain, controlled)]
    held.attach(optimizers[1])
    for model, optimizer in zip((plain, controlled), optimizers, strict=True):
        train(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), controlled.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_and_their_moments_stay_exactly_zero(name):
    model = network()
    held = StaticSparsity(model, 0.75, generator=seeded())
    optimizer = OPTIMIZERS[name]([layer.weight for layer in held.layers] if name == "muon" else [*model.parameters()])
    held.attach(optimizer)
    before = [weight.clone() for weight, _ in masked(held)]
    train(model, optimizer)
    for (weight, mask), old in zip(masked(held), before, strict=True):
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != old[mask]).any()
    for layer in held.layers:
        for state in optimizer.state[layer.weight].values():
            if isinstance(state, torch.Tensor) and state.shape == layer.weight.shape:
                assert (state[~layer.module.weight_mask] == 0).all()


def test_worked_adamw_steps():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    held = StaticSparsity(model, start="zeros")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
    held.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (model.weight * torch.tensor([[1.0, 1.0, -1.0, 1.0]])).sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.data, torch.tensor([[0.673289, 0.0, 2.237608, 0.0]]), atol=1e-6, rtol=0)
    moments = optimizer.state[model.weight]["exp_avg"]
    torch.testing.assert_close(moments, torch.tensor([[0.271, 0.0, -0.271, 0.0]]))


def test_clipping_and_nan_see_active_weights_only():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    StaticSparsity(model, start="zeros")
    (model.weight * torch.tensor([[3.0, 4.0, 0.0, 12.0]])).sum().backward()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9) == 3.0
    for bad, is_bad in ((1, False), (0, True)):
        model.weight.grad = None
        factor = torch.ones(1, 4)
        factor[0, bad] = torch.nan
        (model.weight * factor).sum().backward()
        assert bool(model.weight.grad.isnan().any()) == is_bad


def test_densify_lets_every_weight_move():
    model = network()
    held = StaticSparsity(model, 0.75, generator=seeded())
    mask = model[2].weight_mask.clone()
    held.attach(optimizer := torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0))
    train(model, optimizer)
    held.densify()
    assert list(model.state_dict()) == list(network().state_dict())
    before = model[2].weight.detach().clone()
    train(model, torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0), steps=1)
    moved = (model[2].weight - before).abs()
    gradient = model[2].weight.grad.abs() > 1e-5
    torch.testing.assert_close(moved[gradient], torch.full_like(moved[gradient], 0.01), rtol=1e-2, atol=0)
    assert (moved[~mask & gradient] > 0).all()
    assert (~mask & gradient).any()


def test_densify_refuses_zeros_that_were_broken():
    model = network()
    held = StaticSparsity(model, 0.5, generator=seeded())
    model[0].weight.data.fill_(1.0)
    with pytest.raises(NonFiniteError, match=r"masked weights of '0' must be zero: found 128 of 128 are not"):
        held.densify()


def test_masks_of_two_seeds_overlap_by_chance_and_one_seed_repeats():
    masks = []
    for seed in (0, 1, 0):
        model = nn.Linear(512, 512)
        StaticSparsity(model, 0.75, generator=seeded(seed))
        masks.append(model.weight_mask)
    assert torch.equal(masks[0], masks[2])
    assert (masks[0] & masks[1]).float().mean().item() == pytest.approx(0.25**2, rel=0.05)


def test_a_checkpoint_brings_its_masks_back(tmp_path):
    model = network()
    held = StaticSparsity(model, 0.75, generator=seeded())
    held.attach(optimizer := torch.optim.AdamW(model.parameters(), lr=0.01))
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    train(model, optimizer, steps=3)
    resumed = network()
    again = StaticSparsity(resumed, 0.75, generator=seeded(9))
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    again.attach(other := torch.optim.AdamW(resumed.parameters(), lr=0.01))
    other.load_state_dict(saved["optimizer"])
    train(resumed, other, steps=3)
    ours, theirs = model.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_loaded_dirty_state_is_cleaned():
    model = network()
    dense = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, dense)
    held = StaticSparsity(model, 0.75, generator=seeded())
    held.attach(optimizer := torch.optim.AdamW(model.parameters(), lr=0.01))
    optimizer.load_state_dict(dense.state_dict())
    assert (optimizer.state[model[0].weight]["exp_avg"][~model[0].weight_mask] == 0).all()


def test_phases_release_nested_masks():
    model = network()
    held = StaticSparsity(model, 0.9, generator=seeded())
    first = [mask.clone() for _, mask in masked(held)]
    held.relax(0.5, seeded(1))
    for (weight, mask), old in zip(masked(held), first, strict=True):
        assert (mask | ~old).all(), "what was active stays active"
        assert int(mask.sum()) == weight.numel() // 2
    with pytest.raises(HyperparameterError, match="masks are nested"):
        held.relax(0.8)


@pytest.mark.parametrize("name", [*TRANSFORMERS, *PLAIN])
def test_forward_is_that_of_the_masked_weights(name):
    model, batch = tiny(name)
    reference = copy.deepcopy(model)
    held = StaticSparsity(model, 0.5, generator=seeded())
    for layer in held.layers:
        weight = reference.get_submodule(layer.name).weight
        weight.data *= layer.module.weight_mask
    ours, theirs = call(model, batch), call(reference, batch)
    if not isinstance(ours, torch.Tensor):
        ours, theirs = ours.logits, theirs.logits
    assert torch.equal(ours, theirs)
    dense = {layer.name for layer in find_layers(model)} - {layer.name for layer in held.layers}
    assert dense == {
        "llama": {"lm_head"}, "qwen3": {"lm_head"}, "gemma3": {"lm_head"}, "gpt2": {"lm_head"}, "opt": {"lm_head"},
        "bert": {"bert.pooler.dense", "classifier"}, "t5": {"lm_head"},
        "vit": {"vit.embeddings.patch_embeddings.projection", "classifier"},
    }.get(name, set())  # fmt: skip


@pytest.mark.parametrize(
    ("size", "forward", "half", "quarter"),
    [
        ({}, 3.226e8, 1.36, 1.65),
        ({"n_embd": 2048, "n_layer": 24, "n_head": 16}, 3.024e9, 1.67, 2.49),
    ],
    ids=["gpt2-small", "gpt3-xl"],
)
def test_operations_are_those_of_the_paper(size, forward, half, quarter):
    """A mask on the meta device holds no values, so its zeros are counted from a share of the matrices' own part."""
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=2048, **size))
        ids = {"input_ids": torch.zeros(1, 2048, dtype=torch.long)}
        counted = forward_flops(model, ids)
    assert counted["dense"] / 2048 == pytest.approx(forward, rel=1e-3)
    matrices = sum(2 * p.numel() for name, p in model.transformer.h.named_parameters() if p.ndim == 2)
    for sparsity, ratio in ((0.5, half), (0.75, quarter)):
        assert counted["dense"] / (counted["dense"] - sparsity * matrices * 2048) == pytest.approx(ratio, abs=0.006)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_operations_of_zeros_are_left_out(attention):
    model, batch = tiny("llama")
    model.set_attn_implementation(attention)
    dense = forward_flops(model, batch)
    assert dense["ratio"] == 1.0
    matrices = sum(2 * w.numel() for n, w in model.named_parameters() if n.endswith(("proj.weight", "lm_head.weight")))
    rows, length = batch["input_ids"].numel(), batch["input_ids"].shape[1]
    assert dense["dense"] == rows * matrices + 2 * rows * 4 * length * 32, "2 blocks; scores and values, 32 wide"
    StaticSparsity(model, 0.75, generator=seeded())
    sparse = forward_flops(model, batch)
    matrices = sum(2 * w.numel() for n, w in model.model.layers.named_parameters() if n.endswith("proj.weight"))
    assert sparse["dense"] == dense["dense"]
    assert sparse["dense"] - sparse["sparse"] == 0.75 * matrices * batch["input_ids"].numel()


def test_it_works_in_fit_with_accumulation_and_bf16():
    model = network()
    held = StaticSparsity(model, 0.75, generator=seeded())
    held.attach(optimizer := torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1))
    run = fit(
        model,
        data(),
        optimizer=optimizer,
        epochs=30,
        batch_size=16,
        accumulation_steps=2,
        precision="bf16",
        clip_norm=1.0,
    )
    assert run.losses[-1] < 0.9 * run.losses[0]
    assert all((weight[~mask] == 0).all() for weight, mask in masked(held))


def test_it_works_in_the_trainer(tmp_path):
    model, batch = tiny("llama")
    held = StaticSparsity(model, 0.75, generator=seeded())
    held.attach(optimizer := torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1))
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
    assert all((weight[~mask] == 0).all() for weight, mask in masked(held))
    held.densify()
    model.save_pretrained(tmp_path / "dense")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_spdf_trains_sparsely_then_densely():
    model, batch = tiny("opt")
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    result = spdf(model, rows, learning_rate=1e-2, epochs=20, dense_epochs=10, batch_size=4, generator=seeded())
    assert {row["density"] for row in result.layers} == {0.25}
    assert len(result.curves["sparse phase: training loss"]) == 40
    assert len(result.curves["dense phase: training loss"]) == 20
    assert result.curves["sparse phase: training loss"][-1] < result.curves["sparse phase: training loss"][0]
    assert not any(name.endswith("mask") for name in model.state_dict())
    assert (model.model.decoder.layers[0].fc1.weight == 0).float().mean() < 0.01


def test_spdf_without_a_dense_phase_leaves_zeros():
    model, batch = tiny("gpt2")
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    spdf(model, rows, dense_epochs=0, generator=seeded())
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert (weight == 0).sum() == weight.numel() * 3 // 4


def test_a_run_that_fails_leaves_the_model_as_it_was():
    model, batch = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    with pytest.raises(NonFiniteError):
        spdf(model, rows, learning_rate=1e30, epochs=3, generator=seeded())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [(75, r"found 75, expected a share in \[0, 1\). Use 0.75."), (-0.1, "found -0.1"), (1.0, "found 1.0")],
)
def test_bad_sparsity(sparsity, message):
    with pytest.raises(HyperparameterError, match=message):
        StaticSparsity(network(), sparsity)


def test_bad_models_are_refused_unchanged():
    model = network()
    held = StaticSparsity(model, 0.5)
    with pytest.raises(UnsupportedModelError, match="'0' is masked already"):
        StaticSparsity(model, 0.5)
    with pytest.raises(UnsupportedModelError, match="the optimizer holds none of the masked weights"):
        held.attach(torch.optim.SGD(network().parameters(), lr=1.0))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    before = tied[0].weight.clone()
    with pytest.raises(UnsupportedModelError, match="'0' is tied to '1'"):
        StaticSparsity(tied, 0.5)
    assert torch.equal(tied[0].weight, before)


def test_training_without_attach_warns_once():
    model = network()
    StaticSparsity(model, 0.5)
    with pytest.warns(UserWarning, match="without attach"):
        model(data().tensors[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(data().tensors[0])


def test_a_replaced_parameter_is_hooked_again():
    model = network()
    StaticSparsity(model, 0.5, generator=seeded())
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.warns(UserWarning, match="without attach"):
        model(data().tensors[0]).sum().backward()
    assert (model[0].weight.grad[~model[0].weight_mask] == 0).all()


def test_a_copy_of_the_model_holds_its_gradients_and_says_that_no_optimizer_is_attached():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    StaticSparsity(model, 0.75).attach(torch.optim.AdamW(model.parameters()))
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"without attach\(optimizer\)"):
        loss = twin(torch.randn(4, 8)).square().sum()
    loss.backward()
    optimizer.step()
    assert int(twin[0].weight.count_nonzero()) == 16


def test_frozen_layers_stay_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])
    model[1].requires_grad_(False)
    before = model[1].weight.clone()
    result = spdf(model, [(torch.randn(8), n % 8) for n in range(8)], sparsity=0.5)
    assert torch.equal(model[1].weight, before)
    assert [row["layer"] for row in result.layers] == ["0", "2"]
    assert "Frozen and unchanged: 1." in result.notes


def test_masks_of_channels_last_weights_are_relaxed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[:, ::2] = 0
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    held = StaticSparsity(model, start="zeros")
    held.relax(0.25, torch.Generator().manual_seed(0))
    for layer, old in zip((model[0], model[2]), before, strict=True):
        assert float((~layer.weight_mask).float().mean()) == 0.25
        assert bool(layer.weight_mask[old != 0].all()), "masks are nested"
    held.attach(optimizer := torch.optim.AdamW(model.parameters(), lr=0.1))
    model(torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[2].weight != 0, model[2].weight_mask)
    held.densify()
