import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from models import tiny
from processes import apart, torchrun, two_processes
from weightsmith.core.caller import random_state_kept
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.training import default_loss, fit, logits_of, mean_loss, sample_losses


def problem(samples=64, classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 6, generator=generator)
    return TensorDataset(x, (x @ torch.randn(6, classes, generator=generator)).argmax(1))


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_learns_and_repeats_bit_for_bit():
    models = [network(dropout=0.3) for _ in range(3)]
    runs = [
        fit(model, problem(), epochs=20, learning_rate=0.01, seed=seed)
        for model, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert runs[0].steps == len(runs[0].losses) == 40
    assert runs[0].losses[-1] < 0.5 * runs[0].losses[0]
    assert runs[0].losses == runs[1].losses != runs[2].losses
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert models[0].training


def test_every_module_returns_to_its_own_mode():
    model = network(dropout=0.3).eval()
    model[2].train()
    fit(model, problem(), evaluate=lambda model: 0.0)
    assert [module.training for module in model] == [False, False, True, False]
    assert not model.training
    assert "_is_accelerate_prepared" not in vars(model)


def test_a_parameter_that_is_not_finite_is_named():
    model = network()
    model[3].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="parameter '3.weight': found NaN or infinity"):
        fit(model, problem())


def test_accumulation_is_a_larger_batch():
    large, small = network(), network()
    one = fit(large, problem(), epochs=3, batch_size=32)
    two = fit(small, problem(), epochs=3, batch_size=8, accumulation_steps=4)
    assert one.losses == pytest.approx(two.losses, rel=1e-5)
    torch.testing.assert_close(weights(large), weights(small), rtol=1e-4, atol=1e-6)


def test_optimizers_of_other_tensors_are_refused():
    model, stale = network(), network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for held in ([*stale.parameters()], [*model.parameters(), next(stale.parameters())]):
        with pytest.raises(HyperparameterError, match="not the model's"):
            fit(model, problem(), optimizer=torch.optim.SGD(held, lr=0.1))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_schedules_fall_to_zero_over_optimizer_steps():
    for name, half in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        rates = []
        fit(
            model,
            problem(),
            optimizer=optimizer,
            scheduler=name,
            epochs=2,
            batch_size=16,
            accumulation_steps=2,
            after_step=lambda step, loss, o=optimizer, r=rates: r.append(o.param_groups[0]["lr"]),
        )
        assert len(rates) == 4
        assert rates[1] == pytest.approx(half)
        assert rates[3] == pytest.approx(0.0 if name != "constant" else 1.0, abs=1e-9)


def test_learning_rate_warms_up_and_ends_where_asked():
    optimizer = torch.optim.SGD((model := network()).parameters(), lr=2.0)
    rates = []
    fit(
        model,
        problem(),
        optimizer=optimizer,
        scheduler="linear",
        warmup=0.25,
        final_learning_rate_ratio=0.1,
        epochs=2,
        batch_size=16,
        after_step=lambda step, loss: rates.append(optimizer.param_groups[0]["lr"]),
    )
    assert rates == pytest.approx([1.0, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2])
    with pytest.raises(HyperparameterError, match="warmup"):
        fit(model, problem(), warmup=1.5)


def test_early_stop_goes_back_to_the_best_weights():
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1])
    seen = []
    model = network()

    def evaluate(model):
        assert not model.training
        seen.append(weights(model))
        return next(scores)

    run = fit(model, problem(), epochs=5, evaluate=evaluate, patience=2)
    assert run.scores == [0.1, 0.9, 0.3, 0.2]
    assert run.best_epoch == 1
    assert torch.equal(weights(model), seen[1])


def test_frozen_parameters_and_bf16():
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    run = fit(model, problem(), epochs=10, precision="bf16", learning_rate=0.01, clip_norm=1.0)
    assert torch.equal(model[0].weight, before)
    assert model[3].weight.dtype == torch.float32
    assert run.losses[-1] < run.losses[0]


