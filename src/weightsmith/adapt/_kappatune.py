r"""KappaTune: fine-tune the matrices whose condition number is lowest, found without any data.

Ludwig, "The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units", arXiv 2506.16289
(2025): matrices with a high :math:`\kappa = \sigma_{\max}/\sigma_{\min}` are taken to encode what the model knows and
stay unchanged. Those with a low one, which are close to random, get LoRA adapters. Their rank is chosen such that they
have as many parameters as LoRA on all matrices would,

.. math:: r = r_\text{all} \, \frac{\sum_\text{all} (M + N)}{\sum_\text{selected} (M + N)} .

PEFT ships the selection itself (:func:`peft.find_kappa_target_modules`); this module adds a score that
corrects for the shape of a matrix, the matched rank, control selections (random, inverse, matched in shape), and the
whole method as one call.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeAlias, Unpack

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from weightsmith.analyze import Condition, ConditionReport, condition_report
from weightsmith.analyze._condition import Score
from weightsmith.core.data import Samples
from weightsmith.core.errors import CalibrationError, HyperparameterError, LayerNotFoundError, NonFiniteError
from weightsmith.core.models import VOCABULARY_HEADS, find_experts, find_layers, unreached, writable
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    Fit,
    FitOptions,
    draw_seed,
    fit,
    refuse_adapters,
    requires_grad_restored,
    seed_of,
    training_method,
)

__all__ = [
    "Targets",
    "adaptable",
    "freeze_except",
    "highest_targets",
    "kappatune",
    "match_rank",
    "random_targets",
    "shape_matched_targets",
    "train_lora",
    "trainable_parameters",
]

Targets: TypeAlias = Mapping[str, Sequence[str] | None]
"""``target_modules`` and ``target_parameters``, as :meth:`ConditionReport.targets` returns them and PEFT takes them."""


@training_method(learning_rate=2e-4, batch_size=8, scheduler="linear")
def kappatune(
    model: nn.Module,
    training: Samples,
    *,
    score: Score = "kappa",
    top_p: float = 0.2,
    rank: int = 16,
    dropout: float = 0.05,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = VOCABULARY_HEADS,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Fine-tune the best-conditioned matrices of a model with LoRA, and merge it.

    Parameters
    ----------
    model : nn.Module
        Any model that computes its loss from a sample. Its weights change in place.
    training : sequence of samples
        Mappings of 1-D tensors, such as ``{"input_ids": LongTensor[L]}``, with ``"labels"`` where they differ.
    score : {"kappa", "kappa_over_mp", "entropy_deficit"}, default: "kappa"
        The ranking of the matrices: by condition number, as in the paper; by its ratio to that of a random matrix of
        the same shape; or by entropy deficit.
    top_p : float, default: 0.2
        Share of the matrices that is trained, in (0, 1]; fused experts are counted separately.
    rank : int, default: 16
        Rank of LoRA on all matrices that the method is compared with. The selected matrices get a higher rank, for the
        same number of parameters.
    dropout : float, default: 0.05
        Before the adapters, in [0, 1). None where fused experts are among the selected: PEFT has none for them.
    include, exclude : str or sequence of str
        Shell patterns on the names of the matrices to choose from.
    generator : torch.Generator, optional
        Draws the initial adapters, the order of the samples and dropout.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        Per selected matrix its score, condition number and trainable parameters; in total also the matched rank.

    Raises
    ------
    CalibrationError
        If there are no samples.
    HyperparameterError
        If a hyper-parameter is out of range.
    LayerNotFoundError
        If there is no matrix to choose from.
    NonFiniteError
        If a weight or the loss holds NaN or infinity.
    UnsupportedModelError
        If weights are packed or not loaded.

    Notes
    -----
    Whether it forgets less is not measured here: see :func:`weightsmith.analyze.compare_forgetting`.

    References
    ----------
    Ludwig, arXiv 2506.16289.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32))
    >>> result = kappatune(model, [{"input_ids": torch.arange(8)}] * 4, rank=2)
    >>> result.totals["selected"], result.totals["candidates"]
    (2, 14)
    """
    if not 0 < top_p <= 1:
        raise HyperparameterError("top_p", found=top_p, expected="0 < top_p <= 1")
    _check_adapters(rank, dropout)
    refuse_adapters(model)
    seed = draw_seed(generator)
    with record(
        "kappatune",
        seed=seed_of(generator),
        score=score,
        top_p=top_p,
        rank=rank,
        dropout=dropout,
        include=include,
        exclude=exclude,
        **options,
    ) as result:
        writable(find_layers(model, include, exclude, strict=False))
        report = adaptable(condition_report(model, score=score, include=include, exclude=exclude), model)
        targets = report.targets(top_p=top_p)
        matched = match_rank(report, targets, rank)
        run = train_lora(model, training, targets, rank=matched, dropout=dropout, seed=seed, **options)
        chosen = _rows(report, targets)
        for row in chosen:
            result.layer(
                row.name,
                shape=" x ".join(map(str, row.shape)),
                kappa=row.kappa,
                kappa_over_mp=row.kappa_over_mp,
                trainable=matched * _width(row),
            )
        result.totals = {
            "selected": len(result.layers),
            "candidates": len(report.rows),
            "matched_rank": matched,
            "trainable": trainable_parameters(report, targets, matched),
            "trainable_of_all": rank * sum(map(_width, report.rows)),
        }
        result.curves["training loss"] = run.losses
        result.notes += [f"{len(names)} not to choose from: {reason}" for reason, names in report.skipped.items()]
        if dropout and targets["target_parameters"]:
            result.notes.append("The adapters had no dropout: fused experts are among the selected.")
        if narrow := [row.name for row in chosen if min(row.shape[-2:]) < matched]:
            result.notes.append(
                f"Rank {matched} is above the smaller side of {len(narrow)} of the selected, such as {narrow[0]!r}: "
                "there the rank adds parameters and nothing else. Lower rank or raise top_p."
            )
        names = {row.name for row in chosen}
        experts = [expert for expert in find_experts(model) if expert.stack in names]
        result.notes += unreached(model, [*(layer for layer in find_layers(model) if layer.name in names), *experts])
    return result


