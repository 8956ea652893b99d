"""Weight aligning: the numbered checks of its specification, heads of every kind, and what is refused."""

from __future__ import annotations

import json
import math
from inspect import unwrap

import pytest
import torch
from torch import nn
from torch.nn import functional

from weightsmith.cli.main import app
from weightsmith.continual import (
    ExemplarMemory,
    align_classifier,
    align_state_dict,
    aligned,
    class_incremental_loss,
    clip_weights_hook,
    grow_head,
    herd,
    weight_aligning,
)
from weightsmith.core.errors import (
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.training import fit
from weightsmith.testing import tiny
from weightsmith.train import distillation

ROWS = [[3.0, 4.0], [6.0, 8.0], [0.0, 10.0], [12.0, 16.0]]


def make_head(classes=10, features=16, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(features, classes, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter[classes // 2 :] *= 3
    return head


def test_1_gamma_by_hand():
    weight = torch.tensor(ROWS)
    assert align_classifier(weight, num_old=2) == 0.5
    assert weight.tolist() == [*ROWS[:2], [0.0, 5.0], [6.0, 8.0]]
    assert align_classifier(torch.tensor(ROWS), num_old=2, p=1) == pytest.approx(10.5 / 19, rel=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_2_mean_norms_agree_and_a_second_time_changes_nothing(p):
    head = make_head()
    align_classifier(head, num_old=5, p=p)
    norms = head.weight.norm(p, dim=1)
    assert norms[:5].mean().item() == pytest.approx(norms[5:].mean().item(), rel=1e-6)
    assert align_classifier(head, num_old=5, p=p) == pytest.approx(1, abs=1e-6)


def test_3_and_4_only_decisions_between_old_and_new_move():
    for bias in (False, True):
        head, x = make_head(bias=bias), torch.rand(200, 16)
        raw = head(x)
        weight = head.weight.detach().clone()
        gamma = align_classifier(head, num_old=5)
        corrected = head(x)
        assert torch.equal(corrected[:, :5], raw[:, :5])
        assert torch.allclose(corrected[:, 5:], gamma * raw[:, 5:], rtol=1e-5, atol=1e-5)
        assert torch.equal(corrected[:, 5:].argmax(1), raw[:, 5:].argmax(1))
        assert not torch.equal(corrected.argmax(1), raw.argmax(1))
        assert torch.allclose(head.weight[5:] / weight[5:], torch.tensor(gamma, dtype=torch.float32))
    head = make_head()
    before = head.bias.detach().clone()
    align_classifier(head, num_old=5, scale_bias=False)
    assert torch.equal(head.bias, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_5_the_inverse_and_the_context_manager(dtype):
    head = make_head().to(dtype)
    before = {name: value.clone() for name, value in head.state_dict().items()}

    def stopped():
        with aligned(head, num_old=5):
            assert not torch.equal(head.weight, before["weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    gamma = align_classifier(head, num_old=5)
    back = (head.weight[5:].double() / gamma).to(dtype)
    ulp = torch.finfo(dtype).eps * before["weight"][5:].abs()
    assert ((back - before["weight"][5:]).abs() <= 1.01 * ulp).all()
    assert head.weight.dtype == dtype


def test_6_and_8_distillation_by_hand():
    logits = torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([2])
    ce = functional.cross_entropy(logits, labels)
    kd = (class_incremental_loss(logits, teacher, labels) - ce / 3) * 3 / 2
    assert kd.item() == pytest.approx(math.log(2), abs=1e-8)
    q = (teacher / 2).softmax(1)
    entropy = -(q * q.log()).sum().item()
    assert entropy == pytest.approx(0.5822030, abs=2e-7)
    assert kd.item() - entropy == pytest.approx(0.1109442, abs=2e-7)
    (gradient,) = torch.autograd.grad(kd, logits)
    assert torch.allclose(gradient[:, :2], ((logits[:, :2] / 2).softmax(1) - q) / 2)
    assert torch.allclose(gradient[:, 2:], torch.zeros(1, dtype=torch.float64), atol=1e-15)


def test_7_lambda_is_the_share_of_old_classes():
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(6, 100), torch.randn(6, 80), torch.randint(100, (6,))
    ce = functional.cross_entropy(logits, labels)
    kd = -((teacher / 2).softmax(1) * (logits[:, :80] / 2).log_softmax(1)).sum(1).mean()
    assert torch.allclose(class_incremental_loss(logits, teacher, labels), 0.2 * ce + 0.8 * kd)
    assert torch.equal(class_incremental_loss(logits, None, labels), ce)
    with pytest.raises(HyperparameterError, match=r"num_old: found 0, expected a whole number from 1 to 9"):
        align_classifier(make_head(), num_old=0)
    with pytest.raises(HyperparameterError, match=r"num_old: found 1, expected a head of several classes"):
        align_classifier(nn.Linear(4, 1), num_old=1)


def test_rows_without_a_label_do_not_count():
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(6, 4, requires_grad=True), torch.randn(6, 2), torch.randint(4, (6,))
    some = labels.clone()
    some[::2] = -100
    assert torch.allclose(
        class_incremental_loss(logits, teacher, some), class_incremental_loss(logits[1::2], teacher[1::2], labels[1::2])
    )
    class_incremental_loss(logits, teacher, torch.full_like(labels, -100)).backward()
    assert not logits.grad.any()


def test_9_weights_are_clipped_after_every_step():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    handle = clip_weights_hook(optimizer, model[2])
    x, y = torch.randn(32, 4), torch.randint(4, (32,))

    def step(classes):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y % classes).backward()
        optimizer.step()

    for _ in range(3):
        step(2)
        assert model[2].weight.min() >= 0
    grow_head(model[2], 4, optimizer=optimizer)
    step(4)
    assert model[2].weight.min() >= 0
    before = model[2].weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    step(4)
    assert torch.equal(model[2].weight, before)
    handle.remove()
    optimizer.param_groups[0]["lr"] = 10.0
    step(4)
    assert model[2].weight.min() < 0


def test_clipping_another_optimizers_weight_is_refused_and_negative_features_are_told():
    head = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    before = head.weight.detach().clone()
    with pytest.raises(HyperparameterError, match="not among its parameters"):
        clip_weights_hook(optimizer, head)
    assert torch.equal(head.weight, before)
    clip_weights_hook(torch.optim.SGD(head.parameters(), lr=0.1), head)
    with pytest.warns(UserWarning, match="negative values"):
        head(-torch.ones(1, 3))
    with pytest.raises(HyperparameterError, match="min"):
        clip_weights_hook(torch.optim.SGD(head.parameters(), lr=0.1), head, min=math.nan)


def test_10_equal_norms_change_no_bit_and_a_common_factor_cancels():
    weight = torch.tensor([[0.1, 0.2, 0.3]]).repeat(10, 1)
    before = weight.clone()
    assert align_classifier(weight, num_old=3) == 1.0
    assert torch.equal(weight, before)
    first, second = make_head(), make_head()
    with torch.no_grad():
        second.weight *= 8
    assert align_classifier(first, num_old=5) == align_classifier(second, num_old=5)


def test_11_herding():
    assert herd(torch.tensor([[0.9], [1.0], [1.1]]), 1).tolist() == [0]
    torch.manual_seed(0)
    features = torch.randn(60, 5) + 1
    unit = functional.normalize(features, dim=1)
    picks = herd(features, 12).tolist()
    assert picks[0] == int((unit @ functional.normalize(unit.mean(0), dim=0)).argmax())
    for count in range(1, 12):
        assert herd(features, count).tolist() == picks[: len(herd(features, count))]
        assert len(herd(features, count)) >= count - 1
    w, literal = unit.mean(0), []  # the authors' loop
    while len(literal) < 12:
        pick = int((unit @ w).argmax())
        literal += [pick] if pick not in literal else []
        w = w + unit.mean(0) - unit[pick]
    assert picks == literal
    near = (unit[picks].mean(0) - unit.mean(0)).norm()
    assert near < 0.3 * (unit[:12].mean(0) - unit.mean(0)).norm()


def test_a_memory_of_fixed_size_keeps_the_first_of_each_list():
    torch.manual_seed(0)
    data = [(torch.randn(4) + 1, label) for label in range(6) for _ in range(40)]
    memory = ExemplarMemory(24, lambda members: torch.stack([x for x, _ in members]))
    memory.add(data[:80])
    first = {label: [x for x, y in memory if y == label] for label in (0, 1)}
    assert all(11 <= len(kept) <= 12 for kept in first.values())  # a sample that would be picked twice is passed over
    memory.add(data[80:])
    assert len(memory) == 24
    for label, kept in first.items():
        now = [x for x, y in memory if y == label]
        assert len(now) == 4
        assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=False))
    batch = next(iter(memory.mixed_into(data[:8], batch_size=8)))
    assert len(batch[1]) == 8 + 24
    with pytest.raises(HyperparameterError, match="in the memory already"):
        memory.add(data[:4])
    with pytest.raises(HyperparameterError, match="at least the 6 classes"):
        ExemplarMemory(5, lambda members: torch.stack([x for x, _ in members])).add(data)
    for bad, error in ((torch.zeros(0, 3), ShapeError), (torch.tensor([[math.nan]]), NonFiniteError)):
        with pytest.raises(error):
            herd(bad, 1)


BAD = {
    "none": {"num_old": 0},
    "all": {"num_old": 10},
    "negative": {"num_old": -1},
    "both ways": {"num_old": 5, "new": [9]},
    "nothing": {},
    "overlap": {"old": [0, 1], "new": [1, 2]},
    "twice": {"old": [0, 0], "new": [1]},
    "empty": {"old": range(10), "new": []},
    "rest empty": {"old": range(10)},
    "outside": {"old": [0], "new": [10]},
    "from the end": {"old": [0], "new": [-1]},
    "p": {"num_old": 5, "p": 0.5},
    "p not finite": {"num_old": 5, "p": math.inf},
    "cap": {"num_old": 5, "max_gamma": 0.0},
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD)
def test_bad_groups_are_refused_with_nothing_changed(options):
    head = make_head()
    before = head.weight.detach().clone()
    with pytest.raises(ValueError, match="found|missing"):
        align_classifier(head, **options)
    assert torch.equal(head.weight, before)


def test_any_rows_may_be_old_and_others_stay():
    head, other = make_head(), make_head()
    order = torch.tensor([7, 2, 9, 0, 1, 3, 4, 5, 6, 8])
    with torch.no_grad():
        other.weight.copy_(head.weight[order])
    gamma = align_classifier(head, old=[7, 2, 9], new=[0, 4])
    assert align_classifier(other, old=[0, 1, 2], new=[3, 6]) == pytest.approx(gamma)
    assert torch.allclose(other.weight, head.weight[order])
    rest = [1, 3, 5, 6, 8]
    assert torch.equal(head.weight[rest], make_head().weight[rest])
    assert align_classifier(make_head(), new=range(5, 10)) == align_classifier(make_head(), num_old=5)


def test_zero_rows_and_zero_groups():
    weight = torch.tensor(ROWS)
    weight[3] = 0
    with pytest.warns(UserWarning, match=r"rows \[3\] of the head are zero"):
        assert align_classifier(weight, num_old=2) == 1.5  # 7.5 / 5: the zero row counts
    for rows in (slice(2), slice(2, 4)):
        weight = torch.tensor(ROWS)
        weight[rows] = 0
        with pytest.raises(ValueError, match="cannot align: zero-norm group"):
            align_classifier(weight, num_old=2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    head = make_head()
    with torch.no_grad():
        head.weight[3, 0] = value
    with pytest.raises(NonFiniteError):
        align_classifier(head, num_old=5)


def test_norms_of_half_precision_are_computed_in_float32():
    head = make_head(4, 4096)
    for dtype in (torch.bfloat16, torch.float16):
        half = make_head(4, 4096).to(dtype)
        expected = align_classifier(half.weight.detach().float(), num_old=2)
        assert align_classifier(half, num_old=2) == expected
        assert expected == pytest.approx(align_classifier(head.weight.detach().clone(), num_old=2), rel=1e-3)


def test_heads_of_other_kinds():
    conv = nn.Conv2d(16, 10, 1)
    head = make_head()
    with torch.no_grad():
        conv.weight.copy_(head.weight[:, :, None, None])
        conv.bias.copy_(head.bias)
    assert align_classifier(conv, num_old=5) == pytest.approx(align_classifier(head, num_old=5))
    assert torch.allclose(conv.weight.flatten(1), head.weight)
    assert torch.allclose(conv.bias, head.bias)

    class Cosine(nn.Linear):
        def forward(self, x):
            return functional.linear(functional.normalize(x, dim=1), functional.normalize(self.weight, dim=1))

    refused = [
        Cosine(4, 4),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, groups=2),
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.ReLU(),
        torch.arange(8).view(4, 2),
    ]
    for bad in refused:
        with pytest.raises(UnsupportedModelError):
            align_classifier(bad, num_old=2)


def test_state_dicts():
    head = make_head()
    state = {"classifier.weight": head.weight.detach().clone(), "classifier.bias": head.bias.detach().clone()}
    before = {name: value.clone() for name, value in state.items()}
    found = align_state_dict(state, weight="classifier.weight", bias="classifier.bias", old=range(5), new=range(5, 10))
    align_classifier(head, num_old=5)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert torch.equal(found["classifier.weight"], head.weight)
    assert torch.equal(found["classifier.bias"], head.bias)
    with pytest.raises(LayerNotFoundError, match="no tensor 'fc'"):
        align_state_dict(state, weight="fc", num_old=5)
    with pytest.raises(UnsupportedModelError, match="tied"):
        align_state_dict(state | {"embed": state["classifier.weight"]}, weight="classifier.weight", num_old=5)
    with pytest.raises(ShapeError):
        align_state_dict(state | {"b": torch.ones(3)}, weight="classifier.weight", bias="b", num_old=5)


def test_a_cap():
    head = make_head()
    assert align_classifier(head, num_old=5, max_gamma=0.1) == 0.1
    assert align_classifier(torch.tensor(ROWS), old=[2, 3], new=[0, 1], max_gamma=1.0) == 1.0


def test_models_and_their_heads():
    for name in ("bert", "vit"):
        model, batch = tiny(name)
        raw = model(**batch).logits
        result = weight_aligning(model, num_old=1)
        assert result.layers[0]["layer"] == "classifier"
        gamma = result.totals["gamma"]
        assert gamma == pytest.approx(result.layers[0]["old_norm"] / result.layers[0]["new_norm"])
        assert torch.allclose(model(**batch).logits, raw * torch.tensor([1.0, gamma]), atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="language model"):
        weight_aligning(tiny("llama")[0], num_old=1)
    with pytest.raises(UnsupportedModelError, match="tied"):
        weight_aligning(tiny("qwen3")[0], num_old=1, head="lm_head")
    with pytest.raises(LayerNotFoundError, match="no layer 'fc'"):
        weight_aligning(tiny("bert")[0], num_old=1, head="fc")
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    two = DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16)
    with pytest.raises(UnsupportedModelError, match="2 layers with the model's 2 classes"):
        weight_aligning(DeiTForImageClassificationWithTeacher(two), num_old=1)


def test_new_classes_that_become_stronger_are_told():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[2:] *= 0.1
    assert any("became stronger" in note for note in weight_aligning(model, num_old=2).notes)


def test_command_keeps_the_users_labels(tmp_path):
    from typer.testing import CliRunner

    model, _ = tiny("vit")
    order = [5, 4, 3, 2, 1, 0]
    names = {row: f"class {label}" for row, label in enumerate(order)}
    model.classifier = nn.Linear(32, 6)
    model.config.id2label, model.config.label2id = names, {name: row for row, name in names.items()}
    with torch.no_grad():
        model.classifier.weight[4:] *= 5
    model.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), str(tmp_path / "out"), "--num-old", "4"]
    outcome = CliRunner().invoke(app, ["continual", "weight-aligning", *arguments])
    assert outcome.exit_code == 0, outcome.output
    from transformers import AutoModelForImageClassification

    again = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert again.config.id2label == names
    align_classifier(model.classifier, num_old=4)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert json.loads((tmp_path / "out" / "weightsmith.json").read_text())["totals"]["new_classes"] == 2
    outcome = CliRunner().invoke(app, ["continual", "weight-aligning", *arguments[:1], str(tmp_path / "no")])
    assert outcome.exit_code


def test_the_loss_trains():
    torch.manual_seed(0)
    teacher, student = nn.Linear(4, 2), nn.Linear(4, 3)
    data = [(torch.randn(4), n % 3) for n in range(24)]
    run = fit(student, data, loss=distillation(teacher, class_incremental_loss), epochs=20, learning_rate=0.1)
    assert run.losses[-1] < run.losses[0]


def test_the_loss_refuses():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    for teacher in (torch.zeros(2, 3), torch.zeros(2, 0), torch.zeros(1, 2)):
        with pytest.raises(ShapeError, match="old model"):
            class_incremental_loss(logits, teacher, labels)
    with pytest.raises(NonFiniteError):
        class_incremental_loss(logits, torch.full((2, 2), math.nan), labels)
    with pytest.raises(HyperparameterError, match="labels"):
        class_incremental_loss(logits, torch.zeros(2, 2), torch.tensor([0, 3]))
    with pytest.raises(HyperparameterError, match="temperature"):
        class_incremental_loss(logits, torch.zeros(2, 2), labels, temperature=0.0)
    with pytest.raises(ShapeError, match="labels"):
        unwrap(class_incremental_loss)(logits, torch.zeros(2, 2), torch.zeros(2))


def test_sharded_heads(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain = make_head()
        weight = distribute_tensor(plain.weight.detach().clone(), init_device_mesh("cpu", (1,)), [Shard(0)])
        assert align_classifier(weight, num_old=5) == align_classifier(plain, num_old=5)
        assert torch.equal(weight.full_tensor(), plain.weight)
    finally:
        dist.destroy_process_group()
