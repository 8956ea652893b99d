"""Which matrices LIFT trains, how many weights of each, and which it cannot train."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, ShapeError, UnsupportedModelError
from weightsmith.core.models import VOCABULARY_HEADS, Layer, find_experts, find_matrices, matches, patterns, writable
from weightsmith.core.processes import wrapper_path

__all__ = ["approx_rank", "budget", "check_group", "check_ranges", "has_budget", "lift_groups", "matrices", "names"]

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda rate: rate >= 0, ">= 0"),
    "betas": (lambda betas: all(0 <= beta < 1 for beta in betas), "in [0, 1)"),
    "eps": (lambda eps: eps > 0, "> 0"),
    "weight_decay": (lambda decay: decay >= 0, ">= 0"),
    "density": (lambda density: density is None or 0 < density <= 1, "in (0, 1]"),
    "lora_rank": (lambda rank: rank is None or rank >= 1, ">= 1"),
    "approx_rank": (lambda rank: rank is None or rank >= 1, ">= 1"),
    "update_interval": (lambda interval: interval is None or interval >= 1, ">= 1"),
    "niter": (lambda count: count is None or count >= 0, ">= 0"),
}
RANK = 64
"""Rank of the approximation by default, if that is at most half of the shorter side."""


def lift_groups(
    model: nn.Module,
    density: float = 0.05,
    approx_rank: int | None = None,
    *,
    lora_rank: int | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = VOCABULARY_HEADS,
    dense: str | Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Gather a model's weight matrices for :class:`LIFTAdamW` and freeze everything else.

    Parameters
    ----------
    model : nn.Module
        Any model; ``requires_grad`` of its parameters is set.
    density : float, default: 0.05
        Share of each matrix that is trained, in (0, 1].
    approx_rank : int, optional
        Rank of the approximation; 64, or half of the shorter side if that is less, by default.
    lora_rank : int, optional
        Instead of ``density``: train as many weights as LoRA of this rank would.
    include, exclude : str or sequence of str
        Shell patterns on layer names. A weight tied to the embedding under an excluded name stays frozen. Experts in
        one parameter, named by their numbers (``mlp.experts.0.down_proj``), are trained all or none.
    dense : str or sequence of str, default: ()
        Shell patterns on names of further parameters, trained completely by plain Adam, such as a new classifier.

    Returns
    -------
    list of dict
        Parameter groups with the parameters' names.

    Raises
    ------
    LayerNotFoundError
        If no layer matches, or a pattern of ``dense`` matches no parameter.
    UnsupportedModelError
        If a weight is computed from other tensors, quantized or not loaded.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> groups = lift_groups(model, density=0.1, exclude="1", dense="1.*")
    >>> [[name for name, _ in group["params"]] for group in groups]
    [['0.weight'], ['1.weight', '1.bias']]
    """
    by_name = dict(model.named_parameters(remove_duplicate=False))
    inside = wrapper_path(model)
    for pattern in patterns(dense):
        if not any(matches(name.removeprefix(inside), (pattern,), ()) for name in by_name):
            raise LayerNotFoundError(
                f"no parameter matches {pattern!r} of dense",
                found=f"{len(by_name)} parameters such as {[*by_name][:4]}",
                do="Check the pattern against the names of model.named_parameters().",
            )
    named = model.named_parameters()
    whole = [(name, p) for name, p in named if matches(name.removeprefix(inside), patterns(dense), ())]
    taken = {id(parameter) for _, parameter in whole}
    matching = find_matrices(model, include, exclude)
    layers = [layer for layer in matching if layer.expert is None]
    stacks = _stacks(model, matching)
    writable(layer for layer in layers if f"{layer.name}.weight".lstrip(".") not in by_name)
    names = [f"{layer.name}.weight".lstrip(".") for layer in layers]
    single = [(name, by_name[name]) for name in names if id(by_name[name]) not in taken]
    experts = [(name, by_name[name]) for name in stacks if id(by_name[name]) not in taken]
    for name, parameter in single + experts + whole:
        _check_parameter(name, parameter)
    model.requires_grad_(False)
    for _, parameter in single + experts + whole:
        parameter.requires_grad_(True)
    limits = {"density": None if lora_rank is not None else density, "lora_rank": lora_rank}
    groups: list[dict[str, Any]] = [
        {"params": single, **limits, "approx_rank": approx_rank},
        {"params": experts, **limits, "approx_rank": approx_rank, "stacked": True},
        {"params": whole, "density": None, "lora_rank": None},
    ]
    return [group for group in groups if group["params"]]


