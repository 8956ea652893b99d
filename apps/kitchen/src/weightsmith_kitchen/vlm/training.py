"""Training of the vision-language model: what it is trained with, the paper's schedule, and checks of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from weightsmith.core.training import Fit, FitOptions, fit
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.vlm.parts import PLACEHOLDER, Prefixed

__all__ = ["DEFAULTS", "paper_learning_rate", "parameter_groups", "train"]

DEFAULTS: FitOptions = {
    # The paper's rate, 1e-5, is for 7,000 steps from a projector that was trained before; ours starts from nothing.
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "epochs": 8,
    "batch_size": 16,
    "scheduler": "cosine",
    "warmup": 0.1,
    "clip_norm": 1.0,
}
"""Training options that differ from those of :class:`weightsmith.core.training.FitOptions`."""


def paper_learning_rate(step: int) -> float:
    """The learning rate of the reference code at an optimizer step, for runs that have to be like it.

    It rises linearly from 1e-6 to 1e-5 over 1,000 steps. After that it is a cosine from 1e-5 to 1e-6 over 7,000 steps
    that counts the steps of the warm-up as well: the rate falls from 1e-5 to 9.55e-6 at once when the warm-up ends.

    Examples
    --------
    >>> [f"{paper_learning_rate(step):.7g}" for step in (0, 999, 1000, 3500, 6999)]
    ['1e-06', '9.991e-06', '9.55436e-06', '5.5e-06', '1e-06']
    """
    if step < 1000:
        return 1e-6 + 9e-6 * step / 1000
    return 1e-6 + 9e-6 * 0.5 * (1 + math.cos(math.pi * min(step, 7000) / 7000))


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, lm_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices with weight decay, biases and norms without.

    Parameters
    ----------
    model : nn.Module
        Parameters below ``lm`` are those of the language model, its LoRA included.
    weight_decay : float
        Of the matrices.
    learning_rate : float
        Of all parameters, or of those outside the language model.
    lm_learning_rate : float, optional
        Of those of the language model.

    Examples
    --------
    >>> [(len(group["params"]), group["weight_decay"]) for group in parameter_groups(nn.Linear(2, 2), 0.05, 1e-3)]
    [(1, 0.05), (1, 0.0)]
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = lm_learning_rate if name.startswith("lm.") and lm_learning_rate is not None else learning_rate
            groups.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def train(
    model: Prefixed,
    tokens: Tensor,
    answers: Sequence[str],
    *,
    prompts: Sequence[str],
    numbers: Sequence[float] | None,
    lm_learning_rate: float | None,
    schedule: Callable[[int], float] | None,
    after_step: Callable[[int, float], None] | None,
    seed: int,
    **options: Unpack[FitOptions],
) -> Fit:
    """What `VisionPrefixLM.fit` does, once the visual tokens are there."""
    chosen: FitOptions = {**DEFAULTS, **options}
    groups = parameter_groups(model, chosen["weight_decay"], chosen["learning_rate"], lm_learning_rate)
    if not groups:
        raise ModelError("parameters to train", found="none", do="Unfreeze the projector or add LoRA.")
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)

    def follow(step: int, loss: float) -> None:
        if schedule is not None:  # `fit` has set the rate of its own schedule just before
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
        if after_step is not None:
            after_step(step, loss)

    if schedule is not None:
        chosen = {**chosen, "scheduler": "constant", "warmup": 0.0}
        for group in optimizer.param_groups:
            group["lr"] = schedule(0)
    rows = [{"tokens": tokens[place], "row": torch.tensor(place)} for place in range(len(tokens))]
    wanted = None if numbers is None else torch.tensor(list(numbers), dtype=torch.float32)

    def loss(wrapped: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        places = batch["row"].tolist()
        output = wrapped(
            batch["tokens"],
            [prompts[place] for place in places],
            [answers[place] for place in places],
            None if wanted is None else wanted[batch["row"].cpu()],
        )
        found: Tensor = output.loss
        return found

    return fit(
        model,
        rows,
        loss=loss,
        optimizer=optimizer,
        after_step=follow,
        seed=seed,
        **chosen,
    )


def check_rows(model: Prefixed, visual: int, answers: Sequence[str], prompts: Sequence[str]) -> None:
    """Refuse rows that cannot be trained on, all of them at once and before the first step.

    Parameters
    ----------
    model : Prefixed
        Its tokenizer and its longest sequence decide.
    visual : int
        Embeddings of an image.
    answers, prompts : sequence of str
        Of each row.

    Raises
    ------
    ModelError
        If there is no row, or an answer is empty or too long.
    """
    if not answers:
        raise ModelError("training rows", found="none", expected="a photo and an answer for each")
    empty = [place for place, answer in enumerate(answers) if not answer.strip()]
    if empty:
        raise ModelError(f"answers of rows {empty[:10]}", found=f"{len(empty)} empty", expected="a text for each photo")
    asked = {prompt: sum(len(model.token_ids(part)) for part in prompt.split(PLACEHOLDER)) for prompt in set(prompts)}
    ends = 1 + (model.tokenizer.bos_token_id is not None)
    lengths = [
        visual + asked[prompt] + len(model.token_ids(answer)) + ends
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    long = [place for place, length in enumerate(lengths) if length > model.max_length]
    if long:
        raise ModelError(
            f"rows {long[:10]}",
            found=f"{len(long)} of more than {model.max_length} tokens, the longest of {max(lengths)}",
            expected=f"<= {model.max_length}, visual tokens included",
            do="Shorten these answers; cutting them would teach lists that end in the middle.",
        )
