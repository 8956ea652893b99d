r"""A score for every weight: how much it carries of what must be forgotten and not of what must be kept.

Legend: one flat position for each weight of all parameters, in the order of ``named_parameters``.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples, batched, pad_token_id, to_model
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import evaluation_mode
from weightsmith.core.processes import all_reduce_sum, process_count
from weightsmith.core.progress import track
from weightsmith.core.selection import kth_largest
from weightsmith.core.sharding import is_sharded, refuse_without_fsdp, whole
from weightsmith.core.training import gradients_restored, sample_losses
from weightsmith.forget._shared.mask import WeightMask

__all__ = ["Method", "WeightScores", "attribute_weights"]

Method = Literal["wagle", "snip", "saliency", "magnitude", "random"]
Per = Literal["example", "token"]


@dataclass(frozen=True)
class WeightScores:
    """Scores of the weights of a model, higher for those to unlearn through.

    Attributes
    ----------
    scores : dict of str to Tensor
        Per parameter, of its shape, float32, >= 0.
    skipped : int
        Batches without a label that counts.
    balance : float or None
        WAGLE: median of the second term ``|g_r| / gamma`` over the median weight. Far above 1, the weights themselves
        play no part; far below 1, what is to be retained does not.
    notes : list of str
        What else one should know: parameters that no sample uses, a ``gamma`` out of balance.
    """

    scores: dict[str, Tensor]
    skipped: int = 0
    balance: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of scored weights."""
        return sum(score.numel() for score in self.scores.values())

    def top(self, density: float, *, include: str | Sequence[str] = "*") -> WeightMask:
        """Mark the weights with the highest scores, exactly ``int(density * size)``; of equal scores the first ones.

        Parameters
        ----------
        density : float
            Share of the weights, in [0, 1].
        include : str or sequence of str, default: "*"
            Shell patterns on the names of parameters; of the others no weight is marked.

        Raises
        ------
        HyperparameterError
            If ``density`` is out of range or no parameter matches.

        Examples
        --------
        >>> scores = WeightScores({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 2.0])})
        >>> {name: mask.tolist() for name, mask in scores.top(0.5).items()}
        {'a': [True, False], 'b': [True, False]}
        """
        if not 0 <= density <= 1:
            raise HyperparameterError("density", found=density, expected="0 <= density <= 1")
        wanted = [include] if isinstance(include, str) else include
        chosen = {n: s for n, s in self.scores.items() if any(fnmatch.fnmatchcase(n, p) for p in wanted)}
        if not chosen:
            raise HyperparameterError(
                "include", found=include, expected=f"a pattern of names such as {[*self.scores][:2]}"
            )
        ((bound, equal),) = kth_largest(
            lambda: [[score] for score in chosen.values()], lambda size: int(density * size)
        )
        masks = {}
        for name, score in self.scores.items():
            if name not in chosen:
                masks[name] = torch.zeros_like(score, dtype=torch.bool)
                continue
            mask = score > bound
            if equal:
                ties = (score == bound).flatten().nonzero().squeeze(1)[:equal]
                mask[torch.unravel_index(ties, mask.shape)] = True
                equal -= len(ties)
            masks[name] = mask
        return WeightMask(masks)


