r"""TIES-Merging: trim each task vector, elect a sign per weight, average the task vectors that agree with it.

.. math::
    \hat\tau_i = \mathrm{trim}(\theta_i - \theta_0), \qquad \gamma = \mathrm{sgn}\Big(\sum_i \hat\tau_i\Big), \qquad
    \theta = \theta_0 + \alpha\, \mathrm{mean}\{\hat\tau_i : \mathrm{sgn}(\hat\tau_i) = \gamma\}

Yadav, Tam, Choshen, Raffel, Bansal 2023, arXiv 2306.01708. Trimming keeps the weights of largest magnitude per tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from weightsmith.core.io import ChunkMap, Chunks, StateDict, TensorMap
from weightsmith.core.linalg import upcast
from weightsmith.core.results import Result
from weightsmith.core.selection import kth_largest
from weightsmith.merge._shared.arithmetic import check_density, check_finite, weight_table
from weightsmith.merge._shared.merging import merge_checkpoints, merge_state_dicts

__all__ = ["ties", "ties_average"]


def ties_average(
    base: StateDict,
    tuned: Sequence[StateDict],
    *,
    density: float = 0.2,
    alpha: float = 1.0,
    weights: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Add the mean of the trimmed task vectors that agree in sign to the base network.

    Parameters
    ----------
    base : state dict
        What all were fine-tuned from.
    tuned : sequence of state dict
        Fine-tuned networks.
    density : float, default: 0.2
        Share of each task vector's weights that is kept, by magnitude per tensor, in (0, 1]. Weights equal to the
        smallest kept one are kept too.
    alpha : float, default: 1.0
        Scale of the merged task vector.
    weights : sequence of str, default: ()
        How much each fine-tuned network counts: ``"0.3,0.7"`` for all tensors, ``"*.mlp.*=0.3,0.7"`` for those whose
        name matches a shell pattern, one number for all networks. The last line that matches counts; 1 without any.

    Returns
    -------
    dict of str to Tensor
        Integers are those of the last.

    Raises
    ------
    HyperparameterError
        If ``density`` or ``alpha`` is out of range.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.
    UnsupportedModelError
        If weights are complex or quantized.

    Examples
    --------
    >>> base, a, b = ({"w": torch.tensor(w)} for w in ([0.0, 0.0, 0.0], [4.0, -1.0, 3.0], [2.0, 3.0, -1.0]))
    >>> ties_average(base, [a, b], density=1.0)
    {'w': tensor([3., 3., 3.])}
    """
    return merge_state_dicts([base, *tuned], _ties(density, alpha, weights, len(tuned)), real=True)


def ties(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    density: float = 0.2,
    alpha: float = 1.0,
    weights: Sequence[str] = (),
    overwrite: bool = False,
) -> Result:
    """Merge fine-tuned checkpoints on disk by trimming, sign election and a disjoint mean (TIES-Merging).

    Parameters
    ----------
    checkpoints : sequence of path
        The base network first, then those fine-tuned from it.
    out : path
        Folder for the result; small files come from the last checkpoint.
    density : float, default: 0.2
        Share of each task vector's weights that is kept, by magnitude per tensor, in (0, 1].
    alpha : float, default: 1.0
        Scale of the merged task vector.
    weights : sequence of str, default: ()
        How much each fine-tuned network counts: ``"0.3,0.7"`` for all tensors, ``"*.mlp.*=0.3,0.7"`` for those whose
        name matches a shell pattern, one number for all networks. The last line that matches counts; 1 without any.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If the numbers or the checkpoints do not fit; nothing is written.
    UnsupportedModelError
        If weights are complex or quantized; nothing is written.

    References
    ----------
    Yadav et al. "TIES-Merging: Resolving Interference When Merging Models". NeurIPS 2023. arXiv:2306.01708.
    """
    hyper = {"density": density, "alpha": alpha, "weights": [*weights]}
    tensor_map = _ties(density, alpha, weights, len(checkpoints) - 1)
    return merge_checkpoints("ties", checkpoints, out, tensor_map, real=True, overwrite=overwrite, hyper=hyper)


def _ties(density: float, alpha: float, weights: Sequence[str], count: int) -> TensorMap:
    check_density(density)
    check_finite("alpha", alpha)
    table = weight_table(weights, count)

    def tensor_map(name: str, chunks: Chunks) -> ChunkMap:
        bounds = _bounds(chunks, density) if density < 1 else [0.0] * count
        shares = table(name)

        def chunk_map(parts: Sequence[Tensor], out: Tensor) -> Tensor:
            # floats alone: with Boolean masks this takes ten times as long on a CPU
            base = upcast(parts[0])
            deltas = [hardshrink(upcast(part) - base, bound) for part, bound in zip(parts[1:], bounds, strict=True)]
            for delta, share in zip(deltas, shares, strict=True):
                delta.mul_(share)
            sign = sum(deltas[1:], deltas[0]).sign()
            total, weight = torch.zeros_like(base), torch.zeros_like(base)
            for delta, share in zip(deltas, shares, strict=True):
                agreeing = delta.mul_(sign).relu_()
                total += agreeing
                weight.add_(agreeing.sign_(), alpha=abs(share))
            mean = total.div_(weight.clamp_(min=torch.finfo(weight.dtype).tiny)).mul_(sign)
            return out.copy_(base.add(mean, alpha=alpha))

        return chunk_map

    return tensor_map


def _bounds(chunks: Chunks, density: float) -> list[float]:
    """The number just below the smallest magnitude that each task vector keeps."""

    def magnitudes() -> Iterator[list[Tensor]]:
        for base, *tuned in chunks():
            low = upcast(base)
            yield [(upcast(part) - low).float().abs_() for part in tuned]

    found = kth_largest(magnitudes, lambda size: min(size, max(1, round(density * size))))
    return [float(np.nextafter(np.float32(smallest), np.float32(0))) for smallest, _ in found]
