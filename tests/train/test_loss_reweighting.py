"""Loss reweighting: the worked weights, their identities, the gradient, several processes, and every kind of loop."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from models import tiny
from processes import apart, torchrun, two_processes
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.training import fit
from weightsmith.testing import tiny as still  # without dropout
from weightsmith.train import LossReweighter, loss_reweighting, loss_weights, per_sequence_loss, reweighted
from weightsmith.train._loss_reweighting import STRATEGIES

FIVE = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
WORKED = {
    ("linupper", 1.0): [0.0925620, 0.1526090, 0.2516097, 0.2516097, 0.2516097],
    ("quadratic", 1.0): [0.1117034, 0.2364760, 0.3036412, 0.2364760, 0.1117034],
    ("extremes", 1.0): [0.2792563, 0.1693775, 0.1027326, 0.1693775, 0.2792563],
    ("linupper", 0.4): [0.0243678, 0.0850519, 0.2968601, 0.2968601, 0.2968601],
    ("quadratic", 0.4): [0.0367321, 0.2395235, 0.4474888, 0.2395235, 0.0367321],
    ("extremes", 0.4): [0.3766344, 0.1079076, 0.0309160, 0.1079076, 0.3766344],
}


@pytest.mark.parametrize(("strategy", "r"), WORKED)
def test_worked_weights(strategy, r):
    assert loss_weights(FIVE, strategy, r=r).tolist() == pytest.approx(WORKED[strategy, r], abs=1e-7)


def test_worked_loss_and_outlier():
    assert LossReweighter()(FIVE).item() == pytest.approx(3.7567930, abs=1e-6)
    weights = loss_weights(torch.tensor([1.0, 2.0, 3.0, 40.0]))
    assert weights.tolist() == pytest.approx([0.0640551, 0.0728169, 0.0827773, 0.7803507], abs=1e-7)
    clipped = loss_weights(torch.tensor([*range(19), 1000.0]), clip_quantile=0.1)
    assert clipped.max() < 2 * clipped[10:].min()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_losses_have_equal_weights(strategy):
    assert torch.equal(loss_weights(torch.full((8,), 2.5), strategy), torch.full((8,), 0.125))


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40).filter(lambda x: max(x) - min(x) > 1e-2),
    st.sampled_from([*STRATEGIES]),
    st.floats(0.2, 10),
)
def test_weights_sum_to_one_within_their_bounds_and_follow_the_losses(losses, strategy, r):
    l_B = torch.tensor(losses)
    weights = loss_weights(l_B, strategy, r=r)
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    most = math.exp(1 / r)
    count = len(losses)
    assert weights.max().item() <= most / (count - 1 + most) * (1 + 1e-4)
    assert weights.min().item() >= 1 / (1 + (count - 1) * most) * (1 - 1e-4)
    torch.testing.assert_close(loss_weights(3 * l_B + 7, strategy, r=r), weights, rtol=2e-3, atol=1e-6)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss_weights(l_B[order], strategy, r=r), weights[order])
    if strategy == "linupper":
        upper = weights[l_B >= (l_B.max() + l_B.min()) / 2 + 1e-4]
        torch.testing.assert_close(upper, upper[:1].expand_as(upper))
        assert (upper[0] / weights[l_B.argmin()]).item() == pytest.approx(most, rel=1e-4)


@pytest.mark.parametrize(
    ("count", "r", "most", "least"),
    [(8, 1.0, 0.2797081, 0.0499302), (8, 0.4, 0.6350839, 0.0115905),
     (32, 1.0, 0.0806174, 0.0117279), (32, 0.4, 0.2821165, 0.0026409)],
)  # fmt: skip
def test_worked_bounds(count, r, most, least):
    one_low = torch.cat([torch.zeros(1), torch.ones(count - 1)])
    assert loss_weights(one_low, r=r).min().item() == pytest.approx(least, abs=1e-7)
    one_high = torch.cat([torch.ones(1), torch.zeros(count - 1)])
    assert loss_weights(one_high, r=r).max().item() == pytest.approx(most, abs=1e-7)


def test_the_gradient_is_the_weights():
    losses = FIVE.clone().requires_grad_()
    reweighter = LossReweighter()
    reweighter(losses).backward()
    assert torch.equal(losses.grad, reweighter.last_weights)
    assert not reweighter.last_weights.requires_grad
    assert reweighter.effective_sample_size == pytest.approx(1 / sum(w**2 for w in WORKED["linupper", 0.4]), rel=1e-5)
    assert LossReweighter(r=1e6)(FIVE).item() == pytest.approx(3.0, abs=1e-5)
    assert LossReweighter("uniform")(FIVE).item() == pytest.approx(3.0, abs=1e-6)


def test_warm_up_is_the_mean_over_tokens_and_is_resumed():
    reweighter = LossReweighter(warmup_steps=2)
    tokens = torch.tensor([1, 1, 1, 1, 4])
    expected = (FIVE * tokens).sum() / 8
    assert [reweighter(FIVE, tokens).item() for _ in range(2)] == pytest.approx([expected.item()] * 2)
    assert reweighter(FIVE, tokens).item() == pytest.approx(3.7567930, abs=1e-6)
    again = LossReweighter(warmup_steps=2)
    again.load_state_dict(reweighter.state_dict())
    assert again(FIVE).item() == pytest.approx(3.7567930, abs=1e-6)
    fresh = LossReweighter(warmup_steps=2).eval()
    assert fresh(FIVE).item() == pytest.approx(3.7567930, abs=1e-6)
    assert int(fresh.step) == 0


def test_temperature_may_follow_a_schedule():
    reweighter = LossReweighter(r=lambda step: 1.0 if step == 0 else 0.4)
    for r in (1.0, 0.4):
        reweighter(FIVE)
        assert reweighter.last_weights.tolist() == pytest.approx(WORKED["linupper", r], abs=1e-7)


def test_token_weighted_is_the_other_normalisation():
    tokens = torch.tensor([1, 2, 3, 4, 10])
    weights = loss_weights(FIVE)
    expected = 5 * (weights * tokens * FIVE).sum() / 20
    assert LossReweighter(token_weighted=True)(FIVE, tokens).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_window_gives_micro_batches_of_one_their_weight():
    reweighter = LossReweighter("linupper", window=4)
    totals = [reweighter(loss[None]).item() for loss in FIVE]
    relative = 5 * loss_weights(FIVE)
    assert totals[-1] == pytest.approx((relative[4] * FIVE[4]).item(), rel=1e-6)
    assert totals[0] == pytest.approx(1.0)
    with pytest.warns(UserWarning, match="its weight is always 1"):
        assert LossReweighter()(torch.tensor([7.0])).item() == 7.0
    # the size is that of the group, which the window belongs to
    assert reweighter.effective_sample_size == pytest.approx(1 / loss_weights(FIVE).square().sum().item())
    assert 1 < reweighter.effective_sample_size < 5


def test_the_command_refuses_batches_of_one_sample_without_a_window():
    rows = [(torch.rand(4), n % 2) for n in range(8)]
    with pytest.raises(HyperparameterError, match="batch_size: found 1, expected >= 2 without a window"):
        loss_reweighting(nn.Linear(4, 2), rows, batch_size=1, accumulation_steps=8)
    result = loss_reweighting(nn.Linear(4, 2), rows, batch_size=1, accumulation_steps=4, window=3, epochs=2)
    assert result.hyper["window"] == 3
    assert max(result.curves["effective sample size"]) > 1


def test_samples_without_tokens_and_not_finite_losses():
    reweighter = LossReweighter()
    losses = torch.cat([FIVE, torch.tensor([0.0])]).requires_grad_()
    assert reweighter(losses, torch.tensor([1, 1, 1, 1, 1, 0])).item() == pytest.approx(3.7567930, abs=1e-6)
    assert reweighter.last_weights[5] == 0
    nothing = reweighter(losses, torch.zeros(6, dtype=torch.long))
    nothing.backward()
    assert nothing.item() == 0
    assert (losses.grad == 0).all()
    bad = torch.cat([FIVE, torch.tensor([torch.nan, torch.inf])])
    with pytest.raises(NonFiniteError, match=r"found NaN or infinity at samples \[5, 6\]"):
        reweighter(bad)
    leaf = bad.clone().requires_grad_()
    dropped = LossReweighter(nonfinite="drop")(leaf)
    dropped.backward()
    assert dropped.item() == pytest.approx(3.7567930, abs=1e-6)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LossReweighter()(torch.tensor(1.0)), ShapeError, r"expected one per sample \(reduction='none'\)"),
        (lambda: LossReweighter()(torch.zeros(0)), CalibrationError, "a batch without samples"),
        (lambda: LossReweighter(r=0.0), HyperparameterError, "r: found 0.0, expected a positive number"),
        (lambda: LossReweighter(delta=-1.0), HyperparameterError, "delta: found -1.0"),
        (lambda: LossReweighter(clip_quantile=0.5), HyperparameterError, "clip_quantile: found 0.5"),
        (lambda: LossReweighter(window=-1), HyperparameterError, "window: found -1"),
        (lambda: loss_weights(torch.zeros(0)), ShapeError, "losses"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_per_sequence_loss_is_the_model_s_own():
    model, batch = tiny("llama")
    ids = batch["input_ids"]
    logits = model(ids).logits
    losses, tokens = per_sequence_loss(logits[:, :-1], ids[:, 1:])
    assert tokens.tolist() == [39] * 8
    torch.testing.assert_close(LossReweighter("uniform")(losses), model(ids, labels=ids).loss)
    loss = reweighted(LossReweighter("uniform"))(model, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(loss, model(ids, labels=ids).loss)
    half, _ = per_sequence_loss(logits[:, :-1].bfloat16(), ids[:, 1:])
    assert half.dtype == torch.float32


def test_it_trains_a_classifier_in_fit_with_accumulation_and_bf16():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(64, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    reweighter = LossReweighter(warmup_steps=4)
    settings = {"epochs": 30, "batch_size": 16, "accumulation_steps": 2, "precision": "bf16", "learning_rate": 0.02}
    run = fit(model, data, loss=reweighted(reweighter), **settings)
    assert run.losses[-1] < 0.5 * run.losses[0]
    assert int(reweighter.step) == 30 * 4


@pytest.mark.parametrize(("kind", "accumulation"), [("llama", 2), ("bert", 1)])  # of BERT's own the Trainer takes sums
def test_it_works_in_the_trainer_with_accumulation(kind, accumulation, tmp_path):
    """With equal weights the accumulated steps are those of the Trainer's own loss, and so is the evaluation."""
    losses = {}
    reweighter = LossReweighter("uniform")
    for name, function in (("own", None), ("ours", reweighter.compute_loss_func)):
        model, batch = still(kind)
        rows = [
            {"input_ids": ids, "labels": ids if kind == "llama" else torch.tensor(n % 2)}
            for n, ids in enumerate(batch["input_ids"])
        ]
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=3, per_device_train_batch_size=4 // accumulation, report_to=[],
            gradient_accumulation_steps=accumulation,
            use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1, learning_rate=1e-3,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, compute_loss_func=function)
        trainer.train()
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses[name].append(trainer.evaluate(rows)["eval_loss"])
    assert losses["ours"] == pytest.approx(losses["own"], rel=1e-4)
    assert int(reweighter.step) == 3 * accumulation, "an evaluation is no step"