@training_method()
def train_lora(
    model: nn.Module,
    training: Samples,
    targets: Targets,
    *,
    rank: int,
    dropout: float = 0.05,
    after_step: Callable[[int, float], None] | None = None,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> Fit:
    """Train LoRA adapters on the targets through PEFT and merge them into the weights; ``alpha`` is twice the rank.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    training : sequence of samples
        As for :func:`weightsmith.core.training.fit`.
    targets : mapping
        Full names of modules and fused experts.
    rank : int
        Rank of every adapter.
    dropout : float, default: 0.05
        Before the adapters; none where fused experts are among the targets: PEFT has none for them.
    after_step : callable, optional
        As for :func:`weightsmith.core.training.fit`.
    seed : int, default: 0
        Of the initial adapters, the order of the samples and dropout.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`.

    Returns
    -------
    Fit
        Losses and times.

    Raises
    ------
    CalibrationError
        If there are no samples.
    HyperparameterError
        If ``rank`` or ``dropout`` is out of range.
    NonFiniteError
        If the loss or an adapter becomes NaN or infinite.
    """
    from peft import LoraConfig, get_peft_model

    _check_adapters(rank, dropout)
    if not len(training):
        raise CalibrationError("no training samples")
    modules, experts = targets["target_modules"] or (), targets["target_parameters"] or ()
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0 if experts else dropout,
        # a list would also match every longer name that ends in one of these
        target_modules="|".join(map(re.escape, modules)) if modules else [],
        target_parameters=list(experts) or None,
    )
    with requires_grad_restored(model):
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT sets it right for Conv1D and says so
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
        run = fit(model, training, after_step=after_step, seed=seed, **options)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                raise NonFiniteError(f"adapter {name!r} holds NaN or infinity", do="Lower the learning rate.")
        adapted.merge_and_unload()
    return run


def _check_adapters(rank: int, dropout: float) -> None:
    if rank < 1:
        raise HyperparameterError("rank", found=rank, expected=">= 1")
    if not 0 <= dropout < 1:
        raise HyperparameterError("dropout", found=dropout, expected="0 <= dropout < 1")


def match_rank(report: ConditionReport, targets: Targets, rank: int) -> int:
    """Return the rank at which LoRA on the targets has as many parameters as LoRA of ``rank`` on all matrices.

    Examples
    --------
    >>> report = condition_report(nn.Sequential(*(nn.Linear(8, 8) for _ in range(10))))
    >>> match_rank(report, report.targets(top_p=0.2), 4)
    20
    """
    if rank < 1:
        raise HyperparameterError("rank", found=rank, expected=">= 1")
    return max(1, round(rank * sum(map(_width, report.rows)) / sum(map(_width, _rows(report, targets)))))


