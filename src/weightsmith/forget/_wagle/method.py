"""WAGLE as one call: attribute, mask, unlearn, and compare with a random mask and with all weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from weightsmith.core import io
from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples, take
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.results import Result, record
from weightsmith.core.training import FitOptions, batch_count, draw_seed, refuse_adapters, seed_of, training_method
from weightsmith.forget._measures import answer_probabilities, generated_answers, membership_auc, rouge_l, truth_ratios
from weightsmith.forget._shared.mask import WeightMask
from weightsmith.forget._shared.sets import frozen_note, held_out, overlap
from weightsmith.forget._unlearn import Objective, Reduction, check_objective, refusals, unlearn
from weightsmith.forget._wagle.attribution import Method, WeightScores, attribute_weights

__all__ = ["wagle"]

MEASURED = 32
"""Samples of each set that are measured during the run."""

POINTS = 8
"""Measurements along a run."""


@training_method(
    learning_rate=1e-5, weight_decay=0.1, epochs=5, batch_size=4, clip_norm=1.0, scheduler="linear", warmup=0.1
)
def wagle(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    *,
    other: Samples | None = None,
    paraphrased: Samples | None = None,
    perturbed: Samples | None = None,
    objective: Objective = "npo",
    density: float = 0.95,
    gamma: float = 1e-4,
    attribution: Method = "wagle",
    retain_weight: float = 1.0,
    beta: float | None = None,
    reduction: Reduction = "token_mean",
    controls: bool = True,
    save_delta: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Unlearn samples through the weights that carry them (WAGLE).

    Parameters
    ----------
    model : nn.Module
        A language model or classifier, changed in place. Weights outside the mask stay bit-identical.
    forget : sequence of samples
        What to forget: ``{"input_ids": ..., "labels": ...}``, labels on the answers only, or pairs (input, class).
    retain : sequence of samples
        What to keep, of the same kind.
    other : sequence of samples, optional
        What is in neither set; it is only measured. By default every eighth sample of ``retain`` is held out for that.
    paraphrased, perturbed : sequence of samples, optional
        The answers to forget in other words, and wrong answers, equally many for each: the truth ratio is measured.
    objective : {"npo", "graddiff", "simnpo", "ascent", "po"}, default: "npo"
        The loss, see :func:`weightsmith.forget.unlearn`; ``"po"`` trains refusals.
    density : float, default: 0.95
        Share of the trainable weights that may change, in (0, 1]. The authors use 0.8 with ``"po"``.
    gamma : float, default: 1e-4
        Weight of what is retained in the score, see :func:`weightsmith.forget.attribute_weights`.
    attribution : {"wagle", "snip", "saliency", "magnitude", "random"}, default: "wagle"
        The score.
    retain_weight : float, default: 1.0
        Factor of the loss on the samples to retain, >= 0.
    beta : float, optional
        Of NPO and SimNPO; by default 0.1 and 2.5.
    reduction : {"token_mean", "sequence_sum"}, default: "token_mean"
        Whether NPO compares log-likelihoods averaged over the tokens or summed.
    controls : bool, default: True
        Also run a random mask of the same density, and all weights, from the same start, and report them beside. Each
        takes as long as the method itself.
    save_delta : path, optional
        Also write the changed weights to this ``.safetensors`` file, see :func:`weightsmith.forget.apply_delta`. An
        older delta there is replaced.
    tokenizer : PreTrainedTokenizerBase, optional
        For refusals and for answers as text.
    generator : torch.Generator, optional
        Draws the order of the samples, the retained sample of each step, refusals and random masks.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        Per parameter the ``density`` of the mask and the share ``changed``. ``before`` and ``after`` hold the
        probability of the answers of each set, membership inference, and where they apply ROUGE-L and the truth ratio.

    Raises
    ------
    CalibrationError
        If a set is empty.
    CheckpointError
        If ``save_delta`` cannot be written, or is another file.
    HyperparameterError
        If a hyper-parameter is out of range.
    NonFiniteError
        If a weight, a gradient or the loss is not finite.
    UnsupportedModelError
        If weights are quantized, or the model has adapters.

    References
    ----------
    Jia, Liu, Zhang, et al., arXiv 2410.17509.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> data = [(torch.randn(4), torch.tensor(n % 2)) for n in range(24)]
    >>> result = wagle(model, data[:4], data[4:], density=0.5, learning_rate=0.01)
    >>> result.totals["trainable"], result.totals["weights"]
    (57, 114)
    """
    if not 0 < density <= 1:
        raise HyperparameterError("density", found=density, expected="0 < density <= 1")
    check_objective(objective, retain_weight, beta, reduction, tokenizer)
    check_choice("attribution", attribution, Method)
    refuse_adapters(model)
    _check_delta(save_delta)
    seed = draw_seed(generator)
    hyper: dict[str, Any] = {"objective": objective, "density": density, "gamma": gamma, "attribution": attribution}
    hyper |= {"retain_weight": retain_weight, "beta": beta, "reduction": reduction}
    hyper |= {"controls": controls, "save_delta": save_delta}
    with record("wagle", seed=seed_of(generator), **hyper, **options) as result:
        trained, other = held_out(retain, other)
        sets = {"forgotten": forget, "retained": trained, "neither": other}
        draws = torch.Generator().manual_seed(seed)
        target = refusals(forget, tokenizer, generator=draws) if objective == "po" else forget
        attribute = partial(attribute_weights, model, target, trained, gamma=gamma, generator=draws)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are among the notes
            scores = attribute(method=attribution, batch_size=options["batch_size"])
        masks: dict[str, WeightMask | None] = {}
        if controls:
            masks |= {"all weights": None, "random mask": attribute(method="random").top(density)}
        masks["wagle"] = mask = scores.top(density)
        if not mask.count:
            raise HyperparameterError(
                "density", found=density, expected=f"a share of at least 1 of {mask.size} weights"
            )
        scores.scores.clear()
        base = {name: tensor.clone() for name, tensor in _changing(model, mask).items()}
        measure = partial(_measures, model, sets, paraphrased, perturbed, tokenizer)
        result.before, told = measure(), _answer(model, forget, tokenizer)
        steps = max(1, batch_count(len(forget), options) * options["epochs"] // options["accumulation_steps"])
        arms = {}
        for name, chosen in masks.items():
            with torch.no_grad():
                for key, tensor in _changing(model, mask).items():
                    tensor.copy_(base[key])
            watch = _Watch(model, sets, max(1, steps // POINTS), result.before)
            run = unlearn(
                model,
                forget,
                trained,
                objective=objective,
                retain_weight=retain_weight,
                beta=beta,
                reduction=reduction,
                mask=chosen,
                tokenizer=tokenizer,
                after_step=watch,
                seed=seed,
                **options,
            )
            arms[name] = measure()
            result.curves |= {f"probability, {key}: {name}": points for key, points in watch.points.items()}
            result.curves[f"training loss: {name}"] = run.losses
        result.after = arms["wagle"]
        if told:
            answers = {"before": told["answer"], "after": _answer(model, forget, tokenizer)["answer"]}
            result.samples = {"prompt": told["prompt"], **answers}
        delta = io.SparseDelta.between(base, _changing(model, mask))
        changed = {name: len(delta.parts[name].index) for name in mask}
        for name, own in mask.items():
            result.layer(name, density=float(own.float().mean()), changed=changed[name] / own.numel())
        result.totals = {"trainable": mask.count, "weights": mask.size, "density": mask.density}
        result.totals["changed"] = sum(changed.values()) / mask.size
        result.notes += _notes(result, arms, scores, model, retain_weight if objective != "ascent" else 0.0)
        if both := overlap(forget, retain):
            result.notes.append(f"{both} samples to retain are also to be forgotten: remove them from one of the sets.")
        if save_delta is not None:
            io.save_delta(delta, save_delta, overwrite=True)
    return result


class _Watch:
    """Measure the answers of each set a few times along a run."""

    def __init__(self, model: nn.Module, sets: Mapping[str, Samples], every: int, start: Mapping[str, float]) -> None:
        self.model, self.every = model, every
        self.sets = {name: take(samples, 0, MEASURED) for name, samples in sets.items()}
        self.points = {name: [(0, start[f"probability_{name}"])] for name in sets}

    def __call__(self, step: int, loss: float) -> None:
        if step % self.every == 0:
            for name, samples in self.sets.items():
                self.points[name].append((step, float(answer_probabilities(self.model, samples).mean())))


def _measures(
    model: nn.Module,
    sets: Mapping[str, Samples],
    paraphrased: Samples | None,
    perturbed: Samples | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, float]:
    heads = {name: take(samples, 0, MEASURED) for name, samples in sets.items()}
    found = {f"probability_{name}": float(answer_probabilities(model, each).mean()) for name, each in heads.items()}
    found["membership_auc"] = membership_auc(model, heads["forgotten"], heads["neither"])
    if _writes(model):
        for name, samples in heads.items():
            answers = generated_answers(model, take(samples, 0, MEASURED // 4))
            recalls = [rouge_l(_words(tokenizer, ours), _words(tokenizer, theirs)) for _, ours, theirs in answers]
            found[f"rouge_l_{name}"] = sum(recalls) / len(recalls)
    if paraphrased is not None and perturbed is not None:
        found["truth_ratio"] = float(truth_ratios(model, paraphrased, perturbed).mean())
    return found


def _writes(model: Any) -> bool:
    """Whether it is a language model that writes on from a text."""
    return (
        hasattr(model, "generate") and model.can_generate() and not getattr(model.config, "is_encoder_decoder", False)
    )


def _answer(model: nn.Module, forget: Samples, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str]:
    """The first question to forget and the model's answer, as text."""
    if tokenizer is None or not _writes(model):
        return {}
    ((prompt, answer, _),) = generated_answers(model, take(forget, 0, 1))
    return {"prompt": str(tokenizer.decode(prompt)), "answer": str(tokenizer.decode(answer))}


def _changing(model: nn.Module, mask: WeightMask) -> dict[str, Tensor]:
    """What a run may change: the weights of the mask, and buffers such as the statistics of batch normalization."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters() if name in mask}
    return weights | {
        name: tensor for name, tensor in model.state_dict().items() if name in dict(model.named_buffers())
    }


def _words(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> Sequence[Any]:
    """The text of an answer; without a tokenizer its token ids are compared."""
    return ids if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=True))


def _check_delta(path: Path | None) -> None:
    """Refuse a file for the delta that cannot be written, or is no older delta."""
    if path is None:
        return
    if path.suffix != ".safetensors":
        raise HyperparameterError("save_delta", found=path.name, expected="a name that ends in .safetensors")
    if path.exists():
        io.load_delta(path)
    io.check_file(path)


def _notes(
    result: Result,
    arms: Mapping[str, Mapping[str, float]],
    scores: WeightScores,
    model: nn.Module,
    retain_weight: float,
) -> list[str]:
    notes = []
    before, after = result.before, result.after
    if after["probability_forgotten"] > 0.95 * before["probability_forgotten"]:
        notes.append(
            "Nothing was forgotten: the answers are as likely as before. Raise the learning rate or the epochs."
        )
    elif after["membership_auc"] < 0.1:
        notes.append(
            "The forgotten samples are now less likely than samples never seen, which tells them apart as well. The "
            "target is a model trained without them, not the lowest value: stop earlier."
        )
    if not retain_weight:
        notes.append("Nothing was retained on purpose: the loss on the retained samples had no weight.")
    for name, measured in arms.items():
        if name != "wagle":
            values = ", ".join(
                f"{key} {measured[f'probability_{key}']:.3g}" for key in ("forgotten", "retained", "neither")
            )
            notes.append(f"With {name.replace('random', 'a random')} instead, probability of the answers: {values}.")
    notes += frozen_note(model)
    notes += scores.notes
    if scores.skipped:
        notes.append(f"{scores.skipped} batches had no label that counts.")
    return notes
