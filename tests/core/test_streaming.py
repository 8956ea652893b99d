import sys

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, DebertaV2Config, DebertaV2Model

from models import PLAIN, TRANSFORMERS, tiny
from processes import apart
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    LayerNotFoundError,
    NonFiniteError,
    UnsupportedModelError,
)
from weightsmith.core.io import load_model, offloaded, offloaded_of, save_model
from weightsmith.core.models import build_empty, find_blocks, find_layers, observe, rewriting, stream
from weightsmith.core.statistics import Gram
from weightsmith.sparsify import magnitude, wanda


class Seen:
    """Keeps every input and mask it gets."""

    def __init__(self, layer):
        self.inputs, self.masks, self.reduced = [], [], 0

    def update(self, x, mask=None):
        self.inputs.append(x.clone())
        self.masks.append(mask)

    def all_reduce(self):
        self.reduced += 1


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def split(batch, size=3):
    if isinstance(batch, torch.Tensor):
        return list(batch.split(size))
    return [
        dict(zip(batch, parts, strict=True))
        for parts in zip(*(value.split(size) for value in batch.values()), strict=True)
    ]


@pytest.mark.parametrize("name", TRANSFORMERS + PLAIN)
def test_blocks_get_the_inputs_of_a_whole_forward_pass(name):
    model, batch = tiny(name, layers=3)
    batches = split(batch)
    whole = observe(model, batches, find_layers(model), Seen)
    met = []
    for block in stream(model, batches):
        assert len(block.inputs) == len(batches)
        for layer_name, seen in block.observe(block.layers, Seen).items():
            met.append(layer_name)
            assert same(seen.inputs, whole[layer_name].inputs), layer_name
            assert seen.reduced == 1
    inside = [
        layer.name for block in find_blocks(model) for layer in find_layers(model) if layer.name.startswith(block)
    ]
    assert sorted(met) == sorted(set(inside))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "t5"])
def test_later_blocks_see_what_was_done_to_earlier_ones(name):
    model, batch = tiny(name, layers=3)
    for block in stream(model, [batch]):
        for layer in block.layers:
            layer.weight_OI.mul_(0.5)
        seen = block.observe(block.layers, Seen)
    last = {key: value.inputs for key, value in seen.items()}
    whole = observe(model, [batch], block.layers, Seen)
    assert all(same(inputs, whole[key].inputs) for key, inputs in last.items())
    assert model.config.use_cache


def test_layers_with_one_input_share_one_accumulator():
    model, batch = tiny("llama")
    block = next(iter(stream(model, [batch])))
    seen = block.observe(block.layers, Seen)
    groups = {}
    for name, accumulator in seen.items():
        groups.setdefault(id(accumulator), []).append(name.rpartition(".")[2])
    assert list(groups.values()) == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


@pytest.mark.parametrize("name", ["llama", "opt", "bert"])
def test_padding_is_marked(name):
    model, batch = tiny(name)
    for block in stream(model, [batch]):
        for accumulator in block.observe(block.layers, Seen).values():
            (mask,) = accumulator.masks
            assert torch.equal(mask, batch["attention_mask"].bool())


def test_blocks_without_a_matching_layer_are_passed_by():
    model, batch = tiny("llama", layers=4)
    assert [block.name for block in stream(model, [batch], include="*.2.mlp.*")] == ["model.layers.2"]
    with pytest.raises(LayerNotFoundError, match="no layer inside the blocks matches 'lm_head'"):
        next(stream(model, [batch], include="lm_head"))


def test_models_without_repeated_blocks_are_one_block():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(x).relu())

    ((block),) = list(stream(Net(), [torch.rand(3, 4)]))
    assert (block.name, [layer.name for layer in block.layers]) == ("", ["first", "second"])


def test_a_broken_loop_leaves_no_trace():
    model, batch = tiny("llama", layers=3)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def fail():
        with rewriting(model, [batch]) as blocks:
            for block in blocks:
                for parameter in block.module.parameters():
                    parameter.data.zero_()
                if block.name.endswith("1"):
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.training
    assert model.config.use_cache


def test_unreached_blocks_warn():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x):
            return self.used[0](x)

    with pytest.warns(UserWarning, match=r"no calibration batch reached blocks \['used.1'\]"):
        assert [block.name for block in stream(Net(), [torch.rand(3, 4)])] == ["used.0"]


class Calls(nn.Module):
    """Calls its layers as it is told."""

    def __init__(self, how, **layers):
        super().__init__()
        self.layers, self.how = nn.ModuleDict(layers), how

    def forward(self, x):
        return self.how(x, *self.layers.values())