def test_labels_of_the_trainer_that_are_no_classes_are_refused():
    function = LossReweighter().compute_loss_func
    with pytest.raises(CalibrationError, match="a batch without labels"):
        function({"logits": torch.zeros(2, 3)}, None)
    with pytest.raises(ShapeError, match=r"labels: found torch.float32 of shape \(2,\), expected class indices"):
        function({"logits": torch.zeros(2, 1)}, torch.zeros(2))


def test_the_command_records_the_effective_sample_size():
    model, batch = tiny("gpt2")
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    result = loss_reweighting(model, rows, learning_rate=1e-3, epochs=5, batch_size=4, weight_warmup=0.2)
    sizes = result.curves["effective sample size"]
    assert len(sizes) == len(result.curves["training loss"]) == 10
    assert sizes[0] == pytest.approx(4)
    assert all(1 <= size < 4 for size in sizes[2:])


WORKER = """
    import json, sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from weightsmith.train._loss_reweighting import LossReweighter

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    x = torch.randn(7, 3)
    mine = x[:4] if rank == 0 else x[4:]  # the last batches of two processes need not be of one size
    parallel = DistributedDataParallel(model)
    reweighter = LossReweighter("quadratic")
    loss = reweighter(parallel(mine).square().squeeze(1))
    loss.backward()
    if rank == 0:
        alone = torch.nn.Linear(3, 1)
        alone.load_state_dict(model.state_dict())
        single = LossReweighter("quadratic")
        import weightsmith.train._loss_reweighting as module
        module.dist = type("none", (), {"is_available": staticmethod(lambda: False)})
        total = single(alone(x).square().squeeze(1))
        total.backward()
        print(json.dumps({
            "gradient": (model.weight.grad - alone.weight.grad).abs().max().item(),
            "weights": (reweighter.last_weights - single.last_weights[:4]).abs().max().item(),
        }))
"""


