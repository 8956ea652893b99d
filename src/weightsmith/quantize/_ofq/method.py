"""The commands: OFQ, and learned steps with or without iterative freezing as its baseline."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.choices import check_whole
from weightsmith.core.data import Samples, batched, pad_token_id, read, to_model
from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.levels import FILE, check_bits, puts_on_levels
from weightsmith.core.models import exclude_frozen, unreached
from weightsmith.core.processes import process_rank
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    Loss,
    batch_count,
    counted_logits,
    counted_rows,
    draw_seed,
    fit,
    float_weights,
    refuse_adapters,
    seed_of,
    training_method,
)
from weightsmith.quantize._ofq.activations import Granularity
from weightsmith.quantize._ofq.annealing import (
    ConfidenceGuidedAnnealing,
    IterativeFreezing,
    Oscillations,
    check_boundary,
    fake_quantized,
)
from weightsmith.quantize._ofq.attention import QuantizedAttention, attentions
from weightsmith.quantize._ofq.prepare import (
    Weights,
    finish_qat,
    initialize_activations,
    parameter_groups,
    prepare_qat,
    quantizable,
)

__all__ = ["lsq", "ofq"]

FINAL = 1e-5 / 5.47e-4
"""The final learning rate as a share of the highest."""

PAPER: dict[str, Any] = {
    "learning_rate": 5.47e-4,
    "weight_decay": 0.05,
    "epochs": 10,  # the paper: 300 on ImageNet
    "scheduler": "cosine",
    "final_learning_rate_ratio": FINAL,
    "warmup": 5 / 300,
}


@puts_on_levels
@training_method(**PAPER)
def ofq(
    model: nn.Module,
    training: Samples,
    *,
    weight_bits: int = 2,
    activation_bits: int = 2,
    joint_query_key: bool | None = None,
    annealing_epochs: int = 1,
    boundary: float = 0.005,
    anneal_joint: bool = False,
    distillation: float = 1.0,
    granularity: Granularity = "tensor",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a model with few levels of weights and activations, without weights that oscillate (OFQ).

    Parameters
    ----------
    model : nn.Module
        A classifier or a language model, trained. Changed in place: its weights are on their levels afterwards, and
        activations are rounded while it runs. It is its own teacher.
    training : sequence of samples
        Samples with labels.
    weight_bits : int, default: 2
        Bits of the weights in the repeated blocks, 2 to 8. Stems and heads get eight.
    activation_bits : int, default: 2
        Bits of the inputs of these layers, and of queries, keys, values and attention probabilities in ViT, DeiT, BERT
        and RoBERTa, 2 to 8.
    joint_query_key : bool, optional
        Quantize the product of query and key weights per head. By default wherever the attention allows it.
    annealing_epochs : int, default: 1
        Epochs at the end, at the final learning rate, in which only weights near a threshold are trained (the paper:
        a tenth of the others); 0 for none.
    boundary : float, default: 0.005
        How near, in steps, in [0, 0.5].
    anneal_joint : bool, default: False
        In annealing, also mask the gradient of joint query-key weights, which the paper means and its code does not do.
    distillation : float, default: 1.0
        Weight of the cross-entropy with the teacher's probabilities beside that with the labels; 0 for no teacher.
    granularity : {"tensor", "token"}, default: "tensor"
        One step per tensor of activations, or one per position, which fixes the length of sequences (the reference).
    include, exclude : str or sequence of str
        Patterns on the paths of layers.
    generator : torch.Generator, optional
        Draws the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        Per layer ``bits``, ``entropy`` of the codes in bits, ``oscillation`` (changes of direction per weight and step)
        in the last epoch of training and ``annealed_oscillation`` in the annealing; the losses;
        ``files["quantization.json"]``, which :func:`load_quantized` reads beside the saved model.

    Raises
    ------
    CalibrationError
        If there are no samples, or labels are real numbers.
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If a weight, an activation or the loss is not finite.
    UnsupportedModelError
        If no layer can be quantized, or ``joint_query_key`` is asked of attention with rotary positions, fewer keys
        than queries, or normalized queries and keys.

    References
    ----------
    Liu, Liu, Cheng 2023, arXiv 2302.02210.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> samples = [(torch.tensor([1.0, 0.0]), 0), (torch.tensor([0.0, 1.0]), 1)] * 8
    >>> result = ofq(model, samples, epochs=2)
    >>> result.totals["layers"], max(len(row.unique()) for row in model[2].weight) <= 4
    (3, True)
    """
    check_boundary(boundary)
    annealing_epochs = check_whole("annealing_epochs", annealing_epochs, 0)
    if annealing_epochs and not options["final_learning_rate_ratio"]:
        raise HyperparameterError(
            "final_learning_rate_ratio",
            found=0,
            expected="> 0 with annealing_epochs, which train at the final learning rate",
            do="Give a share, or annealing_epochs=0.",
        )
    method: dict[str, Any] = {
        "annealing_epochs": annealing_epochs,
        "boundary": boundary,
        "anneal_joint": anneal_joint,
    }
    prepared: dict[str, Any] = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "joint_query_key": joint_query_key,
        "granularity": granularity,
        "include": include,
        "exclude": exclude,
    }

    def anneal(optimizer: torch.optim.Optimizer, run: Callable[..., Oscillations]) -> Oscillations | None:
        if not annealing_epochs:
            return None
        rate = options["learning_rate"] * options["final_learning_rate_ratio"]
        for group in optimizer.param_groups:
            group["lr"] = rate
        with ConfidenceGuidedAnnealing(model, optimizer, boundary, joint=anneal_joint):
            return run(epochs=annealing_epochs, scheduler="constant", warmup=0.0)

    seed = draw_seed(generator)
    with record("ofq", seed=seed_of(generator), distillation=distillation, **method, **prepared, **options) as result:
        _train(result, model, training, "statsq", distillation, options, prepared, seed, anneal=anneal)
    return result


