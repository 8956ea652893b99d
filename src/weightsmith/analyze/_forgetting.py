r"""How much a model forgets while it learns, compared between methods at the same loss on what they learn.

A method that learns less also forgets less, so losses after so many steps say nothing about it. A probe records pairs
of (target loss, control loss) during each run. The control loss is then read off where the run reaches a target loss
:math:`\ell` that all runs reach, and its rise over the model before training is what was forgotten:

.. math:: f(\ell) = c(\ell) - c_0, \qquad c(\ell) \text{ interpolated between the pairs around } \ell .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError
from weightsmith.core.interval import Interval
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import default_loss

__all__ = ["Forgetting", "ForgettingCurve", "ForgettingProbe", "compare_forgetting", "mean_nll"]

PARITY = 0.25
"""Arms whose numbers of trainable parameters differ by more than this share are not compared."""

NO_EVIDENCE = "no evidence of reduced forgetting"


@dataclass
class ForgettingCurve:
    """Pairs of target and control loss along one run; the first is that of the model before it.

    Attributes
    ----------
    steps : list of int
        Optimizer steps taken at each pair.
    target : list of float
        Loss on what is learnt.
    control : list of float
        Loss on what is to be kept.
    """

    steps: list[int] = field(default_factory=list)
    target: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)

    def forgotten(self, level: float) -> float | None:
        """Rise of the control loss when the target loss first falls to ``level``; None if it never does.

        Examples
        --------
        >>> curve = ForgettingCurve([0, 1, 2], target=[4.0, 3.0, 2.0], control=[1.0, 1.5, 2.5])
        >>> curve.forgotten(2.5), curve.forgotten(1.0)
        (1.0, None)
        """
        below = next((i for i, loss in enumerate(self.target) if loss <= level), None)
        if not below:
            return None if below is None else 0.0
        before, after = self.target[below - 1 : below + 1]
        share = (before - level) / (before - after)
        control = self.control[below - 1] + share * (self.control[below] - self.control[below - 1])
        return control - self.control[0]


class ForgettingProbe:
    """Measure target and control loss of a model now, and again every few steps of its training.

    Make it before adapters are put in, so that its first pair is the model's own. Give it to
    :func:`weightsmith.core.training.fit` as ``after_step``, to Hugging Face's ``Trainer`` as
    ``callbacks=[probe.callback()]``, or call it in a loop of your own.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained in place.
    target, control : callable
        From the model, in evaluation mode and without gradients, to a loss; see :func:`mean_nll`.
    every : int, default: 10
        Steps between two measurements.

    Attributes
    ----------
    curve : ForgettingCurve
        What was measured.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> probe = ForgettingProbe(model, lambda m: m.weight.item(), lambda m: m.bias.item(), every=2)
    >>> for step in range(1, 6):
    ...     probe(step, 0.0)
    >>> probe.curve.steps
    [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        target: Callable[[nn.Module], float],
        control: Callable[[nn.Module], float],
        *,
        every: int = 10,
    ) -> None:
        if every < 1:
            raise HyperparameterError("every", found=every, expected=">= 1")
        self.model, self.target, self.control, self.every = model, target, control, every
        self.curve = ForgettingCurve()
        self.measure(0)

    def __call__(self, step: int, loss: float) -> None:
        """Measure after this step, if it is its turn; the training loss is not needed."""
        if step % self.every == 0:
            self.measure(step)

    def measure(self, step: int) -> None:
        """Measure now."""
        with torch.no_grad(), evaluation_mode(self.model):
            self.curve.steps.append(step)
            self.curve.target.append(float(self.target(self.model)))
            self.curve.control.append(float(self.control(self.model)))

    def callback(self) -> Any:
        """The probe as a ``TrainerCallback``."""
        from transformers import TrainerCallback

        probe = self

        class Callback(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                probe(state.global_step, 0.0)

        return Callback()


@dataclass(frozen=True)
class Forgetting:
    """What each arm forgot at a matched target loss.

    Attributes
    ----------
    method : str
        The arm in question.
    levels : tuple of float
        The matched target loss of every seed.
    rises : mapping of str to tuple of float or None
        Rise of the control loss of every arm and seed; None where the arm did not reach the level.
    """

    method: str
    levels: tuple[float, ...]
    rises: Mapping[str, tuple[float | None, ...]]

    def saved(self, other: str) -> tuple[float, float, float]:
        """By how much less the method forgets than ``other``: mean over the seeds that both reached, 95 % interval.

        The interval is infinite with fewer than two such seeds.
        """
        pairs = zip(self.rises[other], self.rises[self.method], strict=True)
        differences = [theirs - ours for theirs, ours in pairs if theirs is not None and ours is not None]
        if len(differences) < 2:
            return (differences or [float("nan")])[0], -float("inf"), float("inf")
        interval = Interval.of(differences)
        return interval.mean, interval.low, interval.high

    @property
    def verdict(self) -> str:
        """Whether the method forgets less than every other arm, with 95 % confidence in each comparison."""
        others = [arm for arm in self.rises if arm != self.method]
        if all(self.saved(arm)[1] > 0 for arm in others):
            return f"{self.method} forgets less than {', '.join(others)}"
        worse = [arm for arm in others if self.saved(arm)[2] < 0]
        return NO_EVIDENCE + (f": {self.method} forgets more than {', '.join(worse)}" if worse else "")

    def table(self) -> Table:
        """The rise of every arm and what the method saves against it, as a rich table; the verdict below."""
        table = Table(caption=self.verdict, caption_justify="left", title_justify="left")
        table.add_column("arm")
        for name in ("rise of control loss", f"{self.method} saves", "seeds that reached the level"):
            table.add_column(name, justify="right")
        for arm, rises in self.rises.items():
            reached = [rise for rise in rises if rise is not None]
            mean, low, high = self.saved(arm)
            saves = "" if arm == self.method else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            rise = f"{np.mean(reached):+.3f}" if reached else "not reached"
            table.add_row(arm, rise, saves, f"{len(reached)} of {len(rises)}")
        return table


def compare_forgetting(
    curves: Mapping[str, Sequence[ForgettingCurve]],
    *,
    method: str,
    level: float | None = None,
    trainable: Mapping[str, int] | None = None,
) -> Forgetting:
    """Compare arms at the same target loss, seed by seed.

    Parameters
    ----------
    curves : mapping of str to sequence of ForgettingCurve
        Of every arm, one per seed, in the same order of seeds. Never without arms that choose at random: a method that
        does not beat these has no merit of its own.
    method : str
        The arm in question.
    level : float, optional
        The target loss; by default, for each seed, the lowest that all arms reached.
    trainable : mapping of str to int, optional
        Trainable parameters of every arm.

    Returns
    -------
    Forgetting
        Rises, savings and the verdict.

    Raises
    ------
    HyperparameterError
        If there is no such arm or no other, or the arms' trainable parameters differ by more than a quarter.
    CalibrationError
        If the arms have not the same number of curves, one has no pair, or some arm never got below the loss it started
        from.
    NonFiniteError
        If a loss is NaN or infinite where an arm reaches the level.

    Examples
    --------
    >>> low, other = [ForgettingCurve([0, 9], [4.0, 2.0], [1.0, rise]) for rise in (2.0, 1.2)]
    >>> compare_forgetting({"low": [low] * 3, "random": [other] * 3}, method="low").verdict
    'no evidence of reduced forgetting: low forgets more than random'
    """
    if method not in curves or len(curves) < 2:
        raise HyperparameterError(f"method {method!r}", found=sorted(curves), expected="an arm, and at least one other")
    if trainable is not None and min(trainable.values()) < (1 - PARITY) * max(trainable.values()):
        raise HyperparameterError(
            "trainable parameters of the arms",
            found=dict(trainable),
            expected=f"at most {PARITY:.0%} between them",
            do="Match the ranks first; unequal arms say nothing about the method.",
        )
    counts = {arm: len(runs) for arm, runs in curves.items()}
    if len(set(counts.values())) != 1 or not counts[method]:
        raise CalibrationError("curves of the arms", found=counts, expected="the same number, at least one")
    for arm, runs in curves.items():
        if empty := [seed for seed, run in enumerate(runs) if not run.target]:
            raise CalibrationError(f"curve of {arm!r}, run {empty[0]}", found="no pair", expected="at least one")
    levels = tuple(_common_level(runs) if level is None else level for runs in zip(*curves.values(), strict=True))
    for seed, common in enumerate(levels):
        if any(common >= runs[seed].target[0] for runs in curves.values()):
            least = max(curves, key=lambda arm: _lowest(curves[arm][seed]))
            raise CalibrationError(
                f"target loss to compare at, run {seed}",
                found=f"{common:.4g}, where an arm starts; {least!r} has learnt least",
                do="Train all arms until they have learnt something, or give a lower level.",
            )
    rises = {
        arm: tuple(run.forgotten(common) for run, common in zip(runs, levels, strict=True))
        for arm, runs in curves.items()
    }
    for arm, found in rises.items():
        if wrong := [seed for seed, rise in enumerate(found) if rise is not None and not math.isfinite(rise)]:
            raise NonFiniteError(
                f"the losses of {arm!r}, run {wrong[0]}, where it reaches the target loss {levels[wrong[0]]:.4g}",
                do="Leave out runs that diverged, from all arms.",
            )
    return Forgetting(method, levels, rises)


def mean_nll(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Negative log-likelihood a predicted token, in nats, of a causal language model.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face causal language model.
    batches : sequence of mapping
        ``{"input_ids": Tensor[B, L]}``, with an attention mask or ``labels`` where some tokens do not count.

    Returns
    -------
    float
        Mean over all predicted tokens of all batches: labels are shifted, the first token of a window has no score.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad(), evaluation_mode(model):
        for batch in batches:
            moved = {name: value.to(device) for name, value in batch.items()}
            real = moved.get("attention_mask", torch.ones_like(moved["input_ids"])) != 0
            labels = moved.setdefault("labels", moved["input_ids"].masked_fill(~real, -100))
            tokens = int((labels[:, 1:] != -100).sum())
            total += default_loss(model, moved).item() * tokens
            count += tokens
    if not count:
        raise CalibrationError("batches to measure the loss on", found="no token that is predicted")
    return total / count


def _common_level(runs: Sequence[ForgettingCurve]) -> float:
    """The lowest target loss that every run reached."""
    return max(map(_lowest, runs))


def _lowest(run: ForgettingCurve) -> float:
    """The lowest target loss of a run, infinite if all are NaN."""
    return min((loss for loss in run.target if not math.isnan(loss)), default=math.inf)
