"""KappaTune: what is fine-tuned when the condition number chooses, and whether less is forgotten.

Two experiments on SmolLM2-135M: the shapes of the chosen matrices, and what adapters on them forget while they learn,
at equal trainable parameters and equal loss on what is learned.
"""

from __future__ import annotations

import argparse
import codecs
import copy
import dataclasses
import inspect
import statistics
import tarfile
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from weightsmith.adapt import highest_targets, match_rank, random_targets, shape_matched_targets, trainable_parameters
from weightsmith.adapt._kappatune import Targets, train_lora
from weightsmith.analyze import (
    ConditionReport,
    ForgettingCurve,
    ForgettingProbe,
    compare_forgetting,
    condition_report,
    mean_nll,
)
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.progress import track
from weightsmith.embedded import load, text

__all__ = ["FORGETTING", "SHAPES", "run"]

FORGETTING = Claim(
    slug="kappatune",
    experiment="forgetting",
    title="KappaTune on SmolLM2-135M that learns ROT13",
    statement=(
        "At equal trainable parameters and equal loss on the new text, LoRA on the matrices of lowest condition number "
        "forgets more than LoRA on all matrices, and more than on as many drawn at random."
    ),
    metric="rise of control loss, nats per token",
    higher_is_better=False,
    expected=(
        Ordering(better="all linear", worse="low kappa"),
        Ordering(better="random", worse="low kappa"),
    ),
    paper="Fine-tuning the matrices of lowest condition number forgets less than LoRA, up to six times.",
    claimed=(Ordering(better="low kappa", worse="all linear"),),
)

SHAPES = Claim(
    slug="kappatune",
    experiment="shapes",
    title="What the condition number chooses",
    statement=(
        "Of half the blocks of SmolLM2-135M the fifth with the lowest condition numbers is the most rectangular: the "
        "shorter side of its matrices is a shorter part of the longer one than in a random fifth."
    ),
    metric="shorter over longer side, mean of the chosen",
    higher_is_better=False,
    expected=(
        Ordering(better="low kappa", worse="random", margin=0.1),
        Ordering(better="low kappa", worse="low kappa over that of a random matrix"),
    ),
    paper="A low condition number marks matrices that encode little knowledge.",
)

RANK = 2
"""Of LoRA on all matrices; the other arms get the rank that spends as many parameters."""

WINDOW, TASK_WINDOWS, CONTROL_WINDOWS = 32, 16, 8
STEPS, BATCH, LEARNING_RATE = 16, 2, 2e-3


def run(scale: str = "cpu", seeds: Sequence[int] = (1, 2, 3, 4, 5, 6)) -> list[ClaimResult]:
    """Run both experiments.

    A seed draws the windows of both texts, the adapters' start and the random arms; or the half of the blocks.
    """
    model, tokenizer = load("smollm2")
    report = condition_report(model, score="kappa")
    start = time.perf_counter()
    values = each_seed(lambda seed: _side_ratios(report, seed), seeds, "shapes of the chosen matrices")
    seconds = time.perf_counter() - start
    shapes = ClaimResult.judge(SHAPES, _arms(values), scale=scale, seeds=seeds, seconds=seconds)
    start = time.perf_counter()
    runs = [_Adaptation(model, tokenizer, report, seed).curves() for seed in track(seeds, "SmolLM2 learns ROT13")]
    comparison = compare_forgetting({arm: [curves[arm] for curves in runs] for arm in runs[0]}, method="low kappa")
    rises = {arm: [float(rise) for rise in values if rise is not None] for arm, values in comparison.rises.items()}
    notes = (
        f"Compared at a loss on the new text of {statistics.mean(comparison.levels):.2f} nats per token, the lowest "
        "that all arms reached (mean over seeds).",
        f"The report says: {comparison.verdict}.",
        "Declared after three seeds of a first version of this experiment, on a licence text, and seed 0 of this one; "
        "judged on other seeds. The six seeds were fixed beforehand; a first look was taken after four.",
    )
    seconds = time.perf_counter() - start
    return [ClaimResult.judge(FORGETTING, _arms(rises), scale=scale, seeds=seeds, seconds=seconds, notes=notes), shapes]