def check_ranges(options: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters out of range."""
    for name, value in options.items():
        fits, expected = RANGES.get(name, (lambda _: True, ""))
        if not fits(value):
            raise HyperparameterError(name, found=value, expected=expected)


def check_group(group: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters out of range and parameters that LIFT cannot train; warn of useless ones."""
    check_ranges(group)
    if group["density"] is not None and group["lora_rank"] is not None:
        raise HyperparameterError("density and lora_rank", found="both", expected="one of them")
    for name, parameter in zip(names(group), group["params"], strict=True):
        _check_parameter(name, parameter)
    if has_budget(group):
        _check_matrices(group)


def has_budget(group: Mapping[str, Any]) -> bool:
    """Whether a group trains only a part of its weights."""
    return group["density"] is not None or group["lora_rank"] is not None


def budget(parameter: Tensor, group: Mapping[str, Any]) -> int:
    """Count the weights of a parameter that are trained."""
    return sum(_budget(matrix, group) for matrix in matrices(parameter, group))


def matrices(parameter: Tensor, group: Mapping[str, Any]) -> Sequence[Tensor]:
    """Return the matrices of a parameter, each with a choice of its own: of all experts, where it stacks them."""
    weight = parameter.detach()
    return weight.unbind() if group.get("stacked") else [weight]


def _budget(matrix: Tensor, group: Mapping[str, Any]) -> int:
    if group["lora_rank"] is not None:
        return min(group["lora_rank"] * sum(matrix.flatten(1).shape), matrix.numel())
    return matrix.numel() if group["density"] is None else max(1, round(group["density"] * matrix.numel()))


def _stacks(model: nn.Module, matching: Sequence[Layer]) -> list[str]:
    """The parameters that stack the matrices of experts which match."""
    chosen = Counter(layer.stack for layer in matching if layer.expert is not None)
    total = Counter(layer.stack for layer in find_experts(model))
    for name, count in chosen.items():
        if count < total[name]:
            raise UnsupportedModelError(
                f"{name!r} stacks the matrices of {total[name]} experts",
                found=f"patterns that choose {count} of them",
                do="Choose all or none.",
            )
    return list(chosen)


def approx_rank(matrix_OI: Tensor, group: Mapping[str, Any]) -> int:
    """Rank of the approximation that decides which weights are principal."""
    side = min(matrix_OI.shape)
    return max(1, min(RANK, side // 2)) if group["approx_rank"] is None else min(group["approx_rank"], side)


def names(group: Mapping[str, Any]) -> Sequence[str]:
    """Names of a group's parameters for messages: their own, or their number."""
    return group.get("param_names") or [f"number {number}" for number in range(len(group["params"]))]


def _check_parameter(name: str, parameter: Tensor) -> None:
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        raise UnsupportedModelError(
            f"parameter {name!r}",
            found=parameter.dtype,
            expected="floating point",
            do="LIFT needs unquantized weights.",
        )
    if parameter.is_meta or parameter.numel() == 0:
        raise UnsupportedModelError(
            f"parameter {name!r} is on the meta device or empty", do="LIFT needs the weights: load them."
        )


def _check_matrices(group: Mapping[str, Any]) -> None:
    dense = []
    for name, parameter in zip(names(group), group["params"], strict=True):
        if parameter.ndim < 2:
            raise ShapeError(
                f"parameter {name!r}",
                found=tuple(parameter.shape),
                expected="a matrix",
                do="Put it in a group with density=None and lora_rank=None.",
            )
        if group["density"] != 1 and budget(parameter, group) == parameter.numel():
            dense.append(name)
    side = min(min(matrices(parameter, group)[0].flatten(1).shape) for parameter in group["params"])
    if (group["approx_rank"] or 0) > side:
        warnings.warn(
            f"approx_rank {group['approx_rank']} exceeds the shorter side of some weights ({side}): there LIFT selects "
            "by magnitude",
            stacklevel=4,
        )
    if dense:
        warnings.warn(f"the budget covers {len(dense)} weights whole, such as {dense[0]!r}: dense", stacklevel=4)
