"""Measures of forgetting: definitions worked by hand, and refusals where a number would mean nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError
from weightsmith.forget import (
    answer_probabilities,
    forget_quality,
    generated_answers,
    membership_auc,
    rouge_l,
    truth_ratios,
)
from weightsmith.testing import samples, tiny


def known(probabilities, label):
    return torch.tensor(probabilities).log(), torch.tensor(label)


def test_probability_is_the_geometric_mean_over_the_answer():
    class Table(nn.Module):
        def forward(self, input_ids, **_):
            return torch.tensor([[0.5, 0.25, 0.25]]).log().expand(*input_ids.shape, 3)

    ids, labels = torch.tensor([1, 0, 2]), torch.tensor([-100, 0, 2])
    (found,) = answer_probabilities(Table(), [{"input_ids": ids, "labels": labels}])
    assert found.item() == pytest.approx(math.sqrt(0.5 * 0.25))


def test_truth_ratio_averages_probabilities():
    ratio = truth_ratios(
        nn.Identity(), [known([0.1, 0.5, 0.4], 1)], [known([0.1, 0.5, 0.4], 0), known([0.4, 0.5, 0.1], 0)]
    )
    assert ratio.item() == pytest.approx(0.5)  # over log-probabilities it would be 0.4


def test_check_6_equal_probabilities_have_ratio_1():
    data = [known([0.25, 0.25, 0.5], n) for n in (0, 1)]
    torch.testing.assert_close(truth_ratios(nn.Identity(), data, data), torch.ones(2))


@pytest.mark.parametrize(("right", "wrong"), [(0, 2), (2, 0), (2, 3)])
def test_truth_ratio_without_its_answers_is_refused(right, wrong):
    data = [known([0.5, 0.5], 0)] * 3
    with pytest.raises(CalibrationError, match="truth ratio: perturbed answers"):
        truth_ratios(nn.Identity(), data[:right], data[:wrong])


def test_forget_quality_needs_another_network():
    ratios = torch.rand(20)
    with pytest.raises(HyperparameterError, match="the candidate itself"):
        forget_quality(ratios, ratios.clone())
    assert forget_quality(ratios, ratios.flip(0)) == 1.0
    assert forget_quality(ratios, ratios + 10) < 1e-6


def test_membership_of_identical_sets_is_a_half():
    data = samples("mlp")
    assert membership_auc(tiny("mlp")[0], data, data) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("answer", "reference", "recall"),
    [
        ("a b c d", "a c d e", 0.75),
        ("", "a", 0.0),
        ("Rome!", "rome", 1.0),
        ([1, 2, 3], [3, 1, 2], 2 / 3),
        ("a", "", 0.0),
    ],
)
def test_rouge_l(answer, reference, recall):
    assert rouge_l(answer, reference) == pytest.approx(recall)


def test_generated_answers_continue_the_prompt_alone():
    model, data = tiny("llama")[0], samples("llama")[:3]
    rows = [
        {**row, "labels": torch.where(torch.arange(12) < 4 + n, -100, row["input_ids"])} for n, row in enumerate(data)
    ]
    found = generated_answers(model, rows)
    for (prompt, answer, reference), row, n in zip(found, rows, range(3), strict=True):
        assert prompt == row["input_ids"][: 4 + n].tolist()
        assert reference == row["input_ids"][4 + n :].tolist()
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=len(reference), do_sample=False, pad_token_id=0)
        assert answer == alone[0, len(prompt) :].tolist()[: len(answer)]


@pytest.mark.parametrize("measure", [answer_probabilities, lambda model, data: membership_auc(model, data, data)])
def test_samples_without_labels_are_refused_by_number(measure):
    ignored = torch.tensor(-100)
    data = [(torch.zeros(4), torch.tensor(2)), (torch.zeros(4), ignored), (torch.zeros(4), ignored)]
    with pytest.raises(CalibrationError, match=r"sample 1: found no label .* the 2 samples"):
        measure(nn.Identity(), data)


def gpt2(context=16):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=context, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def prompted(prompt, answer, padding=0):
    ids = [2] * padding + [*range(5, 5 + prompt + answer)]
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor([-100] * (padding + prompt) + ids[padding + prompt :]),
        "attention_mask": torch.tensor([0] * padding + [1] * (prompt + answer)),
    }


def test_samples_that_fit_the_context_one_by_one_are_answered_as_one_by_one():
    model, data = gpt2(), [prompted(13, 2), prompted(2, 13), prompted(6, 5)]
    found = generated_answers(model, data)
    assert found == [generated_answers(model, [each])[0] for each in data]
    assert [(len(prompt), len(reference)) for prompt, _, reference in found] == [(13, 2), (2, 13), (6, 5)]


def test_a_sample_longer_than_the_context_is_refused():
    with pytest.raises(CalibrationError, match="sample 1: found 17 tokens, expected at most 16"):
        generated_answers(gpt2(), [prompted(2, 3), prompted(8, 9)])


def test_padding_on_the_left_is_no_part_of_the_prompt():
    model = gpt2()
    assert generated_answers(model, [prompted(5, 4, 3)]) == generated_answers(model, [prompted(5, 4)])
    text = {name: value for name, value in prompted(0, 6, 3).items() if name != "labels"}
    ((prompt, _, reference),) = generated_answers(model, [text])
    assert (prompt, reference) == ([5, 6, 7], [8, 9, 10])


def test_a_prompt_of_one_token_is_a_prompt():
    ((prompt, _, reference),) = generated_answers(gpt2(), [prompted(1, 4)])
    assert (prompt, reference) == ([5], [6, 7, 8, 9])


def test_measures_of_numbers_that_are_not_finite_are_refused():
    data, broken = [(torch.ones(4), torch.tensor(0))], nn.Linear(4, 2)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="log-probabilities"):
        membership_auc(broken, data, data)
    with pytest.raises(NonFiniteError, match="truth ratios of candidate"):
        forget_quality(torch.tensor([0.5, float("nan")]), torch.rand(5))
    with pytest.raises(CalibrationError, match="truth ratios of retrained: found none"):
        forget_quality(torch.rand(5), torch.empty(0))


def test_forget_quality_of_bf16_ratios():
    ours, theirs = torch.tensor([0.125, 0.25, 0.375]), torch.tensor([0.75, 0.875, 1.0])
    assert forget_quality(ours.bfloat16(), theirs.bfloat16()) == forget_quality(ours, theirs)