def test_two_processes_are_one(tmp_path):
    told = json.loads(two_processes(WORKER, tmp_path).splitlines()[-1])
    assert told["gradient"] < 1e-6
    assert told["weights"] < 1e-7


def test_regression_gets_faster_at_one_learning_rate():
    """The paper's toy: noise-free linear regression on features of falling scale, the same batches for all."""
    losses = {}
    for strategy in ("uniform", "linupper", "quadratic", "extremes"):
        generator = torch.Generator().manual_seed(0)
        scale = torch.arange(1, 21) ** -0.75
        truth = torch.randn(20, generator=generator)
        test = torch.randn(2000, 20, generator=generator) * scale
        theta = torch.zeros(20, requires_grad=True)
        reweighter = LossReweighter(strategy, r=1.0)
        for _ in range(200):
            x = torch.randn(64, 20, generator=generator) * scale
            (gradient,) = torch.autograd.grad(reweighter((x @ (theta - truth)).square() / 2), theta)
            theta.data -= 0.05 * gradient
        losses[strategy] = functional.mse_loss(test @ theta, test @ truth).item() / 2
    assert losses["linupper"] < losses["quadratic"] < losses["uniform"] < losses["extremes"]


TRAINER = """
    import json, sys
    import torch
    import transformers
    from weightsmith.testing import tiny
    from weightsmith.train import LossReweighter

    model, batch = tiny("llama")
    rows = []
    for number in range(16):
        ids = batch["input_ids"][number % 8].roll(number)
        rows.append({"input_ids": ids, "labels": ids.masked_fill(torch.arange(40) > 3 + 2 * number, -100)})
    arguments = transformers.TrainingArguments(
        sys.argv[1], max_steps=3, per_device_train_batch_size=int(sys.argv[2]), gradient_accumulation_steps=2,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0,
    )
    reweighter = LossReweighter("linear")
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, compute_loss_func=reweighter.compute_loss_func)
    trainer.train()
    if trainer.args.process_index == 0:
        weight = trainer.accelerator.unwrap_model(trainer.model).lm_head.weight
        print(json.dumps([trainer.args.world_size, *weight.flatten()[::7].tolist()]))
"""


@pytest.mark.parametrize("start", [two_processes, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_two_processes_in_the_trainer_are_one_with_twice_the_batch(tmp_path, start):
    """The sequences of a process are longer than the other's, and every step accumulates two batches."""
    one = json.loads(apart(TRAINER, tmp_path, tmp_path, 4).splitlines()[-1])
    two = json.loads(start(TRAINER, tmp_path, tmp_path, 2).splitlines()[-1])
    assert (one[0], two[0]) == (1, 2)
    assert two[1:] == pytest.approx(one[1:], abs=1e-5)


def test_a_batch_without_labels_is_refused_and_the_model_stays():
    model = nn.Linear(2, 3)
    before = model.weight.detach().clone()
    data = [(torch.ones(2), torch.tensor(-100))] * 4
    with pytest.raises(CalibrationError, match="the batch of step 1: found no label that counts"):
        loss_reweighting(model, data, batch_size=2)
    assert torch.equal(model.weight, before)


def test_the_command_names_labels_of_a_regression():
    with pytest.raises(ShapeError, match="torch.float32 of shape"):
        loss_reweighting(nn.Linear(4, 2), [(torch.randn(4), torch.randn(2)) for _ in range(4)])
