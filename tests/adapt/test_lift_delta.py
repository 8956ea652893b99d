import copy
import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import tiny
from weightsmith.adapt import LIFTAdamW, SparseDelta, apply_delta, export_shira, lift_groups, load_delta, save_delta
from weightsmith.core.errors import CheckpointError, HyperparameterError, LayerNotFoundError, ShapeError

IDS = torch.arange(60).view(5, 12) % 50 + 1


def train(model, steps=7, **hyper):
    groups = lift_groups(model, approx_rank=4, lora_rank=1)
    optimizer = LIFTAdamW(groups, lr=0.02, **hyper)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def same_bits(one, other):
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_delta_turns_the_base_into_the_tuned_model_bit_for_bit(name, dtype, tmp_path):
    base = tiny(name)[0].to(dtype)
    tuned = copy.deepcopy(base)
    optimizer = train(tuned, update_interval=3)
    delta = optimizer.sparse_delta(base.state_dict())
    save_delta(delta, tmp_path / "lift.safetensors")
    assert not same_bits(base.parameters(), tuned.parameters())
    apply_delta(base, tmp_path / "lift.safetensors")
    assert same_bits(base.state_dict().values(), tuned.state_dict().values())
    changed = sum(len(part.index) for part in delta.parts.values())
    assert delta.nbytes == changed * (4 + dtype.itemsize)
    assert changed > (1.05 * optimizer.trained() if dtype == torch.float32 else 0)  # the choice has moved
    stored = load_file(tmp_path / "lift.safetensors")
    assert {tensor.dtype for key, tensor in stored.items() if key.endswith(".index")} == {torch.int32}
    loaded = load_delta(tmp_path / "lift.safetensors")
    for key, part in delta.parts.items():
        assert torch.equal(loaded.parts[key].index, part.index)
        assert torch.equal(loaded.parts[key].value, part.value)


def test_fixed_choice_gives_a_delta_of_its_weights():
    base = tiny("llama")[0]
    tuned = copy.deepcopy(base)
    optimizer = train(tuned, update_interval=None)
    delta = optimizer.sparse_delta(base.state_dict())
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            assert bool(torch.isin(delta.parts[name].index, optimizer.state[parameter]["index"]).all())


def test_signs_of_zero_and_nan_are_kept():
    base = {"w": torch.tensor([[0.0, 1.0], [float("nan"), 2.0]])}
    tuned = {"w": torch.tensor([[-0.0, 1.0], [float("nan"), float("nan")]])}
    part = SparseDelta.between(base, tuned).parts["w"]
    assert part.index.tolist() == [0, 3]
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = base["w"].clone()
    apply_delta(module, SparseDelta.between({"weight": base["w"]}, {"weight": tuned["w"]}))
    assert same_bits([module.weight.detach()], [tuned["w"]])


def test_nothing_changed_and_non_contiguous_weights(tmp_path):
    base, tuned = nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 2)
    assert all(len(p.index) == 0 for p in SparseDelta.between(base.state_dict(), base.state_dict()).parts.values())
    save_delta(SparseDelta.between(base.state_dict(), base.state_dict()), tmp_path / "none.safetensors")
    apply_delta(base, tmp_path / "none.safetensors")
    base, tuned = (conv.to(memory_format=torch.channels_last) for conv in (base, tuned))
    apply_delta(base, SparseDelta.between(base.state_dict(), tuned.state_dict()))
    assert torch.equal(base.weight, tuned.weight)


