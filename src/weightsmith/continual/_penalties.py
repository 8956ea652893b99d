r"""EWC and L2-SP: penalties on moving away from the weights that earlier tasks ended with.

.. math:: \lambda \sum_t \sum_i F_{t,i} (w_i - w^*_{t,i})^2

with the weights :math:`w^*_t` after task :math:`t`. For EWC (Kirkpatrick et al. 2017, arXiv 1612.00796) :math:`F_t` is
the diagonal of the empirical Fisher information there. For L2-SP (Li et al. 2018, arXiv 1802.01483) it is one, of the
last task only: the penalty is on moving away from where the present task started.

EWC's sum over tasks is itself a quadratic function of each weight,
:math:`F (w - \bar w)^2 + c` with :math:`F = \sum_t F_t` and :math:`\bar w = \sum_t F_t w^*_t / F`: two tensors per
parameter are kept, whatever the number of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.continual._growth import padded
from weightsmith.core.data import Batches, as_batches, to_model
from weightsmith.core.errors import (
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
)
from weightsmith.core.models import evaluation_mode
from weightsmith.core.processes import all_reduce_sum, plain_model
from weightsmith.core.sharding import is_sharded, refuse_sharded, shard_like, split_again, whole
from weightsmith.core.training import Loss, default_loss, labels_and_logits, share_of_step, trainer_cross_entropy

__all__ = ["EWC", "L2SP"]


class _Penalty:
    """What both have: the quadratic function of the weights.

    Attributes
    ----------
    importance, anchor : dict of str to Tensor
        By parameter name: how strongly a weight is held, and where.
    constant : float
        What the sum over several tasks has beside these.
    """

    def __init__(self, strength: float) -> None:
        if not 0 <= strength < math.inf:
            raise HyperparameterError("strength", found=strength, expected="a number >= 0")
        self.strength = strength
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant = 0.0

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of the model's present weights, to be added to the loss.

        Rows that a parameter has gained since, such as those of new classes, and new parameters are free. Of a sharded
        model (FSDP2) all processes have to call it.

        Raises
        ------
        LayerNotFoundError
            If the model lacks a parameter.
        ShapeError
            If a parameter has another shape, more rows aside.
        """
        plain = plain_model(model)
        split_again(plain)  # gathered parameters are not those that stay
        parameters: dict[str, Tensor] = dict(plain.named_parameters())
        total = torch.zeros((), device=next(iter(parameters.values())).device)
        for name, anchor in self.anchor.items():
            if name not in parameters:
                raise LayerNotFoundError(f"no parameter {name!r}", found=list(parameters)[:3])
            weight = parameters[name]
            if weight.shape != anchor.shape:
                if weight.ndim == 0 or weight.shape[1:] != anchor.shape[1:] or len(weight) < len(anchor):
                    raise ShapeError(f"parameter {name!r}", found=tuple(weight.shape), expected=tuple(anchor.shape))
                weight = weight[: len(anchor)]
            importance, anchor = (_split_like(each, weight) for each in (self.importance[name], anchor))
            total = total + whole((importance * (weight - anchor).square()).sum()).to(total.device)
        return self.strength * (total + self.constant)

    def added_to(self, loss: Loss = default_loss) -> Loss:
        """Return a loss function for :func:`weightsmith.core.training.fit`: ``loss`` plus the penalty.

        Examples
        --------
        >>> model, batch = nn.Linear(2, 2), (torch.zeros(1, 2), torch.tensor([0]))
        >>> penalty = L2SP(1.0)
        >>> penalty.consolidate(model)
        >>> bool(penalty.added_to()(model, batch) == default_loss(model, batch))
        True
        """
        return lambda model, batch: loss(model, batch) + self(model)

    def compute_loss_func(self, model: nn.Module) -> Callable[..., Tensor]:
        """Return the ``compute_loss_func`` of ``transformers.Trainer``: cross-entropy plus the penalty.

        Parameters
        ----------
        model : nn.Module
            The one that the Trainer trains.

        Examples
        --------
        >>> model, penalty = nn.Linear(2, 2), L2SP(1.0)
        >>> penalty.consolidate(model)
        >>> loss = penalty.compute_loss_func(model)  # Trainer(model, ..., compute_loss_func=loss)
        >>> loss({"logits": model(torch.zeros(1, 2))}, torch.tensor([0])).requires_grad
        True
        """

        def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            count = (labels_and_logits(outputs, labels)[0] != -100).sum()
            own = self(model) * share_of_step(count, num_items_in_batch)
            return trainer_cross_entropy(outputs, labels, num_items_in_batch) + own

        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return what to save."""
        return {"importance": self.importance, "anchor": self.anchor, "constant": self.constant}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what was saved."""
        self.importance, self.anchor = dict(state_dict["importance"]), dict(state_dict["anchor"])
        self.constant = float(state_dict["constant"])