def test_language_models_train_on_their_own_text():
    model, batch = tiny("llama")
    data = [{key: value[i] for key, value in batch.items()} for i in range(8)]
    run = fit(model, data, epochs=15, batch_size=4, learning_rate=0.01)
    assert run.losses[-1] < 0.8 * run.losses[0]
    padded = {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
    torch.testing.assert_close(default_loss(model, batch), model(**padded).loss)


def test_logits_of_any_output():
    logits = torch.zeros(2, 3)
    model, batch = tiny("bert")
    for output in (logits, {"logits": logits}, (logits, None), [logits], SimpleNamespace(logits=logits)):
        assert logits_of(output) is logits
    assert logits_of(model(**batch)).shape == (8, 2)
    for output in (model.bert(**batch), {"loss": logits}, (), None):
        with pytest.raises(UnsupportedModelError, match="has no logits"):
            logits_of(output)


def test_bad_input():
    for change, message in (
        ({"epochs": 0}, "epochs: found 0"),
        ({"accumulation_steps": -1}, "accumulation_steps: found -1"),
        ({"patience": 2}, "patience: found 2"),
    ):
        with pytest.raises(HyperparameterError, match=message):
            fit(network(), problem(), **change)
    with pytest.raises(CalibrationError, match="no training batch"):
        fit(network(), problem(samples=5), drop_last=True)
    with pytest.raises(CalibrationError, match="training batch: found Tensor"):
        fit(network(), TensorDataset(torch.ones(3, 6)), loss=lambda model, batch: default_loss(model, batch[0]))
    model = network()
    before = weights(model)
    with pytest.raises(NonFiniteError, match="the loss at step 1: found nan"):
        fit(model, problem(), loss=lambda model, batch: default_loss(model, batch) * float("nan"))
    assert torch.equal(weights(model), before)


SCRIPT = """
    import json, sys, torch
    sys.path.insert(0, sys.argv[1])
    from core.test_fit import network, problem
    from weightsmith.core.training._fit import fit

    model = network()
    run = fit(model, problem(), epochs=4, batch_size=int(sys.argv[2]), learning_rate=0.01, seed=3)
    if int(__import__("os").environ.get("RANK", 0)) == 0:
        print(json.dumps(run.losses))
"""


@pytest.mark.parametrize("start", [two_processes, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_two_processes_follow_one_with_twice_the_batch(tmp_path, pytestconfig, start):
    tests = str(pytestconfig.rootpath / "tests")
    together = json.loads(start(SCRIPT, tmp_path, tests, "8").splitlines()[-1])
    curve = json.loads(apart(SCRIPT, tmp_path, tests, "16").splitlines()[-1])
    assert len(together) == 16
    assert together == pytest.approx(curve, rel=1e-4)


def test_the_mean_loss_does_not_depend_on_the_batches():
    rows, labels = torch.randn(9, 3), torch.tensor([0, 1, 2, -100, 1, 0, 2, 2, 1])
    whole = mean_loss(nn.Identity(), [(rows, labels)])
    parts = [(rows[:5], labels[:5]), (rows[3:4], labels[3:4]), (rows[5:], labels[5:])]  # one has no label that counts
    assert mean_loss(nn.Identity(), parts) == pytest.approx(whole, rel=1e-6)
    model, batch = tiny("llama")
    labels = batch["input_ids"].clone()
    labels[0, :6] = -100
    batch = {"input_ids": batch["input_ids"], "labels": labels}
    one_by_one = [{name: tensor[n : n + 1] for name, tensor in batch.items()} for n in range(len(labels))]
    assert mean_loss(model, one_by_one) == pytest.approx(mean_loss(model, [batch]), rel=1e-5)


def test_a_last_batch_of_one_sample_for_batch_normalization_says_what_to_do():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = [(torch.randn(3), torch.tensor(n % 2)) for n in range(9)]
    with pytest.raises(CalibrationError, match="a batch of one sample, expected two or more. Choose another"):
        fit(model, data, batch_size=4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert fit(model, data, batch_size=4, drop_last=True).steps == 2 * fit(model, data, batch_size=9).steps


def test_labels_beyond_the_head_are_named():
    data = [(torch.randn(4), label) for label in range(10, 20)]
    model = nn.Linear(4, 10)
    before = model.weight.detach().clone()
    with pytest.raises(HyperparameterError, match=r"labels: found \[1\d.*class indices from 0 to 9"):
        fit(model, data)
    assert torch.equal(model.weight, before)
    with pytest.raises(HyperparameterError, match="from 0 to 9"):
        sample_losses(model, (torch.randn(2, 4), torch.tensor([3, 10])))
    classifier, batch = tiny("bert")
    with pytest.raises(HyperparameterError, match="from 0 to 1"):
        default_loss(classifier, batch | {"labels": torch.arange(8)})
    with pytest.raises(HyperparameterError, match="from 0 to 1"):
        default_loss(classifier, batch | {"labels": torch.tensor([0, -1] * 4)})
    with pytest.raises(CalibrationError, match=r"labels: found \['[ab]', '[ab]'\], expected numbers"):
        fit(model, [(torch.randn(4), label) for label in "ab"])
    with pytest.raises(CalibrationError, match=r"labels: found \['a', 'a', 'a'\], expected numbers"):
        default_loss(classifier, batch | {"labels": ["a"] * 8})
    ignored = default_loss(classifier, batch | {"labels": torch.tensor([0, -100] * 4)})
    assert ignored.isfinite()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_needs_no_gradients_to_be_switched_on(off):
    model, other = network(), network()
    fit(model, problem(), epochs=1)
    with off():
        fit(other, problem(), epochs=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(weights(model), weights(other))


def test_the_last_step_of_an_epoch_averages_the_batches_that_it_has():
    model = nn.Linear(1, 1, bias=False)
    data = [(torch.ones(1), torch.zeros(1))] * 5
    optimizer, gradients = torch.optim.SGD(model.parameters(), lr=0.0), []
    optimizer.register_step_pre_hook(lambda *_: gradients.append(model.weight.grad.item()))
    fit(model, data, loss=lambda m, b: m(b[0]).mean(), optimizer=optimizer, batch_size=1, accumulation_steps=4)
    assert gradients == [1.0, 1.0]


def test_sparse_gradients_are_refused_where_the_optimizer_does_not_take_them():
    model = nn.Sequential(nn.Embedding(10, 8, sparse=True), nn.Flatten(), nn.Linear(16, 3))
    data = [(torch.randint(0, 10, (2,)), n % 3) for n in range(8)]
    with pytest.raises(UnsupportedModelError, match="embedding '0' has sparse gradients"):
        fit(model, data)
    fit(model, data, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_random_numbers_of_the_caller_go_on_as_they_would():
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    states = []
    for trains in (False, True):
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)
        if trains:
            fit(model, [(torch.ones(2), 0)] * 4, seed=5)
        states.append((torch.rand(1), np.random.rand()))  # noqa: NPY002
    assert states[0] == states[1]
    random.seed(3)
    expected = random.random()
    random.seed(3)
    with random_state_kept():  # by itself: what checks types in these tests draws from Python's generator, too
        random.seed(5)
    assert random.random() == expected


def test_the_targets_of_a_regression_are_no_classes():
    x = torch.randn(8, 4)
    for targets, outputs in ((x[:, :1], 1), (x[:, :2], 2), (torch.ones(8, 1), 1), (x[:, 0], 1), (x[:, :2].abs(), 2)):
        model = nn.Linear(4, outputs)
        before = model.weight.detach().clone()
        with pytest.raises(CalibrationError, match="labels: found real numbers of shape .* A regression needs a loss"):
            fit(model, TensorDataset(x, targets))
        assert torch.equal(model.weight, before)
    mixed = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    logits = torch.tensor([[1.0, 2.0], [0.5, 0.0]])
    expected = -(mixed * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(default_loss(nn.Identity(), (logits, mixed)), expected)
    rounded = torch.full((2, 7), 1 / 7).bfloat16()
    assert default_loss(nn.Identity(), (torch.zeros(2, 7).bfloat16(), rounded)).isfinite()


def test_a_schedule_starts_from_the_optimizers_rate_and_leaves_it_as_it_was():
    model, seen = network(), []
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.2}, {"params": model[3].parameters()}], 0.5)

    def look(step, loss):
        seen.append([group["lr"] for group in optimizer.param_groups])

    fit(model, problem(), optimizer=optimizer, scheduler="linear", after_step=look)
    assert seen == [[0.1, 0.25], [0.0, 0.0]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.5]
    assert not any("initial_lr" in group for group in optimizer.param_groups)
    optimizer.param_groups[1]["lr"] = 0.01  # for the next task
    fit(model, problem(), optimizer=optimizer, after_step=look)
    assert seen[2:] == [[0.2, 0.01]] * 2
    own = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    own.step()
    before = [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups]

    def stop(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, problem(), optimizer=optimizer, scheduler="linear", warmup=0.5, after_step=stop)
    assert [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups] == before
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    fit(model, problem(), optimizer=optimizer, scheduler="linear")
    assert float(optimizer.param_groups[0]["lr"]) == 0.5


def test_what_cannot_be_trained_is_named():
    frozen = network().requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="all parameters are frozen"):
        fit(frozen, problem())
    with pytest.raises(CalibrationError, match="there are no training samples"):
        fit(network(), [])
    stream = type("Stream", (IterableDataset,), {"__iter__": lambda self: iter(problem())})()
    with pytest.raises(CalibrationError, match="found Stream, which has no length"):
        fit(network(), DataLoader(stream, batch_size=4))


def test_complex_weights_are_trained():
    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 3, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(self.weight.dtype) @ self.weight).abs()

    model = Wave()
    run = fit(model, problem(), epochs=10, learning_rate=0.1)
    assert run.losses[-1] < run.losses[0]
    assert model.weight.isfinite().all()


def test_data_without_a_label_that_counts_are_named():
    model = network()
    before = weights(model)
    x = problem().tensors[0]
    ignored, zero = torch.full((64,), -100), lambda model, batch: model(batch[0]).sum() * 0
    with pytest.raises(CalibrationError, match="labels of the training samples: found -100 for all"):
        fit(model, TensorDataset(x, ignored), loss=zero, weight_decay=0.1, batch_size=8)
    assert torch.equal(weights(model), before)
    ignored[50] = 1
    assert fit(model, TensorDataset(x, ignored), loss=zero, batch_size=8).steps == 8


STOPPING = """
    import sys, torch
    sys.path.insert(0, sys.argv[1])
    from core.test_fit import network, problem, weights
    from weightsmith.core.training import fit

    model, seen = network(), []

    def evaluate(model):
        seen.append(1)
        scores = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 7.0, 0.0, -1.0, -9.0]
        return scores[torch.distributed.get_rank()][len(seen) - 1]

    run = fit(model, problem(), epochs=5, batch_size=16, evaluate=evaluate, patience=1)
    print(run.scores, run.best_epoch, float(weights(model).double().sum()))
"""


def test_processes_that_measure_differently_stop_together(tmp_path, pytestconfig):
    first, second = two_processes(STOPPING, tmp_path, str(pytestconfig.rootpath / "tests")).splitlines()
    assert first == second
    assert first.startswith("[1.5, 4.5, 1.5] 1 ")
