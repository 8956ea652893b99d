"""OFQ: the numbered checks of its specification, layers and models of every kind, files, what is refused."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import Trainer, TrainerCallback, TrainingArguments

from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import CheckpointReader, load_model, save_model
from weightsmith.core.levels import FILE
from weightsmith.core.models import get_module
from weightsmith.quantize import (
    ActivationQuantizer,
    AnnealingCallback,
    ConfidenceGuidedAnnealing,
    IterativeFreezing,
    LSQWeight,
    Oscillations,
    Quantization,
    StatsQ,
    apply_quantization,
    check_packable,
    finish_qat,
    gptq,
    initialize_activations,
    load_quantized,
    lsq,
    ofq,
    pack_checkpoint,
    prepare_qat,
    round_to_nearest,
    save_packed,
    unpack_checkpoint,
)
from weightsmith.quantize._ofq.activations import quantizers
from weightsmith.quantize._ofq.annealing import fake_quantized, trainable
from weightsmith.quantize._ofq.attention import QuantizedAttention
from weightsmith.quantize._ofq.weights import lsq as learned_steps
from weightsmith.quantize._packed import pack_codes, unpack_codes
from weightsmith.testing import samples, tiny

ROW = torch.tensor([[0.1, -0.4, 0.3, -0.2]])


def stack(width=8, depth=3, bias=True):
    torch.manual_seed(0)
    layers = [nn.Linear(width, width, bias=bias) for _ in range(depth)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]


def outputs(model, batch):
    with torch.no_grad():
        out = model(**batch) if isinstance(batch, dict) else model(batch)
    return out if isinstance(out, torch.Tensor) else out.logits


# ---- the levels ----


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (2, [0.125, -0.375, 0.375, -0.125]),
        (3, [0.0625, -0.4375, 0.3125, -0.1875]),
        (4, [0.09375, -0.40625, 0.28125, -0.21875]),
    ],
)
def test_levels_of_the_worked_example(bits, expected):
    assert torch.equal(StatsQ(bits)(ROW), torch.tensor([expected]))


def test_positions_and_an_outlier():
    kind = StatsQ(2)
    z = kind.grid.positions(ROW, kind.step_of(ROW))
    assert torch.allclose(z, torch.tensor([[-0.1, -2.1, 0.7, -1.3]]))
    row = torch.tensor([[1, -1, 0.02, 3]])
    assert torch.allclose(kind(row), torch.tensor([[0.6275, -0.6275, 0.6275, 1.8825]]))


def test_the_gradient_passes_all_weights_and_not_the_scale():
    weight, slope = (5 * torch.randn(3, 7)).requires_grad_(), torch.randn(3, 7)
    (StatsQ(2)(weight) * slope).sum().backward()
    assert torch.equal(weight.grad, slope)


@given(st.integers(2, 8), st.floats(1e-3, 1e3), st.integers(0, 100))
def test_levels_scale_with_the_weights_and_are_few(bits, factor, seed):
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kind = StatsQ(bits)
    kind.dtype = torch.float64
    ours = kind(weight)
    assert torch.allclose(kind(factor * weight), factor * ours)
    alpha = 2 * weight.abs().mean(1)
    largest = ours.abs().amax(1)
    assert (largest <= alpha * (1 - 0.5 / 2 ** (bits - 1)) * (1 + 1e-12)).all()
    assert max(len(row.unique()) for row in ours) <= 2**bits
    assert (ours != 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_are_the_same_in_every_precision(bits):
    weight = (3 * torch.randn(20, 40)).bfloat16()  # weights far beyond the last level, and ties
    weight[:, :4] = torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=torch.bfloat16)
    expected = StatsQ(bits).codes(weight.float())
    n = 2 ** (bits - 1)
    assert expected.min() >= -n
    assert expected.max() <= n - 1
    for dtype in (torch.bfloat16, torch.float16):
        given = weight.to(dtype)
        assert torch.equal(StatsQ(bits).codes(given), expected)
        module = nn.Linear(40, 20, bias=False, dtype=dtype)
        module.weight.data.copy_(given)
        parametrize.register_parametrization(module, "weight", StatsQ(bits))
        assert max(len(row.unique()) for row in module.weight) <= 2**bits
        plan = finish_qat(nn.ModuleDict({"m": module}))
        assert torch.equal(plan.weights["m"].integers(module.weight), (2 * expected + 1).to(dtype))


def test_entropy_of_gaussian_codes():
    codes = StatsQ(2).codes(torch.randn(200, 1000))
    shares = codes.flatten().unique(return_counts=True)[1] / codes.numel()
    assert torch.allclose(shares, torch.tensor([0.213, 0.287, 0.287, 0.213]), atol=0.005)


def test_rows_of_zeros_and_of_one_input():
    weight = torch.zeros(2, 4, requires_grad=True)
    out = StatsQ(2)(weight)
    out.sum().backward()
    assert out.abs().max() < 1e-30
    assert weight.grad.isfinite().all()
    one = StatsQ(3).codes(torch.tensor([[2.0], [0.1], [-0.1], [-7.0]])).squeeze(1)  # alpha is twice the weight
    assert one[0] == one[1] > 0 > one[2] == one[3]
    step = LSQWeight(torch.zeros(2, 4), 2)
    assert step.step.min() > 0
    assert torch.equal(step(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 2), nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(3, 4, 2)])
def test_convolutions_have_one_step_per_output(layer):
    expected = StatsQ(2)(layer.weight.detach().flatten(1)).view_as(layer.weight)
    parametrize.register_parametrization(layer, "weight", StatsQ(2))
    assert torch.equal(layer.weight, expected)


# ---- learned steps ----


def test_the_slope_of_the_step_is_that_of_the_paper():
    x = torch.randn(5, 6, dtype=torch.float64)
    step = torch.tensor([0.37], dtype=torch.float64, requires_grad=True)
    learned_steps(x, step, -4, 3).sum().backward()
    position = x / 0.37
    slope = torch.where(position <= -4, -4.0, torch.where(position >= 3, 3.0, position.round() - position))
    assert torch.allclose(step.grad, slope.sum()[None] / math.sqrt(3 * x.numel()))
    # with the codes held, the slope of the clipped values is the numerical one
    far = torch.tensor([-9.0, 9.0], dtype=torch.float64)
    high, low = (learned_steps(far, torch.tensor([0.37 + e], dtype=torch.float64), -4, 3).sum() for e in (1e-6, -1e-6))
    assert (high - low) / 2e-6 == pytest.approx(-1, abs=1e-3)


def test_a_step_below_zero_stays_positive_and_recovers():
    step = torch.tensor([-1.0], requires_grad=True)
    out = learned_steps(torch.tensor([0.5, -0.5]), step, -2, 1)
    out.sum().backward()
    assert out.isfinite().all()
    assert step.grad.isfinite().all()


@pytest.mark.parametrize(("granularity", "shape"), [("tensor", (1,)), ("token", (5, 1))])
def test_first_steps_of_activations(granularity, shape):
    x = torch.randn(7, 5, 6)
    quantizer = ActivationQuantizer(4, (6,), granularity)
    with quantizer.observing(lambda _: None):
        quantizer(x)
    mean = x.abs().mean() if granularity == "tensor" else x.abs().mean((0, 2))[:, None]
    assert quantizer.step.shape == shape
    assert torch.allclose(quantizer.step, 2 * mean.expand(shape) / 7**0.5)
    assert quantizer.signed
    with quantizer.observing(lambda _: None):
        quantizer(functional.relu(x))
    assert not quantizer.signed
    assert quantizer.limits == (0, 15)
    if granularity == "token":
        with pytest.raises(ShapeError, match="granularity='tensor'"):
            quantizer(x[:, :4])


def test_activations_that_are_all_zero_at_first():
    quantizer = ActivationQuantizer(4, (3,))
    with quantizer.observing(lambda _: None):
        quantizer(torch.zeros(2, 3))
    x = torch.zeros(2, 3, requires_grad=True)
    out = quantizer(x)
    out.sum().backward()
    assert quantizer.step.item() > 0
    assert torch.equal(out, torch.zeros(2, 3))
    assert x.grad.isfinite().all()
    assert quantizer.step.grad.isfinite().all()


def test_a_quantized_model_is_not_quantized_again():
    model = stack()
    data = [(torch.randn(8), i % 3) for i in range(8)]
    ofq(model, data, epochs=1)
    with pytest.raises(UnsupportedModelError, match="already"):
        ofq(model, data, epochs=1)


def test_negative_tails_count_as_none_at_few_bits():
    x = functional.gelu(torch.randn(100, 20))
    for bits, signed in ((2, False), (4, False), (8, True)):
        quantizer = ActivationQuantizer(bits, (20,))
        with quantizer.observing(lambda _: None):
            quantizer(x)
        assert quantizer.signed is signed


def test_padding_does_not_count():
    model = nn.ModuleList([nn.Linear(2, 2)])
    quantizer = ActivationQuantizer(4, (2,))
    x = torch.randn(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with quantizer.observing(lambda _: mask):
        quantizer(x.masked_fill(~mask[..., None], 100.0))
    assert torch.allclose(quantizer.step, 2 * x[mask].abs().mean() / 7**0.5)
    del model


def test_activations_without_a_step_are_refused():
    with pytest.raises(CalibrationError, match="not initialized"):
        ActivationQuantizer(4, (2,))(torch.ones(1, 2))
    with pytest.raises(NonFiniteError):
        initialize_activations(_prepared(), [torch.full((4, 8), math.nan)])


def _prepared(**options):
    model = stack()
    prepare_qat(model, **options)
    return model


# ---- annealing ----


def _annealed(boundary, weight):
    layer = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight.data.copy_(weight)
    parametrize.register_parametrization(layer, "weight", StatsQ(2))
    latent = layer.parametrizations.weight.original
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):  # momentum that would go on
        layer(torch.randn(8, weight.shape[1])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    latent.data.copy_(weight)
    mask = trainable(StatsQ(2), weight, boundary=boundary)
    with ConfidenceGuidedAnnealing(layer, optimizer, boundary):
        layer(torch.randn(8, weight.shape[1])).square().sum().backward()
        assert (latent.grad[~mask] == 0).all()
        optimizer.step()
    return latent.detach(), mask


def test_frozen_weights_keep_their_bits_under_momentum_and_decay():
    weight = torch.randn(6, 40)
    for boundary, share in ((0.0, 0.0), (0.1, None), (0.5, None)):
        after, mask = _annealed(boundary, weight)
        assert torch.equal(after == weight, ~mask)
        if share is not None:
            assert mask.float().mean() == share


def test_what_is_near_a_threshold():
    z_row = torch.tensor([[0.1, 0.0001, 0.3, -0.2]])
    assert trainable(StatsQ(2), z_row, boundary=0.005).tolist() == [[False, True, False, False]]
    assert not trainable(StatsQ(2), ROW, boundary=0.005).any()
    weight = torch.randn(50, 50)
    for bits in (2, 3, 4):
        kind, n = StatsQ(bits), 2 ** (bits - 1)
        z = kind.grid.positions(weight, kind.step_of(weight))
        assert torch.equal(trainable(kind, weight, boundary=0.5), (z >= -n) & (z <= n - 1))
        loop = torch.zeros_like(weight, dtype=torch.bool)
        for i in range(-n, n - 1):
            loop |= (z - i - 0.5).abs() <= 0.005
        assert torch.equal(trainable(kind, weight, boundary=0.005), loop)
        assert 0.003 < loop.float().mean() < 0.02


def test_gradients_are_masked_before_they_are_clipped():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[0.1, 0.0001, 0.3, -0.2]]))
    parametrize.register_parametrization(layer, "weight", StatsQ(2))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with ConfidenceGuidedAnnealing(layer, optimizer):
        layer(torch.tensor([[100.0, 1.0, 100.0, 100.0]])).sum().backward()
        norm = nn.utils.clip_grad_norm_(layer.parameters(), 10.0)
    assert norm == pytest.approx(1.0)


def test_annealing_needs_a_prepared_model_and_leaves_no_hooks():
    model = stack()
    with pytest.raises(UnsupportedModelError, match="prepare_qat"):
        ConfidenceGuidedAnnealing(model, torch.optim.SGD(model.parameters(), 0.1))
    prepare_qat(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(HyperparameterError, match="boundary"):
        ConfidenceGuidedAnnealing(model, optimizer, 0.6)
    with ConfidenceGuidedAnnealing(model, optimizer) as annealing:
        assert 0 <= annealing.share() < 1
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_annealing_in_the_trainer(accumulation, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, _ = tiny("bert")
    prepare_qat(model, activation_bits=None)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("weight.original")}
    frozen = {n: p for n, p in frozen.items() if "encoder" in n}
    callback = AnnealingCallback(from_step=0, boundary=0.02)
    masks = {n: trainable(StatsQ(2), p, boundary=0.02) for n, p in frozen.items()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation,
        weight_decay=0.1, learning_rate=0.01, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=samples("bert", 16), callbacks=[callback])
    trainer.train()
    now = dict(model.named_parameters())
    for name, before in frozen.items():
        assert torch.equal((now[name] != before) & ~masks[name], torch.zeros_like(masks[name]))
    assert any((now[name] != before).any() for name, before in frozen.items())
    assert callback.annealing is None
    with pytest.raises(HyperparameterError, match="from_step"):
        AnnealingCallback(from_step=-1)


def test_oscillations_are_counted_from_the_second_change():
    layer = nn.Linear(2, 1, bias=False)
    parametrize.register_parametrization(layer, "weight", StatsQ(2))
    latent = layer.parametrizations.weight.original
    latent.data.copy_(torch.tensor([[-0.1, 1.0]]))
    counter, seen = Oscillations(layer), []
    for sign in (1, -1, 1):  # codes 0, 1, 0, 1 after the first
        latent.data[0, 0] = sign * 0.1
        counter.update()
        seen.append(counter.events[""])
    assert seen == [0, 1, 2]


def test_iterative_freezing_holds_what_oscillates():
    weight = torch.tensor([[0.24, 1.0, -1.0, 0.9]])
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.copy_(weight)
    parametrize.register_parametrization(layer, "weight", LSQWeight(weight, 3))
    chain = layer.parametrizations.weight
    chain[0].step.data.fill_(0.5)
    freezing = IterativeFreezing(layer, 0.05)
    for t in range(40):
        chain.original.data[0, 0] = 0.24 if t % 2 else 0.26
        freezing.update()
    assert freezing.share() == 0.25
    held = chain.original[0, 0].item()
    assert held in (0.0, 0.5)
    chain.original.data[0, 0] = 0.9
    freezing.update()
    assert chain.original[0, 0].item() == held
    assert chain.original[0, 1].item() == 1.0


# ---- query-key reparameterization ----


@pytest.mark.parametrize("architecture", ["vit", "bert"])
@pytest.mark.parametrize("joint", [True, False])
def test_with_quantizers_off_attention_is_the_model_s_own(architecture, joint, monkeypatch):
    model, batch = tiny(architecture)
    model, batch = model.double().eval(), {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    with torch.no_grad():  # biases that matter
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    if architecture == "bert":
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, 5:] = 0
    expected = outputs(model, batch)
    monkeypatch.setattr(StatsQ, "forward", lambda _, weight: weight)
    monkeypatch.setattr(LSQWeight, "forward", lambda _, weight: weight)
    monkeypatch.setattr(ActivationQuantizer, "forward", lambda _, x: x)
    prepare_qat(model, joint_query_key=joint)
    held = [module for module in model.modules() if isinstance(module, QuantizedAttention)]
    assert len(held) == 2
    assert torch.allclose(outputs(model, batch), expected, atol=1e-10)
    if joint:  # without the bias of the queries it is another function
        for module in held:
            getattr(module, module.names[0]).bias.data.zero_()
        assert not torch.allclose(outputs(model, batch), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("llama", "fewer keys|rotary"), ("qwen3", "normalized"), ("gpt2", "GPT2Attention"), ("t5", "T5Attention")],
)
def test_joint_weights_are_refused_by_name(architecture, reason):
    model, _ = tiny(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=reason):
        ofq(model, samples(architecture, 4), joint_query_key=True, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_factor_keeps_its_full_precision_weight():
    model, _ = tiny("vit")
    result = ofq(model, samples("vit", 16), epochs=1, batch_size=8)
    name = "vit.layers.0.attention"
    assert len(get_module(model, f"{name}.q_proj").weight.unique()) > 100
    rows = {row["layer"]: row for row in result.layers}
    assert rows[f"{name}.q_proj"] == {"layer": f"{name}.q_proj", "bits": 2, "joint": True}
    assert rows[f"{name}.v_proj"]["bits"] == 2
    assert any("joint weights: 4 x C x C" in note for note in result.notes)


def test_annealing_can_reach_joint_weights():
    model, _ = tiny("vit")
    data = samples("vit", 8)
    after = []
    for anneal_joint in (False, True):
        one = copy.deepcopy(model)
        ofq(one, data, epochs=1, batch_size=8, annealing_epochs=3, anneal_joint=anneal_joint, learning_rate=0.01)
        after.append(get_module(one, "vit.layers.0.attention.q_proj").weight)
    assert not torch.equal(*after)


# ---- the commands ----


def test_stems_and_heads_get_eight_bits():
    model, _ = tiny("vit")
    result = ofq(model, samples("vit", 8), epochs=1, batch_size=8, weight_bits=3)
    bits = {row["layer"]: row["bits"] for row in result.layers}
    assert {bits[name] for name in bits if name.startswith("vit.layers")} == {3}
    assert {bits[name] for name in bits if not name.startswith("vit.layers")} == {8}
    plain = stack()
    assert [row["bits"] for row in ofq(plain, [(torch.ones(8), 1)] * 4, epochs=1).layers] == [8, 2, 8]


def test_evaluation_changes_nothing_and_differs_from_full_precision_activations():
    model, batch = tiny("vit")
    ofq(model, samples("vit", 8), epochs=1, batch_size=8)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    steps = {name: q.step.clone() for name, q in quantizers(model).items()}
    first = outputs(model.eval(), batch)
    outputs(model, {name: value * 3 for name, value in batch.items()})
    assert torch.equal(outputs(model, batch), first)
    assert all(torch.equal(q.step, steps[name]) for name, q in quantizers(model).items())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_teacher_of_weight_zero_is_none():
    data = [(torch.randn(8), i % 3) for i in range(16)]
    one, other = stack(), stack()
    ofq(one, data, epochs=1, distillation=0.0)
    ofq(other, data, epochs=1)
    assert not torch.equal(one[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"weight_bits": 1}, "weight_bits"),
        ({"activation_bits": 9}, "activation_bits"),
        ({"boundary": 0.6}, "boundary"),
        ({"boundary": math.nan}, "boundary"),
        ({"annealing_epochs": -1}, "annealing_epochs"),
        ({"final_learning_rate_ratio": 0.0}, "final_learning_rate_ratio: found 0, expected > 0 with annealing_epochs"),
        ({"distillation": -1.0}, "distillation"),
    ],
)
def test_options_out_of_range(options, named):
    model = stack()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(HyperparameterError, match=named):
        ofq(model, [(torch.ones(8), 1)] * 4, epochs=1, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_trained_on():
    with pytest.raises(CalibrationError, match="no training samples"):
        ofq(stack(), [], epochs=1)
    with pytest.raises(CalibrationError, match="real numbers"):
        ofq(stack(), [(torch.ones(8), torch.ones(8))] * 4, epochs=1)
    with pytest.raises(HyperparameterError, match="without attention"):
        ofq(stack(), [(torch.ones(8), 1)] * 4, epochs=1, joint_query_key=True)
    with pytest.raises(HyperparameterError, match="freeze_above"):
        lsq(stack(), [(torch.ones(8), 1)] * 4, epochs=1, freeze_above=1.5)


def test_layers_that_no_data_reaches_are_named():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x):
            return self.blocks[0](x)

    result = ofq(Partly(), [(torch.randn(8), 1)] * 4, epochs=1)
    assert any("No data reached 1 layers" in note and "blocks.1" in note for note in result.notes)


def test_training_by_any_loop():
    model = stack()
    x, y = torch.randn(32, 8), torch.randint(8, (32,))
    prepare_qat(model, weight_bits=3, activation_bits=8)
    assert initialize_activations(model, [x]) == []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for epoch in range(2):
        for _ in range(5):
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        if epoch == 0:
            annealing = ConfidenceGuidedAnnealing(model, optimizer)
            annealing.__enter__()
    annealing.__exit__()
    expected = outputs(model, x)
    plan = finish_qat(model)
    assert torch.allclose(outputs(model, x), expected, atol=1e-6)
    again = stack()
    again.load_state_dict(model.state_dict())
    assert sorted(model.state_dict()) == sorted(stack().state_dict())
    apply_quantization(again, Quantization.from_json(plan.to_json()))
    assert torch.equal(outputs(again, x), outputs(model, x))
    with pytest.raises(UnsupportedModelError, match="nothing is quantized"):
        finish_qat(stack())


# ---- rounding without training ----


def test_error_feedback_is_better_on_its_data_and_the_codes_are_on_levels():
    torch.manual_seed(0)
    mixing = torch.randn(32, 32)
    x = torch.randn(400, 32) @ mixing
    errors = {}
    for method in (gptq, round_to_nearest):
        model = nn.Sequential(nn.Linear(32, 16, bias=False))
        torch.manual_seed(1)
        model[0].weight.data.normal_()
        before = outputs(model, x)
        result = method(model, [x], weight_bits=3) if method is gptq else method(model, weight_bits=3)
        errors[method] = (outputs(model, x) - before).square().mean().item()
        levels = Quantization.from_json(result.files[FILE]).weights["0"]
        assert levels.integers(model[0].weight.detach()).abs().max() <= 4
    assert errors[gptq] < 0.7 * errors[round_to_nearest]


def test_gptq_with_uncorrelated_inputs_is_round_to_nearest():
    x = torch.eye(16).repeat(8, 1)
    one, other = (nn.Sequential(nn.Linear(16, 4)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    gptq(one, [x], damping=0.0)
    round_to_nearest(other)
    assert torch.equal(one[0].weight, other[0].weight)


# ---- files ----


@given(st.sampled_from([2, 4, 8]), st.integers(1, 70), st.integers(0, 100))
def test_codes_are_packed_and_unpacked_exactly(width, columns, seed):
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (width - 1)), 2 ** (width - 1), (3, columns), generator=draw)
    words = pack_codes(codes, width)
    assert words.dtype == torch.int32
    assert words.shape == (3, -(-columns * width // 32))
    assert torch.equal(unpack_codes(words, width, columns), codes.to(torch.int16))


def test_all_pairs_of_four_bit_codes():
    values = torch.arange(-8, 8)
    codes = torch.cartesian_prod(values, values)
    assert torch.equal(unpack_codes(pack_codes(codes, 4), 4, 2), codes.to(torch.int16))


def test_words_are_those_of_compressed_tensors():
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized")
    for width in (4, 8):
        codes = torch.randint(-(2 ** (width - 1)), 2 ** (width - 1), (5, 37)).to(torch.int8)
        assert torch.equal(pack_codes(codes, width), theirs.pack_to_int32(codes, width))


@pytest.mark.parametrize("architecture", ["vit", "bert", "llama", "t5"])
@pytest.mark.parametrize("bits", [2, 4])
def test_saved_and_loaded_the_logits_are_the_same(architecture, bits, tmp_path):
    model, batch = tiny(architecture)
    result = ofq(model, samples(architecture, 8), epochs=1, batch_size=8, weight_bits=bits)
    expected = outputs(model.eval(), batch)
    save_model(model, tmp_path / "plain", files=result.files)
    save_packed(model, tmp_path / "packed", files=result.files)
    for folder in ("plain", "packed"):
        assert torch.allclose(outputs(load_quantized(tmp_path / folder), batch), expected, atol=1e-6)
    reader = CheckpointReader(tmp_path / "packed")
    sizes = {key: spec.nbytes for key, spec in reader.specs.items() if key.endswith("weight_packed")}
    assert sizes
    plain = CheckpointReader(tmp_path / "plain")
    within = 8 if bits == 2 else 4
    for key, size in sizes.items():
        name = key.removesuffix("_packed")
        assert size <= plain.specs[name].nbytes / (4 if plan_bits(result, name, model) == 8 else within) + 64


def plan_bits(result, key, model):
    """Bits of a layer by its name in the checkpoint: that of a ViT differs from the module's."""
    inner = any(part in key for part in ("layer.", "layers.", "block."))
    return json.loads(result.files[FILE])["weights"].get(key.removesuffix(".weight"), {}).get("bits", 2 if inner else 8)


