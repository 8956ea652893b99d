"""Measures of a model: perplexity, accuracy, decode speed, size. The same functions before and after each step."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.data import (
    IGNORED,
    Batch,
    call,
    context_length,
    is_regression,
    render_chat,
    split_labels,
    to_model,
)
from weightsmith.core.errors import CalibrationError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import evaluation_mode
from weightsmith.core.processes import plain_model
from weightsmith.core.training import logits_of, shift_for_causal_lm

__all__ = [
    "accuracy",
    "decode_speed",
    "decode_speeds",
    "label_accuracy",
    "mean_absolute_error",
    "measure",
    "perplexity",
    "sample_text",
    "size",
]


@torch.no_grad()
def perplexity(model: nn.Module, ids: Int[Tensor, "tokens"], *, window: int = 512, stride: int | None = None) -> float:
    """Perplexity of a causal language model on a token stream.

    Windows of ``window`` tokens start every ``stride`` tokens; only the tokens that a window adds to earlier ones are
    scored, each with all earlier tokens of its window as context. ``stride = window`` gives the usual disjoint
    windows, whose first token is not scored.

    Parameters
    ----------
    model : nn.Module
        Its output has logits ``[1, tokens, vocabulary]``, see :func:`weightsmith.core.training.logits_of`.
    ids : Tensor of shape (tokens,)
        At least two tokens.
    window, stride : int
        In tokens; ``stride`` defaults to ``window``.

    Returns
    -------
    float
        exp(mean negative log-likelihood a token).

    Raises
    ------
    CalibrationError
        If there are fewer than two tokens, or ``stride`` is not in 1..window.
    NonFiniteError
        If the model's logits hold NaN.

    Examples
    --------
    >>> uniform = nn.Embedding.from_pretrained(torch.zeros(50, 50))
    >>> round(perplexity(uniform, torch.arange(20), window=8), 3)
    50.0
    """
    stride = window if stride is None else stride
    if len(ids) < 2 or not 1 <= stride <= window or window < 2:
        raise CalibrationError(
            "perplexity",
            found=f"{len(ids)} tokens, window {window}, stride {stride}",
            expected=">= 2 tokens, 1 <= stride <= window",
        )
    device = next(model.parameters()).device
    loss, count, scored_until = 0.0, 0, 1
    with evaluation_mode(model):
        for start in range(0, len(ids) - 1, stride):
            chunk = ids[start : start + window].to(device)
            first_new = max(scored_until - start, 1)
            logits = logits_of(call(model, chunk.unsqueeze(0)))[0, first_new - 1 : -1].float()
            loss += functional.cross_entropy(logits, chunk[first_new:], reduction="sum").item()
            count += len(chunk) - first_new
            scored_until = start + len(chunk)
            if scored_until == len(ids):
                break
    if math.isnan(loss):
        raise NonFiniteError("the model's logits hold NaN", do="Check its weights; half precision may overflow.")
    return math.exp(min(loss / count, 700.0))


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of inputs whose largest logit is their class; ``batches`` yield (inputs, class indices).

    Or they yield mappings with ``labels``. Labels of -100 do not count. The logits of a causal language model are those
    of the next token, see :func:`~weightsmith.core.training.shift_for_causal_lm`.

    Raises
    ------
    CalibrationError
        If no input has a label.
    NonFiniteError
        If a largest logit is NaN or infinite; classes at minus infinity take no part.
    ShapeError
        If there is not one label for each row of logits, or only one logit a row.

    Examples
    --------
    >>> accuracy(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
    0.75
    """
    right = total = 0
    with evaluation_mode(model):
        for inputs, labels in map(split_labels, batches):
            logits = logits_of(call(model, to_model(inputs, model)))
            logits, labels = shift_for_causal_lm(model, logits, labels.to(logits.device))
            if labels.shape != logits.shape[:-1]:
                raise ShapeError(
                    "labels",
                    found=tuple(labels.shape),
                    expected=f"{tuple(logits.shape[:-1])}, one for each row of logits",
                    do="Give every sample the label that this model predicts.",
                )
            if logits.shape[-1] < 2:
                raise ShapeError(
                    "logits of one class",
                    found=tuple(logits.shape),
                    expected="two classes or more",
                    do="The targets of a regression are real numbers.",
                )
            kept = labels != IGNORED
            best = logits.max(-1)  # a logit of minus infinity takes no part
            _finite(best.values[kept])
            right += int((best.indices == labels)[kept].sum())
            total += int(kept.sum())
    if total == 0:
        raise CalibrationError("no labelled batches to measure accuracy on", expected="at least one")
    return right / total


