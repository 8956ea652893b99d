r"""Weight compander: train each weight through a bounded odd function: weights are used more evenly.

Cakaj, Mehnert, Yang 2023, arXiv 2306.16993. Every weight is :math:`w = \psi(v)` with :math:`v` trained:

.. math::

    \psi(v) = a \arctan(v / b), \qquad |w| < M = \frac{\pi}{2} a, \qquad \psi'(0) = a / b > 1 .

One step of gradient descent moves :math:`w` by :math:`-\eta\,\psi'(v)^2\,\partial L/\partial w`: a weight near zero
moves :math:`(a/b)^2` times faster than a plain one, a weight near the bound hardly moves. After training
:math:`\psi` is folded away and the network is an ordinary one.

Only the paper's abstract was available. It states that the function is odd, bounded and steepest at zero. The
arc-tangent and all values of hyper-parameters are this library's choice.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples
from weightsmith.core.errors import HyperparameterError, UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import (
    Layer,
    exclude_frozen,
    find_layers,
    fold_parametrizations,
    own_weights,
    refuse_foreign_blocks,
    unreached,
)
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    draw_seed,
    fit,
    refuse_adapters,
    restored_on_error,
    seed_of,
    trained_parameters,
    training_method,
)

__all__ = [
    "Compander",
    "compand",
    "compander_parameter_groups",
    "fold_companders",
    "weight_compander",
    "weight_statistics",
]

MARGIN = 1e-4
"""Smallest distance of a weight to the bound at the start, as a share of the bound: the inverse is infinite there."""


class _Shape(NamedTuple):
    """An odd bounded function of unit scale, its inverse, its supremum and its slope at zero."""

    function: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    supremum: float
    slope: float


SHAPES = {
    "arctan": _Shape(torch.atan, torch.tan, math.pi / 2, 1.0),
    "tanh": _Shape(torch.tanh, torch.atanh, 1.0, 1.0),
    "softsign": _Shape(lambda x: x / (1 + x.abs()), lambda y: y / (1 - y.abs()), 1.0, 1.0),
    "erf": _Shape(torch.erf, torch.erfinv, 1.0, 2 / math.sqrt(math.pi)),
}

Function = Literal["arctan", "tanh", "softsign", "erf"]
Start = Literal["preserve", "raw"]


class Compander(nn.Module):
    r"""The parametrization :math:`w = a\,\varphi(v / b)` for ``torch.nn.utils.parametrize``.

    Parameters
    ----------
    bound : float
        :math:`M`, which no weight reaches.
    slope : float, default: 2.0
        Slope at zero; above 1 it pushes weights away from zero.
    function : {"arctan", "tanh", "softsign", "erf"}, default: "arctan"
        The shape :math:`\varphi`.
    learn : bool, default: False
        Train :math:`\log a` and :math:`\log b` with the weights: give them a hundredth of the learning rate and no
        weight decay, as :func:`compander_parameter_groups` does.

    Raises
    ------
    HyperparameterError
        If ``bound`` or ``slope`` is not positive and finite, or ``function`` unknown.

    References
    ----------
    Cakaj, Mehnert, Yang 2023, arXiv 2306.16993.

    Examples
    --------
    >>> compander = Compander(bound=0.15 * math.pi, slope=2.0)
    >>> compander(torch.tensor([0.0, 0.15, -1.0, 1e30]))
    tensor([ 0.0000,  0.2356, -0.4266,  0.4712])
    >>> compander.right_inverse(torch.tensor([0.2]))
    tensor([0.1180])
    """

    def __init__(self, bound: float, slope: float = 2.0, *, function: Function = "arctan", learn: bool = False) -> None:
        super().__init__()
        _check_curve(bound, slope, function)
        self.function: Function = function
        shape = SHAPES[function]
        log_a = torch.tensor(math.log(bound / shape.supremum))
        log_b = log_a - math.log(slope / shape.slope)
        if learn:
            self.log_a, self.log_b = nn.Parameter(log_a), nn.Parameter(log_b)
        else:
            self.register_buffer("log_a", log_a)
            self.register_buffer("log_b", log_b)

    @property
    def bound(self) -> float:
        """The present bound :math:`M`."""
        return self.log_a.exp().item() * SHAPES[self.function].supremum

    def forward(self, v: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the weights; half precision is computed in float32."""
        x = upcast(v) * (-self.log_b).exp()
        return (self.log_a.exp() * SHAPES[self.function].function(x)).to(v.dtype)

    def right_inverse(self, w: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the values of which the function gives these weights; weights beyond the bound are moved inside it."""
        shape = SHAPES[self.function]
        y = (upcast(w) * (-self.log_a).exp()).clamp(-shape.supremum * (1 - MARGIN), shape.supremum * (1 - MARGIN))
        return (self.log_b.exp() * shape.inverse(y)).to(w.dtype)

    def extra_repr(self) -> str:
        """Show the function, the bound and the slope."""
        slope = SHAPES[self.function].slope * (self.log_a - self.log_b).exp().item()
        return f"{self.function}, bound={self.bound:.4g}, slope={slope:.4g}"


def compand(
    model: nn.Module,
    *,
    function: Function = "arctan",
    bound: float = 2.0,
    slope: float = 2.0,
    learn: bool = False,
    start: Start = "preserve",
    clamp: bool = False,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> list[Layer]:
    r"""Parametrize the weight of every linear and convolutional layer by a compander; all other parameters stay plain.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Make the optimizer afterwards, see :func:`compander_parameter_groups`.
    function : {"arctan", "tanh", "softsign", "erf"}, default: "arctan"
        Shape of the compander.
    bound : float, default: 2.0
        The bound of each layer as a multiple of its largest weight now.
    slope : float, default: 2.0
        Slope at zero.
    learn : bool, default: False
        Train each layer's :math:`\log a` and :math:`\log b`.
    start : {"preserve", "raw"}, default: "preserve"
        Start from the same weights, so that the outputs stay the same; or from ``v`` equal to the old weights, so
        small weights start ``slope`` times larger.
    clamp : bool, default: False
        Move weights at or beyond the bound (``bound <= 1``) inside it instead of raising.
    include, exclude : str or sequence of str
        Patterns on the layers' paths.

    Returns
    -------
    list of Layer
        The layers with a compander. Weights that no linear or convolutional module holds are not among them: those of
        embeddings and routers, experts in one parameter, and ``in_proj_weight`` of ``nn.MultiheadAttention``.

    Raises
    ------
    HyperparameterError
        If an option is out of range, or weights lie beyond the bound and ``clamp`` is off.
    UnsupportedModelError
        If a weight is parametrized already, or not of floating point, or if all weights are tied.
    NonFiniteError
        If a weight is NaN or infinite.

    Warns
    -----
    UserWarning
        If a layer is left out since its weight is tied, a layer of zeros gets the bound of a usual initialization, or
        the slope does not push away from zero.

    References
    ----------
    Cakaj, Mehnert, Yang 2023, arXiv 2306.16993.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x, before = torch.ones(1, 4), model(torch.ones(1, 4))
    >>> [layer.name for layer in compand(model)]
    ['0', '2']
    >>> torch.allclose(model(x), before)
    True
    >>> fold_companders(model)
    >>> sorted(model.state_dict())
    ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    _check_curve(bound, slope, function)
    check_choice("start", start, Start)
    layers, tied = own_weights(model, include, exclude)
    if not layers:
        refuse_foreign_blocks(model)
        raise UnsupportedModelError("no weight is of one layer alone", found=f"tied weights of {tied[:4]}")
    if tied:
        warnings.warn(f"layers with tied weights get no compander: {tied[:4]}", stacklevel=2)
    if slope <= 1:
        warnings.warn(f"slope {slope} does not push weights away from zero; use more than 1", stacklevel=2)
    companders = []
    for layer in layers:
        limit = bound * _scale(layer)
        companders.append(Compander(limit, slope, function=function, learn=learn).to(layer.weight.device))
        beyond = int((layer.weight.detach().abs() >= limit).sum())
        if beyond and start == "preserve" and not clamp:
            raise HyperparameterError(
                f"{beyond} weights of {layer.name!r} are beyond the bound {limit:.4g}",
                do="Take a bound above 1, or clamp=True.",
            )
    with restored_on_error(model):
        for layer, compander in zip(layers, companders, strict=True):
            old = layer.weight.detach().clone()
            parametrize.register_parametrization(layer.module, "weight", compander)
            if start == "raw":
                _original(layer.module).data.copy_(old)
            layer.module.register_load_state_dict_pre_hook(_take_plain_weight)
    return layers


def fold_companders(model: nn.Module) -> None:
    """Replace every compander by the weights it gives: the model has plain parameters again.

    Raises
    ------
    UnsupportedModelError
        If there is no compander.
    """
    with restored_on_error(model):
        modules = fold_parametrizations(model, Compander)
        for module in modules:
            for key, hook in [*module._load_state_dict_pre_hooks.items()]:
                if getattr(hook, "hook", None) is _take_plain_weight:
                    del module._load_state_dict_pre_hooks[key]
    if not modules:
        raise UnsupportedModelError("there is no compander to fold", do="Call compand(model) first.")


def compander_parameter_groups(model: nn.Module, *, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    r"""Group the parameters for an optimizer: learned companders move a hundred times slower and do not decay.

    SGD is the optimizer the method is made for: Adam divides the effect of the slope out of the gradient's scale.

    Parameters
    ----------
    model : nn.Module
        With companders.
    lr : float
        Learning rate of everything else. (Learned companders diverge at this rate, see the docs.)
    weight_decay : float, default: 0.0
        Of everything else.

    Examples
    --------
    >>> model = nn.Linear(4, 2)
    >>> _ = compand(model, learn=True)
    >>> [(len(group["params"]), group["lr"]) for group in compander_parameter_groups(model, lr=0.5)]
    [(2, 0.5), (2, 0.005)]
    """
    slow = {id(p) for m in model.modules() if isinstance(m, Compander) for p in m.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) not in slow], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in slow], "lr": 0.01 * lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def weight_statistics(model: nn.Module, include: str | Sequence[str] = "*") -> dict[str, dict[str, float]]:
    """Describe how evenly each layer uses its weights.

    Returns
    -------
    dict of str to dict
        For each layer ``max`` (largest magnitude), ``dead_share`` (share of weights below a tenth of their standard
        deviation), ``kurtosis`` (3 for a normal distribution, 1.8 for a uniform one), and ``top_share`` (share of the
        sum of squares in the largest 10 % of the weights). Of a layer of zeros all four are 0.

    Examples
    --------
    >>> model = nn.Linear(1, 1001)
    >>> _ = model.weight.data.copy_(torch.linspace(-1, 1, 1001)[:, None])
    >>> {name: round(value, 2) for name, value in weight_statistics(model)[""].items()}
    {'max': 1.0, 'dead_share': 0.06, 'kurtosis': 1.8, 'top_share': 0.27}
    """
    statistics, tiny = {}, torch.finfo(torch.float64).tiny
    for layer in find_layers(model, include):
        w = layer.weight.detach().double().flatten()
        centered, deviation = w - w.mean(), w.std(unbiased=False)
        squares = w.square().sort(descending=True).values
        statistics[layer.name] = {
            "max": w.abs().max().item(),
            "dead_share": (w.abs() < 0.1 * deviation).double().mean().item(),
            "kurtosis": (centered.pow(4).mean() / deviation.pow(4).clamp(min=tiny)).item(),
            "top_share": (squares[: math.ceil(0.1 * len(w))].sum() / squares.sum().clamp(min=tiny)).item(),
        }
    return statistics


