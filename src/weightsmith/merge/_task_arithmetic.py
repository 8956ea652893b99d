r"""Task arithmetic: add what each fine-tuning changed to the base network.

.. math:: \theta = \theta_0 + \sum_i \lambda_i (\theta_i - \theta_0)

Ilharco et al. 2023, arXiv 2212.04089.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import StateDict, TensorMap
from weightsmith.core.linalg import upcast
from weightsmith.core.results import Result
from weightsmith.merge._shared.merging import merge_checkpoints, merge_state_dicts

__all__ = ["add_tasks", "task_arithmetic"]


def add_tasks(base: StateDict, tuned: Sequence[StateDict], scale: float | Sequence[float] = 0.4) -> dict[str, Tensor]:
    """Add what each fine-tuning changed to the base network, scaled.

    Parameters
    ----------
    base : state dict
        What all were fine-tuned from.
    tuned : sequence of state dict
        Fine-tuned networks.
    scale : float or sequence of float, default: 0.4
        One for all, or one per network; a negative scale makes the network forget a task.

    Returns
    -------
    dict of str to Tensor
        ``base + scale_1 (tuned_1 - base) + ...``.

    Raises
    ------
    HyperparameterError
        If there is not one finite scale per network.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.

    Examples
    --------
    >>> import torch
    >>> base, a, b = ({"w": torch.tensor([value])} for value in (1.0, 2.0, 5.0))
    >>> add_tasks(base, [a, b], scale=0.5)
    {'w': tensor([3.5000])}
    """
    return merge_state_dicts([base, *tuned], _tasks(_scales(len(tuned), scale)))


def task_arithmetic(
    checkpoints: Sequence[Path], out: Path, *, scale: Sequence[float] = (0.4,), overwrite: bool = False
) -> Result:
    """Add what each fine-tuning changed to the base network, checkpoints on disk.

    Parameters
    ----------
    checkpoints : sequence of path
        The base network first, then those fine-tuned from it.
    out : path
        Folder for the result; small files come from the last checkpoint.
    scale : sequence of float, default: 0.4
        One for all, or one per fine-tuned network; a negative scale makes the network forget a task.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If the scales or the checkpoints do not fit; nothing is written.

    References
    ----------
    Ilharco et al. "Editing Models with Task Arithmetic". ICLR 2023. arXiv:2212.04089.
    """
    tensor_map = _tasks(_scales(len(checkpoints) - 1, scale[0] if len(scale) == 1 else scale))
    return merge_checkpoints(
        "task-arithmetic", checkpoints, out, tensor_map, overwrite=overwrite, hyper={"scale": scale}
    )


def _tasks(scales: Sequence[float]) -> TensorMap:
    def chunk_map(parts: Sequence[Tensor], out: Tensor) -> Tensor:
        base = upcast(parts[0])
        total = base.clone()
        for part, scale in zip(parts[1:], scales, strict=True):
            total.add_(upcast(part) - base, alpha=scale)
        return out.copy_(total)

    return lambda name, chunks: chunk_map


def _scales(count: int, scale: float | Sequence[float]) -> Sequence[float]:
    scales = [scale] * count if isinstance(scale, (int, float)) else list(scale)
    if len(scales) != count or not all(map(math.isfinite, scales)):
        raise HyperparameterError("scale", found=scale, expected=f"a finite number, or one per network ({count})")
    return scales
