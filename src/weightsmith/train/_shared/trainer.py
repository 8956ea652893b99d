"""What ``transformers.Trainer`` hands to a ``compute_loss_func``, and how it scales the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput, Seq2SeqLMOutput, TokenClassifierOutput

from weightsmith.core.errors import CalibrationError
from weightsmith.core.training import logits_of

__all__ = ["aligned", "share_of_step"]

ALIGNED = (MaskedLMOutput, Seq2SeqLMOutput, TokenClassifierOutput)
"""Outputs whose logits are about the label at their own position; those of other language models, about the next."""


def aligned(outputs: Any, labels: Tensor | None, *others: Tensor) -> tuple[Tensor, ...]:
    """Return labels, logits and other logits of the same shape that belong together, position by position.

    The :class:`~torch.nn.Module` is unknown here, so the kind of the output tells causal language models apart.

    Raises
    ------
    CalibrationError
        If there are no labels.
    """
    if labels is None:
        raise CalibrationError("a batch without labels", do="Put 'labels' into the data set.")
    logits = (logits_of(outputs), *others)
    if labels.ndim < 2 or labels.is_floating_point() or isinstance(outputs, ALIGNED):
        return labels, *logits
    return labels[..., 1:], *(each[..., :-1, :] for each in logits)


def share_of_step(count: Tensor, num_items_in_batch: Any) -> Tensor | float:
    """Return what share of an optimizer step's labels a micro-batch has; 1 if the Trainer does not count them."""
    return 1.0 if num_items_in_batch is None else count / num_items_in_batch