def attribute_weights(
    model: nn.Module,
    forget: Samples | None,
    retain: Samples | None = None,
    *,
    method: Method = "wagle",
    gamma: float = 1e-4,
    per: Per = "example",
    batch_size: int = 8,
    generator: torch.Generator | None = None,
) -> WeightScores:
    r"""Score every trainable weight of a model.

    ==============  ==========================================================
    ``"wagle"``     :math:`|(\theta - g_r / \gamma) \, g_f|`
    ``"snip"``      :math:`|\theta \, g_f|`, WAGLE for an infinite ``gamma``
    ``"saliency"``  :math:`|g_f|`, the mask of SalUn (arXiv 2310.12508)
    ``"magnitude"``  :math:`|\theta|`
    ``"random"``    uniform, the control of every other
    ==============  ==========================================================

    Parameters
    ----------
    model : nn.Module
        Any model that computes its loss from a sample. It does not change. Parameters with ``requires_grad=False``
        have no score. Under FSDP2 every process gets the scores of the whole model; each needs as many batches as the
        others.
    forget, retain : sequence of samples, optional
        What to forget, whose mean loss has the gradient ``g_f``, and what to retain, ``g_r``. Magnitude and random
        need neither; only WAGLE needs what to retain.
    method : str, default: "wagle"
        The score.
    gamma : float, default: 1e-4
        Curvature that the loss on what is retained is taken to have, > 0; on the scale of *mean* gradients. The
        authors' 1e-6 is on sums over 400 samples divided by 4, which is 1e-8 here.
    per : {"example", "token"}, default: "example"
        Whether every sample or every token weighs the same in the mean loss.
    batch_size : int, default: 8
        Samples per forward pass.
    generator : torch.Generator, optional
        Draws the random scores.

    Returns
    -------
    WeightScores
        Gradients are accumulated in float32; the peak of memory is the model, two such copies of it, and what a forward
        and backward pass over ``batch_size`` samples takes.

    Raises
    ------
    CalibrationError
        If the set to forget or to retain is missing, empty, or has no label that counts.
    HyperparameterError
        If a hyper-parameter is out of range.
    NonFiniteError
        If a gradient holds NaN or infinity; the parameter and the batch are named.
    UnsupportedModelError
        If no parameter is trainable, or weights are quantized.

    References
    ----------
    Jia, Liu, Zhang, et al., "WAGLE", arXiv 2410.17509.

    Examples
    --------
    >>> model = nn.Linear(3, 2)
    >>> data = [(torch.ones(3), torch.tensor(0)), (torch.zeros(3), torch.tensor(1))]
    >>> scores = attribute_weights(model, data[:1], data[1:])
    >>> {name: tuple(score.shape) for name, score in scores.scores.items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    check_choice("method", method, Method)
    check_choice("per", per, Per)
    if not gamma > 0:
        raise HyperparameterError("gamma", found=gamma, expected="a number > 0")
    if batch_size < 1:
        raise HyperparameterError("batch_size", found=batch_size, expected=">= 1")
    refuse_without_fsdp(model)
    weights = _weights(model)
    if method == "magnitude":
        return WeightScores({name: whole(weight.detach()).float().abs() for name, weight in weights.items()})
    if method == "random":
        return WeightScores({name: _random(weight, generator) for name, weight in weights.items()})
    scores, skipped, used = _mean_gradient(model, weights, forget, "forget", per, batch_size)
    balance = None
    if method == "saliency":
        for score in scores.values():
            score.abs_()
    elif method == "snip":
        for name, score in scores.items():
            score.mul_(weights[name].detach()).abs_()
    else:
        # all samples to retain; the authors draw as many at random as there are to forget
        retained, more_skipped, _ = _mean_gradient(model, weights, retain, "retain", per, batch_size)
        skipped += more_skipped
        balance = _balance(retained, weights, gamma)
        for name, score in scores.items():
            pull = retained.pop(name).div_(-gamma).add_(weights[name].detach())
            score.mul_(pull).abs_()
    notes = []
    if unused := [name for name in weights if name not in used]:
        notes.append(f"{len(unused)} parameters such as {unused[0]!r} are not used by any sample: score 0.")
    if balance is not None and not 0.01 <= balance <= 100:
        part = "the weights themselves play" if balance > 1 else "what is retained plays"
        notes.append(
            f"gamma = {gamma:g} is unbalanced: the median of |g_r| / gamma is {balance:.2g} times that of |weight|: "
            f"{part} no part in the score."
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return WeightScores({name: whole(score) for name, score in scores.items()}, skipped, balance, notes)


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters to score; tied ones once."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    packed = [name for name, p in model.named_parameters() if not p.is_floating_point() or p.element_size() < 2]
    if packed or not weights:
        raise UnsupportedModelError(
            "attribution needs float weights that are trained",
            found=f"{len(packed)} quantized parameters such as {packed[0]!r}" if packed else "only frozen parameters",
            do="Load the model in bf16 or fp32, and unfreeze what may change.",
        )
    return weights


def _random(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def _mean_gradient(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    samples: Samples | None,
    what: str,
    per: str,
    batch_size: int,
) -> tuple[dict[str, Tensor], int, set[str]]:
    """The gradient of the mean loss in float32, the batches without labels, and the parameters that have one."""
    if samples is None or not len(samples):
        raise CalibrationError(f"the {what} set is empty", expected="at least one sample")
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    used: set[str] = set()
    count = skipped = 0
    batches = batched(samples, batch_size, pad_token_id=pad_token_id(model))
    with (
        evaluation_mode(model),
        gradients_restored(model),
        torch.enable_grad(),
        _accumulating(weights, sums, used) as at,
    ):
        for at[0], batch in enumerate(track(batches, f"gradient of the {what} set", total=len(batches))):
            losses, counted = sample_losses(model, to_model(batch, model))
            tokens = counted.sum(1)
            if not bool(tokens.any()):
                skipped += 1
                continue
            if per == "token":
                losses.sum().backward()
                count += int(tokens.sum())
            else:
                (losses.sum(1) / tokens.clamp(min=1)).sum().backward()
                count += int((tokens > 0).sum())
    total = torch.tensor(count)
    all_reduce_sum(total, *(each for each in sums.values() if not is_sharded(each)))
    for each in sums.values():
        if is_sharded(each):  # fully_shard has averaged these over processes
            each.mul_(process_count())
    if not total:
        raise CalibrationError(f"the {what} set has no label that counts", found="-100 everywhere")
    for each in sums.values():
        each.div_(int(total))
    return sums, skipped, used


class _accumulating:
    """Add every gradient to a sum in float32 as soon as it is complete, and drop it."""

    def __init__(self, weights: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor], used: set[str]) -> None:
        self.weights, self.sums, self.used, self.at = weights, sums, used, [0]

    def __enter__(self) -> list[int]:
        self.handles = [
            weight.register_post_accumulate_grad_hook(partial(self._add, name)) for name, weight in self.weights.items()
        ]
        return self.at

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _add(self, name: str, weight: Tensor) -> None:
        gradient = weight.grad
        assert gradient is not None
        if not is_finite(gradient):
            raise NonFiniteError(f"the gradient of {name!r} at batch {self.at[0]}", found="NaN or infinity")
        self.sums[name].add_(gradient)
        self.used.add(name)
        weight.grad = None


def _balance(retained: Mapping[str, Tensor], weights: Mapping[str, Tensor], gamma: float) -> float:
    """The median of the second term over that of the first, from a sample of the weights."""
    pulls, sizes = (
        torch.cat([_strided(values[name].detach()).float().abs() for name in retained])
        for values in (retained, weights)
    )
    return float(pulls.median() / gamma / sizes.median().clamp(min=torch.finfo(torch.float32).tiny))


def _strided(tensor: Float[Tensor, "..."]) -> Float[Tensor, "sampled"]:
    tensor = whole(tensor)
    return tensor.flatten()[:: max(1, tensor.numel() // 10_000) | 1]
