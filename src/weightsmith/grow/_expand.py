"""Another depth from trained weights: find a model's stack of blocks, and fill it anew with copies of its blocks.

Everything here changes the number of blocks and no width. :func:`expand` is the plain way: each block of the new model
is a copy of one of the old, in order (deeper: neighbours repeat; shallower: evenly spaced blocks stay, which is the
weight selection of Xu et al. 2024, arXiv 2311.18823). :mod:`weightsmith.grow._learngene` first trains blocks that are
meant to be repeated.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.io import offloaded_of
from weightsmith.core.models import find_layers, get_module
from weightsmith.core.results import Result, record
from weightsmith.core.training import check_finite, restored_on_error
from weightsmith.grow._shared.configuration import PLACES, config_changes

__all__ = ["Stack", "assign", "expand", "expand_blocks", "find_stack", "set_blocks"]

HEADS = (
    "num_heads",
    "num_attention_heads",
    "num_key_value_heads",
    "n_heads",
    "heads",
    "head_dim",
    "attention_head_size",
)
MEANING = (*HEADS, "eps", "variance_epsilon", "stride", "padding", "dilation", "groups")
"""Attributes that say what a module's weights mean: blocks that differ in one cannot stand for each other."""


@dataclass(frozen=True)
class Stack:
    """A row of like blocks inside a model.

    Attributes
    ----------
    path : str
        Dotted path of the list that holds them; empty where the model itself is the list.
    container : nn.Module
        That list.
    start, stop : int
        The blocks' places in it.
    """

    path: str
    container: nn.Module
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, in order."""
        return list(self.container.children())[self.start : self.stop]

    def name(self, block: int) -> str:
        """The path of a block.

        Examples
        --------
        >>> find_stack(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), "[1:]").name(0)
        '1'
        """
        return f"{self.path}.{self.start + block}".lstrip(".")


def find_stack(model: nn.Module, path: str | None = None) -> Stack:
    """Find the row of blocks that can be copied to other places of the row.

    Parameters
    ----------
    model : nn.Module
        Any model.
    path : str, optional
        Where, for models with several rows or none that is an ``nn.ModuleList``: the dotted path of the list, and, if
        not all of it, a slice: ``"layer3[1:]"`` leaves the block with the stride out, ``"encoder.block[1:]"`` the one
        with the position table, ``"[1:-1]"`` the first and last of a model that is a sequence.

    Raises
    ------
    LayerNotFoundError
        If there is no such list, or, without ``path``, not exactly one.
    UnsupportedModelError
        If blocks of the row differ in class, shape or meaning; the message names two and the difference. Or if the
        model's weights are on disk.

    Examples
    --------
    >>> stack = find_stack(nn.ModuleDict({"body": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])}))
    >>> stack.path, len(stack)
    ('body', 2)
    """
    if offloaded_of(model) is not None:
        raise UnsupportedModelError(
            "a model on disk cannot change its number of blocks", do="Load it whole, without --stream."
        )
    if path is None:
        path = _only_list(model)
    parsed = re.fullmatch(r"([^\[\]]*)(?:\[(-?\d*):(-?\d*)\])?", path)
    if parsed is None:
        raise LayerNotFoundError(f"stack {path!r}", expected="a dotted path, perhaps with a slice such as [1:]")
    container = get_module(model, parsed[1])
    names = list(container._modules)
    if names != [str(i) for i in range(len(names))] or not names:
        found = f"{type(container).__name__} with children {names[:5]}"
        raise LayerNotFoundError(f"stack {path!r} is not a list of blocks", found=found)
    place = slice(*(int(bound) if bound else None for bound in (parsed[2], parsed[3])))
    start, stop, _ = place.indices(len(names))
    if start >= stop:
        raise LayerNotFoundError(f"stack {path!r} is empty", found=f"{len(names)} blocks")
    stack = Stack(parsed[1], container, start, stop)
    first, *others = stack.blocks
    for number, block in enumerate(others, 1):
        if difference := block_difference(first, block):
            at = start + number
            rest = f"[{at}:]" if 2 * number <= len(others) + 1 else f"[{start or ''}:{at}]"
            raise UnsupportedModelError(
                f"blocks {stack.name(0)!r} and {stack.name(number)!r} differ: {difference}",
                do=f"Leave one out with a slice, such as stack='{stack.path}{rest}'.",
            )
    if adapters := [name for name, _ in first.named_parameters() if "lora_" in name]:
        raise UnsupportedModelError(f"block {stack.name(0)!r} has an adapter", found=adapters[0], do="Merge it first.")
    return stack


def assign(depth: int, stages: int) -> list[int]:
    """Return the stage that each block of a model of ``depth`` blocks is copied from: in order, and even.

    With fewer blocks than stages, the stages evenly spaced at the blocks' centres.

    Examples
    --------
    >>> assign(12, 5)
    [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    >>> assign(2, 5)
    [1, 3]
    """
    for name, value in (("depth", depth), ("stages", stages)):
        if value < 1:
            raise HyperparameterError(name, found=value, expected="at least 1")
    if depth < stages:
        return [(2 * block + 1) * stages // (2 * depth) for block in range(depth)]
    base, rest = divmod(depth, stages)
    return [stage for stage in range(stages) for _ in range(base + (stage < rest))]


def expand(
    model: nn.Module,
    *,
    depth: int,
    assignment: Sequence[int] | None = None,
    strict_order: bool = True,
    stack: str | None = None,
) -> Result:
    """Give a model another number of blocks, each a copy of one it has.

    Parameters
    ----------
    model : nn.Module
        Changed in place, its configuration too, so that it can be saved and loaded as any other.
    depth : int
        Blocks of the new model.
    assignment : sequence of int, optional
        For each new block the old block it is a copy of; :func:`assign` by default.
    strict_order : bool, default: True
        Refuse an assignment that does not keep the order of the blocks.
    stack : str, optional
        Where the blocks are, as for :func:`find_stack`; found by itself in most models.

    Returns
    -------
    Result
        For each new block its ``source``; in total the blocks and parameters.

    Raises
    ------
    HyperparameterError
        If ``depth`` or ``assignment`` is out of range or out of order.
    LayerNotFoundError, UnsupportedModelError
        As :func:`find_stack`; or if no configuration describes the new model.
    NonFiniteError
        If a weight holds NaN or infinity.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> expand(model, depth=3, stack="").totals["blocks"], len(model)
    (3, 3)
    """
    with record("expand", depth=depth, stack=stack) as result:
        found = find_stack(model, stack)
        sources = check_assignment(assignment, depth, len(found), "blocks", strict_order)
        check_finite(model)
        result.notes += warn_of_unused(sources, len(found), "blocks")
        for block, source in enumerate(sources):
            result.layer(found.name(block), source=found.name(source))
        set_blocks(model, found, sources)
        result.hyper["assignment"] = sources
        result.totals = {"blocks": depth, "parameters": sum(p.numel() for p in model.parameters())}
    return result


def set_blocks(model: nn.Module, stack: Stack, sources: Sequence[int]) -> Stack:
    """Fill the stack with copies of its own blocks, none sharing weights with another, and update the configuration.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    stack : Stack
        Its row of blocks.
    sources : sequence of int
        For each new block the old one.

    Returns
    -------
    Stack
        The new row.

    Raises
    ------
    UnsupportedModelError
        If no configuration describes the new model.
    """
    return _fill(model, stack, stack.blocks, sources, _outside(model, stack))


def expand_blocks(model: nn.Module, stack: Stack, sources: Sequence[int]) -> nn.Module:
    """Return a copy of a model with its stack filled as by :func:`set_blocks`; the model stays.

    Parameters
    ----------
    model, stack, sources
        As for :func:`set_blocks`.

    Raises
    ------
    UnsupportedModelError
        As :func:`set_blocks`.
    """
    blocks = stack.blocks
    # the copy of all else has stand-ins for the blocks: each block is copied once a use and not once more
    known: dict[int, Any] = {id(block): nn.Identity() for block in blocks}
    new = copy.deepcopy(model, known)
    for block in blocks:
        del known[id(block)]
    _fill(new, Stack(stack.path, get_module(new, stack.path), stack.start, stack.stop), blocks, sources, known)
    return new


def _fill(
    model: nn.Module, stack: Stack, originals: Sequence[nn.Module], sources: Sequence[int], known: dict[int, Any]
) -> Stack:
    """Fill a stack with copies of blocks; ``known`` says what stands for what they refer to outside themselves."""
    before = list(stack.container.children())
    order = [
        *range(stack.start),
        *(stack.start + source for source in sources),
        *range(stack.stop, len(before)),
    ]
    changes = config_changes(model, stack.path, order)
    new = [copy.deepcopy(originals[source], dict(known)) for source in sources]
    blocks = [*before[: stack.start], *new, *before[stack.stop :]]
    with restored_on_error(model, values=False):
        for place, (block, source) in enumerate(zip(blocks, order, strict=True)):
            _move(block, place - source)
        stack.container._modules.clear()
        for place, block in enumerate(blocks):
            stack.container._modules[str(place)] = block
        for config, fields in changes:
            for name, value in fields.items():
                setattr(config, name, value)
    return Stack(stack.path, stack.container, stack.start, stack.start + len(sources))


def check_assignment(
    assignment: Sequence[int] | None, depth: int, stages: int, what: str, strict_order: bool
) -> list[int]:
    """Return the assignment, or the default one, as a list.

    Raises
    ------
    HyperparameterError
        If it has not ``depth`` entries from 0 to ``stages - 1`` that do not fall.
    """
    default = assign(depth, stages)
    if assignment is None:
        return default
    if len(assignment) != depth or not all(0 <= source < stages for source in assignment):
        expected = f"{depth} numbers from 0 to {stages - 1}, the {what} to copy"
        raise HyperparameterError("assignment", found=list(assignment), expected=expected)
    if strict_order and any(a > b for a, b in pairwise(assignment)):
        raise HyperparameterError(
            "assignment goes back", found=list(assignment), do="Keep the order, or pass strict_order=False."
        )
    return list(assignment)


def warn_of_unused(sources: Sequence[int], stages: int, what: str) -> list[str]:
    """Warn of what a shallow model leaves out; the warning is returned as a note."""
    left_out = sorted({*range(stages)} - {*sources})
    if not left_out:
        return []
    note = f"{what} {left_out} are not in a model of {len(sources)} blocks"
    warnings.warn(note, stacklevel=3)
    return [note]


def block_difference(first: nn.Module, second: nn.Module, *, ignore: Sequence[str] = ()) -> str:
    """Say in what two blocks differ that must agree for weights of one to work in the other; empty if in nothing.

    Examples
    --------
    >>> block_difference(nn.LayerNorm(4), nn.LayerNorm(4, eps=1e-6))
    'eps 1e-05 and 1e-06'
    """
    ours, theirs = (dict(_meaning(block, ignore)) for block in (first, second))
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            return f"{key} {ours.get(key)} and {theirs.get(key)}"
    return ""


def _meaning(block: nn.Module, ignore: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name, module in block.named_modules():
        # what drops is no part of a block's meaning: its rate rises with depth, and where it is 0 it may be left out
        if "Drop" in type(module).__name__ or isinstance(module, nn.Identity):
            continue
        yield f"{name} class".lstrip(), type(module).__name__
        for attribute in MEANING:
            if attribute not in ignore and isinstance(
                value := module.__dict__.get(attribute), int | float | tuple | str
            ):
                yield f"{name} {attribute}".lstrip(), value
        for attribute, parameter in module.named_parameters(recurse=False):
            yield f"{name}.{attribute} shape".lstrip("."), tuple(parameter.shape)


def _only_list(model: nn.Module) -> str:
    lists: list[str] = []
    for name, module in model.named_modules():
        inner = any(name.startswith(f"{other}.") for other in lists)
        if isinstance(module, nn.ModuleList) and not inner and find_layers(module, strict=False):
            lists.append(name)
    if len(lists) != 1:
        raise LayerNotFoundError(
            "the model's stack of blocks",
            found=f"lists {lists}" if lists else "no nn.ModuleList",
            expected="one",
            do="Name it: stack='encoder.block', or stack='[1:-1]' for a model that is a sequence.",
        )
    return lists[0]


def _outside(model: nn.Module, stack: Stack) -> dict[int, Any]:
    """What blocks may refer to and must not copy: the model's other modules and parameters, configurations."""
    inside = {id(module) for block in stack.container.children() for module in block.modules()}
    modules = [module for module in model.modules() if id(module) not in inside]
    parts = [*modules, *(p for module in modules for p in module._parameters.values() if p is not None)]
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return {id(part): part for part in [*parts, *configs]}


def _move(block: nn.Module, by: int) -> None:
    """Tell a block its new place: attention finds its keys and values in a cache by it."""
    for module in block.modules():
        for name in PLACES:
            if isinstance(place := module.__dict__.get(name), int):
                module.__dict__[name] = place + by