@puts_on_levels
@training_method(**PAPER)
def lsq(
    model: nn.Module,
    training: Samples,
    *,
    weight_bits: int = 2,
    activation_bits: int = 2,
    freeze_above: float | None = None,
    distillation: float = 1.0,
    granularity: Granularity = "tensor",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a model with few levels of weights and activations, whose steps are learned (LSQ).

    Parameters
    ----------
    model : nn.Module
        As for :func:`ofq`.
    training : sequence of samples
        Samples with labels.
    weight_bits, activation_bits : int, default: 2
        As for :func:`ofq`.
    freeze_above : float, optional
        Freeze weights that turn back more often than this per step, as a running mean in (0, 1), to the mean of their
        codes (iterative freezing). By default none.
    distillation, granularity, include, exclude, generator
        As for :func:`ofq`.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        As :func:`ofq`, and in total the share of ``frozen`` weights.

    Raises
    ------
    CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
        As :func:`ofq`.

    References
    ----------
    Esser et al. 2020, arXiv 1902.08153; Nagel et al. 2022, arXiv 2203.11086.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> samples = [(torch.tensor([1.0, 0.0]), 0), (torch.tensor([0.0, 1.0]), 1)] * 8
    >>> lsq(model, samples, epochs=2, freeze_above=0.02).totals["frozen"]
    0.0
    """
    if freeze_above is not None and not 0 < freeze_above < 1:
        raise HyperparameterError("freeze_above", found=freeze_above, expected="a number in (0, 1)")
    prepared: dict[str, Any] = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "granularity": granularity,
        "include": include,
        "exclude": exclude,
    }
    seed = draw_seed(generator)
    with record(
        "lsq", seed=seed_of(generator), distillation=distillation, freeze_above=freeze_above, **prepared, **options
    ) as result:
        prepared["joint_query_key"] = False
        _train(result, model, training, "lsq", distillation, options, prepared, seed, freeze_above=freeze_above)
    return result


def _train(
    result: Result,
    model: nn.Module,
    training: Samples,
    weights: Weights,
    distillation: float,
    options: FitOptions,
    prepared: dict[str, Any],
    seed: int,
    *,
    anneal: Callable[..., Oscillations | None] | None = None,
    freeze_above: float | None = None,
) -> None:
    """Prepare, initialize, train and finish."""
    for name in ("weight_bits", "activation_bits"):
        check_bits(name, prepared[name])
    if not (math.isfinite(distillation) and distillation >= 0):
        raise HyperparameterError("distillation", found=distillation, expected="a number >= 0")
    if not len(training):
        raise CalibrationError("there are no training samples")
    refuse_adapters(model)
    if prepared["granularity"] == "token" and getattr(model, "can_generate", bool)():
        raise HyperparameterError(
            "granularity", found="'token' for a language model", expected="'tensor', as texts have many lengths"
        )
    teacher = copy.deepcopy(model).eval().requires_grad_(False) if distillation else None
    result.notes += unreached(model, quantizable(model), "Not quantized", trains=True)
    left_out, notes = exclude_frozen(quantizable(model, prepared["include"], prepared["exclude"]), prepared["exclude"])
    result.notes += notes
    layers = prepare_qat(model, weights=weights, **prepared | {"exclude": left_out})
    with float_weights(model):
        size = min(options["batch_size"], len(training))
        begin = process_rank() * size  # the processes add up what they see: each has a batch of its own
        first = read(training, [(begin + place) % len(training) for place in range(size)])
        dropped = initialize_activations(model, list(batched(first, len(first), pad_token_id=pad_token_id(model))))
        groups = parameter_groups(model, lr=options["learning_rate"], weight_decay=options["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=options["learning_rate"], fused=True)
        freezing = None if freeze_above is None else IterativeFreezing(model, freeze_above)
        loss = _loss(teacher, distillation)

        def run(**changed: Any) -> Oscillations:
            merged: Any = {**options, **changed}
            steps = math.ceil(batch_count(len(training), merged) / merged["accumulation_steps"])
            counter = Oscillations(model)

            def look(step: int, _: float) -> None:
                if freezing is not None:
                    freezing.update()
                if step > steps * (merged["epochs"] - 1):
                    counter.update()

            done = fit(model, training, loss=loss, optimizer=optimizer, seed=seed, after_step=look, **merged)
            result.curves.setdefault("training loss", []).extend(done.losses)
            return counter

        counted = run()
        annealed = anneal(optimizer, run) if anneal is not None else None
        entropy = {name: _entropy(kind.codes(latent.detach())) for name, latent, kind in fake_quantized(model)}
        plan = finish_qat(model)
    result.files = {FILE: plan.to_json()}
    for layer in layers:
        if layer.name not in entropy:
            result.layer(layer.name, bits=prepared["weight_bits"], joint=True)
            continue
        row = {"bits": plan.weights[layer.name].bits, "entropy": entropy[layer.name]}
        row["oscillation"] = counted.rate(layer.name)
        if annealed is not None:
            row["annealed_oscillation"] = annealed.rate(layer.name)
        result.layer(layer.name, **row)
    result.totals = {"layers": len(layers), "oscillation": counted.mean()}
    if annealed is not None:
        result.totals["annealed_oscillation"] = annealed.mean()
    if freezing is not None:
        result.totals["frozen"] = freezing.share()
    result.notes += _notes(model, dropped)


def _loss(teacher: nn.Module | None, distillation: float) -> Loss:
    """Cross-entropy with the labels, and with the probabilities of the teacher."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits, labels = counted_logits(model, to_model(batch, model))
        with torch.no_grad():
            target = logits.detach() if teacher is None else counted_logits(teacher, to_model(batch, teacher))[0]
        student, wanted, labels = counted_rows(logits, target, labels)
        if not len(labels):
            return student.sum()
        value = functional.cross_entropy(student, labels)
        if teacher is None:
            return value
        soft = (wanted.softmax(1) * student.log_softmax(1)).sum(1).mean()
        return value - distillation * soft

    return loss


def _notes(model: nn.Module, dropped: Sequence[str]) -> list[str]:
    """Say what is special about the model."""
    notes = []
    held = [module for module in model.modules() if isinstance(module, QuantizedAttention)]
    if joint := [module for module in held if module.joint is not None]:
        notes.append(
            f"Queries and keys of {len(joint)} attentions are joint weights: {joint[0].heads} x C x C codes "
            f"instead of 2 x C x C. Saved are the latent weights, from which the codes follow."
        )
    if others := sorted({type(module).__name__ for _, module in attentions(model) if module not in held}):
        notes.append(f"Queries, keys, values and probabilities of {', '.join(others)} are not quantized.")
    if dropped:
        owners = sorted({name.rpartition(".")[0] for name in dropped})
        notes.append(f"No data reached {len(owners)} layers; their inputs are not quantized: {', '.join(owners)}.")
    notes.append("Plain transformers reads the quantized weights; load_quantized also quantizes the activations.")
    return notes


def _entropy(codes: Tensor) -> float:
    """The entropy of a layer's codes in bits."""
    counts = codes.flatten().unique(return_counts=True)[1].double()
    chances = counts / counts.sum()
    return float(-(chances * chances.log2()).sum())
