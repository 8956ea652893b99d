"""What a retrodicted network must beat: extrapolations, averages, and the cheap explanation, plain shrinkage.

Every function takes a trajectory (state dicts, **smallest training set first**) or the trained network's state dict
and returns a state dict. Integer buffers always come from the trained network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, ShapeError

__all__ = [
    "ema",
    "linear",
    "logfit",
    "matched_learning_rates",
    "matched_shrink",
    "naive",
    "rescaled",
    "shrink_and_perturb",
    "soup",
]

StateDict = Mapping[str, Tensor]


def naive(trajectory: Sequence[StateDict]) -> dict[str, Tensor]:
    """The trained network itself.

    Examples
    --------
    >>> naive([{"w": torch.zeros(1)}, {"w": torch.ones(1)}])
    {'w': tensor([1.])}
    """
    return dict(trajectory[-1])


def linear(trajectory: Sequence[StateDict], a: float = 1.0) -> dict[str, Tensor]:
    r"""Task-vector extrapolation :math:`\theta_0 + a (\theta_0 - \theta_1)`.

    Examples
    --------
    >>> linear([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], a=0.5)
    {'w': tensor([4.])}
    """
    return _combine(trajectory, lambda stack: stack[-1] + a * (stack[-1] - stack[-2]))


def logfit(trajectory: Sequence[StateDict], sizes: Sequence[int], *, virtual: float = 2.0) -> dict[str, Tensor]:
    """Least-squares line of every weight over the logarithm of the training samples, read off at ``virtual`` times.

    Parameters
    ----------
    trajectory : sequence of state dicts
    sizes : sequence of int
        Training samples of each snapshot.
    virtual : float, default: 2.0
        Multiple of the full data set.

    Raises
    ------
    ShapeError
        If there is not one size for each snapshot.

    Examples
    --------
    >>> line = [{"w": torch.tensor([float(s)])} for s in range(3)]
    >>> logfit(line, [25, 50, 100], virtual=4.0)["w"].round(decimals=4)
    tensor([4.])
    """
    if len(sizes) != len(trajectory):
        raise ShapeError("sizes of the trajectory", found=len(sizes), expected=len(trajectory))
    x = torch.tensor([math.log(size) for size in sizes], dtype=torch.float64)
    centred = x - x.mean()
    target = math.log(sizes[-1] * virtual) - float(x.mean())
    # The fitted value is linear in the observations: one weight a snapshot.
    weights = 1 / len(x) + target * centred / centred.square().sum()
    return _combine(trajectory, lambda stack: torch.tensordot(weights.to(stack), stack, dims=1))


def ema(trajectory: Sequence[StateDict], decay: float = 0.5) -> dict[str, Tensor]:
    """Exponential moving average along the trajectory, from the smallest training set to the full one.

    Raises
    ------
    HyperparameterError
        If ``decay`` is not in [0, 1).

    Examples
    --------
    >>> ema([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}], decay=0.25)
    {'w': tensor([0.7500])}
    """
    if not 0 <= decay < 1:
        raise HyperparameterError("decay", found=decay, expected="a number in [0, 1)")

    def average(stack: Tensor) -> Tensor:
        mean = stack[0]
        for snapshot in stack[1:]:
            mean = decay * mean + (1 - decay) * snapshot
        return mean

    return _combine(trajectory, average)


def soup(trajectory: Sequence[StateDict]) -> dict[str, Tensor]:
    """Uniform average of all snapshots.

    Examples
    --------
    >>> soup([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}])
    {'w': tensor([0.5000])}
    """
    return _combine(trajectory, lambda stack: stack.mean(dim=0))


def matched_shrink(trained: StateDict, predicted: StateDict) -> dict[str, Tensor]:
    """The trained network with every tensor scaled to the norm of the predicted one: its size without its direction.

    **The control every retrodiction has to be compared with**: in front of normalisation layers smaller weights
    compute the same function and only learn faster.

    Examples
    --------
    >>> matched_shrink({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 1.0])})["w"]
    tensor([0.6000, 0.8000])
    """
    return _paired(trained, predicted, lambda old, new: old * _ratio(new, old))


def rescaled(predicted: StateDict, trained: StateDict) -> dict[str, Tensor]:
    """The predicted network with every tensor scaled back to the trained norm: its direction without its size.

    Examples
    --------
    >>> rescaled({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([3.0, 4.0])})["w"]
    tensor([0., 5.])
    """
    return _paired(predicted, trained, lambda new, old: new * _ratio(old, new))


def shrink_and_perturb(
    trained: StateDict,
    fresh: StateDict,
    *,
    shrink: float = 0.4,
    perturb: float = 0.1,
) -> dict[str, Tensor]:
    """Warm start of Ash and Adams: ``shrink * trained + perturb * fresh`` for tensors of two or more dimensions.

    Parameters
    ----------
    trained, fresh : state dict
        The trained network and a newly initialised one.
    shrink, perturb : float
        Their shares.

    References
    ----------
    Ash, Adams. "On Warm-Starting Neural Network Training". NeurIPS 2020. arXiv:1910.08475.

    Examples
    --------
    >>> shrink_and_perturb({"w": torch.ones(1, 1)}, {"w": torch.full((1, 1), 2.0)})["w"].item()
    0.6000000238418579
    """
    return _paired(trained, fresh, lambda old, new: shrink * old + perturb * new if old.ndim >= 2 else old)


def matched_learning_rates(
    model: nn.Module, trained: StateDict, predicted: StateDict, lr: float
) -> list[dict[str, Any]]:
    """Parameter groups that give the *trained* network the effective learning rate of the predicted one.

    Under a normalisation layer, Adam with rate ``lr`` on weights of norm ``s`` turns them as fast as with rate
    ``lr / s`` on weights of norm one. So where predicted weights are smaller, the trained ones get a larger rate.

    Parameters
    ----------
    model : nn.Module
        The network to be trained.
    trained, predicted : state dict
        Parameters of the model that either lacks (a new head) keep ``lr``.
    lr : float
        Learning rate the predicted network would be trained with.

    Returns
    -------
    list of dict
        One group a parameter, for any ``torch.optim`` optimizer.

    Raises
    ------
    LayerNotFoundError
        If no parameter of the model is in ``predicted``.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> trained = {"weight": torch.tensor([[3.0, 4.0]])}
    >>> matched_learning_rates(model, trained, {"weight": torch.tensor([[0.0, 2.5]])}, lr=0.1)[0]["lr"]
    0.2
    """
    groups, matched = [], 0
    for name, parameter in model.named_parameters():
        known = name in trained and name in predicted and trained[name].shape == predicted[name].shape
        matched += known
        factor = float(_ratio(trained[name], predicted[name])) if known else 1.0
        groups.append({"params": [parameter], "lr": lr * factor})
    if not matched:
        raise LayerNotFoundError("no parameter of the model is in the predicted state dict", do="Check the names.")
    return groups


def _combine(trajectory: Sequence[StateDict], function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    combined = dict(trajectory[-1])
    for key, last in combined.items():
        if last.is_floating_point():
            stack = torch.stack([snapshot[key].float() for snapshot in trajectory])
            combined[key] = function(stack).to(last.dtype)
    return combined


def _paired(first: StateDict, second: StateDict, function: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ShapeError("state dicts with different tensors", found=odd[:4], expected="the same names")
    return {
        key: function(a.float(), second[key].float()).to(a.dtype) if a.is_floating_point() else a
        for key, a in first.items()
    }


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Ratio of norms; one where both are zero, so that an untouched zero bias stays."""
    above, below = numerator.float().norm(), denominator.float().norm()
    return torch.where(below > 0, above / below.clamp_min(1e-38), torch.ones_like(below))
