import copy
import json
import math

import peft
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from peft import LoraConfig, MissConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from models import tiny
from weightsmith.adapt import BoneConfig, BoneLinear, bone
from weightsmith.adapt._bone.blocks import (
    BatLinear,
    add_shards,
    apply_bat,
    apply_bat_row,
    apply_miss,
    row_linear,
    undo_bat,
    undo_bat_row,
    undo_miss,
)
from weightsmith.core.errors import (
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.levels import Quantization
from weightsmith.core.training import fit
from weightsmith.quantize import pack_linear, round_to_nearest
from weightsmith.testing import Snapshot

VARIANTS = ["bat", "bat-row", "miss", "mini"]
APPLY = {"bat": apply_bat, "bat-row": apply_bat_row, "miss": apply_miss, "mini": apply_miss}
UNDO = {"bat": undo_bat, "bat-row": undo_bat_row, "miss": undo_miss, "mini": undo_miss}


def sine(*shape, rate, start=0.0, scale=1.0):
    return scale * torch.sin(rate * torch.arange(math.prod(shape), dtype=torch.float64) + start).reshape(shape)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


@pytest.fixture
def golden():
    weight, x = sine(4, 6, rate=0.7, start=0.1), sine(3, 6, rate=0.5)
    return weight, x, sine(2, 2, 2, rate=1.3, start=0.4, scale=0.1), sine(3, 2, 2, rate=1.1, start=0.2, scale=0.1)


def mlp(dtype=torch.float32, width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)


def adapted(model, variant="bat", r=4, targets=("0", "2"), seed=0, name="default", **fields):
    """The model with adapters of a few random numbers."""
    fields = {"mini_r": 2} | fields if variant == "mini" else fields
    model = get_peft_model(
        model, BoneConfig(r=r, variant=variant, target_modules=list(targets), **fields), adapter_name=name
    )
    shake(model, seed)
    return model


def shake(model, seed=0, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "miss_block" in name:
            parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))


# ---- the arithmetic -------------------------------------------------------------------------------------------------


def test_golden_numbers_of_bat(golden):
    weight, x, block, _ = golden
    updated = apply_bat(weight, block)
    change = updated - weight
    close(change.sum(), 0.3928175656)
    close(change.norm(), 0.4283086684)
    close(
        change[0], [0.0529528603, 0.0433448882, 0.0891956205, 0.1240128622, 0.0420137931, 0.1634342108], tolerance=1e-10
    )
    close((x @ updated.T)[0], [2.2980179072, 0.2320709466, -2.4463245822, 2.0553371727])
    close(BatLinear.apply(x, weight, block, None)[0], [2.2980179072, 0.2320709466, -2.4463245822, 2.0553371727])


def test_golden_numbers_of_bat_row(golden):
    weight, _, _, block = golden
    change = apply_bat_row(weight, block) - weight
    close(change.sum(), 0.0498208089)
    close(change.norm(), 0.4699704040)
    close(
        change[0],
        [0.0703050796, 0.0808117006, -0.1585403931, -0.0292351128, 0.0944023719, -0.0658132933],
        tolerance=1e-10,
    )


def test_golden_numbers_of_miss_with_a_cropped_last_shard():
    weight, x, shard = sine(3, 5, rate=0.7, start=0.1), sine(2, 5, rate=0.5), sine(2, 3, rate=1.3, start=0.4, scale=0.1)
    expected = [2.1401695335, -1.6090840002, 1.0670640805]
    close((x @ apply_miss(weight, shard).T)[0], expected)
    close(add_shards(x @ weight.T, x, shard)[0], expected)


def test_golden_gradient_and_its_closed_form(golden):
    weight, x, block, _ = golden
    grad = sine(3, 4, rate=0.8, start=0.3)
    block.requires_grad_()
    BatLinear.apply(x, weight, block, None).backward(grad)
    expected = [3.7577383926, 2.4137378576, 7.5825902233, 7.6127654847, 1.6188194004, 4.6044360694, -1.5928685737]
    close(block.grad.flatten(), [*expected, -0.2471737433])
    G = (grad.T @ x).reshape(2, 2, 3, 2)
    W = weight.reshape(2, 2, 3, 2)
    closed = torch.einsum("oaib,oaic->obc", W, G) + G.sum(2)
    close(block.grad, closed, tolerance=1e-13)


def test_blocks_of_one_number():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    close(apply_bat(weight, torch.tensor([[[0.1]], [[-0.2]]])).double(), [[1.2, 2.3], [2.2, 3.0]], tolerance=1e-6)


def test_scaled_identities_scale_and_add_a_tiling():
    weight = sine(4, 6, rate=0.7)
    block = 0.3 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    close(apply_bat(weight, block), 1.3 * weight + 0.3 * torch.eye(2, dtype=torch.float64).repeat(2, 3), 1e-15)


def test_a_zero_weight_becomes_the_tiled_block(golden):
    block = golden[2]
    close(apply_bat(torch.zeros(4, 6, dtype=torch.float64), block), block.reshape(4, 2).repeat(1, 3), tolerance=0)


