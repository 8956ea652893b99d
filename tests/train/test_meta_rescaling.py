"""Meta rescaling: worked features, the rescaler's norms, the exact meta-gradient, and training under label noise."""

from __future__ import annotations

import copy
import json
import statistics
import warnings

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from models import tiny
from processes import apart, two_processes
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.train import MetaRescaler, meta_rescaling
from weightsmith.train._meta_rescaling import ClassMemory, Rescaler, normal_divergence, normal_overlap

F64 = torch.float64


def network(dropout=0.2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def data(samples=96):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1), torch.arange(samples))


def first_batch(count=24):
    return [part[:count] for part in data().tensors]


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def number(x):
    return torch.tensor(x, dtype=F64)


def test_worked_divergence_and_overlap():
    pair = [number(x) for x in (0.5, 0.1, 1.0, 0.2)]
    assert normal_divergence(*pair).item() == pytest.approx(3.4431472, abs=1e-7)
    assert normal_overlap(*pair).item() == pytest.approx(0.0891944, abs=1e-7)
    assert normal_overlap(*[number(x) for x in (0.0, 1.0, 1.0, 1.0)]).item() == pytest.approx(0.6170751, abs=1e-7)
    same = [number(x) for x in (0.3, 0.7, 0.3, 0.7)]
    assert (normal_divergence(*same).item(), normal_overlap(*same).item()) == (0.0, 1.0)
    assert normal_divergence(*[number(x) for x in (0.3, 0.0, 0.5, 0.7)]).item() == 0.0


@given(st.floats(-3, 3), st.floats(0.01, 3), st.floats(-3, 3), st.floats(0.01, 3))
def test_overlap_is_that_of_the_standard_library(m, s, other_m, other_s):
    theirs = statistics.NormalDist(m, s).overlap(statistics.NormalDist(other_m, other_s))
    assert normal_overlap(number(m), number(s), number(other_m), number(other_s)).item() == pytest.approx(
        theirs, abs=1e-6
    )


def test_features_by_hand():
    """Against loops over the memory, two batches long, so that the second batch sees the first."""
    generator = torch.Generator().manual_seed(0)
    memory, seen = ClassMemory(2, window=1), []
    for _ in range(2):
        logits = torch.randn(3, 8, 2, generator=generator, dtype=F64)
        labels = torch.randint(2, (8,), generator=generator)
        losses = torch.stack([functional.cross_entropy(row, labels, reduction="none") for row in logits])
        features = memory.features(losses, logits, labels)
        confidence = logits.softmax(2).amax(2)
        batch = []
        for i in range(8):
            votes = (logits[:, i].argmax(1) == labels[i]).tolist()
            row = {"class": int(labels[i]), "agree": sum(votes) >= 2}
            for name, values in (("l", losses[:, i].tolist()), ("c", confidence[:, i].tolist())):
                row |= {name: statistics.mean(values), f"{name} std": statistics.stdev(values)}
            batch.append(row)
        seen += batch
        kept = [e for c in (0, 1) for e in [e for e in seen if e["class"] == c][-8:]]
        for row, ours in zip(batch, features.tolist(), strict=True):
            group = [e for e in kept if (e["class"], e["agree"]) == (row["class"], row["agree"])]

            def told(values, own):
                deviation = statistics.stdev(values) if len(values) > 1 else 1e-8
                return [own, statistics.mean(values), deviation]

            expected = []
            for name in ("l", "l std", "c", "c std"):
                expected += told([e[name] for e in group], row[name])
            m, s = statistics.mean(e["l"] for e in group), statistics.mean(e["l std"] for e in group)
            for measure in (normal_divergence, normal_overlap):
                values = [measure(*map(number, (e["l"], e["l std"], m, s))).item() for e in group]
                expected += told(values, measure(*map(number, (row["l"], row["l std"], m, s))).item())
            assert ours == pytest.approx([*expected, float(row["agree"])], rel=1e-4, abs=1e-6)


