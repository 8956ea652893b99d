r"""Spherical interpolation of two networks, tensor by tensor (Shoemake 1985).

.. math::
    \theta = \frac{\sin((1-\alpha)\omega)}{\sin\omega}\,\theta_0 + \frac{\sin(\alpha\omega)}{\sin\omega}\,\theta_1,
    \qquad \cos\omega = \frac{\langle \theta_0, \theta_1 \rangle}{\lVert\theta_0\rVert\,\lVert\theta_1\rVert}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightsmith.core.io import ChunkMap, Chunks, StateDict, TensorMap
from weightsmith.core.linalg import upcast
from weightsmith.core.models import lerp
from weightsmith.core.results import Result
from weightsmith.merge._shared.arithmetic import check_finite, weighted_sum
from weightsmith.merge._shared.merging import check_two, merge_checkpoints, merge_state_dicts

__all__ = ["slerp", "slerp_average"]


def slerp_average(start: StateDict, end: StateDict, alpha: float = 0.5) -> dict[str, Tensor]:
    """Interpolate each tensor along the arc from its direction in ``start`` to that in ``end``.

    Where the two are parallel, or one is zero, this is the straight line.

    Parameters
    ----------
    start, end : state dict
        Of one architecture.
    alpha : float, default: 0.5
        0 is ``start``, 1 is ``end``.

    Returns
    -------
    dict of str to Tensor
        Integers are those of ``end``.

    Raises
    ------
    HyperparameterError
        If ``alpha`` is not finite.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.
    UnsupportedModelError
        If weights are complex or quantized.

    Examples
    --------
    >>> slerp_average({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])})
    {'w': tensor([0.7071, 0.7071])}
    """
    return merge_state_dicts([start, end], _arc(check_finite("alpha", alpha)), real=True)


def slerp(checkpoints: Sequence[Path], out: Path, *, alpha: float = 0.5, overwrite: bool = False) -> Result:
    """Interpolate two checkpoints on disk along the arc between the directions of each tensor.

    Parameters
    ----------
    checkpoints : sequence of path
        Two networks of one architecture.
    out : path
        Folder for the result; small files come from the second checkpoint.
    alpha : float, default: 0.5
        0 is the first, 1 is the second.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If there are not two checkpoints or they do not fit; nothing is written.
    UnsupportedModelError
        If weights are complex or quantized; nothing is written.
    """
    check_two(checkpoints)
    tensor_map = _arc(check_finite("alpha", alpha))
    hyper = {"alpha": alpha}
    return merge_checkpoints("slerp", checkpoints, out, tensor_map, real=True, overwrite=overwrite, hyper=hyper)


def _arc(alpha: float) -> TensorMap:
    def tensor_map(name: str, chunks: Chunks) -> ChunkMap:
        products = torch.zeros(3, dtype=torch.float64)
        for start, end in chunks():
            a, b = upcast(start), upcast(end)
            products += torch.stack([a @ a, b @ b, a @ b]).double().cpu()
        aa, bb, ab = products.tolist()
        norms = math.sqrt(aa * bb)
        cosine = max(-1.0, min(1.0, ab / norms)) if norms > 0 else 1.0
        if not abs(cosine) < 1 - 1e-6:  # parallel, opposite, zero, or NaN, which the engine names
            return lambda parts, out: lerp(parts[0], parts[1], alpha, out)
        angle = math.acos(cosine)
        weights = [math.sin((1 - alpha) * angle) / math.sin(angle), math.sin(alpha * angle) / math.sin(angle)]
        return lambda parts, out: out.copy_(weighted_sum(parts, weights))

    return tensor_map
