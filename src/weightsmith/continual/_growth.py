"""Heads that grow with the classes of the next task, and what an optimizer knows of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.models import computed_by
from weightsmith.core.sharding import refuse_sharded

__all__ = ["grow_head", "padded"]


@torch.no_grad()
def grow_head(head: nn.Linear, classes: int, *, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Add outputs to a head; its old rows, and what the optimizer knows of them, stay.

    Parameters
    ----------
    head : nn.Linear
        The last layer, changed in place. Its new rows are initialized as PyTorch does.
    classes : int
        Outputs afterwards, at least as many as before.
    optimizer : torch.optim.Optimizer, optional
        Its parameters are replaced by the new ones. Moments and accumulators of the old rows are kept; those of the
        new ones start at zero. A step count is kept, too. One that trains a part of the weights, such as ``LIFTAdamW``
        with a density, chooses them anew and starts over.

    Raises
    ------
    HyperparameterError
        If ``classes`` is less than now.
    UnsupportedModelError
        If the weight is computed from other tensors, or sharded.

    Examples
    --------
    >>> head = nn.Linear(3, 2)
    >>> optimizer = torch.optim.Adam(head.parameters())
    >>> grow_head(head, 4, optimizer=optimizer)
    >>> head.weight.shape, optimizer.param_groups[0]["params"][0] is head.weight
    (torch.Size([4, 3]), True)
    """
    if classes < head.out_features:
        raise HyperparameterError("classes", found=classes, expected=f">= {head.out_features}, as many as there are")
    if (how := computed_by(head)) or "weight" not in head._parameters:
        raise UnsupportedModelError(
            "the weight of the head is computed",
            found=how or type(head).__name__,
            expected="a parameter of its own",
            do="Fold it into a plain weight first.",
        )
    refuse_sharded(head, do="Grow it before fully_shard(model).")
    fresh = nn.Linear(head.in_features, classes, bias=head.bias is not None).to(head.weight)
    for name, old in list(head.named_parameters(recurse=False)):
        new = getattr(fresh, name).requires_grad_(old.requires_grad)
        new[: len(old)] = old
        setattr(head, name, new)
        if optimizer is not None:
            _replace(optimizer, old, new)
    head.out_features = classes


def padded(name: str, values: Tensor, shape: torch.Size) -> Tensor:
    """Fill up the rows that a parameter has gained with zeros.

    Raises
    ------
    ShapeError
        If the shapes differ in anything else.

    Examples
    --------
    >>> padded("bias", torch.ones(2), torch.Size([3]))
    tensor([1., 1., 0.])
    """
    if values.shape == shape:
        return values
    if values.ndim == 0 or values.shape[1:] != shape[1:] or len(values) > shape[0]:
        raise ShapeError(
            f"{name!r} of an earlier task", found=tuple(values.shape), expected=f"{tuple(shape)}, or fewer rows"
        )
    grown = values.new_zeros(shape)
    grown[: len(values)] = values
    return grown


def _replace(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state and "index" not in state:  # of a part of the weights, none of which is in the new rows
        optimizer.state[new] = {key: _grown(key, value, old.shape, new.shape) for key, value in state.items()}


def _grown(key: str, value: Any, old: torch.Size, new: torch.Size) -> Any:
    """A part of an optimizer's state, of the parameter's shape, flat or one number per row, for more rows."""
    per_row = (old[0], *[1] * (len(old) - 1))
    if not isinstance(value, Tensor) or value.shape not in (old, (old.numel(),), per_row):
        return value
    if value.shape == per_row:
        return padded(key, value, torch.Size((new[0], *per_row[1:])))
    grown = padded(key, value.view(old), new)
    return grown if value.shape == old else grown.flatten()
