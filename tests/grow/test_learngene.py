import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

from grow_models import Residual, cnn, logits
from models import tiny
from weightsmith import testing
from weightsmith.core.data import call
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import load_model, save_model
from weightsmith.core.models import find_stack
from weightsmith.grow import (
    Learngene,
    LinearExpansion,
    distil,
    expand,
    learngene,
    retention,
    share_stages,
    soft_target_loss,
)

SIZES = (2, 3, 1)
LAYOUT = [0, 0, 1, 1, 1, 2]


def vit(depth, **changes):
    import transformers

    torch.manual_seed(0)
    config = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": depth,
        "num_attention_heads": 6,
        "image_size": 32,
        "patch_size": 8,
    } | changes
    return transformers.ViTForImageClassification(transformers.ViTConfig(**config)).eval()


def small_vit(depth=6, **changes):
    return vit(depth, **({"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4} | changes))


@pytest.fixture
def gene():
    model = small_vit()
    return Learngene(model, share_stages(model, SIZES))


IMAGES = {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bert", "vit"])
def test_the_own_layout_gives_the_shared_model_bit_for_bit(name):
    model, batch = tiny(name, layers=6)
    plan = share_stages(model, SIZES)
    before = logits(model, batch)
    unrolled = Learngene(model, plan).expand(6, assignment=LAYOUT)
    assert torch.equal(logits(unrolled, batch), before)
    assert len(list(unrolled.parameters())) > len(list(model.parameters()))


def test_a_cnn_with_statistics_of_each_position_too():
    model = cnn(blocks=7)
    plan = share_stages(model, SIZES, stack="layer3[1:]")
    for block in model["layer3"]:
        nn.init.normal_(block.norm.running_mean)
        nn.init.normal_(block.norm.weight)
    x = torch.rand(2, 8, 8, 8)
    unrolled = Learngene(model, plan).expand(6, assignment=LAYOUT)
    assert plan.own == ("norm.weight", "norm.bias")
    assert torch.equal(unrolled["layer3"].eval()(x), model["layer3"].eval()(x))
    assert model["layer3"][3].conv.weight is model["layer3"][4].conv.weight


def test_parameters_do_not_depend_on_the_depth():
    for depth, stages in ((16, (3, 3, 4, 3, 3)), (5, (1, 1, 1, 1, 1))):
        model = vit(depth)
        share_stages(model, stages)
        blocks = {p for block in find_stack(model).blocks for p in block.parameters()}
        assert sum(p.numel() for p in blocks) == 8_872_320
    assert sum(p.numel() for p in find_stack(model).blocks[0].parameters()) == 1_774_464


def test_a_shared_gradient_is_the_sum_over_the_uses():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(6)]).double()
    plan = share_stages(model, SIZES, stack="")
    unrolled = Learngene(model, plan).expand(6, assignment=LAYOUT)
    x = torch.randn(7, 5, dtype=torch.float64)
    for network in (model, unrolled):
        network(x).square().sum().backward()
    for first, last in ((0, 2), (2, 5), (5, 6)):
        total = sum(block[0].weight.grad for block in unrolled[first:last])
        torch.testing.assert_close(model[first][0].weight.grad, total, rtol=0, atol=1e-6)


def test_descendants_alias_nothing(gene):
    model = gene.expand(8)
    blocks = find_stack(model).blocks
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = [p for block in blocks for p in block.parameters()]
    assert len({id(p) for p in parameters}) == len(parameters)
    assert len(optimizer.param_groups[0]["params"]) == len({id(p) for p in model.parameters()})
    second = copy.deepcopy(blocks[1].state_dict())
    with torch.no_grad():
        for parameter in blocks[0].parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, second[name]) for name, value in blocks[1].state_dict().items())
    assert model.config.num_hidden_layers == 8
    assert gene.model.config.num_hidden_layers == 6


def test_soft_target_loss_by_hand():
    teacher, student = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    assert soft_target_loss(student, teacher).item() == pytest.approx(0.255111, abs=1e-6)
    assert soft_target_loss(student, teacher, reduction="mean").item() == pytest.approx(0.085037, abs=1e-6)
    assert soft_target_loss(student, teacher, temperature=2.0, reduction="mean").item() == pytest.approx(
        0.121743, abs=1e-6
    )
    assert soft_target_loss(teacher, teacher).item() == 0
    assert soft_target_loss(teacher.half(), teacher).dtype == torch.float32


