r"""DARE: drop most of what each fine-tuning changed at random, rescale the rest, and add it to the base network.

.. math::
    \theta = \theta_0 + \alpha \sum_i \frac{m_i \odot (\theta_i - \theta_0)}{p}, \qquad m_i \sim \mathrm{Bernoulli}(p)

Yu, Yu, Yu, Huang, Li 2023, arXiv 2311.03099. The paper's drop rate is :math:`1 - p`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightsmith.core.io import ChunkMap, Chunks, StateDict, TensorMap
from weightsmith.core.linalg import upcast
from weightsmith.core.results import Result
from weightsmith.core.training import draw_seed, seed_of
from weightsmith.merge._shared.arithmetic import check_density, check_finite, weight_table
from weightsmith.merge._shared.merging import merge_checkpoints, merge_state_dicts

__all__ = ["dare", "dare_average"]


def dare_average(
    base: StateDict,
    tuned: Sequence[StateDict],
    *,
    density: float = 0.1,
    alpha: float = 1.0,
    weights: Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Add randomly thinned and rescaled task vectors to the base network.

    Parameters
    ----------
    base : state dict
        What all were fine-tuned from.
    tuned : sequence of state dict
        Fine-tuned networks.
    density : float, default: 0.1
        Probability that a weight of a task vector is kept, in (0, 1]; the kept ones are divided by it.
    alpha : float, default: 1.0
        Scale of the sum of the task vectors.
    weights : sequence of str, default: ()
        How much each fine-tuned network counts: ``"0.3,0.7"`` for all tensors, ``"*.mlp.*=0.3,0.7"`` for those whose
        name matches a shell pattern, one number for all networks. The last line that matches counts; 1 without any.
    generator : torch.Generator, optional
        Draws what is kept.

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
    >>> base, tuned = {"w": torch.zeros(1000)}, {"w": torch.ones(1000)}
    >>> dare_average(base, [tuned], density=0.25)["w"].unique()
    tensor([0., 4.])
    """
    return merge_state_dicts([base, *tuned], _dare(density, alpha, weights, len(tuned), draw_seed(generator)))


def dare(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    density: float = 0.1,
    alpha: float = 1.0,
    weights: Sequence[str] = (),
    overwrite: bool = False,
    generator: torch.Generator | None = None,
) -> Result:
    """Merge fine-tuned checkpoints on disk by randomly thinned and rescaled task vectors (DARE).

    Memory is a few times that of the largest tensor.

    Parameters
    ----------
    checkpoints : sequence of path
        The base network first, then those fine-tuned from it.
    out : path
        Folder for the result; small files come from the last checkpoint.
    density : float, default: 0.1
        Probability that a weight of a task vector is kept, in (0, 1]; the kept ones are divided by it.
    alpha : float, default: 1.0
        Scale of the sum of the task vectors.
    weights : sequence of str, default: ()
        How much each fine-tuned network counts: ``"0.3,0.7"`` for all tensors, ``"*.mlp.*=0.3,0.7"`` for those whose
        name matches a shell pattern, one number for all networks. The last line that matches counts; 1 without any.
    overwrite : bool, default: False
        Replace what is at ``out``.
    generator : torch.Generator, optional
        Draws what is kept.

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
    Yu et al. "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch". ICML 2024.
    arXiv:2311.03099.
    """
    tensor_map = _dare(density, alpha, weights, len(checkpoints) - 1, draw_seed(generator))
    hyper = {"density": density, "alpha": alpha, "weights": [*weights]}
    seed = seed_of(generator)
    return merge_checkpoints(
        "dare", checkpoints, out, tensor_map, whole=True, overwrite=overwrite, seed=seed, hyper=hyper
    )


def _dare(density: float, alpha: float, weights: Sequence[str], count: int, seed: int) -> TensorMap:
    check_density(density)
    check_finite("alpha", alpha)
    table = weight_table(weights, count)

    def tensor_map(name: str, chunks: Chunks) -> ChunkMap:
        shares = table(name)

        def chunk_map(parts: Sequence[Tensor], out: Tensor) -> Tensor:
            # per tensor, so that the result depends neither on the order nor on the number of workers
            generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
            base = upcast(parts[0])
            total = base.clone()
            for part, share in zip(parts[1:], shares, strict=True):
                mask = torch.empty(part.shape).bernoulli_(density, generator=generator).to(base.device)
                total.addcmul_(upcast(part) - base, mask, value=share * alpha / density)
            return out.copy_(total)

        return chunk_map

    return tensor_map
