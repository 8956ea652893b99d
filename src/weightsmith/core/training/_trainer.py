"""What ``transformers.Trainer`` hands to a ``compute_loss_func``, and how it scales the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from weightsmith.core.errors import CalibrationError
from weightsmith.core.training._batch_loss import logits_of

__all__ = ["labels_and_logits", "share_of_step", "trainer_cross_entropy"]

ALIGNED = ("MaskedLM", "Seq2Seq", "TokenClassif", "XLNet", "ProphetNet")
"""In the names of outputs whose logits are about the label at their own position; those of others, about the next.

Names, since models such as Longformer and LED have output classes of their own."""


def labels_and_logits(outputs: Any, labels: Tensor | None, *others: Tensor) -> tuple[Tensor, ...]:
    """Return labels, logits and other logits of the same shape that belong together, position by position.

    The :class:`~torch.nn.Module` is unknown here, so the kind of the output tells causal language models apart.

    Raises
    ------
    CalibrationError
        If there are no labels, or labels of tokens and a tuple, which does not say what model it is from.
    """
    if labels is None:
        raise CalibrationError("a batch without labels", do="Put 'labels' into the data set.")
    logits = (logits_of(outputs), *others)
    kinds = " ".join(kind.__name__ for kind in type(outputs).__mro__)
    if labels.ndim < 2 or labels.is_floating_point() or any(part in kinds for part in ALIGNED):
        return labels, *logits
    if isinstance(outputs, tuple):
        raise CalibrationError(
            "the model's output",
            found="a tuple",
            expected="an output with names, which tells a causal language model from others",
            do="Set return_dict=True.",
        )
    return labels[..., 1:], *(each[..., :-1, :] for each in logits)


def share_of_step(count: Tensor, num_items_in_batch: Any) -> Tensor | float:
    """Return what share of an optimizer step's labels a micro-batch has; 1 if the Trainer does not count them."""
    return 1.0 if num_items_in_batch is None else count / num_items_in_batch


def trainer_cross_entropy(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
    """Compute the cross-entropy as a ``compute_loss_func``: the mean over the labels of the optimizer step.

    Examples
    --------
    >>> import torch
    >>> round(trainer_cross_entropy({"logits": torch.zeros(2, 4)}, torch.tensor([0, 1])).item(), 4)
    1.3863
    """
    labels, logits = labels_and_logits(outputs, labels)
    total = functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)
