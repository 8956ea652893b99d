r"""A curve of low loss between two trained networks, and how well it connects them.

.. math:: \theta(t) = (1 - t)^2\,\theta_0 + 2 t (1 - t)\,\theta_m + t^2\,\theta_1

is trained in :math:`\theta_m` alone (Garipov et al., 2018, arXiv 1802.10026). With the training error :math:`y(t)` in
per cent and :math:`\bar y = (y(0) + y(1)) / 2`, the mode connectivity is

.. math:: \mathrm{mc} = \bar y - y(t^*), \qquad t^* = \arg\max_t |y(t) - \bar y| .

Below zero a barrier is left between the two; above, the networks at the ends are not trained enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from weightsmith.analyze._phases.hessian import functional_model
from weightsmith.core.data import Batches, Samples, batched, pad_token_id, to_model
from weightsmith.core.errors import CalibrationError, HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.io import StateDict
from weightsmith.core.linalg import upcast
from weightsmith.core.models import evaluation_mode, has_batchnorm, recalibrate_batchnorm
from weightsmith.core.training import FitOptions, batch_count, counted_logits, fit, training_method

__all__ = ["BezierCurve", "connectivity", "loss_and_error", "train_curve", "wide_copy"]

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the training error is measured."""

MOMENTUM = 0.9
"""Of the gradient descent that trains a curve."""


@dataclass(frozen=True)
class BezierCurve:
    """A quadratic curve between two sets of weights.

    Attributes
    ----------
    start, end : state dict
        Its ends, buffers included.
    middle : dict of str to Tensor
        The parameters that bend it.
    errors : tuple of float
        Training error in per cent at t = 0, 0.25, 0.5, 0.75 and 1.
    """

    start: StateDict
    end: StateDict
    middle: Mapping[str, Tensor]
    errors: tuple[float, ...] = ()

    def at(self, t: float) -> dict[str, Tensor]:
        """Return the parameters at a point; at 0 and 1 those of the ends, bit by bit.

        Examples
        --------
        >>> one = torch.ones(1)
        >>> BezierCurve({"w": 0 * one}, {"w": 4 * one}, {"w": one}).at(0.5)
        {'w': tensor([1.5000])}
        """
        if t in (0, 1):
            return {name: (self.end if t else self.start)[name].clone() for name in self.middle}
        return {
            name: bezier(self.start[name].to(middle), middle, self.end[name].to(middle), t)
            for name, middle in self.middle.items()
        }

    @property
    def connectivity(self) -> float:
        """The mode connectivity, see :func:`connectivity`."""
        return connectivity(self.errors)


def connectivity(errors: Sequence[float]) -> float:
    """Return the mode connectivity of the training errors along a curve: their mean at the ends minus the farthest one.

    Parameters
    ----------
    errors : sequence of float
        In per cent; the first and the last are those of the ends.

    Raises
    ------
    HyperparameterError
        If there are fewer than three.

    Examples
    --------
    >>> connectivity([5, 3, 2, 3, 5]), connectivity([0, 0, 1.5, 0, 0]), connectivity([1, 1, 1])
    (3.0, -1.5, 0.0)
    """
    if len(errors) < 3:
        raise HyperparameterError("errors along a curve", found=len(errors), expected="three or more")
    middle = (errors[0] + errors[-1]) / 2
    return float(middle - max(errors, key=lambda error: abs(error - middle)))


