"""Controls for retrodiction: the norms of the predicted weights, without their directions.

Most of the gain of predicted weights is their smaller norm. Both controls give the trained network the same advantage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import LayerNotFoundError, ShapeError

__all__ = ["matched_learning_rates", "matched_shrink"]

StateDict = Mapping[str, Tensor]


def matched_shrink(trained: StateDict, predicted: StateDict) -> dict[str, Tensor]:
    """Scale every tensor of the trained network to the norm of the predicted one: its norm without its direction.

    **The control for every retrodiction**: in front of normalization layers, smaller weights compute the same function
    and only learn faster. With exchanged arguments it gives the predicted network's direction without its norm.

    Parameters
    ----------
    trained, predicted : state dict
        With the same keys and shapes.

    Returns
    -------
    dict of str to Tensor
        A state dict; integer buffers are those of ``trained``.

    Raises
    ------
    ShapeError
        If the keys or shapes differ.

    Examples
    --------
    >>> matched_shrink({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 1.0])})["w"]
    tensor([0.6000, 0.8000])
    """
    if trained.keys() != predicted.keys():
        odd = sorted(trained.keys() ^ predicted.keys())
        raise ShapeError("state dicts with different tensors", found=odd[:4], expected="the same names")
    if odd := [key for key, old in trained.items() if old.shape != predicted[key].shape]:
        shapes = [tuple(state[odd[0]].shape) for state in (predicted, trained)]
        raise ShapeError(f"{odd[0]!r} of the predicted network", found=shapes[0], expected=shapes[1])
    return {
        key: (old.float() * _ratio(predicted[key], old)).to(old.dtype) if old.is_floating_point() else old
        for key, old in trained.items()
    }


def matched_learning_rates(
    model: nn.Module, trained: StateDict, predicted: StateDict, learning_rate: float
) -> list[dict[str, Any]]:
    """Make parameter groups that give the *trained* network the effective learning rate of the predicted one.

    In front of a normalization layer, Adam with rate ``r`` on weights of norm ``s`` rotates them as fast as rate
    ``r / s`` rotates weights of norm one. Where predicted weights are smaller, the trained ones get a larger rate.

    Parameters
    ----------
    model : nn.Module
        The network to be trained.
    trained, predicted : state dict
        Parameters of the model that one of them lacks, such as a new head, keep ``learning_rate``.
    learning_rate : float
        Learning rate for the predicted network.

    Returns
    -------
    list of dict
        One group per parameter, for any ``torch.optim`` optimizer.

    Raises
    ------
    LayerNotFoundError
        If no parameter of the model is in ``predicted``.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> trained = {"weight": torch.tensor([[3.0, 4.0]])}
    >>> matched_learning_rates(model, trained, {"weight": torch.tensor([[0.0, 2.5]])}, learning_rate=0.1)[0]["lr"]
    0.2
    """
    groups, matched = [], 0
    for name, parameter in model.named_parameters():
        known = name in trained and name in predicted and trained[name].shape == predicted[name].shape
        matched += known
        factor = float(_ratio(trained[name], predicted[name])) if known else 1.0
        groups.append({"params": [parameter], "lr": learning_rate * factor})
    if not matched:
        raise LayerNotFoundError("no parameter of the model is in the predicted state dict", do="Check the names.")
    return groups


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Ratio of norms; one where the denominator is zero, so that a zero bias stays zero."""
    above, below = numerator.float().norm(), denominator.float().norm()
    return torch.where(below > 0, above / below.clamp_min(1e-38), torch.ones_like(below))
