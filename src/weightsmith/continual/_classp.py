r"""CLASSP: an optimizer of the AdaGrad family that forgets less when tasks arrive one after another.

Ludwig, "CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment Suppression and Sparsity
Promotion", 2024, arXiv 2405.09637. Per weight, with the gradient :math:`g` of the mean loss over a batch,

.. math::

    k = [g^2 > \theta], \qquad a \leftarrow a + k\,|g|^p, \qquad
    w \leftarrow w - k\,\eta\,\frac{g}{(a + \epsilon)^{1/p}}

The accumulator :math:`a` is never reset: a weight that earlier tasks moved much takes small steps in later ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from weightsmith.continual._growth import padded
from weightsmith.core.data import Samples
from weightsmith.core.errors import CheckpointError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import CheckpointReader, check_output, load_tagged, save_tagged
from weightsmith.core.linalg import is_finite
from weightsmith.core.results import Result, record
from weightsmith.core.selection import kth_smallest
from weightsmith.core.sharding import is_sharded, like_parameter, local, whole
from weightsmith.core.training import (
    FitOptions,
    draw_seed,
    fit,
    refuse_adapters,
    seed_of,
    trained_parameters,
    training_method,
)

__all__ = ["CLASSP", "classp"]

PIECE = 1 << 18
"""Weights of a parameter that a step takes at a time on a CPU."""


class CLASSP(torch.optim.Optimizer):
    r"""AdaGrad with a free power, and a threshold below which a gradient does nothing.

    Use one optimizer for all tasks, or carry its state from task to task: the accumulator is what protects earlier
    tasks.

    Parameters
    ----------
    params : iterable
        Parameters, (name, parameter) pairs, or groups of them. A group may have its own value of every hyper-parameter
        below, except ``foreach``.
    lr : float, default: 0.1
        Learning rate :math:`\eta`: the length of a weight's first step.
    power : float, default: 1.0
        :math:`p`, positive. 2 is AdaGrad; 1 slows down much-used weights more, and is what reduces forgetting.
        Above 4 small gradients underflow, with a warning.
    threshold : float or str, default: 0.0
        :math:`\theta`, a bound on the *squared* gradient; weights at or below it are left alone. ``"q0.5"`` is the
        median of each tensor's squared gradients, ``"q0.9"`` their 90 % quantile. It acts on the gradients that the
        step finds, after clipping. It did not reduce forgetting in our experiments.
    eps : float, default: 1e-5
        :math:`\epsilon`, inside the root.
    scale : bool, default: True
        Divide by the root. Without, the step is that of SGD with the threshold, and the accumulator still grows: the
        paper's vision experiment learns its first task so.
    weight_decay : float, default: 0.0
        Decoupled: every weight of a parameter with a gradient shrinks by the factor ``1 - lr * weight_decay``.
    error_if_nonfinite : bool, default: True
        Refuse NaN and infinity in a gradient before anything changes, for one synchronization of a GPU per step.
        Otherwise such entries are left out.
    foreach : bool, optional
        Update all parameters together (with a temporary copy of them), or one after the other. The result is the same
        to the bit. By default together where all are on GPUs.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is out of range or a parameter is not real floating point.
    NonFiniteError
        If a gradient holds NaN or infinity.

    Notes
    -----
    The state of a parameter is one tensor, ``sum``, in float32 for bfloat16 and float16 parameters; their update is
    computed in float32, too. Parameters may be sharded (FSDP2, DTensor): the steps are those of whole ones, and a
    threshold that is a quantile gathers the gradient of one parameter at a time. Sparse gradients update the rows they
    have: decay and a threshold that is a quantile are of these alone. A parameter that was frozen starts with an empty
    accumulator: its first step has the length ``lr``.

    References
    ----------
    Ludwig, arXiv 2405.09637. The paper's code sums :math:`|g|` for every :math:`p`, and its threshold, compared with
    whether *any* gradient exceeds zero, does nothing below 1; this is the rule of the paper. The sum includes the
    present gradient, as in the code.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> optimizer = CLASSP([weight], lr=0.1)
    >>> for gradient in ([1.0, 0.5], [1.0, -0.5]):
    ...     weight.grad = torch.tensor(gradient)
    ...     optimizer.step()
    >>> weight.data, optimizer.state[weight]["sum"]
    (tensor([-0.1500, -0.0500]), tensor([2., 1.]))
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        power: float = 1.0,
        threshold: float | str = 0.0,
        eps: float = 1e-5,
        scale: bool = True,
        *,
        weight_decay: float = 0.0,
        error_if_nonfinite: bool = True,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "power": power,
            "threshold": threshold,
            "eps": eps,
            "scale": scale,
            "weight_decay": weight_decay,
            "error_if_nonfinite": error_if_nonfinite,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, refused before anything changes."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1], len(self.param_groups) - 1)
        except Exception:  # whatever is wrong with it, the group must not stay
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient are left out.

        Raises
        ------
        NonFiniteError
            If a gradient holds NaN or infinity; no parameter has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_nonfinite()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if "sum" not in self.state[parameter]:
                    wide = _wide(parameter.dtype)
                    self.state[parameter]["sum"] = torch.zeros_like(parameter, dtype=wide, requires_grad=False)
            dense = [parameter for parameter in parameters if not parameter.grad.is_sparse]
            for parameter in parameters:
                if parameter.grad.is_sparse:
                    _update_rows(parameter, self.state[parameter]["sum"], group)
            together = all(p.is_cuda for p in dense) if group["foreach"] is None else group["foreach"]
            tensors = ((local(p), _gradient(p, group), local(self.state[p]["sum"])) for p in dense)
            batches = _by_kind(tensors) if together else (piece for each in tensors for piece in _pieces(each))
            for values, gradients, sums in batches:
                _update(values, gradients, sums, group)
        return loss

    def saturation(self) -> dict[str, dict[str, float]]:
        """Describe the accumulators: how much earlier steps have slowed down each parameter.

        Returns
        -------
        dict of str to dict
            By the parameters' names, or their numbers ``group.number``: the ``mean``, ``median`` and 90 % quantile
            ``q90`` of the accumulator, and the share of weights that were ``unused``: never updated. Where parameters
            are sharded, every process has to call this.

        Examples
        --------
        >>> weight = nn.Parameter(torch.zeros(4))
        >>> optimizer = CLASSP([("weight", weight)])
        >>> weight.grad = torch.tensor([0.0, 1.0, 1.0, 2.0])
        >>> optimizer.step()
        >>> optimizer.saturation()
        {'weight': {'mean': 1.0, 'median': 1.0, 'q90': 2.0, 'unused': 0.25}}
        """
        found = {}
        for name, parameter in self._named():
            total = whole(self.state.get(parameter, {}).get("sum", torch.zeros_like(parameter)).detach())
            if total.numel():
                found[name] = {
                    "mean": float(total.mean()),
                    "median": float(_quantile(total, 0.5)),
                    "q90": float(_quantile(total, 0.9)),
                    "unused": float((total == 0).float().mean()),
                }
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; accumulators keep their own precision, where torch would round them to the parameter's.

        Raises
        ------
        CheckpointError
            If the state is damaged.
        ShapeError
            If it belongs to parameters of other shapes.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        sums: list[tuple[Tensor, Tensor]] = []
        try:
            numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
            if any("power" not in group for group in state_dict["param_groups"]):  # another optimizer's
                raise KeyError("power")
            for number, parameter in zip(numbers, parameters, strict=False):
                if state := state_dict["state"].get(number):
                    sums.append((parameter, state["sum"]))
                    if state["sum"].shape != parameter.shape:
                        found, expected = tuple(state["sum"].shape), tuple(parameter.shape)
                        raise ShapeError(f"accumulator of parameter {number}", found=found, expected=expected)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                "optimizer state", found=f"{error} missing", do="Take a state that a CLASSP saved."
            ) from error
        super().load_state_dict({**state_dict, "state": {}})
        for parameter, value in sums:
            self.state[parameter]["sum"] = value.to(parameter.device, _wide(parameter.dtype), copy=True)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for number, group in enumerate(self.param_groups):
            yield from zip(_names(group, number), group["params"], strict=True)

    def _refuse_nonfinite(self) -> None:
        strict = {id(p) for group in self.param_groups if group["error_if_nonfinite"] for p in group["params"]}
        found = [(name, local(p.grad)) for name, p in self._named() if id(p) in strict and p.grad is not None]
        values = [(n, g.coalesce().values() if g.is_sparse else g) for n, g in found]
        if not values:
            return
        norms = [norm for (part,) in _by_kind((value,) for _, value in values) for norm in torch._foreach_norm(part)]
        if not all(torch.stack(part).isfinite().all() for (part,) in _by_kind((norm,) for norm in norms)):
            for name, value in values:  # norms of finite gradients overflow, too
                if not is_finite(value):
                    raise NonFiniteError(
                        f"the gradient of parameter {name!r} holds NaN or infinity",
                        do="Lower the learning rate, or leave such entries out: error_if_nonfinite=False.",
                    )


