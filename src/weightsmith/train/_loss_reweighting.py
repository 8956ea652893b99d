r"""Loss-based reweighting: weight each training sample by its current loss, from the same forward pass.

Sow, Woisetschlaeger, Bulusu, Wang, Jacobsen, Liang 2025, arXiv 2502.06733. The losses :math:`l_i` of all samples of a
step, on all processes together, are stretched to :math:`[-\delta, \delta]` and turned into weights that sum to one:

.. math::

    h_i = \delta \, \frac{2 l_i - l_{\max} - l_{\min}}{l_{\max} - l_{\min}}, \qquad
    w_i = \mathrm{softmax}_i \bigl( f(h_i) / r \bigr), \qquad L = \sum_i w_i \, l_i .

The strategy :math:`f` decides which samples count more. ``linupper``, :math:`f(h) = \min(h + \delta, \delta)`, rises
over the lower half of the losses and is constant over the upper half: samples that the model has learned already count
less, and no outlier counts more than the rest of its half. The weights are constants to the gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Unpack

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.processes import process_count
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    Loss,
    batch_count,
    draw_seed,
    fit,
    labels_and_logits,
    predict,
    seed_of,
    share_of_step,
    training_method,
)

__all__ = ["LossReweighter", "loss_reweighting", "loss_weights", "per_sequence_loss", "reweighted"]

Strategy = Literal["linupper", "quadratic", "extremes", "linear", "uniform"]
NonFinite = Literal["raise", "drop"]

STRATEGIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linupper": lambda h, delta: (h + delta).clamp(max=delta),
    "quadratic": lambda h, delta: 1 - (h / delta).square(),
    "extremes": lambda h, _: h.abs(),
    "linear": lambda h, delta: (h + delta) / 2,
    "uniform": lambda h, _: torch.zeros_like(h),
}

SMALLEST_RANGE = 1e-6


def loss_weights(
    losses: Float[Tensor, "B"],
    strategy: Strategy = "linupper",
    *,
    r: float = 0.4,
    delta: float = 1.0,
    clip_quantile: float = 0.0,
) -> Float[Tensor, "B"]:
    r"""Compute the weights of a group of losses.

    Parameters
    ----------
    losses : Tensor of shape (B,)
        Finite, one per sample.
    strategy : {"linupper", "quadratic", "extremes", "linear", "uniform"}, default: "linupper"
        Whom to favor: all but the low losses, the middle ones, both ends, the high ones in proportion, or nobody.
    r : float, default: 0.4
        Temperature, positive: at ``delta=1`` the largest weight is at most :math:`e^{1/r}` times the smallest. 1 is
        conservative.
    delta : float, default: 1.0
        Half of the range the losses are stretched to.
    clip_quantile : float, default: 0.0
        Take the range between this quantile and its opposite, in [0, 0.5), so that an outlier does not squeeze the rest
        together; losses outside count as at its ends.

    Returns
    -------
    Tensor of shape (B,)
        float32, not negative, with sum one and without gradient.

    Raises
    ------
    HyperparameterError
        If the strategy is unknown, ``r`` or ``delta`` not positive, or ``clip_quantile`` outside [0, 0.5).
    ShapeError
        If ``losses`` is not a vector with at least one entry.

    References
    ----------
    Sow et al. 2025, arXiv 2502.06733.

    Examples
    --------
    >>> loss_weights(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), r=1.0)
    tensor([0.0926, 0.1526, 0.2516, 0.2516, 0.2516])
    """
    _check(strategy, r, delta, clip_quantile)
    if losses.ndim != 1 or not len(losses):
        raise ShapeError("losses", found=tuple(losses.shape), expected="one per sample (use reduction='none')")
    l_B = losses.detach().float()
    if clip_quantile:
        low, high = torch.quantile(l_B, torch.tensor([clip_quantile, 1 - clip_quantile], device=l_B.device))
        l_B = l_B.clamp(low, high)
    else:
        low, high = l_B.aminmax()
    h_B = delta * (2 * l_B - high - low) / (high - low).clamp(min=SMALLEST_RANGE)
    return (STRATEGIES[strategy](h_B, delta) / r).softmax(0)


def per_sequence_loss(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], *, ignore_index: int = -100
) -> tuple[Float[Tensor, "B"], Int[Tensor, "B"]]:
    """Mean cross-entropy of every sequence over its active tokens, and how many these are.

    Parameters
    ----------
    logits : Tensor of shape (B, T, V)
        Where a position's logits are about its label: for next-token models shift first, see
        :func:`weightsmith.core.training.shift_for_causal_lm`.
    labels : Tensor of shape (B, T)
        Class indices.
    ignore_index : int, default: -100
        Label of tokens that are not active.

    Returns
    -------
    losses : Tensor of shape (B,)
        float32; zero for a sequence without active tokens.
    tokens : Tensor of shape (B,)
        Active tokens.

    Examples
    --------
    >>> losses, tokens = per_sequence_loss(torch.zeros(2, 3, 4), torch.tensor([[0, 1, -100], [-100, -100, -100]]))
    >>> losses, tokens
    (tensor([1.3863, 0.0000]), tensor([2, 0]))
    """
    each = functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=ignore_index
    )
    tokens = (labels != ignore_index).sum(1)
    return each.view(labels.shape).sum(1) / tokens.clamp(min=1), tokens


class LossReweighter(nn.Module):
    """From the losses of a batch to one loss, weighted among all samples of the step on all processes.

    Parameters
    ----------
    strategy : {"linupper", "quadratic", "extremes", "linear", "uniform"}, default: "linupper"
        See :func:`loss_weights`.
    r : float or callable, default: 0.4
        Temperature, or a function from the number of calls so far to it.
    delta : float, default: 1.0
        Half of the range the losses are stretched to.
    clip_quantile : float, default: 0.0
        See :func:`loss_weights`.
    warmup_steps : int, default: 0
        Calls in training mode at the start that return the plain mean: of tokens, where their numbers are given.
    window : int, default: 0
        Losses of earlier calls that join the group. With small micro-batches (of one sample the weight is always one)
        as many as an optimizer step has samples.
    nonfinite : {"raise", "drop"}, default: "raise"
        Stop at a loss that is NaN or infinite, or leave the sample out.
    token_weighted : bool, default: False
        Also weight every sequence by its number of tokens, as the code for GPT-2 did.
    group : torch.distributed.ProcessGroup, optional
        The processes whose samples are weighted together; all by default.

    Attributes
    ----------
    last_weights : Tensor or None
        The weights of this process's samples in the last call; without a ``window`` they sum to one over all processes.
    effective_sample_size : float
        The squared sum of the weights of the last call's group, over the sum of their squares: the number of samples,
        those of the ``window`` included, for equal weights.

    References
    ----------
    Sow et al. 2025, arXiv 2502.06733.

    Examples
    --------
    >>> reweighter = LossReweighter(r=1.0)
    >>> losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> reweighter(losses).backward()
    >>> torch.equal(losses.grad, reweighter.last_weights)
    True
    """

    step: Tensor

    def __init__(
        self,
        strategy: Strategy = "linupper",
        *,
        r: float | Callable[[int], float] = 0.4,
        delta: float = 1.0,
        clip_quantile: float = 0.0,
        warmup_steps: int = 0,
        window: int = 0,
        nonfinite: NonFinite = "raise",
        token_weighted: bool = False,
        group: Any = None,
    ) -> None:
        super().__init__()
        _check(strategy, 1.0 if callable(r) else r, delta, clip_quantile)
        check_choice("nonfinite", nonfinite, NonFinite)
        for name, value in (("warmup_steps", warmup_steps), ("window", window)):
            if value < 0:
                raise HyperparameterError(name, found=value, expected=">= 0")
        self.strategy: Strategy = strategy
        self.r, self.delta, self.clip_quantile = r, delta, clip_quantile
        self.warmup_steps, self.window, self.nonfinite = warmup_steps, window, nonfinite
        self.token_weighted, self.group = token_weighted, group
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.last_weights: Tensor | None = None
        self.effective_sample_size = 0.0
        self._earlier = torch.empty(0)
        self._warned = False

    def forward(self, losses: Float[Tensor, "..."], tokens: Int[Tensor, "B"] | None = None) -> Float[Tensor, ""]:
        """Weight the losses of this process's samples and add them up.

        Parameters
        ----------
        losses : Tensor of shape (B,)
            One per sample.
        tokens : Tensor of shape (B,), optional
            Active tokens of each sample; those with none are left out.

        Returns
        -------
        Tensor
            The loss to call ``backward`` on. With several processes it is multiplied by their number, since
            DistributedDataParallel averages gradients: their mean is the weighted sum.

        Raises
        ------
        ShapeError
            If ``losses`` is a scalar.
        CalibrationError
            If there is no sample.
        NonFiniteError
            If a loss is NaN or infinite, unless ``nonfinite="drop"``.
        """
        if losses.ndim != 1:
            raise ShapeError(
                "losses", found=f"shape {tuple(losses.shape)}", expected="one per sample (reduction='none')"
            )
        if not len(losses):
            raise CalibrationError("a batch without samples has no losses to weight")
        l_B = losses.float()
        lengths = torch.ones_like(l_B, dtype=torch.long) if tokens is None else tokens
        kept = self._kept(l_B, lengths)
        l_B = torch.where(kept, l_B, 0.0)
        # a sample that is left out is sent as NaN, as is the padding of shorter batches
        everyone, lengths_all, mine, world = self._gather(l_B.detach().masked_fill(~kept, torch.nan), lengths)
        present = ~everyone.isnan()
        weights = torch.zeros_like(everyone)
        self.effective_sample_size = 0.0
        if bool(present.any()):
            weights[present] = self._weights(everyone[present], lengths_all[present])
        w_B = weights[mine]
        if self.training:
            self.step += 1
            if self.window:
                self._earlier = torch.cat([self._earlier.to(everyone), everyone[present]])[-self.window :]
        self.last_weights = w_B
        return world * (w_B * l_B).sum()

    def compute_loss_func(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        """Compute the loss for ``transformers.Trainer(compute_loss_func=...)`` of a language model or a classifier.

        Every micro-batch of an accumulated step counts by its share of the step's labels, on all processes together.
        Without gradients, as in an evaluation, all samples have equal weights. With a window or a warm-up, put the
        state into the checkpoints: ``callbacks=[LossCheckpoint(reweighter)]``.
        """
        labels, logits = labels_and_logits(outputs, labels)
        _check_classes(labels, logits)
        if labels.ndim == 1:
            labels, logits = labels.unsqueeze(1), logits.unsqueeze(1)
        losses, tokens = per_sequence_loss(logits, labels)
        count = tokens.sum()
        if not torch.is_grad_enabled():
            return (losses * tokens).sum() / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        loss: Tensor = self(losses, tokens)
        if num_items_in_batch is None:
            return loss
        world = 1
        if dist.is_available() and dist.is_initialized():
            world = dist.get_world_size(self.group)
            dist.all_reduce(count, group=self.group)
        # the Trainer multiplies a loss that it hands a number of labels by the number of processes, as `forward` does
        return loss / world * share_of_step(count, num_items_in_batch)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the losses of earlier calls, which belong to the state dict."""
        return {"earlier": self._earlier}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take over the losses of earlier calls."""
        self._earlier = state["earlier"].clone()

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return f"{self.strategy!r}, r={self.r}, delta={self.delta}, warmup_steps={self.warmup_steps}"

    def _weights(self, losses: Tensor, lengths: Tensor) -> Tensor:
        """The weights of a whole step's samples, which sum to one without a window."""
        count, step = len(losses), int(self.step)
        if self.training and step < self.warmup_steps:
            weights = (lengths / lengths.sum()).float()
            self.effective_sample_size = _effective_size(weights)
            return weights
        if count + len(self._earlier) == 1 and not self._warned:
            self._warned = True
            warnings.warn("one sample per step: its weight is always 1; give window=", stacklevel=3)
        r = self.r(step) if callable(self.r) else self.r
        group = torch.cat([losses, self._earlier.to(losses)])
        weights = loss_weights(group, self.strategy, r=r, delta=self.delta, clip_quantile=self.clip_quantile)
        if self.token_weighted:
            weights[:count] *= lengths * (count / lengths.sum())
        self.effective_sample_size = _effective_size(weights)
        return weights[:count] * (len(group) / count)

    def _kept(self, losses: Tensor, lengths: Tensor) -> Bool[Tensor, "B"]:
        kept, finite = lengths > 0, losses.detach().isfinite()
        if self.nonfinite == "raise" and not bool((finite | ~kept).all()):
            bad = (kept & ~finite).nonzero().flatten().tolist()
            raise NonFiniteError("losses", found=f"NaN or infinity at samples {bad[:5]}", do="Or nonfinite='drop'.")
        return kept & finite

    def _gather(self, losses: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, slice, int]:
        """The losses and lengths of all processes, which of them are this one's, and how many processes there are."""
        if not (dist.is_available() and dist.is_initialized()):
            return losses, lengths, slice(len(losses)), 1
        world, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        size = torch.tensor([len(losses)], device=losses.device)
        sizes = [torch.empty_like(size) for _ in range(world)]
        dist.all_gather(sizes, size, group=self.group)
        longest = max(int(other) for other in sizes)
        mine = torch.full((2, longest), torch.nan, device=losses.device)
        mine[0, : len(losses)], mine[1, : len(losses)] = losses, lengths.float()
        rows = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(rows, mine, group=self.group)
        everyone = torch.cat(rows, 1)
        start = rank * longest
        return everyone[0], everyone[1].nan_to_num().long(), slice(start, start + len(losses)), world