def test_at_alpha_one_labels_do_not_matter():
    torch.manual_seed(0)
    x, teacher = torch.rand(32, 5), nn.Linear(5, 3)
    students = []
    for labels in (torch.zeros(32), torch.full((32,), 2)):
        torch.manual_seed(1)
        students.append(nn.Linear(5, 3))
        distil(students[-1], teacher, TensorDataset(x, labels.long()), epochs=3, learning_rate=0.1)
    assert torch.equal(students[0].weight, students[1].weight)
    torch.manual_seed(1)
    mixed = nn.Linear(5, 3)
    distil(mixed, teacher, TensorDataset(x, torch.zeros(32).long()), alpha=0.5, epochs=3, learning_rate=0.1)
    assert not torch.equal(mixed.weight, students[0].weight)


def test_distillation_finds_the_teacher_and_leaves_it_in_its_mode():
    torch.manual_seed(0)
    teacher, student = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train(), nn.Linear(4, 3)
    x = torch.randn(256, 4)
    run = distil(student, teacher, TensorDataset(x, torch.zeros(256).long()), epochs=60, learning_rate=0.05)
    assert run.losses[-1] < 1e-3 < run.losses[0]
    assert teacher.training
    assert teacher[0].weight.grad is None


def test_save_load_expand(gene, tmp_path):
    gene.save(tmp_path / "gene.safetensors")
    stored = load_file(tmp_path / "gene.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == gene.parameters
    loaded = Learngene.load(tmp_path / "gene.safetensors", small_vit(hidden_act="gelu"))
    assert loaded.plan == gene.plan
    ours, theirs = gene.expand(9).state_dict(), loaded.expand(9).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    deeper = small_vit(depth=12)
    Learngene(deeper, share_stages(deeper, (4, 6, 2))).save(tmp_path / "deep.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("gene", "deep")]
    assert abs(sizes[0] - sizes[1]) < 100
    with pytest.raises(CheckpointError, match="exists"):
        gene.save(tmp_path / "gene.safetensors")


def test_bad_files(gene, tmp_path):
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        gene.save(tmp_path / "gene.bin")
    with pytest.raises(CheckpointError, match="cannot read"):
        Learngene.load(tmp_path / "none.safetensors", small_vit())
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no learngene"):
        Learngene.load(tmp_path / "other.safetensors", small_vit())
    gene.save(tmp_path / "gene.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Learngene.load(tmp_path / "gene.safetensors", small_vit(hidden_size=64))
    with pytest.raises(HyperparameterError, match="sum to 6 but the model has 5"):
        Learngene.load(tmp_path / "gene.safetensors", small_vit(depth=5))


def test_the_learngene_is_an_ordinary_folder_that_expand_unrolls(gene, tmp_path):
    save_model(gene.expand(3), tmp_path / "gene")
    model = load_model(tmp_path / "gene")
    expand(model, depth=7)
    assert torch.equal(logits(model, IMAGES), logits(gene.expand(7), IMAGES))


def test_tied_embeddings_stay_tied_in_descendants():
    model, _ = tiny("gpt2", layers=4)
    grown = Learngene(model, share_stages(model, (2, 2))).expand(5)
    assert grown.lm_head.weight is grown.transformer.wte.weight
    assert grown.lm_head.weight is not model.lm_head.weight


def test_into_an_existing_model_of_other_classes(gene):
    target = small_vit(depth=4, num_labels=5)
    assert gene.initialize(target, assignment=[0, 1, 1, 2]) == ["classifier.weight", "classifier.bias"]
    own = gene.expand(4, assignment=[0, 1, 1, 2])
    assert torch.equal(target.vit(**IMAGES).last_hidden_state, own.vit(**IMAGES).last_hidden_state)


def test_targets_that_do_not_fit(gene):
    with pytest.raises(UnsupportedModelError, match="differ: attention num_attention_heads 4 and 8|num_heads"):
        gene.initialize(small_vit(num_attention_heads=8))
    gene.initialize(small_vit(num_attention_heads=8), allow_head_mismatch=True)
    with pytest.raises(UnsupportedModelError, match="eps 1e-12 and 1e-06"):
        gene.initialize(small_vit(layer_norm_eps=1e-6))
    with pytest.raises(UnsupportedModelError, match="GELUActivation and ReLU"):
        gene.initialize(small_vit(hidden_act="relu"))
    with pytest.raises(ShapeError, match="position_embeddings"):
        gene.initialize(small_vit(image_size=64))


def test_bad_stages():
    model = small_vit()
    with pytest.raises(HyperparameterError, match=r"stages \[2, 3\] sum to 5 but the model has 6 blocks"):
        share_stages(model, (2, 3))
    with pytest.raises(HyperparameterError, match="at least one block"):
        share_stages(model, (3, 0, 3))
    with pytest.raises(UnsupportedModelError, match=r"'layer3.0' and 'layer3.1' differ"):
        share_stages(cnn(), (2, 2), stack="layer3")
    mixed = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(UnsupportedModelError, match="class Linear and ReLU"):
        share_stages(mixed, (1, 2), stack="")


def test_bad_distillation():
    data = TensorDataset(torch.rand(4, 3), torch.zeros(4).long())
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 5)
    with pytest.raises(ShapeError, match="expected the same classes"):
        distil(student, teacher, data)
    with pytest.raises(HyperparameterError, match="alpha: found 2"):
        distil(student, student, data, alpha=2.0)
    with pytest.raises(HyperparameterError, match="temperature: found 0"):
        distil(student, student, data, temperature=0.0)
    broken = nn.Linear(3, 2)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="teacher's logits"):
        distil(student, broken, data)
    model, batch = tiny("bert")
    samples = [{name: tensor[row] for name, tensor in batch.items()} for row in range(4)]
    with pytest.raises(UnsupportedModelError, match="no logits"):
        distil(model.bert, model.bert, samples)


def test_shallow_descendants_warn(gene):
    with pytest.warns(UserWarning, match=r"stages \[0, 2\] are not in a model of 1 blocks"):
        gene.expand(1)
    with pytest.raises(HyperparameterError, match="goes back"):
        gene.expand(2, assignment=[1, 0])
    gene.expand(3, assignment=[2, 1, 0], strict_order=False)


def test_what_belongs_to_a_position_is_not_shared():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.layer_scale = nn.Parameter(torch.rand(4))

    model = nn.Sequential(*[Scaled() for _ in range(4)])
    plan = share_stages(model, (2, 2), stack="")
    assert plan.own == ("layer_scale",)
    assert model[0].layer_scale is not model[1].layer_scale
    grown = Learngene(model, plan).expand(4)
    assert all(torch.equal(a.layer_scale, b.layer_scale) for a, b in zip(model, grown, strict=True))


def test_retention_of_each_depth(gene):
    decisions = logits(gene.model, IMAGES).argmax(1)
    agreement = lambda model: (logits(model, IMAGES).argmax(1) == decisions).double().mean().item()  # noqa: E731
    result = retention(gene, agreement, [3, 6])
    assert [row["layer"] for row in result.layers] == ["depth 3", "depth 6"]
    assert result.totals == {"score": 1.0, "parameters": gene.parameters}
    assert result.layers[1]["retention"] == agreement(gene.expand(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_command_distils_and_leaves_the_asked_depth(dtype, tmp_path):
    teacher, batch = tiny("llama", layers=4)
    samples = [{"input_ids": row, "labels": row} for row in batch["input_ids"]] * 4
    model = copy.deepcopy(teacher).to(dtype)
    result = learngene(
        model, samples, teacher=teacher, stages=2, depth=6, learning_rate=3e-3, epochs=8, tune_epochs=1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert len(model.model.layers) == 6 == model.config.num_hidden_layers
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert [row["layer"] for row in result.layers] == [f"depth {n}" for n in (2, 4, 6, 8)]
    losses = result.curves["training loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert len(result.curves["tuning loss"]) == 4
    save_model(model, tmp_path / "out")
    loaded = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_the_command_refuses_before_it_changes():
    model, batch = tiny("llama", layers=4)
    samples = [{"input_ids": row} for row in batch["input_ids"]]
    before = copy.deepcopy(model.state_dict())
    for change, message in (
        ({"stages": 9}, "stages: found 9"),
        ({"sizes": (1, 2)}, "sum to 3"),
        ({"depth": 0}, "depth: found 0"),
        ({"alpha": 2.0}, "alpha"),
    ):
        with pytest.raises(HyperparameterError, match=message):
            learngene(model, samples, teacher=model, **({"stages": 2} | change))
    with pytest.raises(HyperparameterError, match="training samples: found 1"):
        learngene(model, samples[:1], teacher=model, stages=2)
    assert len(model.model.layers) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_line_of_slope_zero_makes_all_blocks_the_start():
    model = small_vit()
    line = LinearExpansion(model)
    slopes = {m.slope for m in model.modules() if hasattr(m, "slope")}
    with torch.no_grad():
        for slope in slopes:
            slope.zero_()
    start = small_vit().vit.layers[0].state_dict()
    for depth in (2, 9):
        for block in find_stack(line.expand(depth)).blocks:
            assert all(torch.equal(value, start[name]) for name, value in block.state_dict().items())


def test_a_line_of_the_own_depth_is_the_model():
    model = small_vit()
    line = LinearExpansion(model, generator=torch.Generator().manual_seed(0))
    grown = line.expand(6)
    assert torch.equal(logits(grown, IMAGES), logits(model, IMAGES))
    assert not torch.equal(logits(line.expand(8), IMAGES), logits(model, IMAGES))
    assert not any("parametrizations" in name for name in grown.state_dict())
    names = dict(model.named_parameters())
    assert sum(p.numel() for name, p in names.items() if ".layers." in name) == 2 * sum(
        p.numel() for p in find_stack(grown).blocks[0].parameters()
    )


def test_a_line_learns():
    torch.manual_seed(0)
    model = nn.Sequential(*[Residual(3) for _ in range(4)], nn.Flatten(), nn.Linear(48, 4))
    line = LinearExpansion(model, stack="[:4]")
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    data = TensorDataset(torch.rand(64, 3, 4, 4), torch.zeros(64).long())
    run = distil(model, teacher, data, epochs=12, learning_rate=1e-2)
    assert run.losses[-1] < 0.5 * run.losses[0]
    assert call(line.expand(9), torch.rand(1, 3, 4, 4)).shape == (1, 4)


def test_every_position_keeps_its_drop_path_rate():
    class DropPath(nn.Module):
        def __init__(self, rate):
            super().__init__()
            self.drop_prob = rate

        def forward(self, x):
            return x

    rates = [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
    drops = [nn.Identity(), *[DropPath(rate) for rate in rates[1:]]]
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), drop) for drop in drops])
    plan = share_stages(model, SIZES, stack="")
    for depth, assignment in ((6, LAYOUT), (9, None)):
        grown = Learngene(model, plan).expand(depth, assignment=assignment)
        kept = [getattr(block[1], "drop_prob", 0.0) for block in grown]
        assert kept == sorted(kept)
        assert len(kept) == depth
        assert kept == rates or depth != 6


def test_shared_stages_compile(gene):
    compiled = torch.compile(gene.model, backend="eager")
    torch.testing.assert_close(logits(compiled, IMAGES), logits(gene.model, IMAGES))


def test_a_teacher_in_half_precision_is_compared_in_single():
    teacher = 8 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).half()
    student = torch.zeros(6, 5, requires_grad=True)
    expected = soft_target_loss(student, teacher.float())
    found = soft_target_loss(student, teacher)
    assert torch.equal(found, expected)
    assert torch.autograd.grad(found, student)[0].dtype == torch.float32


def test_attention_sinks_and_position_tables_stay_with_their_position():
    class Attends(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.sinks, self.relative_position_bias_table = (nn.Parameter(torch.rand(4)) for _ in range(2))

    model = nn.Sequential(*[Attends() for _ in range(4)])
    plan = share_stages(model, (2, 2), stack="")
    assert set(plan.own) == {"sinks", "relative_position_bias_table"}
    assert model[0].sinks is not model[1].sinks
    assert model[0].weight is model[1].weight


def test_adapters_inside_blocks_are_refused():
    model = nn.Sequential(*[nn.ModuleDict({"lora_A": nn.Linear(2, 2)}) for _ in range(2)])
    with pytest.raises(UnsupportedModelError, match="has an adapter"):
        share_stages(model, (2,), stack="")


class InterruptCopyAt(testing.InterruptAt):
    """Count copies into tensors only: the reader of safetensors does not run under a mode that stops it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def llama():
    return testing.tiny("llama")[0]


@pytest.mark.parametrize("what", ["load", "initialize"])
def test_a_stopped_load_leaves_the_model_as_it_was(what, tmp_path):
    source = llama()
    gene = Learngene(source, share_stages(source, (2,)))
    gene.save(tmp_path / "gene.safetensors")
    call = {
        "load": lambda model: Learngene.load(tmp_path / "gene.safetensors", model),
        "initialize": lambda model: gene.initialize(model),
    }[what]
    count = sum(1 for _ in llama().parameters())
    for operation in testing.evenly(count // 2, 4):
        model = llama()
        before = testing.Snapshot(model)
        with pytest.raises(KeyboardInterrupt), InterruptCopyAt(operation):
            call(model)
        assert not before.changes(model), f"at copy {operation}"


def test_a_file_of_another_size_leaves_the_model_as_it_was(tmp_path):
    source = llama()
    Learngene(source, share_stages(source, (2,))).save(tmp_path / "gene.safetensors")
    model = testing.tiny("gpt2")[0]
    before = testing.Snapshot(model)
    with pytest.raises(CheckpointError, match="does not fit"):
        Learngene.load(tmp_path / "gene.safetensors", model)
    assert not before.changes(model)
