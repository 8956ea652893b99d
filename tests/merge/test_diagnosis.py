"""Transitions, calibration, confidence, ensembles of outputs, and the vote model's numbers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, strategies as st

from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.merge import (
    calibration_error,
    confidence,
    confidence_ratio,
    diagnose,
    fit_temperature,
    output_ensemble,
    transitions,
    vote_accuracy,
)
from weightsmith.merge._shared.votes import output_signal, single_signal, weight_signal


def draw(seed, rows=200, classes=4):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(3, rows, classes, generator=draws), torch.randint(classes, (rows,), generator=draws)


@given(st.integers(0, 1000))
def test_transitions_add_up_and_explain_the_gain(seed):
    logits, labels = draw(seed)
    moves = transitions(*logits, labels)
    pre, tuned, averaged = ((x.argmax(1) == labels).double().mean().item() for x in logits)
    assert sum(moves.values()) == pytest.approx(1, abs=1e-12)
    gain = moves["TFT"] + moves["FFT"] - moves["TTF"] - moves["FTF"]
    assert averaged - tuned == pytest.approx(gain, abs=1e-12)
    gain = moves["FTT"] + moves["FFT"] - moves["TTF"] - moves["TFF"]
    assert averaged - pre == pytest.approx(gain, abs=1e-12)


def test_transitions_name_the_networks_in_order():
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for letters in product("TF", repeat=3):
        logits = [right if letter == "T" else wrong for letter in letters]
        assert transitions(*logits, torch.tensor([0]))["".join(letters)] == 1.0


def test_calibration_error_against_its_definition():
    logits, labels = draw(0, 3000)
    sure, choice = logits[0].double().softmax(1).max(1)
    expected = 0.0
    for index in range(15):
        inside = (sure > index / 15) & (sure <= (index + 1) / 15)
        if inside.any():
            gap = (choice == labels)[inside].double().mean() - sure[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert calibration_error(logits[0], labels) == pytest.approx(expected, abs=1e-12)
    exact = logits[0].softmax(1).multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert calibration_error(logits[0], exact) < 0.04 < calibration_error(5 * logits[0], exact)


def test_confidence():
    logits = draw(0)[0][0]
    assert confidence(logits).probability == pytest.approx(logits.softmax(1).amax(1).mean().item())
    assert confidence(logits + 7).spread == pytest.approx(confidence(logits).spread, rel=1e-5)
    assert confidence_ratio(logits, 2.5 * logits) == pytest.approx(2.5, rel=1e-5)
    assert confidence_ratio(torch.zeros(1, 2), logits[:, :2]) == float("inf")


def test_ensembles_of_outputs():
    pre, tuned = draw(1)[0][:2]
    both = output_ensemble(pre, tuned)
    torch.testing.assert_close(both["probabilities"].exp(), (pre.softmax(1) + tuned.softmax(1)) / 2)
    torch.testing.assert_close(both["logits"], (pre + tuned) / 2)
    with pytest.raises(ShapeError):
        output_ensemble(pre, tuned[:, :2])


def test_diagnosis():
    logits, labels = draw(2)
    found = diagnose(*logits, labels)
    moves = transitions(*logits, labels)
    assert (found["repaired_FFT"], found["broken_TTF"]) == (moves["FFT"], moves["TTF"])
    assert found["accuracy_averaged"] == pytest.approx((logits[2].argmax(1) == labels).double().mean().item())
    assert found["calibration_error_tuned"] == calibration_error(logits[1], labels)
    with pytest.raises(CalibrationError):
        diagnose(*(x[:0] for x in logits), labels[:0])
    with pytest.raises(ShapeError, match="200, classes"):
        transitions(logits[0][:9], *logits[1:], labels)
    with pytest.raises(ShapeError, match="at least 1"):
        confidence(torch.zeros(0, 2))


@pytest.mark.parametrize(
    ("p", "one", "two"),
    [
        (0.5, 0.976852, 0.998864),
        (0.7, 0.936481, 0.993107),
        (0.9, 0.865000, 0.973027),
        (1.0, 0.814815, 0.951989),
    ],
)
def test_exact_votes(p, one, two):
    assert vote_accuracy(p) == pytest.approx(one, abs=5e-7)
    assert vote_accuracy(p) == pytest.approx(1 - 5 * p**3 / 27, abs=1e-12)
    assert vote_accuracy(p, networks=2) == pytest.approx(two, abs=5e-7)
    assert vote_accuracy(p, networks=2) == pytest.approx(1 - 2 * p**5 / 81 - 17 * p**6 / 729, abs=1e-12)


@pytest.mark.parametrize(
    ("scale", "accuracy"), [(1, 0.97303), (2, 0.96647), (5**0.5, 0.95990), (3, 0.95310), (5, 0.93679), (10, 0.93506)]
)
def test_a_louder_network_eats_the_gain(scale, accuracy):
    assert vote_accuracy(0.9, networks=2, scale=scale) == pytest.approx(accuracy, abs=5e-6)


def test_votes_by_counting_all_cases():
    p, right = 0.6, 0.0
    for votes in product(range(4), repeat=2):  # 3 is: not replaced, so for the true class
        chance, score = 1.0, [1, 0, 0]
        for vote in votes:
            chance *= (1 - p) if vote == 3 else p / 3
            score[0 if vote == 3 else vote] += 1
        right += chance * (score[0] == max(score)) / score.count(max(score))
    assert vote_accuracy(p, invariant=1, spurious=2) == pytest.approx(right, abs=1e-12)
    for bad in ({"p": 1.1}, {"p": 0.5, "networks": 3}, {"p": 0.5, "classes": 1}):
        with pytest.raises(HyperparameterError):
            vote_accuracy(**bad)


@given(st.floats(0, 1), st.integers(1, 20), st.integers(1, 20))
def test_signals(p, invariant, spurious):
    alone = single_signal(p, invariant=invariant, spurious=spurious)
    equal = {"invariant": (invariant, invariant), "spurious": (spurious, spurious)}
    assert output_signal(p, **equal) == pytest.approx(2**0.5 * alone)
    assert weight_signal(p, **equal) == pytest.approx(2**0.5 * alone)
    # a network averaged with itself is itself
    shared = {**equal, "shared_spurious": spurious}
    assert output_signal(p, **shared) == pytest.approx(alone)
    assert weight_signal(p, **shared, shared_invariant=invariant) == pytest.approx(alone)


def test_ignored_labels_do_not_count():
    logits, labels = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4
    some = labels.clone()
    some[:10] = -100
    assert calibration_error(logits, some) == calibration_error(logits[10:], labels[10:])
    assert fit_temperature(logits, some) == fit_temperature(logits[10:], labels[10:])
    assert transitions(logits, logits, logits, some) == transitions(*[logits[10:]] * 3, labels[10:])
    three = (logits, logits.flip(1), logits.roll(1, 1))
    assert diagnose(*three, some) == diagnose(*(each[10:] for each in three), labels[10:])
    for measure in (calibration_error, fit_temperature):
        with pytest.raises(CalibrationError, match="no labeled samples"):
            measure(logits, torch.full((30,), -100))
    with pytest.raises(HyperparameterError, match="class indices from 0 to 3"):
        fit_temperature(logits, labels + 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad):
    logits, labels = draw(3)
    broken = logits[0].clone()
    broken[5, 1] = bad
    for measure in (calibration_error, fit_temperature):
        with pytest.raises(NonFiniteError, match="the logits hold NaN or infinity"):
            measure(broken, labels)
        assert measure(broken, labels.index_fill(0, torch.tensor([5]), -100)) > 0, "it does not count"
    with pytest.raises(NonFiniteError):
        diagnose(logits[1], broken, logits[2], labels)
    with pytest.raises(NonFiniteError):
        fit_temperature(logits[0].index_fill(0, torch.tensor([5]), -float("inf")), labels)


def test_probabilities_of_zero_are_diagnosed():
    right = torch.tensor([[400.0, 0.0]])
    assert output_ensemble(right, right)["probabilities"].tolist() == [[0.0, -float("inf")]]
    assert diagnose(right, right, right, torch.tensor([0]))["calibration_error_ensemble_of_probabilities"] == 0
