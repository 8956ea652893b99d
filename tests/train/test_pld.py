"""PLD: the worked numbers, its identities and limits, masks, soft labels, top-k, and training with it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from models import tiny
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.training import fit
from weightsmith.testing import tiny as still  # without dropout
from weightsmith.train import (
    DistillationLoss,
    PLDLoss,
    dist_loss,
    distillation,
    dkd_loss,
    kd_loss,
    list_mle_loss,
    pld,
    pld_loss,
    pld_loss_from_top,
    suggest_temperature,
)
from weightsmith.train._pld import _order, _teacher_logits, label_weight

F64 = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=F64)


def draw(rows, classes, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    s, t = (2 * torch.randn(rows, classes, generator=generator, dtype=dtype) for _ in range(2))
    return s, t, torch.randint(classes, (rows,), generator=generator)


def by_hand(s, t, y, temperature=1.0):
    """The definition, class by class."""
    losses = []
    for s_C, t_C, label in zip(s, t, y, strict=True):
        others = [c for c in t_C.argsort(descending=True, stable=True).tolist() if c != label]
        order = [int(label), *others]
        alpha = (t_C / temperature).softmax(0)
        losses.append(sum(alpha[c] * (s_C[order[k:]].logsumexp(0) - s_C[c]) for k, c in enumerate(order)))
    return torch.stack(losses)


@pytest.mark.parametrize(
    ("y", "temperature", "loss", "gradient"),
    [
        (0, 1.0, 0.2450915030, [-0.0301385486, -0.1568778037, 0.1870163524]),
        (1, 1.0, 1.4569169773, [0.6581016514, -0.5024375538, -0.1556640977]),
        (0, 0.5, 0.2780106573, None),
        (0, 2.0, 0.2346075629, None),
        (0, 4.0, 0.2349724621, None),
    ],
)
def test_worked_example(y, temperature, loss, gradient):
    s = tensor([[2.0, 1.0, 0.0]]).requires_grad_()
    value = pld_loss(s, tensor([[1.0, 3.0, 2.0]]), torch.tensor([y]), temperature=temperature)
    assert value.item() == pytest.approx(loss, abs=1e-9)
    value.backward()
    if gradient:
        assert s.grad[0].tolist() == pytest.approx(gradient, abs=1e-9)


def test_two_classes_are_weighted_cross_entropy():
    s, t = tensor([[0.3, -0.2]]), tensor([[2.0, 0.0]])
    for y, loss in ((0, 0.4175656224), (1, 0.1161128228)):
        label = torch.tensor([y])
        assert pld_loss(s, t, label).item() == pytest.approx(loss, abs=1e-9)
        assert loss == pytest.approx((t.softmax(1)[0, y] * functional.cross_entropy(s, label)).item(), abs=1e-9)


def test_uniform_everything_is_the_factorial():
    zeros = torch.zeros(1, 10, dtype=F64)
    assert pld_loss(zeros, zeros, torch.tensor([3])).item() == pytest.approx(
        math.log(math.factorial(10)) / 10, abs=1e-9
    )


def test_golden_batch():
    i = torch.arange(20, dtype=F64).view(4, 5)
    s, t, y = i.sin().requires_grad_(), 2 * (1.3 * i).cos(), torch.tensor([0, 3, 2, 4])
    loss = pld_loss(s, t, y)
    assert loss.item() == pytest.approx(1.5596232285, abs=1e-9)
    assert pld_loss(s, t, y, temperature=2.0).item() == pytest.approx(1.3999785804, abs=1e-9)
    loss.backward()
    row = [-0.1325028096, 0.0453607864, 0.0897275376, 0.0367685946, -0.0393541090]
    # the worked gradient is that of the mean over four rows or of their sum; it says which by its size
    scale = 4 if abs(s.grad[0, 0].item() * 4 - row[0]) < 1e-8 else 1
    assert (scale * s.grad[0]).tolist() == pytest.approx(row, abs=1e-9)


@given(st.integers(1, 6), st.integers(2, 12), st.floats(0.3, 8.0), st.integers(0, 99))
def test_it_is_the_definition(rows, classes, temperature, seed):
    s, t, y = draw(rows, classes, seed)
    s.requires_grad_()
    ours, theirs = (f(s, t, y) for f in (
        lambda *a: pld_loss(*a, temperature=temperature, reduction="none"),
        lambda *a: by_hand(*a, temperature=temperature),
    ))  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert (ours >= 0).all()
    gradients = [torch.autograd.grad(x.sum(), s)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)
    assert gradients[0].sum(1).abs().max() < 1e-12


def test_invariances_convexity_and_gradcheck():
    s, t, y = draw(4, 6)
    base = pld_loss(s, t, y)
    torch.testing.assert_close(pld_loss(s + 7.5, t - 3, y), base, rtol=0, atol=2e-14)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pld_loss(s[:, order], t[:, order], order.argsort()[y]), base)
    assert torch.autograd.gradcheck(lambda s: pld_loss(s, t, y), s.clone().requires_grad_())
    hessian = torch.autograd.functional.hessian(lambda row: by_hand(row[None], t[:1], y[:1]).sum(), s[0])
    values = torch.linalg.eigvalsh(hessian)
    assert values[0].abs() < 1e-12
    assert (values[1:] > 0).all()


def test_limits_are_cross_entropy_and_list_mle():
    s, t, y = draw(5, 7)
    sure = functional.one_hot(y, 7).to(F64) * 50
    torch.testing.assert_close(pld_loss(s, sure, y), functional.cross_entropy(s, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(pld_loss(s, t, y, temperature=1e7), list_mle_loss(s, t, y) / 7, rtol=1e-6, atol=0)


def test_huge_logits_and_half_precision():
    s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 5.0]], requires_grad=True)
    loss = pld_loss(s, torch.tensor([[9.0, 1.0, 5.0], [1.0, 9.0, 5.0]]), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert s.grad.isfinite().all()
    # a row whose order contradicts its scores: the running sums span more than float64
    s = torch.tensor([[-2000.0, 1000.0, 0.0]], dtype=F64, requires_grad=True)
    t, y = tensor([[0.0, 1.0, 2.0]]), torch.tensor([1])
    torch.testing.assert_close(pld_loss(s, t, y), by_hand(s, t, y).mean())
    ours, theirs = (torch.autograd.grad(f(s, t, y).sum(), s)[0] for f in (pld_loss, by_hand))
    torch.testing.assert_close(ours, theirs)
    s, t, y = draw(4, 1000, dtype=torch.float32)
    exact = pld_loss(s.bfloat16().double(), t.bfloat16().double(), y)
    half = pld_loss(s.bfloat16(), t.bfloat16(), y)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(pld_loss(s, t, y), by_hand(s, t, y).mean(), rtol=1e-5, atol=0)


def test_masked_classes_take_no_part():
    s, t, _ = draw(4, 6)
    y = torch.tensor([0, 1, 2, 0])
    wide_s = torch.cat([s, torch.full((4, 3), -torch.inf, dtype=F64)], 1).requires_grad_()
    wide_t = torch.cat([t, torch.full((4, 3), -torch.inf, dtype=F64)], 1)
    loss = pld_loss(wide_s, wide_t, y)
    torch.testing.assert_close(loss, pld_loss(s, t, y))
    loss.backward()
    assert (wide_s.grad[:, 6:] == 0).all()
    one_sided = torch.cat([s, torch.full((4, 3), 2.0, dtype=F64)], 1)
    for top_k in (None, 3):
        torch.testing.assert_close(pld_loss(one_sided, wide_t, y, top_k=top_k), pld_loss(s, t, y, top_k=top_k))
    with pytest.raises(NonFiniteError, match="the logit of a label is minus infinity"):
        pld_loss(wide_s, wide_t, torch.tensor([0, 1, 2, 7]))


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_keeps_the_rest_in_the_denominators(k):
    s, t, y = draw(6, 9)
    s.requires_grad_()
    alpha = t.softmax(1)
    order = t.scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True)
    expected = sum(
        alpha.gather(1, order[:, j : j + 1])[:, 0] * (s.gather(1, order[:, j:]).logsumexp(1) - s.gather(1, order)[:, j])
        for j in range(k)
    )
    ours = pld_loss(s, t, y, top_k=k, reduction="none")
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(x.sum(), s, retain_graph=True)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients)
    if k == 9:
        torch.testing.assert_close(ours, pld_loss(s, t, y, reduction="none"))


@given(st.floats(0.5, 4.0), st.integers(2, 7), st.integers(0, 50))
def test_a_cached_teacher_is_the_teacher(temperature, k, seed):
    s, t, _ = draw(6, 9, seed, torch.float32)
    logits, indices = t.topk(k)
    y = indices[:, min(1, k - 1)].clone()
    y[0] = -100
    rest = (t / temperature).scatter(1, indices, -torch.inf).logsumexp(1)
    ours = pld_loss_from_top(s, indices, logits, rest, y, temperature=temperature, reduction="none")
    torch.testing.assert_close(ours, pld_loss(s, t, y, temperature=temperature, top_k=k, reduction="none"))


def test_a_cached_teacher_may_be_unsorted_and_classes_of_minus_infinity_take_no_part():
    s, t, _ = draw(6, 9)
    y = t.argmax(1)
    logits, indices = t.topk(4)
    s.scatter_(1, indices[:, 2:3], -torch.inf).requires_grad_()
    t = t.scatter(1, indices[:, 3:], -torch.inf)
    logits[:, 3] = -torch.inf
    rest = t.scatter(1, indices, -torch.inf).logsumexp(1)
    ours = pld_loss_from_top(s, indices.flip(1), logits.flip(1), rest, y, reduction="none")
    expected = pld_loss(s, t, y, top_k=2, reduction="none")
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(x.sum(), s)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients)
    for left_out in (2, 3):
        with pytest.raises(NonFiniteError, match="the logit of a label is minus infinity"):
            pld_loss_from_top(s, indices, logits, rest, indices[:, left_out])


def test_shapes_reductions_and_ignored_rows():
    s, t, y = draw(24, 5)
    rows = pld_loss(s, t, y, reduction="none")
    image = [x.view(2, 3, 4, 5).permute(0, 3, 1, 2) for x in (s, t)]
    torch.testing.assert_close(pld_loss(*image, y.view(2, 3, 4), reduction="none"), rows.view(2, 3, 4))
    tokens = [x.view(2, 12, 5) for x in (s, t)]
    torch.testing.assert_close(pld_loss(*tokens, y.view(2, 12), class_dim=-1), rows.mean())
    torch.testing.assert_close(pld_loss(s, t, y, reduction="sum"), rows.sum())
    ignored = y.clone()
    ignored[::3] = -100
    kept = ignored != -100
    torch.testing.assert_close(pld_loss(s, t, ignored), rows[kept].mean())
    none = pld_loss(s, t, ignored, reduction="none")
    torch.testing.assert_close(none, rows * kept)
    s.requires_grad_()
    nothing = pld_loss(s, t, torch.full_like(y, -100))
    nothing.backward()
    assert nothing.item() == 0
    assert (s.grad == 0).all()


def test_soft_labels_mix_the_losses():
    s, t, y = draw(5, 6)
    other = (y + 2) % 6
    mixed = 0.7 * functional.one_hot(y, 6) + 0.3 * functional.one_hot(other, 6)
    expected = 0.7 * pld_loss(s, t, y) + 0.3 * pld_loss(s, t, other)
    torch.testing.assert_close(pld_loss(s, t, mixed.to(F64)), expected)
    with pytest.raises(HyperparameterError, match="found 12 labels in a row, expected at most 8"):
        pld_loss(*draw(2, 12)[:2], torch.full((2, 12), 1 / 12, dtype=F64))


def test_label_weight_floor():
    s, t, y = tensor([[2.0, 1.0, 0.0]]), tensor([[-20.0, 3.0, 2.0]]), torch.tensor([0])
    alpha = tensor([0.25, 0.75 * math.e / (1 + math.e), 0.75 / (1 + math.e)])
    expected = sum(alpha[k] * (s[0, k:].logsumexp(0) - s[0, k]) for k in range(3))
    assert pld_loss(s, t, y, label_weight_floor=0.25).item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(pld_loss(s, s, y, label_weight_floor=0.25), pld_loss(s, s, y))


def test_temperature_search():
    _, t, y = draw(200, 10)
    good = t + 6 * functional.one_hot(y, 10)
    temperature = suggest_temperature(good, y)
    assert label_weight(good, y, temperature) == pytest.approx(0.4, abs=1e-3)
    told = PLDLoss(temperature).diagnostics(good, y)
    assert told["label_weight"] == pytest.approx(0.4, abs=1e-3)
    assert told["disagreement"] == pytest.approx((good.argmax(1) != y).double().mean().item())
    assert 0 < told["entropy"] < math.log(10)
    half = torch.where(torch.arange(200) < 100, y, -100)
    assert suggest_temperature(good, half) == suggest_temperature(good[:100], y[:100])
    with pytest.raises(CalibrationError, match="labels: found 200 rows without a label"):
        suggest_temperature(good, torch.full_like(y, -100))
    with pytest.raises(HyperparameterError, match=r"labels: found \[10\], expected class indices from 0 to 9"):
        suggest_temperature(good, torch.where(torch.arange(200) < 1, 10, y))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": 0.0}, HyperparameterError, "temperature: found 0.0, expected a positive number"),
        ({"top_k": 0}, HyperparameterError, "top_k: found 0"),
        ({"label_weight_floor": 1.0}, HyperparameterError, r"label_weight_floor: found 1.0, expected in \[0, 1\)"),
        (
            {"labels": torch.tensor([0, 5])},
            HyperparameterError,
            r"labels: found \[5\], expected class indices from 0 to 4",
        ),
        ({"labels": torch.tensor([0, 1, 2])}, ShapeError, r"labels: found \(3,\), expected \(2,\)"),
    ],
)
def test_bad_input(change, error, message):
    s, t, y = draw(2, 5)
    with pytest.raises(error, match=message):
        pld_loss(s, t, **({"labels": y} | change))


def test_bad_teachers():
    s, t, y = draw(3, 5)
    with pytest.raises(ShapeError, match=r"found \(3, 5\) and \(3, 4\)"):
        PLDLoss()(s, t[:, :4], y)
    top, indices = t.topk(3)
    rest = t.scatter(1, indices, -torch.inf).logsumexp(1)
    for bad in (torch.nan, torch.inf):
        t[1, 2] = top[1, 0] = bad
        with pytest.raises(NonFiniteError, match=r"teacher's logits hold NaN or infinity: found rows \[1\]"):
            pld_loss(s, t, y)
        with pytest.raises(NonFiniteError, match=r"teacher's logits hold NaN or infinity: found rows \[1\]"):
            pld_loss_from_top(s, indices, top, rest, y)
    t = draw(3, 5)[1].requires_grad_()
    assert not pld_loss(s, t, y).requires_grad, "the teacher is a constant"


def test_baselines_by_hand():
    s, t, y = draw(6, 5)
    ce = functional.cross_entropy(s, y)
    p, q = (t / 4).softmax(1), (s / 4).softmax(1)
    kl = (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(kd_loss(s, t, y, temperature=4.0, alpha=0.3), 0.3 * ce + 0.7 * 16 * kl)
    rows = torch.stack([1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p, q, strict=True)]).mean()
    columns = torch.stack([1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p.T, q.T, strict=True)]).mean()
    torch.testing.assert_close(dist_loss(s, t, y, beta=2.0, gamma=3.0), ce + 16 * (2 * rows + 3 * columns))
    # without beta's freedom DKD is KD: KL = KL(label) + (1 - p_label) KL(rest)
    is_label = functional.one_hot(y, 5).bool()
    b_p, b_q = (torch.stack([x[is_label], 1 - x[is_label]], 1) for x in (p, q))
    r_p, r_q = (x[~is_label].view(6, 4) / (1 - x[is_label])[:, None] for x in (p, q))
    label, rest = ((a * (a.log() - b.log())).sum(1) for a, b in ((b_p, b_q), (r_p, r_q)))
    torch.testing.assert_close(label + b_p[:, 1] * rest, (p * (p.log() - q.log())).sum(1))
    torch.testing.assert_close(dkd_loss(s, t, y, beta=8.0), ce + 16 * (label.mean() + 8 * rest.mean()))


def test_a_student_learns_in_fit():
    torch.manual_seed(0)
    teacher, student = nn.Linear(8, 5), nn.Linear(8, 5)
    x = torch.randn(128, 8)
    y = teacher(x).argmax(1).detach()
    run = fit(
        student,
        TensorDataset(x, y),
        loss=distillation(teacher, PLDLoss(2.0)),
        epochs=40,
        learning_rate=0.05,
        precision="bf16",
    )
    assert run.losses[-1] < 0.75 * run.losses[0]
    assert (student(x).argmax(1) == y).float().mean() > 0.9


def test_a_language_model_learns_the_next_token():
    torch.manual_seed(0)
    student, batch = tiny("llama")
    teacher, _ = tiny("opt")
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    ids = batch["input_ids"]
    criterion = PLDLoss()
    loss = distillation(teacher, criterion)(student, {"input_ids": ids, "labels": ids})
    s, t = student(ids).logits[:, :-1].flatten(0, 1), teacher(ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(loss, criterion(s, t, ids[:, 1:].flatten()))
    result = pld(student, rows, teacher=teacher, learning_rate=5e-3, epochs=6, batch_size=4)
    assert result.curves["training loss"][-1] < result.curves["training loss"][0]
    assert result.hyper["temperature"] > 0


def test_teacher_and_student_of_other_classes_are_refused_unchanged():
    student, batch = tiny("llama")
    before = copy.deepcopy(student.state_dict())
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    teacher = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=80, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    with pytest.raises(ShapeError, match="same classes: found 80 and 64"):
        pld(student, rows, teacher=teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_teacher_or_its_stored_logits_work_in_the_trainer(tmp_path, kind, accumulation):
    """Both give the loss over all labels of a step, however it is split into batches."""
    teacher, batch = still(kind)
    batch = {name: value[:, :20] for name, value in batch.items()}
    labels = torch.arange(8) % 2 if kind == "bert" else batch["input_ids"].clone()
    if kind != "bert":
        labels[1, 5:], labels[2, 9:] = -100, -100
    rows = [{**{name: value[n] for name, value in batch.items()}, "labels": labels[n]} for n in range(8)]
    with torch.no_grad():
        theirs = teacher(**batch).logits
    criterion, runs = PLDLoss(2.0), {}
    for stored in (True, False):
        model, _ = still(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
            ours, cut = model(**batch).logits, labels
        data = [row | {"teacher_logits": theirs[n]} for n, row in enumerate(rows)] if stored else rows
        loss = DistillationLoss(model, criterion, None if stored else teacher.train())
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=4, per_device_train_batch_size=8 // accumulation, report_to=[], use_cpu=True,
            gradient_accumulation_steps=accumulation, save_strategy="no", disable_tqdm=True, logging_steps=1,
            learning_rate=1e-3, remove_unused_columns=not stored,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=data, compute_loss_func=loss)
        trainer.train()
        runs[stored] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        evaluated = trainer.evaluate(data)["eval_loss"]
        assert evaluated < runs[stored][0]
        assert not teacher.training
        loss.remove()
        assert not model._forward_pre_hooks
    assert runs[True] == pytest.approx(runs[False], rel=1e-5)
    if kind == "llama":
        ours, theirs, cut = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
    expected = criterion(ours.flatten(0, -2), theirs.flatten(0, -2), cut.flatten()).item()
    assert runs[True][0] == pytest.approx(expected, rel=1e-4)
    assert runs[True][-1] < runs[True][0]


def test_a_batch_without_teacher_or_labels_is_refused_in_the_trainer():
    student = nn.Linear(4, 3)
    loss = DistillationLoss(student, PLDLoss())
    outputs = student(input=torch.zeros(2, 4))
    with pytest.raises(CalibrationError, match=r"without 'teacher_logits': found \['input'\]. Put the column"):
        loss(outputs, torch.tensor([0, 1]))
    loss = DistillationLoss(student, PLDLoss(), nn.Linear(4, 2))
    outputs = student(input=torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="same classes: found 2 and 3"):
        loss(outputs, torch.tensor([0, 1]))
    student(input=torch.zeros(2, 4))
    with pytest.raises(CalibrationError, match="a batch without labels"):
        loss(outputs, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_are_ranked_by_class_whatever_the_number_of_ranks(dtype):
    """Rounding makes many logits equal; ``top_k = C - 1`` leaves one class, of no weight."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(50, 12, generator=generator)
    teacher = torch.randn(50, 12, generator=generator).mul(2).round().to(dtype)
    labels = torch.arange(50) % 12
    full = pld_loss(student, teacher, labels, reduction="none")
    torch.testing.assert_close(pld_loss(student, teacher, labels, top_k=11, reduction="none"), full)
    for top_k in (1, 3, 6):
        order = teacher.float().scatter(1, labels[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
        assert torch.equal(_order(teacher.float().scatter(1, labels[:, None], torch.inf), top_k), order[:, :top_k])


def test_a_cached_teacher_keeps_float64():
    student, teacher = torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, (logits, indices) = teacher.argmin(1), teacher.topk(8)
    rest = teacher.scatter(1, indices, -torch.inf).logsumexp(1)
    found = pld_loss_from_top(student, indices, logits, rest, labels)
    full = teacher.softmax(1)
    order = teacher.scatter(1, labels[:, None], torch.inf).argsort(1, descending=True)
    s, alpha = student.gather(1, order), full.gather(1, order).clone()
    alpha[:, 0] = 0.0  # the label is the class that the cache lacks
    s = torch.cat([s[:, :1], s[:, 1:]], 1)
    expected = (alpha * (s.flip(1).logcumsumexp(1).flip(1) - s)).sum(1).mean()
    assert found.dtype == torch.float64
    assert abs(found.item() - expected.item()) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_dim": 2}, "the dimension of the classes: found class_dim 2"),
        ({"class_dim": -3}, "the dimension of the classes"),
        ({"labels": torch.tensor([[-0.1, 1.1, 0.0]] * 2)}, "soft labels: found -0.1"),
        ({"labels": torch.tensor([[float("nan"), 1.0, 0.0]] * 2)}, "soft labels: found nan"),
    ],
)
def test_what_was_taken_in_silence_is_refused(change, message):
    given = {"labels": torch.tensor([0, 1])} | change
    with pytest.raises((HyperparameterError, ShapeError), match=message):
        pld_loss(torch.zeros(2, 3), torch.zeros(2, 3), **given)