@training_method(learning_rate=0.05, weight_decay=5e-4, batch_size=8, scheduler="cosine")
def weight_compander(
    model: nn.Module,
    training: Samples,
    *,
    function: Function = "arctan",
    bound: float = 2.0,
    slope: float = 2.0,
    learn: bool = False,
    start: Start = "preserve",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train every weight through a bounded odd function, then fold the function into plain weights.

    Parameters
    ----------
    model : nn.Module
        Changed in place; plain weights again at the end.
    training : sequence of mapping
        Samples with the model's inputs and ``labels``.
    function : {"arctan", "tanh", "softsign", "erf"}, default: "arctan"
        Shape of the function.
    bound : float, default: 2.0
        Bound of each layer as a multiple of its largest weight at the start.
    slope : float, default: 2.0
        Slope at zero.
    learn : bool, default: False
        Train bound and slope of each layer, too.
    start : {"preserve", "raw"}, default: "preserve"
        From the same weights, or from weights ``slope`` times larger near zero.
    include, exclude : str or sequence of str
        Patterns on the layers' paths.
    generator : torch.Generator, optional
        Draws the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is SGD with Nesterov
        momentum 0.9.

    Returns
    -------
    Result
        Statistics of each layer's weights before and after, and the losses.

    References
    ----------
    Cakaj, Mehnert, Yang 2023, arXiv 2306.16993.
    """
    _check_curve(bound, slope, function)
    check_choice("start", start, Start)
    refuse_adapters(model)
    trained_parameters(model)
    hyper: dict[str, Any] = {"function": function, "bound": bound, "slope": slope, "learn": learn, "start": start}
    seed = draw_seed(generator)
    with record(
        "weight-compander", seed=seed_of(generator), include=include, exclude=exclude, **hyper, **options
    ) as result:
        result.notes += unreached(model, find_layers(model), "Not companded", trains=True)
        left_out, notes = exclude_frozen(find_layers(model, include, exclude), exclude)
        result.notes += notes
        before = weight_statistics(model, include)
        layers = compand(model, include=include, exclude=left_out, **hyper)
        rate, decay = options["learning_rate"], options["weight_decay"]
        groups = compander_parameter_groups(model, lr=rate, weight_decay=decay)
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=True)
        run = fit(model, training, optimizer=optimizer, seed=seed, **options)
        fold_companders(model)
        after = weight_statistics(model, include)
        for layer in layers:
            measures = {
                f"{name}_{when}": state[layer.name][name]
                for name in before[layer.name]
                for when, state in (("before", before), ("after", after))
            }
            result.layer(layer.name, **measures)
        result.curves["training loss"] = run.losses
        result.totals["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return result


def _check_curve(bound: float, slope: float, function: str) -> None:
    check_choice("function", function, Function)
    for name, value in (("bound", bound), ("slope", slope)):
        if not (math.isfinite(value) and value > 0):
            raise HyperparameterError(name, found=value, expected="a positive number")


def _scale(layer: Layer) -> float:
    largest = layer.weight.detach().abs().max().item()
    if largest == 0:
        warnings.warn(f"{layer.name!r} is all zero: its bound follows from its number of inputs", stacklevel=3)
        return 1 / math.sqrt(layer.weight_OI.shape[1])
    return largest


def _original(module: nn.Module) -> Tensor:
    original = module.parametrizations["weight"].original  # type: ignore[index, union-attr]
    assert isinstance(original, Tensor)
    return original


def _take_plain_weight(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Accept a checkpoint of the plain model: its weight is the output of the compander."""
    if f"{prefix}weight" in state and parametrize.is_parametrized(module, "weight"):
        compander: Any = module.parametrizations["weight"][0]  # type: ignore[index]
        stored, weight = f"{prefix}parametrizations.weight", state.pop(f"{prefix}weight")
        if beyond := int((weight.abs() >= compander.bound).sum()):
            warnings.warn(
                f"{beyond} weights of {prefix.rstrip('.')!r} are beyond the bound {compander.bound:.4g} and were moved "
                "inside it: load the weights before compand(model)",
                stacklevel=2,
            )
        state[f"{stored}.original"] = compander.right_inverse(weight)
        for name in ("log_a", "log_b"):
            state[f"{stored}.0.{name}"] = getattr(compander, name).detach()