def trainable_parameters(report: ConditionReport, targets: Targets, rank: int) -> int:
    """Count the parameters of LoRA of a rank on the targets."""
    return rank * sum(map(_width, _rows(report, targets)))


def adaptable(report: ConditionReport, model: nn.Module) -> ConditionReport:
    """The report without matrices that LoRA cannot train alone.

    These are weights shared by several modules, of which only one would be adapted, and output projections that
    ``nn.MultiheadAttention`` reads without calling them.

    Raises
    ------
    LayerNotFoundError
        If none is left.
    """
    modules = dict(model.named_modules())
    rows, skipped = [], dict(report.skipped)
    for row in report.rows:
        reason = "shares its weight with another module" if row.aliases else ""
        if isinstance(modules.get(row.name), NonDynamicallyQuantizableLinear):
            reason = "read by nn.MultiheadAttention without being called"
        if reason:
            skipped[reason] = (*skipped.get(reason, ()), row.name)
        else:
            rows.append(row)
    if not rows:
        raise LayerNotFoundError("no matrix that LoRA can adapt", found=", ".join(skipped))
    return dataclasses.replace(report, rows=tuple(rows), skipped=skipped)


def freeze_except(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Let only the named parameters be trained, biases and norms neither, and return them for an optimizer.

    Parameters
    ----------
    model : nn.Module
        Its parameters' ``requires_grad`` is set.
    names : iterable of str
        Names of parameters, as ``report.select(kind="tensor")`` returns them. A tied parameter is trained wherever it
        is used, whichever of its names is given.

    Returns
    -------
    list of nn.Parameter
        In the order of the names, tied ones once.

    Raises
    ------
    LayerNotFoundError
        If there is no such parameter; nothing is changed then.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> chosen = freeze_except(model, ["1.weight"])
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['1.weight']
    """
    have = dict(model.named_parameters(remove_duplicate=False))
    names = list(names)
    if missing := [name for name in names if name not in have]:
        raise LayerNotFoundError(
            f"{len(missing)} parameters such as {missing[0]!r}",
            found=f"names such as {next(iter(have), None)!r}",
            do='Take them from report.select(kind="tensor").',
        )
    chosen = list({id(have[name]): have[name] for name in names}.values())
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def random_targets(report: ConditionReport, like: Targets, *, generator: torch.Generator | None = None) -> Targets:
    """Control arm: as many targets as ``like`` has, drawn at random from all."""
    return _drawn(report, like, lambda row: row.kind, generator)


def shape_matched_targets(
    report: ConditionReport, like: Targets, *, generator: torch.Generator | None = None
) -> Targets:
    """Control arm: as many targets of each shape as ``like`` has, drawn at random."""
    return _drawn(report, like, lambda row: (row.kind, *row.shape), generator)


def highest_targets(report: ConditionReport, like: Targets) -> Targets:
    """Control arm: as many targets as ``like`` has, those with the highest scores."""
    modules, experts = (len(like[key] or ()) for key in ("target_modules", "target_parameters"))
    return {
        "target_modules": report.select()[::-1][:modules],
        "target_parameters": report.select(kind="parameter")[::-1][:experts] or None,
    }


def _drawn(
    report: ConditionReport,
    like: Targets,
    group: Callable[[Condition], Hashable],
    generator: torch.Generator | None,
) -> Targets:
    """As many targets of each group as ``like`` has."""
    drawn: dict[str, list[str]] = {"module": [], "parameter": []}
    for key, count in Counter(map(group, _rows(report, like))).items():
        pool = [row for row in report.rows if group(row) == key]
        for index in torch.randperm(len(pool), generator=generator)[:count].tolist():
            drawn[pool[index].kind].append(pool[index].name)
    return {"target_modules": drawn["module"], "target_parameters": drawn["parameter"] or None}


def _rows(report: ConditionReport, targets: Targets) -> list[Condition]:
    by_name = {row.name: row for row in report.rows}
    names = [*(targets["target_modules"] or ()), *(targets["target_parameters"] or ())]
    if missing := [name for name in names if name not in by_name]:
        raise LayerNotFoundError(f"target {missing[0]!r} is not in the report")
    return [by_name[name] for name in names]


def _width(row: Condition) -> int:
    """LoRA's parameters a unit of rank: both sides of the matrix, for each expert."""
    experts = row.shape[0] if row.kind == "parameter" else 1
    return experts * sum(row.shape[-2:])
