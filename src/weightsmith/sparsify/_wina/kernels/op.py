"""A group's product with a token as one operator of torch, so that torch.compile keeps it in its graph.

The graph holds the group's number and not its weights: they are in the group's own layout, and are read again where
they were replaced. The operator is registered without the layers of ``torch.library.custom_op``, which take longer
than most products.
"""

from __future__ import annotations

from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from weightsmith.core.errors import UnsupportedModelError

__all__ = ["Group", "register", "sparse_columns"]


class Group(Protocol):
    """Layers that share their input."""

    def columns(self, x_I: Tensor) -> Tensor:
        """Compute the outputs of all layers, one after the other, in float32."""


_GROUPS: WeakValueDictionary[int, Group] = WeakValueDictionary()
_NUMBERS = count()
_LIBRARY = torch.library.Library("weightsmith", "FRAGMENT")
_LIBRARY.define("sparse_columns(Tensor x_I, int group, int outs) -> Tensor")


def register(group: Group) -> int:
    """Return a number for a group, by which the operator finds it as long as it lives."""
    number = next(_NUMBERS)
    _GROUPS[number] = group
    return number


def _columns(x_I: Tensor, group: int, outs: int) -> Tensor:
    found = _GROUPS.get(group)
    if found is None:
        raise UnsupportedModelError("the layers of a compiled step are gone", do="Compile the model again.")
    return found.columns(x_I)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("sparse_columns", _columns, _device)


@torch.library.register_fake("weightsmith::sparse_columns")
def _fake(x_I: Tensor, group: int, outs: int) -> Tensor:
    return x_I.new_empty(outs, dtype=torch.float32)


sparse_columns = torch.ops.weightsmith.sparse_columns
"""From an input ``[in]``, a group's number and the sum of its outputs to the outputs of all its layers, in float32."""