def train_curve(
    model: nn.Module,
    start: StateDict,
    end: StateDict,
    data: Samples,
    *,
    penalty: float = 5e-4,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> BezierCurve:
    """Train a curve between two sets of weights, and measure the training error along it.

    Momentum descends on the loss at a random point per step; the learning rate stays for half of the epochs and then
    falls to 1 %. Dropout is off. Batch normalization uses the batch while training; for the measure its statistics are
    re-estimated at every point between the ends, which keep their own.

    Parameters
    ----------
    model : nn.Module
        Of their architecture; it does not change.
    start, end : state dict
        The ends.
    data : Samples
        The training samples.
    penalty : float, default: 5e-4
        Half of it times the squared norm of the weights at the point is added to the loss.
    seed : int, default: 0
        Of the points and the order of the samples.
    **options
        Those of :class:`~weightsmith.core.training.FitOptions`; ``scheduler`` and ``warmup`` have no place here.

    Raises
    ------
    CalibrationError
        If the batch is larger than the data.
    HyperparameterError
        If an option is out of range or has no place.
    NonFiniteError
        If the loss diverges.
    ShapeError
        If the ends do not fit the model.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 64).unsqueeze(1)
    >>> data = [(row, int(row > 0)) for row in x]
    >>> model = nn.Linear(1, 2)
    >>> ends = [{"weight": torch.tensor([[-w], [w]]), "bias": torch.zeros(2)} for w in (5.0, 9.0)]
    >>> train_curve(model, *ends, data, epochs=2, batch_size=32).errors
    (0.0, 0.0, 0.0, 0.0, 0.0)
    """
    return _train(wide_copy(model), start, end, data, penalty, seed, **options)


@training_method(learning_rate=0.1, epochs=30, batch_size=128)
def _train(
    net: nn.Module,
    start: StateDict,
    end: StateDict,
    data: Samples,
    penalty: float,
    seed: int,
    **options: Unpack[FitOptions],
) -> BezierCurve:
    """Train a curve with a copy of the model, which is moved along it."""
    if options["scheduler"] != "constant" or options["warmup"]:
        raise HyperparameterError("scheduler and warmup", do="Leave them out: a curve has its own learning rates.")
    if options["gradient_checkpointing"]:  # what is recomputed would have the model's own weights
        raise HyperparameterError("gradient_checkpointing", found="True", expected="False, for a curve")
    if not 0 < options["batch_size"] <= len(data):
        raise CalibrationError("batch_size", found=f"{options['batch_size']} for {len(data)} samples")
    first, last = _fitting(net, start, "start"), _fitting(net, end, "end")
    trained = _TrainedCurve(net, first, last)
    optimizer = torch.optim.SGD(trained.parameters(), lr=options["learning_rate"], momentum=MOMENTUM)
    steps = math.ceil(batch_count(len(data), options) / options["accumulation_steps"])

    def after_step(step: int, loss: float) -> None:
        # the factor is of the first rate, as in the taxonomy's code; of the last rate it would end at 1e-6 of it
        optimizer.param_groups[0]["lr"] = options["learning_rate"] * rate_factor(step // steps + 1, options["epochs"])

    fit(
        trained,
        data,
        loss=lambda curve, batch: curve(batch, penalty),
        optimizer=optimizer,
        after_step=after_step,
        seed=seed,
        **options,
    )
    middle = {name: value.detach() for name, value in zip(trained.names, trained.middle, strict=True)}
    batches = [to_model(batch, net) for batch in batched(data, options["batch_size"], pad_token_id=pad_token_id(net))]
    return BezierCurve(first, last, middle, tuple(_errors(net, BezierCurve(first, last, middle), batches)))


train_curve.fit_defaults = _train.fit_defaults  # type: ignore[attr-defined]


def bezier(start: Tensor, middle: Tensor, end: Tensor, t: float | Tensor) -> Tensor:
    """A point of a quadratic curve."""
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end


def rate_factor(epoch: int, epochs: int) -> float:
    """Return the factor of the learning rate in an epoch, counted from 1.

    Examples
    --------
    >>> [round(rate_factor(epoch, 10), 4) for epoch in range(1, 11)]
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.7525, 0.505, 0.2575, 0.01, 0.01]
    """
    done = epoch / epochs
    return 1.0 if done <= 0.5 else max(1 - (done - 0.5) / 0.4 * 0.99, 0.01)


def wide_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in float32 at least, without gradients.

    Examples
    --------
    >>> wide_copy(nn.Linear(1, 1).bfloat16()).weight.dtype
    torch.float32
    """
    net = copy.deepcopy(model)
    real = [tensor for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()]
    if not real or any(tensor.is_meta or tensor.element_size() < 2 for tensor in real):
        raise UnsupportedModelError("a model without real weights in memory", do="Load it whole, in 16 bits or more.")
    for tensor in real:
        tensor.data, tensor.grad = upcast(tensor.data), None
    return net


def loss_and_error(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Return the mean cross-entropy of all labels, and the share of wrong predictions.

    Examples
    --------
    >>> loss, error = loss_and_error(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
    >>> round(loss, 3), error
    (0.994, 0.25)
    """
    loss, wrong, count = 0.0, 0, 0
    with evaluation_mode(model), torch.no_grad():
        for batch in batches:
            logits, labels = counted_logits(model, batch)
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            wrong += int((logits.argmax(1) != labels).sum())
            count += len(labels)
    if not count:
        raise CalibrationError("the samples have no label that counts", expected="at least one")
    return loss / count, wrong / count


class _TrainedCurve(nn.Module):
    """The middle of a curve as parameters; the ends are fixed."""

    def __init__(self, net: nn.Module, start: StateDict, end: StateDict) -> None:
        super().__init__()
        self.hidden = (net.eval(),)  # not a child: its parameters are not trained
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        self.names = [name for name, parameter in net.named_parameters() if parameter.is_floating_point()]
        self.start, self.end = ([state[name] for name in self.names] for state in (start, end))
        self.middle = nn.ParameterList((a + b) / 2 for a, b in zip(self.start, self.end, strict=True))
        self.config = getattr(net, "config", None)  # says what tokens are padded with
        self.kept = dict(net.named_buffers())

    def forward(self, batch: Any, penalty: float) -> Tensor:
        """The penalized loss at a random point."""
        t = torch.rand(())
        parts = zip(self.start, self.middle, self.end, strict=True)
        point = [bezier(start, middle, end, t) for start, middle, end in parts]
        # buffers are copies: batch normalization writes to them
        tensors = dict(zip(self.names, point, strict=True)) | {name: b.clone() for name, b in self.kept.items()}
        logits, labels = counted_logits(functional_model(self.hidden[0], tensors), to_model(batch, self))
        size = torch.stack([part.square().sum() for part in point]).sum()
        return functional.cross_entropy(logits, labels) + penalty / 2 * size


def _errors(net: nn.Module, curve: BezierCurve, batches: Sequence[Any]) -> Iterator[float]:
    """The training error in per cent at each point; the copy of the model is moved along the curve."""
    for t in POINTS:
        net.load_state_dict({**(curve.end if t == 1 else curve.start), **curve.at(t)}, strict=False)
        if has_batchnorm(net) and t not in (0, 1):
            # the ends keep the statistics they came with, so that their errors are the networks' own
            recalibrate_batchnorm(net, batches)
        yield 100 * loss_and_error(net, batches)[1]


def _fitting(net: nn.Module, state: StateDict, side: str) -> dict[str, Tensor]:
    """A copy of an end in the types of the copy of the model."""
    own = net.state_dict()
    if odd := own.keys() ^ state.keys():
        raise ShapeError(f"{side} of the curve", found=sorted(odd)[:3], expected="the names of the model")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ShapeError(f"{side} of the curve: {name!r}", found=tuple(tensor.shape), expected=own[name].shape)
    return {name: tensor.detach().to(own[name], copy=True) for name, tensor in state.items()}
