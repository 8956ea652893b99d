"""Rich or lazy: the numbered checks of the method's specification, its bad input, and the traps of its field."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from weightsmith.analyze import (
    LazinessProbe,
    aligned_,
    centered_alignment,
    compare_checkpoints,
    dale_,
    effective_rank,
    expected_kernel_alignment,
    kernel_alignment,
    low_rank_,
    reduce_kernel,
    rich_lazy,
    tangent_kernel,
)
from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perceptron(seed=0, width=16, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


def llama(seed=0, layers=2):
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**small, vocab_size=40, num_hidden_layers=layers)).eval()


class Recurrent(nn.Module):
    def __init__(self, kind, units=6, **options):
        super().__init__()
        self.rnn = kind(4, units, **{"batch_first": True, **options})
        self.readout = nn.Linear(units * (1 + self.rnn.bidirectional), 3)

    def forward(self, x):
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        states = self.rnn(x)[0]
        return self.readout(states if self.rnn.batch_first else states.transpose(0, 1))


class Looped(nn.Module):
    """A recurrence written by hand: one linear layer called at each step."""

    def __init__(self):
        super().__init__()
        self.enter, self.recur, self.leave = nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x):
        state = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            state = (self.enter(step) + self.recur(state)).relu()
        return self.leave(state)


def jacobian_gram(outputs, weight):
    """The kernel of the rows of ``outputs`` by the explicit Jacobian, one backward pass per row."""
    rows = [torch.autograd.grad(row, weight, retain_graph=True)[0].flatten() for row in outputs.flatten()]
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def close(kernel, expected, tolerance=1e-5):
    return float((kernel - expected).abs().max()) <= tolerance * float(expected.abs().max())


def moved(model, size=0.3, seed=1):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                size * parameter.std(correction=0).clamp(min=0.1) * torch.randn(parameter.shape, generator=draw)
            )
    return model


# the numbered checks


@pytest.mark.parametrize("build", [perceptron, llama, lambda: Recurrent(nn.GRU)], ids=["mlp", "llama", "gru"])
def test_1_a_model_is_like_itself(build):
    model = build()
    probe = torch.randint(40, (6, 7)) if isinstance(model, LlamaForCausalLM) else drawn(6, 7, 4)
    probe = drawn(6, 5) if isinstance(model, nn.Sequential) else probe
    result = rich_lazy(model, model, [probe])
    for row in result.layers:
        assert row["weight_change"] == row["relative_change"] == 0
        assert row["sign_agreement"] == 1
        for measure in ("kernel_alignment", "representation_alignment", "centered_alignment"):
            assert row[measure] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (8, 8)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_2_low_rank_keeps_norm_and_singular_vectors(shape, rank):
    weight = drawn(*shape)
    low = low_rank_(weight.clone(), rank)
    assert int(torch.linalg.matrix_rank(low)) == rank
    assert float(low.norm()) == pytest.approx(float(weight.norm()), rel=1e-6)
    u, s, v = torch.linalg.svd(weight)
    scale = float(s.norm() / s[:rank].norm())
    assert torch.allclose(low @ v[:rank].T, u[:, :rank] * s[:rank] * scale, atol=1e-5)
    assert torch.allclose(u[:, :rank].T @ low, s[:rank, None] * v[:rank] * scale, atol=1e-5)
    full = low_rank_(weight.clone(), min(shape))
    assert torch.equal(full, weight)


def test_2_low_rank_with_other_norms_spectra_gates_and_kernels():
    weight = drawn(12, 8)
    spectral = low_rank_(weight.clone(), 2, norm="spectral")
    assert float(torch.linalg.matrix_norm(spectral, 2)) == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)))
    assert float(spectral.norm()) < float(weight.norm())
    flat = torch.linalg.svdvals(low_rank_(weight.clone(), 4, spectrum=[1.0] * 4))
    assert torch.allclose(flat[:4], flat[:1].expand(4), rtol=1e-5)
    gates = low_rank_(weight.clone(), 2, blocks=3)
    for part, own in zip(gates.split(4), weight.split(4), strict=True):
        assert int(torch.linalg.matrix_rank(part)) == 2
        assert float(part.norm()) == pytest.approx(float(own.norm()), rel=1e-6)
    kernel = low_rank_(drawn(6, 3, 3, 3), 2)
    assert int(torch.linalg.matrix_rank(kernel.flatten(1))) == 2
    half = low_rank_(weight.to(torch.bfloat16), 3)
    assert half.dtype == torch.bfloat16
    tied = nn.init.orthogonal_(torch.empty(6, 6))  # all singular values are equal
    assert torch.equal(low_rank_(tied.clone(), 3), low_rank_(tied.clone(), 3))


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, 0.2189401), (2, 0.3096281), (5, 0.4895650), (10, 0.6923495), (20, 0.9791300)]
)
def test_3_expected_alignment_of_flat_spectra(rank, expected):
    weight = torch.zeros(50, 20)
    weight[:rank, :rank] = 1e-3 * torch.eye(rank)
    assert expected_kernel_alignment(weight) == pytest.approx(expected, abs=1e-7)
    assert expected_kernel_alignment(weight.T.contiguous().T) == pytest.approx(expected, abs=1e-7)


def test_3_expected_alignment_of_the_identity():
    assert expected_kernel_alignment(torch.eye(4)) == pytest.approx(1.25 * 2 / math.sqrt(7), abs=1e-7)
    assert expected_kernel_alignment(torch.eye(4)) == pytest.approx(0.9449112, abs=1e-7)


def test_4_aligned_rank_1():
    target = drawn(20)
    weight = aligned_(torch.empty(50, 20), target, scale=0.7)
    assert int(torch.linalg.matrix_rank(weight)) == 1
    assert float(weight.norm()) == pytest.approx(0.7)
    assert expected_kernel_alignment(weight, target=target) == pytest.approx(0.4170288, abs=1e-7)
    assert expected_kernel_alignment(weight, target=target, readout_square=0.49) == pytest.approx(1, abs=1e-6)


def test_4_training_confirms_that_aligned_weights_keep_their_kernel():
    from weightsmith.claims.rich_lazy import linear

    found = linear(3)
    assert found["aligned: rank 1, aligned"] == pytest.approx(1, abs=1e-9)
    assert found["aligned: rank 1, aligned without the readout"] == pytest.approx(0.4170288, abs=1e-3)
    assert found["theory: closed form"] < 1e-3


def test_4_the_mean_over_tasks_is_the_closed_form():
    """With a readout that is not zero as well: the mean over many directions meets the formula for all."""
    weight = drawn(9, 6)
    targets = drawn(4000, 6, seed=1)
    mean = sum(expected_kernel_alignment(weight, target=t, readout_square=2.0) for t in targets) / len(targets)
    assert mean == pytest.approx(expected_kernel_alignment(weight, readout_square=2.0), abs=3e-3)
    gram = weight.T @ weight + 2 * torch.eye(6)
    after = torch.outer(targets[0], targets[0]) / targets[0].square().sum() + torch.eye(6)
    assert expected_kernel_alignment(weight, target=targets[0], readout_square=2.0) == pytest.approx(
        kernel_alignment(gram, after), abs=1e-6
    )


def test_5_kernel_of_the_two_layer_linear_network():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data.copy_(torch.eye(2))
    model[1].weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    seen = LazinessProbe(model, [torch.eye(2)]).snapshot().observed
    assert torch.equal(seen["0"].kernel_RR + seen["1"].kernel_RR, 2 * torch.eye(2))
    w1, w2 = drawn(7, 4), drawn(1, 7, seed=1)
    model = nn.Sequential(nn.Linear(4, 7, bias=False), nn.Linear(7, 1, bias=False))
    model[0].weight.data.copy_(w1)
    model[1].weight.data.copy_(w2)
    seen = LazinessProbe(model, [torch.eye(4)]).snapshot().observed
    assert close(seen["0"].kernel_RR + seen["1"].kernel_RR, w1.T @ w1 + w2.square().sum() * torch.eye(4))


def test_6_alignment_of_representations():
    assert kernel_alignment(torch.eye(2), torch.ones(2, 2)) == pytest.approx(0.7071068, abs=1e-7)
    first, turned = Looped(), Looped()
    turned.load_state_dict(first.state_dict())
    q = nn.init.orthogonal_(torch.empty(16, 16))
    model, other = perceptron(), perceptron()
    other[2].weight.data.copy_(q @ model[2].weight.data)
    other[2].bias.data.copy_(q @ model[2].bias.data)
    row = rich_lazy(model, other, [drawn(9, 5)], include="2").layers[0]
    assert row["representation_alignment"] == pytest.approx(1, abs=1e-5)
    other[2].weight.data.copy_(3 * model[2].weight.data)
    other[2].bias.data.copy_(3 * model[2].bias.data)
    row = rich_lazy(model, other, [drawn(9, 5)], include="2").layers[0]
    assert row["representation_alignment"] == pytest.approx(1, abs=1e-5)
    turned.leave.weight.data.mul_(5)
    row = rich_lazy(first, turned, [drawn(6, 5, 4)], include="recur").layers[0]
    assert row["kernel_alignment"] == pytest.approx(1, abs=1e-6)


def test_7_effective_rank():
    for values, expected in (((1, 1, 1, 1), 4), ((1, 0, 0, 0), 1), ((2, 1), 1.470588)):
        weight = torch.diag(torch.tensor(values, dtype=torch.float32))
        assert effective_rank(weight) == pytest.approx(expected, abs=1e-6)
        assert effective_rank(weight[:, :1].expand(-1, 3)) == pytest.approx(1)
    weight = drawn(40, 90)
    s = torch.linalg.svdvals(weight.double())
    assert effective_rank(weight) == pytest.approx(float(s.square().sum() ** 2 / s.pow(4).sum()), rel=1e-5)
    assert effective_rank(drawn(40, 40)) == pytest.approx(40 / 2, rel=0.1), "of a Gaussian matrix d / (1 + d / h)"


def test_8_one_step_from_zero_has_no_recurrent_kernel():
    model = Recurrent(nn.RNN)
    with pytest.raises(CalibrationError, match=r"tangent kernel of layer 'rnn\.weight_hh_l0' is zero before"):
        rich_lazy(model, model, [drawn(6, 1, 4)])
    assert rich_lazy(model, model, [drawn(6, 1, 4)], include="rnn.weight_ih_l0").layers


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.RNN, {"nonlinearity": "relu", "bias": False}),
        (nn.RNN, {"batch_first": False}),
        (nn.RNN, {"bidirectional": True, "num_layers": 2}),
        (nn.GRU, {"num_layers": 2}),
        (nn.LSTM, {"bidirectional": True}),
    ],
    ids=["relu", "steps-first", "both-ways", "gru", "lstm"],
)
def test_9_factorized_recurrent_kernel_is_the_gram_of_the_jacobian(kind, options):
    torch.manual_seed(0)
    model, x = Recurrent(kind, **options), drawn(5, 7, 4)
    seen = LazinessProbe(model, [x[:3], x[3:]]).snapshot().observed
    outputs = model(x)
    assert len(seen) == len(model.rnn._all_weights) * 2 + 1
    for name, each in seen.items():
        weight = model.get_parameter(name if name.startswith("rnn") else f"{name}.weight")
        assert close(each.kernel_RR, jacobian_gram(outputs, weight)), name


def test_9_other_layers_too():
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.Flatten(), nn.Linear(45, 10)
    )
    for model, x in ((perceptron(), drawn(6, 5)), (Looped(), drawn(6, 5, 4)), (cnn, drawn(4, 3, 8, 8))):
        seen, outputs = LazinessProbe(model, [x]).snapshot().observed, model(x)
        assert seen
        for name, each in seen.items():
            assert close(each.kernel_RR, jacobian_gram(outputs, model.get_parameter(f"{name}.weight"))), name


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
def test_9_both_orders_of_summation_agree(samples, directions, positions, ins, outs, seed):
    x, g = drawn(samples, positions, ins, seed=seed), drawn(samples, directions, positions, outs, seed=seed + 1)
    g[:, :, positions // 2 :] *= (drawn(samples, directions, 1, 1, seed=seed) > 0).float()
    jacobian = torch.einsum("ndto,nti->ndoi", g, x).reshape(samples * directions, -1)
    kernel = tangent_kernel(x, g)
    assert torch.allclose(kernel, jacobian @ jacobian.T, atol=1e-4)
    assert torch.allclose(kernel, kernel.T, atol=1e-5)


def test_9_language_model_without_a_jacobian():
    """Two random directions of the logits at all tokens, against gradients by each weight."""
    model, ids = llama(), torch.randint(40, (4, 6), generator=torch.Generator().manual_seed(0))
    seen = LazinessProbe(model, [{"input_ids": ids}], directions=2, seed=7).snapshot().observed
    logits = model(ids).logits
    draw = torch.Generator().manual_seed(7)
    mixed = logits @ torch.randn(40, 2, generator=draw)
    signs = 2.0 * torch.randint(2, (6, 2), generator=torch.Generator().manual_seed(8)) - 1
    outputs = (mixed * signs).sum(1)
    assert len(seen) == 14
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        assert close(seen[name].kernel_RR, jacobian_gram(outputs, model.get_parameter(f"{name}.weight")), 1e-4), name


def test_10_linear_training_conserves_the_difference_of_the_layers():
    drifts = []
    for rate in (0.02, 0.01):
        w1, w2, target = 0.3 * drawn(8, 5), 0.3 * drawn(8, seed=1), drawn(5, seed=2)
        start = w1 @ w1.T - torch.outer(w2, w2)
        for _ in range(int(4 / rate)):
            residual = target - w2 @ w1
            w1, w2 = w1 + rate * torch.outer(w2, residual), w2 + rate * w1 @ residual
        assert float(residual.norm()) < 0.02
        drifts.append(float((w1 @ w1.T - torch.outer(w2, w2) - start).norm()))
    assert drifts[0] < 0.1
    assert drifts[1] == pytest.approx(drifts[0] / 2, rel=0.2), "the drift is of the order of the rate"


# bad input


@pytest.mark.parametrize("rank", [0, -1, 7])
def test_ranks_out_of_range_are_refused(rank):
    with pytest.raises(HyperparameterError, match=r"rank: found .*expected 1 to 6"):
        low_rank_(drawn(9, 6), rank)


def test_initializers_refuse_what_they_cannot_do():
    weight = drawn(6, 4)
    for options, error in (
        ({"spectrum": [1.0]}, HyperparameterError),
        ({"spectrum": [0.0, 0.0]}, HyperparameterError),
        ({"spectrum": [math.nan, 1.0]}, HyperparameterError),
        ({"spectrum": [1.0, math.inf]}, HyperparameterError),
        ({"blocks": 4}, ShapeError),
    ):
        with pytest.raises(error):
            low_rank_(weight, 2, **options)
    with pytest.raises(NonFiniteError):
        low_rank_(torch.full((3, 3), math.nan), 2)
    with pytest.raises(ShapeError):
        low_rank_(drawn(5), 1)
    with pytest.raises(ShapeError, match="targets"):
        aligned_(weight, drawn(5))
    with pytest.raises(HyperparameterError, match="dependent"):
        aligned_(weight, drawn(1, 4).expand(2, 4))
    with pytest.raises(HyperparameterError, match="scale"):
        aligned_(torch.zeros(6, 4), drawn(4))
    with pytest.raises(HyperparameterError, match="excitatory"):
        dale_(weight, excitatory=1.0)
    for column, kind in ((2, "inhibit"), (0, "excite")):
        silent = drawn(4, 3).index_fill(1, torch.tensor(column), 0.0)
        before = silent.clone()
        with pytest.raises(HyperparameterError, match=f"columns that {kind}: found zeros only"):
            dale_(silent, excitatory=0.67 if column else 0.33)
        assert torch.equal(silent, before)
    with pytest.raises(NonFiniteError):
        dale_(torch.full((3, 3), math.nan))
    assert torch.equal(weight, drawn(6, 4)), "nothing was changed"


def test_dale_lowers_the_effective_rank():
    weight = drawn(60, 60)
    signed = dale_(weight.clone())
    assert bool((signed[:, :48] >= 0).all())
    assert bool((signed[:, 48:] <= 0).all())
    assert float(signed.norm()) == pytest.approx(float(weight.norm()), rel=1e-5)
    assert float(signed.sum().abs()) < 1e-3
    assert effective_rank(signed) < 0.7 * effective_rank(weight)


def test_one_sample_is_refused():
    with pytest.raises(CalibrationError, match="expected at least 2"):
        rich_lazy(perceptron(), perceptron(), [drawn(1, 5)])


def test_two_samples_have_no_centered_alignment():
    result = rich_lazy(perceptron(), moved(perceptron()), [drawn(2, 5)])
    assert "centered_alignment" not in result.layers[0]
    assert "give at least 4" in " ".join(result.notes)


def test_dead_units_are_named():
    model = perceptron()
    model[2].bias.data.fill_(-100.0)
    with pytest.raises(CalibrationError, match="tangent kernel of layer '0' is zero before training"):
        rich_lazy(model, perceptron(), [drawn(6, 5)])
    with pytest.raises(CalibrationError, match="tangent kernel of layer '0' is zero after training"):
        rich_lazy(perceptron(), model, [drawn(6, 5)])
    zero = perceptron()
    zero[0].weight.data.zero_()
    zero[0].bias.data.zero_()
    with pytest.raises(CalibrationError, match="layer '0' is zero"):
        rich_lazy(perceptron(), zero, [drawn(6, 5)], include="0")


def test_names_of_a_state_dict_are_refused_with_near_names():
    cnn = nn.ModuleDict({"conv1": nn.Conv2d(1, 2, 3), "conv2": nn.Conv2d(2, 2, 3)})
    with pytest.raises(LayerNotFoundError, match="Did you mean 'conv1'"):
        LazinessProbe(cnn, [drawn(2, 1, 8, 8)], include="conv1.weight")


def test_checkpoints_that_do_not_match_are_refused():
    with pytest.raises(ShapeError, match=r"layer '0' after training: found \(20, 5\)"):
        rich_lazy(perceptron(), perceptron(width=20), [drawn(6, 5)])
    with pytest.raises(LayerNotFoundError, match="in one of the two models only"):
        rich_lazy(llama(), llama(layers=1), [torch.randint(40, (4, 6))])
    model = perceptron()
    state = model.state_dict()
    with pytest.raises(ShapeError):
        compare_checkpoints(model, state, {**state, "0.weight": torch.zeros(3, 3)}, [drawn(6, 5)])


def test_nan_is_refused():
    broken = perceptron()
    broken[2].weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="weight of layer '2'"):
        rich_lazy(perceptron(), broken, [drawn(6, 5)])
    with pytest.raises(NonFiniteError, match="outputs of the model"):
        rich_lazy(perceptron(), perceptron(), [torch.full((6, 5), math.nan)])
    with pytest.raises(NonFiniteError):
        kernel_alignment(torch.eye(2), torch.full((2, 2), math.inf))


def test_options_out_of_range_are_refused():
    for options in ({"directions": 0}, {"memory": 0.0}):
        with pytest.raises(HyperparameterError, match=next(iter(options))):
            rich_lazy(perceptron(), perceptron(), [drawn(6, 5)], **options)
    with pytest.raises(HyperparameterError, match="every"):
        LazinessProbe(perceptron(), [drawn(6, 5)]).watch(0)
    with pytest.raises(HyperparameterError, match="readout_square"):
        expected_kernel_alignment(torch.eye(3), readout_square=-1.0)
    with pytest.raises(ShapeError, match="target"):
        expected_kernel_alignment(torch.eye(3), target=drawn(4))
    with pytest.raises(CalibrationError, match="no calibration batches"):
        LazinessProbe(perceptron(), [])


def test_packed_sequences_and_other_layouts_are_refused():
    class Packing(Recurrent):
        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
            return self.readout(self.rnn(packed)[1][0])

    with pytest.raises(UnsupportedModelError, match="packed sequences"):
        LazinessProbe(Packing(nn.RNN), [drawn(4, 5, 4)]).snapshot()
    steps_first = nn.RNN(4, 6)  # its output has the steps as first axis
    with pytest.raises(LayerNotFoundError, match="not sorted by sample"):
        LazinessProbe(steps_first, [drawn(7, 3, 4).transpose(0, 1)]).snapshot()


def test_adapters_and_packed_weights_are_refused():
    tuned = get_peft_model(llama(), LoraConfig(r=2))
    with pytest.raises(UnsupportedModelError, match="adapters"):
        rich_lazy(llama(), tuned, [torch.randint(40, (4, 6))])
    packed = perceptron()
    packed[2].weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"weights in torch\.int8"):
        rich_lazy(packed, packed, [drawn(6, 5)])


def test_half_precision_is_computed_in_float32():
    first, second = llama().to(torch.bfloat16), moved(llama()).to(torch.bfloat16)
    ids = torch.randint(40, (6, 8))
    half = rich_lazy(first, second, [ids])
    single = rich_lazy(first.float(), second.float(), [ids])
    assert half.totals["relative_change"] == pytest.approx(single.totals["relative_change"], rel=1e-6)
    for ours, theirs in zip(half.layers, single.layers, strict=True):
        assert ours["kernel_alignment"] == pytest.approx(theirs["kernel_alignment"], abs=0.02)


def test_dropout_and_batch_norm_are_off_and_the_model_stays_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(216, 3)
    )
    x = drawn(5, 3, 8, 8)
    model(x).sum().backward()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    first, second = (LazinessProbe(model, [x]).snapshot().observed for _ in range(2))
    assert all(torch.equal(first[name].kernel_RR, second[name].kernel_RR) for name in first)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    for old, parameter in zip(gradients, model.parameters(), strict=True):
        assert (old is None and parameter.grad is None) or torch.equal(old, parameter.grad)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert set(first) == {"0", "5"}, "a frozen layer has a kernel too"


def test_an_interrupt_leaves_the_model_as_it_was():
    class Stops(Recurrent):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Stops(nn.GRU).train()
    with pytest.raises(KeyboardInterrupt):
        LazinessProbe(model, [drawn(4, 5, 4)]).snapshot()
    assert model.training
    assert "forward" not in vars(model.rnn)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_used_twice_has_the_sum_of_the_gradients():
    first = nn.Linear(5, 5)
    model = nn.Sequential(first, nn.Tanh(), first, nn.Tanh(), nn.Linear(5, 2))
    model.append(nn.Linear(2, 2))
    twin = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 2))
    twin[2].weight = twin[0].weight
    for each in (model, twin):
        x = drawn(6, 5)
        seen, outputs = LazinessProbe(each, [x], include="0").snapshot().observed, each(x)
        assert close(seen["0"].kernel_RR, jacobian_gram(outputs, each[0].weight))


def test_heads_tied_to_an_embedding_are_left_out_and_named():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**small, vocab_size=40, tie_word_embeddings=True))
    result = rich_lazy(model, model, [torch.randint(40, (4, 6))], exclude=())
    assert "'lm_head': tied to an embedding" in " ".join(result.notes)
    assert all(row["layer"] != "lm_head" for row in result.layers)
    for exclude in ((), "*lm_head"):
        notes = " ".join(rich_lazy(model, model, [torch.randint(40, (4, 6))], exclude=exclude).notes)
        assert "No kernels of: 1 x 'model.embed_tokens.weight'" in notes


# traps


def test_cka_of_itself_and_of_a_rotation_is_one_and_negative_estimates_are_numbers():
    x = drawn(8, 30)
    q = nn.init.orthogonal_(torch.empty(30, 30))
    gram = x @ x.T
    assert centered_alignment(gram, gram) == pytest.approx(1, abs=1e-5)
    turned = x @ q
    assert centered_alignment(gram, turned @ turned.T) == pytest.approx(1, abs=1e-5)
    shifted = x + 7 * drawn(30, seed=3)
    assert centered_alignment(gram, shifted @ shifted.T) == pytest.approx(1, abs=1e-4), "centering removes a shift"
    values = []
    for seed in range(60):
        other = drawn(8, 30, seed=seed + 10)
        values.append(centered_alignment(gram, other @ other.T))
    assert min(values) < 0
    assert all(map(math.isfinite, values))
    assert abs(sum(values) / 60) < 0.05, "unbiased: zero for unrelated features, however many units"


def test_a_last_batch_of_two_counts_like_any_other():
    """258 samples in batches of 64: the statistic is of all samples at once, never a mean over batches."""
    model, other, x = perceptron(outputs=1), moved(perceptron(outputs=1)), drawn(258, 5)
    parts, whole = (rich_lazy(model, other, probe).layers for probe in ([*x.split(64)], [x]))
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours["centered_alignment"] == pytest.approx(theirs["centered_alignment"], abs=1e-5)
    for count in (2, 3):
        with pytest.raises(CalibrationError, match="expected at least 4"):
            centered_alignment(torch.eye(count), torch.eye(count))


@pytest.mark.parametrize("build", [perceptron, llama], ids=["mlp", "llama"])
def test_batch_size_and_memory_do_not_matter(build):
    model = build()
    x = drawn(32, 5) if isinstance(model, nn.Sequential) else torch.randint(40, (32, 5))
    kernels = []
    for size in (1, 4, 32):
        kernels.append(LazinessProbe(model, [*x.split(size)]).snapshot().observed)
    kernels.append(LazinessProbe(model, [x], memory=1e-9).snapshot().observed)
    for name, first in kernels[-1].items():
        for other in kernels:
            assert close(first.kernel_RR, other[name].kernel_RR)
            assert close(first.gram_NN, other[name].gram_NN)
        assert close(first.kernel_RR, first.kernel_RR.T)


def test_full_trace_and_diagonal_of_a_kernel_agree():
    model, x = perceptron(), drawn(6, 5)
    full = LazinessProbe(model, [x]).snapshot().observed["2"].kernel_RR
    trace, blocks = reduce_kernel(full, 3)
    assert float(trace.trace()) == pytest.approx(float(full.trace()), rel=1e-5)
    outputs = model(x)
    for output in range(3):
        assert close(blocks[output], jacobian_gram(outputs[:, output], model[2].weight))
    assert torch.allclose(blocks.sum(0), trace)


def test_what_is_recorded_of_a_convolution_keeps_its_negative_values():
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3)
    x = drawn(4, 2, 6, 6)
    for inplace in (False, True):
        model = nn.Sequential(convolution, nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(48, 2))
        seen = LazinessProbe(model, [x], include="0").snapshot().observed["0"]
        h = convolution(x).detach().flatten(1)
        assert close(seen.gram_NN, h @ h.T)
        assert bool((seen.signs[1] > 0).any()), "units below zero"


@pytest.mark.parametrize("pads", [1, 3, 8])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(pads, side):
    model, ids = llama(), torch.randint(40, (4, 6), generator=torch.Generator().manual_seed(0))
    filler, real = torch.zeros(4, pads, dtype=torch.long), torch.ones(4, 6, dtype=torch.long)
    order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
    padded = {"input_ids": torch.cat(order(ids, filler), 1), "attention_mask": torch.cat(order(real, filler), 1)}
    plain = LazinessProbe(model, [{"input_ids": ids}]).snapshot().observed
    other = LazinessProbe(model, [padded]).snapshot().observed
    for name, each in plain.items():
        assert close(other[name].kernel_RR, each.kernel_RR, 1e-4)
        assert close(other[name].gram_NN, each.gram_NN, 1e-4)


# the rest


def test_encoder_decoders_and_outputs_that_are_random_directions():
    torch.manual_seed(0)
    config = T5Config(d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, vocab_size=40, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    draw = torch.Generator().manual_seed(0)
    batch = {name: torch.randint(1, 40, (4, 6), generator=draw) for name in ("input_ids", "labels")}
    padded = {
        "input_ids": torch.cat([batch["input_ids"], torch.zeros(4, 2, dtype=torch.long)], 1),
        "attention_mask": torch.tensor([[1] * 6 + [0] * 2] * 4),
        "labels": torch.cat([batch["labels"], torch.full((4, 3), -100)], 1),
    }
    first, second = (LazinessProbe(model, [each]).snapshot().observed for each in (batch, padded))
    assert any(name.startswith("encoder") for name in first)
    for name, each in first.items():
        assert close(second[name].kernel_RR, each.kernel_RR, 1e-4), name


def test_more_directions_come_closer_to_the_kernel_of_all_outputs():
    model, other, x = perceptron(outputs=60), moved(perceptron(outputs=60)), drawn(8, 5)

    full = kernel_alignment(*(jacobian_gram(each(x), each[2].weight) for each in (model, other)))
    errors = []
    for directions in (1, 32):
        found = []
        for seed in range(5):
            draw = torch.Generator().manual_seed(seed)
            options = {"include": "2", "directions": directions, "generator": draw}
            found.append(rich_lazy(model, other, [x], **options).totals["kernel_alignment"])
        errors.append(sum(abs(each - full) for each in found) / 5)
    assert errors[1] < errors[0]
    assert errors[1] < 0.05


def test_rows_that_are_not_sorted_by_sample_are_left_out_and_named():
    class Shuffles(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            y = self.first(x.transpose(0, 1))  # the steps first
            return self.last(y.transpose(0, 1).mean(1))

    model = Shuffles()
    result = rich_lazy(model, model, [drawn(4, 3, 5)])
    assert [row["layer"] for row in result.layers] == ["last"]
    assert "'first': its rows are not sorted by sample" in " ".join(result.notes)


def test_convolutions_that_pad_by_themselves_are_left_out_and_named():
    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    model = nn.Sequential(Same(2, 3, 2), nn.Flatten(), nn.Linear(48, 2))
    result = rich_lazy(model, model, [drawn(4, 2, 4, 4)])
    assert [row["layer"] for row in result.layers] == ["2"]
    assert "'0': a convolution with padding of its own" in " ".join(result.notes)


def test_layers_that_no_output_depends_on_are_left_out_and_named():
    class Forks(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dropped, self.idle = nn.Linear(5, 2), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x):
            self.dropped(x)
            return self.used(x)

    model = Forks()
    result = rich_lazy(model, model, [drawn(6, 5)])
    assert [row["layer"] for row in result.layers] == ["used"]
    notes = " ".join(result.notes)
    assert "'dropped': no output depends on it" in notes
    assert "'idle': not reached by the probe" in notes


def test_richer_training_is_seen(tmp_path):
    """Small initial weights learn features, large ones are lazy: the oldest finding of the field."""
    x = drawn(64, 5)
    y = (x[:, 0] * x[:, 1] > 0).long()
    found = []
    for scale in (0.3, 3.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        probe = LazinessProbe(model, [x])
        before = probe.snapshot()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3 / scale**2)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        result = probe.compare(before)
        found.append(result.totals["kernel_alignment"])
    assert found[0] + 0.1 < found[1]
    page = result.report(tmp_path / "page.html").read_text()
    assert "expected KA" in page


def test_the_report_has_heat_maps(tmp_path):
    first, second = llama(), moved(llama(), 0.5)
    result = rich_lazy(first, second, [torch.randint(40, (6, 8))])
    page = result.report(tmp_path / "page.html").read_text()
    assert page.count("<rect") > 4 * 14
    assert "model.layers.1.mlp.down_proj: 0." in page
    assert {row["layer"] for row in result.layers} == {
        f"model.layers.{n}.{part}"
        for n in range(2)
        for part in (
            *(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down"))
        )
    }  # fmt: skip


def test_checkpoints_callback_and_history(tmp_path):
    torch.manual_seed(0)
    model = llama()
    ids = torch.randint(40, (8, 6))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = LazinessProbe(model, [ids])
    before = probe.snapshot()
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, report_to=[], learning_rate=1e-2, use_cpu=True
    )
    Trainer(model, arguments, train_dataset=data, callbacks=[probe.callback(every=2)]).train()
    assert [step for step, _ in probe.history] == [2, 4]
    assert 1 > probe.history[0][1]["kernel_alignment"] > probe.history[1][1]["kernel_alignment"] > 0
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    live, stored = probe.compare(before), compare_checkpoints(model, start, end, [ids])
    for ours, theirs in zip(live.layers, stored.layers, strict=True):
        assert ours["kernel_alignment"] == pytest.approx(theirs["kernel_alignment"], abs=1e-5)
        assert ours["weight_change"] == pytest.approx(theirs["weight_change"], rel=1e-5)
    assert all(torch.equal(end[name], tensor) for name, tensor in model.state_dict().items())
