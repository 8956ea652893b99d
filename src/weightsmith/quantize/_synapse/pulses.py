"""The optimizer that trains pairs of conductances: at most one pulse per weight and sample, no learning rate.

Legend: ``N`` rows of a batch, ``O`` outputs, ``I`` inputs.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import Layer
from weightsmith.core.processes import refuse_several_processes
from weightsmith.quantize._synapse.pairs import ConductancePair, analog_layers, held_by

__all__ = ["Coding", "PulsedOptimizer", "check_rules"]

Coding: TypeAlias = Literal["threshold", "rate"]


class PulsedOptimizer(torch.optim.Optimizer):
    r"""Change conductances by identical pulses, and every other parameter by plain gradient descent.

    Per row of a layer's input (a sample, or a position of one), the weight from input :math:`i` to output :math:`j`
    is asked to move by one pulse if input :math:`i` is active and the error :math:`\delta_j`, the negative gradient
    of the loss at output :math:`j`, is larger than ``error_threshold`` in magnitude; the direction is that of
    :math:`x_i \delta_j`. The size of the step is the device's.

    Parameters
    ----------
    model : nn.Module
        A model that :func:`to_analog` changed. The optimizer watches its layers until :meth:`close`. To copy both, copy
        them together: ``copy.deepcopy((model, optimizer))``.
    lr : float, default: 0.05
        Learning rate of the parameters that are no conductances, such as biases. Conductances have none.
    error_threshold : float, default: 0.1
        :math:`\theta`. The loss must be a sum over samples: an average would make errors smaller than they are.
    input_threshold : float, default: 0.5
        An input is active if its magnitude is above this.
    coding : {"threshold", "rate"}, default: "threshold"
        Or it is active at random, with its magnitude, at most 1, as probability. The inputs of the layers that see the
        data always have the threshold.
    refresh_at : float, default: 0.9
        Unidirectional pairs with a device beyond this are erased and programmed anew.
    weight_decay : float, default: 0.0
        Decoupled; of the parameters that are no conductances.
    generator : torch.Generator, optional
        Draws active inputs and the variation between pulses.

    Raises
    ------
    HyperparameterError
        If an option is out of range.
    UnsupportedModelError
        If the model has no conductances, several processes train it, or a GradScaler scales the loss.
    NonFiniteError
        If an error or a gradient is NaN or infinite; nothing has changed then.

    Notes
    -----
    The paper takes one sample per step. In a batch the requests of all samples are counted, from the same weights, and
    carried out together, those that raise a weight first.

    References
    ----------
    Lim et al., arXiv 1707.06381.

    Examples
    --------
    >>> from weightsmith.quantize import SoftBounds, SynapseDevice, to_analog
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.zeros_(model[0].weight)
    >>> _ = to_analog(model, SynapseDevice(SoftBounds(64), SoftBounds(64)))
    >>> optimizer = PulsedOptimizer(model)
    >>> loss = nn.functional.binary_cross_entropy_with_logits
    >>> loss(model(torch.tensor([[1.0, 0.0]])), torch.tensor([[1.0, 0.0]]), reduction="sum").backward()
    >>> optimizer.step()
    >>> (model[0].weight * 32).round()
    tensor([[ 1.,  0.],
            [-1.,  0.]])
    >>> optimizer.stats()
    {'0': {'pulses': 2, 'refreshes': 0, 'saturated': 0.0}}
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        *,
        error_threshold: float = 0.1,
        input_threshold: float = 0.5,
        coding: Coding = "threshold",
        refresh_at: float = 0.9,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_rules(error_threshold, input_threshold, coding, refresh_at)
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise HyperparameterError(name, found=value, expected="a number >= 0")
        refuse_several_processes("pulses are not averaged over processes", do="Train in one process.")
        found = [(name, module, pair) for name, module, pair in analog_layers(model) if pair.trains]
        if not found:
            raise UnsupportedModelError(
                "no weight that is trained is a pair of conductances", do="Call to_analog(model, device) first."
            )
        self._watched = [_Watched(name, module, pair) for name, module, pair in found]
        self.generator = generator
        conductances = [tensor for watched in self._watched for tensor in watched.devices]
        known = {id(tensor) for tensor in conductances}
        plain = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "error_threshold": error_threshold,
            "input_threshold": input_threshold,
            "coding": coding,
            "refresh_at": refresh_at,
        }
        groups = [{"params": tensors} for tensors in (conductances, plain) if tensors]
        super().__init__(groups, defaults)
        self._own()
        self._handles: list[RemovableHandle] = [
            w.module.register_forward_hook(w.see, with_kwargs=True) for w in self._watched
        ]
        self._step_supports_amp_scaling = True  # a GradScaler then sets `found_inf`, by which `step` knows of it

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, which torch's optimizers leave out of their subclasses."""
        own = {
            name: getattr(self, name) for name in ("generator", "_watched", "_handles", "_step_supports_amp_scaling")
        }
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it over; copied together with the model, the copies belong together."""
        super().__setstate__(state)
        if "_watched" in state:  # torch also comes here to load a state dict
            self._own()

    def _own(self) -> None:
        for watched in self._watched:
            watched.owner = weakref.ref(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Carry out the requests of the backward passes since the last step."""
        if vars(self).pop("found_inf", None) is not None:
            raise UnsupportedModelError(
                "a scaled loss makes every error exceed the threshold", do="Train without a GradScaler."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            self._refuse_nonfinite()
        except NonFiniteError:
            self._forget()
            raise
        options = self.param_groups[0]
        for watched in self._watched:
            self._pulse(watched, options)
        for group in self.param_groups[1:]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(parameter.grad, alpha=group["lr"])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and the requests of the backward passes since the last step."""
        super().zero_grad(set_to_none)
        self._forget()

    def _forget(self) -> None:
        for watched in self._watched:
            watched.seen.clear()

    def _refuse_nonfinite(self) -> None:
        for watched in self._watched:
            if not all(is_finite(error_NO) for _, _, error_NO in watched.seen):
                raise NonFiniteError(f"the error at the outputs of {watched.name!r} holds NaN or infinity")
        for group in self.param_groups[1:]:
            for parameter in group["params"]:
                if parameter.grad is not None and not is_finite(parameter.grad):
                    raise NonFiniteError(f"the gradient of a parameter of shape {tuple(parameter.shape)} is not finite")

    def _pulse(self, watched: _Watched, options: dict[str, Any]) -> None:
        """Count the requests of a layer's rows and carry them out."""
        if not watched.seen:
            return
        errors, inputs = [], []
        for first, x_NI, error_NO in watched.seen:
            size = x_NI.abs()
            if options["coding"] == "rate" and not first:
                active = torch.rand(size.shape, generator=self.generator).to(size.device) < size
            else:
                active = size > options["input_threshold"]
            inputs.append(x_NI.sign() * active)
            errors.append(error_NO.sign() * (error_NO.abs() > options["error_threshold"]))
        watched.seen.clear()
        signs_NI, asked_NO = torch.cat(inputs).float(), torch.cat(errors).float()
        outputs = asked_NO.any(0).nonzero().squeeze(1)
        if not len(outputs):
            return
        asked_NO = asked_NO[:, outputs]
        net_OI, all_OI = asked_NO.T @ signs_NI, asked_NO.abs().T @ signs_NI.abs()
        devices, pair = watched.devices, watched.pair
        ups_OI, downs_OI = (all_OI + net_OI) / 2, (all_OI - net_OI) / 2
        pulses = pair.pulse(devices, ups_OI, downs_OI, rows=outputs, generator=self.generator)
        refreshes = pair.refresh(devices, options["refresh_at"], rows=outputs)
        state = self.state[devices.plus]
        state["pulses"] = state.get("pulses", 0) + pulses
        state["refreshes"] = state.get("refreshes", 0) + refreshes

    def stats(self) -> dict[str, dict[str, float]]:
        """Describe each layer: ``pulses`` and ``refreshes`` so far, and the share that is ``saturated``.

        Returns
        -------
        dict of str to dict
            By the layers' paths. Saturated are conductances within 1 % of an end that pulses lead to.
        """
        found = {}
        for watched in self._watched:
            state = self.state.get(watched.devices.plus, {})
            found[watched.name] = {
                "pulses": state.get("pulses", 0),
                "refreshes": state.get("refreshes", 0),
                "saturated": watched.pair.saturated(watched.devices),
            }
        return found

    def close(self) -> None:
        """Watch the model's layers no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def check_rules(error_threshold: float, input_threshold: float, coding: Coding, refresh_at: float) -> None:
    """Refuse rules that are out of range."""
    for name, value in (("error_threshold", error_threshold), ("input_threshold", input_threshold)):
        if not 0 <= value < math.inf:
            raise HyperparameterError(name, found=value, expected="a number >= 0")
    if not 0 < refresh_at <= 1:
        raise HyperparameterError("refresh_at", found=refresh_at, expected="a number in (0, 1]")
    check_choice("coding", coding, Coding)


class _Watched:
    """A layer, and what its forward and backward passes saw since the last step."""

    def __init__(self, name: str, module: nn.Module, pair: ConductancePair) -> None:
        self.name, self.module, self.pair = name, module, pair
        self.layer, self.devices = Layer(name, module), held_by(module)
        self.seen: list[tuple[bool, Tensor, Tensor]] = []
        self.owner: weakref.ref[PulsedOptimizer] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the model has: no optimizer yet, and no requests, as copies have no gradients."""
        return vars(self) | {"owner": None, "seen": []}

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        """Let the output carry a gradient, and keep it when it comes."""
        if not torch.is_grad_enabled() or self.owner is None or self.owner() is None:
            return None
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        start = torch.zeros((), device=output.device, requires_grad=True)
        tapped: Tensor = _Tap.apply(output, start, self, x.detach(), not x.requires_grad)
        return tapped

    def keep(self, first: bool, x: Tensor, gradient: Tensor) -> None:
        """Keep the rows of an input and the errors of its outputs."""
        x_NI, error_NO = self.layer.rows(x).flatten(0, 1), -self.layer.output_rows(gradient).flatten(0, 1).float()
        self.seen.append((first, x_NI, error_NO))


class _Tap(torch.autograd.Function):
    """The identity; its backward pass tells the watched layer its gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, start: Tensor, watched: _Watched, x: Tensor, first: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.watched, ctx.first = watched, first
        return output.clone()  # a view of a leaf could not be changed in place by the next layer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.watched.keep(ctx.first, x, gradients[0].detach())
        return gradients[0], None, None, None, None