class L2SP(_Penalty):
    """Hold all weights alike near those that the model has now.

    Parameters
    ----------
    strength : float
        Factor of the sum of squares, at least 0.

    References
    ----------
    Li, Grandvalet, Davoine. "Explicit Inductive Bias for Transfer Learning with Convolutional Networks". ICML 2018.
    arXiv:1802.01483.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> penalty = L2SP(strength=0.5)
    >>> penalty.consolidate(model)
    >>> _ = model.bias.data.add_(2.0)
    >>> round(penalty(model).item(), 4)
    2.0
    """

    def consolidate(self, model: nn.Module) -> None:
        """Take the present weights as those to stay near; call it after each task."""
        self.anchor = _trained(model)
        self.importance = {name: torch.ones_like(value) for name, value in self.anchor.items()}


class EWC(_Penalty):
    """Elastic weight consolidation: hold each weight by how much the loss of earlier tasks depends on it.

    Parameters
    ----------
    strength : float
        Factor of the penalty, at least 0. Its best value depends on the size of the gradients, so also on the batch
        size of :meth:`consolidate`.
    decay : float, default: 1.0
        What the importance of all earlier tasks is multiplied by at each new one, in [0, 1]. One is EWC with a term per
        task; less is its online variant.

    References
    ----------
    Kirkpatrick et al. "Overcoming catastrophic forgetting in neural networks". PNAS 2017. arXiv:1612.00796.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> penalty = EWC(strength=200.0)
    >>> penalty.consolidate(model, [(torch.ones(4, 2), torch.tensor([0, 1, 0, 0]))])
    >>> penalty(model).item()
    0.0
    """

    def __init__(self, strength: float, *, decay: float = 1.0) -> None:
        super().__init__(strength)
        if not (isinstance(decay, (int, float)) and 0 <= decay <= 1):
            raise HyperparameterError("decay", found=decay, expected="a number in [0, 1]")
        self.decay = decay

    def consolidate(self, model: nn.Module, batches: Batches, *, loss: Loss = default_loss) -> None:
        """Remember a task that the model has learned.

        Its Fisher information is the mean over batches of the squared gradients of the loss, in evaluation mode.
        Batches of one sample estimate it best, and take longest.

        Parameters
        ----------
        model : nn.Module
            With the weights after the task. Not changed.
        batches : Batches
            Labeled batches of the task. Several processes add up, each with batches of its own.
        loss : callable, default: default_loss
            ``loss(model, batch)``.

        Raises
        ------
        CalibrationError
            If there are no batches.
        NonFiniteError
            If a gradient holds NaN or infinity.
        ShapeError
            If a parameter has another shape than at the task before, more rows aside.
        UnsupportedModelError
            If the model is sharded: its gradients are averaged over processes before they could be squared.
        """
        refuse_sharded(plain_model(model), do="Do it before fully_shard(model): the penalty works on sharded models.")
        anchor, fisher = _trained(model), _fisher(model, batches, loss)
        constant = self.decay * self.constant
        for name, kept in self.importance.items():
            if name in fisher:
                old = self.decay * padded(name, kept, fisher[name].shape)
                where = padded(name, self.anchor[name], fisher[name].shape)
                total = old + fisher[name]
                share = torch.where(total > 0, old / total.clamp_min(torch.finfo(total.dtype).tiny), 0)
                constant += float((share * fisher[name] * (where - anchor[name]).square()).sum())
                anchor[name], fisher[name] = torch.lerp(anchor[name], where, share), total
            else:  # frozen since
                anchor[name], fisher[name] = self.anchor[name], self.decay * kept
        self.anchor, self.importance, self.constant = anchor, fisher, constant


def _split_like(values: Tensor, weight: Tensor) -> Tensor:
    """Values of the shape of a weight, sharded where it is."""
    if is_sharded(values):
        return values if is_sharded(weight) else whole(values)
    return shard_like(values, weight)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters, at least in float32."""
    named = [(name, p.detach()) for name, p in plain_model(model).named_parameters() if p.requires_grad]
    return {name: p.to(torch.promote_types(p.dtype, torch.float32), copy=True) for name, p in named}


def _fisher(model: nn.Module, batches: Batches, loss: Loss) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(value) for name, value in _trained(model).items()}
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    each = as_batches(batches)
    with evaluation_mode(model), torch.enable_grad():
        for batch in each:
            gradients = torch.autograd.grad(loss(model, to_model(batch, model)), weights, allow_unused=True)
            for value, gradient in zip(total.values(), gradients, strict=True):
                if gradient is not None:
                    value.addcmul_(gradient.to(value.dtype), gradient.to(value.dtype))
    count = torch.tensor(len(each))
    all_reduce_sum(count, *total.values())
    for name, value in total.items():
        value /= int(count)
        if not value.isfinite().all():
            raise NonFiniteError(f"the gradient of parameter {name!r} holds NaN or infinity")
    return total