def test_features_of_one_pass_and_of_a_tie():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]])
    labels = torch.tensor([0, 1, 1])
    losses = functional.cross_entropy(logits[0], labels, reduction="none")[None]
    features = ClassMemory(2).features(losses, logits, labels)
    assert (features[:, [3, 9]] == 0).all(), "no deviation over one pass"
    assert (features[:, 12] == 0).all(), "so the divergence is zero"
    assert features[:, 18].tolist() == [1, 1, 0]
    torch.testing.assert_close(features[:, [2, 5, 8, 11]], torch.full((3, 4), 1e-8)), "groups of one"
    assert not features.requires_grad
    two = torch.cat([logits, -logits])
    features = ClassMemory(2).features(losses.expand(2, 3), two, labels)
    assert features[:, 18].tolist() == [1, 1, 0], "of two passes that disagree the first decides"
    assert (features[:, 6] >= 0.5).all()
    assert (features[:, 6] <= 1).all()


def test_the_rescaler_normalises_the_batch():
    """Two samples: the norms give plus or minus one, so the weights are softmax(1, -1) or one half."""
    rescaler = Rescaler(2, generator=torch.Generator().manual_seed(0))
    for parameter in rescaler.parameters():
        parameter.data *= 100  # so that the norms' epsilon does not show
    weights = rescaler(torch.randn(2, 19, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0]))
    low, high = sorted(weights.tolist())
    assert (low, high) == pytest.approx((0.1192029, 0.8807970), abs=1e-4) or (low, high) == pytest.approx(
        (0.5, 0.5), abs=1e-4
    )
    features, labels = torch.randn(32, 19), torch.randint(2, (32,))
    weights = rescaler(features, labels)
    logit = weights.log() - (1 - weights).log()
    for c in (0, 1):
        everyone = rescaler(features, torch.full_like(labels, c))
        assert (everyone.log() - (1 - everyone).log()).mean().item() == pytest.approx(0, abs=1e-4)
        torch.testing.assert_close(weights[labels == c], everyone[labels == c])
    assert logit.abs().max() <= 2 * 31**0.5 + 1e-3
    assert not list(rescaler.buffers()), "no running statistics"


