"""Find a model's row of like blocks, and say in what blocks differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightsmith.core.errors import LayerNotFoundError, UnsupportedModelError
from weightsmith.core.io import offloaded_of
from weightsmith.core.models._layers import computed_by, find_layers, get_module

__all__ = ["HEAD_COUNTS", "Stack", "block_difference", "find_stack"]

HEAD_COUNTS = (
    "num_heads",
    "num_attention_heads",
    "num_key_value_heads",
    "n_heads",
    "heads",
    "head_dim",
    "attention_head_size",
)
"""Attributes with the number of an attention's heads, or their size."""

MEANING = (*HEAD_COUNTS, "eps", "variance_epsilon", "stride", "padding", "dilation", "groups")
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
        If blocks of the row differ in class, shape or meaning; the message names two and the difference. Or if blocks
        cannot be copied: the model's weights are on disk, computed from others by hooks (``torch.nn.utils.prune``), or
        in layers that :func:`weightsmith.sparsify.wina` has made sparse.

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
    if "_weightsmith_prompt" in model.__dict__:  # copies of its layers would not be told where a prompt ends
        raise UnsupportedModelError(
            "a model with sparse activations cannot change its number of blocks",
            found="SparseLinear layers",
            do="Call weightsmith.sparsify.remove_plan(model) first.",
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
    _refuse_computed(stack)
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


def _refuse_computed(stack: Stack) -> None:
    """Refuse tensors that a hook computes from others: they cannot be copied."""
    for number, block in enumerate(stack.blocks):
        for path, module in block.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    raise UnsupportedModelError(
                        f"the {name} of layer {f'{stack.name(number)}.{path}'.rstrip('.')!r} is computed",
                        found=computed_by(module, name),
                        expected="a parameter of its own",
                        do="Fold it into a plain parameter first, such as by torch.nn.utils.prune.remove.",
                    )


def _only_list(model: nn.Module) -> str:
    outermost: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inner = any(name.startswith(f"{other}.") for other in outermost)
        if isinstance(module, nn.ModuleList) and not inner:
            outermost[name] = module
    lists = [name for name, module in outermost.items() if find_layers(module, strict=False)]
    if len(lists) != 1:
        other = f"lists {[*outermost]} without linear or convolutional layers" if outermost else "no nn.ModuleList"
        raise LayerNotFoundError(
            "the model's stack of blocks",
            found=f"lists {lists}" if lists else other,
            expected="one",
            do="Name it: stack='encoder.block', or stack='[1:-1]' for a model that is a sequence.",
        )
    return lists[0]
