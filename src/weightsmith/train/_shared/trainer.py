"""Losses in ``transformers.Trainer`` that need more than it hands to a ``compute_loss_func``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weightsmith.core.processes import all_reduce_sum, process_count
from weightsmith.core.training import share_of_step

__all__ = ["NotedInputs", "share_of_all_processes"]


class NotedInputs:
    """What a Trainer calls a model with, for a loss that it hands the outputs and labels only.

    Parameters
    ----------
    model : nn.Module
        The model that is trained. A hook notes the inputs of each call.
    own : str
        A column of the data that is for the loss: the model does not get it.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> noted = NotedInputs(model, "index")
    >>> _ = model(input=torch.ones(1, 2), index=torch.tensor([4]))
    >>> noted.take()["index"], noted.take()
    (tensor([4]), {})
    """

    def __init__(self, model: nn.Module, own: str) -> None:
        self.own = own
        self._inputs: dict[str, Any] = {}
        self._handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def take(self) -> dict[str, Any]:
        """Return the inputs of the last call, and forget them."""
        inputs, self._inputs = self._inputs, {}
        return inputs

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def _note(
        self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._inputs = inputs
        return args, {name: value for name, value in inputs.items() if name != self.own}


def share_of_all_processes(loss: Tensor, count: Tensor, num_items_in_batch: Any) -> Tensor:
    """Scale a loss that is the same on every process, as the Trainer adds those of processes and micro-batches up."""
    if num_items_in_batch is None:
        return loss
    every = count.clone()
    all_reduce_sum(every)
    return loss / process_count() * share_of_step(every, num_items_in_batch)