@pytest.mark.parametrize("architecture", ["vit", "llama"])
def test_transformers_reads_what_is_packed(architecture, tmp_path):
    pytest.importorskip("compressed_tensors")
    model, batch = tiny(architecture)
    result = ofq(model, samples(architecture, 8), epochs=1, batch_size=8)
    save_model(model, tmp_path / "plain")
    save_packed(model, tmp_path / "packed", files=result.files)
    plain, packed = (type(model).from_pretrained(tmp_path / name).eval() for name in ("plain", "packed"))
    assert torch.allclose(outputs(packed, batch), outputs(plain, batch), atol=1e-6)


def test_models_without_a_configuration_are_packed_in_their_own_bits(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 16, 4))
    result = ofq(model, [(torch.randn(3, 8, 8), i % 4) for i in range(8)], epochs=1)
    save_packed(model, tmp_path / "packed", files=result.files)
    reader = CheckpointReader(tmp_path / "packed")
    assert reader.specs["2.weight_packed"].nbytes == 32 * 288 * 2 // 8
    unpack_checkpoint(tmp_path / "packed", tmp_path / "plain")
    again = CheckpointReader(tmp_path / "plain")
    for name, value in model.state_dict().items():
        assert torch.equal(again.tensor(name), value)


def test_what_cannot_be_packed_or_loaded(tmp_path):
    model, _ = tiny("llama")
    result = round_to_nearest(model)
    with pytest.raises(CheckpointError, match="nothing to pack"):
        save_packed(model, tmp_path / "none", files={})
    with torch.no_grad():
        get_module(model, "model.layers.0.mlp.up_proj").weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match=r"up_proj.*off their levels"):
        save_packed(model, tmp_path / "off", files=result.files)
    assert not list(tmp_path.iterdir())
    gpt2, _ = tiny("gpt2")
    with pytest.raises(CheckpointError, match="nothing to pack"):  # its layers are no nn.Linear
        save_packed(gpt2, tmp_path / "gpt2", files=round_to_nearest(gpt2).files)
    fresh, _ = tiny("llama")
    result = round_to_nearest(fresh)
    save_packed(fresh, tmp_path / "good", files=result.files)
    (tmp_path / "good" / FILE).write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        load_quantized(tmp_path / "good")
    (tmp_path / "good" / FILE).unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        load_quantized(tmp_path / "good")


