"""Several processes that work together, started by torchrun or Accelerate: sums and rows of all of them."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel

from weightsmith.core.errors import UnsupportedModelError

__all__ = [
    "all_reduce_sum",
    "base_model",
    "broadcast_first",
    "gather_objects",
    "gather_rows",
    "launched_count",
    "plain_model",
    "process_count",
    "process_rank",
    "refuse_several_processes",
    "wrapper_path",
]

T = TypeVar("T")

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model under ``torch.compile``, data parallelism and ``AveragedModel``.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> plain_model(nn.DataParallel(torch.compile(model))) is model
    True
    """
    while (compiled := "_orig_mod" in model._modules) or isinstance(model, WRAPPERS):
        model = model.get_submodule("_orig_mod" if compiled else "module")
    return model


def wrapper_path(model: nn.Module) -> str:
    """Return the path of :func:`plain_model` in a model, with a dot at its end; empty for a plain model.

    Examples
    --------
    >>> wrapper_path(nn.Linear(2, 2)), wrapper_path(torch.compile(nn.Linear(2, 2)))
    ('', '_orig_mod.')
    """
    plain = plain_model(model)
    return "" if plain is model else next(f"{name}." for name, module in model.named_modules() if module is plain)


def base_model(model: nn.Module) -> nn.Module:
    """Return the model of :func:`plain_model`, without the wrapper of PEFT around it.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> base_model(nn.DataParallel(model)) is model
    True
    """
    plain: Any = plain_model(model)
    found: nn.Module = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
    return found


def process_count() -> int:
    """Return how many processes work together; 1 outside of ``torch.distributed``.

    Examples
    --------
    >>> process_count()
    1
    """
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process among those that work together; 0 outside of ``torch.distributed``.

    Examples
    --------
    >>> process_rank()
    0
    """
    return distributed.get_rank() if process_count() > 1 else 0


def launched_count() -> int:
    """Return how many processes torchrun or Accelerate has started, also before they form a group.

    Examples
    --------
    >>> launched_count()
    1
    """
    return max(process_count(), int(os.environ.get("WORLD_SIZE", "1")))


def all_reduce_sum(*tensors: Tensor) -> None:
    """Add tensors up over the processes of ``torch.distributed``, in place; nothing to do in one process."""
    if process_count() > 1:
        for tensor in tensors:
            placed = _placed(tensor)
            distributed.all_reduce(placed)
            if placed is not tensor:
                tensor.copy_(placed)


def broadcast_first(*tensors: Tensor) -> None:
    """Give every process of ``torch.distributed`` the first one's tensors, in place; nothing to do in one process."""
    if process_count() > 1:
        for tensor in tensors:
            placed = _placed(tensor)
            distributed.broadcast(placed, 0)
            if placed is not tensor:
                tensor.copy_(placed)


def gather_objects(value: T) -> list[T]:
    """Return a small value of every process, by rank.

    Examples
    --------
    >>> gather_objects({"rows": 3})
    [{'rows': 3}]
    """
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    distributed.all_gather_object(found, value)
    return found


def gather_rows(rows: Shaped[Tensor, "rows ..."]) -> tuple[Shaped[Tensor, "all ..."], slice]:
    """Return the rows of all processes, in the order of their ranks, and which of them are this process's.

    Parameters
    ----------
    rows : Tensor of shape (rows, ...)
        Each process may have another number of them.

    Examples
    --------
    >>> gather_rows(torch.ones(2, 3))[1]
    slice(0, 2, None)
    """
    if process_count() == 1:
        return rows, slice(0, len(rows))
    counts = gather_objects(len(rows))
    padded = _placed(rows.new_zeros(max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    start = sum(counts[: process_rank()])
    every = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)
    return every, slice(start, start + len(rows))


def refuse_several_processes(what: str, do: str) -> None:
    """Refuse what would come out differently in each of several processes.

    Raises
    ------
    UnsupportedModelError
        If several processes work together, or were started to.

    Examples
    --------
    >>> refuse_several_processes("pulses are not averaged", do="Train in one process.")
    """
    if launched_count() > 1:
        raise UnsupportedModelError(what, found=f"{launched_count()} processes", expected="one", do=do)


def _placed(tensor: Tensor) -> Tensor:
    """The tensor where the processes can reach it: NCCL sends what is on a GPU only."""
    return tensor.cuda() if distributed.get_backend() == "nccl" and not tensor.is_cuda else tensor
