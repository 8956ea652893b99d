"""Distillation of a whole model: train a student on the probabilities of a teacher.

The teacher may have any architecture, and the data need no labels. The two models must have the same classes.

Legend: ``N`` rows (samples, tokens), ``C`` classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from weightsmith.core.data import (
    Samples,
    batched,
    call,
    collate,
    pad_token_id,
    to_model,
    without_labels,
)
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    ShapeError,
)
from weightsmith.core.io import CheckpointWriter, TensorSpec, check_output
from weightsmith.core.linalg import upcast
from weightsmith.core.models import evaluation_mode
from weightsmith.core.progress import track
from weightsmith.core.training import (
    Fit,
    FitOptions,
    check_temperature,
    default_loss,
    fit,
    logits_of,
    soft_target_loss,
    trained_parameters,
    training_method,
)

__all__ = ["agreement", "decaying_adamw", "distil", "soft_target_loss", "teacher_logits"]

Reduction = Literal["batchmean", "mean"]


@training_method(learning_rate=5e-4, weight_decay=0.05, scheduler="cosine", warmup=0.05)
def distil(
    student: nn.Module,
    teacher: nn.Module | Tensor,
    data: Any,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> Fit:
    r"""Train a student in place on a teacher's probabilities: :math:`(1-\alpha) L_{labels} + \alpha L_{KD}`.

    Parameters
    ----------
    student : nn.Module
        Changed in place; usually one with shared stages.
    teacher : nn.Module or Tensor of shape (samples, ..., C)
        Of any architecture with the same classes. It runs in evaluation mode, without gradients. Or its logits for
        all samples, from :func:`teacher_logits`.
    data : Dataset, sequence of samples, or DataLoader
        As for :func:`weightsmith.core.training.fit`. A mapping's padding (``attention_mask`` 0) does not count.
    alpha : float, default: 1.0
        Weight of the teacher, in [0, 1]; at 1 the data need no labels.
    temperature, reduction
        As for :func:`soft_target_loss`.
    seed : int, default: 0
        As for :func:`weightsmith.core.training.fit`.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW, without weight
        decay of vectors (biases, norms).

    Returns
    -------
    Fit
        The losses.

    Raises
    ------
    HyperparameterError
        If ``alpha`` or ``temperature`` is out of range, or logits come with a ``DataLoader``, whose samples have no
        numbers.
    NonFiniteError, ShapeError
        As :func:`soft_target_loss`; or if there is not one row of logits per sample.
    UnsupportedModelError
        If a model gives no logits.
    """
    if not 0 <= alpha <= 1:
        raise HyperparameterError("alpha", found=alpha, expected="in [0, 1]")
    check_temperature(temperature)

    if isinstance(teacher, Tensor):
        data = _WithLogits(data, teacher)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if isinstance(teacher, Tensor):
            batch, output = batch
        inputs = without_labels(model, batch)
        with torch.no_grad():
            theirs = _rows(output if isinstance(teacher, Tensor) else call(teacher, to_model(inputs, teacher)), inputs)
        ours = _rows(call(model, inputs), inputs)
        value = alpha * soft_target_loss(ours, theirs, temperature=temperature, reduction=reduction)
        return value if alpha == 1 else value + (1 - alpha) * default_loss(model, batch)

    with nullcontext() if isinstance(teacher, Tensor) else evaluation_mode(teacher):
        optimizer = decaying_adamw(student, options["learning_rate"], options["weight_decay"])
        return fit(student, data, loss=loss, optimizer=optimizer, seed=seed, **options)


@torch.no_grad()
def teacher_logits(
    teacher: nn.Module, data: Any, path: str | os.PathLike[str] | None = None, *, batch_size: int = 32
) -> Float[Tensor, "samples ..."]:
    """Run a teacher once over all samples, so that :func:`distil` need not run it in every epoch.

    Only for samples that are the same each time they are read, not for augmented, cropped or mixed ones. A language
    model has as many logits per token as its vocabulary has entries: running its teacher again is cheaper than storing
    them.

    Parameters
    ----------
    teacher : nn.Module
        Runs in evaluation mode.
    data : Dataset or sequence of samples
        As for :func:`distil`; all samples of one shape.
    path : path-like, optional
        Ends in ``.safetensors``; the logits are then written to this file and mapped into memory. Open it again with
        ``safetensors.torch.load_file(path)["logits"]``.
    batch_size : int, default: 32
        Samples per forward pass.

    Returns
    -------
    Tensor of shape (samples, ..., C)
        In float32 or better, in the order of the data.

    Raises
    ------
    CalibrationError
        If samples, and so the logits, are of unequal lengths.
    CheckpointError
        If ``path`` exists or does not end in ``.safetensors``; a failed run leaves no file.
    HyperparameterError
        If there are no samples, or ``batch_size`` is below one.
    UnsupportedModelError
        If the model gives no logits.

    Examples
    --------
    >>> teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> data = torch.utils.data.TensorDataset(torch.rand(10, 3))
    >>> logits = teacher_logits(teacher, data)
    >>> logits.shape, distil(student, logits, data).steps
    (torch.Size([10, 2]), 1)
    """
    if path is not None and Path(path).suffix != ".safetensors":
        raise CheckpointError(f"file of logits {str(path)!r}", expected="a name that ends in .safetensors")
    if batch_size < 1 or len(data) == 0:
        raise HyperparameterError("samples, batch_size", found=(len(data), batch_size), expected=">= 1 each")
    loader: DataLoader[Any] = DataLoader(
        cast(Dataset[Any], data),
        batch_size=batch_size,
        collate_fn=partial(collate, pad_token_id=pad_token_id(teacher)),
    )
    with evaluation_mode(teacher):
        parts = _parts(teacher, loader)
        if path is None:
            return torch.cat([*parts])
        check_output(Path(path), overwrite=False)
        first = next(parts)
        spec = TensorSpec(first.dtype, (len(data), *first.shape[1:]))
        with CheckpointWriter(path, {"logits": spec}) as writer:
            begin = 0
            for part in chain([first], parts):
                writer.write_range("logits", begin, part.flatten())
                begin += part.numel()
    return load_file(path)["logits"]


def _parts(teacher: nn.Module, loader: DataLoader[Any]) -> Iterator[Tensor]:
    """The logits of each batch, on the CPU."""
    shape: torch.Size | None = None
    for batch in track(loader, "teacher", total=len(loader)):
        logits = upcast(logits_of(call(teacher, to_model(without_labels(teacher, batch), teacher)))).cpu()
        shape = logits.shape[1:] if shape is None else shape
        if logits.shape[1:] != shape:
            raise CalibrationError(
                "logits of the samples",
                found=[tuple(shape), tuple(logits.shape[1:])],
                expected="one shape",
                do="Pad or crop the samples to one length.",
            )
        yield logits


@torch.no_grad()
def agreement(model: nn.Module, teacher: nn.Module, samples: Samples, batch_size: int) -> dict[str, float]:
    """Measure how often the largest logit is the teacher's, and the divergence from the teacher's probabilities.

    Returns
    -------
    dict
        ``agreement``, a share, and ``divergence`` in nats per row.
    """
    same = rows = 0
    divergence = 0.0
    with evaluation_mode(model), evaluation_mode(teacher):
        for batch in batched(samples, batch_size, pad_token_id=pad_token_id(model)):
            inputs = without_labels(model, to_model(batch, model))
            ours, theirs = (_rows(call(network, to_model(inputs, network)), inputs) for network in (model, teacher))
            same += int((ours.argmax(1) == theirs.argmax(1)).sum())
            divergence += soft_target_loss(ours, theirs).item() * len(ours)
            rows += len(ours)
    return {"agreement": same / rows, "divergence": divergence / rows}


def decaying_adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make an AdamW with weight decay on matrices but not on vectors (biases, norms)."""
    trained = trained_parameters(model)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)


def _rows(output: Any, inputs: Any) -> Tensor:
    """The logits of an output as rows; those of padding tokens, and of a decoder's unlabeled ones, are left out."""
    logits = logits_of(output)
    if isinstance(inputs, Mapping):
        labels, mask = inputs.get("labels"), inputs.get("attention_mask")
        if labels is not None and labels.shape == logits.shape[:-1]:
            return logits[labels != -100]
        if mask is not None and mask.shape == logits.shape[:-1]:
            return logits[mask != 0]
    return logits.flatten(0, -2)


class _WithLogits(Dataset[Any]):
    """Samples, each with its row of the teacher's logits."""

    def __init__(self, data: Any, logits: Tensor) -> None:
        if isinstance(data, DataLoader):
            raise HyperparameterError(
                "data of stored logits", found="a DataLoader", expected="a dataset, whose samples have numbers"
            )
        if len(data) != len(logits):
            raise ShapeError("stored logits", found=len(logits), expected=f"one row for each of {len(data)} samples")
        self.data, self.logits = data, logits

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> tuple[Any, Tensor]:
        return self.data[number], self.logits[number]
