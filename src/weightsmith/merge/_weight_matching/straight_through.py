r"""Choose the permutation by the loss at the midpoint: weight matching to a target that is trained.

The target :math:`\hat\theta` starts at :math:`\theta_a`. Each step matches :math:`\theta_b` to it, and takes the loss's
gradient at the midpoint of :math:`\theta_a` and :math:`\pi(\theta_b)` as if it were that of :math:`\hat\theta`:

.. math::
    \pi = \arg\max_\pi \langle \hat\theta, \pi(\theta_b) \rangle, \qquad
    \hat\theta \leftarrow \hat\theta - \eta\, \tfrac12 \nabla L\big(\tfrac12 (\theta_a + \pi(\theta_b))\big)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError
from weightsmith.core.models import lerp
from weightsmith.core.processes import refuse_several_processes
from weightsmith.core.progress import track
from weightsmith.core.symmetry import Permutations, Symmetry
from weightsmith.core.training import Loss, default_loss
from weightsmith.merge._weight_matching.matching import match_weights
from weightsmith.merge._weight_matching.weight_pair import check_same_architecture

__all__ = ["StraightThrough", "match_straight_through"]


@dataclass(frozen=True)
class StraightThrough:
    """What the straight-through estimator found.

    Attributes
    ----------
    perms : dict of str to Tensor
        The permutations with the lowest loss of a batch at the midpoint.
    losses : tuple of float
        Loss at the midpoint, one per step, each on its own batch.
    """

    perms: Permutations
    losses: tuple[float, ...]


def match_straight_through(
    first: nn.Module,
    second: nn.Module,
    symmetry: Symmetry,
    batches: Sequence[Any],
    *,
    loss: Loss = default_loss,
    epochs: int = 1,
    learning_rate: float = 1e-2,
    momentum: float = 0.9,
    generator: torch.Generator | None = None,
) -> StraightThrough:
    """Match the second network's units to the first's by the loss at the midpoint.

    Parameters
    ----------
    first, second : nn.Module
        Of one architecture; only read.
    symmetry : Symmetry
        The groups that may be permuted.
    batches : sequence of batches
        Training data as ``loss`` takes it; large batches (the reference: 1000 samples).
    loss : callable, optional
        ``loss(model, batch)`` to the mean loss.
    epochs : int, default: 1
        Passes over the batches (the reference: 250).
    learning_rate : float, default: 1e-2
        Of the target.
    momentum : float, default: 0.9
        In [0, 1).
    generator : torch.Generator, optional
        Draws the order of the batches and of the permutations; seed 0 by default.

    Returns
    -------
    StraightThrough
        Permutations for :meth:`Symmetry.permute`, and the losses on the way.

    Raises
    ------
    CalibrationError
        If there are no batches.
    HyperparameterError
        If a number is out of range.
    NonFiniteError
        If the loss at a midpoint is NaN or infinite.
    ShapeError
        If the networks are not of one architecture.

    Notes
    -----
    Batch normalization takes the statistics of the batch, as averaged weights have none of their own.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.

    Examples
    --------
    >>> from weightsmith.core.symmetry import find_symmetry
    >>> make = lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> first, second = make(), make()
    >>> symmetry = find_symmetry(first, torch.rand(1, 3))
    >>> batches = [(torch.rand(16, 3), torch.randint(2, (16,)))] * 3
    >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> len(match_straight_through(first, second, symmetry, batches, loss=loss).losses)
    3
    """
    if len(batches) == 0:
        raise CalibrationError("no batches to match on", expected="at least one")
    if epochs < 1:
        raise HyperparameterError("epochs", found=epochs, expected=">= 1")
    if not 0 < learning_rate < math.inf:
        raise HyperparameterError("learning_rate", found=learning_rate, expected="a positive number")
    if not 0 <= momentum < 1:
        raise HyperparameterError("momentum", found=momentum, expected="0 <= momentum < 1")
    refuse_several_processes("permutations follow the loss on a process's own batches", do="Match in one process.")
    generator = generator or torch.Generator().manual_seed(0)
    a, b = first.state_dict(), second.state_dict()
    symmetry.check_state(a, "the first model")
    symmetry.check_state(b, "the second model")
    check_same_architecture(a, b)
    midpoint = copy.deepcopy(first).eval().requires_grad_(True)
    for module in midpoint.modules():
        module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
    target = {key: tensor.detach().clone() for key, tensor in a.items()}
    trained = [(target[key], parameter) for key, parameter in midpoint.named_parameters()]
    optimizer = torch.optim.SGD([weight for weight, _ in trained], lr=learning_rate, momentum=momentum)
    perms, losses, best = None, [], None
    for number in track(range(epochs * len(batches)), "straight-through matching"):
        if number % len(batches) == 0:
            order = torch.randperm(len(batches), generator=generator).tolist()
        perms = match_weights(target, b, symmetry, start=perms, generator=generator).perms
        moved = symmetry.permute(b, perms)
        midpoint.load_state_dict({key: lerp(a[key], moved[key], 0.5) for key in a})
        midpoint.zero_grad()
        value = loss(midpoint, batches[order[number % len(batches)]])
        if not bool(value.isfinite()):
            raise NonFiniteError("the loss at the midpoint", found=float(value), do="Lower the learning rate.")
        value.backward()
        losses.append(float(value.detach()))
        if best is None or losses[-1] < best[0]:
            best = losses[-1], perms
        for weight, parameter in trained:
            weight.grad = None if parameter.grad is None else 0.5 * parameter.grad
        optimizer.step()
    assert best is not None
    return StraightThrough(best[1], tuple(losses))