def grams(model, *batches):
    found = observe(model, batches, find_layers(model), Gram)
    return {name.rpartition(".")[2]: gram.gram_II for name, gram in found.items()}


def squares(*rows):
    return sum(part.reshape(-1, part.shape[-1]).T @ part.reshape(-1, part.shape[-1]) for part in rows)


def linears(names):
    return {name: nn.Linear(4, 4) for name in names}


def test_inputs_shared_in_some_batches_only():
    model = Calls(lambda x, a, b: a(x) + b(x if len(x) > 3 else 2 * x), **linears("ab"))
    large, small = torch.rand(5, 4), torch.rand(2, 4)
    found = grams(model, large, small)
    assert torch.allclose(found["a"], squares(large, small))
    assert torch.allclose(found["b"], squares(large, 2 * small))
    shared = observe(model, [large], find_layers(model), Gram)
    assert shared["layers.a"] is shared["layers.b"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_receives_more_than_those_it_shared_with():
    """Attention with relative positions projects them with the matrices of queries and keys, not of values."""
    positions, x = torch.rand(6, 4), torch.rand(5, 4)
    how = lambda x, q, k, v: q(x) + k(x) + v(x) + q(positions).sum() + k(positions).sum()  # noqa: E731
    model = Calls(how, **linears("qkv"))
    found = observe(model, [x], find_layers(model), Gram)
    assert torch.allclose(found["layers.v"].gram_II, squares(x))
    assert torch.allclose(found["layers.k"].gram_II, squares(x, positions))
    assert found["layers.q"] is found["layers.k"]


def test_a_layer_called_twice_with_one_tensor_counts_it_twice():
    x = torch.rand(5, 4)
    found = grams(Calls(lambda x, a, b: a(x) + b(x) + a(x), **linears("ab")), x)
    assert torch.allclose(found["a"], squares(x, x))
    assert torch.allclose(found["b"], squares(x))


def test_a_tensor_changed_in_place_between_two_layers():
    def residual(x, a, b):
        y = a(x)
        x += y
        return b(x)

    x = torch.rand(5, 4)
    model = Calls(residual, **linears("ab"))
    found = grams(model, x.clone())
    assert torch.allclose(found["a"], squares(x))
    assert torch.allclose(found["b"], squares(x + model.layers["a"](x)), rtol=1e-4)


def test_convolutions_of_one_tensor_have_patches_of_their_own():
    layers = {
        "plain": nn.Conv2d(2, 3, 3, padding=1),
        "again": nn.Conv2d(2, 5, 3, padding=1),
        "dilated": nn.Conv2d(2, 3, 3, padding=2, dilation=2),
        "point": nn.Conv2d(2, 3, 1),
    }
    x = torch.rand(2, 2, 7, 7)
    model = Calls(lambda x, *layers: torch.cat([layer(x) for layer in layers], 1), **layers)
    found = observe(model, [x], find_layers(model), Gram)
    for name, padding, dilation, size in (("plain", 1, 1, 3), ("dilated", 2, 2, 3), ("point", 0, 1, 1)):
        patches = nn.functional.unfold(x, size, padding=padding, dilation=dilation).transpose(1, 2)
        assert torch.allclose(found[f"layers.{name}"].gram_II, squares(patches), rtol=1e-4), name
    assert found["layers.plain"] is found["layers.again"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
@pytest.mark.parametrize("name", ["cnn", "mlp", "gpt2", "whole"])
def test_a_compiled_or_parallel_model_is_changed_as_the_model_inside(name, wrap):
    if name == "whole":
        make, batch = Whole, torch.rand(2, 5, 4)
    else:
        make, batch = lambda: tiny(name)[0], tiny(name)[1]
    plain, model = make(), make()
    model.load_state_dict(plain.state_dict())
    wanda(plain, [batch])
    result = wanda(wrap(model), [batch])
    assert len(result.layers) == sum(1 for row in result.layers if 0 < row["sparsity"] < 1) > 0
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())


class Whole(nn.Module):
    """One block as a whole."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, *, scale=1.0):
        return self.head(self.body(x).relu() * scale)


def test_bad_batches():
    model, batch = tiny("llama")
    with pytest.raises(CalibrationError, match="no calibration batches"):
        next(stream(model, []))
    with pytest.raises(CalibrationError, match="the model rejects calibration batch 1: found IndexError"):
        list(stream(model, [batch, {"input_ids": torch.full((1, 4), 10_000)}]))
    with pytest.raises(CalibrationError, match="rejects calibration batch 0: found ValueError"):
        list(stream(model, [{"pixels": torch.ones(1)}]))
    with pytest.raises(CalibrationError, match="rejects calibration batch 0: found AttributeError"):
        grams(Calls(lambda x, a: a(x.ids), a=nn.Linear(2, 2)), torch.ones(1, 2))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "vit"])
def test_on_disk_equals_in_memory(name, tmp_path):
    model, batch = tiny(name, layers=3)
    save_model(model, tmp_path / "dense")

    def halve(model, batches):
        for block in stream(model, batches):
            block.observe(block.layers, Seen)
            for layer in block.layers:
                layer.weight_OI.mul_(0.5)

    with offloaded(tmp_path / "dense", tmp_path / "out") as streamed:
        halve(streamed, [batch])
        assert all(parameter.is_meta for parameter in streamed.parameters())
    halve(model, [batch])
    written = load_model(tmp_path / "out").state_dict()
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(value, written[key]) for key, value in model.state_dict().items())


def test_on_disk_without_batches_and_with_an_error(tmp_path):
    model, _ = tiny("llama")
    save_model(model, tmp_path / "dense")
    with offloaded(tmp_path / "dense", tmp_path / "out") as streamed:
        for block in stream(streamed, None, include="*mlp*"):
            block.layers[0].weight_OI.zero_()
    assert int(load_model(tmp_path / "out").model.layers[1].mlp.gate_proj.weight.count_nonzero()) == 0

    def fail():
        with offloaded(tmp_path / "dense", tmp_path / "failed") as streamed:
            for _ in stream(streamed, None):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(CheckpointError, match="out exists"), offloaded(tmp_path / "dense", tmp_path / "out"):
        pass
    with pytest.raises(UnsupportedModelError, match="block by block"), offloaded(tmp_path / "dense", tmp_path / "idle"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_a_method_that_needs_all_weights_says_so(tmp_path):
    model, batch = tiny("llama")
    save_model(model, tmp_path / "dense")

    def fail(act, match, kind=UnsupportedModelError):
        with pytest.raises(kind, match=match), offloaded(tmp_path / "dense", tmp_path / "out") as streamed:
            act(streamed)
        assert not (tmp_path / "out").exists()

    fail(lambda streamed: streamed.lm_head.weight.sum().item(), "reads weights of .*dense that are not in memory")
    fail(lambda streamed: streamed.lm_head.weight.cpu(), "reads weights")
    fail(lambda streamed: streamed.lm_head.weight.numpy(), "reads weights")
    fail(lambda streamed: streamed(**batch), "reads weights")
    fail(lambda streamed: streamed.lm_head.weight.data.zero_(), "changed block by block")
    fail(lambda streamed: torch.ones(2) @ torch.ones(3), "size", RuntimeError)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_parameters_may_change_their_shape(name, tmp_path):
    """The configuration and the files say the new width, of tied weights and of experts stored one by one, too."""
    model, _ = tiny(name)
    save_model(model, tmp_path / "dense")
    field, old = ("n_inner", 128) if name == "gpt2" else ("intermediate_size", 64)
    with offloaded(tmp_path / "dense", tmp_path / "out") as streamed:
        offloaded_of(streamed).resize(build_empty(streamed, {field: 48}))
        setattr(streamed.config, field, 48)
        for block in stream(streamed, None):
            for parameter in block.module.parameters():
                for axis, size in enumerate(parameter.shape):
                    if size in (old, 2 * old):  # gate and up of an expert are one matrix
                        parameter.data = parameter.data.narrow(axis, 0, size // old * 48)
    smaller, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert getattr(smaller.config, field) == 48
    ours, before = smaller.state_dict(), model.state_dict()
    same_shape = [key for key, value in ours.items() if value.shape == before[key].shape]
    assert 0 < len(same_shape) < len(before)
    assert all(torch.equal(ours[key], before[key]) for key in same_shape)
    assert (smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight) == (name == "gpt2")


LIMITED = """
    import resource, sys, accelerate, torch
    torch.set_num_threads(1)
    from transformers import LlamaForCausalLM
    from weightsmith.core.io._offloaded import offloaded
    from weightsmith.sparsify import wanda

    source, out, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size // 3, used + size // 3))
    try:
        torch.empty(size, dtype=torch.uint8)
        raise SystemExit("the limit does not bind")
    except RuntimeError:
        pass
    batches = [{"input_ids": torch.randint(99, (1, 32))} for _ in range(4)]
    with offloaded(source, out) as model:
        print(wanda(model, batches, sparsity="2:4").totals["sparsity"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_a_checkpoint_larger_than_the_address_space(tmp_path):
    """24 blocks of 12 MB go through a process that may allocate a third of their size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=24,
        num_attention_heads=8,
        vocab_size=100,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    size = sum(p.numel() * 4 for p in model.parameters())
    save_model(model, tmp_path / "dense")
    del model
    assert apart(LIMITED, tmp_path, tmp_path / "dense", tmp_path / "out", size).strip() == "0.5"
    weight = load_model(tmp_path / "out").model.layers[23].mlp.down_proj.weight
    assert bool(((weight.reshape(-1, 4) == 0).sum(1) == 2).all())


def test_blocks_that_are_applied_several_times_are_named():
    shared = AlbertConfig(
        vocab_size=50,
        embedding_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    with pytest.warns(UserWarning, match="applies its blocks again: 1 for 3 layers"):
        list(stream(AlbertModel(shared).eval(), [{"input_ids": torch.arange(8)[None]}]))


class Repeats(nn.Module):
    """Applies its blocks in an order, without a configuration that says so."""

    def __init__(self, *order, fail=False):
        super().__init__()
        self.order, self.fail = order, fail
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])

    def forward(self, x):
        for number in self.order:
            x = self.blocks[number](x)
        if self.fail:
            raise ValueError
        return x


@pytest.mark.parametrize(("order", "again"), [((0, 0, 1, 1), 2), ((0, 1, 0), 1), ((0, 1, 1), 1)])
def test_blocks_that_a_plain_model_applies_again_are_counted(order, again):
    for fail in (False, True):  # behind the last block it may do what it likes
        with pytest.warns(UserWarning, match=f"applies its blocks again: {again} of 2"):
            blocks = list(stream(Repeats(*order, fail=fail), [torch.rand(3, 4)] * 2))
        assert [block.name for block in blocks] == ["blocks.0", "blocks.1"]


def test_blocks_that_are_applied_once_are_not_said_to_be_shared(recwarn):
    assert len(list(stream(Repeats(1, 0), [torch.rand(3, 4)] * 2))) == 2
    assert not [each for each in recwarn if "again" in str(each.message)]


def test_a_weight_that_two_blocks_share_is_restored():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model[1][0].weight = model[0].weight
    model[1][1].weight.data[0, 0] = torch.nan
    before = model[0].weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"'1\.1'"):
        magnitude(model)
    assert torch.equal(model[0].weight, before)


def test_a_model_that_reads_a_weight_without_calling_its_module_is_named(tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True}
    save_model(DebertaV2Model(DebertaV2Config(**shape, **relative, vocab_size=20)), tmp_path / "dense")
    with (
        pytest.raises(UnsupportedModelError, match="reads weights of .*dense that are not in memory"),
        offloaded(tmp_path / "dense", tmp_path / "out") as model,
    ):
        wanda(model, [{"input_ids": torch.arange(8)[None]}])


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_blocks_that_are_compiled_are_observed_as_plain_ones(how):
    """Compiled code had run once without hooks, and does not look for them later."""

    def made():
        torch.manual_seed(0)
        return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2)], nn.Linear(8, 4)).eval()

    plain, model, x = made(), made(), torch.randn(5, 8)
    for number, block in enumerate(model):
        if how == "wrapped":
            model[number] = torch.compile(block, backend="eager")
        else:
            block.compile(backend="eager")
    with torch.no_grad():
        model(x)
    wanda(plain, [x], sparsity=0.5)
    result = wanda(model, [x], sparsity=0.5)
    assert [row["sparsity"] for row in result.layers] == [0.5] * 3
    for expected, found in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(expected, found)
    seen = observe(model, [x], find_layers(model), Gram)
    assert [sums.rows for sums in seen.values()] == [5] * 3


def test_statistics_that_layers_do_not_share_take_no_copy_of_the_inputs():
    class Seen:
        def __init__(self):
            self.places = []

        def update(self, x, mask):
            self.places.append(x.data_ptr())

        def all_reduce(self):
            pass

    x = torch.randn(5, 8)
    for block in stream(nn.Sequential(nn.Linear(8, 8)), [x]):
        (seen,) = block.observe(block.layers, lambda layer: Seen(), shared=False).values()
    assert seen.places == [x.data_ptr()]