@training_method(learning_rate=1e-4)  # a pretrained model's first step has this length in every weight
def classp(
    model: nn.Module,
    training: Samples,
    *,
    power: float = 1.0,
    threshold: float | str = 0.0,
    eps: float = 1e-5,
    scale: bool = True,
    state: Path | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Fine-tune a model on the next task with an optimizer that forgets less of the last (CLASSP).

    Parameters
    ----------
    model : nn.Module
        Any model that computes its loss from a sample. Its weights change in place.
    training : sequence of samples
        The next task: mappings of 1-D tensors, such as ``{"input_ids": ...}``.
    power : float, default: 1.0
        Power of the accumulated gradients, positive. 2 is AdaGrad; above 4 small gradients underflow, with a warning.
    threshold : float or str, default: 0.0
        Bound on the squared gradient below which a weight is left alone, or ``"q0.5"`` for the median.
    eps : float, default: 1e-5
        Added to the accumulator, inside the root.
    scale : bool, default: True
        Divide gradients by the root of the accumulator.
    state : Path, optional
        File of the accumulators (``.safetensors``). Where it exists training starts from it; afterwards it is replaced
        by the new ones. Name one file for all tasks: it is what protects the earlier ones.
    generator : torch.Generator, optional
        Draws the order of the samples and dropout.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The learning rate is the length of each
        weight's first step: small networks trained from scratch take 0.1.

    Returns
    -------
    Result
        Per matrix: ``saturation``, the mean accumulator; ``unused``, the share of weights without any update; and
        ``relative_change``, the norm of the change over that of the matrix. In total the ``trained`` weights and the
        ``unused`` share, biases included.

    Raises
    ------
    CalibrationError
        If there are no samples.
    CheckpointError
        If the file of accumulators cannot be read or written, or holds those of another power.
    HyperparameterError
        If a hyper-parameter is out of range.
    NonFiniteError
        If a weight, a gradient or the loss is not finite.
    ShapeError
        If the accumulators do not fit the model.

    References
    ----------
    Ludwig, arXiv 2405.09637.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> samples = [(torch.tensor([1.0, 0.0]), 0), (torch.tensor([0.0, 1.0]), 1)] * 8
    >>> result = classp(model, samples, epochs=4)
    >>> [row["layer"] for row in result.layers], result.totals["unused"]
    (['weight'], 0.0)
    """
    refuse_adapters(model)
    trained_parameters(model)
    seed = draw_seed(generator)
    hyper = {"power": power, "threshold": threshold, "eps": eps, "scale": scale, "state": state and str(state)}
    with record("classp", seed=seed_of(generator), **hyper, **options) as result:
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.numel()
        ]
        optimizer = CLASSP(
            named, options["learning_rate"], power, threshold, eps, scale, weight_decay=options["weight_decay"]
        )
        if state is not None:
            check_output(state, overwrite=True)
            result.notes.append(
                f"There was no {state.name}: the accumulators start at zero, no earlier task is protected."
            )
            if state.exists():
                found = _load_sums(optimizer, state)
                result.notes[-1] = f"accumulators of {found} of {len(named)} parameters were read from {state.name}"
        before = {name: parameter.detach().clone() for name, parameter in named}
        result.curves["training loss"] = fit(model, training, optimizer=optimizer, seed=seed, **options).losses
        unused = 0.0
        for (name, parameter), row in zip(named, optimizer.saturation().values(), strict=True):
            if parameter.ndim > 1:
                change = (parameter.detach() - before[name]).float().norm() / before[name].float().norm().clamp_min(
                    1e-12
                )
                layer = name.removesuffix(".weight")
                result.layer(layer, saturation=row["mean"], unused=row["unused"], relative_change=float(change))
            unused += row["unused"] * parameter.numel()
        result.totals = {
            "trained": sum(value.numel() for value in before.values()),
            "unused": unused / sum(value.numel() for value in before.values()),
        }
        if state is not None:
            _save_sums(optimizer, state)
    return result


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """A parameter, its gradient and its sum in pieces, so that what a step computes on the way is small."""
    if all(tensor.is_contiguous() for tensor in tensors):
        for pieces in zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True):
            yield [[piece] for piece in pieces]
    else:
        yield [[tensor] for tensor in tensors]


def _update(parameters: list[Tensor], gradients: list[Tensor], sums: list[Tensor], group: Mapping[str, Any]) -> None:
    """Take one step on tensors of one kind; elementwise, so that it makes no difference how many there are."""
    rate, power, eps = float(group["lr"]), group["power"], group["eps"]
    values = [p if p.dtype == s.dtype else p.to(s.dtype) for p, s in zip(parameters, sums, strict=True)]
    if power == 1:
        torch._foreach_add_(sums, torch._foreach_abs(gradients))
    elif power == 2:
        torch._foreach_addcmul_(sums, gradients, gradients)
    else:
        torch._foreach_add_(sums, torch._foreach_pow(torch._foreach_abs(gradients), power))
    if group["weight_decay"]:
        torch._foreach_mul_(values, 1 - rate * group["weight_decay"])
    if group["scale"]:
        roots: Sequence[Tensor]
        if eps >= torch.finfo(sums[0].dtype).tiny:
            roots = torch._foreach_add(sums, eps)
        else:  # where nothing was accumulated the gradient is zero, too
            roots = [total.masked_fill(total == 0, 1) for total in sums]
        if power == 2:
            torch._foreach_sqrt_(roots)
        elif power != 1:
            torch._foreach_pow_(roots, 1 / power)
        torch._foreach_addcdiv_(values, gradients, roots, value=-rate)
    else:
        torch._foreach_add_(values, gradients, alpha=-rate)
    for parameter, value in zip(parameters, values, strict=True):
        if value is not parameter:
            parameter.copy_(value)


def _update_rows(parameter: Tensor, total: Tensor, group: Mapping[str, Any]) -> None:
    """Take one step on the rows that a sparse gradient has."""
    gradient = parameter.grad.coalesce()  # type: ignore[union-attr]
    rows = tuple(gradient.indices())
    value, part = parameter[rows], total[rows]
    _update([value], [_prepare(gradient.values(), group)], [part], group)
    parameter.index_put_(rows, value)
    total.index_put_(rows, part)


def _gradient(parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    return _prepare(like_parameter(parameter), group)


def _prepare(gradient: Tensor, group: Mapping[str, Any]) -> Tensor:
    """A process's part of the gradient in the precision of the accumulator; zero where a weight is left alone."""
    part, bound = _finite(local(gradient), group), group["threshold"]
    if bound == 0 or not gradient.numel():
        return part
    least: Tensor | float
    if isinstance(bound, str):
        least = _quantile((_finite(whole(gradient), group) if is_sharded(gradient) else part).abs(), float(bound[1:]))
    else:
        least = math.sqrt(bound)
    return part.masked_fill(part.abs() <= least, 0.0)


def _finite(gradient: Tensor, group: Mapping[str, Any]) -> Tensor:
    gradient = gradient.to(_wide(gradient.dtype))
    return gradient if group["error_if_nonfinite"] else gradient.nan_to_num(0.0, 0.0, 0.0)


def _quantile(values: Tensor, share: float) -> Tensor:
    """The value that a share of all does not exceed."""
    return kth_smallest(values.reshape(1, -1), max(1, math.ceil(share * values.numel())))[0]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _by_kind(tensors: Iterable[tuple[Tensor, ...]]) -> Iterable[list[list[Tensor]]]:
    """Gather tuples of tensors into lists, each of one device and element type."""
    kinds: dict[Any, list[list[Tensor]]] = {}
    for each in tensors:
        kind = kinds.setdefault((each[0].device, each[0].dtype), [[] for _ in each])
        for column, tensor in zip(kind, each, strict=True):
            column.append(tensor)
    return kinds.values()


def _names(group: Mapping[str, Any], number: int) -> Sequence[str]:
    return group.get("param_names") or [f"{number}.{place}" for place in range(len(group["params"]))]


def _check(group: Mapping[str, Any], number: int) -> None:
    bound = group["threshold"]
    try:
        share = float(bound[1:]) if isinstance(bound, str) and bound.startswith("q") else None
    except ValueError:
        share = math.nan
    known = 0 < share < 1 if share is not None else isinstance(bound, (int, float)) and bound >= 0
    ranges = {
        "lr": (0 <= group["lr"] < math.inf, "a number >= 0"),
        "power": (0 < group["power"] < math.inf, "a positive number"),
        "threshold": (known, "a number >= 0, or a quantile such as 'q0.5'"),
        "eps": (0 <= group["eps"] < math.inf, "a number >= 0"),
        "weight_decay": (0 <= group["weight_decay"] < math.inf, "a number >= 0"),
    }
    for name, (fits, expected) in ranges.items():
        if not fits:
            raise HyperparameterError(name, found=repr(group[name]), expected=expected)
    for name, parameter in zip(_names(group, number), group["params"], strict=True):
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            raise HyperparameterError(
                f"parameter {name!r}", found=parameter.dtype, expected="real floating point of 16 bits or more"
            )
    if group["power"] > 4:
        warnings.warn(f"power {group['power']}: small gradients underflow above 4", stacklevel=4)


def _save_sums(optimizer: CLASSP, path: Path) -> None:
    """Write the accumulators, by the parameters' names."""
    sums = {name: optimizer.state[p]["sum"] for name, p in optimizer._named() if optimizer.state[p]}
    about = {"power": optimizer.param_groups[0]["power"]}
    save_tagged(sums, path, kind="accumulators", about=about, overwrite=True)


def _load_sums(optimizer: CLASSP, path: Path) -> int:
    """Read accumulators and return how many; rows that a head has since gained start at zero."""

    def build(reader: CheckpointReader, about: Any) -> dict[Tensor, Tensor]:
        power = optimizer.param_groups[0]["power"]
        if float(about["power"]) != power:
            raise CheckpointError(
                f"accumulators in {path}",
                found=f"sums of power {about['power']}",
                expected=power,
                do="Keep one power for all tasks.",
            )
        found = {
            parameter: padded(name, reader.tensor(name).to(parameter.device, _wide(parameter.dtype)), parameter.shape)
            for name, parameter in optimizer._named()
            if name in reader.specs
        }
        if not found:
            raise CheckpointError(f"{path} belongs to another model", found=list(reader.specs)[:3])
        return found

    sums = load_tagged(path, "accumulators", build)
    for parameter, total in sums.items():
        optimizer.state[parameter]["sum"] = total
    return len(sums)
