r"""Masks instead of slices: all choices of a tensor mixed in one elementwise product.

The slices of the choices, padded with zeros to the full shape and summed with their weights :math:`a_i`, are the tensor
times a mask, which is :math:`\sum_i a_i` over the choices that contain a position:

.. math:: \sum_i a_i \, \mathrm{pad}(\mathrm{slice}_i(W)) = W \odot M(a)

Where two axes depend on different dimensions, the mask is the product of one vector per axis; where they share one, it
is a sum over the joint choices of all dimensions involved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError
from weightsmith.search._tanglenas.samplers import Sampler

__all__ = ["ArchState", "Architecture", "AxisCut", "Superposition", "parts_of"]

Architecture: TypeAlias = dict[str, Any]
"""The value chosen for each dimension: a whole number, or of ``mlp_ratio`` also a fraction."""

START = 1e-3
"""Standard deviation of the architecture parameters at the start."""


@dataclass(frozen=True, eq=False)
class AxisCut:
    """What the choices keep of one axis of a tensor.

    Attributes
    ----------
    dims : tuple of str
        The dimensions that decide.
    kept : Tensor of shape (joint choices, size)
        Per joint choice, the last dimension fastest: which positions stay.
    """

    dims: tuple[str, ...]
    kept: Bool[Tensor, "joint size"]


class ArchState(nn.Module):
    """The architecture parameters, and the weights of the choices that the next forward pass uses.

    Parameters
    ----------
    choices : mapping of str to sequence of float
        Values of each dimension, ascending.
    generator : torch.Generator, optional
        Draws the first parameters.

    Examples
    --------
    >>> state = ArchState({"width": (2, 4)})
    >>> state.fix({"width": 4})
    >>> state.joint(("width",)), state.argmax().keys()
    (tensor([0., 1.]), dict_keys(['width']))
    """

    def __init__(self, choices: Mapping[str, Sequence[float]], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.choices: dict[str, tuple[Any, ...]] = {name: tuple(values) for name, values in choices.items()}
        self.alphas = nn.ParameterList(
            nn.Parameter(START * torch.randn(len(values), generator=generator)) for values in self.choices.values()
        )
        self.weights: dict[str, Tensor] = {}
        """Of the choices of every dimension, for the next forward pass."""
        self._active: dict[str, list[int]] = {}
        self._cache: dict[Any, Tensor] = {}

    def alpha(self, name: str) -> nn.Parameter:
        """Return the parameters of one dimension."""
        return self.alphas[list(self.choices).index(name)]

    def sample(
        self, sampler: Sampler, progress: float, generator: torch.Generator | None = None, *, learn: bool = True
    ) -> None:
        """Draw the weights for the next forward pass; without ``learn`` they carry no gradient."""
        with torch.set_grad_enabled(learn and sampler.learns):
            drawn = {name: sampler(self.alpha(name), progress, generator) for name in self.choices}
        self.set_weights(drawn)

    def fix(self, architecture: Architecture) -> None:
        """Give all weight to one architecture.

        Raises
        ------
        HyperparameterError
            If a dimension is missing or unknown, or a value is none of its choices.
        """
        self.check(architecture)
        device = self.alphas[0].device if len(self.alphas) else None
        self.set_weights(
            {
                name: torch.tensor([float(value == architecture[name]) for value in values], device=device)
                for name, values in self.choices.items()
            }
        )

    def check(self, architecture: Architecture) -> None:
        """Refuse an architecture that is not in the space, and list what is."""
        for name, values in self.choices.items():
            if architecture.get(name) not in values:
                raise HyperparameterError(
                    f"architecture: {name!r}", found=architecture.get(name), expected=list(values)
                )
        if unknown := sorted({*architecture} - {*self.choices}):
            raise HyperparameterError(f"architecture: {unknown[0]!r}", expected=f"one of {list(self.choices)}")

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights of the choices of every dimension."""
        self.weights = dict(weights)
        self._active = {name: values.detach().nonzero().flatten().tolist() for name, values in weights.items()}
        self._cache = {}

    def argmax(self) -> Architecture:
        """Return the architecture with the highest parameters."""
        chosen = {name: int(self.alpha(name).argmax()) for name in self.choices}
        return {name: self.choices[name][place] for name, place in chosen.items()}

    def random(self, generator: torch.Generator | None = None) -> Architecture:
        """Return an architecture drawn uniformly."""
        drawn = {name: int(torch.randint(len(v), (), generator=generator)) for name, v in self.choices.items()}
        return {name: self.choices[name][place] for name, place in drawn.items()}

    def joint(self, dims: tuple[str, ...]) -> Float[Tensor, "joint"]:
        """Return the weights of the joint choices of some dimensions, the last one fastest."""
        return self.cached(dims, lambda: _outer([self.weights[name] for name in dims]))

    def active(self, dims: tuple[str, ...]) -> list[int]:
        """Return the joint choices whose weight is not 0."""
        sizes = [len(self.choices[name]) for name in dims]
        strides = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
        chosen = product(*(self._active[name] for name in dims))
        return [sum(place * stride for place, stride in zip(places, strides, strict=True)) for places in chosen]

    def cached(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """Return what is computed once per sample: masks that layers of one shape share."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def _outer(weights: Iterable[Tensor]) -> Tensor:
    first, *others = weights
    for other in others:
        first = (first[:, None] * other).flatten()
    return first


@dataclass(frozen=True)
class Part:
    """A factor of a tensor's mask: the axes that depend on some dimensions and on no others."""

    dims: tuple[str, ...]
    axes: tuple[int, ...]
    tables: tuple[Tensor, ...]

    def mask(self, state: ArchState, ndim: int) -> Tensor:
        """Return the factor, with size 1 at all other axes."""
        weights = state.joint(self.dims)
        if len(self.axes) == 1:
            mask = weights @ self.tables[0]
        elif len(self.axes) == 2:
            mask = (self.tables[0] * weights[:, None]).mT @ self.tables[1]
        else:
            letters = "abcde"[: len(self.axes)]
            mask = torch.einsum(f"z,{','.join('z' + each for each in letters)}->{letters}", weights, *self.tables)
        shape = [1] * ndim
        for axis, size in zip(self.axes, mask.shape, strict=True):
            shape[axis] = size
        return mask.view(shape)


def parts_of(
    axes: Sequence[AxisCut | None], sizes: Mapping[str, int], device: torch.device | str, known: dict[Any, Part]
) -> tuple[Part, ...]:
    """Return the factors of the mask of a tensor.

    Parameters
    ----------
    axes : sequence of AxisCut or None
        Per axis of the tensor what the choices keep of it.
    sizes : mapping of str to int
        Number of choices of every dimension of the space, in order.
    device : torch.device or str
        Of the tensor.
    known : dict
        Factors so far: equal ones become the same object, so that layers of one shape share a mask.
    """
    groups: list[tuple[set[str], list[int]]] = []
    for axis, cut in enumerate(axes):
        if cut is None:
            continue
        dims, places = {*cut.dims}, [axis]
        for group in [group for group in groups if group[0] & dims]:
            groups.remove(group)
            dims, places = dims | group[0], group[1] + places
        groups.append((dims, places))
    parts = []
    for dims, places in groups:
        ordered = tuple(name for name in sizes if name in dims)
        tables = [_over(ordered, cut, sizes) for place in places if (cut := axes[place]) is not None]
        key = (str(device), ordered, *places, *(table.numpy().tobytes() for table in tables))
        if key not in known:
            known[key] = Part(ordered, tuple(places), tuple(table.float().to(device) for table in tables))
        parts.append(known[key])
    return tuple(parts)


def _over(dims: tuple[str, ...], cut: AxisCut, sizes: Mapping[str, int]) -> Bool[Tensor, "joint size"]:
    """The table of an axis over the joint choices of more dimensions than its own."""
    own = [sizes[name] if name in cut.dims else 1 for name in dims]
    whole = [sizes[name] for name in dims]
    return cut.kept.view(*own, -1).expand(*whole, -1).reshape(math.prod(whole), -1)


class Superposition(nn.Module):
    """The parametrization: a tensor times the mask of the present weights of the choices.

    Parameters
    ----------
    state : ArchState
        Holds the weights. It is no part of this module: its parameters are not the model's.
    parts : sequence of Part
        Factors of the mask, see :func:`parts_of`.
    ndim : int
        Axes of the tensor.
    """

    def __init__(self, state: ArchState, parts: Sequence[Part], ndim: int) -> None:
        super().__init__()
        self._state, self._parts, self._ndim = (lambda: state), tuple(parts), ndim

    def mask(self) -> Tensor:
        """Return the mask."""
        state = self._state()
        key = (self._ndim, *map(id, self._parts))
        return state.cached(key, lambda: reduce(torch.mul, [part.mask(state, self._ndim) for part in self._parts]))

    def forward(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the mixture of the slices of all choices."""
        return tensor * self.mask().to(tensor.dtype)