def _arms(values: Mapping[str, Sequence[float]]) -> list[Arm]:
    roles = {"low kappa": "method", "low kappa over that of a random matrix": "method", "all linear": "baseline"}
    return [Arm(name, roles.get(name, "control"), numbers) for name, numbers in values.items()]  # type: ignore[arg-type]


def _choices(report: ConditionReport, generator: torch.Generator) -> dict[str, Targets]:
    """The targets of every arm that has as many of them."""
    low = report.targets(top_p=0.2)
    return {
        "low kappa": low,
        "low kappa over that of a random matrix": dataclasses.replace(report, score="kappa_over_mp").targets(top_p=0.2),
        "high kappa": highest_targets(report, low),
        "random": random_targets(report, low, generator=generator),
        "random of the same shapes": shape_matched_targets(report, low, generator=generator),
    }


def _side_ratios(report: ConditionReport, seed: int) -> dict[str, float]:
    """Mean over the chosen matrices of a random half of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = sorted({_block(row.name) for row in report.rows})
    drawn = {blocks[i] for i in torch.randperm(len(blocks), generator=generator)[: len(blocks) // 2].tolist()}
    half = dataclasses.replace(report, rows=tuple(row for row in report.rows if _block(row.name) in drawn))
    ratios = {}
    for arm, targets in _choices(half, generator).items():
        shapes = [half.row(name).shape for name in targets["target_modules"] or ()]
        ratios[arm] = statistics.mean(min(shape) / max(shape) for shape in shapes)
    return ratios


def _block(name: str) -> str:
    """The block that ``model.layers.3.mlp.up_proj`` belongs to."""
    return name.split(".")[2]


class _Adaptation:
    """One seed: fresh copies of the model learn the same windows with the adapters of every arm."""

    def __init__(self, model: nn.Module, tokenizer: object, report: ConditionReport, seed: int) -> None:
        self.model, self.report, self.seed = model, report, seed
        generator = torch.Generator().manual_seed(seed)
        draw = {"length": WINDOW, "generator": generator}
        new = token_ids(tokenizer, codecs.encode(text("calibration"), "rot13"))
        known = token_ids(tokenizer, inspect.getsource(argparse) + inspect.getsource(tarfile))
        self.task = token_windows(new, count=TASK_WINDOWS, batch_size=TASK_WINDOWS, **draw)  # type: ignore[arg-type]
        self.control = token_windows(known, count=CONTROL_WINDOWS, batch_size=CONTROL_WINDOWS, **draw)  # type: ignore[arg-type]
        self.targets = {**_choices(report, generator), "all linear": report.targets()}

    def curves(self) -> dict[str, ForgettingCurve]:
        ranks = {arm: match_rank(self.report, targets, RANK) for arm, targets in self.targets.items()}
        spent = {arm: trainable_parameters(self.report, self.targets[arm], rank) for arm, rank in ranks.items()}
        curves = {arm: self._curve(arm, rank) for arm, rank in ranks.items()}
        compare_forgetting({arm: [curve] for arm, curve in curves.items()}, method="low kappa", trainable=spent)
        return curves

    def _curve(self, arm: str, rank: int) -> ForgettingCurve:
        model = copy.deepcopy(self.model)
        probe = ForgettingProbe(
            model, lambda m: mean_nll(m, self.task), lambda m: mean_nll(m, self.control), every=STEPS // 4
        )
        samples = [{"input_ids": window} for batch in self.task for window in batch["input_ids"]]
        train_lora(
            model,
            samples,
            self.targets[arm],
            rank=rank,
            dropout=0.0,
            seed=self.seed,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH,
            epochs=STEPS * BATCH // TASK_WINDOWS,
            after_step=probe,
        )
        return probe.curve
