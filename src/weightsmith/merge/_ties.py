r"""TIES-Merging: trim each task vector, elect a sign per weight, average the task vectors that agree with it.

.. math::
    \hat\tau_i = \mathrm{trim}(\theta_i - \theta_0), \qquad \gamma = \mathrm{sgn}\Big(\sum_i \hat\tau_i\Big), \qquad
    \theta = \theta_0 + \alpha\, \mathrm{mean}\{\hat\tau_i : \mathrm{sgn}(\hat\tau_i) = \gamma\}

Yadav, Tam, Choshen, Raffel, Bansal 2023, arXiv 2306.01708. Trimming keeps the weights of largest magnitude per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightsmith.core.io import ChunkMap, Chunks, StateDict, TensorMap
from weightsmith.core.linalg import upcast
from weightsmith.core.results import Result
from weightsmith.merge._shared.arithmetic import check_density, check_finite
from weightsmith.merge._shared.merging import merge_checkpoints, merge_state_dicts

__all__ = ["ties", "ties_average"]

HALF = 1 << 16


def ties_average(
    base: StateDict, tuned: Sequence[StateDict], *, density: float = 0.2, alpha: float = 1.0
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

    Examples
    --------
    >>> base, a, b = ({"w": torch.tensor(w)} for w in ([0.0, 0.0, 0.0], [4.0, -1.0, 3.0], [2.0, 3.0, -1.0]))
    >>> ties_average(base, [a, b], density=1.0)
    {'w': tensor([3., 3., 3.])}
    """
    return merge_state_dicts([base, *tuned], _ties(density, alpha))


def ties(
    checkpoints: Sequence[Path], out: Path, *, density: float = 0.2, alpha: float = 1.0, overwrite: bool = False
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

    References
    ----------
    Yadav et al. "TIES-Merging: Resolving Interference When Merging Models". NeurIPS 2023. arXiv:2306.01708.
    """
    hyper = {"density": density, "alpha": alpha}
    return merge_checkpoints("ties", checkpoints, out, _ties(density, alpha), overwrite=overwrite, hyper=hyper)


def _ties(density: float, alpha: float) -> TensorMap:
    check_density(density)
    check_finite("alpha", alpha)

    def tensor_map(name: str, chunks: Chunks) -> ChunkMap:
        thresholds = _thresholds(chunks, density) if density < 1 else []

        def chunk_map(parts: Sequence[Tensor], out: Tensor) -> Tensor:
            base = upcast(parts[0])
            deltas = [upcast(part) - base for part in parts[1:]]
            for delta, threshold in zip(deltas, thresholds, strict=False):
                delta.mul_(_bits(delta) >= threshold)
            sign = sum(deltas[1:], deltas[0]).sign()
            total, count = torch.zeros_like(base), torch.zeros_like(base)
            for delta in deltas:
                agrees = delta.sign() == sign
                total += delta * agrees
                count += agrees * (delta != 0)
            return out.copy_(base.add(total.div_(count.clamp_min_(1)), alpha=alpha))

        return chunk_map

    return tensor_map


def _thresholds(chunks: Chunks, density: float) -> list[int]:
    """The bits of the smallest magnitude that each task vector keeps: exact, from two histograms and no sorting.

    Magnitudes in float32 are ordered as the integers of their bits: the first pass over the chunks counts the upper 16
    bits, the second the lower ones of those that share the threshold's upper bits.
    """
    upper = _histograms(chunks, lambda bits, _: bits >> 16)
    if not upper:  # no elements
        return []
    keep = max(1, round(density * int(upper[0].sum())))
    tops = [_from_top(counts, keep) for counts in upper]
    lower = _histograms(chunks, lambda bits, i: bits[bits >> 16 == tops[i][0]] & (HALF - 1))
    return [HALF * top + _from_top(counts, left)[0] for (top, left), counts in zip(tops, lower, strict=True)]


def _histograms(chunks: Chunks, digits: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    total: list[Tensor] = []
    for base, *tuned in chunks():
        counts = [
            digits(_bits(upcast(part) - upcast(base)), i).bincount(minlength=HALF).cpu() for i, part in enumerate(tuned)
        ]
        total = [a + b for a, b in zip(total, counts, strict=True)] if total else counts
    return total


def _from_top(counts: Tensor, keep: int) -> tuple[int, int]:
    """The largest digit at or above which are ``keep`` numbers, and how many of those at it are needed."""
    above = counts.flip(0).cumsum(0)
    place = min(int((above < keep).sum()), len(above) - 1)
    return len(above) - 1 - place, keep - (int(above[place - 1]) if place else 0)


def _bits(delta: Tensor) -> Tensor:
    return delta.float().abs().view(torch.int32)