def test_miss_is_lora_with_a_frozen_tiling():
    weight, shard = sine(6, 8, rate=0.7), sine(2, 6, rate=1.3)
    frozen = torch.eye(2, dtype=torch.float64).repeat(1, 4)
    change = apply_miss(weight, shard) - weight
    close(change, shard.T @ frozen, tolerance=1e-15)
    assert torch.linalg.matrix_rank(change) <= 2


def test_the_rank_of_bat_is_not_limited_to_r():
    weight = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = torch.randn(6, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.linalg.matrix_rank(apply_bat(weight, block) - weight) == 12


@example(out=6, width=6, r=1, groups=2, seed=792)
@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 11), width=st.integers(1, 11), r=st.integers(1, 4), groups=st.integers(1, 3), seed=st.integers(0)
)
def test_padding_is_a_weight_that_goes_on_with_zeros(out, width, r, groups, seed):
    generator = torch.Generator().manual_seed(seed % 2**31)
    randn = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
    weight, g, n = randn(groups, out, width), math.ceil(out / r), math.ceil(width / r)
    padded = functional.pad(weight, (0, n * r - width, 0, g * r - out)).reshape(groups, g, r, n, r)
    columns, rows = randn(groups, g, r, r), randn(n, r, r)
    by_column = padded + torch.einsum("zoaib,zobc->zoaic", padded, columns) + columns.unsqueeze(3)
    by_row = padded + torch.einsum("zoaib,ibc->zoaic", padded, rows) + rows.transpose(0, 1)
    for apply, undo, block, expected in (
        (apply_bat, undo_bat, columns.flatten(0, 1), by_column),
        (apply_bat_row, undo_bat_row, rows, by_row),
    ):
        updated = apply(weight, block)
        torch.testing.assert_close(updated, expected.reshape(groups, g * r, n * r)[:, :out, :width])
        changed = block + torch.eye(r, dtype=torch.float64)
        inverses = [torch.linalg.inv(changed[:, :side, :side]) for side in {r, width % r or r}]
        rounding = 1e-14 * (updated.abs().max() + block.abs().max())
        atol = max((rounding * torch.linalg.matrix_norm(inverse, 2).max()).item() for inverse in inverses)
        torch.testing.assert_close(undo(updated, block), weight, rtol=0, atol=max(atol, 1e-14))


@settings(max_examples=25, deadline=None)
@given(out=st.integers(1, 9), width=st.integers(1, 9), r=st.integers(1, 4), bias=st.booleans(), seed=st.integers(0, 99))
def test_fast_paths_are_the_materialised_ones_with_their_gradients(out, width, r, bias, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(width, out, bias=bias).double(), torch.randn(2, 3, width, dtype=torch.float64)
    columns = torch.randn(math.ceil(out / r), r, r, dtype=torch.float64)
    rows = torch.randn(math.ceil(width / r), r, r, dtype=torch.float64)
    shard = torch.randn(r, out, dtype=torch.float64)
    for fast, apply, block in (
        (lambda x, block: BatLinear.apply(x, layer.weight.detach(), block, layer.bias), apply_bat, columns),
        (lambda x, block: row_linear(layer, x, block), apply_bat_row, rows),
        (lambda x, block: add_shards(layer(x), x, block), apply_miss, shard),
    ):
        results = []
        for run in (fast, lambda x, block: functional.linear(x, apply(layer.weight, block), layer.bias)):  # noqa: B023
            inputs = x.clone().requires_grad_(), block.clone().requires_grad_()
            y = run(*inputs)
            wanted = (*inputs, layer.bias) if bias else inputs
            results.append((y, *torch.autograd.grad(y.square().sum(), wanted)))
        for ours, plain in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_gradcheck_of_the_low_memory_layer():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    block, bias = torch.randn(2, 2, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, block, bias: BatLinear.apply(x, weight, block, bias),
        [tensor.requires_grad_() for tensor in (x, block, bias)],
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_computed_in_float32(variant):
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    block = torch.randn(*((2, 2, 2) if "bat" in variant else (2, 4)), generator=torch.Generator().manual_seed(1))
    for kinds in ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float64, torch.bfloat16)):
        w, b = weight.to(kinds[0]), block.to(kinds[1])
        updated = APPLY[variant](w, b)
        assert updated.dtype == torch.promote_types(kinds[0], torch.float32)
        torch.testing.assert_close(updated.double(), APPLY[variant](w.double(), b.double()), rtol=1e-5, atol=1e-5)


def test_a_block_that_cannot_be_inverted():
    with pytest.raises(UnsupportedModelError, match="cannot invert I \\+ B.*keep_base"):
        undo_bat(torch.zeros(2, 2), -torch.eye(2).unsqueeze(0))


