r"""Model soup: the average of networks that were fine-tuned from one start.

.. math:: \theta = \sum_i w_i \theta_i

Wortsman et al. 2022, arXiv 2203.05482. Arithmetic is in float32, rounded once to the element type of the last network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import StateDict, TensorMap
from weightsmith.core.results import Result
from weightsmith.merge._shared.arithmetic import weighted_sum
from weightsmith.merge._shared.merging import merge_checkpoints, merge_state_dicts

__all__ = ["average", "soup"]


def average(states: Sequence[StateDict], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average state dicts: the uniform soup, or a weighted one.

    Parameters
    ----------
    states : sequence of state dict
        Of one architecture, fine-tuned from one start.
    weights : sequence of float, optional
        Not normalized: those of an average sum to one. Equal by default.

    Returns
    -------
    dict of str to Tensor
        Integers are those of the last.

    Raises
    ------
    HyperparameterError
        If there is not one finite weight per network.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.

    Examples
    --------
    >>> import torch
    >>> average([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}])
    {'w': tensor([0.5000])}
    """
    return merge_state_dicts(states, _linear(_shares(len(states), weights)))


def soup(
    checkpoints: Sequence[Path], out: Path, *, weights: Sequence[float] | None = None, overwrite: bool = False
) -> Result:
    """Average checkpoints on disk: the uniform soup, or a weighted one.

    Parameters
    ----------
    checkpoints : sequence of path
        Two or more networks of one architecture, fine-tuned from one start.
    out : path
        Folder for the average; small files come from the last checkpoint.
    weights : sequence of float, optional
        One per checkpoint, not normalized; equal by default.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If the weights or the checkpoints do not fit; nothing is written.

    References
    ----------
    Wortsman et al. "Model soups". ICML 2022. arXiv:2203.05482.
    """
    tensor_map = _linear(_shares(len(checkpoints), weights))
    return merge_checkpoints("soup", checkpoints, out, tensor_map, overwrite=overwrite, hyper={"weights": weights})


def _linear(weights: Sequence[float]) -> TensorMap:
    return lambda name, chunks: lambda parts, out: out.copy_(weighted_sum(parts, weights))


def _shares(count: int, weights: Sequence[float] | None) -> Sequence[float]:
    shares = [1 / max(count, 1)] * count if weights is None else list(weights)
    if len(shares) != count or not all(map(math.isfinite, shares)):
        raise HyperparameterError("weights", found=weights, expected=f"{count} finite numbers")
    return shares