def test_labels_of_eight_bits_and_other_dimensions_of_the_classes():
    student, teacher = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12).view(4, 3) % 5
    exact = pld_loss(student, teacher, labels)
    assert torch.equal(pld_loss(student, teacher, labels.to(torch.uint8)), exact)
    for place in (0, 2, -1, -3):
        moved = pld_loss(student.movedim(1, place), teacher.movedim(1, place), labels, class_dim=place)
        torch.testing.assert_close(moved, exact)
    for loss in (kd_loss, dist_loss, dkd_loss, list_mle_loss):
        rows = student[..., 0], teacher[..., 0]
        assert torch.equal(loss(*rows, labels[:, 0].to(torch.uint8)), loss(*rows, labels[:, 0])), loss.__name__


def test_a_class_without_probability_does_not_stop_a_mixture():
    student = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 1.0, 2.0]])
    mixed = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]])
    assert pld_loss(student, student, mixed).isfinite()


def test_the_temperature_is_that_of_the_whole_data_and_not_of_its_beginning():
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) // 100
    teacher = nn.Linear(4, 2)
    with torch.no_grad():  # as certain of the first class as it is doubtful of the second
        teacher.weight.zero_()
        teacher.bias.copy_(torch.tensor([3.0, 0.0]))
    data = list(zip(rows, labels.tolist(), strict=True))
    result = pld(nn.Linear(4, 2), data, teacher=teacher, temperature=None, batch_size=8)
    with torch.no_grad():
        logits = teacher(rows)
    assert result.totals["label_weight"] == pytest.approx(label_weight(logits, labels, result.hyper["temperature"]))
    assert result.totals["disagreement"] == pytest.approx(0.5)


def test_few_labels_of_long_texts_are_enough_for_the_temperature():
    logits, labels = _teacher_logits(
        tiny("llama")[0], [{"input_ids": torch.arange(32), "labels": torch.arange(32)}] * 100, 8
    )
    assert len(logits) == len(labels) <= 1024


def test_the_temperature_is_found_on_samples_with_labels():
    torch.manual_seed(0)
    rows = [torch.randn(4) for _ in range(12)]
    teacher = nn.Linear(4, 3)
    late = [(row, -100 if n < 4 else n % 3) for n, row in enumerate(rows)]
    first = [(row, n % 3) for n, row in enumerate(rows)][4:]
    found = [pld(nn.Linear(4, 3), data, teacher=teacher, batch_size=4) for data in (late, first)]
    assert found[0].hyper["temperature"] == found[1].hyper["temperature"]
    with pytest.raises(CalibrationError, match="3 samples without a label"):
        pld(nn.Linear(4, 3), [(row, -100) for row in rows[:3]], teacher=teacher, batch_size=2)