# ---- as a PEFT method -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "opt", "t5"])
def test_starts_as_the_base_model_with_gradients_everywhere(name, variant):
    model, batch = tiny(name)
    exclude = ["classifier", "lm_head"]
    call = lambda m: m(**batch).logits  # noqa: E731
    with torch.no_grad():
        before = call(model)
    adapter = get_peft_model(model, BoneConfig(r=8, variant=variant, mini_r=16, exclude_modules=exclude))
    logits = call(adapter)
    assert torch.equal(logits, before)
    logits.float().square().mean().backward()
    blocks = {n: p for n, p in adapter.named_parameters() if "miss_block" in n}
    assert len(blocks) >= 4
    unused = {n for n, p in blocks.items() if not p.grad.any()}
    assert all(n.endswith("pooler.dense.miss_block.default") for n in unused)
    assert all(p.requires_grad == (n in blocks) for n, p in adapter.named_parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merging_keeps_the_outputs_and_unmerging_the_weights(name, variant):
    model, batch = tiny(name)
    model = model.double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model = get_peft_model(model, BoneConfig(r=8, variant=variant, mini_r=16))
    shake(model)
    with torch.no_grad():
        base, unmerged = model.base_model.model, model(**batch).logits
        with model.disable_adapter():
            plain = model(**batch).logits
        assert (unmerged - plain).abs().max() > 1e-3
        model.merge_adapter()
        torch.testing.assert_close(model(**batch).logits, unmerged, rtol=0, atol=1e-10)
        model.unmerge_adapter()
        for key, value in base.state_dict().items():
            if "miss" not in key:
                key = key.replace(".base_layer", "")
                torch.testing.assert_close(value, before[key], rtol=0, atol=1e-12)
        merged = model.merge_and_unload()
        assert not any(isinstance(module, BoneLinear) for module in merged.modules())
        torch.testing.assert_close(merged(**batch).logits, unmerged, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_kept_base_comes_back_bit_by_bit(variant, dtype):
    model = mlp(dtype)
    weights = [copy.deepcopy(model[i].weight) for i in (0, 2)]
    model = adapted(model, variant, keep_base=True)
    block = model.base_model.model[0].miss_block["default"].detach().clone()
    assert block.dtype == torch.float32
    model.merge_adapter()
    assert not torch.equal(model.base_model.model[0].weight, weights[0])
    model.unmerge_adapter()
    for i, weight in zip((0, 2), weights, strict=True):
        assert torch.equal(model.base_model.model[i].weight, weight)
    assert torch.equal(model.base_model.model[0].miss_block["default"], block)


def test_an_adapter_that_cannot_be_inverted_merges_but_unmerges_only_with_a_kept_base():
    for keep in (False, True):
        model = adapted(mlp(), keep_base=keep)
        base = model.base_model.model
        weights = [base[i].weight.clone() for i in (0, 2)]
        base[2].miss_block["default"].data[0] = -torch.eye(4)
        model.merge_adapter()
        merged = base[0].weight.clone()
        if keep:
            model.unmerge_adapter()
            assert torch.equal(base[2].weight, weights[1])
            assert torch.equal(base[0].weight, weights[0])
        else:
            with pytest.raises(UnsupportedModelError, match="cannot invert"):
                model.unmerge_adapter()
            assert torch.equal(base[0].weight, merged)  # no layer was changed
            assert base[0].merged_adapters == ["default"]


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_nan_is_not_merged_into_any_layer(merge):
    model = adapted(mlp())
    base = model.base_model.model
    weights = [base[i].weight.clone() for i in (0, 2)]
    base[2].miss_block["default"].data[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="adapter 'default' of layer '2'"):
        getattr(model, merge)()
    assert all(torch.equal(base[i].weight, w) for i, w in zip((0, 2), weights, strict=True))


def test_safe_merge_refuses_what_overflows():
    model = adapted(mlp(), "miss")
    layer = model.base_model.model[2]
    weight = layer.weight.clone()
    layer.get_base_layer().weight.data[0, 0] = torch.finfo(torch.float32).max
    layer.miss_block["default"].data.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(NonFiniteError, match="the merged weight of layer '2'"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.weight[1:], weight[1:])


def test_merging_a_mini_adapter_in_half_precision_leaves_the_adapter_alone():
    model = adapted(mlp(torch.bfloat16), "mini")
    block = model.base_model.model[0].miss_block["default"]
    block.data *= 0.01
    assert block.shape == (4, 2)
    with pytest.warns(UserWarning, match="rounds more than 1% of the update away"):
        model.merge_adapter()
    assert block.shape == (4, 2)


@pytest.mark.parametrize("peft_name", ["bat", True, "mini"])
def test_same_numbers_as_pefts_miss_and_each_reads_the_others_files(tmp_path, peft_name):
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = get_peft_model(
        mlp(torch.float64), BoneConfig(r=4, init_weights=peft_name, mini_r=2, target_modules=["0", "2"])
    )
    theirs = get_peft_model(
        mlp(torch.float64), MissConfig(r=4, init_weights=peft_name, mini_r=2, target_modules=["0", "2"])
    )
    shake(ours), shake(theirs)
    outputs = []
    for model in (ours, theirs):
        y = model(x)
        y.square().sum().backward()
        outputs.append([y, *(p.grad for n, p in model.named_parameters() if "miss_block" in n)])
    assert len(outputs[0]) == 3
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)

    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["peft_type"] == "MISS"
    assert set(json.loads((tmp_path / "ours" / "adapter_config.json").read_text())) == set(
        json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    )
    read_by_peft = PeftModel.from_pretrained(mlp(torch.float64), tmp_path / "ours")
    assert type(read_by_peft.base_model) is peft.tuners.miss.MissModel
    config = BoneConfig.from_pretrained(tmp_path / "theirs")
    read_by_us = PeftModel.from_pretrained(mlp(torch.float64), tmp_path / "theirs", config=config)
    assert isinstance(read_by_us.base_model.model[0], BoneLinear)
    with torch.no_grad():
        for model in (read_by_peft, read_by_us):
            torch.testing.assert_close(model(x), outputs[0][0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("variant", "fields"), [("bat-row", {}), ("bat", {"pad": True}), ("bat-row", {"pad": True})])
def test_what_peft_cannot_hold_round_trips_under_its_own_type(tmp_path, variant, fields):
    r = 5 if fields else 4
    model = adapted(mlp(), variant, r=r, **fields)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["peft_type"], stored["variant"]) == ("BONE", variant)
    again = PeftModel.from_pretrained(mlp(), tmp_path)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(("old", "variant"), [("bat", "bat"), (True, "miss")])
def test_adapters_of_pefts_former_bone_load(tmp_path, old, variant):
    model = adapted(mlp(), variant)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    renamed = {key.replace("miss_block", "bone_block"): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "BONE", "r": 4, "init_weights": old, "target_modules": ["0", "2"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    again = PeftModel.from_pretrained(mlp(), tmp_path)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert again.peft_config["default"].variant == variant
    assert torch.equal(again(x), model(x))


def test_another_methods_adapter_is_refused(tmp_path):
    get_peft_model(mlp(), LoraConfig(target_modules=["0"])).save_pretrained(tmp_path)
    with pytest.raises(HyperparameterError, match="found LORA, expected BONE or MISS"):
        BoneConfig.from_pretrained(tmp_path)


def test_several_adapters_of_different_variants():
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base = mlp(torch.float64)
    plain = [layer.weight.detach().clone() for layer in (base[0], base[2])]
    model = adapted(base, "bat", name="a")
    with torch.no_grad():
        model.add_adapter("b", BoneConfig(r=2, variant="bat-row", target_modules=["0", "2"]))
        model.add_adapter("c", BoneConfig(r=2, variant="miss", target_modules=["0", "2"]))
        model.base_model.set_adapter(["a", "b", "c"])
        shake(model)
        blocks = [layer.miss_block for layer in (model.base_model.model[0], model.base_model.model[2])]

        def expected(names):
            weights = list(plain)
            for name in names:
                apply = {"a": apply_bat, "b": apply_bat_row, "c": apply_miss}[name]
                weights = [apply(w, block[name]) for w, block in zip(weights, blocks, strict=True)]
            hidden = torch.tanh(functional.linear(x, weights[0], base[0].bias))
            return functional.linear(hidden, weights[1], base[2].bias)

        for names in (["a"], ["b"], ["c"], ["a", "b"], ["b", "c"], ["c", "b"], ["a", "b", "c"], ["c", "a"]):
            model.base_model.set_adapter(names)
            torch.testing.assert_close(model(x), expected(names), rtol=1e-12, atol=1e-12)
        model.base_model.set_adapter(["a", "b", "c"])
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected("abc"), rtol=1e-12, atol=1e-12)
        model.unmerge_adapter()
        torch.testing.assert_close(base[0].weight, plain[0], rtol=0, atol=1e-12)
        model.set_adapter("b")
        model.delete_adapter("a")
        assert "a" not in model.base_model.model[0].bone_config
        torch.testing.assert_close(model(x), expected("b"), rtol=1e-12, atol=1e-12)


def test_two_bat_adapters_compose_as_in_peft():
    outputs = []
    for make in (BoneConfig, MissConfig):
        model = get_peft_model(
            mlp(torch.float64), make(r=4, init_weights="bat", target_modules=["0", "2"]), adapter_name="a"
        )
        model.add_adapter("b", make(r=4, init_weights="bat", target_modules=["0", "2"]))
        shake(model)
        model.base_model.set_adapter(["a", "b"])
        y = model(torch.ones(1, 8, dtype=torch.float64))
        y.sum().backward()
        outputs.append([y, *(p.grad for n, p in model.named_parameters() if "miss_block" in n)])
    assert len(outputs[0]) == 5
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_a_file_of_pefts_is_added_to_a_bone_model(tmp_path):
    other = adapted(mlp(), "miss", seed=3)
    other.save_pretrained(tmp_path)
    model = adapted(mlp(), "bat")
    model.add_adapter("second", BoneConfig.from_pretrained(tmp_path))
    model.load_adapter(tmp_path, "second")
    model.set_adapter("second")
    x = torch.ones(2, 8)
    assert torch.equal(model(x), other(x))


def test_miss_is_exported_to_lora_exactly(tmp_path):
    from peft.tuners.lora.conversion import save_as_lora

    for name in ("llama", "gpt2"):
        model, batch = tiny(name)
        base = copy.deepcopy(model)
        model = get_peft_model(model, BoneConfig(r=5, variant="miss"))
        shake(model)
        save_as_lora(tmp_path / name, model, rank=5)
        again = PeftModel.from_pretrained(base, tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    row = adapted(mlp(), "bat-row")
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        save_as_lora(tmp_path / "row", row, rank=4)


class Int8Linear(nn.Module):
    """A quantised layer that only knows how to run."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return functional.linear(x, self.weight * self.scale, self.bias)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_a_quantised_base_works_with_all_but_bat():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(8, 12)
    for variant in ("bat-row", "miss", "mini"):
        opaque = nn.Sequential(Int8Linear(linear))
        model = adapted(opaque, variant, targets=["0"])
        layer = model.base_model.model[0]
        weight = opaque[0].base_layer.weight * opaque[0].base_layer.scale
        expected = functional.linear(x, APPLY[variant](weight, layer.miss_block["default"]), linear.bias)
        y = model(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        y.sum().backward()
        assert layer.miss_block["default"].grad.any()
        with pytest.raises(UnsupportedModelError, match="cannot merge into '0', a Int8Linear"):
            model.merge_adapter()
    with pytest.raises(UnsupportedModelError, match="'bat' needs the weight of layer '0'.*bat-row"):
        adapted(nn.Sequential(Int8Linear(linear)), targets=["0"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(variant, groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, padding_mode="reflect", groups=groups).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    fields = {"pad": True} if variant.startswith("bat") and groups == 1 else {}
    model = adapted(nn.Sequential(copy.deepcopy(conv)), variant, r=4 if fields else 2, targets=["0"], **fields)
    block = model.base_model.model[0].miss_block["default"]
    matrix = conv.weight.detach().reshape(groups, 8 // groups, -1)
    weight = APPLY[variant](matrix, block).reshape(conv.weight.shape)
    with torch.no_grad():
        expected = torch.func.functional_call(conv, {"weight": weight}, (x,))
        assert (expected - conv(x)).abs().max() > 0.01
        torch.testing.assert_close(model(x), expected)
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected)
        model.unmerge_adapter()
        torch.testing.assert_close(model.base_model.model[0].weight, conv.weight, rtol=0, atol=1e-12)
    model(x).sum().backward()
    assert block.grad.any()


def test_conv1d_is_adapted_as_its_transpose():
    torch.manual_seed(0)
    conv, linear = Conv1D(6, 8), nn.Linear(8, 6)
    conv.weight.data, conv.bias.data = linear.weight.data.T.clone(), linear.bias.data.clone()
    x = torch.randn(3, 8)
    for variant in VARIANTS:
        outputs = []
        for layer in (conv, linear):
            model = adapted(nn.Sequential(copy.deepcopy(layer)), variant, r=2, targets=["0"])
            y = model(x)
            y.sum().backward()
            outputs.append((y, model.base_model.model[0].miss_block["default"].grad))
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_of_one_vector_and_of_none(variant):
    model = adapted(mlp(), variant)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x[0]), model(x)[0])
    model(x[0]).sum().backward()
    empty = model(x[:0])
    assert empty.shape == (0, 4)
    empty.sum().backward()


def test_parameters_of_llama_2_7b():
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=2))
    counts = []
    for config in (BoneConfig(r=64), LoraConfig(r=36, target_modules="all-linear")):
        adapter = get_peft_model(copy.deepcopy(model), config, low_cpu_mem_usage=True)
        counts.append(16 * sum(p.numel() for p in adapter.parameters() if p.requires_grad))
    assert counts == [87_031_808, 89_948_160]


def test_memory_for_the_backward_pass_is_the_input_alone():
    def kept(model):
        own = {parameter.data_ptr() for parameter in model.parameters()}
        sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x).sum()
        return sum(sizes.values())

    x = torch.randn(16, 256, requires_grad=True)
    make = lambda config: get_peft_model(nn.Sequential(nn.Linear(256, 256)), config)  # noqa: E731
    ours = {variant: kept(make(BoneConfig(r=32, variant=variant, target_modules=["0"]))) for variant in VARIANTS[:3]}
    peft_bat = kept(make(MissConfig(r=32, init_weights="bat", target_modules=["0"])))
    tokens, matrix = x.numel() * 4, 256 * 256 * 4
    assert ours["bat"] == tokens
    assert ours["bat-row"] == tokens
    assert ours["miss"] == 16 * 32 * 4
    assert peft_bat > matrix


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_loop_learns_in_bf16_with_accumulation(variant):
    model, batch = tiny("llama", layers=1)
    model = get_peft_model(model.to(torch.bfloat16), BoneConfig(r=8, variant=variant, mini_r=16))
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in trainable)
    optimizer = torch.optim.AdamW(trainable, lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(10):
        for half in (slice(0, 4), slice(4, 8)):
            part = {key: value[half] for key, value in batch.items()}
            loss = model(**part, labels=part["input_ids"]).loss / 2
            loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.02
    assert all(map(torch.equal, frozen, [p for p in model.parameters() if not p.requires_grad]))


def test_autocast_computes_the_blocks_in_float32_and_the_layer_in_bfloat16():
    model = adapted(mlp(), "bat", r=4)
    layer = model.base_model.model[0]
    block, base = layer.miss_block["default"], layer.get_base_layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.ones(2, 8))
        y.float().sum().backward()
    weight = apply_bat(base.weight, block).bfloat16()
    assert torch.equal(y, functional.linear(torch.ones(2, 8).bfloat16(), weight, base.bias.bfloat16()))
    assert block.grad.dtype == torch.float32
    G = torch.full((12, 8), 2.0).reshape(3, 4, 2, 4)
    W = base.weight.detach().reshape(3, 4, 2, 4)
    torch.testing.assert_close(block.grad, torch.einsum("oaib,oaic->obc", W, G) + G.sum(2), rtol=1e-2, atol=1e-2)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model, batch = tiny("llama")
        model.train()
        model = get_peft_model(model, BoneConfig(r=8))
        shake(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)


def test_fit_and_trainer_give_the_same_weights(tmp_path):
    states = []
    for train in ("fit", "trainer"):
        model, batch = tiny("llama", layers=1)
        model = get_peft_model(model, BoneConfig(r=8))
        samples = [{"input_ids": row, "labels": row} for row in batch["input_ids"][:4]]
        if train == "fit":
            fit(model, samples, batch_size=4, epochs=3, learning_rate=1e-3, scheduler="constant")
        else:
            arguments = TrainingArguments(
                tmp_path,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                num_train_epochs=3,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=0.0,
                report_to=[],
                use_cpu=True,
                save_strategy="no",
                disable_tqdm=True,
            )
            Trainer(model, arguments, train_dataset=samples).train()
        states.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    assert all(value.any() for value in states[0].values())
    # Adam magnifies the rounding of small gradients: a thirtieth of a step
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("variant", ["bat", "bat-row", "miss"])
def test_the_command_leaves_a_plain_better_model(variant):
    model, batch = tiny("gpt2")
    before = copy.deepcopy(model.state_dict())
    samples = [{"input_ids": row} for row in batch["input_ids"][:4]]
    result = bone(model, samples, r=8, variant=variant, learning_rate=5e-3, epochs=8, batch_size=4)
    assert set(model.state_dict()) == set(before)
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")
    with torch.no_grad():
        after = model(batch["input_ids"][:4], labels=batch["input_ids"][:4]).loss.item()
    assert after < result.curves["training loss"][0] - 0.05
    assert result.totals["trainable"] == sum(row["trainable"] for row in result.layers) > 0
    for row in result.layers:
        old, new = before[row["layer"] + ".weight"], model.state_dict()[row["layer"] + ".weight"]
        assert row["relative_change"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-4)
    changed = {name for name, value in before.items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {row["layer"] + ".weight" for row in result.layers}
    again, _ = tiny("gpt2")
    bone(again, samples, r=8, variant=variant, learning_rate=5e-3, epochs=8, batch_size=4)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_the_command_adapts_layers_by_the_ending_of_their_name():
    model, batch = tiny("llama", layers=1)
    samples = [{"input_ids": row} for row in batch["input_ids"][:2]]
    result = bone(model, samples, r=8, targets="q_proj", learning_rate=1e-2)
    assert [row["layer"] for row in result.layers] == ["model.layers.0.self_attn.q_proj"]
    result = bone(model, samples, r=8, targets=["q_proj", "o_proj"], learning_rate=1e-2)
    assert len(result.layers) == 2
    with pytest.raises(LayerNotFoundError, match="no layer matches"):
        bone(model, samples, r=8, targets="nowhere")
    assert all(p.requires_grad for p in model.parameters())


def test_the_command_leaves_the_model_alone_when_training_fails():
    model, batch = tiny("gpt2", layers=1)
    before = copy.deepcopy(model.state_dict())
    samples = [{"input_ids": row, "labels": torch.full_like(row, -100)} for row in batch["input_ids"]]  # loss 0 / 0
    with pytest.raises(NonFiniteError, match="loss"):
        bone(model, samples, r=8)
    assert list(model.state_dict()) == list(before)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert all(p.requires_grad for p in model.parameters())


def test_the_claim_compares_adapters_of_one_size_that_start_as_the_model():
    from weightsmith.claims.bone import CONFIGS
    from weightsmith.claims.byte_lm import byte_model

    ids = torch.arange(64).unsqueeze(0)
    with torch.no_grad():
        before = byte_model(0)(input_ids=ids).logits
        for make in CONFIGS.values():
            model = get_peft_model(byte_model(0), make())
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 13_824
            torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"r": 0}, HyperparameterError, "r: found 0, expected >= 1"),
        ({"r": -1}, HyperparameterError, "r: found -1"),
        ({"variant": "mini", "mini_r": 0}, HyperparameterError, "mini_r: found 0"),
        ({"variant": "miss", "miss_dropout": 1.0}, HyperparameterError, "miss_dropout: found 1.0"),
        ({"miss_dropout": 0.1}, HyperparameterError, "miss_dropout with variant 'bat'"),
        ({"r": 8}, ShapeError, "r for layer '0' of 12 x 8: found 8, expected a divisor of 12 and 8. Nearest.*: 4"),
        ({"r": 5}, ShapeError, "Nearest r for all layers: 4; or pad=True"),
        ({"r": 16}, ShapeError, "r for layer '0' of 12 x 8: found 16, expected at most 8"),
        ({"r": 9, "variant": "miss"}, ShapeError, "found 9, expected at most 8. Take r=8 or less"),
        ({"r": 4, "variant": "mini", "mini_r": 5}, ShapeError, "mini_r for layer '0' of 12 x 8: found 5"),
        ({"r": 4, "target_modules": ["nowhere"]}, LayerNotFoundError, "no layer matches.*'0', '2'"),
        ({"r": 4, "target_modules": []}, LayerNotFoundError, "no layer matches"),
        ({"r": 4, "target_modules": ["1"]}, UnsupportedModelError, "layer '1': found Tanh"),
    ],
)
def test_bad_input_changes_nothing(fields, error, message):
    model = mlp()
    with pytest.raises(error, match=message):
        get_peft_model(model, BoneConfig(**{"target_modules": ["0", "2"]} | fields))
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear]


def test_an_unknown_variant_in_a_file():
    config = BoneConfig()
    config.variant = "bone"
    with pytest.raises(HyperparameterError, match="variant: found 'bone', expected 'bat', 'bat-row', 'miss' or 'mini'"):
        config.__post_init__()


def test_the_verb_offers_the_configuration():
    from weightsmith import adapt

    assert adapt.BoneConfig is BoneConfig
    assert "BoneConfig" in dir(adapt)


def test_errors_are_value_errors():
    with pytest.raises(ValueError, match="divisor"):
        get_peft_model(mlp(), BoneConfig(r=8, target_modules=["0"]))


def test_tied_weights_are_not_adapted_on_one_side():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, tie_word_embeddings=True))
    with pytest.raises(UnsupportedModelError, match="'lm_head' shares its weight with 'model.embed_tokens'"):
        with pytest.warns(UserWarning, match="tie_word_embeddings"):
            get_peft_model(model, BoneConfig(r=8, target_modules=["lm_head"]))
    assert type(model.lm_head) is nn.Linear
    adapter = get_peft_model(model, BoneConfig(r=8))
    assert not any("lm_head" in name for name in adapter.targeted_module_names)


def test_the_projection_that_attention_reads_directly_is_refused():
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(UnsupportedModelError, match="'self_attn.out_proj' is read by nn.MultiheadAttention"):
        get_peft_model(encoder, BoneConfig(r=4, target_modules=["out_proj"]))


def test_dropout_is_for_additive_adapters_on_linear_layers():
    x = torch.ones(64, 8)
    model = adapted(mlp(), "miss", miss_dropout=0.5, targets=["0"])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[1])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[1])
    with pytest.raises(HyperparameterError, match="miss_dropout on convolution '0'"):
        adapted(nn.Sequential(nn.Conv2d(4, 4, 1)), "miss", miss_dropout=0.5, targets=["0"])
    model.add_adapter("bat", BoneConfig(r=4, target_modules=["0"]))
    model.base_model.set_adapter(["default", "bat"])
    model.train()
    with pytest.raises(UnsupportedModelError, match="dropout needs an additive adapter"):
        model(x)


def adapted_mlp():
    model = mlp()
    adapted = get_peft_model(model, BoneConfig(r=4, target_modules=["0", "2"], init_weights=False))
    return model, adapted


@pytest.mark.parametrize("act", ["merge_and_unload", "merge_adapter", "unload", "unmerge_adapter"])
def test_what_stops_a_merge_half_way_leaves_all_layers_unmerged(act, monkeypatch):
    model, adapted = adapted_mlp()
    if act == "unmerge_adapter":
        adapted.merge_adapter()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = Snapshot(model)
    method = {"unload": "get_base_layer", "unmerge_adapter": "unmerge"}.get(act, "merge")
    original, calls = getattr(BoneLinear, method), []

    def second(self, *args, **kwargs):
        calls.append(self.name)
        if len(set(calls)) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(BoneLinear, method, second)
    with pytest.raises(KeyboardInterrupt):
        getattr(adapted.base_model, act)()
    monkeypatch.undo()
    assert before.changes(model) == []
    getattr(adapted.base_model, act)()


def test_a_merge_keeps_the_gradients():
    model, adapted = adapted_mlp()
    adapted(torch.rand(2, 8)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    adapted.merge_adapter()
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_what_stops_the_injection_leaves_no_adapter(monkeypatch):
    model = mlp()
    before, original, calls = Snapshot(model), BoneLinear.update_layer, []

    def second(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(BoneLinear, "update_layer", second)
    with pytest.raises(KeyboardInterrupt):
        get_peft_model(model, BoneConfig(r=4, target_modules=["0", "2"]))
    assert before.changes(model) == []


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_classifier_trains_its_head_whole(kind):
    from weightsmith.testing import samples, tiny as still

    model, _ = still(kind)
    with pytest.raises(ShapeError, match="Train the head whole: task_type='SEQ_CLS', or modules_to_save="):
        get_peft_model(model, BoneConfig(r=4))
    head = model.classifier.weight.detach().clone()
    result = bone(model, samples(kind), r=4, learning_rate=1e-3)
    assert not torch.equal(model.classifier.weight, head)
    assert type(model.classifier) is nn.Linear
    assert {"layer": "classifier", "trainable": head.numel() + 2}.items() <= result.layers[-1].items()


def test_a_layer_with_an_adapter_of_another_method_is_refused():
    """``bat`` would act on the weight without it."""
    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["0"])).base_model.model
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"'0' has an adapter of another method: found Linear.*merge_and"):
        with pytest.warns(UserWarning, match="second time"):
            get_peft_model(model, BoneConfig(r=4, target_modules=["0"]))
    assert before.changes(model) == []


@pytest.mark.parametrize("variant", ["bat", "bat-row", "miss"])
def test_a_computed_weight_cannot_be_merged_into(variant):
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[2])
    x = torch.randn(2, 8)
    model = adapted(model, variant, targets=["2"])
    before = model(x)
    with pytest.raises(UnsupportedModelError, match="cannot merge into '2': its weight is computed: found _WeightNorm"):
        model.merge_and_unload()
    assert torch.equal(model(x), before)


def test_the_fused_layers_of_pytorch_do_not_pass_an_adapter_by():
    torch.manual_seed(0)
    encoder, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 3, 8)
    model = adapted(encoder, "miss", targets=["linear1"]).eval()
    with torch.no_grad():
        fused = model(x)
    torch.testing.assert_close(fused, model(x))
    with model.disable_adapter():
        assert not torch.allclose(fused, model(x))


def test_what_pefts_own_class_cannot_hold_is_saved_as_bone(tmp_path):
    model, batch = tiny("gpt2")
    adapter = get_peft_model(model, BoneConfig(r=8, init_weights=False))
    adapter.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BONE"
    again = PeftModel.from_pretrained(tiny("gpt2")[0], tmp_path)
    assert torch.equal(again(**batch).logits, adapter(**batch).logits)


def test_a_model_with_adapters_is_refused():
    model = get_peft_model(tiny("llama")[0], LoraConfig(r=2, target_modules="all-linear"))
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"has adapters already: found 14 .*merge_and_unload"):
        bone(model, [{"input_ids": torch.arange(8)}] * 2, r=4)
    assert before.changes(model) == []


def test_the_command_refuses_a_computed_weight_before_it_trains():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[2])
    before = Snapshot(model)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(UnsupportedModelError, match="cannot merge into '2'"):
        bone(model, [(torch.randn(8), 0)] * 4, r=4, targets=["2"])
    assert not calls
    assert [name for name in before.changes(model) if "hook" not in name] == []


def test_packed_layers_are_refused_by_name():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    pack_linear(model, Quantization.from_json(round_to_nearest(model).files["quantization.json"]))
    with pytest.raises(UnsupportedModelError, match="layer '0': found PackedLinear, expected Linear"):
        get_peft_model(model, BoneConfig(r=4, variant="miss", target_modules=["0"]))


def test_a_base_weight_that_is_trained_with_the_adapter_has_a_gradient():
    for variant in ("bat", "miss"):
        model = adapted(mlp(torch.float64), variant, targets=["0"])
        base = model.base_model.model[0].base_layer.weight.requires_grad_(True)
        x = torch.randn(2, 8, dtype=torch.float64)
        model(x).square().sum().backward()
        (expected,) = torch.autograd.grad(model(x).square().sum(), [base])
        torch.testing.assert_close(base.grad, expected)


def test_only_what_is_inverted_must_have_an_inverse():
    singular = torch.tensor([[[1.0, 1.0], [1.0, -2.0]], [[0.5, 0.0], [0.0, 0.5]]]).double()
    singular[0, 0, 0] = -1.0  # the corner of I + B is zero, I + B is not singular
    weight = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(undo_bat_row(apply_bat_row(weight, singular), singular), weight)
    with pytest.raises(UnsupportedModelError, match="cannot invert"):  # here it is the block that is cut off
        undo_bat_row(apply_bat_row(weight, singular.flip(0)), singular.flip(0))
    with pytest.raises(UnsupportedModelError, match="cannot invert"):
        undo_bat(apply_bat(weight, singular[:1]), singular[:1])
