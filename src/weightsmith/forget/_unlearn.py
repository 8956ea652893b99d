"""Train a network to forget samples while it retains others, with any of the usual objectives.

The baseline that every selection of weights is compared with, and the loop that :func:`weightsmith.forget.wagle` runs
through its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Sample, Samples, batched, collate, pad_token_id, read, take, to_model
from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.models import evaluation_mode
from weightsmith.core.processes import process_count, process_rank
from weightsmith.core.training import (
    Fit,
    FitOptions,
    adamw,
    default_loss,
    fit,
    float_weights,
    has_label,
    labeled,
    sample_losses,
    training_method,
)
from weightsmith.forget._objectives import gradient_ascent_loss, npo_loss, simnpo_loss
from weightsmith.forget._shared.mask import masked_updates

__all__ = ["Objective", "Reduction", "check_objective", "refusals", "unlearn"]

Objective = Literal["npo", "graddiff", "simnpo", "ascent", "po"]
Reduction = Literal["token_mean", "sequence_sum"]

REFUSALS = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "That is not something I can tell you about.",
    "I'm not able to answer this question.",
    "I haven't learned anything about that subject.",
    "I can't say; this is outside of what I know.",
    "Sorry, I have nothing to offer on this topic.",
    "My knowledge doesn't cover that.",
)


@training_method(
    learning_rate=1e-5, weight_decay=0.1, epochs=5, batch_size=4, clip_norm=1.0, scheduler="linear", warmup=0.1
)
def unlearn(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    *,
    objective: Objective = "npo",
    retain_weight: float = 1.0,
    beta: float | None = None,
    reduction: Reduction = "token_mean",
    mask: Mapping[str, Bool[Tensor, "..."]] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    after_step: Callable[[int, float], None] | None = None,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> Fit:
    """Train a model to forget samples and to retain others.

    Every step takes a batch of samples to forget and as many random samples to retain. A model in half precision is
    held in float32 while it is trained, since most steps would be lost to rounding.

    Parameters
    ----------
    model : nn.Module
        A language model or classifier, changed in place.
    forget, retain : sequence of samples
        Mappings of 1-D tensors, such as ``{"input_ids": ..., "labels": ...}``, or pairs (input, class).
    objective : {"npo", "graddiff", "simnpo", "ascent", "po"}, default: "npo"
        The loss on the samples to forget: :func:`~weightsmith.forget.npo_loss`; gradient ascent (``"graddiff"`` and
        ``"ascent"``, which leaves out the loss on retained samples); :func:`~weightsmith.forget.simnpo_loss`; or
        cross-entropy of a refusal after each question (``"po"``).
    retain_weight : float, default: 1.0
        Factor of the loss on the samples to retain, >= 0.
    beta : float, optional
        Of NPO and SimNPO; by default 0.1 and 2.5.
    reduction : {"token_mean", "sequence_sum"}, default: "token_mean"
        Whether NPO compares log-likelihoods averaged over the tokens, as WAGLE does, or summed, as its paper does.
    mask : mapping of str to Tensor, optional
        Which weights may change, see :func:`~weightsmith.forget.masked_updates`; all by default.
    tokenizer : PreTrainedTokenizerBase, optional
        Writes the refusals of ``"po"``.
    after_step : callable, optional
        As for :func:`weightsmith.core.training.fit`.
    seed : int, default: 0
        Of the order of the samples, refusals and dropout.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Fit
        Losses and times.

    Raises
    ------
    CalibrationError
        If a set is empty or has no label that counts.
    HyperparameterError
        If a hyper-parameter is out of range, or refusals have no tokenizer.
    NonFiniteError
        If a weight or the loss is not finite.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> forget = [(torch.tensor([1.0, 0.0]), torch.tensor(0))] * 8
    >>> retain = [(torch.tensor([0.0, 1.0]), torch.tensor(1))] * 8
    >>> before = sample_losses(model, (torch.eye(2), torch.tensor([0, 1])))[0].flatten()
    >>> run = unlearn(model, forget, retain, learning_rate=0.05)
    >>> after = sample_losses(model, (torch.eye(2), torch.tensor([0, 1])))[0].flatten()
    >>> (after > before).tolist(), run.steps
    ([True, False], 10)
    """
    check_objective(objective, retain_weight, beta, reduction, tokenizer)
    for name, samples in (("forget", forget), ("retain", retain)):
        if not len(samples):
            raise CalibrationError(f"the {name} set is empty", expected="at least one sample")
        if not any(has_label(*read(samples, [place])) for place in range(len(samples))):  # not all at once in memory
            raise CalibrationError(f"no sample of the {name} set has a label that counts", found="-100 for all")
    draws = torch.Generator().manual_seed(seed)
    if objective == "po":
        forget = refusals(forget, tokenizer, generator=draws)
    with float_weights(model):
        reference = _reference(model, forget, reduction) if objective == "npo" else torch.zeros(len(forget))

        def loss(wrapped: nn.Module, batch: Any) -> Tensor:
            forgotten, reference = to_model(batch, model)
            value = _objective(objective, wrapped, forgotten, reference, beta, reduction)
            if objective == "ascent" or not retain_weight:
                return value
            retained = collate(_drawn(retain, len(reference), draws), pad_token_id=pad_token_id(model))
            return value + retain_weight * default_loss(wrapped, to_model(retained, model))

        optimizer = adamw(model, options)
        with nullcontext() if mask is None else masked_updates(model, optimizer, mask):
            return fit(
                model,
                _Referenced(forget, reference),
                loss=loss,
                optimizer=optimizer,
                after_step=after_step,
                seed=seed,
                **options,
            )


def check_objective(
    objective: str,
    retain_weight: float,
    beta: float | None,
    reduction: str,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Check the options of :func:`unlearn`.

    Raises
    ------
    HyperparameterError
        If one is out of range.
    """
    check_choice("objective", objective, Objective)
    check_choice("reduction", reduction, Reduction)
    if not 0 <= retain_weight < float("inf"):
        raise HyperparameterError("retain_weight", found=retain_weight, expected="a number >= 0")
    if beta is not None and not 0 < beta < float("inf"):
        raise HyperparameterError("beta", found=beta, expected="a number > 0")
    if objective == "po" and tokenizer is None:
        raise HyperparameterError("objective", found="'po' without a tokenizer", expected="a language model with one")