@pytest.mark.parametrize("inner", ["sgd", "sign"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_meta_gradient_is_that_of_the_virtual_step(inner, reduction):
    """Against double backward through the step, in double precision."""
    model = network(dropout=0.0).double()
    x, y, _ = first_batch()
    x = x.double()
    rate, count = 0.3, len(y)
    loss = MetaRescaler(data(), 3, inner=inner, inner_learning_rate=rate, reduction=reduction, passes=1)
    w, v = (torch.rand(count, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    share = 1 / count if reduction == "mean" else 1.0
    named = dict(model.named_parameters())
    w_leaf = w.clone().requires_grad_()
    each = functional.cross_entropy(model(x), y, reduction="none")
    g = torch.autograd.grad(share * (w_leaf * each).sum(), [*named.values()], create_graph=True)
    step = [q if inner == "sgd" else q / (q.abs() + 1e-8) for q in g]
    moved = {name: p - rate * q for (name, p), q in zip(named.items(), step, strict=True)}
    outer = functional.cross_entropy(
        torch.func.functional_call(model, moved, (x.flip(0),)), y.flip(0), reduction="none"
    )
    (expected,) = torch.autograd.grad(share * (v * outer).sum(), w_leaf)

    fixed = {name: q.detach() for name, q in zip(named, g, strict=True)}
    leaves = {name: (p - rate * loss._step(fixed[name])).detach().requires_grad_() for name, p in named.items()}
    again = functional.cross_entropy(
        torch.func.functional_call(model, leaves, (x.flip(0),)), y.flip(0), reduction="none"
    )
    big = dict(zip(named, torch.autograd.grad(share * (v * again).sum(), [*leaves.values()]), strict=True))
    direction = {name: loss._slope(fixed[name]) * big[name] for name in big}
    ours = -rate * share * loss._directional(model, named, direction, x, y)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-14)


def test_both_paths_reach_the_rescaler_and_none_the_model():
    grads = {}
    for paths in ("both", "meta", "direct"):
        model = network(dropout=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = MetaRescaler(
                data(), 3, paths=paths, rescaler_learning_rate=0.0, reduction="sum", inner_learning_rate=0.1
            )
            value = loss(model, first_batch())
        grads[paths] = torch.cat([p.grad.flatten() for p in loss.rescaler.parameters()])
        value.backward()
        x, y, _ = first_batch()
        reference = network(dropout=0.0)
        (loss.last_weights * functional.cross_entropy(reference(x), y, reduction="none")).sum().backward()
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert grads["meta"].abs().max() > 0
    assert grads["direct"].abs().max() > 0
    torch.testing.assert_close(grads["both"], grads["meta"] + grads["direct"], rtol=1e-4, atol=1e-7)


def test_sign_step_moves_by_the_rate():
    loss = MetaRescaler(data(), 3, inner="sign")
    step = loss._step(torch.tensor([0.5, -2.0, 1e-6, 0.0]))
    assert step.tolist() == pytest.approx([1.0, -1.0, 0.990099, 0.0], abs=1e-6)


def test_a_frozen_rescaler_and_a_warm_up():
    model = network()
    loss = MetaRescaler(data(), 3, rescaler_learning_rate=0.0)
    before = copy.deepcopy(loss.rescaler.state_dict())
    fit(model, data(), loss=loss, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in loss.rescaler.state_dict().items())
    # while it warms up, the model is trained as without a rescaler, dropout included
    plain, warming = network(), network()

    def mean(model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1])

    for model, criterion in ((plain, mean), (warming, MetaRescaler(data(), 3, warmup_steps=99, passes=1))):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for start in range(0, 96, 24):
            model.train()
            batch = [part[start : start + 24] for part in data().tensors]
            torch.manual_seed(start)
            optimizer.zero_grad()
            criterion(model, batch).backward()
            optimizer.step()
    torch.testing.assert_close(parameters(plain), parameters(warming), rtol=1e-5, atol=1e-7)


def test_running_statistics_count_one_pass_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    MetaRescaler(data(), 3)(model, first_batch()).backward()
    assert model[2].num_batches_tracked == 1


def test_weights_find_flipped_digits():
    images, classes = digits()
    x, true = images[:600].flatten(1), classes[:600]
    generator = torch.Generator().manual_seed(0)
    flipped = torch.rand(600, generator=generator) < 0.3
    noisy = torch.where(flipped, (true + torch.randint(1, 10, (600,), generator=generator)) % 10, true)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    train = TensorDataset(x, noisy, torch.arange(600))
    loss = MetaRescaler(train, 10, inner_learning_rate=0.1, reduction="sum", rescaler_learning_rate=1e-2)
    fit(model, train, loss=loss, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2), epochs=12)
    clean, wrong = loss.scores[~flipped], loss.scores[flipped]
    auc = (clean[:, None] > wrong[None]).float().mean().item()
    assert auc > 0.8
    assert clean.mean() > wrong.mean() + 0.2


@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.filterwarnings("ignore:all passes are alike")
def test_transformers_train_in_fit(name):
    model, batch = tiny(name)
    key = "input_ids" if name == "bert" else "pixel_values"
    rows = [{key: value, "labels": torch.tensor(n % 2)} for n, value in enumerate(batch[key])]
    result = meta_rescaling(model, rows, learning_rate=1e-3, epochs=3, batch_size=4)
    assert len(result.curves["training loss"]) == 6
    lines = result.files["sample_weights.csv"].splitlines()
    assert lines[0] == "sample,label,weight"
    weights = [float(line.split(",")[2]) for line in lines[1:]]
    assert len(weights) == 8
    assert weights == sorted(weights)


def test_state_round_trip():
    loss = MetaRescaler(data(), 3)
    fit(network(), data(), loss=loss, epochs=1)
    again = MetaRescaler(data(), 3)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.scores, loss.scores)
    assert torch.equal(again.rescaler.first_CIO, loss.rescaler.first_CIO)
    assert again.optimizer.state_dict()["state"].keys() == loss.optimizer.state_dict()["state"].keys() != set()


def test_only_trainable_parameters_move():
    model = network()
    model[1].requires_grad_(False)
    frozen = model[1].weight.clone()
    fit(model, data(), loss=MetaRescaler(data(), 3), epochs=1)
    assert torch.equal(model[1].weight, frozen)


def test_small_and_constant_batches_are_told():
    loss, model = MetaRescaler(data(), 3), network()
    with pytest.warns(UserWarning, match="a batch of one sample has no weights"):
        loss(model, [part[:1] for part in data().tensors]).backward()
    with pytest.warns(UserWarning, match="all passes are alike"):
        loss(network(dropout=0.0), first_batch())
    assert loss.passes == 1


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            (torch.zeros(2, 6), torch.tensor([0, 3])),
            HyperparameterError,
            r"labels: found \[3\], expected class indices from 0 to 2",
        ),
        ((torch.zeros(2, 6), torch.zeros(2, 3)), ShapeError, "expected one class index per sample"),
        ((torch.full((2, 6), torch.nan), torch.tensor([0, 1])), NonFiniteError, r"NaN or infinity at samples \[0, 1\]"),
    ],
)
def test_bad_batches(batch, error, message):
    with pytest.raises(error, match=message):
        MetaRescaler(data(), 3)(network(), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes: found 0"),
        ({"window": 0}, "window: found 0"),
        ({"min_weight": 1.0}, "min_weight: found 1.0"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate: found 0.0"),
        ({"rescaler_learning_rate": float("nan")}, "rescaler_learning_rate: found nan"),
    ],
)
def test_bad_hyperparameters(options, message):
    with pytest.raises(HyperparameterError, match=message):
        MetaRescaler(data(), 3, **options)


