"""The rescaler in ``transformers.Trainer``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.training import labels_and_logits
from weightsmith.train._meta_rescaling.method import MetaRescaler, call_with
from weightsmith.train._shared.trainer import NotedInputs, share_of_all_processes

__all__ = ["MetaRescalingLoss"]


class MetaRescalingLoss:
    """A :class:`MetaRescaler` as the ``compute_loss_func`` of ``transformers.Trainer``.

    The Trainer's own forward pass gives the loss no dropout mask to repeat, so each step takes one pass more than in
    :func:`weightsmith.core.training.fit`. In an evaluation all samples have equal weights. The Trainer's checkpoints
    have what the rescaler has learned with ``callbacks=[LossCheckpoint(rescaler)]``.

    Parameters
    ----------
    model : nn.Module
        The model that the Trainer trains. A hook on it notes each batch; :meth:`remove` takes it off.
    rescaler : MetaRescaler
        Made of the Trainer's data set. With a column ``index`` in it, and ``remove_unused_columns=False``, it keeps the
        weight of every sample.

    Examples
    --------
    >>> from transformers import Trainer
    >>> rows = [{"input": torch.randn(4), "labels": torch.tensor(n % 2)} for n in range(8)]
    >>> model = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 2))
    >>> loss = MetaRescalingLoss(model, MetaRescaler(rows, classes=2))
    >>> outputs = model(input=torch.ones(2, 4))  # Trainer(model, ..., compute_loss_func=loss) does this, and
    >>> loss(outputs, torch.tensor([0, 1])).requires_grad
    True
    """

    def __init__(self, model: nn.Module, rescaler: MetaRescaler) -> None:
        self.model, self.rescaler = model, rescaler
        self._noted = NotedInputs(model, "index")

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        """Compute the loss of a micro-batch, times its share of the samples of the step.

        Raises
        ------
        CalibrationError
            If there are no labels.
        """
        inputs = self._noted.take()
        labels, logits = labels_and_logits(outputs, labels)
        if not torch.is_grad_enabled():
            return self.rescaler.criterion(logits, labels).mean()
        batch = {**inputs, "labels": labels}
        # with the model's buffers as they are: the Trainer's own pass has updated them
        loss = self.rescaler.weighted(self.model, batch, lambda model, given: call_with(model, {}, given))
        return share_of_all_processes(loss, torch.tensor(len(labels), device=loss.device), num_items_in_batch)

    def remove(self) -> None:
        """Take the hook off the model."""
        self._noted.remove()