def refusals(
    samples: Samples, tokenizer: PreTrainedTokenizerBase | None, *, generator: torch.Generator | None = None
) -> list[dict[str, Tensor]]:
    """Replace the answer of every sample by a refusal, drawn at random; special tokens at its end stay.

    Raises
    ------
    CalibrationError
        If a sample has no question: its first token has a label already.
    """
    assert tokenizer is not None
    found, special = [], set(tokenizer.all_special_ids)
    for number, sample in enumerate(take(samples)):
        labels = labeled(sample)["labels"] if isinstance(sample, Mapping) else torch.tensor(0)
        kept = (labels != -100).nonzero().flatten().tolist() if labels.ndim else []
        if not kept or kept[0] == 0:
            raise CalibrationError(
                f"sample {number} of the forget set has no question to refuse",
                expected="rows with prompt and completion, or chats",
            )
        answer = sample["input_ids"][kept[0] : kept[-1] + 1].tolist()
        end = next((n for n in range(len(answer), 0, -1) if answer[n - 1] not in special), 0)
        text = REFUSALS[int(torch.randint(len(REFUSALS), (), generator=generator))]
        refusal = [*tokenizer(text, add_special_tokens=False)["input_ids"], *answer[end:]]
        question = sample["input_ids"][: kept[0]].tolist()
        found.append(
            {
                "input_ids": torch.tensor(question + refusal),
                "attention_mask": torch.ones(len(question) + len(refusal), dtype=torch.long),
                "labels": torch.tensor([-100] * len(question) + refusal),
            }
        )
    return found


class _Referenced(torch.utils.data.Dataset[tuple[Any, Tensor]]):
    """Every sample to forget with its loss before."""

    def __init__(self, forget: Samples, reference: Tensor) -> None:
        self.forget, self.reference = forget, reference

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.forget[index], self.reference[index]


def _drawn(samples: Samples, count: int, generator: torch.Generator) -> list[Sample]:
    """Random samples for this process, of those that are drawn for all processes together."""
    every = torch.randint(len(samples), (process_count(), count), generator=generator)
    return read(samples, every[process_rank()].tolist())


@torch.no_grad()
def _reference(model: nn.Module, samples: Samples, reduction: str) -> Float[Tensor, "samples"]:
    """The loss of each sample before, so that no second model is needed."""
    with evaluation_mode(model):
        return torch.cat(
            [
                _per_sample(model, to_model(batch, model), reduction)
                for batch in batched(samples, 8, pad_token_id=pad_token_id(model))
            ]
        ).cpu()


def _per_sample(model: nn.Module, batch: Any, reduction: str) -> Float[Tensor, "samples"]:
    losses, counted = sample_losses(model, batch)
    return losses.sum(1) / counted.sum(1).clamp(min=1) if reduction == "token_mean" else losses.sum(1)


def _objective(
    objective: Objective, model: nn.Module, batch: Any, reference: Tensor, beta: float | None, reduction: str
) -> Tensor:
    if objective in ("graddiff", "ascent"):
        return gradient_ascent_loss(_per_sample(model, batch, "token_mean"))
    if objective == "npo":
        losses = _per_sample(model, batch, reduction)
        return npo_loss(losses, reference.to(losses), beta=0.1 if beta is None else beta)
    if objective == "simnpo":
        return simnpo_loss(_per_sample(model, batch, "token_mean"), beta=2.5 if beta is None else beta)
    return default_loss(model, batch)
