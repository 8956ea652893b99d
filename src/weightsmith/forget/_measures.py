"""How much of a set of samples a network still holds: probability, ROUGE-L, truth ratio, membership inference.

Definitions follow TOFU (Maini et al., arXiv 2401.06121) and Min-K% Prob (Shi et al., arXiv 2310.16789). None of them is
"lower is better": what a network should show on forgotten data is what one shows that was never trained on them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.data import Samples, batched, context_length, pad_token_id, take, to_model
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import sample_losses

__all__ = [
    "answer_probabilities",
    "forget_quality",
    "generated_answers",
    "membership_auc",
    "rouge_l",
    "truth_ratios",
]

BATCH_SIZE = 8

_Parts: TypeAlias = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


@torch.no_grad()
def answer_probabilities(model: nn.Module, samples: Samples) -> Float[Tensor, "samples"]:
    """Probability of the labels of each sample, ``exp`` of their mean log-probability.

    For a classifier it is the probability of the class; for a language model the geometric mean over the tokens of the
    answer, so that long answers are comparable with short ones.

    Raises
    ------
    CalibrationError
        If there are no samples, or one has no label but -100.

    Examples
    --------
    >>> answer_probabilities(nn.Identity(), [(torch.zeros(4), torch.tensor(2))])
    tensor([0.2500])
    """
    return torch.exp(-_mean_losses(model, samples))


@torch.no_grad()
def truth_ratios(model: nn.Module, paraphrased: Samples, perturbed: Samples) -> Float[Tensor, "samples"]:
    """Mean probability of wrong answers over the probability of a paraphrase of the right one, per sample.

    The mean is over probabilities, as in TOFU, not over log-probabilities. A network that knows the answer has a ratio
    far below 1; one that never saw it, near 1.

    Parameters
    ----------
    model : nn.Module
        A language model or classifier.
    paraphrased : sequence of samples
        The right answers in other words.
    perturbed : sequence of samples
        Wrong answers: equally many for each paraphrase, in the same order.

    Raises
    ------
    CalibrationError
        If a set is empty, or their sizes do not fit.

    Examples
    --------
    >>> logits = torch.tensor([0.1, 0.5, 0.4]).log()
    >>> right, wrong = [(logits, torch.tensor(1))], [(logits, torch.tensor(n)) for n in (0, 2)]
    >>> truth_ratios(nn.Identity(), right, wrong)
    tensor([0.5000])
    """
    count = len(perturbed) // max(len(paraphrased), 1)
    if not count or count * len(paraphrased) != len(perturbed):
        raise CalibrationError(
            "truth ratio: perturbed answers",
            found=f"{len(perturbed)} for {len(paraphrased)} paraphrased ones",
            expected="the same number, at least one, for each",
        )
    right, wrong = answer_probabilities(model, paraphrased), answer_probabilities(model, perturbed)
    return wrong.view(-1, count).mean(1) / (right + 1e-12)


def forget_quality(candidate: Float[Tensor, "samples"], retrained: Float[Tensor, "others"]) -> float:
    """p-value of a Kolmogorov-Smirnov test that two networks' truth ratios have the same distribution.

    Parameters
    ----------
    candidate, retrained : Tensor of shape (samples,)
        :func:`truth_ratios` on the forgotten data, of the network in question and of one trained without these data.

    Raises
    ------
    CalibrationError
        If there are none of a network.
    HyperparameterError
        If both are the same values: compared with itself, every network is perfect.
    NonFiniteError
        If one is NaN or infinite.

    Examples
    --------
    >>> round(forget_quality(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.8, 0.9, 1.0])), 2)
    0.1
    """
    from scipy.stats import ks_2samp

    for name, ratios in (("candidate", candidate), ("retrained", retrained)):
        if not len(ratios):
            raise CalibrationError(f"truth ratios of {name}", found="none", expected="at least one")
        if not is_finite(ratios):
            raise NonFiniteError(f"truth ratios of {name} hold NaN or infinity")
    if candidate.shape == retrained.shape and torch.equal(candidate, retrained):
        raise HyperparameterError(
            "retrained", found="the truth ratios of the candidate itself", expected="another network's"
        )
    return float(ks_2samp(candidate.double().cpu().numpy(), retrained.double().cpu().numpy()).pvalue)


@torch.no_grad()
def membership_auc(model: nn.Module, members: Samples, others: Samples, *, share: float = 0.5) -> float:
    """Area under the ROC curve of telling members from samples never seen, by the least likely of their tokens.

    The score of a sample is the mean of the lowest ``share`` of its labels' log-probabilities (Min-K% Prob). 0.5 means
    that nothing tells them apart; a value far below says that the members were made less likely than unseen samples,
    which gives them away as well.

    Parameters
    ----------
    model : nn.Module
        A language model or classifier.
    members, others : sequence of samples
        What it was trained on, and what it never saw.
    share : float, default: 0.5
        In (0, 1].

    Raises
    ------
    CalibrationError
        If a sample has no label but -100.
    HyperparameterError
        If ``share`` is out of range.
    NonFiniteError
        If the outputs of the model are NaN or infinite.

    Examples
    --------
    >>> known, unknown = torch.tensor([9.0, 0.0]), torch.zeros(2)
    >>> membership_auc(nn.Identity(), [(known, torch.tensor(0))], [(unknown, torch.tensor(0))])
    1.0
    """
    if not 0 < share <= 1:
        raise HyperparameterError("share", found=share, expected="0 < share <= 1")
    ours, theirs = (-_lowest(model, samples, share) for samples in (members, others))
    if not (is_finite(ours) and is_finite(theirs)):
        raise NonFiniteError(
            "the log-probabilities of labels hold NaN or infinity", do="Check the data and the weights."
        )
    above = (ours[:, None] > theirs[None]).double() + 0.5 * (ours[:, None] == theirs[None]).double()
    return float(above.mean())


def rouge_l(answer: Sequence[Any], reference: Sequence[Any]) -> float:
    """ROUGE-L recall: the longest common subsequence over the length of the reference.

    Parameters
    ----------
    answer, reference : sequence
        Words or token ids. Of a text, the lowercase words of letters and digits.

    Examples
    --------
    >>> rouge_l("born in Rome", "She was born in Rome.")
    0.6
    """
    ours, theirs = (
        re.findall(r"[^\W_]+", each.lower()) if isinstance(each, str) else list(each) for each in (answer, reference)
    )
    if not theirs:
        return 0.0
    row = [0] * (len(ours) + 1)
    for word in theirs:
        diagonal = 0
        for place, other in enumerate(ours, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1] / len(theirs)


@torch.no_grad()
def generated_answers(model: Any, samples: Samples) -> list[tuple[list[int], list[int], list[int]]]:
    """Let a causal language model answer the prompts of samples, greedily.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face model with ``generate``.
    samples : sequence of samples
        Mappings with ``input_ids`` and ``labels``: the prompt is what comes before the first label; of a text that is
        its own label, the first half.

    Returns
    -------
    list of tuple
        Per sample the token ids of the prompt, of the model's answer and of the reference. The answer is at most as
        long as the reference.

    Raises
    ------
    CalibrationError
        If a sample has no prompt or no answer, or is longer than the context of the model.
    """
    parts = [_prompt_and_answer(sample) for sample in take(samples)]
    if empty := [number for number, (prompt, answer) in enumerate(parts) if not prompt or not answer]:
        raise CalibrationError(
            f"sample {empty[0]} has nothing to write", found="one token", expected="a prompt and an answer"
        )
    context = context_length(model) or sys.maxsize
    if long := [number for number, (prompt, answer) in enumerate(parts) if len(prompt) + len(answer) > context]:
        raise CalibrationError(
            f"sample {long[0]}",
            found=f"{sum(map(len, parts[long[0]]))} tokens",
            expected=f"at most {context}, the context of the model",
            do="Shorten it.",
        )
    pad = pad_token_id(model)
    found = []
    with evaluation_mode(model):
        for group in _groups(parts, context):
            width, longest = _window(group)
            rows = [[pad] * (width - len(prompt)) + prompt for prompt, _ in group]
            masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in group]
            device = next(model.parameters()).device
            output = model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                max_new_tokens=longest,
                do_sample=False,
                pad_token_id=pad,
            )[:, width:].tolist()
            found += [(p, answer[: len(r)], r) for (p, r), answer in zip(group, output, strict=True)]
    return found


def _groups(parts: list[_Parts], context: int) -> list[list[_Parts]]:
    """Batches in order: the longest prompt of one and its longest answer fit the context together."""
    groups: list[list[_Parts]] = []
    for part in parts:
        if groups and len(groups[-1]) < BATCH_SIZE and sum(_window([*groups[-1], part])) <= context:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _window(group: list[_Parts]) -> tuple[int, int]:
    return max(len(prompt) for prompt, _ in group), max(len(answer) for _, answer in group)


def _prompt_and_answer(sample: Mapping[str, Tensor]) -> _Parts:
    real = sample["attention_mask"].bool() if "attention_mask" in sample else slice(None)
    ids = sample["input_ids"][real].tolist()
    labels = sample["labels"][real].tolist() if "labels" in sample else ids
    places = [place for place, label in enumerate(labels) if label != -100]
    first, last = (places[0], places[-1] + 1) if places else (0, len(ids))
    first = first or (last + 1) // 2  # running text
    return ids[:first], ids[first:last]


def _losses(model: nn.Module, samples: Samples) -> list[tuple[Tensor, Tensor]]:
    with evaluation_mode(model):
        found = [
            sample_losses(model, to_model(batch, model))
            for batch in batched(samples, BATCH_SIZE, pad_token_id=pad_token_id(model))
        ]
    if empty := [n for n, row in enumerate(row for _, counted in found for row in counted) if not row.any()]:
        raise CalibrationError(
            f"sample {empty[0]}",
            found="no label that counts",
            expected="at least one that is not -100",
            do="Leave it out." if len(empty) == 1 else f"Leave out the {len(empty)} samples without labels.",
        )
    return found


def _mean_losses(model: nn.Module, samples: Samples) -> Tensor:
    return torch.cat([losses.sum(1) / counted.sum(1) for losses, counted in _losses(model, samples)]).cpu()


def _lowest(model: nn.Module, samples: Samples, share: float) -> Tensor:
    means = []
    for losses, counted in _losses(model, samples):
        for row, kept in zip(losses, counted, strict=True):
            worst = row[kept].sort(descending=True).values
            means.append(worst[: max(1, round(share * len(worst)))].mean())
    return torch.stack(means).cpu()
