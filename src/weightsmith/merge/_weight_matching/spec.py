"""Which permutations leave a network's function unchanged: found by running it once, and applied to its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from weightsmith.core.data import Batch, call
from weightsmith.core.errors import ShapeError, UnsupportedModelError
from weightsmith.core.io import StoredState, TensorSpec
from weightsmith.core.models import evaluation_mode
from weightsmith.merge._weight_matching.reading import Block, Dims, Permutation, Side, read
from weightsmith.merge._weight_matching.trace import leaves_of, outputs_of, trace

__all__ = ["PermutationSpec", "Permutations"]

Permutations: TypeAlias = dict[str, Int[Tensor, "..."]]
"""By name: ``perm[i]`` is the old index that comes to place ``i``; with a row for each index of ``within``."""

TOLERANCE = 1e-3
"""Outputs that differ by more than this share of their largest value are not the same; models may round in float32."""


@dataclass(frozen=True)
class PermutationSpec:
    """The permutations of a network's hidden axes that leave its function unchanged.

    Attributes
    ----------
    permutations : dict of str to Permutation
        By name; a permutation comes after the one it is ``within``.
    axes : dict of str to tuple of tuple of Block
        For every tensor of the state dict that is permuted, the blocks of each axis; axes without blocks are fixed.
    shapes : dict of str to tuple of int
        Of every tensor of the state dict that was traced.
    left_out : dict of str to str
        Weights with an axis that is fixed because it could not be traced, and why.
    aliases : dict of str to str
        Other names of tied weights: they are permuted with the first and count once.
    buffers : frozenset of str
        Permuted, but without a say in which permutation is best.
    activations : dict of tuple of (str, {"input", "output"}) to tuple of tuple of Block
        For modules by name: the blocks of each axis of what they are first called with, and of what they return.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> spec = PermutationSpec.from_model(model, torch.rand(1, 3))
    >>> [(p.name, p.size) for p in spec.permutations.values()]
    [('0.weight[0]', 5)]
    >>> sorted(spec.axes)
    ['0.bias', '0.weight', '2.weight']
    """

    permutations: dict[str, Permutation]
    axes: dict[str, Dims]
    shapes: dict[str, tuple[int, ...]]
    left_out: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    activations: dict[tuple[str, Side], Dims] = field(default_factory=dict)

    @classmethod
    def from_model(cls, model: nn.Module, example: Batch, *, verify: bool = True) -> PermutationSpec:
        """Find the permutations by running the model on one batch.

        Parameters
        ----------
        model : nn.Module
            Any model; run in evaluation mode, its weights are only read. One on the meta device is run with zeros
            that take no memory; it has no weights that could be tried.
        example : Batch
            A batch it can be called with; one sample is enough.
        verify : bool, default: True
            Permute a copy with random weights at random and compare its outputs; permutations that change
            them are left out, by name.

        Raises
        ------
        UnsupportedModelError
            If weights are quantised.

        Notes
        -----
        Axes that an operation without a rule touches stay as they are, and so do weights the batch does not reach;
        ``left_out`` names both.
        """
        _check_kind(model)
        if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
            model, verify = _hollow(model), False
        leaves, aliases = leaves_of(model)
        parameters = {name for name, _ in model.named_parameters()}
        found = read(trace(model, leaves, example), leaves, parameters)
        spec = cls(
            found.permutations,
            found.axes,
            {name: tuple(tensor.shape) for name, tensor in leaves.items()},
            found.left_out,
            {alias: key for alias, key in aliases.items() if key in found.axes},
            frozenset(set(leaves) - parameters),
            found.activations,
        )
        return _verified(spec, model, example) if verify and spec.permutations else spec

    def __post_init__(self) -> None:
        for key, dims in self.axes.items():
            for block in (block for blocks in dims for block in blocks):
                for name, size in zip(block.names, block.sizes, strict=True):
                    if name and (name not in self.permutations or self.permutations[name].size != size):
                        known = self.permutations[name].size if name in self.permutations else "no such permutation"
                        raise ShapeError(f"{size} indices of {key!r} under permutation {name!r}", expected=known)

    @property
    def has_statistics(self) -> bool:
        """Whether running statistics of batch normalisation are among the buffers."""
        return any(key.endswith("running_var") for key in self.buffers)

    def identity(self) -> Permutations:
        """The permutations that change nothing."""
        return {
            name: torch.arange(p.size).expand(*([self.permutations[p.within].size] if p.within else []), -1).clone()
            for name, p in self.permutations.items()
        }

    def random(self, generator: torch.Generator | None = None) -> Permutations:
        """Permutations drawn uniformly."""
        return {
            name: torch.stack([torch.randperm(perm.shape[-1], generator=generator) for _ in rows]).view_as(perm)
            for name, perm in self.identity().items()
            for rows in [perm.reshape(-1, perm.shape[-1])]
        }

    def inverse(self, perms: Permutations) -> Permutations:
        """The permutations that undo ``perms``."""
        return {
            name: perms[name].argsort(-1)[perms[p.within]] if p.within else perms[name].argsort()
            for name, p in self.permutations.items()
        }

    def compose(self, first: Permutations, then: Permutations) -> Permutations:
        """The permutations that do what ``first`` does and after it what ``then`` does; ``then`` may lack some."""
        both = dict(first)
        for name, p in self.permutations.items():
            if name not in then and p.within not in then:
                continue
            step = then.get(name, torch.arange(p.size))
            if p.within:
                outer = first[p.within]
                inner = then.get(p.within, torch.arange(len(outer)))
                # rows of `then` count the blocks as `first` left them, those of the result as they were at the start
                step = step.expand(len(outer), -1)
                both[name] = first[name].clone()
                both[name][outer[inner]] = first[name][outer[inner]].gather(1, step[inner])
            else:
                both[name] = first[name][step]
        return both

    def order(self, key: str, axis: int, perms: Permutations, without: str = "") -> Int[Tensor, "size"] | None:
        """The old place that comes to each place of an axis; None where nothing moves.

        Parameters
        ----------
        key : str
            A tensor of the state dict.
        axis : int
            Its axis.
        perms : dict of str to Tensor
            The permutations; those it lacks are the identity.
        without : str, optional
            A permutation that is left as the identity.
        """
        blocks = self.axes[key][axis] if key in self.axes else ()
        moving = [block for block in blocks if perms.keys() & set(block.names) - {without}]
        if not moving:
            return None
        order = torch.arange(self.shapes[key][axis])
        for block in moving:
            order[block.places()] = self._old_places(block, perms, without)
        return order

    def _old_places(self, block: Block, perms: Permutations, without: str) -> Int[Tensor, "..."]:
        rank = len(block.sizes)
        old: dict[str, Tensor] = {}
        places = torch.tensor(block.offset)
        for i, (name, size, stride) in enumerate(zip(block.names, block.sizes, block.strides, strict=True)):
            new = torch.arange(size).view(-1, *[1] * (rank - i - 1))
            if name not in perms or name == without:
                moved = new
            elif within := self.permutations[name].within:
                moved = perms[name][old[within], new]
            else:
                moved = perms[name][new]
            old[name] = moved
            places = places + stride * moved
        return places

    def apply(self, state: Mapping[str, Tensor], perms: Permutations) -> dict[str, Tensor]:
        """The state dict with its weights permuted; what is not permuted is passed on as it is.

        Raises
        ------
        ShapeError
            If a permutation or tensor is missing or does not fit.

        Examples
        --------
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> spec = PermutationSpec.from_model(model, torch.rand(1, 3))
        >>> swapped = spec.apply(model.state_dict(), {"0.weight[0]": torch.tensor([1, 0])})
        >>> bool((swapped["0.bias"] == model[0].bias.flip(0)).all())
        True
        """
        self.check_state(state)
        self.check_permutations(perms)
        out = dict(state)
        for key in [*self.axes, *self.aliases]:
            first = self.aliases.get(key, key)
            for axis in range(len(self.shapes[first])):
                order = self.order(first, axis, perms)
                if order is not None:
                    out[key] = out[key].index_select(axis, order.to(out[key].device))
        return out

    def apply_to(self, model: nn.Module, perms: Permutations) -> None:
        """Permute the weights of a model in place; its function stays the same.

        Raises
        ------
        ShapeError
            If a permutation or weight is missing or does not fit.
        """
        state = model.state_dict()
        permuted = self.apply(state, perms)
        with torch.no_grad():
            for key in self.axes:
                state[key].copy_(permuted[key])

    def check_state(self, state: Mapping[str, Tensor], whose: str = "the state dict") -> None:
        """Refuse a state dict that is not of this architecture.

        Raises
        ------
        ShapeError
            If a tensor is missing or has another shape.
        UnsupportedModelError
            If a tensor holds integers.
        """
        kinds: Mapping[str, Tensor | TensorSpec] = state.specs if isinstance(state, StoredState) else state
        if missing := [key for key in self.shapes if key not in state]:
            raise ShapeError(f"{whose} lacks {len(missing)} tensors such as {missing[:3]}", do="Use one architecture.")
        odd = [key for key, shape in self.shapes.items() if tuple(kinds[key].shape) != shape]
        if odd:
            raise ShapeError(
                f"{len(odd)} tensors of {whose} such as {odd[:3]}",
                found=tuple(kinds[odd[0]].shape),
                expected=self.shapes[odd[0]],
            )
        for key in self.shapes:
            dtype = kinds[key].dtype
            if not (dtype.is_floating_point or dtype.is_complex):
                raise UnsupportedModelError(
                    f"tensor {key!r} of {whose} is packed or quantised",
                    found=dtype,
                    do="Use the weights before quantising.",
                )

    def check_permutations(self, perms: Permutations) -> None:
        """Refuse what are not the permutations of this spec.

        Raises
        ------
        ShapeError
            If one is missing, of another size, or no permutation.
        """
        for name, identity in self.identity().items():
            if name not in perms:
                raise ShapeError(f"permutation {name!r} is missing", found=f"permutations such as {[*perms][:3]}")
            if perms[name].shape != identity.shape or not bool((perms[name].sort(-1).values == identity).all()):
                raise ShapeError(
                    f"permutation {name!r}",
                    found=f"a tensor {tuple(perms[name].shape)}",
                    expected=f"the numbers 0 to {identity.shape[-1] - 1} once in each row of {tuple(identity.shape)}",
                )

    def without(self, names: Sequence[str], reason: str) -> PermutationSpec:
        """The spec with some permutations fixed, and those within them."""
        gone = set(names)
        for name, p in self.permutations.items():
            if p.within in gone:
                gone.add(name)
        left_out = dict(self.left_out)
        for key, dims in self.axes.items():
            if any(gone & set(block.names) for blocks in dims for block in blocks):
                left_out.setdefault(key, reason)
        axes, activations = _without(self.axes, gone), _without(self.activations, gone)
        permutations = {name: p for name, p in self.permutations.items() if name not in gone}
        aliases = {alias: key for alias, key in self.aliases.items() if key in axes}
        return PermutationSpec(permutations, axes, self.shapes, left_out, aliases, self.buffers, activations)


K = TypeVar("K")


def _without(axes: Mapping[K, Dims], gone: set[str]) -> dict[K, Dims]:
    """The blocks with some permutations fixed; what holds none any more is dropped."""
    kept = {}
    for key, dims in axes.items():
        left = tuple(
            tuple(
                replace(block, names=tuple("" if name in gone else name for name in block.names))
                for block in blocks
                if set(block.names) - gone - {""}
            )
            for blocks in dims
        )
        if any(left):
            kept[key] = left
    return kept


def _check_kind(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise UnsupportedModelError(
                f"weight {name!r} is packed or quantised",
                found=parameter.dtype,
                do="Use the weights before quantising.",
            )
    if getattr(model, "quantization_method", None) is not None or getattr(model, "is_quantized", False):
        raise UnsupportedModelError("the model is quantised", do="Use the weights before quantising.")


def _hollow(model: nn.Module) -> nn.Module:
    """A copy whose tensors on the meta device are zeros that share one element each; tied ones stay tied."""
    copied = copy.deepcopy(model)
    made: dict[Tensor, Tensor] = {}
    for module in copied.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if tensor not in made:
                    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    made[tensor] = nn.Parameter(zeros, False) if isinstance(tensor, nn.Parameter) else zeros
                held[name] = made[tensor]  # type: ignore[assignment]
    return copied


def _verified(spec: PermutationSpec, model: nn.Module, example: Batch) -> PermutationSpec:
    """Leave out the permutations that change the outputs of a copy of the model with random weights."""
    guilty = [*spec.permutations]
    for dtype in (torch.float32, torch.float64):  # the second is slower, and spares what is only rounding
        try:
            guilty = _guilty(spec, copy.deepcopy(model).to(dtype), example)
        except RuntimeError:  # some kernels know one precision only
            continue
        if not guilty:
            return spec
    return _verified(spec.without(guilty, "changes the outputs"), model, example)


def _guilty(spec: PermutationSpec, probe: nn.Module, example: Batch) -> list[str]:
    """The permutations that change the outputs, or all where they only do so together; the probe's weights are lost."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in probe.state_dict().items():
            if key in spec.shapes and tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
                scale = tensor.abs().mean().clamp(min=0.05)
                positive = tensor.ndim < 2 or bool(tensor.min() >= 0)  # so that units are seldom silent
                tensor.copy_(tensor.abs() + scale * noise if positive else tensor + scale * (2 * noise - 1))
    before = _run(probe, example)
    perms = spec.random(generator)
    if _change(spec, probe, perms, example, before) <= TOLERANCE:
        return []
    spec.apply_to(probe, spec.inverse(perms))
    alone = []
    for name in spec.permutations:
        one = spec.identity() | {name: perms[name]}
        if _change(spec, probe, one, example, before) > TOLERANCE:
            alone.append(name)
        spec.apply_to(probe, spec.inverse(one))
    return alone or [*spec.permutations]


def _change(
    spec: PermutationSpec, probe: nn.Module, perms: Permutations, example: Batch, before: list[Tensor]
) -> float:
    """Largest change of an output when the probe is permuted, relative to its largest value."""
    spec.apply_to(probe, perms)
    after = _run(probe, example)
    return max(
        (float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in zip(before, after, strict=True)),
        default=0.0,
    )


@torch.no_grad()
def _run(model: nn.Module, example: Batch) -> list[Tensor]:
    with evaluation_mode(model):
        example = _to(example, next(model.parameters()).dtype)
        return [out for out in outputs_of(call(model, example)) if out.is_floating_point() and out.numel()]


def _to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _to(item, dtype) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to(item, dtype) for item in value)
    return value