def test_a_scale_that_is_missing_is_named(tmp_path):
    model, _ = tiny("llama")
    result = round_to_nearest(model)
    save_packed(model, tmp_path / "a", files=result.files)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "a" / "model.safetensors")
    gone = next(key for key in state if key.endswith("weight_scale"))
    save_file({key: value for key, value in state.items() if key != gone}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match="weight_scale"):
        load_quantized(tmp_path / "a")


def test_a_tied_head_stays_dense_and_equal(tmp_path):
    model, batch = tiny("gemma3")
    result = round_to_nearest(model)
    expected = outputs(model.eval(), batch)
    save_packed(model, tmp_path / "a", files=result.files)
    assert torch.allclose(outputs(load_quantized(tmp_path / "a"), batch), expected, atol=1e-6)
    assert not any("embed" in name or "lm_head" in name for name in Quantization.load(tmp_path / "a").weights)


def test_packing_an_existing_folder(tmp_path):
    model, _ = tiny("llama")
    save_model(model, tmp_path / "plain", files=round_to_nearest(model, weight_bits=4).files)
    pack_checkpoint(tmp_path / "plain", tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"
    assert [group["weights"]["num_bits"] for group in config["config_groups"].values()] == [4]
    assert config["ignore"] == ["lm_head"]
    with pytest.raises(CheckpointError, match="exists"):
        pack_checkpoint(tmp_path / "plain", tmp_path / "packed")


def test_a_packed_folder_is_refused_as_a_model_and_its_plan_is_not_inherited(tmp_path):
    model, _ = tiny("llama")
    save_packed(model, tmp_path / "packed", files=round_to_nearest(model).files)
    with pytest.raises(UnsupportedModelError, match="unpack_checkpoint"):
        load_model(tmp_path / "packed")
    unpack_checkpoint(tmp_path / "packed", tmp_path / "plain")
    again = load_model(tmp_path / "plain")
    assert (tmp_path / "plain" / FILE).is_file()
    save_model(again, tmp_path / "next", like=tmp_path / "plain")
    assert not (tmp_path / "next" / FILE).exists()


def test_a_model_without_linear_layers_is_refused_before_the_work(tmp_path):
    model, _ = tiny("gpt2")
    with pytest.raises(UnsupportedModelError, match="Conv1D"):
        check_packable(model)
    check_packable(tiny("llama")[0])
    check_packable(stack())


def test_training_goes_on_from_a_state_dict():
    model, x = _prepared(activation_bits=4), torch.randn(16, 8)
    initialize_activations(model, [x])
    state = model.state_dict()
    again = _prepared(activation_bits=4)
    again.load_state_dict(state)
    assert torch.equal(outputs(again, x), outputs(model, x))
    assert [q.signed for q in quantizers(again).values()] == [q.signed for q in quantizers(model).values()]


def test_an_optimizer_made_before_the_steps_are_initialized_or_loaded_trains_them():
    model, x = _prepared(activation_bits=4), torch.randn(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    initialize_activations(model, [x])
    again = _prepared(activation_bits=4)
    resumed = torch.optim.SGD(again.parameters(), lr=0.1)
    again.load_state_dict(model.state_dict())
    for one, its in ((model, optimizer), (again, resumed)):
        before = [quantizer.step.detach().clone() for quantizer in quantizers(one).values()]
        one(x).square().sum().backward()
        its.step()
        assert all(not torch.equal(q.step, old) for q, old in zip(quantizers(one).values(), before, strict=True))


@pytest.mark.parametrize("weights", ["statsq", "lsq"])
def test_a_model_converted_after_it_was_prepared_ends_in_that_type(weights):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    prepare_qat(model, weights=weights, activation_bits=None)
    model.bfloat16()
    finish_qat(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(torch.ones(1, 8).bfloat16()).dtype == torch.bfloat16


def test_fused_layers_of_pytorch_are_quantized_in_evaluation():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(32, 3))
    data = [(torch.randn(4, 8), i % 3) for i in range(8)]
    result = ofq(model, data, epochs=1)
    assert not any("No data reached" in note for note in result.notes)
    model.eval()
    x = torch.stack([row for row, _ in data])
    before = outputs(model, x)
    inner = [q for name, q in quantizers(model).items() if "linear1" in name]
    assert len(inner) == 2
    for quantizer in inner:
        quantizer.step.mul_(50)
    assert not torch.equal(outputs(model, x), before)


def test_steps_per_position_are_refused_for_language_models():
    model, _ = tiny("llama")
    with pytest.raises(HyperparameterError, match="granularity"):
        ofq(model, samples("llama", 4), epochs=1, granularity="token")


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_annealing_that_was_interrupted_begins_anew_with_the_next_run(tmp_path):
    model, rows = tiny("bert")[0], samples("bert", 16)
    prepare_qat(model)
    initialize_activations(model, [{name: torch.stack([row[name] for row in rows]) for name in rows[0]}])
    annealing = AnnealingCallback(0, boundary=0.0)
    latents = [latent for _, latent, kind in fake_quantized(model) if isinstance(kind, StatsQ)]
    before = [latent.detach().clone() for latent in latents]

    def hooks():
        return sum(len(latent._backward_hooks or {}) for latent in latents)

    arguments = TrainingArguments(
        tmp_path, max_steps=2, weight_decay=0.5, learning_rate=0.1, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, arguments, train_dataset=rows, callbacks=[annealing, Interrupt()]).train()
    assert hooks() == len(latents)
    Trainer(model, arguments, train_dataset=rows, callbacks=[annealing]).train()
    assert all(torch.equal(*pair) for pair in zip(latents, before, strict=True)), "a boundary of zero freezes all"
    assert hooks() == 0
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, arguments, train_dataset=rows, callbacks=[annealing, Interrupt()]).train()
    annealing.end()
    assert hooks() == 0