def test_the_command_refuses_batches_of_one_sample():
    model = nn.Linear(4, 2)
    with pytest.raises(HyperparameterError, match="batch_size: found 1, expected >= 2"):
        meta_rescaling(model, [(torch.randn(4), n % 2) for n in range(4)], batch_size=1)


@pytest.mark.parametrize("damage", [{"scores": torch.zeros(3)}, {"rescaler": {}}, {"optimizer": {}}, {"steps": None}])
def test_a_damaged_state_is_refused_and_changes_nothing(damage):
    loss = MetaRescaler(data(), 3)
    state = copy.deepcopy(loss.state_dict())
    with pytest.raises(CheckpointError, match="state of a MetaRescaler"):
        loss.load_state_dict(state | damage)
    after = loss.state_dict()
    assert all(torch.equal(after["rescaler"][name], value) for name, value in state["rescaler"].items())
    loss.load_state_dict(state)


def test_a_model_without_forward_mode_derivative_is_refused():
    model = network()
    torch.nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(UnsupportedModelError, match="without forward-mode derivative"):
        fit(model, data(), loss=MetaRescaler(data(), 3), epochs=1)


def test_the_command_names_what_labels_it_cannot_count():
    for label in (torch.randn(2), torch.tensor(0.5)):
        with pytest.raises(ShapeError, match="label of sample 0: found torch.float32"):
            meta_rescaling(nn.Linear(4, 2), [(torch.randn(4), label) for _ in range(4)])
    with pytest.raises(CalibrationError, match="no training samples"):
        meta_rescaling(nn.Linear(4, 2), [])


class Unused(nn.Module):
    """Has a parameter that no sample reaches, as the pooler of a language model is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Linear(6, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.used(x)


def test_an_unused_parameter_has_no_gradient_and_does_not_decay():
    model = Unused()
    loss = MetaRescaler(data(), classes=3, passes=1)
    loss(model, data()[:32]).backward()
    assert model.unused.grad is None
    assert model.used.weight.grad.abs().sum() > 0
    fit(model, data(), loss=loss, batch_size=16, weight_decay=0.5, learning_rate=0.1)
    assert torch.equal(model.unused, torch.ones(3))


UNUSED = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from train.test_meta_rescaling import MetaRescaler, Unused, data, fit

    model = Unused()
    loss = MetaRescaler(data(), classes=3, passes=1)
    run = fit(model, data(), loss=loss, batch_size=int(sys.argv[2]), weight_decay=0.5)
    print(run.losses, model.unused.tolist())
"""


def test_an_unused_parameter_does_not_stop_several_processes(tmp_path, pytestconfig):
    tests = str(pytestconfig.rootpath / "tests")
    one = apart(UNUSED, tmp_path, tests, 16).splitlines()[-1]
    found = [line for line in two_processes(UNUSED, tmp_path, tests, 8).splitlines() if line.startswith("[")]
    assert found[0] == found[1]
    curves = [json.loads(line.partition("]")[0] + "]") for line in (one, found[0])]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    assert found[0].endswith("[1.0, 1.0, 1.0]")
