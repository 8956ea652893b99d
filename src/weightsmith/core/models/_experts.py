"""Experts whose matrices are stacked in one parameter: each is a layer of its own.

Transformers holds the experts of a mixture in parameters ``[experts, out, in]`` (or ``[experts, in, out]``) of one
module, which a kernel multiplies all at once. Here each expert's matrix is a :class:`Layer`, and its inputs are
observed by running the experts one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.core.models._layers import Layer, find_layers, matches, patterns, warn_of_unmatched
from weightsmith.core.processes import wrapper_path

__all__ = ["find_experts", "find_matrices", "watching_experts"]


def find_experts(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> list[Layer]:
    """Find the matrix of every expert that is a part of a stacked parameter.

    Parameters
    ----------
    model : nn.Module
        Any model. Modules with the experts interface of transformers are found.
    include, exclude : str or sequence of str
        Shell patterns on the layers' names, which are ``path of the experts.number.parameter``.

    Examples
    --------
    >>> from weightsmith.testing import tiny
    >>> [layer.name for layer in find_experts(tiny("mixtral", layers=1)[0])][:2]
    ['model.layers.0.mlp.experts.0.gate_up_proj', 'model.layers.0.mlp.experts.1.gate_up_proj']
    """
    include, exclude = patterns(include), patterns(exclude)
    wrapper = wrapper_path(model)
    return [
        layer
        for path, module in model.named_modules()
        if all(hasattr(module, name) for name in ("num_experts", "is_transposed", "has_gate", "has_bias"))
        for parameter in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
        if getattr(module._parameters.get(parameter), "ndim", 0) == 3
        for expert in range(len(getattr(module, parameter)))
        for layer in [Layer(f"{path}.{expert}.{parameter}", module, (), parameter, expert)]
        if matches(layer.name.removeprefix(wrapper), include, exclude)
    ]


def find_matrices(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> list[Layer]:
    """Find the layers, and after them the experts, that match.

    Parameters
    ----------
    model : nn.Module
        Any model.
    include, exclude : str or sequence of str
        Shell patterns, see :func:`~weightsmith.core.models.find_layers`.

    Raises
    ------
    LayerNotFoundError
        If nothing matches.

    Warns
    -----
    UserWarning
        If one of several patterns matches nothing.

    Examples
    --------
    >>> from weightsmith.testing import tiny
    >>> len(find_matrices(tiny("mixtral", layers=1)[0], ["*q_proj", "*.experts.0.*"]))
    3
    """
    found = find_layers(model, include, exclude, strict=False) + find_experts(model, include, exclude)
    if not found:
        find_layers(model, include, exclude)
    if len(include := patterns(include)) > 1:
        every = find_layers(model, include, strict=False) + find_experts(model, include)
        wrapper = wrapper_path(model)
        warn_of_unmatched(
            include, [name.removeprefix(wrapper) for layer in every for name in (layer.name, *layer.aliases)]
        )
    return found


@contextmanager
def watching_experts(
    layers: Sequence[Layer], see: Callable[[Layer, Float[Tensor, "rows in"], Int[Tensor, "rows"]], None]
) -> Iterator[None]:
    """Run experts one after the other and show what each is multiplied with, while the context lasts.

    Parameters
    ----------
    layers : sequence of Layer
        Those that are experts are watched.
    see : callable
        Gets the layer, its input rows, and the number of the token that each row belongs to.
    """
    watched: dict[nn.Module, dict[tuple[str, int], Layer]] = {}
    for layer in layers:
        if layer.expert is not None:
            watched.setdefault(layer.module, {})[layer.parameter, layer.expert] = layer
    before = {module: module.__dict__.get("forward") for module in watched}
    try:
        for module, parts in watched.items():
            module.forward = partial(_forward, module, parts, see)
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward


def _forward(
    experts: Any,
    layers: dict[tuple[str, int], Layer],
    see: Callable[[Layer, Tensor, Tensor], None],
    hidden_TI: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
) -> Tensor:
    """What the experts of transformers compute: the weighted sum of each token's experts."""
    output_TI = torch.zeros_like(hidden_TI)
    for expert in range(experts.num_experts):
        token, place = torch.where(chosen_TK == expert)
        if len(token) == 0:
            continue

        def product(x: Tensor, parameter: str, expert: int = expert, token: Tensor = token) -> Tensor:
            if (parameter, expert) in layers:
                see(layers[parameter, expert], x, token)
            weight = getattr(experts, parameter)[expert]
            bias = getattr(experts, f"{parameter}_bias")[expert] if experts.has_bias else None
            return nn.functional.linear(x, weight.T if experts.is_transposed else weight, bias)

        x = product(hidden_TI[token], "gate_up_proj" if experts.has_gate else "up_proj")
        x = product(experts._apply_gate(x) if experts.has_gate else experts.act_fn(x), "down_proj")
        if getattr(experts, "has_post_expert_norm", False):
            x = experts.post_expert_norm(x)
        output_TI.index_add_(0, token, (x * weights_TK[token, place, None]).to(output_TI.dtype))
    return output_TI