def test_delta_refuses_another_base_and_changes_nothing(tmp_path):
    base = tiny("llama")[0]
    tuned = copy.deepcopy(base)
    delta = train(tuned).sparse_delta(base.state_dict())
    save_delta(delta, tmp_path / "lift.safetensors")
    other = copy.deepcopy(base)
    last = list(delta.parts)[-1]
    dict(other.named_parameters())[last].data.mul_(1.5)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match="is not the one the delta was taken from"):
        apply_delta(other, tmp_path / "lift.safetensors")
    assert same_bits(other.state_dict().values(), before.values())
    with pytest.raises(CheckpointError, match="is not the one the delta was taken from"):
        apply_delta(tuned, delta)
    with pytest.raises(LayerNotFoundError, match="no tensor 'model.layers"):
        apply_delta(tiny("gpt2")[0], delta)
    with pytest.raises(ShapeError, match=r"found .*bfloat16.*, expected .*float32"):
        apply_delta(copy.deepcopy(base).bfloat16(), delta)


def test_delta_files_that_are_none(tmp_path):
    delta = SparseDelta.between({"w": torch.zeros(3, 3)}, {"w": torch.eye(3)})
    with pytest.raises(CheckpointError, match="ends in .safetensors"):
        save_delta(delta, tmp_path / "lift.bin")
    save_delta(delta, tmp_path / "lift.safetensors")
    with pytest.raises(CheckpointError, match="exists"):
        save_delta(delta, tmp_path / "lift.safetensors")
    save_delta(delta, tmp_path / "lift.safetensors", overwrite=True)
    save_file({"w": torch.eye(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no sparse delta"):
        load_delta(tmp_path / "model.safetensors")
    save_file(
        {"w.index": torch.arange(3)},
        tmp_path / "half.safetensors",
        {"format": "weightsmith-sparse-delta", "about": "{"},
    )
    with pytest.raises(CheckpointError, match="is damaged"):
        load_delta(tmp_path / "half.safetensors")
    bad = SparseDelta({"weight": delta.parts["w"].__class__(torch.tensor([99]), torch.ones(1), (3, 3), 0)})
    with pytest.raises(ShapeError, match="places in 'weight': found 99, expected below 9"):
        apply_delta(nn.Linear(3, 3, bias=False), bad)


def test_delta_needs_names_and_the_base():
    weight = nn.Parameter(torch.randn(8, 8))
    with pytest.raises(HyperparameterError, match="parameters without names"):
        LIFTAdamW([weight]).sparse_delta({"weight": weight})
    model = nn.Sequential(nn.Linear(8, 8))
    optimizer = LIFTAdamW(lift_groups(model))
    with pytest.raises(LayerNotFoundError, match=r"no tensor '0\.weight'"):
        optimizer.sparse_delta({})


@pytest.mark.parametrize("interval", [None, 3])
def test_shira_adapter_of_peft_is_the_tuned_model(interval, tmp_path):
    base = tiny("llama")[0]
    tuned = copy.deepcopy(base)
    delta = train(tuned, update_interval=interval).sparse_delta(base.state_dict())
    rank = export_shira(delta, base.state_dict(), tmp_path / "shira")
    assert rank == max(math.ceil(len(part.index) / sum(part.shape)) for part in delta.parts.values())
    assert (rank == 1) == (interval is None)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "shira"))
    expected = tuned(input_ids=IDS).logits
    torch.testing.assert_close(adapted(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    assert (base(input_ids=IDS).logits - expected).abs().max() > 0.05
    merged = adapted.merge_and_unload()
    for one, other in zip(merged.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_shira_refuses_what_does_not_fit(tmp_path):
    full = SparseDelta.between({"a.weight": torch.zeros(3, 5)}, {"a.weight": torch.ones(3, 5)})
    with pytest.raises(HyperparameterError, match="found 2, expected at most 1"):
        export_shira(full, {"a.weight": torch.zeros(3, 5)}, tmp_path / "no")
    bias = SparseDelta.between({"a.bias": torch.zeros(4)}, {"a.bias": torch.ones(4)})
    with pytest.raises(ShapeError, match="expected the weight of a linear layer"):
        export_shira(bias, {"a.bias": torch.zeros(4)}, tmp_path / "no")
    assert not (tmp_path / "no").exists()
