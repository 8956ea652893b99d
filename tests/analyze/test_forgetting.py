import math

import pytest
import torch
import transformers as t
from torch import nn

from models import tiny
from weightsmith.analyze import ForgettingCurve, ForgettingProbe, compare_forgetting, mean_nll
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError
from weightsmith.core.training import fit


def curve(control, target=(7.0, 6.0, 5.0)):
    return ForgettingCurve(list(range(len(target))), list(target), list(control))


def test_control_is_read_off_where_the_target_first_falls_to_the_level():
    noisy = curve([3.0, 3.2, 3.1, 9.0], target=[7.0, 5.0, 6.0, 4.0])
    assert noisy.forgotten(6.0) == pytest.approx(0.1)  # half way to the first pair, not on the way to the last
    assert noisy.forgotten(7.0) == 0.0
    assert noisy.forgotten(4.0) == pytest.approx(6.0)
    assert noisy.forgotten(3.9) is None


def test_arms_are_compared_at_the_lowest_loss_that_all_reached():
    slow = curve([3.0, 3.1, 3.2], target=[7.0, 6.5, 6.0])
    fast = curve([3.0, 3.5, 4.5])
    report = compare_forgetting({"fast": [fast], "slow": [slow]}, method="fast")
    assert report.levels == (6.0,)
    assert report.rises["fast"][0] == pytest.approx(0.5)  # not the 1.5 at its own end
    assert report.saved("slow")[0] == pytest.approx(0.2 - 0.5)
    given = compare_forgetting({"fast": [fast], "slow": [slow]}, method="fast", level=5.5)
    assert given.rises["slow"] == (None,)
    assert math.isnan(given.saved("slow")[0])
    assert "not reached" in list(given.table().columns[1].cells)


def test_interval_is_that_of_the_paired_differences():
    low = [curve([1.0, 1.0, end]) for end in (2.0, 4.0, 6.0)]
    other = [curve([1.0, 1.0, end]) for end in (2.5, 4.6, 6.7)]
    mean, lower, upper = compare_forgetting({"low": low, "other": other}, method="low").saved("other")
    assert mean == pytest.approx(0.6)
    assert upper - mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert mean - lower == pytest.approx(upper - mean)


def test_verdict():
    def arm(*ends):
        return [curve([3.0, 3.1, 3.0 + end]) for end in ends]

    low = arm(0.1, 0.2, 0.1)
    better = compare_forgetting({"low": low, "random": arm(0.5, 0.6, 0.52), "all": arm(0.8, 0.9, 0.8)}, method="low")
    assert better.verdict == "low forgets less than random, all"
    one_fails = compare_forgetting({"low": low, "random": arm(0.5, 0.6, 0.5), "all": arm(0.1, 0.1, 0.2)}, method="low")
    assert one_fails.verdict == "no evidence of reduced forgetting"
    loses = compare_forgetting({"low": arm(0.5, 0.6, 0.52), "random": low}, method="low")
    assert loses.verdict == "no evidence of reduced forgetting: low forgets more than random"
    assert loses.table().caption == loses.verdict
    single = compare_forgetting({"low": arm(0.1), "random": arm(0.9)}, method="low")
    assert single.verdict == "no evidence of reduced forgetting"


def test_comparison_is_refused_where_it_would_say_nothing():
    good = curve([3.0, 3.1, 3.2])
    with pytest.raises(HyperparameterError, match="at least one other"):
        compare_forgetting({"low": [good]}, method="low")
    with pytest.raises(HyperparameterError, match="at most 25%"):
        compare_forgetting({"low": [good], "all": [good]}, method="low", trainable={"low": 100, "all": 74})
    compare_forgetting({"low": [good], "all": [good]}, method="low", trainable={"low": 100, "all": 76})
    with pytest.raises(CalibrationError, match="the same number"):
        compare_forgetting({"low": [good], "all": [good, good]}, method="low")
    stuck = curve([3.0, 3.0, 3.0], target=[7.0, 7.1, 7.2])
    with pytest.raises(CalibrationError, match="'stuck' has learnt least"):
        compare_forgetting({"low": [good], "stuck": [stuck]}, method="low")


@pytest.mark.parametrize("place", ["target", "control"])
def test_losses_that_are_not_finite_are_named(place):
    good, bad = curve([3.0, 3.1, 3.2]), curve([3.0, 3.1, 3.2])
    getattr(bad, place)[1] = math.nan
    with pytest.raises(NonFiniteError, match="losses of 'other', run 1, where it reaches the target loss"):
        compare_forgetting({"low": [good] * 2, "other": [good, bad]}, method="low")
    with pytest.raises(CalibrationError, match="curve of 'other', run 0: found no pair"):
        compare_forgetting({"low": [good], "other": [ForgettingCurve()]}, method="low")
    diverged = curve([3.0, math.nan, math.nan], target=[math.nan] * 3)
    with pytest.raises(CalibrationError, match="'diverged' has learnt least"):
        compare_forgetting({"low": [good], "diverged": [diverged]}, method="low")


def test_mean_nll_shifts_labels_and_counts_tokens():
    model, batch = tiny("llama")
    rows = [{"input_ids": batch["input_ids"][:1, :9]}, {"input_ids": batch["input_ids"][1:4, :30]}]
    total = count = 0
    for row in rows:
        ids = row["input_ids"]
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        total += nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").item()
        count += ids[:, 1:].numel()
    assert count == 8 + 87
    assert mean_nll(model, rows) == pytest.approx(total / count, rel=1e-5)
    labels = rows[1]["input_ids"].clone()
    labels[:, :20] = -100
    logits = model(input_ids=rows[1]["input_ids"]).logits[:, 19:-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, labels[:, 20:].flatten()).item()
    assert mean_nll(model, [{**rows[1], "labels": labels}]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(CalibrationError, match="no token"):
        mean_nll(model, [{"input_ids": torch.ones(3, 1, dtype=torch.long)}])


def losses(batch):
    task, kept = [{"input_ids": batch["input_ids"][:4]}], [{"input_ids": batch["input_ids"][4:7]}]
    return lambda model: mean_nll(model, task), lambda model: mean_nll(model, kept)


def test_probe_in_fit_measures_base_and_training_and_leaves_the_model_training():
    model, batch = tiny("llama")
    target, control = losses(batch)
    base = target(model), control(model)
    probe = ForgettingProbe(model, target, control, every=2)
    modes = []

    def after_step(step, loss):
        probe(step, loss)
        modes.append(model.training)

    samples = [{"input_ids": ids} for ids in batch["input_ids"][:4]]
    fit(model, samples, batch_size=2, epochs=3, learning_rate=1e-2, after_step=after_step)
    assert probe.curve.steps == [0, 2, 4, 6]
    assert (probe.curve.target[0], probe.curve.control[0]) == base
    assert (probe.curve.target[-1], probe.curve.control[-1]) == (target(model), control(model))
    assert probe.curve.target[-1] < probe.curve.target[0] - 0.1
    assert all(modes)
    with pytest.raises(HyperparameterError, match="every"):
        ForgettingProbe(model, target, control, every=0)


def test_probe_in_trainer(tmp_path):
    model, batch = tiny("llama")
    probe = ForgettingProbe(model, *losses(batch), every=2)
    samples = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"][:4]]
    arguments = t.TrainingArguments(
        tmp_path,
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    t.Trainer(model, arguments, train_dataset=samples, callbacks=[probe.callback()]).train()
    assert probe.curve.steps == [0, 2, 4]
    assert probe.curve.target[-1] < probe.curve.target[0]