@torch.no_grad()
def label_accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of the labels of a multi-label classifier that its logits, cut at 0, get right.

    ``batches`` yield (inputs, a 0 or 1 for each label); labels of -100 do not count.

    Raises
    ------
    CalibrationError
        If there are no batches, or labels that are neither 0 nor 1.
    NonFiniteError
        If a logit is NaN or infinite.
    ShapeError
        If the labels are not of the shape of the logits.

    Examples
    --------
    >>> label_accuracy(nn.Identity(), [(torch.tensor([[2.0, -1.0], [-0.5, -3.0]]), torch.tensor([[1, 0], [1, 0]]))])
    0.75
    """
    right = total = 0
    with evaluation_mode(model):
        for inputs, labels in map(split_labels, batches):
            logits, labels = _finite(_outputs(model, inputs)), labels.cpu()
            if logits.shape != labels.shape:
                raise ShapeError("labels", found=tuple(labels.shape), expected=tuple(logits.shape))
            kept = labels != IGNORED
            if len(wrong := labels[kept & (labels != 0) & (labels != 1)]):
                found = wrong[:3].tolist()
                raise CalibrationError("labels of a multi-label classifier", found=found, expected="0 or 1 each")
            right += int(((logits > 0) == (labels == 1))[kept].sum())
            total += int(kept.sum())
    if total == 0:
        raise CalibrationError("no labeled batches to measure accuracy on", expected="at least one")
    return right / total


@torch.no_grad()
def mean_absolute_error(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Mean distance of a regression's outputs from its targets; ``batches`` yield (inputs, real numbers).

    Raises
    ------
    CalibrationError
        If there are no batches.
    NonFiniteError
        If an output or a target is NaN or infinite.
    ShapeError
        If there are other numbers of outputs and targets.

    Examples
    --------
    >>> mean_absolute_error(nn.Identity(), [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [2.0]]))])
    0.25
    """
    total, count = 0.0, 0
    with evaluation_mode(model):
        for inputs, targets in map(split_labels, batches):
            outputs = _finite(_outputs(model, inputs))
            if not is_finite(targets):
                raise NonFiniteError("the targets hold NaN or infinity", do="Look for such values in the data.")
            if outputs.numel() != targets.numel():
                raise ShapeError("targets", found=tuple(targets.shape), expected=tuple(outputs.shape))
            total += float((outputs.double().flatten() - targets.cpu().double().flatten()).abs().sum())
            count += targets.numel()
    if not count:
        raise CalibrationError("no labeled batches to measure an error on", expected="at least one")
    return total / count


def decode_speed(model: nn.Module, ids: Int[Tensor, "tokens"], *, new_tokens: int = 32, repeats: int = 3) -> float:
    """Greedy decode speed of ``model.generate`` at batch one, in tokens per second (median; prompt time taken out)."""
    return statistics.median(decode_speeds(model, ids, new_tokens=new_tokens, repeats=repeats))


def decode_speeds(
    model: nn.Module, ids: Int[Tensor, "tokens"], *, new_tokens: int = 32, repeats: int = 5
) -> list[float]:
    """The speed of each of several runs, see :func:`decode_speed`; a first one that warms up is left out."""
    prompt = ids.unsqueeze(0).to(next(model.parameters()).device)
    seconds = [
        _generate_seconds(model, prompt, new_tokens + 1) - _generate_seconds(model, prompt, 1)
        for _ in range(repeats + 1)
    ]
    return [new_tokens / max(each, 1e-9) for each in seconds[1:]]