def _effective_size(weights: Tensor) -> float:
    return float(weights.sum().square() / weights.square().sum())


def reweighted(reweighter: LossReweighter) -> Loss:
    """Make a loss for :func:`weightsmith.core.training.fit`: the model's cross-entropies, weighted.

    Parameters
    ----------
    reweighter : LossReweighter
        Keeps its state from batch to batch.

    Returns
    -------
    callable
        ``loss(model, batch)``; a batch is (inputs, classes), or a mapping with ``labels`` of sequences or of samples.

    Examples
    --------
    >>> loss = reweighted(LossReweighter("uniform"))
    >>> round(loss(nn.Identity(), (torch.zeros(3, 4), torch.tensor([0, 1, 2]))).item(), 4)
    1.3863
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits, labels = predict(model, batch)
        _check_classes(labels, logits)
        if labels.ndim == 1:
            logits, labels = logits.unsqueeze(1), labels.unsqueeze(1)
        total: Tensor = reweighter(*per_sequence_loss(logits, labels))
        return total

    return loss


@training_method(learning_rate=1e-4, weight_decay=0.01, batch_size=8, scheduler="cosine")
def loss_reweighting(
    model: nn.Module,
    training: Samples,
    *,
    strategy: Strategy = "linupper",
    r: float = 0.4,
    delta: float = 1.0,
    clip_quantile: float = 0.0,
    weight_warmup: float = 0.05,
    window: int = 0,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train with every sample weighted by its current loss among those of its batch.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    training : sequence of mapping
        Samples with the model's inputs and ``labels``.
    strategy : {"linupper", "quadratic", "extremes", "linear", "uniform"}, default: "linupper"
        Which samples count more.
    r : float, default: 0.4
        Temperature.
    delta : float, default: 1.0
        Half of the range the losses are stretched to.
    clip_quantile : float, default: 0.0
        Guards the range against outliers.
    weight_warmup : float, default: 0.05
        Share of all batches at the start, in [0, 1), with equal weights of all tokens.
    window : int, default: 0
        Losses of earlier batches that join those of a batch. Where gradients of small batches are accumulated, as many
        as a step has samples.
    generator : torch.Generator, optional
        Draws the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The samples of one batch are weighted
        among each other. The optimizer is AdamW.

    Returns
    -------
    Result
        Weighted losses and effective sample sizes of the steps.

    Raises
    ------
    CalibrationError
        If no sample of a batch has a label but -100.
    HyperparameterError
        If an option is out of range, or a batch has one sample and there is no window: its weight would always be one.
    ShapeError
        If labels are real numbers.

    References
    ----------
    Sow et al. 2025, arXiv 2502.06733.
    """
    if not 0 <= weight_warmup < 1:
        raise HyperparameterError("weight_warmup", found=weight_warmup, expected="a share in [0, 1)")
    if options["batch_size"] * process_count() < 2 and not window:
        raise HyperparameterError(
            "batch_size", found=1, expected=">= 2 without a window", do="A sample alone always has weight one."
        )
    hyper: dict[str, Any] = {"r": r, "delta": delta, "clip_quantile": clip_quantile, "window": window}
    seed = draw_seed(generator)
    with record(
        "loss-reweighting", seed=seed_of(generator), strategy=strategy, weight_warmup=weight_warmup, **hyper, **options
    ) as result:
        batches = batch_count(len(training), options) * options["epochs"]
        reweighter = LossReweighter(strategy, warmup_steps=round(weight_warmup * batches), **hyper)
        sizes: list[float] = []

        def after_step(step: int, _: float) -> None:
            sizes.append(reweighter.effective_sample_size)
            if not sizes[-1]:
                raise CalibrationError(
                    f"the batch of step {step}", found="no label that counts", do="Leave out samples without labels."
                )

        run = fit(
            model,
            training,
            loss=reweighted(reweighter),
            after_step=after_step,
            seed=seed,
            **options,
        )
        result.curves = {"training loss": run.losses, "effective sample size": sizes}
        result.totals["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return result


def _check_classes(labels: Tensor, logits: Tensor) -> None:
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ShapeError("labels", found=found, expected=f"class indices of shape {tuple(logits.shape[:-1])}")


def _check(strategy: str, r: float, delta: float, clip_quantile: float) -> None:
    check_choice("strategy", strategy, Strategy)
    for name, value in (("r", r), ("delta", delta)):
        if not 0 < value < math.inf:
            raise HyperparameterError(name, found=value, expected="a positive number")
    if not 0 <= clip_quantile < 0.5:
        raise HyperparameterError("clip_quantile", found=clip_quantile, expected="in [0, 0.5)")
