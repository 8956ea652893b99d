"""Another depth from trained weights: fill a model's stack of blocks anew with copies of its blocks.

Everything here changes the number of blocks and no width. :func:`expand` is the plain way: each block of the new model
is a copy of one of the old, in order (deeper: neighbours repeat; shallower: evenly spaced blocks stay, which is the
weight selection of Xu et al. 2024, arXiv 2311.18823). :mod:`weightsmith.grow._learngene` first trains blocks that are
meant to be repeated.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.models import PLACES, Stack, config_changes, find_stack, get_module
from weightsmith.core.results import Result, record
from weightsmith.core.training import check_finite, restored_on_error

__all__ = ["assign", "expand", "expand_blocks", "set_blocks"]


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
        Where the blocks are, as for :func:`weightsmith.core.models.find_stack`; found by itself in most models.

    Returns
    -------
    Result
        For each new block its ``source``; in total the blocks and parameters.

    Raises
    ------
    HyperparameterError
        If ``depth`` or ``assignment`` is out of range or out of order.
    LayerNotFoundError, UnsupportedModelError
        As :func:`weightsmith.core.models.find_stack`; or if no configuration describes the new model.
    NonFiniteError
        If a weight holds NaN or infinity.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> expand(model, depth=3, stack="").totals["blocks"], len(model)
    (3, 3)
    """
    with record("expand", depth=depth, strict_order=strict_order, stack=stack) as result:
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