def size(model: nn.Module) -> dict[str, float]:
    """Count parameters, non-zero parameters and bytes; tied parameters once.

    Examples
    --------
    >>> size(nn.Linear(2, 2, bias=False).requires_grad_(False))["bytes"]
    16
    """
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "nonzero": sum(int(p.count_nonzero()) for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def sample_text(model: nn.Module, tokenizer: Any, prompt: str, *, new_tokens: int = 48) -> str:
    """Return the model's own greedy continuation of a prompt (through its chat template where it has one).

    It is shorter where the model's context ends, and empty where the prompt fills it.
    """
    chats = bool(getattr(tokenizer, "chat_template", None))
    if chats:
        prompt = render_chat(tokenizer, [{"role": "user", "content": prompt}], ask=True)
    # a template writes the special tokens itself
    inputs = tokenizer(prompt, add_special_tokens=not chats, return_tensors="pt").to(next(model.parameters()).device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    new_tokens = min(new_tokens, (context_length(model) or sys.maxsize) - inputs["input_ids"].shape[1])
    if new_tokens < 1:
        return ""
    with torch.no_grad():
        # without token_type_ids, which some tokenizers give to models that have none
        read = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        output = model.generate(**read, max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad)  # type: ignore[operator]
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def measure(
    model: nn.Module,
    *,
    ids: Int[Tensor, "tokens"] | None = None,
    labelled: Iterable[Batch] | None = None,
    window: int = 512,
    speed: bool = False,
) -> dict[str, float]:
    """Measure everything the given data allow: size always, perplexity on ``ids``, accuracy on ``labelled`` batches.

    What is measured on labels follows from the model's configuration: the error of a regression, the share of the
    labels that a multi-label classifier gets right, else accuracy. Without a configuration, labels that are real
    numbers are the targets of a regression.

    Parameters
    ----------
    model : nn.Module
        The model.
    ids : Tensor of shape (tokens,), optional
        Evaluation text.
    labelled : iterable of (inputs, labels) or mappings with ``labels``, optional
        Evaluation batches: class indices, real numbers, or a 0 or 1 for each of several labels.
    window : int, default: 512
        Perplexity window in tokens.
    speed : bool, default: False
        Also decode (needs ``ids`` and ``model.generate``).

    Returns
    -------
    dict of str to float
        Keys ``perplexity``, one of ``accuracy``, ``label_accuracy`` and ``mean_absolute_error``, ``tokens_per_second``
        (a median, with half the range of all runs as ``tokens_per_second_spread``) as asked for, then those of
        :func:`size`.

    Raises
    ------
    CalibrationError, NonFiniteError, ShapeError
        As the functions of these measures.
    """
    measures: dict[str, float] = {}
    if ids is not None:
        measures["perplexity"] = perplexity(model, ids, window=window)
    if labelled is not None:
        batches = list(labelled)
        score = _score(model, batches)
        measures[score.__name__] = score(model, batches)
    if speed and ids is not None:
        speeds = decode_speeds(model, ids[:16])
        measures["tokens_per_second"] = statistics.median(speeds)
        measures["tokens_per_second_spread"] = (max(speeds) - min(speeds)) / 2
    return measures | size(model)


def _score(model: nn.Module, batches: Sequence[Batch]) -> Callable[..., float]:
    """The measure of a model on labels."""
    config: Any = getattr(plain_model(model), "config", None)
    kind, outputs = (getattr(config, name, None) for name in ("problem_type", "num_labels"))
    labels = split_labels(batches[0])[1] if batches else torch.empty(0, dtype=torch.long)
    real = labels.is_floating_point()
    one_each = labels.ndim < 2 or labels.shape[1:] == (1,)
    if is_regression(plain_model(model)) and (real or one_each):  # a language model's configuration may name one label
        return mean_absolute_error
    # transformers' own rule where the configuration names no problem type
    if kind == "multi_label_classification" or (real and kind is None and labels.shape[1:] == (outputs,)):
        return label_accuracy
    return mean_absolute_error if real else accuracy


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    """A model's logits, on the CPU."""
    return logits_of(call(model, to_model(inputs, model))).cpu()


def _finite(outputs: Tensor) -> Tensor:
    if not is_finite(outputs):
        raise NonFiniteError(
            "the model's outputs hold NaN or infinity", do="Check its weights; half precision may overflow."
        )
    return outputs


def _generate_seconds(model: nn.Module, prompt: Tensor, new_tokens: int) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        model.generate(prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)  # type: ignore[operator]
    return time.perf_counter() - start
